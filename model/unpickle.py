"""Read an Ultralytics checkpoint without running anything in it, and without Ultralytics.

Such a file is a pickled Python object: a recipe that names functions and classes and calls them. Here three kinds of
names are understood: those that rebuild tensors, plain containers, and classes of networks, in whose place an inert
stand-in is put that keeps what it is given and does nothing. Every other name is refused before anything is called.
"""

import collections
import pickle
import re
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._utils  # what checkpoints call to rebuild a tensor
from torch import Tensor

from config.errors import UserError


class StandIn:
    """Takes the place of an object whose class is not loaded: remembers its state, does nothing."""

    place = ""  # module and name of the class that the file asked for
    state: Any = None

    def __init__(self, *_args: object, **_values: object) -> None:
        """Whatever the class would have been made with."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, _key: object, _value: object) -> None:
        """An entry of a class that is a dictionary."""

    def append(self, _entry: object) -> None:
        """An entry of a class that is a list."""

    def extend(self, _entries: object) -> None:
        """Entries of a class that is a list."""

    def attribute(self, name: str) -> Any:
        """What the object held under this name, or None."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class _Call:
    """A function or class that may be called, and nothing else: a file cannot change what is not its own."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, _state: Any) -> None:
        raise pickle.UnpicklingError(f"tries to change {self._function.__name__}")


# Rebuild tensors, and plain containers. Under protocol 2, which torch writes, builtins are called __builtin__.
_KNOWN: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "collections.OrderedDict": collections.OrderedDict,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.tuple": tuple,
}
# Networks and their blocks, of Ultralytics and of YOLOv5; numbers of numpy (whose bytes are written as text that is
# encoded); settings, times and paths of a training.
_STOOD_IN = re.compile(
    r"(ultralytics|models|torch\.nn|torch\._C\._nn)\..+|numpy\.(_core|core)\.multiarray\.\w+|numpy\.\w+"
    r"|_codecs\.encode|types\.SimpleNamespace|argparse\.Namespace|datetime\.(datetime|timedelta|timezone|date)|pathlib\.\w*Path"
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        place = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if place in _KNOWN:
            return _Call(_KNOWN[place])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if _STOOD_IN.fullmatch(place):
            return type("StandIn", (StandIn,), {"place": place})
        hint = " (a network that was fused for inference does)" if place == "builtins.getattr" else ""
        raise pickle.UnpicklingError(f"wants {place}{hint}")


def _refuse_old_format(*_args: object, **_values: object) -> None:
    raise pickle.UnpicklingError("is written in torch's format of before 1.6")


# What torch.load takes its reader from. Only its old format, which is not read here, asks for `load`.
_READER = types.SimpleNamespace(Unpickler=_Unpickler, load=_refuse_old_format, __name__="model.unpickle")


def read_with_stand_ins(path: Path) -> Any:
    """The content of a file that `torch.save` wrote: tensors and containers as they are, `StandIn` for other objects.

    Call `refuse_programs` first. Raises `UserError` naming what the file wanted to call when that is neither, and
    `OSError`, `EOFError`, `RuntimeError`, `ValueError` or `zipfile.BadZipFile` when it is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", pickle_module=_READER, weights_only=False)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, nothing in it was run: the file {error}, which has no place in weights; wanted is an "
            "Ultralytics .pt, a .pth of Mars or a state dict"
        ) from error
    except (TypeError, AttributeError, IndexError, KeyError) as error:
        raise UserError(f"{path}: refused, it is put together as no weights file is ({error})") from error


def refuse_programs(path: Path) -> None:
    """Raise `UserError` for a TorchScript archive, which looks like weights but is a program, and for packed ones."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    names = [Path(member.filename).name for member in members]
    if "constants.pkl" in names or "data.pkl" not in names:
        raise UserError(f"{path}: holds a program (TorchScript) or no weights at all; wanted are weights")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):  # a small file may unfold to any size
        raise UserError(f"{path}: is compressed, which torch.save never does; wanted are weights as they were saved")


def module_tensors(module: StandIn, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything in a stood-in network, named as its `state_dict` would name them."""
    yield from _module_tensors(module, prefix, frozenset())


def _module_tensors(module: StandIn, prefix: str, above: frozenset[int]) -> Iterator[tuple[str, Tensor]]:
    fleeting = module.attribute("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in _entries(module, kind):
            if isinstance(value, Tensor) and name not in fleeting:
                yield prefix + name, value.detach()
    for name, child in _entries(module, "_modules"):
        if isinstance(child, StandIn) and id(child) not in above:  # a network that holds itself would never end
            yield from _module_tensors(child, f"{prefix}{name}.", above | {id(module)})


def _entries(module: StandIn, kind: str) -> list[tuple[str, Any]]:
    held = module.attribute(kind)
    return [(str(name), value) for name, value in held.items()] if isinstance(held, dict) else []
