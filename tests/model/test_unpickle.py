"""Files that try to run something: nothing runs, and one sentence names what they asked for."""

import builtins
import collections
import functools
import importlib
import os
import pickle
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from config.errors import UserError
from model.unpickle import StandIn, module_tensors, read_untrusted
from model.weightsfile import read_weights


class Calls:
    """Unpickling this calls `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def weights_file(path: Path, pickled: bytes) -> Path:
    """A file as `torch.save` makes it, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return path


def unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def attacks(flag: Path) -> dict[str, bytes]:
    """Name -> a pickle that would make the file `flag` if anything in it ran."""
    shell = f"touch {flag}"
    tuple_of_shell = b"(" + unicode(shell) + b"t"
    calls = {
        "os.system": Calls(os.system, shell),
        "subprocess": Calls(subprocess.call, ["touch", str(flag)]),
        "eval": Calls(eval, f"open({str(flag)!r}, 'w')"),
        "exec": Calls(exec, f"open({str(flag)!r}, 'w')"),
        "open": Calls(open, str(flag), "w"),
        "getattr": Calls(getattr, "x", "upper"),
        "import": Calls(importlib.import_module, "antigravity"),
        "__import__": Calls(builtins.__import__, "antigravity"),
        "partial": Calls(functools.partial, os.system, shell),
        "torch.load of bytes": Calls(torch.storage._load_from_bytes, b"cos\nsystem\n" + tuple_of_shell + b"R."),
        "torch.load": Calls(torch.load, str(flag)),
        "torch.hub": Calls(torch.hub.load, "somebody/something", "model"),
        "map": Calls(map, os.system, [shell]),
        "in a state dict": {"model": {"backbone.l0.conv.weight": Calls(os.system, shell)}},
        "as an argument of what is allowed": Calls(collections.OrderedDict, Calls(os.system, shell)),
    }
    raw = {
        "opcode INST": b"(" + unicode(shell) + b"iposix\nsystem\n.",
        "opcode OBJ": b"(cposix\nsystem\n" + unicode(shell) + b"o.",
        "opcode NEWOBJ": b"\x80\x02csubprocess\nPopen\n((" + unicode("touch") + unicode(str(flag)) + b"lt\x81.",
        "opcode STACK_GLOBAL": b"\x80\x04" + unicode("posix") + unicode("system") + b"\x93" + tuple_of_shell + b"R.",
        "a name with dots": b"\x80\x04" + unicode("collections") + unicode("OrderedDict.__init__") + b"\x93(t" + b"R.",
        "globals of what is allowed": b"\x80\x04"
        + unicode("torch")
        + unicode("os.system")
        + b"\x93"
        + tuple_of_shell
        + b"R.",
        "a module behind a storage": b"\x80\x04"
        + unicode("torch")
        + unicode("os.Storage")
        + b"\x93"
        + tuple_of_shell
        + b"R.",
        "change what is allowed": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}"
        + unicode("__name__")
        + unicode("x")
        + b"sb.",
        "slots of what is allowed": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}"
        + unicode("__defaults__")
        + b"(ts\x86b.",
        "make an object of what is only called": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        "registered extension": b"\x80\x02\x82\x01" + tuple_of_shell + b"R.",
    }
    return {**{name: pickle.dumps(what, protocol=2) for name, what in calls.items()}, **raw}


NAMES = tuple(attacks(Path("x")))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_file_runs(tmp_path, name):
    flag = tmp_path / "it-ran"
    pickled = attacks(flag)[name]
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    for path in (weights_file(tmp_path / "zip.pt", pickled), tmp_path / "plain.pt"):
        if path.name == "plain.pt":
            path.write_bytes(pickled)
        with pytest.raises(UserError, match=path.name) as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)
    assert not flag.exists()
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults
    assert torch._utils._rebuild_tensor_v2.__name__ == "_rebuild_tensor_v2"


@pytest.mark.parametrize(
    ("name", "requested"),
    [("os.system", "posix.system"), ("eval", "builtins.eval"), ("torch.hub", "torch.hub.load"), ("open", "open")],
)
def test_the_requested_name_is_reported(tmp_path, name, requested):
    path = weights_file(tmp_path / "w.pt", attacks(tmp_path / "x")[name])
    with pytest.raises(UserError, match=f"refused, nothing in it was run: the file wants .*{requested}"):
        read_weights(path)


def test_these_files_would_run_without_the_guard(tmp_path):
    """So that the tests above mean something."""
    flag = tmp_path / "it-ran"
    for name in (
        "os.system",
        "subprocess",
        "open",
        "opcode INST",
        "opcode OBJ",
        "opcode STACK_GLOBAL",
        "in a state dict",
    ):
        result = pickle.loads(attacks(flag)[name])
        if hasattr(result, "close"):
            result.close()
        assert flag.exists(), name
        flag.unlink()


def test_classes_of_networks_are_stood_in_for_and_do_nothing(tmp_path):
    """Whatever is called in them: the names of Ultralytics' functions are as inert as its classes."""
    call = b"\x80\x02cultralytics.utils.downloads\nsafe_download\n(" + unicode("http://x") + b"tR."
    made = read_untrusted(weights_file(tmp_path / "w.pt", call))
    assert isinstance(made, StandIn) and made.place == "ultralytics.utils.downloads.safe_download"
    inner = (
        b"\x80\x04" + unicode("torch.nn") + unicode("modules.module.torch.os.system") + b"\x93(" + unicode("x") + b"tR."
    )
    assert isinstance(read_untrusted(weights_file(tmp_path / "w.pt", inner)), StandIn)
    lists = b"\x80\x02cultralytics.x\nList\n)R(K\x01K\x02e."
    assert isinstance(read_untrusted(weights_file(tmp_path / "w.pt", lists)), StandIn)


def test_a_program_is_refused(tmp_path):
    path = tmp_path / "program.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"archive/{name}", b"\x80\x02cos\nsystem\n.")
    with pytest.raises(UserError, match=r"program\.pt: holds a program"):
        read_weights(path)


def test_a_network_that_holds_itself_is_no_endless_way():
    network, child = StandIn(), StandIn()
    child.__setstate__({"_modules": {"up": network}, "_parameters": {"weight": torch.ones(2), "bias": None}})
    network.__setstate__({"_modules": {"0": child, "none": None}, "_buffers": {"mean": torch.zeros(1)}})
    assert sorted(name for name, _ in module_tensors(network)) == ["0.weight", "mean"]


def test_what_a_network_does_not_save_is_not_taken():
    network = StandIn()
    buffers = {"kept": torch.zeros(1), "fleeting": torch.zeros(1)}
    network.__setstate__({"_buffers": buffers, "_non_persistent_buffers_set": {"fleeting"}})
    assert [name for name, _ in module_tensors(network)] == ["kept"]
    assert list(module_tensors(StandIn())) == []
