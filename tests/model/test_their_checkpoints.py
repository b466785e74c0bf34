"""Ultralytics' own checkpoints, made here by its own classes: read without it, and its names become ours."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config.errors import UserError
from model import YoloModel
from model.pretrained import load_weights
from model.weightsfile import our_key, read_weights, their_key


@pytest.fixture
def ultralytics_file(tmp_path):
    """A checkpoint as Ultralytics writes them: (file, its network's state dict)."""
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="the reference implementation is not installed")

    def make(recipe="yolov8n.yaml", names=("cat", "dog", "bird"), in_ema=True, half=True, kind="DetectionModel"):
        torch.manual_seed(0)
        network = getattr(tasks, kind)(recipe, nc=len(names), verbose=False)
        network.names = dict(enumerate(names))
        network.args = SimpleNamespace(box=7.5)
        network = network.half() if half else network
        other = None if not in_ema else tasks.DetectionModel(recipe, nc=len(names), verbose=False)
        content = {
            "epoch": 3,
            "model": other if in_ema else network,
            "ema": network if in_ema else None,
            "optimizer": None,
        }
        torch.serialization.save({**content, "train_args": {"imgsz": 320}, "date": "x"}, tmp_path / "theirs.pt")
        return tmp_path / "theirs.pt", network.float().state_dict()

    return make


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("in_ema", [True, False])
def test_their_checkpoint_fills_everything(ultralytics_file, in_ema, half):
    path, theirs = ultralytics_file(in_ema=in_ema, half=half)
    model = YoloModel("nano", 3)
    report = load_weights(model, path, ("cat", "dog", "bird"))
    assert not report.missing and not report.skipped and len(report.matched) == len(model.state_dict())
    assert read_weights(path).config == {"inputShape": [320, 320]}
    assert report.class_list == ("cat", "dog", "bird") and "DetectionModel of yolov8n.yaml" in report.kind
    for name, value in model.state_dict().items():
        assert torch.equal(value, theirs[their_key(name)].to(value)), name


@pytest.mark.parametrize(
    ("recipe", "kind", "words"),
    [
        ("yolov8s.yaml", "DetectionModel", ["contains the small network", "phase=small"]),
        ("yolo11n.yaml", "DetectionModel", ["DetectionModel of yolo11n.yaml", "not a YOLOv8 detector"]),
        ("yolov8n-seg.yaml", "SegmentationModel", ["SegmentationModel of yolov8n-seg.yaml", "not a YOLOv8 detector"]),
        ("yolov8n-p6.yaml", "DetectionModel", ["yolov8n-p6.yaml", "not a YOLOv8 detector"]),
        ("yolov8n-cls.yaml", "ClassificationModel", ["ClassificationModel", "YOLOv8 detector"]),
    ],
)
def test_their_other_networks_are_named(ultralytics_file, recipe, kind, words):
    path, _ = ultralytics_file(recipe, kind=kind, in_ema=False)
    before = YoloModel("nano", 3)
    model = YoloModel("nano", 3)
    model.load_state_dict(before.state_dict())
    with pytest.raises(UserError, match=r"theirs\.pt") as caught:
        load_weights(model, path)
    assert not [word for word in words if word not in str(caught.value)], caught.value
    assert "\n" not in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]), f"{name} was changed by a file that was refused"


def test_a_checkpoint_with_numbers_of_numpy(ultralytics_file):
    path, _ = ultralytics_file(in_ema=False)
    content = torch.load(path, weights_only=False)
    torch.serialization.save({**content, "best_fitness": np.float64(0.3)}, path)
    assert not load_weights(YoloModel("nano", 3), path).missing


def test_a_fused_checkpoint_is_named(ultralytics_file):
    path, _ = ultralytics_file(in_ema=False, half=False)
    content = torch.load(path, weights_only=False)
    content["model"].fuse(verbose=False)
    torch.serialization.save(content, path)
    with pytest.raises(UserError, match=r"theirs\.pt: .*fused"):
        load_weights(YoloModel("nano", 3), path)


def test_fused_weights_are_named(tmp_path):
    state = {f"model.0.conv.{kind}": torch.zeros(16) for kind in ("bias", "weight")}
    torch.save(state, tmp_path / "fused.pt")
    with pytest.raises(UserError, match=r"fused\.pt: a network that was fused"):
        load_weights(YoloModel("nano", 3), tmp_path / "fused.pt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_short(ultralytics_file, share):
    path, _ = ultralytics_file()
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"theirs\.pt: (cannot be read as weights|refused)"):
        load_weights(YoloModel("nano", 3), path)


def test_reading_their_checkpoint_does_not_import_them(shared):
    code = (
        "import sys; from model.weightsfile import read_weights; file = read_weights(sys.argv[1]); "
        "assert not [name for name in sys.modules if name.startswith('ultralytics')]; "
        "print(file.phase, file.num_classes, file.class_list[0], len(file.tensors))"
    )
    command = [sys.executable, "-c", code, str(shared / "weights/yolov8n_coco.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["nano", "80", "person", "355"]


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


def test_the_way_back_of_every_name():
    names = list(YoloModel("nano", 3).state_dict())
    assert [our_key(their_key(name)) for name in names] == names
    assert their_key("head.dfl.weight") == "model.22.dfl.conv.weight"
    with pytest.raises(ValueError, match=r"head\.mask"):
        their_key("head.mask.0.weight")
