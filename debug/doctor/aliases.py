"""Parameters and buffers that are one tensor under two names, or lie in the same memory: `conv_1 = conv`.

A write to one of them changes the other without any message. In a real case, a fill of `conv_1` with ones made the
values of `conv` grow tenfold from layer to layer.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from debug.doctor.finding import OK, WRONG, Finding
from ops.text import counted

# Pairs of names, of tensors or of modules, that may share memory: Mars's network has none.
DECLARED: Sequence[tuple[str, str]] = ()
_SHOWN = 5  # pairs


class Alias(NamedTuple):
    """Two names that share memory."""

    first: str
    second: str
    is_same: bool  # the same tensor; else they only overlap in memory

    def __str__(self) -> str:
        how = "are the same tensor" if self.is_same else "overlap in memory"
        return f"{self.first} and {self.second} {how}"


def examine_aliases(*modules: nn.Module) -> Iterator[Finding]:
    """Each module is checked by itself."""
    for module in modules:
        if aliases := merge_to_modules(module, find_aliases(module)):
            more = f" and {len(aliases) - _SHOWN} more pairs" if len(aliases) > _SHOWN else ""
            text = f"{'; '.join(map(str, aliases[:_SHOWN]))}{more}: a write to one of them changes the other; make "
            yield Finding(WRONG, "aliases", f"{text}copies of them, or declare them (DECLARED in {__name__})")
            return
    count = sum(len(module.state_dict()) for module in modules)
    yield Finding(OK, "aliases", f"each of {counted(count, 'tensor')} has its own memory")


def find_aliases(module: nn.Module) -> list[Alias]:
    """Every pair of names in `module` that share memory, in the order of the names; none: an empty list.

    A module that has two names gives a pair for each of its tensors. Pairs in `DECLARED`, and tensors in declared
    modules, are left out. Tensors without elements, or on the meta device, share none.
    """
    by_storage: dict[tuple[str, int], list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in _named_tensors(module):
        if tensor.numel() and not tensor.is_meta:
            by_storage[str(tensor.device), tensor.untyped_storage().data_ptr()].append((name, tensor))
    declared = {frozenset(pair) for pair in DECLARED}

    def is_declared(first: str, second: str) -> bool:
        """Is it a declared pair, or do the names end alike below the modules of one?"""
        while frozenset((first, second)) not in declared:
            (first, _, name), (second, _, second_name) = first.rpartition("."), second.rpartition(".")
            if not (first and second) or name != second_name:
                return False
        return True

    found = []
    for entries in by_storage.values():
        for (first, a), (second, b) in combinations(entries, 2):
            is_same = _layout(a) == _layout(b)
            if (is_same or _overlap(a, b)) and not is_declared(first, second):
                found.append(Alias(first, second, is_same))
    return found


def merge_to_modules(module: nn.Module, aliases: Sequence[Alias]) -> list[Alias]:
    """Replace pairs of tensors by a pair of modules where two modules share all of their tensors: fewer lines."""
    names = [name for name, _ in _named_tensors(module)]
    shared = {(alias.first, alias.second) for alias in aliases}

    def share_all(first: str, second: str) -> bool:
        of_first, of_second = (
            [name.removeprefix(path) for name in names if name.startswith(f"{path}.")] for path in (first, second)
        )
        return of_first == of_second and all((first + rest, second + rest) in shared for rest in of_first)

    merged: dict[tuple[str, str], Alias] = {}
    for alias in aliases:
        first, second = alias.first, alias.second
        while True:
            parents = first.rpartition(".")[0], second.rpartition(".")[0]
            if not all(parents) or not share_all(*parents):
                break
            first, second = parents
        is_same = alias.is_same and merged.get((first, second), alias).is_same
        merged[first, second] = Alias(first, second, is_same)
    return list(merged.values())


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers under each of their names."""
    return chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))


def _layout(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Do two tensors of one storage share a byte? Interleaved ones, such as columns of one matrix, share none."""
    starts, ends = zip(_byte_range(a), _byte_range(b), strict=True)
    return max(starts) < min(ends) and bool((_byte_mask(a) & _byte_mask(b)).any())


def _byte_range(tensor: Tensor) -> tuple[int, int]:
    """The tensor's first byte in its storage, and the first byte after it."""
    last = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    start, size = int(tensor.storage_offset()), tensor.element_size()
    return start * size, (start + int(last) + 1) * size


def _byte_mask(tensor: Tensor) -> Tensor:
    """True for every byte of the storage that belongs to the tensor."""
    size, num_bytes = tensor.element_size(), tensor.untyped_storage().nbytes()
    elements = torch.zeros(num_bytes // size, dtype=torch.bool)
    elements.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
    return elements.repeat_interleave(size)[:num_bytes]
