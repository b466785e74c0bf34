"""Official weights from Ultralytics, and checkpoints that Ultralytics loads.

The one place of the product that imports ultralytics (AGPL-3.0), and only when one of these functions is called.
Nothing of it is copied here. A checkpoint written here holds a network of its classes and is under its licence.
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
from model.keys import their_key
from ops.boxes import cxcywh_to_xyxy
from ops.files import make_folder, reporting_write_errors, write_atomic
from ops.seal import file_digest

LICENCE = "AGPL-3.0 (https://ultralytics.com/license)"  # of a file that holds their classes
ASSETS = "https://github.com/ultralytics/assets/releases"
_RETRIES = 1  # of a download; their own three waits half a minute before it gives up
_LEFT_OUT = "❌ \n"  # of their complaints

# SHA-256 of the files in Ultralytics' releases of assets; some were published twice.
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
    """The official weights `name` (yolov8n, s, m, l or x) in `folder`, downloaded when they are not there yet.

    Their SHA-256 is checked on every call, of a file that was put there by hand, too. Raises `UserError` for another
    name, for a file that is not what Ultralytics published (a download that is wrong is not kept), and when it cannot
    be had: no internet, no ultralytics, a full disk.
    """
    if name not in OFFICIAL_SHA256:
        raise UserError(f"{name}: no official weights of YOLOv8; there are {', '.join(OFFICIAL_SHA256)}")
    path = folder / f"{name}.pt"
    if path.exists():
        _check_digest(path, path, f"remove it, and it is fetched anew, or use it anyway: checkpointModelFile={path}")
        return path
    draft = folder / f".{name}.{os.getpid()}.part" / path.name  # their helper goes by the name of the file
    with reporting_write_errors(path, draft.parent, draft):
        try:
            make_folder(draft.parent)
            _download(draft, path)
            _check_digest(draft, path, "it was not kept; try again, for a download may break")
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
    """Write `checkpoint` to `path`, whole or not at all. Returns the path."""
    return write_atomic(path, checkpoint_bytes(model, class_names, input_shape, about))


def checkpoint_bytes(
    model: YoloModel,
    class_names: Sequence[str],
    input_shape: tuple[int, int],
    about: Mapping[str, str] | None = None,
) -> bytes:
    """A `.pt` file that `ultralytics.YOLO(path)` loads, evaluates and trains on: our weights in its network, float32.

    `input_shape`: height and width of the network input, which becomes its `imgsz`. `about`: what else the file is to
    say of itself, such as where the weights come from. `model` is left as it was. Raises `UserError` when ultralytics
    is not installed.
    """
    assert len(class_names) == model.num_classes, "one name a class"
    height, width = input_shape
    args = {"task": "detect", "imgsz": height if height == width else [height, width]}
    with _visiting():
        import ultralytics

        network = _their_network(model)
        network.task, network.nc, network.args = "detect", model.num_classes, args
        network.names = dict(enumerate(class_names))
        version = ultralytics.__version__
    content = {**(about or {}), "epoch": -1, "model": network.eval(), "ema": None, "optimizer": None}
    content |= {"train_args": args, "version": version, "license": LICENCE}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@torch.no_grad()
def run_checkpoint(
    path: Path | str, images: Float[Tensor, "B 3 H W"]
) -> tuple[Float[Tensor, "B A 4"], Float[Tensor, "B A C"]]:
    """What `ultralytics.YOLO(path)` makes of images in [0, 1]: boxes xyxy in their pixels, and scores."""
    with _visiting():
        from ultralytics import YOLO

        network = cast(nn.Module, YOLO(path).model)
        rows = network(images)[0].transpose(1, 2)
    return cxcywh_to_xyxy(rows[..., :4]), rows[..., 4:]


def _their_network(model: YoloModel) -> Any:
    """Ultralytics' network with our weights in it; the random state stays."""
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    def build(num_classes: int) -> Any:
        plan: Any = yaml_model_load(f"{OFFICIAL_WEIGHTS[model.phase]}.yaml")
        return DetectionModel(plan | {"nc": num_classes, "reg_max": model.reg_max}, verbose=False)

    with torch.random.fork_rng(devices=[]):
        network = build(model.num_classes)
        head, width = network.model[-1], cast(nn.Sequential, model.head.cls[0])[-1].in_channels
        if head.cv3[0][-1].in_channels != width:
            # As wide as for the classes of COCO, with rows for few: the branches of a wide network with another end.
            head.cv3 = build(OFFICIAL_CLASSES).model[-1].cv3
            for branch in head.cv3:
                branch[-1] = nn.Conv2d(branch[-1].in_channels, model.num_classes, 1)
    network.load_state_dict({their_key(key): value for key, value in model.state_dict().items()}, strict=True)
    return network.float()


@contextmanager
def _visiting() -> Iterator[None]:
    """Within the block ultralytics may be imported; afterwards the process is as it was before.

    On import it puts functions of its own in the places of `PIL.Image.open` and `torch.save`, stops OpenCV's threads,
    sets the number of OpenMP's threads for all processes to come, and changes how numpy prints. Raises `UserError` when
    it cannot be imported.
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
    """Let Ultralytics' own helper fetch the asset that bears the draft's name. Raises `UserError` when it did not."""
    by_hand = f"put the file there yourself, from {ASSETS}"
    try:
        with _visiting():
            from ultralytics.utils.downloads import attempt_download_asset

            attempt_download_asset(str(draft), retry=_RETRIES)
    except UserError as error:
        raise UserError(f"{path}: not there, and {error}, or {by_hand}") from error
    except (ConnectionError, MemoryError) as error:  # the second is how it says that the disk is full
        reason = str(error).strip(_LEFT_OUT)
        raise UserError(f"{path}: not there, and it cannot be downloaded ({reason}); {by_hand}") from error
    if not draft.is_file():
        raise UserError(f"{path}: not there, and nothing was downloaded; {by_hand}")


def _check_digest(file: Path, path: Path, way_out: str) -> None:
    expected, found = OFFICIAL_SHA256[path.stem], file_digest(file)
    if found not in expected:
        wanted = " or ".join(expected)
        raise UserError(
            f"{path}: is not the file that Ultralytics published: its SHA-256 is {found}, expected is {wanted}; "
            f"{way_out}"
        )
