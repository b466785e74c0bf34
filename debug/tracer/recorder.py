"""Records every operation of one step in order, forward and backward: what it read, what it wrote, where it was called.

A dispatch mode of torch sees the operations below autograd and autocast, that is, what really runs. Bad values (NaN or
infinite) are followed by the memory that holds them, so that views and in-place operations keep their history. In the
backward pass, autograd's node leads to its forward operation by the sequence number that torch gives to both.
"""

import math
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from config.load import CODE_DIR
from debug.tracer.operations import (
    ALLOCATING,
    CONSTANT,
    OVERWRITING,
    UNINITIALISED,
    Argument,
    CodeLine,
    CodeLocation,
    Operation,
    TensorStats,
    ValueRange,
    arguments_of,
    flat,
    is_watched,
    numbers_of,
    replace_nonfinite,
    rows_with,
    tensor_stats,
)
from ops import probe

_TRACER_DIR = str(Path(__file__).resolve().parent)
_STEP_FILE = str(Path(_TRACER_DIR, "rerun.py"))  # runs the step; lines outside of it led to the trace, not to a value
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_PROBE_FILE = str(Path(probe.__file__).resolve())
_MOST_LINES = 3  # that are kept of the callers of an operation


class ModuleStack:
    """Tells which module is computing, by its path, without changing any module."""

    def __init__(self, roots: Mapping[str, nn.Module]):
        """`roots`: a prefix of paths -> the modules below it; the prefix of the network itself is empty."""
        self.names: dict[int, str] = {}
        for prefix, root in roots.items():
            for path, module in root.named_modules():
                self.names.setdefault(id(module), ".".join(filter(None, (prefix, path))) or type(root).__name__)
        self.stack: list[str] = []
        self.on_leave: Callable[[str, nn.Module, Any, Any], None] | None = None  # path, module, inputs, output

    @property
    def current(self) -> str:
        """The innermost module's path, or "" outside of all modules."""
        return self.stack[-1] if self.stack else ""

    @contextmanager
    def following(self) -> Iterator[None]:
        """Within the block, follow every module call, from before its hooks until after them.

        It replaces `nn.Module.__call__`, as torch.fx does; torch's global hooks run before a module's own hooks end.
        """
        call = nn.Module.__call__

        def followed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            unknown = f"{self.current}.{type(module).__name__}".lstrip(".")
            self.stack.append(self.names.get(id(module), unknown))
            try:
                output = call(module, *args, **kwargs)
                if self.on_leave is not None:
                    self.on_leave(self.current, module, (args, kwargs), output)
                return output
            finally:
                self.stack.pop()

        self.stack.clear()
        with patch.object(nn.Module, "__call__", followed):
            yield


