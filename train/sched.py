"""Learning rates by epoch. A schedule gives the rate of an epoch and may learn from its validation figure."""

import math
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """What the trainer asks of a schedule."""

    def rate(self, epoch: int) -> float: ...

    def observe(self, fitness: float | None) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class CosineSchedule:
    """The assignment's: quadratic warm-up from a tenth, half a cosine, the lowest rate for the last epochs.

    Warm-up lasts 5 % of all epochs, at least 1 and at most 3; the flat end 5 %, at least 1 and at most 15.
    """

    def __init__(self, base: float, lowest: float, max_epoch: int):
        self.base, self.lowest, self.max_epoch = base, lowest, max_epoch
        self.start = max(base / 10, 1e-6)
        self.warmup = min(max(0.05 * max_epoch, 1.0), 3.0)
        self.flat = min(max(0.05 * max_epoch, 1.0), 15.0)

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        if epoch <= self.warmup:
            return self.start + (self.base - self.start) * (epoch / self.warmup) ** 2
        if epoch >= self.max_epoch - self.flat:
            return self.lowest
        progress = (epoch - self.warmup) / (self.max_epoch - self.warmup - self.flat)
        return self.lowest + (self.base - self.lowest) * (1 + math.cos(math.pi * progress)) / 2

    def observe(self, fitness: float | None) -> None:
        """The cosine follows the calendar, whatever comes."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is remembered: the rate follows from the epoch."""


class PlateauSchedule:
    """The same warm-up, then a tenth of the rate whenever `patience` epochs in a row brought no better figure.

    Epochs without a figure do not count.
    """

    def __init__(self, base: float, lowest: float, max_epoch: int, patience: int = 10, factor: float = 0.1):
        self.warm = CosineSchedule(base, lowest, max_epoch)
        self.base, self.lowest, self.patience, self.factor = base, lowest, patience, factor
        self.reductions, self.best, self.waited = 0, -math.inf, 0

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0, as far as is known now."""
        if epoch <= self.warm.warmup:
            return self.warm.rate(epoch)
        return max(self.base * self.factor**self.reductions, self.lowest)

    def observe(self, fitness: float | None) -> None:
        """Tell the figure of the epoch that just ended; higher is better."""
        if fitness is None:
            return
        if fitness > self.best:
            self.best, self.waited = fitness, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.reductions, self.waited = self.reductions + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"reductions": self.reductions, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Reductions are counted, not rates, so that a run that goes on with another base rate does so."""
        self.reductions, self.best, self.waited = state["reductions"], state["best"], state["waited"]


def build_schedule(mcfg: Any) -> Schedule:
    """The schedule that a ModelConfig names."""
    kind = {"COS": CosineSchedule, "plateau": PlateauSchedule}[mcfg.schedulerType]
    return kind(mcfg.baseLearningRate, mcfg.minLearningRate, mcfg.maxEpoch)
