"""A scan of a pickle before it is read. It refuses pickles that could exhaust memory or time, or crash the process.

Python's pickle reader has these weaknesses: The largest index in the file decides how long its memo table becomes. It
reserves memory for lengths that the file only claims. It hashes tuples in C: a deeply nested tuple crashes the process,
and a tuple that contains the same tuple many times takes forever. Each call copies its arguments.

The scan reads the instructions once and tracks the kind of each object on the stack. It creates no objects.
"""

import enum
import pickle
import pickletools
from typing import Any

# The checkpoint of YOLOv8n has 37,000 instructions, that of YOLOv9e (the largest of Ultralytics) 191,000. An object
# needs about 60 bytes, so a pickle with this many instructions creates objects of at most some hundred megabytes.
MOST_INSTRUCTIONS = 1_000_000
# Keys that are tuples, as in {(true class, predicted class): count}. An attacker can choose tuples with equal hashes,
# so that each is compared with all others: for 10,000 of them this takes about 2 seconds.
MOST_TUPLE_KEYS = 10_000
MOST_ARGUMENTS = 100  # of a call (`datetime` and `_rebuild_tensor_v3` have 8); also the longest tuple that may be a key
LARGEST_KEY = 2**63  # above this, an attacker can choose a million integers with equal hashes

# The instructions of protocol 2, which torch.save writes, and their equivalents in protocols 3 to 5. Not included:
# protocols 0 and 1, the extension registry (copyreg), buffers outside the file, and calls with keyword arguments, which
# are copied.
_KNOWN = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT",
    "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT",
    "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ", "BINPERSID",
})  # fmt: skip
# These change the object below their arguments on the stack.
_CHANGING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_REBUILD = ("torch._utils._rebuild_", "torch._tensor._rebuild_")  # prefixes of functions that create tensors


class Refused(pickle.UnpicklingError):
    """The file asks for something that is not allowed. The message completes a sentence that begins with "the file"."""


class Damaged(pickle.UnpicklingError):
    """The file contradicts itself. The message follows the words "is damaged:"."""


class _Kind(enum.Enum):
    OTHER = enum.auto()
    TUPLE = enum.auto()  # short, without tuples and expensive objects inside
    LONG_TUPLE = enum.auto()
    COSTLY = enum.auto()  # its hash may be slow, or an attacker can make many objects with the same hash
    SIZE = enum.auto()  # torch.Size: calling it creates a tuple
    REBUILD = enum.auto()  # a function that creates a tensor
    TENSOR = enum.auto()


def check_pickle(pickled: bytes) -> None:
    """Raise `Refused` for a pickle with content that weights never need, `Damaged` and others for a broken one."""
    scan = _Scan()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if count >= MOST_INSTRUCTIONS:
            raise Refused(f"has a pickle of more than {MOST_INSTRUCTIONS:,} instructions")
        if opcode.name not in _KNOWN:
            raise Refused(f"has the pickle instruction {opcode.name}")
        scan.follow(opcode, argument)


class _Scan:
    """The stack of the pickle reader, with the kind of each object instead of the object. Short texts are kept."""

    def __init__(self) -> None:
        self._stack: list[_Kind | str] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, _Kind | str] = {}
        self._tuple_keys = 0

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Apply one instruction to the stack. Raises as `check_pickle` does."""
        name = opcode.name
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(self._memo) if argument is None else argument
            if index > len(self._memo):  # writers count from 0
                raise Refused(f"memorises an object as number {index} where {len(self._memo)} is next")
            self._memo[index] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name == "POP" and self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._call(opcode, argument)

    def _call(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name = opcode.name
        arguments = self._pop_arguments(opcode.stack_before)
        if name in ("SETITEM", "SETITEMS"):
            self._check_keys(arguments[1::2])
        elif name in ("ADDITEMS", "FROZENSET"):
            self._check_keys(arguments)
        elif name == "REDUCE" and arguments[1] is _Kind.LONG_TUPLE:
            raise Refused(f"calls a function with more than {MOST_ARGUMENTS} arguments")
        if name in _CHANGING:
            if arguments[0] is _Kind.TENSOR:
                raise Refused("changes a tensor after it was made")
            self._stack.append(arguments[0])
        elif opcode.stack_after:
            self._stack.append(_kind_made(opcode, argument, arguments))

    def _pop_arguments(self, before: list[pickletools.StackObject]) -> list[_Kind | str]:
        """Remove the arguments of an instruction from the stack; returns them, the lowest first."""
        if pickletools.markobject in before:
            start = self._marks.pop() - before.index(pickletools.markobject)
        else:
            start = len(self._stack) - len(before)
        if start < (self._marks[-1] if self._marks else 0):
            raise Damaged("its pickle removes more objects from the stack than it put there")
        arguments = self._stack[start:]
        del self._stack[start:]
        return arguments

    def _check_keys(self, keys: list[_Kind | str]) -> None:
        """Check objects that will be hashed: keys of a dictionary or entries of a set."""
        if _Kind.COSTLY in keys or _Kind.LONG_TUPLE in keys:
            raise Refused(
                "has a dictionary or set whose keys are tuples of tuples, long tuples, sets or very large numbers"
            )
        self._tuple_keys += keys.count(_Kind.TUPLE)
        if self._tuple_keys > MOST_TUPLE_KEYS:
            raise Refused(f"has dictionaries or sets with more than {MOST_TUPLE_KEYS:,} tuples as keys")


def _kind_made(opcode: pickletools.OpcodeInfo, argument: Any, arguments: list[_Kind | str]) -> _Kind | str:
    name = opcode.name
    if "TUPLE" in name:
        if len(arguments) > MOST_ARGUMENTS:
            return _Kind.LONG_TUPLE
        return _Kind.COSTLY if {_Kind.TUPLE, _Kind.LONG_TUPLE, _Kind.COSTLY} & {*arguments} else _Kind.TUPLE
    if name == "STACK_GLOBAL":
        name, argument = "GLOBAL", " ".join(text for text in arguments if isinstance(text, str))
    if name == "GLOBAL":
        place = argument.replace(" ", ".")  # the dots may be in the module or in the name
        return _Kind.REBUILD if place.startswith(_REBUILD) else _Kind.SIZE if place == "torch.Size" else _Kind.OTHER
    if name in ("REDUCE", "NEWOBJ"):
        made: dict[_Kind | str, _Kind] = {_Kind.REBUILD: _Kind.TENSOR, _Kind.SIZE: _Kind.COSTLY}
        return made.get(arguments[0], _Kind.OTHER)
    if name == "FROZENSET" or (isinstance(argument, int) and not -LARGEST_KEY < argument < LARGEST_KEY):
        return _Kind.COSTLY
    return argument if isinstance(argument, str) and len(argument) < 100 else _Kind.OTHER
