"""`doctor`: the checks before a long run; and a bundle of a bad step, run again."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from commands.setup import check, find_data, load
from config.errors import UserError
from config.mconfig import ModelConfig
from config.places import absolute
from debug.doctor.checks import examine
from debug.doctor.finding import LOOK, OK, WRONG, Finding
from debug.tracer.bundle import read_bundle, replay
from debug.tracer.report import report_text
from dl.label_selection import splits_to_train
from ops.device import pick_device
from ops.files import write_atomic
from ops.log import RESULT, log_to_file
from ops.text import counted
from runs.folder import RunFolder
from runs.start import with_pixel_max
from train.teacher_file import teacher_file

log = logging.getLogger("mars")

FOLDER, REPORT = "doctor", "report.txt"


def doctor(args: argparse.Namespace, settings: dict[str, Any]) -> int:
    """Print a line for everything that was checked; 0 when nothing is wrong, else 1.

    Files go to RUN/doctor only; no lock is taken, so that a run may train meanwhile. With `--replay` a bundle is run
    again instead. Raises `UserError` for mistakes in the command, such as a file that is not there; whatever ends it
    early, what was found before is in the report.
    """
    if args.replay:
        return _replay(Path(absolute(args.replay)), settings)
    # As if afresh: what an older run in the folder remembers of its data is neither read nor written.
    args = argparse.Namespace(**{**vars(args), "nobuf": True})
    mcfg = find_data(args, load(args, settings), settings)
    folder = RunFolder.of(mcfg).path / FOLDER
    mcfg = with_pixel_max(mcfg, _begun_config(mcfg))
    if mcfg.modelName == "distillation":
        teacher_file(mcfg)  # before minutes are spent on the data
    log_to_file(folder / "mars.log")
    findings: list[Finding] = []
    try:
        findings.extend(map(_say, _examined(mcfg, folder, args.quiet)))
        findings.append(_say(_summary(findings, folder)))
    except Exception as error:  # `mars.py` says it
        findings.append(Finding(WRONG, "in all", f"the checks ended here: {error}"))
        raise
    finally:
        write_atomic(folder / REPORT, "".join(f"{finding}\n" for finding in findings))
    return int(any(finding.level == WRONG for finding in findings))


def _begun_config(mcfg: ModelConfig) -> dict[str, Any] | None:
    """The config of the run that would go on; None without one, and where it cannot be read, which a finding says."""
    with suppress(UserError):
        return RunFolder.of(mcfg).saved_config()
    return None


def _examined(mcfg: ModelConfig, folder: Path, quiet: bool) -> Iterator[Finding]:
    """Every finding, as it comes."""
    try:
        data = check(mcfg, splits_to_train(mcfg), folder / "data-check.json", quiet)
    except UserError as error:
        yield Finding(WRONG, "data", str(error))
        return
    # one process reads, and nothing is kept in memory: a few batches are all that is looked at
    yield from examine(mcfg.with_values(dcore=0, cacheImages="none"), data, folder)


def _replay(path: Path, settings: dict[str, Any]) -> int:
    """Run a bad step again and print its page; 1 when it is bad again, 0 when it is not, which the page says."""
    bundle = read_bundle(path)
    found = replay(bundle, pick_device(settings["device"]) if "device" in settings else None)
    log.log(RESULT, "%s", report_text(found, bundle.message).rstrip("\n"))
    if not found.is_reproduced:
        log.log(RESULT, "%s: the step is not bad here, so it is not reproduced", path)
    return int(found.is_reproduced)


def _say(finding: Finding) -> Finding:
    log.log(RESULT, "%s", finding)
    return finding


def _summary(findings: list[Finding], folder: Path) -> Finding:
    wrong, look = ([one.subject for one in findings if one.level == level] for level in (WRONG, LOOK))
    where = f"the report and its pictures are in {folder}"
    if wrong:
        names = ", ".join(dict.fromkeys(wrong))
        return Finding(WRONG, "in all", f"{counted(len(wrong), 'finding')} to mend before training ({names}); {where}")
    if look:
        names = ", ".join(dict.fromkeys(look))
        return Finding(
            LOOK, "in all", f"nothing is wrong, {counted(len(look), 'finding')} to look at ({names}); {where}"
        )
    return Finding(OK, "in all", f"nothing is wrong; {where}")
