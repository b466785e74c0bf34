import os
import shutil
import sys

import pytest

from config.errors import UserError
from dl.check import check_data
from dl.formats.discover import as_overrides, locate

SPLITS = {"train": ["a", "b", "c"], "validation": ["d"], "test": ["e", "f"]}
EXPECTED = {name: tuple(ids) for name, ids in SPLITS.items()}


def test_course_layout(three_splits, config):
    source = locate(config(three_splits))
    assert source.image_dir == three_splits / "images"
    assert source.annotation_dir == three_splits / "annotations"
    assert source.class_list == ("cat", "dog")
    assert source.splits == EXPECTED


def test_course_layout_with_versions_of_splits(make_folder, config):
    base = make_folder(SPLITS, lists="splits/v5")
    make_folder({"train": ["a"], "test": ["b"]}, lists="splits/v10")
    assert locate(config(base)).splits == EXPECTED


def test_without_v5_the_last_version_counts(make_folder, config):
    base = make_folder({"train": ["a"], "test": ["b"]}, lists="splits/v2")
    make_folder(SPLITS, lists="splits/v10")
    assert locate(config(base)).splits == EXPECTED


@pytest.mark.parametrize("nesting", ["", "VOC2007", "VOCdevkit/VOC2007"])
def test_vocdevkit(make_folder, config, tmp_path, nesting):
    base = make_folder(
        {
            "train": ["a", "b"],
            "val": ["c"],
            "test": ["d"],
            "cat_train": ["a"],
            "dog_val": ["c"],
            "trainval": ["a", "b", "c"],
        },
        base=tmp_path / "voc" / nesting,
        images="JPEGImages",
        annotations="Annotations",
        lists="ImageSets/Main",
        classes=(),
    )
    source = locate(config(tmp_path / "voc"))
    assert source.image_dir == base / "JPEGImages"
    assert source.splits == {"train": ("a", "b"), "validation": ("c",), "test": ("d",), "trainval": ("a", "b", "c")}
    assert source.class_list == ("cat",)
    assert any("1 classes found in the xml files: cat" in note for note in source.notes)


def test_voc_with_trainval_and_test_only(make_folder, config):
    names = [f"n{i}" for i in range(10)]
    base = make_folder({"trainval": names, "test": ["t"]}, lists="ImageSets/Main")
    source = locate(config(base))
    assert sorted(source.splits["train"] + source.splits["validation"]) == names
    assert len(source.splits["validation"]) == 2
    assert "no train list: 'trainval' is used as the training split" in source.notes


def test_several_data_sets_must_be_told_apart(make_folder, config, tmp_path):
    for year in ("VOC2007", "VOC2012"):
        make_folder(SPLITS, base=tmp_path / "kit" / year)
    with pytest.raises(UserError, match=f"{tmp_path}/kit has several data sets .*VOC2007, .*VOC2012"):
        locate(config(tmp_path / "kit"))


def test_official_mar20(make_folder, config, tmp_path):
    names = [str(i) for i in range(1, 21)]
    base = make_folder(
        {"train": names, "test": ["100", "101"]},
        images="JPEGImages",
        annotations="Annotations/Horizontal Bounding Boxes",
        lists="ImageSets/Main",
        classes=(),
    )
    (base / "Annotations" / "Oriented Bounding Boxes").mkdir()
    source = locate(config(base))
    assert source.annotation_dir == base / "Annotations" / "Horizontal Bounding Boxes"
    assert source.splits["test"] == ("100", "101")
    assert len(source.splits["validation"]) == 3
    assert sorted(source.splits["train"] + source.splits["validation"]) == sorted(names)
    assert "no validation list: 3 images are moved from train to validation (splitSeed=859)" in source.notes
    assert locate(config(base)) == source
    assert locate(config(base, seed=1)) == source, "another training has the same test images"
    assert locate(config(base, splitSeed=1)).splits != source.splits


def test_carving_leaves_small_a_part_of_train(make_folder, config):
    names = [f"n{i}" for i in range(12)]
    base = make_folder({"train": names, "test": ["t"], "small": names[:6]})
    splits = locate(config(base)).splits
    assert splits["validation"]
    assert not set(splits["validation"]) & set(splits["small"])
    assert set(splits["small"]) <= set(splits["train"])


