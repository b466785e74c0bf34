"""What a teacher adds to the loss, against textbook twins in float64 and figures made by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from ops.batch import Batch
from train.distilloss import (
    BoxResponseLoss,
    CWDLoss,
    DistillationLoss,
    DistillationWeights,
    ModelOutputs,
    ResponseLoss,
    binary_divergence,
    divergence,
)
from train.loss import DetectionLoss

STRIDES = (8, 16, 32)


def textbook_kl(student: list[float], teacher: list[float], temperature: float) -> float:
    """KL(teacher || student) of two softmaxes, term by term in Python's floats."""

    def softmax(values: list[float]) -> list[float]:
        top = max(values)
        powers = [math.exp((value - top) / temperature) for value in values]
        return [power / sum(powers) for power in powers]

    p, q = softmax(teacher), softmax(student)
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 5), (3, 8, 1, 7)])
def test_cwd_is_the_textbook_sum(shape, temperature):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(shape, generator=generator) * 3 for _ in range(2))
    images, channels = shape[:2]
    wanted = sum(
        textbook_kl(student[n, c].flatten().tolist(), teacher[n, c].flatten().tolist(), temperature)
        for n in range(images)
        for c in range(channels)
    )
    wanted *= temperature**2 / (images * channels)
    assert CWDLoss(temperature)(student, teacher).item() == pytest.approx(wanted, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("spread", [1.0, 1e3, 1e6, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_cwd_is_finite_and_never_negative_at_any_spread(spread, dtype):
    generator = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn((2, 4, 5, 5), generator=generator) * spread for _ in range(2))
    student = student.to(dtype).requires_grad_()
    loss = CWDLoss(1.0)(student, teacher.to(dtype))
    loss.backward()
    assert math.isfinite(loss.item()) and loss.item() >= 0
    assert student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("spread", [0.0, 1.0, 1e3, 1e30])
def test_equal_maps_cost_nothing(spread):
    maps = torch.randn((2, 4, 5, 5), generator=torch.Generator().manual_seed(3)) * spread
    assert CWDLoss(2.0)(maps, maps).item() == 0
    assert divergence(maps.flatten(2), maps.flatten(2), 2.0).abs().max() == 0
    assert binary_divergence(maps, maps, 2.0).abs().max() == 0


def test_cwd_sees_shape_and_not_level():
    """A channel is a distribution over its pixels: what is added to all of them does not count."""
    maps = torch.randn((1, 2, 3, 3), generator=torch.Generator().manual_seed(4))
    assert CWDLoss()(maps + 5, maps).item() == pytest.approx(0, abs=1e-6)
    assert CWDLoss()(maps.roll(1, dims=3), maps).item() > 0.1


def test_nearly_equal_maps_do_not_go_below_zero():
    generator = torch.Generator().manual_seed(5)
    for _ in range(200):
        teacher = torch.randn((1, 3, 4, 4), generator=generator)
        student = teacher + torch.randn((1, 3, 4, 4), generator=generator) * 1e-7
        assert divergence(student.flatten(2), teacher.flatten(2), 1.0).min() >= 0
        assert binary_divergence(student, teacher, 1.0).min() >= 0


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_seed_mode_is_the_assignments_sum(temperature):
    generator = torch.Generator().manual_seed(6)
    student, teacher = (torch.randn((2, 6, 3), generator=generator) * 2 for _ in range(2))
    wanted = sum(
        textbook_kl(student[n, a].tolist(), teacher[n, a].tolist(), temperature) for n in range(2) for a in range(6)
    )
    wanted *= temperature**2 / (2 * 3)
    assert ResponseLoss("softmax", temperature)(student, teacher).item() == pytest.approx(wanted, rel=1e-5)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(("level", "is_floor"), [(0.0, False), (-6.0, True)])  # -6: all scores of the teacher are low
def test_the_binary_mode_is_the_textbook_sum(temperature, level, is_floor):
    """The divergence is of softened scores, times T squared; its weight and the normaliser are of the plain ones."""
    generator = torch.Generator().manual_seed(7)
    student, teacher = (torch.randn((2, 6, 3), generator=generator) * 2 + level for _ in range(2))
    total = scores = 0.0
    for n in range(2):
        for a in range(6):
            rows = [one[n, a].tolist() for one in (teacher, student)]
            scores += max(map(sigmoid, rows[0]))
            for t_logit, s_logit in zip(*rows, strict=True):
                t, s = sigmoid(t_logit / temperature), sigmoid(s_logit / temperature)
                kl = t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s))
                total += abs(sigmoid(t_logit) - sigmoid(s_logit)) * kl * temperature**2
    assert (scores < 1) == is_floor
    expected = total / max(scores, 1)
    assert ResponseLoss("binary", temperature)(student, teacher).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mode", ["softmax", "binary"])
