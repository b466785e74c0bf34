"""Every mistake that a newcomer makes at the command line: exit status 2, one sentence, no traceback."""

import json
import os
import subprocess
import sys

import pytest
from warm_process import ROOT, run_mars, run_mars_anew

import mars as mars_module
from commands.arguments import COMMANDS, read_arguments


@pytest.fixture
def environment(tmp_path):
    """Runs go below the test's folder."""
    return {**os.environ, "MARS_ROOT": str(tmp_path / "runs"), "PYTHONPATH": ""}


@pytest.fixture
def mars(tmp_path, environment):
    """Run `python mars.py ...` in an empty folder, in a process that starts with torch imported."""
    return lambda *arguments: run_mars(arguments, tmp_path, environment)


@pytest.fixture
def mars_anew(tmp_path, environment):
    """The same in a new interpreter, as a user does, with more variables in its environment."""
    return lambda *arguments, **more: run_mars_anew(arguments, tmp_path, {**environment, **more})


@pytest.fixture
def data(tmp_path):
    """A folder that looks like a data set from afar: its one xml names a class, its image is no image."""
    for name in ("images", "annotations", "splits"):
        (tmp_path / "cats" / name).mkdir(parents=True)
    (tmp_path / "cats/images/a.jpg").write_bytes(b"no image")
    (tmp_path / "cats/annotations/a.xml").write_text(
        "<annotation><size><width>8</width><height>8</height><depth>3</depth></size><object><name>cat</name>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"
    )
    for split in ("train", "validation", "test"):
        (tmp_path / f"cats/splits/{split}.txt").write_text("a\n" if split == "train" else f"{split}\n")
    return tmp_path / "cats"


