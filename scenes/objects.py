"""Sixty-four classes of drawn objects in eight families, for start weights that need no photograph.

A class is a number: it seeds the proportions of the class, and `rng` makes each object of a class different. Families,
not things, are drawn: no class is an object of a data set, and none of the aircraft is a type of the demo.
Units and directions are those of `scenes/outlines.py`.
"""

from collections.abc import Callable

import numpy as np

from scenes.outlines import Colour, Fin, Part, Planform, disc, glass, hull, panel, plate, pods, props, tube, windscreen

Rng = np.random.Generator
Parts = tuple[Part, ...]


def _block(tone: str, start: float, end: float, half: float, y: float = 0.0) -> Parts:
    """A rectangle along x."""
    return hull(tone, (start, half), (end, half), ys=(y,), is_round=False)


def _polygon(tone: str, points: np.ndarray) -> Parts:
    return (Part(tone, points.astype(np.float32)),)


def _ring(count: int, radii: np.ndarray | float, turn: float = 0.0) -> np.ndarray:
    """Points (count, 2) at these distances from the origin."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + turn
    return np.stack([np.cos(angles), np.sin(angles)], 1) * np.reshape(radii, (-1, 1))


def _blob(rng: Rng, rough: float, count: int = 40) -> np.ndarray:
    """The outline of a round body with waves; mean radius 1."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    waves = [rng.normal(0, rough / k) * np.cos(k * angles + 2 * np.pi * rng.random()) for k in (2, 3, 4, 5)]
    return _ring(count, np.maximum(1 + np.sum(waves, axis=0), 0.3))


def _stroke(tone: str, start: np.ndarray, end: np.ndarray, width: float) -> Parts:
    along = (end - start) / max(float(np.hypot(*(end - start))), 1e-6) * width / 2
    side = np.array([-along[1], along[0]])
    return _polygon(
        tone, np.stack([start - along + side, end + along + side, end + along - side, start - along - side])
    )


def _aircraft(own: Rng, rng: Rng) -> Parts:
    """Random proportions: wings of any sweep, tail, canards or delta, jets or propellers anywhere."""
    long = 30.0
    half, span, root = long * own.uniform(0.025, 0.065), long * own.uniform(0.28, 0.7), long * own.uniform(0.1, 0.28)
    at, sweep, taper = long * own.uniform(0.22, 0.5), own.uniform(-0.15, 0.9) * span, own.uniform(0.15, 0.95)
    layout, engines, tip = own.integers(4), own.integers(6), at + sweep
    if layout == 3:  # a delta
        root, taper = long * own.uniform(0.4, 0.6), own.uniform(0.02, 0.2)
        at, tip = long * 0.3, long * 0.3 + root * own.uniform(0.6, 0.95)
    wings = panel("skin", (0, at, at + root), (span, tip, tip + root * taper))
    small, back = span * own.uniform(0.25, 0.5), long * own.uniform(0.84, 0.93)
    tail = panel("skin", (0, back, back + 0.4 * root), (small, back + 0.3 * small, back + 0.3 * small + 0.25 * root))
    front = panel("skin", (0, at * 0.35, at * 0.35 + 0.3 * root), (small, at * 0.5, at * 0.5 + 0.15 * root))
    surfaces = {0: (*wings, *tail), 1: (*wings, *tail), 2: (*wings, *front), 3: wings}[int(layout)]
    near, far = span * own.uniform(0.25, 0.4), span * own.uniform(0.55, 0.75)
    first, body = at + sweep * 0.35, own.choice(["metal", "accent", "skin"])
    size = long * own.uniform(0.012, 0.035)
    jets = {
        1: pods(body, near, ends=(first - 2, first + 4), half_width=size),
        2: pods(body, near, far, ends=(first - 1, first + 4), half_width=size * 0.8),
        3: pods(body, half * 2, ends=(0.72 * long, 0.88 * long), half_width=size),
        4: props(near, at=first - 1.5, radius=2.6),
        5: props(near, far, at=first - 1.5, radius=1.8),
    }.get(int(engines), ())
    below, above = ((jets, ()), ((), jets))[int(own.integers(2))]
    nose = own.uniform(0.1, 0.3) * long
    fuselage = tube("skin", (0, long), half, nose, long * own.uniform(0.2, 0.5))
    marks = (
        (),
        disc("accent", at + 0.5 * root, 0.25 * root, span * 0.6),
        tube("accent", (0.7 * long, long), half * 0.6, 3, 5),
        disc("dark", 0.6 * long, own.uniform(0.05, 0.12) * long),
        _block("accent", 0.3 * long, 0.36 * long, half),
    )[int(own.integers(5))]
    front_window = (
        windscreen(0.06 * long, half * 0.8) if own.random() < 0.6 else glass(0.1 * long, 0.3 * long, half * 0.5)
    )
    return (*below, *surfaces, *above, *fuselage, *front_window, *marks)


