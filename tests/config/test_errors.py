"""What a reader of a file raises: a damaged file, a file that the system does not give out, memory that ran out."""

import errno
import os
import struct
import subprocess
import sys

import pytest
import torch

from config.errors import UserError, out_of_memory_message, reading
from config.recipes import CODE_DIR

NO_ROOM = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes.")


def told(error: Exception) -> str:
    with pytest.raises(UserError) as caught, reading("a.pth", "weights"):
        raise error
    assert caught.value.__cause__ is error
    return str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        NO_ROOM,
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        KeyboardInterrupt(),
    ],
)
def test_memory_that_ran_out_says_nothing_about_the_file(error):
    with pytest.raises(type(error)) as caught, reading("a.pth", "weights"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.EACCES, "permission"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "check the disk"),
        (errno.ENOENT, "put it back"),
        (errno.EISDIR, "name a file"),
    ],
)
def test_what_the_system_does_not_give_out_is_not_called_damaged(number, way_out):
    message = told(OSError(number, os.strerror(number)))
    assert message.startswith(f"a.pth: cannot be read ({os.strerror(number)}); ") and way_out in message
    assert "damaged" not in message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (struct.error("unpack requires 4 bytes"), "error"),
        (OSError(errno.EINVAL, "Invalid argument"), "Invalid argument"),  # of a wrong offset in a zip
        (OSError("image file is truncated"), "OSError"),  # Pillow's
    ],
)
def test_a_damaged_file(error, reason):
    assert told(error).startswith(f"a.pth: cannot be read as weights ({reason}); it is damaged, cut short")


def test_too_many_open_files(tmp_path):
    """From the system itself, in a process that may open no further file."""
    file = tmp_path / "a.json"
    file.write_text("{}")
    code = (
        "import resource, sys\nfrom config.errors import reading\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "with reading(sys.argv[1], 'a json'): open(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, file], cwd=CODE_DIR, capture_output=True, text=True)
    assert f"UserError: {file}: cannot be read (Too many open files); raise" in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
            "out of memory on the GPU (another 2.00 GiB were requested)",
        ),
        (
            RuntimeError("err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."),
            "(another 64 bytes were requested)",
        ),
        (
            MemoryError("Unable to allocate 7.28 TiB for an array"),
            "out of memory (another 7.28 TiB were requested); set",
        ),
        (MemoryError(), "out of memory; set"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (ValueError("memory"), None),
    ],
)
def test_out_of_memory_errors_and_others(error, words):
    text = out_of_memory_message(error)
    assert text is None if words is None else text is not None and words in text


def test_the_message_of_torchs_allocator_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert "bytes were requested" in out_of_memory_message(caught.value)
