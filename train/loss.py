"""The detection loss of YOLOv8: classes, boxes, and distributions of the box sides.

Legend: B images, A anchor points, M most boxes on one image (may be 0), C classes, R bins per side.
Everything is computed in float32 or better, under any autocast. Every term runs over all A anchor points, and
background has weight zero: a boolean index would make the host wait for the device.
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
from ops.device import without_autocast
from ops.probe import probe
from ops.safe import total_of
from train.tal import TaskAlignedAssigner

LAST_BIN_MARGIN = 0.01  # the largest distance is just below the last bin, so that it has a bin to its right


@dataclass(frozen=True)
class LossResult:
    """`total` is the sum of `parts`, which are detached and multiplied by their gains. Logs use their names.

    `must_be_finite`: more numbers that have to be finite, by name. `top_logit`: the largest
    class logit, for `train.effect`; None where a loss does not report it.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Tensor] = field(default_factory=dict)
    must_be_finite: dict[str, Tensor] = field(default_factory=dict)
    top_logit: Float[Tensor, ""] | None = None


class DetectionLoss:
    """(raw maps, batch) -> `LossResult` with the parts box, cls and dfl. An image without boxes is all background.

        box = sum over points of weight * (1 - CIoU) / normaliser                          (arXiv 1911.08287)
        cls = sum over points and classes of BCE(logit, target score) / normaliser
        dfl = sum over points of weight * distribution focal loss / normaliser             (arXiv 2006.04388)

    weight: the target score of the anchor point; normaliser: the sum of all weights.
    """

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
        """The loss for `model` (num_classes, reg_max, strides), with gains and assigner settings of a ModelConfig."""
        assigner = TaskAlignedAssigner(mcfg.talTopk, model.num_classes, min_side=mcfg.talMinSide)
        return cls(model.num_classes, model.reg_max, mcfg.lossWeights, assigner, model.strides)

    def __call__(self, raw_maps: Sequence[Tensor], batch: Batch) -> LossResult:
        """Raw maps [(B, 4R + C, h, w), ...] and a batch with padded boxes in pixels of the network input.

        The normaliser is at least 1, so that a batch without a box has a finite loss with gradients.
        """
        with without_autocast(raw_maps[0].device):
            return self._with_checks(self._compute(raw_maps, batch), raw_maps, batch)

    def _compute(self, raw_maps: Sequence[Tensor], batch: Batch) -> LossResult:
        points, strides = anchors_of(raw_maps, self.strides)
        distributions, logits = flatten_maps(raw_maps, self.reg_max)
        cells = points / strides[:, None]  # anchor points in units of the stride, in which the head predicts distances
        pred_boxes = distances_to_boxes(cells, expected_distances(distributions))  # (B, A, 4), in strides
        probe("loss.logits", logits)
        probe("loss.pred_boxes", pred_boxes)

        # The assigner gets detached predictions: targets must not have a gradient.
        assigned = self.assigner(
            logits.detach().sigmoid(),
            pred_boxes.detach() * strides[:, None],
            points,
            batch.labels[..., None],
            batch.boxes,
            batch.valid[..., None],
        )
        target_scores = assigned.target_scores
        weight = target_scores.sum(dim=-1)  # (B, A), zero for background
        # One normaliser for all three parts keeps their ratio independent of the number of objects.
        normaliser = probe("loss.normaliser", weight.sum().clamp(min=1))
        target_boxes = assigned.target_bboxes / strides[:, None]

        cls_loss = self._class_loss(logits, target_scores, batch.labelled) / normaliser
        # In units of the stride, as in Ultralytics. IoU does not depend on the unit.
        overlap = probe("loss.ciou", ciou(pred_boxes, target_boxes))
        box_loss = ((1 - overlap) * weight).sum() / normaliser
        dfl_loss = (self._distribution_loss(distributions, cells, target_boxes) * weight).sum() / normaliser
        summed = self._sum_up(box=box_loss * self.box_gain, cls=cls_loss * self.cls_gain, dfl=dfl_loss * self.dfl_gain)
        return replace(summed, top_logit=logits.detach().amax())

    def _with_checks(self, result: LossResult, raw_maps: Sequence[Tensor], batch: Batch) -> LossResult:
        """The result with the numbers that the guard checks. Also correct for subclasses with their own `_compute`."""
        # Compared on the device: the guard reads all of these numbers together, with a single wait.
        is_unknown = (batch.labels.clamp(0, self.num_classes - 1) != batch.labels) & batch.valid
        labels = torch.where(is_unknown.any(), math.nan, 0.0)
        return replace(
            result, must_be_finite={**result.must_be_finite, "raw maps": total_of(raw_maps), "labels": labels}
        )

    @staticmethod
    def _class_loss(logits: Tensor, target_scores: Tensor, labelled: Tensor | None) -> Tensor:
        """Sum over all anchor points and classes.

        Classes that are not labelled on an image are ignored, except at the anchor points of a labelled object, which
        is not an object of any other class.
        """
        if labelled is None:
            # A sigmoid for each class: BCE = -(t log p + (1 - t) log(1 - p)), with the soft target t of the assigner.
            return F.binary_cross_entropy_with_logits(logits, target_scores, reduction="sum")
        counts = labelled[:, None] | (target_scores > 0).any(dim=-1, keepdim=True)  # (B, A, C)
        return (F.binary_cross_entropy_with_logits(logits, target_scores, reduction="none") * counts).sum()

    def _distribution_loss(self, distributions: Tensor, cells: Tensor, target_boxes: Tensor) -> Tensor:
        """(B, A): distribution focal loss, the mean over the four sides.

        The true distance y lies between the bins l and l + 1: -((l + 1 - y) log p(l) + (y - l) log p(l + 1)).
        """
        last = self.reg_max - 1
        # A side beyond the last bin cannot be represented; the target is the nearest distance that can.
        target = boxes_to_distances(cells, target_boxes).clamp(0, last - LAST_BIN_MARGIN)  # (B, A, 4)
        left = target.long().clamp(0, last - 1)  # NaN as an index would kill a GPU process; it reaches the loss below
        right_weight = target - left
        # A cross-entropy with two targets, linear in the distance to each bin: its minimum has the expectation y.
        # log_softmax stays finite where log(softmax) is -inf.
        log_p = distributions.unflatten(-1, (4, self.reg_max)).log_softmax(dim=-1)
        log_left = log_p.gather(-1, left[..., None])[..., 0]
        log_right = log_p.gather(-1, left[..., None] + 1)[..., 0]
        loss = -(log_left * (1 - right_weight) + log_right * right_weight)
        return probe("loss.dfl", loss.mean(dim=-1))

    @staticmethod
    def _sum_up(**parts: Tensor) -> LossResult:
        for name, value in parts.items():
            probe(f"loss.{name}_part", value)
        return LossResult(
            sum(parts.values(), start=torch.zeros_like(parts["cls"])), {n: v.detach() for n, v in parts.items()}
        )
