"""The training loop: preEpochSetup -> fit_one_epoch -> validate -> save, from the last finished epoch to maxEpoch."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from config.errors import UserError, reading
from config.mconfig import ModelConfig
from dl.check import CheckedData, check_data
from dl.image_cache import build_images
from dl.label_selection import REPLAYED_SPLIT, splits_to_train
from dl.loader import build_loader
from eval.evaluator import EvalResult, Evaluator
from eval.plots import plot_curves
from model import build_model
from model.pretrained import load_weights
from ops.batch import Batch
from ops.device import pick_device, use_all_cores
from ops.precision import dtype_name, pick_precision, resumed_precision
from ops.random_states import random_states, restore_random_states, seed_random_states
from runs.checkpoint import FileParts, load_checkpoint
from runs.folder import RunFolder
from runs.identity import identity_of
from runs.interrupt import Interrupted, InterruptHandler
from runs.lock import RunLock
from runs.origin import code_commit, file_origin, origin_text, random_origin
from runs.start import starting_weights, with_head_width, with_pixel_max
from train.budget import images_an_epoch, within_minutes
from train.ema import ModelEMA, ramp_for
from train.figures import finite_or_none, frozen_figure
from train.guard import BadStep, Guard
from train.monitor import Watch
from train.objective import DistillationObjective, build_objective
from train.opt import build_optimizer, load_optimizer, set_pace
from train.points import report_small_objects
from train.progress import EpochProgress, bar_text, epoch_line, progress_bar
from train.sched import build_schedule, build_warm_up
from train.step import Stepper, StepSetup
from train.teacher import check_teacher, split_to_try

log = logging.getLogger("mars")

DRAWN_EVERY = 10.0  # seconds at least from one picture of the curves to the next, for one takes as long as many steps
Row = dict[str, Any]  # one epoch in history and metrics.jsonl
OnBadStep = Callable[[BadStep, StepSetup, Path, str], str]  # the last: the last spike in words, or ""
OnFirstBatch = Callable[[Batch, StepSetup, Path], str]


class Trainer:
    """Everything one run trains with. `run()` goes on where the run's folder ends, or starts it."""

    def __init__(
        self,
        mcfg: ModelConfig,
        data: CheckedData | None = None,
        quiet: bool = False,
        on_bad_step: OnBadStep | None = None,
        on_first_batch: OnFirstBatch | None = None,
    ):
        """`data`: the checked training and validation split, when they are at hand; else they are checked now.

        `on_bad_step` and `on_first_batch` examine a non-finite step and the first batch; they return a text for the
        log. `debug.tracer.report` has both.
        """
        self.quiet, self.on_bad_step, self.on_first_batch = quiet, on_bad_step, on_first_batch
        self.folder = RunFolder.of(mcfg)
        is_fresh = mcfg.nobuf or not self.folder.has_checkpoint()
        names = splits_to_train(mcfg)
        begun = None if is_fresh else self.folder.saved_config()
        mcfg = with_pixel_max(mcfg, begun)
        data = data or check_data(mcfg, names, cache_file=self.folder.data_check)
        mcfg = mcfg.with_values(pixelMax=data.pixel_max)
        self.splits = data.splits
        self.data = identity_of(data, names)
        self.device = pick_device(mcfg.device, mcfg.cuda)
        if self.device.type == "cpu":
            use_all_cores()

        self.start = starting_weights(mcfg) if is_fresh else None
        mcfg = with_head_width(mcfg, self.start, begun)
        self.model = build_model(mcfg).to(self.device).to(memory_format=torch.channels_last)
        # Timed where a run starts; one that goes on keeps its own, however a second timing would fall out.
        word = mcfg.precision if is_fresh else "float32"
        must_time = is_fresh and mcfg.trainMinutes is not None
        self.precision = pick_precision(word, self.device, self.model, mcfg.inputShape, must_time)
        self.mcfg = mcfg = self._within_minutes(mcfg, begun)
        self.objective = build_objective(mcfg, self.model, self.precision.dtype)
        self.optimizer = build_optimizer(mcfg, self.model, *self.objective.extra_modules)
        self.schedule = build_schedule(mcfg)
        self.loader = build_loader(
            mcfg, mcfg.trainSplitName, list(self.splits[mcfg.trainSplitName]), train=True,
            replay_from=self.splits[REPLAYED_SPLIT] if mcfg.replayImages else (),
        )  # fmt: skip
        dataset = self.loader.dataset
        always_dropped = dataset.ranges.always_dropped if dataset.ranges else 0.0
        report_small_objects(dataset.annotations, mcfg.inputShape, mcfg.talMinSide, always_dropped)
        self.evaluator = self._make_evaluator() if mcfg.epochValidation else None
        self.warm_up = build_warm_up(mcfg, len(self.loader))
        self.rate, self.batch_index = 0.0, 0  # of the epoch; batches since startEpoch
        self.epoch = mcfg.startEpoch
        self.best: float | None = None
        self.history: list[Row] = []
        self.started, self.first_epoch = time.perf_counter(), self.epoch  # of this start, for the time that is left
        self.weights_origin = random_origin()
        if is_fresh:  # now, so that a wrong file leaves an older run where it is
            self._load_starting_weights()
        self.ema = ModelEMA(self.model, ramp=self._ema_ramp()) if mcfg.useEMA else None
        self.stepper = self._make_stepper()
        self.watch = Watch(self.folder.health, mcfg.classList or ())
        self._drawn_at = -math.inf
        self.progress: EpochProgress | None = None  # of the epoch that is not saved yet
        self._inside: dict[str, Any] | None = None  # the progress that a checkpoint was saved with
        self.interrupts = InterruptHandler()

    def run(self) -> RunFolder:
        """Train up to maxEpoch; weights, curves and metrics are in the run's folder. A finished run is left alone."""
        with RunLock(self.folder.path) as lock:
            lock.hold()
            self._start_or_resume()
            if self.epoch >= self.mcfg.maxEpoch:
                log.info(
                    "already trained: %d of %d epochs; a larger maxEpoch%s goes on",
                    self.epoch, self.mcfg.maxEpoch, " with trainMinutes=none" if self.mcfg.trainMinutes else "",
                )  # fmt: skip
                return self.folder
            log.info("%s", self.precision.why)
            self._try_teacher()
            self.folder.write_config(self.mcfg)
            self.started, self.first_epoch = time.perf_counter(), self.epoch
            with closing(self.loader), self.interrupts:  # ends its worker processes, also when an epoch fails
                try:
                    self._train()
                except Interrupted as interruption:
                    raise Interrupted(self._save_before_leaving(interruption)) from None
        return self.folder

    def _train(self) -> None:
        while self.epoch < self.mcfg.maxEpoch:
            bad = self._train_epoch(self.epoch)
            if bad is not None:
                self._answer(bad)
            self.interrupts.stop_if_requested()

    def _train_epoch(self, epoch: int) -> BadStep | None:
        """Nothing, or the bad step that ended it, without its traceback, which would hold on to the loader."""
        try:
            self.preEpochSetup(epoch)
            row = self.fit_one_epoch(epoch)
            self.validate(epoch, row)
            self.save(epoch, row)
        except BadStep as bad:
            return bad.with_traceback(None)
        return None

    def preEpochSetup(self, epoch: int) -> None:
        """Frozen or not, the learning rate, and the epoch's order of images."""
        if epoch in self.mcfg.backboneFreezeEpochs:
            self.model.freezeBackbone()
        else:
            self.model.unfreezeBackbone()
        self.model.train()
        self.objective.set_epoch(epoch)
        self.rate = self.schedule.rate(epoch)
        inside, self._inside = self._inside, None
        self.progress = EpochProgress(inside)
        if inside is None:
            self.watch.start_epoch(self.stepper)
        self.stepper.guard.stand_at(epoch, self.progress.batches)
        self.batch_index = self._batches_before(epoch) + self.progress.batches
        self.loader.set_epoch(epoch, self.progress.batches)

    def _batches_before(self, epoch: int) -> int:
        return (epoch - self.mcfg.startEpoch) * len(self.loader)

    def fit_one_epoch(self, epoch: int) -> Row:
        """One pass over the training split; the row of its averages."""
        progress = self.progress or EpochProgress()
        with progress_bar(self._title(epoch), len(self.loader), self.quiet) as bar:
            bar.update(progress.batches)
            for batch in self.loader:
                self.stepper.guard.stand_at(epoch, self.loader.next_batch - 1)
                self.watch.look_at_inputs(batch, progress)
                is_left_out = self.watch.is_left_out(epoch, batch)
                values = {} if is_left_out else self.train_step(batch.to(self.device))
                self._take(progress, values, len(batch))
                progress.batches = self.loader.next_batch
                self.batch_index = self._batches_before(epoch) + progress.batches
                bar.update()
                bar.set_postfix(bar_text(progress, self.objective.parts), refresh=False)
                if self.interrupts.signal_name is not None:
                    self._take(progress, self.stepper.settle())
                    self.stepper.check_state()
                    self.interrupts.stop_if_requested()
        self._take(progress, self.stepper.flush())  # an epoch ends with a step: no gradient waits for the next
        self.watch.tell_first_batches()
        return {
            "epoch": epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "frozen": self.model.is_backbone_frozen,
            **{name: round(value, 6) for name, value in progress.means.values().items()},
            **self.watch.end_epoch(self.stepper, progress),
            "images_per_s": round(progress.images_per_s, 2),
            "seconds": round(progress.seconds, 3),
        }

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One batch into the gradients, and into the weights when enough are in; what `Stepper.add` returns."""
        if self.on_first_batch is not None:
            log.info("%s", self.on_first_batch(batch, self._step_setup(), self.folder.health))
            self.on_first_batch = None
        pace = self.warm_up.pace(self.batch_index, self.rate)
        self.batch_index += 1
        set_pace(self.optimizer, pace)
        with self.watch.looking_at(batch):
            return self.stepper.add(batch, pace.accumulate)

    def _take(self, progress: EpochProgress, values: dict[str, torch.Tensor], num_images: int = 0) -> None:
        progress.add(values, num_images)
        self.watch.take(self.stepper, values, progress)

    def _answer(self, bad: BadStep) -> None:
        """Go back to where it was healthy, when that is asked for and helps; else say all about it and stop."""
        self.loader.close()
        self.watch.tell_first_batches()
        text = str(bad)
        if self.on_bad_step is not None:
            text = self.on_bad_step(bad, self._step_setup(), self.folder.health, self.watch.last_spike)
        if self.mcfg.onBadStep == "rewind" and self._rewind(bad):
            return
        log.error("%s", text)
        self._draw_curves()
        raise bad

    def _rewind(self, bad: BadStep) -> bool:
        """To the last checkpoint on which the bad batch stays finite; False when there is none, or no end to it."""
        for path in (self.folder.last, self.folder.previous) if self.watch.may_rewind else ():
            try:
                self._go_on_from(load_checkpoint(path))
            except UserError as error:  # damaged or missing
                log.warning("%s", error)
                continue
            if self.stepper.stays_finite_on(bad.snapshot.batch):
                self.watch.rewound_for(bad)
                self.progress = None  # all that there is to save is saved
                self.started, self.first_epoch = time.perf_counter(), self.epoch
                log.warning("%s; back to %s, without this batch (rewind %d)", bad, path, self.watch.rewinds)
                return True
            log.warning("%s: this batch is not finite with it either", path)
        return False

    def _step_setup(self) -> StepSetup:
        is_summed, config = self.mcfg.lossReduction == "sum", json.dumps(self.mcfg.to_dict())
        file = self.weights_origin["path"]
        return StepSetup(self.model, self.objective, self.precision.dtype, is_summed, config, file)

    def _within_minutes(self, mcfg: ModelConfig, begun: dict[str, Any] | None) -> ModelConfig:
        is_lost = begun is None and self.precision.seconds is None  # nothing whole to go on from: run() will say so
        if mcfg.trainMinutes is None or is_lost:
            return mcfg
        seconds = self.precision.seconds or 0.0  # 0 where a run goes on, which keeps its number of epochs
        return within_minutes(mcfg, seconds, *images_an_epoch(mcfg, self.splits), begun)

    def _ema_ramp(self) -> float:
        epochs = self.mcfg.maxEpoch - self.mcfg.startEpoch
        return self.mcfg.emaRamp or ramp_for(round(epochs * len(self.loader) / self.warm_up.accumulate))

    def _make_evaluator(self) -> Evaluator:
        name = self.mcfg.validationSplitName
        return Evaluator.for_validation(
            self.mcfg, self.precision.dtype, build_images(self.mcfg, name, self.splits[name])
        )

    def _make_stepper(self) -> Stepper:
        is_summed = self.mcfg.lossReduction == "sum"
        precision, clip = self.precision.dtype, self.mcfg.gradientClip
        patience = self.mcfg.badStepsInARow if self.mcfg.onBadStep == "skip" else 1
        guard = Guard(self.model, patience=patience, interval=self.mcfg.healthInterval)
        return Stepper(self.model, self.objective, self.optimizer, self.ema, precision, clip, is_summed, guard)

    def _try_teacher(self) -> None:
        if isinstance(self.objective, DistillationObjective):
            name = split_to_try(self.mcfg)
            check_teacher(self.objective.teacher, self.mcfg, name, self.splits[name])

    def validate(self, epoch: int, row: Row) -> None:
        """Fill the row with the figures of the validation split, where this epoch is validated, and keep the best."""
        row.update(map50=None, map50_95=None, is_best=False)
        is_last = epoch == self.mcfg.maxEpoch - 1
        if self.evaluator is not None and (is_last or (epoch + 1) % self.mcfg.validationInterval == 0):
            result = self._evaluate(self.evaluator, epoch)
            fitness = finite_or_none(result.map50_95)
            row.update(map50=None if fitness is None else result.map50, map50_95=fitness)
            if sentence := frozen_figure(self.history, epoch, fitness):
                log.warning("%s", sentence)
            row["is_best"] = fitness is not None and (self.best is None or fitness > self.best)
        if row["is_best"]:
            self.best = row["map50_95"]
        # A run that is not validated has only its loss to tell whether it still gets anywhere.
        loss = row.get("loss")  # none where every step of the epoch was left out
        self.schedule.observe(row["map50_95"] if self.evaluator is not None else None if loss is None else -loss)

    def _evaluate(self, evaluator: Evaluator, epoch: int) -> EvalResult:
        name = self.mcfg.validationSplitName
        try:
            return evaluator.evaluate(
                self.evaluated_model,
                name,
                annotations=self.splits[name],
                on_batch=self.interrupts.stop_if_requested,  # nothing has changed yet: it is done again
            )
        except FloatingPointError as error:
            whose = "the weights" if self.ema is None else "the average"
            told = f"validation of {whose} after epoch {epoch + 1}: {error}"
            raise FloatingPointError(f"{told}; the checkpoints of the run are from before") from error

    def save(self, epoch: int, row: Row) -> None:
        """The checkpoint first, then everything that follows from it; each file is whole or not there."""
        self.stepper.check_state()
        self.epoch = epoch + 1
        self.history.append(row)
        self.progress = None
        self.folder.save(self._checkpoint(), is_best=row["is_best"])
        self._write_history()
        log.info("%s", epoch_line(row, self.objective.parts, self.mcfg.maxEpoch, self._seconds_left()))

    def _save_before_leaving(self, interruption: Interrupted) -> str:
        """Save what the epoch has come to, where that is not done; what to tell the user."""
        if self.progress is None:
            where = f"after epoch {self.epoch}/{self.mcfg.maxEpoch}"
        else:
            self.folder.save(self._checkpoint())
            batches = f"{self.progress.batches} of {len(self.loader)} batches"
            where = f"in epoch {self.epoch + 1}/{self.mcfg.maxEpoch} after {batches}"
        self._draw_curves()
        return f"interrupted by {interruption} and saved {where}; the same command goes on from there"

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch + 1}/{self.mcfg.maxEpoch}{' frozen' if self.model.is_backbone_frozen else ''}"

    def _seconds_left(self) -> float:
        an_epoch = (time.perf_counter() - self.started) / (self.epoch - self.first_epoch)  # validation and saving, too
        return (self.mcfg.maxEpoch - self.epoch) * an_epoch

    @property
    def evaluated_model(self) -> torch.nn.Module:
        """The average where one is kept, else the weights themselves."""
        return self.ema.model if self.ema is not None else self.model

    def _start_or_resume(self) -> None:
        self.folder.remove_drafts()
        checkpoint, changes = self.folder.checkpoint_to_resume(self.mcfg, self.data)
        if checkpoint is None:
            seed_random_states(self.mcfg.seed)
            # The start is saved, too: what was measured for it, and where a first epoch that is damaged goes back to.
            self.folder.write_config(self.mcfg)
            self.folder.save(self._checkpoint())
            self.watch.begin()
            return
        self._go_on_from(checkpoint)
        if not self.folder.restore_best(checkpoint):
            self.best = None
        self._write_history()  # again, for a run that was stopped between its weights and its curves
        inside = f" and {self._inside['batches']} batches" if self._inside else ""
        changed = f", with {changes}" if changes else ""
        log.info("going on with %s after epoch %d%s%s", self.folder.path, self.epoch, inside, changed)

    def _write_history(self) -> None:
        self.folder.write_history(self.history)
        is_finished = self.epoch >= self.mcfg.maxEpoch
        if is_finished or time.monotonic() - self._drawn_at >= DRAWN_EVERY:
            self._draw_curves()

    def _draw_curves(self) -> None:
        plot_curves(self.history, self.folder.curves, self.objective.parts)
        self._drawn_at = time.monotonic()

    def _load_starting_weights(self) -> None:
        if self.start is None:
            return
        log.info("%s", load_weights(self.model, self.start.path, self.mcfg.classList, self.start.backbone_only))
        self.weights_origin = file_origin(self.start.path)
        log.info("starting weights: %s", origin_text(self.weights_origin))

    def _checkpoint(self) -> dict[str, Any]:
        """All that the run needs to go on from here."""
        return {**self._about(), **self._state()}

    def _about(self) -> dict[str, Any]:
        """What every weights file says of itself."""
        return {
            "epoch": self.epoch,
            "fitness": self.history[-1]["map50_95"] if self.history else None,
            "config": json.dumps(self.mcfg.to_dict()),
            "class_list": list(self.mcfg.classList or ()),
            "phase": self.mcfg.phase,
            "weights_origin": self.weights_origin,
            "data": self.data,
            "commit": code_commit(),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "ema_steps": self.ema.steps if self.ema else 0,
            "teacher": self.objective.teacher_checksum,
            "learned": [module.state_dict() for module in self.objective.extra_modules],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.stepper.state_dict(),
            "precision": dtype_name(self.precision.dtype),
            "schedule": self.schedule.state_dict(),
            "best": self.best,
            "history": json.dumps(self.history),
            **self.watch.state_dict(),
            "random": random_states(),
            "progress": self.progress.state_dict() if self.progress else None,
            "gradients": [parameter.grad for parameter in self._trained()] if self.stepper.pending else None,
            "pending": self.stepper.pending,
            "pending_images": self.stepper.pending_images,
        }

    def _go_on_from(self, checkpoint: FileParts) -> None:
        """Put everything back as it was. Raises `UserError` for parts that do not fit network or optimizer."""
        with reading(checkpoint.path, "a checkpoint of this run"):
            self._restore(checkpoint)

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.model.load_state_dict(checkpoint["model"])
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint["ema"], checkpoint["ema_steps"])
        if checkpoint.get("teacher") != self.objective.teacher_checksum:
            raise UserError(
                f"{self.mcfg.teacherModelFile}: is another teacher than the one this run began with; put that one "
                "back, or start afresh with --nobuf"
            )
        for module, state in zip(self.objective.extra_modules, checkpoint.get("learned", ()), strict=True):
            module.load_state_dict(state)
        load_optimizer(self.optimizer, checkpoint["optimizer"])
        self.precision = resumed_precision(checkpoint["precision"], self.device)
        if self.evaluator is not None:
            self.evaluator.precision = self.precision.dtype
        self.objective.compute_in(self.precision.dtype)
        self.stepper = self._make_stepper()
        self.stepper.load_state_dict(checkpoint["scaler"])
        if checkpoint["precision"] != dtype_name(self.precision.dtype):
            checkpoint = {**checkpoint, "pending": 0, "gradients": None}  # they were scaled for the other type
        self.stepper.pending = pending = checkpoint["pending"]
        self.stepper.pending_images = self._waiting_images(checkpoint, pending)
        for parameter, gradient in zip(self._trained(), checkpoint["gradients"] or (), strict=False):
            parameter.grad = None if gradient is None else gradient.to(self.device)
        self.schedule.load_state_dict(checkpoint["schedule"])
        self.epoch, self.best = checkpoint["epoch"], checkpoint["best"]
        self.history = json.loads(checkpoint["history"])
        self.watch.load_state_dict(checkpoint)
        self.weights_origin = checkpoint["weights_origin"]
        self._inside = checkpoint["progress"]
        restore_random_states(checkpoint["random"])

    def _waiting_images(self, checkpoint: dict[str, Any], pending: int) -> tuple[int, int]:
        """The images whose gradients wait, and the weight 1 of their mean in images (`Stepper.pending_images`).

        Earlier versions did not keep them, and had divided each gradient by the number of batches of a step already.
        """
        if not pending or "pending_images" in checkpoint:
            return tuple(checkpoint.get("pending_images", (0, 0)))
        last = self._batches_before(checkpoint["epoch"]) + checkpoint["progress"]["batches"] - 1
        batches_a_step = self.warm_up.pace(last, self.rate).accumulate
        return pending * self.mcfg.batchSize, batches_a_step * self.mcfg.batchSize

    def _trained(self) -> Iterator[torch.nn.Parameter]:
        """The student's parameters, and behind them those that are learned beside it."""
        return chain(self.model.parameters(), *(module.parameters() for module in self.objective.extra_modules))
