"""The loop: resuming is exact, freezing holds, nothing that is not finite gets in, and the folder tells the truth."""

import json

import pytest
import torch

from benchmarks.chaos import is_same
from config.errors import UserError
from eval.evaluator import Evaluator
from model import build_model
from model.pretrained import load_weights
from runs.checkpoint import load_checkpoint
from runs.folder import RunFolder
from train.guard import BadStep
from train.trainer import Trainer


class Stopped(Exception):
    """The power cut of these tests."""


def stop_after(trainer: Trainer, epochs: int) -> None:
    """Run until this many epochs are saved, then end as a killed process does: nothing is tidied up."""
    save = trainer.save

    def save_and_stop(epoch, row):
        save(epoch, row)
        if epoch + 1 == epochs:
            raise Stopped

    trainer.save = save_and_stop
    with pytest.raises(Stopped):
        trainer.run()


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_and_continued_equals_never_stopped(squares_config, workers):
    fields = {"dcore": workers, "maxEpoch": 4, "useEMA": True, "backboneFreezeEpochs": [0, 2]}
    whole = Trainer(squares_config("whole", **fields)).run()
    stop_after(Trainer(squares_config("parts", **fields)), 2)
    parts = Trainer(squares_config("parts", **fields)).run()
    expected, found = load_checkpoint(whole.last), load_checkpoint(parts.last)
    for key in ("model", "ema", "ema_steps", "optimizer", "schedule", "epoch", "best"):
        assert is_same(expected[key], found[key]), key
    for key in ("torch", "numpy"):  # the type checker of the tests draws from Python's own generator
        assert is_same(expected["random"][key], found["random"][key]), key
    timeless = [
        [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in json.loads(c["history"])]
        for c in (expected, found)
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 4


def test_five_images_at_the_smallest_input_resume_exactly(squares_config):
    """The fifth would be a batch of its own, with one value a channel on the coarsest map: it has no variance."""
    names = [f"scene_{number:02}" for number in range(5)]
    splits = {"train": names, "validation": ["scene_08", "scene_09"], "test": ["scene_10"]}
    fields = {"subsetMap": splits, "inputShape": 32, "batchSize": 4, "maxEpoch": 2, "useEMA": True}
    whole = Trainer(squares_config("whole", **fields))
    assert [len(batch) for batch in whole.loader] == [5]
    whole.run()
    stop_after(Trainer(squares_config("parts", **fields)), 1)
    parts = Trainer(squares_config("parts", **fields)).run()
    expected, found = load_checkpoint(whole.folder.last), load_checkpoint(parts.last)
    for key in ("model", "ema", "optimizer", "epoch", "best"):
        assert is_same(expected[key], found[key]), key
    with pytest.raises(UserError, match=r"batchSize=1: at inputShape=32,32 "):
        Trainer(squares_config("single", inputShape=32, batchSize=1))
    assert not RunFolder.of(squares_config("single")).has_checkpoint()


def test_the_number_of_workers_does_not_matter(squares_config):
    runs = [Trainer(squares_config(f"w{n}", dcore=n, maxEpoch=2)).run() for n in (0, 2)]
    first, second = (load_checkpoint(run.last)["model"] for run in runs)
    assert is_same(first, second)


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_stop_between_weights_and_metrics_leaves_no_gap(squares_config, epochs, real_curves):
    stop_after(Trainer(squares_config()), epochs)
    folder = Trainer(squares_config()).folder
    folder.metrics.unlink()
    folder.curves.unlink()
    Trainer(squares_config()).run()
    assert folder.curves.exists()
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]


def test_a_finished_run_is_left_alone_and_goes_on_when_extended(squares_config):
    folder = Trainer(squares_config(maxEpoch=2)).run()
    before = folder.last.read_bytes()
    Trainer(squares_config(maxEpoch=2)).run()
    assert folder.last.read_bytes() == before
    Trainer(squares_config(maxEpoch=3, baseLearningRate=0.005)).run()
    assert load_checkpoint(folder.last)["epoch"] == 3


