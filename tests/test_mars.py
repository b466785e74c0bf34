"""The modes, end to end on a data set that trains in a second: the output, and what lies in the run's folder."""

import json
import logging
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mars
from commands.arguments import read_arguments
from commands.setup import load
from commands.training import command_to_continue
from config.load import parse_settings
from model import YoloModel
from model.weightsfile import their_key

pytestmark = pytest.mark.usefixtures("narrow_networks")

XML = """<annotation><size><width>64</width><height>64</height><depth>3</depth></size>
<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>
</annotation>"""


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    """Eight images with one square each, red or blue, in the course's layout."""
    folder, rng = tmp_path_factory.mktemp("data") / "squares", np.random.default_rng(0)
    for name in ("images", "annotations", "splits"):
        (folder / name).mkdir(parents=True)
    for number in range(8):
        pixels = np.full((64, 64, 3), 90, dtype=np.uint8)
        x, y = rng.integers(0, 40, 2)
        pixels[y : y + 24, x : x + 24] = (220, 0, 0) if number % 2 else (0, 0, 220)
        Image.fromarray(pixels).save(folder / f"images/{number}.jpg")
        text = XML.format(name="red" if number % 2 else "blue", x=x, y=y, right=x + 24, bottom=y + 24)
        (folder / f"annotations/{number}.xml").write_text(text)
    for split, ids in {"train": "0123", "validation": "45", "test": "67"}.items():
        (folder / f"splits/{split}.txt").write_text("\n".join(ids) + "\n")
    return folder


@pytest.fixture
def run(squares, tmp_path, capsys):
    """`mars.main` on the squares; exit status, what went to stdout, what went to stderr."""

    def call(*arguments: str, cfgname: str = "voc.nano.batch@2.size@64.workers@0") -> tuple[int, str, str]:
        words = [*arguments[:1], cfgname, "--root", str(tmp_path), "--data", str(squares), *arguments[1:]]
        status = mars.main(words)
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "voc.nano.batch@2.size@64-squares"


@pytest.fixture(scope="module")
def one_epoch(squares, tmp_path_factory) -> Path:
    """The root of a run of one epoch, trained once for all tests that begin with one."""
    root = tmp_path_factory.mktemp("runs")
    words = ["train", "voc.nano.batch@2.size@64.workers@0", "--root", str(root), "--data", str(squares), "--quiet"]
    assert mars.main([*words, "--set", "maxEpoch=1"]) == 0
    return root


@pytest.fixture
def trained(one_epoch, folder) -> None:
    """The test's own copy of that run."""
    shutil.copytree(one_epoch / folder.name, folder)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_pipe_trains_evaluates_and_paints(run, folder, real_curves):
    status, out, err = run("pipe", "--set", "maxEpoch=1")
    assert (status, err) == (0, "")
    for file in ("config.json", "metrics.jsonl", "weights/best.pth", "weights/last.pth", "plots/loss.png", "mars.log"):
        assert (folder / file).stat().st_size > 0, file
    assert sorted(file.name for file in (folder / "eval/test/images").iterdir()) == ["6.jpg", "7.jpg"]
    metrics = json.loads((folder / "eval/metrics.json").read_text())
    assert (metrics["split"], metrics["images_expected"], metrics["images_evaluated"]) == ("test", 2, 2)
    assert not metrics["test_is_validation"]
    assert set(metrics["per_class"]) == {"red", "blue"}
    for text in ("images   ", "objects", "all classes", "epoch 1/1", "2 of 2 images evaluated"):
        assert text in out
    log = (folder / "mars.log").read_text()
    assert "python mars.py pipe voc.nano" in log
    assert all(line in log for line in out.strip().splitlines())


def test_train_then_longer_then_otherwise_then_afresh(run, folder, trained):
    assert not (folder / "eval").exists()
    status, out, _ = run("train", "--set", "maxEpoch=2")
    assert status == 0
    assert "maxEpoch 1 -> 2" in out
    assert [row["epoch"] for row in rows(folder)] == [0, 1]

    status, _, err = run("train", "--set", "maxEpoch=2", "talTopk=5")
    assert status == 2
    assert err.startswith(f"mars: {folder}: ")
    assert "talTopk" in err
    assert "--nobuf" in err
    assert len(rows(folder)) == 2

    status, out, _ = run("train", "--set", "maxEpoch=1", "talTopk=5", "--nobuf")
    assert status == 0
    (aside,) = [path for path in folder.parent.iterdir() if path != folder]
    assert f"the older run is kept in {aside}" in out
    assert (len(rows(aside)), len(rows(folder))) == (2, 1)


