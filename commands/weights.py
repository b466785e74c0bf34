"""The weights that a command works with: which file, how it was trained, and the network that takes them."""

import argparse
import logging
import re
from pathlib import Path
from typing import Any

import torch

from commands.setup import load
from config.errors import UserError
from config.mconfig import ModelConfig, checked_value
from config.places import absolute
from dl.check import CheckedData
from model import YoloModel, build_model
from model.pretrained import fill
from model.weightsfile import WeightsFile, read_weights
from ops.device import pick_device, use_all_cores
from runs.folder import RunFolder
from runs.identity import data_differences, data_identity

log = logging.getLogger("mars")

AS_TRAINED = ("inputShape", "regMax", "pixelMax")  # what is taken from the weights' config unless --set says otherwise
ANY_DATA = "*"  # stands for the data folder's name in a run's name


def weights_of(mcfg: ModelConfig, given: str | None) -> Path:
    """The weights that are evaluated: the file that was given, else the run's."""
    path = Path(absolute(given)) if given else RunFolder.of(mcfg).evaluated_weights(mcfg)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; train first: python mars.py train {mcfg.cfgname}")
    return path


def run_of_weights(args: argparse.Namespace, settings: dict[str, Any]) -> ModelConfig:
    """The config of the run whose weights are used. No data set is needed: --data only names the run."""
    asked = argparse.Namespace(**{**vars(args), "data": args.data or ANY_DATA})
    mcfg = load(asked, settings)
    if ANY_DATA in mcfg.runName and not (args.weights and args.out):
        mcfg = load(asked, {**settings, "runName": _name_of_run(mcfg, args.weights)})
    return mcfg


def _name_of_run(mcfg: ModelConfig, weights: str | None) -> str:
    """The run that is meant where its name ends in that of a data folder which was not given."""
    if weights:
        name = (read_weights(weights).config or {}).get("runName")
        if not name:
            raise UserError(f"{weights}: does not say which run it is of; --out PLACE says where the result belongs")
        return name
    runs = {file.parent.parent.name for file in Path(mcfg.root).glob(f"{mcfg.runName}/weights/*.pth")}
    names = sorted(name for name in runs if not re.search(r"\.\d{8}-\d{6}(-\d+)?$", name))  # those --nobuf kept
    if not names:
        raise UserError(
            f"{mcfg.run_dir}: no such run with weights; train first: python mars.py train {mcfg.cfgname} --data DIR"
        )
    if len(names) > 1:
        raise UserError(f"{mcfg.cfgname}: which run? {mcfg.root} holds {', '.join(names)}; add --name NAME")
    return names[0]


def as_trained(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What the network must be given as it was trained with, where the file says so and --set does not."""
    return _as_trained(read_weights(path), path, settings)


def _as_trained(file: WeightsFile, path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    config = file.config or {}
    known = {field: config[field] for field in AS_TRAINED if config.get(field) is not None}
    values = {field: value for field, value in known.items() if field not in settings}
    for field, value in values.items():
        try:
            checked_value(field, value)
        except UserError as error:
            raise UserError(f"{path}: was trained with {error}, or choose another with --set {field}=...") from error
    if values:
        log.info("as %s was trained: %s", path.name, ", ".join(f"{field}={value}" for field, value in values.items()))
    return values


def with_classes_of(path: Path, mcfg: ModelConfig, settings: dict[str, Any]) -> ModelConfig:
    """The config with class list and input as the weights were trained; `settings` stand above both."""
    file = read_weights(path)
    found = {"classList": file.class_list} if file.class_list and "classList" not in settings else {}
    mcfg = mcfg.with_values(**_as_trained(file, path, settings), **found)
    if mcfg.classList is None:
        raise UserError(f"{path}: does not say its classes; --set classList=NAME,NAME,... names them in label order")
    return mcfg


def refuse_other_splits(mcfg: ModelConfig, path: Path, data: CheckedData) -> None:
    """The run's own weights must not be measured on images that they were trained on."""
    file = read_weights(path)
    was = {what: digest for what, digest in (file.data or {}).items() if what.startswith("split ")}
    now = data_identity(data.source, [what.removeprefix("split ") for what in was])
    if other := data_differences(was, now, file.config, mcfg.to_dict()):
        raise UserError(
            f"{path}: trained on another data set ({other}), so its test images may have been trained on; evaluate "
            f"with the splits and classes of {path.parent.parent / 'config.json'}, or name the file: --weights {path}"
        )


def trained_model(mcfg: ModelConfig, path: Path) -> YoloModel:
    """The network with the file's weights on the device that computes, none of them left random."""
    device = pick_device(mcfg.device, mcfg.cuda)
    if device.type == "cpu":
        use_all_cores()
    file = read_weights(path)
    # The run's config may leave it to its starting weights; the file knows.
    keep_width = file.has_official_width(len(mcfg.classList or ()))
    model = build_model(mcfg.with_values(keepHeadWidth=keep_width))
    report = fill(model, file, path)
    log.debug("%s", report)
    trained_on = report.class_list
    if report.missing or trained_on not in (None, mcfg.classList):
        raise UserError(
            f"{path}: trained on {', '.join(trained_on) if trained_on else 'another number of classes'}, but classList "
            f"is {', '.join(mcfg.classList or ())}; the class list must be that of the weights"
        )
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
