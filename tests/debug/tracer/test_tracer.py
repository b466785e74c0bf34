"""Faults of loss, batch and weights, injected from outside: does the tracer name the place of the fault?"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_step import line_of, spoil_output, tiny_batch, tiny_step, traced

from debug.tracer.report import report_text

HERE = Path(__file__).name


def test_a_good_step_gives_the_growth_table_alone():
    found = traced(*tiny_step())
    assert found.producer is None and found.phase is None and found.cause is None and not found.is_reproduced
    assert [block.name for block in found.growth] == [
        "stem.0",
        "stem.1",
        "head.0",
        "stem.2",
        "head.1",
        "stem.3",
        "head.2",
    ]
    assert set(found.parts) == {"box", "cls", "dfl"} and "tal.metric" in found.probes
    assert "nothing bad" in report_text(found)


@pytest.mark.parametrize("boxes", [0, 2])
@pytest.mark.parametrize("count", [1, 3])
def test_no_alarm_where_nothing_is_wrong(count, boxes):
    model, objective = tiny_step()
    assert traced(model, objective, tiny_batch(count, boxes)).producer is None


def test_logits_passed_to_the_assigner():
    model, objective = tiny_step()
    real = objective.loss.assigner
    objective.loss.assigner = lambda scores, *rest: real(scores.logit(), *rest)
    found = traced(model, objective)
    assert (found.phase, found.producer.base, found.producer.tensor) == ("loss", "pow", "tal.metric")
    assert line_of(found) == ("tal.py", "_metric")
    assert found.cause.name == "negative base"
    assert found.producer.input("self").low < 0 and found.producer.numbers == {"exponent": 0.5}
    assert found.producer.image_ids == ("a", "b", "c")


def test_a_normaliser_of_zero():
    model, objective = tiny_step()
    real = objective.loss.assigner

    def assign(*values):
        found = real(*values)
        share = found.target_scores / found.target_scores.sum(dim=(0, 1, 2), keepdim=True).mul(0)
        return found._replace(target_scores=share)

    objective.loss.assigner = assign
    found = traced(model, objective)
    assert (found.phase, found.producer.base, found.cause.name) == ("loss", "div", "zero normaliser")
    assert line_of(found) == (HERE, "assign") and line_of(found, 1)[0] == "loss.py"
    assert found.producer.tensor == "loss.normaliser"
    assert found.producer.input("other").nearest_zero == 0


def test_a_softmax_whose_logarithm_is_taken_as_in_cwd():
    model, objective = tiny_step()

    def cwd(maps):
        flat = maps.flatten(2) * 1000
        share = flat.softmax(dim=-1)
        return maps + (share * share.log()).sum()

    spoil_output(model.head[1], cwd)
    found = traced(model, objective)
    assert (found.phase, found.producer.base, found.cause.name) == ("forward", "log", "log of zero")
    assert found.producer.module == "head.1"
    assert line_of(found) == (HERE, "cwd")
    assert found.passed_on[0].startswith("aten.mul")


def test_a_divergence_below_zero():
    model, objective = tiny_step()

    def unequal(inputs):
        share = inputs.logits.softmax(dim=-1)
        entropy = -(share * share.clamp(min=1e-2).log()).sum(dim=-1)
        crossed = -(share * share.clamp(min=0.5).log()).sum(dim=-1)
        return (crossed - entropy).sum() * 3

    objective.loss.parts = (*objective.loss.parts[:1], ClassPart(unequal))
    found = traced(model, objective)
    assert found.parts["cls"] < 0
    assert (found.phase, found.cause.name, line_of(found)) == ("loss", "negative divergence", (HERE, "unequal"))
    assert found.producer.base in ("sub", "sum")


@dataclass
class ClassPart:
    """A class loss that is computed by a function."""

    compute: Callable
    weight: float = 0.5
    name: str = "cls"

    def __call__(self, inputs):
        return self.compute(inputs)


def test_several_divergences_below_zero_that_are_joined():
    model, objective = tiny_step()

    def divergence(logits):
        log_t = logits.log_softmax(dim=-1).clamp(min=-0.1)
        log_s = logits.log_softmax(dim=-1).clamp(min=-0.05)
        return (log_t.exp() * (log_t - log_s)).sum(dim=-1)

    def joined(inputs):
        return torch.stack([divergence(inputs.logits * scale).sum() for scale in (1, 2, 3)]).sum()

    objective.loss.parts = (*objective.loss.parts[:1], ClassPart(joined))
    found = traced(model, objective)
    assert (found.phase, found.cause.name, line_of(found)) == ("loss", "negative divergence", (HERE, "divergence"))


def test_a_pixel_that_is_nan():
    model, objective = tiny_step()
    batch = tiny_batch()
    images = batch.images.float()
    images[1, 0, 3, 3] = math.nan
    object.__setattr__(batch, "images", images)
    found = traced(model, objective, batch)
    assert (found.phase, found.producer.tensor, found.producer.image_ids) == ("input", "images", ("b",))
    assert found.cause.name == "bad pixel" and "1 pixel values" in found.producer.source
    assert math.isnan(batch.images[1, 0, 3, 3])  # and the batch is as it was
    assert float(batch.images[0].max()) > 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_box_that_is_not_finite(value):
    model, objective = tiny_step()
    batch = tiny_batch()
    batch.boxes[2, 0, 1] = value
    found = traced(model, objective, batch)
    assert (found.phase, found.producer.tensor, found.producer.image_ids) == ("input", "boxes", ("c",))
    assert found.cause.name == "bad box"


def test_padding_may_hold_anything():
    model, objective = tiny_step()
    batch = tiny_batch()
    batch.valid[:, 1] = False
    batch.labels[:, 1] = 77
    assert traced(model, objective, batch).producer is None


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class(label):
    model, objective = tiny_step()
    batch = tiny_batch()
    batch.labels[1, 1] = label
    found = traced(model, objective, batch)
    assert (found.phase, found.producer.tensor, found.producer.image_ids) == ("input", "labels", ("b",))
    assert f"labels {label}" in found.producer.source


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite(value):
    model, objective = tiny_step()
    with torch.no_grad():
        model.stem[2].conv.weight[0, 0, 0, 0] = value
    found = traced(model, objective)
    assert (found.phase, found.producer.tensor) == ("weights", "stem.2.conv.weight")
    assert found.cause.name == "bad weight" and found.bad_weights == ["stem.2.conv.weight"]
    assert found.producer.module == "stem.2.conv"


def test_a_bad_weight_is_looked_up_in_the_file_it_came_from(tmp_path):
    model, objective = tiny_step()
    torch.save(model.state_dict(), tmp_path / "good.pth")
    with torch.no_grad():
        model.stem[2].conv.weight[0, 0, 0, 0] = math.inf
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    for name, words in (("good", "is finite in"), ("other", "is not in"), ("nowhere", "it is not known whether")):
        found = traced(model, objective, weights_file=tmp_path / f"{name}.pth")
        assert len(found.notes) == 1 and f"{name}.pth" in found.notes[0] and words in found.notes[0]


def test_infinities_that_are_masked_away_are_not_called_the_producer():
    model, objective = tiny_step()
    spoil_output(model.stem[1], lambda x: x + x.masked_fill(x > x.mean(), -math.inf).softmax(dim=1))
    spoil_output(model.stem[2], lambda x: x + torch.where(x > 0, x.detach().clamp(min=0).log(), 0.0).clamp(-1, 1))
    found = traced(model, objective)
    assert found.producer is None and found.num_harmless >= 2

    spoil_output(model.head[2], lambda x: x / (x - x).sum())
    found = traced(model, objective)
    assert (found.producer.base, found.producer.module, found.cause.name) == ("div", "head.2", "zero normaliser")


def test_an_infinity_without_effect_is_distinguished_from_the_producer():
    """The logarithm's -inf ends in a softmax, where it does no harm; the NaN beside it does."""
    model, objective = tiny_step()

    def attention(x):
        mask = (x > x.mean()).float().detach()
        scores = x + x.detach().sub(100).sqrt().mul(mask.sum() > 0)
        return x + (scores + mask.clamp(0).log()).softmax(dim=1)

    def later(x):
        mask = (x.detach() >= x.detach().amin(dim=1, keepdim=True) + 1e-9).float().log()
        return x + (x + mask + (x.detach() - 100).sqrt()).softmax(dim=1)

    for change in (attention, later):
        model, objective = tiny_step()
        spoil_output(model.stem[1], change)
        found = traced(model, objective)
        assert (found.producer.base, found.cause.name) == ("sqrt", "root of a negative number"), change
        assert "other candidate replaced by zeros: the result is still bad" in found.evidence
