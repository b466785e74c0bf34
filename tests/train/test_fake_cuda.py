"""What a step computes on a GPU, on tensors that only claim to be there: no value, but device, shape and type.

An operation on tensors of two devices, or one that asks the device for a number or a length, fails here as it would
fail or wait there. The backward pass is left out: autograd's engine needs a real GPU.
"""

from dataclasses import replace

import pytest
import torch
from tiny_step import batch_of
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)

from model import YoloModel
from ops.anchors import anchors_of, decode_boxes, flatten_maps, make_anchors
from ops.batch import Batch, network_input
from train.distilloss import DistillationLoss, DistillationWeights, ModelOutputs
from train.ema import ModelEMA
from train.loss import DetectionLoss

CLASSES = 3


@pytest.fixture
def gpu():
    with FakeTensorMode() as mode:
        yield mode
    make_anchors.cache_clear()  # a real GPU must not get fake anchor points


def batch_on_gpu(mode: FakeTensorMode, **changed) -> Batch:
    """As `Batch.to` copies it: the pairs are counted on the host, where the boxes have values."""
    with unset_fake_temporarily():
        batch = replace(batch_of(), **changed)
        values = dict(vars(batch.to("meta")))
        real = {name: value for name, value in vars(batch).items() if torch.is_tensor(value)}
    fakes = {name: mode.from_tensor(value).to("cuda") for name, value in real.items()}
    return Batch(**values | fakes)


def network(phase: str = "nano") -> YoloModel:
    with torch.device("cuda"):
        return YoloModel(phase, CLASSES)


def everything_is_on_the_gpu(out) -> bool:
    tensors = [out.total, *out.parts.values(), *out.must_be_finite.values()]
    return all(value.device.type == "cuda" and value.dim() == 0 for value in tensors)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("labelled", [None, [[True, False, True], [False, False, True]]])
@pytest.mark.parametrize("boxes", [0, 2])
def test_forward_assigner_loss_and_decode(gpu, precision, labelled, boxes):
    with unset_fake_temporarily():
        values = vars(batch_of(boxes=boxes)) | {"labelled": None if labelled is None else torch.tensor(labelled)}
    batch, model = batch_on_gpu(gpu, **values), network()
    raw_maps = [raw.to(precision) for raw in model(network_input(batch.images))]  # autocast needs a real GPU
    out = DetectionLoss(CLASSES)(raw_maps, batch)
    assert everything_is_on_the_gpu(out) and out.total.dtype == torch.float32
    distributions, _ = flatten_maps(raw_maps, 16)
    assert decode_boxes(distributions, *anchors_of(raw_maps)).device.type == "cuda"


@pytest.mark.parametrize("mode", ["softmax", "binary"])
def test_distillation(gpu, mode):
    batch = batch_on_gpu(gpu)
    student, teacher = map(network, ("nano", "small"))
    widths = {name: (student.feature_widths[name], teacher.feature_widths[name]) for name in "XYZ"}
    weights = DistillationWeights(1.0, 0.5, 0.25, 2.0)
    with torch.device("cuda"):
        loss = DistillationLoss(DetectionLoss(CLASSES), [0, 1], None, weights, widths, mode)
    images = network_input(batch.images)
    out = loss(ModelOutputs(*student.forward_features(images)), ModelOutputs(*teacher.forward_features(images)), batch)
    assert everything_is_on_the_gpu(out)
    assert {"cwd", "response", "box_response"} <= set(out.parts)


@pytest.mark.parametrize("is_held", [False, True])
def test_average_and_optimizer(gpu, is_held, monkeypatch):
    model = network()
    monkeypatch.setattr("copy.deepcopy", lambda _: network())  # copying a fake tensor is not possible
    ema = ModelEMA(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    torch.nn.utils.clip_grad_norm_(weights, 10.0)
    optimizer.step()
    ema.update(model, torch.zeros((), device="cuda") if is_held else None)
    assert all(value.device.type == "cuda" for value in ema.state_dict().values())


def test_what_this_is_there_to_catch(gpu):
    batch, model = batch_on_gpu(gpu), network()
    raw_maps = model(network_input(batch.images))
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        DetectionLoss(CLASSES)(raw_maps, replace(batch, pair_limits=None))  # the assigner would count the pairs
    with pytest.raises(RuntimeError, match="device"):
        DetectionLoss(CLASSES)(raw_maps, replace(batch, boxes=torch.zeros(2, 2, 4)))