class Recorder(TorchDispatchMode):
    """Records within the block of `recording`. `zeroed`: operations whose bad results are replaced by zeros."""

    def __init__(self, modules: ModuleStack, batch_size: int, zeroed: frozenset[int] = frozenset()):
        super().__init__()
        self.modules, self.batch_size, self.zeroed = modules, batch_size, zeroed
        self.ops: list[Operation] = []
        self.probes: dict[str, TensorStats] = {}
        self.bad_probes: dict[str, tuple[int, ...]] = {}  # name -> the operations that its bad values come from
        self.is_backward = False
        self._weight_shapes: set[tuple[int, ...]] = set()  # their first dimension is not the batch
        self._images_of: dict[int, Tensor] = {}  # length of a list -> the image of each row
        self._leaves: dict[int, str] = {}
        self._writers: dict[int, list[int]] = {}
        self._uninitialised: set[int] = set()
        self._storages: dict[int, StorageWeakRef] = {}  # while it is referenced, its address is not reused
        self._forward_locations: dict[int, CodeLocation] = {}  # by autograd's sequence number
        self._next_node = 0
        self._is_paused = False

    def name_leaf(self, name: str, value: Tensor, is_weight: bool = False) -> None:
        """Name a tensor that exists before the first operation."""
        self._leaves.setdefault(self._key(value), name)
        if is_weight:
            self._weight_shapes.add(tuple(value.shape))

    @contextmanager
    def recording(self) -> Iterator["Recorder"]:
        """Within the block, every operation, module call and probe is recorded."""

        def record_probe(name: str, value: Tensor) -> None:
            if name.endswith(".images"):
                self._images_of[len(value)] = value
                return
            with self.paused():
                stats = tensor_stats(name, value)
                self.probes.setdefault(name, stats)
                if stats.num_bad:
                    self.bad_probes.setdefault(name, self.bad_writers(value))

        self._next_node = _next_node()
        with self.modules.following(), probe.listening(record_probe), self:
            yield self

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block, nothing is recorded: the tracer itself computes."""
        before, self._is_paused = self._is_paused, True
        try:
            with torch.no_grad():
                yield
        finally:
            self._is_paused = before

    def bad_writers(self, value: Tensor) -> tuple[int, ...]:
        """The operations that wrote bad values into the memory of `value`."""
        return tuple(index for index in self._writers.get(self._key(value), ()) if self.ops[index].is_bad)

    def leaf_of(self, value: Tensor) -> str:
        """The name of memory that no operation wrote."""
        key = self._key(value)
        return UNINITIALISED if key in self._uninitialised else self._leaves.get(key, CONSTANT)

    def has_written(self, op: Operation, leaf: str) -> bool:
        """Did this operation write into the memory of that leaf?"""
        return any(self._leaves.get(key) == leaf for key in op.storages)

    def last_writer(self, value: Tensor) -> int | None:
        """The last operation that wrote the memory of `value`; None when none did."""
        writers = self._writers.get(self._key(value))
        return writers[-1] if writers else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_paused or not isinstance(func, torch._ops.OpOverload):  # an operator made of Python functions
            return func(*args, **kwargs)
        location, node = self._locate(sys._getframe(1))
        if func.is_view:
            return func(*args, **kwargs)
        arguments = arguments_of(func, args, kwargs)
        with self.paused():
            for argument in arguments:
                if argument.is_written and argument.is_read:
                    argument.before = self._stats(argument)
        result = func(*args, **kwargs)
        with self.paused():
            op = Operation(len(self.ops), str(func), location, node, numbers=numbers_of(func, args, kwargs))
            self._record(op, arguments, result)
        return result

    def _locate(self, frame: FrameType | None) -> tuple[CodeLocation, str | None]:
        """The location of a forward operation is the running code; a backward one gets that of its forward operation.

        The lines are the product's and the user's, from `frame` out to where the step began; none in autograd's
        built-in nodes. The second result is the name of the autograd node, None in the forward pass.
        """
        lines: list[CodeLine] = []
        while frame is not None and frame.f_code.co_filename != _STEP_FILE and len(lines) < _MOST_LINES:
            if file := _shown_file(frame.f_code.co_filename):
                lines.append(CodeLine(file, frame.f_lineno, frame.f_code.co_name))
            frame = frame.f_back
        location = CodeLocation(self.modules.current, tuple(lines))
        reached = _next_node()
        for number in range(self._next_node, reached):  # nodes are made just before their operation runs
            self._forward_locations[number] = location
        self._next_node = reached
        if not self.is_backward:
            return location, None
        node = torch._C._current_autograd_node()
        if node is None:
            return location, "backward"
        forward = self._forward_locations.get(node._sequence_nr(), CodeLocation("", ()))
        return CodeLocation(location.module or forward.module, location.lines or forward.lines), node.name()

    def _record(self, op: Operation, arguments: list[Argument], result: Any) -> None:
        written = [value for value in flat(result) if is_watched(value)]
        known = {id(value) for value in written}
        written += [part.value for part in arguments if part.is_written and id(part.value) not in known]
        op.storages = tuple(self._key(value) for value in written)
        read = [argument for argument in arguments if argument.is_read]
        if op.base in ALLOCATING:
            self._uninitialised.update(op.storages)
            return
        is_in_place = any(argument.is_written for argument in arguments)
        is_view = not is_in_place and {self._key(argument.value) for argument in read} & {*op.storages}
        if not written or is_view:
            return
        if op.index in self.zeroed:
            for value in written:
                replace_nonfinite(value)
        op.range = ValueRange.joined([ValueRange.of(value) for value in written])
        self._link(op, read)
        op.has_bad_number = any(isinstance(x, float) and not math.isfinite(x) for x in op.numbers.values())
        if op.is_bad:
            op.has_written_nan = any(bool(value.isnan().any()) for value in written)
        if op.is_bad and not op.has_read_nan:  # a bad value may begin here
            op.inputs = tuple(argument.before or self._stats(argument) for argument in read)
            op.outputs = tuple(tensor_stats(f"result {number}", value) for number, value in enumerate(written))
            op.rows = self._bad_images(written)
        self.ops.append(op)
        for key, value in zip(op.storages, written, strict=True):
            if op.base in OVERWRITING and value.nbytes == value.untyped_storage().nbytes():
                self._uninitialised.discard(key)
            self._writers.setdefault(key, []).append(op.index)

    def _bad_images(self, written: Sequence[Tensor]) -> tuple[int, ...]:
        """The images whose rows are not finite. Rows are images, or items of a list that a probe gave the images of."""
        images: set[int] = set()
        for value in written:
            if value.dim() == 0 or tuple(value.shape) in self._weight_shapes:
                continue
            rows = rows_with(~value.detach().isfinite())
            if len(value) == self.batch_size:
                images.update(rows)
            elif len(value) in self._images_of:
                images.update(self._images_of[len(value)][rows].tolist())
        return tuple(sorted(images))

    def _link(self, op: Operation, read: list[Argument]) -> None:
        """Note which operations and leaves the arguments come from, and which of them are bad."""
        reads, bad_reads, leaves = [], [], []
        for argument in read:
            key = self._key(argument.value)
            writers = self._writers.get(key, [])
            reads += writers[-1:]
            bad_writers = [index for index in writers if self.ops[index].is_bad]
            is_leaf = not writers or key in self._uninitialised or key in self._leaves
            if not (bad_writers or is_leaf):
                continue  # all that was ever written there is finite
            before = argument.before
            if not (ValueRange.of(argument.value) if before is None else before.range).is_bad:
                continue
            bad_reads += bad_writers
            has_nan = bool(argument.value.isnan().any()) if before is None else before.num_nan > 0
            op.has_read_nan = op.has_read_nan or has_nan
            if not bad_writers:
                leaves.append(self.leaf_of(argument.value))
        op.reads, op.bad_reads = tuple(dict.fromkeys(reads)), tuple(dict.fromkeys(bad_reads))
        op.bad_leaves = tuple(dict.fromkeys(leaves))

    def _stats(self, argument: Argument) -> TensorStats:
        return tensor_stats(argument.role, argument.value, self._leaves.get(self._key(argument.value)))

    def _key(self, value: Tensor) -> int:
        """Identifies the memory of a tensor: views of it have the same key."""
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = StorageWeakRef(storage)
        return key


@lru_cache(maxsize=4096)
def _shown_file(file: str) -> str | None:
    """The file as it is printed; None for libraries, generated code, the tracer and the probes themselves."""
    if file.startswith(("<", _TRACER_DIR, *_LIBRARIES)) or "site-packages" in file or file == _PROBE_FILE:
        return None
    path = Path(file)
    return path.relative_to(CODE_DIR).as_posix() if path.is_relative_to(CODE_DIR) else file


def _next_node() -> int:
    """The sequence number that autograd will give its next node in this thread."""
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]
