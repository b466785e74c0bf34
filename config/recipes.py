"""Recipes: the files in cfgops/ that users copy and edit. How a CFGNAME names one, its tags, and how it is run.

A CFGNAME is the name of a recipe and tags with dots between: `c1.nano.teacher.cuda@0`. Phase tags (`nano`) and value
tags (`cuda@0`) mean the same for every recipe. All other tags belong to the recipe, which declares them in TAGS.
"""

import ast
import contextlib
import importlib.util
import logging
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from config.checks import LONGEST_RUN_NAME, printable
from config.errors import UserError, is_out_of_memory
from config.fields import LONGEST_SHOWN, nearest, parse, shown_value
from config.mconfig import PHASE_ALIASES, PHASES, ModelConfig, checked_value, field_type
from config.tag_tests import read_tag_tests

log = logging.getLogger("mars")

CODE_DIR = Path(__file__).resolve().parent.parent
RECIPE_DIR = CODE_DIR / "cfgops"
VALUE_TAGS = {
    "cuda": "device",
    "batch": "batchSize",
    "epochs": "maxEpoch",
    "size": "inputShape",
    "seed": "seed",
    "workers": "dcore",
}
MACHINE_TAGS = ("cuda", "workers")  # they say where a run computes, so they are no part of its name


class CfgName(NamedTuple):
    """The parts of a CFGNAME."""

    recipe: str
    tags: tuple[str, ...]  # all of them, in order
    values: dict[str, Any]  # field -> value, from phase tags and value tags
    recipe_tags: tuple[str, ...]  # tags that belong to the recipe
    run_name: str  # the CFGNAME without machine tags


def read_cfgname(cfgname: str) -> CfgName:
    """Split a CFGNAME into its parts.

    Raises `UserError` for an empty part, for two phases, and for a wrong or repeated value tag.
    """
    if len(cfgname) > LONGEST_RUN_NAME or printable(cfgname) or re.search(r"[/\\\s]", cfgname):
        raise UserError(
            f"{shown_value(cfgname)}: a CFGNAME is a recipe and its tags with dots between, at most "
            f"{LONGEST_RUN_NAME} letters, e.g. voc.nano.full"
        )
    recipe, *tags = cfgname.split(".")
    if not all([recipe, *tags]):
        raise UserError(f"{cfgname!r}: nothing between two dots; a CFGNAME looks like c1.nano.full")
    values: dict[str, Any] = {}
    tag_of_field: dict[str, str] = {}
    recipe_tags = []
    for tag in tags:
        setting = _read_tag(tag)
        if setting is None:
            recipe_tags.append(tag)
            continue
        field, value = setting
        if field in tag_of_field:
            raise UserError(f"{cfgname}: '{tag_of_field[field]}' and '{tag}' both set {field}; keep one of them")
        tag_of_field[field], values[field] = tag, value
    named = [PHASE_ALIASES.get(tag, tag) for tag in tags if tag.partition("@")[0] not in MACHINE_TAGS]
    return CfgName(recipe, tuple(tags), values, tuple(recipe_tags), ".".join([recipe, *named]))


def _read_tag(tag: str) -> tuple[str, Any] | None:
    """The field and value that a phase tag or value tag sets; None for a tag of the recipe."""
    if tag in PHASES or tag in PHASE_ALIASES:
        return "phase", PHASE_ALIASES.get(tag, tag)
    name, at, text = tag.partition("@")
    if not at:
        return None
    if name not in VALUE_TAGS:
        raise UserError(f"tag '{tag}': no such value tag{nearest(name, VALUE_TAGS)}; there are {value_tags_text()}")
    field = VALUE_TAGS[name]
    if not re.fullmatch(r"\d{1,19}x\d{1,19}" if "x" in text and name == "size" else r"\d{1,19}", text):
        example = "size@640 or size@384x640" if name == "size" else f"{name}@{2 if name != 'cuda' else 0}"
        raise UserError(f"tag '{tag}': expected a whole number of at most 19 digits after the @, e.g. {example}")
    try:
        value = f"cuda:{int(text)}" if name == "cuda" else parse(field, text.replace("x", ","), field_type(field))
        return field, checked_value(field, value)
    except UserError as error:
        raise UserError(f"tag '{tag}': {error}") from None


def value_tags_text() -> str:
    """`cuda@N batch@N ...`, for messages."""
    return " ".join(f"{name}@N" for name in VALUE_TAGS)


class RecipeInfo(NamedTuple):
    """A recipe as the help lists it."""

    name: str
    doc: str
    tags: dict[str, str]  # tag -> description, from TAGS; empty without


def recipe_names(folder: Path = RECIPE_DIR) -> list[str]:
    """The recipes in `folder`, sorted."""
    return sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))


def describe_recipes(folder: Path = RECIPE_DIR) -> list[RecipeInfo]:
    """Docstring and TAGS of every recipe, read from its text: nothing is imported, a broken recipe has no docstring."""
    return [_describe(folder / f"{name}.py") for name in recipe_names(folder)]


