"""The demo's data set: overhead scenes with twenty types of aircraft, drawn from a seed.

    image, boxes, labels = draw_scene(seed=0, index=7)
    folder = make_data_set("../mars-running/demo-data", num_images=500, seed=0)

How a scene is drawn, and which planes get a box, is said in `scenes/`.
"""

import json
import multiprocessing
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from config.errors import UserError
from dl.splits import make_splits
from ops.device import usable_cores
from ops.files import write_atomic
from scenes.aircraft import PLANFORMS
from scenes.compose import paint_scene, plan_scene
from scenes.export import export_scene, scene_name, start_worker

AIRCRAFT = tuple(PLANFORMS)  # A1 to A20
SETTINGS_FILE = "drawn.json"  # written last: where it lies, the set is whole
DRAWING = 2  # raise it when the same seed gives other pixels than before
SMALL_PER_CLASS = 10
LEAST_SIZE = 64

OnImage = Callable[[int, int], None]  # hears how many images are done, of how many

_OURS = {"images", "annotations", "splits", "classes.txt", SETTINGS_FILE}


def draw_scene(
    seed: int, index: int, size: int = 640, class_list: Sequence[str] = AIRCRAFT
) -> tuple[UInt8[np.ndarray, "S S 3"], Float32[np.ndarray, "N 4"], Int64[np.ndarray, " N"]]:
    """Draw one scene of `size` x `size` pixels: (image RGB, boxes xyxy in pixel edges, labels into `class_list`).

    Depends on the arguments alone. Only types in `class_list`, some of A1 to A20, are drawn; some scenes have none at
    all: boxes (0, 4), labels (0,). A box is tight around the pixels that can be seen of a plane; what is hidden by
    more than 60 % is not in the picture. Raises `ValueError` for a class that is no aircraft.
    """
    image, boxes, labels = paint_scene(plan_scene(seed, index, size, class_list))
    return image, boxes, labels


def make_data_set(
    folder: Path | str,
    num_images: int = 500,
    seed: int = 0,
    size: int = 640,
    num_workers: int | None = None,
    on_image: OnImage | None = None,
) -> Path:
    """Draw a data set in the course's layout, or find it drawn already. Returns its folder.

    images/*.jpg, annotations/*.xml (Pascal VOC), classes.txt, splits/{train,validation,test,small}.txt with 70, 15 and
    15 % of the images; `small` takes training images as long as one of their classes is on fewer than ten taken.
    A finished folder with the same settings is handed back at once, any other one that was drawn here is drawn anew.
    `num_workers` processes draw (None: as many as there are cores); the files do not depend on it. `on_image` hears
    how many images are done, of how many. Raises `UserError` for fewer than three images, a size below 64, a folder
    that holds other things, and when the disk does not take it.
    """
    if size < LEAST_SIZE:
        raise UserError(f"size={size}: a scene has at least {LEAST_SIZE} x {LEAST_SIZE} pixels")
    folder = Path(folder)
    settings = {"drawing": DRAWING, "num_images": num_images, "seed": seed, "size": size}
    names = [scene_name(index) for index in range(num_images)]
    splits = make_splits(names, seed)
    try:
        if _is_finished(folder, settings, names):
            return folder
        _clear(folder, names)
        labels = dict(zip(names, _export_all(folder, settings, num_workers, on_image), strict=True))
        write_atomic(folder / "classes.txt", "".join(f"{name}\n" for name in AIRCRAFT))
        for split, ids in {**splits, "small": _small(splits["train"], labels)}.items():
            write_atomic(folder / "splits" / f"{split}.txt", "".join(f"{image_id}.jpg\n" for image_id in ids))
        write_atomic(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{folder.absolute()}: cannot draw the data set there ({error.strerror or error})") from None
    return folder


def _is_finished(folder: Path, settings: Mapping[str, int], names: Sequence[str]) -> bool:
    try:
        found = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    whole = all(_stems(folder / part) == set(names) for part in ("images", "annotations"))
    return (
        found == settings and whole and (folder / "classes.txt").is_file() and (folder / "splits/small.txt").is_file()
    )


def _stems(folder: Path) -> set[str]:
    """Of the files there; hidden ones are leftovers of a write that was cut off."""
    return {path.stem for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()


def _clear(folder: Path, names: Sequence[str]) -> None:
    """Make room, without touching anything that was not drawn here."""
    drawn = {part: _stems(folder / part) for part in ("images", "annotations")}
    strange = {path.name for path in folder.glob("[!.]*")} - _OURS
    strange |= {stem for stems in drawn.values() for stem in stems if not re.fullmatch(r"scene\d{5,}", stem)}
    if strange:
        raise UserError(
            f"{folder.absolute()}: holds what was not drawn by Mars ({min(strange)}); "
            "name another folder for the drawn data set"
        )
    (folder / SETTINGS_FILE).unlink(missing_ok=True)
    for part, suffix in (("images", "jpg"), ("annotations", "xml")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for stem in drawn[part] - set(names):
            (folder / part / f"{stem}.{suffix}").unlink()


def _export_all(
    folder: Path, settings: Mapping[str, int], num_workers: int | None, on_image: OnImage | None
) -> Iterator[set[int]]:
    """Draw every image; yields the labels of each, in order."""
    total = settings["num_images"]
    export = partial(export_scene, folder, settings["seed"], settings["size"], AIRCRAFT)
    num_workers = min(usable_cores() if num_workers is None else num_workers, total)
    if num_workers <= 1:
        yield from _counted(map(export, range(total)), total, on_image)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's and OpenCV's locks, held or not
    with ProcessPoolExecutor(num_workers, context, start_worker) as pool:
        yield from _counted(pool.map(export, range(total), chunksize=4), total, on_image)


def _counted(results: Iterator[set[int]], total: int, on_image: OnImage | None) -> Iterator[set[int]]:
    for done, labels in enumerate(results, start=1):
        if on_image is not None:
            on_image(done, total)
        yield labels


def _small(train: Sequence[str], labels: Mapping[str, set[int]]) -> tuple[str, ...]:
    seen: Counter[int] = Counter()
    taken = []
    for name in train:
        if any(seen[label] < SMALL_PER_CLASS for label in labels[name]):
            taken.append(name)
            seen.update(labels[name])
    return tuple(taken)
