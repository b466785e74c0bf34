"""Observes a training: spikes, the first batches, impossible values, training without effect, bad steps.

A spike is a step whose loss or gradient norm is far above its recent values. Often it is the first sign of a later NaN.
A value is compared with the median of the last values and their median absolute deviation (MAD), which a few outliers
do not change. Both use logarithms, so that a spike is a factor, whatever the size of the loss. Values that are zero,
such as the box loss of a batch without boxes, or not finite are left out. A loss part that is usually very small, such
as the box loss of a new network whose boxes overlap no object, is compared with a share of the loss.
"""

import logging
import math
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from torch import Tensor, nn

from ops.batch import Batch
from train.batches import FirstBatches, impossible_values
from train.effect import Effect
from train.guard import BadStep
from train.progress import EpochProgress
from train.step import NO_LOGIT, Stepper

log = logging.getLogger("mars")

MOST_REWINDS = 3  # per start of a run; if steps are still bad after this many rewinds, the batch is not the cause
LOGGED_SPIKES = 3  # per epoch
LOGGED_TIMES = 10.0  # smaller spikes are only counted: a step of a few images is often twice its median

WINDOW = 100  # last steps that are compared with
WARM_UP = 20  # steps before the first spike
MADS = 6 * 1.4826  # above the median; 1.4826 MAD are one standard deviation of a normal distribution
MAD_FLOOR = 0.02  # so that small changes of a steady loss are no spikes
RELATIVE_FLOOR = 0.5  # a spike is at least 1.5 times the median
TOTALS = ("loss", "grad_norm")  # all other values are parts of the loss
EXPLOSION = 100.0  # times the median is a spike during warm-up, too
FEWEST = 3  # values before an explosion can be recognised
SMALL_PART = 0.1  # a part with a smaller share of the loss is compared with this share


