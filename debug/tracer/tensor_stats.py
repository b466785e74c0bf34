"""What the tracer keeps of a tensor once it is gone: shape, range and how much of it is bad. Bad: NaN or infinite.

The range of a complex tensor is that of its absolute values.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


class Look(NamedTuple):
    """One tensor in numbers. The range is that of its finite elements, NaN when there is none."""

    role: str  # of an operation's argument: self, other, grad_output; of a result: its number
    name: str | None  # of a weight or a part of the batch
    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    nearest_zero: float  # the smallest absolute value
    nan: int  # elements
    inf: int
    has_zero: bool = False  # an element that is exactly zero

    @property
    def bad(self) -> int:
        """How many elements are NaN or infinite."""
        return self.nan + self.inf

    @property
    def peak(self) -> float:
        """The largest absolute value among the finite ones; NaN when there is none."""
        return max(abs(self.low), abs(self.high))

    def __str__(self) -> str:
        what = f"{self.role} ({self.name})" if self.name else self.role
        count = math.prod(self.shape)
        values = "no finite element" if math.isnan(self.low) else f"{self.low:.4g} .. {self.high:.4g}"
        values = "empty" if count == 0 else values
        kinds = ", ".join(f"{n} {kind}" for n, kind in ((self.nan, "NaN"), (self.inf, "Inf")) if n)
        bad = f", {self.bad} of {count} bad ({kinds})" if kinds else ""
        return f"{what} {shape_text(self.shape)} {self.dtype}: {values}{bad}"


def shape_text(shape: Sequence[int]) -> str:
    """`3x64x64`; a single number is a scalar."""
    return "x".join(map(str, shape)) if shape else "scalar"


def is_watched(value: object) -> bool:
    """Is it a tensor that can be bad?"""
    return isinstance(value, Tensor) and value.dtype in _FLOATS and value.layout == torch.strided


def look(role: str, value: Tensor, name: str | None = None) -> Look:
    """The whole picture: two passes over a finite tensor, several over a bad one, and a wait for the device."""
    value = value.detach()
    dtype = str(value.dtype).removeprefix("torch.")
    low, high = span(value)
    nan = inf = 0
    kept = _plain(value)
    if Span(low, high).is_bad:
        kept = kept[value.isfinite()]
        nan = int(value.isnan().sum())
        inf = value.numel() - kept.numel() - nan
        low, high = span(kept)
    if kept.numel() == 0:
        return Look(role, name, tuple(value.shape), dtype, math.nan, math.nan, math.nan, nan, inf)
    near = max(low, -high) if low > 0 or high < 0 else float(kept.abs().min())
    return Look(role, name, tuple(value.shape), dtype, low, high, near, nan, inf, near == 0)


class Span(NamedTuple):
    """The two ends of a tensor; NaN when it holds one, an end is infinite when one is."""

    low: float
    high: float

    @property
    def is_bad(self) -> bool:
        return not (math.isfinite(self.low) and math.isfinite(self.high))

    @property
    def peak(self) -> float:
        return max(abs(self.low), abs(self.high))


def span(value: Tensor) -> Span:
    """One pass over the tensor; an empty one spans 0 .. 0."""
    if value.numel() == 0:
        return Span(0.0, 0.0)
    low, high = _plain(value.detach()).aminmax()
    return Span(float(low), float(high))


def replace_nonfinite(value: Tensor) -> None:
    """Zeros for all that is bad in it."""
    parts = torch.view_as_real(value) if value.is_complex() else value
    parts.nan_to_num_(0.0, 0.0, 0.0)


def _plain(value: Tensor) -> Tensor:
    return value.abs() if value.is_complex() else value


def largest_of(values: Sequence[Tensor]) -> float:
    """Largest absolute value of the finite elements of all; NaN when there is none."""
    peaks = []
    for value in values:
        seen = span(value)
        kept = value.detach()[value.isfinite()] if seen.is_bad else value
        if kept.numel():
            peaks.append((span(kept) if seen.is_bad else seen).peak)
    return max(peaks, default=math.nan)


def bad_rows(value: Tensor, count: int) -> tuple[int, ...]:
    """The rows with a bad element, where the leading dimension has `count` of them; else none."""
    if value.dim() == 0 or value.shape[0] != count or value.numel() == 0:
        return ()
    is_bad = ~value.detach().isfinite().reshape(count, -1).all(dim=1)
    return tuple(is_bad.nonzero()[:, 0].tolist())
