"""Our loss equals the reference's: the three parts, and the gradient of every tensor of the network."""

import pytest
import torch

from model import YoloModel
from model.pretrained import our_key
from ops.batch import Batch
from train.loss import DetectionLoss
from train.tal import TaskAlignedAssigner

NUM_CLASSES = 5
KINDS = ("usual", "empty", "some empty", "tiny", "crowded")


def batch_of(kind: str, seed: int, height=96, width=128) -> Batch:
    random = torch.Generator().manual_seed(seed)
    b, m = 4, {"empty": 0, "crowded": 30}.get(kind, 5)
    low = torch.rand(b, m, 2, generator=random) * torch.tensor([width * 0.7, height * 0.7])
    side = 3 + torch.rand(b, m, 2, generator=random) * (8 if kind == "tiny" else 60)
    boxes = torch.cat((low, torch.minimum(low + side, torch.tensor([float(width), float(height)]))), dim=-1)
    valid = torch.arange(m)[None, :] < torch.tensor([m, max(m - 2, 0), 0 if kind == "some empty" else m, 1])[:, None]
    labels = torch.randint(0, NUM_CLASSES, (b, m), generator=random)
    images = torch.randint(0, 256, (b, 3, height, width), generator=random, dtype=torch.uint8)
    return Batch(images, boxes * valid[..., None], labels * valid, valid, tuple("abcd"))


@pytest.fixture(scope="module")
def pair(reference):
    network = reference.network("nano", NUM_CLASSES).train()
    model = YoloModel("nano", NUM_CLASSES)
    model.load_state_dict({our_key(key): value for key, value in network.state_dict().items()})
    return network, model.train()


@pytest.mark.parametrize("min_side", [0, 16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parts_and_gradients_equal_the_reference(reference, pair, kind, seed, min_side):
    network, model = pair
    batch = batch_of(kind, seed)
    images = batch.images.float() / 255
    theirs = reference.loss_batch(batch.boxes, batch.labels, batch.valid, *batch.images.shape[2:])
    network.zero_grad()
    model.zero_grad()
    their_total, their_parts = reference.loss(network, min_side)(network(images), theirs)
    their_total.sum().div(len(batch)).backward()  # the reference multiplies by the batch size

    assigner = TaskAlignedAssigner(10, NUM_CLASSES, min_side=min_side)
    ours = DetectionLoss(NUM_CLASSES, assigner=assigner)(model(images), batch)
    ours.total.backward()

    for part in ("box", "cls", "dfl"):
        torch.testing.assert_close(ours.parts[part], their_parts[f"{part}_loss"], rtol=1e-5, atol=1e-7, msg=part)
    gradients = {our_key(name): p.grad for name, p in network.named_parameters() if p.grad is not None}
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        expected = gradients[name]
        assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-9, name
        compared += int(expected.norm() > 0)
    assert compared > (60 if kind == "empty" else 150)


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)  # the reference pads its targets in the default dtype
    yield
    torch.set_default_dtype(torch.float32)


def test_five_steps_in_float64_end_at_the_same_weights(reference, float64_by_default):
    network = reference.network("nano", NUM_CLASSES).double().train()
    model = YoloModel("nano", NUM_CLASSES).double().train()
    model.load_state_dict({our_key(key): value for key, value in network.state_dict().items()})
    loss, their_loss = DetectionLoss(NUM_CLASSES), reference.loss(network)
    steps = [torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9) for m in (model, network)]
    for seed in range(5):
        batch = batch_of("usual", seed)
        images = batch.images.double() / 255
        loss(model(images), batch).total.backward()
        flat = reference.loss_batch(batch.boxes.double(), batch.labels, batch.valid, *images.shape[2:])
        their_loss(network(images), flat)[0].sum().div(len(batch)).backward()
        for optimizer in steps:
            optimizer.step()
            optimizer.zero_grad()
    theirs = {our_key(name): p for name, p in network.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=1e-8, msg=name)
