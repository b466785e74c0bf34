"""Truth, detections and batches made of plain lists; and a network, exported."""

import copy
import importlib.util
import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_files import NAMES, NMS, SHAPE
from torch import nn

from dl.annotations import Annotation
from dl.augment import letterbox
from dl.images import read_image
from eval.export import export
from eval.export_model import SUFFIXES
from eval.predictor import Detections
from model import YoloModel

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="mars-export-"))
os.environ.setdefault("YOLO_OFFLINE", "true")


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


@pytest.fixture(scope="session")
def photographs():
    """bus.jpg, zidane.jpg and the first one mirrored, as the network sees them."""
    spec = importlib.util.find_spec("ultralytics")
    if spec is None or spec.origin is None:
        pytest.skip("the photographs come with ultralytics")
    assets = Path(spec.origin).parent / "assets"

    def as_input(shape):
        images = [letterbox(read_image(assets / name), shape)[0] for name in ("bus.jpg", "zidane.jpg")]
        images.append(images[0][:, ::-1])
        return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())  # uint8

    return as_input


@pytest.fixture(scope="session")
def lively_model():
    """Weights that carry the photographs' differences to the end, and scores from nothing to certain."""
    torch.manual_seed(0)
    model = YoloModel("nano", len(NAMES))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.7, 1.3)
        nn.init.normal_(norm.bias, 0, 0.2)
        norm.momentum = 1.0
    for branch in model.head.box:
        nn.init.normal_(branch[-1].weight, 0, 0.1)
    for branch in model.head.cls:
        nn.init.normal_(branch[-1].weight, 0, 0.1)
        nn.init.constant_(branch[-1].bias, -3.0)
    with torch.no_grad():
        model.train()(torch.rand(4, 3, *SHAPE))
    for norm in norms:
        norm.momentum = 0.03
    return model.eval()


def state_of(model):
    """All that an export must leave as it was, the random state among it."""
    return {
        "modes": [part.training for part in model.modules()],
        "layouts": [p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.dim() == 4],
        "trained": [parameter.requires_grad for parameter in model.parameters()],
        "values": [value.clone() for value in (*model.state_dict().values(), torch.random.get_rng_state())],
    }


class Exports:
    """Every file is exported once, from a network in the middle of its training: `exported("onnx", nms=True)`."""

    def __init__(self, model, folder):
        self.model = copy.deepcopy(model).train().to(memory_format=torch.channels_last)
        self.model.freezeBackbone()
        self.folder, self.made, self.program = folder, {}, None
        self.states = {}  # kind, nms -> of the network before and after

    def __call__(self, kind, nms=False):
        if (kind, nms) not in self.made:
            path, before = self.folder / f"{kind}{'-nms' if nms else ''}{SUFFIXES[kind]}", state_of(self.model)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.onnx, "export", partial(self._converted_once, torch.onnx.export))
                self.made[kind, nms] = export(
                    self.model, kind, path, NAMES, SHAPE, NMS if nms else None, origin="a run"
                )
            self.states[kind, nms] = before, state_of(self.model)
        return self.made[kind, nms]

    def _converted_once(self, convert, *args, **options):
        """Both ONNX files begin with what torch makes of the same network."""
        self.program = self.program or convert(*args, **options)
        return self.program


@pytest.fixture(scope="session")
def exported(lively_model, tmp_path_factory):
    return Exports(lively_model, tmp_path_factory.mktemp("exported"))
