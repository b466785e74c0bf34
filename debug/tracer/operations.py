"""Operations and tensors of a traced step, as plain values that stay after the tensors are freed.

A value is bad when it is NaN or infinite. The range of a complex tensor is the range of its absolute values.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
# In-place operations whose result does not depend on the old content; base names.
OVERWRITING = {"copy", "fill", "zero", "normal", "uniform", "bernoulli", "random", "exponential"}
# Operations that return memory without writing it.
ALLOCATING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}
# Names of tensors that no recorded operation produced.
UNINITIALISED = "uninitialised memory"
CONSTANT = "a constant"
NUMBER = "a number in the call"


class ValueRange(NamedTuple):
    """The smallest and the largest value of a tensor. Both are NaN when it holds NaN; infinities are kept."""

    low: float
    high: float

    @property
    def is_bad(self) -> bool:
        return not (math.isfinite(self.low) and math.isfinite(self.high))

    @property
    def peak(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))

    @classmethod
    def of(cls, value: Tensor) -> "ValueRange":
        """One pass over the tensor. An empty tensor gives 0 .. 0."""
        if value.numel() == 0:
            return cls(0.0, 0.0)
        low, high = _real(value.detach()).aminmax()
        return cls(float(low), float(high))

    @classmethod
    def joined(cls, ranges: Sequence["ValueRange"]) -> "ValueRange":
        """The range of several tensors together; both ends are NaN when one of them is bad."""
        if any(part.is_bad for part in ranges):
            return cls(math.nan, math.nan)
        return cls(min(part.low for part in ranges), max(part.high for part in ranges))


NOT_FINITE = ValueRange(math.nan, math.nan)


class TensorStats(NamedTuple):
    """One tensor in numbers. `low` and `high` are those of its finite elements, NaN when there is none."""

    role: str  # name of an argument in the operation's schema: self, other, grad_output; or the number of a result
    name: str | None  # of a weight or a part of the batch
    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    nearest_zero: float  # the smallest absolute value; 0 when an element is exactly zero
    num_nan: int
    num_inf: int

    @property
    def num_bad(self) -> int:
        return self.num_nan + self.num_inf

    @property
    def peak(self) -> float:
        """The largest absolute value of the finite elements; NaN when there is none."""
        return max(abs(self.low), abs(self.high))

    @property
    def range(self) -> ValueRange:
        return NOT_FINITE if self.num_bad else ValueRange(self.low, self.high)

    def __str__(self) -> str:
        label = f"{self.role} ({self.name})" if self.name else self.role
        count = math.prod(self.shape)
        values = "no finite element" if math.isnan(self.low) else f"{self.low:.4g} .. {self.high:.4g}"
        values = "empty" if count == 0 else values
        kinds = ", ".join(f"{n} {kind}" for n, kind in ((self.num_nan, "NaN"), (self.num_inf, "Inf")) if n)
        bad = f", {self.num_bad} of {count} bad ({kinds})" if kinds else ""
        return f"{label} {shape_text(self.shape)} {self.dtype}: {values}{bad}"


def tensor_stats(role: str, value: Tensor, name: str | None = None) -> TensorStats:
    """Two passes over a finite tensor, several over a bad one; waits for the device."""
    value = value.detach()
    dtype = str(value.dtype).removeprefix("torch.")
    limits = ValueRange.of(value)
    num_nan = num_inf = 0
    finite = _real(value)
    if limits.is_bad:
        finite = finite[value.isfinite()]
        num_nan = int(value.isnan().sum())
        num_inf = value.numel() - finite.numel() - num_nan
        limits = ValueRange.of(finite)
    if finite.numel() == 0:
        return TensorStats(role, name, tuple(value.shape), dtype, math.nan, math.nan, math.nan, num_nan, num_inf)
    low, high = limits
    nearest = max(low, -high) if low > 0 or high < 0 else float(finite.abs().min())
    return TensorStats(role, name, tuple(value.shape), dtype, low, high, nearest, num_nan, num_inf)


def shape_text(shape: Sequence[int]) -> str:
    """2x3x8; a single number is a scalar."""
    return "x".join(map(str, shape)) if shape else "scalar"


def is_watched(value: object) -> bool:
    """Is it a tensor that can hold NaN or infinity?"""
    return isinstance(value, Tensor) and value.dtype in _FLOATS and value.layout == torch.strided


def replace_nonfinite(value: Tensor) -> None:
    """Write 0 over every NaN and infinity, in place."""
    parts = torch.view_as_real(value) if value.is_complex() else value
    parts.nan_to_num_(0.0, 0.0, 0.0)


def rows_with(mask: Tensor) -> list[int]:
    """Indices along the first dimension whose row holds a true element; none for an empty tensor."""
    return mask.reshape(len(mask), -1).any(dim=1).nonzero()[:, 0].tolist() if mask.numel() else []


class CodeLine(NamedTuple):
    """One line of source code that led to an operation."""

    file: str  # relative to the product's folder when it lies inside
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


class CodeLocation(NamedTuple):
    """The innermost module, "" outside of all modules, and the lines that led to it, innermost first, maybe none."""

    module: str
    lines: tuple[CodeLine, ...]

    @property
    def line(self) -> CodeLine | None:
        """The innermost line; None inside autograd's built-in nodes."""
        return self.lines[0] if self.lines else None


