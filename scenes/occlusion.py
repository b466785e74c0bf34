"""Other objects of a scene, which may cover aircraft or stand beside them: roofs, vehicles, boats, trees, clouds."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32
from numpy.typing import ArrayLike

from scenes.airfields import Line, Roof, pick
from scenes.ground import draw_line, fractal
from scenes.outlines import Colour
from scenes.textures import fill, lighter

_CARS: tuple[Colour, ...] = (
    (206, 206, 202), (52, 56, 62), (150, 40, 38), (38, 70, 122), (198, 168, 58), (104, 108, 110), (70, 88, 62),
)  # fmt: skip
_CONTAINERS: tuple[Colour, ...] = ((154, 70, 48), (52, 92, 128), (70, 110, 78), (170, 172, 170), (190, 140, 60))
_LEAVES: tuple[Colour, ...] = ((44, 68, 36), (56, 78, 42), (66, 84, 40), (40, 60, 40))


class ClutterObject(NamedTuple):
    """Polygons with their colours, later ones on top; the first polygon casts the shadow."""

    shapes: tuple[tuple[np.ndarray, Colour], ...]
    height: float  # pixels


def cast_shadow(shade: np.ndarray, outline: np.ndarray, fall: np.ndarray) -> None:
    """Mark a convex block and its shadow; `fall` is the shift of the top's shadow, in pixels."""
    both = np.concatenate([outline, outline + fall]).astype(np.float32)
    fill(shade, cv2.convexHull(both)[:, 0], 255)


def paint_roof(canvas: np.ndarray, roof: Roof, sun: np.ndarray) -> None:
    """A pitched roof, one pixel larger on every side: one bright side, lines of metal sheets, a bright edge."""
    corners = _grown(roof.outline, 1.0)
    along, across = corners[1] - corners[0], corners[3] - corners[0]
    ridge = np.stack([(corners[0] + corners[3]) / 2, (corners[1] + corners[2]) / 2])
    lit = float(across @ sun) / max(float(np.hypot(*across)), 1e-3)
    fill(canvas, np.stack([corners[0], corners[1], ridge[1], ridge[0]]), lighter(roof.colour, 1 + 0.14 * lit))
    fill(canvas, np.stack([ridge[0], ridge[1], corners[2], corners[3]]), lighter(roof.colour, 1 - 0.14 * lit))
    sheets = max(2, int(np.hypot(*along) / 9))
    for share in np.arange(1, sheets) / sheets:
        rib = np.stack([corners[0], corners[3]]) + along * share
        draw_line(canvas, Line(rib, lighter(roof.colour, 0.68), 0.8))
    draw_line(canvas, Line(ridge, lighter(roof.colour, 1.1), 1.4))
    draw_line(canvas, Line(np.concatenate([corners, corners[:1]]), lighter(roof.colour, 1.15), 3.6))


def make_vehicle(rng: np.random.Generator, x: float, y: float, unit: float) -> ClutterObject:
    """A car, a truck, a fuel truck, a train of baggage carts, or containers."""
    block = _Block(x, y, 2 * np.pi * rng.random(), unit)
    colour, kind = pick(rng, _CARS), rng.random()
    if kind < 0.35:  # car
        shapes = (block.box(0, 0, 9, 4.4, colour), block.box(-0.4, 0, 4.6, 3.6, lighter(colour, 0.55)))
        return ClutterObject((*shapes, block.box(-0.6, 0, 3, 3.4, lighter(colour, 1.1))), 3 * unit)
    if kind < 0.6:  # truck
        load = pick(rng, ((206, 206, 198), (96, 104, 80), (120, 110, 90)))
        shapes = (block.box(0, 0, 18, 5.6, lighter(load, 0.8)), block.box(-2.4, 0, 12.6, 5.2, load))
        return ClutterObject(
            (*shapes, block.box(7, 0, 4, 5.4, colour), block.box(8.4, 0, 1.2, 5, (40, 48, 56))), 6 * unit
        )
    if kind < 0.75:  # fuel truck
        shapes = (block.box(0, 0, 22, 6, (84, 86, 88)), block.box(-3, 0, 15, 5.6, (196, 198, 196)))
        return ClutterObject(
            (*shapes, block.box(-3, 0.8, 15, 1.6, (226, 226, 222)), block.box(8.4, 0, 4, 5.6, colour)), 6 * unit
        )
    if kind < 0.88:  # baggage train
        carts = tuple(block.box(-6.5 * i, 0.5 * i * i - i, 5, 3.6, pick(rng, _CONTAINERS)) for i in range(4))
        return ClutterObject((block.box(7, 0, 6, 3.8, (206, 188, 60)), *carts), 2.5 * unit)
    rows, columns = 1 + int(rng.random() * 3), 1 + int(rng.random() * 3)
    ground = block.box(7.5 * (columns - 1), 3.5 * (rows - 1), 15 * columns, 7 * rows, (70, 70, 70))
    boxes = (block.box(15 * i, 7 * j, 14.4, 6.4, pick(rng, _CONTAINERS)) for i in range(columns) for j in range(rows))
    return ClutterObject((ground, *boxes), 7 * unit)


