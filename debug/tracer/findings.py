"""What a trace found, as plain values: nothing in it holds a tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from debug.tracer.growth import Block
from debug.tracer.locations import Frame
from debug.tracer.tensor_stats import Look

Phase = Literal["input", "weights", "forward", "loss", "backward"]


@dataclass(frozen=True)
class Producer:
    """Where a bad value was born: an operation that read finite values only, a part of the batch, or a weight."""

    phase: Phase
    operation: str  # as torch names it: aten.pow.Tensor_Scalar; "" for a part of the batch or a weight
    module: str = ""  # path of the module that was computing, or whose forward is gone through backward; "" outside
    where: tuple[Frame, ...] = ()  # lines of product and user, the innermost first
    tensor: str | None = None  # of a weight or input its name; else the first look-out that saw the value
    node: str | None = None  # autograd's name of what is computed backward
    inputs: tuple[Look, ...] = ()
    outputs: tuple[Look, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)  # that stand in the call
    image_ids: tuple[str, ...] = ()  # of the bad rows, where the leading dimension is the batch
    source: str | None = None  # the bad leaf or the written infinity that it read

    @property
    def base(self) -> str:
        """The operation's name alone: pow."""
        return self.operation.split(".")[1] if "." in self.operation else self.operation

    def given(self, role: str) -> Look | None:
        """What its argument of this name looked like; None when it has none."""
        return next((one for one in self.inputs if one.role == role), None)


class Passed(NamedTuple):
    """An operation that read a bad value and handed one on."""

    operation: str
    module: str
    where: Frame | None


class BadInput(NamedTuple):
    """A part of the batch that no step can go well with."""

    part: str  # images, boxes, labels
    words: str
    image_ids: tuple[str, ...]


class Jump(NamedTuple):
    """The operation of the backward pass whose result was largest, measured in what it read."""

    operation: str
    node: str
    module: str
    where: Frame
    before: float
    after: float


class Cause(NamedTuple):
    """What usually lies behind a producer like this one."""

    name: str
    words: str
    way_out: str


@dataclass
class Trace:
    """One step, gone through again. `phase` None: nothing bad was found."""

    producer: Producer | None = None
    passed_on: list[Passed] = field(default_factory=list)
    growth: list[Block] = field(default_factory=list)
    phase: Phase | None = None
    cause: Cause | None = None
    is_reproduced: bool = False  # did a bad value come up again?
    how: str = ""  # how the producer was told from the others, in words
    bad_inputs: list[BadInput] = field(default_factory=list)
    bad_weights: list[str] = field(default_factory=list)
    probes: dict[str, Look] = field(default_factory=dict)  # every named look-out, at its first call
    parts: dict[str, float] = field(default_factory=dict)  # of the loss
    jump: Jump | None = None
    harmless: int = 0  # operations that made infinities which reached neither loss nor gradients
    operations: int = 0
    error: str = ""  # what the step itself raised
    notes: Sequence[str] = ()
    image_ids: tuple[str, ...] = ()
    precision: str = ""
    seconds: float = 0.0
