"""What a trace found, as plain values without tensors; and the growth table.

The growth table lists the largest absolute value after each block, so that an explosion shows before it becomes NaN.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import nn

from debug.tracer.operations import CodeLine, Operation, TensorStats, base_name, flat, is_watched, tensor_stats
from debug.tracer.recorder import Recorder
from ops.text import shown

IDS_SHOWN = 8

Phase = Literal["input", "weights", "forward", "loss", "backward"]


@dataclass(frozen=True)
class Producer:
    """What first produced the bad value: an operation that read finite values, a part of the batch, or a weight."""

    phase: Phase
    operation: str  # torch's name: aten.pow.Tensor_Scalar; "" for a part of the batch or a weight
    module: str = ""  # path of the module that was computing; in backward, that of the forward operation; "" outside
    lines: tuple[CodeLine, ...] = ()  # of product and user, innermost first
    tensor: str | None = None  # name of the weight or input; of an operation: the first probe that saw the value
    node: str | None = None  # name of the autograd node, in the backward pass
    inputs: tuple[TensorStats, ...] = ()
    outputs: tuple[TensorStats, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)  # arguments of the call
    image_ids: tuple[str, ...] = ()  # of the bad rows, where the leading dimension is the batch
    source: str | None = None  # the bad leaf, or the infinity in the code, that it read

    @property
    def base(self) -> str:
        return base_name(self.operation)

    def input(self, role: str) -> TensorStats | None:
        """The argument of this name; None when the operation has none."""
        return next((stats for stats in self.inputs if stats.role == role), None)


class BadInput(NamedTuple):
    """A part of the batch with which no step can succeed."""

    part: str  # images, boxes, labels
    description: str
    image_ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.part}: {self.description} ({shown(self.image_ids, IDS_SHOWN)})"


class GradientJump(NamedTuple):
    """The operation of the backward pass with the largest ratio of its result to what it read."""

    operation: Operation
    before: float
    after: float

    @property
    def ratio(self) -> float:
        return self.after / self.before

    def __str__(self) -> str:
        return f"{self.operation}: {self.before:.3g} -> {self.after:.3g}"


class Cause(NamedTuple):
    """The usual cause of a bad value, and how to fix it."""

    name: str
    explanation: str
    fix: str


@dataclass
class BlockGrowth:
    """One block of the network. All maxima are over finite elements, NaN when there are none."""

    name: str
    shape: tuple[int, ...]  # of its first output
    largest: float  # absolute value of its outputs
    ratio: float  # of `largest` to the largest input of the block; NaN when that is zero
    num_bad: int  # elements of its outputs
    largest_weight: float  # absolute value; 0 without weights
    largest_gradient: float = math.nan  # absolute value of anything computed backward in it; NaN when nothing was


@dataclass
class Trace:
    """What the trace of one step found. Without a producer nothing bad was found."""

    producer: Producer | None = None
    passed_on: list[str] = field(default_factory=list)  # operations that read a bad value and made bad values of it
    growth: list[BlockGrowth] = field(default_factory=list)
    cause: Cause | None = None
    evidence: str = ""  # how the producer was distinguished from other operations
    bad_inputs: list[BadInput] = field(default_factory=list)
    bad_weights: list[str] = field(default_factory=list)
    probes: dict[str, TensorStats] = field(default_factory=dict)  # every probe, at its first call
    parts: dict[str, float] = field(default_factory=dict)  # of the loss
    jump: GradientJump | None = None
    num_harmless: int = 0  # operations whose infinities reached neither the loss nor a gradient
    num_operations: int = 0
    error: str = ""  # what the step itself raised
    notes: Sequence[str] = ()
    image_ids: tuple[str, ...] = ()
    precision: str = ""
    seconds: float = 0.0

    @property
    def phase(self) -> Phase | None:
        return self.producer.phase if self.producer else None

    @property
    def is_reproduced(self) -> bool:
        """Did a bad value appear again?"""
        return self.producer is not None


class GrowthTable:
    """Fills `blocks` from the module calls of a recorder, in the order in which they ran."""

    def __init__(self, model: nn.Module, recorder: Recorder):
        self.blocks: list[BlockGrowth] = []
        self._recorder = recorder
        self._names = set(block_names(model))
        recorder.modules.on_leave = self._add

    def _add(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if path not in self._names:
            return
        with self._recorder.paused():
            outputs, read, weights = (
                [tensor_stats(path, value) for value in flat(values) if is_watched(value)]
                for values in (output, inputs, list(module.parameters()))
            )
        if outputs:
            largest, largest_input = _largest_of(outputs), _largest_of(read)
            ratio = largest / largest_input if largest_input else math.nan
            num_bad, largest_weight = sum(stats.num_bad for stats in outputs), _largest_of(weights) if weights else 0.0
            self.blocks.append(BlockGrowth(path, outputs[0].shape, largest, ratio, num_bad, largest_weight))

    def take_gradients(self, ops: Sequence[Operation]) -> None:
        """Add the largest value computed backward in each block; a block that ran twice gets it in both rows."""
        peaks: dict[str, float] = {}
        for op in ops:
            path, peak = op.location.module, op.range.peak
            while path and path not in self._names:
                path = path.rpartition(".")[0]
            if op.is_backward and path:
                peaks[path] = max(peaks.get(path, 0.0), math.inf if math.isnan(peak) else peak)
        for block in self.blocks:
            block.largest_gradient = peaks.get(block.name, math.nan)


def block_names(model: nn.Module) -> Iterator[str]:
    """Paths of the modules two levels below the root, or one level where nothing is below; lists are opened."""

    def walk(prefix: str, module: nn.Module, depth: int) -> Iterator[str]:
        for name, child in module.named_children():
            is_list = isinstance(child, (nn.ModuleList, nn.ModuleDict))
            is_leaf = next(child.children(), None) is None
            if not is_list and (depth >= 2 or is_leaf):
                yield f"{prefix}{name}"
            else:
                yield from walk(f"{prefix}{name}.", child, depth + 1)

    yield from walk("", model, 1)


def _largest_of(tensors: Sequence[TensorStats]) -> float:
    """The largest absolute value of the finite elements of several tensors; NaN when there is none."""
    return max((stats.peak for stats in tensors if not math.isnan(stats.peak)), default=math.nan)
