"""Paints one aircraft seen from above: colours, shading, and its coverage of every pixel."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from scenes.outlines import Colour, Part, Planform, swept

SUPERSAMPLING = 3  # painted three times larger and then averaged, for smoother edges than OpenCV's anti-aliasing
_FRACTION_BITS = 4  # cv2.fillPoly takes sixteenths of a pixel

_TONES: dict[str, Colour] = {
    "metal": (146, 148, 150), "dark": (38, 40, 44), "glass": (44, 58, 74), "pale": (226, 226, 220), "prop": (92, 94, 97)
}  # fmt: skip


@dataclass(frozen=True)
class Plane:
    """One aircraft in a scene."""

    label: int  # index into the scene's class list
    planform: Planform
    centre: tuple[float, float]  # x, y in pixels: half-way between nose and tail
    heading: float  # radians, clockwise from the image's right-hand side; where the nose points
    pixels_per_metre: float
    skin: Colour
    accent: Colour
    sweep: float = 0.0  # radians by which swing wings are turned back
    wear: float = 0.0  # 0 to 1: amount of dirt
    phase: float = 0.0  # radians: makes camouflage and dirt different for each plane

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return swept(self.planform, self.sweep)

    def to_pixels(self, points: Float32[np.ndarray, "K 2"]) -> Float32[np.ndarray, "K 2"]:
        """Convert metres of the planform to pixels of the image."""
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        turn = np.array([[-cos, -sin], [-sin, cos]]) * self.pixels_per_metre  # x runs aft, against the heading
        moved = (points - np.array([self.planform.middle, 0.0])) @ turn + np.array(self.centre)
        return moved.astype(np.float32)


@dataclass(frozen=True)
class Sprite:
    """A painted plane without background. `coverage` is the share of each pixel that the plane covers, 0 to 1."""

    left: int
    top: int
    colour: UInt8[np.ndarray, "H W 3"]
    coverage: Float32[np.ndarray, "H W"]


def outlines(plane: Plane) -> list[np.ndarray]:
    """All closed outlines in pixels, for silhouettes and shadows."""
    return [plane.to_pixels(part.outline) for part in plane.parts if part.tone != "crease"]


def fill(canvas: np.ndarray, outline: np.ndarray, colour: int | tuple[int, ...], scale: float = 1.0) -> None:
    """Fill a polygon given in pixel edges (0, 0 is the corner of the first pixel), to a sixteenth of a pixel."""
    # cv2 counts from pixel centres
    points = np.rint((outline * scale - 0.5) * (1 << _FRACTION_BITS)).astype(np.int32)
    smooth = cv2.LINE_AA if scale == 1.0 else cv2.LINE_8
    cv2.fillPoly(canvas, [points], colour if isinstance(colour, tuple) else (colour,), smooth, _FRACTION_BITS)


def paint_plane(plane: Plane, sun: tuple[float, float]) -> Sprite:
    """Paint one plane. `sun` is the direction of shadows, a unit vector in image pixels."""
    shapes = [plane.to_pixels(part.outline) for part in plane.parts]
    points = np.concatenate(shapes)
    corner = np.floor(points.min(axis=0)).astype(int) - 2
    width, height = (np.ceil(points.max(axis=0)).astype(int) + 2 - corner).tolist()
    large = (height * SUPERSAMPLING, width * SUPERSAMPLING)
    colour = np.empty((*large, 3), np.uint8)
    colour[:] = plane.skin
    cover = np.zeros(large, np.uint8)
    brush = _Brush(plane, colour, np.array(sun), corner)
    for part, shape in zip(plane.parts, shapes, strict=True):
        if part.tone == "crease":
            brush.crease(shape)
            continue
        fill(cover, shape - corner, 255, SUPERSAMPLING)
        brush.part(part, shape)
    brush.fins()
    size = (width, height)
    small = cv2.resize(colour, size, interpolation=cv2.INTER_AREA)
    small = _weathered(plane, small, cv2.resize(brush.painted, size, interpolation=cv2.INTER_AREA), corner)
    share = cv2.resize(cover, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return Sprite(int(corner[0]), int(corner[1]), small, share)


class _Brush:
    """Paints parts into the enlarged canvas of one plane."""

    def __init__(self, plane: Plane, canvas: np.ndarray, sun: np.ndarray, corner: np.ndarray) -> None:
        self.plane, self.canvas, self.sun, self.corner = plane, canvas, sun, corner
        cos, sin = np.cos(plane.heading), np.sin(plane.heading)
        self.right = np.array([-sin, cos])  # the direction of the right wing in the image
        self.painted = np.zeros(canvas.shape[:2], np.uint8)  # where the skin is visible and gets camouflage
        self.lit = -float(self.right @ sun)  # above 0: the light comes from the right
        self.tones = {"skin": plane.skin, "accent": plane.accent, **_TONES}

    def part(self, part: Part, shape: np.ndarray) -> None:
        tone = self.tones[part.tone]
        if self.plane.planform.blotch:
            fill(self.painted, shape - self.corner, 255 if part.tone == "skin" else 0, SUPERSAMPLING)
        if part.axis is None:
            side = np.sign(round(float(part.outline[:, 1].mean()), 3))
            self._fill(shape, lighter(tone, 1 + 0.05 * side * self.lit))
            return
        thick = float(np.ptp(part.outline[:, 1])) * self.plane.pixels_per_metre
        self._fill(shape + self.sun * 0.35 * thick, lighter(self.plane.skin, 0.66))  # shadow on the parts below
        # Three nested outlines, shifted towards the sun, shade the part like a cylinder.
        offset = part.outline[:, 1] - part.axis
        for narrow, shift, light in ((1.0, 0.0, 0.76), (0.74, 0.1, 0.96), (0.34, 0.2, 1.12)):
            y = part.axis + offset * (narrow + shift * self.lit * np.sign(offset))
            nested = self.plane.to_pixels(np.stack([part.outline[:, 0], y], 1).astype(np.float32))
            self._fill(nested, lighter(tone, light))

    def crease(self, shape: np.ndarray) -> None:
        points = ((shape - self.corner) * SUPERSAMPLING * (1 << _FRACTION_BITS)).astype(np.int32)
        colour = lighter(self.plane.skin, 0.72)
        cv2.polylines(self.canvas, [points], False, colour, 1, cv2.LINE_AA, _FRACTION_BITS)

    def fins(self) -> None:
        for fin in self.plane.planform.fins:
            height = fin.height * self.plane.pixels_per_metre * 0.5
            base = self.plane.to_pixels(np.array([[fin.start, fin.y], [fin.end, fin.y]], np.float32))
            top = base + self.sun * height
            top[0] = base[0] * 0.35 + base[1] * 0.65 + self.sun * height  # swept back
            self._fill(np.concatenate([base, top[::-1]]), lighter(self.plane.skin, 0.68))
            half = self.right * max(0.22 * self.plane.pixels_per_metre, 0.5)
            blade = np.stack([base[0], base[1] + half, base[1] - half])
            self._fill(blade, lighter(self.plane.accent if fin.y == 0 else self.plane.skin, 1.1))

    def _fill(self, shape: np.ndarray, colour: Colour) -> None:
        fill(self.canvas, shape - self.corner, colour, SUPERSAMPLING)


def _weathered(plane: Plane, colour: np.ndarray, painted: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Add camouflage and dirt: smooth spots in the coordinates of the plane."""
    height, width = painted.shape
    x = np.arange(width, dtype=np.float32) + np.float32(corner[0] - plane.centre[0])
    y = np.arange(height, dtype=np.float32) + np.float32(corner[1] - plane.centre[1])
    waves = np.zeros((height, width), np.float32)
    for number, turn in enumerate((0.3, 1.5, 2.4, 3.9)):
        angle = plane.heading + turn + plane.phase
        step = (1.0 + 0.35 * number) / max(plane.planform.length, plane.planform.span) * 14 / plane.pixels_per_metre
        across, down = (
            x * np.float32(step * np.cos(angle)) + np.float32(angle * 5),
            y * np.float32(step * np.sin(angle)),
        )
        # sin(a + b) as products of sines and cosines: they are computed for rows and columns, not for every pixel
        waves += np.outer(np.cos(down), np.sin(across)) + np.outer(np.sin(down), np.cos(across))
    dirt = 1 - np.float32(0.05 * plane.wear) * np.clip(waves + 1, 0, 2)
    gains = [dirt] * 3
    if plane.planform.blotch:
        share = np.clip(waves * 2.5, 0, 1) * painted * np.float32(1 / 255)
        ratios = [second / max(first, 1) for first, second in zip(plane.skin, plane.planform.blotch, strict=True)]
        gains = [dirt * (1 + np.float32(ratio - 1) * share) for ratio in ratios]
    return cv2.multiply(colour, cv2.merge(gains), dtype=cv2.CV_8U)


def lighter(colour: Colour, share: float) -> Colour:
    """The colour with its brightness multiplied by `share`; below 1 it becomes darker."""
    red, green, blue = (min(255, max(0, round(value * share))) for value in colour)
    return red, green, blue
