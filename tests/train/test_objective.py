"""Labels alone, or with a teacher: how strong it is, when it is asked, and that a student's run goes on exactly."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks.chaos import is_same
from config.errors import UserError
from model import YoloModel
from ops.batch import Batch
from runs.checkpoint import load_checkpoint
from train.distilloss import DistillationLoss, DistillationWeights, ModelOutputs
from train.loss import DetectionLoss
from train.objective import DetectionObjective, DistillationObjective, distill_weight
from train.teacher import PseudoLabels, Teacher
from train.trainer import Trainer


@pytest.fixture
def teacher(trained_teacher):
    return str(trained_teacher)


def test_all_epochs_count_alike_unless_told_otherwise():
    assert [distill_weight(epoch, epoch, (), range(3), "constant") for epoch in range(3)] == [1, 1, 1]
    assert [distill_weight(epoch, epoch, (0, 1), range(4), "constant") for epoch in range(4)] == [1, 1, 0, 0]


def test_a_cosine_goes_down_over_the_epochs_that_are_distilled():
    strengths = [distill_weight(epoch, epoch, (), range(4), "cosine") for epoch in range(4)]
    assert strengths == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    for distilled in ((1, 2), (2, 1), (1, 2, 9)):  # there is no epoch 9
        found = [distill_weight(epoch, epoch, distilled, range(4), "cosine") for epoch in range(4)]
        assert found == pytest.approx([0, 1, 0.5, 0])
    late = [distill_weight(epoch, epoch, (), range(10, 14), "cosine") for epoch in range(10, 14)]
    assert late == strengths, "a run that starts in epoch 10 starts with the whole teacher"


def test_a_shortened_run_passes_through_the_same_cosine():
    """Two of four epochs, at the positions 0 and 2; epochs that are listed are real ones."""
    strengths = [distill_weight(epoch, 2.0 * epoch, (), range(4), "cosine") for epoch in range(2)]
    assert strengths == pytest.approx([1, 0.5])
    assert [distill_weight(epoch, 2.0 * epoch, (0, 1), range(4), "cosine") for epoch in range(2)] == [1, 0.5]


def test_a_plain_run_has_no_teacher(squares_config):
    trainer = Trainer(squares_config())
    assert isinstance(trainer.objective, DetectionObjective)
    assert trainer.objective.extra_modules == ()


@pytest.mark.usefixtures("no_checkpoints")
def test_the_teacher_is_asked_only_in_its_epochs(squares_config, teacher, monkeypatch):
    mcfg = squares_config(
        "student", modelName="distillation", teacherModelFile=teacher, distilEpochs=[1], maxEpoch=3, mosaic=0.0
    )
    trainer = Trainer(mcfg)
    assert isinstance(trainer.objective, DistillationObjective)
    asked = []
    ask = type(trainer.objective.teacher).__call__
    monkeypatch.setattr(
        type(trainer.objective.teacher),
        "__call__",
        lambda self, images: asked.append(trainer.epoch) or ask(self, images),
    )
    trainer.run()
    assert set(asked) == {1} and len(asked) == 3  # eight images, three a batch
    assert ["cwd" in row for row in trainer.history] == [False, True, False]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_student_that_was_stopped_goes_on_exactly(squares_config, tmp_path, monkeypatch, precision):
    """With projectors, which are trained and saved beside it: the teacher here is of another phase."""

    class Stopped(Exception):
        pass

    torch.manual_seed(0)
    torch.save(YoloModel("small", 2).state_dict(), tmp_path / "small.pth")
    fields = {"modelName": "distillation", "teacherModelFile": str(tmp_path / "small.pth"), "maxEpoch": 2}
    monkeypatch.setattr("ops.device.cpu_has_bfloat16", lambda: True)  # it computes everywhere
    fields["precision"] = precision
    whole = Trainer(squares_config("whole", **fields)).run()
    trainer = Trainer(squares_config("parts", **fields))
    save = trainer.save

    def save_and_stop(epoch, row):
        save(epoch, row)
        if epoch == 0:
            raise Stopped

    trainer.save = save_and_stop
    with pytest.raises(Stopped):
        trainer.run()
    parts = Trainer(squares_config("parts", **fields)).run()
    expected, found = load_checkpoint(whole.last), load_checkpoint(parts.last)
    assert expected["learned"] and len(expected["learned"][0]) > 0
    for part in ("model", "learned", "optimizer"):
        assert is_same(expected[part], found[part]), part


@pytest.mark.usefixtures("no_checkpoints")
def test_a_student_keeps_nearer_to_its_teacher(squares_config, teacher):
    """Fine-tuned on one class, the scores of the other fade; the teacher holds them."""
    start = {"checkpointModelFile": teacher, "maxEpoch": 3, "trainSelectedClasses": ["red"], "seed": 1}
    plain = Trainer(squares_config("plain", **start))
    student = Trainer(
        squares_config(
            "student", modelName="distillation", teacherModelFile=teacher, distilLossWeights=[1, 1, 50], **start
        )
    )
    images = torch.rand(2, 3, 64, 64)
    teacher_maps = student.objective.teacher(images).raw_maps
    distances = []
    for trainer in (plain, student):
        trainer.run()
        with torch.no_grad():
            raw_maps = trainer.model.eval()(images)
        pairs = zip(raw_maps, teacher_maps, strict=True)
        distances.append(sum((ours[:, 65] - theirs[:, 65]).abs().mean().item() for ours, theirs in pairs))
    assert distances[1] < distances[0]


def test_a_run_goes_on_with_its_own_teacher_only(squares_config, teacher, tmp_path):
    file = tmp_path / "t.pth"
    file.write_bytes((Path(teacher) / "weights" / "best.pth").read_bytes())
    fields = {"modelName": "distillation", "teacherModelFile": str(file)}
    Trainer(squares_config("student", maxEpoch=1, **fields)).run()
    longer = squares_config("student", maxEpoch=2, **fields)
    assert Trainer(longer).run()
    file.write_bytes((Path(teacher) / "weights" / "last.pth").read_bytes())
    with pytest.raises(UserError, match=r"t\.pth: is not the teacher that this run started with"):
        Trainer(squares_config("student", maxEpoch=3, **fields)).run()


def test_other_base_classes_than_the_teachers_are_warned_of(squares_config, teacher, caplog):
    fields = {"modelName": "distillation", "teacherModelFile": teacher}
    with caplog.at_level("WARNING", logger="mars"):
        Trainer(squares_config("student", baseClasses=["red"], **fields))
    assert "baseClasses are red, but the teacher was trained on red, blue" in caplog.text


class Blind(Teacher):
    """Looks at nothing and says NaN."""

    def __init__(self, maps):
        self.checksum, self.maps = None, maps

    def __call__(self, images):
        return ModelOutputs(self.maps, {})


class Unlabelled(PseudoLabels):
    """Finds no object, as in NaN."""

    def __init__(self): ...

    def __call__(self, batch, raw_maps):
        return batch


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_teacher_that_only_labels_is_looked_at_too(value):
    """NaN is above no threshold: unasked, its images would just look empty."""
    maps = [torch.full((1, 64 + 2, size, size), value) for size in (8, 4, 2)]
    loss = DistillationLoss(DetectionLoss(3), [0, 1], weights=DistillationWeights(1.0, 0.0, 1.0))
    objective = DistillationObjective(loss, Blind(maps), lambda epoch, position: 0.0, Unlabelled())
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    batch = Batch(images, torch.zeros(1, 0, 4), torch.zeros(1, 0).long(), torch.zeros(1, 0).bool(), ("a",))
    found = objective(YoloModel("nano", 3), images.float(), batch)
    assert found.must_be_finite["targets"].isfinite() == math.isfinite(value) and "raw maps" in found.must_be_finite


@pytest.mark.parametrize("strength", [math.nan, -0.5, 0.0])
def test_a_strength_that_cannot_be_is_no_way_to_be_rid_of_the_teacher(strength):
    maps = [torch.randn(1, 64 + 2, size, size, generator=torch.Generator().manual_seed(size)) for size in (8, 4, 2)]
    loss = DistillationLoss(DetectionLoss(3), [0, 1], weights=DistillationWeights(1.0, 0.0, 1.0))
    objective = DistillationObjective(loss, Blind(maps), lambda epoch, position: strength)
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    batch = Batch(images, torch.zeros(1, 0, 4), torch.zeros(1, 0).long(), torch.zeros(1, 0).bool(), ("a",))
    parts = objective(YoloModel("nano", 3), images.float(), batch).parts
    assert ("response" in parts) == (strength != 0)
    assert strength == 0 or not parts["response"] >= 0  # which the guard sees
