"""The same image under two names: byte copies and links, found by a digest of the file."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from dl.faults import DataFault
from dl.source import DataSource
from dl.verified import VerifiedImages
from ops.seal import file_digest
from ops.text import counted, shown


class ImageFile(NamedTuple):
    """An image that was examined: its file and the digest of the bytes."""

    path: Path
    digest: str


class Copy(NamedTuple):
    """Two ids of one image, each with its split."""

    splits: tuple[str, str]
    image_ids: tuple[str, str]


def find_copies(
    source: DataSource, pairs: Iterable[tuple[str, str]], examined: Mapping[str, ImageFile], verified: VerifiedImages
) -> list[Copy]:
    """Images of one split of a pair that lie in the other split under another name, byte for byte.

    `examined`: id -> file. A split of which nothing was examined is compared with one that was: its files are read
    only where their size allows a copy, and where `verified` does not know their digest from an earlier start. An id
    that both splits list is no copy.
    """
    digests = _Digests(source, examined, verified)
    copies = []
    for pair in pairs:
        first, second = (dict.fromkeys(source.splits[key]) for key in pair)
        own = [image_id for image_id in first if image_id not in second]
        others = [image_id for image_id in second if image_id not in first]
        if not any(image_id in examined for image_id in (*own, *others)):
            continue
        id_of = {digest: image_id for image_id in reversed(own) if (digest := digests.of(image_id))}
        same = ((id_of.get(digests.of(image_id) or ""), image_id) for image_id in others)
        copies += [Copy(pair, (original, image_id)) for original, image_id in same if original is not None]
    return copies


def count_copies(images: Mapping[str, ImageFile]) -> int:
    """How many of these images equal an earlier one."""
    return len(images) - len({file.digest for file in images.values()})


def count_shared(copies: Iterable[Copy], split: str | None) -> int:
    """How many images of a split are copies of an image of another split."""
    return len({copy.image_ids[copy.splits.index(split)] for copy in copies if split in copy.splits})


def describe_copies(copies: Sequence[Copy], source: DataSource) -> tuple[str, ...]:
    """A sentence for every pair of splits that share images, which names them and says what to do."""
    sentences = []
    for (first, second), group in groupby(copies, key=lambda copy: copy.splits):
        images = [copy.image_ids for copy in group]
        named = shown([f"{source.files.get(a, a)} is {source.files.get(b, b)}" for a, b in images])
        sentences.append(
            f"splits '{first}' and '{second}' hold {counted(len(images), 'image')} under two names (byte for byte): "
            f"{named}; delete one file of each pair, or list both in the same split"
        )
    return tuple(sentences)


class _Digests:
    """Digests by image id, read at most once."""

    def __init__(self, source: DataSource, examined: Mapping[str, ImageFile], verified: VerifiedImages) -> None:
        self._source, self._examined, self._verified = source, examined, verified
        self._read: dict[str, str | None] = {}

    def of(self, image_id: str) -> str | None:
        """None for an image that no examined one can equal, or that cannot be read."""
        if image_id in self._examined:
            return self._examined[image_id].digest
        if image_id not in self._read:
            self._read[image_id] = self._digest(image_id)
        return self._read[image_id]

    def _digest(self, image_id: str) -> str | None:
        try:
            path = self._source.reader.image(image_id)
            if path.stat().st_size not in self._sizes:
                return None
            facts = self._verified.get(path)
            return facts.digest if facts else file_digest(path)
        except (DataFault, OSError):  # reported when its split is examined
            return None

    @cached_property
    def _sizes(self) -> set[int]:
        return {file.path.stat().st_size for file in self._examined.values()}
