"""Epochs that fit into the minutes a recipe allows: planned again after each epoch, with an injected clock."""

import json
import os
import signal
from types import SimpleNamespace

import pytest

from benchmarks.chaos import is_same
from runs.checkpoint import load_checkpoint, save_checkpoint
from runs.interrupt import Interrupted
from train import budget
from train.budget import EpochPlan, PlanSettings, earlier_plan, planned_end, verdict
from train.ema import ramp_for
from train.guard import BadStep
from train.trainer import Trainer


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(budget, "clock", lambda: now.seconds)
    return now


def limits(most=30, minutes=5.0, fewest=1, first=0):
    return PlanSettings(first, most, minutes, fewest)


def follow(plan, clock, seconds_of, epoch=0):
    """Train to the end of the plan; the positions of the epochs."""
    positions = []
    while epoch < plan.end:
        positions.append(plan.position)
        clock.seconds += seconds_of(epoch)
        plan.add_time()
        plan.advance(epoch)
        epoch += 1
    return positions


@pytest.mark.parametrize(
    ("fields", "seconds", "num"),
    [
        ({}, lambda epoch: 9.0, 30),
        ({}, lambda epoch: 20.0, 15),
        ({}, lambda epoch: 40.0 if epoch == 0 else 20.0, 14),  # the first one does not count for the others
        ({}, lambda epoch: 10.0 if epoch < 10 else 30.0, 17),  # slower
        ({}, lambda epoch: 60.0 if epoch < 2 else 6.0, 30),  # faster: 2 and 30 of 6 seconds, but at most 30
        ({"fewest": 15}, lambda epoch: 38.0, 15),
        ({"fewest": 100, "most": 20}, lambda epoch: 38.0, 20),
        ({"first": 30, "most": 60}, lambda epoch: 20.0, 15),
        ({"minutes": 0.001}, lambda epoch: 20.0, 1),
        ({"minutes": None}, lambda epoch: 1000.0, 30),
        ({"minutes": 1e300}, lambda epoch: 0.0, 30),
    ],
)
def test_the_number_of_epochs(clock, fields, seconds, num):
    plan = EpochPlan(limits(**fields))
    first, most = plan.limits.start_epoch, plan.limits.max_epoch
    positions = follow(plan, clock, seconds, first)
    assert len(positions) == num
    assert positions[0] == first and positions == sorted(set(positions)) and positions[-1] < most
    if num == most - first and seconds(0) != 60.0:
        assert positions == list(range(first, most)), "exactly the epochs"
    elif num > 1:
        assert plan.position == pytest.approx(most), "the last epoch takes the last share"
    if plan.limits.minutes and num > 1 and plan.limits.min_epochs == 1:
        assert plan.used <= 1.1 * 300


def test_the_first_epoch_counts_until_there_is_another_one(clock):
    plan, found = EpochPlan(limits()), []
    for epoch, seconds in enumerate((40.0, 20.0, 22.0, 90.0)):
        clock.seconds += seconds
        plan.add_time()
        plan.advance(epoch)
        found.append(plan.seconds_per_epoch)
    assert found == [40.0, 20.0, 21.0, 22.0]


@pytest.mark.parametrize(("slow", "num", "position"), [(35.0, 15, 30.0), (60.0, 14, None)])
def test_one_more_epoch_completes_the_schedule_if_it_exceeds_the_budget_little(clock, slow, num, position):
    """The epoch before the last one is slow: 5 seconds are left for an epoch of 20, or it is late by 20."""
    plan = EpochPlan(limits())
    assert len(follow(plan, clock, lambda epoch: slow if epoch == 13 else 20.0)) == num
    assert plan.position == pytest.approx(position) if position else plan.position < 29


