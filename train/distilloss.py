"""Distillation losses on feature maps (CWD), class logits and box distributions.

Legend: N images, C channels or classes, A anchor points, R bins per side. Everything is computed in float32 or better,
under any autocast. Every term is a Kullback-Leibler divergence KL(teacher || student): zero if both are equal, never
negative, finite for any finite input. Pass the teacher's values without gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ops.anchors import anchors_of, full_precision, points_inside
from ops.batch import Batch
from ops.device import without_autocast
from ops.probe import probe
from ops.safe import binary_kl, kl, log_probabilities, safe_divide, total_of
from train.loss import DetectionLoss, LossResult

# Thresholds of the box distillation: without them background, most of all anchor points, would add noise.
FOREGROUND = 0.1  # boxes at anchor points where the teacher's best class score is lower are not distilled
SHARE_OF_POINTS = 0.125  # largest share of the anchor points at which boxes are distilled: those with the best scores


def divergence(student: Float[Tensor, "*_ K"], teacher: Float[Tensor, "*_ K"], temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of softmax(logits / T) over the last axis (Hinton et al. 2015, arXiv 1503.02531)."""
    # log_softmax, not log(softmax): the latter is -inf once logits differ by more than about 100.
    log_s, log_t = (log_probabilities(full_precision(logits) / temperature) for logits in (student, teacher))
    # Gradients of softmax(logits / T) shrink with 1 / T^2; the factor keeps their size beside the detection loss.
    return kl(log_s, log_t) * temperature**2


