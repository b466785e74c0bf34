"""What stands in a CFGNAME: the recipe's name, then tags, with dots between: `c1.nano.teacher.cuda@0`.

Phase tags and value tags mean the same for every recipe and are understood here. The others are the recipe's own;
`Tag` remembers what the recipe asked, so that a tag nobody asked about does not pass unnoticed.
"""

import re
from typing import Any, NamedTuple

from config.checks import LONGEST_RUN_NAME, printable
from config.errors import UserError
from config.fields import nearest, parse, shown_value
from config.mconfig import PHASE_ALIASES, PHASES, checked_value, field_type

VALUE_TAGS = {
    "cuda": "device",
    "batch": "batchSize",
    "epochs": "maxEpoch",
    "size": "inputShape",
    "seed": "seed",
    "workers": "dcore",
}
MACHINE_TAGS = ("cuda", "workers")  # where it runs, not what it is: they are no part of the run's name


class CfgName(NamedTuple):
    """A CFGNAME taken apart."""

    recipe: str
    tags: tuple[str, ...]  # all of them, in order
    values: dict[str, Any]  # what phase and value tags set: field -> value
    own: tuple[str, ...]  # those that only the recipe can know
    run_name: str  # without machine tags


class Tag(str):
    """A tag that notes in `asked` every word it is compared with."""

    asked: set[str]

    def __new__(cls, text: str, asked: set[str]) -> "Tag":
        tag = super().__new__(cls, text)
        tag.asked = asked
        return tag

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            self.asked.add(str.__str__(other))
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def startswith(self, *args: Any) -> bool:
        answer = super().startswith(*args)
        if answer:
            self.asked.add(str.__str__(self))
        return answer


def read_cfgname(cfgname: str) -> CfgName:
    """Take a CFGNAME apart. Raises `UserError` on an empty part, two phases, or a bad or repeated value tag."""
    if len(cfgname) > LONGEST_RUN_NAME or printable(cfgname) or re.search(r"[/\\\s]", cfgname):
        raise UserError(
            f"{shown_value(cfgname)}: a CFGNAME is a recipe and its tags with dots between, at most "
            f"{LONGEST_RUN_NAME} letters, e.g. voc.nano.full"
        )
    recipe, *tags = cfgname.split(".")
    if not all([recipe, *tags]):
        raise UserError(f"{cfgname!r}: nothing between two dots; a CFGNAME looks like c1.nano.full")
    values: dict[str, Any] = {}
    came_from: dict[str, str] = {}  # field -> the tag that set it
    own = []
    for tag in tags:
        setting = _read_tag(tag)
        if setting is None:
            own.append(tag)
            continue
        field, value = setting
        if field in came_from:
            raise UserError(f"{cfgname}: '{came_from[field]}' and '{tag}' both set {field}; keep one of them")
        came_from[field], values[field] = tag, value
    named = [PHASE_ALIASES.get(tag, tag) for tag in tags if tag.partition("@")[0] not in MACHINE_TAGS]
    return CfgName(recipe, tuple(tags), values, tuple(own), ".".join([recipe, *named]))


def _read_tag(tag: str) -> tuple[str, Any] | None:
    """The field and value that a phase or value tag sets; None for a tag of the recipe's own."""
    if tag in PHASES or tag in PHASE_ALIASES:
        return "phase", PHASE_ALIASES.get(tag, tag)
    word, at, text = tag.partition("@")
    if not at:
        return None
    if word not in VALUE_TAGS:
        raise UserError(f"tag '{tag}': no such value tag{nearest(word, VALUE_TAGS)}; there are {value_tags_in_words()}")
    field = VALUE_TAGS[word]
    if not re.fullmatch(r"\d{1,19}x\d{1,19}" if "x" in text and word == "size" else r"\d{1,19}", text):
        example = "size@640 or size@384x640" if word == "size" else f"{word}@{2 if word != 'cuda' else 0}"
        raise UserError(f"tag '{tag}': wants a whole number of at most 19 digits behind the @, e.g. {example}")
    try:
        value = f"cuda:{int(text)}" if word == "cuda" else parse(field, text.replace("x", ","), field_type(field))
        return field, checked_value(field, value)
    except UserError as error:
        raise UserError(f"tag '{tag}': {error}") from None


def value_tags_in_words() -> str:
    """`cuda@N batch@N ...`, for messages and the help."""
    return " ".join(f"{word}@N" for word in VALUE_TAGS)
