"""What became of every object: cases counted by hand, and a slow twin in plain loops."""

import json
from collections import Counter

import pytest
from parity.detection_sets import NAMES, random_set

from eval.groups import ConfusionCounts, group_confusion

IS_BASE = [True, True, False, False]  # ant, bee; cat, dog
BOX, FAR = (0, 0, 100, 100), (300, 300, 400, 400)


@pytest.fixture
def confuse(make_truth, make_found):
    """Rows of truth and of detections on one image, a threshold of .2 -> the counts."""

    def run(truths, found, is_base=IS_BASE, **options):
        return group_confusion([make_truth("a", truths)], [make_found("a", found)], is_base, 0.2, **options)

    return run


@pytest.mark.parametrize(
    ("label", "base", "novel"),
    [
        (0, (0, 0, 0, 0), (0, 0, 1, 0)),
        (1, (0, 0, 0, 0), (0, 0, 1, 0)),
        (2, (0, 0, 0, 0), (1, 0, 0, 0)),
        (3, (0, 0, 0, 0), (0, 1, 0, 0)),
    ],
)
def test_a_cat_found_as_something(confuse, label, base, novel):
    result = confuse([[*BOX, 2, 0]], [[*BOX, label, 0.9]])
    assert (result.base, result.novel) == (ConfusionCounts(*base), ConfusionCounts(*novel))


def test_many_on_one_image(confuse):
    spots = [(120.0 * n, 0.0, 120.0 * n + 100, 100.0) for n in range(5)]
    truths = [[*spots[n], label, 0] for n, label in enumerate([0, 0, 1, 2, 3])]
    found = [[*spots[0], 0, 0.9], [*spots[1], 1, 0.8], [*spots[2], 2, 0.7], [*spots[3], 2, 0.6], [*FAR, 2, 0.9]]
    result = confuse(truths, found)
    assert result.base == ConfusionCounts(as_itself=1, as_same_group=1, as_other_group=1, missed=0)
    assert result.novel == ConfusionCounts(as_itself=1, as_same_group=0, as_other_group=0, missed=1)
    assert (result.base.n_gt, result.novel.n_gt) == (3, 2)
    assert result.novel.shares() == {"as_itself": 0.5, "as_same_group": 0, "as_other_group": 0, "missed": 0.5}


def test_the_higher_score_speaks_first(confuse):
    truth = [[*BOX, 2, 0]]
    assert confuse(truth, [[*BOX, 2, 0.5], [*BOX, 0, 0.6]]).novel == ConfusionCounts(0, 0, 1, 0)
    assert confuse(truth, [[*BOX, 0, 0.5], [*BOX, 2, 0.6]]).novel == ConfusionCounts(1, 0, 0, 0)
    # the one that comes second takes the neighbour that is still free
    neighbours = [[0, 0, 100, 100, 2, 0], [20, 0, 120, 100, 2, 0]]
    assert confuse(neighbours, [[0, 0, 100, 100, 2, 0.9], [0, 0, 102, 100, 0, 0.8]]).novel == ConfusionCounts(
        1, 0, 1, 0
    )


def test_what_is_too_weak_or_too_far_off_finds_nothing(confuse):
    truth = [[*BOX, 2, 0]]
    assert confuse(truth, [[*BOX, 2, 0.25]]).novel == ConfusionCounts(1, 0, 0, 0)
    assert confuse(truth, [[*BOX, 2, 0.19]]).novel == ConfusionCounts(0, 0, 0, 1)
    assert confuse(truth, [[0, 0, 100, 50, 2, 0.9]]).novel == ConfusionCounts(1, 0, 0, 0)  # an overlap of .5
    assert confuse(truth, [[0, 0, 100, 49, 2, 0.9]]).novel == ConfusionCounts(0, 0, 0, 1)
    assert confuse(truth, [[0, 0, 100, 49, 2, 0.9]], min_iou=0.4).novel == ConfusionCounts(1, 0, 0, 0)


def test_difficult_objects_do_not_count(confuse):
    result = confuse([[*BOX, 2, 1], [0, 0, 100, 80, 3, 0]], [[*BOX, 2, 0.9]])
    assert result.novel == ConfusionCounts(0, 1, 0, 0)
    assert confuse([[*BOX, 2, 1]], [[*BOX, 0, 0.9]]).novel.n_gt == 0


def test_nothing_there(confuse):
    for result in (confuse([], []), confuse([], [[*BOX, 2, 0.9]]), group_confusion([], [], [], 0.2)):
        assert result.base == result.novel == ConfusionCounts(0, 0, 0, 0)
        assert set(result.base.shares().values()) == {None}
    text = json.dumps(confuse([[*BOX, 2, 0]], []).to_dict(), allow_nan=False)
    content = json.loads(text)
    assert content["base"]["n_gt"] == 0 and content["base"]["shares"]["missed"] is None
    assert content["novel"]["n_gt"] == content["novel"]["missed"] == content["novel"]["shares"]["missed"] == 1
    assert (content["score_threshold"], content["min_iou"]) == (0.2, 0.5)


def test_other_images_than_asked_for_are_an_error(make_truth, make_found):
    with pytest.raises(ValueError, match="images without detections: a"):
        group_confusion([make_truth("a")], [make_found("b")], IS_BASE, 0.2)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def slow_confusion(annotations, detections, threshold):
    """(group of the truth, what it was found as) -> how many."""
    counts = Counter()
    for annotation, found in zip(annotations, detections, strict=True):
        rows = zip(annotation.boxes.tolist(), annotation.labels.tolist(), annotation.difficult, strict=True)
        truths = [[box, label, None] for box, label, hard in rows if not hard]
        guesses = list(zip(found.scores.tolist(), found.boxes.tolist(), found.labels.tolist(), strict=True))
        for score, box, label in sorted(guesses, key=lambda guess: -guess[0]):
            free = [truth for truth in truths if truth[2] is None and iou(box, truth[0]) >= 0.5]
            if score >= threshold and free:
                max(free, key=lambda truth: iou(box, truth[0]))[2] = label
        for _, label, told in truths:
            group = "base" if label < 2 else "novel"
            if told is None:
                counts[group, "missed"] += 1
            elif told == label:
                counts[group, "as_itself"] += 1
            else:
                counts[group, "as_same_group" if (told < 2) == (label < 2) else "as_other_group"] += 1
    return counts


def test_equals_the_slow_twin():
    seen = Counter()
    for seed in range(30):
        annotations, detections = random_set(seed)
        result = group_confusion(annotations, detections, IS_BASE, 0.3)
        expected = slow_confusion(annotations, detections, 0.3)
        for group in ("base", "novel"):
            fates = getattr(result, group)._asdict()
            assert fates == {name: expected[group, name] for name in fates}, (seed, group)
        seen += expected
    assert len(seen) >= 7 and sum(seen.values()) > 300  # class 3 is never true, so no cat is called another novel class
    assert NAMES[2] == "cat"
