"""`python mars.py doctor` and `explain`, end to end: the output, the exit status, and what stays unchanged."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mars
from config.errors import UserError
from model import YoloModel
from ops.files import file_digest

pytestmark = pytest.mark.usefixtures("narrow_networks")
CFGNAME = "voc.nano.batch@4.size@64.workers@0.epochs@100"
NAME = "voc.nano.batch@4.size@64.epochs@100-squares"
SETTINGS = ("precision=float32", "device=cpu", "augmentation=none", "paintImages=no")
XML = """<annotation><size><width>64</width><height>64</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = (
    "<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>"
    "</object>"
)


def draw_squares(folder: Path, side: int = 24, count: int = 16) -> Path:
    """Images with a red and a blue square of `side` pixels each, where no anchor point lies if the side is small."""
    for name in ("images", "annotations", "splits"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels, objects = np.full((64, 64, 3), 100, dtype=np.uint8), ""
        for place, (name, colour) in enumerate({"red": (220, 0, 0), "blue": (0, 0, 220)}.items()):
            x, y = 32 * place + 5, 5 + 8 * int(rng.integers(0, 4))
            pixels[y : y + side, x : x + side] = colour
            objects += OBJECT.format(name=name, x=x, y=y, right=x + side, bottom=y + side)
        pixels[0, 0] = number  # no two files are equal: that would be wrong
        Image.fromarray(pixels).save(folder / f"images/{number:02}.png")
        (folder / f"annotations/{number:02}.xml").write_text(XML.format(objects=objects))
    (folder / "classes.txt").write_text("red\nblue\n")
    for split, numbers in {"train": range(12), "validation": (12, 13), "test": (14, 15)}.items():
        (folder / f"splits/{split}.txt").write_text("".join(f"{number:02}\n" for number in numbers))
    return folder


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    return draw_squares(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture
def run(squares, tmp_path, capsys):
    """Runs a command on the squares with its own root: exit status, stdout, stderr."""

    def call(mode: str, *words: str, data: Path = squares, settings=(), cfgname: str = CFGNAME) -> tuple[int, str, str]:
        asked = [*SETTINGS, *settings]
        status = mars.main([mode, cfgname, *words, "--root", str(tmp_path), "--data", str(data), "--set", *asked])
        return status, *capsys.readouterr()

    return call


def states(folder: Path) -> dict[str, str]:
    """Every file below a folder but those of doctor and explain."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    ours = [file for file in files if file.relative_to(folder).parts[0] not in ("doctor", "explain")]
    return {str(file.relative_to(folder)): file_digest(file) for file in ours}


def levels_of(out: str) -> dict[str, str]:
    """Subject -> level of every line that is not indented."""
    lines = [line for line in out.splitlines() if not line.startswith("       ")]
    assert lines and {line.split()[0] for line in lines} <= {"ok", "look", "wrong"}, lines
    return {line[7:].partition(":")[0]: line.split()[0] for line in lines}


def test_a_good_config(run, tmp_path):
    status, out, err = run("doctor")
    assert (status, err) == (0, "")
    assert levels_of(out) == dict.fromkeys(
        ["data", "folder", "labels", "batch", "points", "weights", "aliases", "freezing", "schedule", "gradient",
         "memory", "overfit", "in all"], "ok"
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert [path.name for path in (tmp_path / NAME).iterdir()] == ["doctor"], "no lock, no weights, no log"
    folder = tmp_path / NAME / "doctor"
    assert sorted(path.name for path in folder.iterdir()) == [
        "batch.jpg", "data-check.json", "mars.log", "report.txt", "schedule.png",
    ]  # fmt: skip
    assert (folder / "report.txt").read_text() == out
    assert "red" in out and "       images" in out, "the table of the data"


def test_a_random_backbone_that_is_frozen_and_labels_too_small(run, tmp_path):
    tiny = draw_squares(tmp_path / "data" / "tiny", side=3)
    frozen = f"backboneFreezeEpochs={','.join(map(str, range(90)))}"
    status, out, err = run("doctor", data=tiny, settings=[frozen])
    assert (status, err) == (1, "")
    levels = levels_of(out)
    assert (levels["freezing"], levels["points"], levels["in all"]) == ("wrong", "wrong", "wrong")
    assert "findings to correct before training (points, freezing" in out


def test_faults_of_the_data_are_wrong_and_a_missing_folder_is_a_mistake(run, tmp_path):
    data = draw_squares(tmp_path / "data" / "faulty")
    (data / "images/03.png").write_bytes(b"no image")
    status, out, err = run("doctor", data=data)
    assert (status, err, levels_of(out)) == (1, "", {"data": "wrong", "in all": "wrong"})
    assert "03.png" in out
    status, out, err = run("doctor", data=tmp_path / "nowhere")
    assert (status, out, "nowhere" in err) == (2, "", True)
    status, out, err = run("doctor", settings=["checkpointModelFile=none.pth"])
    assert (status, "none.pth: no such weights file" in err) == (2, True)


@pytest.mark.parametrize(
    ("error", "status"), [(FloatingPointError("not finite: images 14"), 1), (UserError("no such thing"), 2)]
)
def test_an_early_end_leaves_a_report(run, tmp_path, monkeypatch, error, status):
    def broken(*_):
        raise error

    monkeypatch.setattr("debug.doctor.checks.examine_teacher", broken)
    found, out, err = run("doctor")
    assert (found, err) == (status, f"mars: {error}\n")
    assert levels_of(out)["schedule"] == "ok"
    report = (tmp_path / NAME / "doctor" / "report.txt").read_text()
    assert report == f"{out}wrong  in all: the checks ended here: {error}\n"


def test_the_files_of_a_run_stay_unchanged(run, tmp_path):
    """Doctor and explain run beside a run of one epoch; the run then continues unchanged."""
    assert run("train", settings=["maxEpoch=1"])[0] == 0
    folder = tmp_path / NAME
    before = states(folder)
    status, out, _ = run("doctor", settings=["maxEpoch=1"])
    assert "holds a run of 1 epoch" in out
    assert (status, states(folder)) == (int("wrong" in levels_of(out).values()), before)
    status, out, _ = run("doctor", settings=["talTopk=5"])
    assert (status, levels_of(out)["folder"], "talTopk 10 -> 5" in out) == (1, "wrong", True)
    assert run("explain", "00", settings=["maxEpoch=1"])[0] == 0
    assert states(folder) == before
    status, out, err = run("train", settings=["maxEpoch=2"])
    assert (status, err, "maxEpoch 1 -> 2" in out) == (0, "", True)


def test_the_doctor_takes_no_lock(run, tmp_path, monkeypatch):
    from runs.lock import RunLock

    def locked(self):
        raise AssertionError("the doctor took the lock")

    monkeypatch.setattr(RunLock, "hold", locked)
    (tmp_path / NAME).mkdir()
    assert run("doctor", settings=["maxEpoch=60"])[0] == 0


def test_the_demo_before_it_is_trained(tmp_path, capsys):
    settings = ["drawnScenes=12", "inputShape=64", "dcore=0", "precision=float32", "device=cpu", "maxEpoch=200"]
    status = mars.main(["doctor", "demo.nano", "--root", str(tmp_path), "--set", *settings])
    out, err = capsys.readouterr()
    levels = levels_of(out)
    assert (status, err) == (int("wrong" in levels.values()), "")
    assert {levels[subject] for subject in ("folder", "aliases", "freezing", "gradient", "memory")} == {"ok"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-data", "demo.nano"]


# explain


@pytest.fixture
def weights(tmp_path) -> Path:
    """Of an untrained network, with its classes."""
    import torch

    torch.manual_seed(0)
    content = {"model": YoloModel("nano", 2).state_dict(), "class_list": ["red", "blue"], "phase": "nano"}
    torch.save({**content, "ema": None, "config": json.dumps({"inputShape": [64, 64]})}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.mark.parametrize("name", ["14", "14.png", "images/14.png"])
def test_an_image_by_its_name_or_its_file(run, squares, tmp_path, weights, name):
    path = str(squares / name) if "/" in name else name
    status, out, err = run("explain", path, "--weights", str(weights), "--quiet")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"14 of 'test', with {weights}:"
    assert [line.split("  ")[0] for line in lines[1:6]] == ["object", "1 red", "2 blue", "background", "all"]
    folder = tmp_path / NAME / "explain"
    assert sorted(path.name for path in folder.iterdir()) == ["14.jpg", "14.txt"]
    assert (folder / "14.txt").read_text() == out.rpartition("drawn in")[0]
    with Image.open(folder / "14.jpg") as picture:
        assert picture.size == (640, 640)


def test_explaining_what_is_not_there(run, weights):
    status, _, err = run("explain", "99", "--weights", str(weights))
    assert (status, err.count("\n"), "99: no image of this name in the splits" in err) == (2, 1, True)
    status, _, err = run("explain", "14")
    assert (status, "no such weights file; train first" in err) == (2, True)


# The replay of a non-finite step


def test_a_bundle_is_replayed(tmp_path, capsys, squares):
    """A weight that is infinite: the replay reproduces it and the status is 1; a good step is reported as good."""
    import torch

    from config.load import load_config
    from debug.tracer.bundle import write_bundle
    from debug.tracer.rerun import TracedStep
    from dl.check import check_data
    from train.setup import build_training

    fields = {"inputShape": 64, "batchSize": 2, "dcore": 0, "precision": "float32", "device": "cpu"}
    fields |= {"classList": ["red", "blue"]}
    mcfg = load_config("voc.nano", root=str(tmp_path), data=str(squares), overrides=fields)
    setup = build_training(mcfg, check_data(mcfg, ["train", "validation"]))
    batch = next(setup.batches(1))

    def status_of(name: str) -> tuple[int, str]:
        step = TracedStep(setup.model.train(), setup.objective, batch, torch.float32)
        path = write_bundle(tmp_path / name, step, json.dumps(mcfg.to_dict()), "loss not finite in epoch 3")
        status = mars.main(["doctor", "voc.nano", "--root", str(tmp_path), "--replay", str(path)])
        out, err = capsys.readouterr()
        assert err == ""
        return status, out

    status, out = status_of("healthy.pth")
    assert (status, "the step is finite here, so the problem is not reproduced" in out) == (0, True)
    with torch.no_grad():
        setup.model.neck.l12.cv1.conv.weight[0, 0, 0, 0] = torch.inf
    status, out = status_of("bad.pth")
    assert (status, "not reproduced" in out, out.startswith("loss not finite in epoch 3")) == (1, False, True)
    assert "neck.l12.cv1" in out
