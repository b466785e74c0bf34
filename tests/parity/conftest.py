"""The reference implementation, wrapped so that a test reads as a comparison. Read here, never copied."""

import os
import tempfile
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from parity.table import PROPERTY, Finding, note, surroundings, table

from config.mconfig import OFFICIAL_WEIGHTS

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="mars-parity-"))
os.environ.setdefault("YOLO_OFFLINE", "true")

READ_FROM = "8.4.190"  # earlier releases warm up, count batches and pair detections in another way


def pytest_addoption(parser: pytest.Parser) -> None:
    # Known where this folder is named on the command line, as `make parity` does; elsewhere nobody asks.
    parser.addoption("--parity-table", action="store_true", help="print what was compared and how far it was apart")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.getoption("parity_table", False):
        return
    reports = [one for kind in terminalreporter.stats.values() for one in kind if getattr(one, "when", "") == "call"]
    values = [value for one in reports for name, value in one.user_properties if name == PROPERTY]
    terminalreporter.section("parity")
    for line in (*table(Finding(*value) for value in values), "", surroundings()):
        terminalreporter.write_line(line)


@pytest.fixture
def measured(record_property):
    """(part, difference, allowed): a line for the table of `make parity`; fails where the difference is larger."""

    return partial(note, record_property)


class Reference:
    """Ultralytics' YOLOv8 with weights that carry a signal to the end, and its loss and assigner."""

    @staticmethod
    def network(phase: str, num_classes: int, seed: int = 0) -> torch.nn.Module:
        """Fresh weights hide faults: their maps are nearly constant. So batch norm gets lively scales and offsets, and
        statistics that fit its input, as after a training."""
        from ultralytics.nn.tasks import DetectionModel

        torch.manual_seed(seed)
        network = DetectionModel(f"{OFFICIAL_WEIGHTS[phase]}.yaml", nc=num_classes, verbose=False)
        network.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            torch.nn.init.uniform_(norm.weight, 0.7, 1.5)
            torch.nn.init.normal_(norm.bias, 0, 0.3)
            norm.momentum = 1.0
        for branch in (*network.model[-1].cv2, *network.model[-1].cv3):
            torch.nn.init.normal_(branch[-1].weight, 0, 0.2)
        with torch.no_grad():
            network.train()(torch.rand(8, 3, 160, 160))
        for norm in norms:
            norm.momentum = 0.03
        return network.eval()

    @staticmethod
    def narrow_network(num_classes: int, depth: float, width: float) -> torch.nn.Module:
        """YOLOv8 with fresh weights, of a scale that is nobody's: every layer is there, and few channels."""
        from ultralytics.nn.tasks import DetectionModel, yaml_model_load

        plan = yaml_model_load("yolov8n.yaml")
        plan["scales"], plan["scale"] = {"p": [depth, width, 1024]}, "p"
        torch.manual_seed(0)
        return DetectionModel(plan, nc=num_classes, verbose=False)

    @staticmethod
    def flat_output(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """(B, A, 4R + C): what the head says at every point, in train or eval mode."""
        out = network(images)
        preds = out[1] if isinstance(out, tuple) else out
        return torch.cat((preds["boxes"], preds["scores"]), dim=1).transpose(1, 2)

    @staticmethod
    def loss(network: torch.nn.Module, min_side: float = 0):
        from ultralytics.utils.loss import v8DetectionLoss

        loss = v8DetectionLoss(network)
        loss.assigner.stride_val = min_side
        return loss

    @staticmethod
    def loss_batch(boxes, labels, valid, height: int, width: int) -> dict[str, torch.Tensor]:
        """Padded targets in pixels -> the reference's flat, normalised ones."""
        image, _ = valid.nonzero(as_tuple=True)
        real = boxes[valid]
        centre, size = (real[:, :2] + real[:, 2:]) / 2, real[:, 2:] - real[:, :2]
        scale = torch.tensor([width, height, width, height], dtype=real.dtype)
        bboxes = torch.cat((centre, size), 1) / scale
        return {"batch_idx": image.to(real.dtype), "cls": labels[valid].to(real.dtype), "bboxes": bboxes}

    @staticmethod
    def assigner(num_classes: int, min_side: float = 0, topk: int = 10):
        from ultralytics.utils.tal import TaskAlignedAssigner

        assigner = TaskAlignedAssigner(topk=topk, num_classes=num_classes, alpha=0.5, beta=6.0)
        assigner.stride_val = min_side
        return assigner

    @staticmethod
    def drop_ties(assigner) -> None:
        """Points with a metric of zero are no longer chosen. Where a box has fewer than `topk` others, the reference
        takes those of them that come first in memory; in a crowd, a point may so go to another box."""
        get_pos_mask = assigner.get_pos_mask

        def without_ties(*args, **kwargs):
            mask_pos, align_metric, overlaps = get_pos_mask(*args, **kwargs)
            return mask_pos * (align_metric > 0), align_metric, overlaps

        assigner.get_pos_mask = without_ties


@pytest.fixture(scope="session")
def reference():
    pytest.importorskip("ultralytics", reason="the reference implementation is not installed")
    return Reference


@pytest.fixture(scope="session")
def reference_today(reference):
    """The same, for what earlier releases do in another way."""
    pytest.importorskip("ultralytics", minversion=READ_FROM)
    return reference
