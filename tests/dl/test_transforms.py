"""Boxes must move exactly like pixels: each object is a coloured rectangle, and its box is measured in the result."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from config.errors import UserError
from dl.mosaic import MOSAIC_GREY, ModernRanges, apply_mosaic, draw_mosaic
from dl.stages import checked
from dl.transforms import (
    Adapter,
    Affine,
    CopyPaste,
    Crop,
    CutMix,
    Erase,
    Flip,
    Jpeg,
    MixUp,
    Torchvision,
)
from dl.warp import warp_boxes, warp_image, warp_matrix
from ops.batch import Sample

SIZE = (120, 160)
# One pure colour per object, so that each can be found again; the background has none of them.
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], dtype=np.uint8)
BACKGROUND = 60
BOXES = np.array([(20, 30, 60, 50), (100, 20, 130, 90), (70, 80, 95, 110)], dtype=np.float32)


def make_sample(boxes=BOXES, labels=None, size=SIZE, image_id="a"):
    image = np.full((*size, 3), BACKGROUND, dtype=np.uint8)
    labels = np.arange(len(boxes)) if labels is None else np.array(labels)
    for (left, top, right, bottom), label in zip(boxes.astype(int), labels, strict=True):
        image[top:bottom, left:right] = COLOURS[label]
    return Sample(image, boxes.astype(np.float32), labels.astype(np.int64), image_id)


def measured_box(image, label):
    """The box of the pixels that are nearer to the object's colour than to anything else; None without any."""
    channel = int(COLOURS[label].argmax())
    others = np.delete(image.astype(int), channel, axis=2)
    is_object = image[..., channel].astype(int) - others.max(axis=2) > 97  # half of an object's contrast
    rows, columns = np.where(is_object.any(axis=1))[0], np.where(is_object.any(axis=0))[0]
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)


def assert_boxes_fit(sample, tolerance=1.0):
    assert sample.image.shape == (*SIZE, 3) and sample.image.dtype == np.uint8
    assert sample.boxes.dtype == np.float32 and sample.labels.dtype == np.int64
    for box, label in zip(sample.boxes, sample.labels, strict=True):
        measured = measured_box(sample.image, label)
        assert measured is not None
        np.testing.assert_allclose(box, measured, atol=tolerance)


def rng(seed=0):
    return np.random.default_rng(seed)


