"""Train one run: the work of `train`, `pipe` and `incremental`, and the command that continues it."""

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
    """Check the data, then train. Returns the checked data, which includes the splits in `also`.

    `trace`: print the size of the values in the first step. Raises `UserError` for faults of the user.
    """
    folder = RunFolder.of(mcfg)
    if mcfg.modelName == "distillation":
        read_teacher(mcfg)  # before minutes are spent on the data
    names = dict.fromkeys((*splits_to_train(mcfg), *also))
    folder.check_is_run_folder()
    # The folder is locked before it is read. If a run is started twice at once, the second start is refused, so that
    # neither resumes or moves the run of the other.
    with RunLock(folder.path) as lock, _explained_interrupt():
        lock.hold()
        is_fresh = mcfg.nobuf or not folder.has_checkpoint()
        mcfg = with_pixel_max(mcfg, None if is_fresh else folder.saved_config())
        data = check(mcfg, list(names), None if mcfg.nobuf else folder.data_check, quiet)
        log_report(data.report)
        validation = mcfg.validationSplitName
        # Before hours are spent: without a validation AP no epoch is the best.
        if mcfg.epochValidation and (reason := reason_without_ap(validation, data.splits[validation])):
            log.warning(
                "%s; so there is no validation AP, no best weights can be chosen, and the last weights are evaluated; "
                "--set validationSplitName=NAME names another split", reason,
            )  # fmt: skip
        # All checks come before this line, so that an error leaves an older run where it is.
        trainer = Trainer(mcfg, data, quiet, report_bad_step, report_first_step if trace else None)
        lock.hold()  # again, because the folder may have been moved
        aside = folder.rename_old_run() if mcfg.nobuf else None
        lock.hold()  # the new folder; refused when another start was faster
        log_to_file(folder.log)
        if aside is not None:
            log.info("the older run is kept in %s", aside)
        trainer.run()
    return data


@contextmanager
def _explained_interrupt() -> Iterator[None]:
    """Add a message to Ctrl-C before or after the epochs, where the trainer has nothing to save and reports nothing."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            str(error) or "interrupted; the same command continues from the last checkpoint"
        ) from None


def report_cut_short(mcfg: ModelConfig, args: Namespace) -> None:
    """Log as the last line that trainMinutes left out epochs, and the command that trains them; else log nothing."""
    if text := cut_short(mcfg):
        log.log(RESULT, "%s; continue with: %s", text, command_to_continue(mcfg, args))


def cut_short(mcfg: ModelConfig) -> str | None:
    """How many epochs trainMinutes left out of a finished training, as text; None when none.

    `mcfg`: the config of the command. The number of trained epochs comes from the newest checkpoint,
    because config.json may be missing or newer than the weights.
    """
    trained = RunFolder.of(mcfg).num_epochs()
    if trained is None:  # no whole checkpoint
        return None
    return verdict(trained - mcfg.startEpoch, mcfg.maxEpoch - mcfg.startEpoch)


def command_to_continue(mcfg: ModelConfig, args: Namespace, name: str | None = None) -> str:
    """The user's own command for a shell in this folder, without a time limit and without --nobuf.

    `name`: a new --name, which replaces the user's.
    """
    words = [word for word in args.words if word not in ("--nobuf", "-nobuf")]
    if args.cfgname is None:
        words.append(DEFAULT_CFGNAME)
    if args.root is None and "MARS_ROOT" in os.environ:  # the variable may be set for this command only
        words += ["--root", mcfg.root]
    if name is not None:
        words += ["--name", name]  # the last --name counts
    without_option = load(Namespace(**{**vars(args), "nobuf": False}), parse_settings(args.set))
    # nobuf in the recipe or behind --set would rename the run instead of continuing it.
    words += ["--set", *(["nobuf=no"] if without_option.nobuf else []), "trainMinutes=none"]
    return _shell_command(words)


def log_next_commands(args: Namespace, image: Path) -> None:
    """Log three commands to try after the demo. `image`: an image of the test split."""
    places = (("--root", args.root or os.environ.get("MARS_ROOT")), ("--name", args.name))
    own = [word for option, value in places if value for word in (option, value)]
    own += ["--set", *args.set] if args.set else []  # among them may be the number of scenes
    steps = (
        (
            "why each object of an image was found or missed",
            ["explain", args.cfgname or DEFAULT_CFGNAME, str(_from_here(image)), *own],
        ),
        ("check your own images and annotations", ["doctor", "voc.nano.full", "--data", "FOLDER"]),
        ("train on them", ["voc.nano.full", "--data", "FOLDER"]),
    )
    log.info("what to try next:")
    for title, words in steps:
        log.info("  %s:\n    %s", title, _shell_command(words))


def _shell_command(words: Sequence[str]) -> str:
    """`python mars.py WORDS` for a shell in this folder, with this Python."""
    return shlex.join([*map(str, map(_from_here, (Path(sys.executable), CODE_DIR / "mars.py"))), *words])


def _from_here(path: Path) -> Path:
    """The path relative to the working directory, if it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
