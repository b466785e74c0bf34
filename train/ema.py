"""EMA: the exponential moving average of a network's weights, which is evaluated and saved as the best weights."""

import copy
import math

import torch
from torch import Tensor, nn

LONGEST_RAMP = 2000.0  # Ultralytics' value, for every run


def ramp_for(num_steps: int) -> float:
    """The ramp for a training of `num_steps` optimizer steps: at its end the EMA averages about a tenth of them.

    The EMA averages about 1 / (1 - d) = e^(step / ramp) steps. With Ultralytics' ramp of 2000 a short run averages
    almost nothing: two steps after 1500. Long runs get 2000.
    """
    return min(LONGEST_RAMP, num_steps / max(math.log(num_steps / 10), 1.0)) if num_steps > 0 else LONGEST_RAMP


class ModelEMA:
    """ema = d * ema + (1 - d) * model after every optimizer step, with d = decay * (1 - e^(-step / ramp)).

    The ramp keeps d small at first, so that the random first weights are soon forgotten. Floating-point tensors,
    including batch-norm statistics, are averaged; counters are copied.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, ramp: float = LONGEST_RAMP):
        if not ramp > 0:  # NaN neither
            raise ValueError(f"emaRamp={ramp}: must be above 0 (optimizer steps)")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay={decay}: must be between 0 and 1")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.ramp, self.steps = decay, ramp, 0

    @torch.no_grad()
    def update(self, model: nn.Module, is_held: Tensor | None = None) -> None:
        """Update after an optimizer step of `model`.

        `is_held`: a flag on the device. Where it is 1 the EMA stays unchanged bit for bit; whoever reads the flag later
        has to reduce `steps` by 1.
        """
        self.steps += 1
        d = self.decay * (1 - math.exp(-self.steps / self.ramp))
        source = model.state_dict()
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        for name, value in self.model.state_dict().items():
            new = source[name] if is_held is None else torch.where(is_held > 0, value, source[name])
            if value.dtype.is_floating_point:
                averages.append(value)
                weights.append(new)
            else:
                value.copy_(new)
        # lerp leaves equal values unchanged, unlike d * a + (1 - d) * b. One call for all: few kernels on a GPU.
        torch._foreach_lerp_(averages, weights, 1 - d)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights. `steps` has to be saved, too."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor], steps: int) -> None:
        self.model.load_state_dict(state)
        self.steps = steps
