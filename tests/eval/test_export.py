"""Exported files give what our network gives, say what they are, and are not written when they would not."""

import copy
import json
import os
import re
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exported_files import NAMES, NMS, POINTS, SHAPE, needs_ultralytics, session_of, writes_onnx

from config.errors import UserError
from eval import export as module
from eval.export import METADATA_FILE, Difference, check_images, export, verify
from eval.export_model import SUFFIXES, DecodedModel
from model import YoloModel

pytestmark = pytest.mark.filterwarnings("ignore:You are using .torch.load:FutureWarning")  # torch 2.4, of itself

ROOT = Path(__file__).resolve().parents[2]


def boxes_and_scores(model, images):
    """Decoded by hand in float64: softmax over the bins of a side, its mean in strides, from the cell's centre."""
    boxes, scores = [], []
    with torch.no_grad():
        raw_maps = [raw.double().numpy() for raw in model(images)]
    for raw, stride in zip(raw_maps, (8, 16, 32), strict=True):
        for y in range(raw.shape[2]):
            for x in range(raw.shape[3]):
                cell = raw[:, :, y, x]
                bins = np.exp(cell[:, :64].reshape(-1, 4, 16))
                sides = (bins * np.arange(16)).sum(2) / bins.sum(2) * stride
                centre = np.array([x + 0.5, y + 0.5]) * stride
                boxes.append(np.concatenate((centre - sides[:, :2], centre + sides[:, 2:]), axis=1))
                scores.append(1 / (1 + np.exp(-cell[:, 64:])))
    return np.stack(boxes, axis=1), np.stack(scores, axis=1)


def run_file(report, images):
    """Boxes and scores of the file, as a user would get them."""
    if report.path.suffix == ".onnx":
        return session_of(report.path).run(["boxes", "scores"], {"images": images.numpy()})
    return [part.detach().numpy() for part in torch.export.load(report.path).module()(images)]


def test_a_network_in_training_is_decoded_as_in_evaluation(lively_model, photographs):
    images = photographs(SHAPE).float() / 255
    with torch.no_grad():
        boxes, scores = DecodedModel(copy.deepcopy(lively_model).train(), SHAPE)(images)
    wanted_boxes, wanted_scores = boxes_and_scores(lively_model, images)
    np.testing.assert_allclose(boxes, wanted_boxes, rtol=0, atol=1e-2)
    np.testing.assert_allclose(scores, wanted_scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=writes_onnx), "torch"])
def test_boxes_and_scores_of_photographs(lively_model, exported, photographs, kind, count):
    images = photographs(SHAPE)[:count].float() / 255
    boxes, scores = run_file(exported(kind), images)
    wanted_boxes, wanted_scores = boxes_and_scores(lively_model, images)
    assert boxes.shape == (count, POINTS, 4) and scores.shape == (count, POINTS, 3)
    assert boxes.dtype == scores.dtype == np.float32
    assert wanted_scores.std() > 0.01 and wanted_boxes.std() > 10, "such weights would hide a fault"
    np.testing.assert_allclose(boxes, wanted_boxes, rtol=0, atol=1e-2)
    np.testing.assert_allclose(scores, wanted_scores, rtol=0, atol=1e-4)


@writes_onnx
@pytest.mark.parametrize("nms", [False, True], ids=["plain", "nms"])
def test_what_an_onnx_file_says_of_itself(exported, nms):
    import onnx

    report = exported("onnx", nms)
    session = session_of(report.path)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["names"]) == list(NAMES) and json.loads(said["input_shape"]) == list(SHAPE)
    assert (said["producer"], said["task"], said["origin"]) == ("Mars", "detect", "a run")
    assert ("max_detections" in said) == nms and "licence of their origin" in said["license"]
    if nms:
        assert [json.loads(said[name]) for name in NMS._fields] == list(NMS)
    (taken,) = session.get_inputs()
    assert (taken.name, taken.shape, taken.type) == ("images", ["batch", 3, *SHAPE], "tensor(float)")
    given = {output.name: output.shape for output in session.get_outputs()}
    assert given == (
        {"detections": ["found", 7]} if nms else {"boxes": ["batch", POINTS, 4], "scores": ["batch", POINTS, 3]}
    )
    proto = onnx.load(report.path)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 18)] and proto.ir_version == 8


