"""Our assigner equals the reference's on 300 random scenes, and a slow twin written from the paper agrees with both.

Compared wherever a target score is positive: a metric of exactly zero is a tie that the reference breaks by position.
"""

import pytest
import torch
from parity.table import largest_gap

from ops.anchors import make_anchors
from train.tal import TaskAlignedAssigner

KINDS = ("usual", "empty", "some empty", "crowded", "tiny", "border", "identical")
CLASSES = (1, 2, 7, 20, 80)


def scene(kind: str, seed: int, num_classes: int):
    """Predictions that partly fit their objects, as in the middle of a training; 128 x 96 pixels."""
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=random)

    anchors = make_anchors(((12, 16), (6, 8), (3, 4)))
    b, m = 3, {"empty": 0, "crowded": 40}.get(kind, 6)
    size, jitter = {"tiny": (14, 2), "crowded": (50, 8)}.get(kind, (90, 8))
    low = uniform(b, m, 2) * torch.tensor([128.0, 96.0]) - (20 if kind == "border" else 0)
    boxes = torch.cat((low, low + 1 + uniform(b, m, 2) * size), dim=-1)
    if kind == "identical":
        boxes = boxes[:, :1].expand(-1, m, -1).clone()
    valid = torch.ones(b, m, 1, dtype=torch.bool)
    if m:
        valid[0, m // 2 :] = False
    if kind == "some empty":
        valid[1] = False
    labels = torch.randint(0, num_classes, (b, m, 1), generator=random)
    reach = 4 + uniform(b, len(anchors.points), 4) * 40
    pred = torch.cat((anchors.points - reach[..., :2], anchors.points + reach[..., 2:]), dim=-1)
    if m:  # half of the points predict one of the objects, more or less
        chosen = torch.randint(0, m, (b, len(anchors.points)), generator=random)
        near = boxes.gather(1, chosen[..., None].expand(-1, -1, 4)) + (uniform(*pred.shape) - 0.5) * jitter
        pred = torch.where(uniform(b, len(anchors.points), 1) < 0.5, near, pred)
    scores = uniform(b, len(anchors.points), num_classes)
    return scores, pred, anchors.points, labels, boxes * valid, valid


def assert_same_targets(measured, ours, theirs):
    labels, boxes, scores, _, gt_idx = theirs
    positive = scores.sum(-1) > 0
    measured("assigner: target scores", largest_gap(ours.target_scores, scores), 1e-6)
    is_other = (ours.target_scores.sum(-1) > 0) != positive
    is_other |= positive & ((ours.target_labels != labels) | (ours.target_gt_idx != gt_idx) | ~ours.fg_mask)
    is_other |= positive & (ours.target_bboxes != boxes).any(-1)
    measured("assigner: positive points with another target", int(is_other.sum()), 0)
    assert ours.fg_mask.dtype == torch.bool


@pytest.mark.parametrize("kind", KINDS)
def test_targets_equal_the_reference(reference, measured, kind):
    positives = 0
    for seed in range(43):  # 7 kinds x 43 seeds = 301 scenes
        num_classes = CLASSES[seed % len(CLASSES)]
        args = scene(kind, seed, num_classes)
        ours = TaskAlignedAssigner(10, num_classes)(*args)
        *tensors, valid = args
        assigner = reference.assigner(num_classes)
        if kind == "crowded":
            reference.drop_ties(assigner)
        theirs = assigner(*tensors, valid.float())
        if kind == "empty":
            assert ours.target_scores.sum() == 0 and not ours.fg_mask.any()
            continue
        assert_same_targets(measured, ours, theirs)
        positives += int((theirs[2].sum(-1) > 0).sum())
    assert kind == "empty" or positives > 200


def test_enlarged_small_boxes_equal_the_later_reference(reference, measured):
    positives = 0
    for seed in range(40):
        args = scene("tiny", seed, 7)
        *tensors, valid = args
        ours = TaskAlignedAssigner(10, 7, min_side=16)(*args)
        theirs = reference.assigner(7, min_side=16)(*tensors, valid.float())
        assert_same_targets(measured, ours, theirs)
        positives += int((theirs[2].sum(-1) > 0).sum())
    assert positives > 200


def test_labels_and_mask_may_be_float_or_not():
    scores, pred, points, labels, boxes, valid = scene("usual", 0, 7)
    one = TaskAlignedAssigner(10, 7)(scores, pred, points, labels, boxes, valid)
    other = TaskAlignedAssigner(10, 7)(scores, pred, points, labels.float(), boxes, valid.float())
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)
