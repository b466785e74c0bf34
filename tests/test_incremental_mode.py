"""`python mars.py incremental`, end to end on squares that train in a moment: runs, table, going on, and refusals."""

import json
import logging
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mars
from commands.arguments import read_arguments
from commands.study import Study
from config.errors import UserError
from config.load import load_config, parse_settings
from dl.label_selection import splits_to_train
from eval.predictor import Detections
from eval.results import write_results
from ops.files import file_digest
from runs.checkpoint import load_checkpoint
from train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("narrow_networks")
CFGNAME = "voc.nano.batch@4.size@64.workers@0.epochs@2"
PREFIX, TEACHER = "voc.nano.batch@4.size@64.epochs@2-squares", "voc.nano.batch@4.size@64.epochs@2.teacher-squares"
SETTINGS = ("baseClasses=1", "smallShots=2", "paintImages=no", "precision=float32", "device=cpu", "mosaic=0")
WAYS = ("finetune", "distillation")


def draw_squares(folder: Path, count: int = 12) -> Path:
    """Images with a red and a blue square each: eight to train on, two to validate, two to test; no list 'small'."""
    rng = np.random.default_rng(0)
    for name in ("images", "annotations", "splits"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels, objects = rng.integers(80, 120, (64, 64, 3)).astype(np.uint8), ""
        for place, (name, colour) in enumerate({"red": (220, 0, 0), "blue": (0, 0, 220)}.items()):
            x, y = (int(value) for value in rng.integers((32 * place, 0), (32 * place + 8, 40)))
            pixels[y : y + 24, x : x + 24] = colour
            box = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + 24}</xmax><ymax>{y + 24}</ymax>"
            objects += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        Image.fromarray(pixels).save(folder / f"images/{number:02}.png")
        size = "<size><width>64</width><height>64</height><depth>3</depth></size>"
        (folder / f"annotations/{number:02}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (folder / "classes.txt").write_text("red\nblue\n")
    for split, numbers in {"train": range(8), "validation": (8, 9), "test": (10, 11)}.items():
        (folder / f"splits/{split}.txt").write_text("".join(f"{number:02}\n" for number in numbers))
    return folder


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    return draw_squares(tmp_path_factory.mktemp("data") / "squares")


def call(
    root: Path, data: Path, *words: str, mode: str = "incremental", cfgname: str = CFGNAME, settings=SETTINGS
) -> int:
    return mars.main([mode, cfgname, "--root", str(root), "--data", str(data), *words, "--set", *settings])


@pytest.fixture
def run(squares, tmp_path, capsys):
    """The mode on the squares, in a root of its own; exit status, what went to stdout, what went to stderr."""

    def run_it(*words: str, **options) -> tuple[int, str, str]:
        status = call(tmp_path, options.pop("data", squares), *words, **options)
        return status, *capsys.readouterr()

    return run_it


@pytest.fixture
def no_training(monkeypatch):
    """Whatever is trained from here on is a fault."""
    monkeypatch.setattr(Trainer, "fit_one_epoch", lambda self, epoch: pytest.fail(f"trained {self.mcfg.runName}"))


@pytest.fixture(scope="module")
def done(squares, tmp_path_factory) -> Path:
    """The root of a comparison of two methods on two draws."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.trainer.plot_curves", lambda *_: None)  # of each run, longer than its epochs
        assert call(root, squares, "--draws", "2", "--ways", ",".join(WAYS), "--quiet") == 0
    return root


def states(root: Path) -> dict[str, object]:
    """Of weights the checksum and when they were written; of what is written again on going on, the checksum."""
    weights = {
        str(file.relative_to(root)): (file_digest(file), file.stat().st_mtime) for file in root.glob("*/*/*.pth")
    }
    others = [*root.glob("*/metrics.jsonl"), *root.glob("*/config.json")]
    return {**weights, **{str(file.relative_to(root)): file_digest(file) for file in others}}


def run_names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def figures(root: Path, name: str) -> dict:
    return json.loads((root / name / "eval/metrics.json").read_text())


RUNS = [f"{PREFIX}.{way}-{draw}" for way in WAYS for draw in range(2)]


# What is made


def test_a_teacher_two_runs_a_way_and_the_comparison(done):
    assert run_names(done) == {TEACHER, *RUNS, f"{PREFIX}.incremental"}
    for name in (TEACHER, *RUNS):
        checkpoint = load_checkpoint(done / name / "weights/last.pth")
        assert checkpoint["epoch"] == 2
        assert figures(done, name)["split"] == "test"
    folder = done / f"{PREFIX}.incremental"
    assert sorted(path.name for path in folder.iterdir()) == ["base-novel.png", "metrics.json", "table.txt"]
    assert (folder / "base-novel.png").read_bytes().startswith(b"\x89PNG")


def test_the_files_hold_the_figures_of_every_run(done):
    content = json.loads((done / f"{PREFIX}.incremental/metrics.json").read_text())
    assert {name: len(way["runs"]) for name, way in content["ways"].items()} == {"teacher": 1, **dict.fromkeys(WAYS, 2)}
    for name, (way, draw) in zip(RUNS, [(way, draw) for way in WAYS for draw in range(2)], strict=True):
        assert content["ways"][way]["runs"][draw]["groups"] == figures(done, name)["groups"]
        assert content["ways"][way]["runs"][draw]["confusion"] == figures(done, name)["confusion"]
    assert list(content["differences"]) == ["finetune"]
    lines = (done / f"{PREFIX}.incremental/table.txt").read_text().splitlines()
    assert lines[0].split()[:4] == ["base", "novel", "all", "harmonic"]
    assert [line.split()[0] for line in lines[1:4]] == ["teacher", *WAYS]
    assert [line.count("+-") for line in lines[1:4]] == [0, 5, 5]
    assert lines[4].startswith("distillation - finetune: harmonic ")
    assert lines[5] == "95 % intervals of differences: Student's t over 2 few-shot splits"
    assert lines[6] == f"teacher: {TEACHER}, trained on the base classes"


def test_the_table_is_made_of_what_was_found_on_the_test_split(study):
    """Detections of given squares: AP50 of a class is 1, or 51 of 101 recall points when one of two is found."""
    comparison = study("--draws", "2", "--ways", "finetune,distillation")
    truth = comparison.truth("test")

    def put(name: str, **found: int) -> None:
        rows = []
        for place, annotation in enumerate(truth):
            labels = [label for label in annotation.labels.tolist() if place < found.get(("red", "blue")[label], 0)]
            boxes = torch.from_numpy(annotation.boxes[[annotation.labels.tolist().index(label) for label in labels]])
            rows.append(
                Detections(annotation.image_id, boxes, torch.full((len(labels),), 0.9), torch.tensor(labels).long())
            )
        write_results(Path(comparison.teacher.root) / name / "eval/test/detections.json", rows)

    put(TEACHER, red=2)
    for name, blue in zip(RUNS, (1, 1, 2, 1), strict=True):
        put(name, red=2 if "distillation" in name else 1, blue=blue)
    runs = {way: [comparison._measured(student(comparison, way, draw), "test") for draw in range(2)] for way in WAYS}
    lines = [line.split() for line in comparison.write(runs).splitlines()]
    half = 100 * 51 / 101  # 50.5
    assert lines[1][:5] == ["teacher", "100.0", "0.0", "50.0", "0.0"]
    assert (
        lines[2]
        == (
            f"finetune {half:.1f} +- 0.0 {half:.1f} +- 0.0 {half:.1f} +- 0.0 {half:.1f} +- 0.0 "
            f"{100 - half:.1f} {half:.1f} % 0.0 % 0.0 % {half:.1f} +- 0.0"
        ).split()
    )
    both = (100 + half) / 2  # mean of two draws: 100.0 and 50.5; their interval is 12.706 * 49.5 / 2 to each side
    assert (
        lines[3][:8]
        == f"distillation 100.0 +- 0.0 {both:.1f} +- {12.7062 * (100 - half) / 2:.1f} {50 + both / 2:.1f}".split()
    )
    assert " ".join(lines[4]).startswith("distillation - finetune: harmonic +")
    assert f"base +{100 - half:.1f} [" in " ".join(lines[4])


def test_every_student_starts_from_the_teacher(done):
    best = done / TEACHER / "weights/best.pth"
    for name in RUNS:
        origin = load_checkpoint(done / name / "weights/last.pth")["weights_origin"]
        assert (origin["path"], origin["sha256"]) == (str(best), file_digest(best))
    assert load_checkpoint(best)["weights_origin"]["path"] is None


def test_the_teacher_saw_base_labels_only_and_the_students_those_of_the_small_split(done):
    begun = {name: json.loads((done / name / "config.json").read_text()) for name in (TEACHER, *RUNS)}
    assert (begun[TEACHER]["trainSelectedClasses"], begun[TEACHER]["trainSplitName"]) == (["red"], "train")
    for name in RUNS:
        assert begun[name]["trainSplitName"] == "small"
        assert begun[name]["modelName"] == ("distillation" if "distillation" in name else "base")
        assert (begun[name]["trainSelectedClasses"], begun[name]["replayImages"]) == (None, 0)
        parts = set(json.loads((done / name / "metrics.jsonl").read_text().splitlines()[0]))
        assert ({"cwd", "response"} <= parts) == ("distillation" in name)


def test_ways_are_compared_on_the_same_draws(done):
    drawn = [load_checkpoint(done / name / "weights/last.pth")["data"]["split small"] for name in RUNS]
    assert drawn[:2] == drawn[2:], "each way on the same two"
    assert drawn[0] != drawn[1], "which differ"


def test_every_run_keeps_a_log_of_its_own(done):
    logs = {name: (done / name / "mars.log").read_text() for name in (TEACHER, *RUNS)}
    for name, text in logs.items():
        assert text.count(" epoch 1/2 |") == text.count(" epoch 2/2 |") == 1
        assert [
            run_name
            for run_name in logs
            if run_name != name and f"/{run_name}" in text.replace(f"{TEACHER}/weights", "")
        ] == []
        assert text.count("Average precision on 'test'") == 1
        if name != TEACHER:
            assert text.count(f" {name}: ") == 1
            assert text.count(" split 'small': ") == 1
    assert all(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("mars").handlers)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", ["table.txt", "metrics.json", "base-novel.png"])
def test_files_of_the_user_in_the_place_of_the_comparison_are_named_first(run, tmp_path, name):
    place = tmp_path / f"{PREFIX}.incremental" / name
    place.parent.mkdir()
    place.write_text("[]")
    status, _, err = run()
    assert (status, err.startswith(f"mars: {place}: was not written by incremental")) == (2, True)
    assert place.read_text() == "[]" and run_names(tmp_path) == {place.parent.name}


# Once more, and going on


@pytest.mark.usefixtures("no_training")
def test_once_more_trains_nothing_and_says_the_same(done, squares, capsys):
    before, table = states(done), (done / f"{PREFIX}.incremental/table.txt").read_text()
    assert call(done, squares, "--draws", "2", "--ways", ",".join(WAYS), "--quiet") == 0
    out = capsys.readouterr().out
    assert states(done) == before
    assert (done / f"{PREFIX}.incremental/table.txt").read_text() == table
    assert table.strip() in out
    for name in RUNS:
        text = (done / name / "mars.log").read_text()
        assert (text.count("already trained: 2 of 2 epochs"), text.count(" epoch 1/2 |")) == (1, 1)
    assert f"{TEACHER} is already trained" in (done / TEACHER / "mars.log").read_text()


@pytest.mark.usefixtures("no_training")
def test_a_part_of_the_ways_is_a_smaller_table_of_all_classes(done, squares):
    """Whatever is reported otherwise: base is compared with novel."""
    settings = (*SETTINGS, "testSelectedClasses=red")
    assert call(done, squares, "--ways", "finetune", "--quiet", "--name", PREFIX, settings=settings) == 0
    assert list(figures(done, RUNS[0])["per_class"]) == ["red", "blue"]
    lines = (done / f"{PREFIX}.incremental/table.txt").read_text().splitlines()
    assert [line.split()[0].rstrip(":") for line in lines[1:]] == ["teacher", "finetune", "teacher", "finetune"]
    assert "+-" not in "".join(lines)


def test_a_teacher_that_was_trained_alone_is_taken_as_it_is(run, tmp_path):
    """By `train`, which evaluates nothing; for other epochs and with --nobuf, which nobody must take over."""
    alone = CFGNAME.replace("epochs@2", "teacher")
    status, *_ = run("--name", TEACHER, "--nobuf", mode="train", cfgname=alone, settings=(*SETTINGS, "maxEpoch=1"))
    assert status == 0
    assert run("--split", "validation", "--name", TEACHER, mode="eval", cfgname=alone)[0] == 0
    before = states(tmp_path)
    for _ in range(2):
        status, out, err = run("--ways", "joint")
        assert (status, err, f"teacher: {tmp_path / TEACHER} is already trained" in out) == (0, "", True)
        assert states(tmp_path).items() >= before.items()
    assert run_names(tmp_path) == {TEACHER, f"{PREFIX}.joint", f"{PREFIX}.incremental"}
    assert figures(tmp_path, TEACHER)["split"] == "test"
    joint, teacher = (load_checkpoint(tmp_path / name / "weights/last.pth") for name in (f"{PREFIX}.joint", TEACHER))
    assert joint["weights_origin"] == teacher["weights_origin"], "where the teacher began, and not from it"
    assert joint["epoch"] == 1, "as long as the teacher was"
    ours, theirs = (json.loads(checkpoint["config"]) for checkpoint in (joint, teacher))
    assert {name for name in ours if ours[name] != theirs[name]} <= {
        "trainSelectedClasses", "runName", "nobuf", "cfgname",
    }  # fmt: skip
    assert (ours["trainSelectedClasses"], ours["nobuf"]) == (None, False)


def test_students_of_an_older_teacher_are_not_compared_with_it(run, tmp_path):
    once, methods = (*SETTINGS, "maxEpoch=1"), ("finetune", "both")
    assert run("--ways", ",".join(methods), settings=once)[0] == 0
    before = states(tmp_path)
    alone = CFGNAME.replace("epochs@2", "teacher")
    assert run("--name", TEACHER, "--nobuf", mode="train", cfgname=alone, settings=(*once, "seed=7"))[0] == 0
    for method in methods:
        refused(
            run("--ways", method, settings=once),
            f"{PREFIX}.{method}-0: started from other weights than those now in",
            "--name",
        )
        assert {name: state for name, state in states(tmp_path).items() if method in name}.items() <= before.items()


def test_a_teacher_with_a_damaged_checkpoint_goes_on_from_the_one_before(done, squares, tmp_path):
    """In the folder of the comparison, whose paths the students know; the teacher's weights are put back afterwards."""
    weights = done / TEACHER / "weights"
    shutil.copytree(weights, tmp_path / "kept")
    try:
        last = weights / "last.pth"
        last.write_bytes(last.read_bytes()[:-100])
        assert call(done, squares, "--ways", "finetune") == 0
        assert load_checkpoint(last)["epoch"] == 2
    finally:
        shutil.copytree(tmp_path / "kept", weights, dirs_exist_ok=True)


def test_what_was_stopped_goes_on(run, tmp_path, monkeypatch):
    """Ctrl-C in the teacher's first epoch, and again in the student's."""
    fit = Trainer.fit_one_epoch

    def stop_in(name):
        def interrupted(self, epoch):
            if self.mcfg.runName == name and epoch == 1:
                raise KeyboardInterrupt
            return fit(self, epoch)

        monkeypatch.setattr(Trainer, "fit_one_epoch", interrupted)

    student = f"{PREFIX}.finetune-0"
    for name, there in ((TEACHER, {TEACHER}), (student, {TEACHER, student})):
        stop_in(name)
        status, _, err = run("--ways", "finetune")
        assert (status, err.count("\n"), "the same command continues" in err) == (1, 1, True)
        assert run_names(tmp_path) == there
        assert load_checkpoint(tmp_path / name / "weights/last.pth")["epoch"] == 1
        result = run("--ways", "finetune", settings=(*SETTINGS, "talTopk=5"))
        refused(result, f"{tmp_path / name}: holds another training: talTopk 10 -> 5")
    monkeypatch.setattr(Trainer, "fit_one_epoch", fit)
    before = states(tmp_path)
    assert run("--ways", "finetune")[0] == 0
    after = states(tmp_path)
    assert {file for file in before if file.startswith(TEACHER) and before[file] != after[file]} == set()
    for name in (TEACHER, student):
        assert load_checkpoint(tmp_path / name / "weights/last.pth")["epoch"] == 2
        assert "resuming" in (tmp_path / name / "mars.log").read_text()


# What each way is


@pytest.fixture
def study(squares, tmp_path):
    """study(words, settings, data=...) -> the comparison before anything is trained."""

    def make(*words: str, settings=(), data: Path = squares) -> Study:
        arguments = ["incremental", CFGNAME, "--root", str(tmp_path), "--data", str(data), *words]
        return Study(read_arguments(arguments), parse_settings([*SETTINGS, *settings]))

    return make


def student(study: Study, name: str, draw: int = 0):
    return study.student_config(name, draw)


def changes(study: Study, name: str) -> dict:
    """What a way changes of the recipe's student, as it would be trained by itself."""
    values = {
        **study.settings,
        "teacherModelFile": str(study.teacher.run_dir),
        "checkpointModelFile": str(study.teacher.run_dir),
    }
    own = load_config(study.student_stage.cfgname, study.args.root, study.args.data, values).to_dict()
    found = student(study, name).to_dict()
    data = {"annotationFormat", "imageDir", "annotationDir", "classList", "subsetMap", "runName"}
    return {field: found[field] for field in found if field not in data and found[field] != own[field]}


AS_ASSIGNED = {
    "distilLossWeights": [1.0, 0.2, 0.01], "boxResponseWeight": 0.0, "temperature": 2.0,
    "responseMode": "softmax", "distilFeatures": ["feat0", "feat1", "feat2", "feat3", "C", "X", "Y", "Z"],
    "backboneFreezeEpochs": [0, 1, 2, 3, 4], "unlabelledClasses": "background",
}  # fmt: skip


def test_ways_differ_from_the_recipes_student_in_what_they_say(study):
    comparison = study()
    assert comparison.wanted == ["finetune", "assignment", "replay", "distillation", "both", "joint"]
    assert changes(comparison, "distillation") == {}
    assert changes(comparison, "finetune") == {"modelName": "base"}
    assert changes(comparison, "assignment") == AS_ASSIGNED
    assert changes(comparison, "replay") == {"modelName": "base", "replayImages": 10}
    assert changes(comparison, "both") == {"replayImages": 10}
    assert comparison.ours == "both", "the recipe replays ten images of its one base class"
    assert study("--ways", "finetune,distillation").ours == "distillation"
    joint = comparison.joint_config()
    assert (joint.trainSelectedClasses, joint.trainSplitName, joint.modelName) == (None, "train", "base")


def test_a_student_with_the_assignments_losses_is_trained_once(study, caplog):
    same = ("distilling=assignment", "backboneFreezeEpochs=0-4")
    with caplog.at_level("INFO", logger="mars"):
        assert study(settings=same).wanted == ["finetune", "replay", "distillation", "both", "joint"]
    assert "assignment: the recipe's student has these losses, so it is trained once, as 'distillation'" in caplog.text
    assert study("--ways", "assignment,distillation", settings=same).wanted == ["assignment", "distillation"], (
        "as asked"
    )
    assert "assignment" in study(settings=(*same, "temperature=3")).wanted


def test_where_only_new_classes_are_labelled_there_are_more_ways(study):
    comparison = study("--novel-only")
    assert comparison.wanted == [
        "finetune",
        "assignment",
        "replay",
        "distillation",
        "both",
        "joint",
        "masked",
        "pseudo",
    ]
    seen = {"trainSelectedClasses": ["blue"], "distilSelectedClasses": ["blue"]}
    background = {"unlabelledClasses": "background"}  # the recipe masks
    assert changes(comparison, "finetune") == {"modelName": "base", **background, **seen}
    assert changes(comparison, "assignment") == {**AS_ASSIGNED, **seen}
    assert changes(comparison, "replay") == {"modelName": "base", "replayImages": 10, **background, **seen}
    assert changes(comparison, "distillation") == seen
    assert changes(comparison, "both") == {"replayImages": 10, **seen}
    assert changes(comparison, "masked") == {"modelName": "base", **seen}
    assert {student(comparison, name).unlabelledClasses for name in ("distillation", "both", "masked")} == {"mask"}
    assert changes(comparison, "pseudo") == {"unlabelledClasses": "pseudo", **seen}
    assert comparison.joint_config().trainSelectedClasses is None


def test_only_ways_that_replay_do_so_however_many_are_asked_for(study):
    comparison = study("--novel-only", settings=["replayImages=3"])
    replayed = {name: student(comparison, name).replayImages for name in comparison.wanted if name != "joint"}
    assert {name for name, count in replayed.items() if count == 3} == {"replay", "both"}
    assert set(replayed.values()) == {0, 3}
    assert (comparison.teacher.replayImages, comparison.joint_config().replayImages) == (0, 0)
    assert "with up to 3 images of the base classes" in comparison.plans["replay"].description


def test_replay_may_be_set_where_the_recipe_says_which_classes_are_base(tmp_path):
    words = read_arguments(["incremental", "demo.nano", "--root", str(tmp_path), "--quiet"])
    comparison = Study(words, parse_settings(["drawnScenes=6", "replayImages=3"]))
    assert (student(comparison, "both").replayImages, comparison.prefix) == (3, "demo.nano")


def test_draws_start_at_the_seed_that_is_set(study):
    assert [student(study("--draws", "2"), "finetune", draw).smallSeed for draw in range(2)] == [0, 1]
    assert [student(study(settings=["smallSeed=7"]), "finetune", draw).smallSeed for draw in range(2)] == [7, 8]
    assert list(study("--draws", "3").draws_of("replay")) == [0, 1, 2]
    assert list(study("--draws", "3").draws_of("joint")) == [0]


def test_official_weights_are_for_the_teacher_and_joint_training(study):
    comparison = study(settings=["pretrained=yolov8n"])
    assert (comparison.teacher.pretrained, comparison.joint_config().pretrained) == ("yolov8n", "yolov8n")
    for name in ("finetune", "distillation"):
        mcfg = student(comparison, name)
        assert (mcfg.pretrained, mcfg.checkpointModelFile) == (None, str(comparison.teacher.run_dir))
        assert splits_to_train(mcfg) == ["small"]


def test_a_name_is_for_the_runs_and_not_for_the_teacher(study):
    comparison = study("--name", "mine")
    assert comparison.teacher.runName == TEACHER
    assert (student(comparison, "finetune").runName, comparison.joint_config().runName) == (
        "mine.finetune-0",
        "mine.joint",
    )


def test_joint_training_scales_images_as_its_teacher_did(study, monkeypatch):
    monkeypatch.setattr("commands.study.RunFolder.saved_config", lambda self: {"pixelMax": 4095})
    assert study().joint_config().pixelMax == 4095
    assert study(settings=["pixelMax=2000"]).joint_config().pixelMax == 2000


def commands(out: str) -> list[list[str]]:
    """The words behind `mars.py` of the commands in the last lines of an output."""
    lines = [line.removeprefix("continue with: ") for line in out.splitlines()[-2:] if "mars.py" in line]
    return [shlex.split(line)[2:] for line in lines]


def test_what_was_cut_short_is_trained_by_the_commands_that_are_given(run, tmp_path, capsys):
    """First the teacher and a student, then a way that the complete teacher teaches, so that it goes on."""
    short = (*SETTINGS, "trainMinutes=0.0001", "trainMinEpochs=1", "replayImages=3")
    status, out, _ = run("--ways", "finetune", settings=short)
    assert (status, f"{TEACHER}: trained 1 of 2 epochs" in out, "under a new name" in out) == (0, True, True)
    assert [words[0] for words in commands(out)] == ["train", "incremental"]
    assert [mars.main(words) for words in commands(out)] == [0, 0]
    assert "trained 1 of" not in capsys.readouterr().out
    for name in (TEACHER, f"{PREFIX}.complete.finetune-0"):
        assert load_checkpoint(tmp_path / name / "weights/last.pth")["epoch"] == 2, name

    status, out, _ = run("--ways", "finetune", "--name", "other", settings=short)
    assert (status, "other.finetune-0: trained 1 of 2 epochs" in out, "under a new name" in out) == (0, True, False)
    assert [mars.main(words) for words in commands(out)] == [0]
    assert load_checkpoint(tmp_path / "other.finetune-0/weights/last.pth")["epoch"] == 2


# Mistakes


def refused(result: tuple[int, str, str], *words: str) -> None:
    status, _, err = result
    assert (status, err.count("\n"), err.startswith("mars: ")) == (2, 1, True), result
    assert [word for word in words if word not in err] == [], err


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("words", "settings", "sentence"),
    [
        ("", ["smallShots=2"], ["which classes does the teacher know", "--set baseClasses=4"]),
        ("", ["baseClasses=2"], ["baseClasses: all 2 classes are base classes", "red, blue"]),
        ("", ["baseClasses=red,green"], ["baseClasses=green: not in classList", "red, blue"]),
        ("--ways finetun", SETTINGS, ["--methods finetun: no such method", "did you mean 'finetune'", "joint"]),
        ("--ways finetune,", SETTINGS, ["--methods : no such method", "finetune"]),
        ("--ways masked", SETTINGS, ["--methods masked: only with --novel-only", "finetune, assignment"]),
        ("--draws 0", SETTINGS, ["--draws 0: must be above 0"]),
        ("--draws two", SETTINGS, ["--draws=two: must be a whole number"]),
        (
            "--nobuf",
            SETTINGS,
            [
                "--nobuf: belongs to pipe, train, not to incremental; incremental continues the runs that exist",
                "--name",
            ],
        ),
        ("--name a/b", SETTINGS, ["runName='a/b'"]),
        ("", [*SETTINGS, "unlabelledClasses=pseudo"], ["unlabelledClasses=pseudo", "use unlabelledClasses=mask"]),
    ],
)
def test_mistakes(run, tmp_path, words, settings, sentence):
    refused(run(*words.split(), settings=settings), *sentence)
    assert run_names(tmp_path) == set()


