"""A scan of a pickle before it is read: what would cost memory, time or the process is refused.

Python's reader makes its table of memorised objects as long as the largest index says, and reserves memory for lengths
that a file only promises. The hash of a tuple of tuples is computed in C: nested deeply it ends the process, nested
with references to the same tuple it never ends. Every call copies its arguments. The scan goes once through the
instructions and follows what kind of object each of them puts on the stack; nothing is made.
"""

import enum
import pickle
import pickletools
from typing import Any

# The checkpoint of YOLOv8n has 37,000 instructions, that of YOLOv9e, the largest of Ultralytics, 191,000. An object
# takes about 60 bytes at least, so a pickle of this length makes objects of some hundred megabytes at most.
MOST_INSTRUCTIONS = 1_000_000
# Keys that are tuples, as in {(true class, predicted class): count}. Anybody can choose tuples that all have the same
# hash, so that each is compared with all before it: for 10,000 of them that takes about 2 seconds.
MOST_TUPLE_KEYS = 10_000
MOST_ARGUMENTS = 100  # of a call; `datetime` has 8, `_rebuild_tensor_v3` too. A tuple that long is no key, either.
LARGEST_KEY = 2**63  # a million whole numbers above this can be chosen so that all have the same hash

# The instructions of protocol 2, which torch.save writes, and those of 3 to 5 for the same things. Not among them:
# those of protocols 0 and 1, the registry of extensions (copyreg), buffers that lie outside the file, and calls with
# named arguments, which are copied.
_KNOWN = frozenset(
    name
    for names in (
        ("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE"),
        ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"),
        ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        ("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT"),
        ("SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"),
        ("MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ", "BINPERSID"),
    )
    for name in names
)
_CHANGING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # what lies below their arguments
_REBUILD = ("torch._utils._rebuild_", "torch._tensor._rebuild_")  # how the names of functions that make tensors start


class Refused(pickle.UnpicklingError):
    """What a file asks for and is not given; the message goes on behind "the file"."""


class Damaged(pickle.UnpicklingError):
    """What does not fit together in a file; the message goes on behind "is damaged:"."""


class _Kind(enum.Enum):
    OTHER = enum.auto()
    TUPLE = enum.auto()  # a short one of things that are neither tuples nor costly
    LONG_TUPLE = enum.auto()
    COSTLY = enum.auto()  # its hash may take long, or anybody can make many others with the same hash
    SIZE = enum.auto()  # torch.Size, which makes a tuple
    REBUILD = enum.auto()  # a function that makes a tensor
    TENSOR = enum.auto()


def check_pickle(pickled: bytes) -> None:
    """Raise `Refused` for a pickle that asks for what weights never need, `Damaged` and others for a broken one."""
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
        self._tuple_keys = 0

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
        self._check_keys(opcode.name, taken)
        if opcode.name == "REDUCE" and taken[1] is _Kind.LONG_TUPLE:
            raise Refused(f"calls a function with more than {MOST_ARGUMENTS} arguments")
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
            raise Damaged("its pickle takes more from the stack than lies there")
        taken = self._stack[start:]
        del self._stack[start:]
        return taken

    def _check_keys(self, name: str, taken: list[_Kind | str]) -> None:
        """The keys of dictionaries and the entries of sets are hashed."""
        if name in ("SETITEM", "SETITEMS"):
            keys = taken[1::2]
        elif name in ("ADDITEMS", "FROZENSET"):
            keys = taken
        else:
            return
        if _Kind.COSTLY in keys or _Kind.LONG_TUPLE in keys:
            raise Refused(
                "has a dictionary or set whose keys are tuples of tuples, long tuples, sets or very large numbers"
            )
        self._tuple_keys += keys.count(_Kind.TUPLE)
        if self._tuple_keys > MOST_TUPLE_KEYS:
            raise Refused(f"has dictionaries or sets with more than {MOST_TUPLE_KEYS:,} tuples as keys")


def _kind_made(opcode: pickletools.OpcodeInfo, argument: Any, taken: list[_Kind | str]) -> _Kind | str:
    name = opcode.name
    if "TUPLE" in name:
        if len(taken) > MOST_ARGUMENTS:
            return _Kind.LONG_TUPLE
        return _Kind.COSTLY if {_Kind.TUPLE, _Kind.LONG_TUPLE, _Kind.COSTLY} & {*taken} else _Kind.TUPLE
    if name == "STACK_GLOBAL":
        name, argument = "GLOBAL", " ".join(text for text in taken if isinstance(text, str))
    if name == "GLOBAL":
        place = argument.replace(" ", ".")  # the dots may be in the module or in the name
        return _Kind.REBUILD if place.startswith(_REBUILD) else _Kind.SIZE if place == "torch.Size" else _Kind.OTHER
    if name in ("REDUCE", "NEWOBJ"):
        made: dict[_Kind | str, _Kind] = {_Kind.REBUILD: _Kind.TENSOR, _Kind.SIZE: _Kind.COSTLY}
        return made.get(taken[0], _Kind.OTHER)
    if name == "FROZENSET" or (isinstance(argument, int) and not -LARGEST_KEY < argument < LARGEST_KEY):
        return _Kind.COSTLY
    return argument if isinstance(argument, str) and len(argument) < 100 else _Kind.OTHER
