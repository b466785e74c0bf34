"""From the words of a command to a checked config and the data that it speaks of.

What needs torch is imported where it is used, so that a mistake in the command answers at once.
"""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.errors import UserError
from config.load import DEFAULT_CFGNAME, load_config
from config.mconfig import ModelConfig
from ops.log import ProgressBar

if TYPE_CHECKING:
    from dl.check import CheckedData

log = logging.getLogger("mars")


def load(args: argparse.Namespace, overrides: dict[str, Any]) -> ModelConfig:
    """The config that the command names, with `overrides` above everything else."""
    return load_config(args.cfgname or DEFAULT_CFGNAME, args.root, args.data, overrides, args.name, args.nobuf)


def find_data(args: argparse.Namespace, mcfg: ModelConfig, settings: dict[str, Any]) -> ModelConfig:
    """The config again, with the places, classes and splits that were found in the data folder."""
    from dl.discover import as_overrides, locate

    if mcfg.modelName == "distillation" and args.mode != "eval":
        raise UserError("modelName=distillation: its losses are not there yet; train with the tag full or teacher")
    if mcfg.drawnScenes and mcfg.dataDir:
        _draw_scenes(mcfg.dataDir, mcfg.drawnScenes, args.quiet)
    source = locate(mcfg)
    for note in source.notes:
        log.info("%s", note)
    return load(args, {**as_overrides(source), **settings})


def _draw_scenes(folder: str, count: int, quiet: bool) -> None:
    from dl.synthetic import make_data_set

    with ProgressBar("drawing scenes", quiet) as bar:
        make_data_set(folder, num_images=count, on_image=bar)


def check(mcfg: ModelConfig, splits: list[str], cache_file: Path | None, quiet: bool) -> "CheckedData":
    """The data set after its check, with a progress bar."""
    from dl.check import check_data

    with ProgressBar("checking the data", quiet) as bar:
        return check_data(mcfg, splits, cache_file, on_image=bar)
