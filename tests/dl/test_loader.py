import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import dl.label_selection
from config.errors import UserError
from dl.check import check_data
from dl.loader import EpochSampler, build_loader, collate
from dl.mosaic import ModernRanges
from ops.batch import Sample


def sample(boxes, name="a", size=(8, 6)):
    image = np.random.default_rng(len(boxes)).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.arange(len(boxes)), name)


def test_collate_pads_to_the_most_boxes():
    samples = [sample([[1, 2, 3, 4]], "x"), sample([], "y"), sample([[0, 0, 5, 5], [1, 1, 2, 2]], "z")]
    batch = collate(samples)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous()
    for row, one in enumerate(samples):
        assert np.array_equal(batch.images[row].numpy(), one.image.transpose(2, 0, 1))
    assert batch.valid.tolist() == [[True, False], [False, False], [True, True]]
    assert batch.boxes[2].tolist() == [[0, 0, 5, 5], [1, 1, 2, 2]]
    assert batch.boxes[1].abs().sum() == 0
    assert batch.labels.tolist() == [[0, 0], [0, 0], [0, 1]]
    assert (batch.boxes.dtype, batch.labels.dtype, batch.valid.dtype) == (torch.float32, torch.int64, torch.bool)
    assert batch.image_ids == ("x", "y", "z")
    assert len(batch) == 3


def test_collate_of_images_without_boxes_has_no_columns():
    batch = collate([sample([]), sample([])])
    assert batch.boxes.shape == (2, 0, 4)
    assert batch.labels.shape == batch.valid.shape == (2, 0)


def marked(labelled, name="a"):
    return replace(sample([[1, 2, 3, 4]], name), labelled=None if labelled is None else np.array(labelled))


def test_collate_of_marks():
    assert collate([marked(None), marked(None)]).labelled is None
    batch = collate([marked([True, False, False]), marked(None), marked([False, False, False])])
    assert batch.labelled.dtype == torch.bool
    assert batch.labelled.tolist() == [[True, False, False], [True, True, True], [False, False, False]]
    assert collate([marked([False, True])]).labelled.tolist() == [[False, True]]
    assert torch.equal(batch.to("cpu").labelled, batch.labelled)


def test_collate_of_nothing():
    with pytest.raises(ValueError, match="at least one sample"):
        collate([])


def test_sampler_in_order_and_shuffled():
    keys = [[key[:2] for key in batch] for batch in EpochSampler(5, 2)]
    assert keys == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)]]
    assert len(EpochSampler(5, 2)) == 3
    assert list(EpochSampler(0, 2)) == []
    sampler = EpochSampler(50, 8, shuffle_seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.epoch = epoch
        keys = [key for batch in sampler for key in batch]
        assert sorted(key[:2] for key in keys) == [(epoch, index) for index in range(50)]
        orders.append([key.index for key in keys])
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != list(range(50))


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "sizes"),
    [(0, 2, []), (1, 4, [1]), (2, 4, [2]), (4, 4, [4]), (5, 4, [5]), (6, 4, [4, 2]), (9, 4, [4, 5]), (3, 2, [3])],
)
def test_a_single_image_at_the_end_joins_the_batch_before(num_samples, batch_size, sizes):
    joined = EpochSampler(num_samples, batch_size, shuffle_seed=1, min_batch=2)
    plain = EpochSampler(num_samples, batch_size, shuffle_seed=1)
    assert [len(batch) for batch in joined] == sizes
    assert len(joined) == len(sizes)
    assert [key for batch in joined for key in batch] == [key for batch in plain for key in batch], "in the same order"


@pytest.fixture
def many(make_folder):
    return make_folder({"train": [f"n{i}" for i in range(7)], "validation": ["v", "w", "x"], "test": ["t"]})


def epochs_of(loader, epochs):
    batches = []
    for epoch in epochs:
        loader.set_epoch(epoch)
        batches.append(list(loader))
    return batches


def same(one, other):
    tensors = all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("images", "boxes", "labels", "valid"))
    return tensors and one.image_ids == other.image_ids