class Monitor:
    """Collects what is observed, logs it, and writes files into `folder`, the health folder of a run."""

    def __init__(self, folder: Path, class_names: Sequence[str]):
        self.folder, self.class_names = folder, tuple(class_names)
        self.spikes, self.effect = Spikes(), Effect()
        self.rewinds = 0
        self.last_spike = ""  # as a text, from this or an earlier epoch
        self._logged_in: Counter[int] = Counter()  # epoch -> spikes
        self._zero_loss_epoch = -1  # the last epoch with a warning
        self._reported_inputs: set[str] = set()
        self._first_batches: FirstBatches | None = None
        self._skipped: set[tuple[int, tuple[str, ...]]] = set()  # epoch and images

    def begin(self) -> None:
        """A new run starts: collect statistics of its first batches."""
        self._first_batches = FirstBatches(self.class_names)

    def start_epoch(self, stepper: Stepper) -> None:
        """Before the first batch of an epoch."""
        self.spikes.start_epoch()
        self.effect.start_epoch(stepper.model, _ema_of(stepper))

    def end_epoch(self, stepper: Stepper, progress: EpochProgress) -> dict[str, Any]:
        """Entries for `metrics.jsonl`. Warns about a training without effect."""
        ema, clip = _ema_of(stepper), stepper.gradient_clip
        row, messages = self.effect.judge(stepper.model, ema, stepper.optimizer, clip)
        for message in messages:
            log.warning("epoch %d: %s", stepper.guard.epoch + 1, message)
        counts = {"bad_steps": progress.bad_steps, "odd_batches": progress.odd_batches}
        return {**counts, **self.spikes.row(), **row}

    def state_dict(self) -> dict[str, Any]:
        """Entries of a checkpoint."""
        reported = sorted(self._reported_inputs)
        return {"spikes": self.spikes.state_dict(), "effect": self.effect.state_dict(), "told_inputs": reported}

    def load_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore what the checkpoint has. Checkpoints of earlier versions have less."""
        for name, part in (("spikes", self.spikes), ("effect", self.effect)):
            if name in checkpoint:
                part.load_state_dict(checkpoint[name])
        self._reported_inputs = set(checkpoint.get("told_inputs", ()))

    def check_inputs(self, batch: Batch, progress: EpochProgress) -> None:
        """Count a batch, still on the CPU, with impossible boxes or images. Each kind is reported once."""
        found = impossible_values(batch)
        progress.odd_batches += bool(found)
        for kind in found.keys() - self._reported_inputs:
            self._reported_inputs.add(kind)
            log.warning("%s; check the data set and its augmentation", found[kind])

    @contextmanager
    def observe(self, batch: Batch) -> Iterator[None]:
        """Around the training step of a batch."""
        if self._first_batches is None:
            yield
            return
        with self._first_batches.observe(batch):
            yield
        if self._first_batches.is_done:
            self.report_first_batches()

    def report_first_batches(self) -> None:
        """Write their statistics to log and file, once, also if the training stops earlier."""
        if self._first_batches is not None:
            log.info("%s", self._first_batches.text())
            self._first_batches.write(self.folder / "first-batches.json")
            self._first_batches = None

    def add(self, stepper: Stepper, values: dict[str, Tensor], progress: EpochProgress) -> None:
        """Add the values of the last checked step. They are empty if that step was bad."""
        progress.bad_steps, stepper.bad_steps = progress.bad_steps + stepper.bad_steps, 0
        if not values or stepper.last_checked is None:
            return
        epoch, step = stepper.last_checked.epoch, stepper.last_checked.step
        numbers = {name: value.item() for name, value in values.items()}
        self.add_numbers(numbers, epoch, step)
        self.effect.add(numbers, stepper.top_logit.item())
        stepper.top_logit = NO_LOGIT
        if numbers.get("loss") == 0 and self._zero_loss_epoch != epoch:
            self._zero_loss_epoch = epoch
            log.warning(
                "epoch %d, batch %d: the loss is exactly 0, so nothing is learned: either the logits are far too large "
                "(lower the learning rate), or the batch has no labels",
                epoch + 1, step,
            )  # fmt: skip

    def add_numbers(self, numbers: Mapping[str, float], epoch: int, step: int) -> None:
        """Look for spikes. Large ones are logged."""
        spikes = self.spikes.add(numbers, step)
        if not spikes:
            return
        self.last_spike = f"spike in epoch {epoch + 1}, {spikes[0]}"
        if spikes[0].times >= LOGGED_TIMES and self._logged_in[epoch] < LOGGED_SPIKES:
            self._logged_in[epoch] += 1
            log.warning("%s", self.last_spike)

    def count_rewind(self, bad: BadStep) -> None:
        """Skip this batch from now on: after a rewind, everything else repeats exactly."""
        self.rewinds += 1
        self._skipped.add((bad.snapshot.epoch, bad.snapshot.batch.image_ids))

    def is_skipped(self, epoch: int, batch: Batch) -> bool:
        return (epoch, batch.image_ids) in self._skipped


def _ema_of(stepper: Stepper) -> nn.Module | None:
    return None if stepper.ema is None else stepper.ema.model


class Spike(NamedTuple):
    """A value far above the median of the values before it: `times` as large."""

    name: str
    value: float
    times: float
    batch: int  # of the epoch, from 1

    def __str__(self) -> str:
        return f"batch {self.batch}: {self.name} {self.value:.4g} is {self.times:.3g} times its recent median"


class Spikes:
    """Compares the values of every step with their recent values, each name separately, and counts spikes per epoch."""

    def __init__(self) -> None:
        self._logs: dict[str, deque[float]] = {}
        self._sorted: dict[str, list[float]] = {}  # the same, so that a median is looked up and not computed
        self.count = 0
        self.worst: Spike | None = None

    def add(self, values: Mapping[str, float], batch: int) -> list[Spike]:
        """Add the values of one step. Returns its spikes, the largest first; together they count as one."""
        median_loss = _median_of(self._sorted["loss"]) if self._sorted.get("loss") else -math.inf
        least = {name: median_loss + math.log(SMALL_PART) for name in values if name not in TOTALS}
        found = [
            spike
            for name, value in values.items()
            if (spike := self._add(name, float(value), batch, least.get(name, -math.inf)))
        ]
        found.sort(key=lambda spike: -spike.times)
        if found:
            self.count += 1
            self.worst = max(self.worst or found[0], found[0], key=lambda spike: spike.times)
        return found

    def _add(self, name: str, value: float, batch: int, least: float) -> Spike | None:
        if not (math.isfinite(value) and value > 0):
            return None
        log, logs = math.log(value), self._logs.setdefault(name, deque(maxlen=WINDOW))
        in_order = self._sorted.setdefault(name, [])
        middle = _median_of(in_order) if logs else log
        above = log - max(middle, least)  # distance from the median, in logarithms
        if len(logs) < WARM_UP:
            is_spike = len(logs) >= FEWEST and above > math.log(EXPLOSION)
        elif above <= max(MADS * MAD_FLOOR, math.log1p(RELATIVE_FLOOR)):
            is_spike = False  # the MAD takes longer to compute and is not needed
        else:
            is_spike = above > MADS * median(abs(log - middle) for log in logs)
        if len(logs) == WINDOW:
            del in_order[bisect_left(in_order, logs[0])]
        logs.append(log)  # spikes, too: after a lasting change the new level soon is the median
        insort(in_order, log)
        return Spike(name, value, math.exp(min(above, 700.0)), batch) if is_spike else None

    def start_epoch(self) -> None:
        """Start counting from 0. The recent values stay."""
        self.count, self.worst = 0, None

    def row(self) -> dict[str, Any]:
        """For `metrics.jsonl`: the number of steps with spikes, and the worst spike."""
        worst = self.worst
        values = None if worst is None else {"name": worst.name, "times": round(worst.times, 3), "batch": worst.batch}
        return {"spikes": self.count, "worst_spike": values}

    def state_dict(self) -> dict[str, Any]:
        """Plain values for `load_state_dict`."""
        return {
            "logs": {name: list(logs) for name, logs in self._logs.items()},
            "count": self.count,
            "worst": None if self.worst is None else list(self.worst),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._logs = {name: deque(logs, maxlen=WINDOW) for name, logs in state["logs"].items()}
        self._sorted = {name: sorted(logs) for name, logs in self._logs.items()}
        self.count = state["count"]
        self.worst = None if state["worst"] is None else Spike(*state["worst"])


def _median_of(in_order: list[float]) -> float:
    """The median of sorted values."""
    half = len(in_order) // 2
    return in_order[half] if len(in_order) % 2 else (in_order[half - 1] + in_order[half]) / 2
