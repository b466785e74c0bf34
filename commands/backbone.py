"""`backbone`: write the backbone of a whole network's weights as a file of its own."""

import argparse
import logging
from pathlib import Path

from commands.options import PROGRAM, Command, Parser, add_console_options, check_out_file
from config.errors import UserError
from config.load import absolute
from ops.log import RESULT

log = logging.getLogger("mars")


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE.pt", help="weights of a whole network")
    parser.add_argument(
        "--out", metavar="FILE", help="file to write (default: in resources/pretrained, where recipes look for it)"
    )
    parser.set_defaults(set=[])
    add_console_options(parser)


def _check(args: argparse.Namespace) -> None:
    if args.file is None:
        raise UserError(f"backbone: FILE.pt is missing; write {PROGRAM} backbone FILE.pt, and --out for another place")
    check_out_file(args.out)


def _run(args: argparse.Namespace) -> int:
    from model.weightsfile import read_weights
    from runs.provenance import file_origin, origin_text
    from runs.start import PRETRAINED, write_backbone

    source = Path(absolute(args.file))
    weights = read_weights(source)
    phase = weights.phase or "unknown"  # write_backbone refuses a file without a backbone of Mars
    target = Path(absolute(args.out or PRETRAINED / "backbone" / f"backbone_{phase}.pth"))
    count = write_backbone(weights, target)
    log.log(RESULT, "%s: %d tensors of the %s backbone of %s", target, count, phase, origin_text(file_origin(source)))
    log.log(RESULT, "to start from it: --set pretrainedBackboneUrl=file://%s", target)
    return 0


BACKBONE = Command(
    "write the backbone of a weights file as a file to start from", "FILE.pt", _add_arguments, _run, _check
)