def test_the_same_bits_with_0_and_2_workers_and_after_a_restart(many, config):
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    alone = epochs_of(build_loader(config(many), "train"), range(3))
    helped = epochs_of(build_loader(config(many, dcore=2), "train"), range(3))
    restarted = epochs_of(build_loader(config(many, dcore=2), "train"), [2])
    assert [len(batch) for batch in alone[0]] == [2, 2, 2, 1]
    for epoch in range(3):
        assert all(same(one, other) for one, other in zip(alone[epoch], helped[epoch], strict=True))
    assert all(same(one, other) for one, other in zip(alone[2], restarted[0], strict=True))
    assert not same(alone[0][0], alone[1][0])
    assert torch.equal(state, torch.random.get_rng_state()), "the run's own randomness is not touched"


@pytest.mark.parametrize(("side", "sizes"), [(32, [2, 2, 3]), ((32, 64), [2, 2, 2, 1]), (64, [2, 2, 2, 1])])
@pytest.mark.parametrize("workers", [0, 2])
def test_no_batch_of_one_where_the_coarsest_map_is_a_pixel(many, config, side, sizes, workers):
    loader = build_loader(config(many, inputShape=side, dcore=workers), "train")
    (batches,) = epochs_of(loader, [3])
    assert ([len(batch) for batch in batches], len(loader)) == (sizes, len(sizes))
    loader.set_epoch(3, first_batch=len(sizes) - 1)
    (last,) = loader
    loader.close()
    assert same(last, batches[-1])
    assert [len(batch) for batch in build_loader(config(many, inputShape=side), "validation")] == [2, 1], "as it is"


def test_batches_that_batch_norm_cannot_take_are_refused(many, config):
    with pytest.raises(UserError, match=r"^batchSize=1: at inputShape=32,32 the coarsest feature map has one pixel"):
        build_loader(config(many, inputShape=32, batchSize=1), "train")
    with pytest.raises(UserError, match=r"^one image in 'train': at inputShape=32,32 "):
        build_loader(config(many, inputShape=32, subsetMap={"train": ["n1"]}), "train")
    for shape in (64, (32, 64), (64, 32)):
        assert len(build_loader(config(many, inputShape=shape, batchSize=1), "train")) == 7
    assert len(build_loader(config(many, inputShape=32, batchSize=1), "train", train=False)) == 7


def test_where_reading_fails_no_batch_of_one_is_left(many, config):
    fields = {"badFiles": "skip", "cacheImages": "none", "inputShape": 32, "augmentation": "none"}
    loader = build_loader(config(many, **fields), "train")
    first = next(iter(loader)).image_ids
    (many / f"images/{first[0]}.jpg").unlink()
    assert [len(batch) for batch in loader] == [2, 3]


def test_an_epoch_left_early_does_not_leak_into_the_next(many, config):
    loader = build_loader(config(many, dcore=2), "train")
    expected = epochs_of(build_loader(config(many), "train"), [1])[0]
    next(iter(loader))
    assert len(expected) == len(loader) > 1
    assert all(same(one, other) for one, other in zip(epochs_of(loader, [1])[0], expected, strict=True))


def test_evaluation_is_letterboxed_in_order(many, config):
    loader = build_loader(config(many), "validation")
    assert len(loader) == 2
    assert len(loader.dataset) == 3
    first, last = list(loader)
    assert first.image_ids + last.image_ids == ("v", "w", "x")
    assert first.letterboxes[0] == (1.6, 1.6, 0, 8, 30, 40)
    assert torch.allclose(first.boxes[0], torch.tensor([[8.0, 17.6, 40, 49.6]]))


def test_train_says_whether_to_augment(many, config):
    assert next(iter(build_loader(config(many), "train", train=False))).letterboxes[0] is not None
    assert next(iter(build_loader(config(many), "validation", train=True))).letterboxes[0] is None
    plain = build_loader(config(many, augmentation="none"), "train")
    batches = [name for batch in plain for name in batch.image_ids]
    assert sorted(batches) == [f"n{i}" for i in range(7)] != batches
    assert next(iter(plain)).letterboxes[0] is not None
    small = config(many, trainSplitName="validation")
    assert next(iter(build_loader(small, "validation"))).letterboxes[0] is None


