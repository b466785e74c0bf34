"""What a student is taught by a teacher: its features (CWD), its class scores and its box distributions.

Legend: N images, C channels or classes, A points, R bins a side. All is computed in float32 or better, under any
autocast. Every divergence is a Kullback-Leibler divergence from teacher to student: zero when both agree, never
negative, finite for any finite input. Nothing here sends a gradient to the teacher: hand its values in without one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ops.anchors import anchors_of, full_precision
from ops.batch import Batch
from ops.precision import without_autocast
from ops.probe import probe
from ops.safe import binary_kl, kl, log_probabilities, safe_divide, total_of
from train.loss import DetectionLoss, LossResult

FOREGROUND = 0.1  # score of its best class from which the teacher's box at a point is worth learning
SHARE_OF_POINTS = 0.125  # that the teacher's boxes are learned at, at most: those with the best scores


def divergence(student: Float[Tensor, "*_ K"], teacher: Float[Tensor, "*_ K"], temperature: float) -> Tensor:
    """KL(teacher || student) of the softmax over the last axis, times the temperature's square (Hinton et al. 2015)."""
    log_s, log_t = (log_probabilities(full_precision(logits) / temperature) for logits in (student, teacher))
    return kl(log_s, log_t) * temperature**2


def binary_divergence(student: Float[Tensor, "*K"], teacher: Float[Tensor, "*K"], temperature: float) -> Tensor:
    """KL of two sigmoids, element by element, times T squared."""
    return binary_kl(full_precision(student) / temperature, full_precision(teacher) / temperature) * temperature**2


class CWDLoss:
    """Channel-wise distillation (Shu et al. 2021, arXiv 2011.13256).

    Every channel of a map is a distribution over its pixels; the divergences of all channels are summed and divided by
    N * C.
    """

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    def __call__(self, student: Float[Tensor, "N C h w"], teacher: Float[Tensor, "N C h w"]) -> Float[Tensor, ""]:
        """Zero for a batch without images or a map without channels."""
        channels = divergence(student.flatten(2), teacher.flatten(2), self.temperature)
        return channels.sum() / max(channels.numel(), 1)


class ResponseLoss:
    """The teacher's class logits, on the teacher's classes only.

    `softmax`: the assignment's softmax over the classes at every point, summed and divided by N * C. A point that is
    background to the teacher counts as much as an object.
    `binary`: class by class, for the head has a sigmoid a class, weighted by how far the two scores are apart (Yang et
    al. 2023, arXiv 2308.14286), divided by the teacher's scores summed over the points, at least one.
    """

    def __init__(self, mode: str = "binary", temperature: float = 1.0):
        if mode not in ("softmax", "binary"):
            raise ValueError(f"mode={mode!r}: there are softmax and binary")
        self.mode, self.temperature = mode, temperature

    def __call__(
        self,
        student: Float[Tensor, "N A C"],
        teacher: Float[Tensor, "N A C"],
        counts: Bool[Tensor, "N A"] | None = None,
    ) -> Float[Tensor, ""]:
        """`counts`: the points that take part; None: all. Zero without images, points or classes."""
        chosen = torch.ones_like(teacher[..., :1]) if counts is None else counts[..., None].to(teacher.dtype)
        if teacher.numel() == 0:
            return student.sum() * 0
        if self.mode == "softmax":
            points = divergence(student, teacher, self.temperature) * chosen[..., 0]
            return points.sum() / (teacher.shape[0] * teacher.shape[2])
        scores = teacher.sigmoid()
        apart = (scores - student.detach().sigmoid()).abs()
        normaliser = (scores.amax(dim=-1, keepdim=True) * chosen).sum().clamp(min=1)
        terms = binary_divergence(student, teacher, self.temperature) * apart * chosen
        return terms.sum() / probe("distil.response_normaliser", normaliser)


