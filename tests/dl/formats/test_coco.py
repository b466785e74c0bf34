"""COCO data sets as exports and people lay them out, through `locate` and `check_data`."""

import json

import pytest

from config.errors import UserError
from dl.check import check_data
from dl.formats.discover import as_overrides, locate


def content(names, size=(40, 30), categories=((1, "cat"), (5, "dog")), **more):
    """A json with one object an image."""
    images = [{"id": i, "file_name": name, "width": size[0], "height": size[1]} for i, name in enumerate(names)]
    annotations = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 20, 10]} for i in range(len(names))]
    entries = [{"id": number, "name": name} for number, name in categories]
    return {"images": images, "annotations": annotations, "categories": entries, **more}


@pytest.fixture
def lay_out(tmp_path, write_image):
    """lay_out({"annotations/instances_train2017.json": content}, "train2017/a.jpg", ...) -> their folder."""

    def make(jsons, *images):
        base = tmp_path / "data"
        for image in images:
            write_image(base / image)
        for path, said in jsons.items():
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            (base / path).write_text(json.dumps(said))
        return base

    return make


@pytest.fixture
def plain(lay_out):
    return lay_out(
        {
            "annotations/instances_train2017.json": content(["b.jpg", "a.jpg"]),
            "annotations/instances_val2017.json": content(["c.jpg"]),
            "annotations/image_info_test2017.json": {"images": []},
            "annotations/panoptic_val2017.json": {"images": [], "annotations": []},
        },
        "train2017/a.jpg", "train2017/b.jpg", "val2017/c.jpg",
    )  # fmt: skip


def found(mcfg):
    source = locate(mcfg)
    again = locate(type(mcfg)(**as_overrides(source)))
    assert (again.splits, again.files, again.class_list) == (source.splits, source.files, source.class_list)
    return source


def test_the_official_layout(plain, config):
    source = found(config(plain))
    assert source.splits == {"train": ("a", "b"), "validation": ("c",)}
    assert source.files == {"a": "train2017/a.jpg", "b": "train2017/b.jpg", "c": "val2017/c.jpg"}
    assert source.class_list == ("cat", "dog")
    report = check_data(config(plain), ["train", "val"]).report
    assert (report.splits["train"].objects, report.splits["val"].objects) == (2, 1)


def test_one_json_with_lists(lay_out, config):
    base = lay_out({"annotations/all.json": content(["a.jpg", "b.jpg", "c.jpg"])}, *(f"images/{n}.jpg" for n in "abc"))
    assert {name: len(ids) for name, ids in found(config(base)).splits.items()} == {
        "train": 1, "validation": 1, "test": 1,
    }  # fmt: skip
    (base / "splits").mkdir()
    for name, lines in (("train", "a.jpg\nb\n"), ("val", "c\n"), ("test", "zebra\n")):
        (base / f"splits/{name}.txt").write_text(lines)
    assert found(config(base)).splits == {"train": ("a", "b"), "validation": ("c",), "test": ("zebra",)}
    with pytest.raises(UserError, match=r"zebra: this image is not in the images of all\.json"):
        check_data(config(base), ["test"])


def test_one_json_beside_its_images(lay_out, config):
    base = lay_out({"labels.json": content([f"{n}.jpg" for n in "abcd"])}, *(f"{n}.jpg" for n in "abcd"))
    assert sum(map(len, found(config(base)).splits.values())) == 4


@pytest.mark.parametrize(
    "front", ["train2017/", "images/train2017/", r"C:\data\pictures" + "\\", "/content/ds/train2017/"]
)
def test_file_names_with_folders(lay_out, config, front):
    said = content([f"{front}a.jpg", f"{front}b.jpg"])
    base = lay_out({"annotations/instances_train.json": said}, "images/train2017/a.jpg", "images/train2017/b.jpg")
    source = found(config(base))
    assert sorted(source.splits["train"] + source.splits["validation"]) == ["a", "b"]
    check_data(config(base), ["train", "validation"])


def test_files_of_equal_names_are_told_apart_by_their_folders(lay_out, config):
    base = lay_out(
        {"annotations/train.json": content(["1.jpg"]), "annotations/val.json": content(["1.jpg"])},
        "images/val/1.jpg", "images/train/1.jpg",
    )  # fmt: skip
    assert found(config(base)).files == {"train/1": "images/train/1.jpg", "val/1": "images/val/1.jpg"}


