"""Read weights files of any origin without running code from them. Ultralytics need not be installed.

A pickle is a list of instructions that names functions and classes and calls them. Three kinds of names are accepted
here: functions that rebuild tensors, plain containers, and classes of networks. Network classes are replaced by a
stand-in that stores its state and does nothing. Any other name is refused before anything is called.
"""

import collections
import io
import math
import pickle
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from config.errors import UserError, reading
from model.archive import Archive, open_archive
from model.picklescan import LARGEST_KEY, MOST_ARGUMENTS, Damaged, Refused, check_pickle
from ops.files import is_intact
from ops.text import shortened

# Elements that a tensor may have although its storage has fewer: `expand` creates such tensors.
MOST_EXPANDED = 2**20
# How many tensors may share a stored byte (tied weights are saved once). Without a limit, a file of 1 MB could use the
# same megabyte for ten thousand tensors, and each of them is searched for NaN.
MOST_SHARED = 16
MOST_DIMENSIONS = 64  # of a tensor in torch
MOST_CLASSES = 1000  # that stand-ins replace; checkpoints of Ultralytics have up to 28 (YOLO11x)
MOST_MODULES = 20_000  # modules and tensors of a network; YOLOv9e, the largest of Ultralytics, has 3,036
DEEPEST_MODULE = 100  # nesting of modules; Ultralytics has up to 9 levels (YOLOv9e)
LONGEST_NAME = 500  # characters of a tensor's name; Ultralytics has up to 51 (YOLOv9e)


class DamagedFile(UserError):
    """A file that changed after Mars wrote it, or that was not written completely."""


def entries_of(content: Any) -> dict[Any, Any]:
    """The dictionary itself. Of anything else: no entries."""
    return cast("dict[Any, Any]", content) if isinstance(content, dict) else {}


class StandIn:
    """Replaces an object whose class is not loaded. It stores the state of the object and does nothing."""

    place = ""  # module and name of the class that the file asked for
    state: Any = None

    def __init__(self, *_args: object, **_values: object) -> None:
        """Accept and ignore the arguments of the class."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, *_entry: object) -> None:
        """Ignore entries, if the class is a dictionary or a list."""

    append = extend = __setitem__

    def attribute(self, name: str) -> Any:
        """The attribute of the object with this name, or None."""
        return entries_of(self.state).get(name)


class OtherTensor(StandIn):
    """Replaces a tensor that is not dense, or that has a type in which no network computes, such as float8."""


class _Call:
    """A function or class that a file may call. It has no attributes, so that a file cannot change it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, _state: Any) -> None:
        raise Refused("tries to change a function")


class _Record(NamedTuple):
    """A storage of the pickle. It is no torch object, so that a file can only use it for tensors that are checked."""

    storage: torch.UntypedStorage
    dtype: torch.dtype


# Names of storages -> type of their elements. Tensors in an `UntypedStorage` give their own type.
_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": torch.uint8,
}
# Tensors of other kinds and types get a stand-in, so that the error message can name the tensor.
_OTHER_TENSORS = re.compile(
    r"torch\.\w+Storage|torch\._utils\._rebuild_\w+|torch\.serialization\._get_layout|torch\.per_\w+"
)
# Other classes that get a stand-in: networks and blocks of Ultralytics and YOLOv5; tensors with attributes; numpy
# numbers (their bytes are stored as encoded text); settings, times and paths of a training; containers without weights
# and their entries (`MultiStepLR` has a Counter).
_STOOD_IN = re.compile(
    r"(ultralytics|models|torch\.nn|torch\._C\._nn)\..+|torch\.Tensor|numpy\.(_core|core)\.(multiarray|numeric)\.\w+"
    r"|numpy\.\w+|collections\.(Counter|defaultdict|deque)|builtins\.(frozenset|list|dict|int|float|str|bool|complex)"
    r"|_codecs\.encode|types\.SimpleNamespace|argparse\.Namespace|datetime\.(datetime|timedelta|timezone|date)|pathlib\.\w*Path"
)


