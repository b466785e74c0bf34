"""Checkpoints that Ultralytics loads, whose network says what ours says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from config.errors import UserError
from interop.ultralytics import run_checkpoint, write_checkpoint
from model import YoloModel
from ops.anchors import flatten_maps

pytest.importorskip("ultralytics", reason="the reference implementation is not installed")

ROOT = Path(__file__).resolve().parents[2]


def lively(phase, num_classes, reg_max=16, official_width=False):
    """A network whose maps are not nearly constant, as those of fresh weights are: a wrong tensor would hide there."""
    torch.manual_seed(0)
    model = YoloModel(phase, num_classes, reg_max, official_width)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.7, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.momentum = 1.0
    for branch in (*model.head.box, *model.head.cls):
        nn.init.normal_(branch[-1].weight, 0, 0.2)
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 96, 96))
    for norm in norms:
        norm.momentum = 0.03
    return model.eval()


def names_of(model):
    return [f"type {number}" for number in range(model.num_classes)]


def load(path):
    from ultralytics import YOLO

    return YOLO(path)


@pytest.mark.parametrize(
    "shape_of_model",
    [
        pytest.param(("nano", 3), id="nano"),
        pytest.param(("nano", 3, 16, True), id="official-width"),
        pytest.param(("nano", 1, 8), id="eight-bins-one-class"),
        pytest.param(("nano", 3, 8, True), id="eight-bins-official-width"),
        pytest.param(("nano", 80), id="eighty-classes"),
        pytest.param(("nano", 120, 16, True), id="more-classes-than-the-branch-is-wide"),
        pytest.param(("small", 2), id="small"),
        pytest.param(("medium", 2), id="medium", marks=pytest.mark.slow),
        pytest.param(("large", 2), id="large", marks=pytest.mark.slow),
        pytest.param(("extra", 2), id="extra", marks=pytest.mark.slow),
    ],
)
def test_their_network_says_what_ours_says(tmp_path, shape_of_model):
    model = lively(*shape_of_model)
    path = write_checkpoint(model, names_of(model), tmp_path / "ours.pt", (96, 64))
    network = load(path).model
    images = torch.rand(3, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = torch.cat(flatten_maps(model(images), model.reg_max), dim=2)
        raw = network(images)[1]
        theirs = torch.cat((raw["boxes"], raw["scores"]), dim=1).transpose(1, 2)
    assert ours.std(dim=1).mean() > 0.1, "the maps are nearly constant: such weights would hide a wrong tensor"
    assert theirs.dtype == torch.float32
    assert (theirs - ours).abs().max() <= 1e-5


def test_what_the_file_says_of_itself(tmp_path):
    model = lively("nano", 3, 8, True)
    path = write_checkpoint(
        model, ["cat", "dog", "鸟"], tmp_path / "ours.pt", (320, 256), {"origin": "best.pth of run x"}
    )
    yolo = load(path)
    assert (yolo.task, yolo.names) == ("detect", {0: "cat", 1: "dog", 2: "鸟"})
    assert yolo.overrides["imgsz"] == [320, 256]
    assert yolo.model.stride.tolist() == [8, 16, 32]
    assert (yolo.model.yaml["nc"], yolo.model.yaml["scale"], yolo.model.yaml["reg_max"]) == (3, "n", 8)
    assert yolo.ckpt["origin"] == "best.pth of run x"
    assert yolo.ckpt["license"].startswith("AGPL-3.0")
    assert yolo.ckpt["train_args"]["task"] == "detect"
    square = write_checkpoint(model, names_of(model), tmp_path / "square.pt", (320, 320))
    assert load(square).overrides["imgsz"] == 320


def test_it_can_be_read_where_only_known_classes_are_allowed(tmp_path):
    from ultralytics.nn.tasks import torch_safe_load

    model = lively("nano", 2)
    path = write_checkpoint(model, names_of(model), tmp_path / "ours.pt", (64, 64), {"origin": "here"})
    known = torch.serialization.get_safe_globals()
    try:
        content, _ = torch_safe_load(path, safe_only=True)
    finally:  # what it allows, it allows to everyone in the process
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(known)
    assert torch.equal(content["model"].state_dict()["model.0.conv.weight"], model.backbone.l0.conv.weight)


def test_training_there_starts_from_all_of_our_tensors(tmp_path):
    """What its trainer does with a checkpoint: a new network from the plan inside, then our tensors."""
    from ultralytics.nn.tasks import DetectionModel

    model = lively("nano", 3, official_width=True)
    ours = load(write_checkpoint(model, names_of(model), tmp_path / "ours.pt", (64, 64))).model
    fresh = DetectionModel(ours.yaml, nc=3, verbose=False)
    fresh.load(ours, verbose=False)
    states = fresh.state_dict(), ours.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_boxes_and_scores_of_a_checkpoint(tmp_path):
    """Against boxes written out by hand: the expected bin of each side, times the stride, from the cell's centre."""
    model = lively("nano", 2)
    path = write_checkpoint(model, names_of(model), tmp_path / "ours.pt", (64, 96))
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    boxes, scores = run_checkpoint(path, images)
    with torch.no_grad():
        raw = model(images)[1].double()  # stride 16: 4 rows, 6 columns, behind the 8 x 12 cells of stride 8
    for row, column in ((0, 0), (3, 1), (2, 5)):
        sides = raw[1, :64, row, column].view(4, 16).softmax(1) @ torch.arange(16.0).double() * 16
        x, y = (column + 0.5) * 16, (row + 0.5) * 16
        wanted = torch.stack((x - sides[0], y - sides[1], x + sides[2], y + sides[3]))
        place = 8 * 12 + row * 6 + column
        torch.testing.assert_close(boxes[1, place].double(), wanted, rtol=0, atol=1e-3)
        torch.testing.assert_close(scores[1, place].double(), raw[1, 64:, row, column].sigmoid(), rtol=0, atol=1e-6)


def test_model_and_random_state_stay(tmp_path):
    model = lively("nano", 2).train().to(memory_format=torch.channels_last)
    model.freezeBackbone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    write_checkpoint(model, names_of(model), tmp_path / "ours.pt", (64, 64))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert model.backbone.l1.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_that_cannot_be_made_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "ours.pt"
    path.write_bytes(b"old")
    model = lively("nano", 2)
    for name in [name for name in sys.modules if name.partition(".")[0] == "ultralytics"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="pip install ultralytics"):
        write_checkpoint(model, names_of(model), path, (64, 64))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["ours.pt"]


A_FRESH_PROCESS = """
import os, sys, warnings
import cv2, numpy, PIL.Image, torch
cv2.setNumThreads(2)
os.environ.pop("OMP_NUM_THREADS", None)
os.environ["TORCH_CPP_LOG_LEVEL"] = "INFO"
def world():
    settings = [dict(os.environ), cv2.getNumThreads(), numpy.get_printoptions(), warnings.filters[:]]
    return [PIL.Image.open, torch.save, *settings]
from interop.ultralytics import write_checkpoint
from model import YoloModel
before = world()
write_checkpoint(YoloModel("nano", 2), ["a", "b"], sys.argv[1], (64, 64))
assert "ultralytics" in sys.modules
names = ["Image.open", "torch.save", "environment", "threads", "printing", "warnings"]
print([name for name, was, now in zip(names, before, world()) if was != now])
"""


def test_the_process_is_as_it_was_before_ultralytics_came(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", A_FRESH_PROCESS, str(tmp_path / "ours.pt")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
