"""The training loop: preEpochSetup -> fit_one_epoch -> validate -> save, from the last finished epoch to maxEpoch."""

import json
import logging
import subprocess
import time
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from config.errors import UserError
from config.mconfig import ModelConfig
from config.places import FILE_SCHEME
from dl.check import CheckedData, check_data
from dl.loader import build_loader
from eval.evaluator import Evaluator
from eval.plots import plot_curves
from model import build_model
from model.pretrained import load_weights
from ops.batch import Batch
from ops.device import pick_device, use_all_cores
from train.checkpoint import random_states, restore_random_states, save_checkpoint, seed_random_states
from train.ema import ModelEMA
from train.loss import DetectionLoss
from train.opt import build_optimizer, set_learning_rate
from train.runfolder import RunFolder, data_identity
from train.sched import build_schedule

log = logging.getLogger("mars")

Row = dict[str, Any]  # one epoch in history and metrics.jsonl


class TrainingDiverged(FloatingPointError):
    """A loss or gradient that is not finite. The optimizer has not moved since the last good step."""


class Trainer:
    """Everything one run trains with. `run()` goes on where the run's folder ends, or starts it."""

    def __init__(self, mcfg: ModelConfig, data: CheckedData | None = None, quiet: bool = False):
        """`data`: the checked training and validation split, when they are at hand; else they are checked now."""
        if mcfg.modelName == "distillation":
            raise UserError("modelName=distillation: its losses are not there yet; train the tags full or teacher")
        self.mcfg, self.quiet = mcfg, quiet
        self.folder = RunFolder.of(mcfg)
        names = [mcfg.trainSplitName] + ([mcfg.validationSplitName] if mcfg.epochValidation else [])
        data = data or check_data(mcfg, names, cache_file=self.folder.data_check)
        self.splits = data.splits
        self.data = data_identity(data.source, names)
        self.device = pick_device(mcfg.device, mcfg.cuda)
        if self.device.type == "cpu":
            use_all_cores()

        self.model = build_model(mcfg).to(self.device).to(memory_format=torch.channels_last)
        self.loss = DetectionLoss.from_config(mcfg, self.model)
        self.optimizer = build_optimizer(mcfg, self.model)
        self.schedule = build_schedule(mcfg)
        self.loader = build_loader(
            mcfg, mcfg.trainSplitName, annotations=list(self.splits[mcfg.trainSplitName]), train=True
        )
        self.evaluator = Evaluator.for_validation(mcfg) if mcfg.epochValidation else None
        self.epoch = mcfg.startEpoch
        self.best: float | None = None
        self.history: list[Row] = []
        self.started, self.first_epoch = time.perf_counter(), self.epoch  # of this start, for the time that is left
        self.weights_origin = "random"
        if mcfg.nobuf or not self.folder.last.exists():  # now, so that a wrong file leaves an older run where it is
            self._load_starting_weights()
        self.ema = ModelEMA(self.model) if mcfg.useEMA else None

    def run(self) -> RunFolder:
        """Train up to maxEpoch; weights, curves and metrics are in the run's folder. A finished run is left alone."""
        self._start_or_resume()
        if self.epoch >= self.mcfg.maxEpoch:
            log.info("already trained: %d of %d epochs; a larger maxEpoch goes on", self.epoch, self.mcfg.maxEpoch)
            return self.folder
        self.folder.write_config(self.mcfg)
        self.started, self.first_epoch = time.perf_counter(), self.epoch
        with closing(self.loader):  # ends its worker processes, also when an epoch fails
            for epoch in range(self.epoch, self.mcfg.maxEpoch):
                self.preEpochSetup(epoch)
                row = self.fit_one_epoch(epoch)
                self.validate(epoch, row)
                self.save(epoch, row)
        return self.folder

    def preEpochSetup(self, epoch: int) -> None:
        """Frozen or not, the learning rate, and the epoch's order of images."""
        if epoch in self.mcfg.backboneFreezeEpochs:
            self.model.freezeBackbone()
        else:
            self.model.unfreezeBackbone()
        self.model.train()
        set_learning_rate(self.optimizer, self.schedule.rate(epoch))
        self.loader.set_epoch(epoch)

    def fit_one_epoch(self, epoch: int) -> Row:
        """One pass over the training split; the row of its averages."""
        started, images = time.perf_counter(), 0
        sums: dict[str, torch.Tensor] = {}
        with self._progress_bar(epoch) as bar:
            for step, batch in enumerate(self.loader):
                for name, value in self.train_step(batch.to(self.device)).items():
                    sums[name] = sums.get(name, 0) + value
                images += len(batch)
                bar.update()
                bar.set_postfix(self._bar_text(sums, step + 1, images / (time.perf_counter() - started)), refresh=False)
        seconds = time.perf_counter() - started
        means = {name: (value / len(self.loader)).item() for name, value in sums.items()}
        return {
            "epoch": epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "frozen": self.model.is_backbone_frozen,
            **{name: round(value, 6) for name, value in means.items()},
            "images_per_s": round(images / seconds, 2),
            "seconds": round(seconds, 3),
        }

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One batch into the weights; the loss, its parts and the gradient's norm, still on the device.

        Raises `TrainingDiverged` before the optimizer moves when the loss or a gradient is not finite.
        """
        images = batch.images.to(memory_format=torch.channels_last).float().div_(255)
        self.optimizer.zero_grad(set_to_none=True)
        out = self.loss(self.model(images), batch)
        scale = len(batch) if self.mcfg.lossReduction == "sum" else 1
        (out.total * scale).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.mcfg.gradientClip)
        if not torch.isfinite(out.total.detach() + norm):
            parts = ", ".join(f"{name} {value.item():.4g}" for name, value in out.parts.items())
            raise TrainingDiverged(
                f"loss or gradient not finite in epoch {self.epoch + 1}: {parts}, gradient norm {norm.item():.4g}, "
                f"images {', '.join(batch.image_ids)}; the weights are those of the step before"
            )
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        return {"loss": out.total.detach(), **out.parts, "grad_norm": norm}

    def validate(self, epoch: int, row: Row) -> None:
        """Fill the row with the figures of the validation split, where this epoch is validated, and keep the best."""
        row.update(map50=None, map50_95=None, is_best=False)
        is_last = epoch == self.mcfg.maxEpoch - 1
        if self.evaluator is not None and (is_last or (epoch + 1) % self.mcfg.validationInterval == 0):
            name = self.mcfg.validationSplitName
            result = self.evaluator.evaluate(self.evaluated_model, name, annotations=self.splits[name])
            row.update(map50=result.map50, map50_95=result.map50_95)
            fitness = result.map50_95
            row["is_best"] = fitness is not None and (self.best is None or fitness > self.best)
        if row["is_best"]:
            self.best = row["map50_95"]
        # A run that is not validated has only its loss to tell whether it still gets anywhere.
        self.schedule.observe(row["map50_95"] if self.evaluator is not None else -row["loss"])

    def save(self, epoch: int, row: Row) -> None:
        """Weights first, then everything that is derived from them; each file is whole or not there."""
        self.epoch = epoch + 1
        self.history.append(row)
        about = self._about(row)
        if row["is_best"]:
            save_checkpoint(self.folder.best, {"model": self.evaluated_model.state_dict(), **about})
        save_checkpoint(self.folder.last, {**self._state(), **about})
        self._write_history()
        log.info("%s", self._epoch_line(row))

    @property
    def evaluated_model(self) -> torch.nn.Module:
        """The average where one is kept, else the weights themselves."""
        return self.ema.model if self.ema is not None else self.model

    def _start_or_resume(self) -> None:
        checkpoint, changes = self.folder.checkpoint_to_resume(self.mcfg, self.data)
        if checkpoint is None:
            seed_random_states(self.mcfg.seed)
            return
        self._restore(checkpoint)
        self._write_history()  # again, for a run that was stopped between its weights and its curves
        changed = f", with {changes}" if changes else ""
        log.info("going on with %s after epoch %d%s", self.folder.path, self.epoch, changed)

    def _write_history(self) -> None:
        self.folder.write_history(self.history)
        plot_curves(self.history, self.folder.curves)

    def _load_starting_weights(self) -> None:
        backbone = self.mcfg.pretrainedBackboneUrl
        for path in (backbone and backbone.removeprefix(FILE_SCHEME), self.mcfg.checkpointModelFile):
            if path is not None:
                log.info("%s", load_weights(self.model, path, self.mcfg.classList))
                self.weights_origin = path

    def _about(self, row: Row) -> dict[str, Any]:
        """What every weights file says of itself."""
        return {
            "epoch": self.epoch,
            "fitness": row["map50_95"],
            "config": json.dumps(self.mcfg.to_dict()),
            "class_list": list(self.mcfg.classList or ()),
            "phase": self.mcfg.phase,
            "weights_origin": self.weights_origin,
            "data": self.data,
            "commit": _commit(),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "ema_steps": self.ema.steps if self.ema else 0,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best": self.best,
            "history": json.dumps(self.history),
            "random": random_states(),
        }

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.model.load_state_dict(checkpoint["model"])
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint["ema"], checkpoint["ema_steps"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.schedule.load_state_dict(checkpoint["schedule"])
        self.epoch, self.best = checkpoint["epoch"], checkpoint["best"]
        self.history = json.loads(checkpoint["history"])
        self.weights_origin = checkpoint["weights_origin"]
        restore_random_states(checkpoint["random"])

    def _progress_bar(self, epoch: int) -> tqdm:
        frozen = " frozen" if self.model.is_backbone_frozen else ""
        title = f"epoch {epoch + 1}/{self.mcfg.maxEpoch}{frozen}"
        # disable=None: no bar where the output is a file; the line of the epoch is written there
        return tqdm(
            total=len(self.loader), desc=title, leave=False, disable=True if self.quiet else None, dynamic_ncols=True
        )

    def _bar_text(self, sums: dict[str, torch.Tensor], steps: int, images_per_s: float) -> dict[str, str]:
        text = {name: f"{sums[name].item() / steps:.3f}" for name in ("box", "cls", "dfl")}
        return {**text, "img/s": f"{images_per_s:.0f}"}

    def _epoch_line(self, row: Row) -> str:
        an_epoch = (time.perf_counter() - self.started) / (self.epoch - self.first_epoch)  # validation and saving, too
        left = (self.mcfg.maxEpoch - self.epoch) * an_epoch
        parts = " ".join(f"{name} {row[name]:.3f}" for name in ("box", "cls", "dfl"))
        figures = "" if row["map50"] is None else f" | mAP50 {row['map50']:.3f} mAP50-95 {row['map50_95']:.3f}"
        marks = (" best" if row["is_best"] else "") + (" frozen" if row["frozen"] else "")
        return (
            f"epoch {row['epoch'] + 1}/{self.mcfg.maxEpoch} | {parts} | lr {row['lr']:.2e}{figures}{marks} | "
            f"{row['images_per_s']:.0f} images/s, {_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@lru_cache(maxsize=1)
def _commit() -> str:
    """The code's commit, or "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