def _vehicle(own: Rng, rng: Rng) -> Parts:
    """A cab, windows, and a load, a roof or a trailer, from above."""
    long, half = 10.0, own.uniform(1.6, 3.0)
    cab = own.uniform(2.0, 4.5)
    parts = [*hull("skin", (0, half * 0.8), (0.8, half), (long, half * own.uniform(0.85, 1)), is_round=False)]
    parts += _block("glass", cab * 0.55, cab * 0.85, half * 0.85)
    kind = own.integers(4)
    if kind == 0:  # a car
        parts += _block("glass", long * 0.74, long * 0.84, half * 0.8)
        parts += _block("accent" if own.random() < 0.5 else "skin", cab * 0.85, long * 0.74, half * 0.75)
    elif kind == 1:  # a load of several pieces
        for start in np.linspace(cab + 0.4, long - 0.3, int(own.integers(2, 6)))[:-1]:
            parts += _block(str(own.choice(["accent", "pale", "dark"])), start, start + 1.1, half * 0.85)
    elif kind == 2:  # a trailer
        parts += _block("dark", long, long + 1, 0.3)
        parts += _block("accent", long + 1, long + own.uniform(6, 14), half * own.uniform(0.9, 1.2))
    else:  # a round tank
        parts += tube("pale", (cab, long), half * 0.8, 1.5, 2)
    return tuple(parts)


def _ship(own: Rng, rng: Rng) -> Parts:
    """A pointed hull with a deck, houses, and hatches or funnels."""
    long, half = 40.0, own.uniform(2.5, 7)
    bow = own.uniform(5, 14)
    parts = [
        *hull(
            "skin", (0, 0.2), (bow * 0.4, half * 0.7), (bow, half), (long, half * own.uniform(0.6, 1)), is_round=False
        )
    ]
    deck = str(own.choice(["accent", "pale", "metal"]))
    parts += hull(deck, (2, 0.2), (bow, half * 0.8), (long - 1, half * 0.6), is_round=False)
    for start in np.sort(own.uniform(bow, long - 6, int(own.integers(1, 5)))):
        tone = str(own.choice(["dark", "pale", "accent", "metal"]))
        parts += _block(tone, start, start + own.uniform(1.5, 6), half * own.uniform(0.3, 0.75))
    for x in own.uniform(bow, long - 3, int(own.integers(0, 3))):
        parts += disc(str(own.choice(["dark", "accent"])), x, half * 0.3)
    return tuple(parts)


