"""What loader processes bring, epoch after epoch, and how an epoch goes on when one of them dies.

Each process has a line of its own and shared memory of its own, and no lock is shared: so the death of one is seen at
once, as the end of its line, and can neither block the others nor be raised in the middle of a training step, as with
torch's DataLoader. The memory has no name, so a small /dev/shm is no limit and nothing is left there.
"""

import contextlib
import io
import logging
import mmap
import multiprocessing
import pickle
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
import torch

from config.errors import UserError
from ops.device import usable_cores

log = logging.getLogger("mars")

CAN_FORK = sys.platform.startswith("linux")  # a forked process shares the images that are kept in memory
MAX_DEATHS = 3  # in one epoch

_AHEAD = 2  # batches that a process may be ahead of the training
_SHARED_FROM = 4096  # bytes from which an array goes through shared memory; boxes and labels are smaller


@runtime_checkable
class Source(Protocol):
    """Makes an item of a list of keys, and of nothing else. Items are pickled; `pin_memory` is called where asked."""

    def __getitems__(self, keys: list) -> Any: ...


@runtime_checkable
class KeyLists(Protocol):
    """The keys of an epoch's items; the same at each iteration until the epoch changes."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list]: ...


class Workers:
    """Hands out the item of each list of keys in `batches`, in that order.

    When a process dies, another one makes again what was not handed out yet; nothing is lost, doubled or changed. No
    processes (0): this one makes the items. `item_bytes`: what the arrays of an item take, for the memory that is
    shared; those that do not fit take the slower way through the line.
    """

    def __init__(
        self, source: Source, batches: KeyLists, num_workers: int = 0, pin_memory: bool = False, item_bytes: int = 0
    ) -> None:
        self.source = source
        self.batches = batches
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.item_bytes = item_bytes
        self._workers: list[_Worker] = []
        self._deaths = 0
        self._turn = 0  # number of the iteration that the processes work for

    def items(self, first: int = 0) -> Iterator[Any]:
        """One epoch, from item number `first` on. Raises `UserError` when processes died three times in it."""
        keys = list(self.batches)
        if not self.num_workers:
            for some in keys[first:]:
                item = self.source.__getitems__(some)
                yield item.pin_memory() if self.pin_memory else item
            return
        self._begin()
        turn, ahead = self._turn, _AHEAD * self.num_workers
        for number in range(first, min(first + ahead, len(keys))):
            self._worker_of(number).ask(number, keys[number])
        for number in range(first, len(keys)):
            if turn != self._turn:
                raise RuntimeError("the loader was closed, or started again, in the middle of this epoch")
            item = self._take(number)
            if number + ahead < len(keys):
                self._worker_of(number).ask(number + ahead, keys[number + ahead])
            yield item

    def close(self) -> None:
        """End the processes at once; a later iteration starts new ones."""
        for worker in self._workers:
            worker.end()
        self._workers = []
        self._turn += 1

    def _begin(self) -> None:
        """Processes that have nothing left to do: what an epoch that was left early has ordered is thrown away."""
        self._deaths = 0
        self._turn += 1
        for _ in range(self.num_workers - len(self._workers)):
            self._workers.append(self._new_worker())
        for place, worker in enumerate(self._workers):
            while worker.orders:
                self._take(place)

    def _take(self, number: int) -> Any:
        while True:
            worker = self._worker_of(number)
            try:
                spans, payload = worker.line.recv()
            except (EOFError, OSError):
                self._replace(worker)
                continue
            worker.orders.popleft()
            item = worker.unpack(spans, payload, self.pin_memory)
            if isinstance(item, _Failure):
                self.close()
                raise RuntimeError(f"a loader process failed:\n{item.text}")
            return item

    def _worker_of(self, number: int) -> "_Worker":
        return self._workers[number % self.num_workers]

    def _new_worker(self) -> "_Worker":
        return _Worker(self.source, self.item_bytes, [worker.line for worker in self._workers])

    def _replace(self, worker: "_Worker") -> None:
        """Start another one with the same orders; say so, and raise when it happened too often."""
        fate = worker.end()
        self._deaths += 1
        if self._deaths >= MAX_DEATHS:
            self.close()
            raise UserError(
                f"loader processes died {self._deaths} times in one epoch, the last one {fate}; "
                "--set dcore=0 loads without them, --set cacheImages=none takes less memory"
            )
        log.warning(
            "loader process %s %s; another one goes on at its batch %d of %d and nothing is lost (fewer of them, "
            "--set dcore=N, or --set cacheImages=none take less memory)",
            worker.process.pid, fate, worker.orders[0].number + 1 if worker.orders else 1, len(self.batches),
        )  # fmt: skip
        place = self._workers.index(worker)
        self._workers[place] = self._new_worker()
        for order in worker.orders:
            self._workers[place].ask(*order)


class _Order(NamedTuple):
    number: int
    keys: list


class _Failure(NamedTuple):
    """What a process sends instead of an item when its source raised."""

    text: str  # the traceback


class _Worker:
    """One process as its parent sees it, with what it was asked for and has not sent yet."""

    def __init__(self, source: Source, item_bytes: int, other_lines: Sequence[Connection]) -> None:
        context = multiprocessing.get_context("fork" if CAN_FORK else None)
        self.line, its_end = context.Pipe()
        self.orders: deque[_Order] = deque()
        self._item_bytes = item_bytes
        self._asked = 0
        self._memory = mmap.mmap(-1, _AHEAD * item_bytes) if CAN_FORK and item_bytes else None
        # A forked process inherits its parent's ends; as long as it holds them, no line ends when the parent dies.
        inherited = [self.line, *other_lines] if CAN_FORK else []
        arguments = (source, its_end, self._memory, item_bytes, inherited)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        its_end.close()

    def ask(self, number: int, keys: list) -> None:
        """At most two orders may be open: an item stays in shared memory until it is taken."""
        self.orders.append(_Order(number, keys))
        place = self._asked % _AHEAD
        self._asked += 1
        with contextlib.suppress(OSError):  # dead: whoever waits for the answer will see the end of the line
            self.line.send((place * self._item_bytes, keys))

    def unpack(self, spans: list[tuple[int, int]], payload: bytes, pin_memory: bool) -> Any:
        """The item; its arrays are copied out of shared memory once, into page-locked memory or plain."""
        shared = [memoryview(self._memory)[start:stop] for start, stop in spans] if self._memory is not None else []
        if pin_memory:
            item = pickle.loads(payload, buffers=shared)
            return item if isinstance(item, _Failure) else item.pin_memory()
        return pickle.loads(payload, buffers=[bytearray(view) for view in shared])

    def end(self) -> str:
        """Kill the process, unless it has ended by itself; how it ended, in words."""
        self.process.kill()  # changes nothing for one that is on its way out
        self.process.join()
        self.line.close()
        return _fate(self.process.exitcode or 0)


_POSSIBLE_CAUSES = {signal.SIGKILL: ", as systems do when memory runs out"}


def _fate(exit_code: int) -> str:
    if -exit_code not in set(signal.Signals):
        return f"ended with status {exit_code}"
    number = signal.Signals(-exit_code)
    return f"was killed by {number.name}{_POSSIBLE_CAUSES.get(number, '')}"


def _serve(
    source: Source, line: Connection, memory: mmap.mmap | None, item_bytes: int, inherited: Sequence[Connection]
) -> None:
    """What a process does until its line ends: take keys, make the item, send it."""
    for other in inherited:
        other.close()
    # Ctrl-C and a terminal that is closed reach all processes, and the trainer decides.
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not what the trainer does at it
    cv2.setNumThreads(0)  # workers are the parallelism, and OpenCV's threads do not survive a fork
    torch.set_num_threads(1)
    while True:
        try:
            start, keys = line.recv()
            line.send(_pack(_make(source, keys), memory, start, start + item_bytes))
        except (EOFError, OSError):
            return


def _make(source: Source, keys: list) -> Any:
    try:
        return source.__getitems__(keys)
    except Exception:
        return _Failure(traceback.format_exc())


def _pack(item: Any, memory: mmap.mmap | None, start: int, stop: int) -> tuple[list[tuple[int, int]], bytes]:
    """Where its large arrays lie in `memory`, and the rest pickled."""
    spans: list[tuple[int, int]] = []

    def keep_in_pickle(buffer: pickle.PickleBuffer) -> bool:
        raw, begin = buffer.raw(), spans[-1][1] if spans else start
        if memory is None or raw.nbytes < _SHARED_FROM or begin + raw.nbytes > stop:
            return True
        memory[begin : begin + raw.nbytes] = raw
        spans.append((begin, begin + raw.nbytes))
        return False

    target = io.BytesIO()
    _Pickler(target, protocol=5, buffer_callback=keep_in_pickle).dump(item)
    return spans, target.getvalue()


class _Pickler(pickle.Pickler):
    """Tensors as the arrays they are: torch's own way would copy them into the pickle."""

    def reducer_override(self, obj: Any) -> Any:
        return (torch.from_numpy, (obj.numpy(),)) if isinstance(obj, torch.Tensor) else NotImplemented


def num_workers(dcore: int | None) -> int:
    """As many as asked for; None: one for each core but the trainer's, at most 8."""
    return max(0, min(8, usable_cores() - 1)) if dcore is None else dcore