def assert_one_sentence(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("mars: ")
    assert done.stderr.count("\n") == 1, done.stderr
    missing = [word for word in words if word not in done.stderr]
    assert not missing, f"{missing} not in: {done.stderr}"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        # no or a wrong CFGNAME
        ("vox.nano.full", ["vox", "did you mean 'voc'", "c1, demo, voc"]),
        ("c1.nano.ful", ["'ful'", "did you mean 'full'", "teacher", "cuda@N"]),
        ("c1.nano.small", ["'nano' and 'small'", "phase", "keep one"]),
        ("c1.batch@many", ["batch@many", "whole number"]),
        ("c1.size@300", ["size@300", "inputShape", "multiples of 32", "288,288"]),
        ("c1 nano full", ["c1 nano full: too many words", "python mars.py [COMMAND] CFGNAME"]),
        # modes
        ("trian c1.nano", ["trian", "did you mean 'train'"]),
        ("train eval c1", ["train and eval", "one command"]),
        ("-train -eval c1", ["train and eval", "one command"]),
        ("docter c1", ["docter", "did you mean 'doctor'"]),
        # doctor and explain
        ("doctor c1", ["runs/mar20", "no such folder"]),
        ("doctor c1 c2", ["c1 c2: too many words", "python mars.py doctor CFGNAME"]),
        ("doctor c1 --nobuf", ["--nobuf: belongs to pipe, train, not to doctor", "leave it out"]),
        ("doctor c1 --weights x.pth", ["--weights: belongs to eval, predict, explain, export, not to doctor"]),
        ("doctor c1 --replay x.pth", ["x.pth", "no such bundle", "RUN/health"]),
        ("doctor c1 --replay", ["--replay", "expected one argument"]),
        ("doctor c1 --replay x.pth --data d", ["--data", "from the bundle", "leave it out"]),
        ("doctor c1 --replay x.pth --name n", ["--name", "from the bundle", "leave it out"]),
        ("doctor c1 --replay x.pth --set device=cpu maxEpoch=3", ["--set maxEpoch=3", "from the bundle", "device"]),
        ("doctor c1 --replay x.pth --set device=cpu", ["x.pth", "no such bundle"]),
        ("train c1 --replay x.pth", ["--replay", "belongs to doctor"]),
        ("doctor c1 --trace", ["--trace: belongs to pipe, train, not to doctor", "leave it out"]),
        ("eval c1 --trace", ["--trace: belongs to pipe, train, not to eval", "leave it out"]),
        ("split . --out x --shots 1 --trace", ["--trace: belongs to pipe, train, not to split", "leave it out"]),
        ("explain", ["explain: CFGNAME or IMAGE is missing", "explain CFGNAME IMAGE"]),
        ("explain c1", ["IMAGE is missing"]),
        ("explain c1 a.jpg b.jpg", ["c1 a.jpg b.jpg: too many words", "python mars.py explain CFGNAME IMAGE"]),
        ("explain c1 a.jpg", ["no such weights file", "train first"]),
        ("explain c1 a.jpg --weights x.pth", ["x.pth", "no such weights file"]),
        ("explain c1 a.jpg --split test", ["--split", "belongs to eval"]),
        ("explain c1 a.jpg --out x", ["--out", "belongs to predict, augment, export, backbone, split, not to explain"]),
        # export and backbone
        ("export c1", ["export: --format is missing", "--format onnx, torch or ultralytics"]),
        ("export c1 --format onxx", ["onxx", "did you mean 'onnx'"]),
        ("export c1 --format torch --nms", ["--nms", "use onnx instead of torch"]),
        ("export c1 --format onnx", ["no such weights file", "train first"]),
        ("export c1 --format onnx --nobuf", ["--nobuf: belongs to pipe, train, not to export", "leave it out"]),
        ("c1 --format onnx", ["--format: belongs to export, not to pipe", "export CFGNAME --format FORMAT"]),
        ("export --format onnx", ["no such weights file", "train first"]),
        (f"export c1 --format onnx --out {ROOT / 'README.md'}", ["README.md", "exists already"]),
        (f"export c1 --format onnx --out {ROOT / 'docs'}", ["docs", "is a folder"]),
        (f"backbone a.pt --out {ROOT / 'docs'}", ["docs", "is a folder"]),
        ("backbone a.pt --data x", ["--data", "leave it out"]),
        ("backbone a.pt --set maxEpoch=3", ["--set", "leave it out"]),
        ("backbone", ["backbone: FILE.pt is missing", "FILE.pt"]),
        ("backbone a.pt b.pt", ["a.pt b.pt: too many words", "python mars.py backbone FILE.pt"]),
        ("backbone a.pt", ["a.pt", "no such weights file"]),
        ("c1 --set pretrained=yolov9n", ["yolov9n", "yolov8n", "did you mean"]),
        ("c1.small --set pretrained=yolov8n", ["yolov8n", "small", "yolov8s"]),
        ("c1 --set pretrained=yolov8n checkpointModelFile=x.pt", ["x.pt", "one of them"]),
        ("split", ["split: DIR is missing", "split DIR --out DIR --shots K"]),
        ("split nowhere --out lists --shots 3", ["nowhere: no such folder"]),
        ("c1 --shots 3", ["--shots: belongs to split, not to pipe", "python mars.py split DIR --out DIR --shots K"]),
        ("c1 --seed 3", ["--seed: belongs to split, not to pipe", "--set seed=N"]),
        # incremental
        ("incremental c1", ["runs/mar20", "no such folder"]),
        ("incremental voc --data .", ["voc: which classes does the teacher know", "--set baseClasses=4"]),
        ("incremental c1.nano.full", ["full, teacher and distillation are runs of their own"]),
        ("incremental c1 --draws 0", ["--draws 0", "must be above 0"]),
        ("incremental c1 --draws -2", ["--draws -2", "must be above 0"]),
        ("incremental c1 --draws few", ["--draws=few", "whole number"]),
        ("incremental c1 --draws", ["--draws", "expected one argument"]),
        ("incremental c1 --name a/b", ["runName='a/b'", "--root"]),
        ("incremental c1 --nobuf", ["--nobuf: belongs to pipe, train, not to incremental", "--name"]),
        ("incremental c1 --split test", ["--split", "belongs to eval"]),
        ("incremental c1 --out x", ["--out", "belongs to predict"]),
        ("incremental c1 --weights x.pth", ["--weights", "not to incremental", "leave it out"]),
        ("incremental c1 --shots 3", ["--shots", "belongs to split"]),
        ("incremental c1 --format onnx", ["--format", "belongs to export, not to incremental"]),
        ("incremental c1 c2", ["c1 c2: too many words", "python mars.py incremental CFGNAME"]),
        ("incremental train c1", ["incremental and train", "one command"]),
        ("incremetal c1", ["incremetal", "did you mean 'incremental'"]),
        ("c1 --draws 3", ["--draws", "belongs to incremental", "python mars.py incremental CFGNAME"]),
        ("eval c1 --ways finetune", ["--ways", "belongs to incremental, not to eval"]),
        ("c1 --methods finetune", ["--methods", "belongs to incremental, not to pipe"]),
        ("predict c1 . --novel-only", ["--novel-only", "belongs to incremental"]),
        ("export c1 --format onnx --draws 2", ["--draws", "belongs to incremental"]),
        ("backbone a.pt --draws 2", ["--draws", "belongs to incremental"]),
        ("split . --out x --shots 1 --ways joint", ["--ways", "belongs to incremental, not to split"]),
        ("split . --out x --shots 1 --novel-only", ["--novel-only", "belongs to incremental, not to split"]),
        ("c1 --tracee", ["--tracee", "did you mean '--trace'"]),
        ("eval c1 --nobuf", ["--nobuf", "leave it out"]),
        ("train c1 --weights x.pth", ["--weights", "not to train", "eval CFGNAME --weights FILE"]),
        # predict
        ("predict", ["python mars.py predict CFGNAME PATH..."]),
        ("predict c1.nano", ["predict c1.nano: PATH is missing", "PATH..."]),
        ("predict photo.jpg", ["photo.jpg: a path", "predict CFGNAME photo.jpg"]),
        ("predict here/photos c1", ["here/photos: a path", "the CFGNAME comes first"]),
        ("predict vox x.jpg", ["vox", "did you mean 'voc'"]),
        ("predict c1 x.jpg maxEpoch=3", ["--set maxEpoch=3"]),
        ("predict c1 x.jpg --split test", ["--split: belongs to eval, not to predict", "eval CFGNAME --split NAME"]),
        ("predict c1 x.jpg --nobuf", ["--nobuf: belongs to pipe, train, not to predict", "leave it out"]),
        ("predict c1 x.jpg --weights best.pth", ["best.pth", "no such weights file"]),
        ("predict eval c1 x.jpg", ["predict and eval", "one command"]),
        ("eval c1 --out found", ["--out", "predict CFGNAME PATH..."]),
        ("c1 --out found", ["--out", "predict CFGNAME PATH..."]),
        # options
        ("c1 --epochs 3", ["--epochs", "--set FIELD=VALUE", "maxEpoch"]),
        ("c1 --dta x", ["--dta", "did you mean '--data'"]),
        ("c1 --data", ["--data", "expected one argument"]),
        ("c1 --set", ["--set", "expected one argument"]),
        ("c1 maxEpoch=3", ["--set maxEpoch=3"]),
        ("c1 --set maxEpoch 3", ["--set maxEpoch=VALUE"]),
        # fields
        ("c1 --set maxEpochs=3", ["maxEpochs", "did you mean 'maxEpoch'", "--fields"]),
        ("c1 --set maxEpoch=ten", ["maxEpoch=ten", "whole number"]),
        ("c1 --set inputShape=333", ["inputShape=(333, 333)", "multiples of 32", "320,320"]),
        ("c1 --set useEMA=maybe", ["useEMA=maybe", "true or false"]),
        ("c1 --set minLearningRate=1", ["minLearningRate=1.0", "baseLearningRate=0.01", "lower it"]),
        ("c1 --set startEpoch=500", ["startEpoch=500", "maxEpoch=200", "raise maxEpoch"]),
        ("c1 --set modelName=distillation", ["modelName=distillation", "teacherModelFile"]),
        ("c1 --set trainSelectedClasses=B1", ["trainSelectedClasses=B1", "classList", "A20"]),
        ("c1 --set device=gpu", ["device='gpu'", "cuda:N"]),
        ("c1 --set pretrainedBackboneUrl=https://x/y", ["https://x/y", "file:///"]),
        # places
        ("voc.nano.full", ["--data DIR"]),
        (f"c1 --root {ROOT / 'runs'}", ["root=", "inside the code folder", "--root"]),
        ("c1 --name a/b", ["runName='a/b'", "--root"]),
        ("eval c1 --weights best.pth", ["best.pth", "no such weights file"]),
        # a student
        ("c1 --set modelName=distillation", ["modelName=distillation", "needs a teacher", "teacherModelFile"]),
        ("c1 --set unlabelledClasses=pseudo", ["unlabelledClasses=pseudo", "use unlabelledClasses=mask"]),
        ("c1 --set replayImages=5", ["replayImages=5", "--set baseClasses=NAMES"]),
        ("c1 --set baseClasses=20", ["baseClasses", "all 20 classes are base classes"]),
        ("voc.nano.distillation --data .", ["voc: which classes does the teacher know", "--set baseClasses=4"]),
    ],
)  # fmt: skip
def test_mistakes(mars, command, words):
    assert_one_sentence(mars(*command.split()), *words)


