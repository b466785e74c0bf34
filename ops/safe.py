"""Division, normalisation, logarithm and Kullback-Leibler divergence whose value and gradient stay finite.

Finite input gives finite output, also for zero vectors, empty sums and peaked softmaxes. NaN stays NaN: these functions
do not hide an error. Half precision is computed in float32; float64 stays float64.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ops.anchors import full_precision

SMALLEST_SUM = 1e-7  # replaces a smaller sum in a denominator or logarithm
SHORTEST = 1e-6  # the direction of a shorter vector is only rounding noise
LOWEST_LOG = -1e30  # replaces log(0); sums of such values do not overflow


@torch.no_grad()
def total_of(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The sum of all elements of all tensors, in float32 or float64. Without tensors: zero.

    The cheapest test for NaN and Inf: the sum is not finite when an element is not. Elements beyond 1e30 may also add
    up to Inf.
    """
    totals = [value.detach().sum(dtype=torch.promote_types(value.dtype, torch.float32)) for value in tensors]
    if len(totals) == 1:
        return totals[0]
    return torch.stack(totals).sum() if totals else torch.zeros(())


def find_nonfinite(content: Any, name: str = "") -> str | None:
    """Where nested dictionaries and lists contain a tensor with NaN or Inf: its keys joined by dots; None: nowhere."""
    if isinstance(content, Tensor):
        return None if not content.is_floating_point() or content.isfinite().all() else name
    if not isinstance(content, (dict, list, tuple)):
        return None
    nested = cast("dict[Any, Any] | list[Any] | tuple[Any, ...]", content)
    entries = nested.items() if isinstance(nested, dict) else enumerate(nested)
    names = (find_nonfinite(value, f"{name}.{key}" if name else str(key)) for key, value in entries)
    return next((found for found in names if found), None)


def safe_divide(
    numerator: Float[Tensor, "*#batch"], denominator: Float[Tensor, "*#batch"], least: float = SMALLEST_SUM
) -> Float[Tensor, "*_"]:
    """numerator / max(denominator, least), for a denominator that is never negative, such as a sum of weights.

    0 / 0 gives 0. Below `least` the denominator gets no gradient, and the gradient of the numerator is 1 / least.
    """
    return full_precision(numerator) / full_precision(denominator).clamp(min=least)


def safe_normalise(vectors: Float[Tensor, "*_"], dim: int = -1, shortest: float = SHORTEST) -> Float[Tensor, "*_"]:
    """Scale the vectors along `dim` to length 1. Vectors shorter than `shortest` become zero. Empty in, empty out.

    A vector that becomes zero gets no gradient (`F.normalize` has a gradient of 1e12 there). For all other vectors the
    gradient is multiplied by at most 1 / shortest.
    """
    vectors = full_precision(vectors)
    if vectors.numel() == 0:
        return vectors
    scale = vectors.detach().abs().amax(dim=dim, keepdim=True).clamp(min=shortest)
    scaled = vectors / scale  # so that no square overflows or underflows
    squares = scaled.square().sum(dim=dim, keepdim=True)
    is_nothing = squares.detach().sqrt() * scale < shortest
    length = squares.masked_fill(is_nothing, 1).sqrt()  # masked before the root, whose slope at zero is infinite
    return (scaled / length).masked_fill(is_nothing, 0)


def safe_log(values: Float[Tensor, "*_"], least: float = SMALLEST_SUM) -> Float[Tensor, "*_"]:
    """log(max(values, least)), for values that are never negative. Below `least` there is no gradient.

    For probabilities of a softmax or sigmoid use `log_probabilities` or `logsigmoid` of the logits: these are exact.
    """
    return full_precision(values).clamp(min=least).log()


def log_probabilities(logits: Float[Tensor, "*_ K"]) -> Float[Tensor, "*_ K"]:
    """Logarithm of the softmax over the last axis. It is finite, also where a probability underflows to 0."""
    return full_precision(logits).log_softmax(dim=-1).clamp(min=LOWEST_LOG)


def kl(log_student: Float[Tensor, "*_ K"], log_teacher: Float[Tensor, "*_ K"]) -> Float[Tensor, "*_"]:
    """KL(teacher || student) over the last axis, from two results of `log_probabilities`. Never below zero."""
    # KL = sum of p_t * (log p_t - log p_s); rounding can make it slightly negative, hence the clamp.
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim=-1).clamp(min=0)


def binary_kl(student: Float[Tensor, "*K"], teacher: Float[Tensor, "*K"]) -> Float[Tensor, "*K"]:
    """KL(teacher || student) of two sigmoids, element by element, from their logits. Never below zero.

    KL = t * (log t - log s) + (1 - t) * (log(1 - t) - log(1 - s)) with t and s the sigmoids of teacher and student.
    `logsigmoid` gives all four logarithms without a clamp.
    """
    student, teacher = full_precision(student), full_precision(teacher)
    log_yes = F.logsigmoid(teacher) - F.logsigmoid(student)
    log_no = F.logsigmoid(-teacher) - F.logsigmoid(-student)
    return (teacher.sigmoid() * log_yes + (-teacher).sigmoid() * log_no).clamp(min=0)
