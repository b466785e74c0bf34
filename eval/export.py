"""Export of a trained network to one file for other programs: ONNX, torch.export, or a checkpoint of Ultralytics.

Legend: B images, A anchor points, C classes, K detections of all images together. The input of ONNX and torch.export
files is `images`, float32 (B, 3, H, W), RGB in [0, 1], for any B. The outputs are `boxes` (B, A, 4), xyxy in pixels of
the input, and `scores` (B, A, C), probabilities; with suppression inside (ONNX only) `detections` (K, 7). Every file is
run and compared with our network before it is written.
"""

import importlib.util
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from config.errors import UserError
from dl.augment import GREY
from eval.export_model import IR_VERSION, OPSET, SUFFIXES, DecodedModel, NmsSettings, append_selection, quiet
from interop.ultralytics import LICENCE, run_checkpoint, write_checkpoint
from model.base.yolomodel import YoloModel
from ops.files import write_atomic
from ops.nms import select_detections

METADATA_FILE = "metadata.json"  # one of the extra files of a torch.export archive

_MIN_TORCH = (2, 8)  # older versions do not work with today's onnxscript; 2.6 fails on batch norm
# Limits of the comparison: above the float32 rounding of any machine, and below anything that matters.
_MAX_BOX_ERROR, _MAX_SCORE_ERROR, _MAX_UNLIKE_SHARE = 0.25, 1e-3, 0.01


class Difference(NamedTuple):
    """The largest differences between the outputs of a file and of our network.

    Of detections: how many were compared, and how many of them differ.
    """

    boxes: float  # pixels of the network input
    scores: float
    detections: int | None = None  # None: the file contains no selection
    unlike: int = 0

    @property
    def is_rounding(self) -> bool:
        """True when rounding explains the differences. NaN is not rounding."""
        # an IoU can be rounded across the threshold, which removes a detection
        is_same_selection = self.unlike <= _MAX_UNLIKE_SHARE * (self.detections or 0)
        return self.boxes <= _MAX_BOX_ERROR and self.scores <= _MAX_SCORE_ERROR and is_same_selection

    def __str__(self) -> str:
        text = f"boxes differ by at most {self.boxes:.1e} pixels, scores by at most {self.scores:.1e}"
        if self.detections is None:
            return text
        return f"{text}; {self.detections - self.unlike} of {self.detections} detections equal those of Mars"


class ExportReport(NamedTuple):
    """The written file and the result of its check."""

    path: Path
    num_bytes: int
    difference: Difference | None  # None: not checked, for the reason in the notes
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"{self.path}: {self.num_bytes / 1e6:.1f} MB", *(f"  {note}" for note in self.notes)))


def export(
    model: YoloModel,
    format: str,  # noqa: A002 (as on the command line)
    path: Path | str,
    class_names: Sequence[str],
    shape: tuple[int, int],
    nms: NmsSettings | None = None,
    origin: str = "",
) -> ExportReport:
    """Write `model` to `path` as onnx, torch or ultralytics, after a check that the file gives the same results.

    `shape`: height and width of the input. `nms` (onnx only): put the selection of `ops.nms` into the file, without its
    limit on candidates. `origin`: where the weights come from, stored in the file. `model` does not change. Raises
    `UserError` for a wrong suffix, a missing library or a full disk, and `RuntimeError` when the file gives different
    results; then nothing is written.
    """
    path = Path(path)
    if format not in SUFFIXES:
        raise UserError(f"--format {format}: no such format; the formats are {', '.join(SUFFIXES)}")
    if path.suffix != SUFFIXES[format]:
        raise UserError(f"{path}: a file of format {format} must end in {SUFFIXES[format]}")
    if nms is not None and format != "onnx":
        raise UserError(f"--format {format}: only ONNX files can contain suppression; leave out --nms or use onnx")
    metadata = _metadata(class_names, shape, nms, origin)
    with tempfile.TemporaryDirectory(prefix="mars-export-") as folder:
        draft = Path(folder, path.name)
        if format == "onnx":
            export_onnx(model, shape, draft, metadata, nms)
        elif format == "torch":
            export_torch(model, shape, draft, metadata)
        else:
            write_checkpoint(model, class_names, draft, shape, {"origin": origin} if origin else {})
        difference = verify(draft, model, check_images(shape), nms)
        if difference is not None and not difference.is_rounding:
            raise RuntimeError(f"{path}: not written: its results differ from those of the network: {difference}")
        content = draft.read_bytes()
    write_atomic(path, content)
    return ExportReport(path, len(content), difference, _notes(format, shape, nms, difference))