HEAVY = {"torch", "torchvision", "cv2", "matplotlib"}
WITHOUT_TORCH = [
    "--help",
    "--fields",
    *(f"{name} --help" for name in COMMANDS),
    "trian c1",
    "train eval c1",
    "c1 nano full",
    "c1 --dta x",
    "predict c1 x.jpg --split test",
    *(f"{name} c1.nano.ful" for name in ("pipe", "train", "eval", "doctor", "incremental")),
    "predict c1.nano.ful x.jpg",
    "explain c1.nano.ful x.jpg",
    "export c1.nano.ful --format onnx",
    *(f"{name} c1 --set maxEpochs=3" for name in ("pipe", "train", "eval", "doctor", "incremental")),
    "predict c1 x.jpg --set maxEpochs=3",
    "split . --out x --shots 3 --set maxEpochs=3",
    *(f"{name} voc.nano --data nowhere" for name in ("pipe", "train", "doctor")),
    "split nowhere --out x --shots 3",
    "eval c1 --weights nowhere.pth",
    "predict c1 x.jpg --weights nowhere.pth",
    "doctor c1 --replay nowhere.pth",
    "voc.nano",
    "c1 --set pretrained=yolov9n",
]


def test_help_and_mistakes_are_answered_before_anything_heavy_is_imported(tmp_path, environment):
    """All in one process: a command that imports torch is found by what it adds to `sys.modules`."""
    code = (
        "import json, sys, mars\n"
        "loaded = {}\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    try: status = mars.main(command.split())\n"
        "    except SystemExit as done: status = done.code\n"
        "    loaded[command] = [status, sorted(set(sys.modules) & set(json.loads(sys.argv[2])))]\n"
        "print('\\n' + json.dumps(loaded))"
    )
    words = [sys.executable, "-c", code, json.dumps(WITHOUT_TORCH), json.dumps(sorted(HEAVY))]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    answers = {command: [0 if "--help" in command or "--fields" in command else 2, []] for command in WITHOUT_TORCH}
    assert loaded == answers, done.stderr


