"""Memory of a step: what is counted, and what the finding says."""

import gc
import weakref

import pytest
import torch
from doctor_checks import STUDENT, first_batch, only, teacher_file
from torch import nn

from debug.doctor import memory_check
from debug.doctor.data_check import select_images
from debug.doctor.finding import LOOK, OK, WRONG
from debug.doctor.memory_check import MemoryNeed, examine_memory, fixed_bytes, saved_bytes
from model import YoloModel
from train.loss import LossResult


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
def test_the_finding_for_free_memory(setup_of, monkeypatch, free, level, words):
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
    assert alone.errors.get("teacher") and len(taught.objective.loss.projectors) > 0
    teacher = sum(parameter.nbytes for parameter in taught.objective.teacher.as_student(2).parameters())
    projections = sum(parameter.nbytes for parameter in taught.objective.loss.projectors.parameters())
    more = fixed_bytes(taught) - fixed_bytes(alone)
    few_buffers = 2**12
    assert 0 <= more - (teacher + 3 * projections) < few_buffers, "weight, gradient and momentum"


def test_the_peak_of_a_batch_begins_without_the_gradients_of_another(setup_of, monkeypatch):
    setup, kept = setup_of(), []
    batch = first_batch(setup)

    def count_gradients(device):
        kept.append(sum(parameter.grad is not None for parameter in setup.model.parameters()))

    for name, value in {
        "synchronize": lambda device: None,
        "reset_peak_memory_stats": count_gradients,
        "max_memory_allocated": lambda device: 7,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert [memory_check.peak_bytes(setup, batch) for _ in range(2)] == [7, 7]
    assert kept == [0, 0]
    assert any(parameter.grad is not None for parameter in setup.model.parameters()), "or nothing was to be removed"


def test_saved_tensors_are_counted_once_and_released(setup_of):
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
        assert saved_bytes(setup, select_images(batch, count)) == 2 * count * 3 * 64 * 64 * 4
    gc.collect()
    assert [result() for result in seen] == [None, None]


def test_more_images_need_more_memory(setup_of):
    setup = setup_of()
    batch = first_batch(setup)
    two, four = (saved_bytes(setup, select_images(batch, count)) for count in (2, 4))
    assert four == pytest.approx(2 * two, rel=0.1)
    adam = setup_of(optimizerType="AdamW")
    parameters = sum(p.nbytes for p in setup.model.parameters() if p.requires_grad)
    assert fixed_bytes(adam) - fixed_bytes(setup) == parameters
