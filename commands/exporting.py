"""`export`: a run's weights for other programs."""

import argparse
import logging
from pathlib import Path
from typing import Any

from commands.weights import run_of_weights, trained_model, weights_of, with_classes_of
from config.errors import UserError
from config.places import absolute
from eval.export import export
from eval.export_model import SUFFIXES, NmsSettings
from ops.log import RESULT
from runs.folder import RunFolder
from runs.origin import file_origin, origin_text_without_paths

log = logging.getLogger("mars")


def export_weights(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Write the weights in the format that was asked for, checked against the network that they are of."""
    mcfg = run_of_weights(args, settings)
    path = weights_of(mcfg, args.weights)
    if args.weights and not args.out and not path.is_relative_to(mcfg.run_dir):
        raise UserError(f"{path}: is not of {mcfg.run_dir}; --out FILE says where the result belongs")
    if not args.out:
        RunFolder.of(mcfg).check_is_run_folder()
    mcfg = with_classes_of(path, mcfg, settings)
    model = trained_model(mcfg, path).cpu()
    default = mcfg.run_dir / "export" / f"{mcfg.runName}{SUFFIXES[args.format]}"
    target = Path(absolute(args.out)) if args.out else default
    nms = NmsSettings(mcfg.scoreThreshold, mcfg.nmsIou, mcfg.maxDetections) if args.nms else None
    origin = origin_text_without_paths(file_origin(path))
    report = export(model, args.format, target, tuple(mcfg.classList or ()), mcfg.inputShape, nms, origin)
    log.log(RESULT, "%s", report)
