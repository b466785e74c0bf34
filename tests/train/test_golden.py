"""The loss told a second time, box by box and point by point from the papers, and a step of the optimizer by hand.

It needs no reference implementation: whoever has only this repository sees a changed loss here. Gradients are those
that automatic differentiation finds in the slow twin.
"""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config.mconfig import ModelConfig
from ops.batch import Batch
from train.loss import DetectionLoss, LossResult
from train.objective import DetectionObjective
from train.opt import build_optimizer
from train.step import Stepper

SIDE, STRIDES, BINS, NUM_CLASSES = 192, (8, 16, 32), 16, 3


class Point(NamedTuple):
    """What the head says at one place of one map."""

    x: float  # pixels
    y: float
    stride: int
    bins: Tensor  # (4, R) logits
    logits: Tensor  # (C,)

    def box(self) -> Tensor:
        """The expected box in pixels."""
        left, top, right, bottom = self.bins.softmax(1) @ torch.arange(BINS, dtype=torch.float64) * self.stride
        return torch.stack((self.x - left, self.y - top, self.x + right, self.y + bottom))


def points_of(raw_maps, image: int) -> list[Point]:
    found = []
    for raw, stride in zip(raw_maps, STRIDES, strict=True):
        for row in range(raw.shape[2]):
            for column in range(raw.shape[3]):
                values = raw[image, :, row, column]
                place = ((column + 0.5) * stride, (row + 0.5) * stride)
                found.append(Point(*place, stride, values[: 4 * BINS].view(4, BINS), values[4 * BINS :]))
    return found


def complete_iou(a: Tensor, b: Tensor) -> Tensor:
    """Equations 9 to 11 of arXiv 1911.08287; alpha carries no gradient."""
    size_a, size_b = a[2:] - a[:2], b[2:] - b[:2]
    inter = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
    iou = inter / (size_a.prod() + size_b.prod() - inter)
    diagonal2 = (torch.maximum(a[2:], b[2:]) - torch.minimum(a[:2], b[:2])).square().sum()
    distance2 = ((a[:2] + a[2:]) / 2 - (b[:2] + b[2:]) / 2).square().sum()
    v = 4 / math.pi**2 * (torch.atan(size_b[0] / size_b[1]) - torch.atan(size_a[0] / size_a[1])) ** 2
    alpha = (v / (1 - iou + v)).detach()
    return iou - distance2 / diagonal2 - alpha * v


def owners(points: list[Point], boxes: Tensor, labels: list[int]) -> tuple[dict[int, tuple[int, float]], int]:
    """Point -> the object it answers for and its target score, where positive; how many got one that chose others."""
    overlap, metric = [], []  # of each object: point inside it -> value
    for box, label in zip(boxes, labels, strict=True):
        x0, y0, x1, y1 = box.tolist()
        inside = [n for n, p in enumerate(points) if x0 < p.x < x1 and y0 < p.y < y1]
        overlap.append({n: max(complete_iou(points[n].box().detach(), box).item(), 0.0) for n in inside})
        scores = {n: points[n].logits[label].sigmoid().item() for n in inside}
        metric.append({n: scores[n] ** 0.5 * overlap[-1][n] ** 6 for n in inside})
    chosen = [set(sorted(one, key=one.get, reverse=True)[:10]) for one in metric]
    owner, num_given = {}, 0
    for n in set().union(*chosen):
        rivals = [g for g in range(len(labels)) if n in chosen[g]]
        if len(rivals) > 1:  # then all that contain it may have it
            rivals = [max((g for g in range(len(labels)) if n in overlap[g]), key=lambda g, n=n: overlap[g][n])]
            num_given += n not in chosen[rivals[0]]
        owner[n] = rivals[0]
    result = {}
    for n, g in owner.items():
        kept = [m for m, other in owner.items() if other == g]
        best = max(metric[g][m] for m in kept)
        share = metric[g][n] * max(overlap[g][m] for m in kept) / (best + 1e-9)
        if share > 0:
            result[n] = (g, share)
    return result, num_given


class Told(NamedTuple):
    """The loss, and what shows that the scene put it to the test."""

    parts: dict[str, Tensor]
    num_targets: int
    num_given: int  # points that two objects chose, and that a third has, which overlaps them more
    num_clamped: int  # sides that are farther away than the last bin reaches


def told_again(raw_maps, batch: Batch) -> Told:
    """The three parts with their gains."""
    box_loss = dfl_loss = cls_loss = torch.zeros((), dtype=torch.float64)
    total_share, num_targets, num_given, num_clamped = 0.0, 0, 0, 0
    for image in range(len(batch)):
        real = batch.valid[image]
        boxes, labels = batch.boxes[image][real].double(), batch.labels[image][real].tolist()
        points = points_of(raw_maps, image)
        cls_loss = cls_loss + sum(F.softplus(point.logits).sum() for point in points)
        owner, given = owners(points, boxes, labels)
        num_given += given
        for n, (g, share) in owner.items():
            point, box = points[n], boxes[g]
            cls_loss = cls_loss - share * point.logits[labels[g]]
            box_loss = box_loss + share * (1 - complete_iou(point.box(), box))
            away = torch.stack((point.x - box[0], point.y - box[1], box[2] - point.x, box[3] - point.y))
            sides = []
            for bins, distance in zip(point.bins, (away / point.stride).tolist(), strict=True):
                num_clamped += distance > BINS - 1
                distance = min(max(distance, 0), BINS - 1.01)
                left, rest = int(distance), distance - int(distance)
                sides.append(-(1 - rest) * bins.log_softmax(0)[left] - rest * bins.log_softmax(0)[left + 1])
            dfl_loss = dfl_loss + share * sum(sides) / 4
            total_share, num_targets = total_share + share, num_targets + 1
    normaliser = max(total_share, 1.0)
    parts = {"box": 7.5 * box_loss, "cls": 0.5 * cls_loss, "dfl": 1.5 * dfl_loss}
    return Told({name: value / normaliser for name, value in parts.items()}, num_targets, num_given, num_clamped)


