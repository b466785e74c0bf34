"""Detections as COCO results in a JSON file: written image by image, and read back without any loss.

A row is {"image_id", "category_id", "bbox": [x, y, width, height], "score"}. `category_id` is the label + 1, because
COCO counts from 1. `write_images` writes the image file beside it, with image ids, categories and, where it is known,
the ground truth, so that `COCO(image_file).loadRes(results)` of pycocotools works.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64

from config.errors import UserError, reading
from config.load import absolute
from dl.annotations import Annotation
from dl.files import MAX_JSON_BYTES, excerpt, read_bytes
from eval.predictor import Detections
from ops.files import atomic_writer
from ops.seal import file_digest

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
        for row in _rows(detections):
            file.write(f"{separator}{json.dumps(row, ensure_ascii=False, allow_nan=False)}".encode())
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
    known, numbers = set(image_ids), _ids_by_number(image_ids)
    tables: dict[str, list[tuple[float, ...]]] = {image_id: [] for image_id in image_ids}
    for number, row in enumerate(_load_rows(path), start=1):
        values = _values(row)
        if values is None:
            raise UserError(
                f"{path}: row {number} is not a COCO result; it needs image_id, category_id (1 or more), "
                "bbox [x, y, width, height] and score; the last three must be numbers without quotes"
            )
        image_id = row["image_id"]
        name = str(image_id)
        if name not in known and isinstance(image_id, int):
            name = numbers.get(image_id, name)
        if name not in known:
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
        for number, row in enumerate(_object_rows(annotations), start=1):  # COCO tools take an id of 0 for "no match"
            file.write(f"{',' if number > 1 else ''}\n{json.dumps({'id': number, **row}, ensure_ascii=False)}".encode())
        file.write(b"]\n}\n")
    return Path(path)


def refuse_overwriting_results(results: Path, image_file: Path, alternative: str) -> None:
    """Raise `UserError` when one of the two files exists and is not exactly what `predict` wrote.

    `alternative`: what the user can do instead of moving the file; the end of the message.
    """
    is_own, checksum = _read_image_file(image_file)
    if os.path.lexists(image_file) and not is_own:
        raise UserError(f"{image_file}: was not written by predict and would be overwritten; move it away{alternative}")
    # There is no checksum in files of earlier versions, or when the call was killed before the results were complete.
    is_same = (
        is_own
        and results.is_file()
        and (_are_results(results) if checksum is None else checksum == file_digest(results))
    )
    if os.path.lexists(results) and not is_same:
        raise UserError(
            f"{results}: was not written by predict, or was changed later, and would be overwritten; move it "
            f"away{alternative}"
        )


def _read_image_file(path: Path) -> tuple[bool, str | None]:
    """Did `predict` write it, and has nobody added objects since? And the checksum of the results beside it."""
    try:
        content = _load(path)
        info, annotations = content["info"], content["annotations"]
        return info["description"] == _DESCRIPTION and not annotations, info.get("results_sha256")
    except (UserError, KeyError, TypeError, AttributeError):
        return False, None


def _are_results(path: Path) -> bool:
    """Is it a file of COCO results, written by any tool?"""
    try:
        return all({"image_id", "category_id", "bbox", "score"} <= row.keys() for row in _load_rows(path))
    except (UserError, AttributeError):
        return False


def _rows(detections: Iterable[Detections]) -> Iterator[Mapping[str, Any]]:
    for found in detections:
        boxes = corners_to_bboxes(found.boxes.numpy()).tolist()
        scores = _shortest(found.scores.numpy()).tolist()
        for bbox, score, label in zip(boxes, scores, found.labels.tolist(), strict=True):
            yield {"image_id": found.image_id, "category_id": label + 1, "bbox": bbox, "score": score}


def _object_rows(annotations: Iterable[Annotation]) -> Iterator[Mapping[str, Any]]:
    for annotation in annotations:
        columns = (
            corners_to_bboxes(annotation.boxes).tolist(),
            annotation.labels.tolist(),
            annotation.difficult.tolist(),
        )
        for bbox, label, is_difficult in zip(*columns, strict=True):
            row = {"image_id": annotation.image_id, "category_id": label + 1, "bbox": bbox}
            yield row | {"area": bbox[2] * bbox[3], "iscrowd": int(is_difficult)}


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
    rows = _load(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: is not a file of COCO results, which is a list of detections")
    return rows


def _load(path: Path) -> Any:
    """The content of a JSON file. Raises `UserError`."""
    try:
        raw = read_bytes(path, MAX_JSON_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        with reading(path, "JSON"):
            return json.loads(raw)
    except UserError as error:
        raise UserError(f"{path}: is not valid JSON ({excerpt(str(error.__cause__))})") from None


def _ids_by_number(image_ids: Sequence[str]) -> dict[int, str]:
    """Number -> the image whose name is that number. Numbers that fit several names (7 and 007) are left out."""
    names: dict[int, list[str]] = {}
    for image_id in image_ids:
        if image_id.isascii() and image_id.isdigit():
            names.setdefault(int(image_id), []).append(image_id)
    return {number: same_number[0] for number, same_number in names.items() if len(same_number) == 1}
