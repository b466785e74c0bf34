"""The fields: each has a meaning, takes what it says, and declares what changing it does to a run."""

import contextlib
import dataclasses
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.compare import schedule_differences, training_differences
from config.errors import UserError
from config.fields import coerce, describe, nearest, parse
from config.mconfig import ModelConfig, field_alters, field_doc, field_names, field_type
from config.parts import PartText, WordOrPart

ASSIGNMENT_FIELDS = """
phase modelName imageDir annotationDir classList subsetMap suffix dcore inputShape regMax talTopk lossWeights startEpoch
maxEpoch backboneFreezeEpochs batchSize optimizerType optimizerMomentum optimizerWeightDecay schedulerType
baseLearningRate minLearningRate useEMA epochValidation trainSplitName validationSplitName testSplitName
trainSelectedClasses testSelectedClasses pretrainedBackboneUrl checkpointModelFile teacherModelFile teacherClassIndexes
distilLossWeights distilEpochs distilSelectedClasses temperature minIou paintImages seed cuda device nobuf
""".split()  # noqa: SIM905


def test_the_assignments_fields_are_all_there():
    assert len(ASSIGNMENT_FIELDS) == 43
    assert set(ASSIGNMENT_FIELDS) <= set(field_names())


@pytest.mark.parametrize("name", field_names())
def test_a_field_is_documented_and_its_default_is_sound(name):
    assert len(field_doc(name)) > 10
    assert field_alters(name) in ("training", "schedule", "data", "nothing")
    assert describe(field_type(name))
    mcfg = ModelConfig()
    default = getattr(mcfg, name)
    if default != "":
        setattr(mcfg, name, default)
        assert getattr(mcfg, name) == default


def test_fields_are_checked_where_they_are_set():
    mcfg = ModelConfig()
    with pytest.raises(UserError, match="batchSize=0: must be above 0"):
        mcfg.batchSize = 0
    assert mcfg.batchSize == 16
    with pytest.raises(UserError, match=r"batchsize: no such config field \(did you mean 'batchSize'"):
        mcfg.batchsize = 3
    with pytest.raises(UserError, match="did you mean 'batchSize'"):
        _ = mcfg.batchsize
    assert not hasattr(mcfg, "batchsize")


def test_to_dict_and_back():
    mcfg = ModelConfig(classList=("a", "b"), inputShape=(320, 640), subsetMap={"train": ("x",), "test": "t.txt"})
    again = ModelConfig.from_dict(mcfg.to_dict())
    assert again.to_dict() == mcfg.to_dict()
    assert (again.classList, again.inputShape, again.subsetMap["train"]) == (("a", "b"), (320, 640), ("x",))
    with pytest.raises(UserError, match="no such config field"):
        ModelConfig.from_dict({"colour": "red"})


def test_a_copy_with_other_values_in_some_fields():
    mcfg = ModelConfig(training="assignment", classList=("a", "b"), seed=3).frozen()
    copy = mcfg.with_values(seed=4, inputShape=320)
    assert copy.is_frozen and (copy.seed, copy.inputShape, copy.classList) == (4, (320, 320), ("a", "b"))
    assert mcfg.seed == 3 and copy.with_values(seed=3, inputShape=mcfg.inputShape).to_dict() == mcfg.to_dict()
    assert mcfg.with_values().to_dict() == mcfg.to_dict()
    with pytest.raises(UserError, match="no such config field"):
        mcfg.with_values(colour="red")


def test_numpy_and_paths_and_devices_are_taken_as_written(tmp_path):
    import numpy as np
    import torch

    mcfg = ModelConfig()
    mcfg.batchSize = np.int64(4)
    mcfg.baseLearningRate = np.float32(0.5)
    mcfg.backboneFreezeEpochs = np.arange(3)
    mcfg.imageDir = tmp_path
    mcfg.device = torch.device("cuda", 1)
    assert (mcfg.batchSize, mcfg.baseLearningRate, mcfg.backboneFreezeEpochs) == (4, 0.5, (0, 1, 2))
    assert (mcfg.imageDir, mcfg.device) == (str(tmp_path), "cuda:1")
    assert all(
        type(value) in (int, float, str, PartText, WordOrPart, bool, tuple, dict, type(None))
        for value in mcfg.__dict__.values()
    )


@given(
    st.one_of(
        st.integers(), st.floats(), st.text(max_size=8), st.none(), st.booleans(), st.lists(st.integers(), max_size=3)
    )
)
def test_a_value_of_any_kind_is_taken_as_its_type_or_refused(value):
    for name in field_names():
        try:
            coerced = coerce(name, value, field_type(name))
        except UserError:
            continue
        options = typing.get_args(field_type(name)) or (field_type(name),)
        wanted = {typing.get_origin(option) or option for option in options}
        assert type(coerced) in wanted or typing.get_origin(field_type(name)) is type(coerced)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text):
    for name in field_names():
        with contextlib.suppress(UserError):  # anything else that is raised fails the test
            parse(name, text, field_type(name))


def test_nearest():
    assert nearest("maxepoch", ["maxEpoch", "batchSize"]) == " (did you mean 'maxEpoch'?)"
    assert nearest("zzz", ["maxEpoch"]) == nearest("zzz", []) == ""


# May a run go on?


def changed(**fields):
    old = ModelConfig(root="/runs", classList=("a",))
    return old.to_dict(), dataclasses.replace(old, **fields).to_dict()


@pytest.mark.parametrize(
    ("fields", "training", "schedule"),
    [
        ({}, [], []),
        ({"batchSize": 8}, ["batchSize"], []),
        ({"maxEpoch": 300}, [], ["maxEpoch"]),
        ({"baseLearningRate": 0.02, "minLearningRate": 0.001}, [], ["baseLearningRate", "minLearningRate"]),
        ({"device": "cuda:0", "dcore": 3, "cuda": False, "nobuf": True, "runName": "x", "cfgname": "y"}, [], []),
        ({"paintImages": True, "paintConf": 0.5, "apStyle": "voc07", "minIou": 0.4, "testSplitName": "t"}, [], []),
        ({"imageDir": "/elsewhere", "dataDir": "/x", "subsetMap": {"train": "/y"}, "classList": ("b",)}, [], []),
        ({"inputShape": (320, 320), "seed": 1, "maxEpoch": 9}, ["seed", "inputShape"], ["maxEpoch"]),
        ({"checkpointModelFile": "/w.pth"}, ["checkpointModelFile"], []),
    ],
)
def test_differences(fields, training, schedule):
    old, new = changed(**fields)
    assert list(training_differences(old, new)) == training
    assert list(schedule_differences(old, new)) == schedule


def test_differences_show_both_values_and_bear_other_versions():
    old, new = changed(batchSize=8)
    assert training_differences(old, new) == {"batchSize": (16, 8)}
    del old["talTopk"], old["batchSize"]
    assert training_differences({**old, "gone": 3}, new) == {"batchSize": (16, 8)}


def test_a_root_may_move():
    old, new = ModelConfig(root="/a").to_dict(), ModelConfig(root="/b/c").to_dict()
    for field in ("teacherModelFile", "checkpointModelFile"):
        assert training_differences({**old, field: "/a/t/best.pth"}, {**new, field: "/b/c/t/best.pth"}) == {}
        assert list(training_differences({**old, field: "/a/t/best.pth"}, {**new, field: "/b/c/u/best.pth"})) == [field]
    url = "pretrainedBackboneUrl"
    assert training_differences({**old, url: "file:///a/b.pth"}, {**new, url: "file:///b/c/b.pth"}) == {}
