"""Checksums that detect damaged files. A sealed file ends with the SHA-256 of all bytes before it.

A zip archive has a checksum for each member, but torch does not verify them, and the headers have none: a flipped bit
in a weight would enter the training without a warning. The checksum is stored as the comment of the zip, so that torch
and `unzip` still read the file.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

_MARK = b"sha256 "
_DIGEST_LENGTH = 64  # hexadecimal digits
_END_OF_ZIP = b"PK\x05\x06"
_END_OF_ZIP_LENGTH = 22  # bytes of the last record of a zip without a comment
_BLOCK = 1 << 20


def sealed(archive: bytes) -> bytes:
    """The zip archive with its checksum. Raises `ValueError` for other content and for a zip that has a comment."""
    if not archive[-_END_OF_ZIP_LENGTH:].startswith(_END_OF_ZIP):
        raise ValueError("only a zip archive without a comment can be sealed")
    comment_length = (len(_MARK) + _DIGEST_LENGTH).to_bytes(2, "little")
    content = archive[:-2] + comment_length + _MARK
    return content + hashlib.sha256(content).hexdigest().encode("ascii")


def has_seal(path: Path) -> bool:
    """Does the file end with a checksum? The checksum is not verified. Raises `OSError` if the file cannot be read."""
    with open(path, "rb") as file:
        return _length_before_digest(file) is not None


def is_intact(path: Path) -> bool | None:
    """True: the file has not changed since it was sealed. False: it has changed. None: it has no checksum.

    Raises `OSError` if the file cannot be read.
    """
    with open(path, "rb") as file:
        length = _length_before_digest(file)
        if length is None:
            return None
        digest = file.read()
        file.seek(0)
        return _digest(file, length) == digest


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return _digest(file, os.fstat(file.fileno()).st_size).decode("ascii")


def _length_before_digest(file: BinaryIO) -> int | None:
    """Number of bytes before the digest, where the file is then positioned; None without a seal."""
    length = os.fstat(file.fileno()).st_size - _DIGEST_LENGTH
    if length < len(_MARK):
        return None
    file.seek(length - len(_MARK))
    return length if file.read(len(_MARK)) == _MARK else None


def _digest(file: BinaryIO, length: int) -> bytes:
    """SHA-256 of the next `length` bytes, read block by block."""
    digest = hashlib.sha256()
    while length > 0 and (block := file.read(min(length, _BLOCK))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode("ascii")
