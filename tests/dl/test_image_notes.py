"""Sentences on 16-bit ranges and on frames."""

import pytest

from dl.images import ImageInfo, choose_pixel_max, image_notes


def facts(max_value=0, has_more_frames=False):
    return ImageInfo(40, 30, 1, max_value, has_more_frames)


@pytest.mark.parametrize(
    ("values", "expected"), [([], None), ([0], None), ([0, 3800], 4095), ([900], 1023), ([3800, 20000, 0], 65535)]
)
def test_one_range_for_all(values, expected):
    assert choose_pixel_max([facts(value) for value in values]) == expected


def test_nothing_to_say():
    assert image_notes({}, None) == []
    assert image_notes({"a": facts()}, 4095) == []


def test_a_range_that_the_images_decide():
    notes = image_notes({"a": facts(3800), "b": facts(100), "c": facts()}, 4095, is_given=False)
    assert notes == ["16-bit images use 12 bits (2, largest value 3800): scaled by 4095"]


def test_a_range_that_is_given_and_what_is_brighter():
    images = {name: facts(5000) for name in "abcd"} | {"e": facts(4096)}
    (note,) = image_notes(images, 4095)
    assert note == (
        "16-bit images (5, largest value 5000): scaled by 4095 (pixelMax); larger values become white in 4 of them: "
        "a, b, c and 1 more"
    )


def test_a_few_bright_images_are_named():
    images = {str(number): facts(3800) for number in range(40)} | {"dead": facts(65535)}
    (note,) = image_notes(images, 65535, is_given=False)
    assert note.endswith(
        "scaled by 65535; only 1 file use this range (dead); if they have defective pixels, set pixelMax=4095"
    )
    images |= {f"also{number}": facts(65535) for number in range(3)}  # 4 of 44 are no exception
    assert "faulty" not in image_notes(images, 65535, is_given=False)[0]


def test_weights_that_know_no_range():
    (note,) = image_notes({"a": facts(3800)}, None)
    assert note.startswith("1 16-bit image: each is scaled by its own range")


def test_frames():
    notes = image_notes({"a": facts(), "b": facts(has_more_frames=True), "c": facts(300, True)}, 1023)
    assert notes[1] == "2 files with several frames or pages, only the first is used: b, c"
