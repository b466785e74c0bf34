"""Everything that changes during a training, and its way into a checkpoint and back."""

import json
import logging
from typing import Any

import torch

from config.errors import UserError, reading
from ops.device import dtype_name, resumed_precision
from ops.random_states import random_states, restore_random_states
from runs.checkpoint import FileParts
from runs.folder import RunFolder
from runs.provenance import code_commit, file_origin, identity_of, origin_text, random_origin
from train.budget import EpochPlan, PlanSettings, earlier_plan
from train.ema import ModelEMA, ramp_for
from train.guard import Guard
from train.monitor import Monitor
from train.opt import load_optimizer
from train.progress import EpochProgress
from train.setup import TrainingSetup
from train.step import Stepper

log = logging.getLogger("mars")

Row = dict[str, Any]  # the figures of an epoch, in history and metrics.jsonl


class TrainingState:
    """The parts of a training that change, built from a `TrainingSetup`."""

    def __init__(self, setup: TrainingSetup, folder: RunFolder, split_names: list[str]):
        mcfg = self.mcfg = setup.mcfg
        self.folder, self.device, self.precision = folder, setup.device, setup.precision
        self.model, self.objective, self.optimizer = setup.model, setup.objective, setup.optimizer
        self.schedule, self.warm_up, self.loader = setup.schedule, setup.warm_up, setup.loader
        self.splits, self.data = setup.data.splits, identity_of(setup.data, split_names)
        self.weights_origin = random_origin()
        if setup.start is not None:
            log.info("%s", setup.load_report)
            self.weights_origin = file_origin(setup.start.path)
            log.info("starting weights: %s", origin_text(self.weights_origin))
        self.plan = EpochPlan(PlanSettings.of(mcfg), mcfg.validationInterval if mcfg.epochValidation else 1)
        # After the starting weights are loaded: the EMA starts as a copy of them.
        self.ema = ModelEMA(self.model) if mcfg.useEMA else None
        self.fit_ema_ramp()
        self.stepper = self._build_stepper()
        self.monitor = Monitor(folder.health, mcfg.classList or ())
        self.epoch = mcfg.startEpoch  # the next epoch
        self.rate = 0.0  # the learning rate of the epoch
        self.best: float | None = None
        self.history: list[Row] = []
        self.progress: EpochProgress | None = None  # of an epoch that is not saved yet
        self.resumed_progress: dict[str, Any] | None = None  # of an epoch that a checkpoint was saved in

    def fit_ema_ramp(self) -> None:
        """Fit the EMA's ramp, unless it is set, to the planned length of the training (see train/ema.py)."""
        if self.ema is not None:
            steps = (self.plan.end - self.mcfg.startEpoch) * len(self.loader) / self.warm_up.accumulate
            self.ema.ramp = self.mcfg.emaRamp or ramp_for(round(steps))

    @property
    def evaluated_model(self) -> torch.nn.Module:
        """The EMA if there is one, else the network."""
        return self.ema.model if self.ema is not None else self.model

    def batches_before(self, epoch: int) -> int:
        """Batches of all epochs before this one."""
        return (epoch - self.mcfg.startEpoch) * len(self.loader)

    def checkpoint(self) -> dict[str, Any]:
        """Everything that the run needs to continue from here."""
        # Gradients are large; they are saved only where an epoch is interrupted between two optimizer steps.
        is_pending = self.stepper.pending > 0
        return {
            # `best.pth` holds these entries and the weights.
            "epoch": self.epoch,
            "fitness": self.history[-1]["map50_95"] if self.history else None,
            "config": json.dumps(self.mcfg.to_dict()),
            "class_list": list(self.mcfg.classList or ()),
            "phase": self.mcfg.phase,
            "weights_origin": self.weights_origin,
            "data": self.data,
            "commit": code_commit(),
            # The rest is for `last.pth`, from which a run continues. Its names never change: old files have them.
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "ema_steps": self.ema.steps if self.ema else 0,
            "teacher": self.objective.teacher_checksum,
            "learned": [module.state_dict() for module in self.objective.extra_modules],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.stepper.state_dict(),
            "precision": dtype_name(self.precision.dtype),
            "schedule": self.schedule.state_dict(),
            "plan": self.plan.state_dict(),
            "best": self.best,
            "history": json.dumps(self.history),
            **self.monitor.state_dict(),
            "random": random_states(),
            "progress": self.progress.state_dict() if self.progress else None,
            "gradients": [parameter.grad for parameter in self.stepper.parameters] if is_pending else None,
            "pending": self.stepper.pending,
            "pending_images": self.stepper.pending_images,
        }

    def restore(self, checkpoint: FileParts) -> None:
        """Continue from a checkpoint. Raises `UserError` if a part does not fit the network or the optimizer."""
        with reading(checkpoint.path, "a checkpoint of this run"):
            self.model.load_state_dict(checkpoint["model"])
            if self.ema is not None:
                self.ema.load_state_dict(checkpoint["ema"], checkpoint["ema_steps"])
            # A different teacher would silently change what the run is trained for.
            if checkpoint.get("teacher") != self.objective.teacher_checksum:
                raise UserError(
                    f"{self.mcfg.teacherModelFile}: is not the teacher that this run started with; restore that file, "
                    "or start again with --nobuf"
                )
            for module, state in zip(self.objective.extra_modules, checkpoint.get("learned", ()), strict=True):
                module.load_state_dict(state)
            self._restore_stepper(checkpoint)
            self.schedule.load_state_dict(checkpoint["schedule"])
            self.epoch, self.best = checkpoint["epoch"], checkpoint["best"]
            self.history = json.loads(checkpoint["history"])
            self.monitor.load_state_dict(checkpoint)
            self.weights_origin = checkpoint["weights_origin"]
            self.resumed_progress = checkpoint["progress"]
            plan = checkpoint["plan"] if "plan" in checkpoint else earlier_plan(checkpoint, self.plan.limits)
            self.plan.load_state_dict(plan, self.epoch, is_inside=self.resumed_progress is not None)
            self.fit_ema_ramp()
            # Last: building and loading the other parts may draw random numbers.
            restore_random_states(checkpoint["random"])

    def _restore_stepper(self, checkpoint: dict[str, Any]) -> None:
        """Optimizer, precision, and the gradients that wait for the next optimizer step."""
        load_optimizer(self.optimizer, checkpoint["optimizer"])
        self.precision = resumed_precision(checkpoint["precision"], self.device)
        # The precision may differ: another machine may lack the type that the run began with.
        self.objective.compute_in(self.precision.dtype)
        self.stepper = self._build_stepper()
        self.stepper.load_state_dict(checkpoint["scaler"])
        if checkpoint["precision"] != dtype_name(self.precision.dtype):
            checkpoint = {**checkpoint, "pending": 0, "gradients": None}  # they have the scale of the other precision
        self.stepper.pending = pending = checkpoint["pending"]
        self.stepper.pending_images = tuple(checkpoint.get("pending_images", (0, 0)))
        if pending and "pending_images" not in checkpoint:
            # Earlier versions did not save it, and divided each gradient by the number of batches per step.
            last = self.batches_before(checkpoint["epoch"]) + checkpoint["progress"]["batches"] - 1
            batches_per_step = self.warm_up.pace(last, self.rate).accumulate
            self.stepper.pending_images = pending * self.mcfg.batchSize, batches_per_step * self.mcfg.batchSize
        for parameter, gradient in zip(self.stepper.parameters, checkpoint["gradients"] or (), strict=False):
            parameter.grad = None if gradient is None else gradient.to(self.device)

    def _build_stepper(self) -> Stepper:
        mcfg = self.mcfg
        max_bad_steps = mcfg.badStepsInARow if mcfg.onBadStep == "skip" else 1
        return Stepper(
            self.model, self.objective, self.optimizer, self.ema, self.precision.dtype, mcfg.gradientClip,
            mcfg.lossReduction == "sum", Guard(self.model, max_bad_steps, mcfg.healthInterval),
        )  # fmt: skip
