"""What is wrong with a batch or a network before anything is computed."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from debug.tracer.findings import BadInput
from ops.batch import Batch

LARGEST_PIXEL = 65535  # absolute value, of 16 bits; what lies above was never a pixel


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
