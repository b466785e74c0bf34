"""Average precision: COCO's equals pycocotools', Ultralytics' flavour equals its own."""

import contextlib
import io
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from call_counter import num_calls
from parity.detection_sets import NAMES, SPECIAL_SETS, DetectionSet, large_set, random_set
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eval.metrics import ApResult, coco_ap, ultralytics_ap
from eval.predictor import Detections
from eval.results import read_results, write_results


def figures(result: ApResult, nothing: float) -> np.ndarray:
    """Both means, then AP50 and AP50-95 of every class; `nothing` where there is no figure."""
    rows = [(result.map50, result.map50_95), *((one.ap50, one.ap50_95) for one in result.per_class.values())]
    return np.array([nothing if value is None else value for row in rows for value in row])


def by_pycocotools(case: DetectionSet, num_classes: int) -> np.ndarray:
    """The same figures; -1 where it has none."""

    def xywh(box):
        x0, y0, x1, y1 = (float(side) for side in box)
        return [x0, y0, x1 - x0, y1 - y0]

    truth, results = [], []
    for image, (annotation, found) in enumerate(zip(*case, strict=True)):
        for box, label, difficult in zip(annotation.boxes, annotation.labels, annotation.difficult, strict=True):
            row = {"id": len(truth) + 1, "image_id": image, "category_id": int(label), "bbox": xywh(box)}
            truth.append({**row, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": int(difficult)})
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
            results.append({"image_id": image, "category_id": int(label), "bbox": xywh(box), "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image, "width": 640, "height": 480} for image in range(len(case.annotations))],
            "categories": [{"id": label, "name": str(label)} for label in range(num_classes)],
            "annotations": truth,
        }
        coco.createIndex()
        if results:
            found = coco.loadRes(results)
        else:  # loadRes cannot take none
            found = COCO()
            found.dataset = {**coco.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # all areas, 100 detections
    per_class = [(precision[0, :, label].mean(), precision[:, :, label].mean()) for label in range(num_classes)]
    return np.array([evaluation.stats[1], evaluation.stats[0], *(value for pair in per_class for value in pair)])


def by_ultralytics(case: DetectionSet, num_classes: int) -> np.ndarray:
    """The same figures by its matching and its curves; nan for a class without truth, 0 for means of nothing."""
    from ultralytics.engine.validator import BaseValidator
    from ultralytics.utils.metrics import DetMetrics, box_iou

    validator = SimpleNamespace(iouv=torch.linspace(0.5, 0.95, 10))
    metrics = DetMetrics({label: str(label) for label in range(num_classes)})
    for annotation, found in zip(*case, strict=True):
        order = found.scores.argsort(descending=True, stable=True)  # as its NMS leaves them
        found = Detections(found.image_id, found.boxes[order], found.scores[order], found.labels[order])
        right = np.zeros((len(found.labels), 10), dtype=bool)
        if len(annotation.labels) and len(found.labels):
            overlaps = box_iou(torch.from_numpy(annotation.boxes), found.boxes)
            truth = torch.from_numpy(annotation.labels)
            right = BaseValidator.match_predictions(validator, found.labels, truth, overlaps).numpy()
        has_any = len(found.labels) > 0  # as its validator: without any, an empty array of numpy's own type
        metrics.update_stats(
            {
                "tp": right,
                "conf": found.scores.numpy() if has_any else np.zeros(0),
                "pred_cls": found.labels.float().numpy() if has_any else np.zeros(0),
                "target_cls": annotation.labels.astype(np.float32),
                "target_img": np.unique(annotation.labels),
                "im_name": annotation.image_id,
            }
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it divides by the number of classes with truth, which may be 0
        metrics.process()
    per_class = np.full((num_classes, 2), np.nan)
    if len(metrics.box.ap_class_index):
        per_class[metrics.box.ap_class_index] = np.column_stack((metrics.box.ap50, metrics.box.ap))
    return np.array([metrics.box.map50, metrics.box.map, *per_class.flatten()])


def gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert (np.isnan(ours) == np.isnan(theirs)).all()
    return float(np.nan_to_num(np.abs(ours - theirs)).max())


@pytest.mark.parametrize("seed", range(20))
def test_coco_equals_pycocotools(measured, seed):
    case = random_set(seed)
    ours = figures(coco_ap(*case, NAMES), nothing=-1)
    measured("AP by COCO", gap(ours, by_pycocotools(case, len(NAMES))), 1e-9)


@pytest.mark.parametrize("name", SPECIAL_SETS)
def test_special_sets_equal_pycocotools(measured, name):
    case = SPECIAL_SETS[name]
    ours = figures(coco_ap(*case, NAMES), nothing=-1)
    measured("AP by COCO", gap(ours, by_pycocotools(case, len(NAMES))), 1e-9)


def gap_to_ultralytics(case: DetectionSet, names=NAMES) -> float:
    ours = figures(ultralytics_ap(*case, names), nothing=np.nan)
    ours[:2] = np.nan_to_num(ours[:2])  # where nothing is true it says 0, we say that there is no figure
    return gap(ours, by_ultralytics(case, len(names)))


@pytest.mark.parametrize("seed", range(40))
def test_random_sets_equal_ultralytics(reference_today, measured, seed):
    measured("AP by Ultralytics", gap_to_ultralytics(random_set(seed)), 1e-6)


@pytest.mark.parametrize("name", SPECIAL_SETS)
def test_special_sets_equal_ultralytics(reference_today, measured, name):
    measured("AP by Ultralytics", gap_to_ultralytics(SPECIAL_SETS[name]), 1e-6)


def test_saved_detections_equal_ultralytics(reference_today, measured, tmp_path):
    for seed in range(6):
        annotations, detections = random_set(100 + seed)
        file = write_results(tmp_path / f"{seed}.json", detections)
        saved = DetectionSet(annotations, read_results(file, [one.image_id for one in annotations]))
        measured("AP by Ultralytics", gap_to_ultralytics(saved), 1e-6)


@pytest.mark.slow
def test_many_detections_equal_ultralytics_in_seconds(reference_today, measured):
    case = large_set(600)
    assert sum(len(one.scores) for one in case.detections) > 77_000
    names = tuple(f"class {label}" for label in range(20))
    calls = num_calls(ultralytics_ap, *case, names)
    assert calls < 10 * 78_000, "a few for each detection, not for each pair of them"
    measured("AP by Ultralytics", gap_to_ultralytics(case, names), 1e-6)
