"""The weights that a training starts from: which file, and which config fields follow from it."""

import collections
import io
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from config.errors import UserError
from config.load import CODE_DIR, FILE_SCHEME
from config.mconfig import ModelConfig
from interop.ultralytics import fetch_official
from model.weightsfile import WeightsFile, read_weights
from ops.files import write_atomic
from runs.folder import RunFolder
from runs.provenance import file_origin

log = logging.getLogger("mars")

PRETRAINED = CODE_DIR / "resources" / "pretrained"  # the folder of official weights


class StartingWeights(NamedTuple):
    """A weights file to start from, and whether only its backbone is used."""

    path: Path
    backbone_only: bool = False


def starting_weights(mcfg: ModelConfig) -> StartingWeights | None:
    """The file that a config starts from, or None for random weights. Official weights are downloaded.

    Weights of a whole model include the backbone, so a separate backbone file is then ignored. Raises `UserError` if a
    backbone file is missing or official weights cannot be downloaded.
    """
    whole = mcfg.pretrained or mcfg.checkpointModelFile
    if whole and mcfg.pretrainedBackboneUrl is not None:
        log.info("pretrainedBackboneUrl is ignored: %s includes the backbone", whole)
    if mcfg.pretrained is not None:
        return StartingWeights(fetch_official(mcfg.pretrained, PRETRAINED))
    if mcfg.checkpointModelFile is not None:
        return StartingWeights(weights_at(Path(mcfg.checkpointModelFile)))
    if mcfg.pretrainedBackboneUrl is not None:
        path = Path(mcfg.pretrainedBackboneUrl.removeprefix(FILE_SCHEME))
        if not path.is_file():
            command = f"python mars.py backbone FILE.pt --out {path}"
            raise UserError(f"{path}: no such backbone file; make it from official weights with: {command}")
        return StartingWeights(path, backbone_only=True)
    return None


def weights_at(place: Path) -> Path:
    """A weights file itself, or the weights of a run folder: the best, or the last if there are no best ones."""
    if not place.is_dir():
        return place
    folder = RunFolder(place)
    return folder.best if folder.best.exists() or not folder.last.exists() else folder.last


def with_head_width(mcfg: ModelConfig, start: WeightsFile | None, saved: Mapping[str, Any] | None) -> ModelConfig:
    """The config with a value for `keepHeadWidth`. If it is None, the width of the starting weights decides.

    `start`: weights of a whole model, or None. `saved`: the config of a run that is resumed; its network must not
    change.
    """
    keep = mcfg.keepHeadWidth
    if keep is None and saved is not None:
        keep = saved.get("keepHeadWidth")
    elif keep is None and start is not None:
        keep = start.has_official_width(len(mcfg.classList or ()))
    return mcfg.with_values(keepHeadWidth=keep) if keep != mcfg.keepHeadWidth else mcfg


def with_pixel_max(mcfg: ModelConfig, saved: Mapping[str, Any] | None) -> ModelConfig:
    """The config with a value for `pixelMax`. If it is None, the saved config decides, else that of the teacher.

    It stays None if neither has a value; then the data decide. `saved`: the config of a run that is resumed. A student
    must use the range of its teacher, because both get the same batches.
    """
    if mcfg.pixelMax is None and saved is None and mcfg.modelName == "distillation":
        teacher = weights_at(Path(mcfg.teacherModelFile or ""))
        saved = read_weights(teacher).config if teacher.is_file() else None
    value = mcfg.pixelMax or (saved or {}).get("pixelMax")
    return mcfg.with_values(pixelMax=value) if value != mcfg.pixelMax else mcfg


def write_backbone(source: WeightsFile, target: Path) -> int:
    """Write the backbone of the weights in `source`, in float32, with names such as `backbone.l0.conv.weight`.

    Returns the number of tensors. The origin of the weights is written to the metadata of the state dict, so other
    programs still read a plain state dict. Raises `UserError` if `source` has no YOLOv8 backbone, or if `target` is
    another file.
    """
    tensors = source.backbone()
    if tensors is None:
        raise UserError(f"{source.path}: has no backbone of a YOLOv8; use the weights of a whole YOLOv8 network")
    origin = file_origin(source.path)
    if target.exists():
        is_same = False
        with suppress(UserError):  # a file of another kind
            is_backbone = read_weights(target).is_backbone  # not a checkpoint that was trained from these weights
            is_same = is_backbone and (file_origin(target)["from"] or {}).get("sha256") == origin["sha256"]
        if not is_same:
            raise UserError(
                f"{target}: exists already and was not made from these weights; remove it, or use --out FILE"
            )
    state = collections.OrderedDict(
        (key, value.float().contiguous() if value.is_floating_point() else value) for key, value in tensors.items()
    )
    state._metadata = {"": {"version": 1, "weights_origin": origin}}  # type: ignore[attr-defined]
    content = io.BytesIO()
    torch.save(state, content)
    write_atomic(target, content.getvalue())
    return len(state)
