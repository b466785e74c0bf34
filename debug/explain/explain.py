"""Of every object of one image: the points it was given, what it costs, and why it was found or missed.

Legend: A points, C classes, G objects, K detections. The network is in eval mode, as it is when it detects.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from debug.explain.error_analysis import FOUND, ErrorAnalysis, Limits
from dl.annotations import Annotation
from eval.label_layout import drawable_names
from eval.painter import GREEN, PURPLE, YELLOW
from eval.points_painter import MarkedObject, paint_objects
from eval.predictor import Detections, Predictor
from ops.anchors import Anchors, anchors_of, decode_boxes, flatten_maps
from ops.batch import Batch, Letterbox, network_input
from ops.probe import listening
from ops.text import align_columns
from train.loss import DetectionLoss
from train.points import PointAssignment, are_inside, points_given


class Parts(NamedTuple):
    """What something adds to the parts of the loss, each with its gain."""

    box: float
    cls: float
    dfl: float

    @property
    def total(self) -> float:
        return sum(self)


class Story(NamedTuple):
    """One object; `fate` is FOUND or why it was missed, `words` say more."""

    label: int
    size: tuple[float, float]  # width and height in pixels of the image
    points: tuple[int, ...]  # given, on each map
    inside: int  # points that lie inside it
    metric: float  # best alignment of its points, 0 without any
    loss: Parts
    fate: str
    words: str


class Explanation(NamedTuple):
    """All objects in the order of the annotation, what the background costs, and the detections that fit no object."""

    stories: tuple[Story, ...]
    background: Parts
    wrong: Detections  # of at least the score that is painted
    given: PointAssignment
    letterbox: Letterbox
    anchors: Anchors

    @property
    def total(self) -> float:
        """The loss of the image."""
        return self.background.total + sum(story.loss.total for story in self.stories)


@torch.no_grad()
def explain(
    predictor: Predictor,
    loss: DetectionLoss,
    batch: Batch,
    annotation: Annotation,
    limits: Limits,
    class_names: Sequence[str],
) -> Explanation:
    """`batch`: this one image, letterboxed, with all of its objects. Objects may be none."""
    letterbox = batch.letterboxes[0]
    assert letterbox is not None and len(batch) == 1
    (detections,) = predictor(batch)
    batch = batch.to(predictor.device)
    raw_maps = predictor.model.eval()(network_input(batch.images))
    anchors = anchors_of(raw_maps, loss.strides)
    distributions, logits = flatten_maps(raw_maps, loss.reg_max)
    boxes = letterbox.undo(decode_boxes(distributions, *anchors)[0].cpu())
    given = points_given(loss, raw_maps, batch)
    objects, background, metric = _costs(loss, raw_maps, logits, batch, given)
    looker = ErrorAnalysis(predictor, boxes, logits[0].sigmoid().cpu(), detections, annotation, limits, class_names)
    inside = are_inside(anchors.points, batch.boxes[0], loss.assigner.min_side).sum(dim=-1).tolist()
    sides = annotation.boxes[:, 2:] - annotation.boxes[:, :2]
    stories = []
    for number, label in enumerate(annotation.labels.tolist()):
        points = _per_level(given, number, anchors, loss.strides)
        fate, words = looker.fate_of(number, inside[number], sum(points))
        size = float(sides[number, 0]), float(sides[number, 1])
        stories.append(Story(label, size, points, inside[number], metric[number], objects[number], fate, words))
    return Explanation(tuple(stories), background, looker.wrong(), given, letterbox, anchors)


def story_table(explanation: Explanation, class_names: Sequence[str], strides: Sequence[int]) -> str:
    """A row an object, the background and all; the share is of the image's loss."""
    head = ["object", "pixels", "points", "/".join(map(str, strides)), "metric", "box", "cls", "dfl", "share"]
    total = explanation.total or 1.0
    rows = [
        [
            f"{number} {class_names[story.label]}",
            f"{story.size[0]:.0f} x {story.size[1]:.0f}",
            str(sum(story.points)),
            "/".join(map(str, story.points)),
            f"{story.metric:.3f}",
            *_figures(story.loss, total),
        ]
        for number, story in enumerate(explanation.stories, start=1)
    ]
    every = [story.loss for story in explanation.stories] + [explanation.background]
    whole = Parts(*(sum(values) for values in zip(*every, strict=True)))
    rows.append(["background", "", "", "", "", *_figures(explanation.background, total)])
    rows.append(["all", "", "", "", "", *_figures(whole, total)])
    words = ["", *(f"{story.fate}: {story.words}" for story in explanation.stories), "", ""]
    lines = align_columns([head, *rows])
    return "\n".join(f"{line}  {text}".rstrip() for line, text in zip(lines, words, strict=True))


