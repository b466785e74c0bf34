from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from config.errors import UserError
from dl.augment import AugmentRanges
from dl.check import check_data
from dl.dataset import AUGMENT_STREAM, DetectionDataset, random_stream
from dl.images import read_image
from dl.label_selection import select_classes
from dl.mosaic import MOSAIC_GREY, ModernRanges
from dl.transforms import Affine, BuiltIn, Erase, MixUp
from ops.batch import Sample


@pytest.fixture
def annotations(three_splits, config):
    return check_data(config(three_splits), ["train"]).splits["train"]


def test_letterboxed_sample(annotations):
    sample = DetectionDataset(annotations, (64, 64))[(0, 1)]
    assert sample.image_id == "b"
    assert sample.image.shape == (64, 64, 3)
    np.testing.assert_allclose(sample.boxes, [[8, 8 + 9.6, 40, 8 + 41.6]], rtol=1e-6)
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


PLAIN = ModernRanges(mosaic_end=5, scale=0.0, flip=0.0, hue=0.0, saturation=0.0, value=0.0)


@pytest.fixture
def plain_colours(annotations):
    """Images a, b, c of one colour each, as PNG under their names."""
    for number, annotation in enumerate(annotations):
        pixels = np.zeros((annotation.height, annotation.width, 3), np.uint8)
        pixels[..., number] = 200
        Image.fromarray(pixels).save(annotation.image_path, "PNG")
    return annotations


def channels(image):
    """Of which of the three images is anything to be seen?"""
    return {number for number in range(3) if (image[..., number] == 200).any()}


def test_modern_samples_depend_on_seed_epoch_and_index_alone(annotations):
    def sample(seed, key):
        return DetectionDataset(annotations, (64, 96), seed, ModernRanges())[key]

    first, again = sample(5, (3, 1)), sample(5, (3, 1))
    assert first.image.shape == (64, 96, 3)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    assert np.array_equal(first.labels, again.labels)
    assert first.letterbox is None
    assert first.image_id == "b"
    for other in (sample(5, (4, 1)), sample(5, (3, 2)), sample(6, (3, 1))):
        assert not np.array_equal(first.image, other.image)


def test_mosaic_until_its_end_and_none_after(plain_colours):
    data = DetectionDataset(plain_colours, (64, 64), 0, PLAIN)
    joined = [channels(data[(epoch, index)].image) for epoch in range(5) for index in range(3)]
    assert max(map(len, joined)) == 3
    assert set.union(*joined) == {0, 1, 2}
    for epoch in (5, 6, 100):
        assert [channels(data[(epoch, index)].image) for index in range(3)] == [{0}, {1}, {2}]


def test_one_image_is_joined_with_itself(plain_colours):
    data = DetectionDataset(plain_colours[:1], (64, 64), 0, PLAIN)
    most = max((data[(epoch, 0)] for epoch in range(5)), key=lambda sample: len(sample.boxes))
    assert len(most.boxes) > 1


def test_without_boxes_there_are_none(annotations):
    empty = [
        replace(one, boxes=one.boxes[:0], labels=one.labels[:0], difficult=one.difficult[:0]) for one in annotations
    ]
    for epoch in range(4):
        sample = DetectionDataset(empty, (64, 64), 0, replace(PLAIN, mosaic_end=2))[(epoch, 0)]
        assert (sample.boxes.shape, sample.labels.shape) == ((0, 4), (0,))
    mixed = [annotations[0], *empty[1:]]
    counts = [len(DetectionDataset(mixed, (64, 64), 0, PLAIN)[(epoch, 1)].boxes) for epoch in range(5)]
    assert min(counts) == 0 < max(counts)


def test_of_a_mosaic_only_the_unreadable_part_is_missing(plain_colours):
    whole = DetectionDataset(plain_colours, (64, 64), 0, PLAIN)
    before = {(epoch, index): whole[(epoch, index)] for epoch in range(5) for index in range(3)}
    plain_colours[1].image_path.unlink()
    left_out, grey, boxes = 0, 0, np.zeros(2)
    for key, sample in before.items():
        faults = {}
        now = whole.load(key, faults)
        is_seen = 1 in channels(sample.image)
        assert list(faults) == ["b"] * is_seen
        if now is None:
            left_out += 1
            assert key[1] == 1
            continue
        lost = (sample.image != now.image).any(axis=-1)
        assert np.array_equal(lost, sample.image[..., 1] == 200), "all else is as it was"
        assert (now.image[lost] == MOSAIC_GREY).all()
        grey += is_seen
        if is_seen:  # an object of the lost part may have been too little seen to count
            boxes += np.array([len(sample.boxes), len(now.boxes)])
            with pytest.raises(UserError, match=r"b.jpg: the image file does not exist"):
                whole[key]
    assert left_out > 0
    assert grey > 0
    assert boxes[0] > boxes[1]


@pytest.mark.parametrize("ranges", [None, AugmentRanges(), replace(PLAIN, mosaic=0.0)])
def test_a_sample_of_one_image_has_the_marks_of_it(annotations, ranges):
    marks = [np.array([True, False]), None, np.array([False, False])]
    known = [replace(one, labelled=mark) for one, mark in zip(annotations, marks, strict=True)]
    data = DetectionDataset(known, (64, 64), 0, ranges)
    for index, mark in enumerate(marks):
        found = data[(0, index)].labelled
        assert (found is None) == (mark is None)
        assert found is None or np.array_equal(found, mark)


