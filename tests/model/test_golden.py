"""A second implementation of the network: plain functions of a state dict, layer by layer as in the paper's figure.

It needs no reference implementation: whoever has only this repository sees a changed network here.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import YoloModel
from model.base.scales import SCALES, Scale

State = dict[str, Tensor]


def convolve(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Convolution, batch norm with its running statistics, x * sigmoid(x)."""
    weight = state[f"{name}.conv.weight"]
    y = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    mean, variance, scale, shift = (
        state[f"{name}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    y = (y - mean) / (variance + 0.001).sqrt() * scale + shift
    return y * y.sigmoid()


def c2f(state: State, name: str, x: Tensor, has_shortcut: bool) -> Tensor:
    wide = convolve(state, f"{name}.cv1", x)
    half = wide.shape[1] // 2
    parts = [wide[:, :half], wide[:, half:]]
    while f"{name}.m.{len(parts) - 2}.cv1.conv.weight" in state:
        inside = f"{name}.m.{len(parts) - 2}"
        y = convolve(state, f"{inside}.cv2", convolve(state, f"{inside}.cv1", parts[-1]))
        parts.append(y + parts[-1] if has_shortcut else y)
    return convolve(state, f"{name}.cv2", torch.cat(parts, 1))


def sppf(state: State, name: str, x: Tensor) -> Tensor:
    """Windows of 5, 9 and 13 cells at once, where the network pools three times by 5."""
    x = convolve(state, f"{name}.cv1", x)
    pooled = [F.max_pool2d(x, window, 1, window // 2) for window in (5, 9, 13)]
    return convolve(state, f"{name}.cv2", torch.cat([x, *pooled], 1))


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def branch(state: State, name: str, x: Tensor) -> Tensor:
    x = convolve(state, f"{name}.1", convolve(state, f"{name}.0", x))
    return F.conv2d(x, state[f"{name}.2.weight"], state[f"{name}.2.bias"])


def network(state: State, images: Tensor) -> list[Tensor]:
    """Three raw maps."""
    x, saved = images, {}
    for layer in range(9):
        if layer in (0, 1, 3, 5, 7):
            x = convolve(state, f"backbone.l{layer}", x, stride=2)
        else:
            x = saved[layer] = c2f(state, f"backbone.l{layer}", x, has_shortcut=True)
    deep = sppf(state, "backbone.l9", x)
    middle = c2f(state, "neck.l12", torch.cat((doubled(deep), saved[6]), 1), False)
    fine = c2f(state, "neck.l15", torch.cat((doubled(middle), saved[4]), 1), False)
    up = convolve(state, "neck.l16", fine, stride=2)
    middle = c2f(state, "neck.l18", torch.cat((up, middle), 1), False)
    up = convolve(state, "neck.l19", middle, stride=2)
    coarse = c2f(state, "neck.l21", torch.cat((up, deep), 1), False)
    return [
        torch.cat((branch(state, f"head.box.{i}", x), branch(state, f"head.cls.{i}", x)), 1)
        for i, x in enumerate((fine, middle, coarse))
    ]


def lively(phase: str, num_classes: int) -> YoloModel:
    """Weights that carry a signal to the end: fresh ones give maps that are nearly constant, and hide faults."""
    torch.manual_seed(0)
    model = YoloModel(phase, num_classes).double()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.7, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.momentum = 1.0
    for name, parameter in model.head.named_parameters():
        if name.endswith("2.weight"):
            nn.init.normal_(parameter, 0, 0.2)
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 128, 128).double())
    return model.eval()


@pytest.mark.parametrize("phase", ["nano", "deep"])
def test_raw_maps_equal_the_layers_written_out(monkeypatch, phase):
    monkeypatch.setitem(SCALES, "deep", Scale(1.0, 1 / 16, 512))  # all the repeats of large and extra, few channels
    model = lively(phase, num_classes=4)
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        for own, expected in zip(model(images), network(model.state_dict(), images), strict=True):
            assert expected.std() > 0.1, "the maps are nearly constant"
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-9)


def test_batch_norm_in_training_takes_the_batch_and_moves_by_three_hundredths():
    block = lively("nano", 4).backbone.l0.train()
    block.bn.momentum = YoloModel("nano", 4).backbone.l0.bn.momentum
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    before = {name: value.clone() for name, value in block.bn.state_dict().items()}
    with torch.no_grad():
        plain = F.conv2d(images, block.conv.weight, stride=2, padding=1)
        own = block(images)
    mean, variance = plain.mean((0, 2, 3)), plain.var((0, 2, 3), correction=0)
    y = (plain - mean[:, None, None]) / (variance[:, None, None] + 0.001).sqrt()
    y = y * before["weight"][:, None, None] + before["bias"][:, None, None]
    torch.testing.assert_close(own, y * y.sigmoid(), rtol=0, atol=1e-9)
    for name, of_batch in (("running_mean", mean), ("running_var", plain.var((0, 2, 3)))):
        expected = 0.97 * before[name] + 0.03 * of_batch
        torch.testing.assert_close(block.bn.state_dict()[name], expected, rtol=0, atol=1e-12)
