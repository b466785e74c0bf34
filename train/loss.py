"""The detection loss of YOLOv8: classes, boxes, and distributions of the box sides.

Legend: B images, A anchor points, M most boxes on one image (may be 0), C classes, R bins per side, F foreground points
of the batch. Everything is computed in float32 or better, under any autocast. Boxes and distributions have a loss at
foreground points only. F is their largest possible number, so that the host need not wait for the device; rows that are
left have weight zero.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ops.anchors import (
    STRIDES,
    anchors_of,
    boxes_to_distances,
    decode_boxes,
    distances_to_boxes,
    expected_distances,
    flatten_maps,
)  # fmt: skip
from ops.batch import Batch
from ops.boxes import ciou
from ops.device import without_autocast
from ops.probe import probe
from ops.safe import total_of
from train.tal import Assignment, TaskAlignedAssigner, true_indices

LAST_BIN_MARGIN = 0.01  # the largest distance is just below the last bin, so that it has a bin to its right


@dataclass(frozen=True)
class LossResult:
    """`total` is the sum of `parts`, which are detached and multiplied by their gains. Logs use their names.

    `must_be_finite`: more numbers that have to be finite, by name. `top_logit`: the largest
    class logit, for `train.effect`; None where a loss does not report it.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    must_be_finite: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    top_logit: Float[Tensor, ""] | None = None


class LossInputs(NamedTuple):
    """What each part of the detection loss is computed from. Boxes, anchor points and distances are in strides."""

    logits: Float[Tensor, "B A C"]
    target_scores: Float[Tensor, "B A C"]  # 0 in the background
    labelled: Bool[Tensor, "B C"] | None  # the classes that are labelled on each image; None: all
    # Foreground points of the whole batch:
    distributions: Float[Tensor, "F four_R"]
    cells: Float[Tensor, "F 2"]  # anchor points
    pred_boxes: Float[Tensor, "F 4"]
    target_boxes: Float[Tensor, "F 4"]
    weight: Float[Tensor, " F"]  # sum of the target scores of an anchor point; 0: padding
    normaliser: Float[Tensor, ""]  # sum of all weights, at least 1


