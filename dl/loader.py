"""Samples -> padded batches, the same for any number of workers and after any restart."""

import logging
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from config.errors import UserError
from config.mconfig import ModelConfig
from dl.annotations import Annotation
from dl.augment import AugmentRanges
from dl.check import check_data
from dl.dataset import ORDER_STREAM, DetectionDataset, random_stream, select_classes
from dl.discover import locate
from ops.batch import Batch, Sample
from ops.device import pick_device, usable_cores

log = logging.getLogger("mars")

Key = tuple[int, int]  # epoch, index


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad to the most boxes on one image; contiguous uint8 images (B, 3, H, W). Raises `ValueError` for no samples."""
    if not samples:
        raise ValueError("a batch needs at least one sample")
    most = max(len(sample.labels) for sample in samples)
    images = np.empty((len(samples), 3, *samples[0].image.shape[:2]), dtype=np.uint8)
    boxes = np.zeros((len(samples), most, 4), dtype=np.float32)
    labels = np.zeros((len(samples), most), dtype=np.int64)
    valid = np.zeros((len(samples), most), dtype=bool)
    for row, sample in enumerate(samples):
        cv2.split(sample.image, list(images[row]))  # writes the planes in place
        count = len(sample.labels)
        boxes[row, :count], labels[row, :count], valid[row, :count] = sample.boxes, sample.labels, True
    tensors = [torch.from_numpy(array) for array in (images, boxes, labels, valid)]
    ids, letterboxes = tuple(sample.image_id for sample in samples), tuple(sample.letterbox for sample in samples)
    return Batch(*tensors, image_ids=ids, letterboxes=letterboxes)


class EpochSampler(Sampler[list[Key]]):
    """Batches of (epoch, index) keys, so that workers that live on need no word about the epoch.

    `shuffle_seed` None: in order. The last batch may be short; every index occurs once an epoch.
    """

    def __init__(self, num_samples: int, batch_size: int, shuffle_seed: int | None = None) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        order = list(range(self.num_samples))
        if self.shuffle_seed is not None:
            order = random_stream(ORDER_STREAM, self.shuffle_seed, self.epoch).permutation(self.num_samples).tolist()
        for start in range(0, self.num_samples, self.batch_size):
            yield [(self.epoch, index) for index in order[start : start + self.batch_size]]


class BatchLoader:
    """Iterates over the batches of one epoch; `set_epoch` before each epoch of training."""

    def __init__(
        self,
        dataset: DetectionDataset,
        batch_size: int,
        shuffle_seed: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.pin_memory = pin_memory
        self.sampler = EpochSampler(len(dataset), batch_size, shuffle_seed)
        self.num_workers = min(num_workers, len(self.sampler))  # a worker without a batch would only cost its start
        self._loader = self._new_loader()

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Order and augmentation of the next iteration."""
        self.sampler.epoch = epoch

    def close(self) -> None:
        """End the workers; a later iteration starts new ones.

        Left to the garbage collector, e.g. because an exception's traceback holds the loader, they may take ten
        seconds to go: their queues can be gone before the word to stop has passed.
        """
        self._loader = self._new_loader()

    def __iter__(self) -> Iterator[Batch]:
        """Raises `UserError` that names the file when a worker met an image it could not read."""
        complaint = yield from self._batches()
        if complaint:
            self.close()
            raise UserError(complaint)

    def _batches(self) -> Generator[Batch, None, str]:
        """Yields batches; returns what was wrong, or the empty string."""
        for batch in self._loader:
            if isinstance(batch, UserError):
                return str(batch)
            yield batch
        return ""

    def _new_loader(self) -> DataLoader:
        return DataLoader(
            _Batches(self.dataset),
            batch_sampler=self.sampler,
            collate_fn=_as_is,
            num_workers=self.num_workers,
            worker_init_fn=_one_thread,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else every epoch would draw a seed from the run's own random state
        )


class _Batches(Dataset[Batch | UserError]):
    """Whole batches; the user's mistakes travel as values, for torch would wrap them in a worker's traceback."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: list[Key]) -> Batch | UserError:
        try:
            return collate([self.dataset[key] for key in keys])
        except UserError as error:
            return UserError(str(error))


def _as_is(batch: Any) -> Any:
    return batch  # __getitems__ has collated it


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)  # workers are the parallelism, and OpenCV's threads do not survive a fork


def build_loader(
    mcfg: ModelConfig, split: str, annotations: list[Annotation] | None = None, train: bool | None = None
) -> BatchLoader:
    """The loader of one split. `annotations` None: the split is checked first. `train` None: it is trainSplitName.

    Training: trainSelectedClasses only, augmented, in an order drawn from (seed, epoch). Otherwise: all labels,
    letterboxed, in order. Raises `UserError` as `check_data` and `select_classes` do, and when there is no object to
    train on.
    """
    train = split == mcfg.trainSplitName if train is None else train
    if annotations is None:
        annotations = check_data(mcfg, [split]).splits[split]
    if train:
        annotations = _select(mcfg, split, annotations)
        _refuse_nothing_to_learn(mcfg, split, annotations)
    ranges = AugmentRanges() if train and mcfg.augmentation == "assignment" else None
    dataset = DetectionDataset(annotations, mcfg.inputShape, mcfg.seed, ranges)
    pin_memory = pick_device(mcfg.device, mcfg.cuda).type == "cuda"
    return BatchLoader(dataset, mcfg.batchSize, mcfg.seed if train else None, _num_workers(mcfg.dcore), pin_memory)


def _select(mcfg: ModelConfig, split: str, annotations: list[Annotation]) -> list[Annotation]:
    """Labels of trainSelectedClasses only; the log says which images that leaves without."""
    selected = mcfg.trainSelectedClasses
    if selected is None:
        return annotations
    class_list = mcfg.classList if isinstance(mcfg.classList, tuple) else locate(mcfg).class_list
    chosen = select_classes(annotations, class_list, selected, mcfg.unselectedImages)
    without = _num_labelled(annotations) - _num_labelled(chosen)
    fate = "are background" if mcfg.unselectedImages == "keep" else "are left out"
    log.info(
        "trainSelectedClasses=%s: of %d images of '%s', %d with other classes only %s (unselectedImages=%s)",
        ",".join(selected), len(annotations), split, without, fate, mcfg.unselectedImages,
    )  # fmt: skip
    return chosen


def _refuse_nothing_to_learn(mcfg: ModelConfig, split: str, annotations: list[Annotation]) -> None:
    if _num_labelled(annotations):
        return
    where = f"split '{split}' (annotations in {mcfg.annotationDir or mcfg.dataDir})"
    if mcfg.trainSelectedClasses:
        names = ",".join(mcfg.trainSelectedClasses)
        raise UserError(f"trainSelectedClasses={names}: {where} has no such object; select a class that it holds")
    raise UserError(f"{where} has no object to train on; train on one whose xml files have objects of the class list")


def _num_labelled(annotations: Sequence[Annotation]) -> int:
    return sum(len(annotation.labels) > 0 for annotation in annotations)


def _num_workers(dcore: int | None) -> int:
    if dcore is not None:
        return dcore
    return max(0, min(8, usable_cores() - 1))
