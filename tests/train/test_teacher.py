"""The teacher: what it knows, that nothing of it moves, and which pairs are refused."""

import math

import pytest
import torch
from torch import nn

from config.errors import UserError
from config.load import load_config
from config.parts import PartText
from model import YoloModel
from model.base.head import DetectionHead
from train.progress import EpochProgress, bar_text
from train.teacher import Teacher, TeacherClasses
from train.teacher_file import check_teacher, load_teacher, read_teacher, shared_classes
from train.trainer import Trainer

OURS = ("a", "b", "c", "d")


def student_config(file, **overrides):
    values = {"modelName": "distillation", "teacherModelFile": str(file), "classList": OURS, **overrides}
    return load_config("c1.nano", overrides=values)


def checkpoint(path, model, class_list=None, **config):
    """What `runs.checkpoint` writes, as far as a teacher is read from it."""
    import json

    content = {"model": model.state_dict(), "ema": None, "config": json.dumps(config), "phase": model.phase}
    torch.save({**content, "class_list": list(class_list) if class_list else None}, path)
    return path


def moved(model: nn.Module) -> YoloModel:
    """With statistics that are not those of a fresh network, so that fusing has something to do."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


def teacher_of(path, **overrides) -> Teacher:
    return load_teacher(student_config(path, **overrides), torch.device("cpu"), torch.float32)


def test_it_says_what_the_network_says(tmp_path):
    network = moved(YoloModel("nano", 2))
    teacher = teacher_of(checkpoint(tmp_path / "t.pth", network, ("b", "d")))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        raw_maps, features = network.eval().forward_features(images)
    outputs = teacher(images)
    assert teacher.classes == TeacherClasses(("b", "d"), (1, 3), (0, 1))
    for ours, theirs in zip(outputs.raw_maps, raw_maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert set(outputs.features) == set(features)


def test_nothing_of_it_moves_or_learns(tmp_path):
    teacher = teacher_of(checkpoint(tmp_path / "t.pth", moved(YoloModel("nano", 2)), ("a", "b")))
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    first = teacher(images)
    assert not any(raw.requires_grad for raw in first.raw_maps)
    for _ in range(3):
        teacher(torch.rand(4, 3, 64, 64) * 5)
    second = teacher(images)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first.raw_maps, second.raw_maps, strict=True))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in teacher._network.modules())
    teacher._network.train()
    with pytest.raises(RuntimeError, match="the teacher is in train mode"):
        teacher(images)


def test_a_head_for_all_classes_teaches_those_it_was_trained_on(tmp_path):
    """The assignment's teacher has a head for twenty, and saw labels of ten."""
    file = checkpoint(tmp_path / "t.pth", YoloModel("nano", 4), OURS, trainSelectedClasses=["a", "c"])
    assert teacher_of(file).classes == TeacherClasses(("a", "c"), (0, 2), (0, 2))
    student = checkpoint(
        tmp_path / "s.pth", YoloModel("nano", 4), OURS, trainSelectedClasses=["d"], modelName="distillation"
    )
    assert teacher_of(student).classes.names == OURS, "it was taught the others"
    assert teacher_of(file, teacherClassIndexes=[3]).classes == TeacherClasses(("d",), (3,), (3,))


def test_a_file_that_does_not_say_its_classes(tmp_path):
    torch.save(YoloModel("nano", 4).state_dict(), tmp_path / "four.pth")
    torch.save(YoloModel("nano", 2).state_dict(), tmp_path / "two.pth")
    assert teacher_of(tmp_path / "four.pth").classes.names == OURS
    torch.save(YoloModel("nano", 3).state_dict(), tmp_path / "three.pth")
    asked = {"classList": ("a", "b", "c"), "teacherClassIndexes": [2, 0, 1]}
    assert teacher_of(tmp_path / "three.pth", **asked).classes == TeacherClasses(("c", "a", "b"), (2, 0, 1), (0, 1, 2))
    assert teacher_of(tmp_path / "two.pth", teacherClassIndexes=[3, 1]).classes == TeacherClasses(
        ("d", "b"), (3, 1), (0, 1)
    )
    with pytest.raises(UserError, match=r"two\.pth: has 2 classes without names, .* set teacherClassIndexes"):
        teacher_of(tmp_path / "two.pth")


