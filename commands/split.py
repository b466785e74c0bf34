"""`split`: draw K objects per class, or a share of the images, from a split, and list the images of all splits."""

import argparse
import logging
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commands.options import (
    PROGRAM,
    Command,
    Parser,
    add_console_options,
    add_settings,
    check_out_folder,
    number,
)
from commands.setup import check, log_report
from config.checks import at_most, both, objects, positive, seed
from config.errors import UserError
from config.fields import nearest
from config.load import absolute, load_config
from dl.splits import USUAL_NAMES, canonical_name, count_objects, draw_share, draw_shots, find_split
from ops.files import write_atomic
from ops.log import RESULT
from ops.text import align_columns

if TYPE_CHECKING:
    from dl.annotations import Annotation
    from dl.formats.source import DataSource

log = logging.getLogger("mars")

CFGNAME = "voc.nano.full"  # its recipe reads any folder of data
# Fields that describe the data set. A list of images depends on no other field.
_DATA_FIELDS = ("annotationFormat", "imageDir", "annotationDir", "classList", "subsetMap", "suffix", "splitSeed",
                "badFiles", "validationSplitName", "testSplitName")  # fmt: skip


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", nargs="?", metavar="DIR", help="folder of the data set")
    parser.add_argument("--out", metavar="DIR", help="folder for the lists")
    parser.add_argument("--shots", metavar="K", help="select images with at least K objects of each class")
    parser.add_argument("--share", metavar="PERCENT", help="select this share of the images instead")
    parser.add_argument("--seed", metavar="N", default="0", help="random seed of the selection (0)")
    parser.add_argument("--from", dest="origin", metavar="SPLIT", default="train", help="split to draw from (train)")
    parser.add_argument("--name", metavar="SPLIT", default="small", help="name of the new split (small)")
    add_settings(parser)
    add_console_options(parser)


def _check(args: argparse.Namespace) -> None:
    if args.folder is None:
        raise UserError(
            f"split: DIR is missing; write {PROGRAM} split DIR --out DIR --shots K, with one folder of data"
        )
    if not os.path.isdir(absolute(args.folder)):
        raise UserError(f"{absolute(args.folder)}: no such folder; split takes a data set's folder")
    if not args.out:
        raise UserError("split: --out is missing; add --out DIR, a folder for the lists")
    if (args.shots is None) == (args.share is None):
        raise UserError("split: give one of --shots K (objects of each class) and --share PERCENT (of the images)")
    args.seed = number("--seed", args.seed, int, seed)
    if args.shots is not None:
        args.shots = number("--shots", args.shots, int, objects)
    else:
        args.share = number("--share", args.share, float, both(positive, at_most(100, "it is a percentage")))
    check_out_folder(args.out)
    if not re.fullmatch(r"\w[\w.-]*", args.name):
        raise UserError(
            f"--name {args.name}: becomes a file name and a value of --set; use only letters, digits, - _ and ."
        )
    if "," in absolute(args.out):
        raise UserError(f"--out {absolute(args.out)}: a comma ends an entry of subsetMap; give a folder without one")


def _run(args: argparse.Namespace) -> int:
    """Draw a part of a split, write lists of it and of all splits, and print what it holds and how to use it."""
    for field in args.settings:
        if field not in _DATA_FIELDS:
            raise UserError(f"--set {field}: split reads only {', '.join(_DATA_FIELDS)}; leave it out")
    mcfg = load_config(CFGNAME, data=args.folder, overrides={**args.settings, "trainSplitName": args.origin})
    from dl.formats.discover import as_overrides, locate

    source = locate(mcfg)
    for note in source.notes:
        log.info("%s", note)
    names = ("validation", "test", mcfg.validationSplitName, mcfg.testSplitName)
    found = (find_split(name, source.splits) for name in names)
    held_out = list(dict.fromkeys(key for key in found if key is not None))  # none of their images may be drawn
    origin = _origin_split(args.origin, args.name, source, held_out)
    mcfg = mcfg.with_values(**as_overrides(source))  # so that the folder is not searched twice
    data = check(mcfg, [origin, *held_out], None, args.quiet)
    annotations = data.splits[origin]
    if args.share is not None:
        drawn = draw_share(annotations, args.share / 100, args.seed)
    elif not (drawn := draw_shots(annotations, len(source.class_list), args.shots, args.seed)):
        raise UserError(f"--shots {args.shots}: no image of '{origin}' has an object that counts; use --share PERCENT")
    lists = {}
    for key in (find_split("train", source.splits) or origin, origin, *held_out):
        usual = canonical_name(key)  # val -> validation
        lists[usual if usual in USUAL_NAMES else key] = source.splits[key]
    files = _write(Path(absolute(args.out)), {**lists, args.name: drawn}, source)
    log_report(data.report)
    log.log(RESULT, "\n%s", _table(annotations, drawn, source.class_list, args.shots))
    share = f"{len(drawn)} of the {len(annotations)} images of '{origin}'"
    log.log(RESULT, "%s, drawn by --seed %d: %s", share, args.seed, files[args.name])
    subset_map = ",".join(f"{split}:{path}" for split, path in files.items())
    words = ["--data", mcfg.dataDir or "", "--set", f"subsetMap={subset_map}", f"trainSplitName={args.name}"]
    words += [word for word in args.set if not word.startswith("subsetMap=")]
    log.log(RESULT, "train on them: %s %s %s", PROGRAM, CFGNAME, shlex.join(words))
    return 0


