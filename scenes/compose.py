"""Plans a scene, paints it from the ground to the clouds, and computes the boxes.

A box is tight around the visible pixels of a plane: pixels that it covers by at least `MIN_PIXEL_COVERAGE`, after roofs
and clouds are subtracted. A plane with a visible share below `MIN_VISIBLE_SHARE` is neither painted nor labelled, so
that no part of an aircraft is visible without a label. Planes never overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from scenes.aircraft import planforms
from scenes.airfields import ROOFS, Airfield, Roof, Stand, choose, lay_out, pick
from scenes.outlines import Planform
from scenes.scenery import (
    ClutterObject,
    Ground,
    cast_shadow,
    make_boat,
    make_clouds,
    make_mast,
    make_tree,
    make_vehicle,
    paint_ground,
    paint_roof,
)
from scenes.textures import Plane, Sprite, fill, lighter, outlines, paint_plane

MIN_PIXEL_COVERAGE = 0.3  # a pixel belongs to a plane if the plane covers at least this share of it, below the clouds
MIN_VISIBLE_SHARE = 0.4  # of a plane's area; a plane with less is not drawn

_PLANES = np.cumsum([0.03, 0.04, 0.06, 0.1, 0.15, 0.18, 0.18, 0.14, 0.12])  # probability of 0, 1, ... 8 planes
_SHADOW_TINT = (0.6, 0.55, 0.46)  # share of red, green and blue light that a full shadow removes; the rest is skylight
_CELLS = 160  # cells per side of the occupancy map
_GROUND_STREAM, _CLUTTER_STREAM, _SKY_STREAM, _SENSOR_STREAM = 1, 2, 3, 4


@dataclass(frozen=True)
class Sky:
    """Light, air and camera."""

    sun: tuple[float, float]  # direction of shadows, a unit vector
    shadow: float  # length of a shadow per pixel of height
    has_clouds: bool
    haze: float
    cast: tuple[float, float, float]  # gain of red, green and blue
    contrast: float
    blur: float  # standard deviation in pixels
    noise: float  # width of the sensor's uniform noise, in grey levels
    is_grey: bool  # a panchromatic image


@dataclass(frozen=True)
class Scene:
    """All decisions about a scene, made before anything is painted."""

    seed: int
    index: int
    airfield: Airfield
    planes: tuple[Plane, ...]
    roofs: tuple[Roof, ...]
    sky: Sky


class PaintedScene(NamedTuple):
    """A painted scene. Boxes are xyxy in pixel edges, in the order of the scene's visible planes."""

    image: UInt8[np.ndarray, "S S 3"]
    boxes: Float32[np.ndarray, "N 4"]
    labels: Int64[np.ndarray, " N"]


def plan_scene(seed: int, index: int, size: int, class_list: Sequence[str]) -> Scene:
    """Plan a scene; it depends only on the arguments. Raises `ValueError` for a class without a planform."""
    rng = stream(seed, index, 0)
    types = planforms(class_list)
    # Some types are rarer. Large types get more weight, because they fit less often.
    rarity = 1 - 0.4 * (np.arange(len(types)) * 7 % len(types)) / len(types)
    weights = np.cumsum(rarity * [_drawn_size(planform, 1.0, 640) ** 1.2 for planform in types])
    zoom = 0.68 + 0.44 * rng.random()
    favourite = choose(rng, weights)
    pitch = _drawn_size(types[favourite], zoom, size)
    airfield = lay_out(rng, size, pitch)
    num_planes = choose(rng, _PLANES)
    occupied = _OccupancyMap(size)
    for roof in airfield.roofs:
        if not roof.is_open:
            occupied.add([roof.outline], 255)
    other_type_share = float(pick(rng, (0.1, 0.5, 0.9)))
    planes: list[Plane] = []
    parked: list[tuple[int, Plane]] = []  # planes that a roof may partly cover
    stands = [stand for stand in airfield.stands if all(-0.02 * size < v < 1.02 * size for v in (stand.x, stand.y))]
    for place in np.argsort(rng.random(len(stands)), kind="stable").tolist():  # in random order
        stand = stands[place]
        if len(planes) == num_planes:
            break
        label = choose(rng, weights) if rng.random() < other_type_share else favourite
        if _drawn_size(types[label], zoom, size) > stand.max_size:
            label = favourite
        plane = _park(rng, stand, label, types[label], _drawn_size(types[label], zoom, size))
        if occupied.is_free(outlines(plane)):
            planes.append(plane)
            occupied.add(outlines(plane), len(planes))
            parked += [] if stand.is_on_lane else [(len(planes), plane)]
    shelters = [shelter for number, plane in parked for shelter in _shelter(rng, plane, number, occupied)]
    return Scene(seed, index, airfield, tuple(planes), (*airfield.roofs, *shelters), draw_sky(rng))


