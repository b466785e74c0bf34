"""The command line: pick a mode, load the config, hand over. `python mars.py --help` shows what there is.

Whatever needs torch is imported where it is used, so that the help and a mistake in the command answer at once.
"""

import argparse
import shlex
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from commands.setup import find_data, load
from config.arguments import read_arguments, without_line_breaks
from config.errors import UserError, out_of_memory_message
from config.help import fields_text
from config.load import parse_settings
from ops.log import end_log, log, protect_console, start_log
from ops.text import escaped

# modes that find their configs themselves
OF_THEIR_OWN = ("predict", "export", "backbone", "split", "incremental", "doctor", "explain")


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit status: 0 done, 2 the user's mistake, 1 for all else that ends with a sentence.

    That is the doctor's finding, a bad step, memory that ran out, an interruption. Bugs are raised.
    """
    words = list(map(without_line_breaks, arguments))
    try:
        return run(read_arguments(words), words)
    except UserError as error:
        _say(str(error))
        return 2
    except NotImplementedError as error:  # a part that a user has begun to write, or an operation that torch lacks
        log.debug("stopped by a part that is not implemented", exc_info=True)
        _say(_unfinished(error))
        return 2
    except ModuleNotFoundError as error:
        if error.name not in (
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
        ):
            raise
        _say(f"{error.name} is not installed in {sys.executable}; `make setup` makes .venv, which has all")
        return 1
    except FloatingPointError as error:  # the numbers broke, not the program: the sentence says where
        _say(str(error))
        if page := _page_of(error):
            print(f"\n{escaped(page)}", file=sys.stderr, end="")
        return 1
    except KeyboardInterrupt as error:  # of a training, Ctrl-C or SIGTERM: it is saved, and the text says where
        _say(str(error) or "interrupted")
        return 1
    except Exception as error:
        if (text := out_of_memory_message(error)) is None:
            log.exception("stopped by an error of the program")
            raise
        log.debug("where memory ran out", exc_info=True)
        _say(f"{text}; what was written stays")
        return 1
    finally:
        end_log()


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Carry out one command; its exit status."""
    if args.fields:
        print(fields_text())
        return 0
    settings = parse_settings(args.set)
    mcfg = load(args, settings) if args.mode not in OF_THEIR_OWN else None
    start_log(args.quiet or args.mode == "doctor")  # whose every line begins with ok, look or wrong
    log.debug("python mars.py %s", shlex.join(arguments))
    if mcfg is None:
        return _run_of_its_own(args, settings, arguments)
    if args.mode == "eval":
        from commands.evaluation import evaluate
        from commands.weights import as_trained, weights_of

        settings = {**as_trained(weights_of(mcfg, args.weights), settings), **settings}
        mcfg = find_data(args, mcfg, settings)
        evaluate(mcfg, args.split or mcfg.testSplitName, args.weights, args.quiet)
        return 0
    mcfg = find_data(args, mcfg, settings)
    from commands.training import report_cut_short, train

    data = train(mcfg, args.quiet, also=() if args.mode == "train" else (mcfg.testSplitName,), trace=args.trace)
    if args.mode == "pipe":
        from commands.evaluation import evaluate

        evaluate(mcfg, mcfg.testSplitName, None, args.quiet, data)
    report_cut_short(mcfg, args, arguments)
    return 0


def _say(text: str) -> None:
    log.error("%s", text)
    print(f"mars: {escaped(text)}", file=sys.stderr)


def _unfinished(error: NotImplementedError) -> str:
    """Where the program reached a part that is not implemented, by the last line that is no library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    text = str(error).partition("\n")[0]
    return (
        f"{own[-1].filename}, line {own[-1].lineno}: {own[-1].name} is not implemented{f' ({text})' if text else ''}; "
        "write this part, or choose settings that do without it"
    )


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback of a bug, without control characters: its message may hold a name out of the user's data."""
    print(escaped("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")


def _command() -> int:
    """Run the command of this process; its exit status, which is 1 where stdout could not take the results."""
    sys.excepthook = _show_bug
    out = protect_console()
    try:
        status = main(sys.argv[1:])
    except SystemExit as done:  # of argparse, after the help
        status = int(done.code or 0)
    sys.stdout.flush()
    # A closed pipe is the wish of whoever reads: `| head -1`.
    if out.failure is None or isinstance(out.failure, BrokenPipeError):
        return status
    _say(f"stdout: cannot be written ({out.failure.strerror}); free some space, or send it elsewhere")
    return status or 1


def _page_of(error: FloatingPointError) -> str:
    """Where the bad value of a step was born, when that was traced; it is in the run's health folder and log, too."""
    from train.guard import BadStep

    return error.report if isinstance(error, BadStep) else ""


def _run_of_its_own(args: argparse.Namespace, settings: dict[str, Any], arguments: Sequence[str]) -> int:
    if args.mode == "doctor":
        from commands.doctor import doctor

        return doctor(args, settings)
    if args.mode == "explain":
        from commands.explain import explain

        explain(args, settings)
    elif args.mode == "predict":
        from commands.prediction import predict

        predict(args, settings)
    elif args.mode == "export":
        from commands.exporting import export_weights

        export_weights(args, settings)
    elif args.mode == "split":
        from commands.splitting import split

        split(args, settings)
    elif args.mode == "incremental":
        from commands.incremental import incremental

        incremental(args, settings, arguments)
    else:
        from commands.backbone import convert_backbone

        convert_backbone(args)
    return 0


if __name__ == "__main__":
    sys.exit(_command())
