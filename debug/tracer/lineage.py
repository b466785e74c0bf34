"""From a bad loss or gradient back to where its bad values were born.

Followed back are operations that read something bad, up to those that read nothing bad: the candidates. Infinities
that somebody masks away lie on no such way, so they are none. What is left of them when a tensor mixes several is tried
out by the caller: each candidate alone, the others healed.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import NamedTuple

from debug.tracer.operations import CONSTANT, UNWRITTEN, Op

# Operations that put values somewhere and compute nothing; and the sum, by which masks of infinities are put on scores.
PLACING = {
    "masked_fill", "full", "full_like", "new_full", "fill", "where", "index_fill", "index_put", "scatter", "copy",
    "constant_pad_nd", "masked_scatter", "cat", "stack", "clone", "_to_copy", "scalar_tensor", "add",
}  # fmt: skip

JOINING = {"stack", "cat", "add", "sum", "mean"}  # what they give is negative where all that they read is


class Birth(NamedTuple):
    """Where a bad value came up: in an operation, or in a leaf that the operation was the first to read."""

    op: int
    leaf: str | None = None  # a weight's name, a part of the batch; None: born in the operation itself


def ancestry(ops: Sequence[Op], ends: Iterable[int]) -> set[int]:
    """These operations and all whose bad values they go back to."""
    found: set[int] = set()
    waiting = list(ends)
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting += ops[index].bad_reads
    return found


def births(ops: Sequence[Op], ends: Iterable[int]) -> list[Birth]:
    """The candidates behind these operations, in the order of their running; an unknown leaf counts as its reader."""
    found: dict[Birth, None] = {}
    named: set[str] = set()
    for index in sorted(ancestry(ops, ends)):
        op = ops[index]
        if not op.bad_reads and not op.bad_leaves:
            found[Birth(index)] = None
        for leaf in op.bad_leaves:
            is_anonymous = leaf in (CONSTANT, UNWRITTEN)
            if is_anonymous or leaf not in named:
                found[Birth(index, None if is_anonymous else leaf)] = None
                named.add(leaf)
    return list(found)


def is_written_by_hand(op: Op) -> bool:
    """Was an infinity (not NaN) put there by the code, as masks do it, rather than come out of arithmetic?"""
    is_given = op.has_bad_number or CONSTANT in op.bad_leaves
    return is_given and op.base.rstrip("_") in PLACING and not op.is_nan_written


def harmed_by(ops: Sequence[Op], birth: Birth, ends: Iterable[int], meant: Container[str] = ()) -> Birth:
    """For an infinity that stands in the code: the first operation that made NaN of it, if any did. Else the birth.

    `-inf` is a fair value for what is masked; what went wrong is where it met zero, itself, or nothing else. `meant`:
    leaves whose infinities are such masks.
    """
    if birth.leaf is not None and birth.leaf not in meant:
        return birth
    if birth.leaf is None and not is_written_by_hand(ops[birth.op]):
        return birth
    for index in sorted(ancestry(ops, ends)):
        op = ops[index]
        if op.is_nan_written and not op.is_nan_read and birth.op in ancestry(ops, [index]):
            return Birth(index)
    return birth


def descendants(ops: Sequence[Op], birth: Birth, ends: Iterable[int]) -> list[int]:
    """Those between the birth and the ends that only passed it on, in order."""
    reached = {birth.op}
    passed = []
    for index in sorted(ancestry(ops, ends)):
        if index > birth.op and reached.intersection(ops[index].bad_reads):
            reached.add(index)
            passed.append(index)
    return passed


def first_look_out(ops: Sequence[Op], birth: Birth, bad_probes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first named look-out that saw a bad value which goes back to this birth."""
    for name, writers in bad_probes.items():
        if birth.op in ancestry(ops, writers):
            return name
    return None


def turned_negative(ops: Sequence[Op], end: int) -> int:
    """From an operation whose result is negative back to the one that made it so, of terms of both signs."""
    while True:
        op = ops[end]
        negative = [index for index in op.reads if ops[index].span.high < 0]
        is_sum_of_such = op.base.rstrip("_") in JOINING and len(negative) == len(op.reads)
        if not negative or not (len(negative) == 1 or is_sum_of_such):
            return end
        end = negative[0]
