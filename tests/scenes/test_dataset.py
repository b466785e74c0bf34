import dataclasses
import itertools
import json
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

import scenes.compose
import scenes.dataset
from config.errors import UserError
from config.mconfig import ModelConfig
from dl.check import check_data
from dl.formats.voc import read_voc
from scenes.aircraft import PLANFORMS
from scenes.airfields import LAYOUTS, Roof, lay_out
from scenes.compose import paint_scene, plan_scene
from scenes.dataset import AIRCRAFT, draw_scene, make_data_set

SPLITS = ("train", "validation", "test", "small")
MAGENTA = (255, 0, 255)


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Thirty scenes of 128 pixels, drawn by one process; tests that change files make a folder of their own."""
    return make_data_set(tmp_path_factory.mktemp("drawn"), num_images=30, seed=3, size=128, num_workers=1)


@pytest.fixture
def few(tmp_path):
    """few(field=value, ...) -> a folder with four scenes of 64 pixels."""

    def make(**changed):
        return make_data_set(tmp_path / "set", **{"num_images": 4, "seed": 5, "size": 64, "num_workers": 1, **changed})

    return make


# One scene


def test_a_scene_depends_on_seed_and_index_alone():
    first, again = draw_scene(1, 4, 96), draw_scene(1, 4, 96)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for other in (draw_scene(1, 5, 96), draw_scene(2, 4, 96)):
        assert np.abs(first[0].astype(int) - other[0]).mean() > 5


def test_every_scene_is_sound():
    counts, num_planes = Counter(), Counter()
    for index in range(80):
        image, boxes, labels = draw_scene(7, index, 96)
        assert (image.shape, image.dtype) == ((96, 96, 3), np.uint8)
        assert image.std() > 4, "the image is not blank"
        assert (boxes.dtype, labels.dtype, len(boxes)) == (np.float32, np.int64, len(labels))
        assert boxes.min(initial=0) >= 0
        assert boxes.max(initial=0) <= 96
        assert (boxes[:, 2:] - boxes[:, :2]).min(initial=9) >= 3
        counts.update(labels.tolist())
        num_planes[len(labels)] += 1
    assert set(counts) == set(range(20)), "all twenty types appear"
    assert set(num_planes) == set(range(9))
    assert num_planes[0] < 8


def test_a_shorter_class_list_draws_only_its_types():
    classes = ("A10", "A4")
    scenes = [plan_scene(0, index, 128, classes) for index in range(12)]
    planes = [plane for scene in scenes for plane in scene.planes]
    assert {(plane.label, plane.planform.resembles) for plane in planes} == {
        (0, PLANFORMS["A10"].resembles), (1, PLANFORMS["A4"].resembles),
    }  # fmt: skip
    with pytest.raises(ValueError, match="no aircraft is called A21: the types are A1 to A20"):
        draw_scene(0, 0, 64, ("A1", "A21"))


def only_plane_number(number, monkeypatch):
    """Paint that plane in flat magenta, and no other; the rest of the scene stays as it was."""
    seen = itertools.count()

    def paste(image, sprite):
        if next(seen) != number:
            return
        for row, column in zip(*np.nonzero(sprite.coverage), strict=True):
            y, x = row + sprite.top, column + sprite.left
            if 0 <= y < len(image) and 0 <= x < len(image):
                share = sprite.coverage[row, column]
                image[y, x] = np.rint(image[y, x] * (1 - share) + np.array(MAGENTA) * share)

    monkeypatch.setattr(scenes.compose, "paste", paste)


def plainly_lit(scene):
    """The scene under a neutral sky; clouds stay."""
    sky = dataclasses.replace(scene.sky, haze=0.0, cast=(1.0, 1.0, 1.0), contrast=1.0, blur=0.0, noise=0.0)
    return dataclasses.replace(scene, sky=dataclasses.replace(sky, is_grey=False))


def bounds(mask):
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_boxes_are_tight_around_what_can_be_seen(monkeypatch):
    num_checked = Counter()
    for index in (0, 1, 5, 16, 23, 28):
        scene = plainly_lit(plan_scene(0, index, 200, AIRCRAFT))
        only_plane_number(-1, monkeypatch)
        empty, boxes, _ = paint_scene(scene)
        ground = paint_scene(dataclasses.replace(scene, sky=dataclasses.replace(scene.sky, has_clouds=False))).image
        for number, box in enumerate(boxes.tolist()):
            only_plane_number(number, monkeypatch)
            change = np.abs(paint_scene(scene).image.astype(int) - empty).sum(axis=2)
            whole = np.abs(np.array(MAGENTA) - ground.astype(int)).sum(axis=2)
            inner, outer = bounds(change > 0.34 * whole), bounds(change > 0.26 * whole)
            assert outer[0] <= box[0] <= inner[0]
            assert outer[1] <= box[1] <= inner[1]
            assert inner[2] <= box[2] <= outer[2]
            assert inner[3] <= box[3] <= outer[3]
            num_checked["border" if min(box) == 0 or max(box) == 200 else "inside"] += 1
        num_checked["clouds"] += scene.sky.has_clouds
        num_checked["roofs"] += len(scene.roofs) - len(scene.airfield.roofs)
    assert min(num_checked[what] for what in ("border", "inside", "clouds", "roofs")) >= 2, num_checked


def test_a_plane_that_is_mostly_hidden_is_in_neither_picture_nor_labels(monkeypatch):
    scene = plainly_lit(plan_scene(0, 18, 160, AIRCRAFT))
    assert len(paint_scene(scene).boxes) == len(scene.planes) == 5
    plane = scene.planes[0]
    pasted = []
    monkeypatch.setattr(scenes.compose, "paste", lambda image, sprite: pasted.append(sprite))
    for share, is_left in ((0.2, True), (0.8, False)):  # a roof over that share of its length
        length = plane.planform.length
        corners = [(-length, -99), (-length, 99), (share * length, 99), (share * length, -99)]
        over = plane.to_pixels(np.array(corners, np.float32))
        pasted.clear()
        found = paint_scene(dataclasses.replace(scene, roofs=(Roof(over, 0.0, (90, 90, 90)),)))
        mine = [
            label == plane.label and abs(box[:2] - plane.centre).max() < 60
            for box, label in zip(*found[1:], strict=True)
        ]
        assert any(mine[:1]) == is_left
        assert len(pasted) == len(found.boxes)


def test_planes_do_not_overlap():
    pairs = 0
    for index in range(25):
        taken = np.zeros((256, 256), np.uint8)
        for plane in plan_scene(2, index, 256, AIRCRAFT).planes:
            pairs += bool(taken.any())
            mask = np.zeros_like(taken)
            for part in plane.parts:
                cv2.fillPoly(mask, [np.rint(plane.to_pixels(part.outline)).astype(np.int32)], (1,))
            assert not (mask & taken).any()
            taken |= mask
    assert pairs > 25


# The twenty types


def silhouette(planform, side=96):
    """Nose up, the longer of span and length fills the square, filled by another library than the drawer's."""
    from PIL import ImageDraw

    canvas = Image.new("L", (side, side))
    scale = side / max(planform.length, planform.span)
    for part in planform.parts:
        if not part.tone.endswith("crease"):
            x = (part.outline[:, 1] * scale + side / 2).tolist()
            y = ((part.outline[:, 0] - planform.middle) * scale + side / 2).tolist()
            ImageDraw.Draw(canvas).polygon(list(zip(x, y, strict=True)), fill=1)
    return np.asarray(canvas).astype(bool)


