"""What a training is shown: whose labels are seen, which classes count as labelled, and what is replayed."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from config.errors import UserError
from config.mconfig import ModelConfig
from dl.annotations import Annotation
from dl.check import check_data
from dl.label_selection import num_repeats, select_labels, splits_to_train
from dl.loader import build_loader
from dl.mosaic import ModernRanges

CLASSES = ("cat", "dog", "owl")
CAT, DOG, OWL = range(3)


def image(name: str, *labels: int, difficult: tuple[int, ...] = ()) -> Annotation:
    """Objects of these labels; those at the places in `difficult` are marked so."""
    boxes = np.array([[i, 1, i + 5, 9] for i in range(len(labels))], np.float32).reshape(-1, 4)
    is_difficult = np.isin(np.arange(len(labels)), difficult)
    return Annotation(
        name, Path(f"{name}.jpg"), Path(f"{name}.xml"), 40, 30, boxes, np.array(labels, np.int64), is_difficult
    )


SMALL = [image("a", CAT, DOG), image("b", DOG), image("c", CAT), image("d")]
TRAIN = [
    *SMALL,
    *(image(f"{name}{i}", label) for label, name in enumerate("xyz") for i in range(6)),
    image("both", CAT, OWL),
]


@pytest.fixture
def student(config):
    """student(field=value, ...) -> the config of a run that distils on the split small."""

    def make(**fields):
        usual = {
            "classList": CLASSES,
            "trainSplitName": "small",
            "modelName": "distillation",
            "teacherModelFile": "t.pth",
        }
        return config(**{**usual, **fields})

    return make


def labels_of(annotations) -> dict[str, list[int]]:
    return {one.image_id: one.labels.tolist() for one in annotations}


def marks_of(annotations) -> dict[str, list[bool] | None]:
    return {one.image_id: None if one.labelled is None else one.labelled.tolist() for one in annotations}


def alike(names: str, mark: list[bool]) -> dict[str, list[bool]]:
    """The same mark for each of these images."""
    return {name: list(mark) for name in names}


ALL_SEEN = {"a": [CAT, DOG], "b": [DOG], "c": [CAT], "d": []}
DOGS_SEEN = {"a": [DOG], "b": [DOG], "c": [], "d": []}


# Which splits


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["train", "validation"]),
        ({"epochValidation": False}, ["train"]),
        ({"trainSplitName": "small"}, ["small", "validation"]),
        ({"trainSplitName": "small", "replayImages": 1}, ["small", "validation", "train"]),
        ({"trainSplitName": "small", "epochValidation": False, "replayImages": 9}, ["small", "train"]),
        ({"replayImages": 1, "validationSplitName": "train"}, ["train"]),
    ],
)
def test_the_splits_that_a_training_reads(config, fields, expected):
    assert splits_to_train(config(**fields)) == expected


# Whose labels


def test_all_labels_unless_classes_are_selected(student):
    shown = select_labels(student(), "small", SMALL)
    assert (labels_of(shown), marks_of(shown)) == (ALL_SEEN, dict.fromkeys("abcd"))
    assert select_labels(student(unlabelledClasses="mask"), "small", SMALL) == SMALL, "everything is labelled"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"modelName": "base", "trainSelectedClasses": ["dog"]}, DOGS_SEEN),
        ({"modelName": "base", "distilSelectedClasses": ["dog"]}, ALL_SEEN),
        ({"distilSelectedClasses": ["dog"]}, DOGS_SEEN),
        ({"distilSelectedClasses": ["dog"], "trainSelectedClasses": ["cat"]}, DOGS_SEEN),
        ({"trainSelectedClasses": ["dog"]}, DOGS_SEEN),
        ({"distilSelectedClasses": ["owl", "dog", "cat"]}, ALL_SEEN),
        ({"distilSelectedClasses": ["dog"], "unselectedImages": "drop"}, {"a": [DOG], "b": [DOG], "d": []}),
    ],
)
def test_a_student_has_a_selection_of_its_own(student, fields, expected):
    assert labels_of(select_labels(student(**fields), "small", SMALL)) == expected
    assert labels_of(SMALL) == ALL_SEEN, "the split itself is left alone"


@pytest.mark.parametrize(
    ("num_shown", "num_replayed", "repeats"),
    [
        *((14, 40, 3), (16, 40, 2), (22, 40, 2), (40, 40, 2), (1, 5, 5), (20, 0, 1), (0, 7, 1)),
        *((310, 160, 2), (310, 104, 2), (310, 103, 1), (310, 50, 1)),
    ],
)
def test_a_small_split_comes_as_often_as_makes_it_about_half_and_twice_beside_many(num_shown, num_replayed, repeats):
    assert num_repeats(num_shown, num_replayed) == repeats


def test_the_field_that_selects_is_named(student, caplog):
    with caplog.at_level("INFO", logger="mars"):
        select_labels(student(distilSelectedClasses=["dog"]), "small", SMALL)
    said = "split 'small' has 4 images; 1 of them have only other classes and are background (unselectedImages=keep)"
    assert caplog.messages == [f"distilSelectedClasses=dog: {said}"]
    with pytest.raises(
        UserError, match=r"^distilSelectedClasses=owl: split 'small' .* has no object of these classes; select"
    ):
        select_labels(student(distilSelectedClasses=["owl"]), "small", SMALL)
    with pytest.raises(
        UserError, match=r"^trainSelectedClasses=owl: split 'small' .* has no object of these classes; select"
    ):
        select_labels(student(trainSelectedClasses=["owl"], modelName="base"), "small", SMALL)


def test_nothing_to_learn_is_refused_even_with_replay(student):
    for shown in ([], [image("d")]):
        with pytest.raises(UserError, match=r"split 'small' .* has no object to train on"):
            select_labels(student(baseClasses=1, replayImages=3), "small", shown, TRAIN)


# Which classes are labelled


@pytest.mark.parametrize("word", ["mask", "pseudo"])
def test_classes_whose_labels_are_not_seen_are_marked(student, word):
    one = select_labels(student(distilSelectedClasses=["dog"], unlabelledClasses=word), "small", SMALL)
    assert marks_of(one) == alike("abcd", [False, True, False])
    two = select_labels(student(distilSelectedClasses=["owl", "cat"], unlabelledClasses=word), "small", SMALL)
    assert marks_of(two) == alike("abcd", [True, False, True])
    drop = {"distilSelectedClasses": ["dog"], "unselectedImages": "drop", "unlabelledClasses": word}
    assert marks_of(select_labels(student(**drop), "small", SMALL)) == alike("abd", [False, True, False])


def test_as_background_nothing_is_marked(student):
    assert marks_of(select_labels(student(distilSelectedClasses=["dog"]), "small", SMALL)) == dict.fromkeys("abcd")


def test_a_teacher_may_mask_as_well(student):
    base = {"modelName": "base", "trainSelectedClasses": ["cat"], "unlabelledClasses": "mask"}
    assert marks_of(select_labels(student(**base), "small", SMALL)) == alike("abcd", [True, False, False])


# Replay


def replayed(mcfg: ModelConfig, split=SMALL, replay_from=TRAIN) -> list[Annotation]:
    """What comes behind the images of the split, which must come first and in their order."""
    shown = select_labels(mcfg, "small", list(split), replay_from)
    own = [one.image_id for one in split]
    count = sum(one.image_id in own for one in shown)
    again = shown[count:]
    once = [name for name in own if name in labels_of(shown)]
    assert [one.image_id for one in shown[:count]] == once * num_repeats(len(once), len(again))
    return again


@pytest.mark.parametrize("count", [1, 5, 99])
def test_other_images_are_replayed_with_labels_of_the_base_classes(student, count):
    shown = replayed(student(baseClasses=["cat", "owl"], replayImages=count))
    assert len(shown) == min(count, 13), "six cats, six owls, one image of both; no image of a dog only"
    assert {one.image_id for one in shown} & set("abcd") == set()
    truth = labels_of(TRAIN)
    assert all(one.labels.tolist() == truth[one.image_id] for one in shown)
    shown = replayed(student(baseClasses=1, replayImages=count))
    assert labels_of(shown)["both" if count == 99 else shown[0].image_id] == [CAT], "the owl's label is not shown"
    assert all(one.labels.tolist() == [CAT] and len(one.boxes) == len(one.difficult) == 1 for one in shown)
    assert len(shown) == min(count, 7)


@pytest.mark.parametrize("seed", range(5))
def test_replay_is_balanced(student, seed):
    shown = replayed(student(baseClasses=["cat", "owl"], replayImages=6, smallSeed=seed))
    objects = Counter(label for one in shown for label in one.labels.tolist())
    assert set(objects) == {CAT, OWL} and abs(objects[CAT] - objects[OWL]) <= 1


def test_replay_depends_on_its_seed_alone(student):
    def names(small_seed, replay_from=TRAIN, **fields):
        mcfg = student(baseClasses=["cat", "owl"], replayImages=4, smallSeed=small_seed, **fields)
        return [one.image_id for one in replayed(mcfg, replay_from=replay_from)]

    assert names(0) == names(0, seed=5, maxEpoch=3)
    assert set(names(0)) == set(names(0, TRAIN[::-1]))
    assert len({tuple(names(seed)) for seed in range(6)}) > 1
    order = [one.image_id for one in TRAIN]
    assert names(0) == sorted(names(0), key=order.index), "as the split lists them"


def test_images_of_the_split_are_never_replayed(student):
    """Not even those that are left out of it, because they hold base classes only."""
    fields = {"baseClasses": 1, "replayImages": 99, "distilSelectedClasses": ["dog"]}
    for unselected in ("keep", "drop"):
        shown = select_labels(student(**fields, unselectedImages=unselected), "small", SMALL, TRAIN)
        names = [one.image_id for one in shown]
        own = [name for name in names if name in "abcd"]
        again = names[len(own) :]
        assert len(again) == len(set(again)) and not set(again) & set(own)
        assert ("c" in names) == (unselected == "keep")
        assert names[-1] == "both"
    assert replayed(student(baseClasses=1, replayImages=9), split=TRAIN) == []


def test_without_replay_there_is_none(student):
    assert replayed(student(baseClasses=1)) == []
    assert replayed(student(baseClasses=1, replayImages=5), replay_from=()) == []


def test_difficult_objects_are_no_reason_to_replay(student):
    train = [image("p", CAT, difficult=(0,)), image("q", CAT, CAT, difficult=(1,)), image("r")]
    (one,) = replayed(student(baseClasses=1, replayImages=9), replay_from=train)
    assert (one.image_id, one.difficult.tolist()) == ("q", [False, True])


@pytest.mark.parametrize(
    ("fields", "own", "again"),
    [
        ({}, None, [True, False, False]),
        ({"unlabelledClasses": "mask"}, None, [True, False, False]),
        ({"distilSelectedClasses": ["dog", "owl"]}, None, [True, False, False]),
        (
            {"distilSelectedClasses": ["dog", "owl"], "unlabelledClasses": "mask"},
            [False, True, True],
            [True, False, False],
        ),
        ({"distilSelectedClasses": ["dog"], "unlabelledClasses": "pseudo"}, [False, True, False], [True, False, False]),
    ],
)
def test_replayed_images_have_marks_of_their_own(student, fields, own, again):
    shown = select_labels(student(baseClasses=1, replayImages=3, **fields), "small", SMALL, TRAIN)
    marks = marks_of(shown)
    assert len(marks) == 7
    assert all(mark == (own if name in "abcd" else again) for name, mark in marks.items())


def test_how_many_are_replayed_is_said(student, caplog):
    with caplog.at_level("INFO", logger="mars"):
        replayed(student(baseClasses=["cat", "owl"], replayImages=5))
    assert caplog.messages == ["replay: 5 images with labels of the 2 base classes"]


# Through the loader


@pytest.fixture
def folder(make_folder, write_voc):
    """small: a cat dog, b dog, c cat; train: these, and owls and cats and dogs to replay."""
    names = {"a": "cat dog", "b": "dog", "c": "cat", "e": "cat", "f": "owl", "g": "dog", "h": "cat owl"}
    base = make_folder(
        {"train": [*names], "small": ["a", "b", "c"], "validation": ["v"], "test": ["t"]}, classes=CLASSES
    )
    for name, words in names.items():
        boxes = [(word, (4 + 8 * place, 4, 12 + 8 * place, 26)) for place, word in enumerate(words.split())]
        write_voc(base / f"annotations/{name}.xml", objects=boxes)
    return base


def batches(mcfg, replay=False):
    """image id -> its row of labels, and of marks, over two epochs."""
    data = check_data(mcfg, splits_to_train(mcfg))
    loader = build_loader(mcfg, "small", data.splits["small"], replay_from=data.splits["train"] if replay else ())
    rows = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        rows += list(loader)
    loader.close()
    return rows


SELECTED = {
    "trainSplitName": "small", "trainSelectedClasses": ["dog", "owl"], "epochValidation": False, "augmentation": "none",
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_labels_and_marks_reach_the_batch(folder, config, workers, classes):
    fields = {**SELECTED, "baseClasses": 1, "replayImages": 9, "unlabelledClasses": "mask", "dcore": workers}
    rows = batches(config(folder, classList=classes, **fields), replay=True)
    seen = {}
    for batch in rows:
        assert batch.labelled is not None and batch.labelled.dtype == torch.bool
        assert batch.labelled.shape == (len(batch), 3)
        for row, name in enumerate(batch.image_ids):
            found = batch.labels[row][batch.valid[row]].tolist(), batch.labelled[row].tolist()
            assert seen.setdefault(name, found) == found
    own, again = [False, True, True], [True, False, False]
    assert seen == {
        "a": ([DOG], own), "b": ([DOG], own), "c": ([], own), "e": ([CAT], again), "h": ([CAT], again),
    }  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_on_which_everything_is_labelled_says_nothing(folder, config, workers):
    for fields in (SELECTED, {**SELECTED, "trainSelectedClasses": None, "unlabelledClasses": "mask"}):
        found = batches(config(folder, **fields, dcore=workers))
        assert found and all(batch.labelled is None for batch in found)


def test_where_only_replayed_images_are_marked_the_others_are_labelled_whole(folder, config):
    fields = {
        **SELECTED,
        "trainSelectedClasses": None,
        "baseClasses": 1,
        "replayImages": 9,
        "unlabelledClasses": "mask",
    }
    (batch, *_) = batches(config(folder, **fields, batchSize=8), replay=True)
    marks = dict(zip(batch.image_ids, batch.labelled.tolist(), strict=True))
    assert {name: marks[name] for name in "abceh"} == {
        **alike("abc", [True, True, True]), **alike("eh", [True, False, False]),
    }  # fmt: skip


def test_a_mosaic_joins_only_images_with_the_same_labels(folder, config):
    mcfg = config(folder, trainSplitName="small", baseClasses=1, replayImages=9, unlabelledClasses="mask",
                  trainSelectedClasses=["dog", "owl"], epochValidation=False)  # fmt: skip
    data = check_data(mcfg, ["small", "train"])
    loader = build_loader(mcfg, "small", data.splits["small"], replay_from=data.splits["train"])
    dataset = loader.dataset
    dataset.ranges = ModernRanges(mosaic_end=9)
    kinds = Counter()
    for epoch in range(9):
        for index in range(len(dataset)):
            sample = dataset[(epoch, index)]
            kinds[tuple(sample.labelled.tolist())] += 1
            assert sample.labelled[sample.labels].all()
    assert set(kinds) == {(False, True, True), (True, False, False)}


def test_evaluation_sees_every_label_and_no_replay(folder, config):
    mcfg = config(folder, **SELECTED, baseClasses=1, replayImages=9, unlabelledClasses="mask", batchSize=8)
    data = check_data(mcfg, ["small", "train"])
    (batch,) = build_loader(mcfg, "small", data.splits["small"], train=False, replay_from=data.splits["train"])
    assert (batch.image_ids, batch.labelled) == (("a", "b", "c"), None)
    assert batch.labels[batch.valid].tolist() == [CAT, DOG, DOG, CAT]
