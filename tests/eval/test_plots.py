"""Curves: any history gives a whole picture, and nothing is left behind."""

import gc
import math
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from eval.plots import plot_base_novel, plot_curves


def row(epoch, **changes):
    values = {"epoch": epoch, "lr": 0.01, "frozen": False, "loss": 3.0, "box": 1.0, "cls": 1.2, "dfl": 0.8}
    return values | {"map50": 0.5, "map50_95": 0.3, "is_best": False} | changes


HISTORIES = {
    "none": [],
    "one": [row(0, is_best=True)],
    "one, never validated": [row(0, map50=None, map50_95=None)],
    "gaps": [row(e, loss=None if e % 3 else math.nan, map50=0.1 if e % 5 == 0 else None) for e in range(12)],
    "frozen": [row(e, frozen=e in (0, 1, 4), lr=0.0) for e in range(6)],
    "resumed late": [row(e, is_best=e == 151) for e in range(150, 153)],
    "above one": [row(e, map50=1.4) for e in range(3)],
    "spikes": [row(e, spikes=e % 2) for e in range(3)],
    "bare": [{"epoch": 0}, {"epoch": 1}],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES.keys())
def test_every_history_gives_a_picture(history, tmp_path):
    path = plot_curves(history, tmp_path / "plots" / "loss.png")
    with Image.open(path) as image:
        image.load()
        assert image.size[0] > 1000
    assert [entry.name for entry in path.parent.iterdir()] == ["loss.png"]


def test_the_curve_moves_with_the_numbers(tmp_path):
    def pixels(history, **options):
        with Image.open(plot_curves(history, tmp_path / "loss.png", **options)) as image:
            return np.array(image)

    base = [row(e) for e in range(4)]
    before = pixels(base)
    assert np.array_equal(before, pixels(base))
    for change in ({"loss": 4.0}, {"frozen": True}, {"map50": 0.7}, {"is_best": True}, {"lr": 0.02}, {"spikes": 1}):
        assert not np.array_equal(before, pixels([*base[:3], row(3, **change)])), change
    assert np.array_equal(before, pixels([*base[:3], row(3, spikes=0)]))
    assert not np.array_equal(before, pixels(base, loss_parts=("box", "cls")))


def test_figures_are_let_go(tmp_path, monkeypatch):
    made, original = [], Figure.__init__

    def watched(self, *args, **kwargs):
        made.append(weakref.ref(self))
        original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "__init__", watched)
    for _ in range(3):
        plot_curves(HISTORIES["frozen"], tmp_path / "loss.png")
    gc.collect()
    assert len(made) == 3 and all(reference() is None for reference in made)


def test_pyplot_is_never_imported():
    check = "import sys, eval.plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[2])


METHODS = {
    "none": {},
    "one": {"student": [(0.8, 0.4)]},
    "several": {
        "teacher": [(0.8, 0.0)],
        "fine-tuning": [(0.1, 0.5), (0.12, 0.55)],
        "student": [(0.7, 0.5), (0.75, 0.45)],
    },
    "the corners": {"all": [(0.0, 0.0), (1.0, 1.0)], "above": [(1.1, 1.2)]},
    "nowhere": {"a": [(math.nan, 0.3)], "b": []},
    "some not measured": {"a": [(math.nan, 0.3), (0.5, 0.4)], "b": [(0.5, 0.41)]},
    "many, with long names": {f"{'a long name ' * 8}{n}": [(0.5, 0.04 * n)] for n in range(12)},
}


@pytest.fixture
def figures(monkeypatch):
    made, original = [], Figure.__init__

    def kept(self, *args, **kwargs):
        made.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "__init__", kept)
    return made


@pytest.mark.parametrize("points", METHODS.values(), ids=METHODS.keys())
def test_methods_compared(points, tmp_path, figures):
    path = plot_base_novel(points, tmp_path / "plots" / "groups.png")
    with Image.open(path) as image:
        image.load()
        assert image.size[0] > 800
    assert [entry.name for entry in path.parent.iterdir()] == ["groups.png"]
    axes = figures[0].axes[0]
    finite = {name: [pair for pair in pairs if not math.isnan(sum(pair))] for name, pairs in points.items()}
    drawn = [name for name, pairs in finite.items() if pairs]
    legend = axes.get_legend()
    if not drawn:
        assert legend is None and "no run yet" in [text.get_text() for text in axes.texts]
        return
    assert len(legend.get_texts()) == len(drawn) + 1
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())  # no point beneath it
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for name in drawn:
        for base, novel in finite[name]:
            assert left <= base <= right and bottom <= novel <= top


def test_the_mean_of_the_runs_is_marked(tmp_path, figures):
    plot_base_novel({"student": [(0.7, 0.5), (0.8, 0.3), (0.6, 0.4)]}, tmp_path / "groups.png")
    marks = [line for line in figures[0].axes[0].lines if line.get_marker() == "o"]
    large, small = sorted(marks, key=lambda line: -line.get_markersize())
    assert large.get_xydata().tolist() == [pytest.approx([0.7, 0.4])]
    assert small.get_xydata().tolist() == [[0.7, 0.5], [0.8, 0.3], [0.6, 0.4]]


def test_dotted_curves_have_one_harmonic_mean_each(tmp_path, figures):
    plot_base_novel({"a": [(0.9, 0.1)], "b": [(0.2, 0.8)]}, tmp_path / "groups.png")
    curves = [line.get_xydata() for line in figures[0].axes[0].lines if line.get_linestyle() == ":"]
    means = [2 / (1 / curve).sum(axis=1) for curve in curves]
    assert len(curves) >= 5
    for mean in means:
        assert mean == pytest.approx(mean[0])
    labels = [float(text.get_text()) for text in figures[0].axes[0].texts]
    assert labels == pytest.approx([mean[0] for mean in means])


def test_a_name_with_dollar_signs_is_no_formula(tmp_path):
    """matplotlib reads $...$ as mathematics, and raises where it is none."""
    path = plot_base_novel({r"a$\\b{$c": [(0.5, 0.5)], "%s {x} $x$": [(0.4, 0.6)]}, tmp_path / "plot.png")
    with Image.open(path) as image:
        assert image.width > 100
