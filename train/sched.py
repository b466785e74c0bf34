"""Learning-rate schedules by epoch, and the warm-up by batch."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

SHORTEST_WARM_UP = 100  # batches; epochs of a small data set have only a few, as in Ultralytics


@runtime_checkable
class Schedule(Protocol):
    """What the trainer needs: the rate of an epoch, which may depend on the validation results before it.

    `position` is the epoch, counted from 0. With trainMinutes it may be fractional: it goes evenly from startEpoch to
    maxEpoch in the epochs that the training has (`train.budget.EpochPlan`).
    """

    def rate(self, position: float) -> float: ...

    def observe(self, fitness: float | None) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class FixedSchedule:
    """A schedule that depends on the position alone, and so has no state."""

    def observe(self, fitness: float | None) -> None:
        """The validation result changes nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to load."""


class CosineSchedule(FixedSchedule):
    """The assignment's schedule: quadratic warm-up from base / 10, half a cosine, then the lowest rate.

    Warm-up takes 5 % of the epochs, at least 1 and at most 3; the flat end 5 %, at least 1 and at most 15.
    """

    def __init__(self, base: float, lowest: float, max_epoch: int):
        self.base, self.lowest, self.max_epoch = base, lowest, max_epoch
        self.start = max(base / 10, 1e-6)
        self.warmup = min(max(0.05 * max_epoch, 1.0), 3.0)
        self.flat = min(max(0.05 * max_epoch, 1.0), 15.0)

    def rate(self, position: float) -> float:
        """The learning rate at a position, counted from 0."""
        if position <= self.warmup:
            return self.start + (self.base - self.start) * (position / self.warmup) ** 2
        if position >= self.max_epoch - self.flat:
            return self.lowest
        # Half a cosine: slow at both ends, where the rate matters most (Loshchilov and Hutter, arXiv 1608.03983).
        progress = (position - self.warmup) / (self.max_epoch - self.warmup - self.flat)
        return self.lowest + (self.base - self.lowest) * (1 + math.cos(math.pi * progress)) / 2


class PlateauSchedule:
    """The same warm-up; then the rate is divided by ten after `patience` epochs without a better result.

    Epochs without a validation result do not count.
    """

    def __init__(self, base: float, lowest: float, max_epoch: int, patience: int = 10):
        self.warm = CosineSchedule(base, lowest, max_epoch)
        self.base, self.lowest, self.patience = base, lowest, patience
        self.reductions, self.best, self.waited = 0, -math.inf, 0

    def rate(self, position: float) -> float:
        """The learning rate at a position, counted from 0, after the reductions so far."""
        if position <= self.warm.warmup:
            return self.warm.rate(position)
        return max(self.base * 0.1**self.reductions, self.lowest)

    def observe(self, fitness: float | None) -> None:
        """Record the validation result of the epoch that just ended; higher is better."""
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
        """The state has the number of reductions, not the rate, so that a resumed run may change its base rate."""
        self.reductions, self.best, self.waited = state["reductions"], state["best"], state["waited"]


class DecaySchedule(FixedSchedule):
    """From base to lowest over all epochs, linearly or as half a cosine."""

    def __init__(self, base: float, lowest: float, max_epoch: int, is_cosine: bool = False):
        self.base, self.lowest, self.max_epoch, self.is_cosine = base, lowest, max_epoch, is_cosine

    def rate(self, position: float) -> float:
        """The learning rate at a position, counted from 0, after warm-up."""
        remaining = max(0.0, 1 - position / self.max_epoch)
        part = (1 - math.cos(math.pi * remaining)) / 2 if self.is_cosine else remaining
        return self.lowest + (self.base - self.lowest) * part


SCHEDULES: dict[str, Callable[[float, float, int], Schedule]] = {
    "COS": CosineSchedule,
    "plateau": PlateauSchedule,
    "linear": DecaySchedule,
    "cosine": partial(DecaySchedule, is_cosine=True),
}


class Pace(NamedTuple):
    """Settings of the optimizer for one batch."""

    rate: float  # learning rate of weights and norms
    bias_rate: float
    momentum: float
    accumulate: int  # batches per optimizer step


class WarmUp:
    """Linear warm-up by batch: learning rate from 0 (biases from `bias_rate`), momentum, and accumulation from 1.

    Biases start with a high rate, because those of the class scores have to change most. `accumulate`: batches per
    optimizer step after warm-up. It takes `epochs`, but at least `SHORTEST_WARM_UP` batches; 0 epochs: no warm-up.
    """

    def __init__(
        self,
        epochs: float,
        batches_an_epoch: int,
        bias_rate: float,
        first_momentum: float,
        momentum: float,
        accumulate: float = 1,
    ):
        self.num_batches = max(round(epochs * batches_an_epoch), SHORTEST_WARM_UP) if epochs > 0 else 0
        self.bias_rate, self.first_momentum, self.momentum = bias_rate, first_momentum, momentum
        self.accumulate = accumulate

    def pace(self, batch: int, rate: float) -> Pace:
        """The settings of a batch, counted from the start of the training. `rate`: of its epoch after warm-up."""
        # Linear, as in Ultralytics. The first gradients are large, and batch norm has not settled yet.
        part = min(1.0, batch / self.num_batches) if self.num_batches else 1.0
        return Pace(
            rate=part * rate,
            bias_rate=(1 - part) * self.bias_rate + part * rate,
            momentum=(1 - part) * self.first_momentum + part * self.momentum,
            accumulate=max(1, round(1 + part * (self.accumulate - 1))),
        )


def build_schedule(mcfg: Any) -> Schedule:
    """The schedule of a ModelConfig. A class of a recipe is called with the highest rate, the lowest and `maxEpoch`."""
    rates = (mcfg.baseLearningRate, mcfg.minLearningRate, mcfg.maxEpoch)
    if mcfg.schedulerType in SCHEDULES:
        return SCHEDULES[mcfg.schedulerType](*rates)
    return mcfg.schedulerType.build("schedulerType", __name__, *rates, kind=Schedule)


def build_warm_up(mcfg: Any, batches_an_epoch: int) -> WarmUp:
    """The warm-up of the linear and cosine schedules. The others warm up by epoch: theirs has no batches.

    AdamW's steps do not depend on the size of the gradients, so its biases also start from 0.
    """
    warms_up_by_epoch = mcfg.schedulerType in ("COS", "plateau")
    return WarmUp(
        0 if warms_up_by_epoch else mcfg.warmupEpochs,
        batches_an_epoch,
        0.0 if mcfg.optimizerType == "AdamW" else mcfg.warmupBiasRate,
        mcfg.warmupMomentum,
        mcfg.optimizerMomentum,
        (mcfg.nominalBatch or mcfg.batchSize) / mcfg.batchSize,
    )