def test_there_are_twenty_planforms_and_no_two_alike():
    assert list(AIRCRAFT) == [f"A{number}" for number in range(1, 21)]
    masks = {name: silhouette(planform) for name, planform in PLANFORMS.items()}
    ious = {
        (a, b): (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum() for a, b in itertools.combinations(masks, 2)
    }
    assert len(ious) == 190
    assert max(ious.values()) < 0.75, max(ious, key=ious.get)


@pytest.mark.parametrize("name", AIRCRAFT)
def test_a_planform_is_symmetrical_and_of_a_credible_size(name):
    planform = PLANFORMS[name]
    assert 12 < planform.length < 75
    assert 8 < planform.span < 70
    mask = silhouette(planform)
    mirrored = mask[:, ::-1]
    assert (mask & mirrored).sum() / (mask | mirrored).sum() > 0.93


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_has_stands_in_the_image(kind):
    for seed in range(5):
        site = lay_out(np.random.default_rng(seed), 640, 130.0, kind)
        inside = [stand for stand in site.stands if 0 <= stand.x <= 640 and 0 <= stand.y <= 640]
        assert len(inside) >= 1


# The data set


def test_the_check_finds_nothing_to_mend(drawn):
    mcfg = ModelConfig()
    mcfg.dataDir = str(drawn)
    checked = check_data(mcfg.frozen(), SPLITS)
    report = checked.report
    assert report.class_list == AIRCRAFT
    assert {name: split.images for name, split in report.splits.items() if name != "small"} == {
        "train": 22, "validation": 4, "test": 4,
    }  # fmt: skip
    warnings = [line for line in report.table().splitlines() if line.startswith("!")]
    assert all("negatives" in line for line in warnings), "scenes without a plane are meant"
    assert len(checked.source.notes) == 1, "only its place is noted"
    annotation = checked.splits["train"][0]
    assert (annotation.width, annotation.height) == (128, 128)


def test_files_describe_the_scene(drawn):
    for index in (0, 7, 29):
        image, boxes, labels = draw_scene(3, index, 128)
        voc = read_voc(drawn / f"annotations/scene{index:05d}.xml")
        assert voc.size == (128, 128)
        assert [entry.name for entry in voc.objects] == [AIRCRAFT[label] for label in labels]
        assert [list(entry.box) for entry in voc.objects] == boxes.tolist()
        stored = np.asarray(Image.open(drawn / f"images/scene{index:05d}.jpg")).astype(int)
        assert np.abs(stored - image).mean() < 6


def test_splits_share_nothing_and_small_is_a_part_of_train(drawn):
    ids = {name: (drawn / f"splits/{name}.txt").read_text().split() for name in SPLITS}
    parts = ids["train"] + ids["validation"] + ids["test"]
    assert sorted(parts) == [f"scene{index:05d}.jpg" for index in range(30)]
    assert set(ids["small"]) <= set(ids["train"])
    assert (drawn / "classes.txt").read_text().split() == list(AIRCRAFT)


def test_small_takes_ten_images_a_class():
    labels = {f"n{i:02d}": {0} if i < 25 else {0, 1} for i in range(40)} | {"none": set()}
    assert scenes.dataset._small(list(labels), labels) == (
        *(f"n{i:02d}" for i in range(10)), *(f"n{i:02d}" for i in range(25, 35)),
    )  # fmt: skip


def test_the_files_do_not_depend_on_the_number_of_processes(few, tmp_path):
    one = files_in(few(num_images=6))
    progress = []
    two = make_data_set(
        tmp_path / "two", 6, 5, 64, num_workers=2, on_image=lambda done, total: progress.append((done, total))
    )
    assert files_in(two) == one
    assert len(one) == 6 * 2 + 4 + 2
    assert progress == [(done, 6) for done in range(1, 7)]


def test_a_finished_folder_is_reused_at_once(few, monkeypatch):
    folder = few()
    monkeypatch.setattr(scenes.dataset, "export_scene", None)
    before = files_in(folder)
    assert few() == folder
    assert files_in(folder) == before


@pytest.mark.parametrize("left_out", ["drawn.json", "images/scene00001.jpg", "annotations", "classes.txt", "splits"])
def test_a_half_written_folder_is_completed(few, left_out):
    folder = few()
    whole = files_in(folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if str(path.relative_to(folder)).startswith(left_out):
            path.unlink()
    (folder / "images/scene00002.jpg").write_bytes(b"cut sho")
    assert few() == folder
    assert files_in(folder) == whole


def test_other_settings_draw_anew_and_leave_nothing_behind(few):
    folder = few(num_images=6)
    few(num_images=3, seed=8)
    assert json.loads((folder / "drawn.json").read_text())["seed"] == 8
    assert sorted(path.name for path in (folder / "images").iterdir()) == [f"scene0000{i}.jpg" for i in range(3)]
    assert len(list((folder / "annotations").iterdir())) == 3


@pytest.mark.parametrize("path", ["holiday.jpg", "images/holiday.jpg", "annotations/1.xml"])
def test_what_was_not_drawn_here_is_not_touched(few, tmp_path, path):
    own = tmp_path / "set" / path
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_bytes(b"mine")
    with pytest.raises(UserError, match="has files that Mars did not draw"):
        few()
    assert files_in(tmp_path / "set") == {path: b"mine"}


def test_mistakes_of_the_user_are_reported(few, tmp_path):
    with pytest.raises(UserError, match="2 images: at least three are needed"):
        few(num_images=2)
    with pytest.raises(UserError, match="size=16: a scene must have at least 64 x 64 pixels"):
        few(size=16)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/set: cannot write the data set there"):
        make_data_set(tmp_path / "file/set", 4, num_workers=1)
