"""Mistakes in a data set whose files can all be read: what is said, with file names, and when it is refused."""

import json

import pytest

from config.errors import UserError
from dl.check import check_data
from dl.report import LABELIMG_CLASSES, SplitReport, box_warnings, class_warnings

SIDES = {
    "swapped": (25, 26, 5, 6),
    "outside": (300, 6, 325, 26),
    "empty": (5, 6, 5, 26),
    "shares": (0.1, 0.2, 0.6, 0.9),
}


@pytest.fixture
def voc_with(three_splits, write_voc):
    """voc_with(a=[box, ...]) -> the data set with these boxes of cats in a.xml."""

    def make(**boxes_of):
        for name, boxes in boxes_of.items():
            write_voc(three_splits / f"annotations/{name}.xml", objects=[("cat", box) for box in boxes])
        return three_splits

    return make


def remarks(folder, config, splits=("train",), **fields):
    return check_data(config(folder, **fields), list(splits)).report.warnings


def test_each_reason_is_told_apart_with_its_files(voc_with, config):
    folder = voc_with(a=[SIDES["swapped"], (1, 1, 9, 9)], b=[SIDES["outside"], SIDES["swapped"]], c=[SIDES["empty"]])
    report = check_data(config(folder), ["train"]).report
    assert report.splits["train"].dropped == {"with swapped corners": 2, "outside the image": 1, "without area": 1}
    swapped, *others = report.warnings
    assert swapped == "2 boxes with swapped corners in 2 files: a.xml, b.xml; write the smaller x and y first"
    assert any(text.startswith("1 box outside the image in 1 file: b.xml") for text in others)
    assert "80.0 % of all boxes are dropped" in others
    assert report.splits["train"].dropped_share == pytest.approx(4 / 5)
    assert "! 2 boxes with swapped corners" in report.table()


@pytest.mark.parametrize("kind", SIDES)
@pytest.mark.parametrize("split", ["train", "every split"])
def test_a_data_set_that_loses_all_boxes_is_refused(voc_with, config, kind, split):
    names = "abc" if split == "train" else "abcdef"
    folder = voc_with(**{name: [SIDES[kind]] for name in names})
    words = {"swapped": "swapped corners", "outside": "outside", "empty": "without area", "shares": "fractions"}
    whole = "the data set" if split == "every split" else "split 'train'"
    with pytest.raises(UserError, match=rf"{folder}/annotations: no box of {whole} can be used: .*{words[kind]}"):
        check_data(config(folder), ["train", "validation", "test"])


def test_coco_boxes_as_fractions_name_the_images(tmp_path, config, write_image):
    names = [f"{name}.jpg" for name in "abcd"]
    for name in names:
        write_image(tmp_path / f"data/{name}")
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "bbox": [0.1, 0.1, 0.5, 0.5]} for number in range(4)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "data/all.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"4 boxes within the first pixel in 4 files: .*[abcd]\.jpg, .*fractions"):
        check_data(config(tmp_path / "data"), ["train", "validation", "test"])


