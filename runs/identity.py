"""The identity of the data of a run (classes, images, labels), and a description of what has changed.

Every checkpoint contains the identity: a dictionary of texts. Checkpoints of earlier versions have fewer keys; only the
keys of both identities are compared.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from dl.annotations import Annotation
from dl.check import CheckedData
from dl.formats.source import DataSource
from dl.splits import find_split
from ops.text import shown

_CLASSES, _SPLIT, _LABELS = "class list", "split ", "labels "
_DIGITS = 8  # hexadecimal digits per image: one changed image in four billion is not noticed
_NAMED = 5  # classes or images that a message names for each kind of change


def identity_of(data: CheckedData, split_names: Sequence[str]) -> dict[str, str]:
    """The identity of checked data: `data_identity`, digests of the labels of these splits, and `pixelMax`."""
    labels = {f"{_LABELS}{name}": _label_digests(data.splits[name]) for name in split_names}
    pixels = {} if data.pixel_max is None else {"pixelMax": str(data.pixel_max)}
    return {**data_identity(data.source, split_names), **labels, **pixels}


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
    was, now = (_names(what, config) for config in (old, new))
    if was is None or now is None:
        return []
    changes = _added_and_removed(was, now)
    return [*changes, *_order_change(was, now)] if what == _CLASSES else changes


def _names(what: str, config: Mapping[str, Any]) -> Sequence[str] | None:
    """The classes, or the images of a split, that a config lists by name; None if it lists none."""
    splits = config.get("subsetMap") or {}
    key = find_split(what.removeprefix(_SPLIT), splits)
    names = config.get("classList") if what == _CLASSES else splits[key] if key else None
    return None if names is None or isinstance(names, str) else tuple(names)


def _order_change(was: Sequence[str], now: Sequence[str]) -> list[str]:
    common_then, common_now = [name for name in was if name in now], [name for name in now if name in was]
    moved = [place for place, names in enumerate(zip(common_then, common_now, strict=True)) if len(set(names)) == 2]
    if not moved:
        return []
    then, today = (", ".join(names[moved[0] :][:_NAMED]) for names in (common_then, common_now))
    return [f"in another order: {then} then, {today} now"]


def label_changes(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """For each split whose labels differ: the number of changed images. Empty if one identity has no labels."""
    changes = []
    for what in was:
        if not what.startswith(_LABELS) or was[what] == now.get(what, was[what]):
            continue
        before, after = (_image_digests(digests) for digests in (was[what], now[what]))
        if len(before) == len(after):
            count = f"{sum(then != today for then, today in zip(before, after, strict=True))} of {len(after)} images"
        else:  # faulty images were skipped (badFiles=skip), then or now
            count = f"the images that can be read ({len(before)} then, {len(after)} now)"
        changes.append(f"the labels of {count} of '{what.removeprefix(_LABELS)}'")
    return changes


def name_digest(names: Sequence[str]) -> str:
    """A short digest of these names in this order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]


def _label_digests(annotations: Sequence[Annotation]) -> str:
    """A digest of boxes, labels and difficult flags per image, `_DIGITS` digits each, sorted by image id."""
    digests = []
    for annotation in sorted(annotations, key=lambda annotation: annotation.image_id):
        arrays = (annotation.boxes, annotation.labels, annotation.difficult)
        content = b"".join(array.tobytes() for array in arrays)
        digests.append(hashlib.blake2b(content, digest_size=_DIGITS // 2).hexdigest())
    return "".join(digests)


def _image_digests(digests: str) -> list[str]:
    return [digests[start : start + _DIGITS] for start in range(0, len(digests), _DIGITS)]


def _added_and_removed(was: Sequence[str], now: Sequence[str]) -> list[str]:
    changes = []
    for verb, names, others in (("added", now, set(was)), ("removed", was, set(now))):
        if listed := [name for name in names if name not in others]:
            changes.append(f"{verb}: {shown(listed, _NAMED)}")
    return changes
