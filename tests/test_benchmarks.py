"""Each benchmark in its smallest form: its main parts run on drawn squares with a narrow network."""

import argparse
import ast
import errno
import json
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mars
from benchmarks import (
    accuracy,
    distil_step,
    false_alarms,
    figures,
    guard_cost,
    incremental,
    kill_injector,
    memory,
    race,
    ultralytics_baseline,
)  # fmt: skip
from benchmarks.chaos import KILL_POINTS, Chaos
from benchmarks.faults import FAULTS
from benchmarks.injections import INJECTIONS
from benchmarks.noise import noise_batch
from benchmarks.squares import draw_squares
from config.errors import UserError
from config.load import parse_settings
from dl.check import check_data
from eval.bootstrap import class_curves
from eval.groups import ConfusionCounts, GroupAp, GroupConfusion, GroupedAp, HarmonicAp
from eval.increments import MeasuredRun
from runs.folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
TINY = ("dcore=0", "warmupEpochs=0", "cacheImages=none")

pytestmark = pytest.mark.usefixtures("narrow_networks")


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    """Two images per split."""
    folder = tmp_path_factory.mktemp("data") / "squares"
    draw_squares(folder, 12)
    for split in ("train", "validation"):
        names = (folder / f"splits/{split}.txt").read_text().split()
        (folder / f"splits/{split}.txt").write_text("\n".join(names[:2]) + "\n")
    (folder / "classes.txt").write_text("red\nblue\n")
    return folder


def test_every_module_is_imported_by_a_test():
    modules = {f"benchmarks.{file.stem}" for file in (ROOT / "benchmarks").glob("*.py")} - {"benchmarks.__init__"}
    imported = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    assert len(modules) >= 13
    assert modules <= imported, f"no test imports {', '.join(sorted(modules - imported))}"


# Mars against Ultralytics


def test_a_race_times_both_systems_alternately_and_every_stage(monkeypatch):
    order, now = [], [0.0]
    monkeypatch.setattr(race.time, "perf_counter", lambda: now[0])

    def system(name, seconds):
        def one_round():
            order.append(name)
            for stage in ("first", "second"):
                now[0] += seconds
                yield stage

        return one_round

    rows = race.Race("wait", system("theirs", 0.006), system("ours", 0.002)).run(3, torch.device("cpu"))
    assert [row[:4] for row in rows] == [
        ("wait: first", "6.00", "2.00", "3.00"),
        ("wait: second", "6.00", "2.00", "3.00"),
        ("wait", "12.00", "4.00", "3.00"),
    ]  # fmt: skip
    assert order == ["ours", "theirs", "theirs", "ours"] * 3, "three rounds to warm up, three that are timed"


