"""The methods that `incremental` compares: each is a set of changes to the student of the recipe."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from config.errors import UserError
from config.fields import nearest
from config.mconfig import field_default
from config.training import MODERN_DISTILLING

STUDENT, REPLAYING_STUDENT = "distillation", "both"

_NO_TEACHER = {"modelName": "base"}
_ASSIGNMENT_LOSSES = {
    **{name: field_default(name) for name in MODERN_DISTILLING}, "distilEpochs": (), "distilSchedule": "constant",
    "backboneFreezeEpochs": tuple(range(5)),
}  # fmt: skip


class Plan(NamedTuple):
    """One method: its description, and the settings in which it differs from the recipe's student."""

    description: str
    settings: Mapping[str, Any]


def plans(replayed: int, novel_only: Sequence[str] = ()) -> dict[str, Plan]:
    """The methods by name. `replayed`: images of the base classes, where a method trains on them again.

    `novel_only`: the classes that the small split labels; empty: all of them.
    """
    labels, masked, background = {}, {}, {}
    if novel_only:
        labels = {"trainSelectedClasses": tuple(novel_only), "distilSelectedClasses": tuple(novel_only)}
        masked, background = {"unlabelledClasses": "mask"}, {"unlabelledClasses": "background"}
    no_replay, replay = {"replayImages": 0, **labels}, {"replayImages": replayed, **labels}
    methods = {
        "finetune": Plan(
            "trained on the small split, from the teacher's weights", {**_NO_TEACHER, **no_replay, **background}
        ),
        "assignment": Plan(
            "the assignment's losses: softmax over the classes, eight feature maps", {**_ASSIGNMENT_LOSSES, **no_replay}
        ),
        "replay": Plan(
            f"as finetune, with up to {replayed} images of the base classes", {**_NO_TEACHER, **replay, **background}
        ),
        STUDENT: Plan("the recipe's distillation, without images of the base classes", {**no_replay, **masked}),
        REPLAYING_STUDENT: Plan(
            f"the recipe's distillation, with up to {replayed} images of the base classes", {**replay, **masked}
        ),
        "joint": Plan("all labels of all training images, from the same start as the teacher", {}),
    }
    if novel_only:
        methods["masked"] = Plan(
            "as finetune; the loss ignores the unlabelled classes", {**_NO_TEACHER, **no_replay, **masked}
        )
        methods["pseudo"] = Plan(
            "the recipe's student; the teacher labels the base classes", {**no_replay, "unlabelledClasses": "pseudo"}
        )
    return methods


ALL_METHODS = tuple(plans(0, novel_only=("any",)))  # also those that need a small split without old labels


def wanted_methods(text: str | None, novel_only: bool) -> list[str]:
    """The names in `text`, or all of them. Raises `UserError` for an unknown name."""
    known = list(ALL_METHODS if novel_only else plans(0))
    names = text.split(",") if text else known
    for name in names:
        if name not in known:
            fault = "only with --novel-only" if name in ALL_METHODS else f"no such method{nearest(name, known)}"
            raise UserError(f"--methods {name}: {fault}; the methods are {', '.join(known)}")
    return names
