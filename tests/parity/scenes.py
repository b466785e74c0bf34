"""Batches with boxes of every kind, for the comparison of losses and of whole training steps."""

import torch

from ops.batch import Batch

# long: so much longer than high that the finest map sees them, whose last bin does not reach their ends
KINDS = ("usual", "empty", "some empty", "tiny", "crowded", "long")


def batch_of(kind: str, seed: int, num_classes: int) -> Batch:
    """Four noisy images with none to 30 boxes each, some of them padding."""
    random = torch.Generator().manual_seed(seed)
    height, width = 96, 320 if kind == "long" else 128
    b, m = 4, {"empty": 0, "crowded": 30}.get(kind, 5)
    low = torch.rand(b, m, 2, generator=random) * torch.tensor([(0.1 if kind == "long" else 0.7) * width, height * 0.7])
    side = 3 + torch.rand(b, m, 2, generator=random) * (8 if kind == "tiny" else 60)
    if kind == "long":
        side = side * torch.tensor([1.0, 0.5]) + torch.tensor([230.0, 15.0])
    boxes = torch.cat((low, torch.minimum(low + side, torch.tensor([float(width), float(height)]))), dim=-1)
    valid = torch.arange(m)[None, :] < torch.tensor([m, max(m - 2, 0), 0 if kind == "some empty" else m, 1])[:, None]
    labels = torch.randint(0, num_classes, (b, m), generator=random)
    images = torch.randint(0, 256, (b, 3, height, width), generator=random, dtype=torch.uint8)
    return Batch(images, boxes * valid[..., None], labels * valid, valid, tuple("abcd"))
