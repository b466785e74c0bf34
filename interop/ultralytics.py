"""Official weights from Ultralytics, and checkpoints that Ultralytics can load.

Only this file imports ultralytics (AGPL-3.0), and only when one of these functions is called. No code of it is copied
here. A checkpoint written here contains objects of its classes and is therefore under its licence.
"""

import io
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor, nn

from config.errors import UserError
from config.mconfig import OFFICIAL_WEIGHTS
from model.base.head import OFFICIAL_CLASSES
from model.base.yolomodel import YoloModel
from model.weightsfile import their_key
from ops.boxes import cxcywh_to_xyxy
from ops.files import file_digest, make_folder, reporting_write_errors, write_atomic

LICENCE = "AGPL-3.0 (https://ultralytics.com/license)"  # of files that contain Ultralytics classes
ASSETS = "https://github.com/ultralytics/assets/releases"
_RETRIES = 1  # of a download; the default of three takes half a minute to fail
_STRIPPED = "❌ \n"  # characters removed from both ends of Ultralytics' error messages

# SHA-256 of the files in the releases of ultralytics/assets; some files were published in two versions.
OFFICIAL_SHA256 = {
    "yolov8n": ("f59b3d833e2ff32e194b5bb8e08d211dc7c5bdf144b90d2c8412c47ccfc83b36",),
    "yolov8s": (
        "1f47a78bf100391c2a140b7ac73a1caae18c32779be7d310658112f7ac9aa78a",
        "268e5bb54c640c96c3510224833bc2eeacab4135c6deb41502156e39986b562d",
    ),
    "yolov8m": (
        "6c25b0b63b1a433843f06d821a9ac1deb8d5805f74f0f38772c7308c5adc55a5",
        "5d4a90cdc7a21786cc59cd19778e9eafff836df9e2da32524737c7ee6efe4fe5",
    ),
    "yolov8l": ("18218ea4798da042d9862e6029ca9531adbd40ace19b6c9a75e2e28f1adf30cc",),
    "yolov8x": ("c4d5a3f000d771762f03fc8b57ebd0aae324aeaefdd6e68492a9c4470f2d1e8b",),
}


def fetch_official(name: str, folder: Path) -> Path:
    """The path of the official weights `name` (yolov8n, s, m, l or x) in `folder`; they are downloaded if missing.

    The SHA-256 is checked on every call, also for a file that the user put there. Raises `UserError` for another name,
    for a file that Ultralytics did not publish (a wrong download is deleted), and when the download is impossible: no
    internet, ultralytics not installed, disk full.
    """
    if name not in OFFICIAL_SHA256:
        raise UserError(f"{name}: no such official YOLOv8 weights; the names are {', '.join(OFFICIAL_SHA256)}")
    path = folder / f"{name}.pt"
    if path.exists():
        _check_digest(path, path, f"delete it to download it again, or use it as it is with checkpointModelFile={path}")
        return path
    draft = folder / f".{name}.{os.getpid()}.part" / path.name  # the download goes by the file name
    with reporting_write_errors(path, draft.parent, draft):
        try:
            make_folder(draft.parent)
            _download(draft, path)
            _check_digest(draft, path, "the download was deleted; try again, it may have been interrupted")
            draft.replace(path)
        finally:
            shutil.rmtree(draft.parent, ignore_errors=True)
    return path


