"""A scan of a pickle before it is read: what would cost memory, time or the process is refused.

Python's reader makes its table of memorised objects as long as the largest index says, and reserves memory for lengths
that a file only promises. The hash of a tuple of tuples is computed in C: nested deeply it ends the process, nested
with references to the same tuple it never ends. The scan goes once through the instructions and follows what kind of
object each of them puts on the stack; nothing is made.
"""

import enum
import pickle
import pickletools
from typing import Any

# The checkpoint of YOLOv8n has 37,000 instructions, that of YOLOv9e, the largest of Ultralytics, 191,000. An object
# takes about 60 bytes at least, so a pickle of this length makes objects of some hundred megabytes at most.
MOST_INSTRUCTIONS = 1_000_000
LARGEST_KEY = 2**63  # a million whole numbers above this can be chosen so that all have the same hash

# The instructions of protocol 2, which torch.save writes, and those of 3 to 5 for the same things. Not among them:
# those of protocols 0 and 1, the registry of extensions (copyreg), and buffers that lie outside the file.
_KNOWN = frozenset(
    name
    for names in (
        ("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE"),
        ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"),
        ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        ("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT"),
        ("SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"),
        ("MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "BINPERSID"),
    )
    for name in names
)
_CHANGING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # what lies below their arguments
_REBUILD = "torch._utils _rebuild_"  # the start of the names of functions that make tensors


class Refused(pickle.UnpicklingError):
    """What a file asks for and is not given; the message goes on behind "the file"."""


class _Kind(enum.Enum):
    OTHER = enum.auto()
    TUPLE = enum.auto()
    LARGE_NUMBER = enum.auto()
    REBUILD = enum.auto()  # a function that makes a tensor
    TENSOR = enum.auto()


def check_pickle(pickled: bytes) -> None:
    """Raise `Refused` for a pickle that asks for what weights never need, `ValueError` for one that is damaged."""
    scan = _Scan()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if count >= MOST_INSTRUCTIONS:
            raise Refused(f"has a pickle of more than {MOST_INSTRUCTIONS:,} instructions")
        if opcode.name not in _KNOWN:
            raise Refused(f"has the pickle instruction {opcode.name}")
        scan.follow(opcode, argument)


class _Scan:
    """The stack of the reader, with the kind of each object in place of the object; a short text stands for itself."""

    def __init__(self) -> None:
        self._stack: list[_Kind | str] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, _Kind | str] = {}

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """What the instruction does to the stack. Raises as `check_pickle` does."""
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
        taken = self._taken(opcode)
        _check_keys(opcode.name, taken)
        if opcode.name in _CHANGING:
            if taken[0] is _Kind.TENSOR:
                raise Refused("changes a tensor after it was made")
            self._stack.append(taken[0])
        elif opcode.stack_after:
            self._stack.append(_kind_made(opcode, argument, taken))

    def _taken(self, opcode: pickletools.OpcodeInfo) -> list[_Kind | str]:
        """Take the arguments of an instruction from the stack, the lowest first."""
        before = opcode.stack_before
        if pickletools.markobject in before:
            start = self._marks.pop() - before.index(pickletools.markobject)
        else:
            start = len(self._stack) - len(before)
        if start < (self._marks[-1] if self._marks else 0):
            raise ValueError("the pickle takes more from its stack than lies there")
        taken = self._stack[start:]
        del self._stack[start:]
        return taken


def _check_keys(name: str, taken: list[_Kind | str]) -> None:
    """The keys of dictionaries and the entries of sets are hashed."""
    if name in ("SETITEM", "SETITEMS"):
        keys = taken[1::2]
    elif name in ("ADDITEMS", "FROZENSET"):
        keys = taken
    else:
        return
    if _Kind.TUPLE in keys or _Kind.LARGE_NUMBER in keys:
        raise Refused("has a dictionary or set whose keys are tuples or very large numbers")


def _kind_made(opcode: pickletools.OpcodeInfo, argument: Any, taken: list[_Kind | str]) -> _Kind | str:
    name = opcode.name
    if "TUPLE" in name:
        return _Kind.TUPLE
    if name == "STACK_GLOBAL":
        name, argument = "GLOBAL", " ".join(text for text in taken if isinstance(text, str))
    if name == "GLOBAL":
        return _Kind.REBUILD if argument.startswith(_REBUILD) else _Kind.OTHER
    if name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
        return _Kind.TENSOR if taken[0] is _Kind.REBUILD else _Kind.OTHER
    if isinstance(argument, int) and not -LARGEST_KEY < argument < LARGEST_KEY:
        return _Kind.LARGE_NUMBER
    return argument if isinstance(argument, str) and len(argument) < 100 else _Kind.OTHER