def _describe(file: Path) -> RecipeInfo:
    doc, tags = "", {}
    with contextlib.suppress(Exception):  # the help must not fail because a recipe is being edited
        tree = ast.parse(file.read_text(encoding="utf-8"))
        doc = ast.get_docstring(tree) or ""
        for node in tree.body:
            if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["TAGS"]:
                tags = {str(tag): str(text) for tag, text in dict(ast.literal_eval(node.value)).items()}
    return RecipeInfo(file.stem, doc, tags)


def run_recipe(cfgname: CfgName, folder: Path = RECIPE_DIR) -> ModelConfig:
    """The config that the recipe makes of the tags.

    Raises `UserError` when there is no such recipe, when it does not know one of its tags, when it returns no config,
    when it sets an unknown field or a wrong value, and when it fails in any other way (with file and line).
    """
    name = cfgname.recipe
    file = folder / f"{name}.py"
    if name not in recipe_names(folder):
        known = recipe_names(folder)
        raise UserError(f"{name}: no such recipe{nearest(name, known)}; {folder} holds {', '.join(known) or 'none'}")
    with _errors_with_line(file):
        recipe = _import(file)
        _check_tags(recipe, file, cfgname.recipe_tags)
        mcfg = recipe.mcfg(list(cfgname.tags))
        if not isinstance(mcfg, ModelConfig):
            raise UserError(
                f"{file}: mcfg(tags) must return the ModelConfig it made, not {'None' if mcfg is None else type(mcfg)}"
            )
    return mcfg


def _check_tags(recipe: ModuleType, file: Path, tags: Sequence[str]) -> None:
    """Raise `UserError` for a tag that the recipe neither declares in TAGS nor tests for."""
    declared = getattr(recipe, "TAGS", {})
    if all(tag in declared for tag in tags):
        return
    tests = read_tag_tests(ast.parse(file.read_bytes()))
    unknown = [tag for tag in tags if tag not in declared and not tests.accepts(tag)]
    if not unknown:
        return
    if tests.unreadable_line is not None:
        log.warning(
            "tag '%s': cannot be checked, because %s, line %d, tests tags in a way that Mars cannot read; "
            "declare the tags of the recipe: TAGS = {'%s': 'what it does'}",
            unknown[0], file, tests.unreadable_line, unknown[0],
        )  # fmt: skip
        return
    known = list(declared) or sorted(word for word in tests.words - set(PHASES) if re.fullmatch(r"[\w@+-]+", word))
    listed = f"{file.stem} knows {', '.join(known)}" if known else f"{file.stem} has no tags of its own"
    raise UserError(
        f"tag '{unknown[0]}': unknown{nearest(unknown[0], [*known, *PHASES])}; {listed}; "
        f"every recipe knows {' '.join(PHASES)} and {value_tags_text()}"
        f"{'' if declared else f'; to add a tag, declare it in {file}: TAGS = {{...}}'}"
    )


@contextlib.contextmanager
def _errors_with_line(file: Path) -> Iterator[None]:
    """Turn every error of a running recipe, also `sys.exit`, into a `UserError` with file and line.

    Only errors of too little memory are raised as they are.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}{_place(file, error)}") from error
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        log.debug("stopped by the recipe %s", file, exc_info=True)
        if isinstance(error, SyntaxError) and error.filename == str(file):
            line, text = error.lineno, error.msg
        else:
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == str(file)]
            line, text = lines[-1] if lines else None, str(error)
        place = f"{file}, line {line}" if line else str(file)
        raise UserError(f"{place}: {_reason(error, ' '.join(text.split())[:LONGEST_SHOWN], file)}") from error


def _reason(error: BaseException, text: str, file: Path) -> str:
    """Why a recipe stopped, with advice unless the recipe raised the error on purpose."""
    kind = f"{type(error).__name__}{f': {text}' if text else ''}"
    is_from_recipe = traceback.extract_tb(error.__traceback__)[-1].filename == str(file)
    if isinstance(error, SystemExit) or (is_from_recipe and isinstance(error, (AssertionError, NotImplementedError))):
        return kind if not text or text.isdecimal() else text  # sys.exit(1) has no text, so the kind of error is shown
    if isinstance(error, ModuleNotFoundError):
        return f"{kind}; install it, or remove the import"
    return f"{kind}; correct the recipe"


def _place(file: Path, error: UserError) -> str:
    """` (FILE, line N)` for a mistake in a line of the recipe; empty for an error that the recipe raised itself."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return f" ({file}, line {lines[-1]})" if lines and frames[-1].filename != str(file) else ""


def _import(file: Path) -> ModuleType:
    """A fresh module from `file`, without the state of an earlier import."""
    spec = importlib.util.spec_from_file_location(f"cfgops.{file.stem}", file)
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    if not callable(getattr(recipe, "mcfg", None)):
        raise UserError(f"{file}: a recipe needs a function mcfg(tags) that returns a config.mconfig.ModelConfig")
    return recipe
