"""Recipes: the files in cfgops/ that users copy and edit. Found by file name, run, and listed without running them."""

import ast
import contextlib
import importlib.util
import logging
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from config.errors import UserError, is_out_of_memory
from config.fields import LONGEST_SHOWN, nearest
from config.mconfig import PHASES, ModelConfig
from config.tags import Tag, value_tags_in_words

log = logging.getLogger("mars")

CODE_DIR = Path(__file__).resolve().parent.parent
RECIPE_DIR = CODE_DIR / "cfgops"


class RecipeInfo(NamedTuple):
    """What a recipe says of itself."""

    name: str
    doc: str
    tags: dict[str, str]  # its own tags and what they do; empty when it declares none


def recipe_names(folder: Path = RECIPE_DIR) -> list[str]:
    """The recipes in `folder`, sorted."""
    return sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))


def describe_recipes(folder: Path = RECIPE_DIR) -> list[RecipeInfo]:
    """Docstring and TAGS of every recipe, read from its text: nothing is imported, a broken recipe has no docstring."""
    return [_describe(folder / f"{name}.py") for name in recipe_names(folder)]


def _describe(file: Path) -> RecipeInfo:
    doc, tags = "", {}
    with contextlib.suppress(Exception):  # the help must not fail because one recipe is being edited
        tree = ast.parse(file.read_text(encoding="utf-8"))
        doc = ast.get_docstring(tree) or ""
        for node in tree.body:
            if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["TAGS"]:
                tags = {str(tag): str(what) for tag, what in dict(ast.literal_eval(node.value)).items()}
    return RecipeInfo(file.stem, doc, tags)


def run_recipe(name: str, tags: Sequence[str], own: Sequence[str], folder: Path = RECIPE_DIR) -> ModelConfig:
    """The config that recipe `name` makes of `tags`; `own` are those that only the recipe can know.

    Raises `UserError` when there is no such recipe, when it makes no config, when it sets an unknown field or a wrong
    value, when it fails in any other way (with file and line), and when it never asked about one of `own`.
    """
    file = folder / f"{name}.py"
    if name not in recipe_names(folder):
        known = recipe_names(folder)
        raise UserError(f"{name}: no such recipe{nearest(name, known)}; {folder} holds {', '.join(known) or 'none'}")
    asked: set[str] = set()
    with _naming_the_line(file):
        recipe = _import(file)
        mcfg = recipe.mcfg([Tag(tag, asked) for tag in tags])
        if not isinstance(mcfg, ModelConfig):
            raise UserError(
                f"{file}: mcfg(tags) must return the ModelConfig it made, not {'None' if mcfg is None else type(mcfg)}"
            )
        _refuse_unasked(recipe, own, asked)
    return mcfg


@contextlib.contextmanager
def _naming_the_line(file: Path) -> Iterator[None]:
    """Around a recipe that runs: what it raises becomes a `UserError` with file and line; `sys.exit` does, too.

    Only memory that ran out is raised as it is.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}{_where(file, error)}") from error
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        log.debug("stopped by the recipe %s", file, exc_info=True)
        if isinstance(error, SyntaxError) and error.filename == str(file):
            line, text = error.lineno, error.msg
        else:
            frames = traceback.extract_tb(error.__traceback__)
            line, text = (
                next((frame.lineno for frame in reversed(frames) if frame.filename == str(file)), None),
                str(error),
            )
        where = f"{file}, line {line}" if line else str(file)
        raise UserError(f"{where}: {_reason(error, ' '.join(text.split())[:LONGEST_SHOWN], file)}") from error


def _reason(error: BaseException, text: str, file: Path) -> str:
    """What stopped a recipe, and the way out where the recipe has not said it itself."""
    kind = f"{type(error).__name__}{f': {text}' if text else ''}"
    is_its_own = traceback.extract_tb(error.__traceback__)[-1].filename == str(file)
    if isinstance(error, SystemExit) or (is_its_own and isinstance(error, (AssertionError, NotImplementedError))):
        return kind if not text or text.isdecimal() else text  # sys.exit(1) says nothing
    if isinstance(error, ModuleNotFoundError):
        return f"{kind}; install it, or leave out what needs it"
    return f"{kind}; correct the recipe"


def _import(file: Path) -> ModuleType:
    """A fresh module from `file`; nothing that another loading left behind."""
    spec = importlib.util.spec_from_file_location(f"cfgops.{file.stem}", file)
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    if not callable(getattr(recipe, "mcfg", None)):
        raise UserError(f"{file}: a recipe needs a function mcfg(tags) that returns a config.mconfig.ModelConfig")
    return recipe


def _where(file: Path, error: UserError) -> str:
    """` (FILE, line N)` for what a line of the recipe did wrong; empty for a sentence the recipe itself raised."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return f" ({file}, line {lines[-1]})" if lines and frames[-1].filename != str(file) else ""


def _refuse_unasked(recipe: ModuleType, own: Sequence[str], asked: set[str]) -> None:
    declared = getattr(recipe, "TAGS", {})
    unknown = [tag for tag in own if tag not in asked and tag not in declared]
    # `if "full" in tags or "ema" in tags` asks only the first question when the answer is yes: ask for each alone.
    unknown = [tag for tag in unknown if tag not in _questions(recipe, tag)]
    if not unknown:
        return
    known = list(declared) or sorted((asked | _questions(recipe, "")) - set(PHASES))
    name = recipe.__name__.partition(".")[2]
    listed = f"{name} knows {', '.join(known)}" if known else f"{name} has no tags of its own"
    raise UserError(
        f"tag '{unknown[0]}': unknown{nearest(unknown[0], [*known, *PHASES])}; {listed}; "
        f"every recipe knows {' '.join(PHASES)} and {value_tags_in_words()}"
    )


def _questions(recipe: ModuleType, tag: str) -> set[str]:
    """The words the recipe asks about when it is given `tag` alone."""
    asked: set[str] = set()
    with contextlib.suppress(Exception, SystemExit):  # it ran well with all its tags; here only its questions matter
        recipe.mcfg([Tag(tag, asked)])
    return asked
