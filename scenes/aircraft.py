"""Twenty types of aircraft seen from above, A1 to A20: outlines, fins and colours; nothing is painted here.

Units are metres. x points from the nose to the tail, y to the right wing. The proportions follow twenty real aircraft
families that differ in their planform: sweep, span, engines and their position, tail, canards, propellers.
"""

from collections.abc import Sequence

from scenes.outlines import (
    Colour,
    Fin,
    Planform,
    disc,
    glass,
    hull,
    panel,
    plate,
    pods,
    props,
    roundels,
    tube,
    windscreen,
)

WHITES: tuple[Colour, ...] = ((224, 226, 226), (214, 218, 222), (226, 222, 212))
AIRLINES: tuple[Colour, ...] = ((178, 34, 40), (28, 66, 140), (232, 120, 28), (20, 110, 92), (240, 186, 30))

_HEAVY_FIGHTER = Planform(
    "a twin-engined fighter with strakes and two fins",
    (
        *plate("skin", (4.5, 0.6), (8.2, 1.5), (9.6, 2.4), (14.4, 7.9), (15.6, 7.9), (14.6, 2.4), (8, 0.4)),
        *panel("skin", (2.3, 17.6, 20.6), (5.6, 20.2, 21.8)),
        *hull("skin", (0, 0.1), (1.6, 0.55), (4, 0.95), (8, 1.1), (10, 1), (15, 0.8), (22, 0.25)),
        *pods("skin", 1.55, ends=(8.6, 20.5), half_width=0.95),
        *hull("dark", (19.4, 0.7), (20.9, 0.5), y=1.55),
        *hull("dark", (19.4, 0.7), (20.9, 0.5), y=-1.55),
        *hull("pale", (0, 0.1), (1.4, 0.5)),
        *glass(3.2, 6.8, 0.55),
        *roundels(13.4, 5, 0.6),
    ),
    (Fin(2.35, 15.4, 19.4, 3.2), Fin(-2.35, 15.4, 19.4, 3.2)),
    skins=((124, 156, 184), (112, 140, 170)),
    accents=((190, 40, 40),),
    blotch=(92, 118, 146),
)

_FREIGHTER = Planform(
    "a freighter with a straight high wing and four propellers",
    (
        *tube("skin", (0, 30), 2.3, 4.5, 11),
        *hull("skin", (11, 2.8), (13, 3.1), (18, 3.1), (20, 2.6)),
        *panel("skin", (0, 25.2, 29.2), (8, 26.2, 28.8)),
        *pods("skin", 5, 10.2, ends=(7.4, 13), half_width=0.75),
        *panel("skin", (0, 9.6, 14.6), (6, 9.6, 14.6), (20.2, 10.5, 12.9)),
        *props(5, 10.2, at=7, radius=2.3),
        *windscreen(1.6, 1.8),
        *roundels(12, 16, 0.9),
    ),
    (Fin(0, 23.5, 29, 6),),
    skins=((112, 122, 98), (124, 130, 112)),
    accents=((64, 72, 60),),
)

_AIRLIFTER = Planform(
    "an airlifter with four jets under a swept high wing and a T-tail",
    (
        *pods("metal", 8, ends=(10.5, 17.5), half_width=1.6),
        *pods("metal", 16, ends=(13.5, 20.5), half_width=1.6),
        *tube("skin", (0, 52), 3.5, 6.5, 20),
        *hull("skin", (15, 4), (18, 4.7), (30, 4.7), (34, 3.6)),
        *panel("skin", (0, 12.6, 25), (3.5, 13.6, 25.4), (11, 17.6, 26), (28.6, 26, 30)),
        *plate("accent", (26, 28.4), (30.6, 28.9), (31.2, 29.5), (27.4, 29.1)),
        *panel("skin", (0, 46.5, 52.5), (9.8, 51.4, 54)),
        *windscreen(2.2, 2.7),
    ),
    (Fin(0, 40, 51, 9),),
    skins=((176, 180, 180), (162, 168, 170)),
    accents=((96, 100, 104),),
)

