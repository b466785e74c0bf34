"""`predict`: detect on files, folders and patterns. No data set is needed."""

import argparse
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from commands.setup import image_folders, refuse_in_data, refuse_run_in_data
from commands.weights import run_of_weights, trained_model, weights_of, with_classes_of
from config.mconfig import ModelConfig
from config.places import absolute
from eval.predict import PAINTED, PredictJob, find_images, next_numbered_folder, predict_files, refuse_overwriting_files
from eval.predictor import Predictor
from model.weightsfile import read_weights
from ops.device import usable_cores
from ops.log import RESULT, ProgressBar, log_to_file
from runs.folder import RunFolder

log = logging.getLogger("mars")


def predict(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Detect on files, folders and patterns: COCO results and painted copies, in a folder of their own."""
    mcfg = run_of_weights(args, settings)
    path = weights_of(mcfg, args.weights)
    out = Path(absolute(args.out)) if args.out else None
    earlier = mcfg.run_dir / "predict"
    files = find_images(args.paths, out / PAINTED if out else earlier)
    _refuse_place(mcfg, path, args.data, out)
    paint_conf = mcfg.paintConf if settings.get("paintImages", True) else None
    if out:
        refuse_overwriting_files(out, files, paints=paint_conf is not None)
    mcfg = with_classes_of(path, mcfg, settings)
    predictor = Predictor.from_config(mcfg, trained_model(mcfg, path))
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
                folder.rmdir()  # only if nothing came into it
    log_to_file(RunFolder(folder).log)
    for line in summary.lines():
        log.log(RESULT, "%s", line)


def _refuse_place(mcfg: ModelConfig, weights: Path, data: str | None, out: Path | None) -> None:
    """Raise `UserError` when painted copies would lie where training images are read, or among other files."""
    begun = read_weights(weights).config or {}
    folders = [data, begun.get("dataDir"), *image_folders(begun)]
    if out is None:
        RunFolder.of(mcfg).check_is_run_folder()
        refuse_run_in_data(mcfg, folders, ", or give a folder outside of it with --out")
    else:
        refuse_in_data(out, folders, f"--out {out}", "give a folder outside of it with --out")
