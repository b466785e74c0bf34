"""Augmentations that a recipe lists: `mcfg.transforms = [Affine(rotate=10), BuiltIn(), MixUp(probability=0.1)]`.

A transform is an object of a small dataclass that turns a `Sample` into another one: `transform(sample, rng)`. It draws
all its random numbers from `rng`, which depends only on (seed, epoch, image), and returns an image of the same size.
With `uses_partners`, it is called with a third argument: a function that loads another image at random, in the same
stage, or None if that image is unreadable.
The text of the transform is part of the config, so its fields hold plain values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torchvision import tv_tensors
from torchvision.transforms import v2

from config.errors import UserError
from config.fields import nearest
from dl.mosaic import MOSAIC_GREY
from dl.warp import MIN_AREA, MIN_SIDE, Matrix, clip_boxes, large_enough, warp_boxes, warp_image, warp_matrix
from ops.batch import Sample
from ops.random_states import seeded

MOST_COVERED = 0.3  # an object is not pasted where it would cover a larger share of another object
PLACES = 10  # attempts to find a place for a pasted object

LoadPartner = Callable[[], Sample | None]


@runtime_checkable
class Transform(Protocol):
    """What the data set calls; with a `LoadPartner` as third argument where the class has `uses_partners`."""

    def __call__(self, sample: Sample, rng: np.random.Generator, /) -> Sample: ...


@dataclass(frozen=True)
class BuiltIn:
    """The place of the built-in augmentation (config field `augmentation`), which also makes the network's input size.

    Transforms before it change the images as they are in the files, also those of a mosaic; transforms after it change
    the network's input. A list without it runs after it.
    """

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The data set replaces it."""
        raise AssertionError("BuiltIn only marks a place")


