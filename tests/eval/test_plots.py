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

from eval.plots import plot_curves


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
    for change in ({"loss": 4.0}, {"frozen": True}, {"map50": 0.7}, {"is_best": True}, {"lr": 0.02}):
        assert not np.array_equal(before, pixels([*base[:3], row(3, **change)])), change
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
