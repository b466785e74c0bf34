"""`eval`, and the evaluation of `pipe`."""

import logging

from commands.setup import check, log_report
from commands.weights import refuse_other_splits, trained_model, weights_of
from config.mconfig import ModelConfig
from dl.check import CheckedData
from eval.evaluator import Evaluator
from eval.painter import remove_painted
from eval.report import ap_table
from model.weightsfile import read_weights
from ops.log import RESULT, ProgressBar, keep_log
from train.runfolder import RunFolder

log = logging.getLogger("mars")


def evaluate(mcfg: ModelConfig, split: str, weights: str | None, quiet: bool, data: CheckedData | None = None) -> None:
    """Evaluate a split with the run's weights (or those in the file `weights`): table, metrics.json and pictures."""
    folder, path = RunFolder.of(mcfg), weights_of(mcfg, weights)
    if data is None:
        if mcfg.pixelMax is None:
            mcfg = mcfg.with_values(pixelMax=(read_weights(path).config or {}).get("pixelMax"))
        data = check(mcfg, [split], folder.data_check, quiet)
        if weights is None:
            refuse_other_splits(mcfg, path, data)
        keep_log(folder.log)
        log_report(data.report)
    model = trained_model(mcfg, path)
    evaluator = Evaluator(mcfg)
    name = str(path.relative_to(folder.path)) if path.is_relative_to(folder.path) else str(path)
    with ProgressBar(f"evaluating {split}", quiet) as bar:
        result = evaluator.evaluate(model, split, data.splits[split], name, bar, data.expected[split])
    log.log(RESULT, "\n%s", ap_table(result))
    result.save(folder.eval_metrics)
    result.save_detections(folder.eval_metrics.parent, evaluator.class_names)
    if mcfg.paintImages:
        remove_painted(folder.painted)
        with ProgressBar(f"painting {split}", quiet) as bar:
            evaluator.paint(result, folder.painted, on_image=bar)
        log.info("painted images: %s", folder.painted)
    if folder.curves.exists():
        log.info("curves: %s", folder.curves)
    log.info("all of this run: %s", folder.path)