@runtime_checkable
class LossPart(Protocol):
    """One term of the detection loss. A recipe adds its own: `mcfg.lossParts = [CentreLoss(weight=0.5)]`."""

    @property
    def name(self) -> str:
        """On the progress bar, in the plots and in metrics.jsonl."""
        ...

    @property
    def weight(self) -> float: ...

    def __call__(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """The term without its weight: 0 or more, finite also without any object."""
        ...


@dataclass(frozen=True)
class BoxLoss:
    """sum over points of weight * (1 - CIoU) / normaliser (arXiv 1911.08287)."""

    weight: float = 7.5
    name = "box"

    def __call__(self, inputs: LossInputs) -> Float[Tensor, ""]:
        # In units of the stride, as in Ultralytics. IoU does not depend on the unit.
        overlap = probe("loss.ciou", ciou(inputs.pred_boxes, inputs.target_boxes))
        return ((1 - overlap) * inputs.weight).sum() / inputs.normaliser


@dataclass(frozen=True)
class ClassLoss:
    """sum over points and classes of BCE(logit, target score) / normaliser.

    Classes that are not labelled on an image are ignored, except at the anchor points of a labelled object, which is
    not an object of any other class.
    """

    weight: float = 0.5
    name = "cls"

    def __call__(self, inputs: LossInputs) -> Float[Tensor, ""]:
        logits, target_scores = inputs.logits, inputs.target_scores
        if inputs.labelled is None:
            # A sigmoid for each class: BCE = -(t log p + (1 - t) log(1 - p)), with the soft target t of the assigner.
            loss = F.binary_cross_entropy_with_logits(logits, target_scores, reduction="sum")
        else:
            counts = inputs.labelled[:, None] | (target_scores > 0).any(dim=-1, keepdim=True)  # (B, A, C)
            loss = (F.binary_cross_entropy_with_logits(logits, target_scores, reduction="none") * counts).sum()
        return loss / inputs.normaliser


@dataclass(frozen=True)
class DistributionLoss:
    """sum over points of weight * distribution focal loss, mean over the four sides, / normaliser (arXiv 2006.04388).

    The true distance y lies between the bins l and l + 1: -((l + 1 - y) log p(l) + (y - l) log p(l + 1)).
    """

    weight: float = 1.5
    name = "dfl"

    def __call__(self, inputs: LossInputs) -> Float[Tensor, ""]:
        bins = inputs.distributions.shape[-1] // 4
        last = bins - 1
        # A side beyond the last bin cannot be represented; the target is the nearest distance that can.
        distances = boxes_to_distances(inputs.cells, inputs.target_boxes)
        target = distances.clamp(0, last - LAST_BIN_MARGIN)  # (F, 4)
        left = target.long().clamp(0, last - 1)  # NaN as an index would kill a GPU process; it reaches the loss below
        right_weight = target - left
        # A cross-entropy with two targets, linear in the distance to each bin: its minimum has the expectation y.
        # log_softmax stays finite where log(softmax) is -inf.
        log_p = torch.unflatten(inputs.distributions, -1, (4, bins)).log_softmax(dim=-1)
        log_left = log_p.gather(-1, left[..., None])[..., 0]
        log_right = log_p.gather(-1, left[..., None] + 1)[..., 0]
        loss = -(log_left * (1 - right_weight) + log_right * right_weight)
        return (probe("loss.dfl", loss.mean(dim=-1)) * inputs.weight).sum() / inputs.normaliser


class DetectionLoss:
    """(raw maps, batch) -> `LossResult` with the parts box, cls and dfl. An image without boxes is all background.

    The parts are `BoxLoss`, `ClassLoss` and `DistributionLoss`, then those that a recipe adds. A head with one bin per
    side predicts distances directly, so it has no `dfl`.
    """

    def __init__(
        self,
        num_classes: int,
        reg_max: int = 16,
        gains: tuple[float, float, float] = (7.5, 0.5, 1.5),  # box, cls, dfl
        assigner: TaskAlignedAssigner | None = None,
        strides: tuple[int, ...] = STRIDES,
        distances: Callable[[Tensor], Tensor] = expected_distances,
        more_parts: Sequence[LossPart] = (),
    ):
        """`distances`: how the head turns its box channels into distances. Names of parts must differ."""
        self.num_classes, self.reg_max, self.strides, self.distances = num_classes, reg_max, strides, distances
        parts = (BoxLoss(gains[0]), ClassLoss(gains[1]), *([DistributionLoss(gains[2])] if reg_max > 1 else []))
        self.parts: tuple[LossPart, ...] = (*parts, *more_parts)
        self.assigner = assigner or TaskAlignedAssigner(num_classes=num_classes)

    @classmethod
    def from_config(cls, mcfg: Any, model: Any) -> "DetectionLoss":
        """The loss for `model` (num_classes, reg_max, strides, head), with the settings of a ModelConfig."""
        assigner = TaskAlignedAssigner(mcfg.talTopk, model.num_classes, min_side=mcfg.talMinSide)
        more = [part.build("lossParts", __name__, kind=LossPart) for part in mcfg.lossParts]
        return cls(
            model.num_classes, model.reg_max, mcfg.lossWeights, assigner, model.strides, model.head.distances, more
        )

    def __call__(self, raw_maps: Sequence[Tensor], batch: Batch) -> LossResult:
        """Raw maps [(B, 4R + C, h, w), ...] and a batch with padded boxes in pixels of the network input.

        The normaliser is at least 1, so that a batch without a box has a finite loss with gradients.
        """
        with without_autocast(raw_maps[0].device):
            return self._with_checks(self._compute(raw_maps, batch), raw_maps, batch)

    def _compute(self, raw_maps: Sequence[Tensor], batch: Batch) -> LossResult:
        points, strides = anchors_of(raw_maps, self.strides)
        distributions, logits = flatten_maps(raw_maps, self.reg_max)
        probe("loss.logits", logits)
        assigned = self._assign(distributions, logits, points, strides, batch)
        weight = assigned.target_scores.sum(dim=-1)  # (B, A), zero for background
        # One normaliser for all parts keeps their ratio independent of the number of objects.
        normaliser = probe("loss.normaliser", weight.sum().clamp(min=1))

        # Each box chooses at most topk anchor points. An assigner of your own may choose all.
        most = min(len(points), getattr(self.assigner, "topk", len(points)) * batch.valid.shape[1])
        index = true_indices(assigned.fg_mask.flatten(), most * len(batch))
        row = index.clamp(max=weight.numel() - 1)
        probe("loss.images", row // len(points))
        stride, point = strides[row % len(points), None], points[row % len(points)]
        cells = point / stride  # anchor points in units of the stride, in which the head predicts distances
        fg_distributions = distributions.flatten(0, 1)[row]
        inputs = LossInputs(
            logits,
            assigned.target_scores,
            batch.labelled,
            fg_distributions,
            cells,
            probe("loss.pred_boxes", distances_to_boxes(cells, self.distances(fg_distributions))),
            assigned.target_bboxes.flatten(0, 1)[row] / stride,
            weight.flatten()[row] * (row == index),
            normaliser,
        )
        parts: dict[str, Tensor] = {}
        for part in self.parts:
            parts[part.name] = probe(f"loss.{part.name}_part", part(inputs) * part.weight)
        total = sum(parts.values(), start=torch.zeros_like(normaliser))
        return LossResult(
            total, {name: value.detach() for name, value in parts.items()}, top_logit=logits.detach().amax()
        )

    def _assign(
        self, distributions: Tensor, logits: Tensor, points: Tensor, strides: Tensor, batch: Batch
    ) -> Assignment:
        # Only if known, so that an assigner of your own needs no such argument.
        known = {} if batch.pair_limits is None else {"pair_limits": batch.pair_limits}
        with torch.no_grad():  # targets must not have a gradient
            return self.assigner(
                logits.sigmoid(),
                decode_boxes(distributions, points, strides, self.distances),
                points,
                batch.labels[..., None],
                batch.boxes,
                batch.valid[..., None],
                **known,
            )

    def _with_checks(self, result: LossResult, raw_maps: Sequence[Tensor], batch: Batch) -> LossResult:
        """The result with the numbers that the guard checks. Also correct for subclasses with their own `_compute`."""
        # Compared on the device: the guard reads all of these numbers together, with a single wait.
        is_unknown = (batch.labels.clamp(0, self.num_classes - 1) != batch.labels) & batch.valid
        labels = torch.where(is_unknown.any(), math.nan, 0.0)
        return replace(
            result,
            must_be_finite={
                **result.must_be_finite,
                "raw maps": total_of(raw_maps),
                "boxes": total_of([batch.boxes]),
                "labels": labels,
            },
        )
