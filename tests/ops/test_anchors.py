"""Points, distances and distributions against hand-made numbers and a loop."""

import pytest
import torch

from ops.anchors import (
    boxes_to_distances,
    decode_boxes,
    distances_to_boxes,
    expected_distances,
    flatten_maps,
    full_precision,
    make_anchors,
)


def test_points_are_cell_centres_map_after_map_row_by_row():
    anchors = make_anchors(((2, 3), (1, 1)), (8, 32))
    assert anchors.points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [16, 16]]
    assert anchors.strides.tolist() == [8] * 6 + [32]


def test_points_are_made_once_and_usable_for_training_afterwards():
    with torch.inference_mode():
        first = make_anchors(((5, 7),), (8,))
    assert make_anchors(((5, 7),), (8,)).points is first.points
    assert not first.points.is_inference()


def test_640_pixels_have_8400_points():
    assert len(make_anchors(((80, 80), (40, 40), (20, 20))).points) == 8400


def test_flatten_keeps_channels_and_cells_together():
    maps = [torch.arange(2 * 10 * h * w, dtype=torch.float32).reshape(2, 10, h, w) for h, w in ((2, 3), (1, 2))]
    flat = flatten_maps(maps, reg_max=2)
    assert flat.distributions.shape == (2, 8, 8) and flat.logits.shape == (2, 8, 2)
    assert torch.equal(flat.distributions[1, 4], maps[0][1, :8, 1, 1])
    assert torch.equal(flat.logits[0, 7], maps[1][0, 8:, 0, 1])


def test_expected_distance_is_the_mean_of_the_bins():
    logits = torch.randn(5, 64, dtype=torch.float64)
    for row, distances in zip(logits, expected_distances(logits), strict=True):
        for side in range(4):
            weights = [torch.exp(row[side * 16 + bin_]).item() for bin_ in range(16)]
            mean = sum(weight * bin_ for bin_, weight in enumerate(weights)) / sum(weights)
            assert distances[side].item() == pytest.approx(mean)


def test_distances_and_boxes_undo_each_other():
    points, boxes = torch.rand(6, 2) * 9, torch.rand(3, 6, 4) * 9
    torch.testing.assert_close(distances_to_boxes(points, boxes_to_distances(points, boxes)), boxes)


def test_decoded_boxes_are_pixels_in_float32_even_from_half():
    distributions = torch.full((1, 1, 64), -20.0)
    for side, bin_ in enumerate((1, 2, 3, 4)):
        distributions[0, 0, side * 16 + bin_] = 20.0
    points, strides = torch.tensor([[100.0, 200.0]]), torch.tensor([16.0])
    for kind in (distributions, distributions.half()):
        boxes = decode_boxes(kind, points, strides)
        assert boxes.dtype == torch.float32
        torch.testing.assert_close(boxes[0, 0], torch.tensor([84.0, 168.0, 148.0, 264.0]))


def test_full_precision_lifts_halves_only():
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    assert [full_precision(torch.zeros(1, dtype=k)).dtype for k in kinds] == [torch.float32] * 3 + [torch.float64]
