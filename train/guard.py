"""The finite check of every training step, and what is kept so that a bad step changes nothing.

A step is bad when its input, a raw map, a part of the loss, a gradient, a teacher's map or a batch-norm statistic is
not finite, or when a part of the loss is negative (every part is a divergence, a cross-entropy or 1 - CIoU). The check
is one flag on the device, 0 or 1, computed from sums: a sum is finite only if all of its terms are.

`Guard` reads the flag before it lets the step continue. `train.deferred` reads it one step later.
"""

# The base class of torch's batch norms, its buffers and the _foreach functions have no public names.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# Tensor.tolist and Tensor.norm have no annotations.
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, distributed, nn

from ops.batch import Batch
from ops.random_states import CapturedStates, capture_random_states, random_states, restore_random_states
from ops.safe import find_nonfinite, total_of
from train.ema import ModelEMA
from train.loss import LossResult
from train.opt import start_momentum

BELOW_ZERO = -1e-6  # a part of the loss below this is negative by more than rounding
_SMALLEST_SCALE = 1.0  # below this scale of float16 gradients, the scale is not the reason for an infinite gradient


@dataclass(frozen=True)
class Snapshot:
    """The state before a bad step. Weights, optimizer and EMA need no copy: a bad step does not change them."""

    batch: Batch
    buffers: dict[str, Tensor]  # of batch norm, by their names in the state dict, before the forward pass
    random: dict[str, Any]  # every global random generator, before the forward pass: `ops.random_states`
    epoch: int
    scale: float = 1.0  # of the gradients in float16
    step: int = 0  # number of the batch in its epoch, from 1


class BadStep(FloatingPointError):
    """A step with non-finite values, or non-finite weights. `snapshot` holds the state before the step.

    The message is one line. `parts`: the step's numbers by name. `report`: the tracer's report, once it was written.
    """

    def __init__(self, message: str, snapshot: Snapshot, parts: Mapping[str, float]):
        super().__init__(message)
        self.snapshot, self.parts, self.report = snapshot, dict(parts), ""


class StepState(NamedTuple):
    """Captured before each forward pass, in about 0.1 ms: everything that the forward pass changes."""

    batch: Batch
    # A forward pass in train mode updates the running statistics, so a bad batch would enter them.
    statistics: tuple[Tensor, ...]
    random: CapturedStates
    epoch: int
    step: int


@dataclass
class StepRecord:
    """One training step: its numbers on the device, and the flags that follow from them."""

    state: StepState
    values: dict[str, Tensor]  # loss, parts, and the gradient norm if the optimizer was to step
    sums: dict[str, Tensor]  # of everything else that has to be finite
    is_bad: Tensor  # 0 or 1
    is_held: Tensor  # 1: the optimizer was to step and did not
    scale: Tensor
    parts: tuple[str, ...] = ()  # names of the loss parts
    top_logit: Tensor | None = None  # the largest class logit; None where the loss does not report it
    optimizer_steps: bool = False  # is this the batch after which the optimizer steps?
    state_sum: Tensor | None = None  # of all weights, EMA and momentum, in the steps that check them
    _on_host: Tensor = field(default_factory=lambda: torch.zeros(0))
    _copied: "torch.cuda.Event | None" = None

    def send_to_host(self) -> None:
        """Start the copy to the host. It runs after the work that the device has queued."""
        # One tensor, so that a step has one transfer and one wait, however many numbers it checks.
        numbers = torch.stack([self.is_bad, self.is_held, self.scale, *self._numbers().values()])
        self._on_host = numbers.to("cpu", non_blocking=True)
        if numbers.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> "StepValues":
        """The numbers on the host. Waits for the copy."""
        if self._copied is not None:
            self._copied.synchronize()
        is_bad, is_held, scale = cast("list[float]", self._on_host[:3].tolist())
        numbers = dict(zip(self._numbers(), self._on_host[3:].unbind(), strict=True))
        return StepValues(bool(is_bad), bool(is_held), scale, numbers)

    def _numbers(self) -> dict[str, Tensor]:
        optional = {"state": self.state_sum, "top_logit": self.top_logit}
        return {**self.values, **self.sums, **{name: value for name, value in optional.items() if value is not None}}


