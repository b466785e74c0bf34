"""Recipes: the files in cfgops/ that users copy and edit. How a CFGNAME names one, its tags, and how it runs.

A CFGNAME is the name of a recipe and tags with dots between: `c1.nano.teacher.cuda@0`. Phase tags (`nano`) and value
tags (`cuda@0`) mean the same for every recipe. All other tags belong to the recipe, which declares them in TAGS.
"""

import ast
import contextlib
import functools
import importlib.util
import logging
import re
import sys
import traceback
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from config.checks import LONGEST_RUN_NAME, printable
from config.errors import UserError, is_out_of_memory
from config.fields import LONGEST_SHOWN, nearest, parse, shown_value
from config.mconfig import PHASE_ALIASES, PHASES, ModelConfig, checked_value, field_type

log = logging.getLogger("mars")

CODE_DIR = Path(__file__).resolve().parent.parent
RECIPE_DIR = CODE_DIR / "cfgops"


class ValueTag(NamedTuple):
    """A tag with a number, such as `batch@32`."""

    field: str  # that it sets
    doc: str  # for the help


VALUE_TAGS = {
    "cuda": ValueTag("device", "the number of the GPU to compute on"),
    "batch": ValueTag("batchSize", "images per batch"),
    "epochs": ValueTag("maxEpoch", "number of epochs"),
    "size": ValueTag("inputShape", "size of the network input in pixels; size@HxW: height and width"),
    "seed": ValueTag("seed", "random seed of initial weights, data order and augmentation"),
    "workers": ValueTag("dcore", "number of loader processes"),
}
VALUE_TAGS_TEXT = " ".join(f"{name}@N" for name in VALUE_TAGS)
MACHINE_TAGS = ("cuda", "workers")  # they only say where to compute, so the name of the run omits them

# Calls that test no tag. A test of what they return is found at that place.
_NEUTRAL_CALLS = frozenset(
    {
        "all", "any", "bool", "enumerate", "frozenset", "len", "list", "map", "print", "repr", "reversed", "set",
        "sorted", "str", "sum", "tuple", "zip",
    }
)  # fmt: skip
# Methods that test no tag, such as those of a list, a logger or a separator.
_NEUTRAL_METHODS = frozenset({"append", "debug", "extend", "format", "info", "join", "sort", "warning"})
# Methods of strings and functions of `re` that test a part of a tag: the tags that pass cannot be listed.
_PARTIAL_TESTS = frozenset({"endswith", "find", "fullmatch", "join", "match", "removeprefix", "removesuffix", "search"})
_SET_OPERATORS = (ast.BitAnd, ast.BitOr, ast.BitXor, ast.Sub)


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
            f"{shown_value(cfgname)}: a CFGNAME is a recipe and its tags with dots between them, at most "
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
        raise UserError(f"tag '{tag}': no such value tag{nearest(name, VALUE_TAGS)}; there are {VALUE_TAGS_TEXT}")
    field = VALUE_TAGS[name].field
    if not re.fullmatch(r"\d{1,19}x\d{1,19}" if "x" in text and name == "size" else r"\d{1,19}", text):
        example = "size@640 or size@384x640" if name == "size" else f"{name}@{2 if name != 'cuda' else 0}"
        raise UserError(f"tag '{tag}': expected a whole number of at most 19 digits after the @, e.g. {example}")
    try:
        value = f"cuda:{int(text)}" if name == "cuda" else parse(field, text.replace("x", ","), field_type(field))
        return field, checked_value(field, value)
    except UserError as error:
        raise UserError(f"tag '{tag}': {error}") from None


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
    recipes = []
    for name in recipe_names(folder):
        doc, tags = "", {}
        with contextlib.suppress(Exception):  # the help must not fail because a recipe is being edited
            tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
            doc = ast.get_docstring(tree) or ""
            for node in tree.body:
                if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["TAGS"]:
                    tags = {str(tag): str(text) for tag, text in dict(ast.literal_eval(node.value)).items()}
        recipes.append(RecipeInfo(name, doc, tags))
    return recipes


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
    spec = importlib.util.spec_from_file_location(f"cfgops.{name}", file)
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)  # a fresh module, without the state of an earlier import
    with _errors_with_line(file):
        # Known by its name, so that loader processes can import the classes of the recipe.
        sys.modules[spec.name] = recipe
        spec.loader.exec_module(recipe)
        if not callable(getattr(recipe, "mcfg", None)):
            raise UserError(f"{file}: a recipe needs a function mcfg(tags) that returns a config.mconfig.ModelConfig")
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
    unknown = next((tag for tag in tags if tag not in declared and not tests.accepts(tag)), None)
    if unknown is None:
        return
    if tests.unreadable_line is not None:
        _warn_of_unreadable_tests(unknown, file, tests.unreadable_line)
        return
    known = list(declared) or sorted(word for word in tests.words - set(PHASES) if re.fullmatch(r"[\w@+-]+", word))
    listed = f"{file.stem} knows {', '.join(known)}" if known else f"{file.stem} has no tags of its own"
    raise UserError(
        f"tag '{unknown}': unknown{nearest(unknown, [*known, *PHASES])}; {listed}; "
        f"every recipe knows {' '.join(PHASES)} and {VALUE_TAGS_TEXT}"
        f"{'' if declared else f'; to add a tag, declare it in {file}: TAGS = {{...}}'}"
    )