@dataclass
class Operation:
    """One recorded operation. It refers to other operations by their index in the recorder's list."""

    index: int
    name: str  # torch's full name: aten.pow.Tensor_Scalar
    location: CodeLocation
    node: str | None  # name of the autograd node in the backward pass: SqrtBackward0; None in the forward pass
    range: ValueRange = NOT_FINITE  # of everything it wrote
    reads: tuple[int, ...] = ()  # operations whose results it read
    bad_reads: tuple[int, ...] = ()  # those of them whose bad values it read
    bad_leaves: tuple[str, ...] = ()  # bad inputs that no operation produced: weights, parts of the batch, constants
    has_read_nan: bool = False
    has_written_nan: bool = False
    has_bad_number: bool = False  # an infinity or NaN is an argument of the call itself
    numbers: dict[str, Any] = field(default_factory=dict)  # arguments of the call
    inputs: tuple[TensorStats, ...] = ()  # inputs, outputs and rows are kept only where a bad value may begin
    outputs: tuple[TensorStats, ...] = ()
    rows: tuple[int, ...] = ()  # of the batch, that are bad
    storages: tuple[int, ...] = ()  # keys of the memory that it wrote

    @property
    def is_bad(self) -> bool:
        return self.range.is_bad

    @property
    def is_backward(self) -> bool:
        return self.node is not None

    @property
    def base(self) -> str:
        return base_name(self.name)

    def __str__(self) -> str:
        """aten.div.Tensor (DivBackward0) in head.box at train/loss.py:98 in __call__"""
        node, module = f" ({self.node})" if self.node else "", self.location.module
        line = f" at {self.location.line}" if self.location.line else ""
        return f"{self.name}{node}{f' in {module}' if module else ''}{line}"


def base_name(operation: str) -> str:
    """aten.pow_.Scalar -> pow: without namespace, overload and the mark of an in-place operation."""
    return operation.split(".")[1].rstrip("_") if "." in operation else operation


@dataclass
class Argument:
    role: str
    value: Tensor
    is_written: bool
    is_read: bool
    before: TensorStats | None = None  # of an argument that is changed in place


def arguments_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Argument]:
    """The float tensors among the arguments, also those inside lists, with their names in the schema."""
    found, base = [], base_name(str(func))
    for position, parameter in enumerate(func._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(parameter.name)
        is_list = isinstance(value, (list, tuple))
        is_written = parameter.alias_info is not None and parameter.alias_info.is_write
        is_read = not (is_written and (parameter.name.startswith("out") or base in OVERWRITING))
        # Batch norm changes its statistics, although its schema does not say so.
        is_written = is_written or ("batch_norm" in base and "backward" not in base and "running" in parameter.name)
        for number, element in enumerate(value if is_list else (value,)):
            if isinstance(element, Tensor) and is_watched(element):
                role = f"{parameter.name}[{number}]" if is_list else parameter.name
                found.append(Argument(role, element, is_written, is_read))
    return found


def numbers_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers among the arguments: an exponent, a fill value."""
    named = {parameter.name: value for parameter, value in zip(func._schema.arguments, args, strict=False)}
    return {
        name: value
        for name, value in {**named, **kwargs}.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def flat(value: Any) -> Iterator[Any]:
    """The elements of nested lists, tuples and mappings, or the value itself."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        for element in value:
            yield from flat(element)
    else:
        yield value


def _real(value: Tensor) -> Tensor:
    return value.abs() if value.is_complex() else value
