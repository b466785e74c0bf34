import itertools
import json
import os

import numpy as np
import pytest
from pycocotools.coco import COCO

from config.errors import UserError
from dl.files import DataError
from dl.formats.coco import looks_like_coco, read_coco

CATEGORIES = [{"id": 9, "name": "dog"}, {"id": 1, "name": " cat "}]


def image(number, name="a.jpg", **more):
    return {"id": number, "file_name": name, "width": 40, "height": 30, **more}


def thing(number, image_id, box=(1, 2, 3, 4), category=1, **more):
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": list(box), **more}


@pytest.fixture
def coco(tmp_path):
    """Read images, annotations and categories as a json."""

    times = itertools.count(1)

    def read(images, annotations, categories=CATEGORIES):
        path = tmp_path / "c.json"
        content = {"images": images, "annotations": annotations, "categories": categories}
        path.write_text(json.dumps(content), encoding="utf-8")
        os.utime(path, ns=(0, next(times)))  # the reader remembers files by their time
        return read_coco(path)

    return read


def test_boxes_are_kept_as_they_are(coco):
    file = coco([image(1)], [thing(5, 1, (1.25, 2.5, 10.1, 3)), thing(6, 1, category=9, iscrowd=1)])
    assert file.annotation_of("a.jpg") == (
        (40, 30), (("cat", (1.25, 2.5, 11.35, 5.5), False), ("dog", (1, 2, 4, 6), True)), 0, False,
    )  # fmt: skip
    assert list(file.categories) == [1, 9]
    assert (file.used_categories, file.errors, file.file_names) == ({1, 9}, [], ["a.jpg"])


def test_no_image_no_object(coco):
    assert coco([], []).file_names == []
    assert coco([image(1)], []).annotation_of("a.jpg") == ((40, 30), (), 0, False)


@pytest.mark.parametrize("size", [{"width": 0}, {"height": None}, {"width": "40"}])
def test_an_image_without_size(coco, size):
    assert coco([image(1, **size)], []).annotation_of("a.jpg").size is None


def test_ids_of_images_may_be_words(coco):
    assert len(coco([image("x")], [thing(1, "x")]).annotation_of("a.jpg").objects) == 1


def test_many_images_against_pycocotools(coco, tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = [image(int(number), f"{number}.jpg") for number in rng.permutation(50)]
    annotations = [
        thing(i + 1, int(rng.integers(50)), rng.random(4).round(3).tolist(), int(rng.choice([1, 9])))
        for i in range(300)
    ]
    file = coco(images, annotations)
    theirs = COCO(str(tmp_path / "c.json"))
    for number in range(50):
        rows = theirs.loadAnns(theirs.getAnnIds(imgIds=[number]))
        expected = [(x, y, x + w, y + h) for x, y, w, h in (row["bbox"] for row in rows)]
        objects = file.annotation_of(f"{number}.jpg").objects
        assert [entry.box for entry in objects] == expected
        assert [entry.name for entry in objects] == [{1: "cat", 9: "dog"}[row["category_id"]] for row in rows]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (thing(5, 1, category=2), "annotation 5 has category_id 2, which is not in categories"),
        (thing(5, 1, (1, 2, 3)), r"annotation 5 has bbox \[1, 2, 3\], expected \[x, y, width, height\]"),
        ({"id": 5, "image_id": 1, "category_id": 1}, "annotation 5 has bbox null"),
        (thing(5, 1, (1, 2, "x", 4)), 'annotation 5 has "x" in its bbox, which is not a number'),
        (thing(5, 1, (1, 2, float("nan"), 4)), "annotation 5 has NaN in its bbox, which is not a number"),
    ],
)
def test_a_faulty_object_spoils_its_own_image_only(coco, tmp_path, annotation, message):
    file = coco([image(1), image(2, "b.jpg")], [annotation, thing(6, 2)])
    with pytest.raises(UserError, match=rf"^{tmp_path}/c\.json: {message}.* \(image a\.jpg\)"):
        file.annotation_of("a.jpg")
    assert len(file.annotation_of("b.jpg").objects) == 1


def test_an_image_listed_twice(coco, tmp_path):
    file = coco([image(1), image(2), image(3, "b.jpg")], [])
    with pytest.raises(UserError, match=r"two entries of images have file_name a\.jpg; keep one"):
        file.annotation_of("a.jpg")
    file.annotation_of("b.jpg")


