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

# Fields taken from the config in the weights file, unless --set.
AS_TRAINED = ("inputShape", "regMax", "pixelMax", "head", "block")


def weights_file(mcfg: ModelConfig, given: str | None = None) -> Path:
    """The given weights file, else that of the run. Raises `UserError` if it is missing."""
    path = Path(absolute(given)) if given else RunFolder.of(mcfg).evaluated_weights(mcfg)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; train first: python mars.py train {mcfg.cfgname}")
    return path


def weights_of(mcfg: ModelConfig, given: str | None = None) -> WeightsFile:
    """The content of the given weights file, else that of the run. Raises `UserError` if it is missing or unusable."""
    return read_weights(weights_file(mcfg, given))


def as_trained(weights: WeightsFile, settings: dict[str, Any]) -> dict[str, Any]:
    """The fields of AS_TRAINED as the weights file holds them, except those that --set names."""
    config = weights.config or {}
    values = {name: config[name] for name in AS_TRAINED if config.get(name) is not None and name not in settings}
    for field, value in values.items():
        try:
            checked_value(field, value)
        except UserError as error:
            raise UserError(
                f"{weights.path}: the weights were trained with a value that is not allowed ({error}); set another "
                f"one with --set {field}=VALUE"
            ) from error
    if values:
        fields = ", ".join(f"{field}={value}" for field, value in values.items())
        log.info("settings from %s: %s", weights.path.name, fields)
    return values


def with_classes_of(weights: WeightsFile, mcfg: ModelConfig, settings: dict[str, Any]) -> ModelConfig:
    """The config with the class list and the input of the weights file; `settings` have precedence over both."""
    names = weights.class_list
    found = {"classList": names} if names and "classList" not in settings else {}
    mcfg = mcfg.with_values(**as_trained(weights, settings), **found)
    if mcfg.classList is None:
        raise UserError(
            f"{weights.path}: does not name its classes; --set classList=NAME,NAME,... names them in label order"
        )
    return mcfg


def refuse_other_splits(mcfg: ModelConfig, weights: WeightsFile, data: CheckedData) -> None:
    """Raise `UserError` where the run's own weights may have been trained on the images to evaluate."""
    was = {what: digest for what, digest in (weights.data or {}).items() if what.startswith("split ")}
    now = data_identity(data.source, [what.removeprefix("split ") for what in was])
    if differences := data_differences(was, now, weights.config, mcfg.to_dict()):
        raise UserError(
            f"{weights.path}: trained on another data set ({differences}), so its test images may have been trained "
            f"on; evaluate with the splits and classes of {weights.path.parent.parent / 'config.json'}, or name the "
            f"file: --weights {weights.path}"
        )


def trained_model(mcfg: ModelConfig, weights: WeightsFile) -> YoloModel:
    """The network with all weights from the file, on the device of the config."""
    device = pick_device(mcfg.device, mcfg.cuda)
    if device.type == "cpu":
        use_all_cores()
    classes = mcfg.classList or ()
    # keepHeadWidth may be none in the run's config: the file tells the width.
    model = build_model(mcfg.with_values(keepHeadWidth=weights.has_official_width(len(classes))))
    report = load_weights(model, weights)
    log.debug("%s", report)
    if report.missing or report.class_list not in (None, mcfg.classList):
        trained_on = ", ".join(report.class_list) if report.class_list else "another number of classes"
        raise UserError(
            f"{weights.path}: trained on {trained_on}, but classList is {', '.join(classes)}; the class list must be "
            "that of the weights"
        )
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
