"""Detections as COCO results in a JSON file: written image by image, read back to the last bit.

A row is {"image_id", "category_id", "bbox" [x, y, width, height], "score"}; `category_id` is the label + 1, as COCO
numbers from 1. The companion that `write_images` makes holds image ids and categories (and the truth, where it is
known), so that `COCO(companion).loadRes(results)` of pycocotools works.
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
from config.places import absolute
from dl.annotations import Annotation
from dl.faults import excerpt
from dl.files import MOST_OF_JSON, read_bytes
from eval.predictor import Detections
from ops.files import atomic_writer
from ops.seal import file_digest

_DESCRIPTION = "images and categories of the detections beside it; category_id is the label + 1"  # marks our files

_LARGEST = 2**31  # of the numbers in a row: beyond any pixel and class, and float32 and int64 can hold it


class ImageRecord(NamedTuple):
    """What a companion says about one image."""

    image_id: str
    file_name: str
    width: int
    height: int


def write_results(path: Path | str, detections: Iterable[Detections]) -> Path:
    """Write detections, one row a line, in the order given; the file is whole or not there. Returns the path.

    `detections` may be a generator: only the image at hand is held. None at all, or images without any, give `[]`.
    `read_results` gives back the same float32 boxes and scores; no digit is written that does not serve that.
    """
    with atomic_writer(path) as file:
        separator = "[\n"
        for row in _rows(detections):
            file.write(f"{separator}{json.dumps(row, ensure_ascii=False, allow_nan=False)}".encode())
            separator = ",\n"
        file.write(b"[]\n" if separator == "[\n" else b"\n]\n")
    return Path(path)


def read_results(path: Path | str, image_ids: Sequence[str]) -> list[Detections]:
    """The detections in a COCO results file, one entry for each of `image_ids` and in their order, best first.

    An image without rows gets an empty one. Other tools write a name like 000123 as the number 123: a number means the
    image whose name is that number. Raises `UserError` naming the file, and the row where there is one, when it cannot
    be read, when a row is no detection, and when it is of an image that is not in `image_ids`.
    """
    path = Path(absolute(path))
    known, numbers = set(image_ids), _numbers(image_ids)
    tables: dict[str, list[tuple[float, ...]]] = {image_id: [] for image_id in image_ids}
    for number, row in enumerate(_load_rows(path), start=1):
        values = _values(row)
        if values is None:
            raise UserError(
                f"{path}: row {number} is no COCO result; wanted are image_id, category_id from 1 on, "
                "bbox [x, y, width, height] and score, the last three as numbers without quotes"
            )
        image_id = row["image_id"]
        name = str(image_id)
        if name not in known and isinstance(image_id, int):
            name = numbers.get(image_id, name)
        if name not in known:
            raise UserError(
                f"{path}: row {number} is of image {excerpt(name)}, which is not among the images asked for"
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
    """Write the companion of a results file: COCO's `images`, `categories` and, where it is known, the truth.

    Difficult objects are COCO's crowds, as in `eval.metrics`. `results`: the file, whose checksum is kept for
    `refuse_overwriting_results`. Returns the path.
    """
    checksum = {"results_sha256": file_digest(results)} if results else {}
    content = {
        "info": {"description": _DESCRIPTION, **checksum},
        "images": [
            {"id": one.image_id, "file_name": one.file_name, "width": one.width, "height": one.height} for one in images
        ],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(class_names)],
        "annotations": [],
    }
    with atomic_writer(path) as file:
        head = json.dumps(content, ensure_ascii=False, indent=1).removesuffix("[]\n}")
        file.write(f"{head}[".encode())
        for number, row in enumerate(_truths(annotations), start=1):  # from 1: a truth numbered 0 reads as "no match"
            file.write(f"{',' if number > 1 else ''}\n{json.dumps({'id': number, **row}, ensure_ascii=False)}".encode())
        file.write(b"]\n}\n")
    return Path(path)


def refuse_overwriting_results(results: Path, companion: Path, way_out: str) -> None:
    """Raise `UserError` when one of both files is there and is not, unchanged, what was written for predictions."""
    is_ours, checksum = _read_companion(companion)
    # Without a checksum: of an earlier version, or of a call that was killed before its results were in place.
    if os.path.lexists(companion) and not is_ours:
        raise UserError(f"{companion}: was not written by predict, and would be replaced; move it away{way_out}")
    is_same = (
        is_ours
        and results.is_file()
        and (_are_results(results) if checksum is None else checksum == file_digest(results))
    )
    if os.path.lexists(results) and not is_same:
        raise UserError(
            f"{results}: was not written by predict or was changed since, and would be replaced; move it away{way_out}"
        )


def _read_companion(path: Path) -> tuple[bool, str | None]:
    """Was it written for predictions, to which nobody added objects? And the checksum of the results beside it."""
    try:
        content = _load(path)
        info, annotations = content["info"], content["annotations"]
        return info["description"] == _DESCRIPTION and not annotations, info.get("results_sha256")
    except (UserError, KeyError, TypeError, AttributeError):
        return False, None


def _are_results(path: Path) -> bool:
    """Is it a file of COCO results, whoever wrote it?"""
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


def _truths(annotations: Iterable[Annotation]) -> Iterator[Mapping[str, Any]]:
    for one in annotations:
        boxes = corners_to_bboxes(one.boxes).tolist()
        for bbox, label, is_difficult in zip(boxes, one.labels.tolist(), one.difficult.tolist(), strict=True):
            row = {"image_id": one.image_id, "category_id": label + 1, "bbox": bbox}
            yield row | {"area": bbox[2] * bbox[3], "iscrowd": int(is_difficult)}


def corners_to_bboxes(boxes: Float32[np.ndarray, "K 4"]) -> Float64[np.ndarray, "K 4"]:
    """xyxy -> COCO's x, y, width, height, in as few digits as give back the same float32 corners."""
    low, high = boxes[:, :2], boxes[:, 2:]
    sizes = _shortest(high - low)
    gives_back = (low.astype(np.float64) + sizes).astype(np.float32) == high
    exact = high.astype(np.float64) - low  # a difference rounded to float32 may miss the corner by its last bit
    return np.concatenate((_shortest(low), np.where(gives_back, sizes, exact)), axis=1)


def _shortest(values: np.ndarray) -> np.ndarray:
    """float32 -> the float64 of its shortest text, which still reads as the same float32: 0.1, not 0.10000000149."""
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
    """x, y, width, height, score and label of a row; None when it is no detection."""
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
        raise UserError(f"{path}: holds no COCO results; wanted is a list of detections")
    return rows


def _load(path: Path) -> Any:
    """What a JSON file holds. Raises `UserError`."""
    try:
        raw = read_bytes(path, MOST_OF_JSON)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        with reading(path, "JSON"):
            return json.loads(raw)
    except UserError as error:
        raise UserError(f"{path}: is not JSON ({excerpt(str(error.__cause__))})") from None


def _numbers(image_ids: Sequence[str]) -> dict[int, str]:
    """Number -> the one image whose name reads as it; names that share a number have none."""
    names: dict[int, list[str]] = {}
    for image_id in image_ids:
        if image_id.isascii() and image_id.isdigit():
            names.setdefault(int(image_id), []).append(image_id)
    return {number: same[0] for number, same in names.items() if len(same) == 1}
