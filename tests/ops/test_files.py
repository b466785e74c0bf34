"""Files are whole or absent, errors of writing are explained, and a sealed archive detects every changed bit."""

import errno
import hashlib
import io
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from config.errors import UserError
from ops.files import (
    atomic_writer,
    file_digest,
    hard_link_or_rename,
    is_intact,
    remove_stale_drafts,
    sealed,
    write_atomic,
)  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_whole_replaces_and_leaves_no_draft(tmp_path):
    path = write_atomic(tmp_path / "new" / "file", b"old")
    assert write_atomic(path, "newer").read_bytes() == b"newer"
    (path.parent / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: cannot be written \(Is a directory\)"):
        write_atomic(path.parent / "folder", b"lost")
    assert names(path.parent) == ["file", "folder"]


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    path = write_atomic(tmp_path / "file", "old")

    def fail():
        with atomic_writer(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_the_file_and_the_names_above_it_are_flushed_before_and_after_the_renaming(tmp_path, monkeypatch):
    """Told from the system calls: content, then name; without the second a power cut may bring back the old file."""
    events, fsync, rename = [], os.fsync, os.replace

    def flushed(handle):
        events.append(("flush", os.readlink(f"/proc/self/fd/{handle}") if os.path.isdir("/proc/self/fd") else ""))
        fsync(handle)

    def renamed(one, other):
        events.append(("rename", str(other)))
        rename(one, other)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", renamed)
    write_atomic(tmp_path / "a" / "b" / "file", "text")
    folder = tmp_path / "a" / "b"
    assert [kind for kind, _ in events] == ["flush", "flush", "flush", "rename", "flush"]
    if os.path.isdir("/proc/self/fd"):
        parents = [str(tmp_path), str(tmp_path / "a")]
        draft = str(folder / f".file.{os.getpid()}.part")
        assert [path for _, path in events] == [*parents, draft, str(folder / "file"), str(folder)]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"No space left on device\); free some space.*the same command"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, r"Read-only file system\); make the folder writable.*--root"),
        (errno.EACCES, r"Permission denied\); make the folder writable"),
        (errno.EIO, r"choose another place \(--root\)"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "open", "replace"])
def test_what_the_system_refuses_is_one_sentence_and_the_old_file_stays(tmp_path, monkeypatch, number, words, call):
    path = write_atomic(tmp_path / "file", "old")

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if call == "open":
            patch.setattr("ops.files.open", refuse, raising=False)
        elif call == "fsync":
            patch.setattr(os, "fsync", refuse)
        else:
            patch.setattr(Path, "replace", refuse)
        with pytest.raises(UserError, match=rf"^{path}: cannot be written \(.*{words}") as told:
            write_atomic(path, "new")
    assert "\n" not in str(told.value)
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_real_limit_of_the_system_is_a_sentence_too(tmp_path):
    path = write_atomic(tmp_path / "file", "old")
    code = f"from ops.files import write_atomic; write_atomic({str(path)!r}, b'x' * 5000)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY)),
    )  # fmt: skip
    assert done.stderr.splitlines()[-1].startswith(f"config.errors.UserError: {path}: cannot be written (File too lar")
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "below" / "it", "lost")


def test_errors_of_the_block_about_other_files_are_not_ours(tmp_path):
    def read_another():
        with atomic_writer(tmp_path / "file"):
            (tmp_path / "missing").read_bytes()

    with pytest.raises(FileNotFoundError, match="missing"):
        read_another()
    assert names(tmp_path) == []


def test_a_second_name_is_the_same_file_until_the_first_is_replaced(tmp_path):
    last, previous = write_atomic(tmp_path / "last", "one"), tmp_path / "previous"
    hard_link_or_rename(last, previous)
    assert last.samefile(previous)
    hard_link_or_rename(last, previous)  # after a kill between both names
    assert names(tmp_path) == ["last", "previous"]
    write_atomic(last, "two")
    assert (last.read_text(), previous.read_text()) == ("two", "one")
    hard_link_or_rename(last, previous)
    assert previous.read_text() == "two" and names(tmp_path) == ["last", "previous"]


def test_without_hard_links_the_first_name_moves(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    hard_link_or_rename(write_atomic(tmp_path / "last", "one"), tmp_path / "previous")
    assert names(tmp_path) == ["previous"] and (tmp_path / "previous").read_text() == "one"


def test_drafts_of_dead_processes_are_removed_and_nothing_else(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "pass"]) as dead:
        dead.wait()
    (tmp_path / "weights").mkdir()
    kept = [".lock", "last.pth", f".last.pth.{os.getppid()}.part", ".x.part", "a.12.part"]
    gone = [f".last.pth.{dead.pid}.part", f".best.pth.{os.getpid()}.part", f".x.{10**30}.part"]
    for name in (*kept, *gone):
        (tmp_path / "weights" / name).write_text("")
    assert [path.name for path in remove_stale_drafts(tmp_path)] == sorted(gone)
    assert names(tmp_path / "weights") == sorted(kept)
    assert remove_stale_drafts(tmp_path / "nowhere") == []


def archive(content) -> bytes:
    target = io.BytesIO()
    torch.save(content, target)
    return target.getvalue()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(sealed(archive({"w": torch.arange(5.0)})))
    return path


def test_torch_and_zip_read_on(path):
    assert is_intact(path) is True
    assert torch.equal(torch.load(path, weights_only=True)["w"], torch.arange(5.0))
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        content = path.read_bytes()
        assert file.comment == b"sha256 " + hashlib.sha256(content[:-64]).hexdigest().encode()


def test_every_flipped_bit_is_noticed(path):
    """Each byte in turn, a bit of each: the mark of the seal itself, and headers that nothing else guards."""
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        # Without its mark it bears no seal any more: who wants one treats that as damage, too.
        in_mark = len(content) - 71 <= place < len(content) - 64
        assert is_intact(path) is (None if in_mark else False), place


def test_torch_alone_would_not_notice(path):
    """Why there is a seal. Should torch verify its records one day, this test says so."""
    content = path.read_bytes()
    weights = torch.arange(5.0).numpy().tobytes()
    place = content.index(weights) + 4
    path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    assert not torch.equal(torch.load(path, weights_only=True)["w"], torch.arange(5.0))
    assert is_intact(path) is False


@pytest.mark.parametrize("length", [0, 1, 63, 64, 70, 71, 200, -65, -64, -1])
def test_a_cut_file_is_not_intact(path, length):
    path.write_bytes(path.read_bytes()[:length])
    assert is_intact(path) is not True


def test_bytes_behind_are_noticed(path):
    path.write_bytes(path.read_bytes() + b"\n")
    assert is_intact(path) is not True


def test_large_files_are_read_in_blocks(tmp_path):
    path = tmp_path / "large.pth"
    path.write_bytes(sealed(archive(torch.zeros(700_000))))
    assert path.stat().st_size > 2 << 20
    assert is_intact(path) is True


def test_only_a_zip_without_a_comment_is_sealed():
    once = sealed(archive(1))
    for content in (b"", b"no zip", once):
        with pytest.raises(ValueError, match="zip archive without a comment"):
            sealed(content)


def test_the_digest_is_that_of_sha256sum(path):
    told = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert file_digest(path) == told.split()[0]
