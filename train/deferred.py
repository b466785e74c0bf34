"""The finite check read one step later, so that the host never waits for a CUDA device.

`DeferredGuard` gives the same results as `train.guard.Guard`. It is not used yet: no training has run with it on a GPU,
so CUDA trainings take the plain check, too.

Because the host does not know yet whether a step is bad, flags on the device decide:
* the loss of a bad step is multiplied by NaN, so that its gradients are NaN and the fused optimizer skips the step;
* batch-norm statistics and EMA are restored or kept with `torch.where`;
* after `max_bad_steps` bad steps in a row, `is_halted` skips every further step until the host has read the flags.
"""

import math

import torch
from torch import Tensor

from train.ema import ModelEMA
from train.guard import Guard, StepRecord
from train.opt import start_momentum


class DeferredGuard(Guard):
    """Reads the flag of a step while the device computes the next step. The optimizer has to be fused."""

    is_deferred = True

    def reset(self) -> None:
        super().reset()
        self._waiting: StepRecord | None = None  # not read yet
        self._in_a_row = torch.zeros_like(self.one)  # `bad_in_a_row` on the device
        self.is_halted = torch.zeros_like(self.one)  # 1: no step changes anything
        self.has_bad_grad = torch.zeros_like(self.one)  # 1: a bad batch is among the accumulated gradients

    def skips_backward(self, record: StepRecord) -> bool:
        return False  # not known yet

    def prepare_loss(self, record: StepRecord, loss: Tensor) -> Tensor:
        """The loss, times NaN if the optimizer must not step with its gradients."""
        self.has_bad_grad = torch.maximum(torch.maximum(self.has_bad_grad, self.is_halted), record.is_bad)
        return loss * self.has_bad_grad.masked_fill(self.has_bad_grad > 0, math.nan).add(1)

    def mark_bad(self, record: StepRecord, flag: Tensor) -> None:
        """The step is bad where the flag is 1, unless an earlier batch has made the gradients bad."""
        flag = flag * (1 - self.has_bad_grad)
        self.has_bad_grad = torch.maximum(self.has_bad_grad, flag)
        super().mark_bad(record, flag)

    def step_optimizer(
        self, record: StepRecord, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Fused optimizers read the flag on the device. An enabled scaler hands it to them itself."""
        start_momentum(optimizer)
        if scaler.is_enabled():
            scaler.step(optimizer)
            return
        vars(optimizer)["found_inf"] = record.is_held
        optimizer.step()
        del vars(optimizer)["found_inf"]

    def update_ema(self, record: StepRecord, ema: ModelEMA | None) -> None:
        self._restore_if_bad(record)  # before the EMA reads the batch-norm statistics
        if ema is not None:
            ema.update(self.model, record.is_held)

    def finish(self, record: StepRecord) -> list[StepRecord]:
        """The record before this one."""
        if not record.optimizer_steps:
            self._restore_if_bad(record)
        record.send_to_host()
        ready, self._waiting = self.flush(), record
        return ready

    def flush(self) -> list[StepRecord]:
        ready, self._waiting = [self._waiting] if self._waiting is not None else [], None
        return ready

    def discard(self, record: StepRecord) -> None:
        """The device has restored everything already."""

    def _restore_if_bad(self, record: StepRecord) -> None:
        """Restore the statistics if the step is bad or the training is halted, and count bad steps in a row."""
        self.statistics.restore(record.state.statistics, torch.maximum(record.is_bad, self.is_halted))
        if record.optimizer_steps:
            self.has_bad_grad = torch.zeros_like(self.one)  # gradients of the next step start from zero
        self._in_a_row = (self._in_a_row + record.is_bad) * record.is_bad
        self.is_halted = torch.maximum(self.is_halted, (self._in_a_row >= self.max_bad_steps).to(self.one.dtype))
