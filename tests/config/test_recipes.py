"""Every recipe that ships, with every tag: it loads, and there are as many as we think."""

import itertools

import pytest

from config.errors import UserError
from config.load import load_config
from config.mconfig import PHASES
from config.recipes import RECIPE_DIR, _import, _questions, describe_recipes

STAGES = {"c1": ["", ".full", ".teacher", ".distillation"], "demo": ["", ".full"], "voc": ["", ".full"]}
VARIANTS = {"c1": ["ema", "backbone"], "demo": ["assignment"], "voc": ["assignment", "pretrained"]}
CFGNAMES = [
    f"{recipe}.{phase}{stage}{variant}"
    for recipe, stages in STAGES.items()
    for phase, stage, variant in itertools.product(PHASES, stages, ["", *(f".{tag}" for tag in VARIANTS[recipe])])
    if (stage, variant) != (".distillation", ".backbone")  # refused: a student starts from its teacher
]


def test_there_are_as_many_as_we_think():
    assert [recipe.name for recipe in describe_recipes()] == sorted(STAGES)
    assert len(CFGNAMES) == len(set(CFGNAMES)) == 105


@pytest.mark.parametrize("cfgname", CFGNAMES)
def test_every_shipped_recipe_and_tag_loads(cfgname, tmp_path):
    mcfg = load_config(cfgname, root=tmp_path, data=tmp_path / "data")
    assert mcfg.is_frozen
    assert mcfg.phase in cfgname.split(".")
    is_modern = not cfgname.startswith("c1.") and not cfgname.endswith(".assignment")
    assert mcfg.training == ("modern" if is_modern else "assignment")
    assert mcfg.useEMA == (is_modern or cfgname.endswith(".ema"))
    assert mcfg.runName.startswith(cfgname)
    assert mcfg.modelName == ("distillation" if ".distillation" in cfgname else "base")


@pytest.mark.parametrize("recipe", describe_recipes(), ids=lambda recipe: recipe.name)
def test_a_recipe_declares_what_it_asks_and_says_what_it_is(recipe):
    tags = {tag for stage in STAGES[recipe.name] for tag in [stage[1:]] if tag} | set(VARIANTS[recipe.name])
    assert set(recipe.tags) == tags
    assert recipe.doc.partition("\n")[0].endswith(".")
    if recipe.name != "voc":  # voc stops at its first question without data
        assert _questions(_import(RECIPE_DIR / f"{recipe.name}.py"), "") == tags


def test_the_student_of_c1_finds_its_teacher_below_root(tmp_path):
    student = load_config("c1.extended.distillation", root=tmp_path)
    teacher = load_config("c1.extended.teacher", root=tmp_path)
    best = str(teacher.run_dir / "weights" / "best.pth")
    assert (student.teacherModelFile, student.checkpointModelFile) == (best, best)
    assert student.teacherClassIndexes == tuple(range(10))
    assert teacher.trainSelectedClasses == tuple(student.classList[:10])
    assert (student.trainSplitName, student.epochValidation) == ("small", False)


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


def test_voc_takes_calmer_steps_from_weights_that_know_something(tmp_path):
    def nominal_batch(**overrides):
        return load_config("voc.nano.full", root=tmp_path, data=tmp_path, overrides=overrides).nominalBatch

    assert nominal_batch() is None
    assert nominal_batch(checkpointModelFile="w.pth") == 64
    assert nominal_batch(checkpointModelFile="w.pth", nominalBatch=16) == 16