_CANARD_DELTA = Planform(
    "a delta with canards",
    (
        *plate("skin", (5, 0.8), (13, 5.5), (14.4, 5.5), (14.6, 0.8)),
        *plate("crease", (13.2, 1.2), (13.5, 5.4)),
        *panel("skin", (0.6, 2.7, 4.8), (2.9, 4.7, 5.3), flap=0.5),
        *plate("metal", (11, 5.35), (11, 5.7), (14.8, 5.7), (14.8, 5.35)),
        *hull("skin", (0, 0.05), (1.5, 0.42), (4, 0.72), (7, 1), (13, 1.05), (15.6, 0.85)),
        *hull("dark", (15, 0.75), (16.2, 0.62)),
        *plate("dark", (5.2, 0.75), (5.2, 1.15), (6.4, 1.1), (6.4, 0.8)),
        *glass(2.4, 5, 0.45),
        *roundels(11.6, 3.2, 0.5),
    ),
    (Fin(0, 10.6, 14.8, 3),),
    skins=((196, 176, 138), (204, 186, 150)),
    accents=((40, 90, 60),),
    blotch=(150, 112, 74),
)

_LIGHT_FIGHTER = Planform(
    "a single-engined fighter with a cropped delta wing and a tail",
    (
        *plate("skin", (4.8, 0.5), (7, 1.3), (10.4, 4.7), (11.8, 4.7), (11.9, 0.6)),
        *plate("crease", (10.8, 1.2), (11.3, 4.6)),
        *plate("metal", (8.8, 4.65), (8.8, 4.95), (12.3, 4.95), (12.3, 4.65)),
        *panel("skin", (0.6, 11.9, 14.6), (2.8, 13.4, 14.8)),
        *hull("skin", (0, 0.05), (1.4, 0.38), (4, 0.7), (7, 0.85), (12, 0.85), (14, 0.68)),
        *hull("dark", (13.8, 0.62), (15, 0.5)),
        *glass(2.6, 5.4, 0.48),
        *roundels(10.4, 3.1, 0.42),
    ),
    (Fin(0, 10.4, 14, 2.8),),
    skins=((138, 146, 152), (150, 156, 160)),
    accents=((30, 60, 120),),
)

_SWING_BOMBER = Planform(
    "a white bomber with swing wings and a long thin nose",
    (
        *panel("swing skin", (5.5, 24.4, 31), (26.5, 34, 37.2), flap=0.7),
        *panel("skin", (1, 43.4, 49), (7.4, 48.6, 51.4)),
        *plate("skin", (8, 0.8), (21, 4.2), (26.5, 8), (33, 7.4), (37, 2), (36, 0)),
        *pods("metal", 4.4, ends=(27, 42.5), half_width=1.9),
        *hull("skin", (0, 0.1), (3, 0.9), (8, 1.4), (16, 1.8), (30, 1.8), (44, 1.2), (54, 0.3)),
        *windscreen(5, 1.2),
        *hull("pale", (0, 0.1), (2.6, 0.8)),
    ),
    (Fin(0, 41, 50, 7),),
    skins=((224, 228, 230), (212, 216, 220)),
    accents=((190, 40, 40),),
    swing=(27.5, 6.5, 0.62),
)

_RADAR_PLANE = Planform(
    "a radar plane: four jets and a large disc on its back",
    (
        *pods("metal", 8.3, ends=(15, 20), half_width=1.05),
        *pods("metal", 14.4, ends=(19.6, 24.6), half_width=1.05),
        *panel("skin", (0, 12, 23), (1.9, 13.5, 23), (8, 18.3, 24.6), (22, 29.2, 31.8)),
        *panel("skin", (0.6, 38.8, 44), (7.4, 43.6, 46)),
        *tube("skin", (0, 46), 1.95, 4.5, 14),
        *windscreen(2, 1.6),
        *disc("dark", 32, 5.6),
        *hull("pale", (30.9, 5.4), (33.1, 5.4), is_round=False),
    ),
    (Fin(0, 36.5, 44.5, 7),),
    skins=((204, 206, 204), (192, 196, 196)),
)

_EIGHT_JET = Planform(
    "a dark bomber with eight jets in pairs under long thin wings",
    (
        *pods("metal", 9.2, 11.4, ends=(14.6, 20), half_width=0.8),
        *pods("metal", 17.2, 19.4, ends=(20, 25.4), half_width=0.8),
        *panel("skin", (0, 10.6, 21.5), (1.5, 11.6, 21.5), (28, 29.6, 33)),
        *tube("metal", (25.4, 32), 0.5, 1, 4, y=22.5),
        *tube("metal", (25.4, 32), 0.5, 1, 4, y=-22.5),
        *panel("skin", (0.5, 39.4, 46.6), (8, 44.8, 48)),
        *tube("skin", (0, 48.5), 1.55, 4, 14),
        *windscreen(1.6, 1.3),
    ),
    (Fin(0, 38, 47, 8),),
    skins=((74, 78, 74), (84, 86, 80)),
)

