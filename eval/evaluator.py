"""Run a split, count what was evaluated, and say how good it was."""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
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
from dl.loader import build_loader
from eval.confusion import GroupConfusion, group_confusion
from eval.groups import GroupedAp, group_ap
from eval.metrics import ApResult, average_precision
from eval.painter import paint_split
from eval.predictor import Detections, Predictor
from eval.results import ImageRecord, write_images, write_results
from ops.files import write_atomic


@dataclass(frozen=True)
class EvalResult:
    """What one evaluation found. Truth and detections stay at hand for painting; images are not kept."""

    split: str
    weights: str
    images_expected: int
    images_evaluated: int
    ap: ApResult
    ap_style: str
    settings: dict[str, Any]  # how the detections were selected
    seconds: float
    annotations: tuple[Annotation, ...]
    detections: tuple[Detections, ...]
    base_names: tuple[str, ...] | None = None  # the classes known first; None: no groups
    confusion: GroupConfusion | None = None  # of base with novel classes
    test_is_validation: bool = False  # the test images are those on which the best weights were chosen

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
        """The content of `eval/SPLIT/metrics.json`: plain values, None where there is no figure, never NaN."""
        values = {
            "split": self.split,
            "weights": self.weights,
            "images_expected": self.images_expected,
            "images_evaluated": self.images_evaluated,
            "test_is_validation": self.test_is_validation,
            "ap_style": self.ap_style,
            "map50": self.map50,
            "map50_95": self.map50_95,
            "per_class": {name: {**self._group_of(name), **one._asdict()} for name, one in self.ap.per_class.items()},
            "groups": None if self.groups is None else self.groups.to_dict(),
            "confusion": None if self.confusion is None else self.confusion.to_dict(),
            "settings": self.settings,
            "seconds": round(self.seconds, 3),
        }
        return _without_nan(values)

    def _group_of(self, class_name: str) -> dict[str, str]:
        if self.base_names is None:
            return {}
        return {"group": "base" if class_name in self.base_names else "novel"}

    def save(self, path: Path | str) -> Path:
        """Write `to_dict` as JSON; the file is whole or not there."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        return write_atomic(path, (text + "\n").encode("utf-8"))

    def save_detections(self, folder: Path | str, class_names: Sequence[str]) -> Path:
        """Write `detections.json` (COCO results) and `truth.json`, which any COCO tool can score."""
        folder = Path(folder)
        images = (ImageRecord(one.image_id, one.image_path.name, one.width, one.height) for one in self.annotations)
        write_images(folder / "truth.json", images, class_names, self.annotations)
        return write_results(folder / "detections.json", self.detections)


class Evaluator:
    """Evaluates a model as a config describes it: which classes count, how detections are selected, whose AP."""

    def __init__(self, mcfg: ModelConfig, precision: torch.dtype = torch.float32, images: Images | None = None) -> None:
        """The network computes in `precision`. `images`: where a split that comes again is kept decoded."""
        if not mcfg.classList or isinstance(mcfg.classList, str):
            raise UserError(f"classList={mcfg.classList!r}: AP per class needs the class names")
        self.mcfg = mcfg
        self.class_names = tuple(mcfg.classList)
        self.selected_names = _selected(self.class_names, mcfg.testSelectedClasses)
        self.base_names = base_names(mcfg)
        self.precision, self.images = precision, images

    @classmethod
    def for_validation(
        cls, mcfg: ModelConfig, precision: torch.dtype = torch.float32, images: Images | None = None
    ) -> "Evaluator":
        """All classes by COCO's definition, whatever is reported: what picks the best epoch must not change."""
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
        """Detect on every image of the split and measure the AP.

        `annotations` saves reading and checking the split again (it is validated after every epoch). `on_batch` hears
        how many images are done, of how many. `images_expected` is what the split lists, when faulty files were
        skipped; one that cannot be read any more is left out, too, where badFiles says so. Truth and detections of
        classes outside `testSelectedClasses` are left out. Raises `RuntimeError` when an image is missing or comes
        twice, `FloatingPointError` on NaN predictions.
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
        annotations = [one for one in annotations if one.image_id not in loader.skipped]
        _stop_unless_each_once(split, annotations, detections)
        truth, found = self._only_selected(annotations, detections)
        return EvalResult(
            split=split,
            weights=weights_name,
            images_expected=expected,
            images_evaluated=len({one.image_id for one in detections}),
            ap=self._measure(truth, found),
            ap_style=self.mcfg.apStyle,
            settings=self._settings(predictor),
            seconds=time.perf_counter() - started,
            annotations=tuple(truth),
            detections=tuple(found),
            base_names=self.base_names,
            confusion=self._confuse(truth, found),
        )

    def paint(self, result: EvalResult, folder: Path | str, on_image: Callable[[int, int], None] | None = None) -> int:
        """Paint every image of `result` into `folder`, one at a time; how many there are."""
        return paint_split(
            result.annotations,
            result.detections,
            self.class_names,
            folder,
            self.mcfg.minIou,
            self.mcfg.paintConf,
            on_image,
        )

    def _measure(self, annotations: Sequence[Annotation], detections: Sequence[Detections]) -> ApResult:
        everything = average_precision(self.mcfg.apStyle, annotations, detections, self.class_names, self.mcfg.minIou)
        # the other classes have lost their truth, so they are in no mean; here they leave the table too
        return everything._replace(per_class={name: everything.per_class[name] for name in self.selected_names})

    def _confuse(self, annotations: Sequence[Annotation], detections: Sequence[Detections]) -> GroupConfusion | None:
        if self.base_names is None:
            return None
        is_base = [name in self.base_names for name in self.class_names]
        return group_confusion(annotations, detections, is_base, self.mcfg.paintConf)

    def _only_selected(
        self, annotations: Sequence[Annotation], detections: Sequence[Detections]
    ) -> tuple[Sequence[Annotation], Sequence[Detections]]:
        if self.selected_names == self.class_names:
            return annotations, detections
        is_selected = [name in self.selected_names for name in self.class_names]
        return [_truth_of(one, is_selected) for one in annotations], [_found_of(one, is_selected) for one in detections]

    def _settings(self, predictor: Predictor) -> dict[str, Any]:
        return {
            "input_shape": list(self.mcfg.inputShape),
            "score_threshold": predictor.score_threshold,
            "nms_iou": predictor.nms_iou,
            "max_detections": predictor.max_detections,
            "class_agnostic_nms": predictor.class_agnostic,
            "min_iou": self.mcfg.minIou if self.mcfg.apStyle == "assignment" else 0.5,
        }


def _selected(class_names: tuple[str, ...], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """The wanted names in the order of the class list; all when None."""
    for name in wanted or ():
        if name not in class_names:
            raise UserError(f"testSelectedClasses: '{name}' is not in classList{nearest(name, class_names)}")
    return tuple(name for name in class_names if wanted is None or name in wanted)


def _truth_of(annotation: Annotation, is_selected: list[bool]) -> Annotation:
    keep = np.array(is_selected)[annotation.labels]
    boxes, labels, difficult = (part[keep] for part in (annotation.boxes, annotation.labels, annotation.difficult))
    return replace(annotation, boxes=boxes, labels=labels, difficult=difficult)


def _found_of(found: Detections, is_selected: list[bool]) -> Detections:
    keep = torch.tensor(is_selected)[found.labels]
    return Detections(found.image_id, found.boxes[keep], found.scores[keep], found.labels[keep])


def _stop_unless_each_once(split: str, annotations: Sequence[Annotation], detections: Sequence[Detections]) -> None:
    """Figures over part of a split, or over an image counted twice, look like figures over the split."""
    expected = [one.image_id for one in annotations]
    evaluated = [one.image_id for one in detections]
    if sorted(expected) == sorted(evaluated):
        return
    missing, extra = sorted(set(expected) - set(evaluated)), sorted(set(evaluated) - set(expected))
    twice = sorted({image_id for image_id in set(evaluated) if evaluated.count(image_id) > 1})
    raise RuntimeError(
        f"split '{split}': {len(expected)} images expected, {len(evaluated)} evaluated "
        f"(missing: {missing[:10]}, evaluated twice: {twice[:10]}, not of this split: {extra[:10]})"
    )


def _without_nan(value: Any) -> Any:
    """The same plain values with None for every float that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
