"""Hostile and damaged weights files: one sentence that names the file, in little memory and time."""

import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks import attacks_weights
from benchmarks.attacks_weights import KEY, OTHER_KINDS, WEIGHTS_ATTACKS, Storage, View, archive, pickled, saved, text
from config.errors import UserError
from debug.tracer.bundle import read_bundle, replay
from model import picklescan, unpickle
from model.picklescan import Refused, check_pickle
from model.unpickle import StandIn, module_tensors, read_untrusted
from model.weightsfile import read_weights
from runs.checkpoint import load_checkpoint
from runs.provenance import file_origin

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 400  # MB above what the imports take, for files of up to 3 MB
NOT_HERE = ("many_views", "copied_set", "yaml that never ends")  # slow: below with less of it; read as usual
COSTLY = ("stride_zero", "memo_index", "unpacks", "modules_40_deep", "record_too_short", "beyond_storage", "resized")
ENDLESS = ("deep_tuple", "shared_tuple", "long_bytes", "many_calls", "names that never end", "origin_in_itself")
IN_A_PROCESS = """
import resource, sys
from pathlib import Path
from model.weightsfile import read_weights
from runs.checkpoint import load_checkpoint
from runs.provenance import file_origin
from config.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
for path in map(Path, sys.argv[1:]):
    for read in (read_weights, load_checkpoint, file_origin) if path.suffix == ".pth" else (read_weights,):
        try:
            read(path)
        except UserError as error:
            assert str(path) in str(error) and "\\n" not in str(error), error
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def answer_to(path, read=read_weights):
    """The message of the error, or None for a file that is read."""
    try:
        read(path)
    except UserError as error:
        message = str(error)
    else:
        return None
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("name", [name for name in WEIGHTS_ATTACKS if name not in NOT_HERE])
def test_every_hostile_file_is_refused_with_its_name(tmp_path, monkeypatch, name):
    monkeypatch.setattr(attacks_weights, "UNPACKED_MEGABYTES", 3)
    path = WEIGHTS_ATTACKS[name](tmp_path)
    is_bundle, is_origin = name.startswith("bundle"), name.startswith("origin")
    read = (lambda path: replay(read_bundle(path))) if is_bundle else file_origin if is_origin else read_weights
    if name.startswith("checkpoint"):
        read = lambda path: load_checkpoint(path)["config"]  # noqa: E731
    assert answer_to(path, read) is not None


def test_what_the_network_says_of_its_yaml_is_left_out_when_it_is_no_text(tmp_path):
    assert read_weights(WEIGHTS_ATTACKS["yaml that never ends"](tmp_path)).kind.endswith(" Sequential")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hidden_tuple", "a parameter is not a tensor"),
        ("long_call", "more than 100 arguments"),
        ("size_as_key", "keys are tuples"),
        ("other_spelling", "changes a tensor after it was made"),
        ("huge_shape", "not a list of numbers"),
        ("nested_type", "is damaged: a tensor is not made as torch.save makes it"),
        ("stride_zero", "1,750,000,000 elements of which only 1 are in the file"),
        ("memo_index", "memorises an object as number 134217728"),
        ("unpacks", "is compressed"),
        ("modules_40_deep", "more than 20,000 modules"),
        ("record_too_short", "has 4 bytes instead of 4,294,967,296"),
        ("beyond_storage", "reaches beyond its own storage"),
        ("resized", "changes a tensor after it was made"),
        ("shared_tuple", "keys are tuples"),
        ("colliding_keys", "very large numbers"),
        ("many_calls", "builtins.bytearray"),
        ("overwritten", "BadZipFile"),
        ("tensor float8_e4m3fn", "float8_e4m3fn"),
        ("tensor sparse", "sparse_tensor"),
        ("names with commands", r"a\u001b[2J\nok"),
        ("names that never end", "class names that are not texts"),
    ],
)
def test_the_reason_is_reported(tmp_path, monkeypatch, name, words):
    monkeypatch.setattr(attacks_weights, "UNPACKED_MEGABYTES", 3)
    assert words in str(answer_to(WEIGHTS_ATTACKS[name](tmp_path)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("onnx", "is an ONNX model"),
        ("pt2", "is a program that torch.export wrote"),
        ("engine", "is a TensorRT engine"),
        ("safetensors", "is a safetensors file"),
        ("h5", "is an HDF5 file"),
        ("json", "is a JSON file"),
        ("html", "is an HTML page"),
        ("git lfs", "git lfs pull"),
        ("empty", "it is empty"),
        ("old format", "the format of torch before 1.6"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, name, words):
    message = str(answer_to(OTHER_KINDS[name](tmp_path)))
    assert words in message and "expected a .pth of Mars" in message


def test_all_of_them_together_take_little_memory(tmp_path, monkeypatch):
    """In a process of its own, whose memory is counted and limited; one that dies in C fails the test, too.

    Bundles are read there as checkpoints are: importing their reader takes 2 seconds.
    """
    monkeypatch.setattr(attacks_weights, "UNPACKED_MEGABYTES", 3)
    paths = [WEIGHTS_ATTACKS[name](tmp_path) for name in COSTLY + ENDLESS]
    command = [sys.executable, "-c", IN_A_PROCESS, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < LIMIT


def test_views_that_share_a_storage_have_a_limit(tmp_path):
    storage = Storage("0", 2**20)
    for number in (16, 20, 21, 40):
        content = {f"w{i}": View(storage, [2**20], [1]) for i in range(number)}
        path = archive(tmp_path / "w.pt", pickled(content), {"0": bytes(2**22)})
        assert (answer_to(path) is None) is (number <= 20)  # 16 times the 4 MiB of records and 1 MiB


def test_tied_weights_and_small_expanded_tensors_are_read(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"a.weight": weight, "b.weight": weight, "t": weight.t(), "row": weight[1], "e": torch.ones(1).expand(64)}
    tensors = read_weights(saved(tmp_path / "w.pt", state)).tensors
    assert all(torch.equal(tensors[key], value) for key, value in state.items())
    assert tensors["a.weight"].data_ptr() == tensors["b.weight"].data_ptr()


def test_every_type_comes_back_as_torch_reads_it(tmp_path):
    generator = torch.Generator().manual_seed(0)
    types = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
    ]
    state = {str(kind): (100 * torch.randn(3, 5, generator=generator)).to(kind) for kind in types}
    state |= {"u": torch.arange(5, dtype=torch.uint8), "b": torch.tensor([True, False]), "empty": torch.zeros(0, 3)}
    state |= {"parameter": torch.nn.Parameter(torch.ones(2)), "scalar": torch.tensor(7.0)}
    path = saved(tmp_path / "w.pt", state)
    expected, tensors = torch.load(path, weights_only=True), read_weights(path).tensors
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[k], v) and tensors[k].dtype == v.dtype for k, v in expected.items())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_that_torch_may_write_is_read(tmp_path, protocol):
    torch.save({KEY: torch.ones(16, 3, 3, 3), "note": "x" * 300}, tmp_path / "w.pt", pickle_protocol=protocol)
    assert torch.equal(read_weights(tmp_path / "w.pt").tensors[KEY], torch.ones(16, 3, 3, 3))


def test_files_that_torch_wrote_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "w.pt", {KEY: torch.ones(16, 3, 3, 3)})
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as file:
        assert {member.CRC for member in file.infolist()} == {0}
    assert torch.equal(read_weights(path).tensors[KEY], torch.ones(16, 3, 3, 3))


def test_a_long_list_of_names_is_no_attack(tmp_path, monkeypatch):
    """A config with the names of a million images is one long text; only the number of instructions is limited."""
    path = saved(tmp_path / "w.pt", {KEY: torch.ones(16, 3, 3, 3), "note": "000000123456.jpg," * 400_000})
    assert answer_to(path) is None
    monkeypatch.setattr(picklescan, "MOST_INSTRUCTIONS", 2001)
    check_pickle(b"\x80\x02" + b"N0" * 999 + b"N.")
    with pytest.raises(Refused, match="more than 2,001 instructions"):
        check_pickle(b"\x80\x02" + b"N0" * 1000 + b"N.")


def test_tuples_as_keys_have_a_limit(tmp_path):
    """Anybody can choose tuples that all have the same hash."""
    for number in (picklescan.MOST_TUPLE_KEYS, picklescan.MOST_TUPLE_KEYS + 1):
        keys = b"".join(struct.pack("<cIcIc", b"J", i, b"J", i, b"\x86") + b"N" for i in range(number))
        pickle_bytes = b"\x80\x02}(" + keys + b"u."
        if number <= picklescan.MOST_TUPLE_KEYS:
            check_pickle(pickle_bytes)
        else:
            with pytest.raises(Refused, match="more than 10,000 tuples as keys"):
                check_pickle(pickle_bytes)
    for key in (b"K\x01\x85\x85", b"(\x91", b"(" + b"N" * 101 + b"t", b"\x8a\x09" + bytes(8) + b"\x01\x85"):
        with pytest.raises(Refused, match="keys are tuples of tuples, long tuples, sets or very large numbers"):
            check_pickle(b"\x80\x04}" + key + b"Ns.")


def test_sets_that_are_copied_again_and_again_are_refused(tmp_path):
    names = b"\x80\x02]q\x00(" + b"".join(text(f"n{i}") for i in range(100)) + b"e\x85q\x01"
    calls = b"c__builtin__\nset\nq\x02](" + b"h\x02h\x01R" * 200 + b"e."
    assert "the same long list" in str(answer_to(archive(tmp_path / "w.pt", names + calls)))
    once = pickled({"w": {f"n{i}" for i in range(1000)}})
    assert read_untrusted(archive(tmp_path / "once.pt", once)) == {"w": {f"n{i}" for i in range(1000)}}


def test_a_module_that_two_others_share_has_both_names():
    child, left, right, top = StandIn(), StandIn(), StandIn(), StandIn()
    child.__setstate__({"_parameters": {"w": torch.ones(1)}})
    left.__setstate__({"_modules": {"c": child}})
    right.__setstate__({"_modules": {"c": child}})
    top.__setstate__({"_modules": {"left": left, "right": right}})
    assert [name for name, _ in module_tensors(top)] == ["left.c.w", "right.c.w"]


@pytest.mark.parametrize(("depth", "width"), [(unpickle.DEEPEST_MODULE + 2, 1), (3, unpickle.MOST_MODULES)])
def test_networks_of_any_size_do_not_exist(depth, width):
    network = StandIn()
    for _ in range(depth):
        above = StandIn()
        above.__setstate__({"_modules": {str(i): network for i in range(width)}})
        network = above
    with pytest.raises(Refused, match="has a network of more than"):
        list(module_tensors(network))


def small_file() -> bytes:
    """A checkpoint of Ultralytics' kind: modules, tensors that share a storage, names."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    network.__dict__["names"] = {0: "a", 1: "b"}
    target = io.BytesIO()
    torch.save({"epoch": 3, "model": network, "train_args": {"imgsz": 64}}, target)
    return target.getvalue()