def make_tree(rng: np.random.Generator, x: float, y: float, unit: float, sun: np.ndarray) -> ClutterObject:
    """The crown of a tree, brighter towards the sun."""
    radius, leaf = (4 + 10 * rng.random() ** 2) * unit, pick(rng, _LEAVES)
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1) * (0.8 + 0.4 * rng.random(14))[:, None]
    shapes = []
    for share, light in ((1.0, 0.7), (0.74, 0.95), (0.4, 1.25)):
        middle = np.array([x, y]) - sun * radius * (1 - share) * 0.6
        shapes.append(((middle + ring * radius * share).astype(np.float32), lighter(leaf, light)))
    return ClutterObject(tuple(shapes), 1.1 * radius)


def make_boat(rng: np.random.Generator, x: float, y: float, unit: float) -> ClutterObject:
    """A boat with a wake."""
    block, scale = _Block(x, y, 2 * np.pi * rng.random(), unit), 1 + 1.6 * rng.random()
    hull = [(9, 0), (5, 2.2), (-7, 2.6), (-7, -2.6), (5, -2.2)]
    foam, deck = (186, 206, 208), pick(rng, ((214, 214, 210), (150, 60, 48), (60, 72, 84)))
    wake = [(8, 0), (-34 * rng.random() - 7, 6), (-12, 0), (-34 * rng.random() - 7, -6)]
    shapes = (block.shape(hull, scale, deck), block.shape(wake, scale, foam), block.shape(hull, scale, deck))
    return ClutterObject((*shapes, block.box(-2.5 * scale, 0, 5 * scale, 3 * scale, lighter(deck, 0.75))), 2 * unit)


def make_mast(x: float, y: float, unit: float) -> ClutterObject:
    """A lamp mast: a small square with a long shadow."""
    return ClutterObject((_Block(x, y, 0.0, unit).box(0, 0, 2.4, 2.4, (196, 196, 190)),), 26 * unit)


def make_clouds(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "S S"]:
    """The opacity of clouds at each pixel, 0 to 0.97."""
    field = fractal(rng, size, 2, 7, 0.6)
    start = 0.25 + 0.35 * rng.random()
    return (0.97 * np.clip((field - np.float32(start)) * np.float32(2.2), 0, 1) ** 0.8).astype(np.float32)


def _grown(rectangle: np.ndarray, margin: float) -> np.ndarray:
    along, across = rectangle[1] - rectangle[0], rectangle[3] - rectangle[0]
    along = along / max(float(np.hypot(*along)), 1e-3) * margin
    across = across / max(float(np.hypot(*across)), 1e-3) * margin
    return rectangle + np.stack([-along - across, along - across, along + across, across - along])


class _Block:
    """Rectangles and polygons in the coordinates of one object."""

    def __init__(self, x: float, y: float, angle: float, unit: float) -> None:
        cos, sin = np.cos(angle) * unit, np.sin(angle) * unit
        self._turn, self._origin = np.array([[cos, sin], [-sin, cos]]), np.array([x, y])

    def box(self, u: float, v: float, length: float, width: float, colour: Colour) -> tuple[np.ndarray, Colour]:
        half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (length / 2, width / 2)
        return self.shape(half + np.array([u, v]), 1.0, colour)

    def shape(self, points: ArrayLike, scale: float, colour: Colour) -> tuple[np.ndarray, Colour]:
        return ((np.asarray(points) * scale) @ self._turn + self._origin).astype(np.float32), colour
