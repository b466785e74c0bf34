"""The table stays a table for few and many classes, short and long names."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from config.load import load_config
from dl.annotations import Annotation
from eval.evaluator import EvalResult
from eval.groups import ConfusionCounts, GroupConfusion
from eval.metrics import ApResult, ClassAp
from eval.report import ap_table, reason_without_ap


def result_of(per_class, map50=0.5, map50_95=0.25, images=72, style="coco"):
    ap = ApResult(map50, map50_95, per_class)
    return EvalResult("test", "best.pth", images, images, ap, style, {}, 1.0, (), ())


def columns(text):
    return len(text) + sum(unicodedata.east_asian_width(char) == "W" for char in text)


def test_known_table():
    per_class = {"RBC": ClassAp(0.91239, 0.61234, 805), "Platelets": ClassAp(None, None, 0)}
    assert ap_table(result_of(per_class, 0.91239, 0.61234)).splitlines() == [
        "Average precision on 'test' (COCO definition), weights best.pth",
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


def truth(is_difficult: list[bool]) -> Annotation:
    count = len(is_difficult)
    boxes = np.array([[0, 0, 9, 9]] * count, dtype=np.float32).reshape(-1, 4)
    return Annotation(
        "a", Path("a.png"), Path("a.xml"), 9, 9, boxes, np.zeros(count, np.int64), np.array(is_difficult, bool)
    )


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ([], "no image of 'test' has an object"),
        ([[], []], "no image of 'test' has an object"),
        ([[True], [], [True, True]], "no object of 'test' counts: all 3 are marked difficult (in COCO: iscrowd)"),
        ([[True], [False]], ""),
    ],
)
def test_the_reason_why_there_is_nothing_to_measure(images, reason):
    annotations = [truth(image) for image in images]
    assert reason_without_ap("test", annotations) == reason
    figure, count = (0.5, 1) if not reason else (None, 0)
    result = result_of({"a": ClassAp(figure, figure, count)}, figure, figure)
    lines = ap_table(replace(result, annotations=tuple(annotations))).splitlines()
    assert [line for line in lines if "cannot be computed" in line] == [
        f"AP cannot be computed: {reason}. It is missing (null in metrics.json), not 0."
    ] * bool(reason)


@pytest.mark.parametrize("style", ["coco", "voc07", "ultralytics", "assignment"])
def test_every_definition_has_a_title(style):
    assert load_config("c1", overrides={"apStyle": style}).apStyle == style
    assert ap_table(result_of({}, style=style)).startswith("Average precision on")


def test_base_and_novel():
    per_class = {"RBC": ClassAp(0.8, 0.6, 805), "WBC": ClassAp(0.6, 0.4, 95), "Platelets": ClassAp(0.3, 0.125, 120)}
    confusion = GroupConfusion(ConfusionCounts(890, 6, 1, 3), ConfusionCounts(80, 3, 12, 25), 0.2, 0.5)
    result = replace(result_of(per_class, 1.7 / 3, 0.375), base_names=("RBC", "WBC"), confusion=confusion)
    assert ap_table(result).splitlines()[1:] == [
        "class          group  objects    AP50  AP50-95",
        "----------------------------------------------",
        "RBC             base      805  0.8000   0.6000",
        "WBC             base       95  0.6000   0.4000",
        "Platelets      novel      120  0.3000   0.1250",
        "----------------------------------------------",
        "base classes              900  0.7000   0.5000",
        "novel classes             120  0.3000   0.1250",
        "all classes              1020  0.5667   0.3750",
        "harmonic mean                  0.4200   0.2000",
        "72 of 72 images evaluated",
        "Confusion of the groups (detections with score >= 0.2, IoU >= 0.5):",
        "  120 novel objects: 80 found with the right class, 3 as another novel class, 12 as a base class, 25 missed",
        "  900 base objects: 890 found with the right class, 6 as another base class, 1 as a novel class, 3 missed",
    ]


def test_an_empty_group_and_a_single_object():
    confusion = GroupConfusion(ConfusionCounts(0, 0, 0, 0), ConfusionCounts(0, 0, 1, 0), 0.25, 0.5)
    result = replace(result_of({"a": ClassAp(0.5, 0.2, 1)}, 0.5, 0.2), base_names=("b",), confusion=confusion)
    lines = ap_table(result).splitlines()
    assert [line.split() for line in lines[5:9]] == [
        ["base", "classes", "0", "-", "-"],
        ["novel", "classes", "1", "0.5000", "0.2000"],
        ["all", "classes", "1", "0.5000", "0.2000"],
        ["harmonic", "mean", "-", "-"],
    ]
    assert lines[-2:] == [
        "  1 novel object: 0 found with the right class, 0 as another novel class, 1 as a base class, 0 missed",
        "  no base objects",
    ]