def paint_scene(scene: Scene) -> PaintedScene:
    """Paint a scene from the ground to the clouds."""
    size, sky = scene.airfield.frame.size, scene.sky
    sun = np.array(sky.sun)
    ground = paint_ground(stream(scene.seed, scene.index, _GROUND_STREAM), scene.airfield)
    clouds = make_clouds(stream(scene.seed, scene.index, _SKY_STREAM), size) if sky.has_clouds else None
    roofed = np.zeros((size, size), np.uint8)
    for roof in scene.roofs:
        fill(roofed, roof.outline, 255)
    roof_share = roofed.astype(np.float32) / 255
    open_sky = 1 - roof_share
    if clouds is not None:
        open_sky *= 1 - clouds
    visible_planes = [view for plane in scene.planes if (view := _visible_plane(plane, sky, open_sky)) is not None]
    clutter = _scatter(scene, ground, sun)
    shade = _shadows(scene, [view.plane for view in visible_planes], clutter)
    removed = [cv2.multiply(ground.light, shade, scale=tint / 255, dtype=cv2.CV_32F) for tint in _SHADOW_TINT]
    light = cv2.merge([ground.light - channel for channel in removed])
    image = cv2.multiply(ground.colour, light, dtype=cv2.CV_8U)
    for item in clutter:
        for outline, colour in item.shapes:
            fill(image, outline, colour)
    for view in visible_planes:
        paste(image, view.sprite)
    # Roofs are painted with the same soft edges by which the boxes were computed.
    layer = image.copy()
    for roof in scene.roofs:
        paint_roof(layer, roof, sun)
    image = cv2.blendLinear(layer, image, roof_share, 1 - roof_share)
    image = develop(image, clouds, sky, stream(scene.seed, scene.index, _SENSOR_STREAM))
    boxes = np.array([view.box for view in visible_planes], dtype=np.float32).reshape(-1, 4)
    return PaintedScene(image, boxes, np.array([view.plane.label for view in visible_planes], dtype=np.int64))


class _VisiblePlane(NamedTuple):
    """A visible plane, painted, with its box."""

    plane: Plane
    sprite: Sprite
    box: tuple[int, int, int, int]


class _OccupancyMap:
    """Coarse map of occupied places; each cell has the number of its occupant, 0 for a free cell."""

    def __init__(self, size: int) -> None:
        self._scale = _CELLS / size
        self._cells = np.zeros((_CELLS, _CELLS), np.uint8)

    def _mask(self, shapes: Sequence[np.ndarray]) -> np.ndarray:
        mask = np.zeros_like(self._cells)
        points = [np.rint(shape * self._scale - 0.5).astype(np.int32) for shape in shapes]
        for shape in points:  # separately, because fillPoly uses the even-odd rule for several polygons
            cv2.fillPoly(mask, [shape], (1,))
        cv2.polylines(mask, points, True, (1,), 2)  # a margin around the shapes
        return mask.astype(bool)

    def add(self, shapes: Sequence[np.ndarray], occupant: int) -> None:
        self._cells[self._mask(shapes)] = occupant

    def is_free(self, shapes: Sequence[np.ndarray], allowed: int = 0) -> bool:
        """Whether no cell of the shapes is occupied, except by the occupant `allowed`."""
        cells = self._cells[self._mask(shapes)]
        return not bool(((cells != 0) & (cells != allowed)).any())


