"""What a training does about a bad step: stop and tell, leave the batch out, or go back; and what it never writes."""

import json
import logging
import math
from functools import partial

import pytest
import torch

from config.errors import UserError
from debug.tracer.report import report_bad_step, report_first_step
from ops.safe import find_nonfinite
from runs.checkpoint import load_checkpoint
from runs.folder import RunFolder
from train.guard import BadStep
from train.monitor import Monitor
from train.trainer import Trainer as PlainTrainer

Trainer = partial(PlainTrainer, on_bad_step=report_bad_step)  # as commands/training.py does it


def spoil(trainer: PlainTrainer, *places: tuple[int, int]) -> None:
    """NaN in a box of these batches, (epoch, batch), both from 0, whenever they come."""
    train_step = trainer.train_step

    def spoilt(batch):
        guard = trainer.stepper.guard
        if (guard.epoch, guard.step) in places:
            batch.boxes[...] = math.nan
        return train_step(batch)

    trainer.train_step = spoilt


def bits_of(checkpoint) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in checkpoint["model"].items()}


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="mars")
    return caplog


def test_stop_tells_all_about_it_and_leaves_the_files(squares_config, said):
    trainer = Trainer(squares_config(maxEpoch=3))
    spoil(trainer, (1, 2))
    with pytest.raises(BadStep, match=r"^boxes.* not finite: .*; epoch 2, batch 3, images scene_") as caught:
        trainer.run()
    folder = trainer.folder
    written = folder.health / "bad-step-2-3.txt"
    assert caught.value.report == written.read_text() and caught.value.report in said.text
    assert str(caught.value) in caught.value.report and "boxes" in caught.value.report
    assert (folder.health / "bad-step-2-3.pth").is_file()
    assert load_checkpoint(folder.last)["epoch"] == 1 and len(folder.metrics.read_text().splitlines()) == 1
    Trainer(squares_config(maxEpoch=3)).run()  # it was the batch: without the fault the run goes on
    assert load_checkpoint(folder.last)["epoch"] == 3


@pytest.mark.usefixtures("no_checkpoints")
def test_a_page_that_cannot_be_made_hides_nothing(squares_config, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("debug.tracer.report.trace", broken)
    trainer = Trainer(squares_config())
    spoil(trainer, (0, 0))
    with pytest.raises(BadStep, match="epoch 1, batch 1") as caught:
        trainer.run()
    assert "not traced: RuntimeError: out of memory" in caught.value.report and "--replay" in caught.value.report
    assert str(caught.value) in (trainer.folder.health / "bad-step-1-1.txt").read_text()


@pytest.mark.usefixtures("no_checkpoints")
def test_a_full_disk_hides_nothing(squares_config, monkeypatch):
    def full(path, *_, **__):
        raise UserError(f"{path}: cannot be written (No space left on device)")

    trainer = Trainer(squares_config())
    spoil(trainer, (0, 0))
    monkeypatch.setattr("debug.tracer.report.write_bundle", full)
    monkeypatch.setattr("debug.tracer.report.write_atomic", full)
    with pytest.raises(BadStep, match="epoch 1, batch 1") as caught:
        trainer.run()
    assert caught.value.report.count("No space left on device") == 2 and "boxes" in caught.value.report


@pytest.mark.usefixtures("no_checkpoints")
def test_an_average_that_broke_is_not_blamed_on_the_step(squares_config):
    trainer = Trainer(squares_config(maxEpoch=2, useEMA=True))
    validate = trainer.validate

    def broken(epoch, row):
        validate(epoch, row)
        trainer.ema.model.head.cls[0][2].weight.data.view(-1)[0] = math.nan

    trainer.validate = broken
    with pytest.raises(BadStep, match=r"^EMA\.head\.cls\.0\.2\.weight is not finite; epoch 1, batch 3") as caught:
        trainer.run()
    assert "The last step is finite, from its pixels to its gradients" in caught.value.report


@pytest.mark.usefixtures("no_checkpoints")
def test_a_spike_is_named_on_the_page_also_of_the_epoch_before(squares_config):
    trainer = Trainer(squares_config(maxEpoch=3))
    train_step = trainer.train_step

    def spiking(batch):
        values = train_step(batch)
        is_last_of_the_second = (trainer.stepper.guard.epoch, trainer.stepper.guard.step) == (1, 3)
        return {**values, "loss": values["loss"] * 1e4} if is_last_of_the_second else values

    trainer.train_step = spiking
    spoil(trainer, (2, 0))
    with pytest.raises(BadStep) as caught:
        trainer.run()
    assert "before this step: spike in epoch 2, batch 3: loss" in caught.value.report


@pytest.mark.usefixtures("no_checkpoints")
def test_a_loss_of_nothing_is_said_once_an_epoch(squares_config, said):
    trainer = Trainer(squares_config(maxEpoch=2))
    train_step = trainer.train_step
    trainer.train_step = lambda batch: {name: value * 0 for name, value in train_step(batch).items()}
    trainer.run()
    assert said.text.count("the loss is exactly 0") == 2 and "epoch 2, batch 1: the loss is exactly 0" in said.text


def test_a_learning_rate_that_is_no_number_moves_nothing(squares_config):
    trainer = Trainer(squares_config(maxEpoch=2))
    trainer.schedule.rate = lambda epoch: math.nan if epoch else 0.01
    with pytest.raises(FloatingPointError, match="learning rate nan"):
        trainer.run()
    assert find_nonfinite(dict(trainer.model.state_dict())) is None
    assert load_checkpoint(trainer.folder.last)["epoch"] == 1


def test_skip_leaves_the_batch_out_and_counts_it(squares_config, said):
    trainer = Trainer(squares_config(onBadStep="skip", maxEpoch=2))
    spoil(trainer, (0, 1), (1, 0), (1, 2))
    folder = trainer.run()
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["bad_steps"] for row in rows] == [1, 2] and all(math.isfinite(row["loss"]) for row in rows)
    assert said.text.count("step skipped: boxes, loss, box, dfl not finite") == 3
    assert "1 bad steps skipped" in said.text and "2 bad steps skipped" in said.text
    assert find_nonfinite(load_checkpoint(folder.last)) is None


