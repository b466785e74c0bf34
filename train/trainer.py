"""The training loop: preEpochSetup -> fit_one_epoch -> validate -> save, until the planned number of epochs."""

import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from config.errors import UserError
from config.mconfig import ModelConfig
from dl.check import CheckedData, check_data
from dl.image_cache import build_images
from dl.label_selection import splits_to_train
from dl.small_objects import report_small_objects
from eval.evaluator import Evaluator
from eval.plots import plot_curves
from ops.batch import Batch
from ops.log import ProgressBar
from ops.random_states import seed_random_states
from runs.checkpoint import FileParts, load_checkpoint
from runs.folder import RunFolder
from runs.interrupt import Interrupted, InterruptHandler
from runs.lock import RunLock
from runs.start import with_pixel_max
from train.effect import finite_or_none, unchanged_ap
from train.guard import BadStep
from train.monitor import MOST_REWINDS
from train.objective import DistillationObjective
from train.opt import set_pace
from train.progress import EpochProgress, bar_text, epoch_line
from train.setup import build_training
from train.state import Row, TrainingState
from train.step import StepSetup
from train.teacher_file import check_teacher, split_for_teacher

log = logging.getLogger("mars")

PLOT_INTERVAL = 10.0  # seconds between two plots of the curves; a plot takes as long as many steps
OnBadStep = Callable[[BadStep, StepSetup, Path, str], str]  # the str: the text of the last spike, or ""
OnFirstBatch = Callable[[Batch, StepSetup, Path], str]