class BoxResponseLoss:
    """The teacher's box distributions where it sees an object of its classes (Zheng et al. 2022, arXiv 2102.12252).

    The divergence of the R bins, a mean over the four sides, weighted by the teacher's best score and divided by the
    sum of the weights, at least one.
    """

    def __init__(self, reg_max: int, temperature: float = 1.0):
        self.reg_max, self.temperature = reg_max, temperature

    def __call__(
        self,
        student: Float[Tensor, "N A four_R"],
        teacher: Float[Tensor, "N A four_R"],
        scores: Float[Tensor, "N A"],
    ) -> Float[Tensor, ""]:
        """`scores`: the teacher's best score at each point, zero where it must not be followed."""
        weight = scores * (scores >= FOREGROUND)
        ours, theirs = (logits.unflatten(-1, (4, self.reg_max)) for logits in (student, teacher))
        sides = divergence(ours, theirs, self.temperature).mean(dim=-1)
        return safe_divide((sides * weight).sum(), weight.sum(), least=1)


class ModelOutputs(NamedTuple):
    """What a network says of a batch: raw maps and the named features they were made from."""

    raw_maps: Sequence[Tensor]
    features: Mapping[str, Tensor]


class DistilWeights(NamedTuple):
    """Weights of the detection loss, of CWD, and of the teacher's class scores and box distributions."""

    detection: float = 1.0
    cwd: float = 0.0
    response: float = 0.0
    box_response: float = 0.0


