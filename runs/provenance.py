"""What every checkpoint records about its past: the origin of its weights, the identity of its data, the code's commit.

The origin names the files that the weights were trained from, and their licence. Every fine-tuning adds one step, so
the licence of the first file is never lost. The identity of the data (classes, images, labels) is a dictionary of
texts. Checkpoints of earlier versions have fewer keys; only the keys of both identities are compared.
"""

import hashlib
import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from config.load import absolute
from dl.check import CheckedData
from dl.formats.source import DataSource
from dl.splits import find_split
from model.archive import open_archive
from model.picklescan import Refused
from model.unpickle import StandIn, read_untrusted, reading_untrusted
from ops.files import file_digest
from ops.text import shown

Origin = dict[str, Any]  # keys path, sha256, licence, and from: the origin of that file; None: unknown

MOST_STEPS = 200  # of an origin: each fine-tuning adds one, and Python cannot pickle much deeper nesting
AGPL = "AGPL-3.0 (Ultralytics)"
# Class names of Ultralytics, or its tensor names. Tensor names of Mars begin with backbone, neck or head.
_ULTRALYTICS = re.compile(rb"ultralytics|(?:^|[^\w.])(?:module\.)?(?:model\.)+\d+\.(?:conv|cv\d|m|bn|dfl)\b")

_CLASSES, _SPLIT, _LABELS = "class list", "split ", "labels "
_DIGITS = 8  # hexadecimal digits per image: one changed image in four billion is not noticed
_NAMED = 5  # classes or images that a message names for each kind of change


# Origin of weights


def random_origin() -> Origin:
    """The origin of randomly initialised weights."""
    return {"path": None, "sha256": None, "licence": None, "from": None}


def file_origin(path: Path | str) -> Origin:
    """The origin of weights that come from a file: its checksum, and the origin and licence that are stored in it.

    If class or tensor names show that the file is from Ultralytics, its licence is AGPL-3.0. Every file that is trained
    from it inherits this licence. No code from the file is run. Raises `UserError` if the file cannot be read.
    """
    path = Path(absolute(path))
    content, stored = read_untrusted(path), None
    is_of_mars = isinstance(content, dict) and not any(isinstance(value, StandIn) for value in content.values())
    with reading_untrusted(path), open_archive(path) as archive:
        if is_of_mars:
            # A backbone file is a plain state dict: its origin is in the metadata that torch keeps with a state dict.
            metadata = getattr(content, "_metadata", {}).get("", {})
            stored = content.get("weights_origin") or metadata.get("weights_origin")
            if stored is not None:
                stored = origin_from_text(stored) if isinstance(stored, str) else checked_origin(stored)
        licence = None
        if stored is not None:
            licence = stored["licence"]
        elif _ULTRALYTICS.search(archive.pickled()):  # in the bytes of the pickle, every name is plain text
            licence = AGPL
    return {"path": str(path), "sha256": file_digest(path), "licence": licence, "from": stored}


def origin_from_text(text: str) -> Origin:
    """The origin as the first checkpoint format stored it: a path, or the word `random`."""
    return random_origin() if text == "random" else {**random_origin(), "path": text}


def checked_origin(value: Any) -> Origin:
    """An origin that was read from a file, after a check. Raises `Refused`, or `KeyError` if a key is missing."""
    steps: list[Origin] = []
    while value is not None:
        if len(steps) > MOST_STEPS:  # for example an origin that contains itself
            raise Refused(f"was fine-tuned more than {MOST_STEPS} times, or its weights_origin contains itself")
        if not isinstance(value, dict):
            raise Refused("has a weights_origin that is not a dictionary")
        step = {name: value[name] for name in ("path", "sha256", "licence")}
        if not all(text is None or isinstance(text, str) for text in step.values()):
            raise Refused("has a weights_origin whose values are not texts")
        steps.append(step)
        value = value["from"]
    origin = None
    for step in reversed(steps):
        origin = {**step, "from": origin}
    return origin or random_origin()


def origin_text(origin: Origin, with_paths: bool = True) -> str:
    """One line for the log: `a.pth, from b.pt, under AGPL-3.0 (Ultralytics)`.

    Without paths, for exported files: file names and checksums instead of the paths of this machine.
    """
    texts = []
    step: Origin | None = origin
    while step is not None and step["path"] is not None:
        digest = f" (sha256 {step['sha256'][:16]})" if step["sha256"] else ""
        texts.append(step["path"] if with_paths else f"{Path(step['path']).name}{digest}")
        step = step["from"]
    licence = f", under {origin['licence']}" if origin["licence"] else ""
    return (", from ".join(texts) or "random") + licence


