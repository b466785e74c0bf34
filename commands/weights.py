"""The weights that a command uses: which file, the settings they were trained with, and the network."""

import logging
from pathlib import Path
from typing import Any

import torch

from config.errors import UserError
from config.load import absolute
from config.mconfig import ModelConfig, checked_value
from dl.check import CheckedData
from model import YoloModel, build_model
from model.pretrained import load_weights
from model.weightsfile import WeightsFile, read_weights
from ops.device import pick_device, use_all_cores
from runs.folder import RunFolder
from runs.provenance import data_differences, data_identity

log = logging.getLogger("mars")

AS_TRAINED = ("inputShape", "regMax", "pixelMax")  # fields taken from the config in the weights file, unless --set


def weights_of(mcfg: ModelConfig, given: str | None) -> Path:
    """The weights to evaluate: the given file, else those of the run."""
    path = Path(absolute(given)) if given else RunFolder.of(mcfg).evaluated_weights(mcfg)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; train first: python mars.py train {mcfg.cfgname}")
    return path


def as_trained(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The fields of AS_TRAINED as the weights file holds them, except those that --set names."""
    return _as_trained(read_weights(path), path, settings)


def _as_trained(file: WeightsFile, path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    config = file.config or {}
    known = {field: config[field] for field in AS_TRAINED if config.get(field) is not None}
    values = {field: value for field, value in known.items() if field not in settings}
    for field, value in values.items():
        try:
            checked_value(field, value)
        except UserError as error:
            raise UserError(
                f"{path}: the weights were trained with a value that is not allowed ({error}); set another one with "
                f"--set {field}=VALUE"
            ) from error
    if values:
        log.info("settings from %s: %s", path.name, ", ".join(f"{field}={value}" for field, value in values.items()))
    return values


def with_classes_of(path: Path, mcfg: ModelConfig, settings: dict[str, Any]) -> ModelConfig:
    """The config with the class list and the input of the weights file; `settings` have precedence over both."""
    file = read_weights(path)
    found = {"classList": file.class_list} if file.class_list and "classList" not in settings else {}
    mcfg = mcfg.with_values(**_as_trained(file, path, settings), **found)
    if mcfg.classList is None:
        raise UserError(f"{path}: does not name its classes; --set classList=NAME,NAME,... names them in label order")
    return mcfg


def refuse_other_splits(mcfg: ModelConfig, path: Path, data: CheckedData) -> None:
    """Raise `UserError` where the run's own weights may have been trained on the images to evaluate."""
    file = read_weights(path)
    was = {what: digest for what, digest in (file.data or {}).items() if what.startswith("split ")}
    now = data_identity(data.source, [what.removeprefix("split ") for what in was])
    if other := data_differences(was, now, file.config, mcfg.to_dict()):
        raise UserError(
            f"{path}: trained on another data set ({other}), so its test images may have been trained on; evaluate "
            f"with the splits and classes of {path.parent.parent / 'config.json'}, or name the file: --weights {path}"
        )


def trained_model(mcfg: ModelConfig, path: Path) -> YoloModel:
    """The network with all weights from the file, on the device of the config."""
    device = pick_device(mcfg.device, mcfg.cuda)
    if device.type == "cpu":
        use_all_cores()
    file = read_weights(path)
    # keepHeadWidth may be none in the run's config: the file tells the width.
    keep_width = file.has_official_width(len(mcfg.classList or ()))
    model = build_model(mcfg.with_values(keepHeadWidth=keep_width))
    report = load_weights(model, file)
    log.debug("%s", report)
    trained_on = report.class_list
    if report.missing or trained_on not in (None, mcfg.classList):
        raise UserError(
            f"{path}: trained on {', '.join(trained_on) if trained_on else 'another number of classes'}, but classList "
            f"is {', '.join(mcfg.classList or ())}; the class list must be that of the weights"
        )
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
