"""`backbone`: the backbone of a whole network's weights as a file of its own."""

import argparse
import logging
from pathlib import Path

from config.places import absolute
from model.weightsfile import read_weights
from ops.log import RESULT
from runs.origin import file_origin, origin_text
from runs.start import PRETRAINED, write_backbone

log = logging.getLogger("mars")


def convert_backbone(args: argparse.Namespace) -> None:
    """Write the backbone file of the weights that were named, where recipes look for it or to `--out`."""
    source = Path(absolute(args.paths[0]))
    phase = read_weights(source).phase or "unknown"  # a file without a backbone of ours is refused before it is written
    target = Path(absolute(args.out or PRETRAINED / "backbone" / f"backbone_{phase}.pth"))
    count = write_backbone(source, target)
    log.log(RESULT, "%s: %d tensors of the %s backbone of %s", target, count, phase, origin_text(file_origin(source)))
    log.log(RESULT, "to start from it: --set pretrainedBackboneUrl=file://%s", target)
