"""Every operation of one step in order, forward and backward: what it read, what it wrote, and where it was called.

A dispatch mode sees the operations below autograd and autocast: what really runs. Bad values (NaN or infinite) are
followed by the memory they lie in, so that views and in-place operations keep their history. In backward, autograd's
node leads to its forward operation by the sequence number that torch gives both.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from debug.tracer.locations import ModuleStack, Site, frames_from
from debug.tracer.operations import (
    CONSTANT,
    OVERWRITING,
    RAW,
    UNWRITTEN,
    Argument,
    Op,
    arguments_of,
    flat,
    joined,
    numbers_of,
    span_of,
)
from debug.tracer.tensor_stats import Look, bad_rows, is_watched, look, replace_nonfinite, span
from ops.probe import listening


class Recorder(TorchDispatchMode):
    """Records while it is entered by `recording`. `healed`: operations whose bad results are replaced by zeros."""

    def __init__(self, modules: ModuleStack, batch_size: int, healed: frozenset[int] = frozenset()):
        super().__init__()
        self.modules, self.batch_size, self.healed = modules, batch_size, healed
        self.ops: list[Op] = []
        self.probes: dict[str, Look] = {}
        self.bad_probes: dict[str, tuple[int, ...]] = {}  # the bad ones, and which operations their values are from
        self.is_backward = False
        self.no_rows: set[tuple[int, ...]] = set()  # shapes of weights: their first dimension is not the batch
        self._leaves: dict[int, str] = {}
        self._writers: dict[int, list[int]] = {}
        self._raw: set[int] = set()
        self._held: dict[int, StorageWeakRef] = {}  # no address is given twice while it is here
        self._sites: dict[int, Site] = {}  # by autograd's sequence number
        self._next_node = 0
        self._is_paused = False

    def name_leaf(self, name: str, value: Tensor) -> None:
        """Say what a tensor is called that is there before the first operation."""
        self._leaves.setdefault(self._key(value), name)

    def name_module(self, prefix: str, module: nn.Module) -> None:
        """Name all weights and buffers of `module`."""
        for kind in (module.named_parameters(), module.named_buffers()):
            for name, value in kind:
                self.name_leaf(prefix + name, value)
                self.no_rows.add(tuple(value.shape))

    @contextmanager
    def recording(self) -> Iterator["Recorder"]:
        """Within the block, every operation, module call and look-out is recorded."""
        self._next_node = _next_node()
        with self.modules.following(), listening(self._at_probe), self:
            yield self

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block, what the tracer computes itself is not recorded."""
        before, self._is_paused = self._is_paused, True
        try:
            with torch.no_grad():
                yield
        finally:
            self._is_paused = before

    def bad_writers(self, value: Tensor) -> tuple[int, ...]:
        """The operations that put bad values into the memory of `value`."""
        return tuple(index for index in self._writers.get(self._key(value), ()) if self.ops[index].is_bad)

    def leaf_of(self, value: Tensor) -> str:
        """What memory is called that no operation filled."""
        key = self._key(value)
        return UNWRITTEN if key in self._raw else self._leaves.get(key, CONSTANT)

    def is_written_by(self, op: Op, leaf: str) -> bool:
        """Does this operation write into the memory of that leaf?"""
        return any(self._leaves.get(key) == leaf for key in op.writes)

    def last_writer(self, value: Tensor) -> int | None:
        """The last operation that wrote the memory of `value`."""
        writers = self._writers.get(self._key(value))
        return writers[-1] if writers else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_paused or not isinstance(func, torch._ops.OpOverload):  # else an operator made of functions
            return func(*args, **kwargs)
        site, node = self._site(Site(self.modules.current, frames_from(sys._getframe(1))))
        if func.is_view:
            return func(*args, **kwargs)
        base = func.__name__.partition(".")[0]
        arguments = arguments_of(func, base, args, kwargs)
        with self.paused():
            for one in arguments:
                if one.is_written and one.is_read:
                    one.before = look(one.role, one.value, self._leaves.get(self._key(one.value)))
        result = func(*args, **kwargs)
        with self.paused():
            self._note(func, base, site, node, arguments, numbers_of(func, args, kwargs), result)
        return result

    def _site(self, site: Site) -> tuple[Site, str | None]:
        """Where this operation belongs: forward where the code stands, backward where its forward operation stood."""
        reached = _next_node()
        for number in range(self._next_node, reached):  # nodes are made just before their operation runs
            self._sites[number] = site
        self._next_node = reached
        if not self.is_backward:
            return site, None
        node = torch._C._current_autograd_node()
        if node is None:
            return site, "backward"
        forward = self._sites.get(node._sequence_nr(), Site("", ()))
        return Site(site.module or forward.module, site.frames or forward.frames), node.name()

    def _note(self, func: Any, base: str, site: Site, node: str | None, arguments: list[Argument],
              numbers: dict[str, Any], result: Any) -> None:  # fmt: skip
        made = [value for value in flat(result) if is_watched(value)]
        known = {id(value) for value in made}
        made += [one.value for one in arguments if one.is_written and id(one.value) not in known]
        keys = tuple(self._key(value) for value in made)
        read = [one for one in arguments if one.is_read]
        if base in RAW:
            self._raw.update(keys)
            return
        is_view = not any(one.is_written for one in arguments) and {self._key(one.value) for one in read} & {*keys}
        if not made or is_view:
            return
        index = len(self.ops)
        if index in self.healed:
            for value in made:
                replace_nonfinite(value)
        op = Op(index, str(func), site, node, joined([span(value) for value in made]), writes=keys)
        self._trace_back(op, read)
        op.has_bad_number = any(isinstance(x, float) and not math.isfinite(x) for x in numbers.values())
        if op.is_bad:
            op.is_nan_written = any(bool(value.isnan().any()) for value in made)
            if not op.is_nan_read:
                self._keep_picture(op, read, made, numbers)
        self.ops.append(op)
        for key, value in zip(keys, made, strict=True):
            if base in OVERWRITING and value.nbytes == value.untyped_storage().nbytes():
                self._raw.discard(key)
            self._writers.setdefault(key, []).append(index)

    def _trace_back(self, op: Op, read: list[Argument]) -> None:
        reads, bad_reads, leaves = [], [], []
        for one in read:
            key = self._key(one.value)
            writers = self._writers.get(key, [])
            reads += writers[-1:]
            suspects = [index for index in writers if self.ops[index].is_bad]
            is_leaf = not writers or key in self._raw or key in self._leaves
            if not (suspects or is_leaf):
                continue  # all that was ever written there is finite
            now = span(one.value) if one.before is None else span_of(one.before)
            if now.is_bad:
                bad_reads += suspects
                has_nan = bool(one.value.isnan().any()) if one.before is None else one.before.nan > 0
                op.is_nan_read = op.is_nan_read or has_nan
                if not suspects:
                    leaves.append(UNWRITTEN if key in self._raw else self._leaves.get(key, CONSTANT))
        op.reads, op.bad_reads = tuple(dict.fromkeys(reads)), tuple(dict.fromkeys(bad_reads))
        op.bad_leaves = tuple(dict.fromkeys(leaves))

    def _keep_picture(self, op: Op, read: list[Argument], made: list[Tensor], numbers: dict[str, Any]) -> None:
        op.inputs = tuple(
            one.before or look(one.role, one.value, self._leaves.get(self._key(one.value))) for one in read
        )
        op.outputs = tuple(look(f"result {number}", value) for number, value in enumerate(made))
        op.numbers = numbers
        rows: set[int] = set()
        for value in made:
            if tuple(value.shape) not in self.no_rows:
                rows.update(bad_rows(value, self.batch_size))
        op.rows = tuple(sorted(rows))

    def _at_probe(self, name: str, value: Tensor) -> None:
        with self.paused():
            seen = look(name, value)
            self.probes.setdefault(name, seen)
            if seen.bad:
                self.bad_probes.setdefault(name, self.bad_writers(value))

    def _key(self, value: Tensor) -> int:
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self._held:
            self._held[key] = StorageWeakRef(storage)
        return key


def _next_node() -> int:
    """The sequence number that autograd will give its next node in this thread."""
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]
