"""`doctor`: the checks before a long run; `doctor --replay`: run the bundle of a non-finite step again."""

import argparse
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from commands.options import Command, Parser, add_run_options
from commands.setup import check, find_data
from config.errors import UserError
from config.load import absolute
from config.mconfig import ModelConfig
from debug.doctor.finding import LOOK, OK, WRONG, Finding
from ops.files import write_atomic
from ops.log import RESULT, log_to_file
from ops.text import counted

log = logging.getLogger("mars")

FOLDER, REPORT = "doctor", "report.txt"


def _add_arguments(parser: Parser) -> None:
    add_run_options(parser)
    parser.add_argument(
        "--replay", metavar="FILE",
        help="run the bundle of a non-finite step again, and print the operation that first produced the value",
    )  # fmt: skip


def _check(args: argparse.Namespace) -> None:
    if args.replay is None:
        return
    if unused := [name for name in ("data", "name") if getattr(args, name)]:
        raise UserError(f"--{unused[0]}: --replay takes data and config from the bundle; leave it out")
    if unused := [word for word in args.set if word.partition("=")[0].strip() != "device"]:
        raise UserError(
            f"--set {unused[0]}: --replay takes the config from the bundle; only the device may be another "
            "(--set device=cpu)"
        )
    if not os.path.isfile(absolute(args.replay)):
        raise UserError(f"{absolute(args.replay)}: no such bundle; training writes one into RUN/health")


def _run(args: argparse.Namespace) -> int:
    """Print one line per check; 0 when none found an error, else 1.

    Files go to RUN/doctor only. No lock is taken, so that a run may train meanwhile. If a check ends early, the
    findings before it are in the report.
    """
    if args.replay:
        return _replay(Path(absolute(args.replay)), args.settings)
    # As if started afresh: the record of its data that an older run left is neither read nor written.
    args = argparse.Namespace(**{**vars(args), "nobuf": True})
    mcfg = find_data(args, args.settings)
    from runs.folder import RunFolder
    from runs.start import with_pixel_max
    from train.teacher_file import teacher_file

    folder = RunFolder.of(mcfg).path / FOLDER
    begun = None
    with suppress(UserError):  # a config that cannot be read is a finding of its own
        begun = RunFolder.of(mcfg).saved_config()
    mcfg = with_pixel_max(mcfg, begun)
    if mcfg.modelName == "distillation":
        teacher_file(mcfg)  # before minutes are spent on the data
    log_to_file(folder / "mars.log")
    findings: list[Finding] = []
    try:
        for finding in _findings(mcfg, folder, args.quiet):
            findings.append(finding)
            log.log(RESULT, "%s", finding)
        findings.append(_summary(findings, folder))
        log.log(RESULT, "%s", findings[-1])
    except Exception as error:  # `mars.py` prints its message
        findings.append(Finding(WRONG, "in all", f"the checks ended here: {error}"))
        raise
    finally:
        write_atomic(folder / REPORT, "".join(f"{finding}\n" for finding in findings))
    return int(any(finding.level == WRONG for finding in findings))


def _findings(mcfg: ModelConfig, folder: Path, quiet: bool) -> Iterator[Finding]:
    """The result of each check, as soon as it is known."""
    from debug.doctor.checks import examine
    from dl.label_selection import splits_to_train

    try:
        data = check(mcfg, splits_to_train(mcfg), folder / "data-check.json", quiet)
    except UserError as error:
        yield Finding(WRONG, "data", str(error))
        return
    # No loader processes and no image cache, because the checks read a few batches only.
    yield from examine(mcfg.with_values(dcore=0, cacheImages="none"), data, folder)


def _replay(path: Path, settings: dict[str, Any]) -> int:
    """Run a bundled step again and print its report; 1 when it is non-finite again, else 0."""
    from debug.tracer.bundle import read_bundle, replay
    from debug.tracer.report import report_text
    from ops.device import pick_device

    bundle = read_bundle(path)
    found = replay(bundle, pick_device(settings["device"]) if "device" in settings else None)
    log.log(RESULT, "%s", report_text(found, bundle.message).rstrip("\n"))
    if not found.is_reproduced:
        log.log(RESULT, "%s: the step is finite here, so the problem is not reproduced", path)
    return int(found.is_reproduced)


def _summary(findings: list[Finding], folder: Path) -> Finding:
    place = f"the report and its pictures are in {folder}"
    for level, text in ((WRONG, "{} to correct before training"), (LOOK, "nothing is wrong, {} to look at")):
        subjects = [finding.subject for finding in findings if finding.level == level]
        if subjects:
            count = text.format(counted(len(subjects), "finding"))
            return Finding(level, "in all", f"{count} ({', '.join(dict.fromkeys(subjects))}); {place}")
    return Finding(OK, "in all", f"nothing is wrong; {place}")


DOCTOR = Command(
    "check data, config and network before a long run, in about a minute",
    "CFGNAME",
    _add_arguments,
    _run,
    _check,
    "The exit status is 1 when something is wrong. The report and pictures are written to RUN/doctor.",
    prints_results_only=True,
)
