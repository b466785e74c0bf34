"""The checks of shapes and types in the tests: arguments, results, methods, dataclasses, axes, forward references."""

from dataclasses import dataclass

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor
from typecheck import checked

WRONG = (BeartypeCallHintViolation, TypeCheckError)


@checked
def scaled(boxes: Float[Tensor, "N 4"], factors: Float[Tensor, " N"]) -> Float[Tensor, "N 4"]:
    return boxes * factors[:, None] if len(boxes) != 3 else boxes[:2]


@checked
def counted(number: int, gives_text: bool = False) -> int:
    return str(number) if gives_text else number  # type: ignore[return-value]


@checked
class Layer:
    @checked
    def forward(self, maps: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        return maps if maps.shape[1] else maps[1:]


@checked
@dataclass
class Found:
    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, " N"]
    name: str = ""


@checked
def named(number: int, text: "OnlyForTheTypeChecker") -> None:  # type: ignore[name-defined]
    pass


def test_what_is_right_passes():
    assert scaled(torch.ones(2, 4), torch.ones(2)).shape == (2, 4)
    assert scaled(torch.ones(0, 4), torch.ones(0)).shape == (0, 4)
    assert scaled(torch.ones(5, 4), torch.ones(5)).shape == (5, 4), "an axis has a new size in the next call"
    assert counted(3) == 3
    assert Layer().forward(torch.ones(2, 3)).shape == (2, 3)
    assert Found(torch.ones(1, 4), torch.ones(1)).name == ""
    named(1, "any")


@pytest.mark.parametrize(
    "call",
    [
        lambda: counted("3"),
        lambda: counted(3, gives_text=True),
        lambda: scaled(torch.ones(2, 5), torch.ones(2)),
        lambda: scaled(torch.ones(2, 4, dtype=torch.int64), torch.ones(2)),
        lambda: scaled(torch.ones(2, 4), torch.ones(1)),
        lambda: scaled(torch.ones(3, 4), torch.ones(3)),
        lambda: Layer().forward(torch.ones(2)),
        lambda: Layer().forward(torch.ones(2, 0)),
        lambda: Found(torch.ones(2, 4), torch.ones(3)),
        lambda: Found(torch.ones(2, 4), torch.ones(2), name=3),
        lambda: named("1", "any"),
    ],
    ids=[
        "argument", "result", "shape", "dtype", "axis across arguments", "axis of the result", "method",
        "result of a method", "axis of a dataclass", "field of a dataclass", "beside a forward reference",
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(call):
    with pytest.raises(WRONG):
        call()
