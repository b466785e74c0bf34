import gc
import multiprocessing
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import dl.image_cache
from config.errors import UserError
from dl.check import check_data
from dl.files import DataError
from dl.image_cache import DiskImages, FileImages, RamImages
from dl.images import read_image

SIZE = 40 * 30 * 3


@pytest.fixture
def annotations(make_folder, config, write_image, write_voc):
    folder = make_folder({"train": list("abcde"), "validation": ["v"]})
    write_image(folder / "images/b.jpg", (33, 17))
    write_voc(folder / "annotations/b.xml", size=(33, 17), objects=())
    write_image(folder / "images/c.jpg", (40, 30), orientation=6)  # handed out turned: 30 x 40
    write_voc(folder / "annotations/c.xml", size=(30, 40))
    return check_data(config(folder), ["train"]).splits["train"]


@pytest.fixture
def reads(monkeypatch):
    """Paths that were decoded in this process."""
    paths = []

    def counted(path, size, pixel_max):
        paths.append(path)
        return read_image(path, size, pixel_max)

    monkeypatch.setattr(dl.image_cache, "read_image", counted)
    return paths


def same_as_files(images, annotations):
    return all(np.array_equal(images.read(one), FileImages().read(one)) for one in annotations)


def test_memory_gives_what_the_files_give(annotations, reads):
    cache = RamImages(annotations)
    assert len(cache) == 5
    assert cache.num_bytes == 4 * SIZE + 33 * 17 * 3
    assert RamImages.reserved_bytes() >= cache.num_bytes
    assert same_as_files(cache, annotations)
    reads.clear()
    assert [cache.read(one).shape for one in annotations[:3]] == [(30, 40, 3), (17, 33, 3), (40, 30, 3)]
    assert reads == []
    assert not cache.read(annotations[0]).flags.writeable


def test_what_is_promised_is_what_is_not_read_yet(annotations):
    gc.collect()
    before = RamImages.reserved_bytes()
    cache = RamImages(annotations)
    cache.read(annotations[0])
    assert RamImages.reserved_bytes() - before == cache.num_bytes - SIZE
    del cache
    gc.collect()
    assert RamImages.reserved_bytes() == before


@pytest.mark.parametrize(("limit", "kept"), [(0, 0), (SIZE - 1, 0), (SIZE, 1), (3 * SIZE, 3), (10 * SIZE, 5)])
def test_memory_keeps_as_many_as_the_limit_allows(annotations, limit, kept):
    cache = RamImages(annotations, limit)
    assert len(cache) == kept
    assert cache.num_bytes <= limit
    assert same_as_files(cache, annotations)


def test_memory_of_nothing_and_of_images_it_does_not_know(annotations):
    assert len(RamImages([])) == 0
    assert same_as_files(RamImages([]), annotations)
    assert len(RamImages([annotations[0]] * 3)) == 1


def test_an_image_that_cannot_be_read_is_not_kept(annotations, truncated_jpeg):
    cache = RamImages(annotations)
    path = annotations[0].image_path
    whole = path.read_bytes()
    truncated_jpeg(path)
    for _ in range(2):
        with pytest.raises(DataError, match=r"a.jpg: the image cannot be read"):
            cache.read(annotations[0])
    path.write_bytes(whole)
    assert same_as_files(cache, annotations)
    path.unlink()
    assert cache.read(annotations[0]).shape == (30, 40, 3), "once read it needs no file"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere processes are not forked")
def test_forked_processes_share_one_copy(annotations, reads):
    cache = RamImages(annotations)
    cache.read(annotations[0])
    context = multiprocessing.get_context("fork")

    def child(index, queue):
        reads.clear()
        cache.read(annotations[0])
        cache.read(annotations[index])
        queue.put([path.name for path in reads])

    queue = context.SimpleQueue()
    for index, expected in ((1, ["b.jpg"]), (2, ["c.jpg"]), (2, [])):
        process = context.Process(target=child, args=(index, queue))
        process.start()
        assert queue.get() == expected, "what another process has read need not be read again"
        process.join()
    reads.clear()
    assert [cache.read(one).shape for one in annotations[:3]] == [(30, 40, 3), (17, 33, 3), (40, 30, 3)]
    assert reads == []


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no /dev/shm")
def test_memory_has_no_name(annotations):
    before = set(os.listdir("/dev/shm"))
    cache = RamImages(annotations)
    cache.read(annotations[0])
    named = [name for name in set(os.listdir("/dev/shm")) - before if str(os.getpid()) in name]
    assert named == []


