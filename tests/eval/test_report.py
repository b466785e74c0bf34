"""The table stays a table for few and many classes, short and long names."""

import unicodedata

import pytest

from config.load import load_config
from eval.evaluator import EvalResult
from eval.metrics import ApResult, ClassAp
from eval.report import ap_table


def result_of(per_class, map50=0.5, map50_95=0.25, images=72, style="coco"):
    ap = ApResult(map50, map50_95, per_class)
    return EvalResult("test", "best.pth", images, images, ap, style, {}, 1.0, (), ())


def columns(text):
    return len(text) + sum(unicodedata.east_asian_width(char) == "W" for char in text)


def test_known_table():
    per_class = {"RBC": ClassAp(0.91239, 0.61234, 805), "Platelets": ClassAp(None, None, 0)}
    assert ap_table(result_of(per_class, 0.91239, 0.61234)).splitlines() == [
        "Average precision on 'test' (COCO's definition), weights best.pth",
        "class        objects    AP50  AP50-95",
        "-------------------------------------",
        "RBC              805  0.9124   0.6123",
        "Platelets          0       -        -",
        "-------------------------------------",
        "all classes      805  0.9124   0.6123",
        "72 of 72 images evaluated",
    ]


@pytest.mark.parametrize("count", [0, 1, 31])
def test_rows_are_aligned(count):
    names = [f"{'very long class name ' * (n % 3)}{n}飞机" for n in range(count)]
    table = ap_table(result_of({name: ClassAp(0.1, 0.05, 10**n if n < 7 else 3) for n, name in enumerate(names)}))
    body = table.splitlines()[1:-1]
    assert len(body) == count + 4
    assert len({columns(line) for line in body}) == 1
    for line, name in zip(body[2:], names, strict=False):
        assert line.startswith(name)


def test_nothing_to_average_and_the_other_styles():
    table = ap_table(result_of({"a": ClassAp(None, None, 0)}, None, None, images=1, style="assignment"))
    assert "all classes" in table and table.count("-  ") >= 1
    assert table.endswith("1 of 1 image evaluated")
    assert "not average precision" in table
    assert "11 points" in ap_table(result_of({}, style="voc07"))


@pytest.mark.parametrize("style", ["coco", "voc07", "ultralytics", "assignment"])
def test_every_definition_has_a_title(style):
    assert load_config("c1", overrides={"apStyle": style}).apStyle == style
    assert ap_table(result_of({}, style=style)).startswith("Average precision on")
