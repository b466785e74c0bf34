from dataclasses import replace

import numpy as np
import pytest

from config.errors import UserError
from dl.augment import AugmentRanges
from dl.check import check_data
from dl.dataset import AUGMENT_STREAM, DetectionDataset, random_stream, select_classes
from dl.images import read_image


@pytest.fixture
def annotations(three_splits, config):
    return check_data(config(three_splits), ["train"]).splits["train"]


def test_letterboxed_sample(annotations):
    sample = DetectionDataset(annotations, (64, 64))[(0, 1)]
    assert sample.image_id == "b"
    assert sample.image.shape == (64, 64, 3)
    assert sample.boxes.tolist() == [[8, 8 + 9.6, 40, 8 + 41.6]] or np.allclose(sample.boxes, [[8, 17.6, 40, 49.6]])
    assert sample.letterbox == (1.6, 1.6, 0, 8, 30, 40)


def test_augmented_sample_depends_on_seed_epoch_and_index_alone(annotations):
    data = DetectionDataset(annotations, (64, 64), seed=5, ranges=AugmentRanges())
    first = data[(3, 1)]
    for _ in range(3):
        data[(0, 0)]
    again = DetectionDataset(annotations, (64, 64), seed=5, ranges=AugmentRanges())[(3, 1)]
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    others = [data[(4, 1)], replace(data[(3, 2)]), DetectionDataset(annotations, (64, 64), 6, AugmentRanges())[(3, 1)]]
    assert not any(np.array_equal(first.image, other.image) for other in others)
    assert first.letterbox is None


def test_streams_do_not_meet():
    places = [(1, 0), (1, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1), (2**40, 0, 0), (-1, 0, 0)]
    draws = {random_stream(stream, *place).random() for stream in (1, 2) for place in places}
    assert len(draws) >= 2 * (len(places) - 1)  # numpy itself takes (1, 0) for (1, 0, 0)
    assert random_stream(AUGMENT_STREAM, -1, 0, 0).random() == random_stream(AUGMENT_STREAM, -1, 0, 0).random()


def test_an_image_that_went_away_names_its_file(annotations):
    annotations[0].image_path.unlink()
    with pytest.raises(UserError, match=f"{annotations[0].image_path}: no such image file"):
        DetectionDataset(annotations, (64, 64))[(0, 0)]


def test_an_ambiguous_turn_is_read_as_it_was_checked(three_splits, config, write_image, write_voc):
    write_image(three_splits / "images/a.jpg", (40, 30), orientation=6)
    write_voc(three_splits / "annotations/a.xml", size=None)
    annotation = check_data(config(three_splits), ["train"]).splits["train"][0]
    assert read_image(annotation.image_path, (annotation.width, annotation.height)).shape == (40, 30, 3)


@pytest.fixture
def mixed(three_splits, config, write_voc):
    """a: cat and dog, b: dog only, c: nothing."""
    box = (1, 1, 9, 9)
    write_voc(three_splits / "annotations/a.xml", objects=[("cat", box), ("dog", box, 1), ("cat", box)])
    write_voc(three_splits / "annotations/b.xml", objects=[("dog", box)])
    write_voc(three_splits / "annotations/c.xml", objects=())
    return check_data(config(three_splits), ["train"]).splits["train"]


def chosen(annotations):
    return {annotation.image_id: annotation.labels.tolist() for annotation in annotations}


def test_select_classes_keeps_background_by_default(mixed):
    assert chosen(select_classes(mixed, ("cat", "dog"), ("cat",))) == {"a": [0, 0], "b": [], "c": []}
    kept = select_classes(mixed, ("cat", "dog"), ("dog",))
    assert chosen(kept) == {"a": [1], "b": [1], "c": []}, "labels stay indexes into the class list"
    assert kept[0].boxes.shape == (1, 4)
    assert kept[0].difficult.tolist() == [True]
    assert chosen(mixed)["a"] == [0, 1, 0], "the argument is left alone"


def test_select_classes_drops_images_of_other_classes_only(mixed):
    assert chosen(select_classes(mixed, ("cat", "dog"), ("cat",), "drop")) == {"a": [0, 0], "c": []}


def test_select_classes_none_and_all(mixed):
    assert chosen(select_classes(mixed, ("cat", "dog"), None)) == chosen(mixed)
    assert chosen(select_classes(mixed, ("cat", "dog"), ("dog", "cat"), "drop")) == chosen(mixed)
    assert select_classes([], ("cat",), ("cat",), "drop") == []
    assert select_classes(mixed[1:2], ("cat", "dog"), ("cat",), "drop") == []


def test_select_classes_says_what_is_wrong(mixed):
    with pytest.raises(UserError, match=r"trainSelectedClasses: 'dgo' is not in the class list .did you mean 'dog'"):
        select_classes(mixed, ("cat", "dog"), ("dgo",))