@lru_cache(maxsize=1)
def code_commit() -> str:
    """The git commit of this code, or "unknown" outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


# Identity of data


def identity_of(data: CheckedData, split_names: Sequence[str]) -> dict[str, str]:
    """The identity of checked data: `data_identity`, digests of the labels of these splits, and `pixelMax`.

    The labels of an image (boxes, classes and difficult flags) have a digest of `_DIGITS` digits; the images are sorted
    by id.
    """
    identity = data_identity(data.source, split_names)
    for name in split_names:
        digests = []
        for annotation in sorted(data.splits[name], key=lambda annotation: annotation.image_id):
            arrays = (annotation.boxes, annotation.labels, annotation.difficult)
            content = b"".join(array.tobytes() for array in arrays)
            digests.append(hashlib.blake2b(content, digest_size=_DIGITS // 2).hexdigest())
        identity[f"{_LABELS}{name}"] = "".join(digests)
    return identity if data.pixel_max is None else {**identity, "pixelMax": str(data.pixel_max)}


def data_identity(source: DataSource, split_names: Sequence[str]) -> dict[str, str]:
    """The class list and the image names of these splits. The folder of the data set does not matter."""
    identity = {_CLASSES: f"{len(source.class_list)} classes, {name_digest(source.class_list)}"}
    for name in split_names:
        key = find_split(name, source.splits)
        image_ids = sorted(set(source.splits[key])) if key else []
        identity[f"{_SPLIT}{name}"] = f"{len(image_ids)} images, {name_digest(image_ids)}"
    return identity


def data_differences(
    was: Mapping[str, str],
    now: Mapping[str, str],
    old: Mapping[str, Any] | None = None,
    new: Mapping[str, Any] | None = None,
) -> str:
    """Describe the differences of two identities, except those of labels. Empty if there are none.

    `old`, `new`: the two configs. If they list classes and images by name, the text names what changed; otherwise it
    gives the number and a digest of the names.
    """
    parts = []
    for what in was:
        if was[what] == now.get(what, was[what]) or what.startswith(_LABELS):
            continue
        changes = _named_changes(what, old or {}, new or {})
        then, today = (text.partition(",")[0] if changes else text for text in (was[what], now[what]))
        named = f" ({'; '.join(changes)})" if changes else ""
        parts.append(f"{what}: {then} then, {today} now{named}")
    return ", ".join(parts)


def _named_changes(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The names that were added, removed or moved; nothing if one of the configs does not list them by name."""
    was, now = _names(what, old), _names(what, new)
    if was is None or now is None:
        return []
    changes = []
    for verb, names, others in (("added", now, set(was)), ("removed", was, set(now))):
        if listed := [name for name in names if name not in others]:
            changes.append(f"{verb}: {shown(listed, _NAMED)}")
    if what == _CLASSES:  # the order of images has no effect
        common_was, common_now = [name for name in was if name in now], [name for name in now if name in was]
        moved = [place for place, names in enumerate(zip(common_was, common_now, strict=True)) if len(set(names)) == 2]
        if moved:
            then, today = (", ".join(names[moved[0] :][:_NAMED]) for names in (common_was, common_now))
            changes.append(f"in another order: {then} then, {today} now")
    return changes


def _names(what: str, config: Mapping[str, Any]) -> Sequence[str] | None:
    """The classes, or the images of a split, that a config lists by name; None if it lists none."""
    splits = config.get("subsetMap") or {}
    key = find_split(what.removeprefix(_SPLIT), splits)
    names = config.get("classList") if what == _CLASSES else splits[key] if key else None
    return None if names is None or isinstance(names, str) else tuple(names)


def label_changes(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """For each split whose labels differ: the number of changed images. Empty if one identity has no labels."""
    changes = []
    for what in was:
        if not what.startswith(_LABELS) or was[what] == now.get(what, was[what]):
            continue
        before, after = (
            [digests[start : start + _DIGITS] for start in range(0, len(digests), _DIGITS)]
            for digests in (was[what], now[what])
        )
        if len(before) == len(after):
            count = f"{sum(then != today for then, today in zip(before, after, strict=True))} of {len(after)} images"
        else:  # faulty images were skipped (badFiles=skip), then or now
            count = f"the images that can be read ({len(before)} then, {len(after)} now)"
        changes.append(f"the labels of {count} of '{what.removeprefix(_LABELS)}'")
    return changes


def name_digest(names: Sequence[str]) -> str:
    """A short digest of these names in this order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
