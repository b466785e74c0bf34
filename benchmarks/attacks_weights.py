"""Hostile and damaged weights files, checkpoints and bundles.

Each function of `WEIGHTS_ATTACKS` writes one file into a folder and returns its path. The reader must answer with one
error message that names the file, and its memory and time must fit the size of the file.
"""

import collections
import io
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._utils  # checkpoints call its functions to rebuild a tensor
from torch import nn

from benchmarks.attacks_images import Builder
from config.mconfig import ModelConfig
from debug.tracer.bundle import FORMAT as BUNDLE_FORMAT
from ops.files import sealed
from ops.random_states import random_states
from runs.checkpoint import FORMAT
from runs.provenance import random_origin

KEY = "backbone.l0.conv.weight"
UNPACKED_MEGABYTES = 1800  # size of the compressed archive after unpacking


class Storage:
    """A storage of floats as the pickle names it; the file may hold something else."""

    def __init__(self, key: str, count: int):
        self.key, self.count = key, count


class View:
    """A tensor of any shape over a storage; `state` is set after it is built."""

    def __init__(self, storage: Storage, size: Sequence[int], stride: Sequence[int], state: Any = None):
        self.arguments = (storage, 0, tuple(size), tuple(stride), False, collections.OrderedDict())
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments, self.state


class _StoragePickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return ("storage", torch.FloatStorage, obj.key, "cpu", obj.count) if isinstance(obj, Storage) else None


def pickled(content: Any) -> bytes:
    """The pickle that `torch.save` writes, with `Storage` and `View` instead of tensors."""
    target = io.BytesIO()
    _StoragePickler(target, protocol=2).dump(content)
    return target.getvalue()


def archive(path: Path, pickle_bytes: bytes, records: Mapping[str, bytes] | None = None) -> Path:
    """A file in the format of `torch.save` with any pickle in it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle_bytes)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        for key, content in (records or {}).items():
            file.writestr(f"archive/data/{key}", content)
    return path


def saved(path: Path, content: Any, is_sealed: bool = False) -> Path:
    """The file of `torch.save`, with or without a seal."""
    target = io.BytesIO()
    torch.save(content, target)
    path.write_bytes(sealed(target.getvalue()) if is_sealed else target.getvalue())
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def nested_list(depth: int = 40) -> list[Any]:
    """A list whose text would have 2 ** depth words, because each level holds the next one twice."""
    value: list[Any] = ["ha"]
    for _ in range(depth):
        value = [value, value]
    return value


def checkpoint(path: Path, left_out: Sequence[str] = (), **changed: Any) -> Path:
    """A sealed checkpoint of Mars with some parts changed or left out; the part `before` is written first."""
    content = {
        "before": None, "format": FORMAT, "model": {KEY: torch.zeros(16, 3, 3, 3)}, "ema": None, "ema_steps": 0,
        "teacher": None,
        "epoch": 1, "fitness": None, "config": json.dumps(ModelConfig().to_dict()), "class_list": ["a", "b"],
        "phase": "nano", "weights_origin": random_origin(), "data": {}, "commit": "unknown", "learned": [],
        "optimizer": {"state": {}, "param_groups": []}, "scaler": {}, "precision": "float32", "schedule": {},
        "best": None, "history": "[]", "random": random_states(), "progress": None, "gradients": None, "pending": 0,
    }  # fmt: skip
    return saved(path, {k: v for k, v in (content | changed).items() if k not in left_out}, is_sealed=True)


def bundle(path: Path, left_out: Sequence[str] = (), **changed: Any) -> Path:
    """A sealed bundle of a non-finite step with some parts changed or left out."""
    batch = {
        "images": torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "boxes": torch.zeros(1, 1, 4),
        "labels": torch.zeros(1, 1, dtype=torch.int64), "valid": torch.ones(1, 1, dtype=torch.bool),
    }  # fmt: skip
    content = {
        "format": BUNDLE_FORMAT, "batch": batch, "image_ids": ["a"], "weights": {KEY: torch.zeros(16, 3, 3, 3)},
        "learned": [], "random": random_states(), "config": json.dumps({**ModelConfig().to_dict(), "classList": ["a"]}),
        "precision": "float32", "scale": 1.0, "message": "bad", "training": [], "trained": [], "strength": 0.0,
        "taught_by": None, "weights_file": None,
    }  # fmt: skip
    return saved(path, {k: v for k, v in (content | changed).items() if k not in left_out}, is_sealed=True)


def stride_zero(folder: Path) -> Path:
    """1.2 KB that become 7 GB when the tensor is made contiguous."""
    return saved(folder / "stride-zero.pt", {KEY: torch.zeros(1).expand(1_750_000_000)})


def memo_index(folder: Path) -> Path:
    """400 bytes for which the unpickler of Python allocates a table of 2 GB."""
    return archive(folder / "memo-index.pt", b"\x80\x02ctorch.nn\nModule\n0}r" + struct.pack("<I", 2**27) + b".")


def unpacks(folder: Path) -> Path:
    """1.8 MB that unpack to 1.8 GB, sealed."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        count = UNPACKED_MEGABYTES << 18
        content = {"format": BUNDLE_FORMAT, "w": View(Storage("0", count), [count], [1])}
        file.writestr("archive/data.pkl", pickled(content))
        file.writestr("archive/version", "3\n")
        with file.open("archive/data/0", "w") as record:
            for _ in range(UNPACKED_MEGABYTES):
                record.write(bytes(1 << 20))
    (folder / "unpacks.pth").write_bytes(sealed(target.getvalue()))
    return folder / "unpacks.pth"


