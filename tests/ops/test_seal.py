"""A sealed archive notices every bit that changes, and stays an archive for others."""

import hashlib
import io
import subprocess
import zipfile

import pytest
import torch

from ops.seal import file_digest, is_intact, sealed


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
