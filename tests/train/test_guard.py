"""A bad step changes nothing: NaN and Inf in every place, with the plain and the deferred check, bit by bit."""

import copy
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny_step import batch_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from model import YoloModel
from ops.anchors import pair_limits
from ops.batch import Batch, network_input
from ops.random_states import random_states
from train.deferred import DeferredGuard
from train.ema import ModelEMA
from train.guard import BadStep, BatchNormStatistics, Guard, flag_of, over_all_ranks
from train.loss import DetectionLoss, LossResult
from train.objective import DetectionObjective
from train.opt import load_optimizer, start_momentum
from train.step import Stepper

NAN, INF = math.nan, math.inf


def make(late=False, patience=1, interval=0, adam=False, fused=None, precision=torch.float32, momentum=0.9) -> Stepper:
    torch.manual_seed(0)
    model = YoloModel("nano", 3).train()
    fused = late if fused is None else fused
    optimizer = (
        torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
        if adam
        else torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum, nesterov=momentum > 0, fused=fused)
    )
    objective = DetectionObjective(DetectionLoss(num_classes=3))
    guard = (DeferredGuard if late else Guard)(model, patience, interval)
    return Stepper(model, objective, optimizer, ModelEMA(model), precision, 10.0, True, guard)


def bits(value):
    """A digest of the bytes of every tensor in it, so that NaN equals NaN and 0.0 is not -0.0."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: bits(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(entry) for entry in value]
    return value


def state_of(stepper: Stepper):
    """All that a step moves."""
    optimizer = stepper.optimizer.state_dict()
    tensors = [one for state in optimizer["state"].values() for one in state.values()]
    return bits([stepper.model.state_dict(), tensors, stepper.ema.state_dict(), stepper.ema.steps, stepper.pending])


def stopped_by(stepper: Stepper, *batches: Batch, accumulate: int = 1) -> BadStep:
    """What comes of these batches, at the latest when all are judged."""
    try:
        for batch in batches:
            stepper.add(batch, accumulate)
        stepper.settle()
    except BadStep as error:
        return error
    raise AssertionError("nothing came of it")


class Tampered:
    """An objective whose result is changed on the way."""

    extra_modules: tuple[nn.Module, ...] = ()
    parts, teacher_checksum = ("box", "cls", "dfl"), None

    def __init__(self, objective, change: Callable[[LossResult], LossResult]):
        self.objective, self.change = objective, change

    def set_epoch(self, epoch): ...

    def compute_in(self, precision): ...

    def __call__(self, model, images, batch):
        return self.change(self.objective(model, images, batch))


def with_part(name, value):
    def change(out: LossResult) -> LossResult:
        return LossResult(out.total, {**out.parts, name: torch.tensor(value)}, out.must_be_finite)

    return change


def set_images(batch, value):
    images = batch.images.float()
    images[1, 2, 3, 4] = value
    object.__setattr__(batch, "images", images)  # the type says uint8, which holds no NaN
    return batch


def set_box(batch, value):
    batch.boxes[1, 0, 2] = value
    return batch


def in_map(value, channel):
    def hook(module, inputs, maps):
        changed = maps[1].clone()
        changed[0, channel, 1, 1] = value
        return [maps[0], changed, *maps[2:]]

    return hook


# Each takes a stepper and a batch, and gives the batch; what it changes in the stepper is part of the state before.
def pixel(value):
    return lambda stepper, batch: set_images(batch, value)


def box(value):
    return lambda stepper, batch: set_box(batch, value)


def label(value):
    def inject(stepper, batch):
        batch.labels[0, 1] = value
        return batch

    return inject


def raw_map(value, channel):
    def inject(stepper, batch):
        stepper.model.head.register_forward_hook(in_map(value, channel))
        return batch

    return inject


def part(name, value):
    def inject(stepper, batch):
        stepper.objective = Tampered(stepper.objective, with_part(name, value))
        return batch

    return inject


def total(value):
    def inject(stepper, batch):
        stepper.objective = Tampered(stepper.objective, lambda out: LossResult(out.total * value, out.parts))
        return batch

    return inject


def gradient(value):
    def inject(stepper, batch):
        weight = stepper.model.neck.l12.cv1.conv.weight

        def spoil(grad):
            grad = grad.clone()
            grad.view(-1)[5] = value
            return grad

        weight.register_hook(spoil)
        return batch

    return inject


def weight(value):
    def inject(stepper, batch):
        with torch.no_grad():
            stepper.model.neck.l12.cv1.conv.weight[0, 0, 0, 0] = value
        return batch

    return inject


def statistic(value):
    def inject(stepper, batch):
        stepper.model.backbone.l1.bn.running_var[2] = value
        return batch

    return inject


PLACES = {
    "NaN pixel": (pixel(NAN), "images nan"),
    "Inf pixel": (pixel(INF), "images inf"),
    "NaN box": (box(NAN), "^boxes, loss, box, dfl not finite: loss nan.*boxes nan"),
    "Inf box": (box(INF), "boxes inf"),
    "label that is no class": (label(3), "^labels outside the class list: loss .*labels nan"),
    "negative label": (label(-1), "labels nan"),
    "NaN class logit": (raw_map(NAN, 65), "raw maps nan"),
    "Inf box logit": (raw_map(INF, 3), "raw maps inf"),
    "-Inf box logit, of which the loss knows nothing": (raw_map(-INF, 3), "raw maps -inf"),
    "NaN part": (part("dfl", NAN), "dfl nan"),
    "Inf part": (part("cls", INF), "^cls not finite: .*cls inf"),
    "negative part": (part("kl", -0.5), "^kl below zero.*kl -0.5"),
    "NaN loss": (total(NAN), "loss nan"),
    "NaN gradient": (gradient(NAN), "grad_norm nan"),
    "Inf gradient": (gradient(INF), "grad_norm inf"),
    "NaN weight": (weight(NAN), "raw maps nan"),
    "Inf weight": (weight(INF), "raw maps nan"),
    "NaN statistic": (statistic(NAN), "statistics nan"),
    "Inf statistic": (statistic(INF), "statistics inf"),
}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize(
    ("place", "adam"), [*((place, False) for place in PLACES), ("NaN gradient", True), ("Inf pixel", True)]
)
def test_a_bad_step_leaves_no_trace(place, adam, late):
    inject, sentence = PLACES[place]
    stepper = make(late, adam=adam)
    for seed in range(2):
        stepper.add(batch_of(seed=seed))
    stepper.settle()
    batch = inject(stepper, batch_of(seed=7))
    before = state_of(stepper)
    error = stopped_by(stepper, batch)
    assert re.search(rf"{sentence}.*; epoch 1, batch 3, images s7_0, s7_1; ", str(error)), error
    assert state_of(stepper) == before
    assert all(parameter.grad is None for parameter in stepper.model.parameters())
    assert "\n" not in str(error) and error.snapshot.batch is batch


@pytest.mark.parametrize("late", [False, True])
def test_the_snapshot_is_what_the_step_began_with(late):
    stepper = make(late)
    stepper.guard.set_position(4, 10)
    stepper.add(batch_of())
    stepper.settle()
    buffers = {name: one.clone() for name, one in stepper.model.named_buffers()}
    random = random_states()
    batch = gradient(NAN)(stepper, batch_of(seed=1))
    error = stopped_by(stepper, batch, batch_of(seed=2))  # late, the second has run already and is held back, too
    snapshot = error.snapshot
    assert bits(snapshot.buffers) == bits(buffers) and len(buffers) == 3 * 57
    for name in ("torch", "numpy"):  # the type checker of the tests draws from Python's own generator
        assert bits(snapshot.random[name]) == bits(random[name])
    assert (snapshot.epoch, snapshot.step, snapshot.scale) == (4, 12, 1.0) and snapshot.batch is batch
    assert math.isnan(error.parts["grad_norm"]) and math.isfinite(error.parts["loss"])
    assert bits(dict(stepper.model.named_buffers())) == bits(buffers)


@pytest.mark.parametrize("adam", [False, True], ids=["SGD", "AdamW"])
def test_late_is_as_at_once_but_for_when_it_is_told(adam):
    """Good, bad, bad, good, ...: the same weights, momentum and statistics, bit for bit; values come a step later."""
    told, ends = [], []
    for late in (False, True):
        stepper = make(late, patience=3, adam=adam, fused=True)
        values = []
        for number, seed in enumerate([0, 1, 2, 3, 4, 5]):
            batch = batch_of(seed=seed)
            values.append(stepper.add(set_images(batch, NAN) if number in (0, 2, 3) else batch))
        values.append(stepper.flush())
        told.append(values[:-1] if not late else values[1:])
        assert values[-1 if not late else 0] == {} and stepper.bad_steps == 3 and stepper.ema.steps == 3
        tensors = [one for state in stepper.optimizer.state_dict()["state"].values() for one in state.values()]
        ends.append((bits([stepper.model.state_dict(), tensors]), stepper.ema.state_dict()))
    assert bits(told[0]) == bits(told[1]) and [bool(values) for values in told[0]] == [0, 1, 0, 0, 1, 1]
    assert ends[0][0] == ends[1][0]
    for one, other in zip(ends[0][1].values(), ends[1][1].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)  # late, the ramp was a step ahead at times


@pytest.mark.parametrize("late", [False, True], ids=["plain", "deferred"])
def test_momentum_of_a_skipped_first_step_starts_as_if_it_had_not_been(late):
    twin, stepper = make(late, fused=True), make(late, patience=2, fused=True)
    stepper.add(set_images(batch_of(), NAN))
    before = {name: one.clone() for name, one in stepper.model.named_buffers()}
    assert bits(before) == bits(dict(twin.model.named_buffers()))
    for one in (stepper, twin):
        one.add(batch_of(seed=1))
        one.settle()
    assert bits(stepper.model.state_dict()) == bits(twin.model.state_dict())


@pytest.mark.parametrize("late", [False, True], ids=["plain", "deferred"])
def test_a_backbone_that_is_unfrozen_later_gets_its_momentum(late):
    """Fused SGD, which CUDA uses, fails where only some parameters have a momentum."""
    stepper = make(late, fused=True)
    for parameter in stepper.model.backbone.parameters():
        parameter.requires_grad_(False)
    stepper.add(batch_of())
    for parameter in stepper.model.backbone.parameters():
        parameter.requires_grad_(True)
    before = stepper.model.backbone.l0.conv.weight.detach().clone()
    stepper.add(batch_of(seed=1))
    stepper.settle()
    assert not torch.equal(stepper.model.backbone.l0.conv.weight, before)


def test_zeros_are_the_momentum_that_the_first_step_makes():
    weights = [nn.Parameter(torch.randn(5, generator=torch.Generator().manual_seed(0))) for _ in range(2)]
    for number, parameter in enumerate(weights):
        optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, nesterov=True, fused=True)
        parameter.grad = torch.arange(5.0)
        if number:
            start_momentum(optimizer)
        optimizer.step()
    assert bits(weights[0].detach()) == bits(weights[1].detach())
    for settings in ({"fused": True}, {"momentum": 0.9}):  # without momentum; not fused
        plain = torch.optim.SGD(weights, lr=0.1, **settings)
        start_momentum(plain)
        assert not plain.state_dict()["state"]


@pytest.mark.parametrize("late", [False, True])
def test_patience_counts_steps_in_a_row(late):
    stepper = make(late, patience=2)
    batches = [batch_of(seed=seed) for seed in range(6)]
    for number in (1, 3, 4):
        set_images(batches[number], NAN)
    for batch in batches[:4]:
        stepper.add(batch)
    assert stepper.bad_steps >= 1
    stepper.settle()
    before = state_of(stepper)
    assert "images s4_0" in str(stopped_by(stepper, *batches[4:]))
    assert stepper.bad_steps == 3 and state_of(stepper) == before
    stepper.add(batches[0])  # and it could go on
    assert bool(stepper.flush()) == late
    assert state_of(stepper) != before


@pytest.mark.parametrize("late", [False, True])
def test_a_bad_batch_takes_those_with_it_that_wait_for_the_same_step(late):
    stepper = make(late, patience=5)
    stepper.add(batch_of())
    stepper.settle()
    weights = [one.detach().clone() for one in stepper.model.parameters()]
    steps = stepper.ema.steps
    stepper.add(batch_of(seed=1), accumulate=3)
    stepper.add(set_images(batch_of(seed=2), NAN), accumulate=3)
    stepper.add(batch_of(seed=3), accumulate=3)
    assert stepper.pending == (0 if late else 1)
    stepper.settle()
    assert bits(weights) == bits([one.detach() for one in stepper.model.parameters()])
    assert stepper.ema.steps == steps and stepper.bad_steps == 1
    stepper.add(batch_of(seed=4), accumulate=1)
    stepper.settle()
    assert bits(weights) != bits([one.detach() for one in stepper.model.parameters()]), "the next ones count"


@pytest.mark.parametrize("late", [False, True])
def test_the_batch_with_the_bad_gradient_is_blamed_and_not_the_one_that_steps(late):
    stepper = make(late)
    stepper.add(batch_of(seed=0), accumulate=3)
    batch = gradient(NAN)(stepper, batch_of(seed=1))
    error = stopped_by(stepper, batch, batch_of(seed=2), accumulate=3)
    assert "grad_norm nan" in str(error) and "images s1_0, s1_1" in str(error)


def test_values_of_a_good_step_are_those_of_a_plain_loop():
    stepper, twin = make(), make()
    batch = batch_of()
    values = stepper.add(batch)
    out = twin.objective(twin.model, network_input(batch.images), batch)
    (out.total * 2).backward()
    norm = torch.nn.utils.clip_grad_norm_(twin.model.parameters(), 10.0)
    wanted = {"loss": out.total.detach(), **out.parts, "grad_norm": norm}
    assert bits(values) == bits(wanted)


class Counting(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: numbers and lengths that are asked for."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal"):
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("adam", [False, True], ids=["SGD", "AdamW"])
def test_nothing_is_asked_of_the_device_late(adam, monkeypatch):
    """The host reads what was sent to it and nothing else."""
    stepper, counting = make(True, adam=adam), Counting()
    stepper.add(batch_of())
    batches = [batch_of(seed=seed) for seed in range(3)]
    batches = [
        replace(batch, pair_limits=pair_limits(batch.boxes, (64, 64))) for batch in batches
    ]  # as on the way to a GPU
    with counting:
        for batch in batches:
            stepper.add(batch)
    assert counting.waits == []
    with counting:
        make(False).add(batch_of())
    assert counting.waits, "or it would count nothing"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("adam", [False, True], ids=["SGD", "AdamW"])
def test_a_step_on_cuda_waits_for_nothing(adam):
    torch.manual_seed(0)
    model = YoloModel("nano", 3).train().cuda()
    kind = torch.optim.AdamW if adam else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=1e-3, fused=True)
    stepper = Stepper(
        model, DetectionObjective(DetectionLoss(3)), optimizer, ModelEMA(model), torch.float32, 10.0, True,
        DeferredGuard(model),
    )  # fmt: skip
    batches = [batch_of(seed=seed).to("cuda") for seed in range(5)]
    for batch in batches[:2]:  # anchors are made, kernels are loaded
        stepper.add(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = [stepper.add(batch) for batch in batches[2:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value["loss"].isfinite() and value["loss"].device.type == "cpu" for value in values)
    bad = batch_of(seed=9).to("cuda")
    bad.boxes[0, 0, 0] = NAN
    stepper.settle()
    before = state_of(stepper)
    assert "boxes nan" in str(stopped_by(stepper, bad, batches[0]))
    assert state_of(stepper) == before


class TooLarge(torch.amp.GradScaler):
    """As on CUDA: enabled, and its scale is so large that gradients overflow."""

    def __init__(self, scale=2.0**127):
        super().__init__("cpu", init_scale=scale, enabled=True)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_overflow_that_lowers_the_scale_is_no_bad_step(late, accumulate):
    stepper = make(late, fused=True)
    stepper.scaler = TooLarge()
    weights = bits(list(stepper.model.parameters()))
    for seed in range(2):
        stepper.add(batch_of(seed=seed), accumulate)
    stepper.flush()
    assert stepper.bad_steps == 0 and stepper.ema.steps == 0 and stepper.scaler.get_scale() < 2.0**127
    assert bits(list(stepper.model.parameters())) == weights
    momentum = [state["momentum_buffer"] for state in stepper.optimizer.state.values() if state]
    assert momentum and not any(buffer.any() for buffer in momentum), "not uninitialised memory"
    stepper.scaler = TooLarge(4.0)
    stepper.add(batch_of())
    assert bool(stepper.flush()) == late
    assert stepper.ema.steps == 1 and bits(list(stepper.model.parameters())) != weights


@pytest.mark.parametrize("late", [False, True])
def test_an_overflow_at_the_smallest_scale_is_a_bad_step(late):
    stepper = make(late, fused=True)
    stepper.scaler = TooLarge(0.5)
    batch = gradient(INF)(stepper, batch_of())
    before = state_of(stepper)
    error = stopped_by(stepper, batch)
    assert "grad_norm inf" in str(error) and error.snapshot.scale == 0.5
    assert state_of(stepper)[0] == before[0] and stepper.ema.steps == 0


def test_a_bad_forward_pass_in_float16_is_no_overflow():
    for late in (False, True):
        stepper = make(late, fused=True)
        stepper.scaler = TooLarge(8.0)
        assert "raw maps -inf" in str(stopped_by(stepper, raw_map(-INF, 3)(stepper, batch_of())))


PARTS_OF_THE_STATE = {
    "weight": lambda stepper: stepper.model.head.cls[0][2].weight,
    "average": lambda stepper: stepper.ema.model.neck.l15.cv1.conv.weight,
    "average of a statistic": lambda stepper: stepper.ema.model.neck.l15.cv1.bn.running_var,
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("where", PARTS_OF_THE_STATE)
def test_weights_and_average_are_looked_at_every_few_steps_and_when_asked(where, late):
    names = {
        "weight": "weights.head.cls.0.2.weight",
        "average": "EMA.neck.l15.cv1.conv.weight",
        "average of a statistic": "EMA.neck.l15.cv1.bn.running_var",
    }
    stepper = make(late, interval=3)
    stepper.add(batch_of())
    stepper.add(batch_of(seed=1))
    stepper.check_state()
    hook = None
    if where == "weight":  # as an update does that overflows: the forward pass knew nothing of it
        tensor = PARTS_OF_THE_STATE[where](stepper)
        hook = stepper.optimizer.register_step_post_hook(lambda *_: tensor.data.view(-1)[3:4].fill_(INF))
    else:
        PARTS_OF_THE_STATE[where](stepper).view(-1)[3] = NAN
    found = re.match(r"(.+) is not finite; epoch 1, batch 3", str(stopped_by(stepper, batch_of(seed=2))))
    assert found is not None and found[1] == names[where]
    with pytest.raises(BadStep, match="is not finite"):
        stepper.check_state()
    if hook is not None:
        hook.remove()


def test_a_bad_step_on_spoilt_weights_does_not_call_them_those_of_before():
    stepper = make()
    stepper.add(batch_of())
    assert "statistics are unchanged since the step before" in str(
        stopped_by(stepper, raw_map(NAN, 3)(stepper, batch_of()))
    )
    stepper = make()
    hook = stepper.optimizer.register_step_post_hook(lambda *_: stepper.model.head.cls[0][2].weight.data.fill_(NAN))
    stepper.add(batch_of())
    hook.remove()
    told = str(stopped_by(stepper, batch_of(seed=1)))
    assert "head.cls.0.2.weight was not finite before the optimizer step" in told and "unchanged" not in told


def test_momentum_and_masks_are_told_by_name():
    stepper = make(adam=True)
    stepper.add(batch_of())
    weight = stepper.model.neck.l15.cv1.conv.weight
    stepper.optimizer.state[weight]["exp_avg_sq"].view(-1)[3] = INF  # that weight would never move again
    with pytest.raises(BadStep, match=r"momentum\.neck\.l15\.cv1\.conv\.weight\.exp_avg_sq is not finite"):
        stepper.check_state()
    stepper = make()
    for network in (stepper.model, stepper.ema.model):
        network.neck.register_buffer("mask", torch.full((2,), -INF))
    stepper.add(batch_of())
    with pytest.raises(BadStep, match=r"weights\.neck\.mask is not finite.*persistent=False"):
        stepper.check_state()


def test_large_weights_that_only_add_up_to_infinity_are_no_alarm():
    stepper = make(interval=1)
    with torch.no_grad():
        for parameter in stepper.ema.model.head.parameters():
            parameter.fill_(3e38)
    stepper.add(batch_of())
    stepper.check_state()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("boxes", [0, 2])
def test_batches_without_objects_raise_no_alarm(late, boxes):
    stepper = make(late)
    batch = batch_of(boxes=boxes)
    batch.valid.fill_(False)
    stepper.add(batch)
    assert {**stepper.flush(), "loss": 0}["grad_norm"] > 0 if late else stepper.steps == 1


def test_a_trial_leaves_nothing_behind():
    stepper = make()
    stepper.add(batch_of())
    before = state_of(stepper)
    assert stepper.stays_finite_on(batch_of(seed=3))
    assert not stepper.stays_finite_on(set_images(batch_of(seed=3), NAN))
    assert state_of(stepper) == before


def test_late_needs_an_optimizer_that_can_be_held_back():
    with pytest.raises(ValueError, match="needs a fused optimizer"):
        make(True, fused=False)


def test_an_optimizer_stays_fused_whatever_wrote_its_state():
    stepper, other = make(False), make(True)
    for one in (stepper, other):
        one.add(batch_of())
    load_optimizer(other.optimizer, copy.deepcopy(stepper.optimizer.state_dict()))
    assert all(group["fused"] for group in other.optimizer.param_groups)
    load_optimizer(stepper.optimizer, other.optimizer.state_dict())
    assert not any(group["fused"] for group in stepper.optimizer.param_groups)


@pytest.mark.parametrize(
    ("numbers", "parts", "flag"),
    [([1.0], [], 0), ([1.0, NAN], [], 1), ([INF], [], 1), ([-3.0], [], 0), ([1.0], [-1.0], 1), ([1.0], [-1e-9], 0)],
)
def test_flags(numbers, parts, flag):
    found = flag_of([torch.tensor(one) for one in numbers], [torch.tensor(one) for one in parts])
    assert found.item() == flag and found.dtype == torch.float32 and over_all_ranks(found) is found


def test_statistics_of_a_network_without_batch_norm():
    statistics = BatchNormStatistics(nn.Linear(2, 2))
    assert statistics.capture() == () and statistics.named(()) == {}
    statistics.restore(())


def test_statistics_are_put_back_to_the_last_bit():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(2)))
    statistics = BatchNormStatistics(model)
    taken, before = statistics.capture(), copy.deepcopy(model.state_dict())
    for flag, is_back in ((None, True), (torch.tensor(1.0), True), (torch.tensor(0.0), False)):
        for buffer in model.buffers():
            buffer.fill_(NAN) if buffer.is_floating_point() else buffer.add_(5)
        statistics.restore(taken, flag)
        assert (bits(model.state_dict()) == bits(before)) == is_back
    named = statistics.named(taken)
    assert {name: one.shape for name, one in named.items()} == {name: one.shape for name, one in model.named_buffers()}
    assert bits(named) == bits({name: before[name] for name in named})