def test_positions_are_spread_evenly_over_what_is_left(clock):
    """Compared with a slow computation: after each epoch, the whole rest is divided anew."""
    speeds = [20.0, 10.0, 10.0, 10.0, 35.0, 30.0, 30.0, 12.0, 12.0, 12.0] + [15.0] * 20
    plan, epoch, ends = EpochPlan(limits()), 0, []
    expected = 0.0
    while epoch < plan.end:
        assert plan.position == pytest.approx(expected, abs=1e-6)
        rest = [expected + number * (30 - expected) / (plan.end - epoch) for number in range(plan.end - epoch + 1)]
        assert rest[-1] == pytest.approx(30)
        expected = rest[1]
        clock.seconds += speeds[epoch]
        plan.add_time()
        plan.advance(epoch)
        epoch += 1
        ends.append(plan.end)
    assert len(set(ends)) > 3 and plan.position == pytest.approx(30)


def test_validation_in_some_epochs_does_not_move_the_plan(clock, caplog):
    """Every second epoch takes twice as long."""
    caplog.set_level("INFO", "mars")
    positions = follow(EpochPlan(limits(), interval=2), clock, lambda epoch: 10.0 * (1 + epoch % 2))
    assert len(positions) == 20
    assert len(caplog.messages) <= 3


def test_what_the_log_says(clock, caplog):
    caplog.set_level("INFO", "mars")
    follow(EpochPlan(limits()), clock, lambda epoch: 20.0)
    text = "trainMinutes=5: about 15 epochs instead of 30 (20 s each); --set trainMinutes=none trains all of them"
    assert caplog.messages == [text]
    caplog.clear()
    # Later changes show in the line of each epoch; only the full number has a line again.
    follow(EpochPlan(limits()), clock, lambda epoch: 20.0 if epoch < 3 else 25.0)
    assert caplog.messages == [text]
    caplog.clear()
    follow(EpochPlan(limits()), clock, lambda epoch: 20.0 if epoch < 3 else 5.0)
    assert caplog.messages == [text, "trainMinutes=5: all 30 epochs (5.0 s each)"]
    caplog.clear()
    follow(EpochPlan(limits(fewest=15)), clock, lambda epoch: 38.0)
    text = "trainMinutes=5 allows 8 epochs, but trainMinEpochs=15: training takes about 9.5 minutes"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [text]
    assert len(caplog.messages) == 2


def test_a_restored_plan_is_the_same_and_ends_the_same(clock):
    plan = EpochPlan(limits())
    for epoch in range(4):
        clock.seconds += 21.0
        plan.add_time()
        plan.advance(epoch)
    clock.seconds += 5.0
    plan.add_time()
    again = EpochPlan(limits())
    clock.seconds += 1e6  # the time between two starts does not count
    again.load_state_dict(plan.state_dict(), 4, is_inside=True)
    assert again.state_dict() == plan.state_dict() and again.in_epoch == 5.0
    found = follow(again, clock, lambda epoch: 21.0, 4)
    plan.restart_clock()
    assert follow(plan, clock, lambda epoch: 21.0, 4) == found and len(found) > 5
    finished = EpochPlan(limits())
    finished.load_state_dict(again.state_dict(), again.end)
    assert finished.end == again.end, "a run that has ended stays ended"


@pytest.mark.parametrize(
    ("changed", "end", "position"),
    [
        ({"minutes": 10.0}, 30, 15.0),
        ({"minutes": 8.0}, 24, 18.75),
        ({"minutes": None}, 30, 15),
        ({"minutes": 5.5}, 17, 26.470588235),
        ({"minutes": 1.0}, 15, 30.0),
        ({"fewest": 20}, 20, 22.5),
        ({"most": 10}, 15, 10.0),
    ],
)
def test_changed_settings_plan_again_with_the_time_used_so_far(clock, changed, end, position):
    plan = EpochPlan(limits())
    follow(plan, clock, lambda epoch: 20.0)
    again = EpochPlan(limits(**changed))
    again.load_state_dict(plan.state_dict(), 15)
    assert (again.end, again.position) == (end, pytest.approx(position))
    if changed.get("minutes", 5.0) is None:
        assert isinstance(again.position, int)


def old_checkpoint(epoch, end=14, minutes=5.0, **more):
    config = {"maxEpoch": end, "trainMinutes": minutes, "trainMinEpochs": 1}
    history = [{"epoch": number, "seconds": 20.0} for number in range(epoch)]
    return {"epoch": epoch, "config": json.dumps(config), "history": json.dumps(history), "progress": None, **more}


