"""The scripts in examples/ do what their first lines say."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from config.load import load_config
from dl.formats.discover import as_overrides, locate
from eval.export import export
from eval.export_model import NmsSettings
from examples import custom_augmentation, custom_loss, predict_and_count, pretrain_on_drawings, train_from_python
from model import build_model
from model.pretrained import load_weights
from model.weightsfile import read_weights
from runs.folder import RunFolder
from runs.provenance import file_origin
from scenes.dataset import AIRCRAFT
from scenes.objects import OBJECTS

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
ONLY_ONNX = {"json", "sys", "pathlib", "numpy", "onnxruntime", "PIL"}


@pytest.fixture(scope="module", autouse=True)
def _narrow(narrow_networks):
    """The network has all its layers, but few channels."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of the data, that of the runs, and the mAP50 of one epoch."""
    folder = tmp_path_factory.mktemp("examples")
    map50 = train_from_python.main(folder / "squares", folder / "runs", epochs=1)
    return folder / "squares", folder / "runs", map50


def test_there_are_six():
    assert len(list(EXAMPLES.glob("*.py"))) == 6


def test_train_from_python_resumes(trained):
    data, root, map50 = trained
    assert 0 <= map50 <= 1
    train_from_python.main(data, root, epochs=2)
    metrics = root / "voc.nano.full-squares/metrics.jsonl"
    assert len(metrics.read_text(encoding="utf-8").splitlines()) == 2


def test_custom_loss_is_logged(trained, tmp_path):
    values = custom_loss.main(trained[0], tmp_path, epochs=2)
    assert len(values) == 2 and all(value > 0 for value in values)


def test_custom_augmentation_paints_a_sheet(trained, tmp_path):
    assert custom_augmentation.main(trained[0], tmp_path / "sheet.png") > 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * 128, 128)


@pytest.fixture
def run_config(trained):
    data, root, _ = trained
    mcfg = load_config("voc.nano.full", root=root, data=data, overrides={"inputShape": 64})
    return mcfg.with_values(**as_overrides(locate(mcfg)))


def test_predict_and_count(trained, run_config):
    images = sorted((trained[0] / "images").glob("*.png"))[:2]
    counts = predict_and_count.main(run_config, images, min_score=0.0)
    assert list(counts) == [image.name for image in images]
    assert all(set(found) <= {"red", "blue"} for found in counts.values())
    assert sum(found.total() for found in counts.values()) > 0  # without a limit on the score, everything counts
    assert not any(predict_and_count.main(run_config, images, min_score=1.1)[image.name] for image in images)


def test_onnx_only_needs_no_torch_and_finds_the_same(trained, run_config, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tree = ast.parse((EXAMPLES / "onnx_only.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == ONLY_ONNX

    model = build_model(run_config)
    load_weights(model, RunFolder.of(run_config).best)
    file = tmp_path / "model.onnx"
    export(model, "onnx", file, run_config.classList, run_config.inputShape, NmsSettings(0.001, 0.7, 50))
    image = sorted((trained[0] / "images").glob("*.png"))[0]
    command = [sys.executable, str(EXAMPLES / "onnx_only.py"), str(file), str(image)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout.splitlines()
    assert printed
    counts = predict_and_count.main(run_config, [image], min_score=0.001)[image.name]
    assert abs(len(printed) - counts.total()) <= max(1, counts.total() // 50)  # Pillow resizes a little differently


def test_pretrain_on_drawings_writes_weights_to_start_from(tmp_path):
    """Half precision, the licence of Mars, no path of this machine; a training with other classes can start from it."""
    small = {"inputShape": 64, "maxEpoch": 1, "closeMosaic": 0, "dcore": 0, "precision": "float32", "batchSize": 4}
    file = pretrain_on_drawings.main(tmp_path / "runs", tmp_path / "drawn.pth", num_images=8, **small)
    weights = read_weights(file)
    assert {value.dtype for value in weights.tensors.values() if value.is_floating_point()} == {torch.float16}
    assert weights.class_list == OBJECTS
    assert str(tmp_path).encode() not in file.read_bytes()
    assert file_origin(file)["licence"] == "MIT (Mars, drawn images)"
    report = load_weights(build_model(load_config("demo.nano.full")), weights, AIRCRAFT)
    assert report.carried == [] and all(name.startswith("head.cls.") for name in report.missing)
