from dataclasses import replace

import numpy as np
import pytest
import torch

from dl.augment import GREY, AugmentPlan, AugmentRanges, apply_plan, draw_plan, letterbox, resize_fast

NO_COLOUR = AugmentRanges(hue=0.0, saturation=0.0, value=0.0)
NO_BOXES = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


def scene(height, width, seed):
    """Black, with one pure red, green and blue rectangle apart from each other; labels say the channel."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    boxes = []
    for channel in range(3):
        left, right = width * channel // 3, width * (channel + 1) // 3
        x1 = rng.integers(left, (left + right) // 2)
        x2 = rng.integers((left + right) // 2 + 2, right + 1)
        y1, y2 = rng.integers(0, height // 2), rng.integers(height // 2 + 2, height + 1)
        image[y1:y2, x1:x2, channel] = 255
        boxes.append((x1, y1, x2, y2))
    return image, np.array(boxes, np.float32), np.arange(3)


def extent(image, channel):
    """Pixel edges of where this channel covers half a pixel or more, None where nothing does."""
    others = np.delete(image, channel, axis=2).max(axis=2)
    rows, columns = np.nonzero((image[..., channel] >= 128) & (others < 128))
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


@pytest.mark.parametrize("image_shape", [(120, 160), (200, 90), (64, 64), (400, 500)])
@pytest.mark.parametrize("input_shape", [(96, 96), (64, 160)])
def test_boxes_follow_pixels(image_shape, input_shape):
    errors, seen, flips = [], 0, 0
    for seed in range(80):
        image, boxes, labels = scene(*image_shape, seed)
        plan = draw_plan(np.random.default_rng(seed), image_shape, input_shape, NO_COLOUR)
        flips += plan.is_flipped
        canvas, moved, kept = apply_plan(plan, image, boxes, labels)
        assert canvas.shape == (*input_shape, 3)
        found = {channel: extent(canvas, channel) for channel in range(3)}
        for box, label in zip(moved, kept, strict=True):
            if (box[2:] - box[:2] < 3).any():
                continue  # thinner than what half coverage can show
            seen += 1
            errors.append(box - np.array(found[label]))
        for label in set(range(3)) - set(kept.tolist()):
            side = found[label] and min(found[label][2] - found[label][0], found[label][3] - found[label][1])
            assert not side or side <= 2
    errors = np.array(errors)
    assert seen > 80
    assert 20 < flips < 60
    assert np.abs(errors).max() < 0.8, "an edge is at most half a pixel from where the pixels change"
    assert np.abs(errors.mean(axis=0)).max() < 0.12, "no edge is shifted on average"


def test_boxes_follow_pixels_whatever_the_colours():
    seen = 0
    for seed in range(40):
        image, boxes, labels = scene(120, 160, seed)
        plan = draw_plan(np.random.default_rng(seed), (120, 160), (96, 96), AugmentRanges())
        canvas, moved, kept = apply_plan(plan, image, boxes, labels)
        plain, plain_moved, plain_kept = apply_plan(
            replace(plan, hue=1.0, saturation=1.0, value=1.0), image, boxes, labels
        )
        assert np.array_equal(moved, plain_moved)
        assert np.array_equal(kept, plain_kept)
        is_black = (plain == 0).all(axis=2)
        assert np.array_equal((canvas == 0).all(axis=2) & is_black, is_black)
        for box, label in zip(moved, kept, strict=True):
            x, y = (box[:2] + box[2:]).astype(int) // 2
            assert canvas[y, x].argmax() == label
            seen += 1
    assert seen > 40


PLAN = AugmentPlan((40, 60), 30, 20, 7, 11, False, 1.0, 1.0, 1.0)


def test_a_known_plan_lands_where_it_says():
    image = np.full((20, 30, 3), 200, np.uint8)
    canvas, boxes, labels = apply_plan(
        PLAN, image, np.array([[0, 0, 30, 20], [1, 2, 3, 5]], np.float32), np.array([4, 5])
    )
    assert (canvas[11:31, 7:37] == 200).all()
    canvas[11:31, 7:37] = GREY
    assert (canvas == GREY).all()
    assert boxes.tolist() == [[7, 11, 37, 31], [8, 13, 10, 16]]
    assert labels.tolist() == [4, 5]


def test_a_known_flip_and_crop():
    image = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    plan = replace(PLAN, input_shape=(10, 12), left=-3, top=-4, is_flipped=True)
    canvas, boxes, _ = apply_plan(plan, image, np.array([[4, 5, 8, 9], [0, 0, 30, 20]], np.float32), np.array([0, 1]))
    expected = image[4:14, 3:15][:, ::-1].astype(int)
    assert np.abs(canvas.astype(int) - expected).max() <= 6, "a turn through byte-sized HSV costs some steps"
    assert boxes.tolist() == [[12 - 5, 1, 12 - 1, 5], [0, 0, 12, 10]]


def test_what_is_left_of_a_box_must_be_wider_and_higher_than_a_pixel():
    image = np.zeros((20, 30, 3), np.uint8)
    plan = replace(PLAN, input_shape=(20, 30), left=-10, top=0)
    boxes = np.array([[0, 0, 11, 20], [0, 0, 11.5, 20], [12, 5, 20, 6], [12, 5, 20, 6.5], [0, 0, 9, 9]], np.float32)
    _, moved, labels = apply_plan(plan, image, boxes, np.arange(5))
    assert labels.tolist() == [1, 3]
    assert moved.tolist() == [[0, 0, 1.5, 20], [2, 5, 10, 6.5]]


def test_no_boxes_and_arguments_untouched():
    image = np.full((20, 30, 3), 200, np.uint8)
    canvas, boxes, labels = apply_plan(replace(PLAN, value=0.5), image, *NO_BOXES)
    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)
    assert (boxes.dtype, labels.dtype) == (np.float32, np.int64)
    assert (canvas[11:31, 7:37] == 100).all()
    assert (canvas[0, 0] == GREY).all(), "padding keeps its grey"
    assert (image == 200).all()


@pytest.mark.parametrize(
    ("gains", "colour", "expected"),
    [
        ({"value": 0.5}, (200, 100, 50), (100, 50, 25)),
        ({"value": 1.4}, (100, 50, 20), (140, 70, 28)),
        ({"value": 1.4}, (250, 250, 250), (255, 255, 255)),
        ({"saturation": 0.5}, (200, 100, 100), (200, 150, 150)),
        ({"saturation": 1.7}, (120, 120, 120), (120, 120, 120)),
        ({"hue": 1.1}, (0, 200, 0), (0, 200, 40)),
        ({"hue": 1.1}, (200, 0, 7), (200, 107, 0)),  # hue 179 of 180 goes round to 16
    ],
)
def test_colour_gains(gains, colour, expected):
    image = np.full((20, 30, 3), colour, np.uint8)
    canvas, _, _ = apply_plan(replace(PLAN, **gains), image, *NO_BOXES)
    assert np.abs(canvas[20, 20].astype(int) - expected).max() <= 6


def test_plans_stay_in_their_ranges_and_fill_them():
    plans = [draw_plan(np.random.default_rng(seed), (300, 400), (320, 320), AugmentRanges()) for seed in range(1500)]
    long_side = np.array([max(plan.width, plan.height) for plan in plans]) / 320
    assert long_side.min() == pytest.approx(0.25, abs=0.02)
    assert long_side.max() == pytest.approx(2.0, abs=0.02)
    jitter = np.array([plan.width / plan.height for plan in plans]) / (400 / 300)
    assert jitter.min() >= 0.7 / 1.3 - 0.02
    assert jitter.max() <= 1.3 / 0.7 + 0.03
    assert jitter.min() < 0.62
    assert jitter.max() > 1.6
    assert np.mean([plan.is_flipped for plan in plans]) == pytest.approx(0.5, abs=0.05)
    for name, spread in (("hue", 0.1), ("saturation", 0.7), ("value", 0.4)):
        gains = np.array([getattr(plan, name) for plan in plans])
        assert gains.min() == pytest.approx(1 - spread, abs=0.01)
        assert gains.max() == pytest.approx(1 + spread, abs=0.01)
    for plan in plans:
        for start, size in ((plan.left, plan.width), (plan.top, plan.height)):
            assert min(0, 320 - size) <= start <= max(0, 320 - size), "no needless border, no needless crop"


def test_an_image_one_pixel_high_survives():
    image = np.zeros((1, 500, 3), np.uint8)
    for seed in range(20):
        plan = draw_plan(np.random.default_rng(seed), (1, 500), (64, 64), AugmentRanges())
        assert apply_plan(plan, image, *NO_BOXES)[0].shape == (64, 64, 3)
    assert letterbox(image, (64, 64))[0].shape == (64, 64, 3)


@pytest.mark.parametrize("image_shape", [(480, 640), (33, 17), (64, 64), (100, 1000), (51, 77)])
@pytest.mark.parametrize("input_shape", [(64, 64), (96, 160), (640, 640)])
def test_letterbox_there_and_back(image_shape, input_shape):
    height, width = image_shape
    canvas, placed = letterbox(np.full((height, width, 3), 250, np.uint8), input_shape)
    assert canvas.shape == (*input_shape, 3)
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, (50, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
    back = placed.undo(torch.from_numpy(placed.apply(boxes))).numpy()
    assert np.abs(back - boxes).max() < 1e-3
    covered = np.argwhere((canvas == 250).all(axis=2))
    whole = placed.apply(np.array([[0, 0, width, height]], np.float32))[0]
    assert whole.tolist() == pytest.approx([*covered.min(axis=0)[::-1], *(covered.max(axis=0)[::-1] + 1)], abs=1e-3)
    assert (canvas[(canvas != 250).any(axis=2)] == GREY).all()
    margins = np.array([whole[0], input_shape[1] - whole[2], whole[1], input_shape[0] - whole[3]])
    assert abs(margins[0] - margins[1]) < 1.01, "centred"
    assert abs(margins[2] - margins[3]) < 1.01
    assert margins[:2].max() < 1 or margins[2:].max() < 1, "as large as it fits"


def test_letterboxed_pixels_are_where_their_boxes_are():
    for seed in range(30):
        image, boxes, labels = scene(120, 170, seed)
        canvas, placed = letterbox(image, (96, 128))
        for box, label in zip(placed.apply(boxes), labels, strict=True):
            assert np.abs(box - np.array(extent(canvas, label))).max() < 0.8


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_halving_is_the_mean_of_the_pixels(factor):
    image = np.random.default_rng(0).integers(0, 256, (16 * factor, 24 * factor, 3), dtype=np.uint8)
    means = image.reshape(16, factor, 24, factor, 3).mean(axis=(1, 3))
    found = resize_fast(image, 24, 16)
    assert found.shape == (16, 24, 3)
    assert np.abs(found - means).max() <= 0.5 * np.log2(factor) + 1e-6, "every halving rounds once"


@pytest.mark.parametrize("size", [(64, 48), (63, 47), (40, 31), (33, 25), (31, 23), (17, 12), (100, 70)])
def test_what_is_resized_fast_stays_in_its_place_and_no_pixel_is_skipped(size):
    """A ramp shows the place of every pixel; of single bright pixels, one after the other, all leave a trace."""
    columns, rows = size
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (48, 1, 3))
    centres = (np.arange(columns) + 0.5) * 64 / columns - 0.5  # of the pixels of the result, in pixels of the image
    inner = (centres > 2) & (centres < 61)
    assert np.abs(resize_fast(ramp, columns, rows)[rows // 2, :, 0] - centres * 3)[inner].max() < 1.5
    for column in range(20, 28):
        spot = np.zeros((48, 64, 3), dtype=np.uint8)
        spot[24, column] = 255
        assert resize_fast(spot, columns, rows).any()


def test_resized_fast_to_its_own_size_is_the_same_image():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert resize_fast(image, 7, 5) is image
