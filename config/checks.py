"""Checks of single config values. Each takes a value and returns what is wrong with it, or None."""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from config.fields import MOST_EPOCHS, Check, cut, listed, nearest, shown_value

# A float32 image of this size takes 3.2 GB and the first map of nano 4.3 GB: enough for prediction on one large aerial
# image. Few machines have the memory for a larger one.
LONGEST_SIDE = 16384
# The largest public set of classes has 13,204 (V3Det); every further class costs a row in each score and each table.
MOST_CLASSES = 20_000
LONGEST_CLASS_NAME = 200  # letters; a longer name fits into no table and no picture
# File systems take 255 bytes (143 with encryption); Mars adds the time, the kind of run, a suffix and `.part`.
LONGEST_RUN_NAME = 200
LONGEST_NAME = 255  # bytes; ext4, XFS, APFS and NTFS take no longer file name
LONGEST_PATH = 3_000  # bytes; Linux takes 4,096, and a run writes files in folders below its own
# Control characters (category Cc), Unicode's line separators, and the halves of characters that stand for bytes of an
# argument or a file name that is not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def positive(value: int | float) -> str | None:
    return None if value > 0 else "must be above 0"


def not_negative(value: int | float) -> str | None:
    return None if value >= 0 else "must not be negative"


def within(lowest: float, largest: float, reason: str = "") -> Check:
    """Accept numbers from `lowest` to `largest`; `reason` says why others cannot work."""
    message = f"must lie between {lowest} and {largest}{reason and f': {reason}'}"
    return lambda value: None if lowest <= value <= largest else message


def below_one(reason: str) -> Check:
    """Accept numbers from 0 to 1, but not 1; `reason` says why 1 cannot work."""
    return lambda value: None if 0 <= value < 1 else f"must lie between 0 and 1, and cannot be 1: {reason}"


def at_most(limit: int | float, reason: str) -> Check:
    """Accept numbers up to `limit`; `reason` says why a larger one cannot work."""
    return lambda value: None if value <= limit else f"must be at most {limit:,}: {reason}"


def both(first: Check, second: Check) -> Check:
    """Two checks, the first error is returned."""
    return lambda value: first(value) or second(value)


def one_of(*words: str) -> Check:
    """Accept these words only; the message names them and the nearest."""

    def check(value: str) -> str | None:
        return None if value in words else f"must be one of {', '.join(words)}{nearest(value, words)}"

    return check


def one_of_or_part(*words: str) -> Check:
    """Accept these words, and classes with their module: `cfgops.mine:Lion()`."""
    check_word = one_of(*words)
    return lambda value: None if ":" in value else check_word(value)


def each(check: Check) -> Check:
    """The same check for every entry of a list."""

    def check_all(values: Iterable[Any]) -> str | None:
        return next((f"{shown_value(value)} {complaint}" for value in values if (complaint := check(value))), None)

    return check_all


def unless_none(check: Check) -> Check:
    """The same check for a field that may also be none."""
    return lambda value: None if value is None else check(value)


def printable(text: str) -> str | None:
    """What is wrong with a text that no terminal, log or UTF-8 file can show as it is."""
    found = _UNPRINTABLE.search(text)
    if found is None:
        return None
    encoding = sys.getfilesystemencoding()
    with suppress(UnicodeError):  # valid UTF-8 that Python did not decode, because the locale has another encoding
        if encoding != "utf-8" and not _UNPRINTABLE.search(os.fsencode(text).decode("utf-8")):
            return f"holds letters that this locale ({encoding}) lacks; set PYTHONUTF8=1, or another locale"
    kind = "bytes that are not UTF-8" if "\ud800" <= found[0] <= "\udfff" else "a control character or a line break"
    return f"holds {kind}; choose a name without it"


def short(text: str) -> str | None:
    if len(text) <= LONGEST_PATH:
        return None
    return f"has {len(text):,} letters, but a name or path has at most {LONGEST_PATH:,}; use a shorter one"


name_or_path = both(printable, short)


