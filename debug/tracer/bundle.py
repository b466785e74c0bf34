"""A bad step in one file: all that it takes to go through it again, on another machine too.

Written sealed, like a checkpoint, and of values alone: `torch.load(weights_only=True)` reads it, nothing in it runs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from config.errors import UserError
from config.mconfig import ModelConfig
from debug.tracer.findings import Trace
from debug.tracer.tracer import trace
from model import YoloModel, build_model
from model.unpickle import read_plain
from ops.batch import Batch
from ops.device import pick_device
from ops.precision import DTYPES, dtype_name
from ops.random_states import are_random_states
from ops.seal import is_intact
from runs import contents
from runs.checkpoint import write_sealed
from runs.contents import Contents, check_contents
from train.loss import DetectionLoss
from train.objective import DetectionObjective, DistillationObjective, Objective, build_objective

FORMAT = "mars-bad-step-1"
_BATCH = ("images", "boxes", "labels", "valid", "labelled")


@dataclass(frozen=True)
class Bundle:
    """What `write_bundle` took, on the CPU."""

    batch: Batch
    weights: dict[str, Tensor]  # of the model, batch norm's buffers as before the step
    learned: list[dict[str, Tensor]]  # of what is trained beside it
    random: dict[str, Any]  # as `ops.random_states.random_states` gives them
    config: dict[str, Any]
    precision: torch.dtype
    scale: float  # of the gradients
    message: str  # what was said when the step was stopped
    training: tuple[str, ...]  # modules in train mode
    trained: tuple[str, ...]  # parameters with gradients
    strength: float  # of what a teacher adds
    taught_by: str | None  # the checksum of the teacher's file; None without one, and in bundles of older versions
    weights_file: str | None
    path: Path  # of the file


def write_bundle(  # noqa: PLR0913 (a step has so many parts)
    path: str | Path,
    *,
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    buffers: Mapping[str, Tensor],
    random: Mapping[str, Any],
    config_json: str,
    precision: torch.dtype,
    scale: float,
    message: str,
    weights_file: str | Path | None = None,
) -> Path:
    """Write a step that went bad under `path`, whole or not at all; returns it.

    `buffers`: those of `model` from before the step, by their names; the others are taken as they are. Bad values are
    kept as they are. Raises `UserError` where the file cannot be written.
    """
    content = {
        "format": FORMAT,
        "batch": {name: value for name in _BATCH if (value := getattr(batch, name)) is not None},
        "image_ids": list(batch.image_ids),
        "weights": {**model.state_dict(), **buffers},
        "learned": [module.state_dict() for module in objective.extra_modules],
        "random": dict(random),
        "config": config_json,
        "precision": dtype_name(precision),
        "scale": float(scale),
        "message": message,
        "training": [name for name, module in model.named_modules() if module.training],
        "trained": [name for name, one in model.named_parameters() if one.requires_grad],
        "strength": objective.strength if isinstance(objective, DistillationObjective) else 0.0,
        "taught_by": objective.teacher_checksum,
        "weights_file": None if weights_file is None else str(weights_file),
    }
    write_sealed(Path(path), content)
    return Path(path)


def read_bundle(path: str | Path) -> Bundle:
    """What `write_bundle` wrote. Raises `UserError` when it is not there, damaged or something else."""
    path = Path(path)
    try:
        is_whole = is_intact(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the .pth of a run's health folder") from error
    if is_whole is False:
        raise UserError(f"{path}: is damaged (its checksum is not that of its content); copy it again")
    try:
        content = read_plain(path)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path}: is no bundle of a bad step ({reason})") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT or not is_whole:
        said = found if isinstance(found, str) else "no format"
        what = "is cut short" if found == FORMAT else f"is no bundle of a bad step ({said})"
        raise UserError(f"{path}: {what}; give the .pth of a run's health folder")
    parts = Contents(path, content)
    check_contents(parts, _PARTS)
    return _bundle_of(parts)


def _is_batch(parts: Any) -> bool:
    """Do the shapes belong together, and can the network take the images?"""
    images, boxes = parts["images"], parts["boxes"]
    count, channels, height, width = images.shape
    rows = boxes.shape[1]
    shapes = {"boxes": (count, rows, 4), "labels": (count, rows), "valid": (count, rows)}
    types = {"boxes": torch.float32, "labels": torch.int64, "valid": torch.bool}
    fits = all(parts[name].shape == shape and parts[name].dtype == types[name] for name, shape in shapes.items())
    labelled = parts.get("labelled")
    is_labelled = labelled is None or (labelled.dtype == torch.bool and labelled.shape[:-1] == (count,))
    is_image = images.dtype == torch.uint8 or images.is_floating_point()
    return (
        fits and is_labelled and is_image and channels == 3 and height % 32 == width % 32 == 0 < count * height * width
    )


_PARTS = {
    "batch": _is_batch,
    "image_ids": contents.list_of(contents.is_text),
    "weights": contents.dict_of(contents.is_tensor),
    "learned": contents.list_of(contents.dict_of(contents.is_tensor)),
    "random": are_random_states,
    "config": contents.is_config,
    "precision": contents.is_precision,
    "scale": contents.is_number,
    "message": contents.is_text,
    "training": contents.list_of(contents.is_text),
    "trained": contents.list_of(contents.is_text),
    "strength": contents.is_number,
    "weights_file": contents.or_none(contents.is_text),
    "taught_by": contents.or_none(contents.is_text),
}


def _bundle_of(content: Contents) -> Bundle:
    parts = content["batch"]
    batch = Batch(
        parts["images"], parts["boxes"], parts["labels"], parts["valid"], tuple(content["image_ids"]),
        labelled=parts.get("labelled"),
    )  # fmt: skip
    kept = {name: content[name] for name in ("weights", "learned", "random", "scale", "message", "strength")}
    return Bundle(
        batch=batch, config=json.loads(content["config"]), precision=DTYPES[content["precision"]],
        training=tuple(content["training"]), trained=tuple(content["trained"]),
        weights_file=content["weights_file"], taught_by=content.get("taught_by"), path=content.path,
        **kept,
    )  # fmt: skip


def replay(bundle: Bundle, device: torch.device | None = None) -> Trace:
    """Trace the step of a bundle with network and objective built from its config.

    `device` None: the config's, or the CPU where that is not there. Notes in the trace say what is not as it was:
    another device, a teacher whose file is gone or has changed. `is_reproduced` False: nothing bad came up this time.
    Raises `UserError` when the config or the weights do not fit this version.
    """
    try:
        mcfg = ModelConfig.from_dict(bundle.config)
    except UserError as error:
        raise UserError(f"{bundle.path}: its config is not of this version: {error}") from error
    notes: list[str] = []
    device = device or _device_of(mcfg, notes)
    model = _model_of(bundle, mcfg).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = _objective_of(bundle, mcfg, model, notes)
    found = trace(
        model, objective, bundle.batch.to(device), bundle.precision, scale=bundle.scale,
        sum_over_batch=mcfg.lossReduction == "sum", random=bundle.random, weights_file=bundle.weights_file,
    )  # fmt: skip
    found.notes = [*found.notes, *notes]
    return found


def _device_of(mcfg: ModelConfig, notes: list[str]) -> torch.device:
    try:
        return pick_device(mcfg.device, mcfg.cuda)
    except UserError as error:
        notes.append(f"replayed on the CPU, where rounding is another ({error})")
        return torch.device("cpu")


def _model_of(bundle: Bundle, mcfg: ModelConfig) -> YoloModel:
    model = build_model(mcfg)
    try:
        model.load_state_dict(bundle.weights)
    except RuntimeError as error:
        raise UserError(
            f"{bundle.path}: its weights do not fit its config in this version; use the one that wrote it"
        ) from error
    for name, module in model.named_modules():
        module.training = name in bundle.training
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in bundle.trained)
    return model


def _objective_of(bundle: Bundle, mcfg: ModelConfig, model: YoloModel, notes: list[str]) -> Objective:
    try:
        objective = build_objective(mcfg, model, bundle.precision)
        _load_learned(objective, bundle, mcfg)
    except UserError as error:
        notes.append(f"replayed without the teacher, so what it adds is missing ({error})")
        return DetectionObjective(DetectionLoss.from_config(mcfg, model))
    if isinstance(objective, DistillationObjective):
        objective.strength = bundle.strength
    if bundle.taught_by not in (None, objective.teacher_checksum):
        notes.append(f"replayed with another teacher: {mcfg.teacherModelFile} has changed since the step")
    return objective


def _load_learned(objective: Objective, bundle: Bundle, mcfg: ModelConfig) -> None:
    """Take what was learned beside the network. Raises `UserError` where the teacher has another width."""
    try:
        for module, state in zip(objective.extra_modules, bundle.learned, strict=True):
            module.load_state_dict(state)
    except (RuntimeError, ValueError) as error:  # the second: another number of modules
        raise UserError(
            f"{mcfg.teacherModelFile}: its features have other widths than those of the teacher of the step"
        ) from error
