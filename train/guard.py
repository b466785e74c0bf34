"""What is looked at in every step, and what is kept so that a bad step leaves no trace.

A step is bad when its input, a raw map, a part of the loss, a gradient, a teacher's map or batch norm's statistics are
not finite, or when a part of the loss is below zero, for all are divergences, cross-entropies or 1 - CIoU. Whether it
is becomes one flag on the device, 0 or 1, made of sums: a sum is finite only when all of it is.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from ops.batch import Batch
from ops.random_states import CapturedStates, capture_random_states, random_states
from ops.safe import total_of

BELOW_ZERO = -1e-6  # of a part of the loss: more than rounding


@dataclass(frozen=True)
class Snapshot:
    """What a bad step began with. Weights, optimizer and average need no copy: they have not moved."""

    batch: Batch
    buffers: dict[str, Tensor]  # batch norm's, by their names in the state dict, before the forward pass
    random: dict[str, Any]  # every global generator, before the forward pass: `ops.random_states.random_states`
    epoch: int
    scale: float = 1.0  # of the gradients in float16
    step: int = 0  # batch of the epoch, from 1


class BadStep(FloatingPointError):
    """A step that is not finite, or weights that are not. What `snapshot` does not hold is as it was before the step.

    The message is one line. `parts`: the numbers of the step by name, `page`: where the bad value was born, once that
    was traced.
    """

    def __init__(self, message: str, snapshot: Snapshot, parts: Mapping[str, float]):
        super().__init__(message)
        self.snapshot, self.parts, self.page = snapshot, dict(parts), ""


class Kept(NamedTuple):
    """What is taken before each forward pass; a tenth of a millisecond."""

    batch: Batch
    statistics: tuple[Tensor, ...]
    random: CapturedStates
    epoch: int
    step: int


@dataclass
class Step:
    """One batch on its way through the step: numbers on the device, and the flags that follow from them."""

    kept: Kept
    values: dict[str, Tensor]  # loss, parts, and the gradient's norm where the optimizer was to move
    watched: dict[str, Tensor]  # sums of what else has to be finite
    is_bad: Tensor  # 0 or 1
    is_held: Tensor  # 1: the optimizer did not move where it was to
    scale: Tensor
    parts: tuple[str, ...] = ()  # of the loss
    top_logit: Tensor | None = None  # the largest class logit; None where the loss does not report it
    moves: bool = False  # was the optimizer to move?
    state: Tensor | None = None  # the sum of all weights and averages, where they were looked at
    on_host: Tensor = field(default_factory=lambda: torch.zeros(0))
    copied: "torch.cuda.Event | None" = None

    def send(self) -> None:
        """Start the way to the host, behind what the device still has to do."""
        numbers = [self.is_bad, self.is_held, self.scale, *self._named().values()]
        together = torch.stack(numbers)
        self.on_host = together.to("cpu", non_blocking=True)
        if together.is_cuda:
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> "Reading":
        """What it came to; waits where it has not arrived."""
        if self.copied is not None:
            self.copied.synchronize()
        is_bad, is_held, scale = self.on_host[:3].tolist()
        numbers = dict(zip(self._named(), self.on_host[3:].unbind(), strict=True))
        return Reading(bool(is_bad), bool(is_held), scale, numbers)

    def _named(self) -> dict[str, Tensor]:
        more = {"state": self.state, "top_logit": self.top_logit}
        return {**self.values, **self.watched, **{name: one for name, one in more.items() if one is not None}}


class Reading(NamedTuple):
    """A step on the host."""

    is_bad: bool
    is_held: bool
    scale: float
    numbers: dict[str, Tensor]


class Statistics:
    """Batch norm's buffers of a model, handled as one flat tensor a type: a few operations instead of hundreds."""

    def __init__(self, model: nn.Module):
        kind = nn.modules.batchnorm._BatchNorm
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, kind)}
        self._tables = [layer._buffers for layer in self._layers.values()]

    def _groups(self) -> list[list[Tensor]]:
        """The buffers by type: floating ones, and counters. Asked anew each time, for one may be replaced."""
        groups: dict[torch.dtype, list[Tensor]] = {}
        for table in self._tables:
            for buffer in table.values():
                if buffer is not None:
                    groups.setdefault(buffer.dtype, []).append(buffer)
        return list(groups.values())

    def take(self) -> tuple[Tensor, ...]:
        """A copy; nothing where there is no batch norm."""
        return tuple(_flat(group) for group in self._groups())

    def total(self) -> Tensor | None:
        """A number that is finite only when all statistics are; None where there are none."""
        flat = [_flat(group) for group in self._groups() if group[0].is_floating_point()]
        return total_of(flat) if flat else None

    @torch.no_grad()
    def put_back(self, taken: tuple[Tensor, ...], if_bad: Tensor | None = None) -> None:
        """What `take` took; with a flag only where that is 1, which asks the host for nothing."""
        for before, group in zip(taken, self._groups(), strict=True):
            chosen = before if if_bad is None else torch.where(if_bad > 0, before, _flat(group))
            torch._foreach_copy_(group, _pieces(chosen, group))  # pyright: ignore[reportPrivateImportUsage]

    def named(self, taken: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """What `take` took, by the names in the state dict."""
        pieces: dict[int, Tensor] = {}
        for before, group in zip(taken, self._groups(), strict=True):
            pieces |= {id(buffer): piece for buffer, piece in zip(group, _pieces(before, group), strict=True)}
        return {
            f"{prefix}.{name}" if prefix else name: pieces[id(buffer)].clone()
            for prefix, layer in self._layers.items()
            for name, buffer in layer.named_buffers(recurse=False)
        }


class Guard:
    """How steps are judged: at once, or a step late so that the host never waits for the device.

    `patience`: bad steps in a row after which nothing moves any more and `BadStep` is raised; 1: at the first one.
    `interval`: optimizer steps from one look at weights and averages to the next, 0: none.
    Late, a flag on the device holds back optimizer, average and statistics, and goes on holding them back once the
    patience is at its end, until the host has read of it: so all is as it was before the step that it reads of.
    """

    def __init__(self, model: nn.Module, is_late: bool | None = None, patience: int = 1, interval: int = 0):
        """`is_late` None: on CUDA."""
        device = next(model.parameters()).device
        self.is_late = device.type == "cuda" if is_late is None else is_late
        self.patience, self.interval = patience, interval
        self.statistics = Statistics(model)
        self.one = torch.ones((), device=device)
        self.epoch, self.step = 0, 0
        self.forget()

    def forget(self) -> None:
        """Nothing was bad so far."""
        self._in_a_row = torch.zeros_like(self.one)
        self.is_stuck = torch.zeros_like(self.one)  # 1: nothing moves any more
        self.is_spoilt = torch.zeros_like(self.one)  # 1: a bad batch is among the gradients that wait

    def stand_at(self, epoch: int, batches: int) -> None:
        """So many batches of the epoch are behind; for the messages."""
        self.epoch, self.step = epoch, batches

    def take(self, batch: Batch) -> Kept:
        """Before the forward pass: all that it changes, and all that it depends on beside the weights."""
        self.step += 1
        return Kept(batch, self.statistics.take(), capture_random_states(), self.epoch, self.step)

    def snapshot(self, kept: Kept, scale: float) -> Snapshot:
        buffers = self.statistics.named(kept.statistics)
        return Snapshot(kept.batch, buffers, random_states(kept.random), kept.epoch, scale, kept.step)

    def watch_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Sums of what comes in; whole numbers are always finite."""
        both = {"images": batch.images, "boxes": batch.boxes}
        return {name: total_of([value]) for name, value in both.items() if value.is_floating_point()}

    def watch_statistics(self) -> dict[str, Tensor]:
        """The sum of batch norm's statistics, where there are any."""
        total = self.statistics.total()
        return {} if total is None else {"statistics": total}

    def blame(self, step: Step, flag: Tensor) -> None:
        """The step is bad where the flag says so, unless an earlier one has spoilt what it is about."""
        if self.is_late:  # only then can the gradients that wait be spoilt already
            flag = flag * (1 - self.is_spoilt)
            self.is_spoilt = torch.maximum(self.is_spoilt, flag)
        step.is_bad = torch.maximum(step.is_bad, flag)

    def hold_back(self, step: Step) -> None:
        """Put the statistics back where the step is bad or nothing moves any more, and count. Only when late."""
        self.statistics.put_back(step.kept.statistics, torch.maximum(step.is_bad, self.is_stuck))
        if step.moves:
            self.is_spoilt = torch.zeros_like(self.one)  # the next gradients begin
        self._in_a_row = (self._in_a_row + step.is_bad) * step.is_bad
        self.is_stuck = torch.maximum(self.is_stuck, (self._in_a_row >= self.patience).to(self.one.dtype))


def flag_of(numbers: Iterable[Tensor], never_negative: Iterable[Tensor] = ()) -> Tensor:
    """1 where one of these single numbers is not finite, or one of the others is below zero, else 0; float32."""
    lowest = (torch.stack(list(numbers)) * 0).sum()  # 0, or NaN, which is above nothing; fewer kernels than isfinite
    if parts := list(never_negative):
        lowest = lowest + torch.stack(parts).amin()
    return 1 - (lowest >= BELOW_ZERO).float()


def complaint_about(numbers: Mapping[str, float], parts: Iterable[str]) -> str:
    """What is wrong with the numbers of a step, in words; empty when nothing is. `parts`: those of the loss."""
    not_finite = [name for name, value in numbers.items() if not math.isfinite(value)]
    negative = [name for name in parts if numbers.get(name, 0.0) < BELOW_ZERO]
    others = [name for name in not_finite if name != "labels"]
    complaints = [
        "labels that are no class" if "labels" in not_finite else "",
        f"{', '.join(others)} not finite" if others else "",
        f"{', '.join(negative)} below zero" if negative else "",
    ]
    return " and ".join(complaint for complaint in complaints if complaint)


def agreed(flag: Tensor) -> Tensor:
    """The flag that all ranks go by: of several processes the largest. Every decision about a step passes here."""
    if distributed.is_available() and distributed.is_initialized():
        flag = flag.clone()
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return flag


def _flat(group: list[Tensor]) -> Tensor:
    """One vector of all: batch norm's buffers are vectors or single numbers, and a view of each would cost more."""
    dimensions = {buffer.dim() for buffer in group}
    if dimensions == {0}:
        return torch.stack(group)
    return torch.cat(group if dimensions == {1} else [buffer.view(-1) for buffer in group])


def _pieces(flat: Tensor, group: list[Tensor]) -> list[Tensor]:
    pieces = flat.split([buffer.numel() for buffer in group])
    return [piece.view_as(buffer) for piece, buffer in zip(pieces, group, strict=True)]
