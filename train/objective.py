"""What one batch trains the network for: detection alone, or detection and distillation from a teacher."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model import YoloModel
from ops.batch import Batch
from ops.safe import total_of
from train.distilloss import DistillationLoss, ModelOutputs
from train.loss import DetectionLoss, LossResult
from train.teacher import PseudoLabels, Teacher


@runtime_checkable
class Objective(Protocol):
    """What stepper and trainer need: forward pass and loss of one batch, under the stepper's autocast."""

    parts: tuple[str, ...]  # names of the loss parts; those of a teacher occur only in the epochs that use it
    extra_modules: tuple[nn.Module, ...]  # trained beside the network, not part of it
    teacher_checksum: str | None  # of the teacher's file

    def set_epoch(self, epoch: int, position: float | None = None) -> None: ...

    def compute_in(self, precision: torch.dtype) -> None: ...

    def __call__(self, model: Any, images: Float[Tensor, "B 3 H W"], batch: Batch) -> LossResult: ...


class DetectionObjective:
    """The detection loss of the labels."""

    extra_modules: tuple[nn.Module, ...] = ()
    teacher_checksum: str | None = None

    def __init__(self, loss: DetectionLoss):
        self.loss = loss
        self.parts: tuple[str, ...] = tuple(part.name for part in loss.parts)

    def set_epoch(self, epoch: int, position: float | None = None) -> None:
        """All epochs are the same."""

    def compute_in(self, precision: torch.dtype) -> None:
        """Nothing to do: the network runs under the stepper's autocast."""

    def __call__(self, model: nn.Module, images: Float[Tensor, "B 3 H W"], batch: Batch) -> LossResult:
        return self.loss(model(images), batch)


class DistillationObjective:
    """The detection loss and a distillation loss, whose weight `distill_weight_at(epoch, position)` gives."""

    def __init__(
        self,
        loss: DistillationLoss,
        teacher: Teacher,
        distill_weight_at: Callable[[int, float], float] = lambda epoch, position: 1.0,
        pseudo_labels: PseudoLabels | None = None,
    ):
        self.loss, self.teacher, self.pseudo_labels = loss, teacher, pseudo_labels
        self.extra_modules: tuple[nn.Module, ...] = (loss,)
        self.parts: tuple[str, ...] = (*(part.name for part in loss.detection.parts), *loss.part_names)
        self.teacher_checksum = teacher.checksum
        self.distill_weight_at = distill_weight_at
        # So that the objective can be called before the first epoch, as the doctor does.
        self.set_epoch(0)

    def compute_in(self, precision: torch.dtype) -> None:
        """The teacher has its own autocast, inside the stepper's."""
        self.teacher.precision = precision

    def set_epoch(self, epoch: int, position: float | None = None) -> None:
        """`position`: of the epoch in the schedule (`train.budget.EpochPlan`); None: the epoch itself."""
        self.distill_weight = self.distill_weight_at(epoch, epoch if position is None else position)

    def __call__(self, model: YoloModel, images: Float[Tensor, "B 3 H W"], batch: Batch) -> LossResult:
        is_distilling = self.distill_weight != 0  # true for NaN and negative weights, so that the loss shows them
        teacher = self.teacher(images) if is_distilling or self.pseudo_labels is not None else None
        sums: dict[str, Tensor] = {}
        if teacher is not None and self.pseudo_labels is not None:
            # A NaN in the teacher's maps would only look like an image without detections.
            sums["targets"] = total_of(teacher.raw_maps)
            batch = self.pseudo_labels(batch, teacher.raw_maps)
        # The student's features are only computed here: a plain detection run does not keep them.
        student = ModelOutputs(*model.forward_features(images))
        # The detection loss sees the pseudo-labels too, so that the assigner treats them like labels.
        result = self.loss(student, teacher if is_distilling else None, batch, self.distill_weight)
        return replace(result, must_be_finite={**sums, **result.must_be_finite})


def distill_weight(epoch: int, position: float, epochs: Sequence[int], trained: range, schedule: str) -> float:
    """Weight of the distillation loss in an epoch, 0 to 1. `epochs`: the epochs of `trained` that use it; none: all.

    `position`: of the epoch in the schedule, in a training of the length of `trained`. A list of epochs has real ones.
    """
    # Relative to the epochs that use it, so that a cosine always falls from 1 towards 0.
    used = [number for number in trained if number in epochs or not epochs]
    if epoch not in used:
        return 0.0
    if schedule == "constant":
        return 1.0
    # Half a cosine: the teacher guides the first epochs, and the labels decide the last.
    done = used.index(epoch) if epochs else position - trained.start
    return (1 + math.cos(math.pi * done / len(used))) / 2
