"""Files that are not what they seem: one sentence, and the model as it was (hostile files: test_unpickle)."""

import collections
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.attacks_weights import checkpoint
from config.errors import UserError
from model import YoloModel
from model.pretrained import load_weights
from model.weightsfile import read_weights
from runs.checkpoint import METADATA, load_checkpoint, save_checkpoint


def damaged_state(what):
    state = YoloModel("nano", 3).state_dict()
    name = "neck.l15.cv2.conv.weight"
    if what == "whole numbers":
        return {key: (100 * value).to(torch.int8) for key, value in state.items()}
    state[name] = {
        "nan": torch.full_like(state[name], torch.nan),
        "inf": torch.full_like(state[name], torch.inf),
        "complex": state[name].to(torch.complex64),
        "sparse": state[name].to_sparse(),
        "no content": state[name].to("meta"),
    }[what]
    return state


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("nan", "neck.l15.cv2.conv.weight contains values that are not finite"),
        ("inf", "neck.l15.cv2.conv.weight contains values that are not finite"),
        (
            "complex",
            "conv.weight is not dense, or its type is not used in networks (ComplexFloatStorage)",
        ),
        (
            "sparse",
            "neck.l15.cv2.conv.weight is not dense, or its type",
        ),
        ("no content", "w.pth"),
        ("whole numbers", "a different shape or type"),
    ],
)
def test_tensors_that_no_network_can_take(tmp_path, what, words):
    torch.save(damaged_state(what), tmp_path / "w.pth")
    model = YoloModel("nano", 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, tmp_path / "w.pth")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_whose_seal_is_broken_is_refused(tmp_path):
    about = dict.fromkeys(METADATA) | {"class_list": ["a", "b", "c"], "config": "{}"}
    path = tmp_path / "best.pth"
    save_checkpoint(path, {"model": YoloModel("nano", 3).state_dict(), **about})
    assert not load_weights(YoloModel("nano", 3), path).missing
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"best\.pth: is damaged"):
        load_weights(YoloModel("nano", 3), path)


def test_files_that_are_not_weights(tmp_path):
    model = YoloModel("nano", 3)
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "no-tensors.pth")
    for name, word in (("absent.pth", "no such"), ("empty.pth", "damaged"), ("no-tensors.pth", "no tensors")):
        with pytest.raises(UserError, match=word):
            load_weights(model, tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        {"ema": torch.zeros(2)},
        {"model": {"model": {"model": {}}}},
        {"class_list": None, "config": "{}", "model": {"a": torch.zeros(1)}},
        {"class_list": ["a"], "config": "no json", "model": {"a": torch.zeros(1)}},
        {"class_list": ["a"], "config": 3, "model": {"a": torch.zeros(1)}},
        [torch.zeros(2)],
        torch.zeros(2),
        None,
    ],
)
def test_strange_content(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth") as caught:
        load_weights(YoloModel("nano", 3), tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_a_packed_file_is_refused(tmp_path):
    torch.save(YoloModel("nano", 3).state_dict(), tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as plain,
        zipfile.ZipFile(tmp_path / "p.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match=r"p\.pth: is compressed"):
        load_weights(YoloModel("nano", 3), tmp_path / "p.pth")


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_give_one_sentence_or_other_values(tmp_path, seed):
    """A plain file has no seal: a flip in a value cannot be seen, one in the pickle must not end in a traceback."""
    random = np.random.default_rng(seed)
    about = {"class_list": ["a", "b", "c"], "config": "{}", "data": {}}
    torch.save({"model": {"backbone.l0.conv.weight": torch.zeros(16, 3, 3, 3)}, **about}, tmp_path / "w.pth")
    content, refusals = (tmp_path / "w.pth").read_bytes(), []
    for place in random.choice(len(content), 60, replace=False):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(random.integers(8))
        (tmp_path / "flipped.pth").write_bytes(flipped)
        try:
            read_weights(tmp_path / "flipped.pth")
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > 5
    assert [text for text in refusals if "\n" in text] == []


@pytest.fixture
def safe_classes():
    """Tell torch that the classes of a small network are safe, as Ultralytics does with its own while it loads."""
    known = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([set, nn.Sequential, nn.Conv2d, nn.BatchNorm2d])
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(known)


@pytest.mark.parametrize(
    "around",
    [lambda network: network, lambda network: {"epoch": 3, "model": network}],
    ids=["alone", "in-a-checkpoint"],
)
def test_classes_that_the_process_calls_safe_are_stood_in_for_all_the_same(tmp_path, safe_classes, around):
    network = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2))
    torch.save(around(network), tmp_path / "w.pt")
    built = torch.load(tmp_path / "w.pt", weights_only=True)
    assert any(isinstance(one, nn.Module) for one in (built, *(built.values() if isinstance(built, dict) else ())))
    file = read_weights(tmp_path / "w.pt")
    assert file.kind == "torch.nn.modules.container Sequential"
    assert file.tensors.keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in file.tensors.items())


def with_attribute(tensor):
    tensor.note = "x"
    return tensor


def schedule():
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.1)
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5]).state_dict()


