"""An exponential moving average of a model."""

import copy
import math

import torch
from torch import Tensor, nn

LONGEST_RAMP = 2000.0  # the peer's, for every run


def ramp_for(num_steps: int) -> float:
    """The ramp of a training of so many optimizer steps: its average ends with a window of a tenth of them.

    The window is 1 / (1 - d) = e^(step / ramp) steps. With the peer's ramp of 2000 a short run averages next to
    nothing: two steps after 1500. Long runs get 2000.
    """
    return min(LONGEST_RAMP, num_steps / max(math.log(num_steps / 10), 1.0)) if num_steps > 0 else LONGEST_RAMP


class ModelEMA:
    """average = d * average + (1 - d) * model after every optimizer step, d = decay * (1 - e^(-step / ramp)).

    The ramp lets the average follow closely while the first weights are still random. Floating tensors, batch-norm
    statistics among them, are averaged; counters are copied.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, ramp: float = LONGEST_RAMP):
        if not ramp > 0:  # NaN neither
            raise ValueError(f"emaRamp={ramp}: has to be above 0, in optimizer steps")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay={decay}: outside of 0 .. 1 the average runs away")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.ramp, self.steps = decay, ramp, 0

    @torch.no_grad()
    def update(self, model: nn.Module, is_held: Tensor | None = None) -> None:
        """Take the step that `model` has just made into the average.

        `is_held`: a flag on the device; where it is 1 the average stays as it is, to the last bit, and `steps` has to
        be counted back by whoever reads it.
        """
        self.steps += 1
        d = self.decay * (1 - math.exp(-self.steps / self.ramp))
        source = model.state_dict()
        for name, average in self.model.state_dict().items():
            new = source[name] if is_held is None else torch.where(is_held > 0, average, source[name])
            if average.dtype.is_floating_point:
                average.lerp_(new, 1 - d)  # constants stay what they are
            else:
                average.copy_(new)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights of the average; `steps` has to be kept beside them."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor], steps: int) -> None:
        self.model.load_state_dict(state)
        self.steps = steps
