"""Random airfields as polygons, lines and stands for aircraft; nothing is painted here.

A layout has its own coordinates: 640 units per image side, origin in the middle of the image, rotated by one angle.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np

from scenes.outlines import Colour

Points = Sequence[tuple[float, float]]

YELLOW: Colour = (206, 170, 60)
WHITE: Colour = (224, 224, 218)
CONCRETE: tuple[Colour, ...] = ((168, 166, 158), (152, 152, 148), (178, 172, 158), (140, 141, 140))
ASPHALT: tuple[Colour, ...] = ((92, 93, 96), (104, 104, 104), (80, 82, 86), (116, 114, 110))
ROOFS: tuple[Colour, ...] = (
    (186, 190, 192), (120, 132, 140), (150, 92, 74), (92, 112, 104), (206, 200, 186), (98, 98, 102),
)  # fmt: skip
T = TypeVar("T")
REACH = 480  # more than half a diagonal: lines drawn to here leave the image


class Line(NamedTuple):
    points: np.ndarray  # (K, 2), pixels
    colour: Colour
    width: float  # pixels
    dash: float = 0.0  # length in pixels of dashes and gaps; 0 is a solid line


class Stand(NamedTuple):
    """A place for one aircraft."""

    x: float
    y: float
    heading: float  # radians in the image
    max_size: float  # the largest span or length that fits, pixels
    is_on_lane: bool = False  # on a runway or a taxiway, where no roof is built


class Roof(NamedTuple):
    outline: np.ndarray  # (K, 2), pixels; the ridge is parallel to the first side of a rectangle
    height: float  # pixels above the ground
    colour: Colour
    is_open: bool = False  # aircraft may stand partly below it


class Track(NamedTuple):
    """A line with tyre marks."""

    start: np.ndarray
    end: np.ndarray
    spread: float


class LayoutFrame:
    """Converts units of a layout to pixels of the image."""

    def __init__(self, size: int, angle: float) -> None:
        self.size, self.angle, self.unit = size, angle, size / 640
        cos, sin = np.cos(angle), np.sin(angle)
        self._turn = np.array([[cos, sin], [-sin, cos]]) * self.unit

    def points(self, points: Points) -> np.ndarray:
        return (np.array(points, dtype=np.float64) @ self._turn + self.size / 2).astype(np.float32)

    def box(self, u0: float, v0: float, u1: float, v1: float) -> np.ndarray:
        return self.points([(u0, v0), (u1, v0), (u1, v1), (u0, v1)])

    def road(self, start: tuple[float, float], end: tuple[float, float], width: float) -> np.ndarray:
        """A strip of this width from start to end."""
        (u0, v0), (u1, v1) = start, end
        long = max(math.hypot(u1 - u0, v1 - v0), 1e-6)
        u, v = (v0 - v1) / long * width / 2, (u1 - u0) / long * width / 2
        return self.points([(u0 + u, v0 + v), (u1 + u, v1 + v), (u1 - u, v1 - v), (u0 - u, v0 - v)])

    def disc(self, u: float, v: float, radius: float) -> np.ndarray:
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        return self.points([(u + radius * np.cos(a), v + radius * np.sin(a)) for a in angles])


@dataclass
class Airfield:
    """The layout of an airfield. Later pavement covers earlier pavement."""

    frame: LayoutFrame
    ground: str
    paved: list[tuple[np.ndarray, Colour]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    tracks: list[Track] = field(default_factory=list)
    stands: list[Stand] = field(default_factory=list)
    roofs: list[Roof] = field(default_factory=list)
    has_slabs: bool = False
    shore: tuple[float, float] | None = None  # v of the shoreline, and the direction of the water: -1 or 1

    def pave(self, outline: np.ndarray, colour: Colour) -> None:
        self.paved.append((outline, colour))

    def line(self, points: Points, colour: Colour, width: float, dash: float = 0.0) -> None:
        unit = self.frame.unit
        self.lines.append(Line(self.frame.points(points), colour, width * unit, dash * unit))

    def track(self, start: tuple[float, float], end: tuple[float, float], spread: float) -> None:
        first, last = self.frame.points([start, end])
        self.tracks.append(Track(first, last, spread * self.frame.unit))

    def stand(self, u: float, v: float, heading: float, max_size: float, is_on_lane: bool = False) -> None:
        x, y = self.frame.points([(u, v)])[0].tolist()
        self.stands.append(Stand(x, y, heading + self.frame.angle, max_size * self.frame.unit, is_on_lane))

    def roof(self, outline: np.ndarray, height: float, colour: Colour, is_open: bool = False) -> None:
        self.roofs.append(Roof(outline, height * self.frame.unit, colour, is_open))


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """A random choice; all choices have the same probability."""
    return choices[int(rng.random() * len(choices))]


def choose(rng: np.random.Generator, cumulative: np.ndarray) -> int:
    """A random index. `cumulative`: the running sum of the weights of the choices."""
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def lay_out(rng: np.random.Generator, size: int, pitch: float, kind: str | None = None) -> Airfield:
    """A random airfield. `pitch`: size of one plane of the scene in pixels; `kind`: one of `LAYOUTS`, None: random."""
    drawn = list(LAYOUTS)[choose(rng, _SHARES)]
    airfield = Airfield(
        LayoutFrame(size, 2 * np.pi * rng.random()), ground=pick(rng, GROUNDS), has_slabs=rng.random() < 0.8
    )
    LAYOUTS[kind or drawn](rng, airfield, pitch * 640 / size)
    return airfield


def ramp(rng: np.random.Generator, airfield: Airfield, pitch: float) -> None:
    """An apron with rows of stands, a line of hangars on one side, and a taxiway on the other."""
    colour, taxi = pick(rng, CONCRETE), pick(rng, ASPHALT)
    edge = -330 + 190 * rng.random()
    num_rows = 1 + int(rng.random() * 2.4)
    deep = pitch * 1.9
    far = edge + num_rows * deep + 30
    airfield.pave(airfield.frame.box(-REACH, edge, REACH, far), colour)
    airfield.pave(airfield.frame.box(-REACH, far, REACH, far + 64), taxi)
    airfield.track((-REACH, far + 32), (REACH, far + 32), 10)
    lean = pick(rng, (0.0, 0.0, 0.5, -0.5))
    heading = pick(rng, (0.5, -0.5)) * np.pi
    start = -REACH + pitch * rng.random()
    for row in range(num_rows):
        v = edge + deep * (row + 0.36)
        lane = edge + deep * (row + 0.86)
        airfield.line([(-REACH, lane), (REACH, lane)], YELLOW, 2)
        airfield.track((-REACH, lane), (REACH, lane), 7)
        for u in np.arange(start, REACH, pitch * 1.14):
            airfield.line([(u, v - 0.2 * pitch), (u, lane - 14), (u + 14, lane)], YELLOW, 1.5)
            airfield.stand(u, v, heading + lean, pitch * 1.06)
    airfield.line([(-REACH, far + 32), (REACH, far + 32)], YELLOW, 2)
    for v in (far + 4, far + 60):
        airfield.line([(-REACH, v), (REACH, v)], YELLOW, 1)
    roof, u = pick(rng, ROOFS), -REACH + 60 * rng.random()
    while u < REACH:
        wide, deep = pitch * (0.9 + 0.6 * rng.random()), pitch * (0.7 + 0.4 * rng.random())
        if rng.random() < 0.75:
            near = edge - 6 + 0.2 * pitch * rng.random()  # the front extends over the apron
            airfield.roof(airfield.frame.box(u, near - deep, u + wide, near), 16 + 12 * rng.random(), roof)
        u += wide + 12 + 40 * rng.random()
    if rng.random() < 0.25:
        airfield.shore = (far + 90 + 60 * rng.random(), 1.0)


def runway(rng: np.random.Generator, airfield: Airfield, pitch: float) -> None:
    """A runway with markings, a taxiway beside it, and an apron on one side."""
    middle, half = -160 + 180 * rng.random(), max(34 + 14 * rng.random(), 0.42 * pitch)
    asphalt = pick(rng, ASPHALT)
    airfield.pave(airfield.frame.box(-REACH, middle - half - 9, REACH, middle + half + 9), pick(rng, ASPHALT))
    airfield.pave(airfield.frame.box(-REACH, middle - half, REACH, middle + half), asphalt)
    for side in (-1, 1):
        airfield.line([(-REACH, middle + side * (half - 4)), (REACH, middle + side * (half - 4))], WHITE, 2)
    airfield.line([(-REACH, middle), (REACH, middle)], WHITE, 2.5, dash=34)
    airfield.track((-REACH, middle), (REACH, middle), half * 0.5)
    if rng.random() < 0.6:
        _threshold(rng, airfield, middle, half)
    taxi = middle + half + 60 + pitch * 0.5
    airfield.pave(airfield.frame.box(-REACH, taxi - 22, REACH, taxi + 22), asphalt)
    link = -200 + 400 * rng.random()
    airfield.pave(airfield.frame.road((link, middle), (link + 90 * pick(rng, (-1, 0, 1)), taxi), 40), asphalt)
    airfield.line([(-REACH, taxi), (REACH, taxi)], YELLOW, 2)
    airfield.track((-REACH, taxi), (REACH, taxi), 8)
    for v in (middle, middle, taxi, taxi):
        airfield.stand(-290 + 580 * rng.random(), v, pick(rng, (0.0, np.pi)), 2 * pitch, is_on_lane=True)
    apron = taxi + 22
    ends = (-260 - 200 * rng.random(), 260 + 200 * rng.random())
    airfield.pave(airfield.frame.box(ends[0], apron, ends[1], apron + 1.3 * pitch), pick(rng, CONCRETE))
    lean = 0.6 * rng.random() - 0.3 + pick(rng, (0.0, np.pi))
    for u in np.arange(ends[0] + 0.6 * pitch, ends[1] - 0.5 * pitch, pitch * 1.12):
        airfield.line([(u, apron), (u, apron + pitch)], YELLOW, 1.5)
        airfield.stand(u, apron + 0.66 * pitch, np.pi / 2 + lean, 1.06 * pitch)
    if rng.random() < 0.3:
        airfield.shore = (middle - half - 60 - 50 * rng.random(), -1.0)


def _threshold(rng: np.random.Generator, airfield: Airfield, middle: float, half: float) -> None:
    """The markings at the start of a runway: bars, a number, touchdown blocks."""
    start = -220 + 240 * rng.random()
    for v in np.linspace(middle - half * 0.8, middle + half * 0.8, 10):
        airfield.line([(start, v), (start + 44, v)], WHITE, max(half / 9, 2))
    for side in (-0.3, 0.3):
        airfield.line([(start + 62, middle + side * half), (start + 84, middle + side * half * 1.8)], WHITE, 4)
        airfield.line([(start + 84, middle + side * half * 0.4), (start + 84, middle + side * half * 1.8)], WHITE, 4)
        airfield.line([(start + 150, middle + side * half * 1.4), (start + 196, middle + side * half * 1.4)], WHITE, 9)


def dispersal(rng: np.random.Generator, airfield: Airfield, pitch: float) -> None:
    """Round hardstands on both sides of a taxiway, each with its own access road."""
    asphalt, concrete = pick(rng, ASPHALT), pick(rng, CONCRETE)
    bend = 120 * rng.random() - 60
    path = [(-REACH, -bend), (-120.0, 0.0), (140.0, bend), (REACH, 0.0)]
    radius, side = 0.62 * pitch, pick(rng, (-1.0, 1.0))
    for u in np.arange(-330 + 40 * rng.random(), 340, radius * 1.5):
        v = side * (radius + 56 + 30 * rng.random()) + float(np.interp(u, *np.transpose(path)))
        root = (u + 50 * rng.random() - 25, float(np.interp(u, *np.transpose(path))))
        airfield.pave(airfield.frame.road(root, (u, v), 30), asphalt)
        airfield.pave(airfield.frame.disc(u, v, radius + 7), pick(rng, ASPHALT))
        airfield.pave(airfield.frame.disc(u, v, radius), concrete)
        airfield.line([root, (u, v)], YELLOW, 1.5)
        toward = float(np.arctan2(root[1] - v, root[0] - u))
        airfield.stand(u, v, toward + 0.5 * rng.random() - 0.25, pitch * 1.15)
        side = -side
    for first, last in pairwise(path):
        airfield.pave(airfield.frame.road(first, last, 46), asphalt)
        airfield.track(first, last, 9)
    airfield.line(path, YELLOW, 2)
    for u in (-200.0, 40.0, 240.0):
        airfield.stand(
            u, float(np.interp(u, *np.transpose(path))), pick(rng, (0.0, np.pi)), 1.4 * pitch, is_on_lane=True
        )


def boneyard(rng: np.random.Generator, airfield: Airfield, pitch: float) -> None:
    """Stored planes in rows on bare ground, with dirt roads between the rows."""
    airfield.ground = pick(rng, ("desert", "soil", "dry"))
    lean = 0.9 * rng.random() - 0.45
    start = -REACH + pitch * rng.random()
    for row, v in enumerate(np.arange(-300 + pitch * rng.random() * 0.6, 400, pitch * 1.25)):
        if row % 2:
            lane = v - 0.62 * pitch
            airfield.pave(airfield.frame.road((-REACH, lane), (REACH, lane), 12), (166, 142, 108))
        for u in np.arange(start + 0.3 * pitch * (row % 2), REACH, pitch * 1.08):
            turn = 0.16 * rng.random() - 0.08
            airfield.stand(u + 8 * rng.random(), v + 8 * rng.random(), np.pi / 2 + lean + turn, pitch * 1.05)


def terminal(rng: np.random.Generator, airfield: Airfield, pitch: float) -> None:
    """A pier with gates on both sides, and a passenger bridge to each plane."""
    concrete, pier = pick(rng, CONCRETE), -40 + 80 * rng.random()
    airfield.pave(airfield.frame.box(-REACH, -REACH, REACH, REACH), concrete)
    half, end = 24 + 10 * rng.random(), 150 + 200 * rng.random()
    roof = pick(rng, ROOFS)
    for side in (-1, 1):
        lane = pier + side * (half + 1.75 * pitch)
        airfield.pave(airfield.frame.box(-REACH, lane - 26, REACH, lane + 26), pick(rng, ASPHALT))
        airfield.line([(-REACH, lane), (REACH, lane)], YELLOW, 2)
        airfield.track((-REACH, lane), (REACH, lane), 8)
        airfield.stand(300 * rng.random() - 150, lane, pick(rng, (0.0, np.pi)), 1.4 * pitch, is_on_lane=True)
        for u in np.arange(-300 + 60 * rng.random(), end - 0.3 * pitch, pitch * 1.2):
            v = pier + side * (half + 24 + 0.5 * pitch)
            airfield.line([(u, pier + side * half), (u, lane - side * 20), (u + 20, lane)], YELLOW, 1.5)
            gate = (u - 0.26 * pitch, pier + side * half)
            door = (u - 0.12 * pitch, pier + side * (half + 20 + 0.1 * pitch))
            airfield.roof(airfield.frame.road(gate, door, 9), 8, (188, 192, 196), is_open=True)
            airfield.stand(u, v, -side * np.pi / 2, pitch * 1.1)
    airfield.roof(airfield.frame.box(-REACH, pier - half, end, pier + half), 22, roof)


def open_apron(rng: np.random.Generator, airfield: Airfield, pitch: float) -> None:
    """A wide apron with planes at random positions and headings."""
    airfield.pave(airfield.frame.box(-REACH, -260 - 200 * rng.random(), REACH, REACH), pick(rng, CONCRETE))
    if rng.random() < 0.5:
        airfield.pave(airfield.frame.box(-REACH, -60, REACH, 10 + 60 * rng.random()), pick(rng, ASPHALT))
    for _ in range(4):
        v = 700 * rng.random() - 350
        bend = 90 * rng.random()
        airfield.line([(-REACH, v), (-bend, v), (bend, v + bend), (REACH, v + bend)], YELLOW, 1.5)
        airfield.track((-REACH, v), (REACH, v), 12)
    for _ in range(40):
        u, v = (620 * rng.random(2) - 310).tolist()
        airfield.stand(u, v, 2 * np.pi * rng.random(), 2 * pitch)


def town(rng: np.random.Generator, airfield: Airfield, pitch: float) -> None:
    """The edge of a town: streets and houses, and a single plane on the grass."""
    asphalt = pick(rng, ASPHALT)
    streets = np.arange(-REACH + 60 * rng.random(), REACH, 130 + 50 * rng.random())
    for v in streets:
        airfield.pave(airfield.frame.road((-REACH, v), (REACH, v), 20), asphalt)
        airfield.line([(-REACH, v), (REACH, v)], WHITE, 1, dash=9)
        for u in np.arange(-REACH, REACH, 56 + 26 * rng.random()):
            if rng.random() < 0.62:
                wide, deep = 24 + 26 * rng.random(), 26 + 40 * rng.random()
                airfield.roof(
                    airfield.frame.box(u, v + 18, u + wide, v + 18 + deep), 9 + 9 * rng.random(), pick(rng, ROOFS)
                )
    u = -200 + 400 * rng.random()
    airfield.pave(airfield.frame.road((u, -REACH), (u, REACH), 24), asphalt)
    airfield.stand(u + 120, float(streets[2]) + 60, 2 * np.pi * rng.random(), pitch)


LAYOUTS: dict[str, Callable[[np.random.Generator, Airfield, float], None]] = {
    layout.__name__: layout for layout in (ramp, runway, dispersal, boneyard, terminal, open_apron, town)
}
_SHARES = np.cumsum([0.26, 0.22, 0.15, 0.1, 0.11, 0.13, 0.03])
GROUNDS = ("meadow", "meadow", "dry", "desert", "soil", "tropic", "snow")
