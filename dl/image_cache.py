"""Decoded images from their files, from shared memory, or from one large file of pixels on disk.

A cached image is equal to the array that reading its file gives, so batches are the same bits in every case. The
memory is anonymous and shared: forked loader processes use one copy, nothing has a name in /dev/shm, and the memory is
freed when the last process ends.
"""

import hashlib
import json
import logging
import mmap
import operator
import shutil
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
from config.mconfig import ModelConfig
from dl.annotations import Annotation
from dl.files import DataError, file_state
from dl.images import read_image
from dl.workers import CAN_FORK, num_workers
from ops.device import usable_cores
from ops.files import atomic_writer, make_folder, remove_stale_drafts
from ops.text import size_text

log = logging.getLogger("mars")

CACHE_FOLDER = "image-cache"  # in root, because runs on the same data share it

_MEMORY_SHARE = 0.5  # a cache takes at most this share of the available memory
_DISK_RESERVE = 2**30  # bytes of the disk that the cache leaves free
_MAGIC = b"MARSPIX1"
_EMPTY, _VALID, _DAMAGED = 0, 1, 2  # state of an image, one byte that all processes share

# Path, width, height, pixel_max: the same file can be read with or without rotation, and with different scales.
CacheKey = tuple[str, int, int, int | None]


@runtime_checkable
class Images(Protocol):
    """Returns the image of an annotation as read-only RGB. Raises `DataError`."""

    def read(self, annotation: Annotation) -> UInt8[np.ndarray, "H W 3"]: ...


class FileImages:
    """Reads every image from its file, every time."""

    def read(self, annotation: Annotation) -> UInt8[np.ndarray, "H W 3"]:
        size = annotation.width, annotation.height
        return read_image(annotation.image_path, size, annotation.pixel_max)


class RamImages:
    """Keeps each image in shared memory once any process has read it; images beyond `limit` bytes are not cached.

    Raises `OSError` if the system does not grant the memory.
    """

    _instances: ClassVar["weakref.WeakSet[RamImages]"] = weakref.WeakSet()

    def __init__(self, annotations: Iterable[Annotation], limit: int | None = None) -> None:
        self._slots = _slots(map(cache_key, annotations), limit)
        self.num_bytes = sum(num_image_bytes(key) for key in self._slots)
        self._pixels = mmap.mmap(-1, max(1, self.num_bytes))
        self._states = mmap.mmap(-1, max(1, len(self._slots)))
        self._instances.add(self)

    def __len__(self) -> int:
        return len(self._slots)

    @classmethod
    def reserved_bytes(cls) -> int:
        """Bytes that images of all caches will take, but that are not read yet."""
        return sum(
            num_image_bytes(key)
            for cache in cls._instances
            for key, (number, _) in cache._slots.items()
            if cache._states[number] == _EMPTY
        )

    def read(self, annotation: Annotation) -> UInt8[np.ndarray, "H W 3"]:
        slot = self._slots.get(cache_key(annotation))
        if slot is None:
            return FileImages().read(annotation)
        number, offset = slot
        cached = _view(self._pixels, offset, annotation)
        if self._states[number] == _EMPTY:  # two processes may do this at once: they write the same bytes
            cached[...] = FileImages().read(annotation)
            self._states[number] = _VALID
        cached.flags.writeable = False
        return cached


