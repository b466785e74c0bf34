"""One operation of the step as the recorder keeps it, and what its schema tells of its arguments."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from debug.tracer.locations import Site
from debug.tracer.tensor_stats import Look, Span, is_watched

# What they write does not depend on what was there before.
OVERWRITING = {"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_", "exponential_"}
RAW = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}
UNWRITTEN = "memory that was never written"
CONSTANT = "a constant"
NEGATIVE_FACTOR = "below zero, times what is not"


@dataclass
class Op:
    """One operation. Numbers of other operations are indexes into the recorder's list."""

    index: int
    name: str  # as torch has it: aten.pow.Tensor_Scalar
    site: Site
    node: str | None  # autograd's name of what is computed backward: SqrtBackward0; None in forward
    span: Span  # of everything it wrote
    reads: tuple[int, ...] = ()  # operations whose results it read
    bad_reads: tuple[int, ...] = ()  # those whose bad values were among what it read
    bad_leaves: tuple[str, ...] = ()  # bad values that no operation made: weights, parts of the batch, constants
    is_nan_read: bool = False
    is_nan_written: bool = False
    has_bad_number: bool = False  # an infinity or NaN stands in the call itself
    inputs: tuple[Look, ...] = ()  # these are kept where a bad value is born
    outputs: tuple[Look, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict)
    rows: tuple[int, ...] = ()  # of the batch
    writes: tuple[int, ...] = ()  # keys of the memory

    @property
    def is_bad(self) -> bool:
        return self.span.is_bad

    @property
    def is_backward(self) -> bool:
        return self.node is not None

    @property
    def base(self) -> str:
        """The operation's name alone: pow."""
        return self.name.split(".")[1] if "." in self.name else self.name


@dataclass
class Argument:
    role: str
    value: Tensor
    is_written: bool
    is_read: bool
    before: Look | None = None  # of one that is changed in place


def arguments_of(func: Any, base: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Argument]:
    """The float tensors among the arguments, those in lists too, with their names in the schema."""
    found = []
    for position, wanted in enumerate(func._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(wanted.name)
        many = isinstance(value, (list, tuple))
        is_written = wanted.alias_info is not None and wanted.alias_info.is_write
        is_read = not (is_written and (wanted.name.startswith("out") or base in OVERWRITING))
        # Batch norm changes its statistics without saying so in its schema.
        is_written = is_written or ("batch_norm" in base and "backward" not in base and "running" in wanted.name)
        for number, one in enumerate(value if many else (value,)):
            if isinstance(one, Tensor) and is_watched(one):
                role = f"{wanted.name}[{number}]" if many else wanted.name
                found.append(Argument(role, one, is_written, is_read))
    return found


def numbers_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that stand in the call: an exponent, a fill value."""
    named = {one.name: value for one, value in zip(func._schema.arguments, args, strict=False)}
    return {
        name: value
        for name, value in {**named, **kwargs}.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from flat(one)
    else:
        yield value


def span_of(seen: Look) -> Span:
    return Span(math.nan, math.nan) if seen.bad else Span(seen.low, seen.high)


def joined(spans: Sequence[Span]) -> Span:
    if any(one.is_bad for one in spans):
        return Span(math.nan, math.nan)
    return Span(min(one.low for one in spans), max(one.high for one in spans))
