"""One process per folder, tested with real processes, because a lock has no effect within one process."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import runs.lock as lock_module
from config.errors import UserError
from runs.lock import RunLock

fcntl = pytest.importorskip("fcntl")  # Windows has none
ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import os, sys, time
from pathlib import Path
from runs.lock import RunLock
with RunLock(Path(sys.argv[1])) as lock:
    lock.hold()
    if len(sys.argv) > 2 and os.fork() == 0:  # as a loader's worker: it outlives its parent, with all that is open
        os.write(1, f"{os.getpid()}\\n".encode())  # in one piece: print may write the end of the line by itself
        time.sleep(600)
    os.write(1, b"held\\n")
    time.sleep(600)
"""


class Holder:
    """Another process that holds the folder."""

    def __init__(self, folder: Path, *more: str):
        command = [sys.executable, "-c", HOLD, str(folder), *more]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline().strip() for _ in range(1 + len(more))]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def holder(tmp_path):
    holder = Holder(tmp_path / "run")
    yield holder
    holder.kill()


def test_a_second_process_is_refused_by_name_until_the_first_is_dead(tmp_path, holder):
    who = rf"process {holder.process.pid} on {socket.gethostname()} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    with pytest.raises(UserError, match=rf"^{tmp_path}/run: another run uses this folder \({who}\); .*--name$"):
        RunLock(tmp_path / "run").__enter__()
    holder.kill()
    with RunLock(tmp_path / "run"):
        assert f'"process": {os.getpid()}' in (tmp_path / "run/.lock").read_text()


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_folder(tmp_path):
    holder = Holder(tmp_path / "run", "fork")
    worker = int(next(word for word in holder.lines if word.isdigit()))
    try:
        holder.kill()
        os.kill(worker, 0)  # it lives
        with RunLock(tmp_path / "run") as lock:
            lock.hold()
    finally:
        os.kill(worker, signal.SIGKILL)


def locked_by_another(folder: Path) -> bool:
    """Asked in a process of its own, for this one may always lock what it holds."""
    code = f"from pathlib import Path; from runs.lock import RunLock; RunLock(Path({str(folder)!r})).__enter__()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode or "another run uses this folder" in done.stderr, done.stderr
    return done.returncode != 0


def test_blocks_of_one_process_share_it_and_the_outermost_lets_go(tmp_path):
    folder = tmp_path / "run"
    with RunLock(folder) as outer:
        assert not folder.exists()  # entering makes nothing
        outer.hold()
        with RunLock(folder) as inner:
            inner.hold()
        assert locked_by_another(folder)
    assert not locked_by_another(folder)


def test_after_the_folder_was_moved_aside_the_new_one_is_held(tmp_path):
    folder, aside = tmp_path / "run", tmp_path / "aside"
    folder.mkdir()
    with RunLock(folder) as lock:
        folder.rename(aside)
        lock.hold()
        assert locked_by_another(folder)
        assert not locked_by_another(aside)


def test_two_that_start_at_once_are_never_both_let_in(tmp_path):
    """Each adds a line while it holds the folder and takes it away at the end; nobody ever sees two."""
    code = """
import sys, time
from pathlib import Path
from config.errors import UserError
from runs.lock import RunLock
folder = Path(sys.argv[1])
inside = folder / "inside"
for _ in range(150):
    try:
        with RunLock(folder) as lock:
            lock.hold()
            inside.mkdir()  # fails when another is in
            time.sleep(.0005)
            inside.rmdir()
    except UserError:
        pass
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    both = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=600)[1] for process in both] == ["", ""]


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunLock(tmp_path / "file" / "run").hold()


def test_without_locks_of_the_system_a_warning_is_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("runs.lock.fcntl", None)
    with RunLock(tmp_path / "run") as lock:
        lock.hold()
    assert "no file locks" in caplog.text and (tmp_path / "run").is_dir()


def test_the_refusal_comes_at_once(tmp_path, holder, monkeypatch):
    """The system is asked once, without waiting."""
    asked, lockf = [], fcntl.lockf
    monkeypatch.setattr(fcntl, "lockf", lambda file, how: asked.append(how) or lockf(file, how))
    with pytest.raises(UserError, match="another run uses this folder"):
        RunLock(tmp_path / "run").hold()
    assert asked == [fcntl.LOCK_EX | fcntl.LOCK_NB]


def test_a_folder_that_is_moved_aside_between_opening_and_locking_is_not_taken_for_the_new_one(tmp_path, monkeypatch):
    folder, lock_file = tmp_path / "run", lock_module._lock

    def moved_first(file, path):
        if not (tmp_path / "aside").exists():
            folder.rename(tmp_path / "aside")
        lock_file(file, path)

    monkeypatch.setattr(lock_module, "_lock", moved_first)
    with RunLock(folder) as lock:
        lock.hold()
        assert locked_by_another(folder)
        assert not locked_by_another(tmp_path / "aside")


def test_folders_in_which_nothing_came_to_lie_are_removed_again(tmp_path):
    for place, content in (("a/b/run", None), ("c/run", "mars.log")):
        with RunLock(tmp_path / place) as lock:
            lock.hold()
            if content:
                (tmp_path / place / content).write_text("")
    (tmp_path / "old").mkdir()
    with RunLock(tmp_path / "old") as lock:
        lock.hold()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["c", "c/run", "c/run/.lock", "c/run/mars.log", "old", "old/.lock"]


NOBUF = """
import json, os, signal, sys
from pathlib import Path
from types import SimpleNamespace
import commands.training as training
from config.errors import UserError
from runs.folder import RunFolder

