"""`eval`: measure the weights of a run on a split; also the second half of `pipe`."""

import argparse
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from commands.options import Command, Parser, add_run_options, add_weights, check_weights
from commands.setup import check, find_data, load, log_report
from config.mconfig import ModelConfig
from dl.splits import find_split
from ops.files import copy_atomic
from ops.log import RESULT, ProgressBar, log_to_file

if TYPE_CHECKING:
    from dl.check import CheckedData
    from dl.formats.source import DataSource
    from model.weightsfile import WeightsFile

log = logging.getLogger("mars")


def _add_arguments(parser: Parser) -> None:
    add_run_options(parser)
    add_weights(parser)
    parser.add_argument("--split", metavar="NAME", help="split to evaluate (default: the test split)")


def _run(args: argparse.Namespace) -> int:
    mcfg = load(args, args.settings)
    from commands.weights import as_trained, weights_of

    weights = weights_of(mcfg, args.weights)
    mcfg = find_data(args, {**as_trained(weights, args.settings), **args.settings})
    evaluate(mcfg, args.split or mcfg.testSplitName, weights, args.quiet, is_own=not args.weights)
    return 0


EVAL = Command("evaluate a run on a split of its data set", "CFGNAME", _add_arguments, _run, check_weights)


def evaluate(
    mcfg: ModelConfig,
    split: str,
    weights: "WeightsFile",
    quiet: bool,
    data: "CheckedData | None" = None,
    is_own: bool = True,
) -> None:
    """Evaluate a split: print a table, and write metrics.json and painted images.

    `data`: if it is checked already; `is_own`: the weights are those of the run, which must not have been trained on
    this split.
    """
    from commands.weights import refuse_other_splits, trained_model
    from eval.evaluator import Evaluator
    from eval.painter import refuse_overwriting_pictures, remove_painted
    from eval.report import ap_table
    from runs.folder import EVAL_FILES, METRICS, PICTURES, RunFolder

    folder = RunFolder.of(mcfg)
    if data is None:
        if mcfg.pixelMax is None:
            mcfg = mcfg.with_values(pixelMax=(weights.config or {}).get("pixelMax"))
        data = check(mcfg, [split], folder.data_check, quiet)
        if is_own:
            refuse_other_splits(mcfg, weights, data)
        log_to_file(folder.log)
        log_report(data.report)
    place = folder.eval_folder(split)
    if mcfg.paintImages:
        ids = [annotation.image_id for annotation in data.splits[split]]
        refuse_overwriting_pictures(place / PICTURES, ids, ", or leave pictures out with --set paintImages=no")
    model = trained_model(mcfg, weights)
    evaluator = Evaluator(mcfg)
    path = weights.path
    name = str(path.relative_to(folder.path) if path.is_relative_to(folder.path) else path)
    with ProgressBar(f"evaluating {split}", quiet) as bar:
        result = evaluator.evaluate(model, split, data.splits[split], name, bar, data.expected[split])
    result = replace(result, test_is_validation=_is_validation(mcfg, split, data.source))
    log.log(RESULT, "\n%s", ap_table(result))
    result.save(place / METRICS)
    result.save_detections(place, evaluator.class_names)
    folder.move_old_results(split)
    for file in EVAL_FILES:
        copy_atomic(place / file, folder.eval / file)
    if mcfg.paintImages:
        remove_painted(place / PICTURES)
        with ProgressBar(f"painting {split}", quiet) as bar:
            evaluator.paint(result, place / PICTURES, on_image=bar)
        log.info("painted images: %s", place / PICTURES)
    if folder.curves.exists():
        log.info("curves: %s", folder.curves)
    log.info("run folder: %s", folder.path)


def _is_validation(mcfg: ModelConfig, split: str, source: "DataSource") -> bool:
    """Is this the test split, and are its images those on which the best weights were chosen?"""
    key, test, validation = (
        find_split(name, source.splits) for name in (split, mcfg.testSplitName, mcfg.validationSplitName)
    )
    if not mcfg.epochValidation or key is None or key != test or validation is None:
        return False
    return set(source.splits[key]) == set(source.splits[validation])
