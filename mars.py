"""The command line: pick a mode, load the config, hand over. `python mars.py --help` shows what there is.

Whatever needs torch is imported where it is used, so that the help and a mistake in the command answer at once.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.arguments import read_arguments
from config.errors import UserError
from config.help import fields_text
from config.load import DEFAULT_CFGNAME, load_config, parse_settings
from config.mconfig import ModelConfig
from ops.log import RESULT, ProgressBar, end_log, keep_log, log, start_log

if TYPE_CHECKING:
    from dl.check import CheckedData

AS_TRAINED = ("inputShape", "regMax")  # what `eval` takes from the weights unless --set says otherwise
ANY_DATA = "*"  # stands for the data folder's name in a run's name, for `predict` needs no data


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit status: 0 done, 2 the user's mistake, 1 diverged or interrupted. Bugs are raised."""
    try:
        run(read_arguments(arguments), arguments)
        return 0
    except UserError as error:
        log.error("%s", error)
        print(f"mars: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in (
            "torch",
            "torchvision",
            "cv2",
            "numpy",
            "PIL",
            "jaxtyping",
            "tqdm",
            "matplotlib",
            "faster_coco_eval",
            "yaml",
        ):
            raise
        print(
            f"mars: {error.name} is not installed in {sys.executable}; `make setup` makes .venv, which has all",
            file=sys.stderr,
        )
        return 1
    except FloatingPointError as error:  # the numbers broke, not the program: the sentence says where
        log.error("%s", error)
        print(f"mars: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:  # of a training, Ctrl-C or SIGTERM: it is saved, and the text says where
        text = str(error) or "interrupted"
        log.error("%s", text)
        print(f"mars: {text}", file=sys.stderr)
        return 1
    except Exception:
        log.exception("stopped by an error of the program")
        raise
    finally:
        end_log()


def run(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Carry out one command."""
    if args.fields:
        print(fields_text())
        return
    settings = parse_settings(args.set)
    if args.mode == "predict":
        start_log(args.quiet)
        log.debug("python mars.py %s", shlex.join(arguments))
        predict(args, settings)
        return
    mcfg = _load(args, settings)
    start_log(args.quiet)
    log.debug("python mars.py %s", shlex.join(arguments))
    if args.mode == "eval":
        settings = {**_as_trained(_weights_of(mcfg, args.weights), settings), **settings}
    mcfg = _find_data(args, mcfg, settings)
    if args.mode == "eval":
        evaluate(mcfg, args.split or mcfg.testSplitName, args.weights, args.quiet)
        return
    data = train(mcfg, args.quiet, also=() if args.mode == "train" else (mcfg.testSplitName,))
    if args.mode == "pipe":
        evaluate(mcfg, mcfg.testSplitName, None, args.quiet, data)


def _load(args: argparse.Namespace, overrides: dict[str, Any]) -> ModelConfig:
    return load_config(args.cfgname or DEFAULT_CFGNAME, args.root, args.data, overrides, args.name, args.nobuf)


def _find_data(args: argparse.Namespace, mcfg: ModelConfig, settings: dict[str, Any]) -> ModelConfig:
    """The config again, with the places, classes and splits that were found in the data folder."""
    from dl.discover import as_overrides, locate

    if mcfg.modelName == "distillation" and args.mode != "eval":
        raise UserError("modelName=distillation: its losses are not there yet; train with the tag full or teacher")
    if mcfg.drawnScenes and mcfg.dataDir:
        _draw_scenes(mcfg.dataDir, mcfg.drawnScenes, args.quiet)
    source = locate(mcfg)
    for note in source.notes:
        log.info("%s", note)
    return _load(args, {**as_overrides(source), **settings})


def _draw_scenes(folder: str, count: int, quiet: bool) -> None:
    from dl.synthetic import make_data_set

    with ProgressBar("drawing scenes", quiet) as bar:
        make_data_set(folder, num_images=count, on_image=bar)


def _weights_of(mcfg: ModelConfig, given: str | None) -> Path:
    """The weights that are evaluated: the file that was given, else the run's."""
    from train.runfolder import RunFolder

    path = Path(given).expanduser().absolute() if given else RunFolder.of(mcfg).evaluated_weights(mcfg)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; train first: python mars.py train {mcfg.cfgname}")
    return path


def _as_trained(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What the network must be given as it was trained with, where the file says so and --set does not."""
    from model.pretrained import read_weights

    config = read_weights(path).config or {}
    values = {field: config[field] for field in AS_TRAINED if field in config and field not in settings}
    if values:
        log.info("as %s was trained: %s", path.name, ", ".join(f"{field}={value}" for field, value in values.items()))
    return values


def _refuse_other_splits(mcfg: ModelConfig, path: Path, data: "CheckedData") -> None:
    """The run's own weights must not be measured on images that they were trained on."""
    from model.pretrained import read_weights
    from train.runfolder import data_differences, data_identity

    was = {what: digest for what, digest in (read_weights(path).data or {}).items() if what.startswith("split ")}
    now = data_identity(data.source, [what.removeprefix("split ") for what in was])
    if other := data_differences(was, now):
        raise UserError(
            f"{path}: trained on another data set ({other}), so its test images may have been trained on; evaluate "
            f"with the splits and classes of {path.parent.parent / 'config.json'}, or name the file: --weights {path}"
        )


def _check(mcfg: ModelConfig, splits: list[str], cache_file: Path | None, quiet: bool) -> "CheckedData":
    from dl.check import check_data

    with ProgressBar("checking the data", quiet) as bar:
        return check_data(mcfg, splits, cache_file, on_image=bar)


def train(mcfg: ModelConfig, quiet: bool, also: Sequence[str] = ()) -> "CheckedData":
    """Check the data, then train; the checked data, of the splits in `also` too."""
    from train.lock import RunLock
    from train.runfolder import RunFolder
    from train.trainer import Trainer

    folder = RunFolder.of(mcfg)
    validation = (mcfg.validationSplitName,) if mcfg.epochValidation else ()
    names = dict.fromkeys((mcfg.trainSplitName, *validation, *also))
    # The lock: a run that another process is at work on is neither resumed nor moved.
    with RunLock(folder.path) as lock, _saying_how_to_go_on():
        data = _check(mcfg, list(names), None if mcfg.nobuf else folder.data_check, quiet)
        log.info("%s", data.report.table())
        trainer = Trainer(mcfg, data, quiet=quiet)  # whatever is wrong so far leaves an older run where it is
        if folder.path.exists():
            lock.hold()  # another run may have begun it while the data was checked
        aside = folder.move_aside() if mcfg.nobuf else None
        lock.hold()  # of the folder that is there now
        keep_log(folder.log)
        if aside is not None:
            log.info("the older run is kept in %s", aside)
        trainer.run()
    return data


@contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    """Ctrl-C before or after the epochs, where the trainer has nothing to save and says nothing."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            str(error) or "interrupted; the same command goes on from what was saved last"
        ) from None


def evaluate(
    mcfg: ModelConfig, split: str, weights: str | None, quiet: bool, data: "CheckedData | None" = None
) -> None:
    """Evaluate a split with the run's weights (or those in the file `weights`): table, metrics.json and pictures."""
    from eval.evaluator import Evaluator
    from eval.painter import remove_painted
    from eval.report import ap_table
    from train.runfolder import RunFolder

    folder, path = RunFolder.of(mcfg), _weights_of(mcfg, weights)
    if data is None:
        data = _check(mcfg, [split], folder.data_check, quiet)
        if weights is None:
            _refuse_other_splits(mcfg, path, data)
        keep_log(folder.log)
        log.info("%s", data.report.table())
    model = _trained_model(mcfg, path)
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


def predict(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Detect on files, folders and patterns: COCO results and painted copies, in a folder of their own."""
    from eval.predict import PAINTED, Job, find_images, new_folder, predict_files
    from eval.predictor import Predictor
    from ops.device import usable_cores
    from train.runfolder import RunFolder

    mcfg = _run_that_predicts(args, settings)
    path = _weights_of(mcfg, args.weights)
    out = Path(args.out).expanduser().absolute() if args.out else None
    earlier = mcfg.run_dir / "predict"
    files = find_images(args.paths, out / PAINTED if out else earlier)
    mcfg = _with_classes_of(path, mcfg, settings)
    predictor = Predictor.from_config(mcfg, _trained_model(mcfg, path))
    num_threads = max(1, min(8, usable_cores()) if mcfg.dcore is None else mcfg.dcore)
    paint_conf = mcfg.paintConf if settings.get("paintImages", True) else None
    job = Job(mcfg.inputShape, tuple(mcfg.classList or ()), mcfg.batchSize, num_threads, paint_conf)
    folder = out or new_folder(earlier)
    try:
        with ProgressBar("predicting", args.quiet) as bar:
            summary = predict_files(predictor, files, folder, job, bar)
    finally:
        if out is None:
            with suppress(OSError):
                folder.rmdir()  # only if nothing came into it
    keep_log(RunFolder(folder).log)
    for line in summary.lines():
        log.log(RESULT, "%s", line)


def _run_that_predicts(args: argparse.Namespace, settings: dict[str, Any]) -> ModelConfig:
    """The config of the run that predicts. No data set is needed: --data only names the run."""

    def load(overrides: dict[str, Any]) -> ModelConfig:
        return load_config(args.cfgname, args.root, args.data or ANY_DATA, overrides, args.name)

    mcfg = load(settings)
    if ANY_DATA in mcfg.runName and not (args.weights and args.out):
        mcfg = load({**settings, "runName": _name_of_run(mcfg, args.weights)})
    return mcfg


def _with_classes_of(path: Path, mcfg: ModelConfig, settings: dict[str, Any]) -> ModelConfig:
    """The config with class list and input as the weights were trained; `settings` stand above both."""
    from model.pretrained import read_weights

    class_list = read_weights(path).class_list
    found = {"classList": class_list} if class_list and "classList" not in settings else {}
    mcfg = ModelConfig.from_dict({**mcfg.to_dict(), **_as_trained(path, settings), **found})
    if mcfg.classList is None:
        raise UserError(f"{path}: does not say its classes; --set classList=NAME,NAME,... names them in label order")
    return mcfg


def _name_of_run(mcfg: ModelConfig, weights: str | None) -> str:
    """The run that is meant where its name ends in that of a data folder which was not given."""
    from model.pretrained import read_weights

    if weights:
        name = (read_weights(Path(weights).expanduser()).config or {}).get("runName")
        if not name:
            raise UserError(f"{weights}: does not say which run it is of; --out DIR says where the results belong")
        return name
    runs = {file.parent.parent.name for file in Path(mcfg.root).glob(f"{mcfg.runName}/weights/*.pth")}
    names = sorted(name for name in runs if not re.search(r"\.\d{8}-\d{6}(-\d+)?$", name))  # those --nobuf kept
    if not names:
        raise UserError(
            f"{mcfg.run_dir}: no such run with weights; train first: python mars.py train {mcfg.cfgname} --data DIR"
        )
    if len(names) > 1:
        raise UserError(f"predict {mcfg.cfgname}: which run? {mcfg.root} holds {', '.join(names)}; add --name NAME")
    return names[0]


def _trained_model(mcfg: ModelConfig, path: Path) -> Any:
    """The network with the file's weights on the device that computes, none of them left random."""
    import torch

    from model import build_model
    from model.pretrained import load_weights
    from ops.device import pick_device, use_all_cores

    device = pick_device(mcfg.device, mcfg.cuda)
    if device.type == "cpu":
        use_all_cores()
    model = build_model(mcfg)
    report = load_weights(model, path)
    log.debug("%s", report)
    trained_on = report.class_list
    if report.missing or trained_on not in (None, mcfg.classList):
        raise UserError(
            f"{path}: trained on {', '.join(trained_on) if trained_on else 'another number of classes'}, but classList "
            f"is {', '.join(mcfg.classList or ())}; the class list must be that of the weights"
        )
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
