"""The texts of `python mars.py --help` and `--fields`, written from the recipes and the fields themselves."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from config.fields import describe
from config.mconfig import PHASES, field_default, field_doc, field_names, field_type
from config.recipes import RECIPE_DIR, RecipeInfo, describe_recipes

_MODES = {
    "pipe": "train, evaluate the test split, paint it; what happens when no mode is named",
    "train": "train, or go on with a run that was stopped or is to become longer",
    "eval": "evaluate a run: --split NAME (test), --weights FILE (the run's best)",
    "predict": "detect on files, folders (and all below) and 'patterns'; no data set is needed",
    "doctor": "the checks before a long run, in a minute; exit status 1 when something is wrong",
    "explain": "IMAGE: what every object of it was given, what it costs, and why it was found or missed",
    "export": "write the weights for other programs: --format onnx, torch or ultralytics",
    "backbone": "FILE.pt: write the backbone of these weights as a file to start from",
    "incremental": "train a teacher, its student and what they are measured against, for one table",
    "split": "DIR: draw a small part of a data set's training images, and write the lists of all splits",
}

_OF_FILES = ("predict", "explain", "backbone", "split")  # modes that take more than a CFGNAME, or none

_OPTIONS = {
    "--data DIR": "folder of the data set: images, annotations, splits and classes are found in it",
    "--root DIR": "folder that holds all runs (default: $MARS_ROOT, else ../mars-running)",
    "--name NAME": "folder of this run below it (default: the CFGNAME)",
    "--nobuf": "start afresh; an older run of that name is kept under another one",
    "--set FIELD=VALUE ...": "change config fields, above recipe and tags: --set maxEpoch=60 inputShape=320",
    "--weights FILE": "eval, predict, explain, export: these weights; classes and input size are theirs",
    "--out PLACE": "predict, split: folder for results (predict: RUN/predict/NNN); export, backbone: file to write",
    "--format FORMAT": "export: onnx, torch (torch.export) or ultralytics (a .pt that it loads)",
    "--nms": "export to onnx: suppression inside, so that detections come out",
    "--shots K": "split: at least K objects of each class; or --share PERCENT of the images",
    "--seed N": "split: another N draws others (0)",
    "--from SPLIT": "split: draw from this one (train), and call what is drawn --name (small)",
    "--draws N": "incremental: so many draws of the small split, for a mean and its interval (1)",
    "--ways NAME,NAME": "incremental: only these ways to learn; teacher and student are always of the same recipe",
    "--novel-only": "incremental: the small split labels the new classes only",
    "--trace": "pipe, train: say of the first step how large the values grow, block by block",
    "--replay FILE": "doctor: run the bundle of a bad step again, and say where the bad value was born",
    "--quiet": "print results only; everything said is in the run's mars.log",
    "--fields": "list all config fields with default and meaning",
}

_VALUE_TAGS = {
    "cuda@N": "the GPU to compute on",
    "batch@N": "images a step",
    "epochs@N": "epochs",
    "size@N, size@HxW": "network input in pixels, multiples of 32",
    "seed@N": "seed of weights, order and augmentation",
    "workers@N": "loader processes",
}


def help_text(modes: Sequence[str], recipe_dir: Path = RECIPE_DIR) -> str:
    """Modes, recipes with their tags, tags for all of them, options, and three commands to copy."""
    return "\n".join(
        [
            "Mars trains YOLOv8 detectors.",
            "",
            f"    python mars.py [{'|'.join(mode for mode in modes if mode not in _OF_FILES)}] CFGNAME [options]",
            "    python mars.py predict CFGNAME PATH... [options]",
            "    python mars.py explain CFGNAME IMAGE [--weights FILE] [options]",
            "    python mars.py backbone FILE.pt [--out FILE]",
            "    python mars.py split DIR --out DIR --shots K [--seed N] [--from SPLIT] [--name SPLIT]",
            "",
            "A CFGNAME is a recipe and tags with dots between: voc.nano.full, c1.small.teacher.cuda@0",
            "",
            *_section("Modes", {mode: _MODES[mode] for mode in modes}),
            "Recipes (cfgops/NAME.py; copy one to make your own)",
            *[line for recipe in describe_recipes(recipe_dir) for line in _recipe(recipe)],
            *_section("Tags of every recipe", {" ".join(PHASES): "scale of the network (nano)", **_VALUE_TAGS}),
            *_section("Options", _OPTIONS),
            "Examples",
            "  python mars.py voc.nano.full --data ~/birds --set maxEpoch=60",
            "  python mars.py doctor voc.nano.full --data ~/birds",
            "  python mars.py c1.nano.full.cuda@0.batch@32 --data ~/MAR20",
            "  python mars.py incremental voc.nano --data ~/birds --set baseClasses=4",
            "  python mars.py eval voc.nano.full --data ~/birds --split validation",
            "  python mars.py export voc.nano.full --format onnx --name voc.nano.full-birds",
            "  python mars.py predict voc.nano.full ~/photos 'more/*.jpg' --name voc.nano.full-birds",
            "",
        ]
    )


def fields_text() -> str:
    """Every config field: its default, its type and what it means."""
    lines = ["Config fields, for recipes (mcfg.FIELD = ...) and for --set FIELD=VALUE", ""]
    for name in field_names():
        lines.append(f"{name} = {_plain(field_default(name))}")
        lines += textwrap.wrap(
            f"{field_doc(name)} [{describe(field_type(name))}]", 100, initial_indent="    ", subsequent_indent="    "
        )
    return "\n".join(lines)


def _recipe(recipe: RecipeInfo) -> list[str]:
    first_line = recipe.doc.partition("\n")[0]
    return [f"  {recipe.name:<8}{first_line}", *[f"    .{tag:<14}{doc}" for tag, doc in recipe.tags.items()], ""]


def _section(title: str, entries: dict[str, str]) -> list[str]:
    width = max(map(len, entries)) + 2
    return [title, *[f"  {name:<{width}}{doc}" for name, doc in entries.items()], ""]


def _plain(value: object) -> str:
    """A default as one would type it behind --set."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value)) or "empty"
    if value is None or value == {} or value == "":
        return "none"
    return str(value)