def stream(seed: int, index: int, part: int) -> np.random.Generator:
    """Each part of a scene has its own random numbers, so a change of one part does not change the others."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, part])))


def _drawn_size(planform: Planform, zoom: float, size: int) -> float:
    """The larger of span and length in pixels. Differences in size are reduced, so that small types are visible."""
    metres = max(planform.length, planform.span)
    return float(150 * (metres / 40) ** 0.45 * zoom * size / 640)


def _park(rng: np.random.Generator, stand: Stand, label: int, planform: Planform, drawn: float) -> Plane:
    aside = 0.04 * drawn * (rng.random(2) - 0.5)
    fade = 0.94 + 0.1 * rng.random()
    return Plane(
        label=label,
        planform=planform,
        centre=(stand.x + float(aside[0]), stand.y + float(aside[1])),
        heading=stand.heading + 0.14 * (rng.random() - 0.5),
        pixels_per_metre=drawn / max(planform.length, planform.span),
        skin=lighter(pick(rng, planform.skins), fade),
        accent=lighter(pick(rng, planform.accents), fade),
        sweep=planform.swing[2] * rng.random() if planform.swing else 0.0,
        wear=rng.random(),
        phase=2 * np.pi * rng.random(),
    )


def _shelter(rng: np.random.Generator, plane: Plane, number: int, occupied: _OccupancyMap) -> list[Roof]:
    """Sometimes a roof over the nose or the tail, if it covers no other plane."""
    chance, share, from_nose, colour = rng.random(), 0.12 + 0.36 * rng.random(), rng.random() < 0.5, pick(rng, ROOFS)
    if chance > 0.12:
        return []
    form = plane.planform
    half, edge = form.span * 0.58, share * form.length
    start, end = (-0.25 * form.length, edge) if from_nose else (form.length - edge, 1.25 * form.length)
    corners = np.array([[start, -half], [start, half], [end, half], [end, -half]], np.float32)
    outline = plane.to_pixels(corners)
    if not occupied.is_free([outline], allowed=number):
        return []
    occupied.add([outline], 255)
    return [Roof(outline, 0.2 * form.span * plane.pixels_per_metre, colour, is_open=True)]


def draw_sky(rng: np.random.Generator) -> Sky:
    angle, warm = 2 * np.pi * rng.random(), rng.random() - 0.5
    gain = 0.86 + 0.3 * rng.random()
    return Sky(
        sun=(float(np.cos(angle)), float(np.sin(angle))),
        shadow=0.45 + 1.1 * rng.random(),
        has_clouds=rng.random() < 0.16,
        haze=max(0.0, 0.5 * rng.random() - 0.25),
        cast=(gain * (1 + 0.1 * warm), gain * (1 + 0.04 * (rng.random() - 0.5)), gain * (1 - 0.12 * warm)),
        contrast=0.88 + 0.26 * rng.random(),
        blur=max(0.0, 1.1 * rng.random() - 0.4),
        noise=4 + 16 * rng.random() ** 2,
        is_grey=rng.random() < 0.05,
    )


def _visible_plane(plane: Plane, sky: Sky, open_sky: np.ndarray) -> _VisiblePlane | None:
    """Paint a plane and compute its visible box; None if too little of it is visible."""
    sprite = paint_plane(plane, sky.sun)
    in_image, in_sprite = overlap(sprite, len(open_sky))
    visible = sprite.coverage[in_sprite] * open_sky[in_image]
    if float(visible.sum()) < MIN_VISIBLE_SHARE * float(sprite.coverage.sum()):
        return None
    is_visible = visible >= MIN_PIXEL_COVERAGE
    rows, columns = (np.flatnonzero(is_visible.any(axis=axis)).tolist() for axis in (1, 0))
    if not rows:
        return None
    top, left = in_image[0].start, in_image[1].start
    return _VisiblePlane(plane, sprite, (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1))


def overlap(sprite: Sprite, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The overlap of image and sprite: rows and columns in the image, and rows and columns in the sprite."""
    in_image, in_sprite = [], []
    for start, length in zip((sprite.top, sprite.left), sprite.coverage.shape, strict=True):
        first, last = min(max(start, 0), size), min(max(start + length, 0), size)
        in_image.append(slice(first, last))
        in_sprite.append(slice(first - start, last - start))
    return (in_image[0], in_image[1]), (in_sprite[0], in_sprite[1])


