"""The detection loss of YOLOv8: class, box and box-distribution terms over the points that were assigned.

Legend: B images, A points, M most boxes on one image (may be 0), C classes, R bins a side.
Everything is computed in float32 or better, under any autocast, and without a host round trip: every term runs over
all A points and the background has weight zero, so no boolean index asks the device how long its result is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ops.anchors import STRIDES, anchors_of, boxes_to_distances, distances_to_boxes, expected_distances, flatten_maps
from ops.batch import Batch
from ops.boxes import ciou
from ops.precision import without_autocast
from ops.probe import probe
from ops.safe import total_of
from train.tal import TaskAlignedAssigner

LAST_BIN_MARGIN = 0.01  # a distance ends just before the last bin, so that it has a right neighbour


@dataclass(frozen=True)
class LossResult:
    """`total` is the sum of `parts`; parts are detached, weighted by their gains, and keep their names in every log.

    `watched`: what else has to be finite, name -> a number that is so only when all of it is. `top_logit`: the largest
    class logit, for `train.effect`; None where a loss does not report it.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Tensor] = field(default_factory=dict)
    watched: dict[str, Tensor] = field(default_factory=dict)
    top_logit: Float[Tensor, ""] | None = None


class DetectionLoss:
    """(raw maps, batch) -> `LossResult` with the parts box, cls and dfl; an image without boxes teaches background."""

    def __init__(
        self,
        num_classes: int,
        reg_max: int = 16,
        gains: tuple[float, float, float] = (7.5, 0.5, 1.5),  # box, cls, dfl
        assigner: TaskAlignedAssigner | None = None,
        strides: tuple[int, ...] = STRIDES,
    ):
        self.num_classes, self.reg_max, self.strides = num_classes, reg_max, strides
        self.box_gain, self.cls_gain, self.dfl_gain = gains
        self.assigner = assigner or TaskAlignedAssigner(num_classes=num_classes)

    @classmethod
    def from_config(cls, mcfg: Any, model: Any) -> "DetectionLoss":
        """The loss that fits `model` (num_classes, reg_max, strides) with the gains and assigner of a ModelConfig."""
        assigner = TaskAlignedAssigner(mcfg.talTopk, model.num_classes, min_side=mcfg.talMinSide)
        return cls(model.num_classes, model.reg_max, mcfg.lossWeights, assigner, model.strides)

    def __call__(self, raw_maps: Sequence[Tensor], batch: Batch) -> LossResult:
        """Raw maps [(B, 4R + C, h, w), ...] against padded targets in pixels of the network input.

        The normaliser, the sum of all target scores, is never below one: a batch without a box gives a finite loss
        with gradients.
        """
        with without_autocast(raw_maps[0].device):
            found = self._compute(raw_maps, batch)
            return self._watched(found, raw_maps, batch)

    def _compute(self, raw_maps: Sequence[Tensor], batch: Batch) -> LossResult:
        points, strides = anchors_of(raw_maps, self.strides)
        distributions, logits = flatten_maps(raw_maps, self.reg_max)
        cells = points / strides[:, None]  # the points, in strides of their own map
        pred_boxes = distances_to_boxes(cells, expected_distances(distributions))  # (B, A, 4), in strides
        probe("loss.logits", logits)
        probe("loss.pred_boxes", pred_boxes)

        assigned = self.assigner(
            logits.detach().sigmoid(),
            pred_boxes.detach() * strides[:, None],
            points,
            batch.labels[..., None],
            batch.boxes,
            batch.valid[..., None],
        )
        target_scores = assigned.target_scores
        weight = target_scores.sum(dim=-1)  # (B, A), zero in the background
        normaliser = probe("loss.normaliser", weight.sum().clamp(min=1))
        target_boxes = assigned.target_bboxes / strides[:, None]

        cls_loss = self._class_loss(logits, target_scores, batch.labelled) / normaliser
        overlap = probe("loss.ciou", ciou(pred_boxes, target_boxes))
        box_loss = ((1 - overlap) * weight).sum() / normaliser
        dfl_loss = (self._distribution_loss(distributions, cells, target_boxes) * weight).sum() / normaliser
        summed = self._sum_up(box=box_loss * self.box_gain, cls=cls_loss * self.cls_gain, dfl=dfl_loss * self.dfl_gain)
        return replace(summed, top_logit=logits.detach().amax())

    def _watched(self, found: LossResult, raw_maps: Sequence[Tensor], batch: Batch) -> LossResult:
        """`found` with what the guard asks for, of whatever `_compute` a subclass has."""
        strangers = (batch.labels.clamp(0, self.num_classes - 1) != batch.labels) & batch.valid
        labels = torch.where(strangers.any(), math.nan, 0.0)
        return replace(found, watched={**found.watched, "raw maps": total_of(raw_maps), "labels": labels})

    @staticmethod
    def _class_loss(logits: Tensor, target_scores: Tensor, labelled: Tensor | None) -> Tensor:
        """Summed over all points. Where a class is not labelled on an image, no label says nothing about it, but where
        an object is labelled, it is of that class and of no other.
        """
        if labelled is None:
            return F.binary_cross_entropy_with_logits(logits, target_scores, reduction="sum")
        speaks = labelled[:, None] | (target_scores > 0).any(dim=-1, keepdim=True)  # (B, A, C)
        return (F.binary_cross_entropy_with_logits(logits, target_scores, reduction="none") * speaks).sum()

    def _distribution_loss(self, distributions: Tensor, cells: Tensor, target_boxes: Tensor) -> Tensor:
        """(B, A): cross-entropy with the two bins beside each true distance, weighted by nearness, mean over sides."""
        last = self.reg_max - 1
        target = boxes_to_distances(cells, target_boxes).clamp(0, last - LAST_BIN_MARGIN)  # (B, A, 4)
        left = target.long().clamp(0, last - 1)  # a NaN must reach the loss; as an index it would kill a GPU's process
        to_the_right = target - left
        log_p = distributions.unflatten(-1, (4, self.reg_max)).log_softmax(dim=-1)
        log_left = log_p.gather(-1, left[..., None])[..., 0]
        log_right = log_p.gather(-1, left[..., None] + 1)[..., 0]
        loss = -(log_left * (1 - to_the_right) + log_right * to_the_right)
        return probe("loss.dfl", loss.mean(dim=-1))

    @staticmethod
    def _sum_up(**parts: Tensor) -> LossResult:
        for name, value in parts.items():
            probe(f"loss.{name}_part", value)
        return LossResult(
            sum(parts.values(), start=torch.zeros_like(parts["cls"])), {n: v.detach() for n, v in parts.items()}
        )
