"""`export`: write the weights of a run for other programs."""

import argparse
import logging
from pathlib import Path

from commands.options import Command, Parser, add_run_options, add_weights, check_out_file, check_weights
from commands.setup import run_of_weights
from config.errors import UserError
from config.fields import nearest
from config.load import absolute
from ops.log import RESULT

log = logging.getLogger("mars")

FORMATS = ("onnx", "torch", "ultralytics")


def _add_arguments(parser: Parser) -> None:
    add_run_options(parser)
    add_weights(parser)
    parser.add_argument(
        "--format", metavar="FORMAT", help="onnx, torch (torch.export) or ultralytics (a .pt that Ultralytics loads)"
    )
    parser.add_argument(
        "--nms", action="store_true", help="onnx only: include non-maximum suppression, so that detections come out"
    )
    parser.add_argument("--out", metavar="FILE", help="file to write (default: RUN/export/NAME with a fitting suffix)")


def _check(args: argparse.Namespace) -> None:
    if args.format not in FORMATS:
        given = f"--format {args.format}: no such format{nearest(args.format, FORMATS)}; " if args.format else ""
        raise UserError(f"{given}export: --format is missing; add --format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if args.nms and args.format != "onnx":
        raise UserError(f"--nms: works only with --format onnx; leave it out, or use onnx instead of {args.format}")
    check_weights(args)
    check_out_file(args.out)
    if args.out and Path(absolute(args.out)).exists():
        raise UserError(f"--out {absolute(args.out)}: exists already; name another file, or remove it")


def _run(args: argparse.Namespace) -> int:
    mcfg = run_of_weights(args, args.settings)
    from commands.weights import trained_model, weights_of, with_classes_of
    from eval.export import export
    from eval.export_model import SUFFIXES, NmsSettings
    from runs.folder import RunFolder
    from runs.provenance import file_origin, origin_text

    weights = weights_of(mcfg, args.weights)
    if not args.out:
        if args.weights and not weights.path.is_relative_to(mcfg.run_dir):
            raise UserError(
                f"{weights.path}: does not belong to {mcfg.run_dir}; name the file to write with --out FILE"
            )
        RunFolder.of(mcfg).check_is_run_folder()
    mcfg = with_classes_of(weights, mcfg, args.settings)
    model = trained_model(mcfg, weights).cpu()
    default = mcfg.run_dir / "export" / f"{mcfg.runName}{SUFFIXES[args.format]}"
    target = Path(absolute(args.out)) if args.out else default
    nms = NmsSettings(mcfg.scoreThreshold, mcfg.nmsIou, mcfg.maxDetections) if args.nms else None
    origin = origin_text(file_origin(weights.path), with_paths=False)
    report = export(model, args.format, target, tuple(mcfg.classList or ()), mcfg.inputShape, nms, origin)
    log.log(RESULT, "%s", report)
    return 0


EXPORT = Command(
    "write the weights of a run for other programs", "CFGNAME --format FORMAT", _add_arguments, _run, _check
)