def test_annotations_may_be_given(many, config):
    mcfg = config(many)
    annotations = check_data(mcfg, ["train"]).splits["train"][:3]
    assert len(build_loader(mcfg, "train", annotations).dataset) == 3


def test_selected_classes_are_for_training_only(many, config):
    mcfg = config(many, trainSelectedClasses=("dog",))
    assert next(iter(build_loader(mcfg, "validation"))).valid.all()
    with pytest.raises(UserError, match="did you mean 'cat'"):
        build_loader(config(many, trainSelectedClasses=("catt",)), "train")


@pytest.mark.parametrize("unselected", ["keep", "drop"])
def test_a_training_without_any_object_stops(many, config, write_voc, unselected):
    fields = {"trainSelectedClasses": ("dog",), "unselectedImages": unselected}
    message = (
        rf"trainSelectedClasses=dog: split 'train' \(annotations in {many}\) has no object of these classes; select"
    )
    with pytest.raises(UserError, match=message):
        build_loader(config(many, **fields), "train")
    for i in range(7):
        write_voc(many / f"annotations/n{i}.xml", objects=())
    with pytest.raises(UserError, match=rf"split 'train' \(annotations in {many}\) has no object to train on; "):
        build_loader(config(many), "train")
    assert len(build_loader(config(many), "train", train=False).dataset) == 7, "negatives may be evaluated"


@pytest.mark.parametrize(("unselected", "left", "fate"), [("keep", 7, "are background"), ("drop", 4, "are left out")])
def test_images_that_the_selection_leaves_without_objects_are_said(
    many, config, write_voc, caplog, unselected, left, fate
):
    write_voc(many / "annotations/n0.xml", objects=())
    for i in range(3):
        write_voc(many / f"annotations/n{i + 1}.xml", objects=[("dog", (1, 1, 9, 9))])
    mcfg = config(many, trainSelectedClasses=("cat",), unselectedImages=unselected)
    with caplog.at_level("INFO", logger="mars"):
        assert len(build_loader(mcfg, "train").dataset) == left
        build_loader(mcfg, "validation")
        build_loader(config(many), "train")
    said = f"split 'train' has 7 images; 3 of them have only other classes and {fate} (unselectedImages={unselected})"
    assert [line for line in caplog.messages if "Selected" in line] == [f"trainSelectedClasses=cat: {said}"]


def test_the_class_list_of_the_config_is_taken(many, config, monkeypatch):
    mcfg = config(many, classList=("cat", "dog"), trainSelectedClasses=("cat",))
    annotations = check_data(mcfg, ["train"]).splits["train"]
    monkeypatch.setattr(dl.label_selection, "locate", lambda mcfg: pytest.fail("searched again"))
    assert len(build_loader(mcfg, "train", annotations)) == 4