SMALL = small_file()
with zipfile.ZipFile(io.BytesIO(SMALL)) as _file:
    PICKLE = _file.read("archive/data.pkl")
    RECORDS = {name.rpartition("/")[2]: _file.read(name) for name in _file.namelist() if "/data/" in name}
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "overwrite"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)
    ),
    min_size=1,
    max_size=3,
)


def changed(content: bytes, changes) -> bytes:
    for kind, share, value in changes:
        place = min(int(share * len(content)), max(len(content) - 1, 0))
        if kind == "flip":
            content = content[:place] + bytes([(content + b"x")[place] ^ value[0]]) + content[place + 1 :]
        elif kind == "cut":
            content = content[:place] + content[place + value[0] :]
        elif kind == "insert":
            content = content[:place] + value + content[place:]
        else:
            content = content[:place] + value + content[place + len(value) :]
    return content


def value_or_sentence(path):
    for read in (read_weights, load_checkpoint, read_bundle, file_origin):
        answer_to(path, read)


@settings(max_examples=40)
@given(CHANGES)
def test_a_file_changed_anywhere_gives_a_value_or_a_sentence(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "changed.pt"
    path.write_bytes(changed(SMALL, changes))
    value_or_sentence(path)


@settings(max_examples=80)
@given(CHANGES)
@example([("overwrite", 0.5, b"r\xff\xff\xff\xff")])
def test_a_pickle_changed_anywhere_gives_a_value_or_a_sentence(tmp_path_factory, changes):
    """The archive is whole, so that the change gets as far as the reader of the pickle."""
    path = archive(tmp_path_factory.getbasetemp() / "changed.pt", changed(PICKLE, changes), RECORDS)
    value_or_sentence(path)


def test_each_byte_of_the_structure_in_turn(tmp_path):
    """Headers, the pickle, the central directory and the record at the end, a bit of each."""
    path, answers = tmp_path / "flipped.pt", []
    content = saved(tmp_path / "w.pt", {KEY: torch.ones(1, 3, 3, 3)}).read_bytes()
    for place in range(0, len(content), 5):
        path.write_bytes(changed(content, [("flip", place / len(content), b"\x10")]))
        answers.append(answer_to(path))
    assert sum(answer is not None for answer in answers) > 50
