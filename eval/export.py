"""A trained network as one file for other programs: ONNX, torch.export, or a checkpoint of Ultralytics.

Legend: B images, A anchor points, C classes, K detections of all images together. ONNX and torch.export files take
`images` float32 (B, 3, H, W), RGB in [0, 1], any B, and give `boxes` (B, A, 4), xyxy in their pixels, and `scores`
(B, A, C), probabilities; or, with suppression inside (ONNX), `detections` (K, 7). A file is only written after it was
run and gave what our network gives.
"""

import copy
import importlib.util
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from config.errors import UserError
from dl.augment import GREY
from interop.ultralytics import LICENCE, run_checkpoint, write_checkpoint
from model.base.yolomodel import YoloModel
from ops.anchors import anchors_of, decode_boxes, flatten_maps
from ops.files import write_whole
from ops.nms import select_detections

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "ultralytics": ".pt"}
METADATA_FILE = "metadata.json"  # of a torch.export archive, among its extra files

# Both of early 2023, so that onnxruntime 1.14 and all later ones read the files; nothing here needs more.
OPSET, IR_VERSION = 18, 8
_OLDEST_TORCH = (2, 8)  # that writes ONNX with the onnxscript of today; 2.6 fails on batch norm

# More than float32 rounding gives on any machine, less than anyone could see.
_ALLOWED_PIXELS, _ALLOWED_SCORE, _ALLOWED_SHARE = 0.25, 1e-3, 0.01

# In ONNX's own notation. Behind the network it does what `ops.nms.select_detections` does: multi-label, class by class,
# the best few of each image; image after image, best first. NonMaxSuppression names its finds (image, class, point),
# class by class; they are put point by point first, for TopK leaves equal scores in their order, as our selection does.
# Image numbers are taken off the scores twice, so that one sorting, in float64, serves all images.
_SELECTION = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
selection (float[batch, anchors, 4] boxes, float[batch, anchors, classes] scores) => (float[found, 7] detections)
{{
    most = Constant <value_int = {most}> ()
    overlap = Constant <value_float = {overlap!r}> ()
    threshold = Constant <value_float = {threshold!r}> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_int = 2> ()
    first_axis = Constant <value_ints = [0]> ()
    second_axis = Constant <value_ints = [1]> ()
    by_class = Transpose <perm = [0, 2, 1]> (scores)
    class_by_class = NonMaxSuppression (boxes, by_class, most, overlap, threshold)
    finds_shape = Shape (class_by_class)
    num_finds = Slice (finds_shape, first_axis, second_axis)
    found_image, found_class, found_point = Split <axis = 1, num_outputs = 3> (class_by_class)
    scores_shape = Shape (scores)
    num_classes = Gather <axis = 0> (scores_shape, two)
    first_of_point = Mul (found_point, num_classes)
    place_in_scores = Add (first_of_point, found_class)
    place = Squeeze (place_in_scores, second_axis)
    places, point_order = TopK <axis = 0, largest = 0> (place, num_finds)
    finds = Gather <axis = 0> (class_by_class, point_order)
    image, label, point = Split <axis = 1, num_outputs = 3> (finds)
    box_place = Concat <axis = 1> (image, point)
    box = GatherND (boxes, box_place)
    score = GatherND (by_class, finds)
    score_column = Unsqueeze (score, second_axis)
    image_column = Cast <to = 1> (image)
    label_column = Cast <to = 1> (label)
    rows = Concat <axis = 1> (image_column, box, score_column, label_column)
    image_of = Squeeze (image, second_axis)
    image_exact = Cast <to = 11> (image_of)
    score_exact = Cast <to = 11> (score)
    score_less_image = Sub (score_exact, image_exact)
    sort_key = Sub (score_less_image, image_exact)
    keys, order = TopK <axis = 0> (sort_key, num_finds)
    sorted_rows = Gather <axis = 0> (rows, order)
    sorted_image = Gather <axis = 0> (image_of, order)
    num_images = Gather <axis = 0> (scores_shape, zero)
    image_numbers = Range (zero, num_images, one)
    image_table = Unsqueeze (image_numbers, second_axis)
    is_of_image = Equal (image_table, sorted_image)
    is_of_image_int = Cast <to = 7> (is_of_image)
    count_of_image = ReduceSum <keepdims = 0> (is_of_image_int, second_axis)
    start_of_image = CumSum <exclusive = 1> (count_of_image, zero)
    start = Gather <axis = 0> (start_of_image, sorted_image)
    num_rows = Squeeze (num_finds, first_axis)
    row_numbers = Range (zero, num_rows, one)
    rank = Sub (row_numbers, start)
    is_kept = Less (rank, most)
    detections = Compress <axis = 0> (sorted_rows, is_kept)
}}
"""


class Nms(NamedTuple):
    """The selection inside an ONNX file, as in `ops.nms`."""

    score_threshold: float
    iou_threshold: float
    max_detections: int  # of one image


class Difference(NamedTuple):
    """The largest ones between a file's output and ours. Detections: how many were compared, how many are not alike."""

    boxes: float  # pixels of the network input
    scores: float
    detections: int | None = None  # None: no selection inside
    unlike: int = 0

    @property
    def is_rounding(self) -> bool:
        """Nothing but rounding; NaN is none."""
        alike = self.unlike <= _ALLOWED_SHARE * (self.detections or 0)  # an overlap may round across the threshold
        return self.boxes <= _ALLOWED_PIXELS and self.scores <= _ALLOWED_SCORE and alike

    def __str__(self) -> str:
        text = f"boxes differ by {self.boxes:.1e} pixels at most, scores by {self.scores:.1e}"
        if self.detections is None:
            return text
        return f"{text}; {self.detections - self.unlike} of {self.detections} detections are those of our selection"


