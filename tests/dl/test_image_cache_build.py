import logging
import os
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

import dl.image_cache
from dl.check import check_data
from dl.image_cache import DiskImages, FileImages, RamImages, build_images
from dl.loader import build_loader

NEEDED = 7 * 40 * 30 * 3
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture
def many(make_folder):
    return make_folder({"train": [f"n{i}" for i in range(7)], "validation": ["v"]})


@pytest.fixture
def build(many, config, tmp_path, caplog, monkeypatch):
    """build(cacheImages, available bytes, free bytes on the disk) -> images, lines of the log."""

    def make(mode, available=NEEDED * 10, free=2**40, **fields):
        mcfg = config(many, cacheImages=mode, root=str(tmp_path / "runs"), **fields)
        annotations = check_data(mcfg, ["train"]).splits["train"]
        monkeypatch.setattr(dl.image_cache, "available_memory", lambda: available)
        monkeypatch.setattr(RamImages, "reserved_bytes", classmethod(lambda _cls: 0))
        monkeypatch.setattr(dl.image_cache.shutil, "disk_usage", lambda _folder: DiskUsage(free, 0, free))
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="mars"):
            return build_images(mcfg, "train", annotations), caplog.messages[:]

    return make


def test_none_says_nothing(build):
    images, said = build("none")
    assert isinstance(images, FileImages)
    assert said == []


def test_auto_and_ram_keep_all_where_it_fits(build):
    for mode in ("auto", "ram"):
        images, said = build(mode, available=2 * NEEDED)
        assert isinstance(images, RamImages)
        assert len(images) == 7
        assert said == ["images of 'train' are cached in memory: 7 images, decoded 25 KiB of 49 KiB available"]


def test_auto_keeps_none_where_it_would_take_more_than_half(build):
    images, said = build("auto", available=2 * NEEDED - 1)
    assert isinstance(images, FileImages)
    assert said == [
        (
            "images of 'train' are read from their files: decoded they need 25 KiB, more than half of the 49 KiB "
            "available (cacheImages=disk caches them on disk)"
        )
    ]


def test_ram_keeps_part_and_says_how_much(build):
    images, said = build("ram", available=NEEDED)
    assert len(images) == 3
    assert said == [
        (
            "cacheImages=ram: only 3 of 7 images of 'train' are cached in memory (11 KiB of 25 KiB): "
            "the limit is half of the 25 KiB available"
        )
    ]
    images, said = build("ram", available=100)
    assert len(images) == 0
    assert "only 0 of 7 images" in said[0]


def test_what_is_promised_to_other_images_is_no_longer_there(many, config, monkeypatch):
    mcfg = config(many, cacheImages="auto")
    annotations = check_data(mcfg, ["train"]).splits["train"]
    promised = RamImages.reserved_bytes()
    monkeypatch.setattr(dl.image_cache, "available_memory", lambda: promised + 2 * NEEDED)
    first = build_images(mcfg, "train", annotations)
    assert isinstance(first, RamImages)
    assert isinstance(build_images(mcfg, "train", annotations), FileImages)
    for annotation in annotations:
        first.read(annotation)  # now the system itself counts them
    assert isinstance(build_images(mcfg, "train", annotations), RamImages)


def test_unknown_memory_is_not_taken(build):
    for mode in ("auto", "ram"):
        images, said = build(mode, available=None)
        assert isinstance(images, FileImages)
        assert said == ["images of 'train' are read from their files: the system does not report its available memory"]


def test_memory_that_is_refused(build, monkeypatch):
    def refuse(*_args):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("dl.image_cache.mmap.mmap", refuse)
    images, said = build("auto")
    assert isinstance(images, FileImages)
    assert said == [
        "images of 'train' are read from their files: no 25 KiB of memory ([Errno 12] Cannot allocate memory)"
    ]


def test_without_fork_memory_is_not_shared(build, monkeypatch):
    monkeypatch.setattr(dl.image_cache, "CAN_FORK", False)
    assert isinstance(build("ram", dcore=0)[0], RamImages)
    for mode in ("ram", "disk"):
        images, said = build(mode, dcore=2)
        assert isinstance(images, FileImages)
        assert said == ["images of 'train' are read from their files: only forked loader processes can share a cache"]


