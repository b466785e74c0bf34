from dataclasses import replace

import cv2
import numpy as np
import pytest

from dl.mosaic import (
    MOSAIC_GREY,
    ModernRanges,
    MosaicPlan,
    PixelRect,
    Tile,
    apply_mosaic,
    draw_mosaic,
    first_epoch_without_mosaic,
)

PLAIN = ModernRanges(hue=0.0, saturation=0.0, value=0.0)
STILL = ModernRanges(scale=0.0, translate=0.0, flip=0.0, hue=0.0, saturation=0.0, value=0.0)
NO_BOXES = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)])
SIZES = np.array([(120, 160), (200, 90), (64, 64), (300, 410)])


def draw(seed, ranges=PLAIN, sizes=SIZES, shape=(96, 96), index=0, epoch=0):
    return draw_mosaic(np.random.default_rng(seed), index, sizes, shape, ranges, ranges.has_mosaic(epoch))


def run(plan, images, boxes, labels):
    chosen = [tile.index for tile in plan.tiles]
    return apply_mosaic(plan, *([parts[i] for i in chosen] for parts in (images, boxes, labels)))


@pytest.mark.parametrize(
    ("epochs", "close", "closed"),
    [(200, 10, 10), (30, 10, 10), (29, 10, 10), (24, 10, 8), (12, 10, 4), (7, 10, 2), (5, 10, 2), (3, 10, 1),
     (2, 10, 1), (1, 10, 0), (12, 2, 2), (12, 0, 0), (100, 90, 33)],
)  # fmt: skip
def test_the_last_epochs_without_mosaic_are_a_third_at_most(epochs, close, closed):
    end = first_epoch_without_mosaic(epochs, close)
    assert epochs - end == closed
    ranges = ModernRanges(mosaic_end=end)
    assert [ranges.has_mosaic(epoch) for epoch in range(epochs)] == [True] * (epochs - closed) + [False] * closed
    assert ModernRanges().has_mosaic(10**6) and not ModernRanges(mosaic=0.0).has_mosaic(0)


def smooth_image(size, seed):
    """Slow waves: any sound interpolation gives nearly the same."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(float)
    waves = [
        np.sin(rng.uniform(1, 3) * rows / size[0] + rng.uniform(1, 3) * columns / size[1] + rng.uniform(0, 6))
        for _ in range(3)
    ]
    return (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def random_boxes(size, seed, count=6):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * size[::-1]
    return corners.reshape(count, 4).astype(np.float32)


def large_enough(before, after):
    """The peer's rule, box by box."""
    width, height = after[2] - after[0], after[3] - after[1]
    old = (before[2] - before[0]) * (before[3] - before[1])
    if width <= 2 or height <= 2 or old <= 0:
        return False
    return width * height / old > 0.1 and max(width / height, height / width) < 100


def clip(box, left, top, right, bottom):
    return [min(max(box[i], (left, top)[i % 2]), (right, bottom)[i % 2]) for i in range(4)]