def test_memory_is_pinned_for_a_gpu_that_is_used_only(many, config, monkeypatch):
    assert not build_loader(config(many, device="cpu"), "train").pin_memory
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for fields in ({"device": "cpu"}, {"cuda": False}):
        assert not build_loader(config(many, **fields), "train").pin_memory
    monkeypatch.setattr(dl.loader, "pick_device", lambda word, _allow: torch.device(word))
    assert build_loader(config(many, device="cuda:1"), "train").pin_memory


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_in_one_sentence(many, config, truncated_jpeg, workers):
    loader = build_loader(config(many, dcore=workers), "train")
    path = truncated_jpeg(many / "images/n3.jpg")
    with pytest.raises(UserError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"{path}: the image cannot be read (")
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kept", ["none", "ram", "disk"])
def test_the_same_bits_however_images_are_kept_and_by_how_many(many, config, tmp_path, workers, kept, write_image):
    for i in range(7):
        write_image(many / f"images/n{i}.jpg", (40 + i, 30))
        (many / f"annotations/n{i}.xml").write_text(
            (many / f"annotations/n{i}.xml").read_text().replace("<width>40", f"<width>{40 + i}")
        )
    fields = {"augmentation": "modern", "maxEpoch": 3, "closeMosaic": 1, "root": str(tmp_path / "runs")}
    plain = build_loader(config(many, cacheImages="none", **fields), "train")
    loader = build_loader(config(many, cacheImages=kept, dcore=workers, **fields), "train")
    for epoch in (0, 1, 2, 0):
        expected, got = epochs_of(plain, [epoch])[0], epochs_of(loader, [epoch])[0]
        assert all(same(one, other) for one, other in zip(expected, got, strict=True))
    loader.set_epoch(1, first_batch=2)
    assert all(same(one, other) for one, other in zip(epochs_of(plain, [1])[0][2:], loader, strict=True))
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_mosaic_ends_by_position_and_random_numbers_follow_the_epoch(many, config, workers):
    """Mosaic ends at position 4 of 6; a shortened run is there in its third epoch."""
    loader = build_loader(config(many, augmentation="modern", maxEpoch=6, dcore=workers), "train")
    loader.set_epoch(2)
    full = list(loader)
    for position, has_mosaic in ((3.5, True), (4.0, False)):
        loader.set_epoch(2, position=position)
        assert all(key.has_mosaic is has_mosaic for batch in loader.sampler for key in batch)
        shortened = list(loader)
        assert all(same(one, other) for one, other in zip(full, shortened, strict=True)) is has_mosaic
        assert [one.image_ids for one in shortened] == [one.image_ids for one in full]
    loader.close()


def test_the_config_says_how_far_the_modern_augmentation_goes(many, config):
    fields = {"mosaic": 0.3, "closeMosaic": 4, "maxEpoch": 20, "scaleRange": 0.25, "translate": 0.2, "flip": 0.1}
    mcfg = config(many, augmentation="modern", hsv=(0.1, 0.2, 0.3), **fields)
    ranges = build_loader(mcfg, "train").dataset.ranges
    assert ranges == ModernRanges(0.3, 16, 0.25, 0.2, 0.1, 0.1, 0.2, 0.3)
    assert build_loader(mcfg, "validation").dataset.ranges is None
    peer = build_loader(config(many, augmentation="modern", maxEpoch=100), "train").dataset.ranges
    assert peer == ModernRanges(mosaic_end=90), "the defaults of the config are the peer's"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"maxEpoch": 30}, "mosaic in epochs 1 to 20 of 30; the last 10 run without it"),
        (
            {"maxEpoch": 12},
            "mosaic in epochs 1 to 8 of 12; the last 4 run without it (closeMosaic=10, limited to a third",
        ),
        ({"maxEpoch": 1}, "mosaic in epoch 1 of 1 (closeMosaic=10, limited to a third of all epochs)"),
        ({"maxEpoch": 12, "closeMosaic": 0}, "mosaic in epochs 1 to 12 of 12"),
        ({"maxEpoch": 30, "startEpoch": 9}, "mosaic in epochs 10 to 20 of 30; the last 10 run without it"),
        (
            {"maxEpoch": 30, "startEpoch": 25},
            "mosaic is off: the last 10 epochs run without it, and this run has only 5",
        ),
        ({"maxEpoch": 30, "mosaic": 0.0}, None),
    ],
)
def test_the_log_tells_in_which_epochs_images_are_joined(many, config, caplog, fields, words):
    caplog.set_level("INFO", "mars")
    build_loader(config(many, augmentation="modern", **fields), "train")
    said = [line for line in caplog.messages if line.startswith("mosaic ")]
    assert len(said) == (words is not None)
    for line in said:
        assert line.startswith(words) and ("(" in line) == ("(" in words)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augmentation", ["assignment", "modern"])