class DiskImages:
    """Reads images from a file of pixels. A damaged image is read from its own file; the next run rebuilds the cache.

    The file has the images one after the other, an index in JSON, the length of the index, and a magic word. It is
    written completely or not at all.
    """

    def __init__(self, file: Path, index: Sequence[Sequence[Any]]) -> None:
        self._file = file
        self._slots = _slots((path, width, height, pixel_max) for path, width, height, pixel_max, *_ in index)
        self._checksums = [entry[-1] for entry in index]
        with open(file, "rb") as pixels:
            self._pixels = mmap.mmap(pixels.fileno(), 0, access=mmap.ACCESS_READ)
        self._states = mmap.mmap(-1, max(1, len(index)))

    def __len__(self) -> int:
        return len(self._slots)

    @classmethod
    def open(cls, file: Path, annotations: Iterable[Annotation]) -> "DiskImages | None":
        """Open the file if it is complete and has exactly these images in their present state; else None."""
        index = _read_index(file)
        keys = _slots(map(cache_key, annotations))
        if index is None or [entry[:-1] for entry in index] != [[*key, *file_state(key[0])] for key in keys]:
            return None
        return cls(file, index)

    @classmethod
    def create(cls, file: Path, annotations: Sequence[Annotation]) -> "DiskImages":
        """Decode all images into the file. Raises `UserError`, e.g. if the disk is full; then there is no file."""
        index = []
        with atomic_writer(file) as pixels:
            for key, image in _decode_all({cache_key(annotation): annotation for annotation in annotations}):
                raw = bytes(num_image_bytes(key)) if image is None else image.tobytes()
                index.append([*key, *file_state(key[0]), None if image is None else zlib.crc32(raw)])
                pixels.write(raw)
            _write_index(pixels, index)
        return cls(file, index)

    def read(self, annotation: Annotation) -> UInt8[np.ndarray, "H W 3"]:
        slot = self._slots.get(cache_key(annotation))
        if slot is None or not self._is_valid(*slot, num_image_bytes(cache_key(annotation))):
            return FileImages().read(annotation)
        return _view(self._pixels, slot[1], annotation)

    def _is_valid(self, number: int, offset: int, length: int) -> bool:
        """Compare the checksum, once for each image, in the process that needs it first."""
        checksum = self._checksums[number]
        if checksum is None:  # the image was unreadable when the file was made
            return False
        if self._states[number] == _EMPTY:
            is_valid = zlib.crc32(memoryview(self._pixels)[offset : offset + length]) == checksum
            self._states[number] = _VALID if is_valid else _DAMAGED
            if not is_valid:
                with suppress(OSError):  # the file of another user; what is open stays open
                    self._file.unlink(missing_ok=True)
        return self._states[number] == _VALID


def cache_key(annotation: Annotation) -> CacheKey:
    """The key of an image in a cache."""
    return str(annotation.image_path), annotation.width, annotation.height, annotation.pixel_max


def num_image_bytes(key: CacheKey) -> int:
    """Bytes of the decoded image."""
    return key[1] * key[2] * 3


def _slots(keys: Iterable[CacheKey], limit: int | None = None) -> dict[CacheKey, tuple[int, int]]:
    """Key -> (number, offset) of distinct images, one after the other, in at most `limit` bytes."""
    slots, offset = {}, 0
    for number, key in enumerate(dict.fromkeys(keys)):
        if limit is not None and offset + num_image_bytes(key) > limit:
            break
        slots[key] = number, offset
        offset += num_image_bytes(key)
    return slots


def _view(pixels: mmap.mmap, offset: int, annotation: Annotation) -> np.ndarray:
    shape = annotation.height, annotation.width, 3
    return np.frombuffer(pixels, np.uint8, shape[0] * shape[1] * 3, offset).reshape(shape)


def _decode_all(images: dict[CacheKey, Annotation]) -> Iterator[tuple[CacheKey, np.ndarray | None]]:
    """Keys with their images, None for an unreadable one; a few at a time, because all may not fit in memory."""

    def decode(annotation: Annotation) -> np.ndarray | None:
        try:
            return FileImages().read(annotation)
        except DataError:
            return None

    waiting, num_threads = iter(images.items()), min(8, usable_cores())
    with ThreadPoolExecutor(num_threads) as pool:  # image decoders release the interpreter lock
        while group := dict(islice(waiting, 4 * num_threads)):
            yield from zip(group, pool.map(decode, group.values()), strict=True)


def _write_index(pixels: BinaryIO, index: Sequence[Sequence[Any]]) -> None:
    text = json.dumps(index).encode("utf-8")
    pixels.write(text + len(text).to_bytes(8, "little") + _MAGIC)


def _read_index(file: Path) -> list[list[Any]] | None:
    """The index of a complete file; None if there is no file, only a part of one, or another file."""
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


def build_images(mcfg: ModelConfig, split: str, annotations: Sequence[Annotation]) -> Images:
    """Make the image cache that `cacheImages` requests. The log has one line with the decision and its reason.

    The cache never takes more than half of the available memory: `auto` caches all images or none, `ram` as many as
    fit.
    """
    if mcfg.cacheImages == "none" or not annotations:
        return FileImages()
    if num_workers(mcfg.dcore) and not CAN_FORK:
        log.info("images of '%s' are read from their files: only forked loader processes can share a cache", split)
        return FileImages()
    if mcfg.cacheImages == "disk":
        return _cache_on_disk(Path(mcfg.root) / CACHE_FOLDER, split, annotations)
    return _cache_in_memory(split, annotations, may_be_part=mcfg.cacheImages == "ram")