def test_no_splits_at_all(make_folder, config):
    base = make_folder({"any": [f"n{i}" for i in range(20)]}, lists="")
    source = locate(config(base))
    assert {name: len(ids) for name, ids in source.splits.items()} == {"train": 14, "validation": 3, "test": 3}
    assert (
        "no split files found: random splits from splitSeed=859; images: train 14, validation 3, test 3" in source.notes
    )
    assert locate(config(base, seed=1)).splits == source.splits
    assert locate(config(base, splitSeed=1)).splits != source.splits


BIRDS = {"bird_train": ["a", "b", "c"], "bird_val": ["d"], "bird_test": ["e", "f"]}


@pytest.mark.parametrize("lists", ["splits", "splits/v5", "ImageSets/Main", "ImageSets/Action", "split", "."])
def test_lists_that_are_not_understood_stop(make_folder, config, lists):
    """Else test images of the user's lists would be drawn into training."""
    base = make_folder(BIRDS, lists=lists)
    with pytest.raises(UserError) as caught:
        locate(config(base))
    for part in (*(f"{base / lists / name}.txt" for name in BIRDS), "cannot be read", "validation.txt", "subsetMap="):
        assert part in str(caught.value)


def test_lists_of_another_kind_stop(make_folder, config):
    base = make_folder({"any": ["a", "b", "c"]}, lists="")
    (base / "splits").mkdir()
    for name in ("train.csv", "test"):
        (base / "splits" / name).write_text("a\n")
    with pytest.raises(UserError, match=r"splits/test, .*splits/train\.csv: cannot be read as split lists"):
        locate(config(base))


def test_what_is_no_list_does_not_stop(make_folder, config):
    base = make_folder({"any": ["a", "b", "train_1", "test_2"]}, images="", annotations="", lists="")
    for name in ("README.txt", "train_1.txt", "test_2.json", "train.py", "._train.txt"):
        (base / name).write_text("a\n")
    (base / "splits").mkdir()
    (base / "splits/README.md").write_text("none yet")
    assert any("no split files found" in note for note in locate(config(base)).notes)


def test_lists_of_any_name_once_the_config_names_them(make_folder, config):
    fields = {"trainSplitName": "bird_train", "validationSplitName": "bird_val", "testSplitName": "bird_test"}
    assert locate(config(make_folder(BIRDS), **fields)).splits == {name: tuple(ids) for name, ids in BIRDS.items()}


def test_nothing_is_carved_beside_a_validation_list(make_folder, config):
    lists = {"train": [f"n{i}" for i in range(9)], "bird_val": ["v"], "test": ["t"]}
    base = make_folder(lists)
    with pytest.raises(UserError, match=r"splits/bird_val\.txt: cannot be read as split lists"):
        locate(config(base))
    assert locate(config(base, validationSplitName="bird_val")).splits == {k: tuple(v) for k, v in lists.items()}


def test_list_files_with_an_upper_case_suffix(three_splits, config):
    for name in SPLITS:
        (three_splits / f"splits/{name}.txt").rename(three_splits / f"splits/{name}.TXT")
    assert locate(config(three_splits)).splits == EXPECTED


def test_two_images_are_too_few_to_split(make_folder, config):
    with pytest.raises(UserError, match="2 images: at least three are needed"):
        locate(config(make_folder({"any": ["a", "b"]}, lists="")))


def test_images_and_xml_side_by_side(make_folder, config):
    base = make_folder({"any": ["a", "b", "c", "d"]}, images="", annotations="", lists="")
    source = locate(config(base))
    assert source.image_dir == source.annotation_dir == base
    assert sum(map(len, source.splits.values())) == 4


def test_lists_beside_the_folders(make_folder, config):
    base = make_folder(SPLITS, lists=".")
    assert locate(config(base)).splits == EXPECTED


