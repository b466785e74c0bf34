import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import UserError
from dl.splits import canonical_name, carve_validation, find_split, hinted_names, make_splits


@pytest.mark.parametrize(
    ("name", "expected"),
    [("val", "validation"), ("Valid", "validation"), ("dev", "validation"), ("Train", "train"), ("training", "train"),
     ("testing", "test"), ("small", "small"), ("FewShot", "FewShot")],
)  # fmt: skip
def test_canonical_name(name, expected):
    assert canonical_name(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bird_val", {"validation"}), ("train2017", {"train"}), ("VOC-Test", {"test"}), ("my.trainval", {"trainval"}),
     ("train vs test", {"train", "test"}), ("classes", set()), ("README", set()), ("trains", set()), ("", set())],
)  # fmt: skip
def test_hinted_names(name, expected):
    assert hinted_names(name) == expected


def test_find_split_by_name_then_by_alias():
    splits = {"train": ("a",), "val": ("b",)}
    assert find_split("val", splits) == "val"
    assert find_split("validation", splits) == "val"
    assert find_split("test", splits) is None
    assert find_split("validation", {}) is None


@given(count=st.integers(3, 200), seed=st.integers(0, 5))
def test_made_splits_share_every_image_out(count, seed):
    ids = [f"i{n}" for n in range(count)]
    splits = make_splits(ids, seed)
    assert sorted(name for names in splits.values() for name in names) == sorted(ids)
    assert all(splits.values())
    assert abs(len(splits["validation"]) - 0.15 * count) <= 1
    assert abs(len(splits["test"]) - 0.15 * count) <= 1


def test_made_splits_depend_on_ids_and_seed_alone():
    ids = [f"i{n}" for n in range(40)]
    assert make_splits(reversed(ids), 1) == make_splits(ids + ids, 1)
    assert make_splits(ids, 1) != make_splits(ids, 2)


def test_made_splits_are_the_same_in_every_release():
    """Golden: a change here would move test images of finished runs into training."""
    ids = [f"i{n}" for n in range(8)]
    train = ("i0", "i2", "i4", "i5", "i6", "i7")
    assert make_splits(ids, 859) == {"train": train, "validation": ("i3",), "test": ("i1",)}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images_to_split(count):
    with pytest.raises(UserError, match=f"{count} images: at least three are needed"):
        make_splits([str(n) for n in range(count)], 0)


def test_carve_keeps_order_and_what_is_bound():
    train = [f"i{n}" for n in range(20, 0, -1)]
    rest, validation = carve_validation(train, ["i1", "i2"], seed=3)
    assert len(validation) == 3
    assert not {"i1", "i2"} & set(validation)
    assert list(rest) == [name for name in train if name not in validation]


def test_carve_at_least_one_and_never_all():
    assert tuple(map(len, carve_validation(["a", "b"], [], 0))) == (1, 1)
    for train, bound in ((["a"], []), ([], []), (["a", "b"], ["a", "b"])):
        with pytest.raises(UserError, match="too few to take validation images"):
            carve_validation(train, bound, 0)