class ExportReport(NamedTuple):
    """What was written, and what its check found."""

    path: Path
    num_bytes: int
    difference: Difference | None  # None: not checked, the notes say why
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"{self.path}: {self.num_bytes / 1e6:.1f} MB", *(f"  {note}" for note in self.notes)))


class DecodedModel(nn.Module):
    """A copy of a network on the CPU, in float32 and eval mode, that answers with boxes and scores.

    Anchor points are constants of the one input shape (height, width); the number of images is free.
    """

    points: Tensor
    strides: Tensor

    def __init__(self, model: YoloModel, shape: tuple[int, int]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format)
        self.eval()
        with torch.no_grad():
            anchors = anchors_of(self.model(torch.zeros(1, 3, *shape)), model.strides)
        self.register_buffer("points", anchors.points.clone(), persistent=False)
        self.register_buffer("strides", anchors.strides.clone(), persistent=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, Tensor]:
        distributions, logits = flatten_maps(self.model(images), self.model.reg_max)
        return decode_boxes(distributions, self.points, self.strides), logits.sigmoid()


def export(  # noqa: PLR0913 (the command line's plain values)
    model: YoloModel,
    format: str,  # noqa: A002 (the command line's word)
    path: Path | str,
    class_names: Sequence[str],
    shape: tuple[int, int],
    with_nms: bool = False,
    score_threshold: float = 0.001,
    nms_iou: float = 0.7,
    max_detections: int = 300,
    origin: str = "",
) -> ExportReport:
    """Write `model` to `path` as onnx, torch or ultralytics, once the file has given what the model gives.

    `shape`: height and width of the input. `with_nms` (onnx): the selection of `ops.nms` inside, without its limit on
    candidates; the three settings count only then. `origin`: where the weights come from, for the file to say. `model`
    is left as it was. Raises `UserError` for what a user can mend (another suffix, a library that is not installed, a
    full disk) and `RuntimeError` when the file gives other figures; then nothing is written.
    """
    path = Path(path)
    _refuse(format, path, with_nms)
    nms = Nms(score_threshold, nms_iou, max_detections) if with_nms else None
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
    write_whole(path, content)
    return ExportReport(path, len(content), difference, _notes(format, shape, nms, difference))


