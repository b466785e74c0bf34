"""Official weights on Ultralytics' own photos: our network, decoding and suppression find the same boxes as theirs.

Compared on the same pixels, those of their letterbox. It shrinks by interpolation between four pixels, Mars by
averaging over areas: from the file on, boxes differ by up to ten pixels and scores by a hundredth, and one close to the
threshold comes or goes.
"""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from eval.predictor import Detections, Predictor
from model import YoloModel
from model.pretrained import load_weights
from ops.batch import Batch, Letterbox

PHOTOS = ("bus.jpg", "zidane.jpg")
SIDE = 640


class Seen(NamedTuple):
    """One photo as both networks see it."""

    pixels: Tensor  # (1, 3, h, w) uint8
    letterbox: Letterbox

    def batch(self) -> Batch:
        nothing = torch.zeros(1, 0)
        return Batch(
            self.pixels, torch.zeros(1, 0, 4), nothing.long(), nothing.bool(), ("photo",), letterboxes=(self.letterbox,)
        )


@pytest.fixture(scope="module")
def weights(shared):
    file = shared / "weights" / "yolov8n_coco.pt"
    if not file.is_file():
        pytest.skip(f"official weights are not at hand: no {file}")
    return file


@pytest.fixture(scope="module")
def ours(weights):
    model = YoloModel("nano", 80)
    report = load_weights(model, weights)
    assert not report.missing and not report.skipped
    return model.eval()


@pytest.fixture(scope="module")
def theirs(reference, weights):
    from ultralytics import YOLO

    return YOLO(weights)


def look(yolo, photo: str):
    """Its result for a photo with its plain settings, and the pixels that its network was given."""
    from ultralytics.utils import ASSETS

    result = yolo.predict(ASSETS / photo, imgsz=SIDE, conf=0.25, iou=0.7, max_det=300, device="cpu", verbose=False)[0]
    given = yolo.predictor.preprocess([result.orig_img])
    pixels = (given * 255).round()
    assert torch.equal(pixels / 255, given)
    rows, columns = result.orig_shape
    scale = min(SIDE / rows, SIDE / columns)
    spare_y, spare_x = given.shape[2] - round(rows * scale), given.shape[3] - round(columns * scale)
    placed = Letterbox(scale, scale, spare_x // 2, spare_y // 2, rows, columns)
    return result, Seen(pixels.to(torch.uint8), placed)


def assert_same_detections(measured, own: Detections, boxes: Tensor, scores: Tensor, labels: Tensor):
    """One to one, whatever the order of those that share a score to the last digit but one."""
    apart = (own.boxes[:, None] - boxes[None]).abs().amax(-1)
    apart = apart.masked_fill(own.labels[:, None] != labels[None].long(), torch.inf)
    too_many = abs(len(own.scores) - len(scores))
    unmatched = int((apart.amin(1) > 1).sum() + (apart.amin(0) > 1).sum())
    twice = len(own.scores) - len(set(apart.argmin(1).tolist()))
    row = "official weights on two photos"
    measured(f"{row}: boxes or classes too many or few", too_many + unmatched + twice, 0)
    measured(f"{row}: boxes in pixels", apart.amin(1).max().item(), 1e-3)
    measured(f"{row}: scores", (own.scores - scores[apart.argmin(1)]).abs().max().item(), 1e-3)


@pytest.mark.parametrize("photo", PHOTOS)
def test_what_predict_finds(theirs, ours, measured, photo):
    result, seen = look(theirs, photo)
    (own,) = Predictor(ours, score_threshold=0.25, iou_threshold=0.7, max_detections=300)(seen.batch())
    assert len(own.scores) >= 3
    assert {result.names[int(label)] for label in own.labels} >= {"person"}
    assert_same_detections(measured, own, result.boxes.xyxy, result.boxes.conf, result.boxes.cls)


@pytest.mark.parametrize("photo", PHOTOS)
def test_what_validation_finds(theirs, weights, ours, measured, photo):
    """Down to scores of .001, several classes a point: what AP is made of. In double precision.

    In single precision their suppression, which parts the classes by 7680 pixels each, moves a box of the last class by
    up to 1/32 pixel, and so decides otherwise where an overlap is close to .7.
    """
    from ultralytics import YOLO
    from ultralytics.utils.nms import non_max_suppression

    _, seen = look(theirs, photo)
    limit = 10_000  # none: which is the last of 300 is a matter of digits
    with torch.no_grad():
        decoded = YOLO(weights).model.double().eval()(seen.pixels.double() / 255)[0]
        (found,) = non_max_suppression(decoded, 0.001, 0.7, multi_label=True, max_det=limit)
    exact = copy.deepcopy(ours).double()
    exact.register_forward_pre_hook(lambda _, args: ((args[0] * 255).round().double() / 255,))
    (own,) = Predictor(exact, 0.001, 0.7, limit)(seen.batch())
    assert len(own.scores) > 300
    boxes = seen.letterbox.undo(found[:, :4])
    is_inside = (boxes[:, 2:] > boxes[:, :2]).all(1)  # not wholly in the grey border
    assert_same_detections(measured, own, *(part[is_inside] for part in (boxes, found[:, 4], found[:, 5])))
