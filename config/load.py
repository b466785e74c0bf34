"""From a CFGNAME to a checked, frozen config: default < recipe < tags < overrides (`--set`)."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from config.contradictions import refuse_contradictions
from config.errors import UserError
from config.fields import parse, shown_value
from config.mconfig import ModelConfig, checked_value, field_type, loading
from config.places import absolute, default_root, read_class_list, settle
from config.recipes import CODE_DIR, RECIPE_DIR, run_recipe
from config.tags import read_cfgname

DEFAULT_CFGNAME = "demo.nano.full"
LOCATION_FIELDS = ("imageDir", "annotationDir", "subsetMap")  # what dataDir stands for


def load_config(
    cfgname: str = DEFAULT_CFGNAME,
    root: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
    nobuf: bool = False,
    recipe_dir: Path = RECIPE_DIR,
) -> ModelConfig:
    """The checked, frozen config of `cfgname`. Nothing on disk is needed but the recipe (and a class list file).

    `root` holds the runs; `data` is the data set's folder and wins over paths the recipe names; `overrides` are field
    -> value, above everything else; `name` is the run's folder below root. Raises `UserError` with one sentence.
    """
    parts = read_cfgname(cfgname)
    given = {"root": root, "dataDir": data, "runName": name, "nobuf": nobuf or None, **(overrides or {})}
    pins = {**parts.values, "cfgname": cfgname, **_checked(given, keep_none=overrides or {})}
    if isinstance(pins.get("classList"), str) and "{" not in pins["classList"]:
        pins["classList"] = read_class_list(absolute(pins["classList"]))  # now: recipes ask for names
    starts = {"root": default_root(CODE_DIR)}
    with loading(starts, pins):
        mcfg = run_recipe(parts.recipe, parts.tags, parts.own, recipe_dir)
    # Once more, for a recipe that hands out a config made before this loading began.
    for field, value in {"root": mcfg.root or starts["root"], **pins}.items():
        setattr(mcfg, field, value)
    if pins.get("dataDir"):
        for field in LOCATION_FIELDS:
            if field not in pins:
                setattr(mcfg, field, None)
    settle(mcfg, parts.run_name, CODE_DIR)
    refuse_contradictions(mcfg, CODE_DIR)
    return mcfg.frozen()


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`FIELD=VALUE` texts -> field -> value by the field's type; the later of two wins. Raises `UserError`."""
    values = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: wants FIELD=VALUE, e.g. --set maxEpoch=60")
        values[field.strip()] = checked_value(field.strip(), parse(field.strip(), text, field_type(field.strip())))
    return values


def _checked(given: Mapping[str, Any], keep_none: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given, checked; none means "not given" unless an override says it in so many words."""
    if "cfgname" in given:
        raise UserError(f"cfgname={shown_value(given['cfgname'])}: is the name on the command line and cannot be set")
    values = {
        name: checked_value(name, value) for name, value in given.items() if value is not None or name in keep_none
    }
    for field in ("root", "runName"):
        if values.get(field) == "":
            raise UserError(
                f"{field}='': is empty; give a {'name' if field == 'runName' else 'folder'} or leave it out"
            )
    if values.get("dataDir"):
        values["dataDir"] = absolute(values["dataDir"])
    return values