def test_a_mistake_behind_nobuf_leaves_the_older_run_where_it_is(run, folder, trained):
    status, _, err = run("train", "--nobuf", cfgname="voc.nano.batch@2.size@64.workers@0.cuda@99")
    assert (status, err.startswith("mars: device=cuda:99")) == (2, True)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert len(rows(folder)) == 1


def test_eval_of_a_split_quietly(run, folder, trained):
    status, out, err = run("eval", "--split", "validation", "--quiet", "--set", "paintImages=no")
    assert (status, err) == (0, "")
    assert out.strip().splitlines()[0].startswith("Average precision on 'validation'")
    assert out.strip().splitlines()[-1] == "2 of 2 images evaluated"
    assert json.loads((folder / "eval/metrics.json").read_text())["weights"] == "weights/best.pth"
    assert not (folder / "eval/validation/images").exists()


def test_weights_of_other_classes_are_refused(run, folder, trained):
    for classes in ("red,blue", "red"):
        status, _, err = run("eval", "--set", f"classList={classes}")
        assert status == 2
        assert f"best.pth: trained on blue, red, but classList is {', '.join(classes.split(','))};" in err
    status, _, err = run("eval", "--weights", str(folder / "config.json"))
    assert (status, "config.json" in err) == (2, True)


def continued(out: str) -> list[str]:
    """The words of the command that the last line of an output gives, behind `python mars.py`."""
    python, program, *words = shlex.split(out.strip().splitlines()[-1].partition("; continue with: ")[2])
    assert Path(python).samefile(sys.executable) and Path(program).samefile(Path(mars.__file__))
    return words


@pytest.mark.parametrize("mode", ["train", "pipe"])
def test_a_run_that_was_cut_short_says_so_and_how_to_continue(run, folder, mode, capsys):
    limits = ["maxEpoch=3", "trainMinutes=0.0001", "trainMinEpochs=1"]
    status, out, _ = run(mode, "--nobuf", "--quiet", "--set", "paintImages=no", *limits)
    text = "trained 1 of 3 epochs; this is not a meaningful result; continue with: "
    assert status == 0 and out.strip().splitlines()[-1].startswith(text)
    assert text in (folder / "mars.log").read_text()
    words = continued(out)
    assert "--nobuf" not in words and words[-2:] == ["--set", "trainMinutes=none"]

    _, again, _ = run(mode, "--set", "paintImages=no", *limits)
    assert "already trained: 1 of 3 epochs" in again and again.strip().splitlines()[-1].startswith(text)
    assert (mars.main(words), [row["epoch"] for row in rows(folder)]) == (0, [0, 1, 2])
    assert "continue with" not in capsys.readouterr().out, "all epochs are trained"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("config", [None, {"maxEpoch": 99}])
def test_the_weights_not_config_json_say_how_much_was_cut_short(run, folder, trained, config):
    """config.json is gone, or newer than the weights; the run of the fixture has one epoch."""
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    status, out, _ = run("train", "--set", "maxEpoch=3", "trainMinutes=0.0001", "trainMinEpochs=1")
    assert (status, "trained 1 of 3 epochs; this is not a meaningful result; continue with: " in out) == (0, True)