def test_a_mistake_leaves_nothing_behind(mars_anew, tmp_path):
    mars_anew("c1.nano.full", "--data", "nowhere")
    assert not (tmp_path / "runs").exists()


# Mistakes that only the data show; torch is imported for them


def test_data_that_are_not_there(mars, tmp_path):
    assert_one_sentence(mars("voc.nano", "--data", "nowhere"), str(tmp_path / "nowhere"))
    assert_one_sentence(mars("c1.nano.full"), str(tmp_path / "runs" / "mar20"))


def test_data_with_faults_are_listed_with_their_files(mars, data):
    done = mars("voc.nano", "--data", str(data), "--set", "dcore=0")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for file in ("images/a.jpg", "images/validation", "images/test"):
        assert str(data / file) in done.stderr


def test_eval_before_training(mars, data):
    done = mars("eval", "voc.nano", "--data", str(data))
    assert_one_sentence(
        done, "runs/voc.nano-cats/weights/", "no such weights file", "train first: python mars.py train voc.nano"
    )


def test_predicting_before_training(mars):
    assert_one_sentence(mars("predict", "c1", "."), "runs/c1/weights/", "train first: python mars.py train c1")
    assert_one_sentence(mars("predict", "voc", "."), "runs/voc-*", "train first: python mars.py train voc --data DIR")


@pytest.fixture
def trained(tmp_path):
    """A run whose weights nobody gets to read."""
    (tmp_path / "runs/c1/weights").mkdir(parents=True)
    (tmp_path / "runs/c1/weights/best.pth").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("predict c1 nowhere.jpg", ["nowhere.jpg: no such file or folder"]),
        ("predict c1 nowhere/*.jpg", ["nowhere/*.jpg: no file matches this pattern"]),
        ("predict c1 empty", ["empty: contains no image", "jpg"]),
        ("predict c1 . --out file", ["--out", "file: is a file", "name a folder"]),
    ],
)
def test_images_that_are_not_there(mars, tmp_path, command, words):
    assert_one_sentence(mars(*command.split()), *words)
    assert not (tmp_path / "runs/c1/predict").exists()


# What is no mistake


