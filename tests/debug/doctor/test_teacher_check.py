"""Teachers that fit, that change, that know other classes, and that detect nothing."""

import pytest
import torch
from doctor_checks import STUDENT, first_batch, levels, only, teacher_file

from debug.doctor import teacher_check
from debug.doctor.finding import OK, WRONG, collected_warnings
from debug.doctor.learning_check import examine_gradient
from debug.doctor.teacher_check import examine_teacher
from model import YoloModel
from train.teacher import Teacher


@pytest.fixture
def student(setup_of, tmp_path):
    return setup_of(**STUDENT, teacherModelFile=teacher_file(tmp_path / "t.pth"))


def test_a_teacher_that_fits(student, monkeypatch):
    monkeypatch.setattr(teacher_check, "check_teacher", lambda *_: 0.5)
    found = only(examine_teacher(student, first_batch(student)))
    assert found.level == OK
    assert "nano, knows 1 of 2 classes, not blue; mAP50 0.500 on its classes in 'validation'" in found.text


def test_a_teacher_in_train_mode_is_wrong_and_hides_no_other_check(student):
    student.objective.teacher._network.train()
    found = only(examine_teacher(student, first_batch(student)))
    assert (found.level, "the teacher is in train mode" in found.text) == (WRONG, True)
    assert levels(examine_gradient(student, first_batch(student))) == [OK]


def test_a_teacher_whose_statistics_move_is_wrong(student, monkeypatch):
    """One that was not fused and lost its own guard: what it says depends on what it saw."""
    network = YoloModel("nano", 1).train()

    def unguarded(self, images):
        from train.distilloss import ModelOutputs

        with torch.no_grad():
            network.backbone.l0.bn.momentum = 1.0
            outputs = ModelOutputs(*network.forward_features(images))
        network.eval()
        return outputs

    monkeypatch.setattr(Teacher, "__call__", unguarded)
    found = only(examine_teacher(student, first_batch(student)))
    assert (found.level, "different outputs for the same images" in found.text) == (WRONG, True)


def test_a_teacher_of_other_classes_is_wrong(setup_of, tmp_path):
    setup = setup_of(**STUDENT, teacherModelFile=teacher_file(tmp_path / "t.pth", ("ship",)))
    found = only(examine_teacher(setup, first_batch(setup)))
    assert (found.level, "the teacher was trained on ship" in found.text) == (WRONG, True)


def test_a_teacher_that_detects_nothing_is_a_warning_and_no_teacher_gives_no_finding(student, setup_of):
    with collected_warnings() as warnings:
        assert list(examine_teacher(student, first_batch(student))) == []
    assert "it detects almost nothing" in warnings[0]
    setup = setup_of()
    assert list(examine_teacher(setup, first_batch(setup))) == []
