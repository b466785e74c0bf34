"""Spikes against a twin in numpy, and what must not be one."""

import json
import math

import numpy as np
import pytest

from train import monitor
from train.monitor import Spikes


def twin(values, window=100, warm_up=20, floor=0.02, relative=0.5):
    """Which values are spikes, by the formula as it is written in the field."""
    found, before = [], []
    for number, value in enumerate(values):
        if not math.isfinite(value) or value <= 0:
            continue
        log = math.log(value)
        if len(before) >= warm_up:
            last = np.array(before[-window:])
            middle = np.median(last)
            mad = max(float(np.median(np.abs(last - middle))), floor)
            if log > middle + 6 * 1.4826 * mad and value > (1 + relative) * math.exp(middle):
                found.append(number)
        before.append(log)
    return found


def spikes_of(values, spikes=None):
    spikes = spikes or Spikes()
    return [number for number, value in enumerate(values) if spikes.add({"loss": value}, number)]


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_formula(seed, spread):
    random = np.random.default_rng(seed)
    values = 5 * np.exp(random.normal(0, spread, 300) - np.arange(300) / 200)
    values[random.integers(30, 300, 8)] *= random.uniform(1.1, 30, 8)
    values[[40, 90]] = math.nan, math.inf
    values[70] = 0.0
    found = spikes_of(values.tolist())
    assert found == twin(values.tolist()) and (found or spread == 0.5)


def test_a_steady_loss_may_wobble_up_to_the_floor(monkeypatch):
    """Without a floor under the deviation, which is nothing here, any wobble would be a spike."""
    monkeypatch.setattr(monitor, "MAD_FLOOR", 0.1)
    limit = math.exp(6 * 1.4826 * 0.1)
    assert spikes_of([2.0] * 50 + [2 * limit * 0.99]) == []
    assert spikes_of([2.0] * 50 + [2 * limit * 1.01]) == [50]


def test_the_relative_floor():
    assert spikes_of([2.0] * 50 + [2.98]) == []
    assert spikes_of([2.0] * 50 + [3.02]) == [50]


def test_nothing_but_an_explosion_is_a_spike_during_the_warm_up():
    assert spikes_of([1.0] * 19 + [50.0]) == []
    assert spikes_of([1.0] * 20 + [50.0]) == [20]
    assert spikes_of([1.0, 1.0, 1.0, 150.0]) == [3]
    assert spikes_of([1.0, 1.0, 150.0]) == spikes_of([1e9]) == [], "what is usual is not known yet"


def test_a_part_that_is_next_to_nothing_is_measured_against_the_loss():
    """The box loss of a fresh network, whose boxes overlap an object now and then, is no spike when one does."""
    spikes = Spikes()
    for number in range(40):
        assert spikes.add({"loss": 4.0, "box": 1e-9, "grad_norm": 1e-9}, number) == []
    assert spikes.add({"loss": 4.0, "box": 0.58, "grad_norm": 1e-9}, 40) == [], "1.45 times a tenth of the loss"
    (found,) = spikes.add({"loss": 4.0, "box": 4.0, "grad_norm": 1e-9}, 41)
    assert found.name == "box" and found.times == pytest.approx(10)
    (found,) = spikes.add({"loss": 4.0, "box": 1e-9, "grad_norm": 1e-6}, 42)
    assert found.name == "grad_norm" and found.times == pytest.approx(1000), "which is no part of it"


def test_what_is_not_finite_or_zero_stays_out():
    """Else the median were NaN and nothing a spike, or every batch with boxes after one without."""
    assert spikes_of([1.0] * 30 + [math.nan, math.inf, -math.inf, 0.0, -1.0] + [1.0, 40.0]) == [36]
    assert spikes_of([0.0] * 50 + [1.0]) == []


def test_a_new_level_is_no_spike_for_long():
    found = spikes_of([1.0] * 100 + [3.0] * 100)
    assert found == list(range(100, 150)), "until half of the window is of it"


def test_each_value_has_its_own_window_and_a_step_counts_once():
    spikes = Spikes()
    for number in range(30):
        assert spikes.add({"loss": 1.0, "box": 100.0}, number) == []
    found = spikes.add({"loss": 10.0, "box": 2000.0, "cls": 5.0}, 30)
    assert [spike.name for spike in found] == ["box", "loss"]
    assert found[0].times == pytest.approx(20) and found[0].value == 2000 and found[0].batch == 30
    assert spikes.row() == {"spikes": 1, "worst_spike": {"name": "box", "times": 20.0, "batch": 30}}
    assert str(found[0]) == "batch 30: box 2000 is 20 times its recent median"
    spikes.add({"loss": 5.0}, 31)
    assert spikes.row()["spikes"] == 2 and spikes.row()["worst_spike"]["batch"] == 30
    spikes.start_epoch()
    assert spikes.row() == {"spikes": 0, "worst_spike": None}
    assert spikes.add({"loss": 5.0}, 0), "what is usual stays from epoch to epoch"


def test_a_value_that_explodes_beyond_all_bounds_has_a_factor():
    spikes = Spikes()
    for number in range(3):
        spikes.add({"loss": 1e-300}, number)
    assert math.isfinite(spikes.add({"loss": 1e300}, 3)[0].times)


@pytest.mark.parametrize("cut", [0, 1, 25, 130])
def test_goes_on_from_what_was_saved(cut):
    values = [1 + 0.3 * math.sin(number) for number in range(160)]
    values[140] = 20.0
    whole, first, second = Spikes(), Spikes(), Spikes()
    for number, value in enumerate(values):
        whole.add({"loss": value}, number)
    for number, value in enumerate(values[:cut]):
        first.add({"loss": value}, number)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for number, value in enumerate(values[cut:], start=cut):
        second.add({"loss": value}, number)
    assert second.row() == whole.row() and whole.row()["spikes"] == 1
    assert second.state_dict() == whole.state_dict()
