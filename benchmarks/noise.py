"""A batch of random pixels and boxes, to time a training step."""

import torch

from ops.batch import Batch


def noise_batch(count: int, size: int, num_classes: int, boxes: int, seed: int = 0) -> Batch:
    """`boxes` per image; their sides are a tenth to a third of `size`. The same seed gives the same batch."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=draw)
    sides = size * (0.1 + 0.23 * torch.rand(count, boxes, 2, generator=draw))
    corners = torch.rand(count, boxes, 2, generator=draw) * (size - sides)
    labels = torch.randint(0, num_classes, (count, boxes), generator=draw)
    valid = torch.ones(count, boxes, dtype=torch.bool)
    ids = tuple(str(number) for number in range(count))
    return Batch(images, torch.cat((corners, corners + sides), dim=2), labels, valid, ids)