class StepValues(NamedTuple):
    """A step's numbers on the host."""

    is_bad: bool
    is_held: bool
    scale: float
    numbers: dict[str, Tensor]


class BatchNormStatistics:
    """All batch-norm buffers of a model, handled as one flat tensor per type: few operations instead of hundreds."""

    def __init__(self, model: nn.Module):
        kind = nn.modules.batchnorm._BatchNorm
        modules = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
        self._layers = {name: module for name, module in modules if isinstance(module, kind)}
        self._tables = [layer._buffers for layer in self._layers.values()]

    def _groups(self) -> list[list[Tensor]]:
        """The buffers by type: means and variances, and counters. Looked up each time, since one may be replaced."""
        groups: dict[torch.dtype, list[Tensor]] = {}
        for table in self._tables:
            for buffer in table.values():
                if buffer is not None:
                    groups.setdefault(buffer.dtype, []).append(buffer)
        return list(groups.values())

    def capture(self) -> tuple[Tensor, ...]:
        """A copy. Empty for a model without batch norm."""
        return tuple(_flat(group) for group in self._groups())

    def total(self) -> Tensor | None:
        """A number that is finite only if all statistics are. None for a model without batch norm."""
        flat = [_flat(group) for group in self._groups() if group[0].is_floating_point()]
        return total_of(flat) if flat else None

    @torch.no_grad()
    def restore(self, captured: tuple[Tensor, ...], if_bad: Tensor | None = None) -> None:
        """Undo all changes since `capture`. With a flag: only where it is 1, without waiting for the device."""
        for before, group in zip(captured, self._groups(), strict=True):
            chosen = before if if_bad is None else torch.where(if_bad > 0, before, _flat(group))
            torch._foreach_copy_(group, _pieces(chosen, group))

    def named(self, captured: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Captured buffers by their names in the state dict."""
        pieces: dict[int, Tensor] = {}
        for before, group in zip(captured, self._groups(), strict=True):
            pieces |= {id(buffer): piece for buffer, piece in zip(group, _pieces(before, group), strict=True)}
        return {
            f"{prefix}.{name}" if prefix else name: pieces[id(buffer)].clone()
            for prefix, layer in self._layers.items()
            for name, buffer in layer.named_buffers(recurse=False)
        }


class Guard:
    """Checks each step before it continues. The optimizer never sees a bad gradient.

    `max_bad_steps`: this many bad steps in a row stop the training with `BadStep`; 1: the first one does.
    `interval`: number of optimizer steps between two checks of weights, EMA and momentum; 0: never.
    """

    is_deferred = False

    def __init__(self, model: nn.Module, max_bad_steps: int = 1, interval: int = 0):
        self.model, self.max_bad_steps, self.interval = model, max_bad_steps, interval
        self.statistics = BatchNormStatistics(model)
        self.one = torch.ones((), device=next(model.parameters()).device)
        self.epoch, self.step = 0, 0
        self.reset()

    def reset(self) -> None:
        """Forget earlier bad steps."""
        self.bad_in_a_row = 0

    def set_position(self, epoch: int, batches: int) -> None:
        """Position for the messages: `batches` of this epoch are done."""
        self.epoch, self.step = epoch, batches

    def capture(self, batch: Batch) -> StepState:
        """Before the forward pass: copy what it changes, and what it depends on beside the weights."""
        # numpy's and Python's generators belong to it: augmentation inside a user's own objective may use them.
        self.step += 1
        return StepState(batch, self.statistics.capture(), capture_random_states(), self.epoch, self.step)

    def restore(self, state: StepState) -> None:
        """Undo a forward pass: batch-norm statistics and random generators."""
        self.statistics.restore(state.statistics)
        # Dropout and a user's own random code then repeat exactly when the step is examined.
        restore_random_states(random_states(state.random))

    def record(self, state: StepState, result: LossResult | None = None) -> StepRecord:
        """The check after the forward pass. `result` None: nothing was computed, nothing is bad."""
        none = torch.zeros_like(self.one)
        if result is None:
            return StepRecord(state, {}, {}, none, none, self.one)
        values = {"loss": result.total.detach(), **result.parts}
        inputs = {"images": state.batch.images, "boxes": state.batch.boxes}
        # Integers are always finite.
        sums = {name: total_of([value]) for name, value in inputs.items() if value.is_floating_point()}
        sums |= result.must_be_finite
        if (total := self.statistics.total()) is not None:
            sums["statistics"] = total
        # The raw maps and the teacher's maps are checked, too: a NaN there can vanish in a masked term of the loss.
        is_bad = over_all_ranks(flag_of([*values.values(), *sums.values()], result.parts.values()))
        top_logit = getattr(result, "top_logit", None)  # a user's own objective need not report it
        return StepRecord(state, values, sums, is_bad, none, self.one, tuple(result.parts), top_logit)

    def skips_backward(self, record: StepRecord) -> bool:
        """Does the step end here?"""
        return bool(record.is_bad)

    def prepare_loss(self, record: StepRecord, loss: Tensor) -> Tensor:
        """The loss for the backward pass."""
        return loss

    def check_gradients(self, record: StepRecord, gradients: list[Tensor]) -> None:
        """Check a batch whose gradients wait for the optimizer, so that the message names the right batch."""
        # The norm of all gradients is the norm of their norms, and it is not finite if any element is not.
        norms = torch._foreach_norm(gradients)
        norm = cast(Tensor, torch.stack(norms).norm())
        record.sums["grad_norm"] = norm
        self.mark_bad(record, over_all_ranks(flag_of([norm])))

    def check_norm(self, record: StepRecord, norm: Tensor, scaler: torch.amp.GradScaler) -> None:
        """Check the gradient norm, from which the optimizer's step follows.

        An infinite gradient in float16 means that the scale was too large, as long as the scale can be reduced: the
        optimizer does not step, and the step is not bad.
        """
        # Before the optimizer: once a NaN is in weights and momentum, nothing brings them back.
        record.optimizer_steps, record.is_held = True, over_all_ranks(flag_of([norm]))
        record.scale = scaler.scale(self.one)
        # torch's GradScaler halves the scale and skips the step by itself.
        if scaler.is_enabled():
            is_overflow = record.scale >= _SMALLEST_SCALE
            self.mark_bad(record, record.is_held * ~is_overflow)
            norm = norm.masked_fill((record.is_held > 0) & is_overflow, 0)
        else:
            self.mark_bad(record, record.is_held)
        record.values["grad_norm"] = norm

    def mark_bad(self, record: StepRecord, flag: Tensor) -> None:
        """The step is bad where the flag is 1."""
        record.is_bad = torch.maximum(record.is_bad, flag)

    def step_optimizer(
        self, record: StepRecord, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Step unless a gradient is not finite. An enabled scaler decides this itself."""
        start_momentum(optimizer)
        if scaler.is_enabled() or not record.is_held:
            scaler.step(optimizer)

    def update_ema(self, record: StepRecord, ema: ModelEMA | None) -> None:
        """Update the EMA if the optimizer stepped."""
        if ema is not None and not record.is_held:
            ema.update(self.model)

    def finish(self, record: StepRecord) -> list[StepRecord]:
        """The records to read now: this one."""
        record.send_to_host()
        return [record]

    def flush(self) -> list[StepRecord]:
        """The records that are not read yet."""
        return []

    def discard(self, record: StepRecord) -> None:
        """Undo what a bad step has changed."""
        self.statistics.restore(record.state.statistics)

    def error(self, record: StepRecord, values: StepValues) -> BadStep:
        """The error of a bad step: which values are bad, in which batch, and what state the weights are in."""
        # The order of the message: first what caused it (inputs, maps), then what followed from it (loss, gradient).
        numbers = {name: values.numbers[name].item() for name in (*record.sums, *record.values)}  # causes first
        if what_is_wrong({name: value for name, value in numbers.items() if name != "grad_norm"}, record.parts):
            numbers.pop("grad_norm", None)  # a consequence of the values before it
        shown = [name for name in record.values if name in numbers]
        shown += [name for name in record.sums if name in numbers and not math.isfinite(numbers[name])]
        figures = ", ".join(f"{name} {numbers[name]:.4g}" for name in shown)
        consequence = "weights, EMA and batch-norm statistics are unchanged since the step before"
        # A bad weight explains everything else; then it was an earlier step, or code outside of the step.
        parameters = self.model.named_parameters()
        if bad_name := next((name for name, parameter in parameters if not parameter.isfinite().all()), None):
            consequence = f"{bad_name} was not finite before the optimizer step: an earlier step or other code wrote it"
        state, what = record.state, what_is_wrong(numbers, record.parts)
        place = f"epoch {state.epoch + 1}, batch {state.step}, images {', '.join(state.batch.image_ids)}"
        message = f"{what}: {figures}; {place}; {consequence}"
        return BadStep(message, self.snapshot(state, values.scale), numbers)

    def state_error(self, state: StepState, content: Mapping[str, Any]) -> BadStep | None:
        """The error of non-finite weights, EMA, statistics or momentum; None if all in `content` is finite."""
        name = find_nonfinite(content)
        if name is None:
            return None
        message = (
            f"{name} is not finite; epoch {state.epoch + 1}, batch {state.step}; the checkpoints were saved before this"
        )
        # A user's attention mask with -inf is the usual reason for an infinite buffer.
        buffer = dict(self.model.named_buffers()).get(name.removeprefix("weights."))
        if buffer is not None and buffer.isinf().any():
            message += "; if this buffer is a mask, register it with persistent=False so that it is not saved"
        return BadStep(message, self.snapshot(state, 1.0), {})

    def snapshot(self, state: StepState, scale: float) -> Snapshot:
        buffers = self.statistics.named(state.statistics)
        return Snapshot(state.batch, buffers, random_states(state.random), state.epoch, scale, state.step)


def flag_of(numbers: Iterable[Tensor], never_negative: Iterable[Tensor] = ()) -> Tensor:
    """1 if any of `numbers` is not finite or any of `never_negative` is negative, else 0; scalars in float32."""
    lowest = (torch.stack(list(numbers)) * 0).sum()  # 0 or NaN, and NaN >= x is false; fewer kernels than isfinite
    if parts := list(never_negative):
        lowest = lowest + torch.stack(parts).amin()
    return 1 - (lowest >= BELOW_ZERO).float()


def what_is_wrong(numbers: Mapping[str, float], parts: Iterable[str]) -> str:
    """A phrase that names the bad numbers of a step; empty if none is bad. `parts`: names of the loss parts."""
    not_finite = [name for name, value in numbers.items() if not math.isfinite(value)]
    negative = [name for name in parts if numbers.get(name, 0.0) < BELOW_ZERO]
    values = [name for name in not_finite if name != "labels"]
    phrases = [
        "labels outside the class list" if "labels" in not_finite else "",
        f"{', '.join(values)} not finite" if values else "",
        f"{', '.join(negative)} below zero" if negative else "",
    ]
    return " and ".join(phrase for phrase in phrases if phrase)


def over_all_ranks(flag: Tensor) -> Tensor:
    """The maximum of the flag over all processes. Every decision about a step uses it, so that all ranks agree."""
    # A copy, since all_reduce works in place and a caller may still hold the flag.
    if distributed.is_available() and distributed.is_initialized():
        flag = flag.clone()
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return flag


def _flat(group: list[Tensor]) -> Tensor:
    """One vector of all buffers. They are vectors or scalars; a view of each would take longer than `cat`."""
    dimensions = {buffer.dim() for buffer in group}
    if dimensions == {0}:
        return torch.stack(group)
    return torch.cat(group if dimensions == {1} else [buffer.view(-1) for buffer in group])


def _pieces(flat: Tensor, group: list[Tensor]) -> list[Tensor]:
    pieces = torch.split(flat, [buffer.numel() for buffer in group])
    return [piece.view_as(buffer) for piece, buffer in zip(pieces, group, strict=True)]