def modules_40_deep(folder: Path) -> Path:
    """Each module contains the next one under two names: 2 ** 40 names."""
    network: nn.Module = nn.Sequential(nn.Conv2d(1, 1, 1))
    for _ in range(40):
        network = nn.Sequential(network, network)
    return saved(folder / "modules.pt", {"model": network})


def origin_in_itself(folder: Path) -> Path:
    origin = random_origin()
    origin["path"], origin["from"] = "a.pt", origin
    return checkpoint(folder / "origin.pth", weights_origin=origin)


def origin_1000_deep(folder: Path) -> Path:
    chain = [random_origin()]
    for _ in range(1000):
        chain.append({**random_origin(), "path": "a.pt", "from": chain[-1]})
    # The innermost part is written first: Python cannot pickle such a deep nesting from the outside.
    return checkpoint(folder / "origin-deep.pth", before=chain, weights_origin=chain[-1])


def record_too_short(folder: Path) -> Path:
    """A storage of 4 GB whose record has 4 bytes: torch would read the memory after it."""
    content = {KEY: View(Storage("0", 2**30), [16, 3, 3, 3], [27, 9, 3, 1])}
    return archive(folder / "short-record.pt", pickled(content), {"0": bytes(4)})


def beyond_storage(folder: Path) -> Path:
    """A tensor that ends after its storage: torch would extend the storage."""
    content = {KEY: View(Storage("0", 4), [2**30], [1])}
    return archive(folder / "beyond.pt", pickled(content), {"0": bytes(16)})


def resized(folder: Path) -> Path:
    """The state of a tensor, which torch applies with `set_`, makes the tensor larger."""
    storage = Storage("0", 4)
    content = {KEY: View(storage, [4], [1], state=(storage, 0, (2**30,), (1,)))}
    return archive(folder / "resized.pt", pickled(content), {"0": bytes(16)})


def many_views(folder: Path) -> Path:
    """20,000 tensors that share one megabyte."""
    storage = Storage("0", 2**18)
    content = {f"{KEY}{index}": View(storage, [2**18], [1]) for index in range(20_000)}
    return archive(folder / "views.pt", pickled(content), {"0": bytes(2**20)})


def deep_tuple(folder: Path) -> Path:
    """A key of nested tuples: computing its hash overflows the C stack and ends the process."""
    return archive(folder / "deep-tuple.pt", b"\x80\x02})" + b"\x85" * 150_000 + b"Ns.")


