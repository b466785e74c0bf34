"""Run folders of an old version still work: evaluation and resuming give the results that the old version gave.

`tests/make_old_run.py` made the archive with the code of commit a362b73. Tolerances allow for other processors.
"""

import json
import tarfile
from pathlib import Path

import make_old_run
import pytest
import torch

import dl.mosaic
from benchmarks.squares import draw_squares
from debug.tracer.bundle import read_bundle, replay
from dl.augment import resize
from model.base.scales import SCALES
from runs.checkpoint import load_checkpoint

ARCHIVE = Path(__file__).with_name("old_run.tar.xz")


@pytest.fixture(autouse=True)
def _tiles_of_the_old_version(monkeypatch):
    """Since then, tiles of a mosaic are resized in another way, so their pixels differ a little."""
    monkeypatch.setattr(dl.mosaic, "resize_fast", resize)
    monkeypatch.setattr(dl.mosaic, "SOURCE_STEP", 1)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    for phase, scale in make_old_run.NARROW.items():
        monkeypatch.setitem(SCALES, phase, scale)


@pytest.fixture
def root(tmp_path):
    """The root folder with the runs `plain`, `teacher` and `student`, each as the old version left it."""
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, **safe)
    return tmp_path / "old_run"


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return draw_squares(tmp_path_factory.mktemp("data") / "squares")


def assert_same_detections(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["image_id"], ours["category_id"]) == (theirs["image_id"], theirs["category_id"])
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-3)
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=0.05)


@pytest.mark.parametrize("name", ["plain", "student"])
def test_an_old_run_evaluates_and_resumes(root, squares, name):
    expected = json.loads((root / "expected.json").read_text())[name]
    found = make_old_run.evaluated_and_resumed(name, root, squares)
    assert found["metrics"]["images_evaluated"] == expected["metrics"]["images_evaluated"] == 2
    for key in ("map50", "map50_95"):
        assert found["metrics"][key] == pytest.approx(expected["metrics"][key], abs=1e-3)
    for color, ap in expected["metrics"]["per_class"].items():
        assert found["metrics"]["per_class"][color] == pytest.approx(ap, abs=1e-3)
    assert_same_detections(found["detections"], expected["detections"])
    assert len(found["rows"]) == len(expected["rows"]) == 2
    for ours, theirs in zip(found["rows"], expected["rows"], strict=True):
        assert (ours["epoch"], ours["frozen"]) == (theirs["epoch"], theirs["frozen"])
        assert ours["lr"] == pytest.approx(theirs["lr"])
        assert {key: ours[key] for key in ("loss", "box", "cls", "dfl", "grad_norm")} == pytest.approx(
            {key: theirs[key] for key in ("loss", "box", "cls", "dfl", "grad_norm")}, rel=1e-3
        )
        assert set(ours) == set(theirs)
        assert ours.get("cwd", 0) == pytest.approx(theirs.get("cwd", 0), rel=1e-3)
        assert ours.get("response", 0) == pytest.approx(theirs.get("response", 0), rel=1e-3)
    ends = found["end"], expected["end"]
    for key in ("epoch", "ema_steps", "teacher"):
        assert ends[0][key] == ends[1][key]
    assert ends[0]["best"] == pytest.approx(ends[1]["best"], abs=1e-2)
    assert set(ends[0]["schedule"]) == set(ends[1]["schedule"])


def test_the_archive_has_the_parts_whose_reading_it_tests(root):
    """Otherwise the test above could pass without reading them."""
    plain, student = (load_checkpoint(root / name / "weights" / "last.pth") for name in ("plain", "student"))
    assert plain["progress"]["batches"] == 1 and plain["pending"] == 1
    assert plain["gradients"] and any(gradient.abs().sum() > 0 for gradient in plain["gradients"])
    assert plain["ema"] is not None and plain["schedule"]["best"] > 0
    assert student["progress"]["batches"] == 2 and student["pending"] == 0
    assert len(student["learned"]) > 0 and len(student["teacher"]) == 64
    assert student["weights_origin"]["from"] is not None


def test_an_old_bundle_is_replayed(root):
    bundle = read_bundle(root / "plain" / "health" / "bad-step.pth")
    assert bundle.weights["neck.l12.cv1.conv.weight"].isnan().sum() == 1
    found = replay(bundle, torch.device("cpu"))
    assert found.is_reproduced
    assert found.producer.tensor == "neck.l12.cv1.conv.weight"
