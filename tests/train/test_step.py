"""Accumulated gradients, precision and the scaler, against a plain loop."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_step import batch_of
from torch import nn

from model import YoloModel
from train.ema import ModelEMA
from train.guard import BadStep
from train.loss import DetectionLoss, LossResult
from train.objective import DetectionObjective
from train.progress import EpochProgress, bar_text
from train.step import Stepper


def make(precision=torch.float32, sum_over_batch=True, ema=False):
    torch.manual_seed(0)
    model = YoloModel("nano", 3).train()
    for module in model.modules():  # a frozen batch norm, so that a batch of four equals twice a batch of two
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    loss = DetectionLoss(num_classes=3, reg_max=16, strides=(8, 16, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    average = ModelEMA(model) if ema else None
    return Stepper(model, DetectionObjective(loss), optimizer, average, precision, 10.0, sum_over_batch)


def weights(stepper):
    return torch.cat([p.detach().flatten() for p in stepper.model.parameters()])


@pytest.mark.parametrize("sum_over_batch", [True, False])
def test_gradients_of_several_batches_make_one_step(sum_over_batch):
    stepper, twin = make(sum_over_batch=sum_over_batch), make()
    batches = [batch_of(2, seed) for seed in range(3)]
    start = weights(stepper)
    for index, batch in enumerate(batches):
        values = stepper.add(batch, accumulate=3)
        assert ("grad_norm" in values) == (index == 2)
        assert torch.equal(weights(stepper), start) == (index < 2)
    twin.optimizer.zero_grad()
    for batch in batches:
        loss = twin.objective.loss(twin.model(batch.images.float() / 255), batch).total
        (loss * (2 if sum_over_batch else 1 / 3)).backward()
    torch.nn.utils.clip_grad_norm_(twin.model.parameters(), 10.0)
    twin.optimizer.step()
    torch.testing.assert_close(weights(stepper), weights(twin), rtol=0, atol=1e-7)


class MeanOverImages:
    """The loss is a mean over images, so that one large batch is an exact twin. Bright images count more."""

    parts, extra_modules, teacher_checksum = ("mean",), (), None

    def __call__(self, model, images, batch):
        outputs = torch.stack([raw.square().mean(dim=(1, 2, 3)) for raw in model(images)]).sum(dim=0)
        total = 1000 * (outputs * images.mean(dim=(1, 2, 3))).mean()
        return LossResult(total, {"mean": total.detach()})


def joined(batches):
    """One batch with the images of all."""
    fields = {
        name: torch.cat([getattr(one, name) for one in batches]) for name in ("images", "boxes", "labels", "valid")
    }
    return replace(batches[0], **fields, image_ids=tuple(name for one in batches for name in one.image_ids))


@pytest.mark.parametrize("sum_over_batch", [True, False])
@pytest.mark.parametrize(
    ("sizes", "accumulate"),
    [((2,), (1,)), ((2, 2), (2, 2)), ((2, 2), (4, 4)), ((3, 3, 1), (3, 3, 3)), ((2, 1), (5, 5)), ((2, 2, 2), (1, 2, 2)),
     ((2, 2, 2), (4, 4, 3))],
)  # fmt: skip
def test_accumulated_batches_equal_one_batch_of_all_their_images(sizes, accumulate, sum_over_batch):
    """A full step, an epoch's end before it is full, a smaller last batch, a number of batches that changes."""
    stepper, twin = make(sum_over_batch=sum_over_batch), make(sum_over_batch=sum_over_batch)
    for one in (stepper, twin):
        one.objective, one.gradient_clip = MeanOverImages(), float("inf")
    batches = [batch_of(size, seed) for seed, size in enumerate(sizes)]
    batches = [replace(one, images=one.images // (1 + 4 * place)) for place, one in enumerate(batches)]  # unlike others
    steps = []  # the batches of each step of the optimizer
    for batch, limit in zip(batches, accumulate, strict=True):
        steps = [*steps, []] if stepper.pending == 0 else steps
        steps[-1].append(batch)
        stepper.add(batch, limit)
    stepper.flush()
    for group in steps:
        twin.add(joined(group))
    assert stepper.steps == twin.steps == len(steps)
    moved = (weights(twin) - weights(make())).norm()
    assert moved > 1
    assert (weights(stepper) - weights(twin)).norm() < 1e-3 * moved


def test_flush_steps_with_what_waits_and_only_then():
    stepper = make(ema=True)
    assert stepper.flush() == {}
    start = weights(stepper)
    stepper.add(batch_of(2), accumulate=4)
    assert torch.equal(weights(stepper), start) and stepper.ema.steps == 0
    assert stepper.flush()["grad_norm"] > 0
    assert not torch.equal(weights(stepper), start) and stepper.ema.steps == 1
    assert stepper.flush() == {}


def test_bfloat16_computes_the_network_but_not_the_loss():
    stepper, exact = make(torch.bfloat16), make()
    seen = []
    hook = stepper.model.head.cls[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    batch = batch_of(4)
    values, expected = stepper.add(batch), exact.add(batch)
    hook.remove()
    assert seen == [torch.bfloat16]
    for name, value in values.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=1e-3)
    assert all(p.dtype == torch.float32 for p in stepper.model.parameters())
    assert not torch.equal(values["loss"], expected["loss"])  # else nothing was rounded


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_bad_batch_leaves_weights_momentum_and_average(accumulate):
    stepper = make(ema=True)
    stepper.add(batch_of(2))
    with torch.no_grad():
        stepper.model.head.box[0][0].conv.weight[0, 0, 0, 0] = float("inf")
    before = copy.deepcopy((stepper.optimizer.state_dict(), stepper.ema.state_dict()))
    start = weights(stepper)
    with pytest.raises(BadStep, match=r"not finite: loss .*images s1_0, s1_1"):
        stepper.add(batch_of(2, seed=1), accumulate)
    assert torch.equal(weights(stepper), start) and stepper.pending == 0
    after = (stepper.optimizer.state_dict(), stepper.ema.state_dict())
    for key, state in before[0]["state"].items():
        assert torch.equal(state["momentum_buffer"], after[0]["state"][key]["momentum_buffer"])
    assert all(torch.equal(value, after[1][name]) for name, value in before[1].items())


class SkippingScaler(torch.amp.GradScaler):
    """A scaler as on CUDA, on the CPU: enabled, and its scale is so large that gradients overflow."""

    def __init__(self):
        super().__init__("cpu", init_scale=2.0**127, enabled=True)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_scale_that_is_too_large_skips_the_step_and_is_lowered(accumulate):
    stepper = make(ema=True)
    stepper.scaler = SkippingScaler()
    start = weights(stepper)
    values = {**stepper.add(batch_of(2), accumulate), **stepper.flush()}
    assert values["grad_norm"] == 0 and torch.isfinite(values["loss"])
    assert torch.equal(weights(stepper), start) and stepper.ema.steps == 0
    assert stepper.scaler.get_scale() < 2.0**127
    twin = make()
    twin.scaler = SkippingScaler()
    twin.load_state_dict(stepper.state_dict())
    assert twin.scaler.get_scale() == stepper.scaler.get_scale()


def test_gradients_that_no_scale_makes_finite_stop_the_run():
    stepper = make()
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=0.5, enabled=True)
    parameter = next(stepper.model.parameters())
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(BadStep, match="not finite"):
        stepper.add(batch_of(2))


def test_means_count_each_name_by_itself():
    progress = EpochProgress()
    assert progress.means() == {}
    progress.add({"a": torch.tensor(1.0)}, 1)
    progress.add({"a": torch.tensor(2.0), "b": torch.tensor(5.0)}, 1)
    assert progress.means() == {"a": 1.5, "b": 5.0}
    assert bar_text(progress, ("b",)).keys() == {"b", "img/s"}
