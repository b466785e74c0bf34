"""Every check of the doctor: an injected fault is named, and the same config without it is called ok."""

import gc
import json
import math
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from config.errors import UserError
from debug.doctor import memory_check, teacher_check
from debug.doctor.aliases import examine_aliases
from debug.doctor.checks import examine
from debug.doctor.data_check import examine_batch, examine_data, examine_labels, examine_points, examine_sizes
from debug.doctor.finding import LOOK, OK, WRONG, Finding, collected_warnings
from debug.doctor.learning_check import examine_gradient, examine_overfitting
from debug.doctor.memory_check import MemoryNeed, examine_memory, fixed_bytes, saved_bytes
from debug.doctor.plan_check import epochs_text, examine_freezing, examine_schedule, planned_rates, planned_spans
from debug.doctor.teacher_check import examine_teacher
from debug.doctor.weights_check import describe_loaded, examine_folder, examine_weights
from dl.check import check_data
from dl.label_selection import splits_to_train
from dl.report import DataReport, SplitReport
from model import YoloModel, build_model
from model.pretrained import LoadReport
from ops.batch import Batch
from ops.seal import file_digest
from ops.text import shown
from train.loss import LossResult
from train.sched import build_schedule, build_warm_up
from train.setup import build_training, some_images
from train.teacher import Teacher
from train.trainer import Trainer

LONG = {"maxEpoch": 200}  # nothing is trained; the plan is that of a long run
STUDENT = {"modelName": "distillation", "distilling": "modern"}


@pytest.fixture
def setup_of(squares_config):
    """A function from overrides to everything that would train on the squares."""

    def make(**overrides):
        mcfg = squares_config(**{**LONG, **overrides})
        return build_training(mcfg, check_data(mcfg, splits_to_train(mcfg)))

    return make


def first_batch(setup) -> Batch:
    return next(setup.batches(1))


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def only(findings) -> Finding:
    (finding,) = findings
    return finding


def teacher_file(path, classes=("red",)):
    """An untrained network that says which classes it knows."""
    torch.manual_seed(0)
    content = {"model": YoloModel("nano", len(classes)).state_dict(), "class_list": list(classes)}
    torch.save({**content, "ema": None, "config": json.dumps({}), "phase": "nano"}, path)
    return str(path)


# The whole of it


