"""`--set FIELD=VALUE`: text becomes a value of the field's type, or a sentence that says what is wanted."""

import pytest

from config.errors import UserError
from config.load import parse_settings


def test_settings_are_read_by_the_fields_type():
    settings = [
        "inputShape=320", "maxEpoch = 60", "useEMA=yes", "dcore=none", "lossWeights=1,2,3", "classList=RBC, WBC",
        "backboneFreezeEpochs=0-3,7", "minLearningRate=1e-5", "subsetMap=train:a.txt,test:b/c.txt", "paintImages=off",
        "testSelectedClasses=none", "maxEpoch=61",
    ]  # fmt: skip
    assert parse_settings(settings) == {
        "inputShape": (320, 320),
        "maxEpoch": 61,
        "useEMA": True,
        "dcore": None,
        "lossWeights": (1.0, 2.0, 3.0),
        "classList": ("RBC", "WBC"),
        "backboneFreezeEpochs": (0, 1, 2, 3, 7),
        "minLearningRate": 1e-5,
        "subsetMap": {"train": "a.txt", "test": "b/c.txt"},
        "paintImages": False,
        "testSelectedClasses": None,
    }
    assert parse_settings(["classList=RBC"]) == {"classList": ("RBC",)}
    assert parse_settings(["classList=my/classes.txt"]) == {"classList": "my/classes.txt"}
    assert parse_settings(["inputShape=384,640"]) == {"inputShape": (384, 640)}
    assert parse_settings(["backboneFreezeEpochs=none"]) == {"backboneFreezeEpochs": ()}
    assert parse_settings([]) == {}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("maxEpoch", ["--set maxEpoch", "FIELD=VALUE"]),
        ("maxepoch=3", ["maxepoch", "did you mean 'maxEpoch'"]),
        ("maxEpoch=many", ["maxEpoch=many", "whole number"]),
        ("maxEpoch=", ["maxEpoch=", "whole number"]),
        ("useEMA=maybe", ["useEMA=maybe", "true or false"]),
        ("inputShape=1,2,3", ["inputShape=1,2,3", "2 values"]),
        ("baseLearningRate=nan", ["baseLearningRate=nan", "a number"]),
        ("apStyle=voc", ["apStyle='voc'", "did you mean 'voc07'"]),
        ("subsetMap=train", ["subsetMap=train", "dictionary"]),
    ],
)
def test_bad_settings(setting, words):
    with pytest.raises(UserError) as caught:
        parse_settings([setting])
    assert all(word in str(caught.value) for word in words), caught.value
