"""`incremental`: train a teacher, its student and the methods it is compared with, and print one table.

The methods are in `methods.py`; `study.py` trains and compares them.
"""

import argparse
import logging

from commands.methods import ALL_METHODS, wanted_methods
from commands.options import Command, Parser, add_run_options, number
from commands.setup import load
from config.checks import at_most, both, positive
from config.load import DEFAULT_CFGNAME
from ops.log import RESULT

log = logging.getLogger("mars")

MOST_DRAWS = 1_000


def _add_arguments(parser: Parser) -> None:
    add_run_options(parser)
    parser.add_argument(
        "--draws", metavar="N", default="1",
        help="train on N small splits, each selected at random, for a mean and its interval (1)",
    )  # fmt: skip
    parser.add_argument(
        "--methods", metavar="NAME,NAME",
        help=f"train only these methods; there are {', '.join(ALL_METHODS)}",
    )  # fmt: skip
    parser.add_argument("--ways", dest="methods", metavar="NAME,NAME", help=argparse.SUPPRESS)  # the earlier name
    parser.add_argument("--novel-only", action="store_true", help="the small split labels the new classes only")


def _check(args: argparse.Namespace) -> None:
    check = both(positive, at_most(MOST_DRAWS, "each is a training for every method"))
    args.draws = number("--draws", args.draws, int, check)
    args.cfgname = args.cfgname or DEFAULT_CFGNAME.rpartition(".")[0]  # without its tag: each run adds its own
    wanted_methods(args.methods, args.novel_only)


def _run(args: argparse.Namespace) -> int:
    """Train what is not trained yet, evaluate, and write table, figures and plot into `ROOT/NAME.incremental`."""
    # Mistakes in the CFGNAME and in settings are reported before torch is imported.
    load(args, {**args.settings, "replayImages": 0})
    from commands.study import Study

    study = Study(args, args.settings)
    study.train_teacher()
    runs = {name: [study.learn(name, draw) for draw in study.draws_of(name)] for name in study.wanted}
    log.log(RESULT, "\n%s", study.write(runs))
    if study.cut_short:
        log.log(RESULT, "\n%s\n%s", "\n".join(study.cut_short), study.how_to_continue())
    return 0


INCREMENTAL = Command(
    "train a teacher, its student and the methods it is compared with, for one table",
    "CFGNAME",
    _add_arguments,
    _run,
    _check,
    "Teacher and student are those of the recipe. Table, figures and plot are written to ROOT/NAME.incremental.",
    advice={
        "--nobuf": "incremental continues the runs that exist; remove those that are to be trained again, or give "
        "others a --name"
    },
)
