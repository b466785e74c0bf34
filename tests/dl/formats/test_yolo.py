"""YOLO data sets as exports and people lay them out, through `locate` and `check_data`."""

import os
import shutil

import pytest

from config.errors import UserError
from dl.check import check_data
from dl.formats.discover import as_overrides, locate

LINE = "0 0.5 0.5 0.5 0.5\n"


@pytest.fixture
def lay_out(tmp_path, write_image):
    """lay_out("train/images/a", ...) -> a folder with these images and a label each; data.yaml when given."""

    def make(*images, yaml="names: [cat, dog]\n", base=None, labels=True):
        base = base or tmp_path / "data"
        for image in images:
            write_image(base / f"{image}.jpg")
            if labels:
                path = base / f"{image.replace('images', 'labels')}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(LINE)
        if yaml:
            (base / "data.yaml").write_text(yaml)
        return base

    return make


def splits_of(mcfg):
    source = locate(mcfg)
    again = locate(type(mcfg)(**as_overrides(source)))
    assert (again.splits, again.files, again.class_list) == (source.splits, source.files, source.class_list)
    return source.splits


ROBOFLOW = ("train/images/a", "train/images/b", "valid/images/c", "test/images/d")
EXPECTED = {"train": ("a", "b"), "validation": ("c",), "test": ("d",)}


@pytest.mark.parametrize(
    "entries",
    [
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n",
        "train: train/images\nval: valid/images/\ntest: ./test/images\n",
        "train: train\nvalid: [valid]\ntest: test\n",
        "path: ../data\ntrain: train/images\nval: valid/images\ntest: test/images\n",
        "path: /content/gone\ntrain: train/images\nval: valid/images\ntest: test/images\n",
        "train: /content/gone/train/images\nval: /content/gone/valid/images\ntest: /content/gone/test/images\n",
        "",
    ],
)
def test_data_yaml_with_folders(lay_out, config, entries):
    base = lay_out(*ROBOFLOW, yaml=f"{entries}names: [cat, dog]\nnc: 2\n")
    assert splits_of(config(base)) == EXPECTED


def test_a_folder_beside_the_yaml_wins_over_another_above(lay_out, config, tmp_path):
    lay_out("train/images/stranger", base=tmp_path, yaml="")
    base = lay_out(*ROBOFLOW, yaml="train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [cat]\n")
    assert splits_of(config(base)) == EXPECTED


def test_several_folders_and_a_split_that_lies_nowhere(lay_out, config):
    base = lay_out(*ROBOFLOW, yaml="train: [train/images, valid/images]\nval: test\ntest: none\nnames: [cat]\n")
    source = locate(config(base))
    assert source.splits == {"train": ("a", "b", "c"), "validation": ("d",)}
    assert f"{base}/data.yaml: test: none does not exist, so there is no split 'test'" in source.notes


def test_train_that_lies_nowhere(lay_out, config):
    base = lay_out(*ROBOFLOW, yaml="train: ../pictures/train\nval: valid/images\nnames: [cat]\n")
    with pytest.raises(
        UserError, match=rf"data\.yaml: train: \.\./pictures/train does not exist; tried {base}/pictures"
    ):
        locate(config(base))


@pytest.mark.parametrize("front", ["./images/", "images/", "{base}/images/", "/content/ds/images/", ""])
def test_lists_of_image_paths(lay_out, config, front):
    base = lay_out("images/a", "images/b", "images/c", "images/d", yaml="train: train.txt\nval: v.txt\nnames: [cat]\n")
    (base / "train.txt").write_text("".join(f"{front.format(base=base)}{name}.jpg\n" for name in "ba"))
    (base / "v.txt").write_text(f"{front.format(base=base)}c.jpg\n")
    (base / "test.txt").write_text("d\n")  # not in the yaml, but a list all the same
    assert splits_of(config(base)) == {"train": ("b", "a"), "validation": ("c",), "test": ("d",)}


def test_images_and_labels_without_yaml(lay_out, config):
    base = lay_out(*(f"images/{name}" for name in "abcdef"), yaml="")
    with pytest.raises(UserError, match=rf"^{base}: YOLO labels are numbers, and no file gives the class names"):
        locate(config(base))
    with pytest.raises(UserError, match="no file gives the class names"):
        locate(config(base, classList=("cat",)))
    (base / "classes.txt").write_text("cat\ndog\n")
    source = locate(config(base))
    assert (source.format, source.class_list) == ("yolo", ("cat", "dog"))
    assert {name: len(ids) for name, ids in source.splits.items()} == {"train": 4, "validation": 1, "test": 1}
    assert any("random splits from splitSeed" in note for note in source.notes)
    assert splits_of(config(base)) == source.splits


def test_splits_are_drawn_like_those_of_a_voc_copy(lay_out, make_folder, config, tmp_path):
    names = [f"n{i}" for i in range(12)]
    voc = make_folder({"any": names}, base=tmp_path / "voc", lists="")
    yolo = lay_out(*(f"images/{name}" for name in names))
    assert locate(config(yolo)).splits == locate(config(voc)).splits


def test_validation_is_carved_out_of_train(lay_out, config):
    base = lay_out(*(f"images/train/n{i}" for i in range(9)), "images/test/t")
    source = locate(config(base))
    assert (len(source.splits["train"]), len(source.splits["validation"]), source.splits["test"]) == (8, 1, ("t",))
    assert splits_of(config(base)) == source.splits