def test_wrong_pairs_are_refused(tmp_path):
    strangers = checkpoint(tmp_path / "s.pth", YoloModel("nano", 2), ("a", "ship"))
    with pytest.raises(UserError, match=r"the teacher was trained on ship, which the student's class list \(a, b"):
        teacher_of(strangers)
    with pytest.raises(
        UserError, match="the teacher was not trained on c, which teacherClassIndexes names; it was trained on a, b"
    ):
        teacher_of(checkpoint(tmp_path / "t.pth", YoloModel("nano", 2), ("a", "b")), teacherClassIndexes=[0, 2])
    with pytest.raises(
        UserError, match=r"no such teacher; train it first: python mars.py c1.nano.teacher on the same data, or set"
    ):
        teacher_of(tmp_path / "none.pth")
    backbone = {f"backbone.{k}": v for k, v in YoloModel("nano", 2).backbone.state_dict().items()}
    torch.save(backbone, tmp_path / "b.pth")
    with pytest.raises(UserError, match="without a complete YOLOv8 network; a teacher also needs its head"):
        teacher_of(tmp_path / "b.pth")
    with pytest.raises(UserError, match="teacherClassIndexes=4: classList has 4 classes"):
        student_config(strangers, teacherClassIndexes=[4])


def test_classes_are_matched_by_name_and_not_by_place(tmp_path):
    file = checkpoint(tmp_path / "t.pth", YoloModel("nano", 3), ("d", "a", "b"))
    assert teacher_of(file).classes == TeacherClasses(("d", "a", "b"), (3, 0, 1), (0, 1, 2))


def test_the_folder_of_a_run_stands_for_its_weights(squares_config):
    teacher = Trainer(squares_config("teacher", maxEpoch=1)).run()
    mcfg = squares_config("student", modelName="distillation", teacherModelFile=str(teacher.path))
    found = load_teacher(mcfg, torch.device("cpu"), torch.float32)
    assert found.classes.names == ("red", "blue")
    teacher.best.unlink()
    assert load_teacher(mcfg, torch.device("cpu"), torch.float32).classes.names == ("red", "blue")


def test_a_teacher_that_sees_nothing_is_warned_of(squares_config, tmp_path, caplog):
    file = checkpoint(tmp_path / "t.pth", YoloModel("nano", 1), ("red",))
    mcfg = squares_config(modelName="distillation", teacherModelFile=str(file))
    teacher = load_teacher(mcfg, torch.device("cpu"), torch.float32)
    data = Trainer(squares_config("other", maxEpoch=1)).splits
    with caplog.at_level("INFO"):
        assert check_teacher(teacher, mcfg, "validation", data["validation"]) == pytest.approx(0, abs=0.05)
    assert "on its own classes in 'validation': it detects almost nothing" in caplog.text
    nothing = [annotation for annotation in data["train"] if not len(annotation.labels)]
    with caplog.at_level("INFO"):
        assert check_teacher(teacher, mcfg, "train", nothing) is None
    assert "has no object of its classes" in caplog.text


def test_it_is_evaluated_with_the_students_classes(tmp_path):
    network = moved(YoloModel("nano", 2))
    teacher = teacher_of(checkpoint(tmp_path / "t.pth", network, ("d", "b")))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        own, seen = network.eval()(images), teacher.as_student(4)(images)
    for ours, theirs in zip(seen, own, strict=True):
        assert ours.shape[1] == 64 + 4
        torch.testing.assert_close(ours[:, [64 + 3, 64 + 1]], theirs[:, 64:], rtol=1e-4, atol=1e-4)
        assert (ours[:, [64, 66]] < -10).all()


