"""Exported files give what our network gives: on photographs, for one image and for three, selection and all."""

import copy
import importlib.util
import json
import os
import re
import sys
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from config.errors import UserError
from dl.augment import letterbox
from dl.images import read_image
from eval import export as module
from eval.export import METADATA_FILE, DecodedModel, Difference, Nms, check_images, export, export_torch, verify
from eval.predictor import Predictor
from model import YoloModel
from model.pretrained import load_weights
from ops.batch import Batch, Letterbox

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="mars-export-"))
os.environ.setdefault("YOLO_OFFLINE", "true")

pytestmark = pytest.mark.filterwarnings("ignore:You are using .torch.load:FutureWarning")  # torch 2.4, of itself

ROOT = Path(__file__).resolve().parents[2]
NAMES, SHAPE = ("cat", "dog", "鸟"), (96, 128)
NMS = Nms(score_threshold=0.3, iou_threshold=0.5, max_detections=20)


def has(*libraries):
    return all(importlib.util.find_spec(library) for library in libraries)


writes_onnx = pytest.mark.skipif(
    not has("onnx", "onnxscript", "onnxruntime") or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8),
    reason="onnx, onnxscript, onnxruntime and torch 2.8 are wanted",
)
needs_ultralytics = pytest.mark.skipif(not has("ultralytics"), reason="ultralytics is not installed")


@pytest.fixture(scope="module")
def photographs():
    """bus.jpg, zidane.jpg and the first one mirrored, as the network sees them."""
    spec = importlib.util.find_spec("ultralytics")
    if spec is None or spec.origin is None:
        pytest.skip("the photographs come with ultralytics")
    assets = Path(spec.origin).parent / "assets"

    def as_input(shape):
        images = [letterbox(read_image(assets / name), shape)[0] for name in ("bus.jpg", "zidane.jpg")]
        images.append(images[0][:, ::-1])
        return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())  # uint8

    return as_input


