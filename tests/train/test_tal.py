"""The assigner against a twin written with loops and numbers, and the cases that cost people days."""

import math

import pytest
import torch

from ops.anchors import make_anchors, pair_limits, points_inside
from train.tal import TaskAlignedAssigner


def slow_ciou(a, b):
    """Complete IoU of two boxes of plain numbers, from the paper."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    iou = inter / (area_a + area_b - inter)
    diagonal2 = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    distance2 = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    v = 4 / math.pi**2 * (math.atan((b[2] - b[0]) / (b[3] - b[1])) - math.atan((a[2] - a[0]) / (a[3] - a[1]))) ** 2
    alpha = v / (1 - iou + v) if v > 0 else 0
    return iou - distance2 / diagonal2 - alpha * v


def slow_assign(scores, boxes, points, gts, topk):
    """One image: point -> (class, box, target score), for points with a positive score. `gts`: [(class, box), ...]."""
    inside = [[p for p, (x, y) in enumerate(points) if b[0] < x < b[2] and b[1] < y < b[3]] for _, b in gts]
    overlap = [{p: max(slow_ciou(box, boxes[p]), 0) for p in inside[g]} for g, (_, box) in enumerate(gts)]
    metric = [{p: scores[p][cls] ** 0.5 * overlap[g][p] ** 6 for p in inside[g]} for g, (cls, _) in enumerate(gts)]
    wanted = [[p for p in sorted(m, key=lambda p, m=m: -m[p])[:topk] if m[p] > 0] for m in metric]
    owner = {}
    for p in range(len(points)):
        choosers = [g for g in range(len(gts)) if p in wanted[g]]
        if len(choosers) == 1:
            owner[p] = choosers[0]
        elif choosers:
            owner[p] = max((g for g in range(len(gts)) if p in overlap[g]), key=lambda g, p=p: overlap[g][p])
    result = {}
    for p, g in owner.items():
        kept = [q for q, h in owner.items() if h == g]
        share = metric[g][p] * max(overlap[g][q] for q in kept) / (max(metric[g][q] for q in kept) + 1e-9)
        if share > 0:
            result[p] = (*gts[g], share)
    return result


@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_agrees_with_the_slow_twin(seed, crowd):
    """In a crowd, boxes have points that overlap with nothing: these are never chosen, so they decide no conflict."""
    random = torch.Generator().manual_seed(seed)
    num_classes, count = 3, 20 if crowd else seed % 6
    points = make_anchors(((8, 8), (4, 4), (2, 2))).points
    low = torch.rand(count, 2, generator=random) * 40
    gt_boxes = torch.cat((low, low + 6 + torch.rand(count, 2, generator=random) * 40), 1)
    labels = torch.randint(0, num_classes, (count,), generator=random)
    reach = 3 + torch.rand(len(points), 4, generator=random) * 20
    boxes = torch.cat((points - reach[:, :2], points + reach[:, 2:]), 1)
    scores = torch.rand(len(points), num_classes, generator=random)
    topk = (1, 3, 10)[seed % 3]

    to64 = [t.double() for t in (scores, boxes, points, gt_boxes)]
    expected = slow_assign(
        to64[0].tolist(),
        to64[1].tolist(),
        to64[2].tolist(),
        list(zip(labels.tolist(), to64[3].tolist(), strict=True)),
        topk,
    )
    ours = TaskAlignedAssigner(topk, num_classes)(
        to64[0][None],
        to64[1][None],
        to64[2],
        labels[None, :, None],
        to64[3][None],
        torch.ones(1, count, 1, dtype=torch.bool),
    )
    found = ours.target_scores[0].sum(-1).nonzero()[:, 0].tolist()
    assert found == sorted(expected)
    for point, (label, box, share) in expected.items():
        assert ours.target_labels[0, point] == label
        assert ours.target_bboxes[0, point].tolist() == box
        assert ours.target_scores[0, point, label].item() == pytest.approx(share, rel=1e-5)
    assert count == 0 or seed == 1 or expected, "the scene shows nothing"


@pytest.mark.parametrize("spare", [0, 1, 500])
def test_padded_pairs_change_no_bit(spare):
    random = torch.Generator().manual_seed(1)
    points = make_anchors(((8, 8), (4, 4), (2, 2))).points
    low = torch.rand(3, 5, 2, generator=random) * 40
    gt = torch.cat((low, low + 6 + torch.rand(3, 5, 2, generator=random) * 40), -1)
    reach = 3 + torch.rand(3, len(points), 4, generator=random) * 20
    boxes = torch.cat((points - reach[..., :2], points + reach[..., 2:]), -1)
    scores, labels = torch.rand(3, len(points), 2, generator=random), torch.zeros(3, 5, 1)
    mask = torch.rand(3, 5, 1, generator=random) < 0.8
    args = [part.double() for part in (scores, boxes, points)] + [labels, gt.double(), mask]
    exact, count = TaskAlignedAssigner(3, 2)(*args), int((points_inside(points, gt) & mask).sum())
    most = int((points_inside(points, gt) & mask).sum(dim=-1).max())
    padded = TaskAlignedAssigner(3, 2)(*args, pair_limits=(count + spare, most + spare))
    assert exact.fg_mask.sum() > 20 and all(torch.equal(a, b) for a, b in zip(exact, padded, strict=True))


@pytest.mark.parametrize("min_side", [0, 16])
def test_the_limits_hold_for_boxes_of_every_size_and_place(min_side):
    random, points = torch.Generator().manual_seed(0), make_anchors(((40, 30), (20, 15), (10, 7))).points
    for size in (0.1, 3, 17, 100, 700, 1e6, math.inf):
        low = torch.rand(4, 6, 2, generator=random) * 400 - 50
        boxes = torch.cat((low, low + (0.1 + torch.rand(4, 6, 2, generator=random)) * size), -1)
        boxes[0, 0, 1], boxes[0, 1, 2] = -math.inf, math.nan
        counts, limits = points_inside(points, boxes, min_side).sum(dim=-1), pair_limits(boxes, (320, 240))
        assert counts.sum() <= limits[0] and counts.max() <= limits[1] <= len(points)
        if size < 700:
            assert limits[0] <= 4 * counts.sum() + 24 * 14 + len(points), "not far too many"
    whole = torch.tensor([[[0.0, 0.0, 240.0, 320.0]]])
    assert pair_limits(whole, (320, 240)) == (len(points), len(points))
    assert pair_limits(whole[:, :0], (320, 240)) == (0, 0)


def test_larger_sides_than_the_limits_hold_for_are_counted_again():
    """Boxes of a pixel, which count as 200 pixels long."""
    points = make_anchors(((40, 40),), (8,)).points
    boxes = torch.tensor([[[150.0, 150, 151, 151]]])
    near = torch.cat((points - 8, points + 8), -1)[None]
    args = torch.ones(1, 1600, 1), near, points, torch.zeros(1, 1, 1), boxes, torch.ones(1, 1, 1)
    limits, assigner = pair_limits(boxes, (320, 320)), TaskAlignedAssigner(10, 1, min_side=200)
    assert limits[1] < points_inside(points, boxes, 200).sum()
    for ours, expected in zip(assigner(*args, pair_limits=limits), assigner(*args), strict=True):
        assert torch.equal(ours, expected)


@pytest.fixture
def parts():
    points = make_anchors(((4, 4),), (8,)).points
    boxes = torch.cat((points - 8, points + 8), 1)[None]
    scores = torch.full((1, 16, 2), 0.5)
    return scores, boxes, points


def test_no_boxes_at_all(parts):
    out = TaskAlignedAssigner(10, 2)(*parts, torch.zeros(1, 0, 1), torch.zeros(1, 0, 4), torch.zeros(1, 0, 1))
    assert out.fg_mask.dtype == torch.bool and not out.fg_mask.any()
    assert out.target_scores.shape == (1, 16, 2) and out.target_scores.sum() == 0


def test_only_padding(parts):
    out = TaskAlignedAssigner(10, 2)(*parts, torch.zeros(1, 3, 1), torch.zeros(1, 3, 4), torch.zeros(1, 3, 1))
    assert out.fg_mask.dtype == torch.bool and not out.fg_mask.any()
    assert out.target_scores.sum() == 0


def test_padding_changes_nothing(parts):
    box = torch.tensor([[[2.0, 2, 30, 30]]])
    alone = TaskAlignedAssigner(10, 2)(*parts, torch.ones(1, 1, 1), box, torch.ones(1, 1, 1))
    padded = TaskAlignedAssigner(10, 2)(
        *parts,
        torch.ones(1, 4, 1),
        torch.cat((box, torch.zeros(1, 3, 4)), 1),
        torch.tensor([1.0, 0, 0, 0])[None, :, None],
    )
    assert alone.fg_mask.any()
    for a, b in zip(alone, padded, strict=True):
        assert torch.equal(a, b)


def test_an_image_alone_equals_the_image_in_a_batch():
    random = torch.Generator().manual_seed(0)
    points = make_anchors(((8, 8),), (8,)).points
    reach = 4 + torch.rand(3, 64, 4, generator=random) * 20
    boxes = torch.cat((points - reach[..., :2], points + reach[..., 2:]), -1)
    scores = torch.rand(3, 64, 2, generator=random)
    low = torch.rand(3, 4, 2, generator=random) * 30
    gt = torch.cat((low, low + 20), -1)
    labels, mask = torch.randint(0, 2, (3, 4, 1), generator=random), torch.ones(3, 4, 1)
    together = TaskAlignedAssigner(5, 2)(scores, boxes, points, labels, gt, mask)
    for i in range(3):
        one = slice(i, i + 1)
        alone = TaskAlignedAssigner(5, 2)(scores[one], boxes[one], points, labels[one], gt[one], mask[one])
        for a, b in zip(alone, together, strict=True):
            # Scores to the last digit only: the vector units of a CPU round the end of an array in another way.
            torch.testing.assert_close(a[0], b[i], rtol=1e-6 if a is alone.target_scores else 0, atol=0)


def test_no_gradient_leaves_and_half_precision_is_lifted(parts):
    scores, boxes, points = parts
    out = TaskAlignedAssigner(10, 2)(
        scores.bfloat16().requires_grad_(),
        boxes.bfloat16(),
        points,
        torch.ones(1, 1, 1),
        torch.tensor([[[2.0, 2, 30, 30]]]),
        torch.ones(1, 1, 1),
    )
    assert out.target_scores.dtype == torch.float32 and not out.target_scores.requires_grad
    assert out.target_scores.sum() > 0


def test_more_wanted_points_than_there_are():
    points = make_anchors(((1, 1),), (32,)).points
    box = torch.tensor([[[0.0, 0, 32, 32]]])
    out = TaskAlignedAssigner(10, 1)(torch.ones(1, 1, 1), box, points, torch.zeros(1, 1, 1), box, torch.ones(1, 1, 1))
    assert out.target_scores.item() == pytest.approx(1)
