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
    ("setting", "value"),
    [
        ("baseClasses=4", 4),
        ("baseClasses=red", ("red",)),
        ("baseClasses=red, blue", ("red", "blue")),
        ("baseClasses=10,no", ("10", "no")),
        ("baseClasses=none", None),
        ("smallShots=10", 10),
        ("smallShots=none", None),
        ("smallSeed=2", 2),
        ("boxResponseWeight=0.5", 0.5),
        ("distilFeatures=feat0,C", ("feat0", "C")),
        ("responseMode=softmax", "softmax"),
        ("responseMode=seed", "softmax"),
        ("distilSchedule=cosine", "cosine"),
        ("distilEpochs=0-2,5", (0, 1, 2, 5)),
        ("distilSelectedClasses=none", None),
        ("unlabelledClasses=mask", "mask"),
        ("pseudoScore=0.3", 0.3),
        ("replayImages=50", 50),
    ],
)
def test_settings_of_learning_class_after_class(setting, value):
    (found,) = parse_settings([setting]).values()
    assert (type(found), found) == (type(value), value)


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
        ("baseClasses=0", ["baseClasses=0", "must be 1 or more"]),
        ("baseClasses=-1", ["baseClasses=-1", "must be 1 or more"]),
        ("baseClasses=", ["baseClasses=()", "at least one class"]),
        ("baseClasses=a,a", ["names a more than once"]),
        ("smallShots=0", ["smallShots=0", "must be above 0"]),
        ("smallSeed=none", ["smallSeed=none", "must be a whole number"]),
        ("smallSeed=-1", ["smallSeed=-1", "must not be negative"]),
        ("boxResponseWeight=-1", ["boxResponseWeight=-1.0", "must not be negative"]),
        ("distilFeatures=P3", ["P3 is not a feature map of the network", "feat0, feat1, feat2, feat3, C, X, Y, Z"]),
        ("distilFeatures=X,X", ["distilFeatures=('X', 'X')", "names a map more than once"]),
        ("responseMode=softmx", ["responseMode='softmx'", "binary, softmax", "did you mean 'softmax'"]),
        ("distilSchedule=cosin", ["distilSchedule='cosin'", "did you mean 'cosine'"]),
        ("unlabelledClasses=masked", ["unlabelledClasses='masked'", "background, mask, pseudo", "did you mean 'mask'"]),
        ("pseudoScore=1.5", ["pseudoScore=1.5", "between 0 and 1"]),
        ("replayImages=-1", ["replayImages=-1", "must not be negative"]),
        ("replayImages=few", ["replayImages=few", "whole number"]),
    ],
)
def test_bad_settings(setting, words):
    with pytest.raises(UserError) as caught:
        parse_settings([setting])
    assert all(word in str(caught.value) for word in words), caught.value