@pytest.fixture(scope="module")
def model():
    """Weights that carry the photographs' differences to the end, and scores from nothing to certain."""
    torch.manual_seed(0)
    model = YoloModel("nano", len(NAMES))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.7, 1.3)
        nn.init.normal_(norm.bias, 0, 0.2)
        norm.momentum = 1.0
    for branch in model.head.box:
        nn.init.normal_(branch[-1].weight, 0, 0.1)
    for branch in model.head.cls:
        nn.init.normal_(branch[-1].weight, 0, 0.1)
        nn.init.constant_(branch[-1].bias, -3.0)
    with torch.no_grad():
        model.train()(torch.rand(4, 3, *SHAPE))
    for norm in norms:
        norm.momentum = 0.03
    return model.eval()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """Every file is exported once: `files("onnx")`, `files("onnx", nms=True)`, ..."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def file(kind, nms=False):
        if (kind, nms) not in made:
            path = folder / f"{kind}{'-nms' if nms else ''}{module.SUFFIXES[kind]}"
            settings = {
                "with_nms": True,
                **dict(zip(("score_threshold", "nms_iou", "max_detections"), NMS, strict=True)),
            }
            made[kind, nms] = export(model, kind, path, NAMES, SHAPE, origin="a run", **(settings if nms else {}))
        return made[kind, nms]

    return file


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


def select_slowly(boxes, scores, nms):
    """Rows (image, box, score, label), by loops: each class by falling score against what was kept before."""
    rows = []
    for image in range(len(boxes)):
        found = []
        for label in range(scores.shape[2]):
            kept = []
            for point in sorted(range(boxes.shape[1]), key=lambda point: -scores[image, point, label]):
                box = boxes[image, point]
                if scores[image, point, label] > nms.score_threshold and all(
                    overlap(box, other) <= nms.iou_threshold for other in kept
                ):
                    kept.append(box)
                    found.append((scores[image, point, label], point, label))
        found.sort(key=lambda one: (-one[0], one[1], one[2]))
        rows += [(image, *boxes[image, point], score, label) for score, point, label in found[: nms.max_detections]]
    return np.array(rows, dtype=np.float32).reshape(-1, 7)


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside
    return inside / union if union > 0 else 0.0


def session_of(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run_file(report, images):
    """Boxes and scores of the file, as a user would get them."""
    if report.path.suffix == ".onnx":
        return session_of(report.path).run(["boxes", "scores"], {"images": images.numpy()})
    return [part.detach().numpy() for part in torch.export.load(report.path).module()(images)]


def test_a_network_in_training_is_decoded_as_in_evaluation(model, photographs):
    images = photographs(SHAPE).float() / 255
    with torch.no_grad():
        boxes, scores = DecodedModel(copy.deepcopy(model).train(), SHAPE)(images)
    wanted_boxes, wanted_scores = boxes_and_scores(model, images)
    np.testing.assert_allclose(boxes, wanted_boxes, rtol=0, atol=1e-2)
    np.testing.assert_allclose(scores, wanted_scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=writes_onnx), "torch"])
def test_boxes_and_scores_of_photographs(model, files, photographs, kind, count):
    images = photographs(SHAPE)[:count].float() / 255
    boxes, scores = run_file(files(kind), images)
    wanted_boxes, wanted_scores = boxes_and_scores(model, images)
    points = 12 * 16 + 6 * 8 + 3 * 4
    assert boxes.shape == (count, points, 4) and scores.shape == (count, points, 3)
    assert boxes.dtype == scores.dtype == np.float32
    assert wanted_scores.std() > 0.01 and wanted_boxes.std() > 10, "such weights would hide a fault"
    np.testing.assert_allclose(boxes, wanted_boxes, rtol=0, atol=1e-2)
    np.testing.assert_allclose(scores, wanted_scores, rtol=0, atol=1e-4)


@writes_onnx
@pytest.mark.parametrize("count", [1, 3])
def test_detections_of_photographs(model, files, photographs, count):
    """Against our Predictor, in the frame of the network input."""
    pixels = photographs(SHAPE)[:count]
    (rows,) = session_of(files("onnx", nms=True).path).run(["detections"], {"images": pixels.float().numpy() / 255})
    frame = Letterbox(1.0, 1.0, 0.0, 0.0, *SHAPE)
    empty = torch.zeros(count, 0)
    batch = Batch(
        pixels, empty[..., None].expand(count, 0, 4), empty.long(), empty.bool(), tuple("abc")[:count], (frame,) * count
    )
    found = Predictor(model, *NMS)(batch)
    assert all(len(one.scores) > 2 for one in found), "nothing found is nothing compared"
    assert rows.dtype == np.float32 and rows[:, 0].tolist() == sorted(rows[:, 0].tolist())
    for image, ours in enumerate(found):
        mine = rows[rows[:, 0] == image]
        assert mine[:, 6].tolist() == ours.labels.tolist()
        np.testing.assert_allclose(mine[:, 5], ours.scores, rtol=0, atol=1e-4)
        clipped = mine[:, 1:5].clip(0, np.array([SHAPE[1], SHAPE[0]] * 2))
        np.testing.assert_allclose(clipped, ours.boxes, rtol=0, atol=1e-2)


@pytest.fixture(scope="module")
def select(files):
    """The selection inside the file, alone: boxes (B, A, 4) and scores (B, A, C) -> rows."""
    run = module._open_selection(files("onnx", nms=True).path)

    def rows(boxes, scores):
        return run(torch.as_tensor(boxes, dtype=torch.float32), torch.as_tensor(scores, dtype=torch.float32))[0].numpy()

    return rows


POINTS = 12 * 16 + 6 * 8 + 3 * 4


def crowd(seed, count, share):
    """Boxes that overlap more or less, on whole pixels; `share` of the scores not zero, on a grid, so that many tie."""
    random = np.random.default_rng(seed)
    corner, size = random.integers(0, 40, (count, POINTS, 2)), random.integers(4, 40, (count, POINTS, 2))
    scores = random.integers(1, 40, (count, POINTS, 3)) / 40 * (random.random((count, POINTS, 3)) < share)
    return np.concatenate((corner, corner + size), axis=2).astype(np.float32), scores.astype(np.float32)


@writes_onnx
@pytest.mark.parametrize("share", [0.004, 0.05, 0.6], ids=["few", "some", "many"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_selection_inside_equals_a_slow_one(select, count, share):
    boxes, scores = crowd(7, count, share)
    rows = select(boxes, scores)
    wanted = select_slowly(boxes, scores, NMS)
    assert len(wanted) > 0
    np.testing.assert_array_equal(rows, wanted)  # equal scores in the same order, too


@writes_onnx
def test_images_with_nothing_on_them(select):
    boxes, scores = crowd(3, 3, 0.05)
    assert select(boxes, 0 * scores).shape == (0, 7)
    assert select(boxes[:1], np.full((1, POINTS, 3), NMS.score_threshold)).shape == (0, 7), "above, not at"
    scores[[0, 2]] = 0
    rows = select(boxes, scores)
    assert len(rows) > 0 and set(rows[:, 0]) == {1}
    scores[1], scores[1, 5, 2] = 0, 0.9
    np.testing.assert_array_equal(select(boxes, scores), [[1, *boxes[1, 5], np.float32(0.9), 2]])


@writes_onnx
def test_no_image_has_more_than_its_share(select):
    """The best of all classes, and a full image takes nothing from the others."""
    boxes, scores = crowd(5, 3, 0.0)
    apart = np.arange(60)[:, None] * np.array([100, 0, 100, 0]) + np.array([0, 0, 10, 10])
    boxes[:, :60] = apart
    scores[0, :60, 0], scores[1, :60, 1], scores[2, :5, 2] = np.linspace(0.4, 0.9, 60), np.linspace(0.9, 0.4, 60), 0.5
    scores[0, 30, 2] = 0.95
    rows = select(boxes, scores)
    assert [int((rows[:, 0] == image).sum()) for image in range(3)] == [20, 20, 5]
    assert rows[0, 5:].tolist() == [np.float32(0.95), 2]
    assert (np.diff(rows[:20, 5]) <= 0).all() and (np.diff(rows[20:40, 5]) <= 0).all()


@writes_onnx
@pytest.mark.parametrize("nms", [False, True], ids=["plain", "nms"])
def test_what_an_onnx_file_says_of_itself(files, nms):
    import onnx

    report = files("onnx", nms)
    session = session_of(report.path)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["names"]) == list(NAMES) and json.loads(said["input_shape"]) == list(SHAPE)
    assert (said["producer"], said["task"], said["origin"]) == ("Mars", "detect", "a run")
    assert ("max_detections" in said) == nms and "licence of their origin" in said["license"]
    if nms:
        assert [json.loads(said[name]) for name in NMS._fields] == list(NMS)
    (taken,) = session.get_inputs()
    assert (taken.name, taken.shape, taken.type) == ("images", ["batch", 3, *SHAPE], "tensor(float)")
    given = {one.name: one.shape for one in session.get_outputs()}
    assert given == (
        {"detections": ["found", 7]} if nms else {"boxes": ["batch", POINTS, 4], "scores": ["batch", POINTS, 3]}
    )
    proto = onnx.load(report.path)
    assert [(one.domain, one.version) for one in proto.opset_import] == [("", 18)] and proto.ir_version == 8


@pytest.mark.parametrize(
    "kind", [pytest.param("onnx", marks=writes_onnx), "torch", pytest.param("ultralytics", marks=needs_ultralytics)]
)
def test_one_file_without_a_trace_of_this_machine(files, kind):
    report = files(kind)
    content = report.path.read_bytes()
    assert len(content) == report.num_bytes > 12e6, "the weights are inside"
    assert str(ROOT).encode() not in content and sys.prefix.encode() not in content
    assert not [path for path in report.path.parent.iterdir() if path.suffix not in module.SUFFIXES.values()]


def test_what_a_torch_file_says_of_itself(files):
    extra = {METADATA_FILE: ""}
    torch.export.load(files("torch").path, extra_files=extra)
    said = json.loads(extra[METADATA_FILE])
    assert json.loads(said["names"]) == list(NAMES) and json.loads(said["input_shape"]) == list(SHAPE)
    entries = zipfile.ZipFile(files("torch").path).infolist()
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
def test_the_report(files, kind, by):
    report = files(kind)
    assert report.difference is not None and report.difference.boxes < 0.05 and report.difference.scores < 1e-3
    text = str(report)
    assert text.startswith(f"{report.path}: {report.num_bytes / 1e6:.1f} MB\n")
    assert f"checked with {by} in batches of 3 and 1: boxes differ by" in text
    assert ("AGPL-3.0" in text) == (kind == "ultralytics")


@writes_onnx
def test_the_report_of_a_selection(files):
    difference = files("onnx", nms=True).difference
    assert difference.detections > 60 and difference.unlike == 0
    assert f"{difference.detections} of {difference.detections} detections" in str(difference)


@needs_ultralytics
def test_the_checkpoint_of_ultralytics(files, model, photographs):
    from ultralytics import YOLO

    images = photographs(SHAPE).float() / 255
    yolo = YOLO(files("ultralytics").path)
    with torch.no_grad():
        theirs = yolo.model(images)[0].transpose(1, 2).numpy()
    boxes, scores = boxes_and_scores(model, images)
    corners = np.concatenate((theirs[..., :2] - theirs[..., 2:4] / 2, theirs[..., :2] + theirs[..., 2:4] / 2), axis=2)
    np.testing.assert_allclose(corners, boxes, rtol=0, atol=1e-2)
    np.testing.assert_allclose(theirs[..., 4:], scores, rtol=0, atol=1e-4)
    assert yolo.names == dict(enumerate(NAMES)) and yolo.ckpt["origin"] == "a run"


@writes_onnx
@pytest.mark.slow
@pytest.mark.parametrize("nms", [False, True], ids=["plain", "nms"])
def test_the_weights_of_coco_find_the_bus(shared, photographs, tmp_path, nms):
    model = YoloModel("nano", 80)
    load_weights(model, shared / "weights" / "yolov8n_coco.pt")
    report = export(
        model, "onnx", tmp_path / "coco.onnx", [str(label) for label in range(80)], (320, 320), nms, 0.25, 0.7, 300
    )
    images = photographs((320, 320)).float() / 255
    difference = verify(report.path, model, images, Nms(0.25, 0.7, 300) if nms else None)
    assert difference.boxes < 0.01 and difference.scores < 1e-4 and difference.unlike == 0
    if nms:
        (rows,) = session_of(report.path).run(["detections"], {"images": images.numpy()})
        on_the_bus, on_zidane = rows[rows[:, 0] == 0], rows[rows[:, 0] == 1]
        assert (on_the_bus[:, 6] == 5).sum() == 1 and (on_the_bus[:, 6] == 0).sum() >= 3  # a bus, persons
        assert (on_zidane[:, 6] == 0).sum() == 2


# --- what must not happen -------------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was(tmp_path):
    model = YoloModel("nano", 3).train().to(memory_format=torch.channels_last)
    model.freezeBackbone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    state = torch.random.get_rng_state()
    export(model, "torch", tmp_path / "model.pt2", NAMES, (64, 64))
    assert [part.training for part in model.modules()] == modes
    assert model.backbone.l1.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_a_file_of_other_weights_is_not_written(model, tmp_path, monkeypatch):
    """Somewhere on the way a weight gets lost: what was there before stays."""
    path = tmp_path / "model.pt2"
    path.write_bytes(b"old")

    def forgetful(model, *args):
        other = YoloModel("nano", 3)
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            other.head.cls[1][2].bias[2] += 0.1
        return export_torch(other, *args)

    monkeypatch.setattr(module, "export_torch", forgetful)
    with pytest.raises(RuntimeError, match=r"model\.pt2: not written, for the file gives other figures"):
        export(model, "torch", path, NAMES, (64, 64))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["model.pt2"]


@writes_onnx
def test_verify_sees_other_weights_and_another_selection(files, model):
    path, images = files("onnx", nms=True).path, check_images(SHAPE)
    assert verify(path, model, images, NMS).is_rounding
    for other in (NMS._replace(score_threshold=0.35), NMS._replace(iou_threshold=0.6), NMS._replace(max_detections=19)):
        assert not verify(path, model, images, other).is_rounding, other
    moved = YoloModel("nano", 3)
    moved.load_state_dict(model.state_dict())
    moved.strides = (8, 16, 33)
    assert not verify(path, moved, images, NMS).is_rounding


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


def test_weights_that_are_not_finite_are_not_exported(tmp_path):
    model = YoloModel("nano", 3)
    with torch.no_grad():
        model.head.box[0][2].bias[0] = float("nan")
    with pytest.raises(RuntimeError, match="nan"):
        export(model, "torch", tmp_path / "model.pt2", NAMES, (64, 64))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "name", "with_nms", "words"),
    [
        ("tflite", "model.tflite", False, "no such format; there are onnx, torch, ultralytics"),
        ("onnx", "model.pt", False, r"model\.pt: .*must end in \.onnx"),
        ("torch", "model.pt", False, r"must end in \.pt2"),
        ("ultralytics", "model.pt2", False, r"must end in \.pt$"),
        ("torch", "model.pt2", True, "ONNX files only"),
    ],
)
def test_what_does_not_go_together(tmp_path, kind, name, with_nms, words):
    with pytest.raises(UserError, match=words):
        export(YoloModel("nano", 3), kind, tmp_path / name, NAMES, (64, 64), with_nms)
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
    with pytest.raises(UserError, match=r"torch 2\.4\.1\+cpu: writing ONNX needs torch 2\.8"):
        export(YoloModel("nano", 3), "onnx", tmp_path / "model.onnx", NAMES, (64, 64))


@writes_onnx
def test_without_onnxruntime_it_is_said_that_nothing_was_checked(files, model, tmp_path, monkeypatch):
    made = files("onnx").path.read_bytes()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(module, "export_onnx", lambda *args: args[2].write_bytes(made))
    report = export(model, "onnx", tmp_path / "model.onnx", NAMES, SHAPE)
    assert report.difference is None and report.path.read_bytes() == made
    assert "not checked: onnxruntime is not installed (pip install onnxruntime)" in str(report)
