import json

import pytest
from PIL import Image

import dl.check
from config.errors import UserError
from dl.check import check_data

ALL = ("train", "validation", "test")


def fault_of(mcfg, splits=ALL):
    with pytest.raises(UserError) as caught:
        check_data(mcfg, splits)
    return str(caught.value)


def test_a_sound_data_set(three_splits, config):
    (three_splits / "classes.txt").write_text("cat\n")
    checked = check_data(config(three_splits), ALL)
    assert {name: [a.image_id for a in annotations] for name, annotations in checked.splits.items()} == {
        "train": ["a", "b", "c"], "validation": ["d"], "test": ["e", "f"],
    }  # fmt: skip
    annotation = checked.splits["train"][0]
    assert annotation.image_path == three_splits / "images/a.jpg"
    assert (annotation.width, annotation.height) == (40, 30)
    assert annotation.boxes.tolist() == [[5, 6, 25, 26]]
    report = checked.report.splits["train"]
    assert (report.images, report.objects, dict(report.per_class)) == (3, 3, {"cat": 3})
    assert "!" not in checked.report.table()
    assert checked.expected == {"train": 3, "validation": 1, "test": 2}


def test_only_the_splits_asked_for_are_read(three_splits, config):
    (three_splits / "images/e.jpg").unlink()
    assert list(check_data(config(three_splits), ["train"]).splits) == ["train"]


def test_a_split_by_its_alias(three_splits, config):
    checked = check_data(config(three_splits), ["val", "validation"])
    assert checked.splits["val"] == checked.splits["validation"]
    assert len(checked.splits["val"]) == 1


def test_every_fault_in_one_pass_each_with_its_file(three_splits, config, write_voc, truncated_jpeg):
    (three_splits / "images/a.jpg").unlink()
    (three_splits / "annotations/b.xml").unlink()
    (three_splits / "annotations/c.xml").write_text("<annotation>")
    truncated_jpeg(three_splits / "images/c.jpg")  # two faults with one image
    truncated_jpeg(three_splits / "images/d.jpg")
    write_voc(three_splits / "annotations/e.xml", size=(400, 300))
    write_voc(three_splits / "annotations/f.xml", objects=[("cat", (1, 2, "x", 4))])
    text = fault_of(config(three_splits))
    lines = text.splitlines()
    assert lines[0].startswith("the data set has 7 errors; badFiles=skip")
    expected = [
        "images/a.jpg: the image does not exist",
        "annotations/b.xml: there is no such annotation",
        "images/c.jpg: the image cannot be read",
        "annotations/c.xml: the xml is invalid",
        "images/d.jpg: the image cannot be read",
        "images/e.jpg: the image is 40 x 30, but its annotation says 400 x 300",
        "annotations/f.xml: <xmax> of object 1 (cat) is 'x', which is not a number",
    ]
    assert len(lines) == 8
    for line, start in zip(lines[1:], expected, strict=True):
        assert line.startswith(f"  {three_splits}/{start}")


def test_a_single_fault_is_one_sentence(three_splits, config):
    (three_splits / "images/a.jpg").unlink()
    text = fault_of(config(three_splits))
    assert text.startswith(f"{three_splits}/images/a.jpg: the image does not exist")
    assert "\n" not in text


def test_many_faults_are_cut_short(make_folder, config):
    base = make_folder({"train": [f"n{i}" for i in range(30)], "validation": ["v"], "test": ["t"]})
    for i in range(30):
        (base / f"images/n{i}.jpg").unlink()
    lines = fault_of(config(base)).splitlines()
    assert lines[0].startswith("the data set has 30 errors")
    assert len(lines) == 22
    assert lines[-1] == "  and 10 more"


def test_faults_of_whole_splits(three_splits, config):
    (three_splits / "splits/validation.txt").write_text("\n")
    (three_splits / "splits/test.txt").write_text("e\na\nb\n")
    text = fault_of(config(three_splits), [*ALL, "tset"])
    assert "use one of them" in text
    assert (
        f"split 'tset' does not exist for {three_splits}/images (did you mean 'test'?); the splits are: test, train"
        in text
    )
    assert "split 'validation' is empty" in text
    assert f"splits 'train' and 'test' share 2 images of {three_splits}/images: a, b" in text
    assert "badFiles" not in text


