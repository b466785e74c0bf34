"""Drawn data, short runs of them, and a trainer that is watched while a fault is in its steps: for bad_values.py."""

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

SCENES, STRUCK_AT, QUIET_STEPS = 12, 2, 3  # STRUCK_AT: step of the epoch in which the fault comes


class Enough(Exception):
    """So many steps were to be seen, and they are over."""


@dataclass
class Outcome:
    """What was said, by row or name; what moved, or is not finite, although the step was refused. None: not asked."""

    said: dict[str, str] = field(default_factory=dict)
    moved: tuple[str, ...] | None = None

    def missing(self, injection: Injection) -> list[str]:
        """What was expected and not said, or has moved; nothing when the fault was caught and named rightly."""
        missing = [name for name, text in injection.says.items() if not self._says(name, text)]
        return missing + [name for name in self.moved or () if name in injection.holds]

    def _says(self, name: str, text: str) -> bool:
        said = self.said.get(name, "")
        return said == text if name == "images" else text in said  # the bad image, not the whole batch


class Workshop:
    """Drawn data, one run of an epoch without a teacher and one with it, and copies of them to be struck."""

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
            values |= dict.fromkeys(("teacherModelFile", "checkpointModelFile"), str(self.begun(False).last))
        values |= settings
        if values.get("trainSelectedClasses") == "rarest":
            values["trainSelectedClasses"] = [self.rarest()]
        recipe = "demo.nano.distillation" if is_student else "demo.nano"
        return load_config(recipe, str(self.folder), None, values, name)

    def begun(self, is_student: bool) -> RunFolder:
        """A run of one epoch, trained when it is asked for first."""
        name = "student" if is_student else "plain"
        folder = RunFolder(self.folder / name)
        if not folder.last.exists():
            with hearing():
                Trainer(self.config(name, is_student, maxEpoch=1), quiet=True).run()
        return folder

    def trainer(self, injection: Injection, **settings: Any) -> Trainer:
        """About to train its first or second epoch."""
        if not injection.is_fresh:
            shutil.copytree(self.begun(injection.is_student).path, self.folder / injection.name)
        values = {**injection.settings, **settings}
        return Trainer(
            self.config(injection.name, injection.is_student, **values), quiet=True, on_bad_step=report_bad_step
        )

    def patient(self, injection: Injection, **settings: Any) -> TrainingSetup:
        """What the doctor looks at."""
        mcfg = self.config(f"{injection.name}-doctor", injection.is_student, **{**injection.settings, **settings})
        return build_training(mcfg, check_data(mcfg, splits_to_train(mcfg)))

    def rarest(self) -> str:
        """The class with the fewest training objects, of those that have one."""
        mcfg = self.config("count")
        labels = [label for one in check_data(mcfg, ["train"]).splits["train"] for label in one.labels.tolist()]
        return AIRCRAFT[min(collections.Counter(labels).items(), key=lambda pair: (pair[1], pair[0]))[0]]

    def spoilt_weights(self, change: Callable[[dict[str, Any]], None]) -> str:
        """A plain file of the weights of the run without a teacher, changed."""
        content = {key: value.clone() for key, value in load_checkpoint(self.begun(False).last)["model"].items()}
        change(content)
        path = self.folder / "spoilt.pth"
        torch.save(content, path)
        return str(path)


class Struck:
    """Stands in for `train_step` of a trainer: puts the fault in when its step comes, and remembers all before each."""

    def __init__(self, trainer: Trainer, injection: Injection, patches: ExitStack, heard: list[str]):
        self.trainer, self.injection, self.patches, self.heard = trainer, injection, patches, heard
        self.train_step = trainer.train_step
        self.calls = self.struck = self.without_boxes = 0
        self.before: dict[str, Any] = {}
        self.image = ""
        self.values: list[dict[str, float]] = []

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        injection, trainer = self.injection, self.trainer
        self.calls += 1
        if self.calls < (1 if injection.is_fresh else STRUCK_AT):
            return self.train_step(batch)
        if self.struck == 0:
            self.heard.clear()  # that was before the fault
        if self.struck == 0 and injection.put_in is not None:
            injection.put_in(trainer, self.patches)
        if injection.each is not None:
            injection.each(trainer)
        if injection.spoil is not None:
            batch, self.image = injection.spoil(batch), batch.image_ids[-1]
        self.struck += 1
        self.without_boxes += not batch.valid.any()
        self.before = state_of(trainer)
        values = self.train_step(batch)
        self.values.append({name: value.item() for name, value in values.items()})
        if injection.group == QUIET and self.struck == QUIET_STEPS:
            trainer._take(EpochProgress(), values)  # spikes are looked for there
            raise Enough
        return values


