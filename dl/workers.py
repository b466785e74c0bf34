"""Loader processes that make batches, and how an epoch continues when one of them dies.

Each process has its own pipe and its own shared memory, and there are no shared locks. So the death of a process is
noticed at once, as the end of its pipe. It cannot block the other processes, and it is never raised in the middle of a
training step (as it is with torch's DataLoader). The memory has no name, so a small /dev/shm is no limit.
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

CAN_FORK = sys.platform.startswith("linux")  # a forked process shares the images that are cached in memory
MAX_DEATHS = 3  # in one epoch

_AHEAD = 2  # batches that a process makes in advance
_MIN_SHARED_BYTES = 4096  # smaller arrays are sent through the pipe; boxes and labels are smaller


@runtime_checkable
class Source(Protocol):
    """Makes an item from a list of keys only. Items are pickled; `pin_memory` is called on them if requested."""

    def __getitems__(self, keys: list) -> Any: ...


@runtime_checkable
class KeyLists(Protocol):
    """The keys of all items of an epoch; the same in each iteration until the epoch changes."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list]: ...


class Workers:
    """Returns the item of each list of keys in `batches`, in that order.

    If a process dies, a new one makes the items that were not returned yet; no item is lost, repeated or changed.
    Without processes (0), this process makes the items. `item_bytes`: size of the arrays of an item, for the shared
    memory; arrays that do not fit are sent through the slower pipe.
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
        self._iteration = 0  # number of the iteration that the processes work for

    def items(self, first: int = 0) -> Iterator[Any]:
        """One epoch, starting with item number `first`. Raises `UserError` if processes died three times in it."""
        keys = list(self.batches)
        if not self.num_workers:
            for item_keys in keys[first:]:
                item = self.source.__getitems__(item_keys)
                yield item.pin_memory() if self.pin_memory else item
            return
        self._deaths = 0
        self._iteration += 1
        for _ in range(self.num_workers - len(self._workers)):
            self._workers.append(self._new_worker())
        for place, worker in enumerate(self._workers):
            while worker.pending:  # discard the items that an unfinished epoch had requested
                self._receive(place)
        iteration, ahead = self._iteration, _AHEAD * self.num_workers
        for number in range(first, min(first + ahead, len(keys))):
            self._worker_of(number).request(number, keys[number])
        for number in range(first, len(keys)):
            if iteration != self._iteration:
                raise RuntimeError("the loader was closed, or started again, in the middle of this epoch")
            item = self._receive(number)
            if number + ahead < len(keys):
                self._worker_of(number).request(number + ahead, keys[number + ahead])
            yield item

    def close(self) -> None:
        """End the processes at once; a later iteration starts new ones."""
        for worker in self._workers:
            worker.end()
        self._workers = []
        self._iteration += 1

    def _receive(self, number: int) -> Any:
        while True:
            worker = self._worker_of(number)
            try:
                spans, payload = worker.connection.recv()
            except (EOFError, OSError):
                self._replace(worker)
                continue
            worker.pending.popleft()
            item = worker.unpack(spans, payload, self.pin_memory)
            if isinstance(item, _Failure):
                self.close()
                raise RuntimeError(f"a loader process failed:\n{item.text}")
            return item

    def _worker_of(self, number: int) -> "_Worker":
        return self._workers[number % self.num_workers]

    def _new_worker(self) -> "_Worker":
        return _Worker(self.source, self.item_bytes, [worker.connection for worker in self._workers])

    def _replace(self, worker: "_Worker") -> None:
        """Start a new process with the same requests, and log it. Raises `UserError` if this happened too often."""
        reason = worker.end()
        self._deaths += 1
        if self._deaths >= MAX_DEATHS:
            self.close()
            raise UserError(
                f"loader processes died {self._deaths} times in one epoch, the last one {reason}; "
                "--set dcore=0 loads without them, --set cacheImages=none needs less memory"
            )
        log.warning(
            "loader process %s %s; a new process continues at batch %d of %d, and no batch is lost (--set dcore=N with "
            "fewer processes, or --set cacheImages=none, needs less memory)",
            worker.process.pid, reason, worker.pending[0].number + 1 if worker.pending else 1, len(self.batches),
        )  # fmt: skip
        place = self._workers.index(worker)
        self._workers[place] = self._new_worker()
        for request in worker.pending:
            self._workers[place].request(*request)


class _Request(NamedTuple):
    number: int
    keys: list


class _Failure(NamedTuple):
    """What a process sends instead of an item if its source raised an exception."""

    text: str  # the traceback


class _Worker:
    """One process as seen by its parent, with the pending requests."""

    def __init__(self, source: Source, item_bytes: int, other_connections: Sequence[Connection]) -> None:
        context = multiprocessing.get_context("fork" if CAN_FORK else None)
        self.connection, worker_end = context.Pipe()
        self.pending: deque[_Request] = deque()
        self._item_bytes = item_bytes
        self._num_requests = 0
        self._memory = mmap.mmap(-1, _AHEAD * item_bytes) if CAN_FORK and item_bytes else None
        # A forked process inherits its parent's ends of the pipes. It must close them: otherwise the pipes would stay
        # open when the parent dies.
        inherited = [self.connection, *other_connections] if CAN_FORK else []
        arguments = (source, worker_end, self._memory, item_bytes, inherited)
        self.process = context.Process(target=_worker_main, args=arguments, daemon=True)
        self.process.start()
        worker_end.close()

    def request(self, number: int, keys: list) -> None:
        """Request an item. At most two may be pending: an item stays in shared memory until it is received."""
        self.pending.append(_Request(number, keys))
        place = self._num_requests % _AHEAD
        self._num_requests += 1
        with contextlib.suppress(OSError):  # the process is dead; `_receive` will notice the end of the pipe
            self.connection.send((place * self._item_bytes, keys))

    def unpack(self, spans: list[tuple[int, int]], payload: bytes, pin_memory: bool) -> Any:
        """The item. Its arrays are copied once from shared memory to page-locked or normal memory."""
        shared = [memoryview(self._memory)[start:stop] for start, stop in spans] if self._memory is not None else []
        if pin_memory:
            item = pickle.loads(payload, buffers=shared)
            return item if isinstance(item, _Failure) else item.pin_memory()
        return pickle.loads(payload, buffers=[bytearray(view) for view in shared])

    def end(self) -> str:
        """Kill the process if it still runs. Returns how it ended, for a message."""
        self.process.kill()  # has no effect on a process that is already ending
        self.process.join()
        self.connection.close()
        exit_code = self.process.exitcode or 0
        if -exit_code not in set(signal.Signals):
            return f"ended with status {exit_code}"
        number = signal.Signals(-exit_code)
        cause = ", usually because the system is out of memory" if number == signal.SIGKILL else ""
        return f"was killed by {number.name}{cause}"


def _worker_main(
    source: Source, connection: Connection, memory: mmap.mmap | None, item_bytes: int, inherited: Sequence[Connection]
) -> None:
    """The loop of a process until its pipe ends: receive keys, make the item, send it."""
    for parent_end in inherited:
        parent_end.close()
    # Ctrl-C and a closed terminal signal all processes; only the trainer reacts.
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the trainer's handler
    cv2.setNumThreads(0)  # processes replace threads here, and OpenCV's threads do not survive a fork
    torch.set_num_threads(1)
    while True:
        try:
            start, keys = connection.recv()
            try:
                item = source.__getitems__(keys)
            except Exception:
                item = _Failure(traceback.format_exc())
            connection.send(_pack(item, memory, start, start + item_bytes))
        except (EOFError, OSError):
            return


def _pack(item: Any, memory: mmap.mmap | None, start: int, stop: int) -> tuple[list[tuple[int, int]], bytes]:
    """Write the large arrays of an item to `memory`. Returns their positions, and the rest as a pickle."""
    spans: list[tuple[int, int]] = []

    def keep_in_pickle(buffer: pickle.PickleBuffer) -> bool:
        raw, begin = buffer.raw(), spans[-1][1] if spans else start
        if memory is None or raw.nbytes < _MIN_SHARED_BYTES or begin + raw.nbytes > stop:
            return True
        memory[begin : begin + raw.nbytes] = raw
        spans.append((begin, begin + raw.nbytes))
        return False

    target = io.BytesIO()
    _TensorPickler(target, protocol=5, buffer_callback=keep_in_pickle).dump(item)
    return spans, target.getvalue()


class _TensorPickler(pickle.Pickler):
    """Pickles tensors as arrays: torch's own method would copy their data into the pickle."""

    def reducer_override(self, obj: Any) -> Any:
        return (torch.from_numpy, (obj.numpy(),)) if isinstance(obj, torch.Tensor) else NotImplemented


def num_workers(dcore: int | None) -> int:
    """The number of loader processes: `dcore`; None: one per core except the trainer's core, at most 8."""
    return max(0, min(8, usable_cores() - 1)) if dcore is None else dcore
