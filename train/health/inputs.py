"""What is wrong with a batch or a network before anything is computed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from ops.batch import Batch
from train.health.findings import BadInput

LARGEST_PIXEL = 65535  # absolute value, of 16 bits; what lies above was never a pixel
LONGEST_SIDE = 4.0  # of a box, in sides of the network input: an object cut off by the image may reach beyond it
COLOUR_STEP = 16  # every so many pixels are compared first; only where these are equal all are


def bad_inputs(batch: Batch, num_classes: int | None) -> list[BadInput]:
    """Pixels and boxes that are not finite, pixels far out of range, and real labels that are no class.

    Boxes of the padding count, for an image without a box is given one of them; its labels may be anything.
    """
    found = []
    if batch.images.is_floating_point():
        is_bad = ~batch.images.isfinite()
        if rows := _rows(is_bad):
            found.append(BadInput("images", f"{int(is_bad.sum())} pixel values are NaN or infinite", _ids(batch, rows)))
        elif rows := _rows(batch.images.abs() > LARGEST_PIXEL):
            words = f"pixel values up to {float(batch.images.abs().max()):.3g}, where 0 .. 255 belong"
            found.append(BadInput("images", words, _ids(batch, rows)))
    is_bad = ~batch.boxes.isfinite().all(dim=-1)
    if rows := _rows(is_bad):
        padding = int((is_bad & ~batch.valid).sum())
        words = f"{int(is_bad.sum())} boxes are NaN or infinite{f', {padding} of them padding' if padding else ''}"
        found.append(BadInput("boxes", words, _ids(batch, rows)))
    if num_classes is not None:
        is_bad = ((batch.labels < 0) | (batch.labels >= num_classes)) & batch.valid
        if rows := _rows(is_bad):
            values = ", ".join(map(str, sorted(set(batch.labels[is_bad].tolist()))))
            words = f"labels {values} are none of the classes 0 .. {num_classes - 1}"
            found.append(BadInput("labels", words, _ids(batch, rows)))
    return found


def odd_inputs(batch: Batch) -> dict[str, str]:
    """What cannot be right in a batch although all of it is finite: kind -> a sentence that names an image.

    Such values come from a user's own data set or augmentation, since Mars clips and checks what it reads: inverted
    boxes (x2 < x1 or y2 < y1), boxes wholly outside the network input or more than `LONGEST_SIDE` times as long, and a
    batch in which every image is of one colour. For a batch on the CPU, where numpy is quicker than torch.
    """
    found = {}
    if batch.boxes.shape[1]:
        boxes, sides = batch.boxes.numpy(), np.array(batch.images.shape[:-3:-1], dtype=np.float32)
        low, high = boxes[..., :2], boxes[..., 2:]
        if boxes.min() < 0 or (high > sides).any() or (high < low).any():  # rare, so that all else is rarely computed
            with np.errstate(invalid="ignore"):  # infinite ones are the guard's matter
                is_far = (high <= 0) | (low >= sides) | (high - low > LONGEST_SIDE * sides)
            kinds = {
                "inverted (x2 < x1 or y2 < y1)": high < low,
                f"outside the input, or over {LONGEST_SIDE:g} times as long": is_far,
            }
            found = {kind: told for kind, is_odd in kinds.items() if (told := _odd_boxes(batch, is_odd, kind))}
    if _has_one_colour(batch.images.numpy()):
        found["one colour"] = (
            f"all {len(batch)} images of a batch are of one colour each, {batch.image_ids[0]} among them"
        )
    return found


def _odd_boxes(batch: Batch, is_odd: np.ndarray, kind: str) -> str:
    rows, columns = (is_odd.any(axis=-1) & batch.valid.numpy()).nonzero()
    if not len(rows):
        return ""
    box = " ".join(f"{value:.6g}" for value in batch.boxes[rows[0], columns[0]].tolist())
    return (
        f"{len(rows)} boxes of a batch are {kind}, the first of image {batch.image_ids[rows[0]]}: x1 y1 x2 y2 = {box}"
    )


def _has_one_colour(images: np.ndarray) -> bool:
    return all((part == part[:, :, :1, :1]).all() for part in (images[..., ::COLOUR_STEP, ::COLOUR_STEP], images))


def bad_weights(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the weights and buffers that are not finite. An infinity in a buffer may be meant, as in masks, unless
    it is a statistic of batch norm."""
    found = []
    for prefix, module in modules.items():
        start = f"{prefix}." if prefix else ""
        found += [start + name for name, value in module.named_parameters() if not value.detach().isfinite().all()]
        for name, value in module.named_buffers():
            if value.isnan().any() or (is_statistic(name) and not value.isfinite().all()):
                found.append(start + name)
    return found


def is_statistic(name: str) -> bool:
    """Is a buffer of this name a mean or variance of batch norm?"""
    return name.rpartition(".")[2].startswith("running_")


def num_classes_of(model: Any, objective: Any) -> int | None:
    """How many classes network or loss know; None when neither says."""
    for one in (model, objective, vars(objective).get("loss") if hasattr(objective, "__dict__") else None):
        if isinstance(count := vars(one).get("num_classes") if hasattr(one, "__dict__") else None, int):
            return count
    return None


def _rows(is_bad: Tensor) -> list[int]:
    if is_bad.numel() == 0:
        return []
    return is_bad.flatten(1).any(dim=1).nonzero()[:, 0].tolist()


def _ids(batch: Batch, rows: list[int]) -> tuple[str, ...]:
    return tuple(batch.image_ids[row] if row < len(batch.image_ids) else f"row {row}" for row in rows)
