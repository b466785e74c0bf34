"""Shared by the tests of the doctor: batches, findings and the file of a teacher."""

import json

import torch

from debug.doctor.finding import Finding
from model import YoloModel
from ops.batch import Batch

LONG = {"maxEpoch": 200}  # nothing is trained; the plan is that of a long run

STUDENT = {"modelName": "distillation", "distilling": "modern"}


def first_batch(setup) -> Batch:
    return next(setup.batches(1))


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def only(findings) -> Finding:
    (finding,) = findings
    return finding


def batch_of(*boxes) -> Batch:
    """One image with these boxes."""
    count = len(boxes)
    return Batch(
        images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(1, count, 4),
        labels=torch.zeros(1, count, dtype=torch.long),
        valid=torch.ones(1, count, dtype=torch.bool),
        image_ids=("a",),
    )


def teacher_file(path, classes=("red",)):
    """An untrained network that says which classes it knows."""
    torch.manual_seed(0)
    content = {"model": YoloModel("nano", len(classes)).state_dict(), "class_list": list(classes)}
    torch.save({**content, "ema": None, "config": json.dumps({}), "phase": "nano"}, path)
    return str(path)
