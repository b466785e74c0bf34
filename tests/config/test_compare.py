"""The config out of a file: another version may have written values that are beyond the bounds of this one."""

import json

import pytest

from config.compare import config_from_text, schedule_differences, training_differences
from config.errors import UserError
from config.mconfig import ModelConfig


def written(**values) -> str:
    return json.dumps({**ModelConfig().to_dict(), **values})


def test_values_beyond_the_bounds_of_this_version_are_read():
    beyond = {"validationInterval": 10**10, "maxEpoch": 200_000, "warmupEpochs": 1e7, "inputShape": [2**20, 32]}
    config = config_from_text(written(**beyond))
    assert {name: config[name] for name in beyond} == beyond
    assert schedule_differences(config, ModelConfig().to_dict()) == {"maxEpoch": (200_000, 200)}


def test_fields_of_another_version_are_kept():
    assert config_from_text(written(ofTomorrow="x"))["ofTomorrow"] == "x"


@pytest.mark.parametrize(
    ("field", "value"),
    [("maxEpoch", "many"), ("baseLearningRate", float("nan")), ("gradientClip", float("inf")), ("inputShape", [1])],
)
def test_other_types_and_what_is_not_finite_are_refused(field, value):
    with pytest.raises(UserError, match=f"^{field}="):
        config_from_text(written(**{field: value}))


@pytest.mark.parametrize(
    ("field", "earlier", "word"), [("responseMode", "seed", "softmax"), ("phase", "extended", "extra")]
)
def test_an_earlier_word_for_a_value_is_the_same_value(field, earlier, word):
    now = ModelConfig(**{field: word}).to_dict()
    assert now[field] == word
    assert training_differences(config_from_text(written(**{field: earlier})), now) == {}
    assert ModelConfig.from_dict({**now, field: earlier}).to_dict() == now
