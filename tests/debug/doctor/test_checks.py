"""All checks together: the findings of a good config, and errors inside a check."""

import pytest
import torch
from doctor_checks import LONG

from debug.doctor import memory_check
from debug.doctor.checks import examine
from debug.doctor.data_check import select_images
from debug.doctor.finding import LOOK, OK, WRONG, Finding
from dl.check import check_data
from dl.label_selection import splits_to_train
from model import build_model
from ops.batch import Batch


def test_a_good_config_has_nothing_wrong_and_every_check_reports(squares_config, tmp_path):
    mcfg = squares_config(**LONG, augmentation="none")
    data = check_data(mcfg, splits_to_train(mcfg))
    findings = list(examine(mcfg, data, tmp_path / "doctor"))
    assert not [str(finding) for finding in findings if finding.level == WRONG]
    subjects = {finding.subject for finding in findings if finding.level == OK}
    assert subjects == {
        "data", "folder", "batch", "points", "weights", "aliases", "freezing", "schedule", "gradient", "memory",
        "overfit",
    }  # fmt: skip
    assert [finding.text for finding in findings if finding.level == LOOK] == [
        "fewer than 10 objects of red (7), blue (7): add images of these classes"
    ]
    assert sorted(file.name for file in (tmp_path / "doctor").iterdir()) == ["batch.jpg", "schedule.png"]
    assert not (tmp_path / "run").exists()


def test_an_aliased_convolution_is_wrong_and_no_step_is_tried(squares_config, tmp_path, monkeypatch):
    def with_alias(mcfg):
        model = build_model(mcfg)
        block = model.backbone.l2.m[0]
        block.cv2.conv = block.cv1.conv
        return model

    monkeypatch.setattr("train.setup.build_model", with_alias)
    mcfg = squares_config(**LONG)
    findings = {
        finding.subject: finding for finding in examine(mcfg, check_data(mcfg, splits_to_train(mcfg)), tmp_path)
    }
    assert findings["aliases"].level == WRONG
    assert "backbone.l2.m.0.cv1.conv and backbone.l2.m.0.cv2.conv are the same tensor" in findings["aliases"].text
    assert (findings["overfit"].level, "not tried" in findings["overfit"].text) == (LOOK, True)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_memory_that_runs_out_while_it_is_measured(squares_config, tmp_path, monkeypatch, error):
    def too_much(*_):
        raise error

    monkeypatch.setattr(memory_check, "saved_bytes", too_much)
    mcfg = squares_config(**LONG, augmentation="none")
    findings = list(examine(mcfg, check_data(mcfg, splits_to_train(mcfg)), tmp_path))
    (memory,) = [finding for finding in findings if finding.subject == "memory"]
    assert (memory.level, "out of memory" in memory.text) == (WRONG, True)
    assert "set a smaller batchSize or inputShape" in memory.text
    assert findings[-1].subject == "overfit", "the other checks go on"


def test_other_errors_of_a_check_are_raised(squares_config, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(memory_check, "saved_bytes", broken)
    mcfg = squares_config(**LONG)
    with pytest.raises(RuntimeError, match="a bug"):
        list(examine(mcfg, check_data(mcfg, splits_to_train(mcfg)), tmp_path))


def test_select_images_takes_those_with_objects_and_repeats_them():
    batch = Batch(
        images=torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 2),
        boxes=torch.zeros(3, 2, 4),
        labels=torch.zeros(3, 2, dtype=torch.long),
        valid=torch.tensor([[False, False], [True, True], [True, False]]),
        image_ids=("none", "two", "one"),
    )
    assert select_images(batch, 2).image_ids == ("two", "one")
    assert select_images(batch, 4).image_ids == ("two", "one", "none", "two")
    assert select_images(batch, 4).images[:, 0, 0, 0].tolist() == [1, 2, 0, 1]


def test_a_finding_as_text():
    assert str(Finding(OK, "data", "two\nlines", ("a", "b"))) == "ok     data: two\n       lines\n       a\n       b"
    assert str(Finding(WRONG, "x", "y")) == "wrong  x: y"