def _tool(own: Rng, rng: Rng) -> Parts:
    """Nuts, washers, bolts, keys, hammers, spanners, scissors, and bodies with a random profile."""
    kind, long = own.integers(8), own.uniform(6, 16)
    half = own.uniform(0.5, 1.2)
    if kind == 0:  # a nut or a washer
        sides, hole = int(own.choice([4, 6, 8, 24])), own.uniform(0.35, 0.7)
        return (*_polygon("skin", _ring(sides, 5)), *_polygon("metal", _ring(sides, 4.4)), *disc("dark", 0, 5 * hole))
    if kind == 1:  # a bolt
        threads = [part for x in np.arange(2.5, long, 0.7) for part in _block("dark", x, x + 0.25, half)]
        return (*_block("skin", 0, 2, half * own.uniform(1.6, 2.6)), *_block("metal", 2, long, half), *threads)
    if kind == 2:  # a key
        teeth = [part for x in own.uniform(long * 0.6, long, 3) for part in _block("skin", x, x + 0.5, 0.5, half)]
        return (
            *disc("skin", 0, 2.4),
            *disc("dark", -0.4, own.uniform(0.6, 1.4)),
            *_block("skin", 2, long, 0.5),
            *teeth,
        )
    if kind == 3:  # a hammer
        head = own.uniform(1.8, 4)
        return (
            *tube("accent", (1, long), half, 0.5, 1),
            *hull("skin", (0, head), (2, head * own.uniform(0.5, 1)), is_round=False),
        )
    if kind == 4:  # a spanner
        open_end = _polygon("dark", np.array([[-2.4, -0.8], [0.6, -0.8], [0.6, 0.8], [-2.4, 0.8]]))
        return (
            *_block("skin", 0, long, half),
            *disc("skin", 0, 2.1),
            *open_end,
            *disc("skin", long, 1.7),
            *disc("dark", long, 0.9),
        )
    if kind == 5:  # scissors or pliers
        angle, turn = own.uniform(0.15, 0.5) * rng.uniform(0.6, 1.4), []
        for side in (-1, 1):
            tip, grip = np.array([-long * 0.6, side * angle * 3]), np.array([long * 0.6, -side * angle * 8])
            turn += [*_stroke("skin", np.zeros(2), tip, half), *_stroke("accent", np.zeros(2), grip, half * 1.5)]
        return (*turn, *disc("metal", 0, half))
    stations = np.sort(own.uniform(0, long, 5))
    profile = [(float(x), float(own.uniform(0.4, 2.5))) for x in stations]
    middle = own.uniform(0.4, 0.8)
    cap = hull("accent", *[(x * 0.3, y * 0.7) for x, y in profile])
    band = _block(
        str(own.choice(["dark", "pale", "accent"])), stations[0] + middle * 3, stations[0] + middle * 3 + 1, 1.0
    )
    return (*hull("skin", *profile), *cap, *band)


def _sign(own: Rng, rng: Rng) -> Parts:
    """A few strokes and arcs between the points of a grid, like a letter; sometimes on a plate."""
    grid = np.array([[x, y] for x in (-3, 0, 3) for y in (-2, 0, 2)], float)
    width, parts = own.uniform(0.7, 1.4), []
    if own.random() < 0.35:
        parts += _polygon("pale", _ring(int(own.choice([3, 4, 8, 24])), 5.5, own.uniform(0, 1.6)))
    for _ in range(int(own.integers(2, 5))):
        start, end = own.choice(9, 2, replace=False)
        parts += _stroke("skin", grid[start], grid[end], width * rng.uniform(0.85, 1.15))
    if own.random() < 0.5:
        arc = np.linspace(0, own.uniform(2, 6), 16)[:, None] + own.uniform(0, 6)
        circle = np.concatenate([np.cos(arc), np.sin(arc)], 1)
        radius = own.uniform(1.4, 2.6)
        parts += _polygon("skin", np.concatenate([circle * (radius + width), (circle * radius)[::-1]]))
    return tuple(parts)


