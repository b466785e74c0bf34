"""Checkpoints: whole or absent, nothing in them runs, and damaged ones are named."""

import random

import numpy as np
import pytest
import torch

from config.errors import UserError
from train.checkpoint import load_checkpoint, random_states, restore_random_states, save_checkpoint


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
    with pytest.raises(UserError, match=r"last\.pth.*--nobuf"):
        load_checkpoint(path)


def test_foreign_files_are_refused(tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "last.pth")
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        load_checkpoint(tmp_path / "last.pth")


def test_random_generators_go_on_where_they_were(tmp_path):
    path = tmp_path / "last.pth"
    for draw in (torch.rand, np.random.rand):
        draw(3)
    save_checkpoint(path, {"random": random_states()})
    expected = [torch.rand(1).item(), np.random.rand(), random.random()]
    restore_random_states(load_checkpoint(path)["random"])
    assert [torch.rand(1).item(), np.random.rand(), random.random()] == expected