def test_a_checkpoint_of_an_earlier_version_goes_on_as_it_was_planned(clock):
    plan = EpochPlan(limits())
    plan.load_state_dict(earlier_plan(old_checkpoint(7), plan.limits), 7)
    assert (plan.end, plan.position, plan.used) == (14, 15.0, 140.0)
    plan.load_state_dict(earlier_plan(old_checkpoint(14), plan.limits), 14)
    assert plan.end == 14 == planned_end(old_checkpoint(14)), "finished"
    longer = EpochPlan(limits(minutes=None))
    longer.load_state_dict(earlier_plan(old_checkpoint(14), longer.limits), 14)
    assert (longer.end, longer.position) == (30, 14)
    plain = EpochPlan(limits(minutes=None))
    plain.load_state_dict(earlier_plan(old_checkpoint(7, 30, None), plain.limits), 7)
    assert (plain.end, plain.position) == (30, 7)


@pytest.mark.parametrize(
    ("trained", "planned", "words"),
    [
        (30, 30, None),
        (40, 30, None),
        (29, 30, "trained 29 of 30 epochs; a complete training gives a better result"),
        (15, 30, "trained 15 of 30 epochs; a complete training gives a better result"),
        (14, 30, "trained 14 of 30 epochs; this is not a meaningful result"),
        (1, 2, "trained 1 of 2 epochs; a complete training gives a better result"),
    ],
)
def test_what_a_training_is_worth_that_was_cut_short(trained, planned, words):
    assert verdict(trained, planned) == words


# Trainings whose clock the steps move

FIELDS = {
    "batchSize": 4, "warmupEpochs": 0, "schedulerType": "linear", "useEMA": True, "maxEpoch": 12, "trainMinutes": 1.0,
    "trainMinEpochs": 1, "augmentation": "modern", "epochValidation": False,
}  # fmt: skip


def timed(trainer, clock, seconds_of=lambda epoch: 2.0 if epoch < 4 else 6.0):
    """Each of the two batches takes seconds of the injected clock; three times as many after four epochs."""
    train_step, trainer.places = trainer.train_step, []

    def step(batch):
        clock.seconds += seconds_of(trainer.epoch)
        trainer.places.append((trainer.epoch, trainer.plan.position, trainer.rate, trainer.loader.sampler.has_mosaic))
        return train_step(batch)

    trainer.train_step = step
    return trainer


def test_a_machine_that_becomes_slower_trains_fewer_epochs_of_the_same_schedule(squares_config, clock):
    trainer = timed(Trainer(squares_config(**FIELDS)), clock)
    folder = trainer.run()
    (_, last, rate, _), checkpoint = trainer.places[-1], load_checkpoint(folder.last)
    assert trainer.epoch == checkpoint["epoch"] == planned_end(checkpoint) == 8
    assert trainer.plan.position == 12 and trainer.mcfg.maxEpoch == 12
    assert rate == trainer.schedule.rate(last) and 12 - last == pytest.approx(last - trainer.places[-3][1])
    closed = {epoch for epoch, _, _, has_mosaic in trainer.places if not has_mosaic}
    assert closed == {epoch for epoch, position, _, _ in trainer.places if position >= 8} == {7}
    assert trainer.ema is not None and trainer.ema.ramp == ramp_for(round(8 * 2 / trainer.warm_up.accumulate))
    before = folder.last.read_bytes()
    timed(Trainer(squares_config(**FIELDS)), clock).run()
    assert folder.last.read_bytes() == before, "it stays ended"
    assert timed(Trainer(squares_config(**{**FIELDS, "trainMinutes": None})), clock).run()
    assert load_checkpoint(folder.last)["epoch"] == 12