def paste(image: np.ndarray, sprite: Sprite, opacity: float = 1.0) -> None:
    """Paste a sprite into an image, in place. Parts outside of the image are cut off."""
    in_image, in_sprite = overlap(sprite, len(image))
    share = sprite.coverage[in_sprite] * np.float32(opacity)
    if share.size == 0:
        return
    under, over = np.ascontiguousarray(image[in_image]), np.ascontiguousarray(sprite.colour[in_sprite])
    image[in_image] = cv2.blendLinear(over, under, share, 1 - share)


def _scatter(scene: Scene, ground: Ground, sun: np.ndarray) -> list[ClutterObject]:
    """Vehicles and masts on pavement, boats on water, groups of trees elsewhere; not on planes and roofs."""
    rng = stream(scene.seed, scene.index, _CLUTTER_STREAM)
    size, unit = scene.airfield.frame.size, scene.airfield.frame.unit
    occupied = _OccupancyMap(size)
    occupied.add(
        [roof.outline for roof in scene.roofs] + [shape for plane in scene.planes for shape in outlines(plane)], 1
    )
    clutter: list[ClutterObject] = []

    def put(item: ClutterObject) -> None:
        shapes = [shape for shape, _ in item.shapes]
        if occupied.is_free(shapes):
            occupied.add(shapes, 1)
            clutter.append(item)

    for _ in range(int(rng.random() * 26)):
        x, y = (size * rng.random(2)).tolist()
        kind = rng.random()
        if ground.paved[int(y), int(x)]:
            put(make_vehicle(rng, x, y, unit) if kind < 0.85 else make_mast(x, y, unit))
        elif ground.water[int(y), int(x)]:
            put(make_boat(rng, x, y, unit))
    for _ in range(int(rng.random() * 9)):
        grove, wide = size * rng.random(2), (20 + 60 * rng.random()) * unit
        for x, y in (grove + wide * rng.standard_normal((int(3 + 9 * rng.random()), 2))).tolist():
            inside = 0 <= x < size and 0 <= y < size
            if inside and not ground.paved[int(y), int(x)] and not ground.water[int(y), int(x)]:
                put(make_tree(rng, x, y, unit, sun))
    return clutter


def _shadows(scene: Scene, planes: Sequence[Plane], clutter: Sequence[ClutterObject]) -> np.ndarray:
    """The darkness of shadows on the ground, 0 to 255."""
    size = scene.airfield.frame.size
    shade = np.zeros((size, size), np.uint8)
    fall = np.array(scene.sky.sun) * scene.sky.shadow
    for item in clutter:
        cast_shadow(shade, item.shapes[0][0], fall * item.height)
    for roof in scene.roofs:
        cast_shadow(shade, roof.outline, fall * roof.height)
    for plane in planes:
        drawn = plane.pixels_per_metre * max(plane.planform.length, plane.planform.span)
        for outline in outlines(plane):
            fill(shade, outline + fall * 0.07 * drawn, 255)
        for fin in plane.planform.fins:
            base = plane.to_pixels(np.array([[fin.start, fin.y], [fin.end, fin.y]], np.float32))
            low, high = base + fall * 0.05 * drawn, base + fall * (0.07 * drawn + fin.height * plane.pixels_per_metre)
            fill(shade, np.stack([low[0], low[1], high[1], (high[0] + high[1]) / 2]), 255)
    return cv2.GaussianBlur(shade, (0, 0), 0.9 * scene.airfield.frame.unit)


def develop(image: np.ndarray, clouds: np.ndarray | None, sky: Sky, rng: np.random.Generator) -> np.ndarray:
    """Add clouds, haze, and the effects of lens and sensor."""
    if clouds is not None:
        white = np.full_like(image, 236)
        image = cv2.blendLinear(white, image, clouds, 1 - clouds)
    if sky.blur > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), sky.blur)
    if sky.is_grey:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    levels = np.arange(256, dtype=np.float32)[:, None] * (1 - sky.haze) + np.array([196, 204, 214]) * sky.haze
    levels = ((levels - 118) * sky.contrast + 118) * np.array(sky.cast if not sky.is_grey else (sky.cast[1],) * 3)
    image = cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8)[None])
    noise = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
    return cv2.addWeighted(image, 1, noise, sky.noise / 255, -sky.noise / 2)