def test_a_student_is_trained_with_a_teacher_of_another_phase_and_head(squares_config, tmp_path):
    """A small teacher of one class; its parts are in the history, and nothing of it in the student's files."""
    torch.manual_seed(0)
    file = checkpoint(tmp_path / "t.pth", YoloModel("small", 1), ("red",))
    fields = {"distilling": "modern", "boxResponseWeight": 0.5, "maxEpoch": 2}
    mcfg = squares_config(modelName="distillation", teacherModelFile=str(file), **fields)
    trainer = Trainer(mcfg)
    before = trainer.objective.teacher._network.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    folder = trainer.run()
    plain = Trainer(squares_config("plain"))
    for row in trainer.history:
        assert {"box", "cls", "dfl", "cwd", "response", "box_response"} <= row.keys()
    assert all(torch.equal(before[k], v) for k, v in trainer.objective.teacher._network.state_dict().items())
    saved = torch.load(folder.last, weights_only=True)
    assert saved["model"].keys() == plain.model.state_dict().keys()
    widths = [tuple(p.shape) for p in trainer.objective.loss.projectors.parameters()]
    # of the maps of the narrow small (64, 128, 256) and the narrow nano that the tests here train
    assert widths == [(64, 16, 1, 1), (64,), (128, 32, 1, 1), (128,), (256, 64, 1, 1), (256,)]
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained >= {id(p) for p in trainer.objective.loss.parameters()}
    assert not trained & {id(p) for p in trainer.objective.teacher._network.parameters()}


def test_means_of_parts_that_do_not_come_every_epoch():
    progress = EpochProgress()
    progress.add({"box": torch.tensor(2.0)}, 1)
    assert bar_text(progress, ("box", "cwd"))["box"] == "2.000" and "cwd" not in bar_text(progress, ("box", "cwd"))


def test_known_classes_of_a_plain_file_need_no_network(tmp_path):
    from model.weightsfile import WeightsFile

    file = WeightsFile({}, ("b",), None)
    assert shared_classes(file, student_config(tmp_path / "x")) == TeacherClasses(("b",), (1,), (0,))


def test_a_teacher_with_other_bins_is_refused_before_a_network_is_trained(tmp_path):
    file = checkpoint(tmp_path / "eight.pth", YoloModel("nano", 4, reg_max=8), OURS)
    with pytest.raises(UserError, match=r"^regMax=16: the teacher has 8 bins a side; set regMax=8$"):
        read_teacher(student_config(file))
    assert read_teacher(student_config(file, regMax=8)).classes.names == OURS


def test_a_teacher_whose_predictions_are_not_finite_is_named(tmp_path, squares_config):
    mcfg = squares_config(maxEpoch=1)
    trainer = Trainer(mcfg)
    with torch.no_grad():
        trainer.model.head.cls[0][2].bias.fill_(math.nan)
    teacher = Teacher(trainer.model, TeacherClasses(("red",), (0,), (0,)))
    with pytest.raises(FloatingPointError, match=r"^teacher: the predictions of the network are not finite"):
        check_teacher(teacher, mcfg, "validation", trainer.splits["validation"])


class Doubled(DetectionHead):
    """Reads the same box channels as distances of twice the size."""

    @staticmethod
    def distances(box_channels):
        return 2 * DetectionHead.distances(box_channels)


def test_a_teacher_is_decoded_by_its_own_head(tmp_path):
    model = YoloModel("nano", 2, head=Doubled)
    file = checkpoint(tmp_path / "teacher.pth", model, ("a", "b"), classList=["a", "b"], head=PartText.of(Doubled))
    teacher = teacher_of(file, classList=("a", "b"), boxResponseWeight=0.0)
    channels = torch.randn(1, 5, 64)
    assert torch.equal(teacher.distances(channels), Doubled.distances(channels))
    with pytest.raises(UserError, match=r"boxResponseWeight=0.3: the teacher has another head .*Doubled"):
        teacher_of(file, classList=("a", "b"), boxResponseWeight=0.3)
