"""Where decoded images come from: their files, this machine's memory, or one large file of pixels.

A kept image is the very array that reading its file gives, so batches are the same bits either way. The memory is
anonymous and shared: worker processes that are forked see one copy, nothing has a name in /dev/shm, and it is gone when
the last process ends, however it ends.
"""

import json
import mmap
import operator
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from config.errors import UserError, reading
from dl.annotations import Annotation
from dl.faults import DataFault
from dl.images import read_image
from ops.device import usable_cores
from ops.files import atomic_writer

_MAGIC = b"MARSPIX1"
_EMPTY, _SOUND, _DAMAGED = 0, 1, 2  # state of an image, one byte that all processes share

# Path, width, height, pixel_max: the same file can be handed out turned or not, and scaled by another range.
Key = tuple[str, int, int, int | None]


@runtime_checkable
class Images(Protocol):
    """Something that hands out the image of an annotation, RGB, not to be written to. Raises `DataFault`."""

    def read(self, annotation: Annotation) -> UInt8[np.ndarray, "H W 3"]: ...


class FileImages:
    """Every image from its file, every time."""

    def read(self, annotation: Annotation) -> UInt8[np.ndarray, "H W 3"]:
        size = annotation.width, annotation.height
        return read_image(annotation.image_path, size, annotation.pixel_max)


class RamImages:
    """Images kept once they have been read, by whichever process read them; those beyond `limit` bytes are not.

    Raises `OSError` when the system does not grant the memory.
    """

    _alive: ClassVar["weakref.WeakSet[RamImages]"] = weakref.WeakSet()

    def __init__(self, annotations: Iterable[Annotation], limit: int | None = None) -> None:
        self._slots = dict(_slots(annotations, limit))
        self.num_bytes = sum(num_bytes_of(key) for key in self._slots)
        self._pixels = mmap.mmap(-1, max(1, self.num_bytes))
        self._states = mmap.mmap(-1, max(1, len(self._slots)))
        self._alive.add(self)

    def __len__(self) -> int:
        return len(self._slots)

    @classmethod
    def promised(cls) -> int:
        """Bytes that images yet to be read will take."""
        return sum(cache._unread() for cache in cls._alive)

    def read(self, annotation: Annotation) -> UInt8[np.ndarray, "H W 3"]:
        slot = self._slots.get(key_of(annotation))
        if slot is None:
            return FileImages().read(annotation)
        number, offset = slot
        kept = _view(self._pixels, offset, annotation)
        if self._states[number] == _EMPTY:  # two processes may do this at once: they write the same bytes
            kept[...] = FileImages().read(annotation)
            self._states[number] = _SOUND
        kept.flags.writeable = False
        return kept

    def _unread(self) -> int:
        return sum(num_bytes_of(key) for key, (number, _) in self._slots.items() if self._states[number] == _EMPTY)


class DiskImages:
    """Images from a file of pixels. One that turns out damaged is read from its own file, and the next run remakes it.

    The file holds the images one after the other, an index in JSON, the length of the index, and a magic word; it is
    written whole or not at all.
    """

    def __init__(self, file: Path, index: Sequence[Sequence[Any]]) -> None:
        self._file = file
        keys = [(path, width, height, pixel_max) for path, width, height, pixel_max, *_ in index]
        self._slots = dict(_numbered(keys))
        self._checksums = [entry[-1] for entry in index]
        with open(file, "rb") as pixels:
            self._pixels = mmap.mmap(pixels.fileno(), 0, access=mmap.ACCESS_READ)
        self._states = mmap.mmap(-1, max(1, len(keys)))

    def __len__(self) -> int:
        return len(self._slots)

    @classmethod
    def open(cls, file: Path, annotations: Iterable[Annotation]) -> "DiskImages | None":
        """The file, when it is whole and holds exactly these images as they are on disk now; else None."""
        index = _read_index(file)
        if index is None or [entry[:-1] for entry in index] != [_described(key) for key, _ in _slots(annotations)]:
            return None
        return cls(file, index)

    @classmethod
    def create(cls, file: Path, annotations: Sequence[Annotation]) -> "DiskImages":
        """Decode all images into the file. Raises `UserError`, e.g. when the disk is full; then there is no file."""
        index = []
        with atomic_writer(file) as pixels:
            for key, image in _decoded({key_of(one): one for one in annotations}):
                raw = bytes(num_bytes_of(key)) if image is None else image.tobytes()
                index.append([*_described(key), None if image is None else zlib.crc32(raw)])
                pixels.write(raw)
            _write_index(pixels, index)
        return cls(file, index)

    def read(self, annotation: Annotation) -> UInt8[np.ndarray, "H W 3"]:
        slot = self._slots.get(key_of(annotation))
        if slot is None or not self._is_sound(*slot, num_bytes_of(key_of(annotation))):
            return FileImages().read(annotation)
        return _view(self._pixels, slot[1], annotation)

    def _is_sound(self, number: int, offset: int, length: int) -> bool:
        """Checked once an image, by whichever process needs it first."""
        checksum = self._checksums[number]
        if checksum is None:  # could not be read when the file was made
            return False
        if self._states[number] == _EMPTY:
            is_sound = zlib.crc32(memoryview(self._pixels)[offset : offset + length]) == checksum
            self._states[number] = _SOUND if is_sound else _DAMAGED
            if not is_sound:
                with suppress(OSError):  # of another user, then; what is open stays open
                    self._file.unlink(missing_ok=True)
        return self._states[number] == _SOUND


