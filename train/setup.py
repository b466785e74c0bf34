"""Build a training from a config: network, starting weights, precision, objective, optimizer, schedule and loader.

The trainer, the doctor and the replay of a bad step all build it here.
"""

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from config.errors import UserError
from config.fields import shown_value
from config.mconfig import ModelConfig, base_names
from config.parts import PartText
from dl.check import CheckedData
from dl.image_cache import Images
from dl.label_selection import REPLAYED_SPLIT
from dl.loader import BatchLoader, build_loader
from model import YoloModel, build_model
from model.pretrained import LoadReport, load_weights
from model.weightsfile import read_weights
from ops.anchors import distances_to_boxes
from ops.batch import Batch, network_input
from ops.device import Precision, autocast, pick_device, pick_precision, use_all_cores
from ops.random_states import seeded
from runs.start import StartingWeights, starting_weights, with_head_width
from train.distilloss import DistillationLoss, DistillationPart, DistillationWeights, ModelOutputs
from train.loss import DetectionLoss, LossInputs, LossPart, LossResult
from train.objective import DetectionObjective, DistillationObjective, distill_weight
from train.opt import build_optimizer
from train.progress import COLUMNS
from train.sched import Schedule, WarmUp, build_schedule, build_warm_up
from train.teacher import PseudoLabels, Teacher
from train.teacher_file import load_teacher

log = logging.getLogger("mars")

Errors = dict[str, str]  # "weights" or "teacher" -> why it cannot be used


@dataclass
class TrainingSetup:
    """The parts of a training."""

    mcfg: ModelConfig  # with the head width settled
    data: CheckedData
    device: torch.device
    precision: Precision
    model: YoloModel
    objective: DetectionObjective | DistillationObjective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    warm_up: WarmUp
    loader: BatchLoader
    start: StartingWeights | None  # None: random weights, or a resumed run
    load_report: LoadReport | None
    errors: Errors

    @property
    def detection_loss(self) -> DetectionLoss:
        """The loss of the labels, with and without a teacher."""
        loss = self.objective.loss
        return loss if isinstance(loss, DetectionLoss) else loss.detection

    @property
    def epochs(self) -> range:
        """The epochs of this training; trainMinutes may leave out the last ones."""
        return range(self.mcfg.startEpoch, self.mcfg.maxEpoch)

    @property
    def frozen_epochs(self) -> list[int]:
        """The epochs in which the backbone is frozen."""
        return [epoch for epoch in self.epochs if epoch in self.mcfg.backboneFreezeEpochs]

    @property
    def trained_modules(self) -> tuple[nn.Module, ...]:
        """The network, and the modules that are trained beside it."""
        return (self.model, *self.objective.extra_modules)

    def loss_of(self, batch: Batch) -> LossResult:
        """Forward pass and loss of a batch that is on the device, as in a training step."""
        with autocast(self.device, self.precision.dtype):
            return self.objective(self.model, network_input(batch.images), batch)

    def batches(self, most: int) -> Iterator[Batch]:
        """The first batches of the first epoch, as they are trained on."""
        self.loader.set_epoch(self.mcfg.startEpoch)
        with closing(self.loader):
            for _, batch in zip(range(most), self.loader, strict=False):
                yield batch


