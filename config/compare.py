"""Compare two configs of one run: may the second continue where the first stopped?"""

import json
from collections.abc import Mapping
from typing import Any

from config.errors import UserError
from config.mconfig import ModelConfig, field_alters, field_names, standard_word, typed_value

Differences = dict[str, tuple[Any, Any]]


def config_from_text(text: str) -> dict[str, Any]:
    """The config that a checkpoint stores as JSON, as plain values.

    Only types are checked, because another version may have had other bounds, and unknown fields are kept. A field that
    older versions did not have gets the value that stands for their behaviour. Raises `UserError` for a value of
    another type, and the errors of `json.loads`.
    """
    config = json.loads(text)
    if not isinstance(config, dict):
        raise UserError("the config is not a dictionary")
    for name in field_names():
        if name in config:
            typed_value(name, config[name])
    return {"pixelMax": 65535, **config}


def training_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Differences:
    """Field -> (old, new) value, for fields that make it another training, so that it must not be resumed.

    Both configs are results of `ModelConfig.to_dict`. A missing field (of another version) counts as its default. Files
    below root are compared relative to it, because a root may be moved. Empty without differences.
    """
    return _differences(old, new, "training")


def schedule_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Differences:
    """Field -> (old, new) value, for fields that only change the length or the learning rate of the training."""
    return _differences(old, new, "schedule")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], alters: str) -> Differences:
    before, after = ({**ModelConfig().to_dict(), **config} for config in (old, new))
    return {
        name: (before[name], after[name])
        for name in field_names()
        if field_alters(name) == alters and _comparable(before, name) != _comparable(after, name)
    }


def _comparable(config: Mapping[str, Any], name: str) -> Any:
    value = standard_word(name, config[name])
    if isinstance(value, str) and config["root"]:
        return value.replace(config["root"].rstrip("/") + "/", "{root}/", 1)
    return list(value) if isinstance(value, tuple) else value