@pytest.mark.parametrize("written", ["voc", "coco", "yolo"])
def test_an_object_twice_is_one_rule_for_all_formats(tmp_path, config, write_image, write_voc, written):
    base = tmp_path / "data"
    for name in "abc":
        write_image(base / f"images/{name}.jpg", (40, 40))
        if written == "voc":
            objects = [("cat", (10, 10, 30, 30))] * 2 + [("dog", (10, 10, 30, 30))]
            write_voc(base / f"annotations/{name}.xml", (40, 40), objects)
        elif written == "yolo":
            (base / "labels").mkdir(exist_ok=True)
            (base / f"labels/{name}.txt").write_text("0 .5 .5 .5 .5\n1 0.5 0.5 0.5 0.5\n0 0.50 .5 .5 .5\n")
    (base / "classes.txt").write_text("cat\ndog\n")
    if written == "coco":
        objects = [(image, category) for image in range(3) for category in (1, 1, 2)]
        content = {
            "images": [{"id": number, "file_name": f"{name}.jpg"} for number, name in enumerate("abc")],
            "annotations": [
                {"id": number, "image_id": image, "category_id": category, "bbox": [10, 10, 20, 20]}
                for number, (image, category) in enumerate(objects)
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        (base / "all.json").write_text(json.dumps(content))
    checked = check_data(config(base), ["train", "validation", "test"])
    for split, annotations in checked.splits.items():
        assert [one.labels.tolist() for one in annotations] == [[0, 1]]
        assert annotations[0].boxes.tolist() == [[10, 10, 30, 30]] * 2
        assert checked.report.splits[split].duplicate_objects == 1
    (text,) = [
        text
        for text in checked.report.warnings
        if "3 duplicate objects (same class and box) in 3 files, counted once" in text
    ]
    assert all(f"{name}." in text for name in "abc")


def test_xml_without_an_image_and_labels_without_an_image(three_splits, config, write_voc, tmp_path, write_image):
    write_voc(three_splits / "annotations/stranger.xml")
    (text,) = [text for text in remarks(three_splits, config) if "without an image of the same name" in text]
    assert text.startswith(
        f"1 xml file below {three_splits}/annotations without an image of the same name, so objects are not used"
    )
    assert "stranger.xml" in text
    base = tmp_path / "yolo"
    for split in ("train", "val"):
        for number in range(2):
            write_image(base / f"images/{split}/{split}{number}.jpg")
            for name in (f"{split}{number}", f"lost-{number}"):
                (base / f"labels/{split}").mkdir(parents=True, exist_ok=True)
                (base / f"labels/{split}/{name}.txt").write_text("0 .5 .5 .2 .2\n")
    for name, content in (
        ("classes.txt", "cat\n"),
        ("labels/train/README.txt", "labels of 2024"),
        ("labels/train/e.txt", ""),
    ):
        (base / name).write_text(content)
    (text,) = [text for text in remarks(base, config) if "without an image of the same name" in text]
    assert text.startswith(f"4 label files below {base} without an image of the same name")
    assert "labels/train/lost-0.txt, labels/train/lost-1.txt" in text


def test_images_that_need_a_plugin_are_named_in_every_format(three_splits, config, write_voc, tmp_path, write_image):
    (three_splits / "images/a.jpg").rename(three_splits / "images/a.HEIC")
    (three_splits / "images/a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UserError, match=r"images/a\.HEIC: the image cannot be read .*install pillow-heif"):
        check_data(config(three_splits), ["train"])
    base = tmp_path / "yolo"
    for name in "bcd":
        write_image(base / f"images/{name}.jpg")
        (base / "labels").mkdir(exist_ok=True)
        (base / f"labels/{name}.txt").write_text("0 .5 .5 .2 .2\n")
    (base / "images/x.heif").write_bytes(b"\0\0\0\x18ftypheic")
    (base / "classes.txt").write_text("cat\n")
    with pytest.raises(UserError, match=r"images/x\.heif: the image cannot be read .*install pillow-heif"):
        check_data(config(base), ["train", "validation", "test"])


def report_of(class_list, *counts):
    report = SplitReport(images=3, objects=sum(counts))
    report.per_class.update(dict(zip(class_list, counts, strict=True)))
    return report


def test_classes_that_all_have_objects():
    assert list(class_warnings(("cat", "dog"), report_of(("cat", "dog"), 3, 1), "train", True)) == []
    assert list(class_warnings(("cat", "dog"), SplitReport(), "train", True)) == [], "no object at all: said elsewhere"
    assert list(box_warnings([], 7)) == []


@pytest.mark.parametrize(
    ("counts", "has_numbers", "hint"),
    [
        ((0, 4, 5, 2), True, "the first class of the list"),
        ((4, 5, 2, 0), True, "the last class of the list"),
        ((4, 0, 5, 2), True, None),
        ((0, 4, 5, 0), True, None),
        ((0, 4, 5, 2), False, None),  # classes by name: nothing to shift
    ],
)
def test_a_shift_by_one_class_is_suspected_where_the_data_allow_it(counts, has_numbers, hint):
    names = ("ant", "bee", "cow", "dog")
    (text,) = class_warnings(names, report_of(names, *counts), "train", has_numbers)
    assert text.startswith(f"{counts.count(0)} of 4 classes have no object in 'train'")
    assert ("shifted by one" in text) == (hint is not None)
    assert hint is None or hint in text


def test_the_examples_of_labelimg():
    names = (*(name.replace(" ", "_") for name in LABELIMG_CLASSES), "bolt", "nut")
    (text,) = class_warnings(names, report_of(names, *[0] * 15, 3, 4), "train", True)
    assert text.startswith("15 of 17 classes have no object in 'train'")
    assert "labelImg" in text and "classes.txt" in text and "--set classList=bolt,nut" in text
