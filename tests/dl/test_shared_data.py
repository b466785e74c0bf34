"""The real data sets, against the counts that their SOURCE.txt tells."""

import pytest

from dl.check import check_data
from dl.loader import build_loader

FOUND = {
    "bccd": {
        "images": {"train": 205, "validation": 87, "test": 72, "small": 30},
        "objects with the degenerate": {"train": 2382 + 214 + 209, "validation": 968 + 87 + 83, "test": 805 + 71 + 69},
        "degenerate": 2,
        "negatives": 0,
    },
    "aquarium": {
        "images": {"train": 448, "validation": 127, "test": 63, "small": 68},
        "objects with the degenerate": {
            "train": 1961 + 385 + 330 + 175 + 259 + 78 + 136,
            "validation": 459 + 155 + 104 + 74 + 57 + 27 + 33,
            "test": 249 + 154 + 82 + 35 + 38 + 11 + 15,
        },
        "degenerate": 2,
        "negatives": 1,
    },
    "fod31": {
        "images": {"train": 2356, "validation": 310, "test": 310, "small": 310},
        "objects with the degenerate": {"train": 31 * 76 + 50, "validation": 310, "test": 310},
        "degenerate": 0,
        "negatives": 0,
    },
}


@pytest.mark.parametrize("name", FOUND)
def test_counts(shared, config, name):
    expected = FOUND[name]
    report = check_data(config(shared / "data" / name), list(expected["images"])).report
    assert {split: counts.images for split, counts in report.splits.items()} == expected["images"]
    whole = {split: report.splits[split] for split in expected["objects with the degenerate"]}
    objects = {split: counts.objects + counts.dropped.total() for split, counts in whole.items()}
    assert objects == expected["objects with the degenerate"]
    assert sum(counts.dropped.total() for counts in whole.values()) == expected["degenerate"]
    assert sum(counts.without_objects for counts in whole.values()) == expected["negatives"]
    assert sum(c.clipped + c.listed_twice + c.ignored.total() + c.ambiguous_rotation for c in whole.values()) == 0
    assert len(report.class_list) == {"bccd": 3, "aquarium": 7, "fod31": 31}[name]


def test_the_labels_of_ultralytics_say_the_same(shared, config):
    """labels/*.txt were written by another program from the same boxes: class, centre and size as shares."""
    base = shared / "data" / "bccd"
    annotations = check_data(config(base), ["test"]).splits["test"]
    assert sum(len(annotation.labels) for annotation in annotations) > 900
    for annotation in annotations:
        lines = (base / "labels" / f"{annotation.image_id}.txt").read_text().splitlines()
        rows = [tuple(map(float, line.split())) for line in lines]
        size = (annotation.width, annotation.height)
        ours = [
            (label, (x1 + x2) / 2 / size[0], (y1 + y2) / 2 / size[1], (x2 - x1) / size[0], (y2 - y1) / size[1])
            for label, (x1, y1, x2, y2) in zip(annotation.labels.tolist(), annotation.boxes.tolist(), strict=True)
        ]
        assert len(ours) == len(rows)
        for mine, theirs in zip(ours, rows, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)


def test_a_batch_of_real_images(shared, config):
    batch = next(iter(build_loader(config(shared / "data/aquarium", batchSize=8), "train")))
    assert batch.images.shape == (8, 3, 64, 64)
    assert batch.valid.any()
    sides = batch.boxes[batch.valid][:, 2:] - batch.boxes[batch.valid][:, :2]
    assert (sides > 1).all()
    assert (sides <= 64).all()
