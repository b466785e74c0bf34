"""Planforms (aircraft seen from above), and functions for their parts: hulls, wings, nacelles, propellers.

Units are metres. x points from the nose to the tail, y to the right wing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

Colour = tuple[int, int, int]  # RGB
Section = tuple[float, float, float]  # of a wing: y, x of its leading edge, x of its trailing edge


class Part(NamedTuple):
    """One closed outline and the tone it is painted in."""

    tone: str  # skin, metal, dark, glass, accent, pale, prop, or crease: an open line on the skin
    outline: Float32[np.ndarray, "K 2"]
    axis: float | None = None  # y of the centre line of a round part (a fuselage, a nacelle); None: a flat part


class Fin(NamedTuple):
    """A vertical tail: from above a thin line, with a large shadow beside it."""

    y: float
    start: float
    end: float
    height: float


@dataclass(frozen=True)
class Planform:
    """The appearance of an aircraft type from above. Later parts cover earlier parts."""

    resembles: str
    parts: tuple[Part, ...]
    fins: tuple[Fin, ...] = ()
    skins: tuple[Colour, ...] = ((168, 172, 176),)  # each plane has one of these colours
    accents: tuple[Colour, ...] = ((150, 60, 50),)
    blotch: Colour | None = None  # second colour of a camouflage
    swing: tuple[float, float, float] | None = None  # x and y of the wings' pivot, largest sweep angle (radians)

    @cached_property
    def length(self) -> float:
        """Metres from the first to the last point along x."""
        return float(np.ptp(self._points()[:, 0]))

    @cached_property
    def span(self) -> float:
        """Metres from wing tip to wing tip."""
        return float(np.ptp(self._points()[:, 1]))

    @cached_property
    def middle(self) -> float:
        """x of the point in the middle between nose and tail."""
        points = self._points()[:, 0]
        return float(points.min() + points.max()) / 2

    def _points(self) -> np.ndarray:
        return np.concatenate([part.outline for part in self.parts])


def swept(planform: Planform, angle: float) -> tuple[Part, ...]:
    """The parts; those with a `swing` tone are rotated back by `angle` radians about their pivots."""
    if planform.swing is None:
        return planform.parts
    pivot_x, pivot_y, _ = planform.swing
    parts = []
    for part in planform.parts:
        side = np.sign(part.outline[:, 1].mean())
        if part.tone.startswith("swing "):
            turn = np.array([[np.cos(angle), -side * np.sin(angle)], [side * np.sin(angle), np.cos(angle)]])
            pivot = np.array([pivot_x, side * pivot_y])
            outline = ((part.outline - pivot) @ turn + pivot).astype(np.float32)
            parts.append(part._replace(tone=part.tone.removeprefix("swing "), outline=outline))
        else:
            parts.append(part)
    return tuple(parts)


def hull(
    tone: str, *stations: tuple[float, float], ys: Sequence[float] = (0.0,), is_round: bool = True
) -> tuple[Part, ...]:
    """Symmetrical bodies from points (x, half width), front to back; one body around each y."""
    half = np.array(stations, dtype=np.float32)
    outline = np.concatenate([half * (1, 1), half[::-1] * (1, -1)])
    return tuple(Part(tone, (outline + np.array([0, y])).astype(np.float32), y if is_round else None) for y in ys)


def tube(
    tone: str, ends: tuple[float, float], half_width: float, nose: float, tail: float, ys: Sequence[float] = (0.0,)
) -> tuple[Part, ...]:
    """Bodies with an elliptic nose of length `nose` and a tapering tail of length `tail` (metres)."""
    angles = np.linspace(0, np.pi / 2, 6)
    front = [(ends[0] + nose * (1 - np.cos(a)), half_width * np.sin(a)) for a in angles]
    back = [(ends[1] - tail * (1 - share), half_width * (1 - 0.9 * share**1.6)) for share in np.linspace(0, 1, 6)]
    return hull(tone, *front, *back, ys=ys)


def pods(tone: str, *ys: float, ends: tuple[float, float], half_width: float) -> tuple[Part, ...]:
    """Two nacelles, left and right, for each y, with dark air intakes."""
    long = ends[1] - ends[0]
    mouth = (ends[0] - 0.04 * long, ends[0] + 0.1 * long)
    return tuple(
        part
        for y in ys
        for side in (-y, y)
        for part in (
            *hull("dark", (mouth[0], half_width * 0.8), (mouth[1], half_width * 0.8), ys=(side,), is_round=False),
            *tube(tone, (ends[0], ends[1]), half_width, 0.12 * long, 0.5 * long, ys=(side,)),
        )
    )


def panel(tone: str, *sections: Section, flap: float = 0.76) -> tuple[Part, ...]:
    """A wing or tailplane on both sides, from its sections (root to tip), with the line of its flaps."""
    rows = np.array(sections, dtype=np.float32)
    y, lead, trail = rows.T
    parts = []
    for side in (-1, 1):
        edge = np.concatenate([np.stack([lead, side * y], 1), np.stack([trail, side * y], 1)[::-1]])
        line = np.stack([lead + flap * (trail - lead), side * y], 1)
        parts.append(Part(tone, edge.astype(np.float32)))
        if tone.endswith("skin"):
            parts.append(Part(tone.replace("skin", "crease"), line.astype(np.float32)))
    return tuple(parts)


def plate(tone: str, *points: tuple[float, float]) -> tuple[Part, ...]:
    """A flat part given by the outline of its right side, and its mirror image."""
    right = np.array(points, dtype=np.float32)
    return Part(tone, right), Part(tone, (right * (1, -1)).astype(np.float32))


def props(*ys: float, at: float, radius: float) -> tuple[Part, ...]:
    """Propellers: seen from above, each disc is a narrow bar in front of a spinner."""
    return tuple(
        part
        for y in ys
        for side in (-y, y)
        for part in (
            *hull("prop", (at - 0.22, radius), (at + 0.22, radius), ys=(side,), is_round=False),
            *hull("dark", (at - 0.9, 0.15), (at + 0.3, 0.45), ys=(side,), is_round=False),
        )
    )


def disc(tone: str, x: float, radius: float, y: float = 0.0) -> tuple[Part, ...]:
    angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return (Part(tone, np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).astype(np.float32)),)


def glass(start: float, end: float, half_width: float) -> tuple[Part, ...]:
    return tube("glass", (start, end), half_width, (end - start) * 0.4, (end - start) * 0.6)


def windscreen(start: float, half_width: float) -> tuple[Part, ...]:
    return hull("glass", (start, half_width * 0.55), (start + half_width * 0.55, half_width * 0.8), is_round=False)


def roundels(x: float, y: float, radius: float) -> tuple[Part, ...]:
    return *disc("accent", x, radius, y), *disc("accent", x, radius, -y)