def build_training(
    mcfg: ModelConfig,
    data: CheckedData,
    is_resumed: bool = False,
    begun: Mapping[str, Any] | None = None,
    images: Images | None = None,
    errors: Errors | None = None,
) -> TrainingSetup:
    """Build everything that `mcfg` trains with. Nothing is written.

    `is_resumed`: the weights come from a checkpoint, whose config is `begun` (None if it cannot be read). `images`:
    where the loader reads images; None: cacheImages decides. `errors`: collects why weights or teacher cannot be used,
    and the training is built without them; None: such an error is raised. Raises `UserError` if a file or device is
    missing.
    """
    # The order follows from what each part needs: precision is timed on the network, the objective needs both.
    device = pick_device(mcfg.device, mcfg.cuda)
    if device.type == "cpu":
        use_all_cores()
    # A resumed run takes its weights from the checkpoint; the starting file may have been deleted since.
    start = None if is_resumed else starting_weights(mcfg)
    if start is not None and not start.path.is_file():
        raise UserError(f"{start.path}: no such weights file; correct its path in the config")
    file = load_report = None
    with _Collecting(errors, "weights"):
        file = read_weights(start.path) if start is not None else None
    mcfg = with_head_width(mcfg, None if start is None or start.backbone_only else file, begun)
    model = build_network(mcfg, device)
    if start is not None and file is not None:
        with _Collecting(errors, "weights"):
            load_report = load_weights(model, file, mcfg.classList, start.backbone_only)

    # Timed only where a run starts: a resumed run takes its precision from the checkpoint.
    precision = pick_precision(
        "float32" if is_resumed else mcfg.precision, device, model, mcfg.inputShape, mcfg.batchSize
    )

    # Without a teacher that cannot be used, the other checks of the doctor still run.
    detection = build_detection_loss(mcfg, model)
    objective = DetectionObjective(detection)
    with _Collecting(errors, "teacher"):
        objective = build_objective(mcfg, model, precision.dtype, detection)
    _check_names(objective.parts)
    # Before any epoch freezes the backbone: its parameters have to be in the optimizer.
    optimizer = build_optimizer(mcfg, model, *objective.extra_modules)
    loader = build_loader(
        mcfg, mcfg.trainSplitName, list(data.splits[mcfg.trainSplitName]), train=True, images=images,
        replay_from=data.splits[REPLAYED_SPLIT] if mcfg.replayImages else (),
    )  # fmt: skip
    # The schedule needs the number of epochs and the warm-up the number of batches, both of which are known only now.
    schedule = build_schedule(mcfg)
    _try_schedule(mcfg, schedule)
    return TrainingSetup(
        mcfg, data, device, precision, model, objective, optimizer, schedule,
        build_warm_up(mcfg, len(loader)), loader, start, load_report, errors or {},
    )  # fmt: skip


def build_network(mcfg: ModelConfig, device: torch.device) -> YoloModel:
    """The network of a config on a device, in the channels-last layout, in which convolutions are faster."""
    return build_model(mcfg).to(device).to(memory_format=torch.channels_last)


def build_detection_loss(mcfg: ModelConfig, model: YoloModel) -> DetectionLoss:
    """The loss of the labels, with the parts that a recipe adds. Raises `UserError` if a part fails on test values."""
    detection = DetectionLoss.from_config(mcfg, model)
    for text, part in zip(mcfg.lossParts, detection.parts[len(detection.parts) - len(mcfg.lossParts) :], strict=True):
        _try_loss_part(text, part, model)
    return detection


def build_objective(
    mcfg: ModelConfig, model: YoloModel, precision: torch.dtype, detection: DetectionLoss | None = None
) -> DetectionObjective | DistillationObjective:
    """The objective of a config. A teacher is read from its file; raises `UserError` if it does not fit.

    `detection`: the result of `build_detection_loss`; None: it is built here.
    """
    detection = detection or build_detection_loss(mcfg, model)
    if mcfg.modelName != "distillation":
        return DetectionObjective(detection)
    device = next(model.parameters()).device
    teacher = load_teacher(mcfg, device, precision)
    classes = teacher.classes
    base = base_names(mcfg)
    # Both are legitimate, but the results would surprise: they are grouped by baseClasses.
    if base is not None and set(base) != set(classes.names):
        log.warning(
            "baseClasses are %s, but the teacher was trained on %s; results of base and novel classes use baseClasses",
            ", ".join(base), ", ".join(classes.names),
        )  # fmt: skip
    # detection, CWD and class logits as in the assignment; the box distributions are an addition of Mars.
    weights = DistillationWeights(*mcfg.distilLossWeights, mcfg.boxResponseWeight)
    # Widths are needed only where feature maps are compared.
    widths = teacher.feature_widths(mcfg.distilFeatures, model) if weights.cwd else {}
    parts = [part.build("distilParts", "train.distilloss", kind=DistillationPart) for part in mcfg.distilParts]
    if parts:
        _try_distillation_parts(mcfg, model, teacher, parts)
    with seeded(mcfg.seed):  # projectors are drawn from the seed; other random numbers stay the same
        loss = DistillationLoss(
            detection, classes.student, classes.teacher, weights, widths, mcfg.responseMode, mcfg.temperature,
            parts,
        )  # fmt: skip
    pseudo = None
    if mcfg.unlabelledClasses == "pseudo":
        pseudo = PseudoLabels(classes, mcfg.pseudoScore, model.reg_max, model.strides, mcfg.nmsIou, teacher.distances)

    def weight_at(epoch: int, position: float) -> float:
        trained = range(mcfg.startEpoch, mcfg.maxEpoch)
        return distill_weight(epoch, position, mcfg.distilEpochs, trained, mcfg.distilSchedule)

    return DistillationObjective(loss.to(device), teacher, weight_at, pseudo)


