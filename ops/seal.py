"""A file that tells whether it is still what was written: it ends with the SHA-256 of everything before.

Zip keeps a checksum of every member, but torch verifies none of them on loading, and the archive's headers have none at
all: a flipped bit in a weight would go on into the training. The seal is the comment of the zip, so that the file stays
an ordinary archive for torch and for `unzip`.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

_MARK = b"sha256 "
_DIGEST_LENGTH = 64  # in hexadecimal letters
_END_OF_ZIP = b"PK\x05\x06"
_END_OF_ZIP_LENGTH = 22  # of the record that closes a zip, without a comment
_BLOCK = 1 << 20


def sealed(archive: bytes) -> bytes:
    """The zip archive with its seal. Raises `ValueError` for other bytes, and for a zip that has a comment."""
    if not archive[-_END_OF_ZIP_LENGTH:].startswith(_END_OF_ZIP):
        raise ValueError("only a zip archive without a comment can be sealed")
    comment_length = (len(_MARK) + _DIGEST_LENGTH).to_bytes(2, "little")
    content = archive[:-2] + comment_length + _MARK
    return content + hashlib.sha256(content).hexdigest().encode("ascii")


def is_intact(path: Path) -> bool | None:
    """True: the file is what was sealed, to the last bit. False: it is not. None: it bears no seal.

    Raises `OSError` when it cannot be read.
    """
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size - _DIGEST_LENGTH
        if length < len(_MARK):
            return None
        file.seek(length - len(_MARK))
        if file.read(len(_MARK)) != _MARK:
            return None
        digest = file.read()
        file.seek(0)
        return _digest(file, length) == digest


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return _digest(file, os.fstat(file.fileno()).st_size).decode("ascii")


def _digest(file: BinaryIO, length: int) -> bytes:
    """Of the next `length` bytes, without holding them all."""
    digest = hashlib.sha256()
    while length > 0 and (block := file.read(min(length, _BLOCK))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode("ascii")