def binary_divergence(student: Float[Tensor, "*K"], teacher: Float[Tensor, "*K"], temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of sigmoid(logit / T), element by element."""
    return binary_kl(full_precision(student) / temperature, full_precision(teacher) / temperature) * temperature**2


class CWDLoss:
    """Channel-wise distillation (Shu et al. 2021, arXiv 2011.13256).

    The softmax over the pixels of each channel is a distribution: where the channel is active. The loss is the mean of
    the divergences of all channels, sum / (N * C).
    """

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    def __call__(self, student: Float[Tensor, "N C h w"], teacher: Float[Tensor, "N C h w"]) -> Float[Tensor, ""]:
        """Zero without images or without channels."""
        # flatten: softmax over all pixels of a channel, so that only its spatial pattern counts, not its scale.
        channels = divergence(student.flatten(2), teacher.flatten(2), self.temperature)
        return channels.sum() / max(channels.numel(), 1)


class ResponseLoss:
    """Class logits of the classes that the teacher was trained on.

    `softmax` (the assignment's form): softmax over the classes at every anchor point, sum / (N * C). Background counts
    as much as objects, and a shift of all logits of a point has no effect.
    `binary`: each class separately, since the head has one sigmoid per class. Weighted by the difference of the two
    scores (Yang et al. 2023, arXiv 2308.14286) and divided by the sum of the teacher's best scores, at least 1.
    """

    def __init__(self, mode: str = "binary", temperature: float = 1.0):
        if mode not in ("softmax", "binary"):
            raise ValueError(f"mode={mode!r}: use 'softmax' or 'binary'")
        self.mode, self.temperature = mode, temperature

    def __call__(
        self,
        student: Float[Tensor, "N A C"],
        teacher: Float[Tensor, "N A C"],
        counts: Bool[Tensor, "N A"] | None = None,
    ) -> Float[Tensor, ""]:
        """`counts`: the anchor points that are used; None: all. Zero without images, anchor points or classes."""
        chosen = torch.ones_like(teacher[..., :1]) if counts is None else counts[..., None].to(teacher.dtype)
        if teacher.numel() == 0:
            return student.sum() * 0
        if self.mode == "softmax":
            points = divergence(student, teacher, self.temperature) * chosen[..., 0]
            return points.sum() / (teacher.shape[0] * teacher.shape[2])
        scores = teacher.sigmoid()
        # KL of two Bernoulli distributions per class, weighted by |sigmoid(t) - sigmoid(s)|, without its gradient.
        # Without this weight the many background points, on which both agree, would dominate.
        difference = (scores - student.detach().sigmoid()).abs()
        normaliser = (scores.amax(dim=-1, keepdim=True) * chosen).sum().clamp(min=1)
        terms = binary_divergence(student, teacher, self.temperature) * difference * chosen
        return terms.sum() / probe("distil.response_normaliser", normaliser)


class BoxResponseLoss:
    """Box distributions where the teacher detects an object (localization distillation, arXiv 2102.12252).

    The divergence over the R bins, averaged over the four sides, weighted by the teacher's best score and divided by
    the sum of the weights, at least 1.
    """

    def __init__(self, reg_max: int, temperature: float = 1.0):
        self.reg_max, self.temperature = reg_max, temperature

    def __call__(
        self,
        student: Float[Tensor, "N A four_R"],
        teacher: Float[Tensor, "N A four_R"],
        scores: Float[Tensor, "N A"],
    ) -> Float[Tensor, ""]:
        """`scores`: the teacher's best score at each anchor point; zero where its box must not be used."""
        # A box of a background point has no meaning: its distribution is whatever the teacher's head happens to give.
        weight = scores * (scores >= FOREGROUND)
        ours, theirs = (torch.unflatten(logits, -1, (4, self.reg_max)) for logits in (student, teacher))
        sides = divergence(ours, theirs, self.temperature).mean(dim=-1)
        return safe_divide((sides * weight).sum(), weight.sum(), least=1)


class ModelOutputs(NamedTuple):
    """Raw maps of a batch, and the named feature maps they were computed from."""

    raw_maps: Sequence[Tensor]
    features: Mapping[str, Tensor]


@runtime_checkable
class DistillationPart(Protocol):
    """A distillation loss that a recipe adds: `mcfg.distilParts = [FeatureDistance(weight=0.1)]`."""

    @property
    def name(self) -> str:
        """On the progress bar, in the plots and in metrics.jsonl."""
        ...

    @property
    def weight(self) -> float: ...

    def __call__(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss without its weight: 0 or more. The teacher's values have no gradients."""
        ...


class DistillationWeights(NamedTuple):
    """Weights of the detection loss, of CWD, and of the distillation of class logits and box distributions."""

    detection: float = 1.0
    cwd: float = 0.0
    response: float = 0.0
    box_response: float = 0.0


class DistillationLoss(nn.Module):
    """The detection loss plus the distillation losses, as one `LossResult`.

    It is a module because feature maps of different widths are compared through 1 x 1 convolutions. They are trained
    with the student and are not part of it.
    """

    def __init__(  # noqa: PLR0913 (what the losses compare, and how)
        self,
        detection: DetectionLoss,
        class_indexes: Sequence[int],
        teacher_columns: Sequence[int] | None = None,
        weights: DistillationWeights = DistillationWeights(),  # noqa: B008 (a constant)
        feature_widths: Mapping[str, tuple[int, int]] | None = None,
        mode: str = "binary",
        temperature: float = 1.0,
        more_parts: Sequence[DistillationPart] = (),
    ):
        """`class_indexes`: the student's indexes of the teacher's classes. `teacher_columns`: the teacher's own indexes
        of the same classes; None: the same numbers. `feature_widths`: name -> channels in student and teacher, of the
        feature maps that CWD compares."""
        super().__init__()
        self.detection, self.weights = detection, weights
        self.class_indexes = list(class_indexes)
        self.teacher_columns = self.class_indexes if teacher_columns is None else list(teacher_columns)
        if len(self.class_indexes) != len(self.teacher_columns):
            raise ValueError(f"{len(self.class_indexes)} classes of the student, {len(self.teacher_columns)} columns")
        widths = feature_widths or {}
        self.feature_names = tuple(widths)
        terms = (("cwd", weights.cwd), ("response", weights.response), ("box_response", weights.box_response))
        self.more_parts = tuple(more_parts)
        self.part_names = (*(name for name, weight in terms if weight), *(part.name for part in more_parts))
        self.projectors = nn.ModuleDict(
            {name: nn.Conv2d(ours, theirs, 1) for name, (ours, theirs) in widths.items() if ours != theirs}
        )
        # Index tables are built once, so that a step neither copies lists to the device nor waits for it.
        is_known = torch.zeros(detection.num_classes, dtype=torch.bool)
        is_known[self.class_indexes] = True
        self._is_known: Tensor
        self._student_rows: Tensor
        self._teacher_rows: Tensor
        self.register_buffer("_is_known", is_known, persistent=False)  # (C,)
        first = 4 * detection.reg_max  # raw maps have the box channels first, then the class channels
        for name, columns in (("_student_rows", self.class_indexes), ("_teacher_rows", self.teacher_columns)):
            self.register_buffer(name, torch.tensor(columns, dtype=torch.long) + first, persistent=False)
        # The losses are plain callables without parameters; only the projectors are trained.
        self.cwd = CWDLoss(temperature)
        self.response = ResponseLoss(mode, temperature)
        self.box_response = BoxResponseLoss(detection.reg_max, temperature)

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Batch, weight: float = 1.0
    ) -> LossResult:
        """`weight`: factor of the distillation losses. `teacher` None: only the detection loss, with its own weight."""
        with without_autocast(student.raw_maps[0].device):
            found = self.detection(student.raw_maps, batch)
            total = found.total * self.weights.detection
            parts = {name: value * self.weights.detection for name, value in found.parts.items()}
            if teacher is None:
                return replace(found, total=total, parts=parts)
            # The teacher's maps are checked, since NaN in them does not always reach the loss. Feature maps only if CWD
            # uses them: otherwise a NaN there does no harm.
            features = [teacher.features[name] for name in self.feature_names] if self.weights.cwd else []
            sums = {**found.must_be_finite, "targets": total_of([*teacher.raw_maps, *features])}
            # The parts are logged with their weights, so that `total` is their sum.
            for name, value in self._terms(student, teacher, batch).items():
                part = probe(f"distil.{name}", value * weight)
                total, parts[name] = total + part, part.detach()
            return replace(found, total=total, parts=parts, must_be_finite=sums)

    def _terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, Tensor]:
        weights = self.weights
        terms: dict[str, Tensor] = {}
        if weights.cwd:
            losses: list[Tensor] = []
            for name in self.feature_names:
                ours = student.features[name]
                # Projected to the teacher's width: the teacher's map is the target and must not be changed.
                if name in self.projectors:
                    ours = self.projectors[name](ours.float())
                losses.append(self.cwd(ours, teacher.features[name]))
            terms["cwd"] = torch.stack(losses).sum() * weights.cwd
        if weights.response or weights.box_response:
            # Inside the box of a new class the teacher sees background or a similar old class: both are wrong targets.
            counts = self._free_points(student, batch)
            theirs = self._class_rows(teacher, self._teacher_rows)
            if weights.response:
                ours = self._class_rows(student, self._student_rows)
                terms["response"] = self.response(ours.mT, theirs.mT, counts) * weights.response
            if weights.box_response:
                terms["box_response"] = self._boxes_loss(student, teacher, theirs, counts) * weights.box_response
        for part in self.more_parts:
            terms[part.name] = part(student, teacher, batch) * part.weight
        return terms

    def _class_rows(self, outputs: ModelOutputs, rows: Int64[Tensor, " C"]) -> Float[Tensor, "N C A"]:
        """These channels of all raw maps. Selected before they are concatenated, since most channels are not needed."""
        selected = [full_precision(raw.index_select(1, rows)).flatten(2) for raw in outputs.raw_maps]
        return torch.cat(selected, dim=2)

    def _boxes_loss(
        self, student: ModelOutputs, teacher: ModelOutputs, logits: Tensor, counts: Tensor | None
    ) -> Tensor:
        """Only at the anchor points with the teacher's best scores: the others would have almost no weight."""
        scores = logits.sigmoid().amax(dim=1)
        if counts is not None:
            scores = scores * counts
        # A fixed number instead of a threshold: the shape stays the same, and the device need not be asked.
        best = scores.topk(max(1, round(scores.shape[1] * SHARE_OF_POINTS)), dim=1)
        places = best.indices[:, None].expand(-1, 4 * self.detection.reg_max, -1)
        ours, theirs = (
            torch.cat([raw[:, : places.shape[1]].flatten(2) for raw in outputs.raw_maps], dim=2).gather(2, places).mT
            for outputs in (student, teacher)
        )
        return self.box_response(ours, theirs, best.values)

    def _free_points(self, student: ModelOutputs, batch: Batch) -> Bool[Tensor, "N A"] | None:
        """Anchor points outside every box of a new class, for which the teacher's output is wrong.

        None, which means all, in mode `softmax`, as in the assignment.
        """
        if self.response.mode == "softmax":
            return None
        points, _ = anchors_of(student.raw_maps, self.detection.strides)
        # Labels outside the class list are reported by the guard; clamped, they cannot kill a GPU process here.
        is_new = batch.valid & ~self._is_known[batch.labels.clamp(0, len(self._is_known) - 1)]
        is_inside = points_inside(points, batch.boxes.to(points.dtype))  # (N, M, A)
        return ~(is_inside & is_new[..., None]).any(dim=1)
