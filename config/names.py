"""The phases, their official weights, and the base classes of a config: names that recipes use, too."""

from typing import Any

PHASES = ("nano", "small", "medium", "large", "extra")
OFFICIAL_WEIGHTS = {phase: f"yolov8{phase[0] if phase != 'extra' else 'x'}" for phase in PHASES}
PHASE_ALIASES = {"extended": "extra"}  # the assignment's word for x


def base_names(mcfg: Any) -> tuple[str, ...] | None:
    """The names of baseClasses in the order of classList; None without groups, and while classList is unknown."""
    if mcfg.baseClasses is None or mcfg.classList is None or isinstance(mcfg.classList, str):
        return None
    if isinstance(mcfg.baseClasses, int):
        return tuple(mcfg.classList[: mcfg.baseClasses])
    return tuple(name for name in mcfg.classList if name in mcfg.baseClasses) or None