@functools.cache  # warns once, although most commands load their config several times
def _warn_of_unreadable_tests(tag: str, file: Path, line: int) -> None:
    log.warning(
        "tag '%s': cannot be checked, because %s, line %d, tests tags in a way that Mars cannot read; "
        "declare the tags of the recipe: TAGS = {'%s': 'what it does'}", tag, file, line, tag,
    )  # fmt: skip


@contextlib.contextmanager
def _errors_with_line(file: Path) -> Iterator[None]:
    """Turn every error of a running recipe, also `sys.exit`, into a `UserError` with file and line.

    Only errors of too little memory are raised as they are.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        is_from_recipe = frames[-1].filename == str(file)
        if isinstance(error, UserError):
            # A line that sets a field has a place. A message that the recipe raised itself needs none.
            place = f" ({file}, line {lines[-1]})" if lines and not is_from_recipe else ""
            raise UserError(f"{error}{place}") from error
        log.debug("stopped by the recipe %s", file, exc_info=True)
        text = str(error)
        if isinstance(error, SyntaxError) and error.filename == str(file):
            lines, text = [error.lineno], error.msg
        text = " ".join(text.split())[:LONGEST_SHOWN]
        reason = f"{type(error).__name__}{f': {text}' if text else ''}"
        if isinstance(error, SystemExit) or (
            is_from_recipe and isinstance(error, AssertionError | NotImplementedError)
        ):
            # Raised on purpose, so its text is enough; sys.exit(1) has no text.
            reason = text if text and not text.isdecimal() else reason
        elif isinstance(error, ModuleNotFoundError):
            reason += "; install it, or remove the import"
        else:
            reason += "; correct the recipe"
        raise UserError(f"{file}{f', line {lines[-1]}' if lines else ''}: {reason}") from error


@dataclass
class TagTests:
    """The tests of tags in a recipe."""

    words: set[str] = field(default_factory=set)  # strings that are compared with tags
    prefixes: set[str] = field(default_factory=set)  # of `tag.startswith("...")`
    unreadable_line: int | None = None  # line of a test whose strings the syntax tree does not show

    def accepts(self, tag: str) -> bool:
        """Is it certain that the recipe tests for this tag?"""
        return tag in self.words or tag.startswith(tuple(self.prefixes))


def read_tag_tests(tree: ast.Module) -> TagTests:
    """Which tags does a recipe test for? Read from its syntax tree: `mcfg(tags)` and the other functions of the file.

    A recipe of the course assignment declares no TAGS; it only tests them: `if "full" in tags`. Without knowing its
    tags, a typing error (`c1.nano.ful`) would train the wrong network without a warning.

    It reads comparisons, `in`, methods (`tags.count("full")`), set operators, dictionary keys and `match`, and follows
    constants and variables that depend on tags. It ignores scopes: a string too many only means that a wrong tag with
    that spelling is not found.
    """
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    if "mcfg" not in functions:
        return TagTests(unreadable_line=1)  # it is imported or made by a call
    values = _values_of_names(tree, functions)
    parameters = functions["mcfg"].args
    tags = {parameter.arg for parameter in (*parameters.posonlyargs, *parameters.args, parameters.vararg) if parameter}
    while more := {name for name in values if any(_mentions(value, tags) for value in values[name])} - tags:
        tags |= more
    tests = TagTests()
    for node in ast.walk(tree):
        operands = _operands(node, functions)
        if not any(_mentions(operand, tags) for operand in operands):
            continue
        methods = {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)}
        is_partial = bool(methods & _PARTIAL_TESTS)
        strings = {text for operand in operands for text in _strings(operand, values)} if not is_partial else set()
        is_prefix = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "startswith"
        (tests.prefixes if is_prefix else tests.words).update(strings)
        counts_tags = isinstance(node, ast.Compare) and any(isinstance(operand, ast.Constant) for operand in operands)
        if not strings and (is_partial or not counts_tags):  # `len(tags) > 1` tests for no tag
            tests.unreadable_line = tests.unreadable_line or getattr(node, "lineno", 1)
    return tests


def _values_of_names(tree: ast.Module, functions: dict[str, ast.FunctionDef]) -> dict[str, list[ast.expr]]:
    """Name -> the expressions that are bound to it by assignments, loops and calls of functions of the file."""
    values: dict[str, list[ast.expr]] = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            bound = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value is not None:
            bound = [(node.target, node.value)]
        elif isinstance(node, ast.For | ast.comprehension):
            bound = [(node.target, node.iter)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
            parameters = functions[node.func.id].args.args
            for parameter, argument in zip(parameters, node.args, strict=False):
                values[parameter.arg].append(argument)
            for keyword in node.keywords:
                values[keyword.arg or ""].append(keyword.value)
            continue
        else:
            continue
        for target, value in bound:
            for name in [target, *getattr(target, "elts", ())]:  # `for name, epochs in ...`
                if isinstance(name, ast.Name):
                    values[name.id].append(value)
    return values


def _operands(node: ast.AST, functions: Container[str]) -> Sequence[ast.AST]:
    """What a node compares, looks up, or passes to a function outside of the recipe; nothing for other nodes."""
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.BinOp) and isinstance(node.op, _SET_OPERATORS):
        return [node.left, node.right]
    if isinstance(node, ast.Match):
        return [node.subject, *(case.pattern for case in node.cases)]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Name | ast.Subscript):  # TABLE[tag], not tags[0]
        return [node.value, node.slice]
    if isinstance(node, ast.Call):
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        if isinstance(node.func, ast.Attribute) and arguments and node.func.attr not in _NEUTRAL_METHODS:
            return [node.func.value, *arguments]
        if isinstance(node.func, ast.Name) and node.func.id not in _NEUTRAL_CALLS and node.func.id not in functions:
            return arguments
    return []


def _mentions(node: ast.AST, names: set[str]) -> bool:
    return any(isinstance(child, ast.Name) and child.id in names for child in ast.walk(node))


def _strings(node: ast.AST, values: dict[str, list[ast.expr]], names: frozenset[str] = frozenset()) -> Iterator[str]:
    """The strings in an expression and in the values of its names. `names`: those that are being looked up."""
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        elif isinstance(child, ast.Name) and child.id not in names:
            for value in values.get(child.id, ()):
                yield from _strings(value, values, names | {child.id})
