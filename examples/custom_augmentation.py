"""An augmentation of your own, and a picture of what it does: python -m examples.custom_augmentation [DATA]"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.squares import draw_squares
from config.load import load_config
from dl.formats.discover import as_overrides, locate
from dl.loader import build_loader
from dl.transforms import Affine, BuiltIn, MixUp
from ops.batch import Sample


@dataclass(frozen=True)
class Stripes:
    """Darkens every second row of some images."""

    probability: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.probability:
            return sample
        image = sample.image.copy()
        image[::2] //= 2
        return replace(sample, image=image)


def main(data: Path, out: Path, size: int = 128) -> int:
    """Writes the first augmented samples side by side, with their boxes. Returns the number of boxes."""
    if not data.exists():
        draw_squares(data)
    transforms = [Affine(rotate=15.0), BuiltIn(), Stripes(), MixUp(probability=0.3)]
    mcfg = load_config("voc.nano.full", data=data, overrides={"inputShape": size, "transforms": transforms, "dcore": 0})
    mcfg = mcfg.with_values(**as_overrides(locate(mcfg)))
    dataset = build_loader(mcfg, "train").dataset
    samples = [dataset[0, index] for index in range(min(4, len(dataset)))]  # keys are (epoch, index)

    sheet = Image.new("RGB", (size * len(samples), size))
    for column, sample in enumerate(samples):
        painted = Image.fromarray(sample.image)
        for box in sample.boxes:
            ImageDraw.Draw(painted).rectangle(tuple(box), outline=(255, 255, 0))
        sheet.paste(painted, (size * column, 0))
    sheet.save(out)
    print(f"{out}: {len(samples)} samples")
    return sum(len(sample.boxes) for sample in samples)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../squares"), Path("augmented.png"))