@pytest.mark.parametrize(
    "kind", [pytest.param("onnx", marks=writes_onnx), "torch", pytest.param("ultralytics", marks=needs_ultralytics)]
)
def test_one_file_without_a_trace_of_this_machine(exported, kind):
    report = exported(kind)
    content = report.path.read_bytes()
    assert len(content) == report.num_bytes > 12e6, "the weights are inside"
    assert str(ROOT).encode() not in content and sys.prefix.encode() not in content
    assert not [path for path in report.path.parent.iterdir() if path.suffix not in SUFFIXES.values()]


def test_what_a_torch_file_says_of_itself(exported):
    extra = {METADATA_FILE: ""}
    torch.export.load(exported("torch").path, extra_files=extra)
    said = json.loads(extra[METADATA_FILE])
    assert json.loads(said["names"]) == list(NAMES) and json.loads(said["input_shape"]) == list(SHAPE)
    entries = zipfile.ZipFile(exported("torch").path).infolist()
    examples = [entry.file_size for entry in entries if re.search("example|sample", entry.filename)]
    assert 0 < sum(examples) < 10_000, "the images it was traced with lie in the file"


@pytest.mark.parametrize(
    ("kind", "by"),
    [
        pytest.param("onnx", "onnxruntime", marks=writes_onnx),
        ("torch", "torch.export.load"),
        pytest.param("ultralytics", "ultralytics.YOLO", marks=needs_ultralytics),
    ],
)
def test_the_report(exported, kind, by):
    report = exported(kind)
    assert report.difference is not None and report.difference.boxes < 0.05 and report.difference.scores < 1e-3
    text = str(report)
    assert text.startswith(f"{report.path}: {report.num_bytes / 1e6:.1f} MB\n")
    assert f"checked with {by} in batches of 3 and 1: boxes differ by" in text
    assert ("AGPL-3.0" in text) == (kind == "ultralytics")


@needs_ultralytics
def test_the_checkpoint_of_ultralytics(exported, lively_model, photographs):
    from ultralytics import YOLO

    images = photographs(SHAPE).float() / 255
    yolo = YOLO(exported("ultralytics").path)
    with torch.no_grad():
        theirs = yolo.model(images)[0].transpose(1, 2).numpy()
    boxes, scores = boxes_and_scores(lively_model, images)
    corners = np.concatenate((theirs[..., :2] - theirs[..., 2:4] / 2, theirs[..., :2] + theirs[..., 2:4] / 2), axis=2)
    np.testing.assert_allclose(corners, boxes, rtol=0, atol=1e-2)
    np.testing.assert_allclose(theirs[..., 4:], scores, rtol=0, atol=1e-4)
    assert yolo.names == dict(enumerate(NAMES)) and yolo.ckpt["origin"] == "a run"


# --- what must not happen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [pytest.param("onnx", marks=writes_onnx), "torch", pytest.param("ultralytics", marks=needs_ultralytics)]
)
def test_the_model_is_left_as_it_was(exported, kind):
    exported(kind)
    before, after = exported.states[kind, False]
    assert any(before["modes"]) and any(before["layouts"]), "in training, channels last"
    assert 0 < sum(before["trained"]) < len(before["trained"]), "its backbone frozen"
    assert all(before[what] == after[what] for what in ("modes", "layouts", "trained"))
    assert all(torch.equal(old, new) for old, new in zip(before["values"], after["values"], strict=True))


def test_weights_that_are_not_finite_are_not_exported(tmp_path):
    model = YoloModel("nano", 3)
    with torch.no_grad():
        model.head.box[0][2].bias[0] = float("nan")
    with pytest.raises(RuntimeError, match="nan"):
        export(model, "torch", tmp_path / "model.pt2", NAMES, (64, 64))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("bias", "words"), [(0.1, "boxes differ by"), (float("nan"), "nan")])
