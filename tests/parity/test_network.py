"""Our network equals the reference's, for all five scales, on weights that carry the signal to the end."""

import pytest
import torch
from parity.table import largest_gap

from model import YoloModel
from model.weightsfile import our_key
from ops.anchors import flatten_maps

PHASES = ("nano", "small", "medium", "large", "extra")


def ours_with_weights_of(network, phase, num_classes):
    model = YoloModel(phase, num_classes)
    model.load_state_dict({our_key(key): value for key, value in network.state_dict().items()}, strict=True)
    return model.train(network.training)


def flat(model, images):
    return torch.cat(flatten_maps(model(images), model.reg_max), dim=2)


@pytest.mark.parametrize("phase", PHASES)
def test_raw_maps_equal_the_reference(reference, measured, phase):
    network = reference.network(phase, num_classes=20)
    model = ours_with_weights_of(network, phase, 20).eval()
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        single = reference.flat_output(network, images)
        ours = flat(model, images)
        exact = reference.flat_output(network.double(), images.double())
        measured(
            "network, five scales: raw maps in float64",
            largest_gap(flat(model.double(), images.double()), exact),
            1e-10,
        )
    spread = exact.std(dim=1).mean().item()
    rounding = largest_gap(single, exact)
    assert spread > 0.1, "the maps are nearly constant: such weights would hide a missing shortcut"
    assert 0 < rounding < 1e-3
    assert largest_gap(ours, exact) <= 10 * rounding
    measured("network, five scales: raw maps in float32", largest_gap(ours, single), 1e-3)


def test_a_missing_shortcut_would_be_seen(reference):
    network = reference.network("nano", num_classes=20)
    model = ours_with_weights_of(network, "nano", 20).eval()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = flat(model, images)
        model.backbone.l8.m[0].add = False
        assert (flat(model, images) - whole).abs().max() > 1e-2


def test_train_mode_and_statistics_equal_the_reference(reference, measured):
    network = reference.network("nano", num_classes=3).double().train()
    model = ours_with_weights_of(network, "nano", 3).double()
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(2)).double()
    gap = largest_gap(flat(model, images), reference.flat_output(network, images))
    measured("network in train mode: raw maps in float64", gap, 1e-10)
    theirs = {our_key(key): value for key, value in network.state_dict().items()}
    gaps = [largest_gap(value, theirs[name]) for name, value in model.state_dict().items()]
    measured("network in train mode: batch-norm statistics", max(gaps), 1e-10)


def test_fresh_head_biases_equal_the_reference(reference, measured):
    from ultralytics.nn.tasks import DetectionModel

    theirs = DetectionModel("yolov8n.yaml", nc=7, verbose=False).state_dict()
    ours = YoloModel("nano", 7).state_dict()
    keys = [key for key in theirs if key.startswith("model.22") and key.endswith("2.bias")]
    assert len(keys) == 6
    measured("network: biases of a fresh head", max(largest_gap(ours[our_key(key)], theirs[key]) for key in keys), 1e-5)
