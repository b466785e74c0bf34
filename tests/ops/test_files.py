"""Files are whole or not there."""

import pytest

from ops.files import write_whole, writing_whole


def test_write_whole_replaces_and_leaves_no_draft(tmp_path):
    path = write_whole(tmp_path / "new" / "file", b"old")
    assert write_whole(path, "newer").read_bytes() == b"newer"
    (path.parent / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(path.parent / "folder", b"lost")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["file", "folder"]


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    path = write_whole(tmp_path / "file", "old")

    def fail():
        with writing_whole(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]
