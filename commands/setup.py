"""From the words of a command to a checked config and the data that it speaks of.

What needs torch is imported where it is used, so that a mistake in the command answers at once.
"""

import argparse
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.errors import UserError
from config.load import DEFAULT_CFGNAME, load_config
from config.mconfig import ModelConfig
from config.places import absolute
from ops.log import ProgressBar

if TYPE_CHECKING:
    from dl.check import CheckedData
    from dl.report import DataReport

log = logging.getLogger("mars")

SHOTS = 10  # objects of each class in a split 'small' that is drawn, unless smallShots says otherwise


def load(args: argparse.Namespace, overrides: dict[str, Any]) -> ModelConfig:
    """The config that the command names, with `overrides` above everything else."""
    return load_config(args.cfgname or DEFAULT_CFGNAME, args.root, args.data, overrides, args.name, args.nobuf)


def find_data(args: argparse.Namespace, mcfg: ModelConfig, settings: dict[str, Any]) -> ModelConfig:
    """The config again, with the places, classes and splits that were found in the data folder.

    Raises `UserError` when the run's folder lies in the data or holds other things, before anything is written there.
    """
    from dl.formats.discover import as_overrides, locate
    from dl.splits import find_split
    from runs.folder import RunFolder

    RunFolder.of(mcfg).check_is_run_folder()

    refuse_run_in_data(mcfg, (mcfg.dataDir, mcfg.imageDir))
    if mcfg.drawnScenes and mcfg.dataDir:
        _draw_scenes(mcfg.dataDir, mcfg.drawnScenes, args.quiet)
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
    """Every folder that holds an image of a split, by imageDir and subsetMap; imageDir alone where no split is known.

    `config`: the overrides that were found, or the config of a run as plain values. Without imageDir: none.
    """
    image_dir, splits = config.get("imageDir"), config.get("subsetMap") or {}
    if image_dir is None:
        return []
    below = {os.path.dirname(image) for images in splits.values() for image in images} or {""}
    return sorted(os.path.join(image_dir, folder) for folder in below)


def refuse_run_in_data(mcfg: ModelConfig, folders: Iterable[str | None], way_out: str = "") -> None:
    """Raise `UserError` when the run's folder lies in a folder of data. `way_out`: another one, after a comma."""
    from runs.folder import RunFolder

    run = mcfg.run_dir
    if RunFolder.of(mcfg).has_checkpoint():
        advice = f"move the folder {run} out of the data and name its new place with --root{way_out}"
    else:
        advice = f"give a folder outside of it with --root{way_out}"
    refuse_in_data(run, folders, f"root={mcfg.root}", advice)


def refuse_in_data(place: Path, folders: Iterable[str | None], what: str, advice: str) -> None:
    """Raise `UserError` when `place`, to which pictures are written, lies in a folder of data or is one.

    Else painted copies would be found there as images of the data set. Links are followed. Data may lie below root.
    `what` the user gave starts the message, `advice` ends it.
    """
    for folder in filter(None, folders):
        if place.resolve().is_relative_to(Path(absolute(folder)).resolve()):
            raise UserError(
                f"{what}: {place} lies in the data folder {folder}, so painted images there would be read as data; "
                f"{advice}"
            )


def is_small_drawn(mcfg: ModelConfig, settings: Mapping[str, Any]) -> bool:
    """Is the split 'small' to be drawn although the data set has one? A list named by hand stands above that."""
    return mcfg.smallShots is not None and "small" not in settings.get("subsetMap", ())


def _draw_scenes(folder: str, count: int, quiet: bool) -> None:
    from scenes.dataset import make_data_set

    with ProgressBar("drawing scenes", quiet) as bar:
        make_data_set(folder, num_images=count, on_image=bar)


def _draw_small(mcfg: ModelConfig, quiet: bool) -> tuple[str, ...]:
    """The split 'small' of a data set that has none, as subsetMap takes it: drawn out of train, the same every time."""
    from dl.splits import count_objects, draw_shots
    from runs.folder import RunFolder

    data = check(mcfg, ["train"], None if mcfg.nobuf else RunFolder.of(mcfg).data_check, quiet)
    annotations, classes, shots = data.splits["train"], data.source.class_list, mcfg.smallShots or SHOTS
    drawn = set(draw_shots(annotations, len(classes), shots, mcfg.smallSeed))
    objects = count_objects([one for one in annotations if one.image_id in drawn], len(classes)).objects
    few = [f"{name} ({count})" for name, count in zip(classes, objects, strict=True) if count < shots]
    log.info(
        "split 'small': %d of %d training images drawn by smallSeed=%d, %d to %d objects a class (smallShots=%d)%s",
        len(drawn), len(annotations), mcfg.smallSeed, min(objects), max(objects), shots,
        f"; train has no more of {', '.join(few)}" if few else "",
    )  # fmt: skip
    return tuple(data.source.files.get(one.image_id, one.image_id) for one in annotations if one.image_id in drawn)


def check(mcfg: ModelConfig, splits: list[str], cache_file: Path | None, quiet: bool) -> "CheckedData":
    """The data set after its check, with a progress bar."""
    from dl.check import check_data

    with ProgressBar("checking the data", quiet) as bar:
        return check_data(mcfg, splits, cache_file, on_image=bar)


def log_report(report: "DataReport") -> None:
    """The table of the data, and a warning where figures of one split would be about images of another."""
    log.info("%s", report.table())
    for sentence in report.copies:
        log.warning("%s", sentence)