@pytest.mark.parametrize(
    "content",
    ["a\nb\nc\n", "a.jpg\r\nb.JPG\r\n\r\nc.xml", "\ufeffimages/a.jpg\n  ./images/b.jpg \n\n\nC:\\x\\c.jpg\n"],
)
def test_split_files_as_people_write_them(three_splits, config, content):
    (three_splits / "splits/train.txt").write_bytes(content.encode())
    assert locate(config(three_splits)).splits["train"] == ("a", "b", "c")


def test_duplicates_stay_for_the_check_to_count(three_splits, config):
    (three_splits / "splits/train.txt").write_text("a\nb.jpg\nb\n")
    assert locate(config(three_splits)).splits["train"] == ("a", "b", "b")


def test_the_exact_name_of_a_split_wins_over_its_alias(three_splits, config):
    (three_splits / "splits/val.txt").write_text("a\n")
    source = locate(config(three_splits))
    assert source.splits == EXPECTED
    assert any("val.txt is not used" in note for note in source.notes)


def test_classes_from_the_xml_files_in_natural_order(three_splits, config, write_voc):
    (three_splits / "classes.txt").unlink()
    write_voc(three_splits / "annotations/a.xml", objects=[(name, (1, 1, 5, 5)) for name in ("A10", "A2", "A1")])
    (three_splits / "annotations/b.xml").write_text("broken, for the check to report")
    source = locate(config(three_splits))
    assert source.class_list == ("A1", "A2", "A10", "cat")
    assert "no classes.txt: 4 classes found in the xml files: A1, A2, A10, cat" in source.notes


def test_no_class_anywhere(make_folder, config, write_voc):
    base = make_folder(SPLITS, classes=())
    for name in "abcdef":
        write_voc(base / f"annotations/{name}.xml", objects=())
    with pytest.raises(UserError, match="annotations: no xml file has an object"):
        locate(config(base))


@pytest.mark.parametrize(
    ("content", "message"), [("cat\ndog\ncat\n", "names cat more than once"), ("\n\n", "must name at least one class")]
)
def test_bad_class_lists(three_splits, config, content, message):
    (three_splits / "classes.txt").write_text(content)
    with pytest.raises(UserError, match=f"{three_splits}/classes.txt: {message}"):
        locate(config(three_splits))


def test_explicit_fields_win(three_splits, config, tmp_path):
    shutil.copytree(three_splits / "images", tmp_path / "elsewhere")
    shutil.copytree(three_splits / "annotations", tmp_path / "notes")
    (tmp_path / "mine.txt").write_text("a.jpg\nb\n")
    source = locate(
        config(
            three_splits,
            imageDir=str(tmp_path / "elsewhere"),
            annotationDir=str(tmp_path / "notes"),
            classList=("dog", "cat", "cow"),
            subsetMap={"train": str(tmp_path / "mine.txt"), "test": ("c.jpg", "d")},
        )
    )
    assert source.image_dir == tmp_path / "elsewhere"
    assert source.annotation_dir == tmp_path / "notes"
    assert source.class_list == ("dog", "cat", "cow")
    assert source.splits == {"train": ("a", "b"), "test": ("c", "d")}


def test_explicit_folders_without_a_data_folder(three_splits, config):
    fields = {"imageDir": str(three_splits / "images"), "annotationDir": str(three_splits / "annotations")}
    source = locate(config(**fields, classList=("cat", "dog")))
    assert source.class_list == ("cat", "dog")
    assert sum(map(len, source.splits.values())) == 6


def test_overrides_find_the_same_again(three_splits, config):
    source = locate(config(three_splits))
    again = locate(config(**as_overrides(source)))
    assert (again.image_dir, again.annotation_dir) == (source.image_dir, source.annotation_dir)
    assert (again.class_list, again.splits, again.notes) == (source.class_list, source.splits, [])