_COMMUTER = Planform(
    "a commuter plane with two propellers and a straight wing",
    (
        *tube("skin", (0, 27), 1.55, 3.4, 9.5),
        *tube("accent", (20.5, 27), 1, 1.4, 5),
        *pods("accent", 4.2, ends=(8, 15.4), half_width=0.7),
        *panel("skin", (0, 11, 14), (4.6, 11, 14), (13.6, 11.9, 13.4)),
        *props(4.2, at=7.6, radius=2.1),
        *panel("accent", (0, 23.6, 26.2), (3.9, 24.4, 26.2)),
        *windscreen(1.2, 1.2),
    ),
    (Fin(0, 20.5, 26, 5),),
    skins=WHITES,
    accents=AIRLINES,
)

_FLYING_WING = Planform(
    "a flying wing with a saw-toothed trailing edge",
    (
        *plate("skin", (0, 0), (17, 26.2), (19.4, 24.8), (12.8, 14.6), (17.4, 8.6), (15.2, 5), (20.8, 0)),
        *plate("crease", (12, 14), (16.6, 24)),
        *hull("skin", (1.2, 0.2), (4, 2.2), (9, 2.8), (14, 2.2), (18, 0.4)),
        *tube("skin", (5.4, 14.6), 1.7, 2.5, 6, y=5.2),
        *tube("skin", (5.4, 14.6), 1.7, 2.5, 6, y=-5.2),
        *plate("dark", (5.2, 4.2), (5.8, 6.4), (6.8, 6.2), (6.4, 4.4)),
        *plate("dark", (12.6, 4.6), (12.6, 6), (14.2, 5.6), (14.2, 4.9)),
        *windscreen(2.6, 1.5),
    ),
    skins=((70, 74, 82), (62, 66, 72)),
)

_NARROW_BODY = Planform(
    "an airliner with one jet under each wing",
    (
        *pods("accent", 5.8, ends=(12.2, 17.2), half_width=1.35),
        *panel("skin", (0, 11.8, 20.4), (2, 13, 20.6), (6, 15.6, 20.8), (16.4, 21.6, 23.2)),
        *panel("skin", (0.6, 32, 36), (6.3, 35.6, 37.4)),
        *tube("skin", (0, 38), 2.05, 4.4, 13),
        *tube("accent", (29.5, 38), 1.15, 3, 6),
        *plate("accent", (21.3, 15.8), (21.5, 16.5), (23.6, 16.6), (23.1, 15.8)),
        *windscreen(1.6, 1.6),
    ),
    (Fin(0, 30, 36.5, 6.5),),
    skins=WHITES,
    accents=AIRLINES,
)

_SUPERSONIC = Planform(
    "a supersonic airliner with a slender ogee wing",
    (
        *plate(
            "skin", (17, 1.2), (23, 2.3), (31, 4.2), (39, 7.6), (46, 11.4), (50.5, 12.9), (54, 12.9), (56, 8), (57, 1.2)
        ),
        *plate("crease", (52.6, 1.6), (52, 12.4)),
        *tube("metal", (44, 57.6), 1.9, 1.2, 2.5, y=6.4),
        *tube("metal", (44, 57.6), 1.9, 1.2, 2.5, y=-6.4),
        *tube("skin", (0, 61.5), 1.5, 13, 14),
        *windscreen(7.4, 1.2),
        *tube("accent", (46, 59), 0.55, 4, 4),
    ),
    (Fin(0, 44, 57.5, 7),),
    skins=WHITES,
    accents=((28, 66, 140), (178, 34, 40)),
)

