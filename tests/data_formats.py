"""The same images and boxes written as Pascal VOC, YOLO and COCO, by code that shares nothing with the readers."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

CLASSES = ("cat", "dog", "10", "no")  # names that a careless yaml reader turns into a number and False


class Scene(NamedTuple):
    """One image with objects (class name, (xmin, ymin, xmax, ymax) as text)."""

    name: str
    image: Path
    size: tuple[int, int]
    objects: tuple[tuple[str, tuple[str, str, str, str]], ...]


Splits = dict[str, list[Scene]]


def write_voc_copy(base: Path, splits: Splits, classes=CLASSES) -> Path:
    """images, annotations, splits, classes.txt."""
    for scene in _all(splits):
        _copy(scene, base / "images")
        _write(base / "annotations" / f"{scene.name}.xml", _xml(scene))
    for split, scenes in splits.items():
        _write(base / "splits" / f"{split}.txt", "".join(f"{scene.name}\n" for scene in scenes))
    _write(base / "classes.txt", "\n".join(classes))
    return base


def write_roboflow_voc(base: Path, splits: Splits, classes=CLASSES) -> Path:
    """train, valid, test, each with images and xml side by side."""
    for folder, scenes in _folders(splits):
        for scene in scenes:
            _copy(scene, base / folder)
            _write(base / folder / f"{scene.name}.xml", _xml(scene))
    _write(base / "classes.txt", "\n".join(classes))
    return base


def write_roboflow_yolo(base: Path, splits: Splits, digits: int = 8, classes=CLASSES) -> Path:
    """train/images, train/labels, valid, test and a data.yaml that says ../train/images."""
    for folder, scenes in _folders(splits):
        for scene in scenes:
            _copy(scene, base / folder / "images")
            _write(base / folder / "labels" / f"{scene.name}.txt", _labels(scene, digits, classes))
    names = ", ".join(f"'{name}'" for name in classes)
    entries = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    _write(base / "data.yaml", f"{entries}\nnc: {len(classes)}\nnames: [{names}]\n\nroboflow:\n  license: CC\n")
    _write(base / "README.roboflow.txt", "exported\n")
    return base


def write_ultralytics(base: Path, splits: Splits, digits: int = 6, classes=CLASSES) -> Path:
    """images/train, labels/train and a dictionary of names."""
    for split, scenes in splits.items():
        for scene in scenes:
            _copy(scene, base / "images" / split)
            _write(base / "labels" / split / f"{scene.name}.txt", _labels(scene, digits, classes))
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(classes))
    entries = "train: images/train\nval: images/validation\ntest: images/test\n"
    _write(base / "data.yaml", f"path: {base}\n{entries}names:\n{names}")
    return base


def write_coco(base: Path, splits: Splits, images: str = "", classes=CLASSES) -> Path:
    """annotations/instances_train2017.json and train2017, or images/train2017; category ids with gaps."""
    for split, scenes in splits.items():
        short = {"validation": "val"}.get(split, split)
        for scene in scenes:
            _copy(scene, base / images / f"{short}2017")
        _write(base / "annotations" / f"instances_{short}2017.json", json.dumps(coco(scenes, classes=classes)))
        _write(base / "annotations" / f"captions_{short}2017.json", json.dumps({"images": [], "annotations": []}))
    return base


def write_roboflow_coco(base: Path, splits: Splits, classes=CLASSES) -> Path:
    """train/_annotations.coco.json beside the images; category 0 stands above the others."""
    for folder, scenes in _folders(splits):
        for scene in scenes:
            _copy(scene, base / folder)
        content = coco(scenes, classes=classes)
        content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
        for category in content["categories"][1:]:
            category["supercategory"] = "things"
        _write(base / folder / "_annotations.coco.json", json.dumps(content))
    return base


def coco(scenes: list[Scene], classes=CLASSES) -> dict:
    """The content of a json; images stand in the reverse order, ids of categories are 1, 4, 7, ..."""
    content = {"info": {}, "images": [], "annotations": [], "categories": []}
    for number, scene in reversed(list(enumerate(scenes))):
        width, height = scene.size
        file_name = scene.name + scene.image.suffix
        content["images"].append({"id": 100 + number, "file_name": file_name, "width": width, "height": height})
        for name, box in scene.objects:
            x1, y1, x2, y2 = map(float, box)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 100 + number,
                    "category_id": 1 + 3 * classes.index(name),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": 0,
                }
            )
    content["categories"] = [{"id": 1 + 3 * i, "name": name} for i, name in reversed(list(enumerate(classes)))]
    return content


def _xml(scene: Scene) -> str:
    objects = ""
    for name, box in scene.objects:
        sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        objects += f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>"
    width, height = scene.size
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"


def _labels(scene: Scene, digits: int, classes) -> str:
    lines = ""
    for name, box in scene.objects:
        x1, y1, x2, y2 = map(float, box)
        width, height = scene.size
        shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines += f"{classes.index(name)} " + " ".join(f"{share:.{digits}f}" for share in shares) + "\n"
    return lines


def _folders(splits: Splits) -> list[tuple[str, list[Scene]]]:
    return [({"validation": "valid"}.get(split, split), scenes) for split, scenes in splits.items()]


def _all(splits: Splits) -> list[Scene]:
    return [scene for scenes in splits.values() for scene in scenes]


def _copy(scene: Scene, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(scene.image, folder / (scene.name + scene.image.suffix))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