def _try_schedule(mcfg: ModelConfig, schedule: Schedule) -> None:
    """Raise `UserError` if a schedule, which a recipe may have written, does not give a learning rate."""
    setting = f"schedulerType={mcfg.schedulerType}"
    rate: Any = schedule.rate(mcfg.startEpoch)
    if mcfg.trainMinutes is not None:
        try:
            rate = schedule.rate(mcfg.startEpoch + 0.5)
        except Exception as error:
            raise UserError(
                f"{setting}: rate({mcfg.startEpoch + 0.5}) fails ({type(error).__name__}: {error}); with trainMinutes "
                "the position in the schedule may be fractional, so accept a float, or set trainMinutes=none"
            ) from error
    if not isinstance(rate, (int, float)):
        raise UserError(f"{setting}: rate(epoch) gives {shown_value(rate)}, not a number")


def _try_loss_part(text: PartText, part: LossPart, model: YoloModel) -> None:
    """Compute a loss part of a recipe on random values, with and without objects. Raises `UserError` as `_try_part`."""
    random, num_points = torch.Generator().manual_seed(0), 8
    logits = torch.randn(2, 84, model.num_classes, generator=random).requires_grad_()
    distributions = torch.randn(num_points, 4 * model.reg_max, generator=random).requires_grad_()
    cells = torch.rand(num_points, 2, generator=random) * 8
    pred_boxes = distances_to_boxes(cells, model.distances(distributions))
    target_boxes = torch.cat((cells - 1, cells + 1), dim=-1)
    for score in (0.0, 0.5):
        scores = torch.zeros_like(logits)
        scores[0, :num_points, 0] = score
        weight = scores[0, :num_points].sum(dim=-1)
        inputs = LossInputs(
            logits, scores, None, distributions, cells, pred_boxes, target_boxes, weight, weight.sum().clamp(min=1)
        )
        _try_part(f"lossParts={text}", part, inputs)


def _try_distillation_parts(
    mcfg: ModelConfig, model: YoloModel, teacher: Teacher, parts: Sequence[DistillationPart]
) -> None:
    """Compute the distillation losses of a recipe on an empty image. Raises `UserError` as `_try_part`."""
    images = torch.zeros(1, 3, 64, 64, device=teacher.device)
    boxes, labels = torch.zeros(1, 0, 4, device=teacher.device), torch.zeros(1, 0, dtype=torch.long)
    empty = Batch(images.byte(), boxes, labels, torch.zeros(1, 0, dtype=torch.bool), ("a test image",)).to(
        teacher.device
    )
    was_training = model.training
    model.eval()  # so that the statistics of batch norm stay as they are
    student = ModelOutputs(*model.forward_features(images))
    model.train(was_training)
    for text, part in zip(mcfg.distilParts, parts, strict=True):
        _try_part(f"distilParts={text}", part, student, teacher(images), empty)


def _try_part(setting: str, part: Any, *arguments: Any) -> None:
    """Call a part of the loss before a training has begun.

    Raises `UserError` if it fails, or if its value or weight is not a finite number of at least 0.
    """
    if not (isinstance(part.weight, (int, float)) and 0 <= part.weight < math.inf):
        raise UserError(f"{setting}: the weight must be a finite number of at least 0")
    try:
        value = part(*arguments)
    except Exception as error:
        raise UserError(f"{setting}: fails on test values ({type(error).__name__}: {error})") from error
    if not (isinstance(value, torch.Tensor) and value.dim() == 0 and value >= 0 and value.isfinite()):
        is_array = isinstance(value, torch.Tensor) and value.dim() > 0
        shown = f"a tensor of shape {tuple(value.shape)}" if is_array else shown_value(value)
        raise UserError(
            f"{setting}: gives {shown} on test values, but a tensor without dimensions is required, "
            "finite and not below 0: use sum() or mean()"
        )


def _check_names(parts: Sequence[str]) -> None:
    """Raise `UserError` if a part of the loss has the name of another part or of another column of metrics.jsonl."""
    for name in parts:
        if parts.count(name) > 1 or name in COLUMNS or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise UserError(
                f"lossParts, distilParts: a part is called {name!r}, which is taken or no plain name; "
                "give it a name of its own, of small letters, digits and _"
            )


class _Collecting:
    """Within the block, a `UserError` is kept in `errors` under the name of the part. `errors` None: it is raised."""

    def __init__(self, errors: Errors | None, part: str):
        self.errors, self.part = errors, part

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        if self.errors is None or not isinstance(error, UserError):
            return False
        self.errors[self.part] = str(error)
        return True