def test_a_file_of_other_or_broken_weights_is_not_written(lively_model, exported, tmp_path, monkeypatch, bias, words):
    """Somewhere on the way a weight changes, or is no number: what was there before stays."""
    path, made = tmp_path / "model.pt2", exported("torch").path
    path.write_bytes(b"old")

    def forgetful(model, shape, draft, *_):
        program = torch.export.load(made)
        (name,) = [name for name in program.state_dict if name.endswith("head.cls.1.2.bias")]
        with torch.no_grad():
            program.state_dict[name][2] += bias
        torch.export.save(program, draft)

    monkeypatch.setattr(module, "export_torch", forgetful)
    with pytest.raises(
        RuntimeError, match=rf"model\.pt2: not written: its results differ from those of the network: .*{words}"
    ):
        export(lively_model, "torch", path, NAMES, SHAPE)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["model.pt2"]


@pytest.mark.parametrize(
    ("kind", "name", "nms", "words"),
    [
        ("tflite", "model.tflite", None, "no such format; the formats are onnx, torch, ultralytics"),
        ("onnx", "model.pt", None, r"model\.pt: .*must end in \.onnx"),
        ("torch", "model.pt", None, r"must end in \.pt2"),
        ("ultralytics", "model.pt2", None, r"must end in \.pt$"),
        ("torch", "model.pt2", NMS, "only ONNX files can contain"),
    ],
)
def test_what_does_not_go_together(tmp_path, kind, name, nms, words):
    with pytest.raises(UserError, match=words):
        export(YoloModel("nano", 3), kind, tmp_path / name, NAMES, (64, 64), nms)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("library", ["onnx", "onnxscript"])
def test_without_the_libraries_the_way_out_is_named(tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, "onnx", SimpleNamespace())
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"{library} is not installed.*pip install onnx onnxscript"):
        export(YoloModel("nano", 3), "onnx", tmp_path / "model.onnx", NAMES, (64, 64))


def test_an_old_torch_is_named(tmp_path, monkeypatch):
    for library in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, library, SimpleNamespace())
    monkeypatch.setattr(torch, "__version__", "2.4.1+cpu")
    with pytest.raises(UserError, match=r"torch 2\.4\.1\+cpu: ONNX export needs torch 2\.8"):
        export(YoloModel("nano", 3), "onnx", tmp_path / "model.onnx", NAMES, (64, 64))


@writes_onnx
def test_without_onnxruntime_it_is_said_that_nothing_was_checked(exported, lively_model, tmp_path, monkeypatch):
    made = exported("onnx").path.read_bytes()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(module, "export_onnx", lambda *args: args[2].write_bytes(made))
    report = export(lively_model, "onnx", tmp_path / "model.onnx", NAMES, SHAPE)
    assert report.difference is None and report.path.read_bytes() == made
    assert "not checked: onnxruntime is not installed (pip install onnxruntime)" in str(report)


# --- the check --------------------------------------------------------------------------------------------------------


@writes_onnx
def test_verify_sees_other_weights_and_another_selection(exported, lively_model):
    path, images = exported("onnx", nms=True).path, check_images(SHAPE)
    assert verify(path, lively_model, images, NMS).is_rounding
    for other in (NMS._replace(score_threshold=0.35), NMS._replace(iou_threshold=0.6), NMS._replace(max_detections=19)):
        assert not verify(path, lively_model, images, other).is_rounding, other
    moved = YoloModel("nano", 3)
    moved.load_state_dict(lively_model.state_dict())
    moved.strides = (8, 16, 33)
    assert not verify(path, moved, images, NMS).is_rounding


@writes_onnx
def test_the_report_of_a_selection(exported):
    difference = exported("onnx", nms=True).difference
    assert difference.detections > 60 and difference.unlike == 0
    assert f"{difference.detections} of {difference.detections} detections" in str(difference)


@pytest.mark.parametrize(
    ("difference", "is_rounding"),
    [
        (Difference(0.0, 0.0), True),
        (Difference(0.01, 1e-5, 300, 1), True),
        (Difference(1.0, 0.0), False),
        (Difference(0.0, 0.01), False),
        (Difference(float("nan"), 0.0), False),
        (Difference(0.0, float("nan")), False),
        (Difference(0.0, 0.0, 300, 30), False),
        (Difference(0.0, 0.0, 0, 1), False),
    ],
)
def test_what_passes_for_rounding(difference, is_rounding):
    assert difference.is_rounding == is_rounding
