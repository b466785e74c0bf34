"""Learning rates by epoch. A schedule gives the rate of an epoch and may learn from its validation figure."""

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable


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


class DecaySchedule:
    """From base to lowest over all epochs, in a line or half a cosine; nothing is flat."""

    def __init__(self, base: float, lowest: float, max_epoch: int, is_cosine: bool = False):
        self.base, self.lowest, self.max_epoch, self.is_cosine = base, lowest, max_epoch, is_cosine

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0, once warm-up is over."""
        left = max(0.0, 1 - epoch / self.max_epoch)
        part = (1 - math.cos(math.pi * left)) / 2 if self.is_cosine else left
        return self.lowest + (self.base - self.lowest) * part

    def observe(self, fitness: float | None) -> None:
        """The rate follows the calendar, whatever comes."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is remembered: the rate follows from the epoch."""


class Pace(NamedTuple):
    """How one batch is taken."""

    rate: float  # learning rate of weights and norms
    bias_rate: float
    momentum: float
    accumulate: int  # batches a step of the optimizer


class WarmUp:
    """Straight lines, batch by batch: rates from 0 (biases from `bias_rate`), momentum, the batches of a step from 1.

    Biases start high because those of the class scores have a long way to go. `accumulate` is what a step sums up once
    warm-up is over. Lasts `epochs`, but never less than `at_least` batches; 0 epochs: none.
    """

    def __init__(
        self,
        epochs: float,
        batches_an_epoch: int,
        bias_rate: float,
        first_momentum: float,
        momentum: float,
        accumulate: float = 1,
        at_least: int = 100,
    ):
        self.num_batches = max(round(epochs * batches_an_epoch), at_least) if epochs > 0 else 0
        self.bias_rate, self.first_momentum, self.momentum = bias_rate, first_momentum, momentum
        self.accumulate = accumulate

    def pace(self, batch: int, rate: float) -> Pace:
        """Of a batch, counted from the start of the training, in an epoch with this learning rate."""
        part = min(1.0, batch / self.num_batches) if self.num_batches else 1.0
        return Pace(
            rate=part * rate,
            bias_rate=(1 - part) * self.bias_rate + part * rate,
            momentum=(1 - part) * self.first_momentum + part * self.momentum,
            accumulate=max(1, round(1 + part * (self.accumulate - 1))),
        )


def build_schedule(mcfg: Any) -> Schedule:
    """The schedule that a ModelConfig names."""
    rates = (mcfg.baseLearningRate, mcfg.minLearningRate, mcfg.maxEpoch)
    if mcfg.schedulerType in ("linear", "cosine"):
        return DecaySchedule(*rates, is_cosine=mcfg.schedulerType == "cosine")
    return {"COS": CosineSchedule, "plateau": PlateauSchedule}[mcfg.schedulerType](*rates)


def build_warm_up(mcfg: Any, batches_an_epoch: int) -> WarmUp:
    """The warm-up by batches of the linear and cosine schedule; those that warm up by epochs get one without length.

    AdamW's steps do not depend on the size of gradients, so its biases start from 0.
    """
    has_own = mcfg.schedulerType in ("COS", "plateau")
    return WarmUp(
        0 if has_own else mcfg.warmupEpochs,
        batches_an_epoch,
        0.0 if mcfg.optimizerType == "AdamW" else mcfg.warmupBiasRate,
        mcfg.warmupMomentum,
        mcfg.optimizerMomentum,
        (mcfg.nominalBatch or mcfg.batchSize) / mcfg.batchSize,
    )
