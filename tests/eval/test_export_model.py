"""The selection inside an ONNX file finds what a slow one finds, and what our Predictor finds on photographs."""

import numpy as np
import pytest
import torch
from exported_files import NMS, POINTS, SHAPE, session_of, writes_onnx

from eval import export as module
from eval.export import export, verify
from eval.export_model import NmsSettings
from eval.predictor import Predictor
from model import YoloModel
from model.pretrained import load_weights
from ops.batch import Batch, Letterbox

pytestmark = pytest.mark.filterwarnings("ignore:You are using .torch.load:FutureWarning")  # torch 2.4, of itself


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


def crowd(seed, count, share):
    """Boxes that overlap more or less, on whole pixels; `share` of the scores not zero, on a grid, so that many tie."""
    random = np.random.default_rng(seed)
    corner, size = random.integers(0, 40, (count, POINTS, 2)), random.integers(4, 40, (count, POINTS, 2))
    scores = random.integers(1, 40, (count, POINTS, 3)) / 40 * (random.random((count, POINTS, 3)) < share)
    return np.concatenate((corner, corner + size), axis=2).astype(np.float32), scores.astype(np.float32)


@pytest.fixture(scope="module")
def select(exported):
    """The selection inside the file, alone: boxes (B, A, 4) and scores (B, A, C) -> rows."""
    run = module._open_selection(exported("onnx", nms=True).path)

    def rows(boxes, scores):
        return run(torch.as_tensor(boxes, dtype=torch.float32), torch.as_tensor(scores, dtype=torch.float32))[0].numpy()

    return rows


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
@pytest.mark.parametrize("count", [1, 3])
def test_detections_of_photographs(lively_model, exported, photographs, count):
    """Against our Predictor, in the frame of the network input."""
    pixels = photographs(SHAPE)[:count]
    (rows,) = session_of(exported("onnx", nms=True).path).run(["detections"], {"images": pixels.float().numpy() / 255})
    frame = Letterbox(1.0, 1.0, 0.0, 0.0, *SHAPE)
    empty = torch.zeros(count, 0)
    batch = Batch(
        pixels, empty[..., None].expand(count, 0, 4), empty.long(), empty.bool(), tuple("abc")[:count], (frame,) * count
    )
    found = Predictor(lively_model, *NMS)(batch)
    assert all(len(one.scores) > 2 for one in found), "nothing found is nothing compared"
    assert rows.dtype == np.float32 and rows[:, 0].tolist() == sorted(rows[:, 0].tolist())
    for image, ours in enumerate(found):
        mine = rows[rows[:, 0] == image]
        assert mine[:, 6].tolist() == ours.labels.tolist()
        np.testing.assert_allclose(mine[:, 5], ours.scores, rtol=0, atol=1e-4)
        clipped = mine[:, 1:5].clip(0, np.array([SHAPE[1], SHAPE[0]] * 2))
        np.testing.assert_allclose(clipped, ours.boxes, rtol=0, atol=1e-2)


@writes_onnx
@pytest.mark.slow
@pytest.mark.parametrize("nms", [False, True], ids=["plain", "nms"])
def test_the_weights_of_coco_find_the_bus(shared, photographs, tmp_path, nms):
    model = YoloModel("nano", 80)
    load_weights(model, shared / "weights" / "yolov8n_coco.pt")
    selection = NmsSettings(0.25, 0.7, 300) if nms else None
    report = export(model, "onnx", tmp_path / "coco.onnx", [str(label) for label in range(80)], (320, 320), selection)
    images = photographs((320, 320)).float() / 255
    difference = verify(report.path, model, images, selection)
    assert difference.boxes < 0.01 and difference.scores < 1e-4 and difference.unlike == 0
    if nms:
        (rows,) = session_of(report.path).run(["detections"], {"images": images.numpy()})
        on_the_bus, on_zidane = rows[rows[:, 0] == 0], rows[rows[:, 0] == 1]
        assert (on_the_bus[:, 6] == 5).sum() == 1 and (on_the_bus[:, 6] == 0).sum() >= 3  # a bus, persons
        assert (on_zidane[:, 6] == 0).sum() == 2