_TWIN_BOOM = Planform(
    "a freighter with two tail booms",
    (
        *panel("skin", (0, 23.6, 27), (6.4, 23.8, 26.8)),
        *tube("skin", (0.5, 18.5), 2.3, 3.6, 5),
        *panel("skin", (0, 8.2, 13.2), (5, 8.2, 13.2), (16.8, 9.4, 12)),
        *tube("skin", (5.6, 27.4), 1.05, 1.6, 14, y=5),
        *tube("skin", (5.6, 27.4), 1.05, 1.6, 14, y=-5),
        *props(5, at=5.2, radius=2.4),
        *windscreen(1.7, 1.8),
        *roundels(10.8, 12.6, 0.9),
    ),
    (Fin(5, 22.6, 27.2, 4.5), Fin(-5, 22.6, 27.2, 4.5)),
    skins=((226, 178, 62), (214, 166, 58)),
    accents=((60, 60, 64),),
)

_FORWARD_SWEPT = Planform(
    "a black fighter with forward-swept wings and canards",
    (
        *plate("skin", (5, 0.8), (8.6, 1.9), (10.8, 2.4), (8, 8), (9.8, 8.2), (17, 2.6), (18, 0.8)),
        *plate("crease", (15.2, 2.4), (9.3, 7.9)),
        *panel("skin", (1, 5.2, 8.2), (4, 7.6, 8.9)),
        *panel("skin", (1.8, 17.2, 19.8), (4.2, 19.2, 20.4)),
        *hull("skin", (0, 0.1), (1.8, 0.55), (4.5, 0.95), (9, 1.3), (16, 2), (20, 1.9)),
        *hull("metal", (19, 0.7), (21, 0.5), y=1.05),
        *hull("metal", (19, 0.7), (21, 0.5), y=-1.05),
        *hull("pale", (0, 0.1), (1.6, 0.5)),
        *glass(3, 6.4, 0.52),
    ),
    (Fin(2.1, 15, 19, 3), Fin(-2.1, 15, 19, 3)),
    skins=((54, 56, 62), (62, 64, 72)),
    accents=((180, 40, 40),),
)

_STEALTH_FIGHTER = Planform(
    "a stealth fighter with diamond wings and notched tail",
    (
        *plate("skin", (6, 2), (11.6, 7.4), (12.8, 7.4), (16.4, 2.6), (16.4, 0), (6, 0)),
        *plate("skin", (14.6, 2.2), (16.8, 5.2), (17.9, 5.1), (19.4, 3.2), (17.6, 1.6)),
        *hull("skin", (0, 0.05), (2.2, 0.95), (4.6, 1.5), (5.4, 2.4), (8, 2.6), (15, 2.5), (17.4, 1.6)),
        *hull("metal", (16.6, 0.62), (18.2, 0.5), y=0.75, is_round=False),
        *hull("metal", (16.6, 0.62), (18.2, 0.5), y=-0.75, is_round=False),
        *plate("dark", (5, 1.3), (5.6, 2.1), (6.6, 2.15), (6, 1.4)),
        *glass(2.4, 5.6, 0.55),
    ),
    (Fin(2.5, 13, 16.8, 2.8), Fin(-2.5, 13, 16.8, 2.8)),
    skins=((116, 124, 136), (128, 134, 142)),
    blotch=(96, 104, 116),
)

_ATTACK_PLANE = Planform(
    "a straight-winged attack plane with two jets at its back",
    (
        *panel("skin", (0, 13.6, 16), (2.95, 13.8, 15.9)),
        *hull("skin", (0, 0.3), (0.8, 0.6), (3, 0.75), (10, 0.75), (16.2, 0.2)),
        *panel("skin", (0, 5.8, 9.1), (2.8, 5.8, 9.1), (8.75, 6.5, 8.5)),
        *tube("skin", (4.8, 8.6), 0.42, 0.8, 1.4, y=2.7),
        *tube("skin", (4.8, 8.6), 0.42, 0.8, 1.4, y=-2.7),
        *pods("metal", 1.65, ends=(9.6, 13.2), half_width=0.9),
        *glass(1.2, 3.6, 0.5),
    ),
    (Fin(2.95, 13.5, 16.2, 2.6), Fin(-2.95, 13.5, 16.2, 2.6)),
    skins=((92, 108, 76), (100, 112, 86)),
    blotch=(62, 72, 52),
)