def _cell(own: Rng, rng: Rng) -> Parts:
    """A round body with a rim and one or more cores."""
    rough, squeeze = own.uniform(0.01, 0.1), np.array([own.uniform(1, 1.7), 1.0])
    outline = _blob(rng, rough) * 4 * squeeze
    parts = [*_polygon("skin", outline)]
    if own.random() < 0.6:
        parts += _polygon("accent" if own.random() < 0.5 else "pale", outline * own.uniform(0.5, 0.85))
    cores, tone, size = int(own.integers(0, 4)), str(own.choice(["dark", "accent"])), own.uniform(0.8, 1.8)
    for x, y in rng.normal(0, 1.1, (cores, 2)):
        parts += _polygon(tone, _blob(rng, 0.1) * size + np.array([x, y]))
    return tuple(parts)


def _fish(own: Rng, bend: float) -> Parts:
    """A body with a bent tail, fins and stripes."""
    half, back = own.uniform(1.2, 3.4), own.uniform(8, 11)
    stations = [
        (x, half * np.sin(np.pi * min(1, x / back) ** own.uniform(0.5, 0.8)) + 0.25) for x in np.linspace(0, back, 9)
    ]
    fork, fin = own.uniform(1, 3.4), own.uniform(0.5, 2)
    tail = np.array(
        [
            [back - 0.5, 0.3],
            [back + 2.5, fork + bend * 4],
            [back + 1.6, 0],
            [back + 2.5, -fork + bend * 4],
            [back - 0.5, -0.3],
        ]
    )
    fins = _polygon("accent", np.array([[3.4, half * 0.8], [5.5, half * 0.8 + fin], [6.4, half * 0.6]]))
    stripes = [
        part
        for x in own.uniform(2.5, back - 1, int(own.integers(0, 4)))
        for part in _block("accent", x, x + 0.6, half * 0.55)
    ]
    return (
        *_polygon("accent", tail),
        *fins,
        *hull("skin", *stations),
        *stripes,
        *disc("dark", 1.6, 0.35, half * 0.3),
    )


def _animal(own: Rng, rng: Rng) -> Parts:
    """Bodies with fins, arms, wings or threads, slightly different in every object."""
    kind, bend = own.integers(5), rng.normal(0, 0.12)
    if kind == 0:
        return _fish(own, bend)
    if kind == 1:  # a star
        arms, inner = int(own.integers(4, 9)), own.uniform(0.3, 0.6)
        radii = np.tile([1.0, inner], arms) * (1 + rng.normal(0, 0.07, 2 * arms)) * 5
        return (
            *_polygon("skin", _ring(2 * arms, radii)),
            *_polygon("accent", _ring(2 * arms, radii * own.uniform(0.2, 0.55))),
        )
    if kind == 2:  # a bell with threads
        count, parts = int(own.integers(3, 8)), []
        for y in np.linspace(-2.4, 2.4, count):
            end = np.array([own.uniform(5, 10) * rng.uniform(0.7, 1.2), y * 1.1 + rng.normal(0, 0.8)])
            parts += _stroke("accent", np.array([1.0, y]), end, own.uniform(0.3, 0.6))
        dome = [(x, 3.2 * np.sqrt(max(1 - ((x - 3) / 3) ** 2, 0.01))) for x in np.linspace(0, 3, 7)]
        return (*parts, *hull("skin", *dome), *disc("pale", 1.8, own.uniform(0.5, 1.2)))
    if kind == 3:  # a flat body with wide wings and a thin tail
        wide, at = own.uniform(3, 7), own.uniform(2, 5)
        wing = [(0, 0), (at, wide * (1 + bend)), (at + own.uniform(0.5, 3), wide * 0.8), (7.5, 0.6), (7.5, 0)]
        return (
            *plate("skin", *wing),
            *_block("skin", 7, own.uniform(10, 15), 0.25),
            *hull("accent", (0.5, 0.2), (3, 0.9), (7, 0.4)),
        )
    wide, fold = own.uniform(5, 9), own.uniform(-2, 4) + 8 * bend  # bent wings
    wings = panel(
        "accent" if own.random() < 0.5 else "skin",
        (0, 3, 6.5),
        (wide * 0.5, 2.4 + fold * 0.3, 5.2 + fold * 0.4),
        (wide, 4 + fold, 5 + fold),
    )
    return (
        *wings,
        *tube("skin", (0, 11), own.uniform(0.7, 1.6), 2.5, 5),
        *disc("dark", 0.8, 0.35),
        *plate("accent", (9.5, 0), (12.5, own.uniform(0.6, 2)), (12.5, 0)),
    )


