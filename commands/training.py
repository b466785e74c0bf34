"""`train`, and the training of `pipe`."""

import logging
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from commands.setup import check, load, log_report
from config.load import CODE_DIR, DEFAULT_CFGNAME, parse_settings
from config.mconfig import ModelConfig
from debug.tracer.report import report_bad_step, report_first_step
from dl.check import CheckedData
from dl.label_selection import splits_to_train
from eval.report import reason_without_ap
from ops.log import RESULT, log_to_file
from runs.folder import RunFolder
from runs.lock import RunLock
from runs.start import with_pixel_max
from train.budget import verdict
from train.teacher_file import read_teacher
from train.trainer import Trainer

log = logging.getLogger("mars")


def train(mcfg: ModelConfig, quiet: bool, also: Sequence[str] = (), trace: bool = False) -> CheckedData:
    """Check the data, then train; the checked data, of the splits in `also` too. `trace`: the first step is traced."""
    folder = RunFolder.of(mcfg)
    if mcfg.modelName == "distillation":
        read_teacher(mcfg)  # before minutes are spent on the data
    names = dict.fromkeys((*splits_to_train(mcfg), *also))
    folder.check_is_run_folder()
    # The lock comes before any look at the folder: of two starts at once the second is refused, so that neither resumes
    # nor moves the run of the other.
    with RunLock(folder.path) as lock, _saying_how_to_go_on():
        lock.hold()
        is_fresh = mcfg.nobuf or not folder.has_checkpoint()
        mcfg = with_pixel_max(mcfg, None if is_fresh else folder.saved_config())
        data = check(mcfg, list(names), None if mcfg.nobuf else folder.data_check, quiet)
        log_report(data.report)
        _warn_without_figures(mcfg, data)
        # Whatever is wrong so far leaves an older run where it is.
        trainer = Trainer(mcfg, data, quiet, report_bad_step, report_first_step if trace else None)
        lock.hold()  # again, because the folder may have been moved
        aside = folder.rename_old_run() if mcfg.nobuf else None
        lock.hold()  # of the new folder; refused when another start was faster
        log_to_file(folder.log)
        if aside is not None:
            log.info("the older run is kept in %s", aside)
        trainer.run()
    return data


def _warn_without_figures(mcfg: ModelConfig, data: CheckedData) -> None:
    """Before hours are spent: no AP on the validation split means that no epoch is the best."""
    name = mcfg.validationSplitName
    if mcfg.epochValidation and (reason := reason_without_ap(name, data.splits[name])):
        log.warning(
            "%s; so there is no validation AP, no best weights can be chosen, and the last weights are evaluated; "
            "--set validationSplitName=NAME names another split", reason,
        )  # fmt: skip


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

    `mcfg`: the config of the command, with all epochs. The newest checkpoint says how many were trained: a config.json
    may be missing, or may be newer than the weights.
    """
    trained = RunFolder.of(mcfg).saved_config()
    if trained is None:  # no whole checkpoint
        return None
    return verdict(trained["maxEpoch"] - mcfg.startEpoch, mcfg.maxEpoch - mcfg.startEpoch)


def command_to_continue(mcfg: ModelConfig, args: Namespace, arguments: Sequence[str], name: str | None = None) -> str:
    """The user's own command, for a shell in this folder, without a time limit and without starting afresh.

    `name`: a new --name, which replaces the one in `arguments`.
    """
    words = [word for word in arguments if word not in ("--nobuf", "-nobuf")]
    if args.cfgname is None:
        words.append(DEFAULT_CFGNAME)
    if args.root is None and "MARS_ROOT" in os.environ:  # may have been set for that one command
        words += ["--root", mcfg.root]
    if name is not None:
        words += ["--name", name]  # the last one counts
    program = [_from_here(Path(sys.executable)), _from_here(CODE_DIR / "mars.py")]
    return shlex.join([*program, *words, "--set", *_sets_nobuf(args), "trainMinutes=none"])


def _sets_nobuf(args: Namespace) -> list[str]:
    """The setting that is needed where the recipe or --set, not only the flag, starts afresh: else the run is lost."""
    without_flag = load(Namespace(**{**vars(args), "nobuf": False}), parse_settings(args.set))
    return ["nobuf=no"] if without_flag.nobuf else []


def _from_here(path: Path) -> str:
    """Short for what lies below the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
