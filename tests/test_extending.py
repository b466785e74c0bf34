"""Every recipe of docs/extending.md trains, is stopped in an epoch, and ends as if it had not been stopped."""

import json
import pickle
import re
import shutil
import signal
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from training_fixtures import squares, trained_teacher  # noqa: F401 (fixtures)

from benchmarks.chaos import is_same
from commands.weights import as_trained
from config.errors import UserError
from config.load import load_config
from eval.evaluator import Evaluator
from eval.report import ap_table
from model import build_model
from model.pretrained import load_weights
from model.weightsfile import read_weights
from runs.checkpoint import load_checkpoint
from runs.folder import RunFolder
from runs.interrupt import Interrupted
from train.step import Stepper
from train.trainer import Trainer

PAGE = Path(__file__).resolve().parent.parent / "docs/extending.md"
RECIPES = dict(
    re.findall(r"^```python\n(?:# (\w+)\.py in cfgops/\n)(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
)


@pytest.fixture(scope="module", autouse=True)
def _narrow(narrow_networks):
    """The network has all its layers, but few channels."""


@pytest.fixture
def folder(tmp_path):
    """A folder with the recipes of the page."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name, text in RECIPES.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def config(folder, squares, trained_teacher, tmp_path):  # noqa: F811
    """A config of a recipe that trains in a moment."""

    def make(recipe, name="run", **overrides):
        fields = {
            "classList": ["red", "blue"], "inputShape": 64, "batchSize": 3, "maxEpoch": 2, "dcore": 0,
            "precision": "float32", "device": "cpu",
        }  # fmt: skip
        if recipe == "closer":
            fields |= {
                "baseClasses": 1, "teacherModelFile": str(trained_teacher / "weights/best.pth"),
                "checkpointModelFile": None, "trainSplitName": "train", "replayImages": 0,
            }  # fmt: skip
        data = squares if recipe != "table" else table_of(squares, tmp_path / "table")
        cfgname = f"{recipe}.nano.{'distillation' if recipe == 'closer' else 'full'}"
        return load_config(
            cfgname, root=str(tmp_path / "runs"), data=str(data), overrides={**fields, **overrides}, name=name,
            recipe_dir=folder,
        )  # fmt: skip

    return make


def table_of(data, folder):
    """The squares with their boxes in one table; the names of the splits are kept as lists."""
    if not folder.exists():
        shutil.copytree(data, folder)
        rows = []
        for file in sorted((folder / "annotations").glob("*.xml")):
            for node in ElementTree.parse(file).iter("object"):
                corners = [node.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
                rows.append(",".join([f"{file.stem}.png", *corners, node.findtext("name")]))
        (folder / "boxes.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        shutil.rmtree(folder / "annotations")
    return folder


def timeless(row):
    return {key: value for key, value in row.items() if key not in ("seconds", "images_per_s")}


def stop_after(monkeypatch, steps):
    """Have the process interrupted in the step with this number."""
    add, calls = Stepper.add, []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == steps:
            signal.raise_signal(signal.SIGTERM)
        return add(*args, **kwargs)

    monkeypatch.setattr(Stepper, "add", counted)


def test_the_page_has_a_recipe_for_each_row():
    rows = re.findall(r"^\| \[[\w ]+\]\(#([\w-]+)\)", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(rows) == len(RECIPES) + 1 == 10  # a command has no recipe


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_trains_and_resumes_exactly(recipe, config, monkeypatch):
    whole = Trainer(config(recipe, "whole")).run()
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            Trainer(config(recipe, "stopped")).run()
    resumed = Trainer(config(recipe, "stopped")).run()
    before, after = (load_checkpoint(folder.last) for folder in (whole, resumed))
    for key in ("model", "ema", "optimizer", "schedule", "progress"):
        assert is_same(before[key], after[key]), key
    histories = [[timeless(row) for row in json.loads(saved["history"])] for saved in (before, after)]
    assert histories[0] == histories[1] and len(histories[0]) == 2
    stored = json.loads(before["config"])
    fields = [
        "lossParts", "transforms", "head", "block", "distilParts", "schedulerType", "optimizerType", "metrics",
        "annotationFormat",
    ]  # fmt: skip
    assert any(f"cfgops.{recipe}:" in str(stored[field]) for field in fields)


@pytest.mark.parametrize(("recipe", "part"), [("centre", "centre"), ("closer", "feature_distance")])
def test_a_part_is_a_column_of_the_metrics(recipe, part, config):
    run = Trainer(config(recipe, maxEpoch=1)).run()
    row = json.loads(run.metrics.read_text().splitlines()[0])
    assert row[part] > 0
    parts = ["box", "cls", "dfl", *(["response", "box_response"] if recipe == "closer" else []), part]
    named = sum(row[name] for name in parts if name in row) + row.get("cwd", 0.0)
    assert row["loss"] == pytest.approx(named, rel=1e-3)


def test_a_table_gives_the_same_training_as_xml(config):
    as_xml = Trainer(config("counting", "xml", maxEpoch=1)).run()
    as_table = Trainer(config("table", "table", maxEpoch=1)).run()
    first, second = (load_checkpoint(run.last)["model"] for run in (as_xml, as_table))
    assert is_same(first, second)


def test_a_metric_is_in_the_results_and_may_be_missing(config, monkeypatch, caplog):
    mcfg = config("counting", metrics=("cfgops.counting:CountError(min_score=0.0)",))
    model = build_model(mcfg)
    result = Evaluator(mcfg).evaluate(model, "test")
    counts = [len(annotation.labels) for annotation in result.annotations]
    found = [len(detections.scores) for detections in result.detections]
    expected = sum(abs(a - b) for a, b in zip(counts, found, strict=True)) / len(counts)
    assert result.to_dict()["metrics"] == {"count_error": pytest.approx(expected)}
    assert f"count_error: {expected:.4f}" in ap_table(result)
    monkeypatch.setattr("config.parts._classes", {})
    monkeypatch.delitem(sys.modules, "cfgops.counting")
    assert "metrics" not in Evaluator(mcfg).evaluate(model, "test").to_dict()
    assert "this metric is left out" in caplog.text


def test_a_head_without_bins_has_four_box_channels(config):
    mcfg = config("plain", maxEpoch=1)
    run = Trainer(mcfg).run()
    assert "dfl" not in json.loads(run.metrics.read_text().splitlines()[0])
    model = build_model(mcfg)
    load_weights(model, run.best)
    assert model.head.box[0][-1].out_channels == 4
    assert Evaluator(mcfg).evaluate(model, "test").images_evaluated == 2


def test_evaluation_works_without_the_class_and_resume_is_refused(config, folder, monkeypatch):
    mcfg = config("centre", maxEpoch=1)
    run = Trainer(mcfg).run()
    # The class is gone, and the recipe names it as text.
    text = RECIPES["centre"].replace("[CentreLoss(weight=0.2)]", '["cfgops.centre:CentreLoss(weight=0.2)"]')
    (folder / "centre.py").write_text(re.sub(r"@dataclass.*?(?=def mcfg)", "", text, flags=re.S), encoding="utf-8")
    monkeypatch.setattr("config.parts._classes", {})
    again = config("centre", maxEpoch=2)
    model = build_model(again)
    load_weights(model, run.best)
    assert Evaluator(again).evaluate(model, "test").images_evaluated == 2
    with pytest.raises(UserError, match=r"lossParts=cfgops.centre:CentreLoss\(weight=0.2\): .*cfgops.centre"):
        Trainer(again)
    assert RunFolder.of(again).last.is_file()


def test_another_value_is_another_training(config, folder):
    Trainer(config("centre", maxEpoch=1)).run()
    text = RECIPES["centre"].replace("weight=0.2", "weight=0.25")
    (folder / "centre.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"lossParts.*CentreLoss\(weight=0.2\).*CentreLoss\(weight=0.25\)"):
        Trainer(config("centre", maxEpoch=2)).run()


def test_names_are_checked_before_anything_is_written(config, tmp_path):
    for field, value, message in (
        ("transforms", "MixUpp()", r"no class MixUpp .*did you mean 'MixUp'"),
        ("lossParts", "BoxLos()", r"did you mean 'BoxLoss'"),
        ("lossParts", "BoxLoss()", "a part is called 'box', which is taken"),
        ("transforms", "BuiltIn(),BuiltIn()", "BuiltIn.. twice"),
        ("head", "Detectionhead()", r"did you mean 'DetectionHead'"),
    ):
        parts = tuple(value.split(",")) if field != "head" else value
        with pytest.raises(UserError, match=message):
            Trainer(config("centre", "wrong", **{field: parts}))
    assert not (tmp_path / "runs/wrong/weights").exists()


MISTAKES = {
    "a vector": ("inputs.weight * 1.0", "lossParts=.*a tensor without dimensions is required"),
    "a number": ("0.5", "lossParts=.*gives 0.5 on test values"),
    "nothing": ("None", "lossParts=.*gives None on test values"),
    "below zero": ("-inputs.weight.sum() - 1", "lossParts=.*not below 0"),
    "an error": ("inputs.boxes.sum()", "lossParts=.*fails on test values .AttributeError"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_loss_part_is_refused_before_the_training(config, folder, mistake):
    value, message = MISTAKES[mistake]
    text = re.sub(r"return \(distance.*", f"return {value}", RECIPES["centre"])
    (folder / "centre.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        Trainer(config("centre", "wrong"))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ("Stripes(probability=2.0)", "probability must be from 0 to 1"),
        ("CopyPaste(probability=1.0, most=0)", "fails on a test image .ValueError"),
        ("MixUp(probability=1.0, alpha=-1.0)", "fails on a test image .ValueError"),
    ],
)
def test_a_wrong_transform_is_refused_before_the_training(config, folder, transform, message):
    text = RECIPES["stripes"].replace("Affine, BuiltIn, MixUp", "Affine, BuiltIn, CopyPaste, MixUp")
    text = re.sub(r"mcfg.transforms = .*", f"mcfg.transforms = [{transform}]", text)
    (folder / "stripes.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"transforms=.*{message}"):
        Trainer(config("stripes", "wrong"))


def test_a_head_with_other_channels_is_refused(config, folder):
    wrong = "\n    def forward(self, features):\n        return [x[:, 1:] for x in super().forward(features)]\n"
    text = RECIPES["plain"].replace("    @staticmethod", f"{wrong}\n    @staticmethod")
    (folder / "plain.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="raw maps have shapes"):
        Trainer(config("plain", "wrong"))


def test_classes_of_a_recipe_can_be_sent_to_loader_processes(config):
    config("stripes")
    stage = pickle.loads(pickle.dumps(sys.modules["cfgops.stripes"].Stripes(0.5)))
    assert stage.probability == 0.5


def test_a_metric_that_fails_costs_no_evaluation(config, folder, caplog):
    text = RECIPES["counting"].replace("return sum(differences)", "return differences.mean()")
    (folder / "counting.py").write_text(text, encoding="utf-8")
    mcfg = config("counting")
    assert "metrics" not in Evaluator(mcfg).evaluate(build_model(mcfg), "test").to_dict()
    assert "metric count_error is left out: AttributeError" in caplog.text


def test_weights_are_used_with_the_head_that_they_were_trained_with(config):
    run = Trainer(config("plain", maxEpoch=1)).run()
    assert as_trained(read_weights(run.best), {})["head"] == "cfgops.plain:PlainHead()"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("student.features[self.feature]", "a tensor without dimensions is required"),
        ("student.features['W'].sum()", "fails on test values .KeyError"),
    ],
)
def test_a_wrong_distillation_loss_is_refused_before_the_training(config, folder, value, message):
    text = re.sub(r"return F.mse_loss.*", f"return {value}", RECIPES["closer"])
    (folder / "closer.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"distilParts=.*{message}"):
        Trainer(config("closer", "wrong"))


def test_a_schedule_without_a_rate_is_refused(config, folder):
    text = RECIPES["steps"].replace("return self.base if", "None if")
    (folder / "steps.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"schedulerType=.*rate\(epoch\) gives None"):
        Trainer(config("steps", "wrong"))


def test_a_schedule_for_whole_epochs_only_is_refused_with_a_time_budget(config, folder):
    text = RECIPES["steps"].replace("return self.base if", "return [self.base][epoch * 0] if")
    (folder / "steps.py").write_text(text, encoding="utf-8")
    Trainer(config("steps", "whole"))
    with pytest.raises(UserError, match=r"schedulerType=.*rate\(0\.5\) fails \(TypeError.*; with trainMinutes"):
        Trainer(config("steps", "wrong", trainMinutes=1))