class _Unpickler(pickle.Unpickler):
    """Creates tensors from checked records, plain containers, and stand-ins for the other accepted classes."""

    def __init__(self, archive: Archive, pickled: bytes, is_plain: bool):
        super().__init__(io.BytesIO(pickled), encoding="utf-8")
        self._archive, self._is_plain = archive, is_plain
        self._tensor_bytes = 0  # of all tensors so far
        self._copied = 0  # entries of sets and sizes so far
        self._most_copied = len(pickled)  # each entry was written once and needs at least a byte
        self._classes: dict[str, Any] = {}
        # Protocol 2, which torch writes, calls the module builtins __builtin__.
        self._known: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._typed_tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "torch._tensor._rebuild_from_type_v2": self._tensor_with_attributes,
            "torch.Size": self._size,
            "torch.device": torch.device,
            "collections.OrderedDict": _ordered_dict,
            "builtins.set": self._set,
        }

    def find_class(self, module: str, name: str) -> Any:
        place = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if place in self._known:
            return _Call(self._known[place])
        if place in _STORAGES:
            return _STORAGES[place]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if _OTHER_TENSORS.fullmatch(place):
            return self._stand_in(place, OtherTensor)
        if not self._is_plain and _STOOD_IN.fullmatch(place):
            return self._stand_in(place, StandIn)
        hint = " (a network that was fused for inference does)" if place == "builtins.getattr" else ""
        raise Refused(f"wants {shortened(place)}{hint}")

    def persistent_load(self, saved: Any) -> Any:
        kind, dtype, key, _device, count = saved
        if not isinstance(dtype, torch.dtype):
            return dtype()  # `dtype` is a stand-in class: a storage of another type
        if kind != "storage" or type(key) is not str or type(count) is not int:
            raise Damaged("a storage is not named as torch.save names it")
        return _Record(self._archive.storage(key, count, dtype.itemsize), dtype)

    def _stand_in(self, place: str, base: type[StandIn]) -> Any:
        if place not in self._classes:
            if len(self._classes) >= MOST_CLASSES:
                raise Refused(f"names more than {MOST_CLASSES:,} classes")
            self._classes[place] = type(base.__name__, (base,), {"place": place})
        return self._classes[place]

    def _tensor(self, record: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Any:
        dtype = record.dtype if isinstance(record, _Record) else None
        return self._typed_tensor(record, offset, size, stride, None, None, dtype, *more[2:])

    def _typed_tensor(self, record: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Any:
        """A tensor over a record, or a stand-in for a type in which no network computes.

        `more`: requires_grad, backward hooks, type and metadata. The first two are ignored. Metadata marks a negated
        view (as `z.conj().imag`), which also gets a stand-in.
        """
        if isinstance(record, StandIn):
            return record
        dtype, *metadata = more[2:]
        if not isinstance(record, _Record) or not isinstance(dtype, torch.dtype):
            raise Damaged("a tensor is not made as torch.save makes it")
        if any(metadata) or dtype not in _STORAGES.values():
            return self._stand_in("a negated view" if any(metadata) else str(dtype), OtherTensor)()
        self._check_shape(record.storage.nbytes() // dtype.itemsize, dtype.itemsize, offset, size, stride)
        return torch.empty(0, dtype=dtype).set_(record.storage, offset, size, stride)

    def _check_shape(self, stored: int, itemsize: int, offset: Any, size: Any, stride: Any) -> None:
        """Raise if a tensor would exceed its storage of `stored` elements, or be much larger than the storage."""
        if type(size) not in (tuple, torch.Size) or type(stride) is not tuple or len(size) > MOST_DIMENSIONS:
            raise Damaged("the shape of a tensor is not a short tuple")
        size, stride = cast("tuple[int, ...]", size), cast("tuple[int, ...]", stride)
        if any(type(number) is not int or not 0 <= number < LARGEST_KEY for number in (offset, *size, *stride)):
            raise Damaged("the shape of a tensor is not a list of numbers")
        reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if all(size) and reach > stored:
            raise Damaged("a tensor reaches beyond its own storage")
        elements = math.prod(size)
        self._tensor_bytes += elements * itemsize
        if elements > max(stored, MOST_EXPANDED):
            raise Refused(
                f"has a tensor of {elements:,} elements of which only {stored:,} are in the file "
                "(save it with .clone())"
            )
        if self._tensor_bytes > MOST_SHARED * (self._archive.size + MOST_EXPANDED):
            raise Refused(f"has tensors that together are more than {MOST_SHARED} times as large as the file")

    def _tensor_with_attributes(self, make: Any, _type: object, arguments: Any, _attributes: object) -> Any:
        """A tensor, or a stand-in for one of another type. Python attributes of the tensor are ignored."""
        is_function = isinstance(make, _Call) and make.function in (self._tensor, self._typed_tensor)
        is_known = is_function or (isinstance(make, type) and issubclass(make, OtherTensor))
        values = cast("tuple[Any, ...]", arguments)  # the next line checks it
        if not is_known or type(values) is not tuple or len(values) > MOST_ARGUMENTS:
            raise Damaged("a tensor is not made as torch.save makes it")
        return make(*values)

    def _size(self, numbers: Any) -> torch.Size:
        self._count(numbers)
        return torch.Size(numbers)

    def _set(self, entries: Any = ()) -> Any:
        """A set of texts, or a stand-in for a set of other objects, because hashing these could be slow."""
        self._count(entries)
        return set(entries) if all(type(entry) is str for entry in entries) else self._stand_in("set", StandIn)()

    def _count(self, entries: Any) -> None:
        self._copied += len(entries)
        if self._copied > self._most_copied:
            raise Refused("copies the same long list again and again")


def _parameter(tensor: Any, *_more: object) -> Any:
    if not isinstance(tensor, (Tensor, StandIn)):
        raise Damaged("a parameter is not a tensor")
    return tensor


def _ordered_dict(*entries: object) -> "collections.OrderedDict[Any, Any]":
    if entries:
        raise Refused("fills a dictionary in a way that torch.save does not")
    return collections.OrderedDict()


def read_untrusted(path: Path, is_plain: bool = False) -> Any:
    """The content of a file that `torch.save` wrote: tensors and plain containers, and `StandIn` for other objects.

    `is_plain`: for files that only Mars writes; every object that is not a tensor or plain container is an error.
    Tensors are on the CPU and need no gradient; tensors that shared a storage still share it. Raises `DamagedFile` if
    the file has a checksum of Mars (`ops.files`) that does not match. Raises `UserError`, with the name of the file, if
    the file asks for anything else, is damaged, or is no file of `torch.save`.
    """
    with reading(path, "weights"):
        is_changed = is_intact(path) is False
    if is_changed:
        raise DamagedFile(f"{path}: is damaged: its content does not match its checksum; copy it again")
    with reading_untrusted(path), open_archive(path) as archive:
        pickled = archive.pickled()
        check_pickle(pickled)
        return _Unpickler(archive, pickled, is_plain).load()


@contextmanager
def reading_untrusted(path: Path | str, wanted: str = "weights") -> Generator[None, None, None]:
    """Around code that reads an untrusted file: every exception becomes a `UserError` with the name of the file."""
    try:
        with reading(path, wanted):
            yield
    except UserError as error:
        if isinstance(error.__cause__, Damaged):
            raise UserError(f"{path}: is damaged: {error.__cause__}; copy or download it again") from error
        if not isinstance(error.__cause__, Refused):
            raise
        raise UserError(
            f"{path}: refused, nothing in it was run: the file {error.__cause__}, which weights never need; "
            "expected an Ultralytics .pt, a .pth of Mars or a state dict"
        ) from error


def module_tensors(module: StandIn) -> Iterator[tuple[str, Any]]:
    """All tensors of a network that a stand-in replaces, with the names of its `state_dict`.

    A module that two other modules share is returned under both names. Raises `Refused` for a network that is too large
    or too deeply nested.
    """
    pending = [("", module, frozenset[int]())]
    seen = 0
    while pending:
        prefix, module, above = pending.pop()
        not_saved = module.attribute("_non_persistent_buffers_set") or ()
        found = [
            (prefix + name, value)
            for name, value in (*_entries(module, "_parameters"), *_entries(module, "_buffers"))
            if isinstance(value, (Tensor, OtherTensor)) and name not in not_saved
        ]
        children = [(f"{prefix}{name}.", child) for name, child in _entries(module, "_modules")]
        seen += 1 + len(found)
        longest = max((len(name) for name, _ in (*found, *children)), default=0)
        if seen + len(pending) + len(children) > MOST_MODULES or len(above) > DEEPEST_MODULE or longest > LONGEST_NAME:
            raise Refused(
                f"has a network of more than {MOST_MODULES:,} modules and tensors, or more than {DEEPEST_MODULE} "
                f"nested modules, or names of more than {LONGEST_NAME} characters"
            )
        yield from found
        within = above | {id(module)}  # without this, a network that contains itself would never end
        pending += [
            (name, child, within)
            for name, child in reversed(children)
            if isinstance(child, StandIn) and id(child) not in within
        ]


def _entries(module: StandIn, kind: str) -> list[tuple[str, Any]]:
    return [(str(name), value) for name, value in entries_of(module.attribute(kind)).items()]