def test_without_a_limit_there_is_nothing_to_continue(run):
    assert "continue with" not in run("train", "--set", "maxEpoch=1")[1]
    assert "continue with" not in run("train", "--set", "maxEpoch=2", "trainMinutes=1000", "--nobuf")[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["demo.nano.full"]),
        (["train"], ["train", "demo.nano.full"]),
        (["--quiet", "--set", "seed=3"], ["--quiet", "--set", "seed=3", "demo.nano.full"]),
        (["demo.nano.teacher", "--nobuf", "--name", "a b"], ["demo.nano.teacher", "--name", "a b"]),
        (["-nobuf", "-train", "demo.nano", "--set", "runName=it's", "trainMinutes=1"],
         ["-train", "demo.nano", "--set", "runName=it's", "trainMinutes=1"]),
        (["voc.nano", "--data", "a; rm", "--root=../x y"], ["voc.nano", "--data", "a; rm", "--root=../x y"]),
        (["demo.nano", "--set", "nobuf=yes"], ["demo.nano", "--set", "nobuf=yes", "--set", "nobuf=no"]),
        (["demo.nano", "--nobuf", "--set", "nobuf=yes"], ["demo.nano", "--set", "nobuf=yes", "--set", "nobuf=no"]),
    ],
)  # fmt: skip
def test_the_command_to_continue_is_the_users_own(monkeypatch, arguments, expected):
    monkeypatch.delenv("MARS_ROOT", raising=False)
    args = read_arguments(arguments)
    before = {**vars(args), "nobuf": False}
    mcfg = load(args, parse_settings(args.set))
    words = continued(f"; continue with: {command_to_continue(mcfg, args)}")
    assert words == [*expected, *([] if expected[-1] == "nobuf=no" else ["--set"]), "trainMinutes=none"]
    after = vars(read_arguments(words))
    for name in ("command", "root", "data", "name", "quiet", "nobuf"):
        assert after[name] == before[name], name
    assert load(read_arguments(words), parse_settings(after["set"])).run_dir == mcfg.run_dir
    assert parse_settings(after["set"])["trainMinutes"] is None
    assert not load(read_arguments(words), parse_settings(after["set"])).nobuf

    monkeypatch.setenv("MARS_ROOT", "/elsewhere")
    words = continued(f"; continue with: {command_to_continue(load(args, {}), args)}")
    assert ("--root" in words) == (args.root is None), "a root that was set for one command only"


def test_an_interruption_says_how_to_go_on(run, folder, monkeypatch):
    from train.trainer import Trainer

    def interrupted(self, epoch):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit_one_epoch", interrupted)
    status, _, err = run("train")
    assert status == 1
    assert err.count("\n") == 1
    assert "the same command continues" in err
    assert "interrupted" in (folder / "mars.log").read_text()