def test_points_that_do_not_count_change_nothing(mode):
    generator = torch.Generator().manual_seed(8)
    student, teacher = (torch.randn((1, 4, 2), generator=generator) for _ in range(2))
    counts = torch.tensor([[True, False, True, False]])
    other = student.clone()
    other[0, 1], other[0, 3] = 50, -50
    loss = ResponseLoss(mode)
    assert loss(student, teacher, counts).item() == pytest.approx(loss(other, teacher, counts).item(), rel=1e-6)
    assert loss(student, teacher).item() != pytest.approx(loss(other, teacher).item(), rel=1e-3)


@pytest.mark.parametrize("mode", ["softmax", "binary"])
@pytest.mark.parametrize("shape", [(0, 4, 2), (2, 0, 3), (2, 4, 0)])
def test_nothing_to_answer_costs_nothing(mode, shape):
    student = torch.zeros(shape, requires_grad=True)
    loss = ResponseLoss(mode)(student, torch.zeros(shape))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("mode", ["softmax", "binary"])
@pytest.mark.parametrize("spread", [1e3, 1e30])
def test_responses_are_finite_at_any_spread(mode, spread):
    generator = torch.Generator().manual_seed(9)
    student, teacher = (torch.randn((2, 6, 3), generator=generator) * spread for _ in range(2))
    student.requires_grad_()
    loss = ResponseLoss(mode)(student, teacher)
    loss.backward()
    assert 0 <= loss.item() < math.inf
    assert student.grad is not None and student.grad.isfinite().all()


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="use 'softmax' or 'binary'"):
        ResponseLoss("soft")


def test_boxes_are_learned_where_the_teacher_sees_an_object():
    """Two points in the foreground with scores .8 and .4, one below it: weights .8, .4 and nothing."""
    generator = torch.Generator().manual_seed(10)
    student, teacher = (torch.randn((1, 3, 4 * 4), generator=generator) for _ in range(2))
    scores = torch.tensor([[0.8, 0.4, 0.05]])

    def at(point: int) -> float:
        rows = [one[0, point].view(4, 4).tolist() for one in (student, teacher)]
        return sum(textbook_kl(s, t, 1.0) for s, t in zip(*rows, strict=True)) / 4

    wanted = (0.8 * at(0) + 0.4 * at(1)) / 1.2
    assert BoxResponseLoss(4)(student, teacher, scores).item() == pytest.approx(wanted, rel=1e-5)
    assert BoxResponseLoss(4)(student, teacher, scores * 0).item() == 0


