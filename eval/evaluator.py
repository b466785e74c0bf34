"""Evaluation of a split: detections of all its images, AP, groups, confusion."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from config.errors import UserError
from config.fields import nearest
from config.mconfig import ModelConfig, base_names
from dl.annotations import Annotation
from dl.check import check_data
from dl.image_cache import Images
from dl.images import read_image
from dl.loader import build_loader
from eval.groups import GroupConfusion, GroupedAp, group_ap, group_confusion
from eval.label_layout import drawable_names
from eval.matching import pair_up
from eval.metrics import ApResult, Metric, average_precision
from eval.painter import file_names, paint, write_jpeg
from eval.predictor import Detections, Predictor
from eval.results import ImageRecord, write_images, write_results
from ops.files import write_atomic

log = logging.getLogger("mars")


@dataclass(frozen=True)
class EvalResult:
    """The result of one evaluation, with ground truth and detections for painting, without the images."""

    split: str
    weights: str
    images_expected: int
    images_evaluated: int
    ap: ApResult
    ap_style: str
    settings: dict[str, Any]  # of the selection of detections
    seconds: float
    annotations: tuple[Annotation, ...]
    detections: tuple[Detections, ...]
    base_names: tuple[str, ...] | None = None  # the classes that were learned first; None: there are no groups
    confusion: GroupConfusion | None = None  # between base and novel classes
    test_is_validation: bool = False  # the best weights were chosen on these images
    more_metrics: Mapping[str, float | None] = field(default_factory=dict)  # those of the recipe, by name

    @property
    def groups(self) -> GroupedAp | None:
        """AP of base and of novel classes; None without groups."""
        return None if self.base_names is None else group_ap(self.ap, self.base_names)

    @property
    def map50(self) -> float | None:
        return self.ap.map50

    @property
    def map50_95(self) -> float | None:
        return self.ap.map50_95

    def to_dict(self) -> dict[str, Any]:
        """The content of `eval/SPLIT/metrics.json`: plain values, None where a value is missing, never NaN."""
        base = self.base_names
        group_of = {} if base is None else {name: "base" if name in base else "novel" for name in self.ap.per_class}
        values = {
            "split": self.split,
            "weights": self.weights,
            "images_expected": self.images_expected,
            "images_evaluated": self.images_evaluated,
            "test_is_validation": self.test_is_validation,
            "ap_style": self.ap_style,
            "map50": self.map50,
            "map50_95": self.map50_95,
            "per_class": {
                name: ({"group": group_of[name]} if group_of else {}) | ap._asdict()
                for name, ap in self.ap.per_class.items()
            },
            **({"metrics": dict(self.more_metrics)} if self.more_metrics else {}),
            "groups": None if self.groups is None else self.groups.to_dict(),
            "confusion": None if self.confusion is None else self.confusion.to_dict(),
            "settings": self.settings,
            "seconds": round(self.seconds, 3),
        }
        return _without_nan(values)

    def save(self, path: Path | str) -> Path:
        """Write `to_dict` as JSON, atomically."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        return write_atomic(path, (text + "\n").encode("utf-8"))

    def save_detections(self, folder: Path | str, class_names: Sequence[str]) -> Path:
        """Write `detections.json` (COCO results) and `truth.json` (ground truth), which any COCO tool can evaluate."""
        folder = Path(folder)
        images = (ImageRecord(a.image_id, a.image_path.name, a.width, a.height) for a in self.annotations)
        write_images(folder / "truth.json", images, class_names, self.annotations)
        return write_results(folder / "detections.json", self.detections)


