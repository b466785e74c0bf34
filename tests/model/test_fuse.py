"""Fused for inference: the same answer from fewer operations."""

import torch
from torch import nn

from model import YoloModel
from model.fuse import fused


def test_a_fused_network_says_the_same_and_leaves_the_other_alone():
    torch.manual_seed(0)
    network = YoloModel("nano", 3).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    copied = fused(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copied.modules())
    assert network.training and not copied.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    images = torch.rand(2, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        wanted, features = network.eval().forward_features(images)
        found, own = copied.forward_features(images)
    for ours, theirs in zip([*found, *own.values()], [*wanted, *features.values()], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
