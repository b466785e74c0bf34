"""Checks of single values that know what they are about: a value -> what is wrong with it, or None."""

import re

from config.fields import unless_none


def multiple_of_32(shape: tuple[int, int]) -> str | None:
    if all(side > 0 and side % 32 == 0 for side in shape):
        return None
    near = ",".join(str(max(32, round(side / 32) * 32)) for side in shape)
    return f"both sides must be multiples of 32 (the coarsest stride); the nearest is {near}"


def device_word(word: str) -> str | None:
    return None if re.fullmatch(r"auto|cpu|cuda(:\d+)?", word) else "must be auto, cpu, cuda or cuda:N, e.g. cuda:0"


def file_address(address: str) -> str | None:
    if address.startswith("file://") and len(address) > len("file://"):
        return None
    if "://" in address:
        return "only file:// addresses are read; download the file and give file:///path/to/it"
    return f"must be an address; for a file on this machine write file://{address}"


def momentum(value: float) -> str | None:
    return None if 0 <= value < 1 else "must lie between 0 and 1, and 1 itself would never forget a step"


def below_one(value: float) -> str | None:
    return None if 0 <= value < 1 else "must lie between 0 and 1, and 1 itself would shrink an image to nothing"


def not_empty(value: str) -> str | None:
    return None if value.strip() else "must not be empty; none leaves it out"


def class_names(value: tuple[str, ...] | str) -> str | None:
    if isinstance(value, str):
        return not_empty(value)
    if not value:
        return "must name at least one class; none leaves it out"
    twice = sorted({name for name in value if value.count(name) > 1})
    return f"names {', '.join(twice)} more than once" if twice else None


def base_classes(value: tuple[str, ...] | int | None) -> str | None:
    if isinstance(value, int):
        return None if value > 0 else "must be 1 or more; none leaves it out"
    return classes(value)


def feature_maps(names: tuple[str, ...]) -> str | None:
    known = ("feat0", "feat1", "feat2", "feat3", "C", "X", "Y", "Z")
    unknown = [name for name in names if name not in known]
    if unknown:
        return f"{unknown[0]} is no map of the network; there are {', '.join(known)}"
    return None if len(set(names)) == len(names) else "names a map more than once"


def folder_name(name: str) -> str | None:
    """A run's folder lies directly below root."""
    if name in (".", "..") or re.search(r"[/\\\0]", name):
        return "must be a plain folder name, without path separators; --root chooses where it lies"
    return None


path = unless_none(not_empty)
classes = unless_none(class_names)


def sixteen_bits(value: int) -> str | None:
    return None if 1 <= value <= 65535 else "must lie between 1 and 65535"
