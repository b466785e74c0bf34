"""The precision that a device gets: by word, by what it has, by the clock."""

import pytest
import torch
from torch import nn

from config.errors import UserError
from ops import device
from ops.device import autocast, dtype_name, half_dtypes, pick_precision, resumed_precision

CPU = torch.device("cpu")


class Net(nn.Module):
    """Maps as the detector gives them, and a statistic that a forward pass in training moves."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        return [self.norm(self.conv(images))]


# As they are: conftest.py puts fixed times in the place of one, and maybe an answer in that of the other.
TIME_STEP, HAS_BFLOAT16 = device._time_step, device.cpu_has_bfloat16


def processor(monkeypatch, has_bfloat16, has_onednn=True):
    """What torch says of this processor and of its own build."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_onednn)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(device, "cpu_has_bfloat16", HAS_BFLOAT16)


def clock(monkeypatch, seconds):
    monkeypatch.setattr(device, "_time_step", lambda model, device, shape, dtype, count: seconds[dtype])
    monkeypatch.setattr(device, "half_dtypes", lambda device: (torch.bfloat16,))


@pytest.mark.parametrize("word", ["bfloat16", "float32"])
def test_a_word_is_obeyed_without_timing(word, monkeypatch):
    processor(monkeypatch, has_bfloat16=True)
    monkeypatch.setattr(device, "_time_step", None)
    assert pick_precision(word, CPU, Net(), (32, 32)) == (getattr(torch, word), f"precision: {word}, as set")


@pytest.mark.parametrize("has_onednn", [True, False])
def test_without_bfloat16_its_word_is_refused_and_the_others_are_obeyed(has_onednn, monkeypatch):
    processor(monkeypatch, has_bfloat16=not has_onednn, has_onednn=has_onednn)
    monkeypatch.setattr(device, "_time_step", None)
    with pytest.raises(UserError, match=r"^precision=bfloat16: cpu does not support it; use auto or float32$"):
        pick_precision("bfloat16", CPU, Net(), (32, 32))
    assert pick_precision("float32", CPU, Net(), (32, 32)).dtype == torch.float32
    auto = pick_precision("auto", CPU, Net(), (32, 32))
    assert auto == (torch.float32, "precision: float32, this processor has no bfloat16")


def test_float16_is_refused_where_no_scaler_is():
    with pytest.raises(UserError, match="float16: needs a CUDA GPU"):
        pick_precision("float16", CPU, Net(), (32, 32))


@pytest.mark.parametrize(
    ("half", "full", "chosen"), [(0.5, 1.0, "bfloat16"), (0.99, 1.0, "float32"), (2.0, 1.0, "float32")]
)
def test_auto_takes_what_is_clearly_faster_and_says_why(half, full, chosen, monkeypatch):
    clock(monkeypatch, {torch.bfloat16: half, torch.float32: full})
    dtype, why = pick_precision("auto", CPU, Net(), (32, 32))
    assert dtype_name(dtype) == chosen
    assert chosen in why and "ms" in why


@pytest.mark.parametrize(
    ("too_small_for", "chosen"),
    [((torch.float32,), "bfloat16"), ((torch.bfloat16,), "float32"), ((torch.bfloat16, torch.float32), "bfloat16")],
)
def test_a_type_for_which_the_memory_is_too_small_is_not_taken(too_small_for, chosen, monkeypatch):
    monkeypatch.setattr(device, "_SECONDS_PER_TYPE", 0.02)
    monkeypatch.setattr(device, "_time_step", TIME_STEP)
    monkeypatch.setattr(device, "half_dtypes", lambda device: (torch.bfloat16,))
    counts, order = set(), []

    class Large(Net):
        def forward(self, images):
            dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
            counts.add(len(images))
            order.append(dtype)
            if dtype in too_small_for:
                raise torch.cuda.OutOfMemoryError("so many bytes")
            return super().forward(images)

    dtype, why = pick_precision("auto", CPU, Large(), (32, 32), batch_size=3)
    assert dtype_name(dtype) == chosen
    assert all(f"{dtype_name(small)} out of memory" in why for small in too_small_for)
    assert counts == {3}, "never more images than a batch of the training has"
    assert order[0] == torch.bfloat16, "it needs less memory"


def test_auto_without_half_precision_is_float32(monkeypatch):
    monkeypatch.setattr(device, "half_dtypes", lambda device: ())
    monkeypatch.setattr(device, "_time_step", None)
    assert pick_precision("auto", CPU, Net(), (32, 32))[0] == torch.float32


def test_a_run_that_goes_on_keeps_its_precision_where_the_device_has_it(monkeypatch):
    monkeypatch.setattr(device, "half_dtypes", lambda device: (torch.bfloat16,))
    assert resumed_precision("float32", CPU).dtype == torch.float32
    assert resumed_precision("bfloat16", CPU).dtype == torch.bfloat16
    kept = resumed_precision("float16", CPU)
    assert kept.dtype == torch.float32 and "this run started in float16, which cpu lacks" in kept.why
    monkeypatch.setattr(device, "half_dtypes", lambda device: ())
    kept = resumed_precision("bfloat16", CPU)
    assert kept.dtype == torch.float32 and "this run started in bfloat16, which cpu lacks" in kept.why


def test_timing_leaves_model_and_random_state_as_they_were(monkeypatch):
    monkeypatch.setattr(device, "_SECONDS_PER_TYPE", 0.02)
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    assert TIME_STEP(net, CPU, (32, 32), torch.float32, 4) > 0
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_half_types_by_capability(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert half_dtypes(gpu) == (torch.float16,)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert half_dtypes(gpu)[0] == torch.bfloat16
    for has_bfloat16, has_onednn, expected in (
        (True, True, (torch.bfloat16,)),
        (False, True, ()),
        (True, False, ()),
        (False, False, ()),
    ):
        processor(monkeypatch, has_bfloat16, has_onednn)
        assert half_dtypes(CPU) == expected


def test_autocast_of_float32_changes_nothing():
    conv, images = nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)
    with autocast(CPU, torch.float32):
        assert conv(images).dtype == torch.float32
    with autocast(CPU, torch.bfloat16):
        assert conv(images).dtype == torch.bfloat16
