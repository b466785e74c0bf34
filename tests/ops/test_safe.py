"""Arithmetic that stays finite, in value and gradient, against plain formulas and figures made by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from ops.anchors import decode_boxes, make_anchors
from ops.boxes import ciou, pairwise_iou
from ops.safe import binary_kl, kl, log_probabilities, safe_divide, safe_log, safe_normalise, total_of

SPREADS = (0.0, 1e-30, 1.0, 200.0, 1e3, 1e30)


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient_of(function, *values):
    values = [value.clone().requires_grad_() for value in values]
    result = function(*values)
    result.sum().backward()
    return result.detach(), [value.grad for value in values]


@pytest.mark.parametrize(
    ("numerator", "denominator", "least", "wanted"),
    [(0.0, 0.0, 1e-7, 0.0), (3.0, 4.0, 1e-7, 0.75), (3.0, 0.5, 1.0, 3.0), (1.0, 0.0, 0.5, 2.0)],
)
def test_division_by_a_sum(numerator, denominator, least, wanted):
    value, gradients = gradient_of(
        lambda a, b: safe_divide(a, b, least), torch.tensor(numerator), torch.tensor(denominator)
    )
    assert value.item() == pytest.approx(wanted)
    assert all(gradient.isfinite() for gradient in gradients)
    assert gradients[0].item() == pytest.approx(1 / max(denominator, least))
    if denominator < least:
        assert gradients[1].item() == 0


def test_division_broadcasts_and_takes_nothing():
    assert safe_divide(torch.ones(3, 2), torch.full((3, 1), 2.0)).tolist() == [[0.5, 0.5]] * 3
    assert safe_divide(torch.zeros(0), torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e25])
def test_normalised_vectors_are_the_plain_ones_at_any_length(scale):
    vectors = drawn(5, 7, dtype=torch.float64)
    found = safe_normalise((vectors * scale).float())
    torch.testing.assert_close(found, (vectors / vectors.norm(dim=1, keepdim=True)).float(), rtol=1e-6, atol=1e-7)


def test_the_gradient_of_normalising_is_right():
    assert torch.autograd.gradcheck(safe_normalise, drawn(3, 4, dtype=torch.float64).requires_grad_())
    assert torch.autograd.gradcheck(
        lambda x: safe_normalise(x, dim=0), drawn(3, 4, dtype=torch.float64).requires_grad_()
    )


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-12])
def test_a_vector_without_a_direction_is_zero_and_has_no_gradient(value):
    vectors = torch.tensor([[value, 0.0, 0.0], [3.0, 0.0, 4.0]])
    found, (gradient,) = gradient_of(safe_normalise, vectors)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.8]]))
    assert gradient[0].tolist() == [0, 0, 0] and gradient[1].isfinite().all()
    _, (plain,) = gradient_of(lambda x: F.normalize(x, dim=1), torch.zeros(1, 3))
    assert plain.max() > 1e10, "what this is for"


def test_no_gradient_of_normalising_is_larger_than_promised():
    short = drawn(200, 3) * torch.logspace(-9, 0, 200)[:, None]
    _, (gradient,) = gradient_of(safe_normalise, short)
    assert gradient.isfinite().all() and gradient.norm(dim=1).max() <= math.sqrt(3) * 1e6, "of ones, sqrt(3) long"


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_normalise(shape):
    assert safe_normalise(torch.zeros(shape)).shape == shape


def test_logarithms():
    value, (gradient,) = gradient_of(safe_log, torch.tensor([0.0, 1e-30, 0.5, 1.0]))
    torch.testing.assert_close(value, torch.tensor([1e-7, 1e-7, 0.5, 1.0]).log())
    assert gradient.tolist() == [0, 0, 2, 1]


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_divergences_are_finite_and_never_negative(spread, dtype):
    student, teacher = ((drawn(6, 9, seed=seed, dtype=torch.float64) * spread).to(dtype) for seed in (1, 2))
    for divergence in (lambda s, t: kl(log_probabilities(s), log_probabilities(t)), binary_kl):
        value, gradients = gradient_of(divergence, student, teacher)
        assert value.isfinite().all() and value.min() >= 0
        assert gradients[0].isfinite().all()
        assert divergence(student, student).abs().max() == 0


def test_divergences_by_hand():
    """Of (1/2, 1/2) from (1/4, 3/4): ln 2 / 2 + ln(2/3) / 2."""
    student, teacher = torch.tensor([0.0, math.log(3)]), torch.zeros(2)
    wanted = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert kl(log_probabilities(student), log_probabilities(teacher)).item() == pytest.approx(wanted, rel=1e-6)
    assert binary_kl(torch.tensor([-math.log(3)]), torch.zeros(1)).item() == pytest.approx(wanted, rel=1e-6)


def test_nearly_equal_distributions_do_not_diverge_below_zero():
    teacher = drawn(2000, 16, seed=3) * 5
    student = teacher + drawn(2000, 16, seed=4) * 1e-4
    assert kl(log_probabilities(student), log_probabilities(teacher)).min() >= 0
    assert binary_kl(student, teacher).min() >= 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sum_tells_of_every_bad_element(bad):
    for place in range(6):
        values = [torch.ones(2, 2), torch.ones(2)]
        (values[0].view(-1) if place < 4 else values[1])[place % 4] = bad
        assert not total_of(values).isfinite()
    assert not total_of([torch.tensor([math.inf]), torch.tensor([-math.inf])]).isfinite()
    assert torch.nan_to_num(safe_divide(torch.tensor(bad), torch.tensor(1.0)), nan=7, posinf=7, neginf=7) == 7


def test_a_sum_of_half_precision_does_not_overflow():
    assert total_of([torch.full((3, 1000), 6e4, dtype=torch.float16)]).item() == pytest.approx(1.8e8, rel=1e-3)
    assert total_of([]).item() == 0 and total_of([torch.zeros(0)]).item() == 0
    assert total_of([torch.ones(3, requires_grad=True)]).requires_grad is False


def test_boxes_and_divergences_are_not_rounded_by_autocast():
    distributions, anchors = drawn(1, 21, 64) * 3, make_anchors(((4, 4), (2, 2), (1, 1)))
    a, b = torch.rand(5, 2) * 20, torch.rand(5, 2) * 20 + 25
    boxes = torch.cat((a, b), dim=1)
    functions = (
        lambda: decode_boxes(distributions, *anchors),
        lambda: ciou(boxes, boxes.flip(0)),
        lambda: pairwise_iou(boxes, boxes.flip(0)),
        lambda: kl(log_probabilities(distributions), log_probabilities(distributions.flip(1))),
        lambda: binary_kl(distributions, distributions.flip(1)),
        lambda: safe_normalise(distributions),
    )
    for number, function in enumerate(functions):
        with torch.autocast("cpu", torch.bfloat16):
            inside = function()
        assert inside.dtype == torch.float32 and torch.equal(inside, function()), number


def test_overlaps_of_half_precision_boxes_do_not_overflow():
    """An area of 600 x 600 is beyond float16."""
    box = torch.tensor([[0.0, 0.0, 600.0, 600.0]], dtype=torch.float16)
    assert pairwise_iou(box, box).item() == pytest.approx(1)
    assert ciou(box, box).item() == pytest.approx(1)
