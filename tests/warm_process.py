"""`python mars.py ...` in a process of its own that starts with the large libraries already imported.

A server imports them once; each command then runs in a copy (fork) of that server. Where the system has no fork, a
command is an ordinary new process.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = ["torch", "torchvision.ops", "cv2", "commands.study", "debug.doctor.checks", "debug.explain"]
SECONDS = 600  # only a command that hangs takes longer, however busy the machine is


def run_mars(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess:
    """Run one command in `folder`; its exit status and what it wrote to stdout and stderr."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return run_mars_anew(arguments, folder, environment)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    out, err = folder / ".stdout", folder / ".stderr"
    process = context.Process(target=_command, args=(list(arguments), folder, dict(environment), out, err))
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:  # else it would be waited for when pytest ends
        process.kill()
        process.join()
        raise AssertionError(f"still running after {SECONDS} seconds: {arguments}")
    texts = [file.read_text(encoding="utf-8") for file in (out, err)]
    out.unlink(), err.unlink()
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def run_mars_anew(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess:
    """The same in a new interpreter."""
    command = [sys.executable, str(ROOT / "mars.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=SECONDS, check=False
    )


def _command(arguments: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(ROOT / "mars.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")
