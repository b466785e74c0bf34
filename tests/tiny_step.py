"""A network of three convolutions, a detection loss and a batch: one training step in a few milliseconds."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from debug.tracer.report import report_text
from debug.tracer.rerun import TracedStep
from debug.tracer.tracer import trace
from ops.anchors import expected_distances
from ops.batch import Batch
from train.loss import DetectionLoss
from train.objective import DetectionObjective

CLASSES, REG_MAX = 3, 4


class TinyBlock(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(after)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class TinyNetwork(nn.Module):
    """Raw maps at the strides 8, 16 and 32, like those of the real one."""

    num_classes, reg_max, strides = CLASSES, REG_MAX, (8, 16, 32)
    distances = staticmethod(expected_distances)

    def __init__(self):
        super().__init__()
        self.stem = nn.ModuleList([TinyBlock(3, 8, 4), TinyBlock(8, 8, 2), TinyBlock(8, 8, 2), TinyBlock(8, 8, 2)])
        self.head = nn.ModuleList(nn.Conv2d(8, 4 * REG_MAX + CLASSES, 1) for _ in range(3))

    def forward(self, images):
        x, maps = self.stem[0](images), []
        for block, head in zip(list(self.stem)[1:], self.head, strict=True):
            x = block(x)
            maps.append(head(x))
        return maps


def batch_of(count=2, seed=0, boxes=2):
    """Noise with random boxes; the images are called s{seed}_0, s{seed}_1, ..."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)
    corners = torch.rand(count, boxes, 2, generator=generator) * 30
    sides = 10 + torch.rand(count, boxes, 2, generator=generator) * 20
    labels = torch.randint(0, CLASSES, (count, boxes), generator=generator)
    valid = torch.ones(count, boxes, dtype=torch.bool)
    ids = tuple(f"s{seed}_{i}" for i in range(count))
    return Batch(images, torch.cat([corners, corners + sides], dim=2), labels, valid, ids)


def tiny_batch(count=3, boxes=2):
    """The same with names of one letter."""
    return replace(batch_of(count, boxes=boxes), image_ids=tuple("abcdefgh"[:count]))


def tiny_step():
    """Network in train mode and objective, with weights drawn from seed 0."""
    torch.manual_seed(0)
    return TinyNetwork().train(), DetectionObjective(DetectionLoss(CLASSES, REG_MAX))


def traced(model, objective, batch=None, precision=torch.float32, **more):
    """The trace of a step. A report can be written about each of them."""
    found = trace(TracedStep(model, objective, batch or tiny_batch(), precision, **more))
    report_text(found)
    return found


def spoil_output(module, change):
    """Apply `change` to the output of `module`."""
    module.register_forward_hook(lambda module, args, output: change(output))


def line_of(found, place=0):
    """File and function of the producer's line."""
    line = found.producer.lines[place]
    return Path(line.file).name, line.function