def warp_each_tile(plan, images, boxes, labels):
    """Slow twin of the execution: whole images warped by the map of the tile, boxes one corner at a time."""
    height, width = plan.input_shape
    picture, found = np.full((height, width, 3), MOSAIC_GREY, np.uint8), []
    for tile in plan.tiles:
        (sx1, sy1, sx2, sy2), (tx1, ty1, tx2, ty2) = tile.source, tile.target
        fx, fy = (tx2 - tx1) / (sx2 - sx1), (ty2 - ty1) / (sy2 - sy1)
        dx, dy = tx1 - sx1 * fx, ty1 - sy1 * fy
        matrix = np.array([[fx, 0, dx + fx / 2 - 0.5], [0, fy, dy + fy / 2 - 0.5]])  # pixel centres, not edges
        warped = cv2.warpAffine(images[tile.index], matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        x1, y1, x2, y2 = tile.window
        picture[y1:y2, x1:x2] = warped[y1:y2, x1:x2]
        for box, label in zip(boxes[tile.index].astype(float), labels[tile.index], strict=True):
            moved = [box[0] * fx + dx, box[1] * fy + dy, box[2] * fx + dx, box[3] * fy + dy]
            seen = clip(moved, *tile.window)
            if large_enough(clip(moved, *plan.canvas), seen):
                if plan.is_flipped:
                    seen = [width - seen[2], seen[1], width - seen[0], seen[3]]
                found.append((*seen, label))
    return picture[:, ::-1] if plan.is_flipped else picture, np.array(found, float).reshape(-1, 5)


@pytest.mark.parametrize("shape", [(96, 96), (64, 160)])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_a_slow_twin_of_the_execution_agrees(shape, mosaic):
    images = [smooth_image(size, seed) for seed, size in enumerate(SIZES)]
    boxes = [random_boxes(size, seed) for seed, size in enumerate(SIZES)]
    labels = [np.arange(6) + 6 * i for i in range(4)]
    kept = 0
    for seed in range(60):
        plan = draw(seed, replace(PLAIN, mosaic=mosaic), shape=shape, index=seed % 4)
        picture, moved, classes = run(plan, images, boxes, labels)
        twin, expected = warp_each_tile(plan, images, boxes, labels)
        assert picture.shape == (*shape, 3)
        assert classes.tolist() == expected[:, 4].tolist()
        assert np.abs(moved - expected[:, :4]).max(initial=0) < 1e-3
        difference = np.abs(picture.astype(int) - twin)
        assert difference.mean() < 1.5
        assert np.percentile(difference, 99) <= 12
        kept += len(moved)
    assert kept > 120


def joined_on_a_canvas(seed, images, boxes, labels, side):
    """Slow twin of the whole for square inputs: the same draws, a canvas of twice the side, one warp, float boxes."""
    rng = np.random.default_rng(seed)
    rng.random()
    indexes = [0, *rng.integers(len(images), size=3)]
    joint_x, joint_y = rng.uniform(-0.5, 0.5, 2) * side + side
    scale = rng.uniform(0.5, 1.5)
    shift_x, shift_y = rng.uniform(0.4, 0.6, 2) * side - side * scale
    canvas, found = np.full((2 * side, 2 * side, 3), MOSAIC_GREY, np.uint8), []
    for index, (is_right, is_below) in zip(indexes, ((0, 0), (1, 0), (0, 1), (1, 1)), strict=True):
        image = images[index]
        fit = side / max(image.shape[:2])
        width, height = image.shape[1] * fit, image.shape[0] * fit
        left, top = (joint_x if is_right else joint_x - width), (joint_y if is_below else joint_y - height)
        ends = (round(left), round(top), round(left + width), round(top + height))
        resized = cv2.resize(image, (ends[2] - ends[0], ends[3] - ends[1]))
        x1, y1, x2, y2 = clip(ends, 0, 0, 2 * side, 2 * side)
        canvas[y1:y2, x1:x2] = resized[y1 - ends[1] : y2 - ends[1], x1 - ends[0] : x2 - ends[0]]
        for box, label in zip(boxes[index] * fit + (left, top, left, top), labels[index], strict=True):
            before = np.array(clip(box, 0, 0, 2 * side, 2 * side)) * scale
            after = clip(before + np.array([shift_x, shift_y] * 2), 0, 0, side, side)
            found.append((before, after, label))
    half = scale / 2 - 0.5
    matrix = np.array([[scale, 0, shift_x + half], [0, scale, shift_y + half]])
    border = (MOSAIC_GREY,) * 3
    return cv2.warpAffine(canvas, matrix, (side, side), borderValue=border), found


def test_a_canvas_warped_by_the_same_draws_agrees():
    images = [smooth_image(size, seed) for seed, size in enumerate(SIZES)]
    boxes = [random_boxes(size, seed) for seed, size in enumerate(SIZES)]
    labels = [np.arange(6) + 6 * i for i in range(4)]
    errors, matched = [], 0
    for seed in range(60):
        plan = draw(seed, replace(PLAIN, flip=0.0), shape=(160, 160))
        picture, moved, classes = run(plan, images, boxes, labels)
        twin, found = joined_on_a_canvas(seed, images, boxes, labels, 160)
        surely = [(after, label) for before, after, label in found if large_enough(before, after)]
        assert abs(len(moved) - len(surely)) <= 2, "half a pixel decides at most over boxes at the limit"
        for after, label in surely:
            same = moved[classes == label]
            distance = np.abs(same - after).max(axis=1, initial=0)
            matched += bool((distance < 1.01).any())
        errors.append(np.abs(picture.astype(int) - twin).mean())
        assert np.mean(np.abs(picture.astype(int) - twin).max(axis=2) > 25) < 0.06, "but for a line where images meet"
    assert matched > 300
    assert np.mean(errors) < 1.5


def marked(index):
    """Black with one rectangle in the image's own colour."""
    height, width = SIZES[index]
    rng = np.random.default_rng(index)
    x1, y1 = rng.integers(0, (width // 3, height // 3))
    x2, y2 = rng.integers((width // 2, height // 2), (width + 1, height + 1))
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = COLOURS[index]
    return image, np.array([(x1, y1, x2, y2)], np.float32), np.array([index])


@pytest.mark.parametrize("shape", [(96, 96), (64, 160)])
@pytest.mark.parametrize("ranges", [PLAIN, replace(PLAIN, mosaic=0.0)])
def test_marks_are_found_where_the_boxes_say(shape, ranges):
    images, boxes, labels = zip(*(marked(i) for i in range(4)), strict=True)
    errors = []
    for seed in range(150):
        plan = draw(seed, ranges, shape=shape, index=seed % 4)
        picture, moved, classes = run(plan, images, boxes, labels)
        shown = [tile.index for tile in plan.tiles]
        for index in (i for i in set(shown) if shown.count(i) == 1):
            is_mark = (np.abs(picture.astype(int) - COLOURS[index]) < 128).all(axis=2)
            rows, columns = np.nonzero(is_mark)
            box = moved[classes == index]
            if len(box):
                found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                errors.append(box[0] - found)
            else:
                assert is_mark.sum() < 0.2 * np.prod(shape)
    errors = np.array(errors)
    assert len(errors) > 100
    assert np.abs(errors).max() < 0.8, "an edge is at most half a pixel from where the pixels change"
    assert np.abs(errors.mean(axis=0)).max() < 0.15, "no edge is shifted on average"


FOUR = MosaicPlan(
    (40, 60),
    (
        Tile(0, PixelRect(10, 5, 20, 15), PixelRect(-4, 0, 16, 20), PixelRect(0, 0, 16, 20)),
        Tile(1, PixelRect(0, 0, 30, 20), PixelRect(16, 0, 46, 20), PixelRect(16, 0, 46, 20)),
    ),
    PixelRect(-4, -10, 46, 70),
    False,
    0.0,
    1.0,
    1.0,
)


def test_a_known_plan_lands_where_it_says():
    images = [np.full((20, 30, 3), level, np.uint8) for level in (200, 50)]
    boxes = [np.array([[10, 5, 20, 15], [12, 7, 14, 9]], np.float32), np.array([[0, 0, 30, 20]], np.float32)]
    picture, moved, labels = apply_mosaic(FOUR, images, boxes, [np.array([7, 8]), np.array([9])])
    assert (picture[:20, :16] == 200).all()
    assert (picture[:20, 16:46] == 50).all()
    assert (picture[20:] == MOSAIC_GREY).all()
    assert (picture[:, 46:] == MOSAIC_GREY).all()
    assert moved.tolist() == [[0, 0, 16, 20], [0, 4, 4, 8], [16, 0, 46, 20]]
    assert labels.tolist() == [7, 8, 9]
    mirrored, turned, _ = apply_mosaic(replace(FOUR, is_flipped=True), images, boxes, [np.array([7, 8]), np.array([9])])
    assert np.array_equal(mirrored, picture[:, ::-1])
    assert turned.tolist() == [[44, 0, 60, 20], [56, 4, 60, 8], [14, 0, 44, 20]]


WHOLE = (Tile(0, PixelRect(0, 0, 300, 300), PixelRect(-50, 0, 250, 300), PixelRect(0, 0, 100, 300)),)


@pytest.mark.parametrize(
    ("box", "is_kept"),
    [
        ((50, 0, 52, 9), False),  # 2 px wide
        ((50, 0, 52.5, 9), True),
        ((60, 5, 80, 7), False),
        ((60, 5, 80, 7.5), True),
        ((40, 10, 140, 50), True),
        ((20, 10, 53, 50), False),  # 3 of 33
        ((20, 10, 53.5, 50), True),  # 3.5 of 33.5
        ((147, 10, 177, 50), False),  # exactly a tenth
        ((60, 0, 62.89, 290), False),  # a line
        ((60, 0, 62.91, 290), True),
        ((0, 0, 50, 50), False),  # out of sight
        ((-200, 0, 90, 300), True),  # of what lay on the canvas (0 to 140 of it), 40 are left
        ((140, 0, 290, 300), False),  # 10 of 110 on the canvas
        ((140, 0, 290, 200), False),
    ],
)
def test_which_boxes_are_kept(box, is_kept):
    plan = MosaicPlan((300, 100), WHOLE, PixelRect(-50, 0, 200, 300), False, 0.0, 1.0, 1.0)
    image = np.zeros((300, 300, 3), np.uint8)
    _, moved, labels = apply_mosaic(plan, [image], [np.array([box], np.float32)], [np.array([3])])
    assert len(moved) == is_kept
    assert labels.tolist() == [3] * is_kept
    assert ((moved >= 0) & (moved <= (100, 300, 100, 300))).all()


def test_what_the_canvas_had_cut_off_counts_for_nothing():
    """Of a box 1000 wide 100 lay on the canvas and 20 are seen: a fifth, not a fiftieth."""
    tiles = (Tile(0, PixelRect(0, 0, 1000, 50), PixelRect(-980, 0, 20, 50), PixelRect(0, 0, 20, 50)),)
    plan = MosaicPlan((50, 50), tiles, PixelRect(-80, 0, 50, 50), False, 0.0, 1.0, 1.0)
    image, box = np.zeros((50, 1000, 3), np.uint8), np.array([[0, 0, 1000, 50]], np.float32)
    assert apply_mosaic(plan, [image], [box], [np.array([0])])[1].tolist() == [[0, 0, 20, 50]]
    wide = replace(plan, canvas=PixelRect(-980, 0, 50, 50))
    assert apply_mosaic(wide, [image], [box], [np.array([0])])[1].shape == (0, 4)


def test_no_boxes_no_tiles_and_arguments_untouched():
    image = np.full((20, 30, 3), 200, np.uint8)
    dark = replace(FOUR, value=0.5)
    picture, boxes, labels = apply_mosaic(dark, [image, image], [NO_BOXES[0]] * 2, [NO_BOXES[1]] * 2)
    assert (boxes.shape, labels.shape) == ((0, 4), (0,))
    assert (boxes.dtype, labels.dtype) == (np.float32, np.int64)
    assert (picture[:20, :46] == 100).all()
    assert (picture[30, 50] == MOSAIC_GREY // 2).all(), "padding takes part in the colours"
    assert (image == 200).all()
    picture, boxes, labels = apply_mosaic(replace(FOUR, tiles=()), [], [], [])
    assert (picture == MOSAIC_GREY).all()
    assert (boxes.shape, labels.shape) == ((0, 4), (0,))


@pytest.mark.parametrize(
    ("gains", "colour", "expected"),
    [
        ({"value": 0.5}, (200, 100, 50), (100, 50, 25)),
        ({"saturation": 0.5}, (200, 100, 100), (200, 150, 150)),
        ({"hue": 1 / 3}, (200, 0, 0), (0, 200, 0)),
        ({"hue": -1 / 3}, (200, 0, 0), (0, 0, 200)),  # round the circle
        ({"hue": 0.5}, (120, 120, 120), (120, 120, 120)),
    ],
)
def test_colours(gains, colour, expected):
    image = np.full((20, 30, 3), colour, np.uint8)
    picture, _, _ = apply_mosaic(replace(FOUR, **gains), [image] * 2, [NO_BOXES[0]] * 2, [NO_BOXES[1]] * 2)
    assert np.abs(picture[10, 30].astype(int) - expected).max() <= 4


def test_an_image_alone_is_letterboxed_first():
    plan = draw(0, replace(STILL, mosaic=0.0), shape=(64, 160), index=1)
    assert plan.tiles == (Tile(1, PixelRect(0, 0, 90, 200), PixelRect(66, 0, 94, 64), PixelRect(66, 0, 94, 64)),)
    plan = draw(0, replace(STILL, mosaic=0.0), shape=(96, 96), index=0)
    assert plan.tiles == (Tile(0, PixelRect(0, 0, 160, 120), PixelRect(0, 12, 96, 84), PixelRect(0, 12, 96, 84)),)


def test_drawn_values_fill_their_ranges():
    plans = [draw(seed, ModernRanges(), shape=(320, 320)) for seed in range(2000)]
    scale = np.array([plan.canvas.right - plan.canvas.left for plan in plans]) / 640
    centre = np.array([(plan.canvas.left + plan.canvas.right, plan.canvas.top + plan.canvas.bottom) for plan in plans])
    is_flipped = np.array([plan.is_flipped for plan in plans])
    checks = [(scale, 0.5, 1.5), (centre[:, 0] / 640, 0.4, 0.6), (centre[:, 1] / 640, 0.4, 0.6)]
    for name, middle, spread in (("hue", 0, 0.015), ("saturation", 1, 0.7), ("value", 1, 0.4)):
        checks.append((np.array([getattr(plan, name) for plan in plans]), middle - spread, middle + spread))
    for values, low, high in checks:
        counts, _ = np.histogram(values, bins=10, range=(low - 0.003 * (high - low), high + 0.003 * (high - low)))
        assert counts.sum() >= 1990
        assert counts.min() > 150
        assert counts.max() < 250
    assert is_flipped.mean() == pytest.approx(0.5, abs=0.04)


def test_the_joint_is_anywhere_in_the_middle_half_of_the_canvas():
    joints = []
    for seed in range(1000):
        plan = draw(seed, STILL, sizes=np.full((4, 2), 64), shape=(100, 100))
        corner = next((t.window for t in plan.tiles if t.target.right <= 100 and t.target.bottom <= 100), None)
        joints.append((corner.right, corner.bottom) if corner else (0, 0))
    counts, _, _ = np.histogram2d(*np.array(joints).T, bins=5, range=[[0, 100], [0, 100]])
    assert counts.min() > 15
    assert counts.max() < 75


def test_partners_come_from_all_images_and_mosaic_as_often_as_asked():
    sizes = np.full((10, 2), 64)
    plans = [draw(seed, replace(STILL, mosaic=0.7), sizes=sizes, index=3) for seed in range(1500)]
    is_mosaic = np.array([plan.canvas.right - plan.canvas.left == 192 for plan in plans])
    assert is_mosaic.mean() == pytest.approx(0.7, abs=0.04)
    alone = [plan for plan, many in zip(plans, is_mosaic, strict=True) if not many]
    assert {tile.index for plan in alone for tile in plan.tiles} == {3}
    joined = [plan for plan, many in zip(plans, is_mosaic, strict=True) if many]
    partners = np.bincount([tile.index for plan in joined for tile in plan.tiles if tile.index != 3], minlength=10)
    assert partners[3] == 0
    assert np.delete(partners, 3).min() > 200
    assert max(len(plan.tiles) for plan in joined) == 4


def test_tiles_are_inside_and_apart():
    for seed in range(300):
        plan = draw(seed, shape=(64, 160))
        cover = np.zeros((64, 160), int)
        for tile in plan.tiles:
            size = SIZES[tile.index]
            assert 0 <= tile.source.left < tile.source.right <= size[1]
            assert 0 <= tile.source.top < tile.source.bottom <= size[0]
            for outer in (tile.target, plan.canvas, PixelRect(0, 0, 160, 64)):
                assert outer.left <= tile.window.left < tile.window.right <= outer.right
                assert outer.top <= tile.window.top < tile.window.bottom <= outer.bottom
            cover[tile.window.rows, tile.window.columns] += 1
        assert cover.max() <= 1


def test_closed_for_the_last_epochs():
    ranges = replace(PLAIN, mosaic_end=5)
    open_plans = [draw(seed, ranges, epoch=4) for seed in range(30)]
    closed = [draw(seed, ranges, epoch=5) for seed in range(30)]
    assert max(len(plan.tiles) for plan in open_plans) == 4
    assert all(len(plan.tiles) <= 1 for plan in closed)
    assert [plan.is_flipped for plan in closed] == [plan.is_flipped for plan in open_plans]
    assert all(len(draw(seed, replace(PLAIN, mosaic_end=0)).tiles) <= 1 for seed in range(30))


def test_one_image_is_joined_with_itself():
    plans = [draw(seed, STILL, sizes=np.array([(50, 70)])) for seed in range(20)]
    assert {tile.index for plan in plans for tile in plan.tiles} == {0}
    assert max(len(plan.tiles) for plan in plans) == 4


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_tiny_images_survive(size, mosaic):
    image, box = np.full((*size, 3), 250, np.uint8), np.array([(0, 0, size[1], size[0])], np.float32)
    seen = 0
    for seed in range(40):
        plan = draw(seed, replace(PLAIN, mosaic=mosaic), sizes=np.array([size]), shape=(64, 96))
        picture, boxes, _ = run(plan, [image], [box], [np.array([0])])
        assert picture.shape == (64, 96, 3)
        assert np.isfinite(boxes).all()
        seen += bool((picture == 250).any())
    assert seen > 30