def export_onnx(
    model: YoloModel, shape: tuple[int, int], path: Path, metadata: dict[str, str], nms: NmsSettings | None
) -> None:
    """Write an ONNX file that contains the weights: `images` -> `boxes` and `scores`, or with `nms` -> `detections`.

    `detections` is (K, 7): number of the image in the batch, x1, y1, x2, y2, score, label; image after image, highest
    score first, without padding. Those of image i are `detections[detections[:, 0] == i]`; without detections the shape
    is (0, 7). Raises `UserError` when onnx or onnxscript is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (the exporter needs it)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; ONNX export needs it: pip install onnx onnxscript") from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < _MIN_TORCH:
        minimum = ".".join(map(str, _MIN_TORCH))
        raise UserError(f"torch {torch.__version__}: ONNX export needs torch {minimum} or later; pip install -U torch")
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
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")  # notes of the exporter, such as the paths of our source files
        part.ClearField("doc_string")
    proto.ir_version, proto.producer_name, graph.name = IR_VERSION, "Mars", "yolov8"
    proto.ClearField("producer_version")
    if nms is not None:
        append_selection(proto, nms)
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())


def export_torch(model: YoloModel, shape: tuple[int, int], path: Path, metadata: dict[str, str]) -> None:
    """Write a program for `torch.export.load(path).module()`: images -> (boxes, scores).

    Its extra file `metadata.json` contains the same metadata as the ONNX file.
    """
    with torch.no_grad(), quiet():
        program = torch.export.export(
            DecodedModel(model, shape),
            (torch.zeros(2, 3, *shape),),
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            strict=False,
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # contains the paths of our source files
        # Otherwise the example images would be stored in the file. torch 2.4 has no setter for them.
        program._example_inputs = ((torch.zeros(1).expand(2, 3, *shape),), {})
        buffer = io.BytesIO()  # with a path, the name of the draft would be stored in the file
        torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})
    path.write_bytes(buffer.getvalue())


def _metadata(
    class_names: Sequence[str], shape: tuple[int, int], nms: NmsSettings | None, origin: str
) -> dict[str, str]:
    """The metadata of ONNX and torch.export files: class names, input shape, origin. Lists and numbers as JSON."""
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


def _notes(
    kind: str, shape: tuple[int, int], nms: NmsSettings | None, difference: Difference | None
) -> tuple[str, ...]:
    by = {"onnx": "onnxruntime", "torch": "torch.export.load", "ultralytics": "ultralytics.YOLO"}[kind]
    check = f"checked with {by} in batches of 3 and 1: {difference}"
    if difference is None:
        check = f"not checked: {by} is not installed (pip install {by})"
    if kind == "ultralytics":
        return check, f"contains classes of Ultralytics; licence: {LICENCE}"
    outputs = (
        "boxes (xyxy in pixels of the input) and scores"
        if nms is None
        else "detections: image, x1, y1, x2, y2, score, label"
    )
    return f"images (batch, 3, {shape[0]}, {shape[1]}), float32, RGB in [0, 1] -> {outputs}", check


@torch.no_grad()
def verify(
    path: Path | str, model: YoloModel, images: Float[Tensor, "B 3 H W"], nms: NmsSettings | None = None
) -> Difference | None:
    """Run an exported file on images in [0, 1], on all together and on the first alone, and compare with our network.

    `nms`: the settings of the selection in the file. It is compared with `ops.nms` on the boxes of the file and on
    random ones, because the images may contain no object. None when onnxruntime, needed for ONNX, is not installed.
    """
    path = Path(path)
    if path.suffix == SUFFIXES["onnx"] and importlib.util.find_spec("onnxruntime") is None:
        return None
    reference, run = DecodedModel(model, (images.shape[2], images.shape[3])), _open(path, nms is not None)
    outputs = [(reference(part), run(part)) for part in (images, images[:1])]
    boxes, scores = (
        torch.stack([(expected[i] - found[i]).abs().max() for expected, found in outputs]).max().item() for i in (0, 1)
    )
    if nms is None:
        return Difference(boxes, scores)
    random = _random_predictions(len(reference.points), model.num_classes, nms)
    cases = [*(found for _, found in outputs), (*random, *_open_selection(path)(*random))]
    counts = [_compare_selections(case, nms) for case in cases]
    return Difference(boxes, scores, sum(number for number, _ in counts), sum(unlike for _, unlike in counts))


def check_images(shape: tuple[int, int]) -> Float[Tensor, "3 3 H W"]:
    """Three images for the check, the same on every call: coloured blocks with noise."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(3, 3, -(-shape[0] // 32), -(-shape[1] // 32), generator=generator)
    blocks = blocks.repeat_interleave(32, dim=2).repeat_interleave(32, dim=3)[:, :, : shape[0], : shape[1]]
    return 0.8 * blocks + 0.2 * torch.rand(blocks.shape, generator=generator)