def test_losses_and_steps_of_both_systems_run(monkeypatch, capsys):
    pytest.importorskip("ultralytics", reason="the reference implementation is not installed")
    monkeypatch.setattr(race, "LOSS_SIZES", ((2, 64, 3),))
    monkeypatch.setattr(race, "STEP_SIZE", (2, 64, 3))
    monkeypatch.setattr(race, "WARM_UP", 0)
    race.main(["loss", "step", "--rounds", "2", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "loss and backward to the raw maps, batch 2, 64 px, 3 boxes" in out and ": EMA" in out
    assert out.splitlines()[-1].startswith("2 rounds, float32, cpu, ")


def in_this_process(words, cwd, stdout, stderr):
    """Replaces `subprocess.run`: runs the command line of Mars in this process."""
    assert words[1] == "mars.py"
    return subprocess.CompletedProcess(words, mars.main(words[2:]))


def test_accuracy_trains_what_is_missing_and_prints_a_table(squares, tmp_path, monkeypatch, capsys):
    here = argparse.Namespace(run=in_this_process, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(accuracy, "subprocess", here)
    words = [str(squares), "--out", str(tmp_path), "--systems", "mars", "--epochs", "1", "--size", "64", "--batch", "2"]
    accuracy.main([*words, "--set", *TINY, "--also", "still:flip=0"])
    out = capsys.readouterr().out
    assert "squares: test split, from random weights, 1 epochs at 64 px, batch 2, float32; COCO's AP" in out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("mars")] == [
        ["mars", "0"], ["mars-still", "0"], ["mars", "mean"], ["mars-still", "mean"],
    ]  # fmt: skip
    begun = [RunFolder(tmp_path / f"squares-{system}-s0").saved_config() for system in ("mars", "mars-still")]
    assert [config["precision"] for config in begun] == ["float32", "float32"], "auto would be measured"
    assert [config["flip"] for config in begun] == [0.5, 0.0]
    monkeypatch.setattr(accuracy, "train", lambda *_: pytest.fail("was trained again"))
    accuracy.main([*words, "--also", "still:flip=0"])
    assert (tmp_path / "squares.md").read_text() == f"```\n{capsys.readouterr().out}```\n"


def test_accuracy_compares_with_ultralytics(tmp_path):
    args = argparse.Namespace(
        data="x/ants", out=tmp_path, seeds=[0, 1], systems=["mars", "ultralytics", accuracy.SQUARE]
    )
    values = {"mars": (0.50, 0.60), "ultralytics": (0.40, 0.50), accuracy.SQUARE: (0.30, 0.30)}
    found = {
        (system, seed): argparse.Namespace(map50=0.9, map50_95=value)
        for system, both in values.items()
        for seed, value in enumerate(both)
    }
    (tmp_path / "ants-mars-s1.seconds").write_text("77")
    lines = [" ".join(line.split()) for line in accuracy.table(args, found).splitlines()]
    assert "mars 1 0.9000 0.6000 77" in lines
    assert "mars mean 0.9000 +- 0.0000 0.5500 +- 0.0500" in lines, "standard error: .0707 / sqrt(2)"
    assert lines[-2:] == ["mars - ultralytics: +10.00 points", "mars - ultralytics-square: +25.00 points"]
    assert accuracy.parse_variant(["a:b=1", "c=2"]) == ("mars-a", ["b=1", "c=2"])
    with pytest.raises(SystemExit, match="must be NAME:FIELD=VALUE"):
        accuracy.parse_variant(["ultralytics:b=1"])


def test_ultralytics_gets_the_same_boxes(squares, tmp_path):
    _, data = ultralytics_baseline.load_checked_data(str(squares), tmp_path)
    yaml = ultralytics_baseline.export_yolo(data, tmp_path / "yolo")
    mcfg, _ = ultralytics_baseline.load_checked_data(str(squares), tmp_path)
    theirs = check_data(
        mcfg.with_values(dataDir=str(yaml.parent), annotationFormat="yolo"), ultralytics_baseline.SPLITS
    )
    for split in ultralytics_baseline.SPLITS:
        pairs = list(zip(data.splits[split], theirs.splits[split], strict=True))
        assert len(pairs) == 2
        for ours, exported in pairs:
            assert (ours.image_id, ours.labels.tolist()) == (exported.image_id, exported.labels.tolist())
            assert ours.boxes == pytest.approx(exported.boxes, abs=1e-4)


@pytest.mark.slow
def test_ultralytics_trains_and_is_evaluated(squares, tmp_path):
    pytest.importorskip("ultralytics")
    words = ["--out", str(tmp_path), "--systems", "ultralytics", "--epochs", "1", "--size", "64", "--batch", "2"]
    accuracy.main([str(squares), *words])
    assert "ultralytics-square" in (tmp_path / "squares.md").read_text()


# New classes


@pytest.fixture
def words(squares, tmp_path):
    return [str(squares), "--out", str(tmp_path), "--base", "1", "--shots", "1", "--size", "64", "--draws", "2"]


def measured(harmonic: float) -> MeasuredRun:
    group, nothing = GroupAp(harmonic, harmonic, 1, 1), ConfusionCounts(0, 0, 0, 0)
    groups = GroupedAp(group, group, group, HarmonicAp(harmonic, harmonic))
    return MeasuredRun(groups, GroupConfusion(nothing, nothing, 0.2, 0.5), class_curves([], [], ()))


def test_incremental_searches_on_a_draw_of_its_own_and_keeps_the_best_try(words, tmp_path, monkeypatch, capsys):
    """Of two tries the second is better for fine-tuning, the first for the student; nothing is trained here."""
    best, learned, written = {"finetune": 2, "distillation": 1}, [], {}

    def learn(self, name, draw, changed=None, label="", split=None):
        learned.append((name, draw, changed["maxEpoch"], split))
        assert self.settings["precision"] == "float32", "auto would be measured"
        return measured(0.5 if changed["maxEpoch"] == best.get(name) else 0.25)

    monkeypatch.setattr(incremental.Study, "train_teacher", lambda self: None)
    monkeypatch.setattr(incremental.Study, "learn", learn)
    monkeypatch.setattr(incremental.Study, "write", lambda self, runs: written.update(runs) or "the table")
    tries = ["--try", "maxEpoch=1", "--try", "maxEpoch=2"]
    incremental.main([*words, "--methods", "finetune,distillation", "--ablate", *tries])
    assert learned[:4] == [
        ("finetune", incremental.SEARCH_SEED, 1, "validation"), ("finetune", incremental.SEARCH_SEED, 2, "validation"),
        ("finetune", 0, 2, None), ("finetune", 1, 2, None),
    ]  # fmt: skip
    assert {(name, epochs) for name, _, epochs, split in learned if split is None} == {
        ("finetune", 2), ("distillation", 1), ("no-cwd", 1), ("no-response", 1), ("no-box", 1),
    }  # fmt: skip
    assert {name: len(runs) for name, runs in written.items()} == dict.fromkeys(written, 2)
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["finetune", "25.0", "50.0*"] in rows and ["distillation", "50.0*", "25.0"] in rows
    assert (tmp_path / "squares.md").read_text().startswith("```\nthe table\n")


def test_incremental_takes_one_term_of_the_teacher_away_at_a_time(words):
    args = argparse.Namespace(
        cfgname="voc.nano", out=words[2], data=words[0], draws=1, methods=None, novel_only=False, weights=None,
        teacher_epochs=3,
    )  # fmt: skip
    study = incremental.study_of(args, parse_settings(["baseClasses=1", "smallShots=1"]))
    assert study.teacher.maxEpoch == 3
    weights = study.student.distilLossWeights
    assert min(weights) > 0 and study.student.boxResponseWeight > 0, "else nothing is taken away"
    off = {name: plan.settings for name, plan in incremental.ablations(study).items()}
    assert off["no-cwd"]["distilLossWeights"] == (weights[0], 0.0, weights[2])
    assert off["no-response"]["distilLossWeights"] == (*weights[:2], 0.0)
    assert off["no-box"]["boxResponseWeight"] == 0.0
    with pytest.raises(UserError, match="no such method"):
        incremental.study_of(argparse.Namespace(**{**vars(args), "methods": "finetuned"}), {"baseClasses": 1})


# Figures of the code

MADE_UP = '''"""A docstring
of two lines."""
# a comment
from ops.boxes import _area


class Anchor:
    """Of one line."""

    def __init__(self, a, b, c, *, d, e, f, g):
        self.value = _once(_twice(1))  # another comment

    def _never(self): ...


def _once(x):
    def _inside():
        return _twice(x)
    return _inside()


def _twice(x):
    return x
'''


def test_figures_of_a_made_up_tree(tmp_path, monkeypatch, capsys):
    for name, text in {
        "train/step.py": MADE_UP,
        "train/ema.py": "class Anchor: ...\n",
        "mars.py": "def main():\n" + "    pass\n" * 60,
        "ops/boxes.py": "def _area(): ...\n",
        "tests/test_step.py": "def _helper(): ...\n",
        ".venv/lib/x.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert figures.measure(figures.product_files(tmp_path)) == {
        "product lines": "86", "lines of mars.py": "61", "lines of ops": "1", "lines of train": "24",
        "product files": "4", "core lines / files": "24 / 2", "largest file": "mars.py (61)",
        "function lines p50 / p90 / max": "2 / 4 / 61", "functions over 60 lines": ["mars.py:main (61)"],
        "functions with more than 6 parameters": ["train/step.py:__init__ (7)"],
        "private helpers used once": ["ops/boxes.py:_area", "train/step.py:_once"],
        "private helpers used once, share of all functions": "28.6%",
        "comment / docstring lines": "2.3% / 3.5%", "comment / docstring lines, core": "8.3% / 12.5%",
        "class names in several files": ["Anchor: train/ema.py, train/step.py"],
    }  # fmt: skip
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "LOADED", "print('train.step ops.boxes ops torch')")
    figures.main(["--tree", str(tmp_path), "--names"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| figure | before | now |" and "| product lines | 86 | 86 |" in lines
    assert "| files loaded by import train.step | 2 | 2 |" in lines and "  train/step.py:_once" in lines


# Time and memory


def test_distil_step(capsys):
    distil_step.main(["--size", "64", "--batch", "1", "--steps", "1"])
    out = capsys.readouterr().out
    assert "nano, teacher nano, 64 px, batch 1, float32, " in out and "ratio " in out


def test_guard_cost(monkeypatch, capsys):
    for owner, names in guard_cost.CHECKS:  # which it replaces for good
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(guard_cost, "WARM_UP", 1)
    monkeypatch.setattr(guard_cost, "noise_batch", lambda *_: noise_batch(2, 64, 20, 2))
    guard_cost.main(["--steps", "2"])
    sizes = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert sizes == ["| 96 px, 2", "| 160 px, 8", "| 320 px, 8"]


def test_a_run_without_effect_beside_one_with_and_a_wrong_expectation(monkeypatch, capsys):
    def few(runs, *names):
        return tuple(replace(run, scenes=12) for run in runs if run.name in names)

    monkeypatch.setattr(false_alarms, "SIZE", 64)
    monkeypatch.setattr(false_alarms, "GOOD", few(false_alarms.GOOD, "random-float32"))
    monkeypatch.setattr(false_alarms, "BAD", few(false_alarms.BAD, "clip"))
    assert false_alarms.main([]) == 0
    assert "| weights stand still (2) |" in capsys.readouterr().out
    as_good = tuple(replace(run, expected=None) for run in false_alarms.BAD)
    monkeypatch.setattr(false_alarms, "GOOD", ())
    monkeypatch.setattr(false_alarms, "BAD", as_good)
    assert false_alarms.main([]) == 1
    assert "WRONG\nclip: " in capsys.readouterr().out


def test_memory_after_each_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "SCENES", 3)
    monkeypatch.setattr(memory, "SCENE_SIZE", 96)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    data = memory.linked_data_set(tmp_path, 4)
    assert len(list((data / "images").iterdir())) == 4
    stages = {}
    for kind in ("evaluate", "predict"):
        memory.run_stages(kind, data, 0)
        stages[kind] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(stages["evaluate"]) == ["started", "checked", "evaluated", "saved", "painted"]
    assert list(stages["predict"]) == ["started", "predicted"] and min(stages["predict"].values()) > 1
    lines = [line.split() for line in memory.table({3: {"a": 10.0}, 30: {"a": 12.0}}).splitlines()]
    assert lines == [["images", "a"], ["3", "10"], ["30", "12"], ["growth", "+2"]]


def test_noise_is_inside_and_the_same_for_a_seed():
    batch = noise_batch(2, 64, 5, 3)
    assert batch.images.shape == (2, 3, 64, 64) and batch.valid.all() and batch.labels.max() < 5
    assert (batch.boxes[..., 2:] > batch.boxes[..., :2]).all() and 0 <= batch.boxes.min() <= batch.boxes.max() <= 64
    assert torch.equal(noise_batch(2, 64, 5, 3).images, batch.images)


# Kills and damage


def test_every_fault_is_one_that_chaos_can_try(tmp_path, monkeypatch):
    tried = []

    def note(_chaos, description, attempt):
        assert callable(attempt)
        tried.append(description)

    monkeypatch.setattr(Chaos, "try_out", note)
    chaos = Chaos(tmp_path, random.Random(0), counts=dict.fromkeys(KILL_POINTS, 9))
    for fault in FAULTS:
        fault(chaos)
    assert len(tried) == len(set(tried)) >= 23
    command = chaos.command(tmp_path / "runs/001", 2)
    assert command[:2] == ["train", "voc.nano.full"] and command[-1] == "dcore=2" and "precision=float32" in command


def test_every_injection_changes_something():
    assert len(INJECTIONS) == 20
    idle = [i.name for i in INJECTIONS if not (i.inject or i.before_each or i.change_batch or i.settings)]
    assert idle == ["nothing"], "the control"


def test_the_injector_fills_the_disk_and_writes_in_halves(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught:
        kill_injector.inject("full")
    assert caught.value.errno == errno.ENOSPC
    seen = []
    with kill_injector._open(
        lambda where: seen.append((where, (tmp_path / "a").read_bytes())), tmp_path / "a", "wb"
    ) as file:
        file.write(b"abcdef")
    assert seen == [("half a file", b"abc")] and (tmp_path / "a").read_bytes() == b"abcdef"
    assert shutil.which("ps"), "benchmarks/faults.py asks it whether a process is stopped"
