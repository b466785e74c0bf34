"""Which images are kept decoded, and where: decided from what fits, before anything is read."""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from config.errors import UserError
from config.mconfig import ModelConfig
from dl.annotations import Annotation
from dl.image_cache import DiskImages, FileImages, Images, RamImages, key_of, num_bytes_of
from dl.memory import available_memory, size_text
from dl.workers import CAN_FORK, num_workers
from ops.files import make_folder, remove_stale_drafts

log = logging.getLogger("mars")

CACHE_FOLDER = "image-cache"  # in root, because runs on the same data share it

_SHARE = 2  # at most one part in so many of the available memory
_DISK_RESERVE = 2**30  # bytes that stay free on the disk


def build_images(mcfg: ModelConfig, split: str, annotations: Sequence[Annotation]) -> Images:
    """What `cacheImages` asks for, sized before it starts; the log says in a line what was decided and why.

    Never more than half of the memory that is available; `auto` keeps all images there or none, `ram` as many as fit.
    """
    if mcfg.cacheImages == "none" or not annotations:
        return FileImages()
    if num_workers(mcfg.dcore) and not CAN_FORK:
        log.info("images of '%s' are read from their files: only forked loader processes could share them", split)
        return FileImages()
    if mcfg.cacheImages == "disk":
        return _on_disk(Path(mcfg.root) / CACHE_FOLDER, split, annotations)
    return _in_memory(split, annotations, may_be_part=mcfg.cacheImages == "ram")


def _in_memory(split: str, annotations: Sequence[Annotation], may_be_part: bool) -> Images:
    keys = dict.fromkeys(map(key_of, annotations))
    needed = sum(map(num_bytes_of, keys))
    available = available_memory()
    if available is None:
        log.info("images of '%s' are read from their files: the system does not say how much memory is left", split)
        return FileImages()
    limit = max(0, available - RamImages.promised()) // _SHARE
    room = f"half of the {size_text(available)} available"
    if needed > limit and not may_be_part:
        log.info(
            "images of '%s' are read from their files: decoded they take %s, more than %s (cacheImages=disk keeps "
            "them on disk)", split, size_text(needed), room,
        )  # fmt: skip
        return FileImages()
    try:
        cache = RamImages(annotations, limit)
    except OSError as error:
        log.warning("images of '%s' are read from their files: no %s of memory (%s)", split, size_text(needed), error)
        return FileImages()
    if len(cache) < len(keys):
        log.warning(
            "cacheImages=ram: only %d of %d images of '%s' are kept in memory (%s of %s): that is %s",
            len(cache), len(keys), split, size_text(cache.num_bytes), size_text(needed), room,
        )  # fmt: skip
    else:
        log.info(
            "images of '%s' are kept in memory: %d, decoded %s of %s available",
            split, len(cache), size_text(needed), size_text(available),
        )  # fmt: skip
    return cache


def _on_disk(folder: Path, split: str, annotations: Sequence[Annotation]) -> Images:
    keys = list(dict.fromkeys(map(key_of, annotations)))
    needed = sum(map(num_bytes_of, keys))
    # Without pixel_max: images scaled by another range take the place of the old ones, which fill the disk no longer.
    name = json.dumps([key[:3] for key in keys])
    file = folder / f"{split}-{hashlib.sha256(name.encode()).hexdigest()[:12]}.pixels"
    try:
        cache = DiskImages.open(file, annotations)
        if cache is not None:
            log.info("images of '%s' come decoded from %s (%s)", split, file, size_text(needed))
            return cache
        make_folder(folder)
        remove_stale_drafts(folder)
        free = shutil.disk_usage(folder).free
        if needed + _DISK_RESERVE > free:
            log.warning(
                "cacheImages=disk: images of '%s' are read from their files: decoded they take %s, and of the %s free "
                "in %s %s stay free", split, size_text(needed), size_text(free), folder, size_text(_DISK_RESERVE),
            )  # fmt: skip
            return FileImages()
        log.info("images of '%s': decoding all %d into %s (%s)", split, len(keys), file, size_text(needed))
        return DiskImages.create(file, annotations)
    except (OSError, UserError) as error:
        log.warning("cacheImages=disk: images of '%s' are read from their files: %s", split, error)
        return FileImages()
