"""The teacher of a distillation: a trained network in eval mode that processes the student's images.

It is not a submodule of anything, so no state dict, EMA, optimizer or parameter count includes it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model import YoloModel
from model.base.yolomodel import fused
from ops.device import autocast
from train.distilloss import ModelOutputs

_NEVER = -20.0  # logit of the classes that the teacher was not trained on: a score of 2e-9


class TeacherClasses(NamedTuple):
    """The classes that the teacher was trained on, and their indexes in the student and in the teacher."""

    names: tuple[str, ...]
    student: tuple[int, ...]
    teacher: tuple[int, ...]


class Teacher:
    """A frozen network with folded batch norm: always eval mode, no gradients."""

    def __init__(
        self,
        model: YoloModel,
        classes: TeacherClasses,
        precision: torch.dtype = torch.float32,
        checksum: str | None = None,
    ):
        """`model` is copied. `precision`: of the computation, as for the student. `checksum`: of the weights file."""
        self.classes, self.precision, self.checksum = classes, precision, checksum
        self.phase = model.phase
        self._network = fused(model).requires_grad_(False)
        self.device = next(self._network.parameters()).device

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> ModelOutputs:
        """Raw maps and feature maps. The class channels are the teacher's own."""
        if self._network.training:
            raise RuntimeError("the teacher is in train mode: its batch norm would adapt to the student's batches")
        with autocast(self.device, self.precision):
            return ModelOutputs(*self._network.forward_features(images))

    def feature_widths(self, names: Sequence[str], student: YoloModel) -> dict[str, tuple[int, int]]:
        """Channels of the named feature maps in student and teacher."""
        ours, theirs = (_widths(network) for network in (student, self._network))
        return {name: (ours[name], theirs[name]) for name in names}

    def as_student(self, num_classes: int) -> "TeacherView":
        """The teacher with the student's class list, for evaluation."""
        return TeacherView(self._network, self.classes, num_classes)


class TeacherView(nn.Module):
    """The teacher's raw maps with the student's class channels; classes that it does not know get a score near 0."""

    def __init__(self, network: YoloModel, classes: TeacherClasses, num_classes: int):
        super().__init__()
        self.network, self.classes, self.num_classes = network, classes, num_classes
        self.reg_max, self.strides = network.reg_max, network.strides

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        return [self._with_student_classes(raw) for raw in self.network(images)]

    def _with_student_classes(self, raw: Float[Tensor, "B _ h w"]) -> Float[Tensor, "B _ h w"]:
        boxes, logits = raw.split((4 * self.reg_max, raw.shape[1] - 4 * self.reg_max), dim=1)
        ours = logits.new_full((raw.shape[0], self.num_classes, *raw.shape[2:]), _NEVER)
        ours[:, list(self.classes.student)] = logits[:, list(self.classes.teacher)]
        return torch.cat((boxes, ours), dim=1)


def _widths(network: YoloModel) -> dict[str, int]:
    """Channels of every feature map, measured with a small image on the meta device, where nothing is computed."""
    with torch.device("meta"):
        twin = YoloModel(network.phase, 1)
        _, features = twin.forward_features(torch.zeros(1, 3, 64, 64))
    return {name: value.shape[1] for name, value in features.items()}
