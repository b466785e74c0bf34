"""The command line: pick a mode, load the config, hand over. `python mars.py --help` shows what there is.

Whatever needs torch is imported where it is used, so that the help and a mistake in the command answer at once.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from config.errors import UserError
from config.fields import nearest
from config.help import fields_text, help_text
from config.load import DEFAULT_CFGNAME, load_config, parse_settings
from config.mconfig import ModelConfig, field_names

if TYPE_CHECKING:
    from dl.check import CheckedData
    from train.runfolder import RunFolder

MODES = ("pipe", "train", "eval")
LATER_MODES = ("predict", "doctor", "export", "split", "incremental")
AS_TRAINED = ("inputShape", "regMax")  # what `eval` takes from the weights unless --set says otherwise
RESULT = logging.INFO + 5  # what --quiet still shows

log = logging.getLogger("mars")
log.addHandler(logging.NullHandler())  # before start_log nothing is said, and main prints what went wrong


class Parser(argparse.ArgumentParser):
    """Complaints become one sentence instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `python mars.py --help` shows what there is")

    def format_help(self) -> str:
        return help_text(MODES)


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
    except KeyboardInterrupt:
        log.error("interrupted")
        print("mars: interrupted; the same command goes on after the last finished epoch", file=sys.stderr)
        return 1
    except Exception:
        log.exception("stopped by an error of the program")
        raise
    finally:
        end_log()


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """mode, cfgname and options. Raises `UserError` for anything that is not understood."""
    parser = Parser(prog="mars.py", allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    for name in ("root", "data", "name", "split", "weights"):
        parser.add_argument(f"--{name}")
    for name in ("quiet", "fields"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--nobuf", "-nobuf", action="store_true")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="FIELD=VALUE")
    for mode in MODES:
        parser.add_argument(f"-{mode}", dest="mode", action="append_const", const=mode)  # the assignment's spelling
    args, unknown = parser.parse_known_intermixed_args(list(arguments))
    if args.words and args.words[0] in LATER_MODES:  # first, because they have options of their own
        raise UserError(f"{args.words[0]}: not there yet; the modes are {', '.join(MODES)}")
    if unknown:
        raise UserError(_unknown_option(unknown[0], parser))
    # `--set inputShape=320 voc.nano.full` reads the CFGNAME as one more setting
    args.words += [word for word in args.set if "=" not in word]
    args.set = [word for word in args.set if "=" in word]
    return _understand_words(args)


def _understand_words(args: argparse.Namespace) -> argparse.Namespace:
    """Mode and CFGNAME out of the words that belong to no option."""
    words, modes = list(args.words), list(args.mode or [])
    while words and words[0] in MODES:
        modes.append(words.pop(0))
    if len(set(modes)) > 1:
        raise UserError(f"{' and '.join(dict.fromkeys(modes))}: one mode at a time; pipe trains and evaluates")
    for word in words:
        if word.partition("=")[0] in field_names():
            raise UserError(f"{word}: settings are written --set {word if '=' in word else word + '=VALUE'}")
    if len(words) > 1:
        raise UserError(
            f"{' '.join(words)}: one CFGNAME, please, and before it a mode ({', '.join(MODES)}) or none"
            f"{nearest(words[0], [*MODES, *LATER_MODES])}"
        )
    args.mode = modes[0] if modes else "pipe"
    args.cfgname = words[0] if words else None
    return args


def _unknown_option(word: str, parser: argparse.ArgumentParser) -> str:
    name = word.split("=")[0]
    if name == "--trace":
        return "--trace: not there yet"
    field = nearest(name.lstrip("-"), field_names())
    options = [option for action in parser._actions for option in action.option_strings]
    hint = nearest(name, options) or (f"; config fields are written --set FIELD=VALUE{field}" if field else "")
    return f"{name}: no such option{hint}; `python mars.py --help` shows what there is"


def run(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Carry out one command."""
    if args.fields:
        print(fields_text())
        return
    if args.mode == "eval" and args.nobuf:
        raise UserError("--nobuf: starts a training afresh, and eval trains nothing; leave it out")
    if args.mode != "eval" and (args.split or args.weights):
        raise UserError("--split, --weights: belong to eval; write python mars.py eval CFGNAME ...")
    if args.weights and not Path(args.weights).expanduser().is_file():
        raise UserError(f"{Path(args.weights).expanduser().absolute()}: no such weights file")
    settings = parse_settings(args.set)
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
    from train.runfolder import RunFolder
    from train.trainer import Trainer

    folder = RunFolder.of(mcfg)
    validation = (mcfg.validationSplitName,) if mcfg.epochValidation else ()
    names = dict.fromkeys((mcfg.trainSplitName, *validation, *also))
    data = _check(mcfg, list(names), None if mcfg.nobuf else folder.data_check, quiet)
    log.info("%s", data.report.table())
    trainer = Trainer(mcfg, data, quiet=quiet)  # whatever is wrong so far leaves an older run where it is
    aside = folder.move_aside() if mcfg.nobuf else None
    keep_log(folder)
    if aside is not None:
        log.info("the older run is kept in %s", aside)
    trainer.run()
    return data


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
        keep_log(folder)
        log.info("%s", data.report.table())
    model = _trained_model(mcfg, path)
    evaluator = Evaluator(mcfg)
    name = str(path.relative_to(folder.path)) if path.is_relative_to(folder.path) else str(path)
    with ProgressBar(f"evaluating {split}", quiet) as bar:
        result = evaluator.evaluate(model, split, data.splits[split], name, bar, data.expected[split])
    log.log(RESULT, "\n%s", ap_table(result))
    result.save(folder.eval_metrics)
    if mcfg.paintImages:
        remove_painted(folder.painted)
        with ProgressBar(f"painting {split}", quiet) as bar:
            evaluator.paint(result, folder.painted, on_image=bar)
        log.info("painted images: %s", folder.painted)
    log.info("all of this run: %s", folder.path)


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
            f"is {', '.join(mcfg.classList or ())}; evaluate with the class list these weights were trained on"
        )
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


class ProgressBar:
    """A progress bar that is told how many of how many are done."""

    def __init__(self, title: str, quiet: bool):
        from tqdm import tqdm

        # disable=None: no bar where the output is no terminal
        self.bar = tqdm(desc=title, leave=False, disable=True if quiet else None, dynamic_ncols=True)

    def __enter__(self) -> "ProgressBar":
        return self

    def __call__(self, done: int, total: int) -> None:
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def start_log(quiet: bool) -> None:
    """Say things on stdout from now on (only results when quiet), and remember them until `keep_log`."""
    console = logging.StreamHandler(sys.stdout)
    console.setLevel(RESULT if quiet else logging.INFO)
    console.addFilter(lambda record: record.levelno < logging.ERROR)  # main prints errors, on stderr
    log.setLevel(logging.DEBUG)  # the file says a little more than the console
    log.addHandler(console)
    log.addHandler(MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False))


def keep_log(folder: "RunFolder") -> None:
    """Write to the run's mars.log what was said so far and all that follows."""
    folder.path.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder.log, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    for memory in [handler for handler in log.handlers if isinstance(handler, MemoryHandler)]:
        memory.setTarget(file)
        memory.flush()
        log.removeHandler(memory)
    log.addHandler(file)


def end_log() -> None:
    """Close what `start_log` and `keep_log` opened."""
    for handler in [handler for handler in log.handlers if not isinstance(handler, logging.NullHandler)]:
        log.removeHandler(handler)
        handler.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
