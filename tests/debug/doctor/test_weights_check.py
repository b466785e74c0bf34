"""The start of a training: weights that fit, partly or not at all; the folder of a run; teachers that fit, that change,
that know other classes, and that detect nothing.
"""

import pytest
import torch
from doctor_checks import STUDENT, first_batch, levels, only, teacher_file

from config.errors import UserError
from debug.doctor import weights_check
from debug.doctor.finding import LOOK, OK, WRONG, collected_warnings
from debug.doctor.learning_check import examine_gradient
from debug.doctor.weights_check import describe_loaded, examine_folder, examine_teacher, examine_weights
from dl.check import check_data
from dl.label_selection import splits_to_train
from model import YoloModel
from model.pretrained import LoadReport
from ops.files import file_digest
from train.teacher import Teacher
from train.trainer import Trainer


def test_weights_that_match_half(setup_of, tmp_path):
    state = YoloModel("nano", 2).state_dict()
    torch.save(state, tmp_path / "whole.pth")
    found = only(examine_weights(setup_of(checkpointModelFile=str(tmp_path / "whole.pth"))))
    assert (found.level, "355 of 355 tensors matched (100 %" in found.text) == (OK, True)
    torch.save(dict(list(state.items())[:178]), tmp_path / "half.pth")
    found = only(examine_weights(setup_of(checkpointModelFile=str(tmp_path / "half.pth"))))
    assert (found.level, "(178 of the network's 355 tensors match; the file has 178)" in found.text) == (WRONG, True)
    assert "half.pth" in found.text
    (tmp_path / "text.pth").write_text("no weights")
    found = only(examine_weights(setup_of(checkpointModelFile=str(tmp_path / "text.pth"))))
    assert (found.level, str(tmp_path / "text.pth") in found.text) == (WRONG, True)


def test_weights_of_other_classes_of_a_backbone_and_none(setup_of, tmp_path):
    model = YoloModel("nano", 80)
    torch.save(model.state_dict(), tmp_path / "coco.pth")
    found = only(examine_weights(setup_of(checkpointModelFile=str(tmp_path / "coco.pth"))))
    assert found.level == OK
    assert "349 of 355 tensors matched" in found.text and "random: head.cls.0.2" in found.text
    backbone = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    torch.save(backbone, tmp_path / "b.pth")
    found = only(examine_weights(setup_of(pretrainedBackboneUrl=f"file://{tmp_path}/b.pth")))
    assert (found.level, f"{len(backbone)} of {len(backbone)} tensors of the backbone matched" in found.text) == (
        OK,
        True,
    )
    found = only(examine_weights(setup_of()))
    assert (found.level, "random, from seed=859" in found.text) == (OK, True)


def test_loaded_weights_that_fill_only_a_part_deserve_a_look():
    model = YoloModel("nano", 2)
    names = list(model.state_dict())
    inside = [name for name in names if name.startswith("backbone.")]
    count = sum(model.state_dict()[name].numel() for name in inside)
    share = round(100 * count / sum(value.numel() for value in model.state_dict().values()))
    found = describe_loaded(model, LoadReport("x.pth", matched=inside, missing=names[len(inside) :]), False)
    assert (found.level, f"{len(inside)} of 355 tensors matched ({share} % of the numbers)" in found.text) == (
        LOOK,
        True,
    )
    assert describe_loaded(model, LoadReport("x.pth", matched=names), False).level == OK


def test_a_missing_weights_file_is_a_user_error(setup_of, tmp_path):
    with pytest.raises(UserError, match=r"none\.pth: no such weights file"):
        setup_of(checkpointModelFile=str(tmp_path / "none.pth"))


def test_the_folder_of_a_run(squares_config):
    mcfg = squares_config(maxEpoch=1)
    data = check_data(mcfg, splits_to_train(mcfg))
    assert "a new run starts" in only(examine_folder(mcfg, data)).text
    assert not mcfg.run_dir.exists()
    Trainer(mcfg, data).run()
    before = {file: file_digest(file) for file in mcfg.run_dir.rglob("*") if file.is_file()}
    found = only(examine_folder(squares_config(maxEpoch=2), data))
    assert (found.level, "a run of 1 epoch; train continues it, with maxEpoch 1 -> 2" in found.text) == (OK, True)
    found = only(examine_folder(squares_config(maxEpoch=1, talTopk=5), data))
    assert (found.level, "holds another training: talTopk 10 -> 5" in found.text) == (WRONG, True)
    assert {file: file_digest(file) for file in mcfg.run_dir.rglob("*") if file.is_file()} == before


# The teacher


@pytest.fixture
def student(setup_of, tmp_path):
    return setup_of(**STUDENT, teacherModelFile=teacher_file(tmp_path / "t.pth"))


def test_a_teacher_that_fits(student, monkeypatch):
    monkeypatch.setattr(weights_check, "check_teacher", lambda *_: 0.5)
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