def _patch(own: Rng, rng: Rng) -> Parts:
    """A round or angular patch with stripes, dots or checks."""
    sides = int(own.choice([3, 4, 5, 30]))
    outline = (_blob(rng, own.uniform(0.02, 0.2)) if sides == 30 else _ring(sides, 1)) * 6
    parts, kind, gap = [*_polygon("skin", outline)], own.integers(3), own.uniform(1.0, 2.2)
    for x in np.arange(-3.2, 3.2, gap):
        if kind == 0:
            parts += _block("accent", x, x + 0.45 * gap, 2.6)
            continue
        for row, y in enumerate(np.arange(-3, 3, gap)):
            shift = (row % 2) * 0.5 * gap
            parts += (
                disc("accent", x + shift, 0.3 * gap, y)
                if kind == 1
                else _block("accent", x + shift, x + shift + 0.5 * gap, 0.25 * gap, y)
            )
    return tuple(parts)


FAMILIES: dict[str, tuple[int, Callable[[Rng, Rng], Parts]]] = {  # family -> number of classes, function
    "aircraft": (20, _aircraft), "vehicle": (7, _vehicle), "ship": (6, _ship), "tool": (9, _tool),
    "sign": (6, _sign), "cell": (5, _cell), "animal": (8, _animal), "patch": (3, _patch),
}  # fmt: skip
OBJECTS = tuple(f"drawn-{family}-{number}" for family, (count, _) in FAMILIES.items() for number in range(1, count + 1))


def draw_object(label: int, rng: Rng) -> Planform:
    """An object of class `label` (index into `OBJECTS`): outlines stretched and sheared a little, random colours."""
    family, number = OBJECTS[label].removeprefix("drawn-").rsplit("-", 1)
    parts = FAMILIES[family][1](_class_stream(family, number), rng)
    own = _class_stream(family, number, 1)
    favourites = _random_colours(own, 3)  # most objects of a class have one of its colours
    skin, accent, blotch = favourites if rng.random() < 0.6 else _random_colours(rng, 3)
    stretch = np.array([[rng.uniform(0.85, 1.18), 0], [rng.normal(0, 0.08), rng.uniform(0.85, 1.18)]])
    is_flipped = rng.random() < 0.5
    stretched = [
        part._replace(
            outline=(part.outline * (1, -1 if is_flipped else 1) @ stretch).astype(np.float32),
            axis=_axis(part, is_flipped),
        )
        for part in parts
    ]
    fins = (Fin(0, 25, 29, 3),) if family == "aircraft" and own.random() < 0.7 else ()
    return Planform(OBJECTS[label], tuple(stretched), fins, (skin,), (accent,), blotch if rng.random() < 0.35 else None)


def _axis(part: Part, is_flipped: bool) -> float | None:
    return None if part.axis is None else part.axis * (-1 if is_flipped else 1)


def _class_stream(family: str, number: str, part: int = 0) -> Rng:
    return np.random.default_rng([list(FAMILIES).index(family), int(number), part])


def _random_colours(rng: Rng, count: int) -> list[Colour]:
    """Colours of any hue; pale and dark ones are as frequent as saturated ones."""
    mixed = rng.random((count, 1)) * 255 + rng.uniform(0, 1, (count, 1)) * 80 * rng.normal(0, 1, (count, 3))
    return [(int(red), int(green), int(blue)) for red, green, blue in np.clip(mixed, 8, 246)]
