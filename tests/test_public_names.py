"""Names that other programs call. A change here breaks somebody: change it knowingly, with a word in the changelog."""

import dataclasses
import inspect
from dataclasses import replace

import torch

from commands.arguments import COMMANDS
from config.load import load_config
from config.mconfig import field_names
from eval.evaluator import EvalResult, Evaluator
from eval.metrics import average_precision
from model import build_model
from model.pretrained import LoadReport, load_weights
from ops.batch import Batch
from train.distilloss import CWDLoss, DistillationLoss, ResponseLoss
from train.loss import DetectionLoss, LossResult
from train.tal import Assignment, TaskAlignedAssigner
from train.trainer import Trainer

ASSIGNMENT_FIELDS = """
phase modelName imageDir annotationDir classList subsetMap suffix dcore inputShape regMax talTopk lossWeights
startEpoch maxEpoch backboneFreezeEpochs batchSize optimizerType optimizerMomentum optimizerWeightDecay schedulerType
baseLearningRate minLearningRate useEMA epochValidation trainSplitName validationSplitName testSplitName
trainSelectedClasses testSelectedClasses pretrainedBackboneUrl checkpointModelFile teacherModelFile
teacherClassIndexes distilLossWeights distilEpochs distilSelectedClasses temperature minIou paintImages seed cuda
device nobuf scoreThreshold nmsIou maxDetections paintConf
"""


def parameters(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_config_keeps_the_assignments_fields():
    assert set(ASSIGNMENT_FIELDS.split()) <= set(field_names())


def test_signatures():
    assert parameters(load_config)[:6] == ["cfgname", "root", "data", "overrides", "name", "nobuf"]
    assert inspect.signature(load_config).parameters["cfgname"].default == "demo.nano.full"
    assert parameters(TaskAlignedAssigner.__init__)[:4] == ["topk", "num_classes", "alpha", "beta"]
    promised = ["pd_scores", "pd_bboxes", "anc_points", "gt_labels", "gt_bboxes", "mask_gt"]
    assert parameters(TaskAlignedAssigner.__call__) == [*promised, "pair_limits"]
    assert inspect.signature(TaskAlignedAssigner.__call__).parameters["pair_limits"].default is None
    assert parameters(DetectionLoss.from_config) == ["mcfg", "model"]
    assert parameters(DetectionLoss.__call__) == ["raw_maps", "batch"]
    assert parameters(load_weights)[:2] == ["model", "path"]
    assert parameters(build_model) == ["mcfg"]
    assert parameters(Trainer.__init__)[0] == parameters(Evaluator.__init__)[0] == "mcfg"


def test_fields_of_values():
    assert Assignment._fields == ("target_labels", "target_bboxes", "target_scores", "fg_mask", "target_gt_idx")
    batch_fields = [field.name for field in dataclasses.fields(Batch)]
    assert batch_fields[:5] == ["images", "boxes", "labels", "valid", "image_ids"]
    assert [field.name for field in dataclasses.fields(LossResult)][:2] == ["total", "parts"]
    assert {"matched", "skipped", "missing"} <= {field.name for field in dataclasses.fields(LoadReport)}


def test_losses_of_distillation_are_where_they_were_promised():
    assert parameters(CWDLoss.__call__)[:2] == parameters(ResponseLoss.__call__)[:2] == ["student", "teacher"]
    assert parameters(DistillationLoss.__init__)[0] == "detection"
    assert {"incremental", "split", "pipe", "train", "eval", "predict", "export"} <= set(COMMANDS)


def test_keys_of_the_metrics_file():
    result = EvalResult(
        split="test", weights="w", images_expected=1, images_evaluated=1, ap_style="coco", settings={}, seconds=0.0,
        ap=average_precision("coco", [], [], ["a"]),
        annotations=(), detections=(),
    )  # fmt: skip
    keys = {"split", "weights", "images_expected", "images_evaluated", "map50", "map50_95", "per_class", "groups"}
    assert keys <= set(result.to_dict())
    assert set(result.to_dict()["per_class"]["a"]) == {"ap50", "ap50_95", "n_gt"}
    assert result.to_dict()["groups"] is None
    assert set(replace(result, base_names=()).to_dict()["groups"]) == {"base", "novel", "all", "harmonic"}


def test_from_a_name_to_a_gradient_without_data_on_disk():
    """The lines that the architecture page promises, as another program would write them."""
    mcfg = load_config("c1.nano.full", root="/nowhere/runs", overrides={"inputShape": 64})
    model = build_model(mcfg)
    images = torch.rand(2, 3, 64, 64)
    maps, features = model.forward_features(images)
    assert list(features) == ["feat0", "feat1", "feat2", "feat3", "C", "X", "Y", "Z"]
    batch = Batch(
        images=(images * 255).to(torch.uint8),
        boxes=torch.tensor([[[4.0, 4, 40, 50]], [[0, 0, 0, 0]]]),
        labels=torch.zeros(2, 1, dtype=torch.long),
        valid=torch.tensor([[True], [False]]),
        image_ids=("a", "b"),
    )
    out = DetectionLoss.from_config(mcfg, model)(maps, batch)
    out.total.backward()
    assert set(out.parts) == {"box", "cls", "dfl"}
    assert model.head.cls[0][2].weight.grad.abs().sum() > 0
