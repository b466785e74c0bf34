"""The loss where no reference is needed: known answers, empty batches, precision, look-outs."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model import YoloModel
from ops.anchors import pair_limits
from ops.batch import Batch
from ops.probe import listening
from train.loss import DetectionLoss, LossResult


def empty_batch(b=2, m=0, side=64) -> Batch:
    return Batch(
        torch.zeros(b, 3, side, side, dtype=torch.uint8),
        torch.zeros(b, m, 4),
        torch.zeros(b, m, dtype=torch.long),
        torch.zeros(b, m, dtype=torch.bool),
        tuple(str(i) for i in range(b)),
    )


def maps(b=2, classes=3, side=64, value=0.0):
    return [torch.full((b, 64 + classes, side // s, side // s), value, requires_grad=True) for s in (8, 16, 32)]


@pytest.mark.parametrize("m", [0, 3])
def test_a_batch_without_boxes_is_finite_with_gradients(m):
    raw = maps()
    out = DetectionLoss(3)(raw, empty_batch(m=m))
    assert out.parts["box"] == 0 and out.parts["dfl"] == 0
    points = 2 * (64 + 16 + 4) * 3
    assert out.parts["cls"].item() == pytest.approx(0.5 * points * math.log(2), rel=1e-5)  # normaliser 1, gain .5
    out.total.backward()
    assert all(torch.isfinite(r.grad).all() and r.grad.abs().sum() > 0 for r in raw)


def test_a_perfect_prediction_costs_almost_nothing():
    """One box of 4 strides a side around each of its points cannot be right everywhere; one point can."""
    raw = [torch.zeros(1, 65, 1, 1) for _ in range(3)]
    logits = raw[2]  # stride 32, point (16, 16)
    logits[0, 64] = 40.0
    for side in range(4):
        logits[0, side * 16 + 1] = 40.0  # one stride to each side
    for other in raw[:2]:
        other[0, 64] = -40.0
    raw = [r.requires_grad_() for r in raw]
    batch = Batch(
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.tensor([[[-16.0, -16.0, 48.0, 48.0]]]),
        torch.zeros(1, 1, dtype=torch.long),
        torch.ones(1, 1, dtype=torch.bool),
        ("a",),
    )
    out = DetectionLoss(1)(raw, batch)
    assert out.parts["box"].item() == pytest.approx(0, abs=1e-5)
    assert out.parts["dfl"].item() == pytest.approx(0, abs=1e-5)
    assert out.total.item() == pytest.approx(sum(p.item() for p in out.parts.values()), abs=1e-6)


def test_wrong_classes_filtered_out_leave_a_background_batch():
    """What the assignment's teacher sees when an image holds none of its classes: a mask that is still boolean."""
    seen = {}
    with listening(lambda name, value: seen.setdefault(name, value)):
        out = DetectionLoss(3)(maps(), empty_batch(m=2))
    assert torch.isfinite(out.total)
    assert seen["loss.normaliser"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_and_autocast_are_lifted_to_float32(dtype):
    random = torch.Generator().manual_seed(0)
    raw = [torch.randn(2, 67, n, n, generator=random).to(dtype) for n in (8, 4, 2)]
    batch = empty_batch(m=1)
    batch.boxes[:, 0] = torch.tensor([4.0, 4, 50, 60])
    batch.valid[:] = True
    exact = DetectionLoss(3)([r.float() for r in raw], batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = DetectionLoss(3)(raw, batch)
    assert half.total.dtype == torch.float32
    torch.testing.assert_close(half.total, exact.total)


def test_gradients_of_class_and_distribution_terms_equal_finite_differences():
    """The box term is left to the parity test: CIoU's alpha carries no gradient by definition."""
    random = torch.Generator().manual_seed(3)
    raw = [torch.randn(1, 66, n, n, generator=random, dtype=torch.float64).requires_grad_() for n in (4, 2, 1)]
    batch = empty_batch(b=1, m=2, side=32)
    batch.boxes[0] = torch.tensor([[2.0, 3, 20, 25], [10, 8, 30, 31]])
    batch.labels[0] = torch.tensor([0, 1])
    batch.valid[:] = True
    loss = DetectionLoss(2, gains=(0.0, 0.5, 1.5))
    loss(raw, batch).total.backward()
    frozen = {}  # the assignment carries no gradient: hold it still while the maps are moved
    assigner = loss.assigner
    loss.assigner = lambda *args: frozen.setdefault("a", assigner(*args))
    checked = 0
    for tensor in raw:
        for index in torch.randint(0, tensor.numel(), (12,), generator=random).tolist():
            flat, step = tensor.data.view(-1), 1e-6
            before = flat[index].item()
            frozen or loss(raw, batch)
            flat[index] = before + step
            up = loss(raw, batch).total.item()
            flat[index] = before - step
            down = loss(raw, batch).total.item()
            flat[index] = before
            assert tensor.grad.view(-1)[index].item() == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-7)
            checked += 1
    assert checked == 36


def test_look_outs_are_free_when_nobody_listens_and_named_when_somebody_does():
    names = []
    with listening(lambda name, value: names.append(name)):
        batch = empty_batch(m=1)
        batch.valid[:] = True
        batch.boxes[:] = torch.tensor([4.0, 4, 50, 60])
        DetectionLoss(3)(maps(), batch)
    assert {"tal.score", "tal.overlap", "tal.metric", "tal.share", "tal.target"} <= set(names)
    assert {"loss.logits", "loss.pred_boxes", "loss.normaliser", "loss.ciou", "loss.dfl", "loss.box_part"} <= set(names)


# Classes that are not labelled on an image


def scene(labelled, classes=3, dtype=torch.float32):
    """Random maps, two images with one object each, of class 0 and of class 1."""
    random = torch.Generator().manual_seed(2)
    raw = [torch.randn(2, 64 + classes, n, n, generator=random, dtype=dtype).requires_grad_() for n in (8, 4, 2)]
    batch = empty_batch(m=1)
    batch.boxes[:, 0] = torch.tensor([[4.0, 4, 50, 60], [10, 8, 40, 40]])
    batch.labels[:, 0] = torch.tensor([0, 1])
    batch.valid[:] = True
    return raw, replace(batch, labelled=None if labelled is None else torch.tensor(labelled))


def class_gradients(labelled):
    """Gradients of the class logits (B, A, C), and which of them have a target above zero."""
    raw, batch = scene(labelled)
    loss, seen = DetectionLoss(3), {}
    assigner = loss.assigner
    loss.assigner = lambda *args: seen.setdefault("assigned", assigner(*args))
    loss(raw, batch).total.backward()
    gradients = torch.cat([r.grad[:, 64:].flatten(2) for r in raw], dim=2).transpose(1, 2)
    return gradients, seen["assigned"].target_scores > 0


def test_where_all_is_labelled_the_loss_is_the_same_to_the_last_bit():
    results = []
    for labelled in (None, [[True] * 3] * 2):
        raw, batch = scene(labelled)
        out = DetectionLoss(3)(raw, batch)
        out.total.backward()
        results.append([out.total, *out.parts.values(), *(r.grad for r in raw)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_class_that_is_not_labelled_learns_no_background_on_that_image():
    whole, is_target = class_gradients(None)
    assert (whole != 0).all(), "else there is nothing to see"
    masked, same_targets = class_gradients([[True, True, False], [False, True, True]])
    assert torch.equal(is_target, same_targets)
    is_object = is_target.any(dim=2, keepdim=True)
    speaks = is_object | torch.tensor([[True, True, False], [False, True, True]])[:, None]
    assert (masked[~speaks] == 0).all()
    assert torch.equal(masked[speaks], whole[speaks]), "all else is as it was"
    assert 0 < (~speaks).sum() < speaks.numel()


def test_an_object_teaches_that_it_is_of_its_class_and_of_no_other_even_where_none_is_labelled():
    whole, is_target = class_gradients(None)
    masked, _ = class_gradients([[False] * 3] * 2)
    assert is_target[0, :, 0].any() and is_target[1, :, 1].any()
    is_object = is_target.any(dim=2)
    assert torch.equal(masked[is_object], whole[is_object])
    assert (masked[is_object & ~is_target.all(dim=2)] != 0).all(), "the other classes hear that it is none of theirs"
    assert (masked[~is_object] == 0).all()


def test_boxes_are_learned_whatever_is_labelled():
    out, masked = (DetectionLoss(3)(*scene(labelled)) for labelled in (None, [[False] * 3] * 2))
    assert torch.equal(out.parts["box"], masked.parts["box"]) and torch.equal(out.parts["dfl"], masked.parts["dfl"])
    assert masked.parts["cls"] < out.parts["cls"]


def test_nothing_labelled_and_no_object_teaches_nothing():
    raw, batch = maps(), replace(empty_batch(), labelled=torch.zeros(2, 3, dtype=torch.bool))
    out = DetectionLoss(3)(raw, batch)
    out.total.backward()
    assert out.total == 0
    assert all((r.grad == 0).all() for r in raw)


@pytest.mark.parametrize("seed", range(4))
def test_the_class_loss_is_that_of_a_slow_twin(seed):
    labelled = (torch.rand(2, 3, generator=torch.Generator().manual_seed(seed)) < 0.5).tolist()
    raw, batch = scene(labelled, dtype=torch.float64)
    loss, seen = DetectionLoss(3, gains=(0.0, 1.0, 0.0)), {}
    assigner = loss.assigner
    loss.assigner = lambda *args: seen.setdefault("targets", assigner(*args))
    total = loss(raw, batch).total.item()
    targets = seen["targets"].target_scores.tolist()
    logits = torch.cat([r[:, 64:].flatten(2) for r in raw], dim=2).transpose(1, 2).tolist()
    expected = mass = 0.0
    for b, image in enumerate(targets):
        for a, point in enumerate(image):
            for c, target in enumerate(point):
                mass += target
                if labelled[b][c] or max(point) > 0:
                    score = 1 / (1 + math.exp(-logits[b][a][c]))
                    expected -= target * math.log(score) + (1 - target) * math.log(1 - score)
    assert mass > 1
    assert total == pytest.approx(expected / mass, rel=1e-6)


def test_from_config_takes_what_the_model_has():
    from config.mconfig import ModelConfig

    mcfg = ModelConfig()
    mcfg.lossWeights, mcfg.talTopk = (1, 2, 3), 7
    loss = DetectionLoss.from_config(mcfg, YoloModel("nano", 4, reg_max=8))
    assert (loss.num_classes, loss.reg_max, loss.assigner.topk) == (4, 8, 7)
    assert [(part.name, part.weight) for part in loss.parts] == [("box", 1), ("cls", 2), ("dfl", 3)]


class HostRoundTrips(TorchDispatchMode):
    """Notes every operation that on a GPU would wait for the device to tell the host a number or a length."""

    WAITS = (
        "_local_scalar_dense",
        "nonzero",
        "unique",
        "masked_select",
        "is_nonzero",
        "equal.",
        "repeat_interleave",
    )

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func.name().startswith("aten::index.") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or any(word in func.name() for word in self.WAITS):
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("labelled", [None, torch.tensor([[True, False, True], [False, False, True]])])
@pytest.mark.parametrize("m", [0, 4])
def test_no_host_round_trip_forwards_or_backwards(m, labelled):
    batch = replace(empty_batch(m=m), labelled=labelled)
    batch.boxes[:] = torch.tensor([4.0, 4, 50, 60])
    batch.valid[:, :2] = True
    batch = replace(batch, pair_limits=pair_limits(batch.boxes, (64, 64)))
    raw, loss = maps(), DetectionLoss(3)
    with HostRoundTrips() as trips:
        loss(raw, batch).total.backward()
    assert trips.found == []
    with HostRoundTrips() as trips:  # the net has no hole: these are what it is there to catch
        raw[0][raw[0] > 0].sum().item()
    assert len(trips.found) >= 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", range(4))
def test_a_box_that_is_not_finite_reaches_the_loss_and_is_no_index(bad, side):
    """As an index, NaN is a number far outside, which on a GPU ends the process instead of the step."""
    batch = empty_batch(m=1)
    batch.valid[0, 0], batch.boxes[0, 0] = True, torch.tensor([8.0, 8.0, 40.0, 40.0])
    for is_counted in (False, True):
        batch.boxes[0, 0] = torch.tensor([8.0, 8.0, 40.0, 40.0])
        limits = pair_limits(batch.boxes, (64, 64)) if is_counted else None
        out = DetectionLoss(3)(maps(), replace(batch, pair_limits=limits))
        assert out.total.isfinite() and all(value.isfinite() for value in out.must_be_finite.values())
        batch.boxes[0, 0, side] = bad
        limits = pair_limits(batch.boxes, (64, 64)) if is_counted else None
        # No anchor point is inside a box of NaN, so the loss alone would not show it.
        out = DetectionLoss(3)(maps(), replace(batch, pair_limits=limits))
        assert not out.must_be_finite["boxes"].isfinite() and out.must_be_finite["raw maps"].isfinite()


def test_what_is_watched_beside_the_parts():
    healthy = DetectionLoss(3)(maps(), empty_batch()).must_be_finite
    assert set(healthy) == {"raw maps", "boxes", "labels"} and all(value.isfinite() for value in healthy.values())
    raw_maps = [one.detach() for one in maps()]
    raw_maps[2][1, 5, 0, 0] = -math.inf
    assert not DetectionLoss(3)(raw_maps, empty_batch()).must_be_finite["raw maps"].isfinite()


class OwnLoss(DetectionLoss):
    """A user's own formula in place of ours."""

    def _compute(self, raw_maps, batch) -> LossResult:
        total = raw_maps[0].sum() * 0
        return LossResult(total, {"own": total.detach()}, {"mine": total.detach() + 1})


def test_a_formula_of_the_users_own_is_watched_too():
    batch = empty_batch(m=1)
    batch = replace(batch, labels=torch.full_like(batch.labels, 7), valid=torch.ones_like(batch.valid))
    broken = [torch.full_like(maps()[0], math.inf), *maps()[1:]]
    found = OwnLoss(3)(maps(), batch)
    assert found.must_be_finite["labels"].isnan() and found.must_be_finite["mine"] == 1 and found.top_logit is None
    assert not OwnLoss(3)(broken, empty_batch()).must_be_finite["raw maps"].isfinite()