def test_a_mosaic_joins_only_images_that_are_labelled_alike(plain_colours):
    mark = np.array([True, False, True])
    known = [replace(one, labelled=mark if index < 2 else None) for index, one in enumerate(plain_colours)]
    data, seen = DetectionDataset(known, (64, 64), 0, PLAIN), set()
    for key in [(epoch, index) for epoch in range(5) for index in range(3)]:
        sample = data[key]
        tiles = frozenset(channels(sample.image))
        assert tiles <= ({0, 1} if key[1] < 2 else {2})
        assert np.array_equal(sample.labelled, mark) if key[1] < 2 else sample.labelled is None
        seen.add(tiles)
    assert frozenset({0, 1}) in seen


@pytest.mark.parametrize("ranges", [None, AugmentRanges()])
def test_a_sample_of_one_image_is_left_out_with_it(annotations, ranges):
    annotations[0].image_path.unlink()
    faults = {}
    data = DetectionDataset(annotations, (64, 64), 0, ranges)
    assert data.load((0, 0), faults) is None
    assert faults == {"a": f"{annotations[0].image_path}: the image file does not exist"}
    assert data.load((0, 1), faults).image_id == "b"
    assert len(faults) == 1


def test_streams_do_not_meet():
    places = [(1, 0), (1, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1), (2**40, 0, 0), (-1, 0, 0)]
    draws = {random_stream(stream, *place).random() for stream in (1, 2) for place in places}
    assert len(draws) >= 2 * (len(places) - 1)  # numpy itself takes (1, 0) for (1, 0, 0)
    assert random_stream(AUGMENT_STREAM, -1, 0, 0).random() == random_stream(AUGMENT_STREAM, -1, 0, 0).random()


def test_an_image_that_went_away_names_its_file(annotations):
    annotations[0].image_path.unlink()
    with pytest.raises(UserError, match=f"{annotations[0].image_path}: the image file does not exist"):
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
    write_voc(three_splits / "annotations/a.xml", objects=[("cat", box), ("dog", box, 1), ("cat", (1, 1, 9, 8))])
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


@dataclass(frozen=True)
class MoveInPlace:
    """Changes the arrays that it gets."""

    def __call__(self, sample, rng):
        sample.boxes[:] += rng.integers(1, 3)
        return sample


@dataclass(frozen=True)
class Forgetful:
    """Makes a new sample of the image and the labels alone."""

    def __call__(self, sample, rng):
        return Sample(sample.image, sample.boxes, sample.labels, "another name")


def test_a_transform_cannot_change_the_annotations(annotations):
    before = [annotation.boxes.copy() for annotation in annotations]
    data = DetectionDataset(annotations, (64, 64), ranges=AugmentRanges(), stages=[MoveInPlace(), BuiltIn()])
    first, again = data[(0, 1)], data[(0, 1)]
    assert np.array_equal(first.boxes, again.boxes)
    assert all(np.array_equal(a, b.boxes) for a, b in zip(before, annotations, strict=True))


def test_what_a_transform_leaves_out_of_its_sample_is_kept(annotations):
    labelled = np.array([True, False, True])
    annotations = [replace(annotation, labelled=labelled) for annotation in annotations]
    sample = DetectionDataset(annotations, (64, 64), ranges=PLAIN, stages=[BuiltIn(), Forgetful()])[(0, 1)]
    assert sample.image_id == "b" and sample.labelled.tolist() == labelled.tolist() and sample.letterbox is None


@pytest.mark.parametrize("ranges", [None, AugmentRanges(), ModernRanges()])
def test_stages_depend_on_seed_epoch_and_index_alone(annotations, ranges):
    stages = [Affine(rotate=20.0), BuiltIn(), MixUp(1.0), Erase(1.0)]
    data = DetectionDataset(annotations, (64, 64), seed=5, ranges=ranges, stages=stages)
    first = data[(3, 1)]
    data[(0, 0)]
    again = DetectionDataset(annotations, (64, 64), seed=5, ranges=ranges, stages=stages)[(3, 1)]
    assert np.array_equal(first.image, again.image) and np.array_equal(first.boxes, again.boxes)
    others = [data[(4, 1)], data[(3, 2)], DetectionDataset(annotations, (64, 64), 6, ranges, stages=stages)[(3, 1)]]
    assert not any(np.array_equal(first.image, other.image) for other in others)


def test_a_later_stage_does_not_change_the_earlier_ones(annotations):
    alone = DetectionDataset(annotations, (64, 64), seed=5, ranges=ModernRanges())[(3, 1)]
    before = DetectionDataset(annotations, (64, 64), seed=5, ranges=ModernRanges(), stages=[BuiltIn(), MixUp(0.0)])
    assert np.array_equal(alone.image, before[(3, 1)].image)


@pytest.mark.parametrize(("probability", "num_reads"), [(0.0, 1), (1.0, 2)])
def test_partners_are_read_only_where_they_are_used(annotations, monkeypatch, probability, num_reads):
    data = DetectionDataset(annotations, (64, 64), stages=[BuiltIn(), MixUp(probability)])
    reads = []
    monkeypatch.setattr(data, "_read", lambda *args, read=data._read: reads.append(args) or read(*args))
    data[(0, 1)]
    assert len(reads) == num_reads


def test_partners_have_the_same_labelled_classes(annotations):
    """Else an object of a class that is not labelled on the other image would count as background there."""
    masks = [np.array([True, False]), np.array([True, True]), np.array([True, False])]
    annotations = [replace(a, labelled=mask) for a, mask in zip(annotations, masks, strict=True)]
    data = DetectionDataset(annotations, (64, 64), stages=[BuiltIn(), MixUp(1.0)])
    read = set()
    read_one = data._read
    data._read = lambda annotation, errors: read.add(annotation.image_id) or read_one(annotation, errors)
    for epoch in range(20):
        data[(epoch, 0)]
    assert read == {"a", "c"}