@pytest.mark.usefixtures("no_training")
def test_draws_of_a_small_split_that_is_listed_would_all_be_the_same(run, study, squares, tmp_path):
    data = tmp_path / "listed"
    data.symlink_to(squares)
    lists = [f"{name}:{squares}/splits/{name}.txt" for name in ("train", "validation", "test")]
    (tmp_path / "small.txt").write_text("00\n01\n")
    settings = ["baseClasses=1", f"subsetMap={','.join(lists)},small:{tmp_path}/small.txt"]
    root = tmp_path / "root"
    for more in ([], ["smallShots=none"], ["smallShots=2"]):  # a list that is named by hand stands above smallShots
        status = run("--draws", "2", settings=[*settings, *more], data=data)
        refused(status, "--draws 2: the data set has a split 'small' of its own", "--set smallShots=10")
    assert not root.exists() and run_names(tmp_path) == {"listed", "small.txt"}


def test_a_list_of_the_data_set_gives_way_to_a_draw_that_is_asked_for(study, tmp_path):
    data = draw_squares(tmp_path / "own")
    (data / "splits/small.txt").write_text("00\n01\n")
    with pytest.raises(UserError, match="--draws 2: the data set has a split 'small' of its own"):
        study("--draws", "2", data=data, settings=["smallShots=none"])
    assert student(study(data=data, settings=["smallShots=none"]), "finetune").subsetMap["small"] == ("00", "01")
    comparison = study("--draws", "2", data=data)
    drawn = {student(comparison, "finetune", draw).subsetMap["small"] for draw in range(2)}
    assert len(drawn) == 2 and ("00", "01") not in drawn
