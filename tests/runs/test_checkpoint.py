"""Checkpoints: whole or absent, nothing in them runs, and a changed bit is noticed."""

import random

import numpy as np
import pytest
import torch

from config.errors import UserError
from model.unpickle import DamagedFile
from ops.random_states import random_states, restore_random_states
from runs.checkpoint import load_checkpoint, save_checkpoint, weights_content


def test_what_was_saved_comes_back(tmp_path):
    path = tmp_path / "deep" / "last.pth"
    save_checkpoint(path, {"model": {"w": torch.arange(3)}, "epoch": 4, "random": random_states()})
    content = load_checkpoint(path)
    assert content["epoch"] == 4 and torch.equal(content["model"]["w"], torch.arange(3))
    assert [p.name for p in path.parent.iterdir()] == ["last.pth"]
    torch.load(path, weights_only=True)


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises(AttributeError):
        save_checkpoint(path, {"epoch": 2, "not picklable": lambda: None})
    assert load_checkpoint(path)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a zip", b"no weights at all"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "last.pth"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"last\.pth: is damaged"):
        load_checkpoint(path)


def test_a_flipped_bit_or_a_missing_byte_anywhere_is_damage(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"model": {"w": torch.arange(300.0)}, "epoch": 4})
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DamagedFile):
            load_checkpoint(path)
        path.write_bytes(content[:place])
        with pytest.raises(DamagedFile):
            load_checkpoint(path)
    for place in range(len(content) - 71, len(content)):  # the seal itself
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DamagedFile):
            load_checkpoint(path)


@pytest.mark.parametrize("content", [{"weights": torch.zeros(1)}, {"format": "mars-checkpoint-99"}, [1]])
def test_other_files_and_versions_are_refused_and_are_no_damage(tmp_path, content):
    torch.save(content, tmp_path / "last.pth")
    with pytest.raises(UserError, match=r"not a checkpoint of this version.*--name") as caught:
        load_checkpoint(tmp_path / "last.pth")
    assert not isinstance(caught.value, DamagedFile)


def test_what_this_user_may_not_read_is_no_damage(tmp_path):
    (tmp_path / "last.pth").mkdir()
    with pytest.raises(UserError, match=r"last\.pth: cannot be read \(Is a directory\)") as caught:
        load_checkpoint(tmp_path / "last.pth")
    assert not isinstance(caught.value, DamagedFile)


@pytest.mark.parametrize(("text", "path"), [("random", None), ("/home/a/b.pth", "/home/a/b.pth")])
def test_the_first_format_is_read_as_if_written_today(tmp_path, text, path):
    content = {"model": {"w": torch.arange(3)}, "ema": None, "epoch": 7, "weights_origin": text}
    torch.save({"format": "mars-checkpoint-1", **content}, tmp_path / "last.pth")
    read = load_checkpoint(tmp_path / "last.pth")
    assert read["epoch"] == 7 and torch.equal(read["model"]["w"], torch.arange(3))
    assert read["weights_origin"] == {"path": path, "sha256": None, "licence": None, "from": None}
    news = ("scaler", "precision", "progress", "gradients", "pending")
    assert [read[key] for key in news] == [{}, "float32", None, None, 0]


def test_the_evaluated_weights_are_the_average_where_there_is_one():
    about = dict.fromkeys(("epoch", "fitness", "config", "class_list", "phase", "weights_origin", "data", "commit"), 1)
    assert weights_content({**about, "model": "raw", "ema": None, "optimizer": 2}) == {**about, "model": "raw"}
    assert weights_content({**about, "model": "raw", "ema": "average"})["model"] == "average"


def test_random_generators_go_on_where_they_were(tmp_path):
    path = tmp_path / "last.pth"
    for draw in (torch.rand, np.random.rand):
        draw(3)
    save_checkpoint(path, {"random": random_states()})
    expected = [torch.rand(1).item(), np.random.rand(), random.random()]
    restore_random_states(load_checkpoint(path)["random"])
    assert [torch.rand(1).item(), np.random.rand(), random.random()] == expected
