"""Base, novel and harmonic mean, and what was forgotten, against figures worked out by hand."""

import json

import pytest

from eval.groups import Forgetting, GroupAp, HarmonicAp, forgetting, group_ap, harmonic_mean
from eval.metrics import ApResult, ClassAp

NOTHING = ClassAp(None, None, 0)


def result_of(**per_class):
    return ApResult(None, None, per_class)  # the groups ask the classes, not the means


def test_known_groups():
    ap = result_of(ant=ClassAp(0.8, 0.6, 10), bee=ClassAp(0.6, 0.2, 30), cat=ClassAp(0.3, 0.1, 5), dog=NOTHING)
    groups = group_ap(ap, ("ant", "bee"))
    assert groups.base == GroupAp(pytest.approx(0.7), pytest.approx(0.4), 40, 2)
    assert groups.novel == GroupAp(0.3, 0.1, 5, 1)  # not .15: the dog has no truth
    assert groups.all == GroupAp(pytest.approx(1.7 / 3), pytest.approx(0.3), 45, 3)
    assert groups.harmonic == HarmonicAp(pytest.approx(0.42), pytest.approx(0.16))


def test_the_keys_that_other_programs_rely_on():
    groups = group_ap(result_of(ant=ClassAp(0.5, 0.25, 1), bee=ClassAp(0.5, 0.25, 2)), {"ant"})
    figures = {"ap50": 0.5, "ap50_95": 0.25}
    assert json.loads(json.dumps(groups.to_dict())) == {
        "base": {**figures, "n_gt": 1, "n_classes": 1},
        "novel": {**figures, "n_gt": 2, "n_classes": 1},
        "all": {**figures, "n_gt": 3, "n_classes": 2},
        "harmonic": figures,
    }


@pytest.mark.parametrize("base", [(), ("ant", "bee"), ("zebra",)])
def test_an_empty_group_has_no_figure(base):
    groups = group_ap(result_of(ant=ClassAp(0.4, 0.2, 1), bee=ClassAp(0.2, 0.1, 1)), base)
    empty, full = (groups.novel, groups.base) if "ant" in base else (groups.base, groups.novel)
    assert empty == GroupAp(None, None, 0, 0)
    assert full == groups.all == GroupAp(pytest.approx(0.3), pytest.approx(0.15), 2, 2)
    assert groups.harmonic == HarmonicAp(None, None)


def test_no_class_and_no_truth_at_all():
    for ap in (result_of(), result_of(ant=NOTHING, bee=NOTHING)):
        groups = group_ap(ap, ("ant",))
        assert groups.base == groups.novel == groups.all == GroupAp(None, None, 0, 0)


@pytest.mark.parametrize(
    ("base", "novel", "expected"),
    [(0.799, 0.357, 0.4935), (0.5, 0.5, 0.5), (0.0, 0.9, 0.0), (0.0, 0.0, 0.0), (None, 0.5, None), (0.5, None, None)],
)
def test_harmonic_mean(base, novel, expected):
    assert harmonic_mean(base, novel) == (None if expected is None else pytest.approx(expected, abs=5e-5))


def forgotten(teacher, student, base):
    return forgetting(group_ap(teacher, base).base, group_ap(student, base).base)


def test_what_was_forgotten():
    base = ("ant", "bee")
    teacher = result_of(ant=ClassAp(0.9, 0.5, 3), bee=ClassAp(0.7, 0.3, 3))  # it knows no others
    student = result_of(ant=ClassAp(0.8, 0.5, 3), bee=ClassAp(0.4, 0.1, 3), cat=ClassAp(0.9, 0.9, 3))
    expected = Forgetting(*(pytest.approx(value) for value in (20.0, 10.0, 75.0, 75.0)))
    assert forgotten(teacher, student, base) == expected
    assert forgotten(student, student, base) == Forgetting(0.0, 0.0, 100.0, 100.0)
    gain = forgotten(student, teacher, base)
    assert (gain.points_ap50, gain.kept_ap50) == (pytest.approx(-20), pytest.approx(400 / 3))


def test_nothing_known_nothing_forgotten():
    blind = result_of(ant=ClassAp(0.0, 0.0, 3))
    seeing = result_of(ant=ClassAp(0.5, 0.25, 3))
    assert forgotten(blind, seeing, ["ant"]) == Forgetting(-50.0, -25.0, None, None)
    assert forgotten(seeing, blind, ["ant"]) == Forgetting(50.0, 25.0, 0.0, 0.0)
    for unmeasured in (result_of(), result_of(ant=NOTHING)):
        assert forgotten(seeing, unmeasured, ["ant"]) == Forgetting(None, None, None, None)
        assert forgotten(unmeasured, seeing, ["ant"]) == Forgetting(None, None, None, None)


def test_means_over_other_classes_are_not_compared():
    teacher = result_of(ant=ClassAp(0.5, 0.25, 3), bee=NOTHING)
    student = result_of(ant=ClassAp(0.5, 0.25, 3), bee=ClassAp(0.1, 0.1, 1))
    with pytest.raises(ValueError, match="the teacher was evaluated on 1 base classes, the student on 2"):
        forgotten(teacher, student, ("ant", "bee"))
