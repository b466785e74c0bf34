"""`augment`: a picture of augmented training images with their boxes, to check the augmentation before a training."""

import argparse
from pathlib import Path

from commands.options import Command, Parser, add_run_options, check_out_file
from commands.setup import check, find_data
from config.errors import UserError
from config.load import absolute
from ops.log import RESULT, log

MOST = 100  # images on one sheet; more are too small to see anything


def _add_arguments(parser: Parser) -> None:
    add_run_options(parser)
    parser.add_argument("--count", type=int, default=16, metavar="N", help="number of images (default: 16)")
    parser.add_argument("--out", metavar="FILE", help="the picture (default: augmented.jpg in the folder of the run)")


def _check(args: argparse.Namespace) -> None:
    if not 1 <= args.count <= MOST:
        raise UserError(f"--count {args.count}: must be from 1 to {MOST}")
    check_out_file(args.out)


def _run(args: argparse.Namespace) -> int:
    """Paint the first training images as the network gets them in the first epoch."""
    mcfg = find_data(args, args.settings)
    import numpy as np

    from dl.label_selection import REPLAYED_SPLIT
    from dl.loader import build_loader
    from eval.painter import MarkedObject, class_colour, contact_sheet, paint_objects, write_jpeg
    from runs.folder import RunFolder

    split = mcfg.trainSplitName
    replayed = [REPLAYED_SPLIT] if mcfg.replayImages else []
    splits = check(mcfg, [split, *replayed], None, args.quiet).splits
    mcfg = mcfg.with_values(dcore=0, cacheImages="none")
    replay_from = [annotation for name in replayed for annotation in splits[name]]
    dataset = build_loader(mcfg, split, splits[split], replay_from=replay_from).dataset
    names, no_points = tuple(mcfg.classList or ()), (np.zeros((0, 2)), np.zeros(0))
    samples = [dataset[mcfg.startEpoch, index] for index in range(min(args.count, len(dataset)))]
    painted = []
    for sample in samples:
        objects = [
            MarkedObject(tuple(box), names[label], class_colour(label), *no_points)
            for box, label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True)
        ]
        painted.append(paint_objects(sample.image, objects))
    out = Path(absolute(args.out)) if args.out else RunFolder.of(mcfg).path / "augmented.jpg"
    write_jpeg(out, contact_sheet(painted))
    num_boxes = sum(len(sample.boxes) for sample in samples)
    log.log(RESULT, "%d images of the first epoch with %d boxes: %s", len(samples), num_boxes, out)
    return 0


AUGMENT = Command(
    "paint augmented training images with their boxes",
    "CFGNAME",
    _add_arguments,
    _run,
    _check,
    "The first images of the data set, exactly as the network gets them in the first epoch.",
)
