"""Truth and detections for the comparison of AP: difficult objects, duplicates, ties, empty images, wrong classes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dl.annotations import Annotation
from eval.predictor import Detections

NAMES = ("ant", "bee", "cat", "dog")


class DetectionSet(NamedTuple):
    """The truth of some images and what was found on them, in the same order."""

    annotations: list[Annotation]
    detections: list[Detections]

    @property
    def has_ties(self) -> bool:
        """Do two detections share a score?"""
        scores = torch.cat([one.scores for one in self.detections]).tolist() if self.detections else []
        return len(set(scores)) < len(scores)

    def with_scores_apart(self) -> "DetectionSet":
        """The same with other scores, of which no two are equal."""
        draw = torch.Generator().manual_seed(0)
        count = sum(len(one.scores) for one in self.detections)
        scores = (torch.randperm(count, generator=draw) + 1).float() / (count + 1)
        parts = scores.split([len(one.scores) for one in self.detections])
        apart = [one._replace(scores=part) for one, part in zip(self.detections, parts, strict=True)]
        return DetectionSet(self.annotations, apart)


def truth_of(image_id: str, rows=(), width: int = 640, height: int = 480) -> Annotation:
    """From rows of [x0, y0, x1, y1, label, difficult]."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    boxes, labels, difficult = table[:, :4].astype(np.float32), table[:, 4].astype(np.int64), table[:, 5].astype(bool)
    return Annotation(
        image_id=image_id,
        image_path=Path("nowhere.jpg"),
        annotation_path=Path("nowhere.xml"),
        width=width,
        height=height,
        boxes=boxes,
        labels=labels,
        difficult=difficult,
    )


def found_on(image_id: str, rows=()) -> Detections:
    """From rows of [x0, y0, x1, y1, label, score], in their order."""
    table = torch.from_numpy(np.array(rows, dtype=np.float64).reshape(-1, 6))
    return Detections(image_id, table[:, :4].float(), table[:, 5].float(), table[:, 4].long())


def random_set(seed: int) -> DetectionSet:
    """One to eleven images; about half of the seeds have ties, every fifth more than 100 detections of a class."""
    draw = np.random.default_rng(seed)
    truth_rows = [draw.integers(0, 12) if draw.random() > 0.2 else 0 for _ in range(draw.integers(1, 12))]
    annotations, detections = [], []
    for number, count in enumerate(truth_rows):
        low = draw.uniform(0, 300, (count, 2))
        boxes = np.concatenate([low, low + draw.uniform(10, 150, (count, 2))], axis=1)
        labels = draw.integers(0, 3, count)  # class 3 is never true
        annotations.append(truth_of(f"image{number}", np.column_stack([boxes, labels, draw.random(count) < 0.25])))
        detections.append(found_on(f"image{number}", _guess(draw, boxes, labels, crowded=seed % 5 == 0)))
    return DetectionSet(annotations, detections)


def _guess(draw, boxes, labels, crowded):
    if draw.random() < 0.15:
        return []
    copies = draw.integers(0, 30 if crowded else 4, len(boxes))  # 30: more than 100 detections an image and class
    near, near_labels = np.repeat(boxes, copies, axis=0), np.repeat(labels, copies)
    near = near + draw.normal(0, 6, near.shape)
    far = draw.uniform(0, 300, (120 if crowded else 5, 2))
    far = np.concatenate([far, far + draw.uniform(5, 90, far.shape)], axis=1)
    rows = np.concatenate([near, far])
    rows[:, 2:] = np.maximum(rows[:, 2:], rows[:, :2] + 1)
    guessed = np.concatenate([near_labels, draw.integers(0, 4, len(far))])
    wrong = draw.random(len(guessed)) < 0.1
    guessed[wrong] = draw.integers(0, 4, int(wrong.sum()))
    scores = draw.random(len(rows))
    if draw.random() < 0.5:
        scores = scores.round(1)  # ties
    return np.column_stack([rows, guessed, scores])


