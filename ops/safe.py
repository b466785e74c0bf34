"""Division, normalisation, logarithm and Kullback-Leibler divergence that stay finite, in value and in gradient.

For zero vectors, empty sums and peaked softmaxes: what is finite goes in, what is finite comes out. NaN stays NaN, for
these are no place to hide a fault. Half precision is computed in float32, float64 stays float64.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ops.anchors import full_precision

SMALLEST_SUM = 1e-7  # what stands for a sum that is nearly nothing
SHORTEST = 1e-6  # vectors below this length have no direction
LOWEST_LOG = -1e30  # below every logarithm that counts, and small enough to be summed


@torch.no_grad()
def total_of(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The sum of all elements of all tensors in float32 or better: not finite when one of them is not. None: zero.

    One pass and one number a tensor, the cheapest question there is. Elements beyond 1e30 may add up to Inf, too.
    """
    totals = [one.detach().sum(dtype=torch.promote_types(one.dtype, torch.float32)) for one in tensors]
    if len(totals) == 1:
        return totals[0]
    return torch.stack(totals).sum() if totals else torch.zeros(())


def find_nonfinite(content: Any, name: str = "") -> str | None:
    """Where nested dictionaries and lists contain a tensor with NaN or Inf: its keys joined by dots; None: nowhere."""
    if isinstance(content, Tensor):
        return None if not content.is_floating_point() or content.isfinite().all() else name
    if not isinstance(content, (dict, list, tuple)):
        return None
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    names = (find_nonfinite(value, f"{name}.{key}" if name else str(key)) for key, value in entries)
    return next((found for found in names if found), None)


def safe_divide(
    numerator: Float[Tensor, "*#batch"], denominator: Float[Tensor, "*#batch"], least: float = SMALLEST_SUM
) -> Float[Tensor, "*_"]:
    """numerator / denominator, where the denominator is a sum of what is never negative and counts as `least` or more.

    0 / 0 is 0. Below `least` the denominator has no gradient, and the numerator's is 1 / least.
    """
    return full_precision(numerator) / full_precision(denominator).clamp(min=least)


def safe_normalise(vectors: Float[Tensor, "*_"], dim: int = -1, shortest: float = SHORTEST) -> Float[Tensor, "*_"]:
    """Vectors along `dim` at length 1, however long they were; those shorter than `shortest` become zero.

    A vector without a direction gets no gradient either (that of `F.normalize` at zero is 1e12); all others get at most
    1 / shortest times what comes in. Nothing to normalise: nothing comes back.
    """
    vectors = full_precision(vectors)
    if vectors.numel() == 0:
        return vectors
    scale = vectors.detach().abs().amax(dim=dim, keepdim=True).clamp(min=shortest)
    scaled = vectors / scale  # so that no square overflows or vanishes
    squares = scaled.square().sum(dim=dim, keepdim=True)
    is_nothing = squares.detach().sqrt() * scale < shortest
    length = squares.masked_fill(is_nothing, 1).sqrt()  # before the root, whose slope at zero is infinite
    return (scaled / length).masked_fill(is_nothing, 0)


def safe_log(values: Float[Tensor, "*_"], least: float = SMALLEST_SUM) -> Float[Tensor, "*_"]:
    """Logarithm of what is never negative; below `least` it is that of `least`, without a gradient.

    For probabilities out of a softmax or sigmoid take `log_probabilities` or `logsigmoid` of the logits instead: they
    are exact.
    """
    return full_precision(values).clamp(min=least).log()


def log_probabilities(logits: Float[Tensor, "*_ K"]) -> Float[Tensor, "*_ K"]:
    """Logarithms of the softmax over the last axis: finite however peaked it is, and exact where they count."""
    return full_precision(logits).log_softmax(dim=-1).clamp(min=LOWEST_LOG)


def kl(log_student: Float[Tensor, "*_ K"], log_teacher: Float[Tensor, "*_ K"]) -> Float[Tensor, "*_"]:
    """KL(teacher || student) over the last axis, both as `log_probabilities`: never below zero."""
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim=-1).clamp(min=0)


def binary_kl(student: Float[Tensor, "*K"], teacher: Float[Tensor, "*K"]) -> Float[Tensor, "*K"]:
    """KL(teacher || student) of two sigmoids, logits element by element: never below zero.

    Binary cross-entropy less the teacher's entropy, both from the same logarithms, so that no clamp parts them.
    """
    student, teacher = full_precision(student), full_precision(teacher)
    log_yes = F.logsigmoid(teacher) - F.logsigmoid(student)
    log_no = F.logsigmoid(-teacher) - F.logsigmoid(-student)
    return (teacher.sigmoid() * log_yes + (-teacher).sigmoid() * log_no).clamp(min=0)
