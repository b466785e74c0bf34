"""Whose weights a training began with is known after any number of fine-tunings."""

import hashlib
import subprocess

import pytest
import torch

from runs.checkpoint import save_checkpoint
from runs.origin import code_commit, file_origin, origin_text, origin_text_without_paths, random_origin

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
    text = origin_text_without_paths(file_origin(run))
    digests = [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in (run, tmp_path / "official.pt")]
    assert text == f"best.pth (sha256 {digests[0]}), from official.pt (sha256 {digests[1]}), under {AGPL}"
    assert origin_text_without_paths(random_origin()) == "random"


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
    ("command", "told"), [("echo 0123abc", "0123abc"), ("false", "unknown"), ("/no/such/program", "unknown")]
)
def test_the_commit_is_told_or_unknown(monkeypatch, command, told):
    run = subprocess.run
    monkeypatch.setattr("runs.origin.subprocess.run", lambda _, **more: run(command.split(), **more))
    assert code_commit.__wrapped__() == told, "the function itself, without its cache"
