"""How long a training is: the number of epochs that fit into `trainMinutes`, planned again after each epoch."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

from config.mconfig import ModelConfig
from runs.checkpoint import is_number

log = logging.getLogger("mars")

# Share of the planned epochs. With fewer the result is far from complete: docs/experiments.md, section 4.
_MEANINGFUL = 0.5
_MEDIAN_OF = 3  # measured epochs: an interruption of one epoch by another program does not change the plan
_MOST_OVER = 0.1  # of the budget, for one more epoch with which the schedule reaches its end
_SHORTEST = 1e-3  # seconds of an epoch, so that nothing is divided by 0
_DIGITS = 9  # of a position; without rounding, ten steps of 1.9 would not add up to 19


def clock() -> float:
    """The present time in seconds; only differences have a meaning. Tests replace this function."""
    return time.perf_counter()


class PlanSettings(NamedTuple):
    """The settings that a plan depends on."""

    start_epoch: int
    max_epoch: int  # a plan never has more epochs
    minutes: float | None  # None: no limit
    min_epochs: int  # trained however long they take

    @classmethod
    def of(cls, mcfg: ModelConfig) -> "PlanSettings":
        return cls(mcfg.startEpoch, mcfg.maxEpoch, mcfg.trainMinutes, mcfg.trainMinEpochs)


class EpochPlan:
    """The planned number of epochs, and the position of the current epoch in the schedule.

    `end`: the planned number of epochs, counted like maxEpoch. `position`: a number from startEpoch to maxEpoch, by
    which learning rate, mosaic and the weight of distillation follow the share of the training instead of the epoch.
    Without trainMinutes it is the epoch. With it, the positions that are left are spread evenly over the epochs that
    are left. `used`: seconds of all starts of this run, with validation and saving; `in_epoch`: those of them that
    belong to the epoch that is not finished.

    Only `advance`, between two epochs, depends on time. A checkpoint has the plan, so a resumed run follows the same
    plan. `interval`: epochs from one validation to the next.
    """

    def __init__(self, limits: PlanSettings, interval: int = 1):
        self.limits, self.interval = limits, interval
        self.end = limits.max_epoch
        self.position: float = limits.start_epoch
        self.used = self.in_epoch = 0.0
        self.measured: list[float] = []  # seconds of the last whole epochs
        self.num_measured = 0  # whole epochs of this run
        self._has_warned = False
        self.restart_clock()

    @property
    def seconds_per_epoch(self) -> float | None:
        """The expected time of an epoch; None before the first whole epoch."""
        return _seconds_per_epoch(self.measured, self.interval)

    def restart_clock(self) -> None:
        """What happened until now, such as reading the weights, is not part of the training."""
        self._read_at = clock()

    def add_time(self) -> None:
        """Count the time until now as used."""
        now = clock()
        self.used += now - self._read_at
        self.in_epoch += now - self._read_at
        self._read_at = now

    def is_last(self, epoch: int) -> bool:
        """Whether the training ends with this epoch, given the time that `add_time` counted so far."""
        return self._end_after(epoch, self._with_current_epoch()) <= epoch + 1

    def advance(self, epoch: int) -> None:
        """Plan the remaining epochs after `epoch` is trained, from the time that `add_time` counted."""
        before, num_before = self.end, self.end - epoch
        measured = self._with_current_epoch()
        self.end = self._end_after(epoch, measured)
        self.measured, self.num_measured, self.in_epoch = measured, self.num_measured + 1, 0.0
        if self.limits.minutes is None:
            self.position = epoch + 1
            return
        step = (self.limits.max_epoch - self.position) / num_before
        self.position = round(self.position + step, _DIGITS)
        self._report(epoch + 1, before)

    def state_dict(self) -> dict[str, Any]:
        """Plain values for `load_state_dict`."""
        return {
            "limits": self.limits._asdict(),
            "end": self.end,
            "position": self.position,
            "used": self.used,
            "in_epoch": self.in_epoch,
            "measured": list(self.measured),
            "num_measured": self.num_measured,
        }

    def load_state_dict(self, state: Mapping[str, Any], epoch: int, is_inside: bool = False) -> None:
        """Continue a plan; if the settings have changed since, plan again with the time used so far.

        `epoch`: the epoch that is trained next. `is_inside`: some of its batches are trained.
        """
        self.end, self.position = state["end"], state["position"]
        self.used, self.in_epoch = state["used"], state["in_epoch"]
        self.measured, self.num_measured = list(state["measured"]), state["num_measured"]
        self.restart_clock()
        if PlanSettings(*(state["limits"][name] for name in PlanSettings._fields)) != self.limits:
            self._plan_again(epoch, is_inside)

    def _plan_again(self, epoch: int, is_inside: bool) -> None:
        first, most, minutes, _ = self.limits
        if minutes is None:
            self.end, self.position = most, epoch
            return
        before, num_done = self.end, epoch - first
        remaining = self._remaining(epoch, self._fitting(self.measured, self.used - self.in_epoch, most - epoch))
        if is_inside and epoch < most:  # what is trained of this epoch must not be lost
            remaining = max(remaining, 1)
        self.end = epoch + remaining
        self.position = round(first + (most - first) * num_done / max(num_done + remaining, 1), _DIGITS)
        self._report(epoch, before)

    def _with_current_epoch(self) -> list[float]:
        # The first epoch of a run is slower, because nothing is cached yet. It counts until there is another one.
        earlier = self.measured if self.num_measured != 1 else []
        return [*earlier, self.in_epoch][-(self.interval + _MEDIAN_OF - 1) :]

    def _end_after(self, epoch: int, measured: Sequence[float]) -> int:
        if self.limits.minutes is None:
            return self.limits.max_epoch
        done = epoch + 1
        if done >= self.end:  # the schedule is complete, even if time is left
            return done
        fitting = self._fitting(measured, self.used, self.limits.max_epoch - done)
        return done + self._remaining(done, fitting or int(self._may_finish(measured)))

    def _fitting(self, measured: Sequence[float], used: float, most: int) -> int:
        """How many of `most` epochs fit into the time that is left; all of them before the first is measured."""
        seconds = _seconds_per_epoch(measured, self.interval)
        if seconds is None:
            return max(0, most)
        return max(0, round(min(self._seconds_left(used) / seconds, most)))

    def _may_finish(self, measured: Sequence[float]) -> bool:
        """Whether one more epoch, with which the schedule reaches its end, is little above the budget."""
        left = self._seconds_left(self.used)
        return (_seconds_per_epoch(measured, self.interval) or 0.0) - left <= _MOST_OVER * 60 * (
            self.limits.minutes or 0.0
        )

    def _seconds_left(self, used: float) -> float:
        return 60 * (self.limits.minutes or 0.0) - used

    def _remaining(self, epoch: int, fitting: int) -> int:
        """The epochs to train from `epoch` on: those that fit, but at least trainMinEpochs and at most maxEpoch."""
        fewest = self.limits.start_epoch + self.limits.min_epochs - epoch
        return max(0, min(max(fitting, fewest), self.limits.max_epoch - epoch))

    def _report(self, epoch: int, before: int) -> None:
        """Log that the run is shortened, or no longer, and once that trainMinEpochs needs more time.

        `epoch`: the next one. Smaller changes of the number show in the line of each epoch.
        """
        first, most, minutes, min_epochs = self.limits
        seconds = self.seconds_per_epoch
        if seconds is None:
            return
        if self.end != before and most in (self.end, before):
            shown = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"
            number = f"about {self.end - first} epochs instead of {most - first}"
            hint = "; --set trainMinutes=none trains all of them"
            if self.end == most:
                number, hint = f"all {most - first} epochs", ""
            log.info("trainMinutes=%g: %s (%s s each)%s", minutes, number, shown, hint)
        fitting = self._fitting(self.measured, self.used - self.in_epoch, most - epoch)
        if epoch + fitting < self.end <= first + min_epochs and not self._has_warned:
            self._has_warned = True
            log.warning(
                "trainMinutes=%g allows %d epochs, but trainMinEpochs=%d: training takes about %.1f minutes",
                minutes, epoch - first + fitting, min_epochs, (self.used + (self.end - epoch) * seconds) / 60,
            )  # fmt: skip


def _seconds_per_epoch(measured: Sequence[float], interval: int) -> float | None:
    """The median of the last means over `interval` epochs, one of which is validated; None without any epoch."""
    if not measured:
        return None
    width = min(interval, len(measured))
    means = [fmean(measured[stop - width : stop]) for stop in range(width, len(measured) + 1)]
    return max(_SHORTEST, median(means[-_MEDIAN_OF:]))


def earlier_plan(checkpoint: Mapping[str, Any], limits: PlanSettings) -> dict[str, Any]:
    """The plan of a checkpoint without one, for `EpochPlan.load_state_dict`.

    Earlier versions chose the number of epochs once, at the start, and wrote it to the config as maxEpoch; `limits` has
    the present one. The time used so far is that of the training steps.
    """
    config, first = json.loads(checkpoint["config"]), limits.start_epoch
    end, epoch = int(config["maxEpoch"]), int(checkpoint["epoch"])
    begun = limits._replace(minutes=config.get("trainMinutes"))
    if begun.minutes is None:
        begun = begun._replace(max_epoch=end)
    else:
        begun = begun._replace(min_epochs=config.get("trainMinEpochs", limits.min_epochs))
        end = min(end, limits.max_epoch)
    share = (begun.max_epoch - first) / max(end - first, 1)
    position = epoch if begun.minutes is None else round(first + (epoch - first) * share, _DIGITS)
    seconds = [row.get("seconds") for row in json.loads(checkpoint["history"])]
    seconds = [float(value) for value in seconds if is_number(value)]
    in_epoch = checkpoint["progress"]["seconds"] if checkpoint["progress"] else 0.0
    return {
        "limits": begun._asdict(),
        "end": end,
        "position": position,
        "used": sum(seconds) + in_epoch,
        "in_epoch": in_epoch,
        "measured": seconds[1:][-_MEDIAN_OF:] or seconds,
        "num_measured": len(seconds),
    }


def planned_end(checkpoint: Mapping[str, Any]) -> int:
    """The number of epochs, counted like maxEpoch, after which the run of a checkpoint is finished."""
    plan = checkpoint.get("plan")
    return int(json.loads(checkpoint["config"])["maxEpoch"] if plan is None else plan["end"])


def verdict(num_trained: int, num_planned: int) -> str | None:
    """A message about a training that trainMinutes has shortened; None if all epochs were trained."""
    if num_trained >= num_planned:
        return None
    is_meaningful = num_trained >= _MEANINGFUL * num_planned
    note = "a complete training gives a better result" if is_meaningful else "this is not a meaningful result"
    return f"trained {num_trained} of {num_planned} epochs; {note}"
