"""`split`: a small part of a split, so many objects a class or a share of the images, and the lists of all splits."""

import argparse
import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands.setup import check, log_report
from config.errors import UserError
from config.fields import nearest
from config.load import load_config
from config.mconfig import ModelConfig
from config.places import absolute
from dl.annotations import Annotation
from dl.formats.discover import as_overrides, locate
from dl.formats.source import DataSource
from dl.splits import USUAL_NAMES, canonical_name, count_objects, draw_share, draw_shots, find_split
from ops.files import write_atomic
from ops.log import RESULT
from ops.text import align_columns

log = logging.getLogger("mars")

CFGNAME = "voc.nano.full"  # its recipe reads any folder of data
# Fields that say what the data set is; of the others a list of images knows nothing.
_HEARD = ("annotationFormat", "imageDir", "annotationDir", "classList", "subsetMap", "suffix", "splitSeed", "badFiles",
          "validationSplitName", "testSplitName")  # fmt: skip


def split(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Draw a part of a split, write it and the splits beside it as lists, and say what is in it and how to use it."""
    name, asked, out = args.name or "small", getattr(args, "from") or "train", Path(absolute(args.out))
    _refuse_words(name, out, settings)
    mcfg = load_config(CFGNAME, data=args.paths[0], overrides={**settings, "trainSplitName": asked})
    source = locate(mcfg)
    for note in source.notes:
        log.info("%s", note)
    held_out = _held_out(mcfg, source)
    origin = _origin(asked, name, source, held_out)
    # As found, so that nothing is searched twice.
    mcfg = mcfg.with_values(**as_overrides(source))
    data = check(mcfg, [origin, *held_out], None, args.quiet)
    annotations = data.splits[origin]
    drawn = _draw(args, annotations, len(source.class_list))
    keys = dict.fromkeys([find_split("train", source.splits) or origin, origin, *held_out])
    files = _write(out, {**{_list_name(key): source.splits[key] for key in keys}, name: drawn}, source)
    log_report(data.report)
    log.log(RESULT, "\n%s", _table(annotations, drawn, source.class_list, args.shots))
    share = f"{len(drawn)} of the {len(annotations)} images of '{origin}'"
    log.log(RESULT, "%s, drawn by --seed %d: %s", share, args.seed or 0, files[name])
    log.log(RESULT, "train on them: %s", _usage(mcfg.dataDir or "", files, name, args.set))


def _draw(args: argparse.Namespace, annotations: list[Annotation], num_classes: int) -> list[str]:
    seed = args.seed or 0
    if args.share is not None:
        return draw_share(annotations, args.share / 100, seed)
    drawn = draw_shots(annotations, num_classes, args.shots, seed)
    if not drawn:
        raise UserError(f"--shots {args.shots}: no image there has an object that counts; --share PERCENT needs none")
    return drawn


def _refuse_words(name: str, out: Path, settings: dict[str, Any]) -> None:
    """Raise `UserError` for words that no data set would make sense of."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"--name {name}: becomes a file and a word behind --set; letters, digits, - _ and . are taken")
    if "," in str(out):
        raise UserError(f"--out {out}: a comma ends an entry of subsetMap; give a folder without one")
    for field in settings:
        if field not in _HEARD:
            raise UserError(f"--set {field}: split reads only {', '.join(_HEARD)}; leave it out")


def _held_out(mcfg: ModelConfig, source: DataSource) -> list[str]:
    """Splits whose images must not be among the drawn ones."""
    names = ("validation", "test", mcfg.validationSplitName, mcfg.testSplitName)
    return list(dict.fromkeys(key for name in names if (key := find_split(name, source.splits)) is not None))


def _origin(asked: str, name: str, source: DataSource, held_out: Sequence[str]) -> str:
    """The key of the split to draw from. Raises `UserError` when there is none that can be drawn from."""
    origin = find_split(asked, source.splits)
    if origin is None:
        known = ", ".join(source.splits)
        raise UserError(
            f"--from {asked}: no such split for {source.image_dir}{nearest(asked, source.splits)}; there are: {known}"
        )
    if origin in held_out:
        raise UserError(
            f"--from {asked}: what is drawn from '{origin}' would be trained on and evaluated, too; draw from another "
            f"split, e.g. --from train"
        )
    if canonical_name(name) in [canonical_name(key) for key in ("train", origin, *held_out)]:
        raise UserError(f"--name {name}: there is a split of that name already, which stays as it is; give another")
    return origin


def _list_name(key: str) -> str:
    """val -> validation; a name of its own stays."""
    return canonical_name(key) if canonical_name(key) in USUAL_NAMES else key


def _write(out: Path, splits: dict[str, Sequence[str]], source: DataSource) -> dict[str, Path]:
    """One list a split, the drawn one last: where it is, all are. Raises `UserError` before another list is lost."""
    texts = {
        out / f"{name}.txt": "".join(f"{source.files.get(image, image)}\n" for image in dict.fromkeys(ids))
        for name, ids in splits.items()
    }
    for path, text in texts.items():
        if path.exists() and not (path.is_file() and path.read_bytes() == text.encode("utf-8")):
            raise UserError(f"{path}: is there already and differs from what would be written; give another --out")
    for path, text in texts.items():
        write_atomic(path, text)
    return dict(zip(splits, texts, strict=True))


def _table(annotations: list[Annotation], drawn: Sequence[str], classes: Sequence[str], shots: int | None) -> str:
    """What was asked for and what came of it, class by class; then the classes of which there was not enough."""
    part = count_objects([one for one in annotations if one.image_id in set(drawn)], len(classes))
    whole = count_objects(annotations, len(classes))
    asked = "-" if shots is None else str(shots)
    rows = [
        [name, asked, *(str(counts[label]) for counts in (part.objects, part.images, whole.objects))]
        for label, name in enumerate(classes)
    ]
    total = ["all classes", "-", str(sum(part.objects)), str(len(drawn)), str(sum(whole.objects))]
    lines = align_columns([["class", "asked", "drawn", "on images", "available"], *rows, total])
    if few := [name for label, name in enumerate(classes) if shots is not None and part.objects[label] < shots]:
        lines.append(f"fewer than {shots}, because there are no more: {', '.join(few)}")
    if difficult := sum(part.difficult):
        lines.append(f"not counted: {difficult} more on these images that are marked difficult")
    return "\n".join(lines)


def _usage(folder: str, files: dict[str, Path], name: str, given: Sequence[str]) -> str:
    """The command that trains on what was drawn."""
    subset_map = ",".join(f"{split}:{path}" for split, path in files.items())
    settings = [word for word in given if not word.startswith("subsetMap=")]
    words = ["--data", folder, "--set", f"subsetMap={subset_map}", f"trainSplitName={name}", *settings]
    return f"python mars.py {CFGNAME} {shlex.join(words)}"
