"""The same images as VOC, YOLO and COCO: the same ids, boxes, batches; and found again without searching."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from data_formats import (
    CLASSES,
    Scene,
    write_coco,
    write_roboflow_coco,
    write_roboflow_voc,
    write_roboflow_yolo,
    write_ultralytics,
    write_voc_copy,
)

from config.errors import UserError
from dl.check import check_data
from dl.formats.discover import as_overrides, locate
from dl.loader import build_loader
from runs.provenance import data_identity

ALL = ("train", "validation", "test")
COPIES = {
    "Roboflow YOLO": (write_roboflow_yolo, "yolo"),
    "Ultralytics": (write_ultralytics, "yolo"),
    "COCO": (write_coco, "coco"),
    "COCO, images below images": (lambda base, splits: write_coco(base, splits, images="images"), "coco"),
    "Roboflow COCO": (write_roboflow_coco, "coco"),
    "Roboflow VOC": (write_roboflow_voc, "voc"),
}


@pytest.fixture
def scenes(tmp_path, write_image):
    """Eight images by splits, with none to four objects; Roboflow's names; whole and fractional coordinates."""
    rng = np.random.default_rng(3)
    drawn = []
    for index in range(8):
        size = (int(rng.integers(61, 333)), int(rng.integers(61, 333)))
        name = f"shot-{index}_jpg.rf.{index:032x}"
        objects = []
        for number in range(index % 5):
            x1, y1 = rng.integers(0, 30, 2)
            x2, y2 = x1 + rng.integers(5, 30), y1 + rng.integers(5, 30)
            fraction = ("", ".5", ".25", ".125")[number]
            box = (f"{x1}{fraction}", f"{y1}", f"{x2}{fraction}", f"{y2}{fraction}")
            objects.append((CLASSES[int(rng.integers(0, 4))], box))
        drawn.append(Scene(name, write_image(tmp_path / f"drawn/{index}.jpg", size), size, tuple(objects)))
    return {"train": drawn[:4], "validation": drawn[4:6], "test": drawn[6:]}


def batches(mcfg, split, train):
    loader = build_loader(mcfg, split, train=train)
    loader.set_epoch(2)
    return list(loader)


