"""The growth table: the largest absolute value after each block, so that an explosion shows before it is a NaN."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from debug.tracer.operations import Op
from debug.tracer.recorder import Recorder
from debug.tracer.tensor_stats import is_watched, largest_of


@dataclass
class Block:
    """One block of the network as the batch went through it. All maxima are over finite elements, NaN without any."""

    name: str
    kind: str  # its class
    shape: tuple[int, ...]  # of its first output
    dtype: str
    largest: float  # absolute value of what it gave
    ratio: float  # to the largest of what it was given, by the block before; NaN where that is zero
    bad: int  # elements of what it gave
    weights: float  # the largest absolute value among its weights; 0 without any
    gradient: float = math.nan  # the largest absolute value of anything computed backward in it; NaN: nothing was


class GrowthTable:
    """Listens to a `Recorder`'s modules and fills `blocks`, in the order in which they ran."""

    def __init__(self, model: nn.Module, recorder: Recorder):
        self.blocks: list[Block] = []
        self._recorder = recorder
        self._names = set(block_names(model))
        recorder.modules.on_leave = self._leave

    def _leave(self, path: str, module: nn.Module, given: Any, output: Any) -> None:
        if path not in self._names:
            return
        outputs = [value.detach() for value in _tensors(output)]
        if not outputs:
            return
        with self._recorder.paused():
            largest = largest_of(outputs)
            bad = sum(int((~value.isfinite()).sum()) for value in outputs)
            weights = [value.detach() for value in module.parameters()]
            before = largest_of([value.detach() for value in _tensors(given)])
            ratio = largest / before if before else math.nan
            dtype = str(outputs[0].dtype).removeprefix("torch.")
            self.blocks.append(
                Block(
                    path, type(module).__name__, tuple(outputs[0].shape), dtype, largest, ratio, bad,
                    largest_of(weights) if weights else 0.0,
                )
            )  # fmt: skip

    def take_gradients(self, ops: Sequence[Op]) -> None:
        """Fill in the largest value that was computed backward in each block; one that ran twice shows it twice."""
        peaks: dict[str, float] = {}
        for op in ops:
            if op.is_backward and (name := self._block_of(op.site.module)):
                peak = op.span.peak
                peaks[name] = max(peaks.get(name, 0.0), math.inf if math.isnan(peak) else peak)
        for block in self.blocks:
            block.gradient = peaks.get(block.name, math.nan)

    def _block_of(self, path: str) -> str | None:
        while path and path not in self._names:
            path = path.rpartition(".")[0]
        return path or None


def block_names(model: nn.Module) -> Iterator[str]:
    """Paths of the modules two steps below the root, or one where nothing is below; below a list its members."""

    def walk(prefix: str, module: nn.Module, depth: int) -> Iterator[str]:
        for name, child in module.named_children():
            is_list = isinstance(child, (nn.ModuleList, nn.ModuleDict))
            is_leaf = next(child.children(), None) is None
            if not is_list and (depth >= 2 or is_leaf):
                yield f"{prefix}{name}"
            else:
                yield from walk(f"{prefix}{name}.", child, depth + 1)

    yield from walk("", model, 1)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (list, tuple)):
        for one in output:
            yield from _tensors(one)
    elif is_watched(output):
        yield output
