"""What is noticed about a run while it trains, beside its figures: spikes, its first batches, its bad steps."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ops.batch import Batch
from train.effect import Effect
from train.first_batches import FirstBatches
from train.guard import BadStep
from train.inputs import odd_inputs
from train.progress import EpochProgress
from train.spikes import Spikes
from train.step import NO_LOGIT, Stepper

log = logging.getLogger("mars")

MOST_REWINDS = 3  # in one start of a run; what comes again after these is no bad batch
TOLD_SPIKES = 3  # an epoch, of those that are
TOLD_TIMES = 10.0  # what is usual, or more; the others are counted, for a step of a few images is often twice as large


class Watch:
    """Looks on; what it keeps goes into `folder`, the health folder of a run."""

    def __init__(self, folder: Path, class_names: Sequence[str]):
        self.folder, self.class_names = folder, tuple(class_names)
        self.spikes, self.effect = Spikes(), Effect()
        self.rewinds = 0
        self.last_spike = ""  # in words, of an earlier epoch, too
        self._told_in: Counter[int] = Counter()  # epoch -> spikes
        self._dead_epoch = -1  # that was told of
        self._told_inputs: set[str] = set()
        self._first_batches: FirstBatches | None = None
        self._left_out: set[tuple[int, tuple[str, ...]]] = set()  # epoch and images

    def begin(self) -> None:
        """A run starts: its first batches will be told."""
        self._first_batches = FirstBatches(self.class_names)

    def start_epoch(self, stepper: Stepper) -> None:
        """Before the first batch of an epoch, with the weights that it starts from."""
        self.spikes.start_epoch()
        self.effect.start_epoch(stepper.model, _average_of(stepper))

    def end_epoch(self, stepper: Stepper, progress: EpochProgress) -> dict[str, Any]:
        """What `metrics.jsonl` says of the epoch beside its figures; what has no effect is said on the screen, too."""
        average, clip = _average_of(stepper), stepper.gradient_clip
        row, sentences = self.effect.judge(stepper.model, average, stepper.optimizer, clip)
        for sentence in sentences:
            log.warning("epoch %d: %s", stepper.guard.epoch + 1, sentence)
        counts = {"bad_steps": progress.bad_steps, "odd_batches": progress.odd_batches}
        return {**counts, **self.spikes.row(), **row}

    def state_dict(self) -> dict[str, Any]:
        """Entries of a checkpoint."""
        told = sorted(self._told_inputs)
        return {"spikes": self.spikes.state_dict(), "effect": self.effect.state_dict(), "told_inputs": told}

    def load_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take back what the checkpoint has; those of earlier versions have less."""
        for name, part in (("spikes", self.spikes), ("effect", self.effect)):
            if name in checkpoint:
                part.load_state_dict(checkpoint[name])
        self._told_inputs = set(checkpoint.get("told_inputs", ()))

    def look_at_inputs(self, batch: Batch, progress: EpochProgress) -> None:
        """Count a batch, still on the CPU, with boxes or images that cannot be right; each kind is said once."""
        found = odd_inputs(batch)
        progress.odd_batches += bool(found)
        for kind in found.keys() - self._told_inputs:
            self._told_inputs.add(kind)
            log.warning("%s; look at the data set and its augmentation", found[kind])

    @contextmanager
    def looking_at(self, batch: Batch) -> Iterator[None]:
        """Around the training step of a batch."""
        if self._first_batches is None:
            yield
            return
        with self._first_batches.looking_at(batch):
            yield
        if self._first_batches.is_done:
            self.tell_first_batches()

    def tell_first_batches(self) -> None:
        """As many as have come, once: in the log and in a file."""
        if self._first_batches is not None:
            log.info("%s", self._first_batches.text())
            self._first_batches.write(self.folder / "first-batches.json")
            self._first_batches = None

    def take(self, stepper: Stepper, values: dict[str, Tensor], progress: EpochProgress) -> None:
        """What the step that was judged last came to: nothing, when it was bad."""
        progress.bad_steps, stepper.bad_steps = progress.bad_steps + stepper.bad_steps, 0
        if not values or stepper.judged is None:
            return
        epoch, step = stepper.judged.epoch, stepper.judged.step
        numbers = {name: value.item() for name, value in values.items()}
        self.take_numbers(numbers, epoch, step)
        self.effect.add(numbers, stepper.top_logit.item())
        stepper.top_logit = NO_LOGIT
        if numbers.get("loss") == 0 and self._dead_epoch != epoch:
            self._dead_epoch = epoch
            log.warning(
                "epoch %d, batch %d: the loss is exactly 0, and nothing is learned from it: either the network's "
                "logits have run away (look at the learning rate), or nothing in the batch is labelled",
                epoch + 1, step,
            )  # fmt: skip

    def take_numbers(self, numbers: Mapping[str, float], epoch: int, step: int) -> None:
        """Look for spikes; large ones are said."""
        spikes = self.spikes.add(numbers, step)
        if not spikes:
            return
        self.last_spike = f"spike in epoch {epoch + 1}, {spikes[0]}"
        if spikes[0].times >= TOLD_TIMES and self._told_in[epoch] < TOLD_SPIKES:
            self._told_in[epoch] += 1
            log.warning("%s", self.last_spike)

    @property
    def may_rewind(self) -> bool:
        return self.rewinds < MOST_REWINDS

    def rewound_for(self, bad: BadStep) -> None:
        """Its batch is left out when it comes again, for all else comes again as well."""
        self.rewinds += 1
        self._left_out.add((bad.snapshot.epoch, bad.snapshot.batch.image_ids))

    def is_left_out(self, epoch: int, batch: Batch) -> bool:
        return (epoch, batch.image_ids) in self._left_out


def _average_of(stepper: Stepper) -> nn.Module | None:
    return None if stepper.ema is None else stepper.ema.model
