"""Faults that the tracer was not written for: it names them, too."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_step import line_of, spoil_output, tiny_batch, tiny_step, traced
from torch import nn
from torch.utils.checkpoint import checkpoint

from debug.tracer.report import report_text
from train.loss import BoxLoss, ClassLoss

HERE = Path(__file__).name


def test_code_that_overwrites_a_weight_during_the_step():
    model, objective = tiny_step()

    def poison(x):
        with torch.no_grad():
            model.stem[2].conv.weight[0].fill_(math.nan)
        return x

    spoil_output(model.stem[1], poison)
    found = traced(model, objective)
    assert (found.producer.operation, found.producer.module) == ("aten.fill_.Scalar", "stem.1")
    assert line_of(found) == (HERE, "poison")
    assert not found.bad_weights and model.stem[2].conv.weight.isfinite().all()


def test_a_nan_out_of_numpy():
    model, objective = tiny_step()
    spoil_output(model.stem[1], lambda x: x + torch.from_numpy(np.array([np.nan], dtype=np.float32)))
    found = traced(model, objective)
    assert (found.producer.base, found.producer.source, found.cause.name) == (
        "add",
        "a constant",
        "constant in the code",
    )


def test_a_backward_hook_of_a_module():
    model, objective = tiny_step()
    model.stem[2].register_full_backward_hook(lambda module, to, of: tuple(gradient * math.inf for gradient in to))
    found = traced(model, objective)
    assert (found.phase, found.producer.base, line_of(found)[0]) == ("backward", "mul", HERE)


class Checkpointed(nn.Module):
    """Computes `inner` again in the backward pass, by the newer or the older method."""

    def __init__(self, inner, is_reentrant):
        super().__init__()
        self.inner, self.is_reentrant = inner, is_reentrant

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.is_reentrant)


@pytest.mark.filterwarnings("ignore:.*cpu.amp.autocast:FutureWarning")  # torch 2.4's own, in checkpoint
def test_a_root_inside_a_checkpointed_block():
    model, objective = tiny_step()
    inner = model.stem[2]
    spoil_output(inner, lambda x: x + (x * 0).sqrt())
    model.stem[2] = Checkpointed(inner, False)
    found = traced(model, objective)
    assert (found.phase, found.producer.node, found.producer.module) == ("backward", "SqrtBackward0", "stem.2.inner")
    assert line_of(found) == (HERE, "<lambda>")


def test_statistics_that_no_training_writes():
    model, objective = tiny_step()
    model.stem[1].eval()
    model.stem[1].bn.running_var[3] = -1.0
    found = traced(model, objective)
    assert (found.producer.module, found.cause.name) == ("stem.1.bn", "negative variance")
    assert line_of(found) == ("tiny_step.py", "forward")


def test_memory_that_was_never_written():
    model, objective = tiny_step()

    def leaky(x):
        places = torch.empty(x.shape)
        places.numpy()[:] = np.nan  # behind torch's back, as whatever lay there before
        places[:, 1:] = 0
        return x + places

    spoil_output(model.stem[1], leaky)
    found = traced(model, objective)
    assert (found.producer.base, found.cause.name) == ("add", "uninitialised memory")
    assert line_of(found) == (HERE, "leaky")


def test_infinities_in_a_buffer_may_be_intended():
    model, objective = tiny_step()
    model.register_buffer("mask", torch.full((8, 1, 1), -math.inf))
    model.mask[3:] = 0
    spoil_output(model.stem[1], lambda x: x + (x + model.mask).softmax(dim=1))
    found = traced(model, objective)
    assert found.producer is None and not found.bad_weights


def test_an_error_of_the_step_is_reported_with_what_was_found_before_it():
    model, objective = tiny_step()

    def fall(x):
        if not x.div(0).isfinite().all():
            raise ValueError("not finite")
        return x

    spoil_output(model.stem[1], fall)
    found = traced(model, objective)
    assert found.error == "ValueError: not finite" and [block.name for block in found.growth] == ["stem.0"]
    assert (found.producer.base, found.cause.name, line_of(found)) == ("div", "zero normaliser", (HERE, "fall"))


class Attention(nn.Module):
    """Causal attention; with diagonal=0 a cell is masked for itself, so that the first row is masked completely."""

    def __init__(self, cells, kind, diagonal=0):
        super().__init__()
        mask = torch.zeros(cells, cells).masked_fill(torch.ones(cells, cells).triu(diagonal).bool(), -math.inf)
        if kind == "buffer":
            self.register_buffer("mask", mask)
        else:
            self.mask = mask

    def forward(self, x):
        rows = x.flatten(2).mT
        scores = rows @ rows.mT + self.mask
        return x + (scores.softmax(dim=-1) @ rows).mT.view_as(x)


@pytest.mark.parametrize("kind", ["buffer", "plain tensor"])
def test_a_mask_that_leaves_a_row_nothing(kind):
    model, objective = tiny_step()
    model.stem[1].act = nn.Sequential(model.stem[1].act, Attention(64, kind))
    found = traced(model, objective)
    assert (found.phase, found.producer.base, found.cause.name) == ("forward", "_softmax", "everything masked")
    assert (found.producer.module, line_of(found)) == ("stem.1.act.1", (HERE, "forward"))
    written_by = "an infinity in stem.1.act.1.mask" if kind == "buffer" else "an infinity written by aten.add.Tensor"
    assert found.producer.source.startswith(written_by)
    model.stem[1].act[1] = Attention(64, kind, diagonal=1)
    assert traced(model, objective).producer is None


def test_a_spectrum_is_followed_too():
    model, objective = tiny_step()

    def phase_alone(x):
        spectrum = torch.fft.rfft2(x * 0)
        length = spectrum.abs()
        phase = spectrum / length
        return x + torch.fft.irfft2(phase * 2, s=x.shape[-2:])

    spoil_output(model.stem[1], phase_alone)
    found = traced(model, objective)
    assert (found.producer.base, found.cause.name, line_of(found)) == ("div", "zero normaliser", (HERE, "phase_alone"))
    assert found.producer.outputs[0].dtype == "complex64" and found.producer.input("self").nearest_zero == 0
    assert found.passed_on[0].startswith("aten.mul")


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_block_that_is_checkpointed_the_older_way(phase):
    model, objective = tiny_step()
    inner = model.stem[2]

    def mish(x):  # its forward pass hides what overflows
        return x * torch.tanh(torch.log(1 + torch.exp(1000 * x)))

    spoil_output(inner, mish if phase == "forward" else lambda x: x + (x * 0).sqrt())
    model.stem[2] = Checkpointed(inner, True)
    found = traced(model, objective)
    assert not found.error and found.producer.module == "stem.2.inner"
    expected = {"forward": ("exp", "exp overflow"), "backward": ("div", "root at zero, backward")}
    assert (found.producer.base, found.cause.name) == expected[phase]


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_that_divides_a_gradient_of_zeros_by_its_length(kind):
    model, objective = tiny_step()
    weight = model.stem[1].conv.weight
    with torch.no_grad():
        model.stem[1].bn.weight.zero_()

    def normalise(gradient):
        return gradient / gradient.norm()

    def normalise_in_place(parameter):
        parameter.grad.div_(parameter.grad.norm())

    getattr(weight, kind)(normalise if kind == "register_hook" else normalise_in_place)
    found = traced(model, objective)
    assert (found.phase, found.producer.tensor) == ("backward", "the gradient of stem.1.conv.weight")
    assert line_of(found)[1].startswith("normalise") and found.cause.name == "zero normaliser"


def test_gradients_of_others_stay_as_they_were():
    model, objective = tiny_step()
    stranger = torch.ones(1, requires_grad=True)
    stranger.grad = gradient = torch.full((1,), 7.0)
    spoil_output(model.stem[1], lambda x: x * stranger)
    assert traced(model, objective).producer is None
    assert stranger.grad is gradient and gradient == 7


def test_a_gain_below_zero_is_no_divergence():
    model, objective = tiny_step()
    objective.loss.parts = (BoxLoss(), ClassLoss(-0.5))
    found = traced(model, objective)
    assert (found.phase, found.producer.base, found.cause.name) == ("loss", "mul", "negative loss weight")
    assert line_of(found) == ("loss.py", "_compute")


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_a_deviation_of_a_single_value():
    model, objective = tiny_step()
    spoil_output(model.stem[1], lambda x: x + x.mean((2, 3), keepdim=True).std((2, 3), keepdim=True))
    found = traced(model, objective)
    assert (found.producer.base, found.cause.name) == ("std", "deviation of one value")


def test_pixels_far_out_of_range():
    model, objective = tiny_step()
    batch = tiny_batch()
    images = batch.images.float()
    images[1, 0, 3, 3] = 3e38
    object.__setattr__(batch, "images", images)
    found = traced(model, objective, batch)
    assert (found.phase, found.cause.name) == ("forward", "bad pixel")
    assert "images: pixel values up to 3e+38, expected 0 .. 255 (b)" in report_text(found)


def test_padding_that_is_not_finite_is_named():
    model, objective = tiny_step()
    batch = tiny_batch()
    batch.valid[1, 1] = False
    batch.boxes[1, 1] = math.nan
    found = traced(model, objective, batch)
    assert (found.phase, found.producer.tensor, found.producer.image_ids) == ("input", "boxes", ("b",))
    assert found.producer.source == "1 boxes are NaN or infinite, 1 of them padding"


def test_code_that_overwrote_a_weight_in_an_earlier_step():
    model, objective = tiny_step()
    weight = model.stem[2].conv.weight
    with torch.no_grad():
        weight[3].zero_()

    def normalise(module, args):
        with torch.no_grad():
            weight.div_(weight.flatten(1).norm(dim=1)[:, None, None, None])

    model.stem[2].conv.register_forward_pre_hook(normalise)
    model(tiny_batch().images.float())
    found = traced(model, objective)
    assert (found.phase, found.producer.tensor) == ("weights", "stem.2.conv.weight")
    assert (
        "aten.div_.Tensor in stem.2.conv at" in found.producer.source
        and "in normalise writes it during the step" in found.producer.source
    )
