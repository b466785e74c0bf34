"""Nothing is lost: asked to leave, damaged, half-finished or extended, a run ends as one that was never disturbed."""

import json
import os
import signal

import pytest
import torch

from benchmarks.chaos import is_same
from config.errors import UserError
from config.mconfig import ModelConfig
from eval.predictor import Predictor
from runs.checkpoint import load_checkpoint, save_checkpoint
from runs.folder import RunFolder
from runs.interrupt import Interrupted
from runs.provenance import random_origin
from train.step import Stepper
from train.trainer import Trainer

FIELDS = {
    "batchSize": 2,
    "nominalBatch": 4,
    "warmupEpochs": 0,
    "schedulerType": "linear",
    "useEMA": True,
    "maxEpoch": 2,
    "scoreThreshold": 0.0,
}


def timeless(history: str) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in json.loads(history)]


def assert_same_end(folder: RunFolder, whole: RunFolder) -> None:
    checkpoint, expected = load_checkpoint(folder.last), load_checkpoint(whole.last)
    for key in ("model", "ema", "ema_steps", "optimizer", "schedule", "epoch", "best", "progress", "pending", "effect"):
        assert is_same(checkpoint[key], expected[key]), key
    assert timeless(checkpoint["history"]) == timeless(expected["history"])
    lines = folder.metrics.read_text().splitlines()
    assert timeless(f"[{','.join(lines)}]") == timeless(expected["history"])
    best, expected = load_checkpoint(folder.best), load_checkpoint(whole.best)
    assert is_same(best["model"], expected["model"]) and best["epoch"] == expected["epoch"]


@pytest.fixture(scope="module")
def undisturbed(squares, tmp_path_factory):
    """The run that nothing befell: two epochs of four batches, two batches a step."""
    from config.load import load_config

    fields = {"classList": ["red", "blue"], "inputShape": 64, "dcore": 0, "precision": "float32", "device": "cpu"}
    root = str(tmp_path_factory.mktemp("whole"))
    mcfg = load_config("voc.nano.full", root=root, data=str(squares), overrides={**fields, **FIELDS}, name="whole")
    return Trainer(mcfg).run()


def signalled(monkeypatch, owner, name, nth, number=signal.SIGTERM):
    """Have the process signalled when `owner.name` is called for the nth time."""
    function, calls = getattr(owner, name), []

    def wrapper(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)


@pytest.mark.parametrize(
    ("owner", "name", "nth", "workers", "where"),
    [
        (Stepper, "add", 1, 0, "in epoch 1/2 after 1 of 4 batches"),  # a gradient waits for the step
        (Stepper, "add", 6, 2, "in epoch 2/2 after 2 of 4 batches"),
        (Predictor, "__call__", 1, 0, "in epoch 1/2 after 4 of 4 batches"),
        (RunFolder, "write_history", 1, 0, "after epoch 1/2"),
    ],
)
def test_asked_to_leave_it_saves_where_it_is(
    squares_config, undisturbed, monkeypatch, owner, name, nth, workers, where
):
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signalled(patch, owner, name, nth)
        with pytest.raises(Interrupted, match=f"interrupted by SIGTERM and saved {where}; the same command continues"):
            Trainer(squares_config(**FIELDS, dcore=workers)).run()
    assert signal.getsignal(signal.SIGTERM) is before
    trainer = Trainer(squares_config(**FIELDS, dcore=workers))
    steps = []
    train_step = trainer.train_step
    trainer.train_step = lambda batch: steps.append(1) or train_step(batch)
    assert_same_end(trainer.run(), undisturbed)
    done = {"1/2 after 1": 1, "2/2 after 2": 6}.get(where[9:].split(" of ")[0], 4)
    assert len(steps) == 8 - done  # nothing was trained twice


def test_a_mean_over_batches_of_which_some_wait_is_the_same(squares_config, monkeypatch):
    """Eight images in batches of 3, 3 and 2 make one step: the images that wait are kept beside their gradients."""
    fields = {**FIELDS, "batchSize": 3, "nominalBatch": 9, "lossReduction": "mean", "maxEpoch": 1}
    whole = Trainer(squares_config("mean", **fields)).run()
    with monkeypatch.context() as patch:
        signalled(patch, Stepper, "add", 2)
        with pytest.raises(Interrupted, match="after 2 of 3 batches"):
            Trainer(squares_config("stopped", **fields)).run()
    folder = RunFolder.of(squares_config("stopped", **fields))
    assert load_checkpoint(folder.last)["pending_images"] == (6, 3)
    assert_same_end(Trainer(squares_config("stopped", **fields)).run(), whole)


