"""The zip archive that `torch.save` writes: one pickle, and one record for each storage of its tensors.

`torch.load` checks none of its checksums, and believes the pickle when that says how long a record is. Here every
record is compared with its checksum, and nothing is taken that is longer than the file.
"""

import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from config.errors import UserError
from model.foreign import describe
from model.picklescan import Damaged

_PICKLE = "data.pkl"
_WANTED = "wanted is a .pth of Mars, an Ultralytics .pt or a state dict that torch.save wrote"


class Archive:
    """An open file of `torch.save`; made by `open_archive`."""

    def __init__(self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: str):
        """`folder`: that of the pickle, with a `/` behind."""
        self._archive, self._members, self._folder = archive, members, folder
        self._storages: dict[str, torch.UntypedStorage] = {}
        self.size = sum(member.file_size for member in members.values())  # bytes of all records

    def pickled(self) -> bytes:
        """The pickle."""
        return self._archive.read(self._members[self._folder + _PICKLE])

    def storage(self, key: str, count: int, itemsize: int) -> torch.UntypedStorage:
        """The record of a storage, which must have `count` elements; the same object for the same key.

        Bytes at the end that are less than an element belong to it: a view of bytes as other numbers leaves them over.
        Raises `Damaged` for another length, `KeyError` without such a record, `zipfile.BadZipFile` when its content
        does not match its checksum.
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
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a file of `torch.save` and check its structure before anything in it is read.

    Raises `UserError` for files of other kinds, programs and compressed archives; `zipfile.BadZipFile`, `Damaged`
    and others when it is damaged.
    """
    with open(path, "rb") as file:
        head = file.read(1024)
        if not zipfile.is_zipfile(file):
            raise UserError(f"{path}: {describe(head)}; {_WANTED}")
        with zipfile.ZipFile(file) as archive:
            members = {member.filename: member for member in archive.infolist()}
            _check(path, archive.infolist())
            (folder,) = [name.removesuffix(_PICKLE) for name in members if name.rpartition("/")[2] == _PICKLE]
            order = members.get(f"{folder}byteorder")  # torch before 2.1 did not write it
            if order is not None and archive.read(order) != sys.byteorder.encode():
                raise UserError(f"{path}: has the byte order of another kind of processor; save it again on this one")
            yield Archive(archive, members, folder)


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename.rpartition("/")[2] for member in members]
    if "archive_format" in names:
        raise UserError(f"{path}: is a program that torch.export wrote (.pt2), not weights; {_WANTED}")
    if "constants.pkl" in names:
        raise UserError(f"{path}: holds a program (TorchScript), not weights; {_WANTED}")
    if _PICKLE not in names:
        raise UserError(f"{path}: is a zip archive without weights; {_WANTED}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):  # a small file may unpack to any size
        raise UserError(f"{path}: is compressed, which torch.save never does; unpack it, or save the weights again")
    if len({member.filename for member in members}) < len(members) or names.count(_PICKLE) > 1:
        raise Damaged("two records have the same name")
    if any(member.compress_size != member.file_size for member in members):
        raise Damaged("a record is longer than its place in the file")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise Damaged("the records together are longer than the file")
    if all(member.CRC == 0 for member in members):  # torch.serialization.set_crc32_options(False) writes no checksums
        for member in members:
            member.CRC = None  # type: ignore[assignment]  # zipfile compares nothing then
