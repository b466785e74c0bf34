"""The parts of a training, made as the trainer makes them, but so that a part that is refused hides no other."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from config.errors import UserError
from config.mconfig import ModelConfig
from dl.check import CheckedData
from dl.image_cache import FileImages
from dl.label_selection import REPLAYED_SPLIT
from dl.loader import BatchLoader, build_loader
from model import YoloModel, build_model
from model.pretrained import LoadReport, load_weights
from ops.batch import Batch
from ops.device import pick_device, use_all_cores
from ops.precision import Precision, pick_precision
from runs.start import StartingWeights, starting_weights, with_head_width
from train.budget import images_an_epoch, within_minutes
from train.loss import DetectionLoss
from train.objective import DetectionObjective, DistillationObjective, build_objective


@dataclass
class TrainingSetup:
    """What would train. `weights_refusal` and `teacher_refusal`: why these could not be used; None: nothing wrong."""

    mcfg: ModelConfig  # with the head's width settled, and the epochs that fit into trainMinutes
    data: CheckedData
    device: torch.device
    precision: Precision
    model: YoloModel
    objective: DetectionObjective | DistillationObjective
    loader: BatchLoader
    start: StartingWeights | None
    report: LoadReport | None
    weights_refusal: str | None = None
    teacher_refusal: str | None = None

    @property
    def detection_loss(self) -> DetectionLoss:
        """The loss of the labels, also where a teacher stands beside it."""
        return self.objective.loss if isinstance(self.objective, DetectionObjective) else self.objective.loss.detection

    @property
    def epochs(self) -> range:
        """The epochs that are trained."""
        return range(self.mcfg.startEpoch, self.mcfg.maxEpoch)

    @property
    def frozen_epochs(self) -> list[int]:
        """Those of them in which the backbone holds still."""
        return [epoch for epoch in self.epochs if epoch in self.mcfg.backboneFreezeEpochs]

    def batches(self, most: int) -> Iterator[Batch]:
        """The first batches of the first epoch, as the training will see them."""
        self.loader.set_epoch(self.mcfg.startEpoch)
        with closing(self.loader):
            for _, batch in zip(range(most), self.loader, strict=False):
                yield batch


def build_training(mcfg: ModelConfig, data: CheckedData) -> TrainingSetup:
    """Make everything that `mcfg` trains with; nothing is written.

    Raises `UserError` where there is nothing to examine: no such file or device, no object to train on.
    """
    device = pick_device(mcfg.device, mcfg.cuda)
    if device.type == "cpu":
        use_all_cores()
    start = starting_weights(mcfg)
    if start is not None and not start.path.is_file():
        raise UserError(f"{start.path}: no such weights file")
    mcfg, weights_refusal = _with_head_width(mcfg, start)
    model = build_model(mcfg).to(device).to(memory_format=torch.channels_last)
    report = None
    if start is not None and weights_refusal is None:
        try:
            report = load_weights(model, start.path, mcfg.classList, start.backbone_only)
        except UserError as error:
            weights_refusal = str(error)
    precision = pick_precision(mcfg.precision, device, model, mcfg.inputShape, mcfg.trainMinutes is not None)
    mcfg = within_minutes(mcfg, precision.seconds or 0.0, *images_an_epoch(mcfg, data.splits), None)
    objective, teacher_refusal = _objective(mcfg, model, precision.dtype)
    loader = build_loader(
        mcfg, mcfg.trainSplitName, list(data.splits[mcfg.trainSplitName]), train=True, images=FileImages(),
        replay_from=data.splits[REPLAYED_SPLIT] if mcfg.replayImages else (),
    )  # fmt: skip
    return TrainingSetup(
        mcfg, data, device, precision, model, objective, loader, start, report, weights_refusal, teacher_refusal
    )


def some_images(batch: Batch, count: int) -> Batch:
    """`count` images of a batch: those with the most objects first, from the start again when they run out."""
    order = batch.valid.sum(dim=1).argsort(descending=True, stable=True)
    rows = order[torch.arange(count) % len(batch)]
    values = {name: getattr(batch, name)[rows] for name in ("images", "boxes", "labels", "valid")}
    labelled = None if batch.labelled is None else batch.labelled[rows]
    ids = tuple(batch.image_ids[row] for row in rows.tolist())
    return replace(batch, **values, labelled=labelled, image_ids=ids, letterboxes=())


def _with_head_width(mcfg: ModelConfig, start: StartingWeights | None) -> tuple[ModelConfig, str | None]:
    try:
        return with_head_width(mcfg, start, None), None
    except UserError as error:  # it cannot be read as weights
        return mcfg, str(error)


def _objective(
    mcfg: ModelConfig, model: YoloModel, precision: torch.dtype
) -> tuple[DetectionObjective | DistillationObjective, str | None]:
    try:
        return build_objective(mcfg, model, precision), None
    except UserError as error:
        return DetectionObjective(DetectionLoss.from_config(mcfg, model)), str(error)
