"""What is written is what was found, to the last bit, and any COCO tool reads it."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from config.errors import UserError
from eval.metrics import coco_ap
from eval.predictor import Detections
from eval.results import ImageRecord, read_results, write_images, write_results

NAMES = ("ant", "bee", "cat")


def equal(one, other):
    return one.image_id == other.image_id and all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one[1:], other[1:], strict=True)
    )


def scene(seed, num_images=12, num_found=40, num_truth=5):
    """Random truth of several sizes, and detections of which a part lies near it."""
    draw = np.random.default_rng(seed)
    truth, found = [], []
    for number in range(num_images):
        low = draw.uniform(0, 500, (num_truth, 2))
        boxes = np.column_stack([low, low + draw.uniform(4, 90, (num_truth, 2))])
        labels = draw.integers(0, len(NAMES), num_truth)
        near = draw.integers(0, num_truth, num_found)
        guesses = boxes[near] + draw.normal(0, 6, (num_found, 4))
        guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 1)
        scores = np.sort(draw.uniform(0, 1, num_found))[::-1]
        truth.append((f"image {number}", np.column_stack([boxes, labels, draw.uniform(size=num_truth) < 0.1])))
        found.append((f"image {number}", np.column_stack([guesses, labels[near], scores])))
    return truth, found


def test_a_known_file(make_found, tmp_path):
    found = [make_found("a", [[10, 20, 30.5, 60, 2, 0.9], [0.1, 0.2, 0.3, 1, 0, 0.25]]), make_found("empty")]
    path = write_results(tmp_path / "new" / "detections.json", iter(found))
    assert path == tmp_path / "new" / "detections.json"
    rows = json.loads(path.read_text())
    assert rows[0] == {"image_id": "a", "category_id": 3, "bbox": [10, 20, 20.5, 40], "score": 0.9}
    assert rows[1]["bbox"][:2] == [0.1, 0.2]  # not 0.10000000149011612
    assert path.read_text().count("\n") == 4  # a row a line


@pytest.mark.parametrize("ids", [[], ["a"], ["a", "b"]])
def test_nothing_found(make_found, tmp_path, ids):
    path = write_results(tmp_path / "d.json", [make_found(image_id) for image_id in ids])
    assert json.loads(path.read_text()) == []
    read = read_results(path, ids)
    assert [one.image_id for one in read] == ids
    assert all(equal(one, make_found(one.image_id)) for one in read)


def test_a_crash_while_writing_leaves_the_older_file(make_found, tmp_path):
    path = write_results(tmp_path / "d.json", [make_found("a", [[0, 0, 1, 1, 0, 0.5]])])
    before = path.read_bytes()

    def crashing():
        yield make_found("b", [[0, 0, 1, 1, 0, 0.5]])
        raise RuntimeError("the network broke")

    with pytest.raises(RuntimeError, match="the network broke"):
        write_results(path, crashing())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["d.json"]


sides = st.floats(0, 20_000, width=32)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(sides, sides, sides, sides, st.integers(0, 99), st.floats(0, 1, width=32)), max_size=8))
def test_what_is_read_is_what_was_written_bit_for_bit(tmp_path_factory, rows):
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    table = table[table[:, 5].argsort(descending=True, stable=True)]
    corners = torch.cat((torch.minimum(table[:, :2], table[:, 2:4]), torch.maximum(table[:, :2], table[:, 2:4])), dim=1)
    found = Detections("x", corners.float(), table[:, 5].float(), table[:, 4].long())
    path = write_results(tmp_path_factory.mktemp("bits") / "d.json", [found])
    assert equal(read_results(path, ["x"])[0], found)


def test_scored_from_the_file_as_in_memory(make_truth, make_found, tmp_path):
    truth, found = scene(0)
    annotations = [make_truth(*one) for one in truth]
    detections = [make_found(*one) for one in found]
    path = write_results(tmp_path / "d.json", detections)
    again = read_results(path, [one.image_id for one in annotations])
    in_memory, from_file = (coco_ap(annotations, one, NAMES) for one in (detections, again))
    assert 0.05 < in_memory.map50_95 < 0.95
    assert from_file == in_memory


def test_pycocotools_scores_the_files_alike(make_truth, make_found, tmp_path):
    truth, found = scene(1)
    annotations = [make_truth(*one) for one in truth]
    detections = [make_found(*one) for one in found]
    images = [ImageRecord(one.image_id, f"{one.image_id}.jpg", one.width, one.height) for one in annotations]
    write_images(tmp_path / "truth.json", images, NAMES, annotations)
    write_results(tmp_path / "detections.json", detections)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "detections.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = coco_ap(annotations, detections, NAMES)
    assert evaluation.stats[0] == pytest.approx(ours.map50_95, abs=1e-9)
    assert evaluation.stats[1] == pytest.approx(ours.map50, abs=1e-9)
    assert [coco.cats[label + 1]["name"] for label in range(3)] == list(NAMES)


def test_a_companion_without_truth_lets_results_load(make_found, tmp_path):
    write_images(tmp_path / "images.json", [ImageRecord("x/é", "x/é.jpg", 40, 30)], NAMES)
    write_results(tmp_path / "detections.json", [make_found("x/é", [[1, 2, 5, 8, 1, 0.5]])])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "images.json"))
        loaded = coco.loadRes(str(tmp_path / "detections.json"))
    (row,) = loaded.loadAnns(loaded.getAnnIds())
    assert (row["bbox"], loaded.imgs[row["image_id"]]["width"], loaded.cats[row["category_id"]]["name"]) == (
        [1, 2, 4, 6], 40, "bee",
    )  # fmt: skip
    assert coco.anns == {}
    write_images(tmp_path / "none.json", [], [])
    assert json.loads((tmp_path / "none.json").read_text())["images"] == []


def row(image_id, score=0.5, category_id=1, bbox=(1, 2, 3, 4)):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score}


def test_files_of_other_tools(tmp_path):
    """In any order, with more keys, and with names that they took for numbers."""
    path = tmp_path / "d.json"
    rows = [row("b", 0.1), row(7, 0.3), row(42, 0.9) | {"file_name": "x"}, row("b", 0.8, category_id=3)]
    path.write_text(json.dumps(rows))
    seven, forty_two, b, none = read_results(path, ["000007", "42", "b", "none"])
    assert seven.scores.tolist() == pytest.approx([0.3])
    assert forty_two.boxes.tolist() == [[1, 2, 4, 6]]
    assert (b.labels.tolist(), b.scores.tolist()) == ([2, 0], pytest.approx([0.8, 0.1]))
    assert none.boxes.shape == (0, 4)


def test_a_number_that_two_names_share_is_the_one_written_alike(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps([row(7)]))
    assert [len(one.scores) for one in read_results(path, ["007", "7"])] == [0, 1]
    with pytest.raises(UserError, match="row 1 belongs to image 7, which is not one of"):
        read_results(path, ["007", "07"])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[1, 2", "the json is invalid at line 1, column 6"),
        ("[" * 100_000, "cannot be read as COCO results"),
        (f"[{'9' * 5_000}]", "cannot be read as COCO results"),
        (json.dumps([row("a", score=10**400)]), "row 1 is not a COCO result"),
        (
            '[{"image_id": "a", "category_id": Infinity, "bbox": [1, 2, 3, 4], "score": 1}]',
            "row 1 is not a COCO result",
        ),
        ('{"annotations": []}', "is not a file of COCO results, which is a list"),
        (json.dumps([row("a"), row("elsewhere")]), "row 2 belongs to image elsewhere"),
        (
            json.dumps([row("a", category_id=0)]),
            "row 1 is not a COCO result; it needs image_id, category_id (1 or more)",
        ),
        (json.dumps([row("a", bbox=[1, 2, 3])]), "row 1 is not a COCO result"),
        (json.dumps([row("a", score=None)]), "row 1 is not a COCO result"),
        (
            json.dumps([row("a", score="1")]),
            "bbox [x, y, width, height] and score; the last three must be numbers without quotes",
        ),
        (json.dumps([row("a", category_id="1")]), "must be numbers without quotes"),
        (json.dumps([row("a", bbox=["1", 2, 3, 4])]), "must be numbers without quotes"),
        (json.dumps([row("a"), {"image_id": "a"}]), "row 2 is not a COCO result"),
        ('[{"image_id": "a", "category_id": 1, "bbox": [1, 2, 3, NaN], "score": 1}]', "row 1 is not a COCO result"),
        ("[3]", "row 1 is not a COCO result"),
    ],
)
def test_what_is_no_results_file(tmp_path, content, complaint):
    path = tmp_path / "d.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_results(path, ["a"])
    assert str(caught.value).startswith(f"{path}: ")
    assert complaint in str(caught.value)


def test_a_results_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json: No such file"):
        read_results(tmp_path / "nowhere.json", ["a"])
