"""A non-finite step in a file: everything is read back, and a replay finds the same place or reports a difference."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from config.errors import UserError
from debug.tracer.bundle import read_bundle, replay, write_bundle
from debug.tracer.report import report_text
from debug.tracer.rerun import TracedStep
from debug.tracer.tracer import trace
from model import YoloModel, build_model
from ops.batch import Batch
from ops.random_states import random_states
from runs.checkpoint import write_sealed
from train.setup import build_objective

CPU = torch.device("cpu")


def batch_of(count=2, boxes=1):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)
    corners = torch.full((count, boxes, 4), 8.0)
    corners[..., 2:] = 40
    labels, valid = torch.zeros(count, boxes, dtype=torch.long), torch.ones(count, boxes, dtype=torch.bool)
    return Batch(images, corners, labels, valid, ("one", "two")[:count], labelled=torch.ones(count, 2).bool())


@pytest.fixture
def written(squares_config, tmp_path):
    """A function that makes a step non-finite, traces it and writes it: (trace, file)."""

    def make(spoil, batch=None, message="loss not finite", dtype=torch.float32, **fields):
        mcfg = squares_config(**fields)
        model = build_model(mcfg)
        objective = build_objective(mcfg, model, dtype)
        batch = batch or batch_of()
        spoil(model, batch)
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        states = random_states()
        step = TracedStep(model, objective, batch, dtype, 4.0, buffers=buffers, random=states)
        found = trace(step)
        model.train()(torch.rand(2, 3, 64, 64))  # the step itself, which moves the statistics
        path = write_bundle(tmp_path / "health" / "bad.pth", step, json.dumps(mcfg.to_dict()), message)
        return found, path

    return make


def bad_weight(model, batch):
    model.backbone.l4.cv1.conv.weight.data[0, 0, 0, 0] = math.inf


def scaled(model, batch):
    model.head.cls[0][2].weight.data.fill_(1e38)


def no_boxes(model, batch):
    batch.valid[:] = False


@pytest.mark.parametrize(("spoil", "phase"), [(bad_weight, "weights"), (scaled, "forward")])
def test_a_replay_finds_what_the_trace_found(written, spoil, phase):
    found, path = written(spoil)
    again = replay(read_bundle(path), CPU)
    assert again.phase == found.phase == phase and again.is_reproduced
    assert repr((again.producer, again.cause, again.growth)) == repr((found.producer, found.cause, found.growth))
    assert again.passed_on == found.passed_on


def test_everything_is_read_back(written):
    batch = batch_of()
    batch.boxes[1, 0, 0] = math.nan
    _, path = written(bad_weight, batch, message="loss nan; images one, two")
    bundle = read_bundle(path)
    for name in ("images", "labels", "valid", "labelled"):
        assert torch.equal(getattr(bundle.batch, name), getattr(batch, name))
    assert torch.equal(bundle.batch.boxes.nan_to_num(-7), batch.boxes.nan_to_num(-7))
    assert bundle.batch.image_ids == ("one", "two")
    assert (bundle.message, bundle.scale, bundle.precision) == ("loss nan; images one, two", 4.0, torch.float32)
    assert bundle.weights["backbone.l4.cv1.conv.weight"][0, 0, 0, 0] == math.inf
    assert (bundle.weights["backbone.l0.bn.running_mean"] == 0).all()  # as before the step


def test_the_file_holds_plain_values_only(written):
    _, path = written(no_boxes)
    assert torch.load(path, weights_only=True)["format"] == "mars-bad-step-1"


def test_a_replay_that_finds_nothing_reports_it(written, monkeypatch):
    """The fault was in the code, which is correct again."""
    with monkeypatch.context() as patched:
        patched.setattr(F, "binary_cross_entropy_with_logits", lambda *args, **kw: (args[0] - args[0]).sum().log())
        found, path = written(lambda model, batch: None)
    assert found.is_reproduced and found.producer.base == "log"
    again = replay(read_bundle(path), CPU)
    assert not again.is_reproduced and again.producer is None
    assert "not reproduced" in report_text(again).splitlines()[0]


def test_modes_and_frozen_parts_are_read_back(written):
    def freeze(model, batch):
        model.train().freezeBackbone()
        model.head.cls[0][2].weight.data.fill_(1e38)

    found, path = written(freeze)
    bundle = read_bundle(path)
    assert not any(name.startswith("backbone.") for name in (*bundle.modules_in_train_mode, *bundle.trained_parameters))
    assert any(name.startswith("neck.") for name in bundle.modules_in_train_mode)
    assert repr(replay(bundle, CPU).growth) == repr(found.growth)


def test_a_student_is_replayed_with_its_teacher_or_without_it_if_the_file_is_missing(written, tmp_path):
    torch.manual_seed(0)
    teacher = tmp_path / "teacher.pth"
    torch.save(YoloModel("small", 2).state_dict(), teacher)
    fields = {"modelName": "distillation", "teacherModelFile": str(teacher)}
    found, path = written(no_boxes, **fields)
    again = replay(read_bundle(path), CPU)
    assert "cwd" in again.parts and again.parts == pytest.approx(found.parts) and not again.notes
    teacher.unlink()
    alone = replay(read_bundle(path), CPU)
    assert set(alone.parts) == {"box", "cls", "dfl"}
    assert "without the teacher" in alone.notes[0] and "teacher.pth" in alone.notes[0]
    assert "without the teacher" in report_text(alone)


def test_a_teacher_that_was_trained_again_is_noted(written, tmp_path):
    teacher = tmp_path / "teacher.pth"
    torch.manual_seed(0)
    torch.save(YoloModel("small", 2).state_dict(), teacher)
    _, path = written(no_boxes, modelName="distillation", teacherModelFile=str(teacher))
    assert not replay(read_bundle(path), CPU).notes
    torch.save(YoloModel("small", 2).state_dict(), teacher)
    bundle = read_bundle(path)
    again = replay(bundle, CPU)
    assert "cwd" in again.parts
    assert again.notes == [f"replayed with another teacher: {teacher} has changed since the step"]
    assert not replay(replace(bundle, teacher_checksum=None), CPU).notes, "an older bundle does not say whose it was"


def test_a_teacher_of_another_width_is_left_out(written, tmp_path):
    teacher = tmp_path / "teacher.pth"
    torch.save(YoloModel("small", 2).state_dict(), teacher)
    _, path = written(no_boxes, modelName="distillation", teacherModelFile=str(teacher))
    torch.save(YoloModel("medium", 2).state_dict(), teacher)
    alone = replay(read_bundle(path), CPU)
    assert set(alone.parts) == {"box", "cls", "dfl"}
    (note,) = alone.notes
    assert note.startswith("replayed without the teacher") and f"{teacher}: its features have other widths" in note


def test_a_bundle_of_an_older_version_is_read(written):
    _, path = written(no_boxes)
    content = torch.load(path, weights_only=True)
    assert content.pop("taught_by") is None
    write_sealed(path, content)
    bundle = read_bundle(path)
    assert bundle.teacher_checksum is None and not replay(bundle, CPU).notes


def test_a_bad_weight_of_the_teacher_is_named(squares_config, tmp_path):
    torch.manual_seed(0)
    torch.save(YoloModel("small", 2).state_dict(), tmp_path / "teacher.pth")
    mcfg = squares_config(modelName="distillation", teacherModelFile=str(tmp_path / "teacher.pth"))
    model = build_model(mcfg)
    objective = build_objective(mcfg, model, torch.float32)
    network = objective.teacher.as_student(2).network
    network.neck.l16.conv.weight.data[0, 0, 0, 0] = math.nan
    found = trace(TracedStep(model, objective, batch_of(), torch.float32))
    assert (found.phase, found.producer.tensor) == ("weights", "teacher.neck.l16.conv.weight")
    assert found.producer.module == "teacher.neck.l16.conv" and found.cause.name == "bad weight"


def test_other_files_are_refused(written, tmp_path):
    _, path = written(no_boxes)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.pth").write_bytes(content)
    (tmp_path / "text.pth").write_text("no bundle")
    (tmp_path / "short.pth").write_bytes(path.read_bytes()[:-200])
    torch.save({"format": "other"}, tmp_path / "other.pth")
    for name, words in (
        ("flipped.pth", "is damaged"),
        ("text.pth", "damaged, incomplete or not a bundle of a non-finite step"),
        ("short.pth", "incomplete or not a bundle|end of the file with its checksum is missing"),
        (
            "other.pth",
            r"not a bundle of a non-finite step of this version \(format: other, .*give the .pth file",
        ),
        ("nowhere.pth", "cannot be read"),
    ):
        with pytest.raises(UserError, match=f"{name}: .*({words})"):
            read_bundle(tmp_path / name)


def test_another_version_of_the_network_is_refused(written):
    _, path = written(no_boxes)
    bundle = read_bundle(path)
    del bundle.weights["head.dfl.weight"]
    with pytest.raises(UserError, match="do not fit"):
        replay(bundle, CPU)


def test_a_missing_device_is_noted(written, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found, path = written(no_boxes)
    bundle = read_bundle(path)
    bundle.config["device"] = "cuda:0"
    assert "replayed on the CPU" in replay(bundle).notes[0]
    assert found.producer is None
