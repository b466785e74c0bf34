"""Split names as people write them, and splits made where there are none: image level, seeded, repeatable."""

import hashlib
import re
from collections.abc import Collection, Iterable

from config.errors import UserError

USUAL_NAMES = ("train", "validation", "test", "small")
VALIDATION_SHARE = 0.15
TEST_SHARE = 0.15

_FOLDER_WORDS = frozenset(
    ("images", "image", "imgs", "img", "set", "data", "dataset", "split", "labels", "annotations")
)
_ALIASES = {
    "training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test",
}  # fmt: skip


def canonical_name(name: str) -> str:
    """val, valid, Val -> validation; a name without an alias stays as it is."""
    lower = name.lower()
    return _ALIASES.get(lower, lower if lower in USUAL_NAMES else name)


def find_split(name: str, splits: Collection[str]) -> str | None:
    """The key of `splits` that is meant by `name`: itself, else by its alias; None when there is none."""
    if name in splits:
        return name
    by_canonical = {canonical_name(key): key for key in splits}
    return by_canonical.get(canonical_name(name))


def hinted_names(text: str) -> set[str]:
    """The splits that the words of a name speak of: bird_val -> validation, train2017 -> train, classes -> none."""
    words = {canonical_name(word) for word in re.split(r"[^a-z]+", text.lower())}
    return words & {"train", "validation", "test", "trainval"}


def split_of_folder(name: str) -> str | None:
    """The split that a folder is named after: train, val2017, images_test; not train_station or test_site.

    Beside the split's name only numbers and words for any folder may stand.
    """
    words = [canonical_name(word) for word in re.split(r"[^a-z0-9]+|(?<=[a-z])(?=[0-9])", name.lower()) if word]
    named = [word for word in words if word in ("train", "validation", "test", "trainval", "small")]
    others = [word for word in words if word not in named]
    is_plain = all(word.isdigit() or word in _FOLDER_WORDS for word in others)
    return named[0] if len(named) == 1 and is_plain and (named[0] != "small" or not others) else None


def make_splits(ids: Iterable[str], seed: int) -> dict[str, tuple[str, ...]]:
    """70 % train, 15 % validation, 15 % test, at least one image each. Raises `UserError` below three images."""
    order = ranked(ids, seed)
    if len(order) < 3:
        raise UserError(f"{len(order)} images: three are the least from which train, validation and test can be made")
    num_validation = max(1, round(VALIDATION_SHARE * len(order)))
    num_test = max(1, round(TEST_SHARE * len(order)))
    held_out = num_validation + num_test
    return {
        "train": tuple(sorted(order[held_out:])),
        "validation": tuple(sorted(order[:num_validation])),
        "test": tuple(sorted(order[num_validation:held_out])),
    }


def carve_validation(train: Iterable[str], bound: Iterable[str], seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split `train` into (train, validation), 15 % of its images but at least one.

    `bound` are images that must stay where they are, e.g. those of `small`, which is trained on too. Raises
    `UserError` when nothing is left to move.
    """
    train, bound = tuple(train), set(bound)
    free = [image for image in ranked(train, seed) if image not in bound]
    count = min(max(1, round(VALIDATION_SHARE * len(set(train)))), len(free))
    validation = set(free[:count])
    rest = tuple(image for image in train if image not in validation)
    if not validation or not rest:
        raise UserError(f"{len(set(train))} training images: too few to carve a validation part out of them; list one")
    return rest, tuple(sorted(validation))


def ranked(ids: Iterable[str], seed: int) -> list[str]:
    """Ids in an order drawn from the seed alone.

    By hash and not by a generator: the same on every machine and version, and a new image moves hardly any other.
    """
    return sorted(set(ids), key=lambda image: (hashlib.sha256(f"{seed}/{image}".encode()).digest(), image))
