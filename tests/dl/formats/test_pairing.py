import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl.formats.pairing import pair, usual_label_path


@pytest.mark.parametrize(
    ("image", "place"),
    [
        ("train/images/a.jpg", "train/labels/a"),
        ("images/train/a.b.png", "labels/train/a.b"),
        ("images/x/images/a.jpg", "images/x/labels/a"),
        ("a.jpg", "a"),
        ("images.jpg", "images"),
    ],
)
def test_where_the_label_of_an_image_lies(image, place):
    assert usual_label_path(image) == place


def test_nothing_to_pair():
    assert pair([], []) == ({}, {}, [])
    assert pair(["a.jpg"], []) == ({}, {}, [])
    assert pair([], ["a.txt"]) == ({}, {}, ["a.txt"])


@pytest.mark.parametrize(
    ("image", "annotation"),
    [
        ("a.jpg", "a.xml"),
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("train/images/a.jpg", "train/labels/a.txt"),
        ("train/JPEGImages/a.jpg", "train/Annotations/a.xml"),
        ("Images/Train/a.JPG", "Labels/train/A.TXT"),  # as Windows users name them
        ("images/val/a.jpg", "labels/validation/a.txt"),
        ("train/a.jpg", "a.xml"),  # images in folders of splits, annotations in one folder
        ("a.jpg", "val/a.xml"),  # and the other way round
        ("cam 1/a.b.jpg", "cam 1/a.b.txt"),
    ],
)
def test_an_image_and_its_annotation(image, annotation):
    assert pair([image], [annotation]) == ({image: annotation}, {}, [])


@pytest.mark.parametrize(
    ("image", "annotation"),
    [
        ("images/train/a.jpg", "labels/val/a.txt"),
        ("images/a.jpg", "labels/old/a.txt"),  # a folder that is no split may be a copy or somebody's predictions
        ("images/a.webp.jpg", "labels/a.txt"),
        ("images/a.jpg", "labels/b.txt"),
    ],
)
def test_what_does_not_belong_together(image, annotation):
    assert pair([image], [annotation]) == ({}, {}, [annotation])


def test_exact_names_come_first():
    images, annotations = ["A.jpg", "a.jpg", "b.jpg"], ["a.txt", "A.txt", "B.txt", "C.txt"]
    assert pair(images, annotations) == ({"A.jpg": "A.txt", "a.jpg": "a.txt", "b.jpg": "B.txt"}, {}, ["C.txt"])


def test_of_several_the_usual_place_then_beside_the_image():
    image = "images/a.jpg"
    assert pair([image], ["images/a.txt", "labels/a.txt"]).annotation_of == {image: "labels/a.txt"}
    assert pair([image], ["annotations/a.txt", "images/a.txt"]).annotation_of == {image: "images/a.txt"}
    found = pair([image], ["annotations/a.txt", "xml/a.txt"])
    assert found == ({}, {image: ["annotations/a.txt", "xml/a.txt"]}, [])


def test_two_images_of_one_stem_share_their_label_but_not_across_folders():
    assert pair(["a.jpg", "a.png"], ["a.txt"]).annotation_of == {"a.jpg": "a.txt", "a.png": "a.txt"}
    assert pair(["train/a.jpg", "val/a.jpg"], ["a.txt"]) == ({}, {}, ["a.txt"]), "whose label is it?"


FOLDERS = ("", "train/", "val/", "x/")
PATHS = [f"{folder}{stem}" for folder, stem in itertools.product(FOLDERS, "ab")]


@given(st.sets(st.sampled_from(PATHS)), st.sets(st.sampled_from(PATHS)))
def test_each_annotation_is_used_or_left_over_and_stems_agree(images, annotations):
    found = pair([f"images/{path}.jpg" for path in images], [f"labels/{path}.txt" for path in annotations])
    used = set(found.annotation_of.values()) | {path for paths in found.ambiguous.values() for path in paths}
    assert used | set(found.unused) == {f"labels/{path}.txt" for path in annotations}
    assert not used & set(found.unused)
    for path in images & annotations:
        assert found.annotation_of[f"images/{path}.jpg"] == f"labels/{path}.txt"
    for image, annotation in found.annotation_of.items():
        assert image.removesuffix(".jpg")[-1] == annotation.removesuffix(".txt")[-1]
