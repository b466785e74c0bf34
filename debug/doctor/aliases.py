"""Parameters and buffers that are one tensor under two names, or lie in the same memory: `conv_1 = conv`.

What is written under one name changes the other in silence: a fill of `conv_1` with ones made the values of `conv` grow
tenfold from layer to layer.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

Declared = Sequence[tuple[str, str]]


class Alias(NamedTuple):
    """Two names and what they have in common."""

    first: str
    second: str
    is_same: bool  # the very tensor; else they only overlap in memory

    def __str__(self) -> str:
        how = "are one and the same" if self.is_same else "overlap in memory"
        return f"{self.first} and {self.second} {how}"


def find_aliases(module: nn.Module, declared: Declared = ()) -> list[Alias]:
    """Every pair of names in `module` that share memory, in the order of the names; none: an empty list.

    A module that stands under two names gives a pair for each of its tensors. `declared`: pairs of names, of tensors or
    of modules, that are meant to share. Tensors without elements, or without memory (on the meta device), share none.
    """
    by_storage: dict[tuple[str, int], list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in _named_tensors(module):
        if tensor.numel() and not tensor.is_meta:
            by_storage[str(tensor.device), tensor.untyped_storage().data_ptr()].append((name, tensor))
    found = []
    for entries in by_storage.values():
        for (first, one), (second, other) in combinations(entries, 2):
            is_same = _place(one) == _place(other)
            if (is_same or _overlap(one, other)) and not _is_declared(first, second, declared):
                found.append(Alias(first, second, is_same))
    return found


def grouped(module: nn.Module, aliases: Sequence[Alias]) -> list[Alias]:
    """Pairs of tensors put together to pairs of modules, where two share everything that they hold: fewer lines."""
    names, shared = [name for name, _ in _named_tensors(module)], {(one.first, one.second) for one in aliases}

    def share_all(first: str, second: str) -> bool:
        mine, theirs = ([name[len(one) :] for name in names if name.startswith(f"{one}.")] for one in (first, second))
        return mine == theirs and all((first + rest, second + rest) in shared for rest in mine)

    merged: dict[tuple[str, str], Alias] = {}
    for alias in aliases:
        first, second = alias.first, alias.second
        while _above(first) and _above(second) and share_all(_above(first), _above(second)):
            first, second = _above(first), _above(second)
        is_same = alias.is_same and merged.get((first, second), alias).is_same
        merged[first, second] = Alias(first, second, is_same)
    return list(merged.values())


def _above(name: str) -> str:
    return name.rpartition(".")[0]


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers under every name that they have."""
    return chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Do two tensors of one storage have a byte in common? Interleaved ones, columns of one matrix, have none."""
    if not _span(one) & _span(other):
        return False
    marks = [_bytes_of(tensor) for tensor in (one, other)]
    return bool((marks[0] & marks[1]).any())


class _Interval(NamedTuple):
    start: int
    end: int

    def __and__(self, other: "_Interval") -> bool:
        return self.start < other.end and other.start < self.end


def _span(tensor: Tensor) -> _Interval:
    """First byte in its storage, and the first behind it."""
    last = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    size = tensor.element_size()
    start = int(tensor.storage_offset()) * size
    return _Interval(start, start + (int(last) + 1) * size)


def _bytes_of(tensor: Tensor) -> Tensor:
    """A mark on every byte of the storage that the tensor reads."""
    size = tensor.element_size()
    marks = torch.zeros(tensor.untyped_storage().nbytes() // size, dtype=torch.bool)
    marks.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
    return marks.repeat_interleave(size)[: tensor.untyped_storage().nbytes()]


def _is_declared(first: str, second: str, declared: Declared) -> bool:
    """Is the pair named, in either order, or does it lie at the same place in two modules that are?"""
    for one, other in (pair for a, b in declared for pair in ((a, b), (b, a))):
        rests = first.removeprefix(one), second.removeprefix(other)
        is_below = first.startswith((f"{one}.", one)) and second.startswith((f"{other}.", other))
        if is_below and rests[0] == rests[1] and rests[0][:1] in ("", "."):
            return True
    return False