def assert_equal_batches(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.image_ids == other.image_ids
        for field in ("images", "boxes", "labels", "valid"):
            assert torch.equal(getattr(one, field), getattr(other, field)), field


@pytest.mark.parametrize("copy", COPIES)
def test_copies_give_identical_batches(scenes, tmp_path, config, copy):
    write, name = COPIES[copy]
    voc = config(write_voc_copy(tmp_path / "voc", scenes), classList=CLASSES)
    other = config(write(tmp_path / "other", scenes), classList=CLASSES)
    assert locate(other).format == name
    for split in ALL:
        assert_equal_batches(batches(voc, split, train=False), batches(other, split, train=False))
    assert_equal_batches(batches(voc, "train", train=True), batches(other, "train", train=True))


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_the_same_data_to_a_run(scenes, tmp_path, config, copy):
    """Class list and image names, so that a run may go on with another copy."""
    voc = locate(config(write_voc_copy(tmp_path / "voc", scenes)))
    other = locate(config(COPIES[copy][0](tmp_path / "other", scenes)))
    assert other.class_list == voc.class_list == CLASSES
    assert data_identity(other, ALL) == data_identity(voc, ALL)


@pytest.mark.parametrize("has_data_dir", [True, False])
@pytest.mark.parametrize("copy", COPIES)
def test_what_was_found_is_found_again(scenes, tmp_path, config, copy, has_data_dir):
    base = COPIES[copy][0](tmp_path / "outer" / "inner", scenes)
    first = locate(config(tmp_path / "outer"))
    again = locate(config(tmp_path / "outer" if has_data_dir else None, **as_overrides(first)))
    assert first.notes
    assert (again.image_dir, again.annotation_dir, again.format) == (
        first.image_dir,
        first.annotation_dir,
        first.format,
    )
    assert (again.class_list, again.splits, again.files, again.notes) == (
        first.class_list,
        first.splits,
        first.files,
        [],
    )
    report = check_data(config(**as_overrides(first)), ALL).report
    assert report == check_data(config(base), ALL).report


@pytest.mark.parametrize("copy", [name for name, (_, kind) in COPIES.items() if kind == "yolo"])
def test_finding_yolo_again_lists_no_folder(scenes, tmp_path, config, copy, monkeypatch):
    overrides = as_overrides(locate(config(COPIES[copy][0](tmp_path / "data", scenes))))

    def refuse(*_arguments):
        raise AssertionError("the folder of images was listed")

    monkeypatch.setattr("dl.formats.pairing.walk_files", refuse)
    monkeypatch.setattr("dl.formats.yolo.walk_files", refuse)
    assert locate(config(**overrides)).splits["train"]


@pytest.mark.parametrize("copy", COPIES)
def test_classes_are_mapped_by_name_never_by_number(scenes, tmp_path, config, copy):
    base = COPIES[copy][0](tmp_path / "data", scenes)
    whole = check_data(config(base), ALL).report.splits
    part = check_data(config(base, classList=("no", "cat")), ALL)
    for split in ALL:
        counts = part.report.splits[split]
        assert counts.per_class == {name: n for name, n in whole[split].per_class.items() if name in ("no", "cat")}
        assert counts.ignored == {name: n for name, n in whole[split].per_class.items() if name in ("dog", "10")}


@pytest.mark.parametrize("copy", COPIES)
def test_equal_names_in_two_folders_stay_apart(scenes, tmp_path, config, copy):
    scenes = {
        split: [scene._replace(name=f"{index}") for index, scene in enumerate(members)]
        for split, members in scenes.items()
    }
    scenes["train"] = scenes["train"][:3]
    base = COPIES[copy][0](tmp_path / "data", scenes)
    source = locate(config(base))
    ids = [image_id for split in ALL for image_id in source.splits[split]]
    assert len(set(ids)) == len(ids) == 7
    assert "2" in source.splits["train"], "a name of its own stays as it is"
    assert any("images have the same name" in note for note in source.notes)
    again = locate(config(**as_overrides(source)))
    assert (again.splits, again.files) == (source.splits, source.files)
    checked = check_data(config(base), ALL)
    for split in ALL:
        sizes = [(annotation.width, annotation.height) for annotation in checked.splits[split]]
        assert sizes == [scene.size for scene in scenes[split]]


def test_the_format_that_is_taken_and_the_one_that_is_asked_for(scenes, tmp_path, config, config_as):
    base = write_ultralytics(write_coco(tmp_path / "data", scenes), scenes)
    source = locate(config(base))
    assert source.format == "coco"
    assert "read: COCO json (annotated images: 8); not read: YOLO labels (8, annotationFormat=yolo)" in source.notes[0]
    assert locate(config_as("yolo", base)).format == "yolo"
    write_voc_copy(base, scenes)
    assert [locate(config_as(name, base)).format for name in ("auto", "voc", "coco", "yolo")] == [
        "voc", "voc", "coco", "yolo",
    ]  # fmt: skip
    for name in ("voc", "coco", "yolo"):
        source = locate(config_as(name, base))
        assert locate(config_as(name, **as_overrides(source))).splits == source.splits
    with pytest.raises(UserError, match="no data set of annotationFormat=coco found there or up to two folders below"):
        locate(config_as("coco", write_voc_copy(tmp_path / "voc", scenes)))


@pytest.fixture
def config_as(config):
    """A config with annotationFormat."""

    def make(name, folder=None, **fields):
        return config(folder, **{**fields, "annotationFormat": name})

    return make


@pytest.mark.parametrize("copy", COPIES)
def test_skip_works_for_every_format(scenes, tmp_path, config, copy, truncated_jpeg):
    base = COPIES[copy][0](tmp_path / "data", scenes)
    path = next(path for path in base.rglob("*.jpg") if path.stem == scenes["train"][1].name)
    truncated_jpeg(path)
    with pytest.raises(UserError, match=f"{path}: the image cannot be read .*badFiles=skip"):
        check_data(config(base), ALL)
    checked = check_data(config(base, badFiles="skip"), ALL)
    assert (checked.report.splits["train"].images, checked.report.splits["train"].skipped) == (3, 1)
    assert checked.expected["train"] == 4


@pytest.fixture
def blood_cells(shared):
    """Forty images of bccd, read by a parser of this test; the two degenerate boxes are none of theirs."""
    base, splits = shared / "data/bccd", {}
    for split, count in (("train", 20), ("validation", 10), ("test", 10)):
        names = sorted((base / f"splits/{split}.txt").read_text().split())
        splits[split] = [_real_scene(base, name.removesuffix(".jpg")) for name in names[:count]]
    return splits


def _real_scene(base, name):
    root = ElementTree.parse(base / f"annotations/{name}.xml").getroot()
    size = (int(root.findtext("size/width")), int(root.findtext("size/height")))
    objects = [
        (node.findtext("name"), tuple(node.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")))
        for node in root.iter("object")
    ]
    return Scene(name, base / f"images/{name}.jpg", size, tuple(objects))


@pytest.mark.parametrize("train", [True, False])
def test_real_images_in_three_formats_give_identical_batches(blood_cells, tmp_path, config, train):
    classes = ("RBC", "WBC", "Platelets")
    copies = [
        write(tmp_path / write.__name__, blood_cells, classes=classes)
        for write in (write_voc_copy, write_roboflow_yolo, write_ultralytics, write_coco)
    ]
    voc, *others = [batches(config(base, batchSize=8), "train", train) for base in copies]
    assert sum(int(batch.valid.sum()) for batch in voc) > 50
    for other in others:
        assert_equal_batches(voc, other)


@pytest.mark.parametrize("name", ["bccd", "fod31"])
def test_labels_of_another_program_give_the_boxes_of_the_xml(shared, config, config_as, name):
    """labels/*.txt has six digits: whole pixels (bccd) come back exactly, four decimals (fod31) within .00045."""
    base = shared / "data" / name
    voc, yolo = check_data(config(base), ["test"]), check_data(config_as("yolo", base), ["test"])
    assert voc.source.format == "voc"
    assert yolo.source.class_list == voc.source.class_list
    assert yolo.source.splits == voc.source.splits
    for one, other in zip(voc.splits["test"], yolo.splits["test"], strict=True):
        assert one.labels.tolist() == other.labels.tolist()
        assert np.abs(one.boxes - other.boxes).max() <= (0 if name == "bccd" else 4.6e-4)