def texts_of(value: Any) -> Iterator[str]:
    """The texts that a field's value holds; of a dictionary its keys and the single texts in it.

    Lists in a dictionary are image names, as many as millions, which are checked where the files are listed.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for pair in value.items() for text in pair if isinstance(text, str))
    elif isinstance(value, (tuple, list)):
        yield from (text for text in value if isinstance(text, str))


def multiple_of_32(shape: tuple[int, int]) -> str | None:
    if max(map(abs, shape)) > LONGEST_SIDE:
        return f"both sides must be at most {LONGEST_SIDE}: larger inputs do not fit into memory; use image tiles"
    if all(side > 0 and side % 32 == 0 for side in shape):
        return None
    near = ",".join(str(max(32, round(side / 32) * 32)) for side in shape)
    return f"both sides must be multiples of 32 (the coarsest stride); the nearest is {near}"


def device_word(word: str) -> str | None:
    is_device = re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", word)
    return None if is_device else "must be auto, cpu, cuda or cuda:N, e.g. cuda:0"


def file_address(address: str) -> str | None:
    if address.startswith("file://") and len(address) > len("file://"):
        return None
    if "://" in address:
        return "only file:// addresses can be read; download the file and give file:///path/to/it"
    return f"must be an address; for a file on this machine write file://{cut(address)}"


def not_empty(value: str) -> str | None:
    return None if value.strip() else "must not be empty; use none to leave it out"


def class_list(names: tuple[str, ...]) -> str | None:
    """What is wrong with the classes of a network, wherever their names come from."""
    if not names:
        return "must name at least one class"
    if len(names) > MOST_CLASSES:
        return f"names {len(names):,} classes, but a network can have at most {MOST_CLASSES:,}; merge classes"
    for name in names:
        if not name.strip() or len(name) > LONGEST_CLASS_NAME:
            return f"the class name {shown_value(name)} must have 1 to {LONGEST_CLASS_NAME} letters"
        if complaint := printable(name):
            return f"the class name {shown_value(name)} {complaint}"
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    return f"names {listed(repeated)} more than once" if repeated else None


def class_names(value: tuple[str, ...] | str) -> str | None:
    if isinstance(value, str):
        return not_empty(value)
    return class_list(value) if value else "must name at least one class; use none to leave it out"


def split_lists(value: dict[str, Any]) -> str | None:
    is_named = all(name.strip() and names != "" for name, names in value.items())
    return None if is_named else "contains a split without a name or without a file; write NAME:FILE,NAME:FILE"


def base_classes(value: tuple[str, ...] | int | None) -> str | None:
    if isinstance(value, int):
        return label(value) if value > 0 else "must be 1 or more; use none to leave it out"
    return classes(value)


def feature_maps(names: tuple[str, ...]) -> str | None:
    known = ("feat0", "feat1", "feat2", "feat3", "C", "X", "Y", "Z")
    for name in names:
        if name not in known:
            return f"{cut(name)} is not a feature map of the network; the maps are {', '.join(known)}"
    return None if len(set(names)) == len(names) else "names a map more than once"


def folder_name(name: str) -> str | None:
    """A run's folder lies directly below root."""
    if name in (".", "..") or re.search(r"[/\\\0]", name):
        return "must be a folder name without path separators; --root sets the folder above it"
    if len(name.encode("utf-8", "replace")) > LONGEST_RUN_NAME:
        return f"must have at most {LONGEST_RUN_NAME} bytes, because suffixes are added; set a shorter one with --name"
    return None


path = unless_none(not_empty)
classes = unless_none(class_names)

# Whole numbers. A larger value cannot work, for the reason that is given.
seed = both(not_negative, at_most(2**63 - 1, "torch and the saved config store 64 bits"))
epochs = both(positive, at_most(MOST_EPOCHS, "the history of all epochs is written again after each epoch"))
epoch = both(not_negative, at_most(MOST_EPOCHS, "no training has more epochs"))
processes = both(not_negative, at_most(1024, "each is a separate process, and no machine has that many cores"))
scenes = both(not_negative, at_most(1_000_000, "each scene is drawn and saved as a file"))
images = both(not_negative, at_most(10_000_000, "no data set has more images"))
objects = both(positive, at_most(10_000_000, "no data set has more objects of a class"))
batch = both(positive, at_most(65_536, "a step on more images fits into no memory"))
label = both(not_negative, at_most(MOST_CLASSES - 1, "no network has more classes"))
images_per_step = both(positive, at_most(10_000_000, "no data set has more images"))
choices = both(positive, at_most(100_000, "no object has more anchor points, and no image has more objects"))
steps = both(positive, at_most(1_000_000_000, "no training has more steps"))
bins = both(positive, at_most(256, "a box of 2 x 255 bins on the coarsest map is wider than any input"))
sixteen_bits = within(1, 65535)

# Numbers. The bounds lie far outside of what is in use.
fraction = within(0, 1)
degrees = both(not_negative, at_most(180, "a larger rotation is the same as one in the other direction"))
shear = both(not_negative, at_most(60, "hardly anything of the image would be left"))
perspective = both(not_negative, at_most(0.4, "at 0.5 a corner of the image would reach infinity"))
momentum = below_one("the optimizer would never forget a step")
scale_range = below_one("images could shrink to nothing")
minutes = both(positive, at_most(527_040, "a year has no more minutes"))
gain = both(not_negative, at_most(1e6, "gradients of a larger loss overflow in float16"))
rate = both(not_negative, at_most(1e5, "a step would be larger than any weight, and float32 would soon overflow"))
highest_rate = both(positive, rate)
decay = both(not_negative, at_most(1e3, "at a learning rate of 0.001 it would turn the sign of the weights"))
norm = both(positive, at_most(1e30, "this value clips nothing, and float32 cannot hold much larger numbers"))
pixels = both(not_negative, at_most(LONGEST_SIDE, "no input is larger"))
softness = within(0.01, 1000, "outside of this range softmax saturates")