def test_what_belongs_to_no_image(coco, tmp_path):
    file = coco([image(1), image(1, "b.jpg"), {"id": 3}], [thing(5, 77), thing(6, 77), thing(7, None)])
    assert [fault.removeprefix(f"{tmp_path}/c.json: ") for fault in file.errors] == [
        "two entries of images have id 1; the second is b.jpg",
        'an image has no id or no file_name: {"id": 3}',
        "annotation 5 and 1 more: image_id 77 is not in images",
        "annotation 7: image_id null is not in images",
    ]


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "categories is empty"),
        ([{"id": 1}], "a category has no name"),
        ([{"name": "a"}], "the id of a category is not a whole number"),
        ([{"id": "seven", "name": "a"}], "the id of a category is not a whole number"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "two categories have id 1"),
        ([{"id": 2**63, "name": "a"}], "the id of a category is larger than 64 bits: .*; number them from 1"),
        ([{"id": str(2**64), "name": "a"}], "the id of a category is larger than 64 bits"),
        ([{"id": -(2**63), "name": "a"}], "the id of a category is larger than 64 bits"),
        ([{"id": 1, "name": "a\tb\u2028c"}], r"the name of a category: 'a\\tb\\u2028c' holds a control character"),
    ],
)
def test_categories_that_cannot_be_used(coco, categories, message):
    with pytest.raises(UserError, match=message):
        coco([], [], categories)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [],\n "annotations": [}', r"the json is invalid at line 2, column 18"),
        ("", "the json is invalid at line 1, column 1"),
        ('{"images": []}', "this is not a COCO file of objects: it has no list of annotations, categories"),
        ("[1]", ".*: it has no list of images, annotations, categories"),
    ],
)
def test_a_json_that_is_none_of_ours(tmp_path, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"^{path}: {message}"):
        read_coco(path)


def test_a_changed_json_is_read_again(coco):
    assert coco([image(1)], []) is not coco([image(1)], [])


def test_what_looks_like_coco(tmp_path):
    assert not looks_like_coco(tmp_path / "none.json")
    (tmp_path / "package.json").write_text('{"name": "mars", "version": 1}')
    assert not looks_like_coco(tmp_path / "package.json")
    (tmp_path / "empty.json").touch()
    assert not looks_like_coco(tmp_path / "empty.json")
    (tmp_path / "notes.json").write_text('{"categories": [{"id": 0, "name": "helmet"}], "info": {}}\n')
    assert not looks_like_coco(tmp_path / "notes.json"), "Label Studio writes it beside YOLO labels"
    (tmp_path / "late.json").write_text('{"images": [' + "1," * 100_000 + '1], "annotations": [], "categories": []}')
    assert looks_like_coco(tmp_path / "late.json")
    (tmp_path / "cut.json").write_text('{"info": {}, "images": [{"id": 1, ')
    assert looks_like_coco(tmp_path / "cut.json"), "so that reading it says where it ends"


@pytest.mark.parametrize(("as_category", "as_image"), [(str, int), (int, str), (str, str), (float, float)])
def test_ids_as_other_programs_write_them(coco, as_category, as_image):
    """A category, an image and an annotation that belong together although one of them has its number as text."""
    picture = {**image(7), "id": as_image(7)}
    file = coco([picture], [{**thing(1, 7), "category_id": as_category(1)}])
    assert [entry.name for entry in file.annotation_of("a.jpg").objects] == ["cat"]
    assert not file.errors


@pytest.mark.parametrize("number", [2**63, 2**64 + 1, 2**128 - 1, -(2**63)])
@pytest.mark.parametrize("as_image", [int, str])
def test_ids_of_images_may_be_uuids(coco, number, as_image):
    file = coco([{**image(1), "id": number}, image(2, "b.jpg")], [{**thing(1, 1), "image_id": number}])
    assert [len(file.annotation_of(name).objects) for name in ("a.jpg", "b.jpg")] == [1, 0]
    assert not file.errors
    if number > 0:
        file = coco([{**image(1), "id": number}], [{**thing(1, 1), "image_id": as_image(number)}])
        assert len(file.annotation_of("a.jpg").objects) == 1


def test_the_largest_id_of_a_category(coco):
    file = coco([image(1)], [thing(1, 1, category=2**63 - 1)], [{"id": 2**63 - 1, "name": "cat"}])
    assert [entry.name for entry in file.annotation_of("a.jpg").objects] == ["cat"]


def test_names_that_look_like_numbers_stay_apart(coco):
    entries = [{**image(1), "id": name, "file_name": f"{name}.jpg"} for name in ("007", "7", "0")]
    file = coco(entries, [{**thing(1, 1), "image_id": "007"}])
    assert [len(file.annotation_of(f"{name}.jpg").objects) for name in ("007", "7", "0")] == [1, 0, 0]


@pytest.mark.parametrize("number", [0, 10])
def test_a_category_beside_all_others_hints_at_a_shift(coco, number):
    file = coco([image(1)], [thing(1, 1, category=number)])
    with pytest.raises(
        DataError, match=rf"category_id {number}, which is not in categories \(1 to 9\); are all .*shifted"
    ):
        file.annotation_of("a.jpg")
