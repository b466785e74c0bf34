"""The bundle of a non-finite step: one file with all that is needed to run the step again, also on another machine.

It is sealed like a checkpoint and holds plain values only: `torch.load(weights_only=True)` reads it without running
code.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.errors import UserError
from config.mconfig import ModelConfig
from debug.tracer.findings import Trace
from debug.tracer.rerun import TracedStep
from debug.tracer.tracer import trace
from model import YoloModel
from ops.batch import Batch
from ops.device import DTYPES, dtype_name, pick_device
from ops.random_states import are_random_states, random_states
from runs import checkpoint
from runs.checkpoint import check_parts, read_sealed, write_sealed
from train.loss import DetectionLoss
from train.objective import DetectionObjective, DistillationObjective, Objective
from train.setup import build_network, build_objective

FORMAT = "mars-bad-step-1"
_BATCH = ("images", "boxes", "labels", "valid", "labelled")


@dataclass(frozen=True)
class Bundle:
    """What `write_bundle` wrote, on the CPU."""

    path: Path  # of the file
    batch: Batch
    weights: dict[str, Tensor]  # of the model, with the buffers from before the step
    extra_modules: list[dict[str, Tensor]]  # weights of the modules that are trained beside the model
    random: dict[str, Any]  # as `random_states` gives them
    config: dict[str, Any]
    precision: torch.dtype
    scale: float  # of the gradients
    message: str  # the error message of the step
    modules_in_train_mode: tuple[str, ...]
    trained_parameters: tuple[str, ...]  # those that require gradients
    distill_weight: float  # of the teacher's losses in that epoch
    teacher_checksum: str | None  # of the teacher's file; None without a teacher, and in bundles of older versions
    weights_file: str | None


def write_bundle(path: str | Path, step: TracedStep, config_json: str, message: str) -> Path:
    """Write a non-finite step to `path`, as a whole or not at all; returns the path.

    Bad values are written as they are. Raises `UserError` when the file cannot be written.
    """
    batch, model, objective = step.batch, step.model, step.objective
    content = {
        "format": FORMAT,
        "batch": {name: value for name in _BATCH if (value := getattr(batch, name)) is not None},
        "image_ids": list(batch.image_ids),
        "weights": {**model.state_dict(), **(step.buffers or {})},
        "learned": [module.state_dict() for module in objective.extra_modules],
        "random": dict(step.random or random_states()),
        "config": config_json,
        "precision": dtype_name(step.precision),
        "scale": float(step.scale),
        "message": message,
        "training": [name for name, module in model.named_modules() if module.training],
        "trained": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "strength": objective.distill_weight if isinstance(objective, DistillationObjective) else 0.0,
        "taught_by": objective.teacher_checksum,
        "weights_file": None if step.weights_file is None else str(step.weights_file),
    }
    write_sealed(Path(path), content)
    return Path(path)


def read_bundle(path: str | Path) -> Bundle:
    """Read what `write_bundle` wrote. Raises `UserError` when the file is missing, damaged or no bundle."""
    advice = "give the .pth file of a run's health folder"
    parts = read_sealed(Path(path), (FORMAT,), "a bundle of a non-finite step", advice)
    check_parts(parts, _CHECKS)
    tensors = parts["batch"]
    batch = Batch(
        tensors["images"], tensors["boxes"], tensors["labels"], tensors["valid"], tuple(parts["image_ids"]),
        labelled=tensors.get("labelled"),
    )  # fmt: skip
    return Bundle(
        path=parts.path,
        batch=batch,
        weights=parts["weights"],
        extra_modules=parts["learned"],
        random=parts["random"],
        config=json.loads(parts["config"]),
        precision=DTYPES[parts["precision"]],
        scale=parts["scale"],
        message=parts["message"],
        modules_in_train_mode=tuple(parts["training"]),
        trained_parameters=tuple(parts["trained"]),
        distill_weight=parts["strength"],
        teacher_checksum=parts.get("taught_by"),
        weights_file=parts["weights_file"],
    )


def _is_batch(parts: Any) -> bool:
    """Do the shapes fit together, and can the network take the images?"""
    images, boxes = parts["images"], parts["boxes"]
    count, channels, height, width = images.shape
    rows = boxes.shape[1]
    shapes = {"boxes": (count, rows, 4), "labels": (count, rows), "valid": (count, rows)}
    types = {"boxes": torch.float32, "labels": torch.int64, "valid": torch.bool}
    fits = all(parts[name].shape == shape and parts[name].dtype == types[name] for name, shape in shapes.items())
    labelled = parts.get("labelled")
    is_labelled = labelled is None or (labelled.dtype == torch.bool and labelled.shape[:-1] == (count,))
    is_image = images.dtype == torch.uint8 or images.is_floating_point()
    has_size = channels == 3 and height % 32 == width % 32 == 0 < count * height * width
    return fits and is_labelled and is_image and has_size


_CHECKS = {
    "batch": _is_batch,
    "image_ids": checkpoint.list_of(checkpoint.is_text),
    "weights": checkpoint.dict_of(checkpoint.is_tensor),
    "learned": checkpoint.list_of(checkpoint.dict_of(checkpoint.is_tensor)),
    "random": are_random_states,
    "config": checkpoint.is_config,
    "precision": checkpoint.is_precision,
    "scale": checkpoint.is_number,
    "message": checkpoint.is_text,
    "training": checkpoint.list_of(checkpoint.is_text),
    "trained": checkpoint.list_of(checkpoint.is_text),
    "strength": checkpoint.is_number,
    "weights_file": checkpoint.or_none(checkpoint.is_text),
    "taught_by": checkpoint.or_none(checkpoint.is_text),
}


def replay(bundle: Bundle, device: torch.device | None = None) -> Trace:
    """Trace the step of a bundle, with network and objective built from its config.

    `device` None: the config's, or the CPU when that is not available. Notes in the trace say what is different from
    the original step: another device, or a teacher whose file is missing or has changed. Raises `UserError` when config
    or weights do not fit this version.
    """
    try:
        mcfg = ModelConfig.from_dict(bundle.config)
    except UserError as error:
        raise UserError(f"{bundle.path}: its config does not fit this version: {error}") from error
    notes: list[str] = []
    if device is None:
        try:
            device = pick_device(mcfg.device, mcfg.cuda)
        except UserError as error:
            notes.append(f"replayed on the CPU, which rounds differently ({error})")
            device = torch.device("cpu")
    model = build_network(mcfg, device)
    try:
        model.load_state_dict(bundle.weights)
    except RuntimeError as error:
        raise UserError(
            f"{bundle.path}: its weights do not fit its config in this version; use the version that wrote it"
        ) from error
    for name, module in model.named_modules():
        module.training = name in bundle.modules_in_train_mode
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in bundle.trained_parameters)
    objective = _objective_of(bundle, mcfg, model, notes)
    found = trace(
        TracedStep(
            model, objective, bundle.batch.to(device), bundle.precision, bundle.scale, mcfg.lossReduction == "sum",
            random=bundle.random, weights_file=bundle.weights_file,
        )
    )  # fmt: skip
    found.notes = [*found.notes, *notes]
    return found


def _objective_of(bundle: Bundle, mcfg: ModelConfig, model: YoloModel, notes: list[str]) -> Objective:
    """With the bundle's projectors; without the teacher, and a note, when that does not fit or is missing."""
    try:
        objective = build_objective(mcfg, model, bundle.precision)
        try:
            for module, state in zip(objective.extra_modules, bundle.extra_modules, strict=True):
                module.load_state_dict(state)
        except (RuntimeError, ValueError) as error:  # ValueError: another number of modules
            raise UserError(
                f"{mcfg.teacherModelFile}: its features have other widths than those of the teacher in the bundle"
            ) from error
    except UserError as error:
        notes.append(f"replayed without the teacher, so its losses are missing ({error})")
        return DetectionObjective(DetectionLoss.from_config(mcfg, model))
    if isinstance(objective, DistillationObjective):
        objective.distill_weight = bundle.distill_weight
    if bundle.teacher_checksum not in (None, objective.teacher_checksum):
        notes.append(f"replayed with another teacher: {mcfg.teacherModelFile} has changed since the step")
    return objective
