"""A small data set that is drawn quickly: coloured rectangles on noise, with Pascal VOC annotations."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

TWO_COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}


def draw_squares(
    folder: Path,
    count: int = 12,
    side: int = 96,
    seed: int = 0,
    colours: Mapping[str, tuple[int, int, int]] = TWO_COLOURS,
    small: int = 0,
) -> Path:
    """Two thirds of the `count` images are for training, a sixth each for validation and test. Returns `folder`.

    Each image shows each colour once, except the fourth, which has no object. `small`: this many training images are
    also listed in a split named small.
    """
    random = np.random.default_rng(seed)
    for name in ("images", "annotations", "splits"):
        (folder / name).mkdir(parents=True)
    names = [f"scene_{i:02}" for i in range(count)]
    for i, name in enumerate(names):
        image = random.integers(90, 150, (side, side, 3)).astype(np.uint8)
        objects = ""
        for label, colour in list(colours.items()) if i != 3 else ():
            width, height = random.integers(24, 40, 2)
            x, y = random.integers(0, side - width), random.integers(0, side - height)
            image[y : y + height, x : x + width] = colour
            objects += (
                f"<object><name>{label}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
                f"<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>"
            )
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        size = f"<size><width>{side}</width><height>{side}</height><depth>3</depth></size>"
        (folder / "annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in colours))
    trained, validated = count * 2 // 3, count * 5 // 6
    splits = {"train": names[:trained], "validation": names[trained:validated], "test": names[validated:]}
    for split, ids in {**splits, **({"small": names[:small]} if small else {})}.items():
        (folder / "splits" / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return folder
