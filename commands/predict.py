"""`predict`: detect objects on files, folders and patterns. No data set is needed."""

import argparse
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

from commands.options import (
    PROGRAM,
    Command,
    Parser,
    add_run_options,
    add_weights,
    check_out_folder,
    check_weights,
)
from commands.setup import image_folders, refuse_in_data, refuse_run_in_data, run_of_weights
from config.errors import UserError
from config.load import absolute
from config.recipes import recipe_names
from dl.files import IMAGE_SUFFIXES
from ops.log import RESULT, ProgressBar, log_to_file

log = logging.getLogger("mars")


def _add_arguments(parser: Parser) -> None:
    add_run_options(parser)
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="image files, folders (with all folders below) and 'patterns'"
    )
    add_weights(parser)
    parser.add_argument("--out", metavar="DIR", help="folder for the results (default: RUN/predict/NNN)")


def _check(args: argparse.Namespace) -> None:
    form = f"{PROGRAM} predict CFGNAME PATH..."
    if args.cfgname is None:
        raise UserError(f"predict: CFGNAME and PATH are missing; write {form}")
    first = args.cfgname
    is_image = Path(first).suffix.lower() in IMAGE_SUFFIXES
    looks_like_path = is_image or re.search(r"[/\\*?\[]", first) or os.path.exists(first)
    if looks_like_path and first.partition(".")[0] not in recipe_names():
        raise UserError(f"{first}: a path, but the CFGNAME comes first: {PROGRAM} predict CFGNAME {first}")
    if not args.paths:
        raise UserError(
            f"predict {first}: PATH is missing; write {PROGRAM} predict {first} PATH... (files, folders, patterns)"
        )
    check_weights(args)
    check_out_folder(args.out)


def _run(args: argparse.Namespace) -> int:
    mcfg = run_of_weights(args, args.settings)
    from commands.weights import trained_model, weights_file, with_classes_of
    from eval.predict import (
        PAINTED,
        PredictJob,
        find_images,
        next_numbered_folder,
        predict_files,
        refuse_overwriting_files,
    )
    from eval.predictor import Predictor
    from model.weightsfile import read_weights
    from ops.device import usable_cores
    from runs.folder import RunFolder

    out = Path(absolute(args.out)) if args.out else None
    earlier = mcfg.run_dir / "predict"
    path = weights_file(mcfg, args.weights)
    files = find_images(args.paths, out / PAINTED if out else earlier)
    weights = read_weights(path)
    # Painted copies must not lie where training images are read.
    trained_with = weights.config or {}
    folders = [args.data, trained_with.get("dataDir"), *image_folders(trained_with)]
    if out is None:
        RunFolder.of(mcfg).check_is_run_folder()
        refuse_run_in_data(mcfg, folders, ", or give a folder outside of it with --out")
    else:
        refuse_in_data(out, folders, f"--out {out}", "give a folder outside of it with --out")
    paint_conf = mcfg.paintConf if args.settings.get("paintImages", True) else None
    if out:
        refuse_overwriting_files(out, files, paints=paint_conf is not None)
    mcfg = with_classes_of(weights, mcfg, args.settings)
    predictor = Predictor.from_config(mcfg, trained_model(mcfg, weights))
    num_threads = max(1, min(8, usable_cores()) if mcfg.dcore is None else mcfg.dcore)
    job = PredictJob(
        mcfg.inputShape, tuple(mcfg.classList or ()), mcfg.batchSize, num_threads, paint_conf, mcfg.pixelMax
    )
    folder = out or next_numbered_folder(earlier)
    try:
        with ProgressBar("predicting", args.quiet) as bar:
            summary = predict_files(predictor, files, folder, job, bar)
    finally:
        if out is None:
            with suppress(OSError):
                folder.rmdir()  # fails unless it is empty
    log_to_file(RunFolder(folder).log)
    for line in summary.lines():
        log.log(RESULT, "%s", line)
    return 0


PREDICT = Command(
    "detect objects on image files, folders and 'patterns'; no data set is needed",
    "CFGNAME PATH...",
    _add_arguments,
    _run,
    _check,
    "The results are COCO files and painted copies of the images.",
    takes_paths=True,
)
