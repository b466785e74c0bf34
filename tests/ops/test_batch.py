"""Pixels become network input without changing the batch."""

import pytest
import torch

from ops.batch import network_input


def test_pixels():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    for given in (images, images.float()):
        before = given.clone()
        assert network_input(given).flatten().tolist() == pytest.approx([0, 0.2, 1])
        assert torch.equal(given, before)


def test_every_pixel_value_is_the_plain_quotient_bit_for_bit_and_channels_lie_last():
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    found = network_input(images)
    assert torch.equal(found, images.float() / 255)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)


def test_no_image():
    assert network_input(torch.zeros(0, 3, 64, 32, dtype=torch.uint8)).shape == (0, 3, 64, 32)
