"""Rounding passes; other weights and another selection do not."""

import pytest
from exported_files import NMS, SHAPE, writes_onnx

from eval.export_check import Difference, check_images, verify
from model import YoloModel

pytestmark = pytest.mark.filterwarnings("ignore:You are using .torch.load:FutureWarning")  # torch 2.4, of itself


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
