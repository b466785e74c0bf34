"""Every hostile data set and image of `benchmarks`: one message with the file, or what is accepted."""

import re
import threading

import pytest

from benchmarks.attacks_data import DATA_ATTACKS
from benchmarks.attacks_images import IMAGE_ATTACKS, one_bit_png, tiff
from config.errors import UserError
from dl.check import check_data
from dl.files import DataError
from dl.images import inspect_image, read_image

# What is harmless, because only text is read from it or because the entry is not used.
ACCEPTED = {"xml_deep_whole", "list_home", "yaml_home", "yaml_tag", "coco_overflow_size"}
LIMITS = {
    "xml_punycode": "declares the encoding 'punycode'",
    "xml_billion_laughs": "it defines entities",
    "xml_quadratic_entity": "it defines entities",
    "xml_external_entity": "it defines entities",
    "xml_comments": r"<xmin> of object 1 \(cat\) is 'x', which is not a number",
    "xml_pipe": "a pipe or a device, not a file",
    "xml_sparse": "it has 100.0 GiB, but the limit is 16.0 MiB",
    "image_bomb": "30000 x 30000 pixels, but at most 200 million are allowed",
    "image_device": "a pipe or a device, not a file",
    "file_name_control": r"holds a control character",
    "list_long_line": "line 3: .* has 100000 characters, but at most 3000 are allowed",
    "classes_many": "200,001 classes, but a network can have at most 20,000",
    "yaml_alias_bomb": "names has a list or a mapping where a single value is needed",
    "yaml_alias_bomb_count": "nc has a list or a mapping",
    "yaml_alias_bomb_split": "train has a list or a mapping",
    "yaml_alias_bomb_path": "path has a list or a mapping",
    "yaml_two_names": "the key names occurs twice",
    "yaml_deep": "cannot be read as a yaml .RecursionError",
    "label_huge_exponent": "is not a number",
    "label_many_lines": "has 200000 objects, but one image may have at most 50000",
    "coco_deep": "cannot be read as a COCO json .RecursionError",
    "coco_huge_number": "cannot be read as a COCO json .ValueError",
    "coco_overflow": "in its bbox, which is not a number",
    "coco_int64": "the id of a category is larger than 64 bits",
    "coco_control_name": "the name of a category: .* holds a control character",
    "coco_long_file_name": "has 100000 characters, but at most 3000 are allowed",
    "coco_sparse": "but the limit is 1.5 GiB",
}


@pytest.mark.parametrize("name", sorted(DATA_ATTACKS.keys() - ACCEPTED))
def test_a_hostile_data_set_gives_one_message(tmp_path, config, name):
    mcfg = config(DATA_ATTACKS[name](tmp_path))
    with pytest.raises(UserError, match=f"(?s)/.*{LIMITS.get(name, '')}") as caught:
        check_data(mcfg, ["train", "validation"])
    assert len(str(caught.value)) < 3000
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", str(caught.value))


@pytest.mark.parametrize("name", sorted(ACCEPTED))
def test_what_is_harmless_is_read(tmp_path, config, name):
    data = check_data(config(DATA_ATTACKS[name](tmp_path)), ["train", "validation"])
    assert {len(members) for members in data.splits.values()} <= {1, 2, 4, 6}


@pytest.mark.parametrize("name", sorted(IMAGE_ATTACKS))
def test_a_hostile_image_is_one_fault(tmp_path, name):
    path = IMAGE_ATTACKS[name](tmp_path)
    if name == "gif_many_frames":
        assert inspect_image(path).has_more_frames
        return
    for reader in (read_image, inspect_image):
        with pytest.raises(DataError, match=f"{path}: the image (has|cannot be read)"):
            reader(path)


@pytest.mark.parametrize("build", [one_bit_png, tiff])
def test_the_pixel_limit_is_checked_before_decoding(tmp_path, monkeypatch, build):
    path = build(tmp_path)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match="30000 x 30000 pixels, but at most 200 million are allowed; cut it into tiles"):
        read_image(path)


def test_an_image_at_the_limit_is_read_and_one_beyond_is_not(tmp_path, monkeypatch):
    path = tiff(tmp_path, 120, 100)
    monkeypatch.setattr("dl.images.MAX_PIXELS", 120 * 100)
    assert read_image(path).shape == (100, 120, 3)
    monkeypatch.setattr("dl.images.MAX_PIXELS", 120 * 100 - 1)
    with pytest.raises(DataError, match="120 x 100 pixels"):
        read_image(path)


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    path = tiff(tmp_path, 120, 100)
    monkeypatch.setattr("dl.images._PIXELS_AT_ONCE", 100)
    lock, done = threading.Lock(), []
    monkeypatch.setattr("dl.images._LARGE_IMAGE", lock)
    with lock:
        thread = threading.Thread(target=lambda: done.append(read_image(path).shape))
        thread.start()
        thread.join(0.1)
        assert done == []
    thread.join()
    assert done == [(100, 120, 3)]