def test_disk_is_made_once_and_then_used(build, tmp_path):
    images, (said,) = build("disk")
    assert isinstance(images, DiskImages)
    (file,) = (tmp_path / "runs/image-cache").iterdir()
    assert said == f"images of 'train': decoding all 7 into {file} (25 KiB)"
    stamp = file.stat().st_mtime_ns
    images, (said,) = build("disk", available=None)
    assert isinstance(images, DiskImages)
    assert said == f"images of 'train' are read decoded from {file} (25 KiB)"
    assert file.stat().st_mtime_ns == stamp


def test_disk_is_made_anew_when_stale_or_damaged(build, many, tmp_path, write_image):
    build("disk")
    write_image(many / "images/n3.jpg", (40, 30), orientation=1)
    assert "decoding all 7" in build("disk")[1][0]
    (file,) = (tmp_path / "runs/image-cache").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert "decoding all 7" in build("disk")[1][0]
    assert "are read decoded" in build("disk")[1][0]


def test_disk_leaves_a_reserve(build, tmp_path):
    assert isinstance(build("disk", free=NEEDED + 2**30)[0], DiskImages)
    (file,) = (tmp_path / "runs/image-cache").iterdir()
    file.unlink()
    images, (said,) = build("disk", free=NEEDED + 2**30 - 1)
    assert isinstance(images, FileImages)
    assert said == (
        "cacheImages=disk: images of 'train' are read from their files: decoded they need 25 KiB, and 1.0 GiB of "
        f"the 1.0 GiB free in {file.parent} must stay free"
    )
    assert not list(file.parent.iterdir())


def test_a_place_that_cannot_be_written_costs_only_the_cache(build, tmp_path):
    (tmp_path / "runs").write_text("no folder")
    images, (said,) = build("disk")
    assert isinstance(images, FileImages)
    assert said.startswith("cacheImages=disk: images of 'train' are read from their files: ")
    assert str(tmp_path / "runs") in said


def test_drafts_of_killed_processes_go(build, tmp_path):
    folder = tmp_path / "runs/image-cache"
    folder.mkdir(parents=True)
    dead, alive = folder / ".x.pixels.999999999.part", folder / f".y.pixels.{os.getppid()}.part"
    dead.touch()
    alive.touch()
    build("disk")
    assert not dead.exists()
    assert alive.exists()


def test_nothing_to_keep(many, config):
    assert isinstance(build_images(config(many, cacheImages="ram"), "train", []), FileImages)


def test_evaluation_keeps_what_it_is_given_only(many, config):
    mcfg = config(many, cacheImages="ram")
    annotations = check_data(mcfg, ["validation"]).splits["validation"]
    assert isinstance(build_loader(mcfg, "validation", annotations).dataset.images, FileImages)
    images = build_images(mcfg, "validation", annotations)
    for _ in range(2):
        loader = build_loader(mcfg, "validation", annotations, train=False, images=images)
        assert loader.dataset.images is images
        assert len(list(loader)) == 1
    annotations[0].image_path.unlink()
    loader = build_loader(mcfg, "validation", annotations, train=False, images=images)
    assert len(list(loader)) == 1, "kept from one validation to the next"


def test_pixels_scaled_by_another_range_are_not_used(many, config, tmp_path):
    """Neither in memory nor from the disk; and the file on the disk gives way to the new one."""
    for path in (many / "images").glob("n*.jpg"):
        values = np.full((30, 40), 2000, dtype=np.uint16)
        values[0, 0] = int(path.stem[1:])
        Image.fromarray(values).save(path.with_suffix(".png"))
        path.unlink()
    for mode in ("ram", "disk"):
        for pixel_max, expected in ((4095, 125), (65535, 8), (4095, 125)):
            mcfg = config(many, cacheImages=mode, root=str(tmp_path / "runs"), pixelMax=pixel_max)
            annotations = check_data(mcfg, ["train"]).splits["train"]
            images = build_images(mcfg, "train", annotations)
            assert not isinstance(images, FileImages)
            for _ in range(2):
                assert all(images.read(one)[1, 1].tolist() == [expected] * 3 for one in annotations)
    assert len(list((tmp_path / "runs/image-cache").iterdir())) == 1