def tensors_of(trainer: Trainer) -> dict[str, list[torch.Tensor]]:
    """Weights and statistics, momentum and average; a refused step must move none of them."""
    networks = [trainer.model, *trainer.objective.extra_modules]
    momentum = [one for state in trainer.optimizer.state.values() for one in state.values()]
    return {
        "weights": [one for network in networks for one in network.state_dict().values()],
        "momentum": [one for one in momentum if isinstance(one, torch.Tensor)],
        "average": list(trainer.ema.state_dict().values()) if trainer.ema else [],
    }


def state_of(trainer: Trainer) -> dict[str, str]:
    """Digests of all that a refused step must not move: NaN equals NaN only bit for bit."""
    files = [trainer.folder.metrics, trainer.folder.config, *sorted((trainer.folder.path / "weights").iterdir())]
    contents = {name: [digest_of(one) for one in tensors] for name, tensors in tensors_of(trainer).items()}
    contents["average"].append(str(trainer.ema.steps if trainer.ema else None))
    contents["files"] = [
        f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files if path.exists()
    ]
    return {name: " ".join(lines) for name, lines in contents.items()}


def digest_of(tensor: torch.Tensor) -> str:
    """Of its bits, its type and its shape."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{hashlib.sha256(content).hexdigest()} {tensor.dtype} {tuple(tensor.shape)}"


@contextlib.contextmanager
def hearing() -> Iterator[list[str]]:
    """Warnings and errors of the program within the block, instead of on the screen."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    log, ear = logging.getLogger("mars"), Ear(logging.WARNING)
    log.addHandler(ear)
    try:
        yield heard
    finally:
        log.removeHandler(ear)


def strike(shop: Workshop, injection: Injection) -> Outcome:
    """Train with the fault until it is noticed, or the run is over."""
    with ExitStack() as patches, hearing() as heard:
        trainer = shop.trainer(injection)
        struck = trainer.train_step = Struck(trainer, injection, patches, heard)
        said: dict[str, str] = {"noticed": "no: the training went on to its end"}
        try:
            trainer.run()
        except Enough:
            return Outcome(_calm(struck, heard))
        except BadStep as bad:
            said = {"message": str(bad), **rows_of(bad.report)}
        except Exception as error:  # whatever it is, it is what was said
            said = {"error": f"{type(error).__name__}: {error}"}
        after, tensors = state_of(trainer), tensors_of(trainer)
        spoilt = [name for name, values in tensors.items() if not all(bool(one.isfinite().all()) for one in values)]
        moved = tuple(name for name in ALL if struck.before.get(name) != after[name] or name in spoilt)
        said["left"] = f"not finite: {', '.join(spoilt)}" if spoilt else "all finite"
        said["warned"] = "; ".join(text for text in heard if text.startswith("spike"))
        said["step"] = f"{struck.struck} with the fault"
        return Outcome({name: text.replace(struck.image or "\0", "{image}") for name, text in said.items()}, moved)


def _calm(struck: Struck, heard: Sequence[str]) -> dict[str, str]:
    numbers = [value for values in struck.values for value in values.values()]
    is_finite = all(map(math.isfinite, numbers)) and all("grad_norm" in values for values in struck.values)
    alarms = [text for text in heard if not text.startswith(("teacher: ", "baseClasses are"))]
    last = ", ".join(f"{name} {value:.4g}" for name, value in struck.values[-1].items())
    told = {"finite": "yes" if is_finite else "no", "alarms": "; ".join(alarms) or "none", "last step": last}
    if struck.without_boxes:
        told["without boxes"] = f"{struck.without_boxes} of {struck.struck} batches"
    return told


def rows_of(page: str) -> dict[str, str]:
    """The rows of a page by their titles; what was born where is `phase`, what was noticed before it `before`."""
    rows: dict[str, str] = {}
    for line in page.splitlines():
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
