"""Ultralytics' own training loop, driven with batches that a test hands it.

Nothing of a training is told again here: warm-up, schedule, accumulation, clipping, optimizer and average are its code.
Replaced is what surrounds them: data sets, files, figures and validation.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils.torch_utils import EarlyStopping, ModelEMA

QUIET = {"val": False, "plots": False, "save": False, "close_mosaic": 0, "amp": False}


class Feed:
    """What its loop asks of a loader: a number of batches per epoch, from a stream that does not start again."""

    num_workers, drop_last = 0, False

    def __init__(self, batches: Iterable[Any], an_epoch: int, batch_size: int):
        self.stream, self.an_epoch, self.batch_size = iter(batches), an_epoch, batch_size
        self.given = 0  # batches so far
        self.dataset = self.sampler = range(an_epoch * batch_size)

    def __len__(self) -> int:
        return self.an_epoch

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.an_epoch):
            self.given += 1
            yield next(self.stream)


class TheirTraining(BaseTrainer):
    """`run()` trains `network`, for which `network(batch)` is (loss, parts), until the optimizer has made `steps`.

    `settings` are its own words (lr0, nbs, cos_lr ...). `on_step(training)` is called after every step.
    """

    def __init__(
        self,
        network: nn.Module,
        feed: Feed,
        steps: int,
        on_step: Callable[["TheirTraining"], None],
        ramp: float,
        **settings: Any,
    ):
        self.args = get_cfg(overrides={**QUIET, "batch": feed.batch_size, **settings})
        self.model, self.feed, self.steps, self.on_step, self.ramp = network, feed, steps, on_step, ramp
        self.device, self.world_size, self.batch_size = torch.device("cpu"), 0, feed.batch_size
        self.epochs, self.start_epoch, self.stride = self.args.epochs, 0, 32
        self.data = {"train": None, "val": None, "nc": 1}
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.ema = self.optimizer = self.fitness = None
        self.amp, self.loss_names, self.plot_idx, self.metrics = False, (), [], {}
        self.save_dir, self.freeze_layer_names = Path(), [".dfl"]
        self.num_done = 0

    def run(self) -> None:
        self._do_train()
        assert self.num_done == self.steps

    def _setup_train(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not any(word in name for word in self.freeze_layer_names))
        self._build_train_pipeline()
        self.ema = ModelEMA(self.model, tau=self.ramp)
        self.stopper, self.stop = EarlyStopping(patience=self.args.patience), False
        self.scheduler.last_epoch = -1

    def get_dataloader(self, *_: Any, **__: Any) -> Feed:
        return self.feed

    def optimizer_step(self) -> None:
        super().optimizer_step()
        self.num_done += 1
        self.on_step(self)

    def run_callbacks(self, event: str) -> None:
        self.stop = self.num_done >= self.steps

    def validate(self) -> tuple[dict[str, float], float]:
        return {}, 0.0

    def _handle_nan_recovery(self, epoch: int) -> bool:
        return False

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """No file is wanted."""

    def save_model(self) -> bool:
        return False

    def final_eval(self) -> None:
        """There is nothing to evaluate."""
