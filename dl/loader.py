"""Samples -> padded batches; the same batches for any number of worker processes and after any restart."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Sampler

from config.errors import UserError
from config.mconfig import ModelConfig
from dl.annotations import Annotation
from dl.augment import AugmentRanges
from dl.check import check_data
from dl.dataset import ORDER_STREAM, DetectionDataset, SampleKey, random_stream
from dl.image_cache import Images, build_images
from dl.label_selection import select_labels
from dl.mosaic import ModernRanges, first_epoch_without_mosaic
from dl.stages import build_transforms
from dl.workers import Workers, num_workers
from ops.anchors import STRIDES
from ops.batch import Batch, Sample
from ops.device import pick_device

log = logging.getLogger("mars")


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples: images (B, 3, H, W) uint8; boxes padded to the largest number of boxes on one image.

    Raises `ValueError` without samples.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    most = max(len(sample.labels) for sample in samples)
    images = np.empty((len(samples), 3, *samples[0].image.shape[:2]), dtype=np.uint8)
    boxes = np.zeros((len(samples), most, 4), dtype=np.float32)
    labels = np.zeros((len(samples), most), dtype=np.int64)
    valid = np.zeros((len(samples), most), dtype=bool)
    for row, sample in enumerate(samples):
        cv2.split(sample.image, list(images[row]))  # HWC to CHW: writes the three planes in place
        count = len(sample.labels)
        boxes[row, :count], labels[row, :count], valid[row, :count] = sample.boxes, sample.labels, True
    tensors = [torch.from_numpy(array) for array in (images, boxes, labels, valid)]
    masks = [sample.labelled for sample in samples if sample.labelled is not None]
    labelled = None  # the usual case: every class is labelled on every image
    if masks:
        every_class = np.ones_like(masks[0])
        rows = [every_class if sample.labelled is None else sample.labelled for sample in samples]
        labelled = torch.from_numpy(np.stack(rows))  # (B, C)
    ids, letterboxes = tuple(sample.image_id for sample in samples), tuple(sample.letterbox for sample in samples)
    return Batch(*tensors, image_ids=ids, letterboxes=letterboxes, labelled=labelled)


class EpochSampler(Sampler[list[SampleKey]]):
    """Batches of keys. They contain what depends on the epoch, so worker processes need no message about it.

    `shuffle_seed` None: in order. The last batch may be smaller; every index occurs once per epoch. A last batch of
    fewer than `min_batch` images is added to the batch before it.
    """

    def __init__(self, num_samples: int, batch_size: int, shuffle_seed: int | None = None, min_batch: int = 1) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.epoch = 0
        self.has_mosaic: bool | None = None
        num_left = num_samples % batch_size
        self._joins_last = num_samples > batch_size and 0 < num_left < min_batch

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size) - self._joins_last

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = list(range(self.num_samples))
        if self.shuffle_seed is not None:
            order = random_stream(ORDER_STREAM, self.shuffle_seed, self.epoch).permutation(self.num_samples).tolist()
        num_batches = len(self)
        for number in range(num_batches):
            stop = None if number == num_batches - 1 else (number + 1) * self.batch_size
            yield [SampleKey(self.epoch, index, self.has_mosaic) for index in order[number * self.batch_size : stop]]


class BatchLoader:
    """Iterates over the batches of one epoch. Call `set_epoch` before each training epoch.

    `skip_bad`: an image that has become unreadable is left out of its batch; in a mosaic its tile stays grey.
    `skipped` has these images (image id -> error message); each is logged once. A batch with fewer than `min_batch`
    remaining images is skipped.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        batch_size: int,
        shuffle_seed: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        skip_bad: bool = False,
        min_batch: int = 1,
    ) -> None:
        self.dataset = dataset
        self.pin_memory = pin_memory
        self.skip_bad = skip_bad
        self.skipped: dict[str, str] = {}
        self.sampler = EpochSampler(len(dataset), batch_size, shuffle_seed, min_batch)
        self.num_workers = min(num_workers, len(self.sampler))  # more workers than batches would have nothing to do
        image_bytes = (batch_size + min_batch - 1) * 3 * dataset.input_shape[0] * dataset.input_shape[1]
        source = _BatchSource(dataset, min_batch)
        self._workers = Workers(source, self.sampler, self.num_workers, pin_memory, image_bytes)
        self._first_batch = 0
        self.next_batch = 0  # number of the next batch of the epoch; skipped batches count, too

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int, first_batch: int = 0, position: float | None = None) -> None:
        """Set order and augmentation of the next iteration, which starts at batch number `first_batch`.

        `position`: of the epoch in the schedule, which decides about mosaic; None: the epoch itself.
        """
        ranges = self.dataset.ranges
        self.sampler.epoch, self.sampler.has_mosaic = epoch, None
        if position is not None and isinstance(ranges, ModernRanges):
            self.sampler.has_mosaic = ranges.has_mosaic(position)
        self._first_batch = self.next_batch = first_batch

    def close(self) -> None:
        """End the worker processes; a later iteration starts new ones."""
        self._workers.close()

    def __iter__(self) -> Iterator[Batch]:
        """Raises `UserError` with the file for an unreadable image, unless bad images are skipped.

        Also if all images of an epoch are unreadable, and if worker processes ended three times in an epoch (before
        that, new processes replace them).
        """
        num_batches = 0
        self.next_batch = self._first_batch
        for batch, errors in self._workers.items(self._first_batch):
            self.next_batch += 1
            if errors and not self.skip_bad:
                self.close()
                raise UserError(next(iter(errors.values())))
            for image_id, error in errors.items():
                if image_id not in self.skipped:
                    self.skipped[image_id] = error
                    log.warning("image skipped from now on (badFiles=skip): %s", error)
            if batch is not None:
                num_batches += 1
                yield batch
        if not num_batches and self.skipped and self._first_batch == 0:
            raise UserError(f"all images have become unreadable, e.g. {next(iter(self.skipped.values()))}")


