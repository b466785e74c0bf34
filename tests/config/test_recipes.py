"""Every recipe that ships, with every tag: it loads, and there are as many as we think."""

import ast
import itertools
from pathlib import Path

import pytest

from config.errors import UserError
from config.load import load_config
from config.mconfig import PHASES, base_names
from config.recipes import RECIPE_DIR, describe_recipes, read_tag_tests
from config.training import MODERN_DISTILLING
from runs.start import weights_at
from train.teacher_file import teacher_file

ALL_STAGES = ["", ".full", ".teacher", ".distillation"]
STAGES = {"c1": ALL_STAGES, "demo": ALL_STAGES, "voc": ALL_STAGES}
VARIANTS = {
    "c1": ["ema", "backbone", "modern", "assignment", "drawn"],
    "demo": ["assignment", "drawn"],
    "voc": ["assignment", "pretrained", "drawn"],
}
CFGNAMES = [
    f"{recipe}.{phase}{stage}{variant}"
    for recipe, stages in STAGES.items()
    for phase, stage, variant in itertools.product(PHASES, stages, ["", *(f".{tag}" for tag in VARIANTS[recipe])])
    if stage != ".distillation"
    or variant not in (".backbone", ".pretrained", ".drawn")  # refused: it starts from its teacher
    if phase == "nano" or variant != ".drawn"  # refused: there are such weights for nano only
    if recipe != "c1"
    or stage == ".distillation"
    or variant not in (".modern", ".assignment")  # refused: two ways to distil
]
# voc knows no classes: its user says which of them are base
GROUPS = {"overrides": {"classList": ["ant", "bee", "cat"], "baseClasses": 2}}


def test_there_are_as_many_as_we_think():
    assert [recipe.name for recipe in describe_recipes()] == sorted(STAGES)
    assert len(CFGNAMES) == len(set(CFGNAMES)) == 169


@pytest.mark.parametrize("cfgname", CFGNAMES)
def test_every_shipped_recipe_and_tag_loads(cfgname, tmp_path):
    groups = GROUPS if cfgname.startswith("voc.") and {"teacher", "distillation"} & set(cfgname.split(".")) else {}
    mcfg = load_config(cfgname, root=tmp_path, data=tmp_path / "data", **groups)
    assert mcfg.is_frozen
    assert mcfg.phase in cfgname.split(".")
    is_modern = not cfgname.startswith("c1.") and not cfgname.endswith(".assignment")
    assert mcfg.training == ("modern" if is_modern else "assignment")
    assert mcfg.useEMA == (is_modern or cfgname.endswith(".ema"))
    assert mcfg.runName.startswith(cfgname)
    assert mcfg.modelName == ("distillation" if ".distillation" in cfgname else "base")


@pytest.mark.parametrize("recipe", describe_recipes(), ids=lambda recipe: recipe.name)
def test_a_recipe_declares_what_it_tests_and_describes_itself(recipe):
    tags = {tag for stage in STAGES[recipe.name] for tag in [stage[1:]] if tag} | set(VARIANTS[recipe.name])
    assert set(recipe.tags) == tags
    assert recipe.doc.partition("\n")[0].endswith(".")
    tests = read_tag_tests(ast.parse((RECIPE_DIR / f"{recipe.name}.py").read_text()))
    assert (tests.words, tests.prefixes, tests.unreadable_line) == (tags, set(), None)


def test_the_student_of_c1_finds_its_teacher_below_root(tmp_path):
    student = load_config("c1.extended.distillation", root=tmp_path)
    teacher = load_config("c1.extended.teacher", root=tmp_path)
    assert (student.teacherModelFile, student.checkpointModelFile) == (str(teacher.run_dir), str(teacher.run_dir))
    assert teacher.trainSelectedClasses == teacher.baseClasses == student.baseClasses == tuple(student.classList[:10])
    assert (student.trainSplitName, student.epochValidation) == ("small", False)
    assert (student.trainSelectedClasses, student.distilSelectedClasses) == (None, None)


def test_of_the_teachers_run_the_best_weights_are_taken_else_the_last(tmp_path):
    student = load_config("c1.nano.distillation", root=tmp_path)
    weights = tmp_path / "c1.nano.teacher" / "weights"
    with pytest.raises(UserError, match=rf"{weights.parent}: no such teacher.*python mars.py c1.nano.teacher"):
        teacher_file(student)
    weights.mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{weights}/best.pth: no such teacher"):
        teacher_file(student)
    for name in ("last", "best"):
        (weights / f"{name}.pth").touch()
        assert teacher_file(student) == weights_at(Path(student.checkpointModelFile)) == weights / f"{name}.pth"


@pytest.mark.parametrize("recipe", ["demo", "voc"])
def test_student_and_teacher_of_demo_and_voc_fit(tmp_path, recipe):
    groups = GROUPS if recipe == "voc" else {}
    stages = ("teacher", "distillation")
    teacher, student = (
        load_config(f"{recipe}.nano.{it}", root=tmp_path, data=tmp_path / "x", **groups) for it in stages
    )
    assert (student.teacherModelFile, student.checkpointModelFile) == (str(teacher.run_dir), str(teacher.run_dir))
    assert teacher.trainSelectedClasses == base_names(teacher) == base_names(student)
    assert len(base_names(student)) == (10 if recipe == "demo" else 2)
    assert (student.trainSplitName, student.epochValidation) == ("small", False)
    assert (teacher.trainSplitName, teacher.epochValidation) == ("train", True)


@pytest.mark.parametrize("stage", ["teacher", "distillation"])
def test_voc_asks_which_classes_are_base(tmp_path, stage):
    with pytest.raises(UserError, match=r"voc: which classes does the teacher know\? Add --set baseClasses=4"):
        load_config(f"voc.nano.{stage}", data=tmp_path)