def paint_stories(
    image: np.ndarray, explanation: Explanation, annotation: Annotation, class_names: Sequence[str]
) -> np.ndarray:
    """Objects with their numbers and points: found green, missed purple with why; wrong detections yellow."""
    names, objects = drawable_names(tuple(class_names)), []
    _, _, scores, labels = explanation.wrong
    for box, score, label in zip(explanation.wrong.boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
        none = np.zeros((0, 2), dtype=np.float32)
        objects.append(MarkedObject(tuple(box), f"{names[label]} {score:.2f}", YELLOW, none, none[:, 0]))
    place = explanation.letterbox
    points = _in_image(explanation.anchors.points.cpu(), place).numpy()
    strides = (explanation.anchors.strides.cpu() / place.scale_x).numpy()
    owner = explanation.given.owner[0].cpu().numpy()
    for number, (story, box) in enumerate(zip(explanation.stories, annotation.boxes.tolist(), strict=True)):
        mine, is_found = owner == number, story.fate == FOUND
        text = f"{number + 1} {names[story.label]}" + ("" if is_found else f" {story.fate}")
        objects.append(MarkedObject(tuple(box), text, GREEN if is_found else PURPLE, points[mine], strides[mine]))
    num_found = sum(story.fate == FOUND for story in explanation.stories)
    legend = [
        (GREEN, f"found {num_found}"),
        (PURPLE, f"missed {len(explanation.stories) - num_found}"),
        (YELLOW, f"wrong {len(scores)}"),
    ]
    return paint_objects(image, objects, legend)


def _costs(
    loss: DetectionLoss, raw_maps: Sequence[Tensor], logits: Tensor, batch: Batch, given: PointAssignment
) -> tuple[list[Parts], Parts, list[float]]:
    """What each object costs, what is left, and the best metric of each object.

    The values come from the look-outs inside the loss; a point's class loss is its object's, whichever class it is of.
    """
    seen: dict[str, Tensor] = {}
    with listening(lambda name, value: seen.__setitem__(name, value)):
        loss(raw_maps, batch)
    target = given.assignment.target_scores[0]
    weight, normaliser = target.sum(dim=-1), seen["loss.normaliser"]
    cls = F.binary_cross_entropy_with_logits(logits[0], target, reduction="none").sum(dim=-1)
    columns = torch.stack(
        (
            (1 - seen["loss.ciou"][0]) * weight * loss.box_gain,
            cls * loss.cls_gain,
            seen["loss.dfl"][0] * weight * loss.dfl_gain,
        ),
        dim=-1,
    )  # (A, 3)
    columns, owner = (columns / normaliser).double(), given.owner[0]
    rows = [Parts(*columns[owner == number].sum(dim=0).tolist()) for number in range(batch.labels.shape[1])]
    background = Parts(*columns[owner < 0].sum(dim=0).tolist())
    metrics = [
        float((seen["tal.metric"][0, number] * (owner == number)).max()) for number in range(batch.labels.shape[1])
    ]
    return rows, background, metrics


def _per_level(given: PointAssignment, number: int, anchors: Anchors, strides: Sequence[int]) -> tuple[int, ...]:
    mine = given.owner[0] == number
    return tuple(int((mine & (anchors.strides == stride)).sum()) for stride in strides)


def _in_image(points: Float[Tensor, "A 2"], letterbox: Letterbox) -> Float[Tensor, "A 2"]:
    """Points of the network input in pixels of the image; those of its grey border lie outside."""
    offset = points.new_tensor([letterbox.offset_x, letterbox.offset_y])
    return (points - offset) / points.new_tensor([letterbox.scale_x, letterbox.scale_y])


def _figures(parts: Parts, total: float) -> list[str]:
    return [*(f"{value:.3f}" for value in parts), f"{100 * parts.total / total:.1f} %"]
