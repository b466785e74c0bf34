"""The data set of the demo: scenes with twenty types of aircraft seen from above, drawn from a seed.

    image, boxes, labels = draw_scene(seed=0, index=7)
    folder = make_data_set("../mars-running/demo-data", num_images=500, seed=0)

`scenes/compose.py` describes how a scene is drawn and which planes get a box.
"""

import json
import multiprocessing
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from config.errors import UserError
from dl.splits import make_splits
from ops.device import usable_cores
from ops.files import write_atomic
from scenes.aircraft import PLANFORMS
from scenes.compose import PaintedScene, paint_scene, plan_scene
from scenes.export import export_scene, scene_name, start_worker
from scenes.mixed import paint_mixed
from scenes.objects import OBJECTS

AIRCRAFT = tuple(PLANFORMS)  # A1 to A20
SETTINGS_FILE = "drawn.json"  # written last, so its presence means a complete data set
DRAWING = 2  # version of the drawn pixels; increase it if the same seed gives other pixels
SMALL_PER_CLASS = 10
MIN_SIZE = 64


def _paint_airfield(seed: int, size: int, index: int) -> PaintedScene:
    return paint_scene(plan_scene(seed, index, size, AIRCRAFT))


_KINDS: dict[str, tuple[tuple[str, ...], Callable[[int, int, int], PaintedScene]]] = {
    "airfields": (AIRCRAFT, _paint_airfield), "objects": (OBJECTS, paint_mixed),
}  # fmt: skip

OnImage = Callable[[int, int], None]  # called with (number of finished images, number of all images)

_OWN_FILES = {"images", "annotations", "splits", "classes.txt", SETTINGS_FILE}


def draw_scene(
    seed: int, index: int, size: int = 640, class_list: Sequence[str] = AIRCRAFT
) -> tuple[UInt8[np.ndarray, "S S 3"], Float32[np.ndarray, "N 4"], Int64[np.ndarray, " N"]]:
    """Draw one scene of `size` x `size` pixels: (image RGB, boxes xyxy in pixel edges, labels into `class_list`).

    The result depends only on the arguments. Only the types in `class_list` (of A1 to A20) are drawn. A scene without
    planes has boxes (0, 4), labels (0,). A box is tight around the visible pixels of a plane. Planes that would be
    hidden by more than 60 % are not drawn. Raises `ValueError` for an unknown class.
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
    kind: str = "airfields",
) -> Path:
    """Draw a data set in the course's layout, unless it is complete already. Returns its folder.

    `kind`: "airfields" has the twenty types of aircraft, "objects" the classes of `scenes/objects.py`.

    Files: images/*.jpg, annotations/*.xml (Pascal VOC), classes.txt, splits/{train,validation,test,small}.txt. Train,
    validation and test have 70, 15 and 15 % of the images. `small` has training images until each class is on ten of
    them. A complete folder with the same settings is returned at once; with other settings it is drawn again.
    `num_workers` processes draw (None: one per core); the files do not depend on their number. `on_image` is called
    with the number of finished images and of all images. Raises `UserError` for fewer than three images, a size below
    64, a folder with other files, and disk errors.
    """
    if size < MIN_SIZE:
        raise UserError(f"size={size}: a scene must have at least {MIN_SIZE} x {MIN_SIZE} pixels")
    folder = Path(folder)
    class_list = _KINDS[kind][0]
    settings = {"drawing": DRAWING, "num_images": num_images, "seed": seed, "size": size}
    settings |= {} if kind == "airfields" else {"kind": kind}
    names = [scene_name(index) for index in range(num_images)]
    splits = make_splits(names, seed)
    try:
        if _is_finished(folder, settings, names):
            return folder
        _clear(folder, names)
        labels: dict[str, set[int]] = {}
        for name, labels_of_image in zip(names, _export_all(folder, settings, kind, num_workers), strict=True):
            labels[name] = labels_of_image
            if on_image is not None:
                on_image(len(labels), num_images)
        write_atomic(folder / "classes.txt", "".join(f"{name}\n" for name in class_list))
        for split, ids in {**splits, "small": _small(splits["train"], labels)}.items():
            write_atomic(folder / "splits" / f"{split}.txt", "".join(f"{image_id}.jpg\n" for image_id in ids))
        write_atomic(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{folder.absolute()}: cannot write the data set there ({error.strerror or error})") from None
    return folder


def _is_finished(folder: Path, settings: Mapping[str, Any], names: Sequence[str]) -> bool:
    try:
        found = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    whole = all(_stems(folder / part) == set(names) for part in ("images", "annotations"))
    return (
        found == settings and whole and (folder / "classes.txt").is_file() and (folder / "splits/small.txt").is_file()
    )


def _stems(folder: Path) -> set[str]:
    """The stems of the files in a folder; hidden files are left from an interrupted write."""
    return {path.stem for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()


def _clear(folder: Path, names: Sequence[str]) -> None:
    """Remove files of an earlier data set. Raises `UserError` if the folder has files that were not drawn here."""
    drawn = {part: _stems(folder / part) for part in ("images", "annotations")}
    other_files = {path.name for path in folder.glob("[!.]*")} - _OWN_FILES
    other_files |= {stem for stems in drawn.values() for stem in stems if not re.fullmatch(r"scene\d{5,}", stem)}
    if other_files:
        raise UserError(
            f"{folder.absolute()}: has files that Mars did not draw ({min(other_files)}); "
            "use another folder for the drawn data set"
        )
    (folder / SETTINGS_FILE).unlink(missing_ok=True)
    for part, suffix in (("images", "jpg"), ("annotations", "xml")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for stem in drawn[part] - set(names):
            (folder / part / f"{stem}.{suffix}").unlink()


def _export_all(folder: Path, settings: Mapping[str, Any], kind: str, num_workers: int | None) -> Iterator[set[int]]:
    """Draw every image. Yields the labels of each image, in order."""
    total = settings["num_images"]
    class_list, paint = _KINDS[kind]
    export = partial(export_scene, folder, partial(paint, settings["seed"], settings["size"]), class_list)
    num_workers = min(usable_cores() if num_workers is None else num_workers, total)
    if num_workers <= 1:
        yield from map(export, range(total))
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks of torch and OpenCV that may be held
    with ProcessPoolExecutor(num_workers, context, start_worker) as pool:
        yield from pool.map(export, range(total), chunksize=4)


def _small(train: Sequence[str], labels: Mapping[str, set[int]]) -> tuple[str, ...]:
    images_of_class: Counter[int] = Counter()
    chosen = []
    for name in train:
        if any(images_of_class[label] < SMALL_PER_CLASS for label in labels[name]):
            chosen.append(name)
            images_of_class.update(labels[name])
    return tuple(chosen)