def _open(path: Path, selects: bool) -> Callable[[Tensor], Sequence[Tensor]]:
    """A function that runs the file: images -> boxes and scores, and detections if the file `selects`."""
    if path.suffix == SUFFIXES["torch"]:
        with quiet():
            return torch.export.load(path).module()
    if path.suffix == SUFFIXES["ultralytics"]:
        return lambda images: run_checkpoint(path, images)
    import onnx

    proto = onnx.load(path)
    if selects:  # boxes and scores inside the file become outputs too
        inner = [info for info in proto.graph.value_info if info.name in ("boxes", "scores")]
        proto.graph.output.extend(inner)
    run = _open_onnx(proto, ["boxes", "scores", "detections"] if selects else ["boxes", "scores"])
    return lambda images: run(images=images)


def _open_selection(path: Path) -> Callable[[Tensor, Tensor], Sequence[Tensor]]:
    """A function that runs only the selection of the file: boxes and scores -> detections."""
    import onnx

    part = onnx.utils.Extractor(onnx.load(path)).extract_model(["boxes", "scores"], ["detections"])
    run = _open_onnx(part, ["detections"])
    return lambda boxes, scores: run(boxes=boxes, scores=scores)


def _open_onnx(proto: Any, outputs: list[str]) -> Callable[..., list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda **inputs: [
        torch.from_numpy(output)
        for output in session.run(outputs, {name: value.numpy() for name, value in inputs.items()})
    ]


def _random_predictions(num_points: int, num_classes: int, nms: NmsSettings) -> tuple[Tensor, Tensor]:
    """Boxes and scores of three images: with more objects than the limit, with scores near the threshold, empty."""
    generator = torch.Generator().manual_seed(0)
    centres, sizes = (torch.rand(3, num_points, 2, generator=generator) * scale for scale in (300, 200))
    scores, lots = torch.rand(2, 3, num_points, num_classes, generator=generator)
    scores[1] = nms.score_threshold * (0.9 + 0.2 * scores[1])
    share = torch.tensor((200 / num_points, nms.max_detections / (2 * num_points * num_classes), 0.0))
    return torch.cat((centres - sizes / 2, centres + sizes / 2), dim=2), scores * (lots < share[:, None, None])


def _compare_selections(case: Sequence[Tensor], nms: NmsSettings) -> tuple[int, int]:
    """The number of detections that `ops.nms` selects, and how many detections of the file differ from them."""
    boxes, scores, detections = case
    rows = []
    for image in range(len(boxes)):
        selected = select_detections(boxes[image], scores[image], *nms)
        number = torch.full((len(selected.scores), 1), float(image))
        columns = number, selected.boxes, selected.scores[:, None], selected.labels[:, None].float()
        rows.append(torch.cat(columns, dim=1))
    expected, found = ({tuple(row) for row in table.tolist()} for table in (torch.cat(rows), detections))
    return len(expected), max(len(expected - found), len(found - expected))
