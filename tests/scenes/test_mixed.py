"""Images with drawn objects of sixty-four classes: the data of the start weights."""

from collections import Counter

import numpy as np
import pytest

import scenes.mixed
from config.load import load_config
from dl.check import check_data
from dl.formats.discover import as_overrides, locate
from scenes.aircraft import PLANFORMS
from scenes.dataset import AIRCRAFT, make_data_set
from scenes.mixed import MIN_SIDE, paint_mixed
from scenes.objects import FAMILIES, OBJECTS, draw_object


def test_the_classes_are_sixty_four_and_none_is_a_type_of_the_demo():
    assert len(OBJECTS) == len(set(OBJECTS)) == 64
    assert sum(count for count, _ in FAMILIES.values()) == 64
    assert not set(OBJECTS) & set(AIRCRAFT)
    demo = {part.outline.tobytes() for form in PLANFORMS.values() for part in form.parts}
    for label in range(len(OBJECTS)):
        form = draw_object(label, np.random.default_rng(0))
        assert not demo & {part.outline.tobytes() for part in form.parts}


@pytest.mark.parametrize("label", range(len(OBJECTS)))
def test_every_object_can_be_drawn(label):
    rng = np.random.default_rng(label)
    first, second = (draw_object(label, rng) for _ in range(2))
    for form in (first, second):
        assert form.resembles == OBJECTS[label]
        assert min(form.length, form.span) > 0.2
        for part in form.parts:
            assert part.outline.dtype == np.float32 and part.outline.shape[1:] == (2,)
            assert np.isfinite(part.outline).all()
    # Objects of one class differ, and have the same parts.
    assert not np.array_equal(first.parts[0].outline, second.parts[0].outline)
    assert [part.tone for part in first.parts] == [part.tone for part in second.parts]


def test_an_image_depends_on_seed_and_index_alone():
    first, again = paint_mixed(1, 128, 4), paint_mixed(1, 128, 4)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for other in (paint_mixed(1, 128, 5), paint_mixed(2, 128, 4)):
        assert np.abs(first.image.astype(int) - other.image).mean() > 5


def test_images_have_all_classes_and_sound_boxes():
    counts, per_image = Counter(), []
    for index in range(120):
        image, boxes, labels = paint_mixed(7, 160, index)
        assert image.shape == (160, 160, 3) and image.dtype == np.uint8
        assert len(boxes) == len(labels)
        assert (boxes >= 0).all() and (boxes <= 160).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all()
        counts.update(labels.tolist())
        per_image.append(len(labels))
    assert set(counts) == set(range(len(OBJECTS)))
    assert min(per_image) <= 2 and max(per_image) >= 12


def test_boxes_are_tight_around_what_is_visible(monkeypatch):
    """Each object is pasted as a flat number, without soft edges; the boxes must follow the pixels of that image."""
    pasted = []

    def paste(image, sprite, opacity):
        assert 0.5 <= opacity <= 1
        pasted.append(sprite)
        for row, column in zip(*np.nonzero(sprite.coverage >= 0.3), strict=True):
            y, x = sprite.top + row, sprite.left + column
            if 0 <= y < len(image) and 0 <= x < len(image):
                image[y, x] = len(pasted)

    monkeypatch.setattr(scenes.mixed, "_paint_ground", lambda rng, size: np.zeros((size, size, 3), np.uint8))
    monkeypatch.setattr(scenes.mixed, "_cast_shadow", lambda *arguments: None)
    monkeypatch.setattr(scenes.mixed, "paste", paste)
    monkeypatch.setattr(scenes.mixed, "develop", lambda image, clouds, sky, rng: numbers.append(image.copy()) or image)
    num_hidden = 0
    for index in range(40):
        numbers = []
        pasted.clear()
        boxes = paint_mixed(3, 160, index).boxes.tolist()
        expected = []
        for number, sprite in enumerate(pasted, 1):
            rows, columns = np.nonzero(numbers[0][..., 0] == number)
            if len(rows) == 0 or len(rows) < 0.4 * (sprite.coverage >= 0.3).sum():
                num_hidden += 1
                continue
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE:
                expected.append(box)
        assert boxes == expected
    assert num_hidden > 0


def test_a_data_set_of_objects_can_be_trained_on(tmp_path):
    folder = make_data_set(tmp_path / "set", num_images=6, seed=5, size=96, num_workers=1, kind="objects")
    assert (folder / "classes.txt").read_text().split() == list(OBJECTS)
    mcfg = load_config("voc.nano.full", root=tmp_path, data=folder)
    splits = check_data(mcfg.with_values(**as_overrides(locate(mcfg))), ["train", "validation", "test"]).splits
    boxes = {annotation.image_id: annotation.boxes for split in splits.values() for annotation in split}
    assert len(boxes) == 6
    for index in range(6):
        np.testing.assert_array_equal(boxes[f"scene{index:05d}"], paint_mixed(5, 96, index).boxes)
    # Another kind in the same folder is drawn again.
    before = (folder / "images/scene00000.jpg").read_bytes()
    make_data_set(folder, num_images=6, seed=5, size=96, num_workers=1)
    assert (folder / "images/scene00000.jpg").read_bytes() != before
    assert (folder / "classes.txt").read_text().split() == list(AIRCRAFT)