def _called(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def hidden_tuple(folder: Path) -> Path:
    """The same key, passed through the function that builds a parameter."""
    key = _called("torch._utils", "_rebuild_parameter") + b")" + b"\x85" * 100 + b"\x85R"
    return archive(folder / "hidden-tuple.pt", b"\x80\x02}" + key + b"Ns.")


def long_call(folder: Path) -> Path:
    """20,000 calls with the same 40,000 arguments; each call copies them."""
    arguments = b"\x80\x02(" + b"N" * 40_000 + b"tq\x000" + _called("torch.nn", "Module")
    return archive(folder / "long-call.pt", arguments + b"q\x010](" + b"h\x01h\x00R" * 20_000 + b"e.")


def size_as_key(folder: Path) -> Path:
    """A torch.Size of 40,000 numbers is the key of 20,000 entries; its hash is computed for each entry."""
    size = b"\x80\x02" + _called("torch", "Size") + b"(" + b"K\x01" * 40_000 + b"t\x85Rq\x000"
    return archive(folder / "size-key.pt", size + b"}(" + b"h\x00N" * 20_000 + b"u.")


def other_spelling(folder: Path) -> Path:
    """The state of a tensor as in `resized`, with another split of module and function name."""
    storage = Storage("0", 4)
    content = pickled({KEY: View(storage, [4], [1], state=(storage, 0, (2**30,), (1,)))})
    respelled = content.replace(b"ctorch._utils\n_rebuild", b"ctorch\n_utils._rebuild")
    return archive(folder / "respelled.pt", respelled, {"0": bytes(16)})


def huge_shape(folder: Path) -> Path:
    """The product of 63 numbers of 20,000 digits each, for a tensor without content."""
    content = {KEY: View(Storage("0", 4), [10**20_000] * 63 + [0], [1] * 64)}
    return archive(folder / "huge-shape.pt", pickled(content), {"0": bytes(16)})


def nested_type(folder: Path) -> Path:
    """Instead of the type of a tensor, a list whose text would have 2 ** 40 words."""
    made = _called("torch._utils", "_rebuild_tensor_v3") + b"(NNNNNN" + pickled(nested_list())[2:-1] + b"tR"
    return archive(folder / "type.pt", b"\x80\x02" + made + b".")


def shared_tuple(folder: Path) -> Path:
    """A key whose hash takes 2 ** 40 steps: each tuple contains the previous one twice."""
    return archive(folder / "shared-tuple.pt", b"\x80\x02})" + b"2\x86" * 40 + b"Ns.")


def colliding_keys(folder: Path) -> Path:
    """30,000 keys with the same hash: each is compared with all previous ones."""
    numbers = (b"\x8a\x0c" + (k * (2**61 - 1)).to_bytes(12, "little") + b"N" for k in range(8, 30_008))
    return archive(folder / "keys.pt", b"\x80\x02}(" + b"".join(numbers) + b"u.")


def copied_set(folder: Path) -> Path:
    """100,000 sets, each built from the same long list."""
    names = b"\x80\x02]q\x00(" + b"".join(text(f"n{i}") for i in range(50_000)) + b"e\x85q\x01"
    return archive(folder / "sets.pt", names + b"c__builtin__\nset\nq\x02](" + b"h\x02h\x01R" * 100_000 + b"e.")


def long_bytes(folder: Path) -> Path:
    """A bytes object of which the file contains only the length."""
    return archive(folder / "bytes.pt", b"\x80\x04\x96" + struct.pack("<Q", 2**33) + b"abc.")


def many_calls(folder: Path) -> Path:
    """`bytearray(number)` allocates that many bytes; the reader of torch calls it."""
    return archive(folder / "bytearray.pt", b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R.")


def self_containing(folder: Path) -> Path:
    content: dict[str, Any] = {}
    content["model"] = content
    return saved(folder / "self.pt", content)


def _nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that they are a prototype
        return torch._nested_tensor_from_tensor_list([torch.zeros(2), torch.zeros(3)])  # type: ignore[attr-defined]


def kinds_of_tensors() -> dict[str, Callable[[], Any]]:
    """Name -> a tensor of a kind that no network uses."""
    return {
        "float8_e4m3fn": lambda: torch.zeros(4).to(torch.float8_e4m3fn),
        "float8_e5m2": lambda: torch.zeros(4).to(torch.float8_e5m2),
        "float4": lambda: torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "bits": lambda: torch.empty(4, dtype=torch.bits8),
        "uint16": lambda: torch.zeros(4, dtype=torch.uint16),
        "complex": lambda: torch.zeros(4, dtype=torch.complex64),
        "sparse": lambda: torch.zeros(4).to_sparse(),
        "nested": _nested,
        "meta": lambda: torch.zeros(4, device="meta"),
    }


def _of_kind(name: str, make: Callable[[], Any]) -> Builder:
    return lambda folder: saved(folder / f"{name}.pt", {KEY: make()})


def flipped_structure(folder: Path) -> Path:
    """One bit of the signature of the central directory is changed."""
    path = saved(folder / "flipped.pt", {KEY: torch.zeros(16, 3, 3, 3)})
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 1] ^= 1
    path.write_bytes(content)
    return path


def overwritten(folder: Path) -> Path:
    """The weights are overwritten: the structure is valid, the checksum of the record is wrong."""
    path = saved(folder / "overwritten.pt", {KEY: torch.arange(432.0).reshape(16, 3, 3, 3)})
    content = path.read_bytes()
    path.write_bytes(content.replace(torch.arange(432.0).numpy().tobytes(), torch.ones(432).numpy().tobytes()))
    return path


def old_format(folder: Path) -> Path:
    torch.save({KEY: torch.zeros(16, 3, 3, 3)}, folder / "old.pt", _use_new_zipfile_serialization=False)
    return folder / "old.pt"


def _network(name: str, **state: Any) -> Builder:
    """A checkpoint like those of Ultralytics whose network has these attributes."""

    def make(folder: Path) -> Path:
        network = nn.Sequential(nn.Conv2d(1, 1, 1))
        network.__dict__.update(state)
        return saved(folder / f"{name}.pt", {"model": network})

    return make


def _bytes(name: str, content: bytes) -> Builder:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _pt2(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "program.pt2", "w") as file:
        file.writestr("program/archive_format", "pt2")
        file.writestr("program/models/model.json", "{}")
    return folder / "program.pt2"


DEEP_JSON = "[" * 100_000
HUGE_NUMBER = '{"maxEpoch": 1' + "0" * 5000 + "}"
ODD_IMAGES = {"images": torch.zeros(1, 3, 33, 33)}
OTHER_KINDS: dict[str, Builder] = {
    "onnx": _bytes("model.onnx", b"\x08\x0a\x12\x07pytorch\x1a\x032.4" + bytes(200)),
    "pt2": _pt2,
    "engine": _bytes("model.engine", struct.pack("<i", 20) + b'{"description": "x"}ftrt' + bytes(200)),
    "safetensors": _bytes("model.safetensors", struct.pack("<Q", 60) + b'{"w":{"dtype":"F32"}}' + bytes(60)),
    "h5": _bytes("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(200)),
    "json": _bytes("model.json", b'{"weights": [1, 2]}'),
    "html": _bytes("page.pt", b"<!DOCTYPE html><html></html>"),
    "git lfs": _bytes("pointer.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "empty": _bytes("empty.pt", b""),
    "old format": old_format,
}
WEIGHTS_ATTACKS: dict[str, Builder] = {
    **{function.__name__: function for function in (
        stride_zero, memo_index, unpacks, modules_40_deep, origin_in_itself, origin_1000_deep, record_too_short,
        beyond_storage, resized, many_views, deep_tuple, hidden_tuple, long_call,
        size_as_key, other_spelling, huge_shape, nested_type, shared_tuple, colliding_keys, copied_set, long_bytes,
        many_calls, self_containing, flipped_structure, overwritten,
    )},
    **{f"tensor {name}": _of_kind(name, make) for name, make in kinds_of_tensors().items()},
    **OTHER_KINDS,
    "names with commands": _network("commands", names={0: "a\x1b[2J\nok"}),
    "names that never end": _network("nested", names={0: nested_list()}),
    "yaml that never ends": _network("yaml", names=["a"], yaml={"yaml_file": nested_list()}),
    "checkpoint without config": lambda folder: checkpoint(folder / "no-config.pth", left_out=["config"]),
    "checkpoint with deep json": lambda folder: checkpoint(folder / "deep-json.pth", config=DEEP_JSON),
    "checkpoint with a huge number": lambda folder: checkpoint(folder / "number.pth", config=HUGE_NUMBER),
    "checkpoint with nested classes": lambda folder: checkpoint(folder / "class-list.pth", class_list=nested_list()),
    "bundle without batch": lambda folder: bundle(folder / "no-batch.pth", left_out=["batch"]),
    "bundle with deep json": lambda folder: bundle(folder / "bundle-json.pth", config=DEEP_JSON),
    "bundle with other weights": lambda folder: bundle(folder / "bundle-weights.pth"),
    "bundle with odd images": lambda folder: bundle(folder / "bundle-images.pth", batch=ODD_IMAGES),
}  # fmt: skip
