"""What the tests of exported files share: classes, shape and selection of the files, and what they are run with."""

import importlib.util

import pytest
import torch

from eval.export_model import NmsSettings

NAMES, SHAPE = ("cat", "dog", "鸟"), (96, 128)
POINTS = 12 * 16 + 6 * 8 + 3 * 4
NMS = NmsSettings(score_threshold=0.3, iou_threshold=0.5, max_detections=20)


def has(*libraries):
    return all(importlib.util.find_spec(library) for library in libraries)


writes_onnx = pytest.mark.skipif(
    not has("onnx", "onnxscript", "onnxruntime") or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8),
    reason="onnx, onnxscript, onnxruntime and torch 2.8 are wanted",
)
needs_ultralytics = pytest.mark.skipif(not has("ultralytics"), reason="ultralytics is not installed")


def session_of(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
