"""Weights from files: what matches is copied, what does not is said, and nothing in a file runs."""

import os
import pickle

import pytest
import torch

from config.errors import UserError
from model import YoloModel
from model.pretrained import load_weights, our_key


def test_a_plain_state_dict_fills_everything(tmp_path):
    source, target = YoloModel("nano", 3), YoloModel("nano", 3)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert not report.skipped and not report.missing and len(report.matched) == len(source.state_dict())
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_half_precision_is_lifted(tmp_path):
    source, target = YoloModel("nano", 3), YoloModel("nano", 3)
    torch.save({"model": source.half().state_dict()}, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert target.neck.l12.cv1.conv.weight.dtype == torch.float32
    assert torch.equal(target.neck.l12.cv1.conv.weight, source.neck.l12.cv1.conv.weight.float())


def test_the_average_wins_over_the_raw_weights(tmp_path):
    raw, average, target = (YoloModel("nano", 3) for _ in range(3))
    torch.save({"model": raw.state_dict(), "ema": average.state_dict()}, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert torch.equal(target.neck.l12.cv1.conv.weight, average.neck.l12.cv1.conv.weight)


def test_other_classes_leave_only_the_class_branch_random(tmp_path):
    source, target = YoloModel("nano", 80), YoloModel("nano", 20)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert report.missing and all(name.startswith("head.cls.") for name in report.missing)
    assert str(len(report.matched)) in str(report) and "random" in str(report)


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_backbone_files_fill_the_backbone(tmp_path, prefix):
    source, target = YoloModel("nano", 3), YoloModel("nano", 3)
    torch.save({prefix + name: value for name, value in source.backbone.state_dict().items()}, tmp_path / "b.pth")
    report = load_weights(target, tmp_path / "b.pth")
    assert len(report.matched) == len(source.backbone.state_dict())
    assert torch.equal(target.backbone.l9.cv2.conv.weight, source.backbone.l9.cv2.conv.weight)
    assert not torch.equal(target.neck.l12.cv1.conv.weight, source.neck.l12.cv1.conv.weight)


def test_another_phase_is_an_error_and_not_a_quiet_random_start(tmp_path):
    torch.save(YoloModel("small", 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth.*do not fit the nano network.*phase"):
        load_weights(YoloModel("nano", 3), tmp_path / "w.pth")


def test_files_that_are_not_weights(tmp_path):
    model = YoloModel("nano", 3)
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "no-tensors.pth")
    for name, word in (("absent.pth", "no such"), ("empty.pth", "damaged"), ("no-tensors.pth", "no tensors")):
        with pytest.raises(UserError, match=word):
            load_weights(model, tmp_path / name)


def test_class_rows_of_other_classes_are_left_out_even_when_their_number_fits(tmp_path):
    source = YoloModel("nano", 2)
    about = {"class_list": ["cat", "dog"], "config": "{}", "data": {}}
    torch.save({"model": source.state_dict(), **about}, tmp_path / "w.pth")
    same, other, unasked = YoloModel("nano", 2), YoloModel("nano", 2), YoloModel("nano", 2)
    assert load_weights(same, tmp_path / "w.pth", ["cat", "dog"]).missing == []
    report = load_weights(other, tmp_path / "w.pth", ["dog", "cat"])
    assert report.class_list == ("cat", "dog")
    assert sorted(report.missing) == [f"head.cls.{i}.2.{kind}" for i in range(3) for kind in ("bias", "weight")]
    assert load_weights(unasked, tmp_path / "w.pth").missing == []


class Command:
    """Unpickling this would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_file_runs(tmp_path):
    flag = tmp_path / "it-ran"
    torch.save({"model": Command(flag)}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Command(flag)))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(UserError, match=name):
            load_weights(YoloModel("nano", 3), tmp_path / name)
    assert not flag.exists()


def test_their_names_become_ours():
    table = {
        "model.0.conv.weight": "backbone.l0.conv.weight",
        "model.2.m.0.cv1.bn.bias": "backbone.l2.m.0.cv1.bn.bias",
        "model.12.cv2.conv.weight": "neck.l12.cv2.conv.weight",
        "model.22.cv2.0.1.bn.bias": "head.box.0.1.bn.bias",
        "model.22.cv3.2.2.weight": "head.cls.2.2.weight",
        "model.22.dfl.conv.weight": "head.dfl.weight",
        "model.model.9.cv1.conv.weight": "backbone.l9.cv1.conv.weight",
        "head.cls.0.2.bias": "head.cls.0.2.bias",
    }
    assert {theirs: our_key(theirs) for theirs in table} == table
