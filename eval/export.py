"""A trained network as one file for other programs: ONNX, torch.export, or a checkpoint of Ultralytics.

Legend: B images, A anchor points, C classes, K detections of all images together. ONNX and torch.export files take
`images` float32 (B, 3, H, W), RGB in [0, 1], any B, and give `boxes` (B, A, 4), xyxy in their pixels, and `scores`
(B, A, C), probabilities; or, with suppression inside (ONNX), `detections` (K, 7). A file is only written after it was
run and gave what our network gives.
"""

import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from config.errors import UserError
from dl.augment import GREY
from eval.export_check import Difference, check_images, verify
from eval.export_model import SUFFIXES, DecodedModel, quiet
from eval.onnx_selection import IR_VERSION, OPSET, NmsSettings, append_selection
from interop.ultralytics import LICENCE, write_checkpoint
from model.base.yolomodel import YoloModel
from ops.files import write_atomic

METADATA_FILE = "metadata.json"  # of a torch.export archive, among its extra files

_OLDEST_TORCH = (2, 8)  # that writes ONNX with the onnxscript of today; 2.6 fails on batch norm


class ExportReport(NamedTuple):
    """What was written, and what its check found."""

    path: Path
    num_bytes: int
    difference: Difference | None  # None: not checked, the notes say why
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"{self.path}: {self.num_bytes / 1e6:.1f} MB", *(f"  {note}" for note in self.notes)))


def export(
    model: YoloModel,
    format: str,  # noqa: A002 (the command line's word)
    path: Path | str,
    class_names: Sequence[str],
    shape: tuple[int, int],
    nms: NmsSettings | None = None,
    origin: str = "",
) -> ExportReport:
    """Write `model` to `path` as onnx, torch or ultralytics, once the file has given what the model gives.

    `shape`: height and width of the input. `nms` (onnx): the selection of `ops.nms` inside, without its limit on
    candidates. `origin`: where the weights come from, for the file to say. `model` is left as it was. Raises
    `UserError` for what a user can mend (another suffix, a library that is not installed, a full disk) and
    `RuntimeError` when the file gives other figures; then nothing is written.
    """
    path = Path(path)
    _refuse(format, path, nms)
    with tempfile.TemporaryDirectory(prefix="mars-export-") as folder:
        draft = Path(folder, path.name)
        if format == "onnx":
            export_onnx(model, shape, draft, class_names, nms, origin)
        elif format == "torch":
            export_torch(model, shape, draft, class_names, origin)
        else:
            write_checkpoint(model, class_names, draft, shape, {"origin": origin} if origin else {})
        difference = verify(draft, model, check_images(shape), nms)
        if difference is not None and not difference.is_rounding:
            raise RuntimeError(f"{path}: not written, for the file gives other figures than the network: {difference}")
        content = draft.read_bytes()
    write_atomic(path, content)
    return ExportReport(path, len(content), difference, _notes(format, shape, nms, difference))


def export_onnx(
    model: YoloModel,
    shape: tuple[int, int],
    path: Path | str,
    class_names: Sequence[str],
    nms: NmsSettings | None = None,
    origin: str = "",
) -> Path:
    """Write an ONNX file, weights inside: `images` -> `boxes` and `scores`, or with `nms` -> `detections` (K, 7).

    A row of `detections` is image in the batch, x1, y1, x2, y2, score, label; image after image, best first, without
    padding: those of image i are `detections[detections[:, 0] == i]`, and nothing found gives (0, 7). Class names (a
    JSON list), input shape and origin are in the metadata. Raises `UserError` when onnx or onnxscript is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (the exporter wants it)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed, which writes ONNX; pip install onnx onnxscript") from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < _OLDEST_TORCH:
        wanted = ".".join(map(str, _OLDEST_TORCH))
        raise UserError(f"torch {torch.__version__}: writing ONNX needs torch {wanted} or later; pip install -U torch")
    with quiet():
        program = torch.onnx.export(
            DecodedModel(model, shape),
            (torch.zeros(2, 3, *shape),),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["boxes", "scores"],
            opset_version=OPSET,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        )
    assert program is not None
    proto = program.model_proto
    _forget_its_making(proto)
    if nms is not None:
        append_selection(proto, nms)
    onnx.helper.set_model_props(proto, _metadata(class_names, shape, nms, origin))
    onnx.checker.check_model(proto, full_check=True)
    return write_atomic(path, proto.SerializeToString())


def export_torch(
    model: YoloModel, shape: tuple[int, int], path: Path | str, class_names: Sequence[str], origin: str = ""
) -> Path:
    """Write a program for `torch.export.load(path).module()`: images -> (boxes, scores).

    Its extra file `metadata.json` holds what the metadata of the ONNX file hold.
    """
    with torch.no_grad(), quiet():
        program = torch.export.export(
            DecodedModel(model, shape),
            (torch.zeros(2, 3, *shape),),
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            strict=False,
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # holds the paths of our source files
        # One number in the file instead of two images; torch 2.4 has no setter for it.
        program._example_inputs = ((torch.zeros(1).expand(2, 3, *shape),), {})
        buffer = io.BytesIO()
        metadata = _metadata(class_names, shape, None, origin)
        torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})
    return write_atomic(path, buffer.getvalue())


def _refuse(kind: str, path: Path, nms: NmsSettings | None) -> None:
    """Raise `UserError` for what does not go together."""
    if kind not in SUFFIXES:
        raise UserError(f"--format {kind}: no such format; there are {', '.join(SUFFIXES)}")
    if path.suffix != SUFFIXES[kind]:
        raise UserError(f"{path}: a file of format {kind} must end in {SUFFIXES[kind]}")
    if nms is not None and kind != "onnx":
        raise UserError(f"--format {kind}: suppression goes inside ONNX files only; leave it out, or --format onnx")


def _metadata(
    class_names: Sequence[str], shape: tuple[int, int], nms: NmsSettings | None, origin: str
) -> dict[str, str]:
    """What a file says of itself; lists and numbers as JSON."""
    values = {
        "producer": "Mars",
        "task": "detect",
        "names": json.dumps(list(class_names), ensure_ascii=False),
        "input_shape": json.dumps(list(shape)),
        "input": f"float32 (batch, 3, height, width), RGB in [0, 1], scaled to fit, centred on grey {GREY}",
        "license": "the code that made this file is under MIT, the weights are under the licence of their origin",
    }
    values |= {"origin": origin} if origin else {}
    return values | ({name: json.dumps(value) for name, value in nms._asdict().items()} if nms else {})


def _forget_its_making(proto: Any) -> None:
    """Drop what the exporter notes of every node, among it the paths of our source files, and say who made it."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    proto.ir_version, proto.producer_name, graph.name = IR_VERSION, "Mars", "yolov8"
    proto.ClearField("producer_version")


def _notes(
    kind: str, shape: tuple[int, int], nms: NmsSettings | None, difference: Difference | None
) -> tuple[str, ...]:
    by = {"onnx": "onnxruntime", "torch": "torch.export.load", "ultralytics": "ultralytics.YOLO"}[kind]
    check = f"checked with {by} in batches of 3 and 1: {difference}"
    if difference is None:
        check = f"not checked: {by} is not installed (pip install {by})"
    if kind == "ultralytics":
        return check, f"holds classes of Ultralytics, and is under {LICENCE}"
    gives = (
        "boxes (xyxy in its pixels) and scores" if nms is None else "detections: image, x1, y1, x2, y2, score, label"
    )
    return f"images (batch, 3, {shape[0]}, {shape[1]}), float32, RGB in [0, 1] -> {gives}", check