@pytest.mark.parametrize("recipe", ["c1", "demo", "voc"])
def test_stages_are_runs_of_their_own(tmp_path, recipe):
    for stages in ("full.teacher", "teacher.distillation", "full.distillation"):
        with pytest.raises(
            UserError, match=f"{recipe}: full, teacher and distillation are runs of their own; keep one"
        ):
            load_config(f"{recipe}.nano.{stages}", data=tmp_path, **GROUPS)


def test_the_student_of_c1_has_the_assignments_losses_learning_rate_and_batch(tmp_path):
    """They belong together: today's losses were chosen at a rate of .002 and batches of 4 images."""
    student = load_config("c1.nano.distillation", root=tmp_path)
    assert (student.baseLearningRate, student.batchSize, student.unlabelledClasses) == (0.01, 16, "background")
    assert (student.responseMode, student.temperature, student.distilLossWeights) == ("softmax", 2.0, (1.0, 0.2, 0.01))
    assert student.distilFeatures == ("feat0", "feat1", "feat2", "feat3", "C", "X", "Y", "Z")
    assert (student.boxResponseWeight, student.backboneFreezeEpochs) == (0.0, (0, 1, 2, 3, 4))


def test_todays_losses_of_c1_are_a_way_to_distil(tmp_path):
    by_tag = load_config("c1.nano.distillation.modern", root=tmp_path)
    by_word = load_config("c1.nano.distillation", root=tmp_path, overrides={"distilling": "modern"})
    for student in (by_tag, by_word):
        assert {name: getattr(student, name) for name in MODERN_DISTILLING} == MODERN_DISTILLING
    assert (by_tag.backboneFreezeEpochs, by_word.backboneFreezeEpochs) == ((), (0, 1, 2, 3, 4))
    for stage in ("full", "teacher"):
        with pytest.raises(UserError, match="take one of them, with the tag distillation"):
            load_config(f"c1.nano.{stage}.modern", root=tmp_path)


def test_c1_looks_for_mar20_below_root_unless_told_otherwise(tmp_path):
    assert load_config("c1", root=tmp_path).dataDir == str(tmp_path / "mar20")
    assert load_config("c1", root=tmp_path, data=tmp_path / "x").dataDir == str(tmp_path / "x")
    assert len(load_config("c1").classList) == 20


def test_a_broken_recipe_does_not_break_the_list(tmp_path):
    (tmp_path / "broken.py").write_text("def mcfg(tags:\n")
    (tmp_path / "fine.py").write_text('"""Fine."""\nTAGS = {"a": "b"}\n')
    assert [(r.name, r.doc, r.tags) for r in describe_recipes(tmp_path)] == [
        ("broken", "", {}),
        ("fine", "Fine.", {"a": "b"}),
    ]


def test_the_second_stage_of_c1_starts_from_a_frozen_backbone(tmp_path):
    mcfg = load_config("c1.small.full.backbone", root=tmp_path)
    assert str(mcfg.pretrainedBackboneUrl).endswith("/resources/pretrained/backbone/backbone_small.pth")
    assert mcfg.backboneFreezeEpochs == (0, 1, 2, 3, 4)
    with pytest.raises(UserError, match="keep one"):
        load_config("c1.small.distillation.backbone", root=tmp_path)


def test_voc_starts_from_the_official_weights_of_its_phase(tmp_path):
    mcfg = load_config("voc.extra.pretrained", root=tmp_path, data=tmp_path)
    assert (mcfg.pretrained, mcfg.nominalBatch) == ("yolov8x", 64)


DRAWN = RECIPE_DIR.parent / "resources/pretrained/drawn_nano.pth"


def test_only_nano_starts_from_drawings_and_only_from_them(tmp_path):
    def start(cfgname, **overrides):
        return load_config(cfgname, root=tmp_path, data=tmp_path, overrides=overrides).checkpointModelFile

    for cfgname in ("demo.nano.full", "demo.nano.teacher", "demo.nano.full.assignment.drawn", "voc.nano.full.drawn"):
        assert start(cfgname) == str(DRAWN), cfgname
    for cfgname in ("demo.nano.full.assignment", "demo.small.full", "voc.nano.full", "c1.nano.full"):
        assert start(cfgname) is None, cfgname
    assert start("demo.nano.distillation") == str(tmp_path / "demo.nano.teacher")
    assert start("demo.nano.full", checkpointModelFile=None) is None
    assert start("demo.nano.full", pretrained="yolov8n") is None
    with pytest.raises(UserError, match="for phase nano only, not for small; leave this tag out"):
        start("voc.small.full.drawn")
    for cfgname in ("c1.nano.full.backbone.drawn", "voc.nano.full.pretrained.drawn", "c1.nano.distillation.drawn"):
        with pytest.raises(UserError, match="is also set, but training starts from only one"):
            start(cfgname)


def test_a_student_of_voc_starts_from_its_teacher_and_not_from_official_weights(tmp_path):
    with pytest.raises(UserError, match="one of them; leave the other out"):
        load_config("voc.nano.distillation.pretrained", root=tmp_path, data=tmp_path / "x", **GROUPS)


def test_voc_takes_calmer_steps_from_weights_that_know_something(tmp_path):
    def nominal_batch(**overrides):
        return load_config("voc.nano.full", root=tmp_path, data=tmp_path, overrides=overrides).nominalBatch

    assert nominal_batch() is None
    assert nominal_batch(checkpointModelFile="w.pth") == 64
    assert nominal_batch(checkpointModelFile="w.pth", nominalBatch=16) == 16