def test_an_image_that_turns_unreadable_is_left_out_and_said_once(
    many, config, truncated_jpeg, caplog, workers, augmentation
):
    fields = {"badFiles": "skip", "cacheImages": "none", "augmentation": augmentation, "mosaic": 0.0}
    loader = build_loader(config(many, dcore=workers, **fields), "train")
    before = epochs_of(loader, [0, 1])
    path = truncated_jpeg(many / "images/n3.jpg")
    after = epochs_of(loader, [0, 1])
    loader.close()
    for one, other in zip(before, after, strict=True):
        sizes = [len(batch) - ("n3" in batch.image_ids) for batch in one]
        assert [len(batch) for batch in other] == [size for size in sizes if size]
        rows = {name: batch.images[i] for batch in one for i, name in enumerate(batch.image_ids)}
        left = {name: batch.images[i] for batch in other for i, name in enumerate(batch.image_ids)}
        assert rows.keys() - left.keys() == {"n3"}
        assert all(torch.equal(rows[name], left[name]) for name in left)
    assert list(loader.skipped) == ["n3"]
    assert loader.skipped["n3"].startswith(f"{path}: the image cannot be read (")
    assert caplog.messages == [f"image skipped from now on (badFiles=skip): {loader.skipped['n3']}"]


def test_in_the_middle_of_an_epoch(many, config, caplog):
    fields = {"badFiles": "skip", "cacheImages": "none", "batchSize": 1}
    loader = build_loader(config(many, **fields), "train")
    names = []
    for batch in loader:
        names += batch.image_ids
        if len(names) == 2:
            for i in range(7):
                if f"n{i}" not in names:
                    (many / f"images/n{i}.jpg").unlink()
    assert len(names) == 2, "batches with nothing left are passed over"
    assert len(loader.skipped) == len(caplog.messages) == 5
    assert set(loader.skipped) | set(names) == {f"n{i}" for i in range(7)}


def test_evaluation_leaves_out_as_well(many, config):
    loader = build_loader(config(many, badFiles="skip"), "validation")
    (many / "images/w.jpg").unlink()
    assert [name for batch in loader for name in batch.image_ids] == ["v", "x"]
    assert loader.skipped == {"w": f"{many / 'images/w.jpg'}: the image file does not exist"}


def test_no_image_left_at_all(many, config):
    loader = build_loader(config(many, badFiles="skip"), "validation")
    for name in "vwx":
        (many / f"images/{name}.jpg").unlink()
    with pytest.raises(
        UserError, match=r"all images have become unreadable, e.g. .*v.jpg: the image file does not exist"
    ):
        list(loader)


def test_kept_images_outlive_their_files(many, config):
    loader = build_loader(config(many, cacheImages="ram"), "train")
    first = epochs_of(loader, [0])[0]
    for i in range(7):
        (many / f"images/n{i}.jpg").unlink()
    assert len(first) == len(loader) > 1
    assert all(same(one, other) for one, other in zip(first, epochs_of(loader, [0])[0], strict=True))


@pytest.mark.parametrize("kept", ["none", "ram"])
def test_a_killed_worker_changes_no_bit(many, config, caplog, kept):
    fields = {"augmentation": "modern", "batchSize": 1, "cacheImages": kept}
    expected = epochs_of(build_loader(config(many, **fields), "train"), [0])[0]
    loader, got = build_loader(config(many, dcore=2, **fields), "train"), []
    for batch in loader:
        got.append(batch)
        if len(got) in (1, 4):
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    loader.close()
    assert all(same(one, other) for one, other in zip(expected, got, strict=True))
    assert 1 <= sum("was killed by SIGKILL" in line for line in caplog.messages) <= 2


def test_workers_end_at_once_when_told(many, config):
    loader = build_loader(config(many, dcore=2), "train")
    first = next(iter(loader))
    before = {child.pid for child in multiprocessing.active_children()}
    loader.close()
    assert len(before) >= 2
    assert not before & {child.pid for child in multiprocessing.active_children()}
    assert same(first, next(iter(loader)))
    loader.close()


def test_workers_are_no_more_than_batches(many, config):
    assert build_loader(config(many, dcore=8), "test").num_workers == 1
    assert 0 <= build_loader(config(many, dcore=None), "train").num_workers <= 4
