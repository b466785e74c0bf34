"""Hostile command lines. Each must end with one message and its exit status, never with a traceback.

`make attacks` runs all of them in new processes; `tests/test_hostile_commands.py` runs those that need no training.
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LONG = "a" * 5_000  # longer than any file name (255 bytes) and any path (4,096 bytes)
DIGITS = "9" * 5_000  # Python refuses to convert more than 4,300 digits
NOBODY = "~nosuchuser/x"
NOT_UTF8 = "\udcff"  # how Python shows the byte FF of an argument
FORGED = "a\nok      data    every file was read"
ESCAPE = "\x1b[31mred"


class CommandAttack(NamedTuple):
    """One command line. `{folder}` stands for a folder that contains an empty file `file` and a folder `empty`."""

    words: tuple[str, ...]  # after `python mars.py`
    status: int = 2  # expected exit status
    redirection: str = ""  # shell syntax after the command
    environment: Mapping[str, str] = MappingProxyType({})


def _plain(*words: str) -> CommandAttack:
    return CommandAttack(words)


def _setting(setting: str) -> CommandAttack:
    return CommandAttack(("c1", "--set", setting))


_PATHS = {
    f"{name}: {kind}": _plain(*words, value)
    for name, words in {
        "--data": ("c1", "--data"),
        "--root": ("c1", "--root"),
        "--out of export": ("export", "c1", "--format", "onnx", "--out"),
        "--out of predict": ("predict", "c1", "{folder}/file", "--out"),
        "--out of backbone": ("backbone", "{folder}/file", "--out"),
        "--out of split": ("split", "{folder}/empty", "--shots", "1", "--out"),
        "--weights": ("eval", "c1", "--weights"),
        "--replay": ("doctor", "c1", "--replay"),
        "PATH of predict": ("predict", "c1"),
        "IMAGE of explain": ("explain", "c1"),
        "FILE of backbone": ("backbone",),
        "DIR of split": ("split", "--out", "lists", "--shots", "1"),
    }.items()
    for kind, value in {
        "an unknown user": NOBODY,
        "a very long name": LONG,
        "a very long path": "a/" * 2_500,
        "a file name in a file": "{folder}/file/x",
        "an escape sequence": ESCAPE,
        "a forged line": FORGED,
        "not UTF-8": NOT_UTF8,
        "empty": "",
    }.items()
}

_PATH_FIELDS = {
    f"{field}: an unknown user": _setting(f"{field}={value}")
    for field, value in {
        **dict.fromkeys(
            ("root", "dataDir", "imageDir", "annotationDir", "checkpointModelFile", "teacherModelFile", "classList"),
            NOBODY,
        ),
        "subsetMap": f"train:{NOBODY}",
        "pretrainedBackboneUrl": f"file://{NOBODY}",
    }.items()
}

_NUMBERS = {
    f"{field}: {text[:12]}": _setting(f"{field}={text}")
    for field in (
        "seed", "dcore", "drawnScenes", "inputShape", "regMax", "talTopk", "maxEpoch", "batchSize", "baseLearningRate",
        "gradientClip", "warmupEpochs", "temperature", "optimizerWeightDecay", "trainMinutes", "backboneFreezeEpochs",
    )
    for text in ("-1", str(10**30), "1e308", "nan", "inf", DIGITS)
}  # fmt: skip

COMMAND_ATTACKS: dict[str, CommandAttack] = {
    **_PATHS,
    **_PATH_FIELDS,
    **_NUMBERS,
    "$MARS_ROOT: an unknown user": CommandAttack(("c1",), environment={"MARS_ROOT": NOBODY}),
    "$MARS_ROOT: an escape sequence": CommandAttack(("c1",), environment={"MARS_ROOT": ESCAPE}),
    "--root: a file": _plain("c1", "--root", "{folder}/file"),
    "--data: a file": _plain("voc", "--data", "{folder}/file"),
    "--data: an empty folder": _plain("voc", "--data", "{folder}/empty"),
    "--weights: a folder": _plain("eval", "c1", "--weights", "{folder}/empty"),
    "--weights: an empty file": _plain("eval", "c1", "--weights", "{folder}/file"),
    "--weights: an endless device": _plain("eval", "c1", "--weights", "/dev/zero"),
    "--name: above the root": _plain("c1", "--name", "../x"),
    "--name: two folders": _plain("c1", "--name", "a/b"),
    "--name: very long": _plain("c1", "--name", LONG),
    "--name: a forged line": _plain("c1", "--name", FORGED),
    "--name: empty": _plain("c1", "--name", ""),
    "CFGNAME: very long": _plain(f"c1.{LONG}"),
    "CFGNAME: empty": _plain("train", ""),
    "CFGNAME: an escape sequence": _plain(ESCAPE),
    "CFGNAME: a forged line": _plain(FORGED),
    "CFGNAME: not UTF-8": _plain(NOT_UTF8),
    "CFGNAME: a path": _plain("../../etc/passwd"),
    "option: an escape sequence": _plain("c1", f"--{ESCAPE}"),
    **{f"tag: {tag[:14]}": _plain(f"c1.{tag}") for tag in (
        "cuda@-1", f"cuda@{10**30}", "batch@0", f"batch@{10**15}", f"epochs@{10**15}", f"size@{32 * 10**12}",
        f"seed@{10**19 - 1}", f"workers@{10**9}", f"cuda@{DIGITS}",
    )},
    "a list without end": _setting("backboneFreezeEpochs=0-9999999999"),
    "a list of many numbers": _setting(f"backboneFreezeEpochs={'1,' * 50_000}1-60000"),
    "a list that counts down": _setting("backboneFreezeEpochs=9-0"),
    "many classes": _setting(f"classList={','.join(f'{number:x}' for number in range(20_001))}"),
    "a class with an escape sequence": _setting(f"classList=a,{ESCAPE}"),
    "a class list without end": _setting("classList=/dev/zero"),
    "a dictionary without names": _setting("subsetMap=:"),
    "--draws: very many": _plain("incremental", "c1", "--draws", str(10**9)),
    "--draws: digits": _plain("incremental", "c1", "--draws", DIGITS),
    "--seed of split": _plain("split", "{folder}/empty", "--out", "lists", "--shots", "1", "--seed", str(10**30)),
    "--share of split": _plain("split", "{folder}/empty", "--out", "lists", "--share", "nan"),
    "a closed pipe, --fields": CommandAttack(("--fields",), 0, "| head -1"),
    "a closed pipe, --help": CommandAttack(("--help",), 0, "| head -1"),
    "a closed pipe, a mistake": CommandAttack(("c1.ful",), 2, "2>&1 | true"),
    "stdout closed": CommandAttack(("--fields",), 0, ">&-"),
    "all streams closed": CommandAttack(("c1.ful",), 2, "<&- >&- 2>&-"),
    "a full disk behind stdout, --fields": CommandAttack(("--fields",), 1, ">/dev/full"),
    "a full disk behind stdout, --help": CommandAttack(("--help",), 1, ">/dev/full"),
    "a full disk behind stderr": CommandAttack(("c1.ful",), 2, "2>/dev/full"),
    "an ASCII console, a mistake": CommandAttack(
        ("c1", "--set", "classList=飞机,飞机"), 2, environment={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    ),
}  # fmt: skip


def shell_words(attack: CommandAttack, folder: Path) -> list[str]:
    """The attack as a command for `subprocess`. `pipefail`: bash returns the exit status of Mars in a pipe, too."""
    words = [word.replace("{folder}", str(folder)) for word in attack.words]
    command = shlex.join([sys.executable, str(ROOT / "mars.py"), *words])
    return ["bash", "-c", f"set -o pipefail; {command} {attack.redirection}"]