def test_small_may_share_with_train_but_with_nothing_else(three_splits, config):
    (three_splits / "splits/small.txt").write_text("a\n")
    check_data(config(three_splits), [*ALL, "small"])
    (three_splits / "splits/small.txt").write_text("a\ne\n")
    assert "splits 'small' and 'test' share 1 images" in fault_of(config(three_splits), ["small", "test"])
    check_data(config(three_splits), ["train"])
    assert "splits 'small' and 'test' share" in fault_of(config(three_splits, trainSplitName="small"), ["test"])


def test_what_a_student_trains_on_is_not_validated_on_later(three_splits, config):
    (three_splits / "splits/small.txt").write_text("a\nd\n")
    mcfg = config(three_splits, trainSplitName="small", epochValidation=False)
    assert "splits 'small' and 'validation' share 1 images" in fault_of(mcfg, ["small"])


def test_a_split_that_is_trained_on_may_be_a_part_of_train(three_splits, config):
    for name, names in (("few", "a\n"), ("mixed", "a\nd\n"), ("leaked", "a\ne\n")):
        (three_splits / f"splits/{name}.txt").write_text(names)
    for asked in (["few"], ["few", "train"], ["few", "validation", "test", "train"]):
        checked = check_data(config(three_splits, trainSplitName="few"), asked)
        assert [one.image_id for one in checked.splits["few"]] == ["a"]
    shared = "splits 'mixed' and 'validation' share 1 images"
    assert shared in fault_of(config(three_splits, trainSplitName="mixed"), ["mixed", "validation"])
    assert "splits 'leaked' and 'test' share 1 images" in fault_of(
        config(three_splits, trainSplitName="leaked"), ["leaked"]
    )
    assert "splits 'train' and 'few' share" in fault_of(config(three_splits), ["train", "few"]), "not trained on"


@pytest.mark.parametrize("role", ["validationSplitName", "testSplitName"])
def test_what_is_evaluated_is_no_part_of_train_even_when_it_is_trained_on(three_splits, config, role):
    (three_splits / "splits/few.txt").write_text("a\n")
    mcfg = config(three_splits, trainSplitName="few", **{role: "few"})
    assert "splits 'train' and 'few' share 1 images" in fault_of(mcfg, ["train", "few"])


@pytest.mark.parametrize(
    ("split", "image", "names"),
    [("test", "a", "train' and 'test"), ("val", "b", "train' and 'val"), ("val", "e", "val' and 'test")],
)
@pytest.mark.parametrize("asked", ["train", "test"])
def test_overlaps_are_found_whatever_is_asked(make_folder, config, split, image, names, asked):
    lists = {"train": ["a", "b", "c"], "val": ["d"], "test": ["e", "f"]}
    lists[split] = [*lists[split], image]
    base = make_folder(lists, lists="")
    text = fault_of(config(base, subsetMap=lists), [asked])
    assert f"splits '{names}' share 1 images of {base}/images: {image}" in text


def test_validation_and_test_may_be_one_split_but_not_that_which_is_trained_on(make_folder, config):
    lists = {"train": ["a", "b"], "val": ["c", "d"], "test": ["d", "c", "c"]}
    base = make_folder(lists, lists="")
    assert len(check_data(config(base, subsetMap=lists), ALL).splits["test"]) == 2
    check_data(config(base, subsetMap={**lists, "train": ["a"], "few": ["b"]}, trainSplitName="few"), ["few", *ALL])
    for name, others in (("train", ("val", "test")), ("test", ("val",))):
        for wrong in (["c", "d"], ["c"], ["a", "c", "d"]) if name == "train" else (["c"], ["c", "d", "e"]):
            text = fault_of(config(base, subsetMap={**lists, name: wrong}), ["train"])
            assert all(f"'{other}'" in text for other in others) and "share" in text
    text = fault_of(config(base, subsetMap=lists, trainSplitName="val"), ["val"])
    assert "splits 'val' and 'test' share 2 images" in text


def test_trainval_may_share_with_its_parts(make_folder, config):
    lists = {"train": ["a"], "val": ["b"], "trainval": ["a", "b"], "test": ["c"]}
    base = make_folder(lists, lists="ImageSets/Main")
    check_data(config(base), ["trainval"])
    check_data(config(base, trainSplitName="trainval"), ["trainval", "test"])
    assert "splits 'trainval' and 'val" in fault_of(config(base), ["trainval", "validation"])


