"""Small parts of a split, judged by counting objects one by one; the draws by a twin written as plain loops."""

import hashlib
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl.annotations import Annotation
from dl.splits import count_objects, draw_replay, draw_share, draw_shots


def annotation(name: str, labels=(), difficult=()) -> Annotation:
    """`difficult` are the labels of objects marked so."""
    both = [*labels, *difficult]
    boxes = np.tile(np.array([1, 2, 8, 9], dtype=np.float32), (len(both), 1))
    marks = np.array([False] * len(labels) + [True] * len(difficult), dtype=bool)
    return Annotation(name, Path(name), Path(name), 10, 10, boxes, np.array(both, dtype=np.int64), marks)


@st.composite
def splits(draw) -> list[Annotation]:
    """Up to forty images with up to six objects of five classes, class 4 being rare, some difficult."""
    label = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 3, 4])
    objects = st.tuples(st.lists(label, max_size=6), st.lists(label, max_size=1))
    return [annotation(f"i{n}", *both) for n, both in enumerate(draw(st.lists(objects, max_size=40)))]


def objects_of(annotations, names) -> Counter:
    """Label -> objects that count on these images."""
    counts = Counter()
    for one in annotations:
        if one.image_id in names:
            for label, is_difficult in zip(one.labels.tolist(), one.difficult.tolist(), strict=True):
                counts[label] += not is_difficult
    return counts


def hashed(annotations, seed):
    """(hash, image), in the order in which images are drawn."""
    ids = [one.image_id for one in annotations]
    return sorted((hashlib.sha256(f"{seed}/{name}".encode()).hexdigest(), name) for name in ids)


def shuffled(annotations):
    return random.Random(7).sample(annotations, len(annotations))


FORTY = [annotation(f"i{n}", [n % 3] * (1 + n % 2)) for n in range(40)]


@given(annotations=splits(), shots=st.integers(1, 8), seed=st.integers(0, 3))
def test_every_class_has_its_shots_and_no_image_is_too_many(annotations, shots, seed):
    drawn = draw_shots(annotations, 5, shots, seed)
    whole, part = objects_of(annotations, {one.image_id for one in annotations}), objects_of(annotations, drawn)
    needed = {label: min(shots, whole[label]) for label in range(5)}
    assert all(part[label] >= needed[label] for label in range(5))
    for name in drawn:
        without = objects_of(annotations, set(drawn) - {name})
        assert any(without[label] < needed[label] for label in range(5)), name


@given(annotations=splits(), seed=st.integers(0, 3))
def test_draws_do_not_depend_on_the_order_but_keep_it(annotations, seed):
    for draw in (
        lambda some: draw_shots(some, 5, 3, seed),
        lambda some: draw_share(some, 0.3, seed),
        lambda some: draw_replay(some, [0, 4], 5, seed),
    ):
        drawn, other = draw(annotations), draw(shuffled(annotations))
        assert drawn == draw(annotations) == [one.image_id for one in annotations if one.image_id in drawn]
        assert other == [one.image_id for one in shuffled(annotations) if one.image_id in drawn]


def shots_twin(annotations, shots, seed):
    """Rarest class first, of two as rare the first; then the last drawn is the first to be taken out."""
    order, taken = [name for _, name in hashed(annotations, seed)], set()
    whole = objects_of(annotations, order)
    of_image = {one.image_id: objects_of([one], [one.image_id]) for one in annotations}
    for label in sorted(range(5), key=lambda label: (whole[label], label)):
        for name in order:
            if objects_of(annotations, taken)[label] < min(shots, whole[label]) and of_image[name][label]:
                taken.add(name)
    for name in reversed(order):
        without = objects_of(annotations, taken - {name})
        if all(without[label] >= min(shots, whole[label]) for label in range(5)):
            taken.discard(name)
    return taken


@pytest.mark.parametrize("seed", range(5))
def test_shots_are_those_of_the_twin(seed):
    draw, shots = random.Random(seed), 2 + seed
    annotations = [annotation(f"i{n}", draw.choices(range(5), [9, 5, 1, 3, 2], k=draw.randrange(6))) for n in range(60)]
    assert set(draw_shots(annotations, 5, shots, seed)) == shots_twin(annotations, shots, seed)


def test_another_seed_draws_others():
    for draw in (
        lambda seed: draw_shots(FORTY, 3, 3, seed),
        lambda seed: draw_share(FORTY, 0.2, seed),
        lambda seed: draw_replay(FORTY, [0, 1, 2], 9, seed),
    ):
        assert len({tuple(draw(seed)) for seed in range(5)}) == 5


