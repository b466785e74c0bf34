"""Pseudo-labels: the teacher's detections as labels of classes that are not labelled."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ops.anchors import anchors_of, decode_boxes, flatten_maps
from ops.batch import Batch
from ops.boxes import pairwise_iou
from ops.nms import select_detections
from train.teacher import TeacherClasses

SAME_OBJECT = 0.5  # a detection with at least this IoU with a label is the labelled object


class PseudoLabels:
    """(batch, the teacher's raw maps) -> the batch with additional boxes of classes that are not labelled."""

    def __init__(
        self,
        classes: TeacherClasses,
        min_score: float,
        reg_max: int,
        strides: tuple[int, ...],
        nms_iou: float = 0.7,
        most: int = 100,
    ):
        """`most`: largest number of detections per image; `nms_iou` as in `ops.nms`."""
        self.classes, self.min_score, self.reg_max, self.strides = classes, min_score, reg_max, strides
        self.nms_iou, self.most = nms_iou, most

    @torch.no_grad()
    def __call__(self, batch: Batch, raw_maps: Sequence[Tensor]) -> Batch:
        """Unchanged: a batch with complete labels, and images on which the teacher detects nothing."""
        if batch.labelled is None:
            return batch
        distributions, logits = flatten_maps(raw_maps, self.reg_max)
        boxes = decode_boxes(distributions, *anchors_of(raw_maps, self.strides))
        scores = logits[..., list(self.classes.teacher)].sigmoid()
        rows = [self._row(batch, row, boxes[row], scores[row]) for row in range(len(batch))]
        all_boxes, all_labels = zip(*rows, strict=True)
        valid = pad_sequence([torch.ones_like(labels, dtype=torch.bool) for labels in all_labels], batch_first=True)
        return replace(
            batch,
            boxes=pad_sequence(list(all_boxes), batch_first=True),
            labels=pad_sequence(list(all_labels), batch_first=True),
            valid=valid,
        )

    def _row(self, batch: Batch, row: int, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (M, 4) and labels (M,) of one image: its labels, and the teacher's detections of other objects."""
        own = batch.boxes[row][batch.valid[row]], batch.labels[row][batch.valid[row]]
        assert batch.labelled is not None
        student = torch.tensor(self.classes.student, device=boxes.device)
        is_missing = ~batch.labelled[row][student]
        found = select_detections(boxes, scores * is_missing, self.min_score, self.nms_iou, self.most)
        height, width = batch.images.shape[2:]
        inside = found.boxes.clamp(min=0).minimum(found.boxes.new_tensor([width, height, width, height]))
        has_area = (inside[:, 2:] > inside[:, :2]).all(dim=1)
        is_new = (pairwise_iou(inside, own[0].to(inside.dtype)) < SAME_OBJECT).all(dim=1) & has_area
        return torch.cat((own[0], inside[is_new].to(own[0].dtype))), torch.cat((own[1], student[found.labels[is_new]]))
