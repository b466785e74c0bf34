"""The content of exported files: the network with decoded outputs, and the selection of detections for ONNX files.

Legend: B images, A anchor points, C classes.
"""

import copy
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.base.yolomodel import YoloModel
from ops.anchors import anchors_of, decode_boxes, flatten_maps

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "ultralytics": ".pt"}

# Both are from early 2023, so that onnxruntime 1.14 and all later versions read the files.
OPSET, IR_VERSION = 18, 8

# `ops.nms.select_detections` in ONNX's text format: multi-label, suppression class by class, the highest scores of each
# image. NonMaxSuppression returns (image, class, anchor point) class by class. These rows are sorted by anchor point
# first, because TopK keeps the order of equal scores, as `select_detections` does. The sort key is score - 2 * image
# in float64, so that one sort orders all images one after the other.
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


class NmsSettings(NamedTuple):
    """Settings of the selection inside an ONNX file, as in `ops.nms`."""

    score_threshold: float
    iou_threshold: float
    max_detections: int  # per image


class DecodedModel(nn.Module):
    """A copy of a network on the CPU, in float32 and eval mode, whose outputs are boxes and scores.

    Anchor points are constants for one input shape (height, width). The number of images can vary.
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
        return decode_boxes(distributions, self.points, self.strides, self.model.distances), logits.sigmoid()


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, nothing is printed and no warning is shown: exporters report progress and deprecations."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def append_selection(proto: Any, nms: NmsSettings) -> None:
    """Append the selection to the ONNX model, in place: boxes and scores -> detections."""
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
