"""Everything in a scene except aircraft: the ground with its markings, roofs, vehicles, boats, trees and clouds."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import ArrayLike

from scenes.airfields import CONCRETE, Airfield, Line, Roof, pick
from scenes.outlines import Colour
from scenes.textures import fill, lighter

_RAMPS: dict[str, tuple[Colour, ...]] = {  # from low ground to bare ground
    "meadow": ((58, 76, 40), (84, 104, 54), (108, 122, 66), (134, 138, 84)),
    "dry": ((98, 92, 56), (130, 122, 78), (152, 142, 94), (172, 158, 112)),
    "desert": ((158, 128, 88), (184, 156, 112), (202, 176, 132), (216, 196, 156)),
    "soil": ((96, 72, 52), (126, 96, 70), (146, 116, 86), (120, 118, 72)),
    "tropic": ((34, 60, 34), (48, 82, 42), (72, 104, 50), (98, 118, 60)),
    "snow": ((158, 168, 184), (184, 190, 200), (196, 202, 208), (206, 210, 212)),
}
_SHALLOW_TO_DEEP: tuple[Colour, ...] = ((176, 178, 150), (112, 150, 140), (64, 116, 124), (40, 86, 106), (28, 66, 90))
_CARS: tuple[Colour, ...] = (
    (206, 206, 202), (52, 56, 62), (150, 40, 38), (38, 70, 122), (198, 168, 58), (104, 108, 110), (70, 88, 62),
)  # fmt: skip
_CONTAINERS: tuple[Colour, ...] = ((154, 70, 48), (52, 92, 128), (70, 110, 78), (170, 172, 170), (190, 140, 60))
_LEAVES: tuple[Colour, ...] = ((44, 68, 36), (56, 78, 42), (66, 84, 40), (40, 60, 40))


class Ground(NamedTuple):
    """A painted ground. `light` is multiplied later, together with the shadows."""

    colour: UInt8[np.ndarray, "S S 3"]
    light: Float32[np.ndarray, "S S"]  # about 1
    paved: UInt8[np.ndarray, "S S"]  # 255 on pavement
    water: UInt8[np.ndarray, "S S"]  # 255 on water


def fractal(rng: np.random.Generator, size: int, cells: int, octaves: int, gain: float) -> Float32[np.ndarray, "S S"]:
    """Smooth noise with mean 0 and standard deviation of about 0.4; its coarsest features are `size / cells` wide."""
    weights = gain ** np.arange(octaves)
    coarse = max(size // 4, 1)  # smooth octaves are summed at a quarter of the side, in a third of the time
    total, is_coarse = np.zeros((coarse, coarse), np.float32), True
    for octave, weight in enumerate(weights.tolist()):
        count = min(cells << octave, size)
        if is_coarse and 2 * count > coarse:
            total, is_coarse = cv2.resize(total, (size, size), interpolation=cv2.INTER_LINEAR), False
        grid = (rng.random((count, count), dtype=np.float32) - np.float32(0.5)) * np.float32(weight)
        smooth = cv2.INTER_CUBIC if is_coarse else cv2.INTER_LINEAR
        cv2.accumulate(cv2.resize(grid, total.shape, interpolation=smooth), total)
    if is_coarse:
        total = cv2.resize(total, (size, size), interpolation=cv2.INTER_LINEAR)
    return total * np.float32(2 / np.sqrt((weights**2).sum()))


def paint_ground(rng: np.random.Generator, airfield: Airfield) -> Ground:
    """Paint everything flat, without shadows."""
    size = airfield.frame.size
    field = fractal(rng, size, 3 + int(rng.random() * 4), 7, 0.62)
    colour = _coloured(field, _RAMPS[airfield.ground])
    _fields(rng, airfield, colour)
    paved, water = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    concrete = np.zeros((size, size), np.uint8)
    for outline, tone in airfield.paved:
        jitter = 10 * rng.random() - 5
        fill(colour, outline, tuple(round(value + jitter) for value in tone))
        fill(paved, outline, 255)
        fill(concrete, outline, 255 if tone in CONCRETE else 0)
    layer = colour.copy()  # repaired patches
    for _ in range(int(rng.random() * 14)):
        u, v, wide, deep = (np.array([800, 800, 50, 34]) * rng.random(4) + (-400, -400, 14, 10)).tolist()
        tone = 86 + 84 * rng.random()
        fill(layer, airfield.frame.box(u, v, u + wide, v + deep), (round(tone), round(tone), round(tone - 3)))
    cv2.addWeighted(layer, 0.4, colour, 0.6, 0, dst=layer)
    cv2.copyTo(layer, paved, colour)
    if airfield.shore is not None:
        _flood(airfield, colour, water, field)
    for line in airfield.lines:
        draw_line(colour, line)
    worn = 1 + 0.07 * fractal(rng, size, 5, 6, 0.75) - 0.42 * _rubber(rng, airfield)
    if airfield.has_slabs:
        worn += _slabs(rng, airfield) * (concrete > 0)
    grown = 0.88 + 0.24 * rng.random((size, size), dtype=np.float32)  # fine noise of grass and stones
    smooth = cv2.max(paved, water).astype(np.float32) / 255
    return Ground(colour, grown + smooth * (worn - grown), cv2.subtract(paved, water), water)


def draw_line(canvas: np.ndarray, line: Line) -> None:
    """Draw a line as a strip of its width, solid or dashed."""
    for start, end in zip(line.points, line.points[1:], strict=False):
        along = end - start
        length = float(np.hypot(*along))
        if length < 1e-3:
            continue
        along = along / length
        side = np.array([-along[1], along[0]], np.float32) * max(line.width, 0.8) / 2
        pieces = np.arange(0, length, 2 * line.dash) if line.dash else np.zeros(1)
        for piece in pieces:
            first, last = start + along * piece, start + along * min(length, piece + (line.dash or length))
            fill(canvas, np.stack([first + side, last + side, last - side, first - side]), line.colour)


def _coloured(field: np.ndarray, ramp: tuple[Colour, ...]) -> np.ndarray:
    """Map values -1..1 to the colours of a ramp."""
    steps = np.linspace(0, 255, len(ramp))
    table = np.stack([np.interp(np.arange(256), steps, channel) for channel in np.transpose(ramp)], axis=-1)
    index = cv2.convertScaleAbs(np.clip(field, -1, 1) + np.float32(1), alpha=127.5)
    return cv2.LUT(cv2.merge([index] * 3), np.rint(table).astype(np.uint8)[None])


def _fields(rng: np.random.Generator, airfield: Airfield, colour: np.ndarray) -> None:
    """Large plots of different colours, and a few dirt tracks."""
    ramp = _RAMPS[airfield.ground]
    for _ in range(int(rng.random() * 4)):
        u, v, wide, deep = (np.array([900, 900, 240, 240]) * rng.random(4) + (-450, -450, 60, 60)).tolist()
        plot = airfield.frame.box(u, v, u + wide, v + deep)
        tint = ramp[int(rng.random() * len(ramp))]
        layer = colour.copy()
        fill(layer, plot, tint)
        if rng.random() < 0.5:  # mowing stripes
            for strip in np.arange(v, v + deep, 16):
                darker = tuple(round(value * 0.9) for value in tint)
                fill(layer, airfield.frame.box(u, strip, u + wide, strip + 8), darker)
        cv2.addWeighted(layer, 0.45, colour, 0.55, 0, dst=colour)
    if rng.random() < 0.4:
        bends = (60 * rng.standard_normal(9)).cumsum().tolist()
        points = list(zip(np.linspace(-480, 480, 9).tolist(), bends, strict=True))
        draw_line(colour, Line(airfield.frame.points(points), ramp[-1], 3.5 * airfield.frame.unit))


def _flood(airfield: Airfield, colour: np.ndarray, flooded: np.ndarray, field: np.ndarray) -> None:
    """Paint water beyond the shoreline: foam, shallow and deep water."""
    assert airfield.shore is not None
    size, unit = airfield.frame.size, airfield.frame.unit
    edge, way = airfield.shore
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) - np.float32(size / 2)
    across = rows * np.float32(np.cos(airfield.frame.angle)) - columns * np.float32(np.sin(airfield.frame.angle))
    beyond = (across / np.float32(unit) - np.float32(edge)) * np.float32(way) + 16 * field
    water = _coloured(np.minimum(beyond / 75 - 1, 1) + 0.06 * field, _SHALLOW_TO_DEEP)
    foam = np.clip(1 - np.abs(beyond - 2) / 3.5, 0, 1) * 0.8
    cv2.blendLinear(np.full_like(water, 226), water, foam, 1 - foam, dst=water)
    share = np.clip(beyond, 0, 1)
    cv2.blendLinear(water, colour, share, 1 - share, dst=colour)
    flooded[beyond > 0] = 255


def _slabs(rng: np.random.Generator, airfield: Airfield) -> np.ndarray:
    """Brightness of concrete slabs, different for each slab, and the joints between them."""
    frame, pixels = airfield.frame, 16
    count = 48
    tones = 0.07 * (rng.random((count, count), dtype=np.float32) - np.float32(0.5))
    joined = cv2.resize(tones, None, fx=pixels, fy=pixels, interpolation=cv2.INTER_NEAREST)
    joined[::pixels] -= np.float32(0.1)
    joined[:, ::pixels] -= np.float32(0.1)
    slab = (22 + 14 * rng.random()) * frame.unit / pixels
    cos, sin = np.cos(frame.angle) * slab, np.sin(frame.angle) * slab
    middle, centre = count * pixels / 2, frame.size / 2
    matrix = np.array(
        [[cos, -sin, centre - (cos - sin) * middle], [sin, cos, centre - (sin + cos) * middle]], np.float32
    )
    size = (frame.size, frame.size)
    return cv2.warpAffine(joined, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _rubber(rng: np.random.Generator, airfield: Airfield) -> np.ndarray:
    """Darkness of tyre marks and oil, 0 to 1."""
    size = airfield.frame.size
    marks = np.zeros((size, size), np.float32)
    for track in airfield.tracks:
        along = track.end - track.start
        side = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-3)
        for _ in range(7):
            off = side * track.spread * (rng.random() + rng.random() - 1)
            begin = 0.7 * rng.random()
            first = track.start + along * begin + off
            last = track.start + along * (begin + 0.1 + 0.4 * rng.random()) + off
            layer = (first, last) if rng.random() < 0.5 else (last, first)
            ends = [(round(float(x)), round(float(y))) for x, y in layer]
            cv2.line(marks, ends[0], ends[1], 0.25 + 0.6 * rng.random(), 1 + int(rng.random() * 2.4))
    for stand in airfield.stands:
        if rng.random() < 0.5:
            spot = (stand.x + 9 * (rng.random() - 0.5), stand.y + 9 * (rng.random() - 0.5))
            radius = round((2 + 5 * rng.random()) * airfield.frame.unit)
            cv2.circle(marks, (round(spot[0]), round(spot[1])), radius, 0.3 + 0.4 * rng.random(), -1)
    return cv2.GaussianBlur(marks, (0, 0), 1.3 * airfield.frame.unit)


# Objects that stand beside aircraft, or cover them


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
    sides = (roof.outline[1] - roof.outline[0], roof.outline[3] - roof.outline[0])
    u, v = (side / max(float(np.hypot(*side)), 1e-3) for side in sides)
    corners = roof.outline + np.stack([-u - v, u - v, u + v, v - u])
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
    parts: list[tuple[float, float, float, float, Colour]]  # arguments of `box`
    if kind < 0.35:  # car
        parts = [
            (0, 0, 9, 4.4, colour),
            (-0.4, 0, 4.6, 3.6, lighter(colour, 0.55)),
            (-0.6, 0, 3, 3.4, lighter(colour, 1.1)),
        ]
        height = 3.0
    elif kind < 0.6:  # truck
        load = pick(rng, ((206, 206, 198), (96, 104, 80), (120, 110, 90)))
        parts = [(0, 0, 18, 5.6, lighter(load, 0.8)), (-2.4, 0, 12.6, 5.2, load)]
        parts += [(7, 0, 4, 5.4, colour), (8.4, 0, 1.2, 5, (40, 48, 56))]
        height = 6.0
    elif kind < 0.75:  # fuel truck
        parts = [(0, 0, 22, 6, (84, 86, 88)), (-3, 0, 15, 5.6, (196, 198, 196))]
        parts += [(-3, 0.8, 15, 1.6, (226, 226, 222)), (8.4, 0, 4, 5.6, colour)]
        height = 6.0
    elif kind < 0.88:  # baggage train
        carts = [(-6.5 * i, 0.5 * i * i - i, 5, 3.6, pick(rng, _CONTAINERS)) for i in range(4)]
        parts, height = [(7, 0, 6, 3.8, (206, 188, 60)), *carts], 2.5
    else:  # containers
        rows, columns = 1 + int(rng.random() * 3), 1 + int(rng.random() * 3)
        parts = [(7.5 * (columns - 1), 3.5 * (rows - 1), 15 * columns, 7 * rows, (70, 70, 70))]
        parts += [(15 * i, 7 * j, 14.4, 6.4, pick(rng, _CONTAINERS)) for i in range(columns) for j in range(rows)]
        height = 7.0
    return ClutterObject(tuple(block.box(*part) for part in parts), height * unit)


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
