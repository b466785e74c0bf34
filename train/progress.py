"""How far an epoch has come: what its averages are made of, kept in a checkpoint that is saved inside the epoch."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from tqdm import tqdm

from train.step import Means


class EpochProgress:
    """Batches and images seen, seconds spent, sums of the losses; seconds go on counting from the moment it is made."""

    def __init__(self, state: dict[str, Any] | None = None):
        self.means = Means()
        self.batches, self.images, self._seconds_before = 0, 0, 0.0
        self._started = time.perf_counter()
        self.bad_steps = self.odd_batches = 0  # left out; with boxes or images that cannot be right
        if state is not None:
            self.batches, self.images, self._seconds_before = state["batches"], state["images"], state["seconds"]
            self.means.sums, self.means.counts = dict(state["sums"]), dict(state["counts"])
            self.bad_steps = state.get("bad_steps", 0)  # earlier versions had none
            self.odd_batches = state.get("odd_batches", 0)

    @property
    def seconds(self) -> float:
        """Spent on this epoch, in earlier starts of the run, too."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds

    def add(self, values: dict[str, Tensor], num_images: int) -> None:
        """Take in the images of a batch with the values of its loss; the position, `batches`, is the loader's."""
        self.means.add(values)
        self.images += num_images

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors; `EpochProgress(state)` takes it back."""
        return {
            "batches": self.batches,
            "images": self.images,
            "seconds": self.seconds,
            "sums": self.means.sums,
            "counts": self.means.counts,
            "bad_steps": self.bad_steps,
            "odd_batches": self.odd_batches,
        }


def bar_text(progress: EpochProgress, parts: Sequence[str]) -> dict[str, str]:
    """What the progress bar shows beside how far it is."""
    text = {name: f"{value:.3f}" for name, value in progress.means.values(tuple(parts)).items()}
    left_out = {"left out": str(progress.bad_steps)} if progress.bad_steps else {}
    return {**text, **left_out, "img/s": f"{progress.images_per_s:.0f}"}


def progress_bar(title: str, num_batches: int, quiet: bool) -> tqdm:
    """Of an epoch; none where the output is a file: the line of the epoch is written there."""
    return tqdm(total=num_batches, desc=title, leave=False, disable=True if quiet else None, dynamic_ncols=True)


def epoch_line(row: Mapping[str, Any], parts: Sequence[str], num_epochs: int, seconds_left: float) -> str:
    """An epoch in one line of the log."""
    told = " ".join(f"{name} {row[name]:.3f}" for name in parts if name in row)
    figures = "" if row["map50"] is None else f" | mAP50 {row['map50']:.3f} mAP50-95 {row['map50_95']:.3f}"
    marks = (" best" if row["is_best"] else "") + (" frozen" if row["frozen"] else "")
    left_out = f" | {row['bad_steps']} bad steps left out" if row.get("bad_steps") else ""
    return (
        f"epoch {row['epoch'] + 1}/{num_epochs} | {told} | lr {row['lr']:.2e}{figures}{marks}{left_out} | "
        f"{row['images_per_s']:.0f} images/s, {_clock(seconds_left)} left"
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
