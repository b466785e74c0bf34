"""Box arithmetic against torchvision, plain numbers and finite differences."""

import pytest
import torch
from torchvision.ops import box_convert, box_iou, complete_box_iou_loss

from ops.boxes import ciou, cxcywh_to_xyxy, pairwise_iou


def boxes(n, seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(n, 2, generator=random, dtype=dtype) * 50
    return torch.cat((low, low + 1 + torch.rand(n, 2, generator=random, dtype=dtype) * 50), 1)


@pytest.mark.parametrize("n", [0, 1, 20])
def test_conversions_equal_torchvision(n):
    b = boxes(n)
    torch.testing.assert_close(cxcywh_to_xyxy(box_convert(b, "xyxy", "cxcywh")), b)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (1, 1), (20, 7)])
def test_pairwise_iou_equals_torchvision(n, m):
    a, b = boxes(n), boxes(m, seed=1)
    torch.testing.assert_close(pairwise_iou(a, b), box_iou(a, b), rtol=1e-6, atol=1e-9)


def test_iou_of_empty_boxes_is_zero():
    assert pairwise_iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_ciou_equals_torchvision():
    a, b = boxes(200), boxes(200, seed=1)
    torch.testing.assert_close(1 - ciou(a, b), complete_box_iou_loss(a, b), rtol=1e-6, atol=1e-6)


def test_ciou_broadcasts():
    a, b = boxes(4), boxes(3, seed=1)
    table = ciou(a[:, None], b[None])
    assert table.shape == (4, 3)
    torch.testing.assert_close(table[2, 1], ciou(a[2], b[1]))


@pytest.mark.parametrize(
    "pair", [([0, 0, 0, 0], [0, 0, 0, 0]), ([1, 1, 1, 5], [0, 0, 4, 4]), ([9, 9, 3, 3], [0, 0, 4, 4])]
)
def test_ciou_of_empty_and_inverted_boxes_is_finite_in_value_and_gradient(pair):
    a = torch.tensor(pair[0], dtype=torch.float32, requires_grad=True)
    value = ciou(a, torch.tensor(pair[1], dtype=torch.float32))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(a.grad).all()