@pytest.mark.parametrize(
    ("name", "way_out", "others"),
    [
        ("train", "trainSplitName", ("testSplitName", "epochValidation")),
        ("validation", "epochValidation=false", ("testSplitName", "trainSplitName")),
        ("test", "testSplitName", ("trainSplitName", "epochValidation")),
    ],
)
def test_the_way_out_fits_the_split_that_is_missing(three_splits, config, name, way_out, others):
    lists = {split: (image,) for split, image in zip(ALL, "abc", strict=True) if split != name}
    text = fault_of(config(three_splits, subsetMap=lists))
    assert text.startswith(f"split '{name}' does not exist for {three_splits}/images")
    assert f"--set {way_out}" in text
    assert not any(other in text for other in others)


def test_skip_leaves_bad_images_out_and_counts_them(three_splits, config, truncated_jpeg):
    truncated_jpeg(three_splits / "images/a.jpg")
    (three_splits / "annotations/b.xml").write_text("no xml")
    checked = check_data(config(three_splits, badFiles="skip"), ALL)
    assert [annotation.image_id for annotation in checked.splits["train"]] == ["c"]
    assert (checked.report.splits["train"].images, checked.report.splits["train"].skipped) == (1, 2)
    assert [text.split(":")[0] for text in checked.report.skipped] == [
        f"{three_splits}/images/a.jpg", f"{three_splits}/annotations/b.xml",
    ]  # fmt: skip
    assert checked.expected == {"train": 3, "validation": 1, "test": 2}
    table = checked.report.table().splitlines()
    assert any(line.startswith("! images skipped (badFiles=skip)      2") for line in table)
    assert table[-3:] == ["skipped (badFiles=skip):", *(f"  {text}" for text in checked.report.skipped)]
    assert "images/a.jpg: the image cannot be read" in table[-2]


def test_of_many_skipped_files_twenty_are_named(make_folder, config):
    base = make_folder({"train": [f"n{i}" for i in range(30)], "validation": ["v"], "test": ["t"]})
    for i in range(25):
        (base / f"images/n{i}.jpg").unlink()
    table = check_data(config(base, badFiles="skip"), ALL).report.table().splitlines()
    assert sum("the image does not exist" in line for line in table) == 20
    assert table[-1] == "  and 5 more"


def test_expected_counts_every_image_once(three_splits, config):
    (three_splits / "splits/train.txt").write_text("a\nb.jpg\nb\n")
    assert check_data(config(three_splits), ["train"]).expected == {"train": 2}


def test_progress_is_told_after_every_image(three_splits, config):
    told = []
    check_data(config(three_splits), ALL, on_image=lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(1, 7)]


def test_skip_does_not_pass_over_what_has_no_sound_way_out(three_splits, config):
    (three_splits / "images/d.jpg").unlink()
    (three_splits / "splits/test.txt").write_text("a\n")
    text = fault_of(config(three_splits, badFiles="skip"))
    assert "split 'validation': all of its 1 images have errors and are skipped" in text
    assert "splits 'train' and 'test' share 1 images" in text
    assert "the image does not exist" not in text
    assert "badFiles=skip leaves" not in text


def test_every_warning_is_counted(three_splits, config, write_voc, write_image):
    folder = three_splits / "annotations"
    write_voc(folder / "a.xml", objects=[("cat", (-1, 2, 30, 31)), ("dog", (3, 3, 3, 9)), ("cow", (1, 1, 2, 2))])
    write_voc(folder / "b.xml", objects=())
    write_voc(folder / "c.xml", size=None, objects=[("dog", (1, 1, 9, 9), 1)])
    write_image(three_splits / "images/d.jpg", orientation=3)
    (three_splits / "splits/train.txt").write_text("a\nb\nc\nb\n")
    report = check_data(config(three_splits), ALL).report
    train = report.splits["train"]
    assert (train.images, train.objects, dict(train.per_class)) == (3, 2, {"cat": 1, "dog": 1})
    assert (train.clipped, dict(train.dropped), dict(train.ignored)) == (1, {"without area": 1}, {"cow": 1})
    assert (train.without_objects, train.listed_twice, train.without_size, train.difficult) == (1, 1, 1, 1)
    assert report.splits["validation"].ambiguous_rotation == 1
    rows = report.rows()
    table = "\n".join(rows)
    for word in ("clipped", "without area", "'cow'", "negatives", "twice", "EXIF", "without <size>", "difficult"):
        assert table.count(word) == 1
    assert len({len(line.rstrip()) for line in rows}) == 1, "columns are aligned"