def test_gradients_that_wait_in_a_checkpoint_of_an_earlier_version_keep_their_weight(squares_config, monkeypatch):
    """It had divided them by the batches of a step, and did not keep the number of images."""
    fields = {**FIELDS, "batchSize": 2, "nominalBatch": 6, "lossReduction": "mean", "maxEpoch": 1, "warmupEpochs": 0}
    whole = Trainer(squares_config("mean", **fields)).run()
    with monkeypatch.context() as patch:
        signalled(patch, Stepper, "add", 2)
        with pytest.raises(Interrupted, match="after 2 of 4 batches"):
            Trainer(squares_config("stopped", **fields)).run()
    folder = RunFolder.of(squares_config("stopped", **fields))
    checkpoint = dict(load_checkpoint(folder.last))
    assert checkpoint.pop("pending_images") == (4, 2)
    checkpoint["gradients"] = [None if one is None else one / 3 for one in checkpoint["gradients"]]
    save_checkpoint(folder.last, checkpoint)
    went_on = Trainer(squares_config("stopped", **fields)).run()
    weights = [load_checkpoint(run.last)["model"] for run in (whole, went_on)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-5, atol=1e-6, msg=name)


def stopped_in_epoch(trainer, epoch):
    """End as a killed process does, when an epoch begins."""

    def stop(number):
        if number == epoch:
            raise EOFError
        return setup(number)

    setup, trainer.preEpochSetup = trainer.preEpochSetup, stop
    with pytest.raises(EOFError):
        trainer.run()
    return trainer.folder


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize(("finished", "damage"), [(1, flip), (0, lambda path: os.truncate(path, 5000))])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(squares_config, undisturbed, caplog, damage, finished):
    folder = stopped_in_epoch(Trainer(squares_config(**FIELDS)), finished)
    if not finished:
        save_checkpoint(folder.previous, load_checkpoint(folder.last))
    damage(folder.last)
    assert_same_end(Trainer(squares_config(**FIELDS)).run(), undisturbed)
    # An epoch with mosaic before one without it may bring a spike, which is another matter.
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    (said,) = [text for text in warnings if not text.startswith("spike ")]
    assert said.startswith(f"{folder.last}: is damaged")
    assert said.endswith("resuming from previous.pth, after 0 epochs")


def test_what_is_damaged_never_becomes_the_one_before(tmp_path):
    folder = RunFolder(tmp_path)
    about = {"fitness": None, "config": "{}", "class_list": ["a"], "phase": "nano", "data": {}, "commit": "unknown"}
    about["weights_origin"] = random_origin()
    for epoch in (1, 2):
        folder.save({**about, "epoch": epoch})
    flip(folder.last)
    folder.save({**about, "epoch": 3})
    assert [load_checkpoint(path)["epoch"] for path in (folder.previous, folder.last)] == [1, 3]
    folder.save({**about, "epoch": 4, "model": {"w": torch.ones(1)}, "ema": None}, is_best=True)
    assert [load_checkpoint(path)["epoch"] for path in (folder.previous, folder.last, folder.best)] == [3, 4, 4]


def test_a_folder_without_anything_whole_is_refused_and_left_alone(squares_config):
    folder = stopped_in_epoch(Trainer(squares_config(**FIELDS)), 1)
    flip(folder.last)
    flip(folder.previous)
    before = {path: path.read_bytes() for path in (folder.last, folder.previous, folder.best)}
    with pytest.raises(UserError, match=r"last\.pth.*previous\.pth.*no intact checkpoint is left.*--nobuf"):
        Trainer(squares_config(**FIELDS)).run()
    folder.last.unlink()
    folder.previous.unlink()
    with pytest.raises(
        UserError, match=r"holds weights/best\.pth of a run whose checkpoint weights/last\.pth is missing"
    ):
        Trainer(squares_config(**FIELDS)).run()
    assert folder.best.read_bytes() == before[folder.best]


def test_another_version_is_refused_and_left_alone(squares_config):
    folder = stopped_in_epoch(Trainer(squares_config(**FIELDS)), 1)
    torch.save({"format": "mars-checkpoint-99"}, folder.last)
    before = folder.last.read_bytes(), folder.previous.read_bytes()
    with pytest.raises(UserError, match="mars-checkpoint-99"):
        Trainer(squares_config(**FIELDS)).run()
    assert (folder.last.read_bytes(), folder.previous.read_bytes()) == before


