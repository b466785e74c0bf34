import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from config.errors import UserError
from dl.workers import Workers, num_workers

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


class Squares:
    """A tensor and the process that made it; a file named by `kills` lets the process die that makes item 5."""

    def __init__(self, kills=None, number=signal.SIGKILL):
        self.kills = kills
        self.number = number

    def __getitems__(self, keys):
        if self.kills and 5 in keys and self.kills.exists():
            left = int(self.kills.read_text()) - 1
            self.kills.write_text(str(left)) if left else self.kills.unlink()
            if self.number is None:
                os._exit(3)
            os.kill(os.getpid(), self.number)
        if -1 in keys:
            raise KeyError("a bug")
        return torch.tensor(keys) ** 2, os.getpid()


def key_lists(count=20, size=2):
    return [list(range(start, start + size)) for start in range(0, count * size, size)]


@pytest.fixture
def workers(caplog):
    """workers(...) -> Workers over 20 batches by two processes, closed at the end."""
    made = []

    def make(dataset=None, batches=None, number=2):
        made.append(Workers(dataset or Squares(), batches or key_lists(), number))
        return made[-1]

    caplog.set_level(logging.WARNING, logger="mars")
    yield make
    for one in made:
        one.close()


def squares(items):
    return [item.tolist() for item, _ in items]


EXPECTED = [[key**2 for key in keys] for keys in key_lists()]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_all_in_order_epoch_after_epoch(workers, number):
    some = workers(number=number)
    makers = []
    for _ in range(2):
        items = list(some.items())
        assert squares(items) == EXPECTED
        makers.append({maker for _, maker in items})
    assert makers[0] == makers[1], "processes live on"
    assert len(makers[0]) == max(1, number)
    assert (os.getpid() in makers[0]) == (number == 0)


@pytest.mark.parametrize("number", [0, 2])
def test_from_a_batch_on(workers, number):
    some = workers(number=number)
    assert squares(some.items(17)) == EXPECTED[17:]
    assert squares(some.items(20)) == []
    assert squares(some.items()) == EXPECTED


