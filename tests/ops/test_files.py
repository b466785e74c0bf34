"""Files are whole or not there, and what cannot be written is said in one sentence."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from config.errors import UserError
from ops.files import atomic_writer, hard_link_or_rename, remove_stale_drafts, write_atomic

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