def test_another_training_in_the_same_folder_is_refused_with_the_difference(squares_config):
    stop_after(Trainer(squares_config()), 1)
    with pytest.raises(UserError, match=r"batchSize 3 -> 4.*--name.*--nobuf"):
        Trainer(squares_config(batchSize=4)).run()


def test_another_data_set_in_the_same_folder_is_refused(squares_config):
    stop_after(Trainer(squares_config()), 1)
    with pytest.raises(UserError, match=r"another data set.*class list"):
        Trainer(squares_config(classList=["blue", "red"])).run()
    with pytest.raises(UserError, match=r"another data set.*split train.*8 images.*7 images"):
        Trainer(
            squares_config(
                subsetMap={"train": [f"scene_{i:02}" for i in range(7)], "validation": ["scene_08", "scene_09"]}
            )
        ).run()


def test_a_frozen_backbone_holds_for_its_epochs_only(squares_config):
    trainer = Trainer(squares_config(backboneFreezeEpochs=[0, 1]))
    start = {name: value.clone() for name, value in trainer.model.backbone.state_dict().items()}
    trainer.preEpochSetup(0)
    row = trainer.fit_one_epoch(0)
    assert row["frozen"] and is_same(start, dict(trainer.model.backbone.state_dict()))
    trainer.preEpochSetup(2)
    row = trainer.fit_one_epoch(2)
    assert not row["frozen"] and not is_same(start, dict(trainer.model.backbone.state_dict()))


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_moves(squares_config):
    trainer = Trainer(squares_config())
    trainer.preEpochSetup(0)
    batch = next(iter(trainer.loader))
    trainer.train_step(batch)
    with torch.no_grad():
        trainer.model.neck.l12.cv1.conv.weight[0, 0, 0, 0] = float("nan")
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(BadStep, match=rf"not finite.*{batch.image_ids[0]}"):
        trainer.train_step(batch)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter.nan_to_num(7), before[name].nan_to_num(7)), name


def test_the_time_left_is_that_of_the_last_whole_epochs(squares_config, caplog):
    stop_after(Trainer(squares_config(maxEpoch=5)), 1)
    trainer = Trainer(squares_config(maxEpoch=5))
    trainer._start_or_resume()
    trainer.plan.in_epoch = 90.0  # with validation and saving
    with caplog.at_level("INFO", logger="mars"):
        trainer.save(1, {**trainer.history[-1], "epoch": 1, "is_best": False})
    line = caplog.messages[-1]
    assert line.startswith("epoch 2/5 | box ") and line.endswith("4:30 left")


def test_without_epoch_validation_the_last_weights_count(squares_config):
    mcfg = squares_config(epochValidation=False, maxEpoch=1)
    folder = Trainer(mcfg).run()
    assert not folder.best.exists() and folder.evaluated_weights(mcfg) == folder.last


def test_best_weights_are_those_that_were_evaluated(squares_config):
    mcfg = squares_config(useEMA=True, maxEpoch=2)
    trainer = Trainer(mcfg)
    folder = trainer.run()
    model = build_model(mcfg)
    report = load_weights(model, folder.best)
    assert not report.missing and not report.skipped
    best = max(row["map50_95"] for row in trainer.history)
    assert load_checkpoint(folder.best)["fitness"] == best
    assert Evaluator(mcfg).evaluate(model, "validation").map50_95 == pytest.approx(best, abs=1e-9)


@pytest.mark.usefixtures("no_checkpoints")
def test_validation_interval_skips_epochs_but_never_the_last(squares_config):
    trainer = Trainer(squares_config(validationInterval=2, maxEpoch=3))
    trainer.run()
    assert [row["map50"] is not None for row in trainer.history] == [False, True, True]


def test_a_run_may_start_from_given_weights_at_a_later_epoch(squares_config):
    first = Trainer(squares_config("first", maxEpoch=1)).run()
    mcfg = squares_config("second", maxEpoch=7, startEpoch=5, checkpointModelFile=str(first.last))
    second = Trainer(mcfg)
    assert is_same(dict(second.model.state_dict()), load_checkpoint(first.last)["ema"])
    assert second.weights_origin["path"] == str(first.last)
    second.run()
    assert [row["epoch"] for row in second.history] == [5, 6]