@pytest.mark.parametrize("command", ["--help", "-h", "c1 --quiet --help"])
def test_help(mars_anew, command):
    done = mars_anew(*command.split())
    assert (done.returncode, done.stderr) == (0, "")
    for command, summary in {name: command.summary for name, command in COMMANDS.items()}.items():
        assert f"    {command} " in done.stdout and summary in done.stdout
    for word in ("COMMAND --help", "c1", "voc", ".distillation", "cuda@N", "--set FIELD=VALUE", "--nobuf", "--root"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


RUN_OPTIONS = {"--data DIR", "--root DIR", "--name NAME", "--set FIELD=VALUE"}


@pytest.mark.parametrize(
    ("name", "form", "options"),
    [
        ("pipe", "CFGNAME [options]", RUN_OPTIONS | {"--nobuf, -nobuf", "--trace"}),
        ("train", "CFGNAME [options]", RUN_OPTIONS | {"--nobuf, -nobuf", "--trace"}),
        ("eval", "CFGNAME [options]", RUN_OPTIONS | {"--weights FILE", "--split NAME"}),
        ("predict", "CFGNAME PATH... [options]", RUN_OPTIONS | {"--weights FILE", "--out DIR"}),
        ("doctor", "CFGNAME [options]", RUN_OPTIONS | {"--replay FILE"}),
        ("explain", "CFGNAME IMAGE [options]", RUN_OPTIONS | {"--weights FILE"}),
        ("augment", "CFGNAME [options]", RUN_OPTIONS | {"--count N", "--out FILE"}),
        (
            "export", "CFGNAME --format FORMAT [options]",
            RUN_OPTIONS | {"--weights FILE", "--format FORMAT", "--nms", "--out FILE"},
        ),
        ("backbone", "FILE.pt [options]", {"--out FILE"}),
        (
            "split", "DIR --out DIR --shots K [options]",
            {"--out DIR", "--shots K", "--share PERCENT", "--seed N", "--from SPLIT", "--name SPLIT",
             "--set FIELD=VALUE"},
        ),
        (
            "incremental", "CFGNAME [options]",
            RUN_OPTIONS | {"--draws N", "--methods NAME,NAME", "--novel-only"},
        ),
    ],
)  # fmt: skip
def test_the_help_of_a_command_shows_what_it_accepts_and_nothing_else(capsys, name, form, options):
    with pytest.raises(SystemExit) as ended:
        mars_module.main(["--quiet", name, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert out.startswith(f"usage: python mars.py {name} {form}\n")
    assert COMMANDS[name].summary[1:] in out
    shown = {line.strip().partition("  ")[0] for line in out.splitlines() if line.startswith("  -")}
    assert shown == options | {"-h, --help", "--quiet", "--fields", "--version"}
    assert max(map(len, out.splitlines())) <= 120


def test_every_command_has_a_test_of_its_help():
    (marks,) = test_the_help_of_a_command_shows_what_it_accepts_and_nothing_else.pytestmark
    assert [name for name, *_ in marks.args[1]] == list(COMMANDS)


def test_fields(mars_anew):
    done = mars_anew("--fields")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nmaxEpoch = 200\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_a_bug_shows_its_traceback_and_is_not_the_users_mistake(mars_anew, tmp_path):
    broken = "def broken(*args):\n    raise ZeroDivisionError('a bug')\n"
    (tmp_path / "sitecustomize.py").write_text(f"import config.load\n{broken}config.load.load_config = broken\n")
    done = mars_anew("c1", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert "ZeroDivisionError: a bug" in done.stderr


def test_words_behind_set_keep_their_places():
    args = read_arguments(["predict", "--set", "paintImages=no", "minIou=0.4", "voc.nano.full", "--quiet", "x.jpg"])
    assert (args.cfgname, args.paths, args.set) == ("voc.nano.full", ["x.jpg"], ["paintImages=no", "minIou=0.4"])
    args = read_arguments(["predict", "voc.nano.full", "--set", "paintImages=no", "a=b/x.jpg"])
    assert (args.paths, args.set) == (["a=b/x.jpg"], ["paintImages=no"])
    args = read_arguments(["--set=seed=1", "maxEpoch=3", "voc.nano", "--set", "dcore=0"])
    assert (args.cfgname, args.set) == ("voc.nano", ["seed=1", "maxEpoch=3", "dcore=0"])


@pytest.mark.parametrize(
    ("words", "command", "cfgname"),
    [
        ("", "pipe", None),
        ("c1.nano", "pipe", "c1.nano"),
        ("train", "train", None),
        ("-train", "train", None),
        ("-train c1", "train", "c1"),
        ("c1 -eval", "eval", "c1"),
        ("-pipe -nobuf c1", "pipe", "c1"),
        ("--quiet --root x train --name y c1 --data z", "train", "c1"),
        ("--set seed=3 maxEpoch=4 train c1", "train", "c1"),
        ("--name train c1", "pipe", "c1"),
        ("train --name eval c1", "train", "c1"),
        ("train train c1", "train", "c1"),
    ],
)
def test_the_command_may_stand_before_or_behind_options(words, command, cfgname):
    args = read_arguments(words.split())
    assert (args.command, args.cfgname, args.words) == (command, cfgname, words.split())
    assert args.nobuf == ("-nobuf" in words)


def test_options_may_stand_between_paths():
    args = read_arguments(["predict", "--quiet", "voc.nano", "a.jpg", "--out", "found", "b.jpg", "train"])
    assert (args.cfgname, args.paths, args.out) == ("voc.nano", ["a.jpg", "b.jpg", "train"], "found")