def test_errors_show_the_absolute_path_that_was_tried(three_splits, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    cases = [
        ({"folder": "nowhere"}, rf"dataDir=nowhere: no such folder \({tmp_path}/nowhere\)"),
        ({"folder": "data/classes.txt"}, rf"is a file, not a folder \({tmp_path}/data/classes.txt\)"),
        ({"folder": "empty"}, f"{tmp_path}/empty: no data set found there .*tried {tmp_path}/empty/images"),
        ({"folder": "data", "imageDir": "pictures"}, rf"imageDir=pictures: no such folder \({tmp_path}/pictures\)"),
        (
            {"folder": "data", "subsetMap": {"train": "t.txt"}},
            f"the file of split 'train' does not exist: {tmp_path}/t.txt",
        ),
        (
            {"folder": "empty", "imageDir": "data/images"},
            f"{tmp_path}/empty: neither {tmp_path}/empty/annotations",
        ),
        ({"imageDir": "data/images"}, "annotationDir is not"),
        ({"imageDir": "empty", "annotationDir": "empty"}, f"{tmp_path}/empty has no images"),
        ({}, "no data set is given: use --data DIR"),
    ]
    for fields, message in cases:
        with pytest.raises(UserError, match=message):
            locate(config(**fields))


FOLDER_LAYOUTS = {
    "splits inside": ("images/{split}", "annotations/{split}"),
    "splits inside, VOCdevkit": ("JPEGImages/{split}", "Annotations/{split}"),
    "splits around": ("{split}/images", "{split}/annotations"),
    "splits around, side by side": ("{split}", "{split}"),
    "annotations in one folder": ("images/{split}", "annotations"),
    "images in one folder": ("images", "annotations/{split}"),
    "images beside the annotations": ("{split}", "annotations/{split}"),
    "with years": ("images/{split}2017", "annotations/{split}2017"),
}


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "Valid", "Test")])
@pytest.mark.parametrize("layout", FOLDER_LAYOUTS)
def test_folders_that_are_named_like_splits_are_the_splits(config, tmp_path, write_image, write_voc, layout, names):
    """Else splits would be drawn, and test images of the user trained on."""
    base, expected = tmp_path / "data", {"train": ("t0", "t1", "t2"), "validation": ("v0",), "test": ("e0",)}
    for folder, ids in zip(names, expected.values(), strict=True):
        for image_id in ids:
            images, annotations = (text.format(split=folder) for text in FOLDER_LAYOUTS[layout])
            write_image(base / images / f"{image_id}.jpg")
            write_voc(base / annotations / f"{image_id}.xml")
    source = locate(config(base))
    assert (source.format, source.splits) == ("voc", expected)
    assert not any("splitSeed" in note for note in source.notes)
    again = locate(config(**as_overrides(source)))
    assert (again.splits, again.files, again.class_list) == (source.splits, source.files, source.class_list)
    checked = check_data(config(**as_overrides(source)), list(expected))
    assert {name: report.objects for name, report in checked.report.splits.items()} == {
        "train": 3, "validation": 1, "test": 1,
    }  # fmt: skip


def test_images_outside_the_folders_of_splits_are_counted(config, tmp_path, write_image, write_voc):
    base = tmp_path / "data"
    for name in ("train/a", "train/b", "val/c", "unlabelled/d"):
        write_image(base / f"images/{name}.jpg")
        if "unlabelled" not in name:
            write_voc(base / f"annotations/{name}.xml")
    source = locate(config(base))
    assert source.splits == {"train": ("a", "b"), "validation": ("c",)}
    assert "1 image not used, because no split lists them: unlabelled/d.jpg" in source.notes


def test_beside_folders_for_validation_and_test_the_other_images_are_train(config, tmp_path, write_image, write_voc):
    base = tmp_path / "data"
    for name in ("val/a", "test/b", "rest/c", "d", "e"):
        write_image(base / f"images/{name}.jpg")
        write_voc(base / f"annotations/{name}.xml")
    assert locate(config(base)).splits == {"train": ("d", "e", "c"), "validation": ("a",), "test": ("b",)}


@pytest.mark.parametrize(
    "folders", [("cam1", "cam2"), ("small", "large"), ("test_site", "train_site"), ("train_station", "harbour")]
)
def test_folders_that_are_no_splits(config, tmp_path, write_image, write_voc, folders):
    base = tmp_path / "data"
    for number in range(12):
        write_image(base / f"images/{folders[number % 2]}/{number}.jpg")
        write_voc(base / f"annotations/{folders[number % 2]}/{number}.xml")
    source = locate(config(base))
    assert {name: len(ids) for name, ids in source.splits.items()} == {"train": 8, "validation": 2, "test": 2}