def test_lost_best_weights_are_made_again_from_a_checkpoint(squares_config, undisturbed, caplog):
    mcfg = squares_config(**FIELDS)
    folder = stopped_in_epoch(Trainer(mcfg), 1)
    was = folder.best.read_bytes()
    flip(folder.best)
    with pytest.raises(UserError, match=r"best\.pth: is damaged.*--weights .*last\.pth"):
        folder.evaluated_weights(mcfg)
    assert stopped_in_epoch(Trainer(mcfg), 1).best.read_bytes() == was
    folder.best.unlink()
    assert stopped_in_epoch(Trainer(mcfg), 1).best.read_bytes() == was
    assert [record.message.split("; ")[-1] for record in caplog.records if "written again" in record.message] == [
        "written again from the checkpoint of epoch 1"
    ] * 2
    assert_same_end(Trainer(mcfg).run(), undisturbed)


def test_best_weights_that_no_checkpoint_holds_any_more_are_said_to_be_lost(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    history = [{"epoch": 0, "is_best": True}, *({"epoch": n, "is_best": False} for n in (1, 2))]
    checkpoint = {"history": json.dumps(history), "best": 0.5, "progress": None, "epoch": 3}
    assert not folder.restore_best(checkpoint)
    assert "best.pth: is missing, and no checkpoint of epoch 1 is left" in caplog.text
    save_checkpoint(folder.best, {"epoch": 1})
    assert folder.restore_best(checkpoint)
    assert folder.restore_best({**checkpoint, "history": "[]", "best": None})


def test_a_run_may_be_extended_again_and_again_but_not_changed(squares_config, caplog):
    caplog.set_level("INFO", "mars")
    fields = {**FIELDS, "augmentation": "modern", "maxEpoch": 1}
    Trainer(squares_config(**fields)).run()
    for changed in ({"maxEpoch": 2, "closeMosaic": 1}, {"maxEpoch": 3, "baseLearningRate": 0.004}):
        fields.update(changed)
        trainer = Trainer(squares_config(**fields))
        trainer.run()
        assert [row["epoch"] for row in trainer.history] == list(range(fields["maxEpoch"]))
        assert trainer.loader.dataset.ranges.mosaic_end == fields["maxEpoch"] - 1
    said = [record.message for record in caplog.records if "resuming" in record.message]
    assert all(words in said[0] for words in ("after epoch 1", "maxEpoch 1 -> 2", "closeMosaic 10 -> 1"))
    assert all(words in said[1] for words in ("after epoch 2", "maxEpoch 2 -> 3", "baseLearningRate 0.01 -> 0.004"))
    others = {"nominalBatch": 8, "warmupEpochs": 1.0, "schedulerType": "cosine", "useEMA": False, "mosaic": 0.5}
    old = trainer.mcfg.to_dict()
    for name, value in others.items():
        with pytest.raises(UserError, match=f"holds another training: {name}"):
            trainer.folder.checkpoint_to_resume(ModelConfig.from_dict({**old, name: value}), trainer.data)


def test_mosaic_opens_again_when_a_run_goes_on_for_longer(squares_config):
    """Six epochs have mosaic in the first four; twelve in the first eight, so also in the seventh."""
    fields = {**FIELDS, "augmentation": "modern", "epochValidation": False}
    Trainer(squares_config(**{**fields, "maxEpoch": 6})).run()
    longer = Trainer(squares_config(**{**fields, "maxEpoch": 12}))
    whole = Trainer(squares_config("whole", **{**fields, "maxEpoch": 12}))
    for trainer in (longer, whole):
        trainer.loader.set_epoch(6)
        assert trainer.loader.dataset.ranges.has_mosaic(6) and not trainer.loader.dataset.ranges.has_mosaic(8)
    for batch, expected in zip(longer.loader, whole.loader, strict=True):
        assert torch.equal(batch.images, expected.images) and torch.equal(batch.boxes, expected.boxes)
    longer.run()
    assert longer.epoch == 12


def test_a_start_that_is_killed_in_its_first_epoch_is_gone_on_from(squares_config, undisturbed):
    folder = stopped_in_epoch(Trainer(squares_config(**FIELDS)), 0)
    assert load_checkpoint(folder.last)["epoch"] == 0 and json.loads(folder.config.read_text())["maxEpoch"] == 2
    assert_same_end(Trainer(squares_config(**FIELDS)).run(), undisturbed)
