"""Truth, detections and batches made of plain lists."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dl.annotations import Annotation
from eval.predictor import Detections


@pytest.fixture
def make_truth():
    """(image_id, rows of [x0, y0, x1, y1, label, difficult]) -> Annotation of a 640 x 480 image."""

    def make(image_id, rows=(), width=640, height=480, image_path="nowhere.jpg"):
        table = np.array(rows, dtype=np.float64).reshape(-1, 6)
        return Annotation(
            image_id=image_id,
            image_path=Path(image_path),
            annotation_path=Path("nowhere.xml"),
            width=width,
            height=height,
            boxes=table[:, :4].astype(np.float32),
            labels=table[:, 4].astype(np.int64),
            difficult=table[:, 5].astype(bool),
        )

    return make


@pytest.fixture
def make_found():
    """(image_id, rows of [x0, y0, x1, y1, label, score]) -> Detections."""

    def make(image_id, rows=()):
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
        return Detections(image_id, table[:, :4].float(), table[:, 5].float(), table[:, 4].long())

    return make