def test_the_rare_class_brings_the_common_one_along():
    annotations = [annotation("a", [0]), annotation("b", [0, 1]), annotation("c", [0, 0])]
    assert all(draw_shots(annotations, 2, 1, seed) == ["b"] for seed in range(9))


def test_an_image_that_later_ones_made_needless_is_taken_out():
    """Class 1 is rarest, and of its two images either comes first; for class 0 only b is enough."""
    annotations = [annotation("a", [1]), annotation("b", [1, 0, 0, 0])]
    assert all(draw_shots(annotations, 2, 1, seed) == ["b"] for seed in range(9))


def test_difficult_objects_are_no_shots():
    annotations = [annotation("a", [], [0, 0, 0]), annotation("b", [0], [0]), annotation("c", [0])]
    assert draw_shots(annotations, 1, 2, 0) == draw_shots(annotations, 1, 9, 0) == ["b", "c"]
    assert draw_replay(annotations, [0], 9, 0) == ["b", "c"]


@pytest.mark.parametrize("annotations", [[], [annotation("a")], [annotation("a", [], [0])]])
def test_nothing_to_draw(annotations):
    assert draw_shots(annotations, 3, 5, 0) == draw_replay(annotations, [0, 2], 5, 0) == []
    assert draw_replay(FORTY, [], 5, 0) == draw_replay(FORTY, [9], 5, 0) == draw_replay(FORTY, [0], 0, 0) == []


def test_draws_are_the_same_in_every_release():
    """Golden: a change here would give runs of one name other images."""
    assert draw_shots(FORTY, 3, 3, 0) == ["i0", "i7", "i15", "i23", "i25", "i29"]
    assert draw_share(FORTY, 0.1, 0) == ["i0", "i6", "i23", "i25"]


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(40, 0.25, 10), (40, 1, 40), (40, 0.001, 1), (3, 0.5, 2), (1, 0.1, 1), (0, 0.5, 0)]
)
def test_a_share_of_the_images(count, share, expected):
    assert len(draw_share(FORTY[:count], share, 3)) == expected


def test_a_share_is_the_first_by_hash_so_that_a_larger_one_holds_the_smaller():
    for share, count in ((0.1, 4), (0.5, 20)):
        assert set(draw_share(FORTY, share, 5)) == {name for _, name in hashed(FORTY, 5)[:count]}


def replay_twin(annotations, labels, count, seed):
    """Every round looks at all images again."""
    by_name, taken = {one.image_id: one for one in annotations}, []
    while len(taken) < count:
        have = objects_of(annotations, taken)
        for label in sorted(labels, key=lambda label: (have[label], label)):
            free = [name for _, name in hashed(annotations, seed) if name not in taken]
            fitting = [name for name in free if objects_of([by_name[name]], [name])[label]]
            if fitting:
                taken.append(fitting[0])
                break
        else:
            break
    return set(taken)


@given(annotations=splits(), labels=st.sets(st.integers(0, 4)), count=st.integers(0, 12), seed=st.integers(0, 3))
def test_replay_is_that_of_the_twin(annotations, labels, count, seed):
    drawn = draw_replay(annotations, labels, count, seed)
    assert set(drawn) == replay_twin(annotations, labels, count, seed)
    of_theirs = [one for one in annotations if any(objects_of([one], [one.image_id])[label] for label in labels)]
    assert len(drawn) == min(count, len(of_theirs))


def test_replay_is_balanced_where_images_hold_one_object():
    annotations = [annotation(f"i{n}", [0 if n < 90 else n % 3]) for n in range(120)]
    for count in (1, 6, 20, 30):
        part = objects_of(annotations, draw_replay(annotations, [2, 0, 1], count, 4))
        assert part.total() == count
        assert max(part[label] for label in range(3)) - min(part[label] for label in range(3)) <= 1


def test_counts_of_objects_images_and_difficult_ones():
    annotations = [annotation("a", [0, 0, 2], [1]), annotation("b", [0], [2, 2]), annotation("c")]
    counts = count_objects(annotations, 4)
    assert (counts.objects, counts.images, counts.difficult) == ((3, 0, 1, 0), (2, 0, 1, 0), (0, 1, 2, 0))
    assert count_objects([], 2) == ((0, 0), (0, 0), (0, 0))
