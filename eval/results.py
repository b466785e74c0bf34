"""Detections as COCO results in a JSON file: written image by image, and read back without any loss.

A row is {"image_id", "category_id", "bbox": [x, y, width, height], "score"}. `category_id` is the label + 1, because
COCO counts from 1. `write_images` writes the image file beside it, with image ids, categories and, where it is known,
the ground truth, so that `COCO(image_file).loadRes(results)` of pycocotools works.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64

from config.errors import UserError
from config.load import absolute
from dl.annotations import Annotation
from dl.files import excerpt, read_json
from eval.predictor import Detections
from ops.files import atomic_writer, file_digest

# This description marks the files that Mars wrote; do not change it.
_DESCRIPTION = "images and categories of the detections beside it; category_id is the label + 1"

_LARGEST = 2**31  # limit for numbers in a row: larger than any coordinate or class id, and safe in float32 and int64


class ImageRecord(NamedTuple):
    """One entry of `images` in the image file."""

    image_id: str
    file_name: str
    width: int
    height: int


def write_results(path: Path | str, detections: Iterable[Detections]) -> Path:
    """Write detections atomically, one row per line, in the given order. Returns the path.

    `detections` may be a generator: only one image is in memory at a time. Without detections the file contains `[]`.
    Numbers are as short as possible so that `read_results` returns exactly the same float32 boxes and scores.
    """
    with atomic_writer(path) as file:
        separator = "[\n"
        for found in detections:
            rows = _rows(found.image_id, found.boxes.numpy(), found.labels.numpy())
            for row, score in zip(rows, _shortest(found.scores.numpy()).tolist(), strict=True):
                text = json.dumps(row | {"score": score}, ensure_ascii=False, allow_nan=False)
                file.write(f"{separator}{text}".encode())
                separator = ",\n"
        file.write(b"[]\n" if separator == "[\n" else b"\n]\n")
    return Path(path)


def read_results(path: Path | str, image_ids: Sequence[str]) -> list[Detections]:
    """The detections in a COCO results file, one entry per image in the order of `image_ids`, highest score first.

    An image without rows gets an empty entry. Other tools write a name such as 000123 as the number 123; a number then
    means the image whose name is this number. Raises `UserError` with the file, and the row if there is one, when the
    file cannot be read, when a row is not a detection, and when its image is not in `image_ids`.
    """
    path = Path(absolute(path))
    tables: dict[str, list[tuple[float, ...]]] = {image_id: [] for image_id in image_ids}
    numbers = [image_id for image_id in image_ids if image_id.isascii() and image_id.isdigit()]
    counts = Counter(map(int, numbers))
    by_number = {int(image_id): image_id for image_id in numbers if counts[int(image_id)] == 1}  # not 7 and 007
    for number, row in enumerate(_load_rows(path), start=1):
        values = _values(row)
        if values is None:
            raise UserError(
                f"{path}: row {number} is not a COCO result; it needs image_id, category_id (1 or more), "
                "bbox [x, y, width, height] and score; the last three must be numbers without quotes"
            )
        image_id = row["image_id"]
        name = str(image_id)
        if name not in tables and isinstance(image_id, int):
            name = by_number.get(image_id, name)
        if name not in tables:
            raise UserError(
                f"{path}: row {number} belongs to image {excerpt(name)}, which is not one of the evaluated images"
            )
        tables[name].append(values)
    return [_to_detections(image_id, tables.pop(image_id)) for image_id in image_ids]


def write_images(
    path: Path | str,
    images: Iterable[ImageRecord],
    class_names: Sequence[str],
    annotations: Iterable[Annotation] = (),
    results: Path | None = None,
) -> Path:
    """Write the image file of a results file: `images`, `categories` and, where it is known, the ground truth of COCO.

    Difficult objects become COCO's crowds, as in `eval.metrics`. `results`: the results file; its checksum is stored
    for `refuse_overwriting_results`. Returns the path.
    """
    checksum = {"results_sha256": file_digest(results)} if results else {}
    content = {
        "info": {"description": _DESCRIPTION, **checksum},
        "images": [
            {"id": image.image_id, "file_name": image.file_name, "width": image.width, "height": image.height}
            for image in images
        ],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(class_names)],
        "annotations": [],
    }
    with atomic_writer(path) as file:
        head = json.dumps(content, ensure_ascii=False, indent=1).removesuffix("[]\n}")
        file.write(f"{head}[".encode())
        number = 0
        for annotation in annotations:
            rows = _rows(annotation.image_id, annotation.boxes, annotation.labels)
            for row, difficult in zip(rows, annotation.difficult.tolist(), strict=True):
                number += 1  # starts at 1: COCO tools take an id of 0 for "no match"
                area = row["bbox"][2] * row["bbox"][3]
                text = json.dumps({"id": number, **row, "area": area, "iscrowd": int(difficult)}, ensure_ascii=False)
                file.write(f"{',' if number > 1 else ''}\n{text}".encode())
        file.write(b"]\n}\n")
    return Path(path)


def refuse_overwriting_results(results: Path, image_file: Path, alternative: str) -> None:
    """Raise `UserError` when one of the two files exists and is not exactly what `predict` wrote.

    `alternative`: what the user can do instead of moving the file; the end of the message.
    """
    is_own, checksum, is_same = False, None, False
    with suppress(UserError, KeyError, TypeError, AttributeError):
        content = read_json(image_file, "an image file")
        info, annotations = content["info"], content["annotations"]  # annotations: objects that somebody added
        is_own, checksum = info["description"] == _DESCRIPTION and not annotations, info.get("results_sha256")
    if os.path.lexists(image_file) and not is_own:
        raise UserError(f"{image_file}: was not written by predict and would be overwritten; move it away{alternative}")
    if is_own and results.is_file() and checksum is not None:
        is_same = checksum == file_digest(results)
    elif is_own and results.is_file():
        # There is no checksum in files of earlier versions, or when the call was killed before the results were
        # complete. Then any COCO results may be overwritten.
        with suppress(UserError, AttributeError):
            is_same = all({"image_id", "category_id", "bbox", "score"} <= row.keys() for row in _load_rows(results))
    if os.path.lexists(results) and not is_same:
        raise UserError(
            f"{results}: was not written by predict, or was changed later, and would be overwritten; move it "
            f"away{alternative}"
        )


def _rows(
    image_id: str, boxes: Float32[np.ndarray, "K 4"], labels: Int64[np.ndarray, " K"]
) -> Iterator[dict[str, Any]]:
    """The entries that detections and objects share."""
    for bbox, label in zip(corners_to_bboxes(boxes).tolist(), labels.tolist(), strict=True):
        yield {"image_id": image_id, "category_id": label + 1, "bbox": bbox}


def corners_to_bboxes(boxes: Float32[np.ndarray, "K 4"]) -> Float64[np.ndarray, "K 4"]:
    """xyxy -> x, y, width, height of COCO, with the fewest digits from which the same float32 corners are read back."""
    low, high = boxes[:, :2], boxes[:, 2:]
    sizes = _shortest(high - low)
    is_exact = (low.astype(np.float64) + sizes).astype(np.float32) == high
    # A size rounded to float32 can give a corner that differs in its last bit; then the size is written in float64.
    return np.concatenate((_shortest(low), np.where(is_exact, sizes, high.astype(np.float64) - low)), axis=1)


def _shortest(values: np.ndarray) -> np.ndarray:
    """The float64 with the fewest digits that rounds to the same float32: 0.1 instead of 0.10000000149."""
    return values.astype("U32").astype(np.float64)


def _to_detections(image_id: str, rows: Sequence[tuple[float, ...]]) -> Detections:
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    table = table[np.argsort(-table[:, 4], kind="stable")]
    low = table[:, :2].astype(np.float32)
    high = (low.astype(np.float64) + table[:, 2:4]).astype(np.float32)
    boxes = torch.from_numpy(np.concatenate((low, high), axis=1))
    scores, labels = table[:, 4].astype(np.float32), table[:, 5].astype(np.int64)
    return Detections(image_id, boxes, torch.from_numpy(scores), torch.from_numpy(labels))


def _values(row: Any) -> tuple[float, ...] | None:
    """x, y, width, height, score and label of a row; None when it is not a detection."""
    if not isinstance(row, dict) or not isinstance(row.get("bbox"), list):
        return None
    values: list[Any] = [*row["bbox"], row.get("score"), row.get("category_id")]
    is_plain = len(values) == 6 and all(type(value) in (int, float) and abs(value) <= _LARGEST for value in values)
    if not is_plain or values[5] < 1 or values[5] % 1 or not isinstance(row.get("image_id"), (str, int)):
        return None
    return (*map(float, values[:5]), values[5] - 1.0)


def _load_rows(path: Path) -> list[Any]:
    rows = read_json(path, "COCO results")
    if not isinstance(rows, list):
        raise UserError(f"{path}: is not a file of COCO results, which is a list of detections")
    return rows