def large_set(num_images: int, seed: int = 0) -> DetectionSet:
    """About 130 detections an image on five objects of twenty classes, as a trained network leaves them at .001."""
    draw = np.random.default_rng(seed)
    annotations, detections = [], []
    for number in range(num_images):
        low = draw.uniform(0, 500, (5, 2))
        boxes = np.concatenate([low, low + draw.uniform(10, 130, (5, 2))], axis=1)
        labels = draw.integers(0, 20, 5)
        annotations.append(truth_of(f"image{number}", np.column_stack([boxes, labels, np.zeros(5)])))
        near = np.repeat(boxes, 6, axis=0) + draw.normal(0, 5, (30, 4))
        far = draw.uniform(0, 600, (100, 2))
        rows = np.concatenate([near, np.concatenate([far, far + draw.uniform(5, 90, far.shape)], axis=1)])
        rows[:, 2:] = np.maximum(rows[:, 2:], rows[:, :2] + 1)
        guessed = np.concatenate([np.repeat(labels, 6), draw.integers(0, 20, 100)])
        scores = np.concatenate([draw.beta(2, 2, 30), draw.beta(0.3, 8, 100)]).clip(0.001, 1)
        detections.append(found_on(f"image{number}", np.column_stack([rows, guessed, scores])))
    return DetectionSet(annotations, detections)


SQUARE = (10.0, 10.0, 110.0, 110.0)

# What a random draw seldom shows.
SPECIAL_SETS = {
    "nothing found": DetectionSet([truth_of("a", [[*SQUARE, 1, 0]]), truth_of("b")], [found_on("a"), found_on("b")]),
    "nothing to find": DetectionSet([truth_of("a")], [found_on("a", [[*SQUARE, 0, 0.9]])]),
    "one class, flawless": DetectionSet([truth_of("a", [[*SQUARE, 0, 0]])], [found_on("a", [[*SQUARE, 0, 0.9]])]),
    "a class nobody found": DetectionSet(
        [truth_of("a", [[*SQUARE, 0, 0], [200, 10, 260, 90, 2, 0]])], [found_on("a", [[*SQUARE, 0, 0.9]])]
    ),
    "a class that is not there": DetectionSet(
        [truth_of("a", [[*SQUARE, 0, 0]])], [found_on("a", [[*SQUARE, 0, 0.5], [*SQUARE, 3, 0.9]])]
    ),
    "ten on one": DetectionSet(
        [truth_of("a", [[*SQUARE, 0, 0]])],
        [found_on("a", [[10, 10, 110, 110 - 3 * n, 0, 0.9 - 0.01 * n] for n in range(10)])],
    ),
    "one on two, the better second": DetectionSet(
        [truth_of("a", [[0, 0, 100, 100, 0, 0], [20, 0, 120, 100, 0, 0]])],
        [found_on("a", [[12, 0, 112, 100, 0, 0.9], [19, 0, 119, 100, 0, 0.8]])],
    ),
    "identical truths": DetectionSet(
        [truth_of("a", [[*SQUARE, 0, 0]] * 3)], [found_on("a", [[*SQUARE, 0, 0.5 + 0.1 * n] for n in range(4)])]
    ),
    "overlaps of exactly .5, .6, .7, .8 and .9": DetectionSet(
        [truth_of(f"{n}", [[0, 0, 100, 100, 0, 0]]) for n in range(5, 10)],
        [found_on(f"{n}", [[0, 0, 100, 10 * n, 0, 0.1 * n]]) for n in range(5, 10)],
    ),
    "one score for all": DetectionSet(
        [truth_of(f"{n}", [[*SQUARE, 0, 0]]) for n in range(40)],
        [found_on(f"{n}", [[*SQUARE, 0, 0.5]] if n % 3 else [[300, 300, 350, 350, 0, 0.5]]) for n in range(40)],
    ),
    "one score for all, an image without any": DetectionSet(
        [truth_of(f"{n}", [[*SQUARE, n % 2, 0]]) for n in range(60)],
        [
            found_on(f"{n}", [[*SQUARE, n % 2, 0.25], [300, 300, 350, 350, n % 3, 0.25]] if n != 7 else [])
            for n in range(60)
        ],
    ),
}  # fmt: skip
