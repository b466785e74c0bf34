"""Images with many kinds of drawn objects on many kinds of ground, for start weights: see `scenes/objects.py`.

A box is tight around the visible pixels of an object. Objects may overlap. An object has no box if less than
`MIN_VISIBLE_SHARE` of it is visible, or if the box would be narrower than `MIN_SIDE`.
"""

from dataclasses import replace

import cv2
import numpy as np
from jaxtyping import UInt8

from scenes.airfields import lay_out
from scenes.compose import (
    MIN_PIXEL_COVERAGE,
    MIN_VISIBLE_SHARE,
    PaintedScene,
    develop,
    draw_sky,
    overlap,
    paste,
    stream,
)
from scenes.objects import OBJECTS, draw_object
from scenes.scenery import fractal, paint_ground
from scenes.textures import Plane, Sprite, fill, paint_plane

MIN_SIDE = 6  # pixels of the visible box


def paint_mixed(seed: int, size: int, index: int) -> PaintedScene:
    """Draw one image of `size` x `size` pixels; it depends only on the arguments. Labels are indexes into `OBJECTS`."""
    rng = stream(seed, index, 5)
    image = _paint_ground(rng, size)
    owner = np.zeros((size, size), np.uint8)  # number of the object that is visible at each pixel, 0: none
    sky = draw_sky(rng)
    labels: list[int] = []
    areas: list[float] = []
    for label, centre, pixels in _places(rng, size):
        form = draw_object(label, rng)
        plane = Plane(
            label, form, centre, 2 * np.pi * rng.random(), pixels / max(form.length, form.span),
            form.skins[0], form.accents[0], wear=rng.random(), phase=2 * np.pi * rng.random(),
        )  # fmt: skip
        sprite = paint_plane(plane, sky.sun)
        fall = rng.uniform(0.0, 0.12) * pixels
        if rng.random() < 0.5:
            _cast_shadow(image, sprite, sky.sun[0] * fall, sky.sun[1] * fall)
        paste(image, sprite, opacity=1.0 if rng.random() < 0.85 else rng.uniform(0.5, 0.9))
        labels.append(label)
        areas.append(float((sprite.coverage >= MIN_PIXEL_COVERAGE).sum()))
        in_image, in_sprite = overlap(sprite, size)
        owner[in_image][sprite.coverage[in_sprite] >= MIN_PIXEL_COVERAGE] = len(labels)
    image = develop(image, None, sky, stream(seed, index, 6))
    if rng.random() < 0.25:  # water, lamps: one colour over everything
        tint = rng.uniform(0.4, 1.0, 3)
        image = cv2.multiply(image, np.array([*tint, 0.0]), dtype=cv2.CV_8U)
    boxes, kept = _visible_boxes(owner, areas)
    return PaintedScene(image, boxes, np.array([labels[number] for number in kept], np.int64))


def _cast_shadow(image: np.ndarray, sprite: Sprite, right: float, down: float) -> None:
    """Darken the image where the sprite would be, shifted by these pixels."""
    shadow = replace(sprite, left=sprite.left + round(right), top=sprite.top + round(down))
    in_image, in_sprite = overlap(shadow, len(image))
    image[in_image] = (image[in_image] * (1 - 0.5 * shadow.coverage[in_sprite][..., None])).astype(np.uint8)


def _places(rng: np.random.Generator, size: int) -> list[tuple[int, tuple[float, float], float]]:
    """Label, centre and size in pixels of every object: single ones, or a swarm of one class."""
    unit = size / 320
    if rng.random() < 0.25:  # a swarm
        count, pixels = int(rng.integers(8, 30)), float(np.exp(rng.uniform(np.log(14), np.log(64))))
        label = int(rng.integers(len(OBJECTS)))
        centres = size * rng.random((count, 2)) if rng.random() < 0.6 else _cluster(rng, size, count, pixels * unit)
        sizes = pixels * unit * rng.uniform(0.75, 1.3, count)
        labels = np.where(rng.random(count) < 0.85, label, rng.integers(len(OBJECTS), size=count))
    else:
        count = int(rng.integers(1, 9))
        centres = size * rng.uniform(0.02, 0.98, (count, 2))
        sizes = unit * np.exp(rng.uniform(np.log(18), np.log(200), count))
        labels = rng.integers(len(OBJECTS), size=count)
    order = np.argsort(-sizes)  # large ones below
    return [(int(labels[i]), (float(centres[i, 0]), float(centres[i, 1])), float(sizes[i])) for i in order]


