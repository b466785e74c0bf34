"""How far an epoch has come: what its averages are made of, kept in a checkpoint that is saved inside the epoch."""

import time
from typing import Any

from torch import Tensor

from train.step import Means


class EpochProgress:
    """Batches and images seen, seconds spent, sums of the losses; seconds go on counting from the moment it is made."""

    def __init__(self, state: dict[str, Any] | None = None):
        self.means = Means()
        self.batches, self.images, self._seconds_before = 0, 0, 0.0
        self._started = time.perf_counter()
        if state is not None:
            self.batches, self.images, self._seconds_before = state["batches"], state["images"], state["seconds"]
            self.means.sums, self.means.counts = dict(state["sums"]), dict(state["counts"])

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
        }