def write_checkpoint(
    model: YoloModel,
    class_names: Sequence[str],
    path: Path | str,
    input_shape: tuple[int, int],
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write a `.pt` file that `ultralytics.YOLO(path)` can load, evaluate and train: our weights in its network.

    The weights are float32. `input_shape`: height and width of the network input, stored as `imgsz`. `about`: more
    entries for the file, such as the origin of the weights. `model` does not change. The file is written atomically.
    Returns the path. Raises `UserError` when ultralytics is not installed.
    """
    assert len(class_names) == model.num_classes, "one name per class"
    height, width = input_shape
    args = {"task": "detect", "imgsz": height if height == width else [height, width]}
    with _isolated_import():
        import ultralytics

        network = _ultralytics_network(model)
        network.task, network.nc, network.args = "detect", model.num_classes, args
        network.names = dict(enumerate(class_names))
        version = ultralytics.__version__
    content = {**(about or {}), "epoch": -1, "model": network.eval(), "ema": None, "optimizer": None}
    content |= {"train_args": args, "version": version, "license": LICENCE}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return write_atomic(path, buffer.getvalue())


@torch.no_grad()
def run_checkpoint(
    path: Path | str, images: Float[Tensor, "B 3 H W"]
) -> tuple[Float[Tensor, "B A 4"], Float[Tensor, "B A C"]]:
    """The outputs of `ultralytics.YOLO(path)` for images in [0, 1]: boxes, xyxy in pixels of the input, and scores."""
    with _isolated_import():
        from ultralytics import YOLO

        network = cast(nn.Module, YOLO(path).model)
        rows = network(images)[0].transpose(1, 2)
    return cxcywh_to_xyxy(rows[..., :4]), rows[..., 4:]


def _ultralytics_network(model: YoloModel) -> Any:
    """A network of Ultralytics with our weights. The random state of torch does not change."""
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    def build(num_classes: int) -> Any:
        plan: Any = yaml_model_load(f"{OFFICIAL_WEIGHTS[model.phase]}.yaml")
        return DetectionModel(plan | {"nc": num_classes, "reg_max": model.reg_max}, verbose=False)

    with torch.random.fork_rng(devices=[]):
        network = build(model.num_classes)
        head, width = network.model[-1], cast(nn.Sequential, model.head.cls[0])[-1].in_channels
        if head.cv3[0][-1].in_channels != width:
            # Our class branch has the width for the 80 classes of COCO although the model has fewer classes: take the
            # branches of an 80-class network and replace their last layers.
            head.cv3 = build(OFFICIAL_CLASSES).model[-1].cv3
            for branch in head.cv3:
                branch[-1] = nn.Conv2d(branch[-1].in_channels, model.num_classes, 1)
    network.load_state_dict({their_key(key): value for key, value in model.state_dict().items()}, strict=True)
    return network.float()


@contextmanager
def _isolated_import() -> Iterator[None]:
    """Within the block ultralytics can be imported; afterwards the global settings that it changes are restored.

    On import it replaces `PIL.Image.open` and `torch.save`, stops the threads of OpenCV, sets the number of OpenMP
    threads for later processes, and changes how numpy prints. Raises `UserError` when it cannot be imported.
    """
    image_open, torch_save, environment, threads = PIL.Image.open, torch.save, dict(os.environ), cv2.getNumThreads()
    try:
        with np.printoptions(), warnings.catch_warnings():
            yield
    except ImportError as error:
        raise UserError(f"ultralytics cannot be imported ({error}); pip install ultralytics") from error
    finally:
        PIL.Image.open, torch.save = image_open, torch_save
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        cv2.setNumThreads(threads)


def _download(draft: Path, path: Path) -> None:
    """Download the asset with the file name of `draft`, with the function of Ultralytics. Raises `UserError`."""
    manually = f"download the file from {ASSETS} and put it there"
    try:
        with _isolated_import():
            from ultralytics.utils.downloads import attempt_download_asset

            attempt_download_asset(str(draft), retry=_RETRIES)
    except UserError as error:
        raise UserError(f"{path}: is missing, and {error}, or {manually}") from error
    except (ConnectionError, MemoryError) as error:  # it raises MemoryError when the disk is full
        reason = str(error).strip(_STRIPPED)
        raise UserError(f"{path}: is missing and cannot be downloaded ({reason}); {manually}") from error
    if not draft.is_file():
        raise UserError(f"{path}: is missing, and nothing was downloaded; {manually}")


def _check_digest(file: Path, path: Path, solution: str) -> None:
    expected, found = OFFICIAL_SHA256[path.stem], file_digest(file)
    if found not in expected:
        raise UserError(
            f"{path}: is not the file that Ultralytics published: its SHA-256 is {found}, expected is "
            f"{' or '.join(expected)}; {solution}"
        )