def test_validation_may_be_switched_off_on_the_way(squares_config):
    stop_after(Trainer(squares_config()), 1)
    trainer = Trainer(squares_config(epochValidation=False))
    trainer.run()
    assert [row["map50"] is None for row in trainer.history] == [False, True, True]


def test_the_best_epoch_does_not_depend_on_what_is_reported(squares_config):
    trainer = Trainer(squares_config(apStyle="assignment", testSelectedClasses=["red"], maxEpoch=1))
    result = trainer.evaluator.evaluate(trainer.model, "validation")
    assert (result.ap_style, list(result.ap.per_class)) == ("coco", ["red", "blue"])


def test_a_plateau_without_validation_goes_by_the_loss(squares_config):
    trainer = Trainer(squares_config(schedulerType="plateau", epochValidation=False, maxEpoch=2))
    trainer.run()
    assert trainer.schedule.best == max(-row["loss"] for row in trainer.history)


def test_a_student_whose_teacher_has_vanished_says_so_when_it_goes_on(squares_config):
    teacher = Trainer(squares_config("teacher", maxEpoch=1)).run()
    fields = {"modelName": "distillation", "teacherModelFile": str(teacher.path), "maxEpoch": 2}
    stop_after(Trainer(squares_config("student", **fields)), 1)
    for file in (teacher.best, teacher.last):
        file.unlink()
    with pytest.raises(UserError, match=rf"^{teacher.best}: no such teacher; train it first: .*teacherModelFile$"):
        Trainer(squares_config("student", **fields))
    folder = RunFolder.of(squares_config("student", **fields))
    assert load_checkpoint(folder.last)["epoch"] == 1, "what is trained is left alone"


def overfit(mcfg, steps):
    """One batch, known by heart; the figures on the images it was made of."""
    trainer = Trainer(mcfg)
    trainer.preEpochSetup(3)  # past the warm-up
    (batch,) = trainer.loader
    for _ in range(steps):
        trainer.train_step(batch)
    return Evaluator(mcfg).evaluate(trainer.model, mcfg.trainSplitName)


BY_HEART = {"augmentation": "none", "batchSize": 8, "lossReduction": "sum", "epochValidation": False, "maxEpoch": 100}


def test_overfits_two_drawn_images(squares_config):
    two = {"train": ["scene_00", "scene_01"], "test": ["scene_10"]}
    result = overfit(squares_config(**BY_HEART, subsetMap=two, inputShape=96), steps=250)
    assert result.images_evaluated == 2
    assert result.map50 is not None and result.map50 > 0.95


@pytest.mark.slow
def test_overfits_eight_real_images(shared, tmp_path):
    """Augmented first: objects much smaller than a fresh head's boxes are only found by way of larger ones."""
    from config.load import load_config
    from dl.loader import build_loader

    names = [path.stem for path in sorted((shared / "data/bccd/images").iterdir())[:8]]
    overrides = {
        **BY_HEART,
        "augmentation": "assignment",
        "maxEpoch": 600,  # a step each
        "classList": ["RBC", "WBC", "Platelets"],
        "imageDir": str(shared / "data/bccd/images"),
        "annotationDir": str(shared / "data/bccd/annotations"),
        "subsetMap": {"train": names},
        "inputShape": 320,
        "device": "cpu",
    }
    mcfg = load_config("voc.nano.full", root=str(tmp_path), overrides=overrides, name="eight")
    trainer = Trainer(mcfg)
    (as_they_are,) = build_loader(mcfg, "train", train=False)
    for epoch in range(mcfg.maxEpoch):
        trainer.preEpochSetup(epoch)
        trainer.train_step(as_they_are if epoch >= 400 else next(iter(trainer.loader)))
    result = Evaluator(mcfg).evaluate(trainer.model, "train")
    assert result.images_evaluated == 8
    assert result.map50 is not None and result.map50 >= 0.95