def _origin_split(asked: str, name: str, source: "DataSource", held_out: Sequence[str]) -> str:
    """The key of the split to draw from. Raises `UserError` when it is missing, or is a split for evaluation."""
    origin = find_split(asked, source.splits)
    if origin is None:
        known = ", ".join(source.splits)
        raise UserError(
            f"--from {asked}: no such split for {source.image_dir}{nearest(asked, source.splits)}; there are: {known}"
        )
    if origin in held_out:
        raise UserError(
            f"--from {asked}: images of '{origin}' would be in training and in evaluation; draw from another split, "
            "e.g. --from train"
        )
    if canonical_name(name) in [canonical_name(key) for key in ("train", origin, *held_out)]:
        raise UserError(f"--name {name}: the data set has a split of that name already; give another name")
    return origin


def _write(out: Path, splits: dict[str, Sequence[str]], source: "DataSource") -> dict[str, Path]:
    """Write one list per split; the drawn one is last, so that where it exists, all lists exist.

    Raises `UserError` before it would replace a different list.
    """
    texts = {
        out / f"{name}.txt": "".join(f"{source.files.get(image, image)}\n" for image in dict.fromkeys(ids))
        for name, ids in splits.items()
    }
    for path, text in texts.items():
        if path.exists() and not (path.is_file() and path.read_bytes() == text.encode("utf-8")):
            raise UserError(f"{path}: exists already and differs from what would be written; give another --out")
    for path, text in texts.items():
        write_atomic(path, text)
    return dict(zip(splits, texts, strict=True))


def _table(annotations: "list[Annotation]", drawn: Sequence[str], classes: Sequence[str], shots: int | None) -> str:
    """A row per class with the objects that were asked for and drawn; then the classes with too few objects."""
    drawn_ids = set(drawn)
    part = count_objects([annotation for annotation in annotations if annotation.image_id in drawn_ids], len(classes))
    whole = count_objects(annotations, len(classes))
    asked = "-" if shots is None else str(shots)
    rows = [
        [name, asked, *(str(counts[label]) for counts in (part.objects, part.images, whole.objects))]
        for label, name in enumerate(classes)
    ]
    total = ["all classes", "-", str(sum(part.objects)), str(len(drawn)), str(sum(whole.objects))]
    lines = align_columns([["class", "asked", "drawn", "on images", "available"], *rows, total])
    if few := [name for label, name in enumerate(classes) if shots is not None and part.objects[label] < shots]:
        lines.append(f"fewer than {shots}, because the split has no more: {', '.join(few)}")
    if difficult := sum(part.difficult):
        lines.append(f"not counted: {difficult} more objects on these images, which are marked difficult")
    return "\n".join(lines)


SPLIT = Command(
    "select a small part of the training images at random, and write the lists of all splits",
    "DIR --out DIR --shots K",
    _add_arguments,
    _run,
    _check,
    "Each split becomes a file with one image per line; the last line printed is the command that trains on them.",
    takes_paths=True,
    advice={
        "--data": "write the folder of the data set after split: split DIR",
        "--split": "--from NAME draws from another split",
    },
)