def test_one_folder_called_train_among_others_is_doubtful(config, tmp_path, write_image, write_voc):
    """It may be a class (the vehicle) or a place."""
    base = tmp_path / "data"
    for name in ("train/a", "car/b", "car/c", "bus/d"):
        write_image(base / f"images/{name}.jpg")
        write_voc(base / f"annotations/{name}.xml")
    with pytest.raises(
        UserError, match=r"folders of train look like splits, but 3 of 4 .* are in other folders .*subsetMap"
    ):
        locate(config(base))


def test_exact_and_longer_names_are_splits_side_by_side(config, tmp_path, write_image, write_voc):
    base = tmp_path / "data"
    for name in ("train/a", "val2017/b", "test_images/c"):
        write_image(base / f"images/{name}.jpg")
        write_voc(base / f"annotations/{name}.xml")
    assert locate(config(base)).splits == {"train": ("a",), "validation": ("b",), "test": ("c",)}


def test_a_list_wins_over_a_folder(config, tmp_path, write_image, write_voc):
    base = tmp_path / "data"
    for name in ("train/a", "train/b", "test/c", "test/d"):
        write_image(base / f"images/{name}.jpg")
        write_voc(base / f"annotations/{name}.xml")
    (base / "splits").mkdir()
    (base / "splits/test.txt").write_text("c\n")
    source = locate(config(base))
    assert source.splits["test"] == ("c",)
    assert sorted(source.splits["train"] + source.splits["validation"]) == ["a", "b"]
    assert "1 image not used, because no split lists them: test/d.jpg" in source.notes


def test_pictures_of_runs_and_copies_below_the_data_folder_are_no_images_of_it(
    config, tmp_path, write_image, write_voc
):
    for layout in ("{split}", "images/{split}"):
        base = tmp_path / layout[:2]
        for split, name in (("train", "a"), ("train", "b"), ("val", "c"), ("test", "d")):
            write_image(base / layout.format(split=split) / f"{name}.jpg")
            write_voc(base / layout.format(split=split).replace("images", "annotations") / f"{name}.xml")
        for extra in ("runs/detect/train/results.png", f"{layout.format(split='train')}/painted/a.jpg"):
            write_image(base / extra)
        source = locate(config(base))
        assert {name: len(ids) for name, ids in source.splits.items()} == {"train": 2, "validation": 1, "test": 1}
        check_data(config(base), list(source.splits))


def test_a_link_that_is_named_like_a_split(config, tmp_path, write_image, write_voc):
    """Many data sets have no test images of their own."""
    base = tmp_path / "data"
    for name in ("train/a", "train/b", "val/c"):
        write_image(base / f"images/{name}.jpg")
        write_voc(base / f"annotations/{name}.xml")
    (base / "images/test").symlink_to("val")
    assert locate(config(base)).splits == {"train": ("a", "b"), "validation": ("c",), "test": ("c",)}
    assert check_data(config(base), ["train", "validation", "test"]).report.copies == ()


def test_a_json_that_is_not_cocos_beside_voc(three_splits, config):
    for text in ('{"images": 8, "annotations": 8, "categories": 1}', '{"images": [{"id": 1'):
        (three_splits / "annotations/stats.json").write_text(text)
        source = locate(config(three_splits))
        assert (source.format, source.splits) == ("voc", EXPECTED)
        assert any(note.startswith("not read: ") and "stats.json" in note for note in source.notes)


def test_mar20_beside_a_part_of_it_in_another_format(make_folder, config, write_image):
    names = [str(number) for number in range(8)]
    base = make_folder(
        {"train": names[:6], "test": names[6:]},
        images="JPEGImages",
        annotations="Annotations/Horizontal Bounding Boxes",
        lists="ImageSets/Main",
        classes=(),
    )
    (base / "labels").mkdir()
    (base / "labels/1.txt").write_text("0 .5 .5 .2 .2\n")
    (base / "classes.txt").write_text("cat\n")
    (base / "images").symlink_to("JPEGImages")
    assert locate(config(base)).format == "voc"