def raw_maps(seed: int, channels: int, count: int = 2, size: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((count, channels, size // s, size // s), generator=generator) for s in STRIDES]


def features(seed: int, channels: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn((2, channels, 4, 4), generator=generator) for name in ("X", "Y")}


def batch_of(label: int) -> Batch:
    boxes = torch.tensor([[[8.0, 8.0, 40.0, 40.0]], [[0.0, 0.0, 0.0, 0.0]]])
    valid = torch.tensor([[True], [False]])
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    return Batch(images, boxes, torch.tensor([[label], [0]]), valid, ("a", "b"))


def loss_of(**changed) -> DistillationLoss:
    torch.manual_seed(0)
    values = {"weights": DistillationWeights(1.0, 0.5, 0.25, 2.0), "feature_widths": {"X": (3, 3), "Y": (3, 3)}}
    return DistillationLoss(DetectionLoss(4, 16), [0, 1], **{**values, **changed})


def test_the_parts_are_those_of_the_three_losses_with_their_weights():
    student, teacher = raw_maps(1, 64 + 4), raw_maps(2, 64 + 2)
    batch, ours, theirs = batch_of(0), features(3, 3), features(4, 3)
    out = loss_of()(ModelOutputs(student, ours), ModelOutputs(teacher, theirs), batch)
    plain = DetectionLoss(4, 16)(student, batch)
    cwd = sum(CWDLoss()(ours[name], theirs[name]) for name in ("X", "Y"))
    flat = [
        torch.cat([raw.flatten(2) for raw in maps], dim=2).transpose(1, 2) for maps in (student, teacher)
    ]  # (2, A, 4R + C)
    response = ResponseLoss("binary")(flat[0][..., 64:66], flat[1][..., 64:])
    scores = flat[1][..., 64:].sigmoid().amax(dim=-1)
    # of 84 points those ten that the teacher is surest of
    surest = torch.zeros_like(scores).scatter(1, scores.argsort(dim=1, descending=True)[:, :10], 1.0)
    box = BoxResponseLoss(16)(flat[0][..., :64], flat[1][..., :64], scores * surest)
    assert set(out.parts) == {"box", "cls", "dfl", "cwd", "response", "box_response"}
    assert out.parts["cwd"].item() == pytest.approx(0.5 * float(cwd), rel=1e-5)
    assert out.parts["response"].item() == pytest.approx(0.25 * response.item(), rel=1e-5)
    assert out.parts["box_response"].item() == pytest.approx(2 * box.item(), rel=1e-5)
    added = sum(value.item() for name, value in out.parts.items() if name not in plain.parts)
    assert out.total.item() == pytest.approx(plain.total.item() + added, rel=1e-5)


def test_strength_scales_what_the_teacher_adds_and_nothing_else():
    student, teacher = ModelOutputs(raw_maps(1, 68), features(3, 3)), ModelOutputs(raw_maps(2, 66), features(4, 3))
    full, half = (loss_of()(student, teacher, batch_of(0), strength) for strength in (1.0, 0.5))
    for name in ("cwd", "response", "box_response"):
        assert half.parts[name].item() == pytest.approx(full.parts[name].item() / 2, rel=1e-6)
    for name in ("box", "cls", "dfl"):
        assert half.parts[name] == full.parts[name]


def test_without_a_teacher_only_the_labels_teach():
    student = ModelOutputs(raw_maps(1, 68), features(3, 3))
    out = loss_of(weights=DistillationWeights(2.0, 1.0, 1.0))(student, None, batch_of(0))
    plain = DetectionLoss(4, 16)(student.raw_maps, batch_of(0))
    assert out.total.item() == pytest.approx(2 * plain.total.item(), rel=1e-6)
    assert set(out.parts) == {"box", "cls", "dfl"}


def test_the_teacher_is_not_heard_inside_boxes_of_classes_it_does_not_know():
    """The teacher takes the new object for one of its own; without the label, the student would be told so."""
    student, teacher = raw_maps(1, 68), raw_maps(2, 66)
    loud = [raw.clone() for raw in teacher]
    loud[0][0, 64:, 1:5, 1:5] = 9  # points 12 to 36, all inside the box of 8 to 40
    loss = loss_of(weights=DistillationWeights(1.0, 0.0, 1.0), feature_widths={})
    told = ModelOutputs(student, {})
    known, new = (
        [loss(told, ModelOutputs(maps, {}), batch_of(label)).parts["response"].item() for maps in (teacher, loud)]
        for label in (1, 3)
    )
    assert known[1] > known[0] * 1.1
    assert new[1] == pytest.approx(new[0], rel=1e-6)


def test_features_of_another_width_go_through_a_projector_that_learns():
    loss = loss_of(feature_widths={"X": (3, 5), "Y": (3, 3)}, weights=DistillationWeights(1.0, 1.0))
    assert list(loss.projectors) == ["X"]
    assert [tuple(p.shape) for p in loss.parameters()] == [(5, 3, 1, 1), (5,)]
    theirs = {"X": features(4, 5)["X"], "Y": features(4, 3)["Y"]}
    loss(
        ModelOutputs(raw_maps(1, 68), features(3, 3)), ModelOutputs(raw_maps(2, 66), theirs), batch_of(0)
    ).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.projectors["X"].parameters() if p.dim() > 1)


def test_the_columns_of_the_teacher_are_matched_with_the_students_classes():
    """The teacher's column 0 is the student's class 2: agreeing there costs nothing, whatever stands elsewhere."""
    student = raw_maps(1, 68)
    teacher = [torch.cat((raw[:, :64], raw[:, 66:67]), dim=1) for raw in student]
    loss = DistillationLoss(DetectionLoss(4, 16), [2], [0], DistillationWeights(1.0, 0.0, 1.0, 1.0))
    out = loss(ModelOutputs(student, {}), ModelOutputs(teacher, {}), batch_of(2))
    assert out.parts["response"].item() == 0
    assert out.parts["box_response"].item() == 0
    with pytest.raises(ValueError, match="1 classes of the student, 2 columns"):
        DistillationLoss(DetectionLoss(4, 16), [2], [0, 1])


def test_the_student_learns_and_the_teacher_is_left_alone():
    student = [raw.requires_grad_() for raw in raw_maps(1, 68)]
    teacher = raw_maps(2, 66)
    ours = {name: value.requires_grad_() for name, value in features(3, 3).items()}
    loss_of()(ModelOutputs(student, ours), ModelOutputs(teacher, features(4, 3)), batch_of(0)).total.backward()
    assert all(raw.grad is not None and raw.grad.isfinite().all() for raw in student)
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in ours.values())
    assert all(raw.grad is None for raw in teacher)


def test_a_descent_on_the_lessons_brings_the_student_to_the_teacher():
    """Trained on nothing but the teacher, the scores of its classes become the teacher's."""
    torch.manual_seed(0)
    teacher = ModelOutputs(raw_maps(2, 66), {})
    student = nn.ParameterList([nn.Parameter(raw) for raw in raw_maps(1, 68)])
    loss = DistillationLoss(DetectionLoss(4, 16), [0, 1], weights=DistillationWeights(0.0, 0.0, 1.0, 1.0))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss(ModelOutputs(list(student), {}), teacher, batch_of(0)).total.backward()
        optimizer.step()
    for ours, theirs in zip(student, teacher.raw_maps, strict=True):
        apart = (ours[:, 64:66].sigmoid() - theirs[:, 64:].sigmoid()).abs()
        assert apart.max() < 0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["map", "feature"])