_PROP_BOMBER = Planform(
    "a silver bomber with swept wings and four large propellers",
    (
        *panel("skin", (0, 11.6, 21), (1.5, 12.8, 21), (6.6, 16.4, 22), (25, 29.6, 32.8)),
        *pods("metal", 6.4, ends=(11, 25), half_width=1.15),
        *pods("metal", 13.4, ends=(16.4, 27), half_width=1.05),
        *props(6.4, at=10.6, radius=3.1),
        *props(13.4, at=16, radius=3.1),
        *panel("skin", (0.5, 38.6, 44.4), (7.5, 43.4, 46)),
        *tube("skin", (0, 46.5), 1.5, 4, 13),
        *hull("dark", (0, 0.2), (0.8, 0.9), (2.4, 1.2)),
        *roundels(27.6, 20, 1.1),
    ),
    (Fin(0, 37, 45, 8),),
    skins=((206, 212, 218), (196, 204, 212)),
    accents=((196, 36, 36),),
)

_JUMBO = Planform(
    "a wide-bodied jumbo with four jets",
    (
        *pods("accent", 11.8, ends=(26.5, 33), half_width=1.8),
        *pods("accent", 20.8, ends=(34, 40.5), half_width=1.8),
        *panel("skin", (0, 18.6, 38), (3.3, 21, 38.5), (12, 29.4, 40), (32, 47.4, 51.2)),
        *panel("skin", (1, 57.6, 66), (11.4, 65.6, 69.4)),
        *tube("skin", (0, 70), 3.7, 7, 25),
        *tube("accent", (4, 25), 2.1, 6, 9),
        *tube("accent", (54, 70), 2, 6, 10),
        *windscreen(3.4, 2.6),
    ),
    (Fin(0, 55, 67.5, 10),),
    skins=WHITES,
    accents=((36, 92, 168), (70, 150, 200), (150, 40, 90)),
)

_BUSINESS_JET = Planform(
    "a business jet with two jets at its tail and a T-tail",
    (
        *panel("skin", (0, 8.6, 13), (1.1, 9.4, 13.1), (9.6, 13.4, 14.8)),
        *plate("accent", (13.3, 9.4), (13.6, 10), (15.2, 10.1), (14.8, 9.4)),
        *tube("skin", (0, 20.5), 1.2, 3.6, 8),
        *pods("accent", 2.15, ends=(13.2, 17), half_width=0.8),
        *panel("skin", (0, 17.8, 20), (4.2, 19.6, 20.9)),
        *windscreen(1.5, 0.95),
    ),
    (Fin(0, 16, 20.2, 3.6),),
    skins=WHITES,
    accents=((30, 34, 52), (128, 96, 44), (110, 24, 36)),
)

_LONG_WING_DRONE = Planform(
    "an unmanned glider with very long wings and a V-tail",
    (
        *panel("skin", (0, 6, 8.6), (1, 6.1, 8.4), (19.8, 7.6, 8.7)),
        *panel("skin", (0.3, 11.6, 13.7), (3.4, 13.6, 14.9)),
        *hull("skin", (0, 0.3), (0.6, 0.85), (2.2, 1.1), (4.4, 0.95), (9, 0.8), (14, 0.4)),
        *tube("pale", (9.2, 14), 0.62, 0.7, 2),
        *hull("dark", (9, 0.45), (9.6, 0.5), is_round=False),
        *roundels(7.5, 12, 0.5),
    ),
    skins=((214, 218, 222), (184, 190, 198)),
    accents=((70, 80, 96),),
)

PLANFORMS: dict[str, Planform] = {
    f"A{number}": planform
    for number, planform in enumerate(
        (
            _HEAVY_FIGHTER, _FREIGHTER, _AIRLIFTER, _CANARD_DELTA, _LIGHT_FIGHTER, _SWING_BOMBER, _RADAR_PLANE,
            _EIGHT_JET, _COMMUTER, _FLYING_WING, _NARROW_BODY, _SUPERSONIC, _TWIN_BOOM, _FORWARD_SWEPT,
            _STEALTH_FIGHTER, _ATTACK_PLANE, _PROP_BOMBER, _JUMBO, _BUSINESS_JET, _LONG_WING_DRONE,
        ),
        start=1,
    )
}  # fmt: skip


def planforms(class_list: Sequence[str]) -> tuple[Planform, ...]:
    """The planforms of these types, in this order. Raises `ValueError` for a name outside A1 to A20."""
    unknown = [name for name in class_list if name not in PLANFORMS]
    if unknown:
        raise ValueError(f"no aircraft is called {', '.join(unknown)}: the types are A1 to A{len(PLANFORMS)}")
    return tuple(PLANFORMS[name] for name in class_list)
