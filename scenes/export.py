"""Writes one scene to an image and an xml file. Worker processes import this, so it must not import torch (slow)."""

import io
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import cv2
from PIL import Image

from scenes.compose import PaintedScene

JPEG_QUALITY = 90


def scene_name(index: int) -> str:
    return f"scene{index:05d}"


def start_worker() -> None:
    """Ctrl-C is handled by the parent process. The processes run in parallel, so OpenCV uses no threads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)


def export_scene(folder: Path, paint: Callable[[int], PaintedScene], class_list: Sequence[str], index: int) -> set[int]:
    """Draw one scene into images/ and annotations/. Returns the labels of its objects."""
    scene = paint(index)
    stream = io.BytesIO()
    Image.fromarray(scene.image).save(stream, "JPEG", quality=JPEG_QUALITY)
    name = scene_name(index)
    (folder / "images" / f"{name}.jpg").write_bytes(stream.getvalue())
    (folder / "annotations" / f"{name}.xml").write_text(_to_voc(scene, f"{name}.jpg", class_list), encoding="utf-8")
    return set(scene.labels.tolist())


def _to_voc(scene: PaintedScene, file_name: str, class_list: Sequence[str]) -> str:
    """Pascal VOC xml in the form of MAR20's files."""
    height, width, depth = scene.image.shape
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = file_name
    ElementTree.SubElement(ElementTree.SubElement(root, "source"), "database").text = "Mars, drawn"
    _add_numbers(root, "size", {"width": width, "height": height, "depth": depth})
    ElementTree.SubElement(root, "segmented").text = "0"
    for box, label in zip(scene.boxes.astype(int).tolist(), scene.labels.tolist(), strict=True):
        node = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(node, "name").text = str(class_list[label])
        _add_numbers(node, "bndbox", dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)))
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add_numbers(parent: ElementTree.Element, name: str, numbers: dict[str, int]) -> None:
    node = ElementTree.SubElement(parent, name)
    for key, value in numbers.items():
        ElementTree.SubElement(node, key).text = str(value)
