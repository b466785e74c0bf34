"""The import hook of conftest.py: wrong types and shapes stop a test, in arguments and in results."""

from dataclasses import dataclass

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor
from typecheck import checked

from ops.boxes import pairwise_iou
from ops.text import align_columns


@checked(typechecker=None)
def joined(one: Float[Tensor, "N 4"], other: Float[Tensor, "N C"], width: float) -> Float[Tensor, "N D"]:
    return torch.cat((one, other), dim=1) if width > 0 else torch.zeros(7, 2)


@checked(typechecker=None)
def nested(boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
    joined(torch.zeros(5, 4), torch.zeros(5, 2), 1)
    return boxes


@checked(typechecker=None)
@dataclass
class Pair:
    boxes: Float[Tensor, "N 4"]
    labels: Float[Tensor, " N"]


def test_right_shapes_pass_and_an_int_is_a_float():
    assert joined(torch.zeros(3, 4), torch.zeros(3, 2), 1).shape == (3, 6)
    assert nested(torch.zeros(3, 4)).shape == (3, 4), "each call has axis sizes of its own"
    assert len(Pair(torch.zeros(0, 4), torch.zeros(0)).labels) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: joined(torch.zeros(3, 5), torch.zeros(3, 2), 1.0),
        lambda: joined(torch.zeros(3, 4), torch.zeros(2, 2), 1.0),  # two sizes of N
        lambda: joined(torch.zeros(3, 4).long(), torch.zeros(3, 2), 1.0),
        lambda: joined(torch.zeros(3, 4), torch.zeros(3, 2), "1"),
        lambda: joined(torch.zeros(3, 4), torch.zeros(3, 2), -1.0),  # a result of another N
        lambda: Pair(torch.zeros(2, 4), torch.zeros(3)),
        lambda: pairwise_iou(torch.zeros(2, 5), torch.zeros(2, 4)),
        lambda: align_columns(3),
    ],
)
def test_wrong_ones_are_refused(call):
    with pytest.raises(BeartypeCallHintViolation):
        call()
