"""`training=modern`: what one word sets, what stands above it, and what it must not leave unheard."""

import pytest

from config.errors import UserError
from config.load import load_config
from config.mconfig import ModelConfig, field_default
from config.training import MODERN, MODERN_DISTILLING

RECIPE = """
from config import mconfig

def mcfg(tags):
    mcfg = mconfig.ModelConfig()
    mcfg.useEMA = False
    mcfg.training = "modern"
    mcfg.schedulerType = "cosine"
    return mcfg
"""


def load(tmp_path, text=RECIPE, **overrides):
    (tmp_path / "mine.py").write_text(text)
    return load_config("mine", root=tmp_path / "runs", overrides=overrides, recipe_dir=tmp_path)


def test_the_word_sets_its_fields_and_later_lines_stand_above_it(tmp_path):
    mcfg = load(tmp_path)
    assert mcfg.schedulerType == "cosine"
    assert {name: getattr(mcfg, name) for name in MODERN} == {**MODERN, "schedulerType": "cosine"}


def test_settings_stand_above_the_word(tmp_path):
    mcfg = load(tmp_path, useEMA=False, augmentation="none")
    assert (mcfg.useEMA, mcfg.augmentation, mcfg.schedulerType) == (False, "none", "cosine")


def test_another_word_does_the_same_for_students(tmp_path):
    """The fields of a student are the assignment's until its recipe says modern; settings stand above both."""
    text = RECIPE.replace('mcfg.training = "modern"', 'mcfg.distilling = "modern"\n    mcfg.temperature = 3.0')
    mcfg = load(tmp_path, text.replace('mcfg.schedulerType = "cosine"', "pass"), boxResponseWeight=0.5)
    wanted = {**MODERN_DISTILLING, "temperature": 3.0, "boxResponseWeight": 0.5}
    assert {name: getattr(mcfg, name) for name in MODERN_DISTILLING} == wanted
    assert (mcfg.training, mcfg.schedulerType) == ("assignment", field_default("schedulerType"))
    assert ModelConfig.from_dict(mcfg.to_dict()).to_dict() == mcfg.to_dict()


def test_the_word_may_be_set_against_the_recipes(tmp_path):
    mcfg = load(tmp_path, training="assignment")
    left = {**{name: field_default(name) for name in MODERN}, "schedulerType": "cosine"}  # the recipe's own line
    assert {name: getattr(mcfg, name) for name in MODERN} == left


def test_a_word_from_outside_does_not_undo_lines_of_the_recipe(tmp_path):
    mcfg = load(tmp_path, text=RECIPE.replace('    mcfg.training = "modern"\n', ""), training="modern")
    assert (mcfg.useEMA, mcfg.schedulerType, mcfg.augmentation) == (False, "cosine", MODERN["augmentation"])


def test_the_defaults_are_the_assignments_way():
    mcfg = ModelConfig()
    assert (mcfg.training, mcfg.augmentation, mcfg.schedulerType, mcfg.useEMA) == (
        "assignment", "assignment", "COS", False,
    )  # fmt: skip
    mcfg.training = "modern"
    mcfg.training = "assignment"
    assert {name: getattr(mcfg, name) for name in MODERN} == {name: field_default(name) for name in MODERN}


def test_a_config_read_back_is_the_same(tmp_path):
    mcfg = load(tmp_path, useEMA=False, training="modern")
    assert ModelConfig.from_dict(mcfg.to_dict()).to_dict() == mcfg.to_dict()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"flip": 0.0}, "flip=0.0: only augmentation=modern uses it, but augmentation is assignment"),
        ({"warmupEpochs": 1.0}, "warmupEpochs=1.0: only schedulerType=linear or cosine uses it"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(tmp_path, setting, sentence):
    text = RECIPE.replace('    mcfg.schedulerType = "cosine"\n', "")
    with pytest.raises(UserError, match=sentence):
        load(tmp_path, text, training="assignment", **setting)
    load(tmp_path, text, **setting)


def test_a_count_that_only_skipping_reads(tmp_path):
    with pytest.raises(UserError, match="badStepsInARow=3: only onBadStep=skip uses it, but onBadStep is stop"):
        load(tmp_path, badStepsInARow=3)
    assert load(tmp_path, badStepsInARow=3, onBadStep="skip").badStepsInARow == 3
    with pytest.raises(UserError, match="onBadStep='resume': must be one of stop, skip, rewind"):
        load(tmp_path, onBadStep="resume")
