"""One batch into the weights: forward, loss, backward, and every few batches a step of the optimizer."""

import logging
import math
from collections import deque
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from config.errors import UserError
from ops.batch import Batch, network_input
from ops.precision import autocast
from ops.random_states import random_states, restore_random_states
from ops.safe import find_nonfinite, total_of
from train.ema import ModelEMA
from train.guard import BadStep, Guard, Kept, Reading, Step, agreed, complaint_about, flag_of
from train.objective import Objective
from train.opt import start_momentum

log = logging.getLogger("mars")

NO_LOGIT = torch.tensor(-math.inf)
_SMALLEST_SCALE = 1.0  # of gradients in float16, below which it is not the scale that makes them infinite


class Means:
    """Running means of named values that stay on the device until they are asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Take one value of each name; a name need not come every time."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def values(self, names: tuple[str, ...] | None = None) -> dict[str, float]:
        """The mean of every name, or of those of these that came."""
        wanted = [name for name in names or self.sums if name in self.sums]
        return {name: (self.sums[name] / self.counts[name]).item() for name in wanted}


class StepSetup(NamedTuple):
    """What the steps of a run have in common: everything but their batches. The tracer repeats a step with it."""

    model: nn.Module
    objective: Objective
    precision: torch.dtype
    sum_over_batch: bool
    config_json: str
    weights_file: str | None  # that the run started from


class Stepper:
    """Sums the gradients of batches and steps when they are enough; a bad step leaves no trace.

    The network computes in `precision`; loss, gradients and weights are float32. `sum_over_batch`: the loss of a batch
    counts times its number of images, and gradients of batches add up; else a step takes their mean over all images of
    the step, however many batches that are.
    """

    def __init__(  # noqa: PLR0913 (what a step is made of)
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        ema: ModelEMA | None,
        precision: torch.dtype,
        gradient_clip: float,
        sum_over_batch: bool,
        guard: Guard | None = None,
    ):
        """`guard` None: the first bad step ends it, and weights are looked at when `check_state` is called."""
        self.model, self.objective, self.optimizer, self.ema = model, objective, optimizer, ema
        # In the network's order, not the optimizer's: the norm's last digits depend on it.
        self.parameters = [one for part in (model, *objective.extra_modules) for one in part.parameters()]
        self.device = next(model.parameters()).device
        self.precision, self.gradient_clip, self.sum_over_batch = precision, gradient_clip, sum_over_batch
        # Gradients in float16 would vanish below 6e-8; bfloat16 has the range of float32.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.guard = guard or Guard(model)
        if self.guard.is_late and not all(group.get("fused") for group in optimizer.param_groups):
            raise ValueError(
                "the optimizer is not fused: a flag on the device cannot hold it back; build it fused=True"
            )
        self.pending = 0  # batches whose gradients wait for the step
        self.pending_images = (0, 0)  # in all of these batches, and in the first of them
        self.steps = self.bad_steps = self.bad_in_a_row = 0
        self.judged: Kept | None = None  # the batch that `add` told of last
        self.top_logit = NO_LOGIT  # the largest class logit since the caller last put it back to this
        self._last: Kept | None = None
        self._waiting: deque[Step] = deque()  # for the host to judge them: late one, else none

    def add(self, batch: Batch, accumulate: int = 1) -> dict[str, Tensor]:
        """Take one batch, on the device, and step when `accumulate` batches are in. A clip that is not above 0 raises
        `FloatingPointError`, a network without anything to train `UserError`, both before anything moves.

        Returns the loss, its parts and, when it stepped, the gradient's norm, on the host, of the batch that was judged
        last: this one, or the one before when judged late; nothing of a bad one, and nothing before the first. Raises
        `BadStep` when the guard's patience is at its end. A bad batch takes those with it that wait for the same step.
        """
        if not self.gradient_clip > 0:  # NaN neither
            told = f"gradientClip is {self.gradient_clip}, which would spoil every gradient; give a number above 0"
            raise FloatingPointError(f"{told}; nothing has moved since the step before")
        kept = self._last = self.guard.take(batch)
        step, loss = self._forward(kept)
        if not loss.requires_grad:
            raise UserError(
                "nothing can be trained: no parameter of the network requires a gradient; unfreeze some of them"
            )
        if self.guard.is_late or not step.is_bad:
            self._backward(step, loss * self._weight_of(len(batch)))
            if self.pending >= accumulate:
                self._move(step)
            elif not self.scaler.is_enabled():
                self._look_at_gradients(step)
            self._follow(step)
        return self._judge(step)

    def flush(self) -> dict[str, Tensor]:
        """Step with what is waiting, at the end of an epoch, and judge all; the values of it."""
        if not self.pending or self._last is None:
            return self.settle()
        none = torch.zeros_like(self.guard.one)
        step = Step(self._last, {}, {}, is_bad=none, is_held=none, scale=self.guard.one)
        self._move(step)
        self._follow(step)
        return {**self._judge(step), **self.settle()}

    def settle(self) -> dict[str, Tensor]:
        """Judge what waits for it, as has to be before anything is saved, and return its values."""
        values: dict[str, Tensor] = {}
        while self._waiting:
            values |= self._judge_one(self._waiting.popleft())
        return values

    def stays_finite_on(self, batch: Batch) -> bool:
        """Is all of a forward pass and its loss finite? Nothing of it remains."""
        kept = self.guard.take(batch)
        with torch.no_grad():
            step, _ = self._forward(kept)
        self.guard.statistics.put_back(kept.statistics)
        restore_random_states(random_states(kept.random))
        return not step.is_bad

    def check_state(self) -> None:
        """Raise `BadStep` when a weight, an average, a statistic or a momentum is not finite. To be settled first."""
        if self._last is not None and agreed(flag_of([self._state_total()])):
            self._blame_state(self._last)

    def _forward(self, kept: Kept) -> tuple[Step, Tensor]:
        """The step, as far as it is known before the backward pass, and the loss."""
        with autocast(self.device, self.precision):
            out = self.objective(self.model, network_input(kept.batch.images), kept.batch)
        values = {"loss": out.total.detach(), **out.parts}
        watched = {**self.guard.watch_inputs(kept.batch), **out.watched, **self.guard.watch_statistics()}
        is_bad = agreed(flag_of([*values.values(), *watched.values()], out.parts.values()))
        none, parts = torch.zeros_like(is_bad), tuple(out.parts)
        top_logit = getattr(out, "top_logit", None)  # a user's own objective need not report it
        return Step(kept, values, watched, is_bad, none, self.guard.one, parts, top_logit), out.total

    def _weight_of(self, images: int) -> float:
        """What the loss of a batch is multiplied by, and count the batch.

        For a mean, the first batch of a step has the weight 1 and `_average` divides by the sum of the weights: an
        epoch may end before `accumulate` batches are in, and its last batch may be smaller.
        """
        waiting, first = self.pending_images if self.pending else (0, images)
        self.pending_images = (waiting + images, first)
        self.pending += 1
        return float(images) if self.sum_over_batch else images / first

    def _average(self) -> None:
        if self.sum_over_batch or self.pending == 1:
            return
        images, first = self.pending_images
        gradients = [one.grad for one in self.parameters if one.grad is not None]
        torch._foreach_div_(gradients, images / first)  # pyright: ignore[reportPrivateImportUsage]

    def _backward(self, step: Step, loss: Tensor) -> None:
        guard = self.guard
        if guard.is_late:  # the host does not know yet: where the step must not count, its gradients become NaN
            guard.is_spoilt = torch.maximum(torch.maximum(guard.is_spoilt, guard.is_stuck), step.is_bad)
            loss = loss * guard.is_spoilt.masked_fill(guard.is_spoilt > 0, math.nan).add(1)
        self.scaler.scale(loss).backward()

    def _look_at_gradients(self, step: Step) -> None:
        """Of a batch that the step does not follow yet, so that the right one is blamed."""
        gradients = [one.grad for one in self.parameters if one.grad is not None]
        norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
        step.watched["grad_norm"] = torch.stack(norms).norm()
        self.guard.blame(step, agreed(flag_of([step.watched["grad_norm"]])))

    def _move(self, step: Step) -> None:
        """The optimizer, unless a gradient is not finite."""
        self._average()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip)
        step.moves, step.is_held = True, agreed(flag_of([norm]))
        step.scale = self.scaler.scale(self.guard.one)
        if self.scaler.is_enabled():  # an infinite gradient says that the scale was too large, while it can get smaller
            is_overflow = step.scale >= _SMALLEST_SCALE
            self.guard.blame(step, step.is_held * ~is_overflow)
            norm = norm.masked_fill((step.is_held > 0) & is_overflow, 0)
        else:
            self.guard.blame(step, step.is_held)
        step.values["grad_norm"] = norm
        if self.guard.is_late:
            self._move_unless(step.is_held)
        elif self.scaler.is_enabled() or not step.is_held:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.pending = 0

    def _move_unless(self, flag: Tensor) -> None:
        """The fused optimizers ask the flag on the device; with a scaler it is the scaler that hands it over."""
        start_momentum(self.optimizer)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            return
        vars(self.optimizer)["found_inf"] = flag
        self.optimizer.step()
        del vars(self.optimizer)["found_inf"]

    def _follow(self, step: Step) -> None:
        """What follows the optimizer: statistics are held back late, the average takes the step in."""
        is_late = self.guard.is_late
        if is_late:
            self.guard.hold_back(step)
        if not step.moves:
            return
        if self.ema is not None and (is_late or not step.is_held):
            self.ema.update(self.model, step.is_held if is_late else None)
        self.steps += 1
        if self.guard.interval and self.steps % self.guard.interval == 0:
            step.state = self._state_total()

    def _judge(self, step: Step) -> dict[str, Tensor]:
        step.send()
        self._waiting.append(step)
        if self.guard.is_late and len(self._waiting) == 1:
            return {}
        return self._judge_one(self._waiting.popleft())

    def _judge_one(self, step: Step) -> dict[str, Tensor]:
        reading, self.judged = step.read(), step.kept
        self._count_back(step, reading)
        if reading.is_bad:
            self._refuse(step, reading)
            return {}
        self.bad_in_a_row = 0
        if step.top_logit is not None:
            self.top_logit = torch.maximum(self.top_logit, reading.numbers["top_logit"])
        if step.state is not None and not reading.numbers["state"].isfinite():
            self._blame_state(step.kept)
        return {name: reading.numbers[name] for name in step.values}

    def _count_back(self, step: Step, reading: Reading) -> None:
        """The average counts its steps on the host, which did not know then that it was held back."""
        if self.guard.is_late and self.ema is not None and step.moves and reading.is_held:
            self.ema.steps -= 1

    def _refuse(self, step: Step, reading: Reading) -> None:
        self.bad_steps += 1
        self.bad_in_a_row += 1
        error = self._bad_step(step, reading)
        if not self.guard.is_late:
            self.guard.statistics.put_back(step.kept.statistics)
            self._drop_gradients()
        if self.bad_in_a_row >= self.guard.patience:
            self._stop(error)
        log.warning("left out: %s", error)

    def _bad_step(self, step: Step, reading: Reading) -> BadStep:
        named = (*step.watched, *step.values)  # causes first
        numbers = {name: reading.numbers[name].item() for name in named}
        if complaint_about({name: value for name, value in numbers.items() if name != "grad_norm"}, step.parts):
            numbers.pop("grad_norm", None)  # late, it was made NaN because of that
        shown = [name for name in step.values if name in numbers]
        shown += [name for name in step.watched if name in numbers and not math.isfinite(numbers[name])]
        told = ", ".join(f"{name} {numbers[name]:.4g}" for name in shown)
        place = f"epoch {step.kept.epoch + 1}, batch {step.kept.step}, images {', '.join(step.kept.batch.image_ids)}"
        kept = "weights, average and statistics are those of the step before"
        parameters = self.model.named_parameters()
        if spoilt := next((name for name, one in parameters if not one.isfinite().all()), None):
            kept = f"{spoilt} was not finite before the optimizer's turn: an earlier step wrote it, or other code"
        return BadStep(
            f"{complaint_about(numbers, step.parts)}: {told}; {place}; {kept}",
            self.guard.snapshot(step.kept, reading.scale),
            numbers,
        )

    def _state_total(self) -> Tensor:
        averages = self.ema.state_dict().values() if self.ema is not None else ()
        momentum = (one for state in self.optimizer.state.values() for one in state.values() if torch.is_tensor(one))
        return total_of(one for one in (*self.parameters, *averages, *momentum) if one.is_floating_point())

    def _blame_state(self, kept: Kept) -> None:
        """Where a sum was too large and nothing is wrong, nothing happens."""
        weights = {"weights": self.model.state_dict(), "average": self.ema.state_dict() if self.ema else None}
        learned = {f"learned {number}": one.state_dict() for number, one in enumerate(self.objective.extra_modules)}
        if name := find_nonfinite({**weights, **learned, "momentum": self._momentum()}):
            place = f"epoch {kept.epoch + 1}, batch {kept.step}"
            sentence = f"{name} is not finite; {place}; the checkpoints of the run are from before"
            buffer = dict(self.model.named_buffers()).get(name.removeprefix("weights."))
            if buffer is not None and buffer.isinf().any():
                sentence += "; where it is a mask, register_buffer(..., persistent=False) keeps it out of them"
            self._stop(BadStep(sentence, self.guard.snapshot(kept, 1.0), {}))

    def _momentum(self) -> dict[str, dict[str, Any]]:
        """What the optimizer keeps, by the names of the parameters."""
        names = {id(one): name for name, one in self.model.named_parameters()}
        states = enumerate(self.optimizer.state.items())
        return {names.get(id(one), f"learned {number}"): state for number, (one, state) in states}

    def _stop(self, error: BadStep) -> NoReturn:
        for later in self._waiting:
            self._count_back(later, later.read())
        self._waiting.clear()
        self._drop_gradients()
        self.guard.forget()
        self.bad_in_a_row = 0
        raise error

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.pending = 0

    def state_dict(self) -> dict[str, Any]:
        """What the scaler has learned; empty without one."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler.is_enabled() and state:
            self.scaler.load_state_dict(state)