def test_labels_beside_the_images(lay_out, config):
    """As darknet and labelImg save them, also where the folder is called images."""
    base = lay_out("train/a", "train/b", "valid/c", "test/d", yaml="")
    (base / "train/_darknet.labels").write_text("cat\ndog\n")
    assert splits_of(config(base)) == EXPECTED
    assert check_data(config(base), ["train"]).report.splits["train"].objects == 2
    shutil.rmtree(base)
    base = lay_out("images/a", "images/b", "images/c")
    shutil.move(base / "labels/a.txt", base / "images/a.txt")
    checked = check_data(config(base, subsetMap={"train": ("a", "b")}), ["train"])
    assert [annotation.annotation_path for annotation in checked.splits["train"]] == [
        base / "images/a.txt", base / "labels/b.txt",
    ]  # fmt: skip
    assert checked.report.splits["train"].objects == 2


def test_explicit_folders(lay_out, config, tmp_path):
    base = lay_out(*(f"images/{name}" for name in "abcd"))
    shutil.move(base / "images", tmp_path / "pictures")
    fields = {"imageDir": str(tmp_path / "pictures"), "annotationDir": str(base / "labels")}
    source = locate(config(**fields, subsetMap={"train": ("a.jpg", "b"), "test": ("c",)}))
    assert (source.format, source.class_list) == ("yolo", ("cat", "dog"))
    assert source.splits == {"train": ("a", "b"), "test": ("c",)}
    checked = check_data(config(**fields, subsetMap={"train": ("a.jpg", "b")}), ["train"])
    assert checked.report.splits["train"].objects == 2


def test_images_outside_the_folder_of_the_yaml(lay_out, config, tmp_path):
    base = lay_out("images/train/a", "images/val/b", "images/test/c", base=tmp_path / "elsewhere", yaml="")
    (tmp_path / "here").mkdir()
    lines = "".join(f"{key}: images/{key}\n" for key in ("train", "val", "test"))
    (tmp_path / "here/data.yaml").write_text(f"path: {base}\n{lines}names: [cat]\n")
    source = locate(config(tmp_path / "here"))
    assert (source.image_dir, source.splits) == (base, {"train": ("a",), "validation": ("b",), "test": ("c",)})
    again = config(tmp_path / "here", **as_overrides(source))
    assert check_data(again, ["train"]).report.splits["train"].objects == 1


def test_what_the_table_counts(lay_out, config):
    base = lay_out(*ROBOFLOW, "train/images/e", "train/images/f")
    (base / "train/labels/a.txt").unlink()
    (base / "train/labels/b.txt").write_text("")
    (base / "train/labels/e.txt").write_text(LINE + LINE + "1 .1 .1 .9 .1 .9 .9\n")
    report = check_data(config(base), ["train"]).report
    counts = report.splits["train"]
    assert (counts.images, counts.objects, counts.without_objects, counts.without_label_file) == (4, 3, 2, 1)
    assert (counts.duplicate_objects, counts.polygons, counts.without_size) == (1, 1, 0)
    rows = ("of these without a label file", "duplicate objects, counted once", "polygons, used as boxes")
    assert all(report.table().count(row) == 1 for row in rows)


def test_a_split_without_any_label_file(lay_out, config):
    base = lay_out(*ROBOFLOW[:3])
    lay_out("test/images/d", labels=False)
    with pytest.raises(
        UserError, match=rf"split 'test': none of its 1 images has a label file; expected e.g. {base}/test"
    ):
        check_data(config(base), ["train", "test"])
    check_data(config(base), ["train"])


def test_faults_are_listed_and_skipped(lay_out, config):
    base = lay_out(*ROBOFLOW)
    (base / "train/labels/a.txt").write_text(LINE + "5 .5 .5 .1 .1\n")
    (base / "valid/images/c.jpg").write_bytes(b"no image")
    (base / "valid/labels/c.txt").write_text("0 300 200 20 20\n")
    with pytest.raises(UserError) as caught:
        check_data(config(base), ["train", "validation"])
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("the data set has 3 errors; badFiles=skip")
    starts = ("train/labels/a.txt: line 2: class 5", "valid/images/c.jpg: the image", "valid/labels/c.txt: line 1: 300")
    assert all(line.startswith(f"  {base}/{start}") for line, start in zip(lines, starts, strict=True))
    report = check_data(config(base, badFiles="skip"), ["train"]).report
    assert (report.splits["train"].images, report.splits["train"].skipped) == (1, 1)


def test_shares_are_of_the_upright_image(lay_out, config, write_image):
    """A label has no size that could tell which pixels its author saw: viewers and annotation tools turn the image."""
    base = lay_out("images/a", "images/b", "images/c")
    write_image(base / "images/a.jpg", (40, 20), orientation=6)
    (base / "labels/a.txt").write_text("0 0.5 0.25 1 0.5\n")
    checked = check_data(config(base, subsetMap={"train": ("a",)}), ["train"])
    annotation = checked.splits["train"][0]
    assert (annotation.width, annotation.height, annotation.boxes.tolist()) == (20, 40, [[0, 0, 20, 20]])
    assert checked.report.splits["train"].ambiguous_rotation == 1


def test_listings_of_folders_do_not_grow_with_the_images(lay_out, config, monkeypatch):
    listings = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path=".": (listings.append(str(path)), scan(path))[1])
    counts = []
    for number in (3, 60):
        base = lay_out(*(f"train/images/n{i}" for i in range(number)), "valid/images/v", "test/images/t")
        listings.clear()
        check_data(config(base), ["train"])
        counts.append(len(listings))
    assert counts[0] == counts[1] < 80