@dataclass(frozen=True)
class Affine:
    """Rotation, shear, perspective, scale and translation about the centre of the image, in one interpolation."""

    rotate: float = 0.0  # by U(-1, 1) * x degrees
    shear: float = 0.0  # by U(-1, 1) * x degrees, in both directions
    perspective: float = 0.0  # the scale changes by U(-1, 1) * x from the centre to an edge
    scale: float = 0.0  # size times U(1 - x, 1 + x)
    translate: float = 0.0  # by U(-1, 1) * x of width and height

    def __post_init__(self) -> None:
        if not (0 <= self.perspective < 0.5 and 0 <= self.scale < 1 and 0 <= self.shear < 90):
            raise ValueError("perspective must be between 0 and 0.5, scale between 0 and 1, shear between 0 and 90")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Boxes become the upright boxes around their warped corners; see `dl.warp.large_enough` for those kept."""
        size = sample.image.shape[:2]
        side = np.array(size[::-1], dtype=np.float64)
        angle, shear_x, shear_y, tilt_x, tilt_y, larger, right, down = rng.uniform(-1, 1, 8)
        matrix = warp_matrix(
            side / 2,
            side / 2 + np.array([right, down]) * self.translate * side,
            angle * self.rotate,
            (shear_x * self.shear, shear_y * self.shear),
            tuple(np.array([tilt_x, tilt_y]) * self.perspective / (side / 2)),
            1 + larger * self.scale,
        )
        return _warped(sample, matrix)


def _warped(sample: Sample, matrix: Matrix) -> Sample:
    """Image and boxes moved by a matrix; boxes of which too little is visible are dropped."""
    size = sample.image.shape[:2]
    moved = warp_boxes(sample.boxes, matrix)
    visible = clip_boxes(moved, size)
    is_kept = large_enough(visible, (moved[:, 2:] - moved[:, :2]).prod(axis=1))
    image = warp_image(sample.image, matrix, size, MOSAIC_GREY)
    return replace(sample, image=image, boxes=visible[is_kept], labels=sample.labels[is_kept])


@dataclass(frozen=True)
class Flip:
    """Mirror the image, left to right and upside down, each with its own probability."""

    horizontal: float = 0.5
    vertical: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image, boxes = sample.image, sample.boxes.copy()
        is_mirrored, is_upside_down = rng.random(2) < (self.horizontal, self.vertical)
        if is_mirrored:
            image = cv2.flip(image, 1)
            boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
        if is_upside_down:
            image = cv2.flip(image, 0)
            boxes[:, [1, 3]] = image.shape[0] - boxes[:, [3, 1]]
        return replace(sample, image=image, boxes=boxes)


@dataclass(frozen=True)
class Crop:
    """Enlarge a random part of the image to the size of the whole. At least one object stays whole.

    `smallest`: the smallest side of the part, as a share of the image. It is larger where the object needs it.
    """

    probability: float = 0.5
    smallest: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.probability:
            return sample
        size = sample.image.shape[:2]
        side = np.array(size[::-1], dtype=np.float64)
        share = rng.uniform(self.smallest, 1)
        box = None
        if len(sample.boxes):
            box = sample.boxes[rng.integers(len(sample.boxes))].astype(np.float64).clip(0, np.tile(side, 2))
            share = max(share, ((box[2:] - box[:2]) / side).max())
        # The upper left corner of the part is between these two points.
        low, high = np.zeros(2), (1 - share) * side
        if box is not None:
            low, high = np.maximum(low, box[2:] - share * side), np.minimum(high, box[:2])
        start = low + rng.random(2) * np.maximum(high - low, 0)
        matrix = np.array([[1 / share, 0, -start[0] / share], [0, 1 / share, -start[1] / share], [0, 0, 1.0]])
        return _warped(sample, matrix)


@dataclass(frozen=True)
class MixUp:
    """The average of two images, with the objects of both (Zhang et al. 2018, arXiv 1710.09412).

    The share of the image is drawn from Beta(alpha, alpha); with Ultralytics' 32 it is near a half.
    """

    probability: float = 0.1
    alpha: float = 32.0
    uses_partners: ClassVar[bool] = True

    def __call__(self, sample: Sample, rng: np.random.Generator, load_partner: LoadPartner) -> Sample:
        if rng.random() >= self.probability or (partner := load_partner()) is None:
            return sample
        share = rng.beta(self.alpha, self.alpha)
        partner = _same_size(partner, sample.image.shape[:2])
        image = cv2.addWeighted(sample.image, share, partner.image, 1 - share, 0)
        return _with_objects(replace(sample, image=image), partner.boxes, partner.labels)


@dataclass(frozen=True)
class CutMix:
    """A rectangle of another image replaces the same rectangle of this one (Yun et al. 2019, arXiv 1905.04899).

    The area of the rectangle is a share of the image, drawn from Beta(alpha, alpha).
    """

    probability: float = 0.1
    alpha: float = 1.0
    uses_partners: ClassVar[bool] = True

    def __call__(self, sample: Sample, rng: np.random.Generator, load_partner: LoadPartner) -> Sample:
        if rng.random() >= self.probability or (partner := load_partner()) is None:
            return sample
        height, width = sample.image.shape[:2]
        partner = _same_size(partner, (height, width))
        sides = np.round(np.array([width, height]) * np.sqrt(rng.beta(self.alpha, self.alpha))).astype(int)
        left, top = rng.integers(0, np.array([width, height]) - sides, endpoint=True)
        window = np.array([left, top, left + sides[0], top + sides[1]])
        if not sides.all():
            return sample
        image = sample.image.copy()
        image[top : window[3], left : window[2]] = partner.image[top : window[3], left : window[2]]
        visible = partner.boxes.clip(np.tile(window[:2], 2), np.tile(window[2:], 2)).astype(np.float32)
        is_kept = large_enough(visible, (partner.boxes[:, 2:] - partner.boxes[:, :2]).prod(axis=1))
        covered = _cover(replace(sample, image=image), window)
        return _with_objects(covered, visible[is_kept], partner.labels[is_kept])


@dataclass(frozen=True)
class CopyPaste:
    """Paste objects of another image into this one, with the pixels of their boxes (Ghiasi et al., arXiv 2012.07177).

    Their size does not change; their place is random, but hides little of other objects. `most`: objects per image.
    """

    probability: float = 0.5
    most: int = 3
    uses_partners: ClassVar[bool] = True

    def __call__(self, sample: Sample, rng: np.random.Generator, load_partner: LoadPartner) -> Sample:
        if rng.random() >= self.probability or (partner := load_partner()) is None or not len(partner.boxes):
            return sample
        number = int(rng.integers(1, self.most, endpoint=True))
        for index in rng.permutation(len(partner.boxes))[:number]:
            # Whole pixels, so that the box of the pasted object is exact.
            left, top, right, bottom = np.round(partner.boxes[index]).astype(int)
            patch = partner.image[max(top, 0) : bottom, max(left, 0) : right]
            sample = _paste(sample, patch, int(partner.labels[index]), rng)
        return sample


@dataclass(frozen=True)
class Erase:
    """A random rectangle becomes grey, as if something hid the object (Zhong et al. 2020, arXiv 1708.04896).

    Its area is a share of the image, at most `largest`. Objects of which almost nothing is left are dropped.
    """

    probability: float = 0.3
    largest: float = 0.2

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.probability:
            return sample
        side = np.array(sample.image.shape[1::-1])
        stretch = np.exp(rng.uniform(-1, 1) * np.log(2))  # ratio of the two shares, 1/2 to 2
        share = np.sqrt(rng.uniform(0, self.largest) * np.array([stretch, 1 / stretch])).clip(max=1)
        sides = np.maximum(np.round(side * share), 1).astype(int)
        left, top = rng.integers(0, side - sides, endpoint=True)
        image = sample.image.copy()
        image[top : top + sides[1], left : left + sides[0]] = MOSAIC_GREY
        return _cover(replace(sample, image=image), np.array([left, top, left + sides[0], top + sides[1]]))


def _paste(sample: Sample, patch: np.ndarray, label: int, rng: np.random.Generator) -> Sample:
    """The sample with `patch` at a random place; unchanged if it fits nowhere."""
    spare = np.array(sample.image.shape[1::-1]) - patch.shape[1::-1]
    if min(patch.shape[:2]) <= MIN_SIDE or spare.min() < 0:
        return sample
    for left, top in rng.integers(0, spare, (PLACES, 2), endpoint=True):
        window = np.array([left, top, left + patch.shape[1], top + patch.shape[0]])
        if (_covered_shares(sample.boxes, window) <= MOST_COVERED).all():
            image = sample.image.copy()
            image[top : window[3], left : window[2]] = patch
            covered = _cover(replace(sample, image=image), window)
            return _with_objects(covered, window[None].astype(np.float32), np.array([label], dtype=np.int64))
    return sample


def _covered_shares(boxes: Float[np.ndarray, "N 4"], window: np.ndarray) -> Float[np.ndarray, " N"]:
    """The share of each box that lies inside the rectangle."""
    inside = boxes.clip(np.tile(window[:2], 2), np.tile(window[2:], 2))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return (inside[:, 2:] - inside[:, :2]).prod(axis=1) / np.maximum(areas, 1e-9)


def _cover(sample: Sample, window: np.ndarray) -> Sample:
    """The boxes of what is still visible, after a rectangle of the image was replaced.

    A box shrinks where the rectangle covers a whole side of it. Too small remains are dropped, see `large_enough`.
    """
    boxes = sample.boxes.copy()
    for low, high in ((0, 1), (1, 0)):  # x, if the rectangle covers the box from top to bottom; then y
        spans = (window[high] <= boxes[:, high]) & (window[high + 2] >= boxes[:, high + 2])
        begins = spans & (window[low] <= boxes[:, low])
        ends = spans & (window[low + 2] >= boxes[:, low + 2])
        boxes[begins, low] = boxes[begins, low].clip(min=window[low + 2])
        boxes[ends, low + 2] = boxes[ends, low + 2].clip(max=window[low])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])  # covered completely: no area is left
    areas = (sample.boxes[:, 2:] - sample.boxes[:, :2]).prod(axis=1)
    # The share inside the rectangle counts, too: a hole in the middle changes no side of the box.
    is_kept = large_enough(boxes, areas) & (1 - _covered_shares(sample.boxes, window) > MIN_AREA)
    return replace(sample, boxes=boxes[is_kept], labels=sample.labels[is_kept])


def _with_objects(sample: Sample, boxes: np.ndarray, labels: np.ndarray) -> Sample:
    boxes, labels = np.concatenate([sample.boxes, boxes]), np.concatenate([sample.labels, labels])
    return replace(sample, boxes=boxes.astype(np.float32), labels=labels)


def _same_size(sample: Sample, size: tuple[int, int]) -> Sample:
    """The sample resized to `size` (height, width), for transforms that mix images of different sizes."""
    height, width = sample.image.shape[:2]
    if (height, width) == size:
        return sample
    factor = np.array([size[1] / width, size[0] / height] * 2)
    return replace(sample, image=cv2.resize(sample.image, size[::-1]), boxes=(sample.boxes * factor).astype(np.float32))


@dataclass(frozen=True)
class Adapter:
    """For a library's transform or any other function on image and boxes: write a subclass with `change`.

    Random numbers of torch are seeded for each call. Boxes are clipped to the image; a box without area is dropped.
    """

    probability: float = 1.0

    def change(
        self, image: UInt8[np.ndarray, "H W 3"], boxes: Float32[np.ndarray, "N 4"], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """RGB image and boxes (xyxy, pixels) -> new image, a new box for each box, and which boxes are kept, (N,)."""
        raise NotImplementedError(f"{type(self).__name__} needs a method change(image, boxes, rng)")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.probability:
            return sample
        with seeded(int(rng.integers(2**63))):
            image, boxes, is_kept = self.change(sample.image, sample.boxes, rng)
        boxes = clip_boxes(np.asarray(boxes).reshape(-1, 4), image.shape[:2])
        is_kept = np.asarray(is_kept, dtype=bool) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return replace(sample, image=image, boxes=boxes[is_kept], labels=sample.labels[is_kept])


@dataclass(frozen=True)
class Jpeg(Adapter):
    """Save the image as JPEG and read it again. The quality is between `lowest` and `highest`, of 100."""

    lowest: int = 40
    highest: int = 95

    def change(
        self, image: UInt8[np.ndarray, "H W 3"], boxes: Float32[np.ndarray, "N 4"], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, " N"]]:
        quality = int(rng.integers(self.lowest, self.highest, endpoint=True))
        # OpenCV writes and reads BGR; the same change of order on both sides keeps RGB.
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None  # OpenCV wrote it
        return np.ascontiguousarray(decoded[..., ::-1]), boxes, np.ones(len(boxes), dtype=bool)


@dataclass(frozen=True)
class Torchvision(Adapter):
    """A transform of torchvision.transforms.v2, e.g. `Torchvision(name="GaussianBlur", values={"kernel_size": 5})`.

    `values` are the arguments of the class. Useful names: GaussianBlur, GaussianNoise, ColorJitter, RandomGrayscale,
    RandomPhotometricDistort, RandomPosterize, RandomAutocontrast.
    """

    name: str = "GaussianBlur"
    values: Mapping[str, Any] = field(default_factory=lambda: {"kernel_size": 5})

    def __post_init__(self) -> None:
        names = [key for key, value in vars(v2).items() if isinstance(value, type) and key[0].isupper()]
        if self.name not in names:
            raise ValueError(f"torchvision.transforms.v2 has no {self.name}{nearest(self.name, names)}")
        try:
            transform = getattr(v2, self.name)(**self.values)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{self.name}: {error}") from error
        object.__setattr__(self, "_transform", transform)

    def change(
        self, image: UInt8[np.ndarray, "H W 3"], boxes: Float32[np.ndarray, "N 4"], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, " N"]]:
        pixels = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
        frames = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=image.shape[:2])  # type: ignore[call-overload]
        pixels, frames = self._transform(pixels, frames)  # type: ignore[attr-defined]
        if len(frames) != len(boxes):
            raise UserError(f"transforms: Torchvision({self.name}) drops boxes, which this adapter cannot follow")
        changed = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
        return changed, frames.numpy(), np.ones(len(frames), dtype=bool)