def test_a_teacher_that_is_not_finite_is_told_whatever_the_loss_makes_of_it(where, bad):
    """-Inf before a softmax is a probability of zero, of which no part of the loss knows."""
    student, teacher = ModelOutputs(raw_maps(1, 68), features(3, 3)), ModelOutputs(raw_maps(2, 66), features(4, 3))
    assert loss_of()(student, teacher, batch_of(0)).must_be_finite["targets"].isfinite()
    (teacher.raw_maps[0] if where == "map" else teacher.features["Y"])[0, 1, 2, 3] = bad
    assert not loss_of()(student, teacher, batch_of(0)).must_be_finite["targets"].isfinite()
    assert "targets" not in loss_of()(student, None, batch_of(0)).must_be_finite


def test_features_that_nothing_is_learned_from_are_not_looked_at():
    student, teacher = ModelOutputs(raw_maps(1, 68), features(3, 3)), ModelOutputs(raw_maps(2, 66), features(4, 3))
    teacher.features["X"][...] = math.nan
    loss = loss_of(weights=DistillationWeights(1.0, 0.0, 1.0), feature_widths={})
    assert loss(student, teacher, batch_of(0)).must_be_finite["targets"].isfinite()


@pytest.mark.parametrize("label", [4, -1, 2**40])
def test_a_label_that_is_no_class_is_told_and_is_no_index(label):
    student, teacher = ModelOutputs(raw_maps(1, 68), features(3, 3)), ModelOutputs(raw_maps(2, 66), features(4, 3))
    out = loss_of()(student, teacher, batch_of(label))
    assert (
        out.must_be_finite["labels"].isnan() and loss_of()(student, teacher, batch_of(3)).must_be_finite["labels"] == 0
    )


def test_padding_may_hold_any_label():
    batch = batch_of(3)
    batch.labels[1, 0] = -1
    student, teacher = ModelOutputs(raw_maps(1, 68), features(3, 3)), ModelOutputs(raw_maps(2, 66), features(4, 3))
    assert loss_of()(student, teacher, batch).must_be_finite["labels"] == 0