WIDE = (5.0, 30.0, 185.0, 100.0)  # known at its left end only, from where the last bin does not reach the right one


def scene(seed: int, num_boxes: int) -> tuple[list[Tensor], Batch]:
    """Two images with objects, of which the second shows one, and raw maps that half know them, as in mid-training."""
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=random)

    low = uniform(2, num_boxes, 2) * 60
    boxes = torch.cat((low, low + 20 + uniform(2, num_boxes, 2) * 110), dim=2)
    boxes[:, 2:] = boxes[:, 1:2] + uniform(2, max(num_boxes - 2, 0), 4) * 12  # a crowd: its points are contested
    boxes[:, :1] = torch.tensor(WIDE)
    valid = torch.ones(2, num_boxes, dtype=torch.bool)
    valid[1, 1:] = False
    labels = torch.randint(0, NUM_CLASSES, (2, num_boxes), generator=random)
    images = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    batch = Batch(images, boxes * valid[..., None], labels * valid, valid, ("a", "b"))
    raw_maps = []
    for stride in STRIDES:
        cells = SIDE // stride
        raw = torch.randn(2, 4 * BINS + NUM_CLASSES, cells, cells, generator=random, dtype=torch.float64)
        for image, row, column in torch.cartesian_prod(*(torch.arange(count) for count in (2, cells, cells))).tolist():
            x, y, known = (column + 0.5) * stride, (row + 0.5) * stride, int(uniform(()) * 2 * num_boxes)
            if known < num_boxes and (known > 0 or (stride == 8 and x < WIDE[0] + 50)):
                x0, y0, x1, y1 = boxes[image, known].tolist()
                away = torch.tensor([x - x0, y - y0, x1 - x, y1 - y], dtype=torch.float64) / stride
                near = -(torch.arange(BINS) - away.clamp(0, BINS - 1)[:, None]).square()
                raw[image, : 4 * BINS, row, column] += near.flatten()
        raw_maps.append(raw.requires_grad_())
    return raw_maps, batch


@pytest.mark.parametrize(("seed", "num_boxes"), [(0, 4), (1, 8), (2, 1), (3, 0)])
def test_parts_and_gradients_equal_the_loss_told_again(seed, num_boxes):
    raw_maps, batch = scene(seed, num_boxes)
    told = told_again(raw_maps, batch)
    expected = torch.autograd.grad(sum(told.parts.values()), raw_maps)
    out = DetectionLoss(NUM_CLASSES)(raw_maps, batch)
    own = torch.autograd.grad(out.total, raw_maps)
    for name, value in told.parts.items():
        assert out.parts[name].item() == pytest.approx(value.item(), rel=1e-6), name
    for one, other in zip(own, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
    assert told.num_targets >= 10 * min(num_boxes, 2), "hardly a point answers for an object"
    assert told.num_clamped > 0 or num_boxes == 0, "no side is beyond the last bin"
    assert told.num_given > 0 or num_boxes < 8, "no point goes to an object that did not choose it"


def test_five_steps_of_sgd_by_hand():
    """Nesterov: v = m v + g, w -= r (g + m v); decay belongs to g, and to convolution weights alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double()
    mcfg = ModelConfig()
    optimizer = build_optimizer(mcfg, model)
    rate, momentum, decay = mcfg.baseLearningRate, mcfg.optimizerMomentum, mcfg.optimizerWeightDecay
    expected = {name: value.detach().clone() for name, value in model.named_parameters()}
    speed = {name: torch.zeros_like(value) for name, value in expected.items()}
    for _ in range(5):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            gradient = parameter.grad + (decay * expected[name] if name == "0.weight" else 0)
            speed[name] = momentum * speed[name] + gradient
            expected[name] = expected[name] - rate * (gradient + momentum * speed[name])
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-12)


class Steep(DetectionLoss):
    """Pulls at every weight with the same, given force."""

    def __init__(self, model: nn.Module, force: float):
        super().__init__(num_classes=1)
        self.model, self.force = model, force

    def __call__(self, raw_maps, batch: Batch) -> LossResult:
        return LossResult(self.force * torch.stack([p.sum() for p in self.model.parameters()]).sum())


@pytest.mark.parametrize(("force", "moved"), [(1.0, 1.0), (1000.0, 10 / math.sqrt(8))])
def test_a_gradient_longer_than_the_clip_is_shortened_to_it(force, moved):
    """Eight weights: pulled at by 1 each they are left alone, by 1000 the whole is 10 long."""
    model = nn.Conv2d(3, 2, 1)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepper = Stepper(
        model, DetectionObjective(Steep(model, force)), optimizer, None, torch.float32, 10.0, sum_over_batch=False
    )
    nothing = torch.zeros(1, 0)
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    values = stepper.add(Batch(images, torch.zeros(1, 0, 4), nothing.long(), nothing.bool(), ("a",)))
    assert values["grad_norm"].item() == pytest.approx(force * math.sqrt(8), rel=1e-5)
    for old, parameter in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(old - parameter.detach(), torch.full_like(old, 0.1 * moved), rtol=1e-4, atol=1e-6)
