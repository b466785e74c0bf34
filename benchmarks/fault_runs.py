"""Short trainings on drawn data with a fault in one step, and what Mars reports: used by bad_values.py."""

import collections
import contextlib
import hashlib
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.injections import ALL, QUIET, Injection
from config.load import load_config
from config.mconfig import ModelConfig
from debug.tracer.report import report_bad_step
from dl.check import check_data
from dl.label_selection import splits_to_train
from ops.batch import Batch
from runs.checkpoint import load_checkpoint
from runs.folder import RunFolder
from scenes.dataset import AIRCRAFT, make_data_set
from train.guard import BadStep
from train.progress import EpochProgress
from train.setup import TrainingSetup, build_training
from train.trainer import Trainer

SCENES = 12
FAULT_STEP = 2  # step of the epoch, counted from 1, in which the fault is injected
QUIET_STEPS = 3  # steps that a harmless fault must survive


class EnoughSteps(Exception):
    """Ends a run after `QUIET_STEPS` steps."""


@dataclass
class FaultOutcome:
    """Reported text by row or name, and the parts that changed or are not finite although the step was refused."""

    reported: dict[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] | None = None  # None: not checked

    def missing(self, injection: Injection) -> list[str]:
        """Expected rows that were not reported, and protected parts that changed. Empty: the fault was caught."""
        missing = [name for name, text in injection.expected.items() if not self._is_reported(name, text)]
        return missing + [name for name in self.changed or () if name in injection.protected]

    def _is_reported(self, name: str, text: str) -> bool:
        reported = self.reported.get(name, "")
        return reported == text if name == "images" else text in reported  # the bad image, not the whole batch


class FaultRuns:
    """Drawn data, a run of one epoch without and one with a teacher, and copies of them to inject faults into."""

    def __init__(self, folder: Path, size: int, device: str = "cpu"):
        self.folder, self.size, self.device = folder, size, device
        make_data_set(folder / "demo-data", SCENES, seed=1, size=max(size, 96), num_workers=1)

    def config(self, name: str, is_student: bool = False, **settings: Any) -> ModelConfig:
        values = {
            "inputShape": self.size, "batchSize": 2, "maxEpoch": 2, "warmupEpochs": 0, "dcore": 0, "paintImages": False,
            "epochValidation": False, "device": self.device, "precision": "float32", "trainSplitName": "train",
            "trainMinutes": None,
        }  # fmt: skip
        if is_student:
            values |= dict.fromkeys(("teacherModelFile", "checkpointModelFile"), str(self.base_run(False).last))
        values |= settings
        if values.get("trainSelectedClasses") == "rarest":
            values["trainSelectedClasses"] = [self.rarest_class()]
        recipe = "demo.nano.distillation" if is_student else "demo.nano"
        return load_config(recipe, str(self.folder), None, values, name)

    def base_run(self, is_student: bool) -> RunFolder:
        """A run of one epoch. It is trained at the first call."""
        name = "student" if is_student else "plain"
        folder = RunFolder(self.folder / name)
        if not folder.last.exists():
            with captured_warnings():
                Trainer(self.config(name, is_student, maxEpoch=1), quiet=True).run()
        return folder

    def trainer(self, injection: Injection, **settings: Any) -> Trainer:
        """A trainer before its first epoch, or before its second with the base run behind it."""
        if not injection.is_fresh:
            shutil.copytree(self.base_run(injection.is_student).path, self.folder / injection.name)
        values = {**injection.settings, **settings}
        mcfg = self.config(injection.name, injection.is_student, **values)
        return Trainer(mcfg, quiet=True, on_bad_step=report_bad_step)

    def setup(self, injection: Injection, **settings: Any) -> TrainingSetup:
        """The setup that the doctor checks."""
        mcfg = self.config(f"{injection.name}-doctor", injection.is_student, **{**injection.settings, **settings})
        return build_training(mcfg, check_data(mcfg, splits_to_train(mcfg)), errors={})

    def rarest_class(self) -> str:
        """The class with the fewest training objects, but at least one."""
        mcfg = self.config("count")
        annotations = check_data(mcfg, ["train"]).splits["train"]
        labels = [label for annotation in annotations for label in annotation.labels.tolist()]
        return AIRCRAFT[min(collections.Counter(labels).items(), key=lambda pair: (pair[1], pair[0]))[0]]

    def changed_weights(self, change: Callable[[dict[str, Any]], None]) -> str:
        """Path of a weights file: those of the run without a teacher after `change`."""
        content = {key: value.clone() for key, value in load_checkpoint(self.base_run(False).last)["model"].items()}
        change(content)
        path = self.folder / "changed.pth"
        torch.save(content, path)
        return str(path)