class DistillationLoss(nn.Module):
    """The detection loss and what the teacher adds to it, as a `LossResult` with the parts of both.

    A module because features of another width go through learned 1 x 1 convolutions, which are trained with the
    student but are no part of it.
    """

    def __init__(
        self,
        detection: DetectionLoss,
        class_indexes: Sequence[int],
        teacher_columns: Sequence[int] | None = None,
        weights: DistilWeights = DistilWeights(),  # noqa: B008 (a constant)
        feature_widths: Mapping[str, tuple[int, int]] | None = None,
        mode: str = "binary",
        temperature: float = 1.0,
    ):
        """`class_indexes`: the student's index of every class that the teacher knows; `teacher_columns`: the teacher's
        own index of the same, None: the same numbers. `feature_widths`: name of a map -> channels of it in student and
        teacher; these maps are compared."""
        super().__init__()
        self.detection, self.weights = detection, weights
        self.class_indexes = list(class_indexes)
        self.teacher_columns = self.class_indexes if teacher_columns is None else list(teacher_columns)
        if len(self.class_indexes) != len(self.teacher_columns):
            raise ValueError(f"{len(self.class_indexes)} classes of the student, {len(self.teacher_columns)} columns")
        widths = feature_widths or {}
        self.feature_names = tuple(widths)
        taught = (("cwd", weights.cwd), ("response", weights.response), ("box_response", weights.box_response))
        self.part_names = tuple(name for name, weight in taught if weight)  # the parts that the teacher adds
        self.projectors = nn.ModuleDict(
            {name: nn.Conv2d(ours, theirs, 1) for name, (ours, theirs) in widths.items() if ours != theirs}
        )
        knows = torch.zeros(detection.num_classes, dtype=torch.bool)
        knows[self.class_indexes] = True
        self._knows: Tensor
        self._student_rows: Tensor
        self._teacher_rows: Tensor
        self.register_buffer("_knows", knows, persistent=False)  # (C,), so that no step asks the host
        first = 4 * detection.reg_max  # box channels come before class channels
        for name, columns in (("_student_rows", self.class_indexes), ("_teacher_rows", self.teacher_columns)):
            self.register_buffer(name, torch.tensor(columns, dtype=torch.long) + first, persistent=False)
        self.cwd = CWDLoss(temperature)
        self.response = ResponseLoss(mode, temperature)
        self.box_response = BoxResponseLoss(detection.reg_max, temperature)

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Batch, strength: float = 1.0
    ) -> LossResult:
        """`strength` scales what the teacher adds; teacher None: the detection loss alone, with its weight."""
        with without_autocast(student.raw_maps[0].device):
            found = self.detection(student.raw_maps, batch)
            total = found.total * self.weights.detection
            parts = {name: value * self.weights.detection for name, value in found.parts.items()}
            if teacher is None:
                return replace(found, total=total, parts=parts)
            watched = {**found.watched, "targets": total_of(self._targets(teacher))}
            for name, value in self._taught(student, teacher, batch).items():
                part = probe(f"distil.{name}", value * strength)
                total, parts[name] = total + part, part.detach()
            return replace(found, total=total, parts=parts, watched=watched)

    def _targets(self, teacher: ModelOutputs) -> list[Tensor]:
        """What of the teacher is learned from: NaN and Inf there need not show in the loss."""
        features = [teacher.features[name] for name in self.feature_names] if self.weights.cwd else []
        return [*teacher.raw_maps, *features]

    def _taught(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, Tensor]:
        weights, taught = self.weights, {}
        if weights.cwd:
            taught["cwd"] = self._features_loss(student, teacher) * weights.cwd
        if weights.response or weights.box_response:
            counts = self._free_points(student, batch)
            known = self._class_rows(teacher, self._teacher_rows)
            if weights.response:
                mine = self._class_rows(student, self._student_rows)
                taught["response"] = self.response(mine.mT, known.mT, counts) * weights.response
            if weights.box_response:
                taught["box_response"] = self._boxes_loss(student, teacher, known, counts) * weights.box_response
        return taught

    def _class_rows(self, told: ModelOutputs, rows: Int64[Tensor, " C"]) -> Float[Tensor, "N C A"]:
        """These channels of all raw maps, point by point; picked before they are joined, for most are not needed."""
        picked = [full_precision(raw.index_select(1, rows)).flatten(2) for raw in told.raw_maps]
        return torch.cat(picked, dim=2)

    def _features_loss(self, student: ModelOutputs, teacher: ModelOutputs) -> Tensor:
        losses = []
        for name in self.feature_names:
            ours = student.features[name]
            if name in self.projectors:
                ours = self.projectors[name](ours.float())
            losses.append(self.cwd(ours, teacher.features[name]))
        return torch.stack(losses).sum()

    def _boxes_loss(self, student: ModelOutputs, teacher: ModelOutputs, known: Tensor, counts: Tensor | None) -> Tensor:
        """On the points that the teacher is surest of, a share of all: the others would weigh nothing or little."""
        scores = known.sigmoid().amax(dim=1)
        if counts is not None:
            scores = scores * counts
        surest = scores.topk(max(1, round(scores.shape[1] * SHARE_OF_POINTS)), dim=1)
        places = surest.indices[:, None].expand(-1, 4 * self.detection.reg_max, -1)
        ours, theirs = (
            torch.cat([raw[:, : places.shape[1]].flatten(2) for raw in told.raw_maps], dim=2).gather(2, places).mT
            for told in (student, teacher)
        )
        return self.box_response(ours, theirs, surest.values)

    def _free_points(self, student: ModelOutputs, batch: Batch) -> Bool[Tensor, "N A"] | None:
        """Points outside every labelled box of a class that the teacher does not know, which it takes for something
        else; in `seed` mode all points, as the assignment had it."""
        if self.response.mode == "softmax":
            return None
        points, _ = anchors_of(student.raw_maps, self.detection.strides)
        is_new = batch.valid & ~self._knows[batch.labels.clamp(0, len(self._knows) - 1)]
        left_top = points[None, :, None] - batch.boxes[:, None, :, :2]  # (N, A, M, 2)
        right_bottom = batch.boxes[:, None, :, 2:] - points[None, :, None]
        inside = (torch.cat((left_top, right_bottom), dim=-1) > 0).all(dim=-1)
        return ~(inside & is_new[:, None]).any(dim=-1)