def export_onnx(
    model: YoloModel,
    shape: tuple[int, int],
    path: Path | str,
    class_names: Sequence[str],
    nms: Nms | None = None,
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
    with _quiet():
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
        _append_selection(proto, nms)
    onnx.helper.set_model_props(proto, _metadata(class_names, shape, nms, origin))
    onnx.checker.check_model(proto, full_check=True)
    return write_whole(path, proto.SerializeToString())


def export_torch(
    model: YoloModel, shape: tuple[int, int], path: Path | str, class_names: Sequence[str], origin: str = ""
) -> Path:
    """Write a program for `torch.export.load(path).module()`: images -> (boxes, scores).

    Its extra file `metadata.json` holds what the metadata of the ONNX file hold.
    """
    with torch.no_grad(), _quiet():
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
    return write_whole(path, buffer.getvalue())


@torch.no_grad()
def verify(
    path: Path | str, model: YoloModel, images: Float[Tensor, "B 3 H W"], nms: Nms | None = None
) -> Difference | None:
    """Run an exported file on images in [0, 1], all at once and the first alone, and compare with our network.

    `nms`: what the file selects by; its selection is compared with ours on the file's own boxes, and on drawn ones, for
    the images may show nothing. None when onnxruntime, which runs ONNX files, is not installed.
    """
    path = Path(path)
    if path.suffix == SUFFIXES["onnx"] and importlib.util.find_spec("onnxruntime") is None:
        return None
    ours, run = DecodedModel(model, (images.shape[2], images.shape[3])), _open(path, nms is not None)
    answers = [(ours(part), run(part)) for part in (images, images[:1])]
    boxes, scores = (
        torch.stack([(wanted[i] - given[i]).abs().max() for wanted, given in answers]).max().item() for i in (0, 1)
    )
    if nms is None:
        return Difference(boxes, scores)
    drawn = _draw_predictions(len(ours.points), model.num_classes, nms)
    cases = [*(given for _, given in answers), (*drawn, *_open_selection(path)(*drawn))]
    counts = [_compare_selections(case, nms) for case in cases]
    return Difference(boxes, scores, sum(found for found, _ in counts), sum(unlike for _, unlike in counts))


def check_images(shape: tuple[int, int]) -> Float[Tensor, "3 3 H W"]:
    """Three images to check a file with, the same on every call: blocks of colour with noise on them."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(3, 3, -(-shape[0] // 32), -(-shape[1] // 32), generator=generator)
    blocks = blocks.repeat_interleave(32, dim=2).repeat_interleave(32, dim=3)[:, :, : shape[0], : shape[1]]
    return 0.8 * blocks + 0.2 * torch.rand(blocks.shape, generator=generator)


def _refuse(kind: str, path: Path, with_nms: bool) -> None:
    """Raise `UserError` for what does not go together."""
    if kind not in SUFFIXES:
        raise UserError(f"--format {kind}: no such format; there are {', '.join(SUFFIXES)}")
    if path.suffix != SUFFIXES[kind]:
        raise UserError(f"{path}: a file of format {kind} must end in {SUFFIXES[kind]}")
    if with_nms and kind != "onnx":
        raise UserError(f"--format {kind}: suppression goes inside ONNX files only; leave it out, or --format onnx")


def _metadata(class_names: Sequence[str], shape: tuple[int, int], nms: Nms | None, origin: str) -> dict[str, str]:
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


def _append_selection(proto: Any, nms: Nms) -> None:
    """Let the ONNX model go on from boxes and scores to detections, in place."""
    import onnx

    text = _SELECTION.format(
        ir=IR_VERSION,
        opset=OPSET,
        most=nms.max_detections,
        overlap=float(nms.iou_threshold),
        threshold=float(nms.score_threshold),
    )
    selection = onnx.parser.parse_model(text).graph
    proto.graph.value_info.extend(proto.graph.output)
    del proto.graph.output[:]
    proto.graph.node.extend(selection.node)
    proto.graph.output.extend(selection.output)


def _forget_its_making(proto: Any) -> None:
    """Drop what the exporter notes of every node, among it the paths of our source files, and say who made it."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    proto.ir_version, proto.producer_name, graph.name = IR_VERSION, "Mars", "yolov8"
    proto.ClearField("producer_version")


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters tell of their progress, and warn of their own future."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(path: Path, selects: bool) -> Callable[[Tensor], Sequence[Tensor]]:
    """What the file makes of images: boxes and scores, and detections where it `selects`."""
    if path.suffix == SUFFIXES["torch"]:
        with _quiet():
            return torch.export.load(path).module()
    if path.suffix == SUFFIXES["ultralytics"]:
        return lambda images: run_checkpoint(path, images)
    import onnx

    proto = onnx.load(path)
    if selects:  # the whole file, but what is inside is shown, too
        inner = [info for info in proto.graph.value_info if info.name in ("boxes", "scores")]
        proto.graph.output.extend(inner)
    run = _open_onnx(proto, ["boxes", "scores", "detections"] if selects else ["boxes", "scores"])
    return lambda images: run(images=images)


def _open_selection(path: Path) -> Callable[[Tensor, Tensor], Sequence[Tensor]]:
    """The part of the file that makes detections out of boxes and scores."""
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
        torch.from_numpy(one) for one in session.run(outputs, {name: one.numpy() for name, one in inputs.items()})
    ]


def _draw_predictions(num_points: int, num_classes: int, nms: Nms) -> tuple[Tensor, Tensor]:
    """Three images: more on it than may be reported, a few around the threshold, nothing."""
    generator = torch.Generator().manual_seed(0)
    centres, sizes = (torch.rand(3, num_points, 2, generator=generator) * scale for scale in (300, 200))
    scores, lots = torch.rand(2, 3, num_points, num_classes, generator=generator)
    scores[1] = nms.score_threshold * (0.9 + 0.2 * scores[1])
    share = torch.tensor((200 / num_points, nms.max_detections / (2 * num_points * num_classes), 0.0))
    return torch.cat((centres - sizes / 2, centres + sizes / 2), dim=2), scores * (lots < share[:, None, None])


def _compare_selections(case: Sequence[Tensor], nms: Nms) -> tuple[int, int]:
    """How many detections our selection makes of boxes and scores, and in how many those given beside are not alike."""
    boxes, scores, detections = case
    rows = []
    for image, one in enumerate(map(select_detections, boxes, scores, *([value] * len(boxes) for value in nms))):
        number = torch.full((len(one.scores), 1), float(image))
        rows.append(torch.cat((number, one.boxes, one.scores[:, None], one.labels[:, None].float()), dim=1))
    ours, theirs = ({tuple(row) for row in table.tolist()} for table in (torch.cat(rows), detections))
    return len(ours), max(len(ours - theirs), len(theirs - ours))


def _notes(kind: str, shape: tuple[int, int], nms: Nms | None, difference: Difference | None) -> tuple[str, ...]:
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