training.splits_to_train = lambda mcfg: []
training.check = lambda *args: SimpleNamespace(report=SimpleNamespace(table=str, copies=()), splits={})
rename_old_run = RunFolder.rename_old_run

class Start:  # a start with --nobuf in a process of its own, which halts at a place, and where it would train
    def __init__(self, folder, place):
        words, answers = os.pipe(), os.pipe()
        self.process = os.fork()
        if self.process == 0:
            self.words, self.answers = os.fdopen(words[1], "w"), os.fdopen(answers[0])
            self.train(folder, place)
            os._exit(0)
        os.close(words[1])
        os.close(answers[0])
        self.words, self.answers = os.fdopen(words[0]), os.fdopen(answers[1], "w")

    def say(self, word):
        print(word, file=self.words, flush=True)

    def wait(self, word):
        self.say(word)
        self.answers.readline()

    def train(self, folder, place):
        def halting_move_aside(self_):
            place == "before the move" and self.wait(place)
            aside = rename_old_run(self_)
            place == "after the move" and self.wait(place)
            return aside

        def run():
            (folder / "metrics.jsonl").write_text(place)
            self.wait("training")

        RunFolder.rename_old_run = halting_move_aside
        training.Trainer = lambda *args, **options: SimpleNamespace(run=run)
        mcfg = SimpleNamespace(run_dir=folder, modelName="base", nobuf=True, epochValidation=False, pixelMax=None)
        mcfg.validationSplitName = "validation"
        try:
            training.train(mcfg, quiet=True)
        except UserError as error:
            self.say(f"refused: {error}")

    def next_word(self):
        return self.words.readline().strip()

    def go_on(self):
        print(file=self.answers, flush=True)

    def end(self):
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)

def compete(root, place, has_older):
    folder = root / "run"
    if has_older:
        folder.mkdir(parents=True)
        (folder / "mars.log").write_text("older")
    first = Start(folder, place)
    assert first.next_word() == place
    second = Start(folder, "at no place")
    second_line = second.next_word()
    first.go_on()
    first_line = first.next_word()
    first.end()
    second.end()
    metrics = (folder / "metrics.jsonl").read_text()
    aside = [(path / "mars.log").read_text() for path in root.glob("run.*")]
    processes = first.process, second.process
    return {"lines": [first_line, second_line], "metrics": metrics, "aside": aside, "processes": processes}

root = Path(sys.argv[1])
print(json.dumps([compete(root / str(number), *case) for number, case in enumerate(json.loads(sys.argv[2]))]))
"""
BEFORE, AFTER = "before the move", "after the move"


def test_of_two_starts_with_nobuf_one_is_refused_and_neither_moves_the_fresh_run_of_the_other(tmp_path):
    """The first process halts before or after it moves an older run aside, and a second process starts meanwhile."""
    cases = json.dumps([(BEFORE, False), (BEFORE, True), (AFTER, True)])
    command = [sys.executable, "-c", NOBUF, str(tmp_path), cases]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    fresh, before, after = json.loads(done.stdout)
    for number, (case, winner) in enumerate(((fresh, 0), (before, 0), (after, 1))):
        assert case["lines"][winner] == "training"
        refusal = f"refused: {tmp_path / str(number) / 'run'}: another run uses this folder (process "
        assert case["lines"][1 - winner].startswith(f"{refusal}{case['processes'][winner]} on ")
    assert [case["metrics"] for case in (fresh, before, after)] == [BEFORE, BEFORE, "at no place"]
    assert [case["aside"] for case in (fresh, before, after)] == [[], ["older"], ["older"]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[" * 1000, ""),
        (b"\xff", ""),
        (b'{"process": 1}', ""),
        (
            b'{"process": 1, "host": "a\\nok data: all read", "since": []}',
            "on a ok data: all read",
        ),
    ],
)
def test_a_damaged_lock_file_names_nobody_and_forges_no_line(tmp_path, content, expected):
    (tmp_path / ".lock").write_bytes(content)
    file = os.open(tmp_path / ".lock", os.O_RDONLY)
    try:
        holder = lock_module._holder_text(file)
    finally:
        os.close(file)
    assert expected in holder and bool(holder) == bool(expected) and "\n" not in holder