class Evaluator:
    """Evaluates a model as a config describes it: classes, selection of detections, definition of AP."""

    def __init__(self, mcfg: ModelConfig, precision: torch.dtype = torch.float32, images: Images | None = None) -> None:
        """The network computes in `precision`. `images`: a cache of decoded images for repeated evaluation."""
        if not mcfg.classList or isinstance(mcfg.classList, str):
            raise UserError(f"classList={mcfg.classList!r}: evaluation needs the class names")
        self.mcfg = mcfg
        self.more_metrics: list[Metric] = []
        for part in mcfg.metrics:
            try:
                self.more_metrics.append(part.build("metrics", "eval.metrics", kind=Metric))
            except UserError as error:  # an evaluation is possible without it
                log.warning("%s; this metric is left out", error)
        self.class_names = tuple(mcfg.classList)
        selected = self.class_names if mcfg.testSelectedClasses is None else mcfg.testSelectedClasses
        for name in selected:
            if name not in self.class_names:
                raise UserError(f"testSelectedClasses: '{name}' is not in classList{nearest(name, self.class_names)}")
        self.selected_names = tuple(name for name in self.class_names if name in selected)
        self.base_names = base_names(mcfg)
        self.precision, self.images = precision, images

    @classmethod
    def for_validation(
        cls, mcfg: ModelConfig, precision: torch.dtype = torch.float32, images: Images | None = None
    ) -> "Evaluator":
        """For choosing the best epoch: always all classes and AP of COCO, whatever the config reports at the end."""
        return cls(mcfg.with_values(apStyle="coco", testSelectedClasses=None), precision, images)

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        annotations: Sequence[Annotation] | None = None,
        weights_name: str = "",
        on_batch: Callable[[int, int], None] | None = None,
        images_expected: int | None = None,
    ) -> EvalResult:
        """Detect on every image of the split and compute the AP.

        `annotations`: the checked split, so that it is not read again at every epoch. `on_batch` is called with the
        number of finished images and the total. `images_expected`: the number of images that the split lists, when
        files with errors were skipped; images that become unreadable later are skipped if `badFiles` allows it.
        Ground truth and detections of classes outside `testSelectedClasses` are left out. Raises `RuntimeError` when an
        image is missing or comes twice, and `FloatingPointError` for predictions that are not finite.
        """
        started = time.perf_counter()
        if annotations is None:
            annotations = check_data(self.mcfg, [split]).splits[split]
        predictor = Predictor.from_config(self.mcfg, model, self.precision)
        detections: list[Detections] = []
        with closing(build_loader(self.mcfg, split, list(annotations), train=False, images=self.images)) as loader:
            for batch in loader:
                detections += predictor(batch)
                if on_batch is not None:
                    on_batch(len(detections), len(annotations))
        expected = len(annotations) if images_expected is None else images_expected
        annotations = [annotation for annotation in annotations if annotation.image_id not in loader.skipped]
        try:  # an AP over a part of the split, or with an image counted twice, would be reported as the AP of the split
            pair_up(annotations, detections)
        except ValueError as error:
            counts = f"{len(annotations)} images expected, {len(detections)} evaluated"
            raise RuntimeError(f"split '{split}': {counts}; {error}") from error
        truth, found = self._only_selected(annotations, detections)
        ap = average_precision(self.mcfg.apStyle, truth, found, self.class_names, self.mcfg.minIou)
        confusion = None
        if self.base_names is not None:
            is_base = [name in self.base_names for name in self.class_names]
            confusion = group_confusion(truth, found, is_base, self.mcfg.paintConf)
        return EvalResult(
            split=split,
            weights=weights_name,
            images_expected=expected,
            images_evaluated=len(detections),
            # Classes that were not selected have no ground truth, so they are in no mean; leave them out of the table.
            ap=ap._replace(per_class={name: ap.per_class[name] for name in self.selected_names}),
            ap_style=self.mcfg.apStyle,
            settings=self._settings(predictor),
            seconds=time.perf_counter() - started,
            annotations=tuple(truth),
            detections=tuple(found),
            base_names=self.base_names,
            confusion=confusion,
            more_metrics=self._more_metrics(truth, found),
        )

    def _more_metrics(self, truth: Sequence[Annotation], found: Sequence[Detections]) -> dict[str, float | None]:
        """The metrics of the recipe. One that fails is left out with a warning: the AP must not be lost with it."""
        values: dict[str, float | None] = {}
        for metric in self.more_metrics:
            try:
                value = metric(truth, found)
                values[metric.name] = None if value is None else float(value)
            except Exception as error:
                log.warning("metric %s is left out: %s: %s", metric.name, type(error).__name__, error)
        return values

    def paint(self, result: EvalResult, folder: Path | str, on_image: Callable[[int, int], None] | None = None) -> int:
        """Paint every image of `result` into `folder`/image_id.jpg. Returns the number of images.

        One image is in memory at a time. `on_image` is called with the number of finished images and the total. Raises
        what `dl.images.read_image` raises.
        """
        pairs = pair_up(result.annotations, result.detections)
        class_names, names = (
            drawable_names(self.class_names),
            file_names(annotation.image_id for annotation in result.annotations),
        )
        for done, (annotation, found) in enumerate(pairs, start=1):
            size = annotation.width, annotation.height
            image = read_image(annotation.image_path, size, annotation.pixel_max)
            painted = paint(image, annotation, found, class_names, self.mcfg.minIou, self.mcfg.paintConf)
            write_jpeg(Path(folder) / names[annotation.image_id], painted)
            if on_image is not None:
                on_image(done, len(pairs))
        return len(pairs)

    def _only_selected(
        self, annotations: Sequence[Annotation], detections: Sequence[Detections]
    ) -> tuple[Sequence[Annotation], Sequence[Detections]]:
        """The objects and the detections of the selected classes."""
        if self.selected_names == self.class_names:
            return annotations, detections
        is_selected = np.array([name in self.selected_names for name in self.class_names])
        truth, found = [], []
        for annotation in annotations:
            keep = is_selected[annotation.labels]
            boxes, labels, difficult = annotation.boxes[keep], annotation.labels[keep], annotation.difficult[keep]
            truth.append(replace(annotation, boxes=boxes, labels=labels, difficult=difficult))
        for image_id, boxes, scores, labels in detections:
            keep = torch.from_numpy(is_selected)[labels]
            found.append(Detections(image_id, boxes[keep], scores[keep], labels[keep]))
        return truth, found

    def _settings(self, predictor: Predictor) -> dict[str, Any]:
        return {
            "input_shape": list(self.mcfg.inputShape),
            "score_threshold": predictor.score_threshold,
            "nms_iou": predictor.iou_threshold,
            "max_detections": predictor.max_detections,
            "class_agnostic_nms": predictor.class_agnostic,
            "min_iou": self.mcfg.minIou if self.mcfg.apStyle == "assignment" else 0.5,
        }


def _without_nan(value: Any) -> Any:
    """The same values with None for every float that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
