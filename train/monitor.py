"""Observes a training: spikes, the first batches, impossible values, training without effect, bad steps."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ops.batch import Batch
from train.batches import FirstBatches, impossible_values
from train.effect import Effect
from train.guard import BadStep
from train.progress import EpochProgress
from train.spikes import Spikes
from train.step import NO_LOGIT, Stepper

log = logging.getLogger("mars")

MOST_REWINDS = 3  # per start of a run; if steps are still bad after this many rewinds, the batch is not the cause
LOGGED_SPIKES = 3  # per epoch
LOGGED_TIMES = 10.0  # smaller spikes are only counted: a step of a few images is often twice its median


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