def _cluster(rng: np.random.Generator, size: int, count: int, pixels: float) -> np.ndarray:
    return size * rng.uniform(0.2, 0.8, 2) + pixels * 1.6 * rng.normal(0, 1, (count, 2))


def _visible_boxes(owner: np.ndarray, areas: list[float]) -> tuple[np.ndarray, list[int]]:
    boxes, kept = [], []
    for number, area in enumerate(areas):
        rows, columns = np.nonzero(owner == number + 1)
        if len(rows) < MIN_VISIBLE_SHARE * area or not len(rows):
            continue
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        if min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE:
            boxes.append(box)
            kept.append(number)
    return np.array(boxes, np.float32).reshape(-1, 4), kept


def _paint_ground(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """An airfield, a smooth gradient, noise of any grain, tiles or stripes, with shapes on it."""
    kind = rng.random()
    if kind < 0.3:
        ground = paint_ground(rng, lay_out(rng, size, size * rng.uniform(0.1, 0.3)))
        return cv2.multiply(ground.colour, cv2.merge([ground.light] * 3), dtype=cv2.CV_8U)
    low, high = rng.random((2, 1)) * 255 + rng.uniform(5, 60) * rng.normal(0, 1, (2, 3))  # more grey than colour
    high = low + (high - low) * rng.uniform(0.1, 1.0)
    field = fractal(rng, size, int(2 ** rng.uniform(1, 5)), int(rng.integers(2, 7)), rng.uniform(0.4, 0.9))
    if kind < 0.5:  # nearly plain
        field *= np.float32(rng.uniform(0.02, 0.25))
    elif kind < 0.7:  # tiles or stripes
        rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
        angle, step = rng.uniform(0, np.pi), rng.uniform(8, 60) * size / 320
        across, along = (
            (np.float32(np.cos(angle)) * rows + np.float32(np.sin(angle)) * columns) / np.float32(step),
            (np.float32(np.cos(angle)) * columns - np.float32(np.sin(angle)) * rows) / np.float32(step),
        )
        pattern = np.floor(across) % 2 if rng.random() < 0.5 else np.floor(across) + np.floor(along)
        field = np.float32(rng.uniform(0.1, 0.5)) * field + np.float32(rng.uniform(0.1, 0.8)) * (
            pattern % 2 - np.float32(0.5)
        )
    gradient = np.linspace(-1, 1, size, dtype=np.float32)[:, None] * np.float32(rng.uniform(0, 0.6))
    share = np.clip(field + gradient, -1, 1)[..., None] * np.float32(0.5) + np.float32(0.5)
    image = np.clip(low + (high - low) * share, 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(0, 9))):  # shapes without a class
        centre, sides = size * rng.random(2), int(rng.integers(3, 8))
        angles = np.sort(rng.uniform(0, 2 * np.pi, sides))
        radii = size * rng.uniform(0.02, 0.3) * rng.uniform(0.5, 1.2, sides)
        shape = centre + np.stack([np.cos(angles) * radii, np.sin(angles) * radii], 1)
        colour = tuple(
            int(value)
            for value in np.clip(
                image[tuple(np.clip(centre[::-1].astype(int), 0, size - 1))] + rng.normal(0, 40, 3), 0, 255
            )
        )
        layer = image.copy()
        fill(layer, shape.astype(np.float32), colour)
        cv2.addWeighted(layer, 0.6, image, 0.4, 0, dst=image)
    return image