def test_no_batches():
    assert list(Workers(Squares(), []).items()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
@pytest.mark.parametrize("when", [0, 1, 10, 19])
def test_a_killed_process_costs_nothing(workers, caplog, when, number):
    some = workers()
    items, got = some.items(), []
    for item, maker in items:
        got.append(item.tolist())
        if len(got) == when + 1:
            os.kill(maker, number)
    assert got == EXPECTED
    assert squares(some.items()) == EXPECTED
    # both batches that the process had made ahead may have arrived before it died
    assert len(caplog.messages) <= 1
    if when < 10:
        name = number.name
        assert re.fullmatch(
            rf"loader process \d+ was killed by {name}.*; a new process continues at batch \d+ of 20, "
            "and no batch is lost .*",
            caplog.messages[0],
        )
        assert ("out of memory" in caplog.messages[0]) == (number == signal.SIGKILL)


def test_a_process_killed_between_two_epochs(workers, caplog):
    some = workers()
    makers = {maker for _, maker in some.items()}
    os.kill(makers.pop(), signal.SIGKILL)
    time.sleep(0.05)
    assert squares(some.items()) == EXPECTED
    assert re.search(r"a new process continues at batch [12] of 20", caplog.messages[0])


@pytest.mark.parametrize(("deaths", "number"), [(1, signal.SIGKILL), (2, signal.SIGTERM), (2, None)])
def test_the_batch_that_killed_is_tried_again(workers, caplog, tmp_path, deaths, number):
    (tmp_path / "kills").write_text(str(deaths))
    some = workers(Squares(tmp_path / "kills", number))
    assert squares(some.items()) == EXPECTED
    assert len(caplog.messages) == deaths
    expected = {signal.SIGKILL: "SIGKILL, usually because", signal.SIGTERM: "SIGTERM;"}
    assert all(expected.get(number, "ended with status 3;") in line for line in caplog.messages)


def test_three_deaths_in_an_epoch_are_the_end(workers, caplog, tmp_path):
    (tmp_path / "kills").write_text("9")
    some = workers(Squares(tmp_path / "kills"))
    with pytest.raises(UserError, match="died 3 times in one epoch, the last one was killed by SIGKILL") as caught:
        list(some.items())
    assert "--set dcore=0" in str(caught.value)
    assert len(caplog.messages) == 2
    (tmp_path / "kills").write_text("2")
    assert squares(some.items()) == EXPECTED, "each epoch counts for itself"


def test_a_death_never_surfaces_in_the_middle_of_other_work(workers, caplog):
    before = signal.getsignal(signal.SIGCHLD)
    some = workers()
    items = some.items()
    _, maker = next(items)
    assert signal.getsignal(signal.SIGCHLD) == before
    os.kill(maker, signal.SIGKILL)
    until = time.perf_counter() + 0.3
    while time.perf_counter() < until:  # a training step, as it were
        sum(range(1000))
    assert squares(items) == EXPECTED[1:]
    assert len(caplog.messages) == 1


def test_an_exception_is_no_death(workers, caplog):
    some = workers(batches=[[1, 2], [3, -1], [4, 5]])
    with pytest.raises(RuntimeError, match=r"(?s)a loader process failed.*KeyError: 'a bug'"):
        list(some.items())
    assert caplog.messages == []


def test_ctrl_c_is_left_to_the_trainer(workers, caplog):
    some = workers()
    items = some.items()
    _, maker = next(items)
    os.kill(maker, signal.SIGINT)
    assert squares(items) == EXPECTED[1:]
    assert caplog.messages == []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_closing_ends_the_processes_whoever_still_holds_the_items(workers):
    some = workers()
    items = some.items()
    _, maker = next(items)
    some.close()
    assert not alive(maker)
    with pytest.raises(RuntimeError, match="closed, or started again, in the middle"):
        next(items)
    assert squares(some.items()) == EXPECTED


def test_an_epoch_left_early_does_not_leak_into_the_next(workers):
    some = workers()
    left = some.items(5)
    assert squares([next(left), next(left)]) == EXPECTED[5:7]
    assert squares(some.items()) == EXPECTED
    with pytest.raises(RuntimeError, match="closed, or started again, in the middle"):
        next(left)
    with pytest.raises(RuntimeError, match="closed, or started again, in the middle"):
        for _ in zip(some.items(), some.items(), strict=True):
            pass


class Arrays:
    """Arrays below and above what goes through shared memory, and more of them than fit."""

    def __getitems__(self, keys):
        large = torch.full((3, 1000), keys[0], dtype=torch.float64)  # 24 kB
        return {
            "large": [large, large + 1, large + 2],
            "small": torch.tensor(keys),
            "none": torch.zeros(0, 4),
            "x": "y",
        }


@pytest.mark.parametrize("item_bytes", [0, 24_000, 50_000, 10**6])
def test_arrays_arrive_whole_whatever_fits_the_shared_memory(item_bytes):
    some = Workers(Arrays(), key_lists(), 2, item_bytes=item_bytes)
    items = list(some.items())
    some.close()
    for keys, item in zip(key_lists(), items, strict=True):
        assert [one.unique().tolist() for one in item["large"]] == [[keys[0] + i] for i in range(3)]
        assert item["small"].tolist() == keys
        assert item["none"].shape == (0, 4)
        assert item["x"] == "y"
        item["large"][0] += 1  # its own memory, to be written to


class Pinned:
    def __init__(self, keys):
        self.keys, self.is_pinned = keys, False

    def pin_memory(self):
        self.is_pinned = True
        return self


class ToPin:
    def __getitems__(self, keys):
        return Pinned(keys)


@pytest.mark.parametrize("number", [0, 2])
def test_memory_is_pinned_where_asked(number):
    for asked in (False, True):
        some = Workers(ToPin(), key_lists(), number, pin_memory=asked)
        items = list(some.items())
        some.close()
        assert [item.keys for item in items] == key_lists()
        assert {item.is_pinned for item in items} == {asked}


SCRIPT = """
import os, sys, time
from config.mconfig import ModelConfig
from dl.loader import build_loader
mcfg = ModelConfig()
mcfg.dataDir, mcfg.dcore, mcfg.batchSize, mcfg.inputShape, mcfg.cacheImages = sys.argv[1], 2, 1, (64, 64), "ram"
mcfg.augmentation = "modern"
batches = iter(build_loader(mcfg.frozen(), "train"))
next(batches), next(batches)
print(*(child for child in os.popen(f"pgrep -P {os.getpid()}").read().split()), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no /dev/shm")
def test_a_killed_trainer_leaves_nothing_behind(make_folder):
    folder = make_folder({"train": [f"n{i}" for i in range(30)], "validation": ["v"]})
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        children = [int(word) for word in process.stdout.readline().split()]
        process.kill()
    loaders = [child for child in children if alive(child)]
    assert loaders
    until = time.monotonic() + 600
    while any(alive(child) for child in loaders) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(child) for child in loaders), "they notice within seconds that nobody waits for them"
    pids = {str(process.pid), *map(str, children)}
    left = [name for name in os.listdir("/dev/shm") if pids & set(re.split(r"\D+", name))]
    assert left == []


def test_how_many(monkeypatch):
    monkeypatch.setattr("dl.workers.usable_cores", lambda: 4)
    assert [num_workers(wanted) for wanted in (None, 0, 12)] == [3, 0, 12]
    monkeypatch.setattr("dl.workers.usable_cores", lambda: 1)
    assert num_workers(None) == 0
    monkeypatch.setattr("dl.workers.usable_cores", lambda: 64)
    assert num_workers(None) == 8
