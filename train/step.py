"""One batch into the weights: forward, loss, backward, and every few batches a step of the optimizer."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ops.batch import Batch
from ops.precision import autocast
from train.ema import ModelEMA
from train.objective import Objective


class TrainingDiverged(FloatingPointError):
    """A loss or gradient that is not finite. The optimizer has not moved since the last good step."""


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


class Stepper:
    """Sums the gradients of batches and steps when they are enough.

    The network computes in `precision`; loss, gradients and weights are float32. `sum_over_batch`: the loss an image
    times the batch, so that gradients of batches add up; else their mean counts, over `accumulate` batches.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        ema: ModelEMA | None,
        precision: torch.dtype,
        gradient_clip: float,
        sum_over_batch: bool,
    ):
        self.model, self.objective, self.optimizer, self.ema = model, objective, optimizer, ema
        # In the network's order, not the optimizer's: the norm's last digits depend on it.
        self.parameters = [one for part in (model, *objective.learned) for one in part.parameters()]
        self.device = next(model.parameters()).device
        self.precision, self.gradient_clip, self.sum_over_batch = precision, gradient_clip, sum_over_batch
        # Gradients in float16 would vanish below 6e-8; bfloat16 has the range of float32.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.pending = 0  # batches whose gradients wait for the step

    def add(self, batch: Batch, accumulate: int = 1) -> dict[str, Tensor]:
        """Take one batch, on the device, and step when `accumulate` batches are in.

        Returns the loss, its parts and, when it stepped, the gradient's norm, all still on the device. Raises
        `TrainingDiverged` before the optimizer moves when the loss or a gradient is not finite.
        """
        images = batch.images.to(memory_format=torch.channels_last).float().div_(255)
        with autocast(self.device, self.precision):
            out = self.objective(self.model, images, batch)
        weight = float(len(batch)) if self.sum_over_batch else 1 / accumulate
        self.scaler.scale(out.total * weight).backward()
        self.pending += 1
        values = {"loss": out.total.detach(), **out.parts}
        if self.pending >= accumulate:
            values["grad_norm"] = self._step(values, batch.image_ids)
        elif not torch.isfinite(values["loss"]):
            self._diverged(values, batch.image_ids)
        return values

    def flush(self) -> dict[str, Tensor]:
        """Step with what is waiting, at the end of an epoch; the gradient's norm, or nothing when nothing waited."""
        return {"grad_norm": self._step({}, ())} if self.pending else {}

    def _step(self, values: dict[str, Tensor], image_ids: tuple[str, ...]) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip)
        watched = values.get("loss", torch.zeros_like(norm))
        if self.scaler.is_enabled():  # an infinite gradient says that the scale was too large: the step is skipped
            norm = torch.where(norm.isfinite(), norm, torch.zeros_like(norm))
        if not torch.isfinite(watched + norm):
            self._diverged({**values, "grad_norm": norm}, image_ids)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.pending = 0
        is_skipped = self.scaler.get_scale() < scale
        if is_skipped and scale < _SMALLEST_SCALE:  # no scale helps any more
            self._diverged({**values, "grad_norm": norm * math.nan}, image_ids)
        if self.ema is not None and not is_skipped:
            self.ema.update(self.model)
        return norm

    def _diverged(self, values: dict[str, Tensor], image_ids: tuple[str, ...]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.pending = 0
        parts = ", ".join(f"{name} {value.item():.4g}" for name, value in values.items())
        where = f", images {', '.join(image_ids)}" if image_ids else ""
        raise TrainingDiverged(f"loss or gradient not finite: {parts}{where}; the weights are those of the step before")

    def state_dict(self) -> dict[str, Any]:
        """What the scaler has learned; empty without one."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler.is_enabled() and state:
            self.scaler.load_state_dict(state)
