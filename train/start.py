"""The weights that a training starts from: which files, and what they want of the network."""

import collections
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from config.errors import UserError
from config.load import CODE_DIR
from config.mconfig import ModelConfig
from config.places import FILE_SCHEME
from interop.ultralytics import fetch_official
from model.pretrained import read_weights
from ops.files import write_whole
from train.origin import file_origin

PRETRAINED = CODE_DIR / "resources" / "pretrained"  # where official weights are kept


def starting_files(mcfg: ModelConfig) -> list[Path]:
    """The files that a config starts from, in the order in which they are loaded; official weights are fetched.

    Empty: random weights. Raises `UserError` when a backbone file is missing or official
    weights cannot be had.
    """
    files = []
    if mcfg.pretrainedBackboneUrl is not None:
        files.append(_backbone_file(mcfg.pretrainedBackboneUrl))
    if mcfg.checkpointModelFile is not None:
        files.append(Path(mcfg.checkpointModelFile))
    if mcfg.pretrained is not None:
        files.append(fetch_official(mcfg.pretrained, PRETRAINED))
    return files


def _backbone_file(address: str) -> Path:
    path = Path(address.removeprefix(FILE_SCHEME))
    if not path.is_file():
        command = f"python mars.py backbone FILE.pt --out {path}"
        raise UserError(f"{path}: no such backbone file; of official weights it is made by {command}")
    return path


def with_head_width(mcfg: ModelConfig, files: Sequence[Path], begun: Mapping[str, Any] | None) -> ModelConfig:
    """The config with `keepHeadWidth` settled, where it is left open: as the starting weights have it.

    `begun`: the config of the run when it goes on, whose network must not change.
    """
    if mcfg.keepHeadWidth is not None:
        return mcfg
    if begun is not None:
        keep = begun.get("keepHeadWidth")
    else:
        heads = [file for file in map(read_weights, files) if not file.is_backbone]
        keep = heads[-1].has_official_width(len(mcfg.classList or ())) if heads else None
    return mcfg if keep is None else ModelConfig.from_dict({**mcfg.to_dict(), "keepHeadWidth": keep})


def write_backbone(source: Path, target: Path) -> int:
    """Write the backbone out of the weights in `source`, in float32, as `backbone.l0.conv.weight` and so on.

    Returns how many tensors it has. Whose weights they are stays with them, in the metadata that torch keeps with a
    state dict, so that the file is a plain state dict to every reader. Raises `UserError` when `source` has no
    backbone of ours, or when something else lies at `target`.
    """
    tensors = {key: value for key, value in read_weights(source).tensors.items() if key.startswith("backbone.")}
    if not tensors:
        raise UserError(f"{source}: has no backbone of a YOLOv8; take weights of a whole YOLOv8 network")
    state = collections.OrderedDict((key, _lifted(value)) for key, value in tensors.items())
    origin = file_origin(source)
    state._metadata = {"": {"version": 1, "weights_origin": origin}}  # type: ignore[attr-defined]
    if target.exists() and (file_origin(target)["from"] or {}).get("sha256") != origin["sha256"]:
        raise UserError(f"{target}: is there already, made from other weights; remove it, or write --out FILE")
    content = io.BytesIO()
    torch.save(state, content)
    write_whole(target, content.getvalue())
    return len(state)


def _lifted(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().contiguous() if tensor.dtype.is_floating_point else tensor
