"""What one batch teaches the network: detection alone, or with a teacher beside it."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from config.mconfig import ModelConfig, base_names
from model import YoloModel
from ops.batch import Batch
from ops.safe import total_of
from train.distilloss import DistillationLoss, DistilWeights, ModelOutputs
from train.loss import DetectionLoss, LossResult
from train.pseudo import PseudoLabels
from train.teacher import Teacher

log = logging.getLogger("mars")

DETECTION_PARTS = ("box", "cls", "dfl")


@runtime_checkable
class Objective(Protocol):
    """What stepper and trainer ask: forward and loss of one batch, under the stepper's autocast."""

    parts: tuple[str, ...]  # names of the loss's parts; those of a teacher only come in the epochs in which it teaches
    extra_modules: tuple[nn.Module, ...]  # what is trained beside the network and is no part of it

    teacher_checksum: str | None  # the checksum of the teacher's file

    def set_epoch(self, epoch: int) -> None: ...

    def compute_in(self, precision: torch.dtype) -> None: ...

    def __call__(self, model: Any, images: Float[Tensor, "B 3 H W"], batch: Batch) -> LossResult: ...


class DetectionObjective:
    """The detection loss of the labels."""

    parts: tuple[str, ...] = DETECTION_PARTS
    extra_modules: tuple[nn.Module, ...] = ()
    teacher_checksum: str | None = None

    def __init__(self, loss: DetectionLoss):
        self.loss = loss

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is as the others."""

    def compute_in(self, precision: torch.dtype) -> None:
        """The network follows the stepper's autocast, and there is no other one."""

    def __call__(self, model: nn.Module, images: Float[Tensor, "B 3 H W"], batch: Batch) -> LossResult:
        return self.loss(model(images), batch)


class DistillationObjective:
    """The labels, and a teacher that looks at the same images. What it adds follows `strength`, epoch by epoch."""

    def __init__(
        self,
        loss: DistillationLoss,
        teacher: Teacher,
        strength: Callable[[int], float] = lambda epoch: 1.0,
        pseudo_labels: PseudoLabels | None = None,
    ):
        self.loss, self.teacher, self.pseudo_labels = loss, teacher, pseudo_labels
        self.extra_modules: tuple[nn.Module, ...] = (loss,)
        self.parts: tuple[str, ...] = DETECTION_PARTS + loss.part_names
        self.teacher_checksum = teacher.checksum
        self.distill_weight_at = strength
        self.set_epoch(0)

    @classmethod
    def from_config(cls, mcfg: ModelConfig, model: YoloModel, precision: torch.dtype) -> "DistillationObjective":
        """Teacher and losses of a student's config, on the device of `model`."""
        device = next(model.parameters()).device
        teacher = Teacher.from_config(mcfg, device, precision)
        weights = DistilWeights(*mcfg.distilLossWeights, mcfg.boxResponseWeight)
        widths = teacher.feature_widths(mcfg.distilFeatures, model) if weights.cwd else {}
        detection = DetectionLoss.from_config(mcfg, model)
        known = teacher.known
        base = base_names(mcfg)
        if base is not None and set(base) != set(known.names):
            log.warning(
                "baseClasses are %s, but the teacher knows %s; figures of base and novel classes mean the former",
                ", ".join(base), ", ".join(known.names),
            )  # fmt: skip
        with torch.random.fork_rng(devices=[]):  # the projectors are drawn from the seed, and nothing else moves
            torch.manual_seed(mcfg.seed)
            loss = DistillationLoss(
                detection, known.student, known.teacher, weights, widths, mcfg.responseMode, mcfg.temperature
            )
        pseudo = PseudoLabels.from_config(mcfg, known, model) if mcfg.unlabelledClasses == "pseudo" else None

        def strength(epoch: int) -> float:
            trained = range(mcfg.startEpoch, mcfg.maxEpoch)
            return distil_strength(epoch, mcfg.distilEpochs, trained, mcfg.distilSchedule)

        return cls(loss.to(device), teacher, strength, pseudo)

    def compute_in(self, precision: torch.dtype) -> None:
        """The teacher's own autocast lies inside the stepper's and wins over it."""
        self.teacher.precision = precision

    def set_epoch(self, epoch: int) -> None:
        self.strength = self.distill_weight_at(epoch)

    def __call__(self, model: YoloModel, images: Float[Tensor, "B 3 H W"], batch: Batch) -> LossResult:
        is_teaching = self.strength != 0  # so that NaN and what is below zero reach the loss, where they are seen
        is_asked = is_teaching or self.pseudo_labels is not None
        teacher = self.teacher(images) if is_asked else None
        targets: dict[str, Tensor] = {}
        if teacher is not None and self.pseudo_labels is not None:
            targets = {"targets": total_of(teacher.raw_maps)}  # NaN would just look as if there were no object
            batch = self.pseudo_labels(batch, teacher.raw_maps)
        student = ModelOutputs(*model.forward_features(images))
        found = self.loss(student, teacher if is_teaching else None, batch, self.strength)
        return replace(found, watched={**targets, **found.watched})


def build_objective(
    mcfg: ModelConfig, model: YoloModel, precision: torch.dtype
) -> DetectionObjective | DistillationObjective:
    """What a config trains `model` for; a teacher is read from its file. Raises `UserError` when it does not fit."""
    if mcfg.modelName == "distillation":
        return DistillationObjective.from_config(mcfg, model, precision)
    return DetectionObjective(DetectionLoss.from_config(mcfg, model))


def distil_strength(epoch: int, epochs: Sequence[int], trained: range, schedule: str) -> float:
    """0 to 1: how much the teacher adds in an epoch. `epochs`: those of the `trained` in which it does, none: all."""
    taught = [one for one in trained if one in epochs or not epochs]
    if epoch not in taught:
        return 0.0
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * taught.index(epoch) / len(taught))) / 2