def test_a_healthy_config_has_nothing_wrong_and_every_check_speaks(squares_config, tmp_path):
    mcfg = squares_config(**LONG, augmentation="none")
    data = check_data(mcfg, splits_to_train(mcfg))
    findings = list(examine(mcfg, data, tmp_path / "doctor"))
    assert not [str(one) for one in findings if one.level == WRONG]
    spoken = {one.subject for one in findings if one.level == OK}
    assert spoken == {
        "data", "folder", "batch", "points", "weights", "aliases", "freezing", "schedule", "gradient", "memory",
        "overfit",
    }  # fmt: skip
    assert [one.text for one in findings if one.level == LOOK] == [
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
    findings = {one.subject: one for one in examine(mcfg, check_data(mcfg, splits_to_train(mcfg)), tmp_path)}
    assert findings["aliases"].level == WRONG
    assert "backbone.l2.m.0.cv1.conv and backbone.l2.m.0.cv2.conv are the same tensor" in findings["aliases"].text
    assert (findings["overfit"].level, "not tried" in findings["overfit"].text) == (LOOK, True)


def test_two_modules_are_looked_at_each_for_itself():
    assert levels(examine_aliases(nn.Linear(2, 2), nn.Linear(2, 2))) == [OK]
    twice = nn.ModuleList([nn.Linear(2, 2)] * 2)
    assert levels(examine_aliases(nn.Linear(2, 2), twice)) == [WRONG]


# Data and labels


def test_labels_that_are_missing_or_few(setup_of):
    setup = setup_of()
    annotations = setup.loader.dataset.annotations
    only_red = [
        replace(one, boxes=one.boxes[:1], labels=one.labels[:1], difficult=one.difficult[:1]) for one in annotations
    ]
    found = list(examine_labels(setup.mcfg, only_red * 2))
    assert (levels(found), "no training object of blue" in found[0].text) == ([WRONG], True)
    assert levels(examine_labels(setup.mcfg.with_values(trainSelectedClasses=["red"]), only_red * 2)) == [OK]
    assert levels(examine_labels(setup.mcfg, annotations * 2)) == [OK]
    none = [one for one in annotations if not len(one.labels)]
    found = list(examine_labels(setup.mcfg, annotations * 2 + none * 20))
    assert (levels(found), "22 of 36 images have no object" in found[0].text) == ([LOOK], True)


def test_a_batch_is_drawn_with_what_its_objects_were_given(setup_of, tmp_path):
    setup = setup_of()
    batch = first_batch(setup)
    found = only(examine_batch(setup, batch, tmp_path))
    assert found.level == OK
    assert f"{int(batch.valid.sum())} boxes on 3 images (drawn in" in found.text
    assert (tmp_path / "batch.jpg").read_bytes().startswith(b"\xff\xd8")
    empty = replace(batch, valid=torch.zeros_like(batch.valid))
    assert only(examine_batch(setup, empty, tmp_path)).level == LOOK


def test_of_a_large_batch_the_first_images_are_drawn(setup_of, tmp_path):
    setup = setup_of()
    ten = some_images(first_batch(setup), 10)
    found = only(examine_batch(setup, ten, tmp_path))
    assert f"on 10 images (the first 9 drawn in {tmp_path / 'batch.jpg'})" in found.text
    empty = replace(ten, valid=torch.zeros_like(ten.valid))
    assert (
        "none of its 10 images has an object (the first 9 drawn in" in only(examine_batch(setup, empty, tmp_path)).text
    )


def batch_of(*boxes) -> Batch:
    """One image with these boxes."""
    count = len(boxes)
    return Batch(
        images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(1, count, 4),
        labels=torch.zeros(1, count, dtype=torch.long),
        valid=torch.ones(1, count, dtype=torch.bool),
        image_ids=("a",),
    )


TINY, LARGE = (5.0, 5.0, 8.0, 9.0), (0.0, 0.0, 9.0, 9.0)  # points lie at 4, 12, 20, ...


@pytest.mark.parametrize(
    ("batches", "level", "words"),
    [
        ([batch_of(TINY)], WRONG, "1 of 1 box in 1 augmented batch (100.0 %) are too small"),
        ([batch_of(TINY, *[LARGE] * 9)], LOOK, "(10.0 %)"),
        ([batch_of(TINY, *[LARGE] * 60), batch_of(*[LARGE] * 60)], OK, "(0.8 %)"),
        ([batch_of(LARGE)], OK, "at least one anchor point lies inside each of 1 box in 1 augmented batch"),
    ],
)
def test_labels_so_small_that_no_point_is_inside(setup_of, batches, level, words):
    found = only(examine_points(setup_of(), batches))
    assert (found.level, words in found.text) == (level, True), found.text
    assert ("talMinSide=16, which gives 1 of them an anchor point" in found.text) == ("too small" in found.text)


def test_small_labels_with_the_fields_way_out_and_no_labels_at_all(setup_of):
    setup = setup_of(talMinSide=16)
    assert only(examine_points(setup, [batch_of(TINY)])).level == OK
    assert list(examine_points(setup, [batch_of()])) == []


@pytest.mark.parametrize(("num_thin", "level"), [(1, LOOK), (4, WRONG)])
def test_objects_below_a_pixel_are_in_no_batch_and_are_reported(setup_of, num_thin, level):
    setup = setup_of()
    assert list(examine_sizes(setup)) == []
    annotations = setup.loader.dataset.annotations  # 96 pixels wide on an input of 64; 14 objects
    for number in range(num_thin):
        boxes = annotations[number].boxes.copy()
        boxes[:, 2] = boxes[:, 0] + 1.4
        annotations[number] = replace(annotations[number], boxes=boxes)
    found = only(examine_sizes(setup))
    count = sum(len(annotations[number].boxes) for number in range(num_thin))
    assert (found.level, f"{count} of 14 training objects are too small" in found.text) == (level, True), found.text
    assert "less than a pixel wide or high" in found.text and "anchor point" not in found.text


# Where it begins


def test_weights_that_match_half(setup_of, tmp_path):
    state = YoloModel("nano", 2).state_dict()
    torch.save(state, tmp_path / "whole.pth")
    found = only(examine_weights(setup_of(checkpointModelFile=str(tmp_path / "whole.pth"))))
    assert (found.level, "355 of 355 tensors matched, 100 %" in found.text) == (OK, True)
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


def test_weights_that_were_taken_but_fill_little_deserve_a_look():
    model = YoloModel("nano", 2)
    names = list(model.state_dict())
    inside = [name for name in names if name.startswith("backbone.")]
    count = sum(model.state_dict()[name].numel() for name in inside)
    share = round(100 * count / sum(value.numel() for value in model.state_dict().values()))
    found = describe_loaded(model, LoadReport("x.pth", matched=inside, missing=names[len(inside) :]), False)
    assert (found.level, f"{len(inside)} of 355 tensors matched, {share} % of its numbers" in found.text) == (
        LOOK,
        True,
    )
    assert describe_loaded(model, LoadReport("x.pth", matched=names), False).level == OK


def test_a_file_that_is_not_there_is_the_users_mistake(setup_of, tmp_path):
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


# The plan


@pytest.mark.parametrize(
    ("epochs", "level", "words"),
    [
        (range(100), WRONG, "frozen for 100 of 200 epochs (1 to 100), and its weights are random"),
        (range(5), LOOK, "frozen for 5 of 200 epochs (1 to 5), and its weights are random"),
        ((), OK, "trained in every epoch"),
        ((300,), LOOK, "epochs that are not trained (301)"),
    ],
)
def test_a_random_backbone_held_still(setup_of, epochs, level, words):
    found = only(examine_freezing(setup_of(backboneFreezeEpochs=list(epochs))))
    assert (found.level, words in found.text) == (level, True), found.text


def test_a_backbone_that_was_read_may_be_held_still(setup_of, tmp_path):
    backbone = {f"backbone.{name}": value for name, value in YoloModel("nano", 2).backbone.state_dict().items()}
    torch.save(backbone, tmp_path / "b.pth")
    fields = {"pretrainedBackboneUrl": f"file://{tmp_path}/b.pth", "backboneFreezeEpochs": list(range(100))}
    found = only(examine_freezing(setup_of(**fields)))
    assert (found.level, "with weights from a file" in found.text) == (OK, True)


def test_the_schedule_is_the_trainers(setup_of, tmp_path):
    setup = setup_of(maxEpoch=50, backboneFreezeEpochs=[0, 1, 4])
    planned, mcfg = planned_rates(setup), setup.mcfg
    assert len(planned.rates) == 50 * 3 + 1  # 8 images in batches of 3
    schedule, warm_up = build_schedule(mcfg), build_warm_up(mcfg, 3)
    for batch in (0, 1, 99, 120):
        pace = warm_up.pace(batch, schedule.rate(batch // 3))
        assert (planned.rates[batch], planned.bias_rates[batch]) == (pace.rate, pace.bias_rate)
    assert planned_spans(setup) == {"frozen": [(0, 2), (4, 5)], "mosaic": [(0, 40)], "teacher": []}
    found = list(examine_schedule(setup, tmp_path))
    assert levels(found) == [OK, LOOK] and "warm-up takes 100 of the 150 batches" in found[1].text
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")
    assert levels(examine_schedule(setup_of(maxEpoch=200), tmp_path)) == [OK]
    few = setup_of(maxEpoch=20, warmupEpochs=0)
    assert "the optimizer makes only 60 steps" in list(examine_schedule(few, tmp_path))[1].text


@pytest.mark.parametrize(
    ("fields", "mosaic"), [({"maxEpoch": 6}, [(0, 4)]), ({"maxEpoch": 6, "closeMosaic": 1}, [(0, 5)])]
)
def test_the_planned_mosaic_is_the_loaders(setup_of, fields, mosaic):
    setup = setup_of(**fields)
    assert planned_spans(setup)["mosaic"] == mosaic
    assert setup.loader.dataset.ranges.mosaic_end == mosaic[0][1]
    assert planned_spans(setup_of(**fields, mosaic=0.0))["mosaic"] == []


def test_what_a_plateau_will_bring_is_not_known(setup_of, tmp_path):
    words = "without its reductions, because they depend on validation results"
    found = only(examine_schedule(setup_of(schedulerType="plateau"), tmp_path))
    assert (found.level, words in found.text) == (OK, True), found.text
    assert words not in only(examine_schedule(setup_of(), tmp_path)).text


# The teacher


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
            told = ModelOutputs(*network.forward_features(images))
        network.eval()
        return told

    monkeypatch.setattr(Teacher, "__call__", unguarded)
    found = only(examine_teacher(student, first_batch(student)))
    assert (found.level, "different outputs for the same images" in found.text) == (WRONG, True)


def test_a_teacher_of_strange_classes_is_wrong(setup_of, tmp_path):
    setup = setup_of(**STUDENT, teacherModelFile=teacher_file(tmp_path / "t.pth", ("ship",)))
    found = only(examine_teacher(setup, first_batch(setup)))
    assert (found.level, "the teacher knows ship" in found.text) == (WRONG, True)


def test_a_teacher_that_sees_nothing_is_warned_of_and_none_is_no_line(student, setup_of):
    with collected_warnings() as warnings:
        assert list(examine_teacher(student, first_batch(student))) == []
    assert "it sees hardly anything" in warnings[0]
    setup = setup_of()
    assert list(examine_teacher(setup, first_batch(setup))) == []


# Learning


def test_gradient_reaches_every_part(setup_of):
    setup = setup_of()
    found = only(examine_gradient(setup, first_batch(setup)))
    assert found.level == OK
    assert "frozen: head.dfl (a constant)" in found.text
    assert all(parameter.grad is None for parameter in setup.model.parameters())


def test_a_detached_part_is_named(setup_of):
    setup = setup_of()
    neck = setup.model.neck.forward
    setup.model.neck.forward = lambda *features: neck(*(one.detach() for one in features))
    found = list(examine_gradient(setup, first_batch(setup)))
    assert levels(found) == [WRONG]
    assert (
        "no gradient reaches backbone.l0, backbone.l1, backbone.l2" in found[0].text and "and 5 more" in found[0].text
    )


def test_a_part_multiplied_away_is_named(setup_of):
    setup = setup_of()
    setup.model.head.cls[1].register_forward_hook(lambda module, inputs, output: output * 0)
    found = list(examine_gradient(setup, first_batch(setup)))
    assert (levels(found), "the gradient of head.cls.1 is zero everywhere" in found[0].text) == ([WRONG], True)


def test_one_tensor_that_is_not_used_is_named(setup_of):
    setup = setup_of()
    setup.model.neck.l12.register_parameter("spare", nn.Parameter(torch.zeros(2)))
    found = list(examine_gradient(setup, first_batch(setup)))
    assert (levels(found), "no gradient reaches neck.l12.spare" in found[0].text) == ([WRONG], True)


def test_frozen_parts_are_named(setup_of):
    setup = setup_of(backboneFreezeEpochs=[0, 1])
    assert "backbone" not in only(examine_gradient(setup, first_batch(setup))).text, "it is free later"
    setup = setup_of(maxEpoch=3, backboneFreezeEpochs=[0, 1, 2])
    found = only(examine_gradient(setup, first_batch(setup)))
    assert (found.level, "frozen: backbone, head.dfl (a constant), in every epoch" in found.text) == (OK, True)
    setup = setup_of()
    setup.model.head.cls[0].requires_grad_(False)
    found = list(examine_gradient(setup, first_batch(setup)))
    assert (levels(found), "head.cls.0 is frozen, although no config field asks for it" in found[0].text) == (
        [LOOK, OK],
        True,
    )


@pytest.mark.parametrize(
    ("fields", "level", "words"),
    [
        ({}, OK, "it learns"),
        ({"baseLearningRate": 1e-12, "minLearningRate": 0}, WRONG, "raise baseLearningRate (1e-12)"),
        ({"baseLearningRate": 1e4}, WRONG, "lower baseLearningRate (10000)"),
    ],
)
def test_one_batch_is_overfitted(setup_of, fields, level, words):
    setup = setup_of(**fields)
    found = only(examine_overfitting(setup, first_batch(setup)))
    assert (found.level, words in found.text) == (level, True), found.text


def test_weights_that_move_and_learn_nothing_point_to_labels(setup_of, monkeypatch):
    setup = setup_of()
    loss = setup.objective.loss
    monkeypatch.setattr(
        loss, "_compute", lambda maps, batch: LossResult(1 + 0 * sum((one.sum() for one in maps), torch.zeros(())), {})
    )
    found = only(examine_overfitting(setup, first_batch(setup)))
    assert found.level == WRONG
    assert "labels in the picture" in found.text or "hardly changed" in found.text


@pytest.mark.parametrize(("seconds", "steps"), [(0, 6), (math.inf, 24)])
def test_overfitting_ends_with_its_time_after_the_least_steps(setup_of, monkeypatch, seconds, steps):
    """The loss never falls, so only the limits end it. It is computed once before the first step."""
    losses = []
    monkeypatch.setattr("debug.doctor.learning_check._SECONDS", seconds)

    def constant(maps, batch):
        losses.append(1 + 0 * sum((raw.sum() for raw in maps), torch.zeros(())))
        return LossResult(losses[-1], {})

    setup = setup_of()
    monkeypatch.setattr(setup.objective.loss, "_compute", constant)
    only(examine_overfitting(setup, first_batch(setup)))
    assert len(losses) == 1 + steps


def test_without_objects_overfitting_is_not_tried(setup_of):
    setup, batch = setup_of(), batch_of()
    assert only(examine_overfitting(setup, batch)).level == LOOK


# Memory


def test_memory_is_counted():
    assert MemoryNeed(fixed=100, per_image=10, free=151).needed(4) == 140
    assert MemoryNeed(fixed=100, per_image=10, free=151).largest_batch == 5
    assert MemoryNeed(fixed=100, per_image=10, free=50).largest_batch == 0
    assert MemoryNeed(fixed=100, per_image=10, free=None).largest_batch is None


@pytest.mark.parametrize(
    ("free", "level", "words"),
    [
        (2**40, OK, "is free, enough for a batch of about"),
        (30 * 2**20, WRONG, "set batchSize="),
        (None, LOOK, "the system does not report"),
    ],
)
def test_memory_that_there_is(setup_of, monkeypatch, free, level, words):
    setup = setup_of(batchSize=64)
    monkeypatch.setattr(memory_check, "available_memory", lambda: free)
    found = only(examine_memory(setup, first_batch(setup)))
    assert (found.level, words in found.text) == (level, True), found.text


def test_a_teacher_and_its_projections_need_memory(setup_of, tmp_path):
    """Of a small teacher the features are wider than nano's, so that all of them go through projections."""
    wide = tmp_path / "wide.pth"
    torch.save({**torch.load(teacher_file(wide)), "phase": "small", "model": YoloModel("small", 1).state_dict()}, wide)
    taught = setup_of(**STUDENT, teacherModelFile=str(wide))
    alone = setup_of(**STUDENT, teacherModelFile=str(tmp_path / "none.pth"))
    assert alone.teacher_refusal and len(taught.objective.loss.projectors) > 0
    teacher = sum(one.nbytes for one in taught.objective.teacher.as_student(2).parameters())
    projections = sum(one.nbytes for one in taught.objective.loss.projectors.parameters())
    more = fixed_bytes(taught) - fixed_bytes(alone)
    few_buffers = 2**12
    assert 0 <= more - (teacher + 3 * projections) < few_buffers, "weight, gradient and momentum"


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_memory_that_runs_out_while_it_is_measured(squares_config, tmp_path, monkeypatch, error):
    def too_much(*_):
        raise error

    monkeypatch.setattr(memory_check, "saved_bytes", too_much)
    mcfg = squares_config(**LONG, augmentation="none")
    findings = list(examine(mcfg, check_data(mcfg, splits_to_train(mcfg)), tmp_path))
    (memory,) = [one for one in findings if one.subject == "memory"]
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


def test_what_a_forward_pass_keeps_is_counted_once_and_let_go(setup_of):
    """exp keeps its result, the product the images, and the weight is no activation: twice the images, in float32."""
    weight, seen = nn.Parameter(torch.ones(1)), []
    model = nn.ParameterList([weight])

    def objective(model, images, batch):
        result = (images * weight).exp()
        seen.append(weakref.ref(result))
        return LossResult(result.sum())

    setup = setup_of()
    batch = first_batch(setup)
    setup.model, setup.objective = model, objective
    for count in (1, 2):
        assert saved_bytes(setup, some_images(batch, count)) == 2 * count * 3 * 64 * 64 * 4
    gc.collect()
    assert [one() for one in seen] == [None, None]


def test_more_images_keep_more_and_half_precision_less(setup_of):
    setup = setup_of()
    batch = first_batch(setup)
    two, four = (saved_bytes(setup, some_images(batch, count)) for count in (2, 4))
    assert four == pytest.approx(2 * two, rel=0.1)
    adam = setup_of(optimizerType="AdamW")
    parameters = sum(one.nbytes for one in setup.model.parameters() if one.requires_grad)
    assert fixed_bytes(adam) - fixed_bytes(setup) == parameters


# What they share


def test_some_images_are_those_with_objects_and_come_again():
    batch = Batch(
        images=torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 2),
        boxes=torch.zeros(3, 2, 4),
        labels=torch.zeros(3, 2, dtype=torch.long),
        valid=torch.tensor([[False, False], [True, True], [True, False]]),
        image_ids=("none", "two", "one"),
    )
    assert some_images(batch, 2).image_ids == ("two", "one")
    assert some_images(batch, 4).image_ids == ("two", "one", "none", "two")
    assert some_images(batch, 4).images[:, 0, 0, 0].tolist() == [1, 2, 0, 1]


def test_lines():
    assert str(Finding(OK, "data", "two\nlines", ("a", "b"))) == "ok     data: two\n       lines\n       a\n       b"
    assert str(Finding(WRONG, "x", "y")) == "wrong  x: y"
    assert epochs_text([4, 0, 1, 2, 7]) == "1 to 3, 5, 8"
    assert (epochs_text([]), shown([]), shown(list("abc"), 2)) == ("", "", "a, b and 1 more")


def test_copies_of_images_in_two_splits_are_wrong(squares_config):
    report = DataReport(("red",), {"train": SplitReport(images=1)}, copies=("'train' and 'test' hold 1 image",))
    findings = list(examine_data(replace(check_data(squares_config(), ["train"]), report=report)))
    assert [(finding.level, finding.subject) for finding in findings] == [("ok", "data"), ("wrong", "data")]
    assert findings[1].text == report.copies[0]
