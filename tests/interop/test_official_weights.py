"""Official weights are fetched once and checked on every call; what goes wrong leaves nothing behind."""

import hashlib
import socket
import sys
from pathlib import Path

import pytest

from config.errors import UserError
from config.mconfig import OFFICIAL_WEIGHTS
from interop.ultralytics import OFFICIAL_SHA256, fetch_official

pytest.importorskip("ultralytics", reason="the reference implementation is not installed")

CONTENT = b"weights" * 20_000  # its helper takes less than 100 kB for a page of errors


@pytest.fixture
def published(monkeypatch):
    """Stands in for Ultralytics' helper: `published(write)` lets it write what it is told to; the calls it had."""
    from ultralytics.utils import downloads

    monkeypatch.setitem(OFFICIAL_SHA256, "yolov8n", ("0" * 64, hashlib.sha256(CONTENT).hexdigest()))
    calls = []

    def publish(write):
        def helper(file, **_values):
            calls.append(Path(file))
            return write(Path(file))

        monkeypatch.setattr(downloads, "attempt_download_asset", helper)
        return calls

    return publish


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_official_weights_are_fetched_once(tmp_path, published):
    calls = published(lambda file: file.write_bytes(CONTENT))
    for _ in range(2):
        path = fetch_official("yolov8n", tmp_path / "new" / "folder")
        assert path == tmp_path / "new" / "folder" / "yolov8n.pt" and path.read_bytes() == CONTENT
    assert len(calls) == 1
    assert calls[0].name == "yolov8n.pt" and calls[0] != path, "half a download would lie under the good name"
    assert files_below(tmp_path) == ["new", "new/folder", "new/folder/yolov8n.pt"]


def test_a_file_that_was_put_there_is_checked(tmp_path, published):
    calls = published(lambda file: pytest.fail("nothing is to be downloaded"))
    (tmp_path / "yolov8n.pt").write_bytes(CONTENT)
    assert fetch_official("yolov8n", tmp_path).read_bytes() == CONTENT
    (tmp_path / "yolov8n.pt").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError) as caught:
        fetch_official("yolov8n", tmp_path)
    for word in (
        str(tmp_path / "yolov8n.pt"),
        hashlib.sha256(CONTENT[:-1]).hexdigest(),
        f"{'0' * 64} or {hashlib.sha256(CONTENT).hexdigest()}",
        "delete it to download it again",
        f"checkpointModelFile={tmp_path / 'yolov8n.pt'}",
    ):
        assert word in str(caught.value)
    assert (tmp_path / "yolov8n.pt").read_bytes() == CONTENT[:-1], "what the user put there stays"
    assert calls == []


def break_off(file):
    file.write_bytes(CONTENT[:1000])
    raise ConnectionError("❌ Download failure for there. Retry limit reached.")


def full_disk(file):
    raise MemoryError("Insufficient free disk space 0.001 < 0.006 GB")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda file: file.write_bytes(CONTENT[:-1] + b"?"), "SHA-256 is .*the download was deleted"),
        (lambda file: file.write_bytes(b""), "SHA-256 is .*the download was deleted"),
        (lambda file: str(file), "nothing was downloaded; download the file from"),
        (
            break_off,
            r"cannot be downloaded \(Download failure for there. Retry limit reached.\); download the file",
        ),
        (full_disk, r"cannot be downloaded \(Insufficient free disk space"),
    ],
    ids=["wrong", "empty", "silent", "broken-off", "full-disk"],
)
def test_a_download_that_fails_leaves_nothing(tmp_path, published, write, words):
    published(write)
    with pytest.raises(UserError, match=rf"yolov8n\.pt: .*{words}") as caught:
        fetch_official("yolov8n", tmp_path)
    assert "❌" not in str(caught.value) and "\n" not in str(caught.value)
    assert files_below(tmp_path) == []


def test_no_internet_is_said_at_once(tmp_path, monkeypatch):
    """Its real helper, on a machine that reaches no name server."""

    def unreachable(*_args, **_values):
        raise socket.gaierror("Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*offline.*\); download the file from http"):
        fetch_official("yolov8m", tmp_path)
    assert files_below(tmp_path) == []


def test_without_ultralytics_the_way_out_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "ultralytics"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"yolov8s\.pt: is missing, .*pip install ultralytics, or download the file"):
        fetch_official("yolov8s", tmp_path)
    assert files_below(tmp_path) == []


def test_a_folder_that_cannot_be_made_and_other_names(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"yolov8n\.pt: cannot be written"):
        fetch_official("yolov8n", tmp_path / "file")
    for name in ("yolov9n", "nano", "../yolov8n", ""):
        with pytest.raises(UserError, match="the names are yolov8n, yolov8s, yolov8m, yolov8l, yolov8x"):
            fetch_official(name, tmp_path)


def test_the_table_of_checksums():
    assert list(OFFICIAL_SHA256) == list(OFFICIAL_WEIGHTS.values())
    digests = [digest for digests in OFFICIAL_SHA256.values() for digest in digests]
    assert len(set(digests)) == len(digests) == 7
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests)
