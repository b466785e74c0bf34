"""The phases, the weights to start from, and the base classes of a config: names that recipes use, too."""

from typing import Any

from config.errors import UserError

PHASES = ("nano", "small", "medium", "large", "extra")
OFFICIAL_WEIGHTS = {phase: f"yolov8{phase[0] if phase != 'extra' else 'x'}" for phase in PHASES}
PHASE_ALIASES = {"extended": "extra"}  # the assignment's word for x


def start_from_drawings(mcfg: Any) -> None:
    """Start from the weights of Mars, which were trained on drawn images only: resources/pretrained/README.md.

    Raises `UserError` for a phase other than nano, and if the config already has other weights to start from.
    """
    if mcfg.phase != "nano":
        raise UserError(f"drawn: Mars has such weights for phase nano only, not for {mcfg.phase}; leave this tag out")
    for field in ("checkpointModelFile", "pretrained", "pretrainedBackboneUrl"):
        if getattr(mcfg, field) is not None:
            raise UserError(f"drawn: {field} is also set, but training starts from only one file; leave this tag out")
    mcfg.checkpointModelFile = "{resources}/pretrained/drawn_nano.pth"


def base_names(mcfg: Any) -> tuple[str, ...] | None:
    """The names of baseClasses in the order of classList; None without groups, and while classList is unknown."""
    if mcfg.baseClasses is None or mcfg.classList is None or isinstance(mcfg.classList, str):
        return None
    if isinstance(mcfg.baseClasses, int):
        return tuple(mcfg.classList[: mcfg.baseClasses])
    return tuple(name for name in mcfg.classList if name in mcfg.baseClasses) or None
