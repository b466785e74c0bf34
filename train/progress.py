"""Progress of an epoch: running means, counts and time. A checkpoint inside the epoch saves it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

# The columns of metrics.jsonl besides the parts of the loss, which therefore cannot have these names.
COLUMNS = frozenset((
    "epoch", "lr", "frozen", "loss", "grad_norm", "bad_steps", "odd_batches", "spikes", "worst_spike", "weight_change",
    "top_score", "no_effect", "images_per_s", "seconds", "map50", "map50_95", "is_best",
))  # fmt: skip


class EpochProgress:
    """Batches, images and seconds of an epoch, and the means of its losses. The clock runs from the construction on."""

    def __init__(self, state: dict[str, Any] | None = None):
        self.sums: dict[str, Tensor] = {}  # of the loss values; they stay on the device until `means` is called
        self.counts: dict[str, int] = {}
        self.batches, self.images, self._seconds_before = 0, 0, 0.0
        self._started = time.perf_counter()
        self.bad_steps = self.odd_batches = 0  # skipped; with impossible boxes or images
        if state is not None:
            self.batches, self.images, self._seconds_before = state["batches"], state["images"], state["seconds"]
            self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
            self.bad_steps = state.get("bad_steps", 0)  # earlier versions had none
            self.odd_batches = state.get("odd_batches", 0)

    @property
    def seconds(self) -> float:
        """Time spent on this epoch, including earlier starts of the run."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds

    def add(self, values: dict[str, Tensor], num_images: int) -> None:
        """Add the number of images and the loss values of a batch. A name may be missing. The caller sets `batches`."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.images += num_images

    def means(self) -> dict[str, float]:
        return {name: (total / self.counts[name]).item() for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors for `EpochProgress(state)`."""
        return {
            "batches": self.batches,
            "images": self.images,
            "seconds": self.seconds,
            "sums": self.sums,
            "counts": self.counts,
            "bad_steps": self.bad_steps,
            "odd_batches": self.odd_batches,
        }


def bar_text(progress: EpochProgress, parts: Sequence[str]) -> dict[str, str]:
    """The figures that the progress bar shows."""
    means = progress.means()
    text = {name: f"{means[name]:.3f}" for name in parts if name in means}
    skipped = {"skipped": str(progress.bad_steps)} if progress.bad_steps else {}
    return {**text, **skipped, "img/s": f"{progress.images_per_s:.0f}"}


def epoch_line(row: Mapping[str, Any], parts: Sequence[str], num_epochs: int, seconds_left: float) -> str:
    """The line of an epoch in the log."""
    losses = " ".join(f"{name} {row[name]:.3f}" for name in parts if name in row)
    figures = "" if row["map50"] is None else f" | mAP50 {row['map50']:.3f} mAP50-95 {row['map50_95']:.3f}"
    marks = (" best" if row["is_best"] else "") + (" frozen" if row["frozen"] else "")
    skipped = f" | {row['bad_steps']} bad steps skipped" if row.get("bad_steps") else ""
    minutes, seconds = divmod(int(seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return (
        f"epoch {row['epoch'] + 1}/{num_epochs} | {losses} | lr {row['lr']:.2e}{figures}{marks}{skipped} | "
        f"{row['images_per_s']:.0f} images/s, {left} left"
    )
