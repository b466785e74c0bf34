"""The origin of weights survives any number of fine-tunings; changes of the data of a run are described in words."""

import hashlib
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from dl.annotations import Annotation
from dl.check import check_data
from runs.checkpoint import save_checkpoint
from runs.provenance import (
    code_commit,
    data_differences,
    file_origin,
    identity_of,
    label_changes,
    origin_text,
    random_origin,
)
from train.trainer import Trainer

AGPL = "AGPL-3.0 (Ultralytics)"


def checkpoint(path, origin, **more):
    save_checkpoint(path, {"model": {"backbone.l0.conv.weight": torch.zeros(1)}, "weights_origin": origin, **more})
    return path


def test_a_file_is_named_with_its_checksum(tmp_path):
    path = tmp_path / "plain.pth"
    torch.save({"backbone.l0.conv.weight": torch.zeros(1)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert file_origin(path) == {"path": str(path), "sha256": digest, "licence": None, "from": None}


def test_official_weights_are_named_as_such_and_nothing_in_them_runs(shared):
    path = shared / "weights" / "yolov8n_coco.pt"
    assert file_origin(path)["licence"] == AGPL
    assert origin_text(file_origin(path)) == f"{path}, under {AGPL}"


@pytest.mark.parametrize("prefix", ["model.", "model.model.", "module.model."])
def test_their_names_of_tensors_are_known_in_every_wrapping(tmp_path, prefix):
    torch.save({f"{prefix}{rest}": torch.zeros(1) for rest in ("0.conv.weight", "2.cv1.bn.bias")}, tmp_path / "w.pth")
    assert file_origin(tmp_path / "w.pth")["licence"] == AGPL


def test_for_others_an_origin_has_names_and_checksums_but_no_paths(tmp_path):
    torch.save({"model.0.conv.weight": torch.zeros(1)}, tmp_path / "official.pt")
    run = checkpoint(tmp_path / "best.pth", file_origin(tmp_path / "official.pt"))
    text = origin_text(file_origin(run), with_paths=False)
    digests = [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in (run, tmp_path / "official.pt")]
    assert text == f"best.pth (sha256 {digests[0]}), from official.pt (sha256 {digests[1]}), under {AGPL}"
    assert origin_text(random_origin(), with_paths=False) == "random"


def test_the_licence_survives_fine_tuning_from_a_fine_tuned_file(tmp_path):
    official = tmp_path / "official.pt"
    torch.save({"model.0.conv.weight": torch.zeros(1), "model.22.dfl.conv.weight": torch.zeros(1)}, official)
    first = checkpoint(tmp_path / "first.pth", file_origin(official))
    second = checkpoint(tmp_path / "second.pth", file_origin(first))
    origin = file_origin(second)
    assert origin["licence"] == AGPL
    assert [origin["path"], origin["from"]["path"], origin["from"]["from"]["path"]] == [
        str(second),
        str(first),
        str(official),
    ]
    assert origin_text(origin) == f"{second}, from {first}, from {official}, under {AGPL}"


def test_files_of_ours_are_not_taken_for_theirs_by_a_folders_name(tmp_path):
    path = checkpoint(tmp_path / "own.pth", random_origin(), config='{"dataDir": "/home/me/ultralytics/data"}')
    assert file_origin(path)["licence"] is None
    assert origin_text(random_origin()) == "random"
    assert origin_text(file_origin(path)) == str(path)


def test_the_first_format_kept_a_path(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"format": "mars-checkpoint-1", "model": {}, "weights_origin": "/a/b.pth"}, path)
    assert file_origin(path)["from"]["path"] == "/a/b.pth"


@pytest.mark.parametrize(
    ("command", "expected"), [("echo 0123abc", "0123abc"), ("false", "unknown"), ("/no/such/program", "unknown")]
)
def test_the_commit_is_reported_or_unknown(monkeypatch, command, expected):
    run = subprocess.run
    monkeypatch.setattr("runs.provenance.subprocess.run", lambda _, **more: run(command.split(), **more))
    assert code_commit.__wrapped__() == expected, "the function itself, without its cache"


# Identity of data

BOX = np.array([[1, 2, 30, 40]], dtype=np.float32)


def annotation(image_id="a", box=BOX, label=0, is_difficult=False) -> Annotation:
    count = len(box)
    labels, difficult = np.full(count, label, dtype=np.int64), np.full(count, is_difficult)
    return Annotation(image_id, Path(f"{image_id}.png"), Path(f"{image_id}.xml"), 64, 64, box, labels, difficult)


@pytest.fixture
def identity(squares_config):
    """The identity of data whose split `train` has these annotations."""
    data = check_data(squares_config(), ["train"])

    def make(*annotations: Annotation) -> dict[str, str]:
        return identity_of(type(data)({"train": list(annotations)}, {}, data.report, data.source), ["train"])

    return make


@pytest.mark.parametrize(
    "changed",
    [
        annotation("a", BOX + np.float32(1e-4)),
        annotation("a", label=1),
        annotation("a", is_difficult=True),
        annotation("a", BOX[:0]),
        annotation("a", np.concatenate([BOX, BOX])),
    ],
)
def test_every_kind_of_change_counts_and_is_one_of_two_images(identity, changed):
    was = identity(annotation("a"), annotation("b"))
    assert label_changes(was, identity(changed, annotation("b"))) == ["the labels of 1 of 2 images of 'train'"]


def test_no_image_one_image_and_the_order_of_a_list_change_nothing(identity):
    for annotations in ([], [annotation("a")], [annotation("a"), annotation("b", label=1)]):
        assert label_changes(identity(*annotations), identity(*annotations[::-1])) == []


def test_an_image_that_can_be_read_again(identity):
    was, now = identity(annotation("a")), identity(annotation("a"), annotation("b"))
    assert label_changes(was, now) == ["the labels of the images that can be read (1 then, 2 now) of 'train'"]


def test_an_identity_of_an_earlier_version_has_no_labels(identity):
    now = identity(annotation("a"))
    old = {what: text for what, text in now.items() if not what.startswith("labels ")}
    assert len(old) == 2 and label_changes(old, now) == label_changes(now, old) == []
    assert data_differences(old, now) == ""


CLASSES = [
    (("cat", "dog"), ("dog", "cat"), "(in another order: cat, dog then, dog, cat now)"),
    (("cat", "dog"), ("cat", "dog", "cow"), "(added: cow)"),
    (("cat", "dog", "cow"), ("dog", "cow"), "(removed: cat)"),
    (("a", "b", "c", "d"), ("a", "e", "c", "b"), "(added: e; removed: d; in another order: b, c then, c, b now)"),
    ((*"abcdefg",), ("x",), "(added: x; removed: a, b, c, d, e and 2 more)"),
]


@pytest.mark.parametrize(("was", "now", "words"), CLASSES)
def test_classes_are_named(was, now, words):
    identities = ({"class list": f"{len(names)} classes, {hash(names)}"} for names in (was, now))
    text = data_differences(*identities, {"classList": list(was)}, {"classList": now})
    assert text == f"class list: {len(was)} classes then, {len(now)} classes now {words}"


def test_images_are_named_by_the_lists_of_both_configs():
    was, now = {"split train": "2 images, 1a"}, {"split train": "2 images, 2b"}
    maps = {"subsetMap": {"train": ["a", "b"]}}, {"subsetMap": {"train": ("b", "c")}}
    assert data_differences(was, now, *maps) == "split train: 2 images then, 2 images now (added: c; removed: a)"
    for unknown in ({}, {"subsetMap": {}}, {"subsetMap": {"train": "list.txt"}}, {"subsetMap": None}):
        assert data_differences(was, now, maps[0], unknown) == "split train: 2 images, 1a then, 2 images, 2b now"


def move_a_box(squares: Path, to: Path) -> Path:
    """A copy of the squares in which a box of one training and of one validation image has moved."""
    import shutil

    shutil.copytree(squares, to)
    for name in ("scene_00", "scene_08"):
        file = to / f"annotations/{name}.xml"
        file.write_text(file.read_text().replace("<xmin>", "<xmin>1", 1).replace("<xmax>", "<xmax>1", 1))
    return to


def test_a_run_goes_on_with_other_labels_and_says_so_once(squares, squares_config, tmp_path, caplog):
    def warnings() -> list[str]:
        return [record.message for record in caplog.records if "have changed" in record.message]

    Trainer(squares_config(maxEpoch=1)).run()
    assert Trainer(squares_config(maxEpoch=2)).run() and not warnings()
    moved = move_a_box(squares, tmp_path / "moved")
    folder = Trainer(squares_config(maxEpoch=3, dataDir=str(moved))).run()
    assert [text[: text.index(" have")] for text in warnings()] == [
        f"{folder.path}: the labels of 1 of {count} images of '{split}'"
        for split, count in {"train": 8, "validation": 2}.items()
    ]
    caplog.clear()
    Trainer(squares_config(maxEpoch=3, dataDir=str(moved))).run()
    assert not warnings(), "the labels that it went on with are in the checkpoint"