def test_roboflows_category_above_all(lay_out, config):
    categories = ((0, "cells"), (1, "RBC"), (2, "WBC"))
    said = content(["a.jpg"], categories=categories)
    for category in said["categories"]:
        category["supercategory"] = "cells" if category["id"] else "none"
    base = lay_out({f"{split}/_annotations.coco.json": said for split in ("train", "valid", "test")},
                   *(f"{split}/a.jpg" for split in ("train", "valid", "test")))  # fmt: skip
    source = found(config(base))
    assert source.class_list == ("RBC", "WBC")
    assert "category 0 (cells) is not used as a class: it is a supercategory without objects" in source.notes
    said["annotations"][0]["category_id"] = 0
    (base / "test/_annotations.coco.json").write_text(json.dumps(said))
    assert locate(config(base)).class_list == ("cells", "RBC", "WBC"), "one that has an object stays"


def test_a_category_without_objects_stays(plain, config):
    assert "dog" in locate(config(plain)).class_list


def test_categories_that_disagree(plain, config):
    other = content(["c.jpg"], categories=((1, "cat"), (5, "cow")))
    (plain / "annotations/instances_val2017.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"val2017\.json: category 5 is cow, but in .*train2017\.json it is dog"):
        locate(config(plain))


def test_a_class_twice(lay_out, config):
    base = lay_out({"all.json": content(["a.jpg"], categories=((1, "cat"), (2, "cat")))}, "a.jpg")
    with pytest.raises(UserError, match=r"all\.json: categories: names cat more than once"):
        locate(config(base, subsetMap={"train": ("a",)}))


def test_two_files_for_one_split(plain, config):
    (plain / "annotations/instances_train2014.json").write_text(json.dumps(content(["x.jpg"])))
    with pytest.raises(UserError, match=r"train2014\.json, .*train2017\.json, .* are for the same split; keep one"):
        locate(config(plain))


def test_files_that_speak_of_no_split(lay_out, plain, config):
    (plain / "annotations/instances_minival.json").write_text(json.dumps(content(["x.jpg"])))
    notes = locate(config(plain)).notes
    assert f"{plain}/annotations/instances_minival.json is not used: its name does not say train, val or test" in notes
    base = lay_out({"annotations/instances_train2017.json": 1})
    for path in (base / "annotations").iterdir():
        path.unlink()
    lay_out({"annotations/one.json": content(["x.jpg"]), "annotations/two.json": content(["y.jpg"])})
    with pytest.raises(UserError, match=r"one\.json, .*two\.json do not say train, val or test in their names"):
        locate(config(base))


def test_a_broken_json(plain, config):
    (plain / "annotations/instances_val2017.json").write_text('{"images": [')
    with pytest.raises(UserError, match=rf"^{plain}/annotations/instances_val2017\.json: the json is invalid at"):
        locate(config(plain))


def test_faults_are_listed_and_skipped(plain, config):
    path = plain / "annotations/instances_train2017.json"
    said = content(["a.jpg", "b.jpg", "gone.jpg"])
    said["annotations"][0]["category_id"] = 3
    said["annotations"].append({"id": 9, "image_id": 77, "category_id": 1, "bbox": [0, 0, 1, 1]})
    path.write_text(json.dumps(said))
    val = plain / "annotations/instances_val2017.json"
    val.write_text(json.dumps(content(["c.jpg"], size=(400, 300))))
    with pytest.raises(UserError) as caught:
        check_data(config(plain), ["train", "validation"])
    text = str(caught.value)
    assert text.startswith("the data set has 4 errors; badFiles=skip")
    for part in (
        f"{path}: annotation 9: image_id 77 is not in images",
        f"{path}: annotation 0 has category_id 3, which is not in categories (image a.jpg)",
        f"{plain}/train2017/gone.jpg: the image file does not exist",
        f"{plain}/val2017/c.jpg: the image is 40 x 30",
    ):
        assert part in text
    checked = check_data(config(plain, badFiles="skip"), ["train"])
    assert [annotation.image_id for annotation in checked.splits["train"]] == ["b"]
    assert len(checked.report.skipped) == 3


def test_crowds_are_ignored_in_evaluation_like_difficult_objects(plain, config):
    path = plain / "annotations/instances_train2017.json"
    said = content(["a.jpg", "b.jpg"])
    said["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(said))
    checked = check_data(config(plain), ["train"])
    assert [annotation.difficult.tolist() for annotation in checked.splits["train"]] == [[True], [False]]
    assert checked.report.splits["train"].difficult == 1


def test_explicit_folders(plain, config):
    fields = {"imageDir": str(plain / "val2017"), "annotationDir": str(plain / "annotations")}
    source = locate(config(**fields, subsetMap={"test": ("c.jpg",)}))
    assert (source.format, source.splits, source.class_list) == ("coco", {"test": ("c",)}, ("cat", "dog"))
    assert check_data(config(**fields, subsetMap={"test": ("c",)}), ["test"]).report.splits["test"].objects == 1


def test_images_in_two_splits(plain, config):
    lists = {"train": ("a", "b"), "validation": ("b",)}
    with pytest.raises(UserError, match=r"splits 'train' and 'validation' share 1 images .*: b"):
        check_data(config(plain, subsetMap=lists), ["train"])


def test_the_format_that_annotates_most_images_wins(plain, config, write_voc, write_image):
    (plain / "images").mkdir()
    assert locate(config(plain)).format == "coco"
    for name in "abc":
        write_image(plain / f"images/{name}.jpg")
    write_voc(plain / "annotations/a.xml")
    source = locate(config(plain))
    assert source.format == "coco"
    assert any(
        "read: COCO json (annotated images: 3); not read: Pascal VOC xml (1, annotationFormat=voc)" in note
        for note in source.notes
    )
    for name in "bc":
        write_voc(plain / f"annotations/{name}.xml")
    assert locate(config(plain, subsetMap={"train": ("a",)})).format == "voc", "of equals VOC"


def test_one_json_and_images_in_folders_of_splits(lay_out, config):
    """The folders are the user's splits, and drawing others would train on test images."""
    paths = [f"{split}/{split}{number}.jpg" for split in ("train", "val", "test") for number in range(3)]
    base = lay_out({"annotations/all.json": content(paths)}, *(f"images/{path}" for path in paths))
    assert found(config(base)).splits == {
        "train": ("train0", "train1", "train2"),
        "validation": ("val0", "val1", "val2"),
        "test": ("test0", "test1", "test2"),
    }


def test_file_names_that_lead_out_of_the_data_folder(lay_out, config, tmp_path, write_image):
    write_image(tmp_path / "elsewhere/x.jpg")
    names = ["../elsewhere/x.jpg", "a.jpg", "b.jpg", "c.jpg"]
    base = lay_out({"all.json": content(names)}, "a.jpg", "b.jpg", "c.jpg")
    notes = [note for note in locate(config(base)).notes if "outside of" in note]
    assert notes == [f"{base}/all.json: 1 image outside of {base}: {names[0]}; is this intended?"]


def test_two_names_of_one_image_are_a_fault(lay_out, config):
    """The objects of the second entry would be lost."""
    names = ["a.jpg", "./a.jpg", "b.jpg", "c.jpg"]
    base = lay_out({"all.json": content(names)}, "a.jpg", "b.jpg", "c.jpg")
    with pytest.raises(UserError, match=r"all\.json: file_name a\.jpg, \./a\.jpg mean the same image a\.jpg"):
        check_data(config(base), ["train"])


def test_images_without_an_entry_are_counted_and_named(lay_out, config):
    base = lay_out({"annotations/instances_train.json": content(["a.jpg"])}, "train/a.jpg", "train/b.jpg", "c.jpg")
    (remark,) = [
        r for r in check_data(config(base, subsetMap={"train": ("a",)}), ["train"]).report.warnings if "entry" in r
    ]
    assert remark == f"2 images below {base} not in the images of instances_train.json: c.jpg, train/b.jpg"


def test_classes_of_all_files_in_the_order_of_their_ids(plain, config):
    other = content(["c.jpg"], categories=((3, "cow"), (1, "cat")))
    (plain / "annotations/instances_val2017.json").write_text(json.dumps(other))
    assert locate(config(plain)).class_list == ("cat", "cow", "dog")


def test_the_folder_that_a_json_is_named_after(lay_out, config):
    base = lay_out(
        {"annotations/instances_train2017.json": content(["1.jpg", "2.jpg"])},
        *(f"train{year}/{number}.jpg" for year in (2014, 2017, 2018) for number in (1, 2)),
    )
    assert set(found(config(base)).files.values()) == {"train2017/1.jpg", "train2017/2.jpg"}
