"""`train`: train a run. `pipe`: train it, then evaluate and paint the test split."""

import argparse

from commands.eval import evaluate
from commands.options import Command, Parser, add_run_options
from commands.setup import find_data


def _add_arguments(parser: Parser) -> None:
    add_run_options(parser)
    parser.add_argument(
        "--nobuf", "-nobuf", action="store_true",
        help="start from the first epoch; an older run of that name is renamed and kept",
    )  # fmt: skip
    parser.add_argument(
        "--trace", action="store_true", help="print how large the values of the first step grow, block by block"
    )


def _run(args: argparse.Namespace) -> int:
    evaluates = args.command == "pipe"
    mcfg = find_data(args, args.settings)
    from commands.training import log_next_commands, report_cut_short, train
    from commands.weights import weights_of

    data = train(mcfg, args.quiet, also=(mcfg.testSplitName,) if evaluates else (), trace=args.trace)
    if evaluates:
        evaluate(mcfg, mcfg.testSplitName, weights_of(mcfg), args.quiet, data)
        if mcfg.drawnScenes:
            log_next_commands(args, data.splits[mcfg.testSplitName][0].image_path)
    report_cut_short(mcfg, args)
    return 0


TRAIN = Command("train, or continue a run that was stopped or gets more epochs", "CFGNAME", _add_arguments, _run)
PIPE = Command("train, then evaluate and paint the test split; the default command", "CFGNAME", _add_arguments, _run)
