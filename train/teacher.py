"""The teacher of a distillation: a trained network in eval mode that processes the student's images.

Its detections can also replace missing labels (pseudo-labels). It is not a submodule of anything, so no state dict,
EMA, optimizer or parameter count includes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from model import YoloModel
from model.base.yolomodel import fused
from ops.anchors import anchors_of, decode_boxes, expected_distances, flatten_maps
from ops.batch import Batch
from ops.boxes import pairwise_iou
from ops.device import autocast
from ops.nms import select_detections
from train.distilloss import ModelOutputs

_NEVER = -20.0  # logit of the classes that the teacher was not trained on: a score of 2e-9
MOST_DETECTIONS = 100  # per image, as pseudo-labels
SAME_OBJECT = 0.5  # a detection with at least this IoU with a label is the labelled object


class TeacherClasses(NamedTuple):
    """The classes that the teacher was trained on, and their indexes in the student and in the teacher."""

    names: tuple[str, ...]
    student: tuple[int, ...]
    teacher: tuple[int, ...]


class Teacher:
    """A frozen network with folded batch norm: always eval mode, no gradients."""

    def __init__(
        self,
        model: YoloModel,
        classes: TeacherClasses,
        precision: torch.dtype = torch.float32,
        checksum: str | None = None,
    ):
        """`model` is copied. `precision`: of the computation, as for the student. `checksum`: of the weights file."""
        self.classes, self.precision, self.checksum = classes, precision, checksum
        self.phase, self.distances = model.phase, model.distances
        self._network = fused(model).requires_grad_(False)
        self.device = next(self._network.parameters()).device

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> ModelOutputs:
        """Raw maps and feature maps. The class channels are the teacher's own."""
        if self._network.training:
            raise RuntimeError("the teacher is in train mode: its batch norm would adapt to the student's batches")
        with autocast(self.device, self.precision):
            return ModelOutputs(*self._network.forward_features(images))

    def feature_widths(self, names: Sequence[str], student: YoloModel) -> dict[str, tuple[int, int]]:
        """Channels of the named feature maps in student and teacher."""
        ours, theirs = student.feature_widths, self._network.feature_widths
        return {name: (ours[name], theirs[name]) for name in names}

    def as_student(self, num_classes: int) -> "TeacherView":
        """The teacher with the student's class list, for evaluation."""
        return TeacherView(self._network, self.classes, num_classes)


class TeacherView(nn.Module):
    """The teacher's raw maps with the student's class channels; classes that it does not know get a score near 0."""

    def __init__(self, network: YoloModel, classes: TeacherClasses, num_classes: int):
        super().__init__()
        self.network, self.classes, self.num_classes = network, classes, num_classes
        self.reg_max, self.strides, self.distances = network.reg_max, network.strides, network.distances

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        raw_maps = []
        for raw in self.network(images):  # (B, 4R + classes of the teacher, h, w)
            boxes, logits = raw.split((4 * self.reg_max, raw.shape[1] - 4 * self.reg_max), dim=1)
            ours = logits.new_full((raw.shape[0], self.num_classes, *raw.shape[2:]), _NEVER)
            ours[:, list(self.classes.student)] = logits[:, list(self.classes.teacher)]
            raw_maps.append(torch.cat((boxes, ours), dim=1))
        return raw_maps


class PseudoLabels:
    """(batch, the teacher's raw maps) -> the batch with additional boxes of classes that are not labelled."""

    def __init__(
        self,
        classes: TeacherClasses,
        min_score: float,
        reg_max: int,
        strides: tuple[int, ...],
        nms_iou: float = 0.7,
        distances: Callable[[Tensor], Tensor] = expected_distances,
    ):
        """`nms_iou` as in `ops.nms`; `distances`: how the teacher's head decodes its box channels."""
        self.classes, self.min_score, self.reg_max, self.strides = classes, min_score, reg_max, strides
        self.nms_iou, self.distances = nms_iou, distances

    @torch.no_grad()
    def __call__(self, batch: Batch, raw_maps: Sequence[Tensor]) -> Batch:
        """Unchanged: a batch with complete labels, and images on which the teacher detects nothing."""
        if batch.labelled is None:
            return batch
        distributions, logits = flatten_maps(raw_maps, self.reg_max)
        boxes = decode_boxes(distributions, *anchors_of(raw_maps, self.strides), self.distances)
        scores = logits[..., list(self.classes.teacher)].sigmoid()
        rows = [self._row(batch, row, boxes[row], scores[row]) for row in range(len(batch))]
        all_boxes, all_labels = zip(*rows, strict=True)
        valid = pad_sequence([torch.ones_like(labels, dtype=torch.bool) for labels in all_labels], batch_first=True)
        return replace(
            batch,
            boxes=pad_sequence(list(all_boxes), batch_first=True),
            labels=pad_sequence(list(all_labels), batch_first=True),
            valid=valid,
            pair_limits=None,
        )

    def _row(self, batch: Batch, row: int, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (M, 4) and labels (M,) of one image: its labels, and the teacher's detections of other objects."""
        own = batch.boxes[row][batch.valid[row]], batch.labels[row][batch.valid[row]]
        assert batch.labelled is not None
        student = torch.tensor(self.classes.student, device=boxes.device)
        is_missing = ~batch.labelled[row][student]
        found = select_detections(boxes, scores * is_missing, self.min_score, self.nms_iou, MOST_DETECTIONS)
        height, width = batch.images.shape[2:]
        inside = found.boxes.clamp(min=0).minimum(found.boxes.new_tensor([width, height, width, height]))
        has_area = (inside[:, 2:] > inside[:, :2]).all(dim=1)
        is_new = (pairwise_iou(inside, own[0].to(inside.dtype)) < SAME_OBJECT).all(dim=1) & has_area
        return torch.cat((own[0], inside[is_new].to(own[0].dtype))), torch.cat((own[1], student[found.labels[is_new]]))