class Trainer(TrainingState):
    """One training. `run()` starts it, or continues where the run's folder ends."""

    def __init__(
        self,
        mcfg: ModelConfig,
        data: CheckedData | None = None,
        quiet: bool = False,
        on_bad_step: OnBadStep | None = None,
        on_first_batch: OnFirstBatch | None = None,
    ):
        """`data`: the checked training and validation splits; None: they are checked now.

        `on_bad_step` and `on_first_batch` examine a bad step and the first batch, and return a text for the log.
        `debug.tracer.report` has both.
        """
        self.quiet, self.on_bad_step, self.on_first_batch = quiet, on_bad_step, on_first_batch
        folder, names = RunFolder.of(mcfg), splits_to_train(mcfg)
        # A folder with any checkpoint, complete or not, is resumed: an old run must never be overwritten by accident.
        is_resumed = not mcfg.nobuf and folder.has_checkpoint()
        begun = folder.saved_config() if is_resumed else None
        mcfg = with_pixel_max(mcfg, begun)
        data = data or check_data(mcfg, names, cache_file=folder.data_check)
        mcfg = mcfg.with_values(pixelMax=data.pixel_max)
        # Everything that can fail is built before anything is written: a wrong setting leaves an older run alone.
        super().__init__(build_training(mcfg, data, is_resumed, begun), folder, names)

        ranges = self.loader.dataset.ranges
        report_small_objects(
            self.loader.dataset.annotations, mcfg.inputShape, mcfg.talMinSide, ranges.always_dropped if ranges else 0.0
        )
        self.evaluator = None
        if mcfg.epochValidation:
            name = mcfg.validationSplitName
            # Decoded once and kept, since every epoch validates the same images.
            images = build_images(self.mcfg, name, self.splits[name])
            self.evaluator = Evaluator.for_validation(self.mcfg, self.precision.dtype, images)
        self.interrupts = InterruptHandler()
        self._plotted_at = -math.inf

    def run(self) -> RunFolder:
        """Train up to maxEpoch, or as many epochs as fit into trainMinutes. A finished run stays as it is.

        Weights, curves and metrics are in the run's folder.
        """
        with RunLock(self.folder.path) as lock:
            lock.hold()
            # Under the lock: a second process must not resume the same folder.
            self._start_or_resume()
            if self.epoch >= self.plan.end:
                is_shortened = self.plan.end < self.mcfg.maxEpoch
                how = "trainMinutes=none, or more minutes" if is_shortened else "a larger maxEpoch"
                most = self.mcfg.maxEpoch
                log.info("already trained: %d of %d epochs; continue with %s", self.epoch, most, how)
                return self.folder
            log.info("%s", self.precision.why)
            if isinstance(self.objective, DistillationObjective):
                split = split_for_teacher(self.mcfg)
                check_teacher(self.objective.teacher, self.mcfg, split, self.splits[split])
            self.folder.write_config(self.mcfg)
            # Start-up (reading weights, timing precisions) is not part of the time per epoch.
            self.plan.restart_clock()
            with closing(self.loader), self.interrupts:  # ends the loader's processes, also after an error
                try:
                    self._train()
                except Interrupted as interruption:
                    raise Interrupted(self._save_before_leaving(interruption)) from None
        return self.folder

    def _start_or_resume(self) -> None:
        self.folder.remove_drafts()
        checkpoint, changes = self.folder.checkpoint_to_resume(self.mcfg, self.data)
        if checkpoint is None:
            seed_random_states(self.mcfg.seed)
            # Save the start: its measured settings, and a checkpoint to return to if the first epoch fails.
            self.folder.write_config(self.mcfg)
            self.folder.save(self.checkpoint())
            self.monitor.begin()
            return
        self.restore(checkpoint)
        if not self.folder.restore_best(checkpoint):
            self.best = None
        self._write_history()  # again, in case the run was killed between saving its weights and its curves
        inside = f" and {self.resumed_progress['batches']} batches" if self.resumed_progress else ""
        changed = f", with {changes}" if changes else ""
        log.info("resuming %s after epoch %d%s%s", self.folder.path, self.epoch, inside, changed)

    def restore(self, checkpoint: FileParts) -> None:
        super().restore(checkpoint)
        if self.evaluator is not None:
            self.evaluator.precision = self.precision.dtype

    def _train(self) -> None:
        while self.epoch < self.plan.end:
            epoch, bad = self.epoch, None
            try:
                self.preEpochSetup(epoch)
                row = self.fit_one_epoch(epoch)
                self.validate(epoch, row)
                self.save(epoch, row)
            except BadStep as error:
                bad = error.with_traceback(None)  # the traceback would keep the loader alive
            if bad is not None:
                self._handle_bad_step(bad)
            self.interrupts.stop_if_requested()

    def preEpochSetup(self, epoch: int) -> None:
        """Freeze or unfreeze the backbone; set the learning rate and the order of the images."""
        if epoch in self.mcfg.backboneFreezeEpochs:
            self.model.freezeBackbone()
        else:
            self.model.unfreezeBackbone()
        self.model.train()
        position = self.plan.position
        self.objective.set_epoch(epoch, position)
        # Schedules work by epoch; the warm-up scales this rate for each batch.
        self.rate = self.schedule.rate(position)
        # Only the first epoch after a resume continues inside an epoch.
        resumed, self.resumed_progress = self.resumed_progress, None
        self.progress = EpochProgress(resumed)
        if resumed is None:
            self.monitor.start_epoch(self.stepper)
        self.stepper.guard.set_position(epoch, self.progress.batches)
        self.loader.set_epoch(epoch, self.progress.batches, position)

    def fit_one_epoch(self, epoch: int) -> Row:
        """Train on the training split once. Returns the epoch's means."""
        progress = self.progress or EpochProgress()
        title = f"epoch {epoch + 1}/{self.plan.end}{' frozen' if self.model.is_backbone_frozen else ''}"
        with ProgressBar(title, self.quiet, total=len(self.loader)) as bar:
            bar(progress.batches, len(self.loader))
            # The order of the images follows from (seed, epoch) alone, so a resumed epoch skips what it has seen.
            for batch in self.loader:
                self.stepper.guard.set_position(epoch, self.loader.next_batch - 1)
                # Checked before the copy to the device: there, reading the values needs no transfer.
                self.monitor.check_inputs(batch, progress)
                is_skipped = self.monitor.is_skipped(epoch, batch)
                values = {} if is_skipped else self.train_step(batch.to(self.device))
                self._add(progress, values, len(batch))
                progress.batches = self.loader.next_batch
                bar(progress.batches, len(self.loader), bar_text(progress, self.objective.parts))
                # Between two steps everything is consistent; inside a step it is not.
                if self.interrupts.signal_name is not None:
                    self._add(progress, self.stepper.settle())
                    self.stepper.check_state()
                    self.interrupts.stop_if_requested()
        self._add(progress, self.stepper.flush())  # no gradient waits across epochs
        self.monitor.report_first_batches()
        return {
            "epoch": epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "frozen": self.model.is_backbone_frozen,
            **{name: round(value, 6) for name, value in progress.means().items()},
            **self.monitor.end_epoch(self.stepper, progress),
            "images_per_s": round(progress.images_per_s, 2),
            "seconds": round(progress.seconds, 3),
        }

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Train on one batch with the learning rate of this moment. Returns what `Stepper.add` returns."""
        if self.on_first_batch is not None:
            log.info("%s", self.on_first_batch(batch, self._step_setup(), self.folder.health))
            self.on_first_batch = None
        # Warm-up and schedule work per batch, so that a resumed run continues at the same point.
        guard = self.stepper.guard
        pace = self.warm_up.pace(self.batches_before(guard.epoch) + guard.step, self.rate)
        # Momentum warms up, too: with the full one, the first large gradients would push the weights for many steps.
        set_pace(self.optimizer, pace)
        with self.monitor.observe(batch):
            return self.stepper.add(batch, pace.accumulate)

    def _add(self, progress: EpochProgress, values: dict[str, torch.Tensor], num_images: int = 0) -> None:
        progress.add(values, num_images)
        self.monitor.add(self.stepper, values, progress)

    def _handle_bad_step(self, bad: BadStep) -> None:
        """Return to an earlier checkpoint if `onBadStep=rewind` and that helps; otherwise report and raise."""
        # Otherwise the loader's processes continue to decode images while the report is made.
        self.loader.close()
        self.monitor.report_first_batches()
        text = str(bad)
        if self.on_bad_step is not None:
            text = self.on_bad_step(bad, self._step_setup(), self.folder.health, self.monitor.last_spike)
        if self.mcfg.onBadStep == "rewind" and self._rewind(bad):
            return
        log.error("%s", text)
        self._plot_curves()
        raise bad

    def _rewind(self, bad: BadStep) -> bool:
        """Restore the last checkpoint with which the bad batch gives finite values. False if there is none."""
        self.plan.add_time()
        used = self.plan.used
        for path in (self.folder.last, self.folder.previous) if self.monitor.rewinds < MOST_REWINDS else ():
            try:
                self.restore(load_checkpoint(path))
            except UserError as error:  # damaged or missing
                log.warning("%s", error)
                continue
            if self.stepper.stays_finite_on(bad.snapshot.batch):
                self.monitor.count_rewind(bad)
                self.progress = None  # nothing is unsaved
                self.plan.used = used  # the time has passed, although its epochs are trained again
                log.warning("%s; back to %s, without this batch (rewind %d)", bad, path, self.monitor.rewinds)
                return True
            log.warning("%s: the batch is not finite with this checkpoint either", path)
        return False

    def _step_setup(self) -> StepSetup:
        return StepSetup(
            self.model, self.objective, self.precision.dtype, self.stepper.sum_over_batch,
            json.dumps(self.mcfg.to_dict()), self.weights_origin["path"],
        )  # fmt: skip

    def validate(self, epoch: int, row: Row) -> None:
        """Add the AP of the validation split to the row, if this epoch is validated, and whether it is the best."""
        # The keys exist in every epoch, so that metrics.jsonl has the same columns in every line.
        row.update(map50=None, map50_95=None, is_best=False)
        self.plan.add_time()
        is_due = (epoch + 1) % self.mcfg.validationInterval == 0 or self.plan.is_last(epoch)
        if self.evaluator is not None and is_due:
            name = self.mcfg.validationSplitName
            try:
                # It may stop at any batch: nothing has changed yet, so the validation can be repeated.
                result = self.evaluator.evaluate(
                    self.evaluated_model,
                    name,
                    annotations=self.splits[name],
                    on_batch=self.interrupts.stop_if_requested,
                )
            except FloatingPointError as error:
                evaluated = "the weights" if self.ema is None else "the EMA"
                message = f"validation of {evaluated} after epoch {epoch + 1}: {error}"
                raise FloatingPointError(f"{message}; the checkpoints were saved before this epoch") from error
            fitness = finite_or_none(result.map50_95)
            row.update(map50=None if fitness is None else result.map50, map50_95=fitness)
            if warning := unchanged_ap(self.history, epoch, fitness):
                log.warning("%s", warning)
            row["is_best"] = fitness is not None and (self.best is None or fitness > self.best)
            self.plan.add_time()
        if row["is_best"]:
            self.best = row["map50_95"]
        # Without validation the loss decides whether the learning rate is reduced.
        loss = row.get("loss")  # missing if all steps of the epoch were skipped
        self.schedule.observe(row["map50_95"] if self.evaluator is not None else None if loss is None else -loss)

    def save(self, epoch: int, row: Row) -> None:
        """Write the checkpoint, then metrics and curves. A killed process leaves each file complete or absent."""
        self.stepper.check_state()
        # Before the checkpoint is written, so that it has the plan of the next epoch.
        self.plan.advance(epoch)
        self.fit_ema_ramp()
        self.epoch = epoch + 1
        self.history.append(row)
        self.progress = None
        # The checkpoint first: history and plots can be made again from it, but not the other way round.
        self.folder.save(self.checkpoint(), is_best=row["is_best"])
        self._write_history()
        seconds_left = (self.plan.end - self.epoch) * (self.plan.seconds_per_epoch or 0.0)
        log.info("%s", epoch_line(row, self.objective.parts, self.plan.end, seconds_left))

    def _save_before_leaving(self, interruption: Interrupted) -> str:
        """Save an unfinished epoch. Returns the message for the user."""
        if self.progress is None:
            place = f"after epoch {self.epoch}/{self.plan.end}"
        else:
            self.plan.add_time()
            self.folder.save(self.checkpoint())
            batches = f"{self.progress.batches} of {len(self.loader)} batches"
            place = f"in epoch {self.epoch + 1}/{self.plan.end} after {batches}"
        self._plot_curves()
        return f"interrupted by {interruption} and saved {place}; the same command continues from there"

    def _write_history(self) -> None:
        self.folder.write_history(self.history)
        is_finished = self.epoch >= self.plan.end
        if is_finished or time.monotonic() - self._plotted_at >= PLOT_INTERVAL:
            self._plot_curves()

    def _plot_curves(self) -> None:
        plot_curves(self.history, self.folder.curves, self.objective.parts)
        self._plotted_at = time.monotonic()
