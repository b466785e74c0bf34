"""`train`, and the training of `pipe`."""

import json
import logging
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from commands.setup import check
from config.load import CODE_DIR, DEFAULT_CFGNAME
from config.mconfig import ModelConfig
from dl.check import CheckedData
from dl.lessons import splits_to_train
from ops.log import RESULT, keep_log
from train.budget import verdict
from train.lock import RunLock
from train.runfolder import RunFolder
from train.teacher import read_teacher
from train.trainer import Trainer

log = logging.getLogger("mars")


def train(mcfg: ModelConfig, quiet: bool, also: Sequence[str] = (), trace: bool = False) -> CheckedData:
    """Check the data, then train; the checked data, of the splits in `also` too. `trace`: the first step is traced."""
    folder = RunFolder.of(mcfg)
    if mcfg.modelName == "distillation":
        read_teacher(mcfg)  # before minutes are spent on the data
    names = dict.fromkeys((*splits_to_train(mcfg), *also))
    # The lock: a run that another process is at work on is neither resumed nor moved.
    with RunLock(folder.path) as lock, _saying_how_to_go_on():
        data = check(mcfg, list(names), None if mcfg.nobuf else folder.data_check, quiet)
        log.info("%s", data.report.table())
        # Whatever is wrong so far leaves an older run where it is.
        trainer = Trainer(mcfg, data, quiet=quiet, trace_first=trace)
        if folder.path.exists():
            lock.hold()  # another run may have begun it while the data was checked
        aside = folder.move_aside() if mcfg.nobuf else None
        lock.hold()  # of the folder that is there now
        keep_log(folder.log)
        if aside is not None:
            log.info("the older run is kept in %s", aside)
        trainer.run()
    return data


@contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    """Ctrl-C before or after the epochs, where the trainer has nothing to save and says nothing."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            str(error) or "interrupted; the same command goes on from what was saved last"
        ) from None


def report_cut_short(mcfg: ModelConfig, args: Namespace, arguments: Sequence[str]) -> None:
    """Log, as the last line, that trainMinutes left out epochs, and the command that trains them; else nothing."""
    if text := cut_short(mcfg):
        log.log(RESULT, "%s; continue with: %s", text, command_to_continue(mcfg, args, arguments))


def cut_short(mcfg: ModelConfig) -> str | None:
    """How much of a finished training trainMinutes left out; None when nothing.

    `mcfg`: the config of the command, with all epochs; the run's folder tells how many were trained.
    """
    trained = json.loads(RunFolder.of(mcfg).config.read_text(encoding="utf-8"))["maxEpoch"]
    return verdict(trained - mcfg.startEpoch, mcfg.maxEpoch - mcfg.startEpoch)


def command_to_continue(mcfg: ModelConfig, args: Namespace, arguments: Sequence[str]) -> str:
    """The user's own command, for a shell in this folder, without a time limit and without starting afresh."""
    words = [word for word in arguments if word not in ("--nobuf", "-nobuf")]
    if args.cfgname is None:
        words.append(DEFAULT_CFGNAME)
    if args.root is None and "MARS_ROOT" in os.environ:  # may have been set for that one command
        words += ["--root", mcfg.root]
    program = [_from_here(Path(sys.executable)), _from_here(CODE_DIR / "mars.py")]
    return shlex.join([*program, *words, "--set", "trainMinutes=none"])


def _from_here(path: Path) -> str:
    """Short for what lies below the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