def test_skip_is_as_if_the_batch_had_not_been_there(squares_config):
    """The same weights as of a training that is never shown the batch."""
    ends = []
    for name in ("skipped", "unseen"):
        trainer = Trainer(squares_config(name, onBadStep="skip", maxEpoch=1, lossReduction="sum"))
        if name == "skipped":
            spoil(trainer, (0, 1))
        else:
            train_step = trainer.train_step

            def unseen(batch, trainer=trainer, train_step=train_step):
                if trainer.stepper.guard.step == 1:
                    return {}
                return train_step(batch)

            trainer.train_step = unseen
        ends.append(bits_of(load_checkpoint(trainer.run().last)))
    assert ends[0] == ends[1]


@pytest.mark.usefixtures("no_checkpoints")
def test_skip_stops_after_too_many_in_a_row(squares_config):
    trainer = Trainer(squares_config(onBadStep="skip", badStepsInARow=2, maxEpoch=2))
    spoil(trainer, (0, 0), (0, 2), (1, 0))  # the last one of an epoch, and the first one of the next
    with pytest.raises(BadStep, match="epoch 2, batch 1"):
        trainer.run()


def test_rewind_goes_back_and_leaves_the_batch_out(squares_config, said):
    trainer = Trainer(squares_config(onBadStep="rewind", maxEpoch=2))
    spoil(trainer, (1, 1))
    folder = trainer.folder
    forgiving(trainer)
    trainer.run()
    assert load_checkpoint(folder.last)["epoch"] == 2 and "without this batch (rewind 1)" in said.text
    assert [json.loads(line)["epoch"] for line in folder.metrics.read_text().splitlines()] == [0, 1]
    assert (folder.health / "bad-step-2-2.txt").is_file()


def forgiving(trainer: Trainer) -> None:
    """The trial of the checkpoint sees the batch without its fault, as if only the weights had been to blame."""
    rewind = trainer._rewind

    def healed(bad):
        bad.snapshot.batch.boxes[...] = 0
        return rewind(bad)

    trainer._rewind = healed


def test_rewind_equals_a_run_without_the_batch(squares_config):
    ends = []
    for name in ("rewound", "unseen"):
        trainer = Trainer(squares_config(name, onBadStep="rewind", maxEpoch=2))
        if name == "rewound":
            spoil(trainer, (1, 1))
            forgiving(trainer)
        else:
            trainer.monitor.is_skipped = lambda epoch, batch, t=trainer: (epoch, t.loader.next_batch) == (1, 2)
        ends.append(load_checkpoint(trainer.run().last))
    assert bits_of(ends[0]) == bits_of(ends[1])


def test_rewind_stops_where_no_checkpoint_stays_finite_on_the_batch(squares_config):
    trainer = Trainer(squares_config(onBadStep="rewind", maxEpoch=2))
    spoil(trainer, (1, 1))
    with pytest.raises(BadStep, match="epoch 2, batch 2"):
        trainer.run()
    assert trainer.monitor.rewinds == 0


