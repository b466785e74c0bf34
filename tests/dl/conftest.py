"""Data sets written on the spot: every test says what lies on disk."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config.mconfig import ModelConfig

ORIENTATION_TAG, DESCRIPTION_TAG = 0x0112, 0x010E


def _voc_text(size, objects):
    width_height = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth/></size>" if size else ""
    parts = []
    for name, box, *rest in objects:
        sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        difficult = f"<difficult>{rest[0]}</difficult>" if rest else ""
        parts.append(f"<object><name>{name}</name>{difficult}<bndbox>{sides}</bndbox></object>")
    return f"<annotation><filename>lies.png</filename>{width_height}{''.join(parts)}</annotation>"


@pytest.fixture
def write_voc():
    def write(path, size=(40, 30), objects=(("cat", (5, 6, 25, 26)),)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_voc_text(size, objects), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_image():
    """A smooth picture (JPEG keeps it), with an EXIF orientation when asked; no byte copy of one of another name."""

    def write(path, size=(40, 30), orientation=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
        pixels = np.stack([rows * 5, columns * 5, rows + columns], axis=-1).astype(np.uint8)
        image = Image.fromarray(pixels)
        exif = image.getexif()
        exif[DESCRIPTION_TAG] = path.stem
        if orientation is not None:
            exif[ORIENTATION_TAG] = orientation
        image.save(path, exif=exif)
        return path

    return write


@pytest.fixture
def make_folder(tmp_path, write_voc, write_image):
    """A course-style data set: make_folder({"train": ["a", "b"], ...}) -> its folder."""

    def make(splits, base=None, images="images", annotations="annotations", lists="splits", classes=("cat", "dog")):
        base = Path(base or tmp_path / "data")
        for name in sorted({name for names in splits.values() for name in names}):
            write_image(base / images / f"{name}.jpg")
            write_voc(base / annotations / f"{name}.xml")
        for split, names in splits.items():
            if lists:
                (base / lists).mkdir(parents=True, exist_ok=True)
                (base / lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        if classes:
            (base / "classes.txt").write_text("\n".join(classes) + "\n")
        return base

    return make


@pytest.fixture
def three_splits(make_folder):
    """Six images: train a b c, validation d, test e f."""
    return make_folder({"train": ["a", "b", "c"], "validation": ["d"], "test": ["e", "f"]})


@pytest.fixture
def config():
    """config(folder, field=value, ...) -> frozen ModelConfig with small inputs and no workers."""

    def make(folder=None, **fields):
        mcfg = ModelConfig()
        if folder is not None:
            mcfg.dataDir = str(folder)
        for name, value in {"inputShape": (64, 64), "dcore": 0, "batchSize": 2, **fields}.items():
            setattr(mcfg, name, value)
        return mcfg.frozen()

    return make


@pytest.fixture
def truncated_jpeg():
    def cut(path, share=0.5):
        raw = path.read_bytes()
        path.write_bytes(raw[: int(len(raw) * share)])
        return path

    return cut


@pytest.fixture
def encoded():
    """encoded(image, format, **options) -> bytes."""

    def encode(image, image_format, **options):
        stream = io.BytesIO()
        image.save(stream, image_format, **options)
        return stream.getvalue()

    return encode
