"""From the arguments of a command to a checked config, its data set and its run.

Modules that need torch are imported where they are used, so that mistakes in the command are reported at once.
"""

import argparse
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.errors import UserError
from config.load import DEFAULT_CFGNAME, absolute, load_config
from config.mconfig import ModelConfig
from dl.splits import count_objects, draw_shots, find_split
from ops.log import ProgressBar

if TYPE_CHECKING:
    from dl.check import CheckedData
    from dl.report import DataReport

log = logging.getLogger("mars")

SHOTS = 10  # objects of each class in a drawn split 'small', unless smallShots is set
ANY_DATA = "*"  # stands for the name of the data folder in the name of a run


def load(args: argparse.Namespace, overrides: dict[str, Any]) -> ModelConfig:
    """The config that the command names; `overrides` have the highest precedence."""
    return load_config(args.cfgname or DEFAULT_CFGNAME, args.root, args.data, overrides, args.name, args.nobuf)


def run_of_weights(args: argparse.Namespace, settings: dict[str, Any]) -> ModelConfig:
    """The config of the run whose weights are used. No data set is needed; --data only becomes part of the name.

    If the name of the run ends in the name of a data folder, but --data is not given, the weights name the run, else
    the only run with weights below root is meant. Raises `UserError` if there is none or more than one.
    """
    asked = argparse.Namespace(**{**vars(args), "data": args.data or ANY_DATA})
    mcfg = load(asked, settings)
    if ANY_DATA not in mcfg.runName or (args.weights and args.out):
        return mcfg
    from model.weightsfile import read_weights

    if args.weights:
        name = (read_weights(args.weights).config or {}).get("runName")
        if not name:
            raise UserError(f"{args.weights}: does not name its run; --out PLACE names the place of the result")
        return load(asked, {**settings, "runName": name})
    runs = {file.parent.parent.name for file in Path(mcfg.root).glob(f"{mcfg.runName}/weights/*.pth")}
    # Without the runs that --nobuf has renamed.
    names = sorted(name for name in runs if not re.search(r"\.\d{8}-\d{6}(-\d+)?$", name))
    if not names:
        raise UserError(
            f"{mcfg.run_dir}: no such run with weights; train first: python mars.py train {mcfg.cfgname} --data DIR"
        )
    if len(names) > 1:
        raise UserError(f"{mcfg.cfgname}: which run? {mcfg.root} holds {', '.join(names)}; add --name NAME")
    return load(asked, {**settings, "runName": names[0]})


def find_data(args: argparse.Namespace, settings: dict[str, Any]) -> ModelConfig:
    """The config that the command names, with the folders, classes and splits that were found in the data folder.

    Raises `UserError` when the run's folder lies in the data or holds other files, before anything is written there.
    """
    mcfg = load(args, settings)
    from dl.formats.discover import as_overrides, locate

    draws_scenes = mcfg.drawnScenes and mcfg.dataDir is not None
    source = None if draws_scenes else locate(mcfg)  # first, because it reports a missing folder without torch
    from runs.folder import RunFolder

    RunFolder.of(mcfg).check_is_run_folder()
    refuse_run_in_data(mcfg, (mcfg.dataDir, mcfg.imageDir))
    if source is None:
        from scenes.dataset import make_data_set

        with ProgressBar("drawing scenes", args.quiet) as bar:
            make_data_set(mcfg.dataDir or "", num_images=mcfg.drawnScenes, on_image=bar)
        source = locate(mcfg)
    found = as_overrides(source)
    refuse_run_in_data(mcfg, image_folders(found))  # a data.yaml may name images outside of the data folder
    for note in source.notes:
        log.info("%s", note)
    values = {**found, **settings}
    has_small, has_train = (find_split(name, source.splits) is not None for name in ("small", "train"))
    if mcfg.trainSplitName == "small" and has_train and (is_small_drawn(mcfg, settings) or not has_small):
        small = _draw_small(load(args, values), args.quiet)
        values["subsetMap"] = {**found["subsetMap"], "small": small}
    return load(args, values)


def image_folders(config: Mapping[str, Any]) -> list[str]:
    """All folders that hold an image of a split; imageDir alone where no split is known; none without imageDir.

    `config`: the overrides of `as_overrides`, or the config of a run as plain values.
    """
    image_dir, splits = config.get("imageDir"), config.get("subsetMap") or {}
    if image_dir is None:
        return []
    below = {os.path.dirname(image) for images in splits.values() for image in images} or {""}
    return sorted(os.path.join(image_dir, folder) for folder in below)


def refuse_run_in_data(mcfg: ModelConfig, folders: Iterable[str | None], way_out: str = "") -> None:
    """Raise `UserError` when the run's folder lies in a folder of data. `way_out` is added to the advice."""
    from runs.folder import RunFolder

    run = mcfg.run_dir
    if RunFolder.of(mcfg).has_checkpoint():
        advice = f"move the folder {run} out of the data and name its new place with --root{way_out}"
    else:
        advice = f"give a folder outside of it with --root{way_out}"
    refuse_in_data(run, folders, f"root={mcfg.root}", advice)


def refuse_in_data(place: Path, folders: Iterable[str | None], what: str, advice: str) -> None:
    """Raise `UserError` when `place`, where pictures are written, is a folder of data or lies in one.

    Otherwise painted copies would be read as images of the data set. Links are followed. Data may lie below root.
    The message starts with `what`, the words of the user, and ends with `advice`.
    """
    for folder in filter(None, folders):
        if place.resolve().is_relative_to(Path(absolute(folder)).resolve()):
            raise UserError(
                f"{what}: {place} lies in the data folder {folder}, so painted images there would be read as data; "
                f"{advice}"
            )


def is_small_drawn(mcfg: ModelConfig, settings: Mapping[str, Any]) -> bool:
    """Is the split 'small' drawn although the data set has one? Not if the user names a list for it."""
    return mcfg.smallShots is not None and "small" not in settings.get("subsetMap", ())


def _draw_small(mcfg: ModelConfig, quiet: bool) -> tuple[str, ...]:
    """The images of the split 'small', drawn from train by smallSeed, as subsetMap takes them."""
    from runs.folder import RunFolder

    data = check(mcfg, ["train"], None if mcfg.nobuf else RunFolder.of(mcfg).data_check, quiet)
    annotations, classes, shots = data.splits["train"], data.source.class_list, mcfg.smallShots or SHOTS
    drawn = set(draw_shots(annotations, len(classes), shots, mcfg.smallSeed))
    small = [annotation for annotation in annotations if annotation.image_id in drawn]
    objects = count_objects(small, len(classes)).objects
    few = [f"{name} ({count})" for name, count in zip(classes, objects, strict=True) if count < shots]
    log.info(
        "split 'small': %d of %d training images drawn by smallSeed=%d, %d to %d objects per class (smallShots=%d)%s",
        len(small), len(annotations), mcfg.smallSeed, min(objects), max(objects), shots,
        f"; train has no more of {', '.join(few)}" if few else "",
    )  # fmt: skip
    return tuple(data.source.files.get(annotation.image_id, annotation.image_id) for annotation in small)


def check(mcfg: ModelConfig, splits: list[str], cache_file: Path | None, quiet: bool) -> "CheckedData":
    """Check the data set, with a progress bar."""
    from dl.check import check_data

    with ProgressBar("checking the data", quiet) as bar:
        return check_data(mcfg, splits, cache_file, on_image=bar)


def log_report(report: "DataReport") -> None:
    """Log the table of the data, and a warning for each pair of splits that share images."""
    log.info("%s", report.table())
    for sentence in report.copies:
        log.warning("%s", sentence)