def test_rewind_gives_up_after_three(squares_config, said):
    trainer = Trainer(squares_config(onBadStep="rewind", maxEpoch=3))
    spoil(trainer, (1, 0), (1, 1), (1, 2), (2, 0))
    forgiving(trainer)
    with pytest.raises(BadStep, match="epoch 3, batch 1"):
        trainer.run()
    assert trainer.monitor.rewinds == 3 and "(rewind 3)" in said.text and "(rewind 4)" not in said.text


@pytest.mark.parametrize(("workers", "begun"), [(0, 0), (2, 0), (0, 2)])
def test_rewind_takes_the_checkpoint_before_where_the_last_is_damaged(squares_config, said, workers, begun):
    if begun:  # goes back further than this start of the run
        Trainer(squares_config(maxEpoch=begun)).run()
    trainer = Trainer(squares_config(onBadStep="rewind", maxEpoch=3, dcore=workers))
    spoil(trainer, (2, 1))
    forgiving(trainer)
    rewind = trainer._rewind

    def damaged(bad):
        trainer.folder.last.write_bytes(trainer.folder.last.read_bytes()[:-5])
        return rewind(bad)

    trainer._rewind = damaged
    trainer.run()
    assert "checksum is missing" in said.text and "back to " + str(trainer.folder.previous) in said.text
    assert load_checkpoint(trainer.folder.last)["epoch"] == 3


@pytest.mark.parametrize("field", ["model", "ema", "optimizer"])
def test_a_checkpoint_that_is_not_finite_is_never_written(squares_config, field):
    trainer = Trainer(squares_config(maxEpoch=1))
    trainer.run()
    before = {path: path.read_bytes() for path in (trainer.folder.last, trainer.folder.previous, trainer.folder.best)}
    checkpoint = trainer.checkpoint()
    tensors = checkpoint["optimizer"]["state"][3] if field == "optimizer" else checkpoint[field]
    name = "momentum_buffer" if field == "optimizer" else "neck.l12.cv1.conv.weight"
    tensors[name].view(-1)[2] = math.inf
    with pytest.raises(FloatingPointError, match=rf"last.pth: is not written, because {field}.*{name} is not finite"):
        trainer.folder.save(checkpoint, is_best=True)
    assert before == {path: path.read_bytes() for path in before}


def test_weights_that_broke_in_an_epoch_are_named_before_it_is_saved(squares_config):
    trainer = Trainer(squares_config(maxEpoch=2))
    validate = trainer.validate

    def broken(epoch, row):
        validate(epoch, row)
        if epoch == 1:
            trainer.model.head.cls[0][2].weight.data.view(-1)[0] = math.nan

    trainer.validate = broken
    with pytest.raises(BadStep, match=r"^weights\.head\.cls\.0\.2\.weight is not finite; epoch 2, batch 3"):
        trainer.run()
    assert load_checkpoint(trainer.folder.last)["epoch"] == 1
    assert "weight" in (trainer.folder.health / "bad-step-2-3.txt").read_text()


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_best_is_never_taken_from_a_figure_that_is_not_finite(squares_config, monkeypatch, said, figure):
    from eval.evaluator import EvalResult

    trainer = Trainer(squares_config(maxEpoch=2))
    monkeypatch.setattr(EvalResult, "map50_95", figure)
    folder = trainer.run()
    assert not folder.best.exists() and trainer.best is None and f"mAP50-95 is {figure}" in said.text
    assert [json.loads(line)["map50_95"] for line in folder.metrics.read_text().splitlines()] == [None, None]


@pytest.mark.usefixtures("no_checkpoints")
def test_a_frozen_figure_is_said(squares_config, monkeypatch, said):
    from eval.evaluator import EvalResult

    monkeypatch.setattr(EvalResult, "map50_95", 0.25)
    Trainer(squares_config(maxEpoch=3)).run()
    assert said.text.count("bit for bit (0.25)") == 1


@pytest.mark.usefixtures("no_checkpoints")
def test_spikes_are_counted_said_and_written(squares_config, said):
    trainer = Trainer(squares_config(maxEpoch=10, epochValidation=False))
    train_step = trainer.train_step

    def spiking(batch):
        values = train_step(batch)
        is_spike = trainer.stepper.guard.epoch == 8 and "cls" in values
        return {**values, "cls": values["cls"] * 1e4} if is_spike else values

    trainer.train_step = spiking
    folder = trainer.run()
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert rows[8]["spikes"] == 3 and rows[8]["worst_spike"]["name"] == "cls" and rows[8]["worst_spike"]["times"] > 1e3
    assert "spike in epoch 9, batch 1: cls" in said.text