def test_images_that_no_list_names_are_counted(three_splits, config, write_image, write_voc):
    write_image(three_splits / "images/extra.jpg")
    write_voc(three_splits / "annotations/extra.xml")
    assert "1 image not used, because no split lists them: extra" in locate(config(three_splits)).notes


def test_a_link_to_itself(three_splits, config):
    (three_splits / "loop").symlink_to("loop")
    assert locate(config(three_splits)).splits == EXPECTED


def test_a_folder_that_cannot_be_read(three_splits, config, monkeypatch):
    scan = os.scandir

    def scandir(path="."):
        if str(path) == str(three_splits / "annotations"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=rf"{three_splits}/annotations: cannot read the folder \(Permission denied"):
        locate(config(three_splits))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_a_name_that_is_not_utf_8(three_splits, config):
    os.rename(three_splits / "images/a.jpg", os.fsencode(three_splits / "images") + b"/\xb7\xc9.jpg")
    with pytest.raises(UserError, match=r"the file name b'.*' is not UTF-8; rename the file"):
        locate(config(three_splits))


def test_a_list_of_every_image_and_lists_of_one_class_are_no_splits(make_folder, config):
    """As CVAT exports a task without subsets."""
    names = [f"frame_{number:06d}" for number in range(8)]
    lists = {"default": names, "cat_default": names[:2], "dog_default": names[2:]}
    base = make_folder(lists, images="JPEGImages", annotations="Annotations", lists="ImageSets/Main", classes=())
    source = locate(config(base))
    assert sorted(name for ids in source.splits.values() for name in ids) == names
    (base / "ImageSets/Main/default.txt").write_text("frame_000000\n")
    with pytest.raises(UserError, match=r"Main/default\.txt: cannot be read as split lists"):
        locate(config(base))


@pytest.mark.parametrize("link", ["latest", "images/again", "again"])
def test_links_to_folders_of_the_data_set(three_splits, config, link):
    shutil.rmtree(three_splits / "splits")
    before = locate(config(three_splits))
    (three_splits / link).symlink_to(three_splits if link == "latest" else three_splits / "images")
    source = locate(config(three_splits))
    assert source.splits == before.splits
    assert f"{three_splits / link}: this link is not followed, because its folder is already read" in source.notes


def test_a_link_beside_the_data_set_is_no_second_one(make_folder, config, tmp_path):
    base = make_folder(SPLITS, base=tmp_path / "all/v2")
    (tmp_path / "all/current").symlink_to(base)
    assert locate(config(tmp_path / "all")).splits == EXPECTED


@pytest.mark.parametrize(
    ("files", "found", "way_out"),
    [
        ((), "the files there are no file", "give the folder that has the images and annotations"),
        (("a.zip", "b.zip"), "2 .zip", "unpack the archive first"),
        (("x/a.jpg", "x/b.PNG"), "1 .jpg, 1 .png", "there are images but no annotations"),
        (("a.jpg", "other.txt"), "1 .jpg, 1 .txt", "put images in 'images', labels in 'labels' and a data.yaml"),
        (("a.jpg", "b.xml"), "1 .jpg, 1 .xml", "the Pascal VOC files in 'annotations'"),
        (("a.jpg", "a.json"), "1 .jpg, 1 .json", "a COCO json needs images, annotations and categories"),
    ],
)
def test_a_refusal_tells_what_was_found_and_what_to_do(config, tmp_path, files, found, way_out):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError) as caught:
        locate(config(tmp_path))
    assert found in str(caught.value) and way_out in str(caught.value)


def test_xml_files_whose_names_differ_in_case(three_splits, config):
    (three_splits / "annotations/a.xml").rename(three_splits / "annotations/A.XML")
    checked = check_data(config(three_splits), ["train"])
    assert checked.splits["train"][0].annotation_path == three_splits / "annotations/A.XML"