# Turned by right angles, rectangles stay rectangles, so the measured boxes are exact.
@pytest.mark.parametrize("angle", [0, 90, 180, 270, -90])
def test_a_warp_by_right_angles_is_exact(angle):
    sample = make_sample(np.array([(60, 50, 90, 60), (70, 65, 80, 80)]))
    matrix = warp_matrix((80, 60), (80, 60), angle)
    image = warp_image(sample.image, matrix, SIZE, BACKGROUND)
    for box, label in zip(warp_boxes(sample.boxes, matrix), sample.labels, strict=True):
        np.testing.assert_allclose(box, measured_box(image, label), atol=1e-6)
    expected = np.rot90(sample.image, (angle // 90) % 4)
    if angle % 180 == 0:
        np.testing.assert_array_equal(image, expected)


def test_a_positive_angle_turns_counter_clockwise():
    right_of_centre = np.array([(90, 58, 94, 62)], dtype=np.float32)
    np.testing.assert_allclose(warp_boxes(right_of_centre, warp_matrix((80, 60), (80, 60), 90)), [(78, 46, 82, 50)])


def test_perspective_keeps_the_centre_and_enlarges_one_side():
    matrix = warp_matrix((80, 60), (80, 60), perspective=(0.002, 0))
    near, centre, far = warp_boxes(np.array([(20, 50, 30, 70), (79, 59, 81, 61), (130, 50, 140, 70.0)]), matrix)
    np.testing.assert_allclose((centre[:2] + centre[2:]) / 2, (80, 60), atol=0.02)
    assert near[3] - near[1] > 20 > far[3] - far[1]


def test_warp_without_boxes_and_identity():
    assert warp_boxes(np.zeros((0, 4)), np.eye(3)).shape == (0, 4)
    sample = make_sample()
    np.testing.assert_array_equal(warp_image(sample.image, np.eye(3), SIZE, 0), sample.image)
    np.testing.assert_array_equal(warp_boxes(sample.boxes, np.eye(3)), sample.boxes)


@given(
    seed=st.integers(0, 10**6),
    rotate=st.sampled_from([0.0, 5.0, 30.0]),
    shear=st.sampled_from([0.0, 10.0]),
    perspective=st.sampled_from([0.0, 0.2]),
    scale=st.sampled_from([0.0, 0.5]),
    translate=st.sampled_from([0.0, 0.2]),
)
def test_affine_boxes_are_around_the_pixels(seed, rotate, shear, perspective, scale, translate):
    transform = Affine(rotate, shear, perspective, scale, translate)
    result = transform(make_sample(), rng(seed))
    for box, label in zip(result.boxes, result.labels, strict=True):
        measured = measured_box(result.image, label)
        assert measured is not None
        # The upright box around warped corners contains the object. It is larger where a corner is outside the image.
        assert (measured[:2] > box[:2] - 1.5).all() and (measured[2:] < box[2:] + 1.5).all()
        is_inside = (box[:2] > 0).all() and (box[2:] < SIZE[::-1]).all()
        if is_inside:
            np.testing.assert_allclose(box, measured, atol=4 if rotate or shear or perspective else 1.5)
    assert (result.boxes >= 0).all() and (result.boxes[:, 2:] <= SIZE[::-1]).all()


def test_affine_drops_what_leaves_the_image():
    far_left = make_sample(np.array([(0, 40, 12, 60)]))
    dropped = [len(Affine(translate=0.9)(far_left, rng(seed)).boxes) == 0 for seed in range(40)]
    assert any(dropped) and not all(dropped)


@pytest.mark.parametrize("values", [{"perspective": 0.5}, {"scale": 1.0}, {"shear": 90.0}, {"scale": -0.1}])
def test_affine_refuses_impossible_ranges(values):
    with pytest.raises(ValueError, match="must be between"):
        Affine(**values)


def test_flips_are_exact():
    sample = make_sample()
    for seed in range(8):
        result = Flip(0.5, 0.5)(sample, rng(seed))
        assert_boxes_fit(result, tolerance=0)
    both = Flip(1.0, 1.0)(sample, rng())
    np.testing.assert_array_equal(both.image, sample.image[::-1, ::-1])
    np.testing.assert_array_equal(Flip(0.0, 0.0)(sample, rng()).image, sample.image)


@given(seed=st.integers(0, 10**6), count=st.integers(0, 3))
@example(seed=0, count=0)
def test_a_crop_keeps_an_object_whole(seed, count):
    sample = make_sample(BOXES[:count])
    result = Crop(1.0, 0.3)(sample, rng(seed))
    for box, label in zip(result.boxes, result.labels, strict=True):
        np.testing.assert_allclose(box, measured_box(result.image, label), atol=1.5)
    if count:
        areas = (result.boxes[:, 2:] - result.boxes[:, :2]).prod(axis=1)
        own = (BOXES[result.labels][:, 2:] - BOXES[result.labels][:, :2]).prod(axis=1)
        enlarged = (areas / own).max()  # a whole object is enlarged by the square of the factor, a cut one by less
        assert len(result.boxes) and enlarged >= 1 - 1e-4


def test_a_crop_contains_an_object_larger_than_the_part():
    sample = make_sample(np.array([(5, 5, 155, 115)]))
    result = Crop(1.0, 0.3)(sample, rng())
    assert len(result.boxes) == 1
    assert_boxes_fit(result, tolerance=1.5)


def test_mixup_averages_and_keeps_all_objects():
    own, partner = make_sample(BOXES[:1]), make_sample(BOXES[1:2], [1])
    result = MixUp(1.0, 32.0)(own, rng(3), lambda: partner)
    assert result.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(result.boxes, BOXES[:2])
    share = rng(3)
    share.random()
    share = share.beta(32.0, 32.0)
    expected = own.image * share + partner.image * (1 - share)
    np.testing.assert_allclose(result.image, expected, atol=0.51)
    assert MixUp(0.0)(own, rng(), lambda: partner) is own
    assert MixUp(1.0)(own, rng(), lambda: None) is own  # the partner's image was unreadable


@given(seed=st.integers(0, 10**6))
def test_cutmix_boxes_are_what_is_visible(seed):
    own = make_sample(BOXES[:2], [0, 1])
    partner = make_sample(np.array([(40, 30, 120, 100)]), [2])
    result = CutMix(1.0)(own, rng(seed), lambda: partner)
    for box, label in zip(result.boxes, result.labels, strict=True):
        # A hole or a covered corner does not change the box, and so the box may be larger than what is measured.
        np.testing.assert_allclose(box, measured_box(result.image, label), atol=0.51)
    dropped = set(range(3)) - set(result.labels.tolist())
    for label in dropped:
        rectangle = measured_box(result.image, label)
        whole = {0: BOXES[0], 1: BOXES[1], 2: np.array([40, 30, 120, 100])}[label]
        if rectangle is not None:
            visible = (result.image == COLOURS[label]).all(axis=-1).sum()
            sides = rectangle[2:] - rectangle[:2]
            assert visible <= 0.11 * (whole[2:] - whole[:2]).prod() or sides.min() <= 2


@given(seed=st.integers(0, 10**6))
def test_copy_paste_boxes_are_what_is_visible(seed):
    own, partner = make_sample(BOXES[:2], [0, 1]), make_sample(np.array([(3, 3, 33, 23)]), [2])
    result = CopyPaste(1.0, 1)(own, rng(seed), lambda: partner)
    assert 2 <= len(result.labels) <= 3
    assert_boxes_fit(result, tolerance=0.01)
    if len(result.labels) == 3:
        assert (result.boxes[2][2:] - result.boxes[2][:2]).tolist() == [30, 20]


def test_copy_paste_finds_no_place_on_a_full_image():
    own = make_sample(np.array([(0, 0, 160, 120)]))
    partner = make_sample(np.array([(0, 0, 158, 118)]), [1])
    result = CopyPaste(1.0, 3)(own, rng(), lambda: partner)
    assert result.labels.tolist() == [0]
    np.testing.assert_array_equal(result.image, own.image)


def test_partners_of_another_size_are_resized():
    own = make_sample(BOXES[:1])
    partner = make_sample(BOXES[1:2] * 2, [1], size=(240, 320))
    result = MixUp(1.0)(own, rng(), lambda: partner)
    np.testing.assert_allclose(result.boxes[1], BOXES[1])


@pytest.mark.parametrize(
    ("name", "values"),
    [("GaussianBlur", {"kernel_size": 5, "sigma": (0.5, 1.0)}), ("RandomPosterize", {"bits": 2, "p": 1.0}),
     ("ColorJitter", {"brightness": 0.3})],
)  # fmt: skip
def test_torchvision_changes_pixels_and_no_box(name, values):
    sample = make_sample()
    first, second = (Torchvision(name=name, values=values)(sample, rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)  # random numbers come from `rng` only
    assert (first.image != sample.image).any()
    np.testing.assert_array_equal(first.boxes, sample.boxes)
    assert first.image.shape == sample.image.shape and first.image.dtype == np.uint8


def test_jpeg_changes_pixels_a_little():
    sample = make_sample()
    first, second = (Jpeg(1.0, 60, 90)(sample, rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    assert_boxes_fit(first, tolerance=1)
    difference = np.abs(first.image.astype(int) - sample.image)
    assert 0 < difference.mean() < 5


@given(seed=st.integers(0, 10**6))
def test_erase_boxes_are_what_is_visible(seed):
    result = Erase(1.0, 0.6)(make_sample(), rng(seed))
    assert_boxes_fit(result, tolerance=0.01)
    grey = (result.image == 114).all(axis=-1)
    rows, columns = np.where(grey.any(axis=1))[0], np.where(grey.any(axis=0))[0]
    assert grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # one rectangle
    assert grey.mean() < 0.62


def test_torchvision_moves_boxes_with_the_pixels():
    result = Torchvision(name="RandomHorizontalFlip", values={"p": 1.0})(make_sample(), rng())
    assert_boxes_fit(result, tolerance=0)
    affine = Torchvision(name="RandomAffine", values={"degrees": 0, "translate": (0.3, 0.3)})(make_sample(), rng(1))
    for box, label in zip(affine.boxes, affine.labels, strict=True):
        np.testing.assert_allclose(box, measured_box(affine.image, label), atol=1.5)


def test_torchvision_names_are_checked():
    with pytest.raises(ValueError, match=r"no GausianBlur.*did you mean 'GaussianBlur'"):
        Torchvision(name="GausianBlur")
    with pytest.raises(ValueError, match="GaussianBlur: "):
        Torchvision(name="GaussianBlur", values={"size": 3})


def test_the_adapter_takes_any_function_of_image_and_boxes():
    @dataclass(frozen=True)
    class UpsideDown(Adapter):
        def change(self, image, boxes, rng):
            flipped = boxes.copy()
            flipped[:, [1, 3]] = image.shape[0] - boxes[:, [3, 1]]
            return np.ascontiguousarray(image[::-1]), flipped, np.arange(len(boxes)) > 0

    result = UpsideDown()(make_sample(), rng())
    assert result.labels.tolist() == [1, 2]
    assert_boxes_fit(result, tolerance=0)
    assert UpsideDown(probability=0.0)(make_sample(), rng()).labels.tolist() == [0, 1, 2]
    with pytest.raises(NotImplementedError, match="Adapter needs a method change"):
        Adapter()(make_sample(), rng())


def test_no_objects():
    empty, partner = make_sample(BOXES[:0]), make_sample(BOXES[:1])
    for transform in (Affine(10.0), Flip(1.0, 1.0), Crop(1.0), Erase(1.0), Jpeg(), Torchvision()):
        result = transform(empty, rng())
        assert result.boxes.shape == (0, 4) and result.labels.shape == (0,)
    for transform in (MixUp(1.0), CopyPaste(1.0)):
        assert len(transform(empty, rng(), lambda: partner).labels) == 1
        assert len(transform(empty, rng(), lambda: empty).labels) == 0
    assert transform(partner, rng(), lambda: empty).labels.tolist() == [0]


@given(seed=st.integers(0, 10**6), order=st.permutations(["affine", "flip", "crop", "shift"]))
def test_compositions_move_boxes_like_pixels(seed, order):
    transforms = {
        "affine": Affine(scale=0.3, translate=0.1), "flip": Flip(), "crop": Crop(1.0, 0.7),
        "shift": Torchvision(name="RandomAffine", values={"degrees": 0, "translate": (0.1, 0.1)}),
    }  # fmt: skip
    sample, source = make_sample(), rng(seed)
    for name in order:
        sample = checked(transforms[name], sample, transforms[name](sample, source))
    for box, label in zip(sample.boxes, sample.labels, strict=True):
        np.testing.assert_allclose(box, measured_box(sample.image, label), atol=3)


def damaged(sample, boxes):
    """A sample that the type check of the tests would not let anyone make."""
    sample = replace(sample)
    object.__setattr__(sample, "boxes", boxes)
    return sample


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sample: None, "returned NoneType, but a Sample"),
        (lambda sample: replace(sample, image=sample.image[:50]), "the size must stay"),
        (lambda sample: damaged(sample, boxes=sample.boxes[:1]), "for 3 labels"),
        (lambda sample: replace(sample, boxes=sample.boxes * np.float32("nan")), "not finite"),
    ],
)
def test_wrong_results_are_refused_with_the_class(change, message):
    sample = make_sample()
    with pytest.raises(UserError, match=f"transforms: Flip .*{message}"):
        checked(Flip(), sample, change(sample))


# The general path of the mosaic, against the fast path and against pixels.
SIZES = np.array([SIZE] * 4)
STILL = ModernRanges(translate=0.2, hue=0.0, saturation=0.0, value=0.0)


def apply(plan, samples):
    chosen = [samples[tile.index] for tile in plan.tiles]
    return apply_mosaic(plan, [s.image for s in chosen], [s.boxes for s in chosen], [s.labels for s in chosen])


@pytest.mark.parametrize(("scale", "shape"), [(0.0, SIZE), (0.5, (96, 128))])
def test_the_warped_mosaic_without_a_warp_equals_the_fast_one(scale, shape):
    samples = [make_sample(BOXES[i % 3 : i % 3 + 1], [i % 3]) for i in range(4)]
    for seed in range(20):
        ranges = replace(STILL, scale=scale)
        fast = draw_mosaic(rng(seed), 0, SIZES, shape, ranges)
        # The general path for an angle so small that no pixel moves.
        general = draw_mosaic(rng(seed), 0, SIZES, shape, replace(ranges, rotate=1e-12))
        assert fast.warp is None and general.warp is not None
        (image, boxes, labels), (image2, boxes2, labels2) = apply(fast, samples), apply(general, samples)
        if shape == SIZE:
            np.testing.assert_array_equal(image, image2)
        # A cropped tile of the fast path is at most half a pixel away, which shows at the edges of objects only.
        assert np.abs(image.astype(int) - image2).mean() < 1.0
        assert labels.tolist() == labels2.tolist()
        np.testing.assert_allclose(boxes, boxes2, atol=0.51)


@pytest.mark.parametrize("perspective", [0.0, 0.1, 0.4])
def test_the_warped_mosaic_moves_boxes_like_pixels(perspective):
    """0.4 is the largest perspective of the config: no part of the canvas may come behind the camera."""
    sample = make_sample(np.array([(60, 45, 100, 75)]), [0])
    ranges = replace(STILL, scale=0.5, rotate=20.0, shear=5.0, perspective=perspective, flip_vertical=0.5)
    num_boxes = 0
    for seed in range(100):
        plan = draw_mosaic(rng(seed), 0, SIZES, SIZE, ranges)
        corners = np.array(plan.canvas)[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)
        assert (np.c_[corners, np.ones(4)] @ plan.warp[2] > 0.1).all()
        plan = replace(plan, tiles=plan.tiles[:1])  # one image, so that there is one object of this colour
        image, boxes, _ = apply(plan, [sample] * 4)
        for box in boxes:
            measured = measured_box(image, 0)
            assert measured is not None
            assert (measured[:2] > box[:2] - 1.5).all() and (measured[2:] < box[2:] + 1.5).all()
            num_boxes += 1
    assert num_boxes >= 30


def test_the_border_of_a_warped_mosaic_is_grey():
    ranges = replace(STILL, mosaic=0.0, scale=0.0, translate=0.0, rotate=45.0, flip=0.0)
    plan = draw_mosaic(rng(4), 0, SIZES, SIZE, ranges)
    image, _, _ = apply(plan, [make_sample()] * 4)
    assert (image[0, 0] == MOSAIC_GREY).all() and (image[60, 80] == BACKGROUND).all()
