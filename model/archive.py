"""The zip archive that `torch.save` writes: one pickle, and one record for each tensor storage.

`torch.load` does not verify the checksums of the records, and trusts the lengths that the pickle gives. Here each
record is compared with its checksum, and no record may be longer than the file.
"""

import re
import sys
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from config.errors import UserError
from model.picklescan import Damaged

_PICKLE = "data.pkl"
_EXPECTED = "expected a .pth of Mars, an Ultralytics .pt or a state dict that torch.save wrote"

# Pattern of the first bytes of a file -> what the file is. The first match is used.
_SIGNATURES = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), what)
    for pattern, what in (
        (rb"\Z", "is damaged: it is empty; copy or download it again"),
        # The magic number of the first format of torch: a pickle, followed by the raw storages.
        (
            rb"\x80.\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19",
            "has the format of torch before 1.6; load it with torch and save it again with torch.save",
        ),
        (rb"PK\x03\x04", "cannot be read as weights, it is damaged or incomplete; copy or download it again"),
        (rb"\x89HDF\r\n", "is an HDF5 file (Keras .h5), not weights of PyTorch"),
        (rb".{8}\{\s*\"", "is a safetensors file; load it with safetensors.torch.load_file, then torch.save"),
        (rb".{4}\{\s*\"|ftrt", "is a TensorRT engine, not weights; use the .pt from which it was exported"),
        (rb".{4}TFL3", "is a TensorFlow Lite model, not weights of PyTorch"),
        # A protobuf. Its first field is the version of ONNX, the second the name of the program that wrote it.
        (
            rb"\x08[\x01-\x1f][\x12:\"]",
            "is an ONNX model, not weights; use the .pt or .pth from which it was exported",
        ),
        (rb"version https://git-lfs", "is a Git LFS pointer instead of weights; run: git lfs pull"),
        (rb"\s*(?:<!doctype html|<html)", "is an HTML page instead of weights; download it again"),
        (rb"\s*<\?xml", "is an XML file, not weights"),
        (rb"\s*[{\[]", "is a JSON file, not weights"),
        (rb"\x1f\x8b|7z\xbc\xaf|Rar!", "is a packed archive; unpack it"),
        (rb"\x93NUMPY", "is a numpy array, not weights"),
        (rb"\x80[\x02-\x05]", "is a pickle that was not written by torch.save; reading it could run code"),
    )
)


class Archive:
    """An open file of `torch.save`. Use `open_archive` to make one."""

    def __init__(self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: str):
        """`folder`: the folder of the pickle inside the archive, with a trailing `/`."""
        self._archive, self._members, self._folder = archive, members, folder
        self._storages: dict[str, torch.UntypedStorage] = {}
        self.size = sum(member.file_size for member in members.values())  # bytes of all records

    def pickled(self) -> bytes:
        """The bytes of the pickle."""
        return self._archive.read(self._members[self._folder + _PICKLE])

    def storage(self, key: str, count: int, itemsize: int) -> torch.UntypedStorage:
        """The record of a storage with `count` elements. The same key returns the same object.

        Up to `itemsize - 1` bytes may follow the last element: they exist when bytes are viewed as a larger type.
        Raises `Damaged` if the length is wrong, `KeyError` if there is no such record, `zipfile.BadZipFile` if the
        content does not match its checksum.
        """
        member = self._members[f"{self._folder}data/{key}"]
        if member.file_size // itemsize != count:
            raise Damaged(f"the record of a tensor has {member.file_size:,} bytes instead of {count * itemsize:,}")
        if key not in self._storages:
            content = torch.empty(member.file_size, dtype=torch.uint8)
            with self._archive.open(member) as record:
                record.readinto(memoryview(content.numpy()))  # type: ignore[attr-defined]
            self._storages[key] = content.untyped_storage()
        return self._storages[key]


@contextmanager
def open_archive(path: Path) -> Generator[Archive, None, None]:
    """Open a file of `torch.save` and check its structure before its content is read.

    Raises `UserError` for files of other kinds, programs and compressed archives. Raises `zipfile.BadZipFile`,
    `Damaged` or other exceptions for a damaged file.
    """
    with open(path, "rb") as file:
        head = file.read(1024)
        if not zipfile.is_zipfile(file):
            unknown = "cannot be read as weights, it is damaged, incomplete or not a weights file"
            fault = next((what for pattern, what in _SIGNATURES if pattern.match(head)), unknown)
            raise UserError(f"{path}: {fault}; {_EXPECTED}")
        with zipfile.ZipFile(file) as archive:
            members = {member.filename: member for member in archive.infolist()}
            _check(path, archive.infolist())
            (folder,) = [name.removesuffix(_PICKLE) for name in members if name.rpartition("/")[2] == _PICKLE]
            order = members.get(f"{folder}byteorder")  # torch before 2.1 did not write it
            if order is not None and archive.read(order) != sys.byteorder.encode():
                raise UserError(
                    f"{path}: was saved on a processor with another byte order; save it again on this machine"
                )
            yield Archive(archive, members, folder)


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename.rpartition("/")[2] for member in members]
    if "archive_format" in names:
        raise UserError(f"{path}: is a program that torch.export wrote (.pt2), not weights; {_EXPECTED}")
    if "constants.pkl" in names:
        raise UserError(f"{path}: holds a program (TorchScript), not weights; {_EXPECTED}")
    if _PICKLE not in names:
        raise UserError(f"{path}: is a zip archive without weights; {_EXPECTED}")
    # A small compressed file could expand to any size.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(
            f"{path}: is compressed, but torch.save does not compress; unpack it, or save the weights again"
        )
    if len({member.filename for member in members}) < len(members) or names.count(_PICKLE) > 1:
        raise Damaged("two records have the same name")
    if any(member.compress_size != member.file_size for member in members):
        raise Damaged("a record is longer than its place in the file")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise Damaged("the records together are longer than the file")
    if all(member.CRC == 0 for member in members):  # torch.serialization.set_crc32_options(False) writes no checksums
        for member in members:
            member.CRC = None  # type: ignore[assignment]  # then zipfile does not compare checksums