def key_of(annotation: Annotation) -> Key:
    """What an image is kept under."""
    return str(annotation.image_path), annotation.width, annotation.height, annotation.pixel_max


def num_bytes_of(key: Key) -> int:
    """Of the decoded image."""
    return key[1] * key[2] * 3


def _numbered(keys: Iterable[Key], limit: int | None = None) -> Iterator[tuple[Key, tuple[int, int]]]:
    """(key, (number, offset)) of images that lie one after the other in `limit` bytes."""
    offset = 0
    for number, key in enumerate(keys):
        if limit is not None and offset + num_bytes_of(key) > limit:
            return
        yield key, (number, offset)
        offset += num_bytes_of(key)


def _slots(annotations: Iterable[Annotation], limit: int | None = None) -> Iterator[tuple[Key, tuple[int, int]]]:
    return _numbered(dict.fromkeys(map(key_of, annotations)), limit)


def _view(pixels: mmap.mmap, offset: int, annotation: Annotation) -> np.ndarray:
    shape = annotation.height, annotation.width, 3
    return np.frombuffer(pixels, np.uint8, shape[0] * shape[1] * 3, offset).reshape(shape)


def _described(key: Key) -> list[Any]:
    """Key, size in bytes and time of change: what must be equal for kept pixels to be those of the file."""
    try:
        status = Path(key[0]).stat()
    except OSError:  # reading the image will say so
        return [*key, -1, -1]
    return [*key, status.st_size, status.st_mtime_ns]


def _decoded(images: dict[Key, Annotation]) -> Iterator[tuple[Key, np.ndarray | None]]:
    """Keys with their images, None for what cannot be read; a few at a time, for all may not fit in memory."""
    waiting, num_threads = iter(images.items()), min(8, usable_cores())
    with ThreadPoolExecutor(num_threads) as pool:  # decoders release the interpreter lock
        while some := dict(islice(waiting, 4 * num_threads)):
            yield from zip(some, pool.map(_image_or_none, some.values()), strict=True)


def _image_or_none(annotation: Annotation) -> np.ndarray | None:
    try:
        return FileImages().read(annotation)
    except DataFault:
        return None


def _write_index(pixels: BinaryIO, index: Sequence[Sequence[Any]]) -> None:
    text = json.dumps(index).encode("utf-8")
    pixels.write(text + len(text).to_bytes(8, "little") + _MAGIC)


def _read_index(file: Path) -> list[list[Any]] | None:
    """The index of a whole file; None when there is no file, or a part of one, or something else."""
    try:
        with open(file, "rb") as pixels:
            size = pixels.seek(0, 2)
            pixels.seek(max(0, size - 16))
            tail = pixels.read()
            length = int.from_bytes(tail[:8], "little")
            if tail[8:] != _MAGIC or length + 16 > size:
                return None
            pixels.seek(size - 16 - length)
            with reading(file, "an index of pixels"):
                index = json.loads(pixels.read(length))
                num_pixels = sum(operator.index(width) * operator.index(height) for _, width, height, *_ in index)
    except (OSError, UserError):
        return None
    is_complete = all(len(entry) == 7 for entry in index) and num_pixels * 3 + length + 16 == size
    return index if is_complete else None
