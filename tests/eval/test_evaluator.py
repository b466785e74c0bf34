"""A split is evaluated whole or not at all, and what is written down says so."""

import json
import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import eval.evaluator
import eval.painter
from config.errors import UserError
from config.mconfig import ModelConfig
from dl.image_cache import build_images
from eval.evaluator import EvalResult, Evaluator
from eval.metrics import ApResult, ClassAp
from eval.painter import GREEN
from ops.anchors import expected_distances
from ops.batch import Batch, Letterbox
from ops.boxes import pairwise_iou

NAMES = ("ant", "bee", "cat")


class BlockFinder(torch.nn.Module):
    """Finds the plain red, green or blue square on a dark 64 x 64 input: a detector whose answer is known.

    Raw maps as a network gives them; only one cell of the finest map speaks, with the box to the pixel.
    """

    strides, reg_max, num_classes = (8, 16, 32), 16, 3
    distances = staticmethod(expected_distances)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        maps = [torch.zeros(len(images), 4 * 16 + 3, 64 // stride, 64 // stride) for stride in self.strides]
        for raw in maps:
            raw[:, 64:] = -20.0
        for index, image in enumerate(images):
            label = int((image > 0.8).sum(dim=(1, 2)).argmax())
            rows, columns = torch.where(image[label] > 0.8)
            if len(rows) == 0:
                continue
            x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            column, row = int((x0 + x1) // 16), int((y0 + y1) // 16)
            x, y = column * 8 + 4, row * 8 + 4
            cell = maps[0][index, :, row, column]
            cell[64 + label] = 3.0
            for side, pixels in enumerate((x - x0, y - y0, x1 - x, y1 - y)):
                low, rest = divmod(float(pixels) / 8, 1)
                bins = torch.full((16,), -200.0)
                bins[int(low)] = math.log(max(1 - rest, 1e-30))
                bins[int(low) + 1] = math.log(max(rest, 1e-30))
                cell[side * 16 : (side + 1) * 16] = bins
        return maps


def config(**fields):
    mcfg = ModelConfig()
    for name, value in {"classList": NAMES, "inputShape": (64, 64), "batchSize": 2, "dcore": 0, **fields}.items():
        setattr(mcfg, name, value)
    return mcfg


@pytest.fixture
def squares(tmp_path, make_truth):
    """Five images of 128 x 96 with a red, green or blue square (the last has none), and their truth."""
    truth = []
    for number, label in enumerate((0, 1, 2, 0, None)):
        image = np.full((96, 128, 3), 20, dtype=np.uint8)
        rows = []
        if label is not None:
            left, top, side = 10 + 16 * number, 20 + 4 * number, 24
            image[top : top + side, left : left + side, label] = 255
            rows = [[left, top, left + side, top + side, label, 0]]
        path = tmp_path / f"image{number}.png"
        Image.fromarray(image).save(path)
        truth.append(make_truth(f"image{number}", rows, 128, 96, path))
    return truth


@pytest.mark.parametrize("style", ["coco", "voc07", "assignment"])
def test_a_perfect_detector_through_the_real_loader(squares, style):
    steps = []
    evaluator = Evaluator(config(apStyle=style))
    result = evaluator.evaluate(BlockFinder(), "test", squares, "best.pth", lambda *step: steps.append(step))
    assert (result.images_expected, result.images_evaluated) == (5, 5)
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert result.map50 == pytest.approx(1.0)
    assert [one.n_gt for one in result.ap.per_class.values()] == [2, 1, 1]
    for annotation, found in zip(result.annotations, result.detections, strict=True):
        overlaps = pairwise_iou(found.boxes, torch.from_numpy(annotation.boxes)).diagonal()
        assert len(found.boxes) == len(annotation.boxes)
        assert (overlaps > 0.8).all()  # a pixel of the small input is two of the image


def test_an_image_that_cannot_be_read_any_more_is_left_out_and_missed(squares):
    squares[2].image_path.write_bytes(b"no image")
    result = Evaluator(config(badFiles="skip")).evaluate(BlockFinder(), "test", squares)
    assert (result.images_expected, result.images_evaluated) == (5, 4)
    assert [one.image_id for one in result.annotations] == ["image0", "image1", "image3", "image4"]
    assert result.ap.per_class["cat"].n_gt == 0 and result.map50 == pytest.approx(1.0)
    with pytest.raises(UserError, match=r"image2\.png"):
        Evaluator(config()).evaluate(BlockFinder(), "test", squares)


def test_images_kept_decoded_are_not_read_again(squares):
    kept = build_images(config(cacheImages="ram"), "test", squares)
    evaluator = Evaluator(config(), images=kept)
    first = evaluator.evaluate(BlockFinder(), "test", squares)
    for annotation in squares:
        annotation.image_path.unlink()
    assert evaluator.evaluate(BlockFinder(), "test", squares).ap == first.ap


def test_metrics_json(squares, tmp_path):
    result = Evaluator(config()).evaluate(BlockFinder(), "test", squares[:1], "best.pth")
    path = result.save(tmp_path / "eval" / "metrics.json")
    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda word: pytest.fail(word))
    assert [content[key] for key in ("split", "weights", "images_expected", "images_evaluated", "groups")] == [
        "test", "best.pth", 1, 1, None,
    ]  # fmt: skip
    assert content["map50"] == pytest.approx(1.0) and content["map50_95"] > 0.5
    assert content["per_class"]["ant"] == {"ap50": pytest.approx(1.0), "ap50_95": content["map50_95"], "n_gt": 1}
    assert content["per_class"]["bee"] == {"ap50": None, "ap50_95": None, "n_gt": 0}
    assert content["ap_style"] == "coco"


def test_nan_is_null_in_json(squares, tmp_path):
    result = Evaluator(config()).evaluate(BlockFinder(), "test", squares[:1])
    spoilt = ApResult(math.nan, math.inf, {"ant": ClassAp(math.nan, None, 1)})
    text = replace(result, ap=spoilt).save(tmp_path / "m.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text)["map50"] is None
    assert json.loads(text)["per_class"]["ant"]["ap50"] is None


def test_selected_classes_only(squares):
    result = Evaluator(config(testSelectedClasses=("cat", "ant"))).evaluate(BlockFinder(), "test", squares)
    assert list(result.ap.per_class) == ["ant", "cat"]
    assert {label for one in result.annotations for label in one.labels.tolist()} == {0, 2}
    assert {label for one in result.detections for label in one.labels.tolist()} == {0, 2}
    assert (result.images_expected, result.images_evaluated) == (5, 5)

    blind = Evaluator(config(testSelectedClasses=("bee",)))
    truth = [squares[0], replace(squares[1], labels=np.array([0]))]  # the green square is called an ant
    result = blind.evaluate(BlockFinder(), "test", truth)
    assert (result.map50, list(result.ap.per_class)) == (None, ["bee"])


def test_no_groups_unless_asked_for(squares):
    result = Evaluator(config()).evaluate(BlockFinder(), "test", squares)
    assert (result.base_names, result.groups, result.confusion) == (None, None, None)
    assert (result.to_dict()["groups"], result.to_dict()["confusion"]) == (None, None)


@pytest.mark.parametrize("base", [1, ("ant",)])
def test_base_and_novel_in_metrics_json(squares, tmp_path, base):
    # the green square of image1 is called an ant, the red one of image3 a cat
    truth = [squares[0], replace(squares[1], labels=np.array([0])), squares[2], squares[4]]
    truth.insert(3, replace(squares[3], labels=np.array([2])))
    result = Evaluator(config(baseClasses=base)).evaluate(BlockFinder(), "test", truth)
    content = json.loads(result.save(tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert list(content["groups"]) == ["base", "novel", "all", "harmonic"]
    ant, cat = content["per_class"]["ant"], content["per_class"]["cat"]
    # ant: one of two truths, with one of two detections (of equal score): precision 1 or 1/2 up to recall 1/2
    assert ant["ap50"] in (pytest.approx(51 / 101), pytest.approx(51 / 202))
    assert cat["ap50"] == pytest.approx(51 / 101)
    assert [content["per_class"][name].pop("group") for name in ("ant", "bee", "cat")] == ["base", "novel", "novel"]
    assert content["groups"]["base"] == {**ant, "n_gt": 2, "n_classes": 1}
    assert content["groups"]["novel"] == {**cat, "n_gt": 2, "n_classes": 1}  # the class bee has no truth left
    assert content["groups"]["all"]["ap50"] == content["map50"]
    expected = 2 * ant["ap50"] * cat["ap50"] / (ant["ap50"] + cat["ap50"])
    assert content["groups"]["harmonic"]["ap50"] == pytest.approx(expected)
    fates = {"n_gt": 2, "as_itself": 1, "as_same_group": 0, "as_other_group": 1, "missed": 0}
    shares = {"as_itself": 0.5, "as_same_group": 0.0, "as_other_group": 0.5, "missed": 0.0}
    assert content["confusion"]["novel"] == content["confusion"]["base"] == {**fates, "shares": shares}
    assert (content["confusion"]["score_threshold"], content["confusion"]["min_iou"]) == (0.2, 0.5)


def test_confusion_asks_what_would_be_painted(squares):
    blind = Evaluator(config(baseClasses=1, paintConf=0.97)).evaluate(BlockFinder(), "test", squares)
    assert blind.map50 == pytest.approx(1.0)
    assert blind.confusion is not None
    assert (blind.confusion.base.missed, blind.confusion.novel.missed) == (2, 2)


def test_groups_of_selected_classes_only(squares):
    asked = config(baseClasses=1, testSelectedClasses=("bee", "cat"))
    content = Evaluator(asked).evaluate(BlockFinder(), "test", squares).to_dict()
    assert content["groups"]["base"] == {"ap50": None, "ap50_95": None, "n_gt": 0, "n_classes": 0}
    assert content["groups"]["novel"]["ap50"] == content["groups"]["all"]["ap50"] == pytest.approx(1.0)
    assert content["groups"]["harmonic"] == {"ap50": None, "ap50_95": None}
    assert content["confusion"]["base"]["n_gt"] == 0
    assert set(content["confusion"]["base"]["shares"].values()) == {None}
    assert content["confusion"]["novel"]["as_itself"] == 2


def test_names_that_do_not_exist():
    with pytest.raises(UserError, match=r"'bea' is not in classList.*did you mean 'bee'"):
        Evaluator(config(testSelectedClasses=("bea",)))
    with pytest.raises(UserError, match="classList"):
        Evaluator(config(classList=None))


def batch_of(*image_ids):
    count = len(image_ids)
    return Batch(
        torch.zeros(count, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(count, 0, 4),
        torch.zeros(count, 0, dtype=torch.int64),
        torch.zeros(count, 0, dtype=torch.bool),
        image_ids,
        tuple(Letterbox(0.5, 0.5, 0.0, 8.0, 96, 128) for _ in image_ids),
    )


class Loaded(list):
    """Batches that are there already; a loader is closed after use."""

    skipped: ClassVar[dict[str, str]] = {}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("batches", "complaint"),
    [
        ([["image0", "image1"]], r"5 images expected, 2 evaluated; images without detections: image2, image3, image4;"),
        (
            [["image0", "image1", "image2"], ["image3", "image4", "image0"]],
            "images that occur twice: image0 in the detections",
        ),
        ([["image0", "image1", "image2"], ["image3", "other"]], "images without ground truth: other"),
        ([], "0 evaluated"),
    ],
)
def test_a_split_is_evaluated_whole_or_not_at_all(squares, monkeypatch, batches, complaint):
    loader = Loaded([batch_of(*image_ids) for image_ids in batches])
    monkeypatch.setattr(eval.evaluator, "build_loader", lambda *_args, **_options: loader)
    with pytest.raises(RuntimeError, match=complaint):
        Evaluator(config()).evaluate(BlockFinder(), "test", squares)


def test_nan_predictions_stop_the_evaluation(squares):
    model = BlockFinder()
    clean_forward = model.forward
    model.forward = lambda images: [raw * math.nan for raw in clean_forward(images)]
    with pytest.raises(FloatingPointError, match="image0, image1"):
        Evaluator(config()).evaluate(model, "test", squares)


def test_painting(squares, tmp_path):
    evaluator = Evaluator(config())
    result = evaluator.evaluate(BlockFinder(), "test", squares)
    assert evaluator.paint(result, tmp_path / "images") == 5
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"image{n}.jpg" for n in range(5)]


def result_of(truth, found):
    return EvalResult("test", "", len(truth), len(truth), ApResult(None, None, {}), "coco", {}, 0, truth, found)


def test_painting_holds_one_image_at_a_time(make_truth, make_found, tmp_path, monkeypatch):
    events = []

    def read(path, size, _):
        events.append(f"read {path.name} {size}")
        return np.full((size[1], size[0], 3), 90, dtype=np.uint8)

    def write(path, content):
        events.append(f"write {path.name}")
        path.write_bytes(content)
        return path

    monkeypatch.setattr(eval.evaluator, "read_image", read)
    monkeypatch.setattr(eval.painter, "write_atomic", write)
    truth = [make_truth(name, [[20, 20, 90, 90, 0, 0]], 200, 100, f"{name}.png") for name in ("b/x", "a")]
    found = [make_found("a", [[20, 20, 90, 90, 0, 0.9]]), make_found("b/x")]
    steps = []
    result = result_of(tuple(truth), tuple(found))
    assert Evaluator(config()).paint(result, tmp_path, on_image=lambda *step: steps.append(step)) == 2
    assert events == ["read x.png (200, 100)", "write b_x.jpg", "read a.png (200, 100)", "write a.jpg"]
    assert steps == [(1, 2), (2, 2)]
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.size == (200, 100)
        assert np.abs(np.array(image)[60, 20].astype(int) - GREEN).max() < 40  # as JPEG keeps it


def test_painting_on_real_files(squares, make_found, tmp_path):
    out = tmp_path / "deep" / "folder"
    Evaluator(config()).paint(result_of((squares[0],), (make_found("image0"),)), out)
    assert [path.name for path in out.iterdir()] == ["image0.jpg"]
    assert Evaluator(config()).paint(result_of((), ()), out) == 0


def test_the_split_is_read_when_no_annotations_are_given(squares, monkeypatch):
    class Checked:
        splits = {"validation": squares}  # noqa: RUF012

    asked = []
    monkeypatch.setattr(eval.evaluator, "check_data", lambda mcfg, names: asked.append(names) or Checked)
    assert Evaluator(config()).evaluate(BlockFinder(), "validation").images_evaluated == 5
    assert asked == [["validation"]]