def test_small_spikes_are_counted_and_three_large_ones_of_an_epoch_are_said(tmp_path, said):
    watch = Monitor(tmp_path, ["square"])
    for step in range(30):
        watch.add_numbers({"loss": 1.0}, 0, step)
    for step in range(5):
        watch.add_numbers({"loss": 9.0}, 1, step)
    assert watch.spikes.count == 5 and "spike" not in said.text
    assert watch.last_spike.startswith("spike in epoch 2, batch 4: loss 9 is 9 times")
    for epoch in (2, 3):
        for step in range(5):
            watch.add_numbers({"loss": 11.0}, epoch, step)
    assert said.text.count("spike in epoch 3") == said.text.count("spike in epoch 4") == 3


@pytest.mark.usefixtures("no_checkpoints")
def test_first_batches_are_told_when_one_of_them_is_bad(squares_config, said):
    trainer = Trainer(squares_config(maxEpoch=1))
    spoil(trainer, (0, 1))
    with pytest.raises(BadStep):
        trainer.run()
    assert said.text.count("first batch: 3 images") == 1
    assert (trainer.folder.health / "first-batches.json").is_file()


def test_first_batches_are_told_once(squares_config, said):
    folder = Trainer(squares_config(maxEpoch=1)).run()
    told = json.loads((folder.health / "first-batches.json").read_text())
    assert told["batches"] == 3 and told["images"] == 8 and set(told["classes"]) <= {"red", "blue"}
    assert told["positives_a_box"] > 0 and "first 3 batches: 8 images" in said.text
    said.clear()
    Trainer(squares_config(maxEpoch=2)).run()
    assert "first 3 batches" not in said.text


def test_the_first_step_is_traced_when_asked(squares_config, said):
    plain = Trainer(squares_config("plain", maxEpoch=1)).run()
    traced = Trainer(squares_config("traced", maxEpoch=1), on_first_batch=report_first_step).run()
    page = (traced.health / "first-step.txt").read_text()
    assert "backbone" in page and page in said.text
    assert bits_of(load_checkpoint(plain.last)) == bits_of(load_checkpoint(traced.last))


@pytest.mark.usefixtures("no_checkpoints")
def test_curves_are_drawn_now_and_then_and_at_the_end(squares_config, monkeypatch):
    drawn = []
    monkeypatch.setattr("train.trainer.plot_curves", lambda history, *_: drawn.append(len(history)))
    Trainer(squares_config("quick", maxEpoch=4)).run()
    assert drawn == [1, 4]
    drawn.clear()
    monkeypatch.setattr("train.trainer.PLOT_INTERVAL", 0.0)
    Trainer(squares_config("slow", maxEpoch=3)).run()
    assert drawn == [1, 2, 3]


@pytest.mark.usefixtures("no_checkpoints")
def test_curves_are_drawn_where_a_run_stops(squares_config, monkeypatch):
    drawn = []
    monkeypatch.setattr("train.trainer.plot_curves", lambda history, *_: drawn.append(len(history)))
    trainer = Trainer(squares_config(maxEpoch=4))
    spoil(trainer, (2, 0))
    with pytest.raises(BadStep):
        trainer.run()
    assert drawn == [1, 2]


def test_the_late_path_trains_as_the_other_one(squares_config, monkeypatch):
    """Fused on both sides: only when the host hears of a step differs."""
    from train import opt
    from train.deferred import DeferredGuard
    from train.guard import Guard

    class Sgd(torch.optim.SGD):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "fused": True})

    monkeypatch.setattr(opt.torch.optim, "SGD", Sgd)
    ends = {}
    for name in ("at once", "late"):
        monkeypatch.setattr("train.state.Guard", DeferredGuard if name == "late" else Guard)
        trainer = Trainer(squares_config(name, maxEpoch=3, useEMA=True, onBadStep="skip", nominalBatch=6))
        spoil(trainer, (1, 0))
        ends[name] = trainer.run()
    one, other = (load_checkpoint(folder.last) for folder in ends.values())
    assert one["ema_steps"] == other["ema_steps"]
    rows = [[json.loads(line) for line in folder.metrics.read_text().splitlines()] for folder in ends.values()]
    assert [row["bad_steps"] for row in rows[0]] == [row["bad_steps"] for row in rows[1]] == [0, 1, 0]
    assert rows[0][0]["loss"] == rows[1][0]["loss"] and rows[0][0]["grad_norm"] == rows[1][0]["grad_norm"]


def test_a_folder_knows_where_health_is_kept(tmp_path):
    assert RunFolder(tmp_path).health == tmp_path / "health"