def test_a_file_of_pixels_gives_what_the_files_give(annotations, tmp_path, reads):
    file = tmp_path / "cache/train.pixels"
    assert DiskImages.open(file, annotations) is None
    made = DiskImages.create(file, annotations)
    assert file.stat().st_size > 4 * SIZE
    assert [path.name for path in file.parent.iterdir()] == ["train.pixels"]
    assert same_as_files(made, annotations)
    opened = DiskImages.open(file, annotations)
    assert len(opened) == 5
    assert same_as_files(opened, annotations)
    reads.clear()
    assert not opened.read(annotations[2]).flags.writeable
    assert reads == []


def test_a_file_of_pixels_for_no_images(annotations, tmp_path):
    DiskImages.create(tmp_path / "x", [])
    assert same_as_files(DiskImages.open(tmp_path / "x", []), annotations)


def change_image(path):
    Image.new("RGB", (40, 30), "red").save(path)


def touch_image(path):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [change_image, touch_image, lambda path: path.unlink()])
def test_a_stale_file_of_pixels_is_not_used(annotations, tmp_path, change):
    file = tmp_path / "x"
    DiskImages.create(file, annotations)
    change(annotations[3].image_path)
    assert DiskImages.open(file, annotations) is None


def test_another_list_of_images_is_another_file(annotations, tmp_path):
    file = tmp_path / "x"
    DiskImages.create(file, annotations)
    assert DiskImages.open(file, annotations[:4]) is None
    assert DiskImages.open(file, annotations[::-1]) is None
    turned = replace(annotations[0], width=30, height=40)
    assert DiskImages.open(file, [turned, *annotations[1:]]) is None
    assert DiskImages.open(file, annotations) is not None


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 500, SIZE, -1, -20])
def test_a_file_cut_short_is_not_used(annotations, tmp_path, cut):
    file = tmp_path / "x"
    DiskImages.create(file, annotations)
    file.write_bytes(file.read_bytes()[:cut])
    assert DiskImages.open(file, annotations) is None


def test_other_bytes_at_the_end_are_no_index(annotations, tmp_path):
    file = tmp_path / "x"
    DiskImages.create(file, annotations)
    raw = file.read_bytes()
    for damaged in (raw + b"x", raw[SIZE:], raw[:-30] + b"{" * 14 + raw[-16:], b"\xff" * 8 + b"MARSPIX1"):
        file.write_bytes(damaged)
        assert DiskImages.open(file, annotations) is None


def test_damaged_pixels_are_never_handed_out(annotations, tmp_path, reads):
    file = tmp_path / "x"
    DiskImages.create(file, annotations)
    raw = bytearray(file.read_bytes())
    raw[SIZE + 100] ^= 1  # in b
    file.write_bytes(raw)
    opened = DiskImages.open(file, annotations)
    reads.clear()
    opened.read(annotations[0])
    assert reads == []
    assert np.array_equal(opened.read(annotations[1]), read_image(annotations[1].image_path))
    assert same_as_files(opened, annotations)
    assert DiskImages.open(file, annotations) is None, "the next run makes it anew"


def test_an_image_that_could_not_be_read_leaves_the_others(annotations, tmp_path, truncated_jpeg):
    file = tmp_path / "x"
    truncated_jpeg(annotations[0].image_path)
    for cache in (DiskImages.create(file, annotations), DiskImages.open(file, annotations)):
        assert same_as_files(cache, annotations[1:])
        with pytest.raises(DataError, match="cannot be read"):
            cache.read(annotations[0])
    assert file.exists()


def test_a_full_disk_leaves_no_file(annotations, tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dl.image_cache, "_write_index", full)
    with pytest.raises(UserError, match="No space left"):
        DiskImages.create(tmp_path / "x", annotations)
    assert not list(tmp_path.glob("*x*"))
