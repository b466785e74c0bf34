"""One training step: forward, loss, finite check, backward, clip, optimizer, EMA."""

import logging
import math
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from config.errors import UserError
from ops.batch import Batch, network_input
from ops.device import autocast
from ops.safe import total_of
from train.ema import ModelEMA
from train.guard import BadStep, Guard, StepRecord, StepState, flag_of, over_all_ranks
from train.objective import Objective

log = logging.getLogger("mars")

NO_LOGIT = torch.tensor(-math.inf)


class StepSetup(NamedTuple):
    """What all steps of a run have in common. The tracer repeats a step with it."""

    model: nn.Module
    objective: Objective
    precision: torch.dtype
    sum_over_batch: bool
    config_json: str
    weights_file: str | None  # the weights that the run started from


class Stepper:
    """Accumulates gradients over batches and steps the optimizer. A bad step changes nothing.

    The network runs in `precision`; loss, gradients and weights are float32. `sum_over_batch`: the loss of a batch is
    multiplied by its number of images, as in Ultralytics; otherwise a step uses the mean over all its images.
    """

    def __init__(  # noqa: PLR0913 (the parts of a training step)
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
        """`guard` None: the first bad step raises, and weights are checked only by `check_state`."""
        self.model, self.objective, self.optimizer, self.ema = model, objective, optimizer, ema
        # In the order of the network, not of the optimizer: the last digits of the norm depend on it.
        self.parameters = [p for module in (model, *objective.extra_modules) for p in module.parameters()]
        self.device = next(model.parameters()).device
        self.precision, self.gradient_clip, self.sum_over_batch = precision, gradient_clip, sum_over_batch
        # Gradients in float16 would vanish below 6e-8; bfloat16 has the range of float32.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.guard = guard or Guard(model)
        if self.guard.is_deferred and not all(group.get("fused") for group in optimizer.param_groups):
            raise ValueError("the deferred check needs a fused optimizer, which reads its flag; build it fused=True")
        self.pending = 0  # batches whose gradients wait for the optimizer
        self.pending_images = (0, 0)  # images in these batches, and in the first of them
        self.steps = self.bad_steps = 0
        self.last_checked: StepState | None = None  # the batch whose values `add` returned last
        self.top_logit = NO_LOGIT  # the largest class logit since the caller last reset it
        self._last: StepState | None = None

    def add(self, batch: Batch, accumulate: int = 1) -> dict[str, Tensor]:
        """Train on one batch, which is on the device. The optimizer steps when `accumulate` batches are in.

        Returns loss, loss parts and, after an optimizer step, the gradient norm, on the host. They belong to the last
        checked batch (this one; with the deferred check the previous one) and are empty if that batch was skipped. A
        bad batch discards all gradients that wait for the same optimizer step. Raises `BadStep` after `max_bad_steps`
        bad steps in a row, `UserError` when no parameter requires a gradient, and `FloatingPointError` when
        `gradient_clip` is not positive.
        """
        # Before anything changes: a clip of 0 or NaN would make every gradient 0 or NaN.
        if not self.gradient_clip > 0:  # NaN neither
            raise FloatingPointError(
                f"gradientClip is {self.gradient_clip}, which makes every gradient zero or NaN; give a number above 0; "
                "the weights are unchanged since the step before"
            )
        state = self._last = self.guard.capture(batch)

        # 1. Forward and loss. Only the network runs in `precision`; losses switch autocast off themselves.
        with autocast(self.device, self.precision):
            result = self.objective(self.model, network_input(batch.images), batch)
        if not result.total.requires_grad:
            raise UserError("nothing can be trained: no parameter of the network requires a gradient; unfreeze one")

        # 2. Finite check. A bad batch ends here, before its gradients mix with those of other batches.
        record = self.guard.record(state, result)
        if self.guard.skips_backward(record):
            return self._read(self.guard.finish(record))

        # 3. Backward. The weight depends on the batches before it in this step (see _batch_weight).
        loss = self.guard.prepare_loss(record, result.total * self._batch_weight(len(batch)))
        self.scaler.scale(loss).backward()  # pyright: ignore[reportUnknownMemberType]

        # 4. Optimizer, once enough batches are in. The scaler's gradients are checked only there, after unscaling.
        if self.pending >= accumulate:
            self._step(record)
        elif not self.scaler.is_enabled():
            self.guard.check_gradients(record, self._gradients())
        return self._read(self.guard.finish(record))

    def _step(self, record: StepRecord) -> None:
        """Clip the gradients, step the optimizer, update the EMA."""
        # Order matters: gradients are averaged and unscaled before their norm is measured and clipped.
        if not self.sum_over_batch and self.pending > 1:
            # Each loss was weighted by images / first, so that the division gives the mean over all images.
            images, first = self.pending_images
            torch._foreach_div_(self._gradients(), images / first)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
        self.scaler.unscale_(self.optimizer)
        # One factor min(1, clip / norm) for all gradients keeps the direction of the step.
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip)
        self.guard.check_norm(record, norm, self.scaler)

        self.guard.step_optimizer(record, self.optimizer, self.scaler)
        self.scaler.update()
        # None instead of zeros: the next backward pass writes the gradients without adding to old ones.
        self.optimizer.zero_grad(set_to_none=True)
        self.pending = 0

        # After the optimizer: the EMA averages the weights that the next batch will see.
        self.guard.update_ema(record, self.ema)
        self.steps += 1
        if self.guard.interval and self.steps % self.guard.interval == 0:
            record.state_sum = self._state_sum()

    def flush(self) -> dict[str, Tensor]:
        """At the end of an epoch: step with the gradients that wait, and check everything. Returns the last values."""
        if not self.pending or self._last is None:
            return self.settle()
        record = self.guard.record(self._last)
        self._step(record)
        return {**self._read(self.guard.finish(record)), **self.settle()}

    def settle(self) -> dict[str, Tensor]:
        """Check all steps that are not checked yet. Required before anything is saved."""
        return self._read(self.guard.flush())

    def stays_finite_on(self, batch: Batch) -> bool:
        """Are forward pass and loss of this batch finite? Leaves no change."""
        state = self.guard.capture(batch)
        with torch.no_grad(), autocast(self.device, self.precision):
            result = self.objective(self.model, network_input(batch.images), batch)
            is_bad = self.guard.record(state, result).is_bad
        self.guard.restore(state)
        return not is_bad

    def check_state(self) -> None:
        """Raise `BadStep` if a weight, the EMA, a statistic or the momentum is not finite. Call `settle` before."""
        if self._last is not None and over_all_ranks(flag_of([self._state_sum()])):
            self._raise_bad_state(self._last)

    def _batch_weight(self, images: int) -> float:
        """The factor of a batch's loss. Also counts the batch.

        For the mean, the first batch of a step has weight 1 and `_step` divides by the sum of the weights:
        the last batch of an epoch may be smaller, and the epoch may end before `accumulate` batches are in.
        """
        # sum of n_b / n_1 * L_b over the batches b, divided by sum of n_b / n_1: the mean over all images. The division
        # comes last, because the number of batches is not known before the optimizer steps.
        waiting, first = self.pending_images if self.pending else (0, images)
        self.pending_images = (waiting + images, first)
        self.pending += 1
        return float(images) if self.sum_over_batch else images / first

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def _read(self, records: list[StepRecord]) -> dict[str, Tensor]:
        """The values of these records; a bad one is discarded and reported."""
        values: dict[str, Tensor] = {}
        for record in records:
            found, self.last_checked = record.read(), record.state
            self._correct_ema_steps(record, found.is_held)
            if found.is_bad:
                error = self.guard.error(record, found)
                self.bad_steps += 1
                self.guard.bad_in_a_row += 1
                self.guard.discard(record)
                if not self.guard.is_deferred:
                    self._drop_gradients()
                if self.guard.bad_in_a_row >= self.guard.max_bad_steps:
                    self._stop(error)
                log.warning("step skipped: %s", error)
                continue
            # Only bad steps in a row stop a training; a single bad batch in a large data set need not.
            self.guard.bad_in_a_row = 0
            if record.top_logit is not None:
                self.top_logit = torch.maximum(self.top_logit, found.numbers["top_logit"])
            if record.state_sum is not None and not found.numbers["state"].isfinite():
                self._raise_bad_state(record.state)
            values |= {name: found.numbers[name] for name in record.values}
        return values

    def _correct_ema_steps(self, record: StepRecord, is_held: bool) -> None:
        """With the deferred check the EMA has counted a step that the device skipped."""
        if self.guard.is_deferred and self.ema is not None and record.optimizer_steps and is_held:
            self.ema.steps -= 1

    def _stop(self, error: BadStep) -> NoReturn:
        for record in self.guard.flush():
            self._correct_ema_steps(record, record.read().is_held)
        self._drop_gradients()
        self.guard.reset()
        raise error

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.pending = 0

    def _state_sum(self) -> Tensor:
        """A number that is finite only if all weights, the EMA and the momentum are."""
        # One sum for everything: thousands of separate checks would take longer than the step itself.
        ema = self.ema.state_dict().values() if self.ema is not None else ()
        momentum = (v for state in self.optimizer.state.values() for v in state.values() if torch.is_tensor(v))
        return total_of(value for value in (*self.parameters, *ema, *momentum) if value.is_floating_point())

    def _raise_bad_state(self, state: StepState) -> None:
        """Raise with the name of the first bad tensor. If only the sum overflowed, nothing happens."""
        extra = {f"extra module {i}": module.state_dict() for i, module in enumerate(self.objective.extra_modules)}
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        entries = enumerate(self.optimizer.state.items())
        momentum = {names.get(id(parameter), f"extra module {i}"): entry for i, (parameter, entry) in entries}
        ema = self.ema.state_dict() if self.ema else None
        content = {"weights": self.model.state_dict(), "EMA": ema, **extra, "momentum": momentum}
        if (error := self.guard.state_error(state, content)) is not None:
            self._stop(error)

    def state_dict(self) -> dict[str, Any]:
        """The state of the float16 scaler; empty in other precisions."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler.is_enabled() and state:
            self.scaler.load_state_dict(state)
