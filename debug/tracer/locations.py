"""Where an operation was called: the module, and file and line in the product's or the user's own code."""

import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest.mock import patch

from torch import nn

from config.load import CODE_DIR
from ops import probe

_HERE = str(Path(__file__).resolve().parent)
_START = str(Path(_HERE, "rerun.py"))  # from where a step is gone through
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_PROBE = str(Path(probe.__file__).resolve())
_DEPTH = 3  # callers that are kept


class Frame(NamedTuple):
    """One line of code on the way to an operation."""

    file: str  # from the product's folder where it lies in it
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


class Site(NamedTuple):
    """The innermost module, and the lines that led to it, the innermost first. Both may be missing."""

    module: str
    frames: tuple[Frame, ...]


def frames_from(frame: FrameType | None) -> tuple[Frame, ...]:
    """The lines of product and user from here out to where the step began; none inside autograd's built-in nodes."""
    found: list[Frame] = []
    while frame is not None and frame.f_code.co_filename != _START and len(found) < _DEPTH:
        if file := _own_file(frame.f_code.co_filename):
            found.append(Frame(file, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(found)


@lru_cache(maxsize=4096)
def _own_file(file: str) -> str | None:
    """The file as it is shown; None for libraries, generated code, the tracer and the look-outs themselves."""
    if file.startswith(("<", _HERE, *_LIBRARIES)) or "site-packages" in file or file == _PROBE:
        return None
    path = Path(file)
    return path.relative_to(CODE_DIR).as_posix() if path.is_relative_to(CODE_DIR) else file


class ModuleStack:
    """Which module is computing, by its path; no module is touched for it."""

    def __init__(self, roots: Mapping[str, nn.Module]):
        """`roots`: a prefix of paths -> the modules below it; the prefix of the network itself is empty."""
        self.names: dict[int, str] = {}
        for prefix, root in roots.items():
            for path, module in root.named_modules():
                self.names.setdefault(id(module), ".".join(filter(None, (prefix, path))) or type(root).__name__)
        self.stack: list[str] = []
        self.on_leave: Callable[[str, nn.Module, Any, Any], None] | None = None  # path, module, what it read and gave

    @property
    def current(self) -> str:
        """The innermost module's path, or "" outside of all."""
        return self.stack[-1] if self.stack else ""

    @contextmanager
    def following(self) -> Iterator[None]:
        """Within the block, follow every module that is called, from before its hooks to behind them.

        As torch.fx does it, by the one method that all modules share; torch's global hooks end before a module's own.
        """
        call = nn.Module.__call__

        def followed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            stranger = f"{self.current}.{type(module).__name__}".lstrip(".")
            self.stack.append(self.names.get(id(module), stranger))
            try:
                output = call(module, *args, **kwargs)
                if self.on_leave is not None:
                    self.on_leave(self.current, module, (args, kwargs), output)
                return output
            finally:
                self.stack.pop()

        self.stack.clear()
        with patch.object(nn.Module, "__call__", followed):
            yield
