"""The weights that a training starts from: which file, and what it wants of the network."""

import collections
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from config.errors import UserError
from config.load import CODE_DIR, FILE_SCHEME
from config.mconfig import ModelConfig
from interop.ultralytics import fetch_official
from model.weightsfile import read_weights
from ops.files import write_atomic
from runs.folder import RunFolder
from runs.origin import Origin, file_origin

log = logging.getLogger("mars")

PRETRAINED = CODE_DIR / "resources" / "pretrained"  # where official weights are kept


class StartingWeights(NamedTuple):
    """A file to start from, and whether only its backbone is taken."""

    path: Path
    backbone_only: bool = False


def starting_weights(mcfg: ModelConfig) -> StartingWeights | None:
    """The file that a config starts from, or None for random weights; official weights are fetched.

    Weights of a whole model fill the backbone, too, so a backbone file beside them is not read. Raises `UserError` when
    a backbone file is missing or official weights cannot be had.
    """
    whole = mcfg.pretrained or mcfg.checkpointModelFile
    if whole and mcfg.pretrainedBackboneUrl is not None:
        log.info("pretrainedBackboneUrl is not read: %s fills the backbone, too", whole)
    if mcfg.pretrained is not None:
        return StartingWeights(fetch_official(mcfg.pretrained, PRETRAINED))
    if mcfg.checkpointModelFile is not None:
        return StartingWeights(weights_at(Path(mcfg.checkpointModelFile)))
    if mcfg.pretrainedBackboneUrl is not None:
        return StartingWeights(_backbone_file(mcfg.pretrainedBackboneUrl), backbone_only=True)
    return None


def weights_at(place: Path) -> Path:
    """The weights file that a place stands for: itself, or of a run's folder the best weights, else the last."""
    if not place.is_dir():
        return place
    folder = RunFolder(place)
    return folder.best if folder.best.exists() or not folder.last.exists() else folder.last


def _backbone_file(address: str) -> Path:
    path = Path(address.removeprefix(FILE_SCHEME))
    if not path.is_file():
        command = f"python mars.py backbone FILE.pt --out {path}"
        raise UserError(f"{path}: no such backbone file; of official weights it is made by {command}")
    return path


def with_head_width(mcfg: ModelConfig, start: StartingWeights | None, begun: Mapping[str, Any] | None) -> ModelConfig:
    """The config with `keepHeadWidth` settled, where it is left open: as the starting weights have it.

    `begun`: the config of the run when it goes on, whose network must not change.
    """
    keep = mcfg.keepHeadWidth
    if keep is None and begun is not None:
        keep = begun.get("keepHeadWidth")
    elif keep is None and start is not None and not start.backbone_only:
        keep = read_weights(start.path).has_official_width(len(mcfg.classList or ()))
    return mcfg.with_values(keepHeadWidth=keep) if keep != mcfg.keepHeadWidth else mcfg


def with_pixel_max(mcfg: ModelConfig, begun: Mapping[str, Any] | None) -> ModelConfig:
    """The config with `pixelMax` settled, where it is left open: as the run began, else as its teacher was trained.

    None stays where neither says it: then the data decide. `begun`: the config of the run when it goes on. A student
    must have the range of its teacher, for both are given the same batches.
    """
    if mcfg.pixelMax is None and begun is None and mcfg.modelName == "distillation":
        teacher = weights_at(Path(mcfg.teacherModelFile or ""))
        begun = read_weights(teacher).config if teacher.is_file() else None
    value = mcfg.pixelMax or (begun or {}).get("pixelMax")
    return mcfg.with_values(pixelMax=value) if value != mcfg.pixelMax else mcfg


def write_backbone(source: Path, target: Path) -> int:
    """Write the backbone out of the weights in `source`, in float32, as `backbone.l0.conv.weight` and so on.

    Returns how many tensors it has. Whose weights they are stays with them, in the metadata that torch keeps with a
    state dict, so that the file is a plain state dict to every reader. Raises `UserError` when `source` has no
    backbone of ours, or when something else lies at `target`.
    """
    tensors = read_weights(source).backbone()
    if tensors is None:
        raise UserError(f"{source}: has no backbone of a YOLOv8; take the weights of a whole YOLOv8 network")
    origin = file_origin(source)
    if target.exists() and not _is_made_of(target, origin):
        raise UserError(f"{target}: is there already and was not made from these weights; remove it, or --out FILE")
    state = collections.OrderedDict((key, _lifted(value)) for key, value in tensors.items())
    state._metadata = {"": {"version": 1, "weights_origin": origin}}  # type: ignore[attr-defined]
    content = io.BytesIO()
    torch.save(state, content)
    write_atomic(target, content.getvalue())
    return len(state)


def _is_made_of(file: Path, origin: Origin) -> bool:
    """Was this backbone file written from the weights of this origin?"""
    try:
        read_weights(file)
    except UserError:  # something else lies there
        return False
    return (file_origin(file)["from"] or {}).get("sha256") == origin["sha256"]


def _lifted(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().contiguous() if tensor.dtype.is_floating_point else tensor
