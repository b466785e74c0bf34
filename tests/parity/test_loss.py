"""Our loss equals the reference's: the three parts, and the gradient of every tensor of the network."""

import pytest
import torch
from parity.scenes import KINDS, batch_of

from model import YoloModel
from model.weightsfile import our_key
from train.loss import DetectionLoss
from train.tal import TaskAlignedAssigner

NUM_CLASSES = 5


@pytest.fixture(scope="module")
def pair(reference):
    network = reference.network("nano", NUM_CLASSES).train()
    model = YoloModel("nano", NUM_CLASSES)
    model.load_state_dict({our_key(key): value for key, value in network.state_dict().items()})
    return network, model.train()


def gradient_of(parameter):
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@pytest.mark.parametrize("min_side", [0, 16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parts_and_gradients_equal_the_reference(reference, pair, measured, kind, seed, min_side):
    network, model = pair
    batch = batch_of(kind, seed, NUM_CLASSES)
    images = batch.images.float() / 255
    theirs = reference.loss_batch(batch.boxes, batch.labels, batch.valid, *batch.images.shape[2:])
    network.zero_grad()
    model.zero_grad()
    their_loss = reference.loss(network, min_side)
    if kind == "crowded":
        reference.drop_ties(their_loss.assigner)
    their_total, their_parts = their_loss(network(images), theirs)
    their_total.sum().div(len(batch)).backward()  # the reference multiplies by the batch size

    assigner = TaskAlignedAssigner(10, NUM_CLASSES, min_side=min_side)
    ours = DetectionLoss(NUM_CLASSES, assigner=assigner)(model(images), batch)
    ours.total.backward()

    expected = {part: their_parts[f"{part}_loss"].item() for part in ("box", "cls", "dfl")}
    gaps = [abs(ours.parts[part].item() - value) / max(abs(value), 0.01) for part, value in expected.items()]
    measured("loss: its three parts, relative", max(gaps), 1e-5)
    # A part that nothing depends on (boxes, where there are none) may have no gradient instead of zeros.
    gradients = {our_key(name): gradient_of(p) for name, p in network.named_parameters() if p.requires_grad}
    own = {name: gradient_of(p) for name, p in model.named_parameters() if p.requires_grad}
    assert own.keys() == gradients.keys()
    sizes = {name: gradients[name].norm().item() for name in own}
    gaps = [(own[name] - gradients[name]).norm().item() / (size + 1e-5) for name, size in sizes.items()]
    measured("loss: gradient of every tensor, relative", max(gaps), 1e-4)
    assert sum(size > 0 for size in sizes.values()) > (60 if kind == "empty" else 150)