BESIDE = {
    "counter": lambda: collections.Counter("abc"),
    "MultiStepLR": schedule,
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "deque": lambda: collections.deque([1.5], maxlen=3),
    "keys that are tuples": lambda: {(0, 1): 3},
    "sets": lambda: [{(1, 2)}, {1.5}, {None}, {1}, frozenset([2.5])],
    "array": lambda: np.arange(5),
    "negated": lambda: torch.tensor([1 + 2j]).conj().imag,
    "float8 with an attribute": lambda: with_attribute(torch.ones(3).to(torch.float8_e4m3fn)),
}


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_weights_does_no_harm(tmp_path, name, protocol):
    content = {"model": {"a.weight": torch.ones(2)}, "beside": BESIDE[name]()}
    torch.save(content, tmp_path / "w.pt", pickle_protocol=protocol)
    assert torch.equal(read_weights(tmp_path / "w.pt").tensors["a.weight"], torch.ones(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_attribute(torch.arange(6.0).reshape(2, 3).t()),
        lambda: with_attribute(nn.Parameter(torch.arange(3.0))),
        lambda: nn.Buffer(torch.arange(3.0)),
        lambda: torch.zeros(11, dtype=torch.uint8)[:8].view(torch.float32),
    ],
    ids=["tensor", "parameter", "buffer", "bytes left over"],
)
def test_tensors_with_attributes_and_odd_storages_are_read(tmp_path, make):
    torch.save({"a.weight": make()}, tmp_path / "w.pt")
    (tensor,) = read_weights(tmp_path / "w.pt").tensors.values()
    assert torch.equal(tensor, make())


@pytest.mark.parametrize("version", ["2", "3"])
def test_negated_numbers_are_not_taken_as_they_are_stored(tmp_path, version):
    """The file of `z.conj().imag` has the numbers of `z.imag` and a mark."""
    negated = torch.tensor([1 + 2j]).conj().imag
    function, arguments = negated.__reduce_ex__(2)
    assert function is torch._utils._rebuild_tensor_v2 and arguments[6] == {"neg": True}

    class Saved:
        def __reduce__(self):
            if version == "2":
                return function, arguments
            return torch._utils._rebuild_tensor_v3, (*arguments[:6], torch.float32, arguments[6])

    torch.save({"a.weight": Saved()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"its tensor a\.weight is not dense.*\(a negated view\)"):
        read_weights(tmp_path / "w.pt")


def test_an_expanded_tensor_beyond_the_limit_has_a_way_out(tmp_path):
    torch.save({"a": torch.zeros(1).expand(2**20 + 1)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"1,048,577 elements of which only 1 .*save it with \.clone\(\)"):
        read_weights(tmp_path / "w.pt")


def test_a_config_that_is_no_json_is_said_to_be_none(tmp_path):
    with pytest.raises(UserError, match=r"b\.pth: its part 'config': cannot be read as JSON \(RecursionError\)"):
        load_checkpoint(checkpoint(tmp_path / "b.pth", config="[" * 100_000))
