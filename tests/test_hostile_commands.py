"""Hostile command lines end with one sentence; a console that goes away or lacks letters costs nothing else."""

import io
import os
import subprocess
import sys

import pytest
from warm_process import ROOT

import mars
from benchmarks.attacks_commands import COMMAND_ATTACKS, FORGED, shell_words
from config.errors import UserError
from ops.log import Console, end_log, log, log_to_file, start_log

IN_PROCESS = [name for name, attack in COMMAND_ATTACKS.items() if not attack.redirection]
IN_A_SHELL = [name for name, attack in COMMAND_ATTACKS.items() if attack.redirection]
LONGEST_MESSAGE = 1500  # letters


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the attacks run: an empty file, an empty folder, and no default of the user's own."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARS_ROOT", str(tmp_path / "runs"))
    return tmp_path


@pytest.mark.parametrize("name", IN_PROCESS)
def test_an_attack_gets_one_sentence(folder, name, monkeypatch, capsys):
    attack = COMMAND_ATTACKS[name]
    for variable, value in attack.environment.items():
        monkeypatch.setenv(variable, value)
    status = mars.main([word.replace("{folder}", str(folder)) for word in attack.words])
    message = capsys.readouterr().err
    assert (status, message.count("\n")) == (attack.status, 1), message
    assert message.startswith("mars: ") and message[:-1].isprintable() and len(message) < LONGEST_MESSAGE
    assert sorted(os.listdir(folder)) == ["empty", "file"]  # and nothing was written


@pytest.mark.parametrize("name", IN_A_SHELL)
def test_a_console_that_goes_away_gets_no_traceback(folder, name):
    attack = COMMAND_ATTACKS[name]
    done = subprocess.run(
        shell_words(attack, folder), capture_output=True, text=True, cwd=folder, timeout=600, check=False
    )
    assert done.returncode == attack.status, done
    assert done.stderr.count("\n") <= 1 and "Exception ignored" not in done.stderr and "Trace" not in done.stderr


def run_guarded(code: str, redirection: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Python code in a process whose console is guarded as that of `mars.py` is."""
    start = "import os, sys; from ops.log import *; import ops.text; out = protect_console()\n"
    command = ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, start + code]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}, check=False, timeout=600
    )


def test_the_log_stays_complete_when_the_pipe_is_closed(tmp_path):
    code = (
        f"from pathlib import Path\nstart_log(False)\nlog_to_file(Path({str(tmp_path / 'mars.log')!r}))\n"
        "for epoch in range(5000): log.info('epoch %d', epoch)\nend_log()"
    )
    done = run_guarded(code, "| head -1")
    assert (done.stdout, done.stderr) == ("epoch 0\n", "")
    assert len((tmp_path / "mars.log").read_text().splitlines()) == 5000


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    """Else what a library writes to file number 2 would end up in the next checkpoint."""
    file = tmp_path / "opened"
    code = f"import tqdm\nfile = open({str(file)!r}, 'w')\nos.write(2, b'lost')\nprint('lost')\ntqdm.tqdm([1]).close()"
    assert run_guarded(code, "<&- >&- 2>&-").returncode == 0
    assert file.read_bytes() == b""


def test_only_an_ascii_console_lacks_letters_and_not_the_log(tmp_path):
    code = (
        f"from pathlib import Path\nstart_log(False)\nlog_to_file(Path({str(tmp_path / 'mars.log')!r}))\n"
        "log.info('\\n'.join(ops.text.align_columns([['class', 'AP'], ['\\u98de\\u673a', '1'], ['cat', '10']])))\n"
        "end_log()"
    )
    done = run_guarded(code, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.stdout.splitlines() == ["class  AP", r"\u98de\u673a    1", "cat    10"]
    logged = (tmp_path / "mars.log").read_text(encoding="utf-8")
    assert logged.endswith("class  AP\n飞机    1\ncat    10\n")


def test_the_first_failure_of_a_console_is_kept():
    class Broken(io.RawIOBase):
        def write(self, data):
            raise OSError(28, "No space left on device")

    console = Console(Broken())
    assert console.write(b"four") == 4
    assert console.failure is not None and console.failure.errno == 28


def test_control_characters_reach_neither_console_nor_log(tmp_path, capsys, monkeypatch):
    """Line breaks inside of names are refused before; here stands what no check has seen."""
    monkeypatch.setattr(log, "propagate", False)  # pytest-xdist cannot send a captured record that is not UTF-8
    start_log(quiet=False)
    log_to_file(tmp_path / "mars.log")
    try:
        log.info("image %s", "a\x1b[2J\r\u2028.jpg\udcff")
    finally:
        end_log()
    wanted = r"image a\x1b[2J\r\u2028.jpg\udcff"
    assert capsys.readouterr().out == f"{wanted}\n"
    assert (tmp_path / "mars.log").read_text(encoding="utf-8").endswith(f"{wanted}\n")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UserError("file \x1b[2J: bad"), 2, [r"mars: file \x1b[2J: bad"]),
        (MemoryError(), 1, ["mars: out of memory"]),
        (NotImplementedError("later\x1b"), 2, [f"{__file__}, line ", "broken is not implemented (later\\x1b)"]),
        (NotImplementedError(), 2, ["broken is not implemented; implement it"]),
    ],
)
def test_what_ends_a_command_is_one_escaped_sentence(monkeypatch, capsys, error, status, words):
    def broken(*_):
        raise error

    monkeypatch.setattr(mars, "run", broken)
    assert mars.main(["c1"]) == status
    message = capsys.readouterr().err
    assert all(word in message for word in words) and message.count("\n") == 1, message


def test_the_traceback_of_a_bug_is_escaped(capsys):
    mars._show_bug(ValueError, ValueError("name \x1b[31m"), None)
    assert capsys.readouterr().err == "ValueError: name \\x1b[31m\n"


def test_line_breaks_beside_the_commas_of_a_setting_are_left_out(monkeypatch):
    heard = []
    monkeypatch.setattr(mars, "run", lambda args: heard.append((args.set, args.words)) or 0)
    assert mars.main(["train", "c1", "--set", "classList=\n a,\r\n\tbig b\n,c\n"]) == 0
    assert mars.main(["train", "c1", "--set=classList=a,\nb", "--data", "x, y"]) == 0
    (first, _), (second, words) = heard
    assert (first, second) == (["classList=a,big b,c"], ["classList=a,b"])
    assert words == ["train", "c1", "--set=classList=a,b", "--data", "x, y"], "what the log and hints repeat"
    assert mars.main(["train", "c1", "--set", "classList=a\nb"]) == 2
    assert len(heard) == 2


def test_a_line_break_in_a_word_forges_no_line(capsys):
    assert mars.main([FORGED]) == 2
    assert "\nok" not in capsys.readouterr().err
