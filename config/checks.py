"""Checks of single values that know what they are about: a value -> what is wrong with it, or None."""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
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


def fraction(value: int | float) -> str | None:
    return None if 0 <= value <= 1 else "must lie between 0 and 1"


def at_most(limit: int | float, reason: str) -> Check:
    """Accept numbers up to `limit`; `reason` says why a larger one cannot work."""
    return lambda value: None if value <= limit else f"must be at most {limit:,}, for {reason}"


def both(first: Check, second: Check) -> Check:
    """Two checks, the first error is returned."""
    return lambda value: first(value) or second(value)


def one_of(*words: str) -> Check:
    """Accept these words only; the complaint names them and the nearest."""

    def check(value: str) -> str | None:
        return None if value in words else f"must be one of {', '.join(words)}{nearest(value, words)}"

    return check


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
    if _is_of_another_locale(text):
        return (
            f"holds letters that this locale ({sys.getfilesystemencoding()}) lacks; set PYTHONUTF8=1, or another locale"
        )
    kind = "bytes that are not UTF-8" if "\ud800" <= found[0] <= "\udfff" else "a control character or a line break"
    return f"holds {kind}; choose a name without"


def _is_of_another_locale(text: str) -> bool:
    """Is it UTF-8 that Python could not decode, because the locale is another?"""
    try:
        return sys.getfilesystemencoding() != "utf-8" and _UNPRINTABLE.search(os.fsencode(text).decode("utf-8")) is None
    except UnicodeError:
        return False


def short(text: str) -> str | None:
    if len(text) <= LONGEST_PATH:
        return None
    return f"has {len(text):,} letters, and the longest name or path has {LONGEST_PATH:,}; write a shorter one"


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
        return f"both sides must be at most {LONGEST_SIDE}: larger inputs do not fit into memory; cut the images"
    if all(side > 0 and side % 32 == 0 for side in shape):
        return None
    near = ",".join(str(max(32, round(side / 32) * 32)) for side in shape)
    return f"both sides must be multiples of 32 (the coarsest stride); the nearest is {near}"


def device_word(word: str) -> str | None:
    is_one = re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", word)
    return None if is_one else "must be auto, cpu, cuda or cuda:N, e.g. cuda:0"


def file_address(address: str) -> str | None:
    if address.startswith("file://") and len(address) > len("file://"):
        return None
    if "://" in address:
        return "only file:// addresses are read; download the file and give file:///path/to/it"
    return f"must be an address; for a file on this machine write file://{cut(address)}"


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
    if len(value) > MOST_CLASSES:
        return f"names {len(value):,} classes, and {MOST_CLASSES:,} are the most that a network is made for; merge some"
    if odd := [name for name in value if not name.strip() or len(name) > LONGEST_CLASS_NAME]:
        way_out = f"a name has 1 to {LONGEST_CLASS_NAME} letters; write it again"
        return f"names a class {shown_value(odd[0])}; {way_out}"
    twice = sorted(name for name, count in Counter(value).items() if count > 1)
    return f"names {listed(twice)} more than once" if twice else None


def split_lists(value: dict[str, Any]) -> str | None:
    is_named = all(name.strip() and names != "" for name, names in value.items())
    return None if is_named else "holds a split without a name or without a file; write NAME:FILE,NAME:FILE"


def base_classes(value: tuple[str, ...] | int | None) -> str | None:
    if isinstance(value, int):
        return label(value) if value > 0 else "must be 1 or more; none leaves it out"
    return classes(value)


def feature_maps(names: tuple[str, ...]) -> str | None:
    known = ("feat0", "feat1", "feat2", "feat3", "C", "X", "Y", "Z")
    unknown = [name for name in names if name not in known]
    if unknown:
        return f"{cut(unknown[0])} is no map of the network; there are {', '.join(known)}"
    return None if len(set(names)) == len(names) else "names a map more than once"


def folder_name(name: str) -> str | None:
    """A run's folder lies directly below root."""
    if name in (".", "..") or re.search(r"[/\\\0]", name):
        return "must be a plain folder name, without path separators; --root chooses where it lies"
    if len(name.encode("utf-8", "replace")) > LONGEST_RUN_NAME:
        return f"is longer than {LONGEST_RUN_NAME} bytes, which leaves no room for suffixes; --name gives a shorter one"
    return None


path = unless_none(not_empty)
classes = unless_none(class_names)

# Whole numbers. A larger value cannot work, for the reason that is given.
seed = both(not_negative, at_most(2**63 - 1, "torch and the saved config keep 64 bits"))
epochs = both(positive, at_most(MOST_EPOCHS, "the history of all epochs is written after each of them"))
epoch = both(not_negative, at_most(MOST_EPOCHS, "no training has more epochs"))
processes = both(not_negative, at_most(1024, "each is a process of its own, and no machine has that many cores"))
scenes = both(not_negative, at_most(1_000_000, "each is a file that is drawn and kept"))
images = both(not_negative, at_most(10_000_000, "no data set has more images"))
objects = both(positive, at_most(10_000_000, "no data set has more objects of a class"))
batch = both(positive, at_most(65_536, "a step on more images fits into no memory"))
label = both(not_negative, at_most(MOST_CLASSES - 1, "no network has more classes"))
images_per_step = both(positive, at_most(10_000_000, "no data set has more images"))
choices = both(positive, at_most(100_000, "no object has more anchor points, and no image has more objects"))
steps = both(positive, at_most(1_000_000_000, "no training has more steps"))

# Numbers. The bounds lie far outside of what is in use.
minutes = both(positive, at_most(527_040, "a year has no more minutes"))
gain = both(not_negative, at_most(1e6, "gradients of a larger loss overflow in float16"))
rate = both(not_negative, at_most(1e5, "a step would be larger than any weight, and float32 soon overflows"))
highest_rate = both(positive, rate)
decay = both(not_negative, at_most(1e3, "it would turn the sign of weights at a learning rate of .001"))
norm = both(positive, at_most(1e30, "float32 holds hardly more; this one clips nothing"))
pixels = both(not_negative, at_most(LONGEST_SIDE, "no input is larger"))


def bins(value: int) -> str | None:
    if value < 2:
        return "must be 2 or more"
    return at_most(256, "a box of 2 x 255 bins on the coarsest map is wider than any input")(value)


def softness(value: float) -> str | None:
    return None if 0.01 <= value <= 1000 else "must lie between 0.01 and 1000: softmax saturates outside of it"


def sixteen_bits(value: int) -> str | None:
    return None if 1 <= value <= 65535 else "must lie between 1 and 65535"