class FaultyStep:
    """Replaces `train_step` of a trainer: injects the fault in its step and records the state before each step."""

    def __init__(self, trainer: Trainer, injection: Injection, patches: ExitStack, warnings: list[str]):
        self.trainer, self.injection, self.patches, self.warnings = trainer, injection, patches, warnings
        self.train_step = trainer.train_step
        self.calls = self.faulty_steps = self.without_boxes = 0
        self.before: dict[str, Any] = {}
        self.image = ""
        self.values: list[dict[str, float]] = []

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        injection, trainer = self.injection, self.trainer
        self.calls += 1
        if self.calls < (1 if injection.is_fresh else FAULT_STEP):
            return self.train_step(batch)
        if self.faulty_steps == 0:
            self.warnings.clear()  # they are from before the fault
            if injection.inject is not None:
                injection.inject(trainer, self.patches)
        if injection.before_each is not None:
            injection.before_each(trainer)
        if injection.change_batch is not None:
            batch, self.image = injection.change_batch(batch), batch.image_ids[-1]
        self.faulty_steps += 1
        self.without_boxes += not batch.valid.any()
        self.before = state_of(trainer)
        values = self.train_step(batch)
        self.values.append({name: value.item() for name, value in values.items()})
        if injection.group == QUIET and self.faulty_steps == QUIET_STEPS:
            trainer._add(EpochProgress(), values)  # this call also looks for spikes
            raise EnoughSteps
        return values


def tensors_of(trainer: Trainer) -> dict[str, list[torch.Tensor]]:
    """Weights and statistics, momentum and EMA. A refused step must change none of them."""
    networks = [trainer.model, *trainer.objective.extra_modules]
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    return {
        "weights": [tensor for network in networks for tensor in network.state_dict().values()],
        "momentum": [value for value in states if isinstance(value, torch.Tensor)],
        "EMA": list(trainer.ema.state_dict().values()) if trainer.ema else [],
    }


def state_of(trainer: Trainer) -> dict[str, str]:
    """Digests of everything that a refused step must not change. Bits are compared, so NaN can equal NaN."""
    files = [trainer.folder.metrics, trainer.folder.config, *sorted((trainer.folder.path / "weights").iterdir())]
    contents = {name: [digest_of(tensor) for tensor in tensors] for name, tensors in tensors_of(trainer).items()}
    contents["EMA"].append(str(trainer.ema.steps if trainer.ema else None))
    contents["files"] = [
        f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files if path.exists()
    ]
    return {name: " ".join(lines) for name, lines in contents.items()}


def digest_of(tensor: torch.Tensor) -> str:
    """Digest of the bits, with dtype and shape."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{hashlib.sha256(content).hexdigest()} {tensor.dtype} {tuple(tensor.shape)}"


@contextlib.contextmanager
def captured_warnings() -> Iterator[list[str]]:
    """Warnings and errors that Mars logs within the block. They are not printed."""
    messages: list[str] = []

    class ListHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    log, handler = logging.getLogger("mars"), ListHandler(logging.WARNING)
    log.addHandler(handler)
    try:
        yield messages
    finally:
        log.removeHandler(handler)


def run_with_fault(runs: FaultRuns, injection: Injection) -> FaultOutcome:
    """Train with the fault until it is noticed or the run ends."""
    with ExitStack() as patches, captured_warnings() as warnings:
        trainer = runs.trainer(injection)
        step = trainer.train_step = FaultyStep(trainer, injection, patches, warnings)
        reported: dict[str, str] = {"noticed": "no: the training ran to its end"}
        try:
            trainer.run()
        except EnoughSteps:
            return FaultOutcome(_quiet_rows(step, warnings))
        except BadStep as bad:
            reported = {"message": str(bad), **report_rows(bad.report)}
        except Exception as error:  # any error is what the user would see
            reported = {"error": f"{type(error).__name__}: {error}"}
        after, tensors = state_of(trainer), tensors_of(trainer)
        nonfinite = [name for name, values in tensors.items() if not all(bool(v.isfinite().all()) for v in values)]
        changed = tuple(name for name in ALL if step.before.get(name) != after[name] or name in nonfinite)
        reported["left"] = f"not finite: {', '.join(nonfinite)}" if nonfinite else "all finite"
        reported["warned"] = "; ".join(text for text in warnings if text.startswith("spike"))
        reported["step"] = f"{step.faulty_steps} with the fault"
        rows = {name: text.replace(step.image or "\0", "{image}") for name, text in reported.items()}
        return FaultOutcome(rows, changed)


def _quiet_rows(step: FaultyStep, warnings: Sequence[str]) -> dict[str, str]:
    numbers = [value for values in step.values for value in values.values()]
    is_finite = all(map(math.isfinite, numbers)) and all("grad_norm" in values for values in step.values)
    alarms = [text for text in warnings if not text.startswith(("teacher: ", "baseClasses are"))]
    last = ", ".join(f"{name} {value:.4g}" for name, value in step.values[-1].items())
    rows = {"finite": "yes" if is_finite else "no", "alarms": "; ".join(alarms) or "none", "last step": last}
    if step.without_boxes:
        rows["without boxes"] = f"{step.without_boxes} of {step.faulty_steps} batches"
    return rows


def report_rows(report: str) -> dict[str, str]:
    """Rows of a report by title. `phase`: where the first non-finite value appeared; `before`: earlier warnings."""
    rows: dict[str, str] = {}
    for line in report.splitlines():
        if line.startswith("bad value traced: "):
            rows["phase"] = line.removeprefix("bad value traced: ")
        elif line.startswith(("nothing bad: ", "the step raised")):
            rows["phase"] = line
        elif line.startswith("before this step: "):
            rows["before"] = line.removeprefix("before this step: ")
        elif line.startswith("likely cause of later errors: "):
            rows["likely"] = line.removeprefix("likely cause of later errors: ")
        elif line[:2] == "  " and line[2:3] != " " and line[13:14] == " " and line[14:15] != " " and "phase" in rows:
            rows.setdefault(line[2:14].strip(), line[14:])
    return rows
