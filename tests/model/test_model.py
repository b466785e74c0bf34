"""The network: sizes, names, modes, freezing, and folding of batch norms."""

import pytest
import torch
from torch import nn

from config.errors import UserError
from config.mconfig import ModelConfig
from model import YoloModel, build_model
from model.base.scales import SCALES
from model.base.yolomodel import fused

# phase -> parameters at 80 and 20 classes, as the reference counts them, the frozen bins included
PARAMETERS = {
    "nano": (3_157_200, 3_014_748),
    "small": (11_166_560, 11_143_340),
    "medium": (25_902_640, 25_867_900),
    "large": (43_691_520, 43_645_260),
    "extra": (68_229_648, 68_171_868),
}


def config(**fields) -> ModelConfig:
    mcfg = ModelConfig()
    for name, value in fields.items():
        setattr(mcfg, name, value)
    return mcfg


@pytest.mark.parametrize("phase", PARAMETERS)
def test_parameter_counts(phase):
    for num_classes, expected in zip((80, 20), PARAMETERS[phase], strict=True):
        model = YoloModel(phase, num_classes)
        assert sum(p.numel() for p in model.parameters()) == expected


def test_raw_maps_have_the_same_shape_in_train_and_eval_mode():
    model = YoloModel("nano", 7)
    for mode in (True, False):
        maps = model.train(mode)(torch.rand(2, 3, 64, 96))
        assert [tuple(m.shape) for m in maps] == [(2, 71, 8, 12), (2, 71, 4, 6), (2, 71, 2, 3)]


def test_features_come_with_their_names():
    model = YoloModel("nano", 7).eval()
    images = torch.rand(1, 3, 64, 64)
    maps, features = model.forward_features(images)
    shapes = {name: tuple(value.shape[1:]) for name, value in features.items()}
    assert shapes == {
        "feat0": (32, 16, 16), "feat1": (64, 8, 8), "feat2": (128, 4, 4), "feat3": (256, 2, 2),
        "C": (128, 4, 4), "X": (64, 8, 8), "Y": (128, 4, 4), "Z": (256, 2, 2),
    }  # fmt: skip
    for one, other in zip(maps, model(images), strict=True):
        assert torch.equal(one, other)


def test_parameter_names_are_the_ones_checkpoints_rely_on():
    names = set(YoloModel("nano", 7).state_dict())
    for name in (
        "backbone.l0.conv.weight", "backbone.l2.m.0.cv1.bn.running_mean", "backbone.l9.cv2.conv.weight",
        "neck.l12.cv1.conv.weight", "neck.l19.bn.weight", "neck.l21.m.0.cv2.conv.weight",
        "head.box.0.0.conv.weight", "head.box.2.2.bias", "head.cls.1.1.bn.weight", "head.cls.0.2.weight",
    ):  # fmt: skip
        assert name in names
    tops = {".".join(name.split(".")[:2]) for name in names}
    layers = {f"backbone.l{i}" for i in range(10)} | {f"neck.l{i}" for i in (12, 15, 16, 18, 19, 21)}
    assert tops == layers | {"head.box", "head.cls", "head.dfl"}


def test_freezing_holds_parameters_and_statistics_and_gives_back_what_was_trainable():
    model = YoloModel("nano", 2)
    model.backbone.l0.conv.weight.requires_grad_(False)  # frozen by someone else: must stay so
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    model.freezeBackbone()
    model.freezeBackbone()
    model.train()
    statistics = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model(torch.rand(2, 3, 64, 64) * 5)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, statistics[name]), name
    assert not any(p.requires_grad for p in model.backbone.parameters()) and model.neck.training
    model.unfreezeBackbone()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert model.backbone.training
    model(torch.rand(2, 3, 64, 64) * 5)
    assert not torch.equal(model.backbone.l0.bn.running_mean, statistics["l0.bn.running_mean"])


def test_unfreezing_in_eval_mode_stays_in_eval_mode():
    model = YoloModel("nano", 2).eval()
    model.freezeBackbone()
    model.unfreezeBackbone()
    assert not model.backbone.training


def test_the_seed_alone_decides_the_weights_and_the_callers_randomness_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one = build_model(config(classList=["a"], seed=3))
    assert torch.equal(torch.rand(1), expected)
    two, other = build_model(config(classList=["a"], seed=3)), build_model(config(classList=["a"], seed=4))
    assert torch.equal(one.neck.l12.cv1.conv.weight, two.neck.l12.cv1.conv.weight)
    assert not torch.equal(one.neck.l12.cv1.conv.weight, other.neck.l12.cv1.conv.weight)


def test_a_network_without_classes_is_refused():
    with pytest.raises(UserError, match="classList"):
        build_model(config())


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
        expected, features = network.eval().forward_features(images)
        found, own = copied.forward_features(images)
    for ours, theirs in zip([*found, *own.values()], [*expected, *features.values()], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("phase", SCALES)
def test_feature_widths_are_those_of_the_maps(phase):
    with torch.device("meta"):  # nothing is computed
        model = YoloModel(phase, 3)
        _, features = model.forward_features(torch.zeros(1, 3, 64, 64))
    assert model.feature_widths == {name: value.shape[1] for name, value in features.items()}
