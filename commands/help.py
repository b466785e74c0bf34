"""The texts of `python mars.py --help` and `--fields` that come from the recipes and the config fields."""

import textwrap
from pathlib import Path

from config.fields import describe
from config.mconfig import PHASES, field_default, field_doc, field_names, field_type
from config.recipes import RECIPE_DIR, RecipeInfo, describe_recipes

_COMMON_TAGS = {
    " ".join(PHASES): "size of the network (nano)",
    "cuda@N": "the GPU to compute on",
    "batch@N": "images per batch",
    "epochs@N": "epochs",
    "size@N, size@HxW": "network input in pixels, multiples of 32",
    "seed@N": "seed of weights, order and augmentation",
    "workers@N": "loader processes",
}
_EXAMPLES = """examples:
  python mars.py voc.nano.full --data ~/birds --set maxEpoch=60
  python mars.py doctor voc.nano.full --data ~/birds
  python mars.py c1.nano.full.cuda@0.batch@32 --data ~/MAR20
  python mars.py incremental voc.nano --data ~/birds --set baseClasses=4
  python mars.py eval voc.nano.full --data ~/birds --split validation
  python mars.py export voc.nano.full --format onnx --name voc.nano.full-birds
  python mars.py predict voc.nano.full ~/photos 'more/*.jpg' --name voc.nano.full-birds"""


def closing_text(recipe_dir: Path = RECIPE_DIR) -> str:
    """The end of the general help: recipes with their tags, tags of all recipes, and commands to copy."""
    width = max(map(len, _COMMON_TAGS)) + 2
    return "\n".join(
        [
            "A CFGNAME is a recipe and tags with dots between them: voc.nano.full, c1.small.teacher.cuda@0",
            "",
            "recipes (cfgops/NAME.py; copy one to make your own):",
            *[line for recipe in describe_recipes(recipe_dir) for line in _recipe_lines(recipe)],
            "tags of every recipe:",
            *[f"  {tag:<{width}}{meaning}" for tag, meaning in _COMMON_TAGS.items()],
            "",
            _EXAMPLES,
        ]
    )


def fields_text() -> str:
    """Every config field: its default, its type and what it means."""
    lines = ["Config fields, for recipes (mcfg.FIELD = ...) and for --set FIELD=VALUE", ""]
    for name in field_names():
        lines.append(f"{name} = {_as_typed(field_default(name))}")
        lines += textwrap.wrap(
            f"{field_doc(name)} [{describe(field_type(name))}]", 100, initial_indent="    ", subsequent_indent="    "
        )
    return "\n".join(lines)


def _recipe_lines(recipe: RecipeInfo) -> list[str]:
    first_line = recipe.doc.partition("\n")[0]
    return [f"  {recipe.name:<8}{first_line}", *[f"    .{tag:<14}{doc}" for tag, doc in recipe.tags.items()], ""]


def _as_typed(value: object) -> str:
    """A default as a user types it behind --set."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value)) or "empty"
    if value is None or value == {} or value == "":
        return "none"
    return str(value)