def test_a_bug_is_in_the_log_with_its_traceback(run, folder, monkeypatch):
    from train.trainer import Trainer

    monkeypatch.setattr(Trainer, "fit_one_epoch", lambda self, epoch: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run("train")
    assert "ZeroDivisionError" in (folder / "mars.log").read_text()


def test_nothing_stays_open(run):
    run("train", "--set", "maxEpoch=1")
    assert all(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("mars").handlers)


def test_a_student_without_its_teacher_is_refused_before_the_data_are_read(run, tmp_path, monkeypatch):
    monkeypatch.setattr("dl.check.check_data", None)
    cfgname = "voc.nano.distillation.batch@2.size@64.workers@0"
    status, _, err = run("train", "--set", "baseClasses=1", "trainSplitName=train", cfgname=cfgname)
    place = tmp_path / "voc.nano.teacher-squares"
    assert (status, err.startswith(f"mars: {place}: no such teacher; train it first: python mars.py voc.")) == (2, True)
    assert "voc.nano.teacher on" in err and "teacherModelFile" in err
    assert not list(tmp_path.iterdir())


def test_a_teacher_of_other_classes_is_refused_before_the_data_are_read(run, tmp_path, monkeypatch):
    weights = tmp_path / "weights/best.pth"
    weights.parent.mkdir()
    torch.save(YoloModel("nano", 3).state_dict(), weights)
    monkeypatch.setattr("dl.check.check_data", None)
    settings = [
        "baseClasses=1",
        "trainSplitName=train",
        f"teacherModelFile={weights}",
        f"checkpointModelFile={weights}",
    ]
    status, _, err = run("train", "--set", *settings, cfgname="voc.nano.distillation.batch@2.size@64.workers@0")
    assert (status, err.startswith(f"mars: {weights}: has 3 classes without names")) == (2, True), err


def test_eval_measures_as_the_weights_were_trained(run, folder):
    assert run("train", "--set", "maxEpoch=1", "inputShape=96", cfgname="voc.nano.batch@2.workers@0")[0] == 0
    status, out, _ = run("eval", cfgname="voc.nano.batch@2.workers@0")
    assert (status, "inputShape=[96, 96]" in out) == (0, True)
    metrics = folder.parent / "voc.nano.batch@2-squares/eval/metrics.json"
    assert json.loads(metrics.read_text())["settings"]["input_shape"] == [96, 96]
    assert run("eval", "--set", "inputShape=64", cfgname="voc.nano.batch@2.workers@0")[0] == 0
    assert json.loads(metrics.read_text())["settings"]["input_shape"] == [64, 64]


def test_eval_refuses_a_test_split_that_may_have_been_trained_on(run, folder, squares, trained):
    train, test = (squares / f"splits/{name}.txt" for name in ("train", "test"))
    before = train.read_text(), test.read_text()
    try:
        train.write_text("0\n1\n2\n6\n")
        test.write_text("3\n7\n")
        status, _, err = run("eval")
        assert (status, "split train: 4 images" in err, "--weights" in err) == (2, True, True)
        assert run("eval", "--weights", str(folder / "weights/best.pth"))[0] == 0
    finally:
        train.write_text(before[0])
        test.write_text(before[1])


def test_wrong_starting_weights_behind_nobuf_leave_the_older_run(run, folder, trained):
    status, _, err = run("train", "--nobuf", "--set", "maxEpoch=1", "checkpointModelFile=typo.pth")
    assert (status, "typo.pth: no such weights file" in err) == (2, True)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    own = str(folder / "weights/best.pth")
    assert run("train", "--nobuf", "--set", "maxEpoch=1", f"checkpointModelFile={own}")[0] == 0
    assert len(list(folder.parent.iterdir())) == 2


RESULTS = ("metrics.json", "detections.json", "truth.json")


def test_each_split_keeps_its_results_and_no_picture_of_the_user_is_deleted(run, folder, trained):
    assert run("eval")[0] == 0
    pictures, older = folder / "eval/test/images", folder / "eval/images"
    of_test = {name: (folder / "eval/test" / name).read_bytes() for name in RESULTS}
    assert {name: (folder / "eval" / name).read_bytes() for name in RESULTS} == of_test
    assert run("eval", "--split", "validation")[0] == 0
    assert sorted(path.name for path in (folder / "eval/validation/images").iterdir()) == ["4.jpg", "5.jpg"]
    assert {name: (folder / "eval/test" / name).read_bytes() for name in RESULTS} == of_test
    for name in RESULTS:  # of the split that was evaluated last
        assert (folder / "eval" / name).read_bytes() == (folder / "eval/validation" / name).read_bytes()
    # A picture that is painted no more goes, those of the user and of an earlier version stay.
    (pictures / "6.jpg").rename(pictures / "60.jpg")
    older.mkdir()
    for place in (pictures / "mine.jpg", older / "6.jpg"):
        Image.new("RGB", (9, 9)).save(place)
    assert run("eval")[0] == 0
    assert sorted(path.name for path in pictures.iterdir()) == ["6.jpg", "7.jpg", "mine.jpg"]
    assert (older / "6.jpg").is_file()


def test_a_file_of_the_user_in_the_place_of_a_picture_is_named_before_any_work(run, folder, trained, monkeypatch):
    picture = folder / "eval/test/images/7.jpg"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(picture)
    before = picture.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("eval.evaluator.Evaluator.evaluate", lambda *_: pytest.fail("evaluated"))
        status, _, err = run("eval")
    assert (status, err.count("\n"), f"{picture}: was not painted by Mars" in err) == (2, 1, True)
    assert picture.read_bytes() == before
    assert run("eval", "--set", "paintImages=no")[0] == 0 and picture.read_bytes() == before


@pytest.mark.parametrize(
    "settings", [("testSplitName=validation",), ("epochValidation=no", "testSplitName=validation")]
)
def test_a_test_split_that_is_the_validation_split_is_said(run, folder, settings):
    status, out, err = run("pipe", "--set", "maxEpoch=1", "paintImages=no", *settings)
    assert (status, err) == (0, "")
    was_chosen_on_it = len(settings) == 1
    metrics = json.loads((folder / "eval/validation/metrics.json").read_text())
    assert metrics["test_is_validation"] is was_chosen_on_it
    assert ("the best weights were chosen on the images of 'validation'" in out) is was_chosen_on_it


def test_a_root_or_a_run_in_the_data_is_refused_before_anything_is_written(run, squares, tmp_path):
    (tmp_path / "link").symlink_to(squares / "images")
    own = ("--root", str(squares.parent), "--name", squares.name)  # the run's folder would be the data's
    before = sorted(squares.rglob("*"))
    for words in (
        ("--root", str(squares)),
        ("--root", str(squares / "runs")),
        ("--root", str(tmp_path / "link/a")),
        own,
    ):
        for mode in ("train", "doctor"):
            status, _, err = run(mode, *words)
            assert (status, err.count("\n")) == (2, 1)
            assert (" lies in the data folder " in err and "--root" in err) or "is not the folder of a run" in err
    assert sorted(squares.rglob("*")) == before


@pytest.mark.parametrize("image", ["0.jpg", "train/0.jpg"])
def test_a_root_among_images_outside_of_the_data_folder_is_refused(run, squares, tmp_path, image):
    """data.yaml names images elsewhere; a root beside their folders is no fault."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    files = [elsewhere / "images" / image.replace("0", str(number)) for number in range(4)]
    for number, file in enumerate(files):
        label = elsewhere / "labels" / file.relative_to(elsewhere / "images").with_suffix(".txt")
        for path in (file, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(squares / f"images/{number}.jpg", file)
        label.write_text(f"{number % 2} 0.5 0.5 0.4 0.4\n")
    for name, half in {"train": files[:2], "val": files[2:]}.items():
        (data / f"{name}.txt").write_text("".join(f"{file}\n" for file in half))
    (data / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [blue, red]\n")
    before, folder = sorted(tmp_path.rglob("*")), files[0].parent
    for root in (folder, folder / "runs"):
        for mode in ("train", "doctor"):
            status, _, err = run(mode, "--data", str(data), "--root", str(root))
            assert (status, err.count("\n"), f"lies in the data folder {folder}" in err) == (2, 1, True), err
    assert sorted(tmp_path.rglob("*")) == before
    assert run("train", "--data", str(data), "--root", str(elsewhere / "runs"), "--set", "maxEpoch=1")[0] == 0


def test_a_run_that_lies_in_the_data_is_to_be_moved(run, squares, one_epoch, folder):
    place = squares / "runs"
    shutil.copytree(one_epoch, place)
    try:
        status, _, err = run("train", "--root", str(place))
        assert (status, f"move the folder {place / folder.name} out of the data" in err, "--root" in err) == (
            2,
            True,
            True,
        )
        status, _, err = run("predict", str(squares / "images"), "--root", str(place))
        assert (status, "move the folder" in err, "--out" in err) == (2, True, True)
    finally:
        shutil.rmtree(place)


def test_eval_of_another_split_keeps_the_results_of_an_older_version(run, folder, trained):
    """That wrote the results of the test split into eval alone."""
    assert run("eval", "--set", "paintImages=no")[0] == 0
    of_test = {name: (folder / "eval/test" / name).read_bytes() for name in RESULTS}
    shutil.rmtree(folder / "eval/test")
    assert run("eval", "--split", "validation", "--set", "paintImages=no")[0] == 0
    assert {name: (folder / "eval/test" / name).read_bytes() for name in RESULTS} == of_test
    assert json.loads((folder / "eval/metrics.json").read_text())["split"] == "validation"
    assert run("eval", "--split", "train", "--set", "paintImages=no")[0] == 0
    assert {name: (folder / "eval/test" / name).read_bytes() for name in RESULTS} == of_test


@pytest.mark.parametrize("words", [("train",), ("train", "--nobuf"), ("pipe", "--nobuf"), ("doctor",)])
@pytest.mark.parametrize("content", ["letter.txt", "config.json"])
def test_a_folder_of_other_files_does_not_become_a_run(run, tmp_path, words, content):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / content).write_text('{"epochs": 3}')
    status, _, err = run(*words, "--name", "mine")
    assert (status, f"{mine}: is not the folder of a run, it holds {content}; " in err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert [path.name for path in mine.iterdir()] == [content]


def test_a_step_that_breaks_gets_a_sentence_its_page_and_status_1(run, monkeypatch):
    from ops.random_states import random_states
    from train.guard import BadStep, Snapshot
    from train.trainer import Trainer

    def broken(self):
        snapshot = Snapshot(next(iter(self.loader)), {}, random_states(), 0)
        error = BadStep("step 1 of epoch 1 is not finite", snapshot, {"box": float("nan")})
        error.report = "first produced in the loss\n"
        raise error

    monkeypatch.setattr(Trainer, "run", broken)
    status, _, err = run("train")
    assert (status, err) == (1, "mars: step 1 of epoch 1 is not finite\n\nfirst produced in the loss\n")


def test_the_first_step_is_traced_when_asked(run, monkeypatch):
    from debug.tracer.report import report_bad_step, report_first_step
    from train.trainer import Trainer

    asked = []

    def remember(self, mcfg, data=None, quiet=False, on_bad_step=None, on_first_batch=None):
        asked.append((on_bad_step, on_first_batch))
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "__init__", remember)
    for words in (("train", "--trace"), ("pipe", "--trace"), ("train",)):
        assert run(*words)[0] == 1
    traced, plain = (report_bad_step, report_first_step), (report_bad_step, None)
    assert asked == [traced, traced, plain]


def test_the_demo_draws_its_data_and_trains_on_it(tmp_path, capsys):
    # The network of the tests is narrow, so the start weights do not fit.
    settings = ["drawnScenes=10", "maxEpoch=1", "inputShape=64", "dcore=0", "checkpointModelFile=none"]
    assert mars.main(["demo.nano", "--root", str(tmp_path), "--set", *settings]) == 0
    out = capsys.readouterr().out
    assert "epoch 1/1" in out
    end = out.partition("what to try next:")[2].splitlines()
    commands = [shlex.split(line) for line in end if line.startswith("    ")]
    assert [words[2] for words in commands] == ["explain", "doctor", "voc.nano.full"]
    assert f"painted images: {tmp_path / 'demo.nano/eval/test/images'}" in out
    assert mars.main(commands[0][2:]) == 0, "the command works as it is printed"
    assert len(list((tmp_path / "demo-data/images").iterdir())) == 10
    metrics = json.loads((tmp_path / "demo.nano/eval/metrics.json").read_text())
    assert metrics["images_evaluated"] == metrics["images_expected"] > 0
    assert list(metrics["per_class"]) == [f"A{number}" for number in range(1, 21)]


def test_a_run_that_started_from_official_width_keeps_it(run, folder, tmp_path):
    """Resumed without the file it began with, evaluated, exported: the network is the one that was trained."""
    file = tmp_path / "coco.pth"
    torch.save(YoloModel("nano", 80).state_dict(), file)
    start = ["--set", f"checkpointModelFile={file}", "epochValidation=no"]
    status, out, err = run("train", *start, "maxEpoch=1")
    assert (status, err) == (0, "") and "matched  349 tensors" in out and "missing    6" in out
    file.unlink()
    status, out, err = run("pipe", *start, "maxEpoch=2")
    assert (status, err) == (0, "") and "2 of 2 images evaluated" in out
    assert json.loads((folder / "config.json").read_text())["keepHeadWidth"] is True
    status, out, err = run("train", *start, "maxEpoch=2", "keepHeadWidth=no")
    assert status == 2 and "keepHeadWidth true -> false" in err
    status, out, err = run("export", "--format", "torch")
    assert (status, err) == (0, "") and str(folder / "export") in out
    status, out, err = run("eval", "--weights", str(folder / "weights/last.pth"))
    assert (status, err) == (0, "")
    weights = torch.load(folder / "weights/last.pth", weights_only=True)["model"]
    assert weights["head.cls.0.0.conv.weight"].shape[0] == 80


def test_backbone_and_a_run_that_starts_from_it(run, folder, tmp_path, capsys):
    official = {their_key(name): value for name, value in YoloModel("nano", 80).state_dict().items()}
    torch.save(official, tmp_path / "yolov8n.pt")
    assert mars.main(["backbone", str(tmp_path / "yolov8n.pt"), "--out", str(tmp_path / "b.pth")]) == 0
    assert "of the nano backbone" in capsys.readouterr().out
    settings = [f"pretrainedBackboneUrl=file://{tmp_path}/b.pth", "backboneFreezeEpochs=0", "maxEpoch=1"]
    status, out, err = run("train", "--set", *settings)
    assert (status, err) == (0, "") and "(a backbone)" in out and "AGPL-3.0" in out
    weights = torch.load(folder / "weights/last.pth", weights_only=True)["model"]
    # frozen for the only epoch there is
    assert torch.equal(weights["backbone.l3.conv.weight"], official["model.3.conv.weight"])


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."),
        MemoryError(),
    ],
)
@pytest.mark.parametrize(
    ("mode", "place"), [("train", "train.step.Stepper.add"), ("eval", "eval.predictor.Predictor.__call__")]
)
def test_memory_that_runs_out_is_one_sentence(run, folder, monkeypatch, error, mode, place, trained):
    def too_much(*args, **kwargs):
        raise error

    before = (folder / "weights/last.pth").read_bytes()
    monkeypatch.setattr(place, too_much)
    status, _, err = run(mode, "--set", "maxEpoch=2")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("mars: out of memory") and "smaller batchSize or inputShape" in err
    assert err.endswith("files written so far are kept\n")
    assert (folder / "weights/last.pth").read_bytes() == before
    assert "Traceback" in (folder / "mars.log").read_text(), "where it was, for who wants to know"