class _LoadedBatch(NamedTuple):
    """A batch without its unreadable images, None if too few are left; and image id -> error message of those."""

    batch: Batch | None
    errors: dict[str, str]

    def pin_memory(self) -> "_LoadedBatch":
        return self._replace(batch=self.batch and self.batch.pin_memory())


class _BatchSource:
    """Makes whole batches. Errors are returned as values, because an exception would end the epoch."""

    def __init__(self, dataset: DetectionDataset, min_batch: int) -> None:
        self.dataset = dataset
        self.min_batch = min_batch

    def __getitems__(self, keys: list[SampleKey]) -> _LoadedBatch:
        errors: dict[str, str] = {}
        samples = [self.dataset.load(key, errors) for key in keys]
        readable = [sample for sample in samples if sample is not None]
        return _LoadedBatch(collate(readable) if len(readable) >= self.min_batch else None, errors)


def build_loader(
    mcfg: ModelConfig,
    split: str,
    annotations: list[Annotation] | None = None,
    train: bool | None = None,
    images: Images | None = None,
    replay_from: Sequence[Annotation] = (),
) -> BatchLoader:
    """The loader of one split. `annotations` None: the split is checked first. `train` None: if it is trainSplitName.

    Training: the labels selected by `select_labels` (`replay_from`: see there), augmented, in an order that depends on
    (seed, epoch). Otherwise: all labels, letterboxed, in order. `images` None: for training the cache of cacheImages;
    otherwise images are read from their files, because a cache does not help a single pass. To evaluate a split
    several times, pass the result of one `build_images` call.
    Raises `UserError` like `check_data` and `select_labels`, and for batches of one image if batch norm needs two.
    """
    train = split == mcfg.trainSplitName if train is None else train
    if annotations is None:
        annotations = check_data(mcfg, [split]).splits[split]
    if train:
        annotations = select_labels(mcfg, split, annotations, replay_from)
        images = build_images(mcfg, split, annotations) if images is None else images
    ranges, transforms = (_ranges(mcfg), mcfg.transforms) if train else (None, ())
    stages = build_transforms(transforms)
    dataset = DetectionDataset(annotations, mcfg.inputShape, mcfg.seed, ranges, images, stages)
    min_batch = _smallest_batch(mcfg, len(dataset)) if train else 1
    pin_memory = pick_device(mcfg.device, mcfg.cuda).type == "cuda"
    shuffle_seed, skip_bad = mcfg.seed if train else None, mcfg.badFiles == "skip"
    num_processes = num_workers(mcfg.dcore)
    return BatchLoader(dataset, mcfg.batchSize, shuffle_seed, num_processes, pin_memory, skip_bad, min_batch)


def _smallest_batch(mcfg: ModelConfig, num_images: int) -> int:
    """The minimum number of images in a training batch. Batch norm needs at least two values per channel.

    At 32 x 32 pixels the coarsest feature map has one value per image; at every other size it has more. Raises
    `UserError` if every batch would be too small.
    """
    height, width = mcfg.inputShape
    if height * width > max(STRIDES) ** 2:
        return 1
    if min(mcfg.batchSize, num_images) < 2:
        which = f"batchSize={mcfg.batchSize}" if mcfg.batchSize < 2 else f"one image in '{mcfg.trainSplitName}'"
        raise UserError(
            f"{which}: at inputShape={height},{width} the coarsest feature map has one pixel, but batch norm needs two "
            "values; set inputShape=64 or more, or use batches of two images or more"
        )
    return 2


def _ranges(mcfg: ModelConfig) -> AugmentRanges | ModernRanges | None:
    if mcfg.augmentation == "none":
        return None
    if mcfg.augmentation == "assignment":
        return AugmentRanges()
    mosaic_end = first_epoch_without_mosaic(mcfg.maxEpoch, mcfg.closeMosaic)
    if mcfg.mosaic:
        log.info("%s", _mosaic_text(mcfg, mosaic_end))
    return ModernRanges(
        mcfg.mosaic, mosaic_end, mcfg.scaleRange, mcfg.translate, mcfg.flip, *mcfg.hsv,
        mcfg.flipVertical, mcfg.rotate, mcfg.shear, mcfg.perspective,
    )  # fmt: skip


def _mosaic_text(mcfg: ModelConfig, mosaic_end: int) -> str:
    """The epochs with mosaic (counted from 1), and the reason for the epochs without it."""
    num_closed = mcfg.maxEpoch - mosaic_end
    if mosaic_end <= mcfg.startEpoch:
        num_epochs = mcfg.maxEpoch - mcfg.startEpoch
        return f"mosaic is off: the last {num_closed} epochs run without it, and this run has only {num_epochs}"
    first = mcfg.startEpoch + 1
    epochs = f"epoch {first}" if first == mosaic_end else f"epochs {first} to {mosaic_end}"
    text = f"mosaic in {epochs} of {mcfg.maxEpoch}"
    if num_closed:
        text += "; the last epoch runs without it" if num_closed == 1 else f"; the last {num_closed} run without it"
    if num_closed < mcfg.closeMosaic:
        text += f" (closeMosaic={mcfg.closeMosaic}, limited to a third of all epochs)"
    if num_closed and mcfg.trainMinutes is not None:
        text += "; the same share if trainMinutes leaves out epochs"
    return text