def test_columns_are_aligned_by_what_is_seen(three_splits, config, write_voc):
    write_voc(three_splits / "annotations/a.xml", objects=[("飞机", (1, 1, 9, 9))])
    lines = check_data(config(three_splits, classList=("cat", "飞机")), ALL).report.table().splitlines()
    assert "  飞机       1           0     0" in lines
    assert "  cat        2           1     2" in lines


def test_a_class_list_that_knows_no_object(three_splits, config):
    text = fault_of(config(three_splits, classList=("A1", "A2")))
    assert (
        "none of the 6 objects has a class of the class list (A1, A2); the classes in the annotations are cat" in text
    )


def test_images_of_any_suffix_and_several_of_one_name(three_splits, config):
    image = Image.open(three_splits / "images/a.jpg").convert("RGB")
    (three_splits / "images/a.jpg").rename(three_splits / "images/a.JPG")
    (three_splits / "images/b.jpg").unlink()
    image.save(three_splits / "images/b.png")
    image.save(three_splits / "images/c.png")  # beside c.jpg
    paths = [a.image_path.name for a in check_data(config(three_splits), ["train"]).splits["train"]]
    assert paths == ["a.JPG", "b.png", "c.jpg"]
    paths = [a.image_path.name for a in check_data(config(three_splits, suffix=".PNG"), ["train"]).splits["train"]]
    assert paths == ["a.JPG", "b.png", "c.png"]
    assert "several images have this name (c.jpg, c.png)" in fault_of(config(three_splits, suffix=".bmp"))


def test_a_rotated_photograph_is_delivered_as_its_boxes_mean_it(three_splits, config, write_image, write_voc):
    for name, size in (("a", (40, 30)), ("b", (30, 40))):
        write_image(three_splits / f"images/{name}.jpg", (40, 30), orientation=6)
        write_voc(three_splits / f"annotations/{name}.xml", size=size)
    raw, turned, _ = check_data(config(three_splits), ["train"]).splits["train"]
    assert (raw.width, raw.height) == (40, 30)
    assert (turned.width, turned.height) == (30, 40)


@pytest.fixture
def decoded(monkeypatch):
    """Names of the images that were decoded."""
    names = []
    inspect = dl.check.inspect_image
    monkeypatch.setattr(dl.check, "inspect_image", lambda path: (names.append(path.stem), inspect(path))[1])
    return names


def test_a_second_start_decodes_only_what_changed(three_splits, config, tmp_path, decoded, write_image, truncated_jpeg):
    cache, mcfg = tmp_path / "run" / "checked.json", config(three_splits)
    first = check_data(mcfg, ALL, cache)
    assert sorted(decoded) == list("abcdef")
    decoded.clear()
    second = check_data(mcfg, ALL, cache)
    assert decoded == []
    assert second.report == first.report
    write_image(three_splits / "images/b.jpg", (41, 30))
    with pytest.raises(UserError, match="the image is 41 x 30"):
        check_data(mcfg, ALL, cache)
    assert decoded == ["b"]
    truncated_jpeg(three_splits / "images/b.jpg")
    for _ in range(2):  # a bad image is never remembered as sound
        with pytest.raises(UserError, match="cannot be read"):
            check_data(mcfg, ALL, cache)


@pytest.mark.parametrize("content", ["", "[1]", '{"version": 0}', '{"version": 1, "images": 3}', '{"version": 1, "im'])
def test_a_broken_cache_only_costs_time(three_splits, config, tmp_path, decoded, content):
    cache = tmp_path / "checked.json"
    cache.write_text(content)
    check_data(config(three_splits), ALL, cache)
    assert len(decoded) == 6
    assert len(json.loads(cache.read_text())["images"]) == 6
    assert [path.name for path in tmp_path.glob("checked*")] == ["checked.json"]


def test_a_dangling_link_is_a_fault(three_splits, config, tmp_path):
    (three_splits / "images/a.jpg").unlink()
    (three_splits / "images/a.jpg").symlink_to(tmp_path / "gone.jpg")
    assert f"{three_splits}/images/a.jpg: the image file does not exist" in fault_of(config(three_splits))
