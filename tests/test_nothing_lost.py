"""What befalls a training, seen from the command line: exit status, one line on stderr, and what lies in the folder."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mars
from runs.interrupt import WATCHED

pytestmark = pytest.mark.usefixtures("narrow_networks")
ROOT = Path(__file__).resolve().parent.parent
XML = """<annotation><size><width>64</width><height>64</height><depth>3</depth></size><object><name>red</name><bndbox>
<xmin>10</xmin><ymin>10</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>"""


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    """Four images with a red square each: two to train on, one each to validate and to test."""
    folder = tmp_path_factory.mktemp("data") / "squares"
    for name in ("images", "annotations", "splits"):
        (folder / name).mkdir(parents=True)
    pixels = np.full((64, 64, 3), 90, dtype=np.uint8)
    pixels[10:40, 10:40] = (220, 0, 0)
    for number in range(4):
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
        (folder / f"annotations/{number}.xml").write_text(XML)
    for split, ids in {"train": "01", "validation": "2", "test": "3"}.items():
        (folder / f"splits/{split}.txt").write_text("\n".join(ids) + "\n")
    return folder


@pytest.fixture
def train(squares, tmp_path, capsys):
    """`mars.main` on the squares; exit status, stdout, stderr."""

    def call(*more: str, root: Path = tmp_path) -> tuple[int, str, str]:
        settings = ["inputShape=64", "batchSize=1", "maxEpoch=1", "dcore=0", "device=cpu", "precision=float32"]
        words = ["train", "voc.nano.full", "--root", str(root), "--name", "run", "--data", str(squares), *more]
        return mars.main([*words, "--set", *settings]), *capsys.readouterr()

    return call


@pytest.mark.parametrize("number", WATCHED[1:])  # without Ctrl-C
def test_a_signal_saves_says_one_line_and_is_gone_on_from(train, tmp_path, monkeypatch, number):
    from train.step import Stepper

    add, handler = Stepper.add, signal.getsignal(number)

    def asked(self, *args):
        os.kill(os.getpid(), number)
        return add(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "add", asked)
        status, _, err = train()
    place = f"interrupted by {number.name} and saved in epoch 1/1 after 1 of 2 batches"
    line = f"{place}; the same command continues from there"
    assert (status, err) == (1, f"mars: {line}\n")
    assert line in (tmp_path / "run/mars.log").read_text()
    assert signal.getsignal(number) is handler
    status, out, err = train()
    assert (status, err) == (0, "") and "after epoch 0 and 1 batches" in out


def test_a_full_disk_is_one_sentence_and_what_was_saved_stays(train, tmp_path, monkeypatch):
    from train.trainer import Trainer

    last = tmp_path / "run/weights/last.pth"
    before, fsync, save = [], os.fsync, Trainer.save

    def full(handle):
        if before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    def fill_and_save(self, *args):
        before.append(last.read_bytes())
        save(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr(Trainer, "save", fill_and_save)
        status, _, err = train()
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"mars: {tmp_path}/run/weights/") and "cannot be written (No space left on device)" in err
    assert last.read_bytes() == before[0]
    assert not list(tmp_path.rglob("*.part"))
    assert train()[0] == 0


def test_a_place_that_cannot_be_written_is_one_sentence(train, tmp_path):
    (tmp_path / "run").write_text("no folder")  # a mode would not bind root
    status, _, err = train()
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"mars: {tmp_path}/run") and "cannot be written (File exists)" in err and "--root" in err
    assert (tmp_path / "run").read_text() == "no folder"


def test_a_log_that_cannot_be_written_costs_lines_only(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mars.log").symlink_to("/dev/full")
    status, out, err = train()
    assert (status, err) == (0, "") and "epoch 1/1" in out


@pytest.mark.parametrize("more", [(), ("--nobuf",)])
def test_a_folder_at_work_is_neither_resumed_nor_moved(train, tmp_path, more):
    code = (
        "import sys, time; from pathlib import Path; from runs.lock import RunLock; lock = RunLock(Path(sys.argv[1]))"
    )
    code += "; lock.hold(); print('held', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        status, _, err = train(*more)
        holder.kill()
    assert (status, err.count("\n")) == (2, 1)
    assert f"run: another run uses this folder (process {holder.pid} on " in err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