def _cache_in_memory(split: str, annotations: Sequence[Annotation], may_be_part: bool) -> Images:
    keys = dict.fromkeys(map(cache_key, annotations))
    needed = sum(map(num_image_bytes, keys))
    available = available_memory()
    if available is None:
        log.info("images of '%s' are read from their files: the system does not report its available memory", split)
        return FileImages()
    limit = int(max(0, available - RamImages.reserved_bytes()) * _MEMORY_SHARE)
    limit_text = f"half of the {size_text(available)} available"
    if needed > limit and not may_be_part:
        log.info(
            "images of '%s' are read from their files: decoded they need %s, more than %s (cacheImages=disk caches "
            "them on disk)", split, size_text(needed), limit_text,
        )  # fmt: skip
        return FileImages()
    try:
        cache = RamImages(annotations, limit)
    except OSError as error:
        log.warning("images of '%s' are read from their files: no %s of memory (%s)", split, size_text(needed), error)
        return FileImages()
    if len(cache) < len(keys):
        log.warning(
            "cacheImages=ram: only %d of %d images of '%s' are cached in memory (%s of %s): the limit is %s",
            len(cache), len(keys), split, size_text(cache.num_bytes), size_text(needed), limit_text,
        )  # fmt: skip
    else:
        log.info(
            "images of '%s' are cached in memory: %d images, decoded %s of %s available",
            split, len(cache), size_text(needed), size_text(available),
        )  # fmt: skip
    return cache


def _cache_on_disk(folder: Path, split: str, annotations: Sequence[Annotation]) -> Images:
    keys = list(dict.fromkeys(map(cache_key, annotations)))
    needed = sum(map(num_image_bytes, keys))
    # The name does not depend on pixel_max: images with another scale then replace the old file on the disk.
    name = json.dumps([key[:3] for key in keys])
    file = folder / f"{split}-{hashlib.sha256(name.encode()).hexdigest()[:12]}.pixels"
    try:
        cache = DiskImages.open(file, annotations)
        if cache is not None:
            log.info("images of '%s' are read decoded from %s (%s)", split, file, size_text(needed))
            return cache
        make_folder(folder)
        remove_stale_drafts(folder)
        free = shutil.disk_usage(folder).free
        if needed + _DISK_RESERVE > free:
            log.warning(
                "cacheImages=disk: images of '%s' are read from their files: decoded they need %s, and %s of "
                "the %s free in %s must stay free",
                split, size_text(needed), size_text(_DISK_RESERVE), size_text(free), folder,
            )  # fmt: skip
            return FileImages()
        log.info("images of '%s': decoding all %d into %s (%s)", split, len(keys), file, size_text(needed))
        return DiskImages.create(file, annotations)
    except (OSError, UserError) as error:
        log.warning("cacheImages=disk: images of '%s' are read from their files: %s", split, error)
        return FileImages()


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process can take without swapping or being killed; None if the system does not report it.

    The minimum of MemAvailable and of what every enclosing control group (version 1 or 2) has left. The kernel's file
    cache counts as free, as in MemAvailable. Only Linux reports these numbers.
    """
    machine = _numbers(proc / "meminfo").get("MemAvailable:")
    if machine is None:
        return None
    return max(0, min([machine * 1024, *_left_in_groups(proc / "self/cgroup", cgroups)]))


def _left_in_groups(membership: Path, cgroups: Path) -> Iterator[int]:
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names, reclaimable = cgroups, ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            root, reclaimable = cgroups / "memory", "total_inactive_file"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        own = root / path.lstrip("/")
        # A container may see its own group as the root, while the path is the one outside.
        for group in (own, *own.parents):
            limit, used = (_number(group / name) for name in names)
            if limit is not None and used is not None:
                yield limit - used + _numbers(group / "memory.stat").get(reclaimable, 0)
            if group == root:
                break


def _number(file: Path) -> int | None:
    """The file's only number; None if it says `max` or does not exist."""
    words = " ".join(_lines(file)).split()
    return int(words[0]) if len(words) == 1 and words[0].isdigit() else None


def _numbers(file: Path) -> dict[str, int]:
    """The first word of each line -> the number after it."""
    words = [line.split() for line in _lines(file)]
    return {entry[0]: int(entry[1]) for entry in words if len(entry) > 1 and entry[1].isdigit()}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
