"""The command line: find the command, run it, and turn its errors into a message and an exit status.

`python mars.py --help` lists the commands; each is a file in `commands/`. Modules that need torch are imported where
they are used, so that the help and mistakes in the command are answered at once.
"""

import argparse
import shlex
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

from commands.arguments import COMMANDS, read_arguments
from commands.options import fields_text
from config.errors import UserError, out_of_memory_message
from ops.log import end_log, log, protect_console, start_log
from ops.text import escaped

# Libraries that `make setup` installs. Any other missing module is a bug of Mars or of a recipe.
_REQUIRED = (
    "torch",
    "torchvision",
    "cv2",
    "numpy",
    "PIL",
    "jaxtyping",
    "tqdm",
    "matplotlib",
    "faster_coco_eval",
    "yaml",
    "defusedxml",
)


def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit status: 0 done, 2 a mistake of the user, 1 another reason with a message.

    Other reasons are a finding of the doctor, a non-finite step, too little memory, and an interruption. Bugs are
    raised.
    """
    try:
        return run(read_arguments(arguments))
    except UserError as error:
        _say(str(error))
        return 2
    except NotImplementedError as error:  # unfinished code of a user, or an operation that torch lacks
        log.debug("stopped by a part that is not implemented", exc_info=True)
        _say(_unfinished(error))
        return 2
    except ModuleNotFoundError as error:
        if error.name not in _REQUIRED:
            raise
        _say(f"{error.name} is not installed in {sys.executable}; `make setup` creates .venv with all libraries")
        return 1
    except FloatingPointError as error:  # the message says where a value became non-finite
        _say(str(error))
        from train.guard import BadStep

        if isinstance(error, BadStep) and error.report:  # the operation that first produced a non-finite value
            print(f"\n{escaped(error.report)}", file=sys.stderr, end="")
        return 1
    except KeyboardInterrupt as error:  # Ctrl-C or SIGTERM; a training is saved and the message says where
        _say(str(error) or "interrupted")
        return 1
    except Exception as error:
        if (text := out_of_memory_message(error)) is None:
            log.exception("stopped by an error of the program")
            raise
        log.debug("place where memory ran out", exc_info=True)
        _say(f"{text}; files written so far are kept")
        return 1
    finally:
        end_log()


def run(args: argparse.Namespace) -> int:
    """Run the command; its exit status."""
    if args.fields:
        print(fields_text())
        return 0
    command = COMMANDS[args.command]
    start_log(args.quiet or command.prints_results_only)
    log.debug("python mars.py %s", shlex.join(args.words))
    return command.run(args)


def _say(text: str) -> None:
    log.error("%s", text)
    print(f"mars: {escaped(text)}", file=sys.stderr)


def _unfinished(error: NotImplementedError) -> str:
    """The message for code that is not implemented, with its place: the last frame outside of libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    text = str(error).partition("\n")[0]
    return (
        f"{own[-1].filename}, line {own[-1].lineno}: {own[-1].name} is not implemented{f' ({text})' if text else ''}; "
        "implement it, or choose settings that do not need it"
    )


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug without control characters: its message may hold a name from the user's data."""
    print(escaped("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")


def command() -> int:
    """Run the command of this process; its exit status, which is 1 where stdout could not be written."""
    sys.excepthook = _show_bug
    out = protect_console()
    try:
        status = main(sys.argv[1:])
    except SystemExit as done:  # argparse raises it after the help
        status = int(done.code or 0)
    sys.stdout.flush()
    # A closed pipe is no failure: `| head -1` closes it on purpose.
    if out.failure is None or isinstance(out.failure, BrokenPipeError):
        return status
    _say(f"stdout: cannot be written ({out.failure.strerror}); free some space, or redirect it to another place")
    return status or 1


if __name__ == "__main__":
    sys.exit(command())