@pytest.mark.parametrize("stop", [3, 10, 11, 12])
def test_an_interrupted_run_follows_the_same_plan(squares_config, clock, stop):
    whole = timed(Trainer(squares_config("whole", **FIELDS)), clock).run()
    trainer = timed(Trainer(squares_config("parts", **FIELDS)), clock)
    step = trainer.train_step

    def stop_at(batch):
        if len(trainer.places) + 1 == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    trainer.train_step = stop_at
    with pytest.raises(Interrupted):
        trainer.run()
    clock.seconds += 1e5
    parts = timed(Trainer(squares_config("parts", **FIELDS)), clock).run()
    expected, found = load_checkpoint(whole.last), load_checkpoint(parts.last)
    for key in ("model", "ema", "optimizer", "epoch", "plan"):
        assert is_same(expected[key], found[key]), key


def test_a_rewind_does_not_give_time_back(squares_config, clock, monkeypatch):
    monkeypatch.setattr("train.step.Stepper.stays_finite_on", lambda self, batch: True)  # the fault is not in the batch
    trainer = timed(Trainer(squares_config(onBadStep="rewind", **FIELDS)), clock)
    step, trainer.bad = trainer.train_step, []

    def fail_once(batch):
        result = step(batch)
        if len(trainer.places) == 8 and not trainer.bad:
            trainer.bad.append(trainer.plan.used)
            batch.boxes[:] = float("nan")
            return step(batch)
        return result

    trainer.train_step = fail_once
    used = []
    rewind = trainer._rewind

    def watched(bad):
        position, end = load_checkpoint(trainer.folder.last)["plan"]["position"], trainer.plan.end
        done = rewind(bad)
        used.append((trainer.plan.used, trainer.plan.position == position, trainer.plan.end == end))
        return done

    trainer._rewind = watched
    try:
        trainer.run()
    except BadStep:
        pytest.fail("the rewind did not help")
    assert used and used[0][0] >= trainer.bad[0] + 4.0 and used[0][1:] == (True, True)


def test_a_run_of_an_earlier_version_goes_on(squares_config, clock):
    """Its config has the lowered maxEpoch, and its checkpoint no plan."""
    trainer = timed(Trainer(squares_config(**{**FIELDS, "maxEpoch": 4})), clock)
    folder = trainer.run()
    content = dict(load_checkpoint(folder.last))
    del content["plan"]
    save_checkpoint(folder.last, content)
    again = timed(Trainer(squares_config(**FIELDS)), clock)
    again.run()
    assert again.epoch == 4 and not again.places, "finished as it was planned"
    timed(Trainer(squares_config(**{**FIELDS, "trainMinutes": None})), clock).run()
    assert load_checkpoint(folder.last)["epoch"] == 12


def test_a_run_of_an_earlier_version_goes_on_inside_an_epoch(squares_config, clock):
    trainer = timed(Trainer(squares_config(**{**FIELDS, "maxEpoch": 4})), clock)
    step = trainer.train_step

    def stop_in_the_second_epoch(batch):
        if len(trainer.places) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    trainer.train_step = stop_in_the_second_epoch
    with pytest.raises(Interrupted):
        trainer.run()
    content = dict(load_checkpoint(trainer.folder.last))
    assert (content["epoch"], content["progress"]["batches"]) == (1, 1)
    del content["plan"]
    save_checkpoint(trainer.folder.last, content)
    again = timed(Trainer(squares_config(**FIELDS)), clock)
    again.run()
    # The schedule goes on from its place; after the epoch there is time for more than the four epochs.
    assert [place[:2] for place in again.places[:3]] == [(1, 3.0), (2, 6.0), (2, 6.0)]
    assert again.epoch > 4 and again.plan.position == 12 and again.plan.used <= 66


def test_the_last_epoch_of_a_shortened_run_is_validated(squares_config, clock):
    fields = {**FIELDS, "epochValidation": True, "validationInterval": 5}
    trainer = timed(Trainer(squares_config(**fields)), clock)
    trainer.run()
    validated = [row["epoch"] for row in trainer.history if row["map50_95"] is not None]
    assert trainer.epoch < 12 and trainer.epoch % 5
    assert validated == [*range(4, trainer.epoch - 1, 5), trainer.epoch - 1]
