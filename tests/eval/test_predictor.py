"""The way from raw maps back to the pixels of the image, with a network whose answer is planted."""

import math

import pytest
import torch
from torch import nn

from config.mconfig import ModelConfig
from eval.predictor import Predictor
from ops.anchors import expected_distances
from ops.batch import Batch, Letterbox

NUM_CLASSES, REG_MAX, STRIDES = 3, 16, (8, 16, 32)
SQUARE = Letterbox(1.0, 1.0, 0.0, 0.0, 64, 64)


class PlantedModel(nn.Module):
    """Returns raw maps for 64 x 64 inputs in which a few cells speak and all others keep silent.

    A plant is (image, level, row, column, distances in strides, label, score).
    """

    strides, reg_max, num_classes = STRIDES, REG_MAX, NUM_CLASSES
    distances = staticmethod(expected_distances)

    def __init__(self, plants=(), spoil=None):
        super().__init__()
        self.frozen_norm = nn.BatchNorm2d(3)
        self.plants, self.spoil, self.seen = plants, spoil, []

    def forward(self, images):
        self.seen.append((images.dtype, float(images.max()), self.training, torch.is_grad_enabled()))
        maps = [torch.zeros(len(images), 4 * REG_MAX + NUM_CLASSES, 64 // s, 64 // s) for s in STRIDES]
        for raw in maps:
            raw[:, 4 * REG_MAX :] = -30.0
        for image, level, row, column, distances, label, score in self.plants:
            cell = maps[level][image, :, row, column]
            for side, distance in enumerate(distances):
                cell[side * REG_MAX : (side + 1) * REG_MAX] = -100.0
                cell[side * REG_MAX + distance] = 100.0
            cell[4 * REG_MAX + label] = math.log(score / (1 - score))
        if self.spoil is not None:
            where, value = self.spoil
            maps[where[0]][where[1:]] = value
        return maps


def make_batch(letterboxes, image_ids=None):
    count = len(letterboxes)
    return Batch(
        torch.full((count, 3, 64, 64), 255, dtype=torch.uint8),
        torch.zeros(count, 0, 4),
        torch.zeros(count, 0, dtype=torch.int64),
        torch.zeros(count, 0, dtype=torch.bool),
        image_ids or tuple(f"image{number}" for number in range(count)),
        tuple(letterboxes),
    )


def test_boxes_come_back_in_pixels_of_the_image():
    # cell (row 1, column 2) of stride 16 looks at (40, 24): the box is 8..56, 8..40 of the input
    model = PlantedModel([(1, 1, 1, 2, (2, 1, 1, 1), 2, 0.75)])
    letterboxes = [SQUARE, Letterbox(0.5, 0.25, 4.0, 8.0, 1000, 1000)]
    empty, found = Predictor(model)(make_batch(letterboxes))
    assert (empty.image_id, found.image_id) == ("image0", "image1")
    assert found.boxes.tolist() == [[(8 - 4) / 0.5, (8 - 8) / 0.25, (56 - 4) / 0.5, (40 - 8) / 0.25]]
    assert found.scores.tolist() == pytest.approx([0.75])
    assert found.labels.tolist() == [2]
    assert [tuple(part.shape) for part in empty[1:]] == [(0, 4), (0,), (0,)]
    assert [part.dtype for part in found[1:]] == [torch.float32, torch.float32, torch.int64]
    assert [part.dtype for part in empty[1:]] == [torch.float32, torch.float32, torch.int64]


def test_every_stride_and_the_border():
    plants = [(0, 0, 0, 0, (1, 1, 1, 1), 0, 0.9), (0, 2, 1, 1, (1, 1, 3, 3), 1, 0.8)]
    (found,) = Predictor(PlantedModel(plants))(make_batch([SQUARE]))
    # the first reaches from -4 to 12, the second from 16 to 144 of an image of 64: both clipped
    assert found.boxes.tolist() == [[0, 0, 12, 12], [16, 16, 64, 64]]


def test_a_box_in_the_grey_border_is_no_detection():
    plants = [(0, 0, 0, 3, (1, 0, 1, 1), 0, 0.9), (0, 1, 1, 2, (1, 1, 1, 1), 1, 0.8)]
    (found,) = Predictor(PlantedModel(plants))(make_batch([Letterbox(1.0, 1.0, 0.0, 16.0, 32, 64)]))
    # the first covers rows 4 to 12 of the border's 16; the second 8 to 40, of which 0 to 24 are image
    assert found.boxes.tolist() == [[24, 0, 56, 24]]
    assert (found.labels.tolist(), found.scores.tolist()) == ([1], pytest.approx([0.8]))


def test_the_network_sees_floats_up_to_one_in_eval_mode_without_gradients():
    model = PlantedModel()
    Predictor(model)(make_batch([SQUARE]))
    assert model.seen == [(torch.float32, 1.0, False, False)]


def test_modes_are_left_as_they_were():
    model = PlantedModel()
    model.train()
    model.frozen_norm.eval()
    Predictor(model)(make_batch([SQUARE]))
    assert model.training and not model.frozen_norm.training
    model.spoil = ((0, 0, 0, 0, 0), math.nan)
    with pytest.raises(FloatingPointError):
        Predictor(model)(make_batch([SQUARE]))
    assert model.training and not model.frozen_norm.training


BOX, CLASS = 3, 4 * REG_MAX + 1  # channels; a box bin at -inf has probability 0, which is a sound box


@pytest.mark.parametrize(
    ("channel", "value"), [(BOX, math.nan), (BOX, math.inf), (CLASS, math.nan), (CLASS, math.inf), (CLASS, -math.inf)]
)
def test_predictions_that_are_not_finite_name_their_images(value, channel):
    model = PlantedModel([(0, 1, 1, 2, (2, 1, 1, 1), 2, 0.75)], spoil=((1, 1, channel, 0, 0), value))
    with pytest.raises(FloatingPointError, match=r"on sick$"):
        Predictor(model)(make_batch([SQUARE, SQUARE, SQUARE], ("well", "sick", "fine")))


def test_the_first_module_that_spoils_predictions_is_named():
    model = PlantedModel()
    model.stem = nn.Sequential(nn.Identity(), nn.Threshold(-1.0, math.nan), nn.Identity())
    forward = model.forward
    model.forward = lambda images: [one + model.stem(images - 9).mean() for one in forward(images)]
    with pytest.raises(FloatingPointError, match=r"on image; the first module with such an output is stem\.1$"):
        Predictor(model)(make_batch([SQUARE], ("image",)))
    assert not any(module._forward_hooks for module in model.modules())


def test_selection_settings_reach_the_selection():
    plants = [(0, 0, row, column, (0, 0, 1, 1), 0, 0.3 + 0.05 * row) for row in range(8) for column in range(8)]
    batch = make_batch([SQUARE])
    assert len(Predictor(PlantedModel(plants))(batch)[0].scores) == 64
    assert len(Predictor(PlantedModel(plants), max_detections=5)(batch)[0].scores) == 5
    assert len(Predictor(PlantedModel(plants), score_threshold=0.62)(batch)[0].scores) == 8
    both = [(0, 1, 1, 1, (1, 1, 1, 1), 0, 0.9), (0, 1, 1, 1, (1, 1, 1, 1), 1, 0.8)]
    assert len(Predictor(PlantedModel(both))(batch)[0].scores) == 2
    assert len(Predictor(PlantedModel(both), class_agnostic=True)(batch)[0].scores) == 1


def test_from_config():
    mcfg = ModelConfig()
    mcfg.scoreThreshold, mcfg.nmsIou, mcfg.maxDetections = 0.03, 0.6, 77
    model = PlantedModel()
    made = Predictor.from_config(mcfg, model)
    assert (made.score_threshold, made.iou_threshold, made.max_detections, made.class_agnostic) == (
        0.03,
        0.6,
        77,
        False,
    )
    assert made.device == torch.device("cpu")
    mcfg.apStyle = "assignment"
    made = Predictor.from_config(mcfg, model)
    assert (made.score_threshold, made.iou_threshold, made.max_detections, made.class_agnostic) == (0.2, 0.4, 50, True)


def test_a_training_batch_is_refused():
    with pytest.raises(ValueError, match="train=False"):
        Predictor(PlantedModel())(make_batch([None]))
