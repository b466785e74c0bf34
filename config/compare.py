"""Two configs of one run compared: may the second go on where the first stopped?"""

import json
from collections.abc import Mapping
from typing import Any

from config.errors import UserError
from config.mconfig import ModelConfig, field_alters, field_names, typed_value

Differences = dict[str, tuple[Any, Any]]


def config_from_text(text: str) -> dict[str, Any]:
    """The config that a checkpoint keeps as JSON; fields that only another version knows are not checked.

    Of the others only the types: another version may have had other bounds. They are checked for what is used.
    A field that an older version did not write has the value of what that version did, where that is not the default
    of today. Raises `UserError` for a value of another type, and whatever `json.loads` raises.
    """
    config = json.loads(text)
    if not isinstance(config, dict):
        raise UserError("the config is no dictionary")
    for name in field_names():
        if name in config:
            typed_value(name, config[name])
    return {"pixelMax": 65535, **config}


def training_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Differences:
    """Field -> (old, new) value of what makes it another training, so that resuming must be refused.

    Both are what `ModelConfig.to_dict` gives. A field that one of them lacks (written by another version) counts with
    its default. Files below root are compared relative to it: a root may move. Nothing differs: an empty dict.
    """
    return _differences(old, new, "training")


def schedule_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Differences:
    """Field -> (old, new) value of what makes it the same training, only longer or at another learning rate."""
    return _differences(old, new, "schedule")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], alters: str) -> Differences:
    before, after = ({**ModelConfig().to_dict(), **config} for config in (old, new))
    return {
        name: (before[name], after[name])
        for name in field_names()
        if field_alters(name) == alters and _movable(before, name) != _movable(after, name)
    }


def _movable(config: Mapping[str, Any], name: str) -> Any:
    value = config[name]
    if isinstance(value, str) and config["root"]:
        return value.replace(config["root"].rstrip("/") + "/", "{root}/", 1)
    return list(value) if isinstance(value, tuple) else value
