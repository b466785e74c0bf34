"""`python mars.py predict`, end to end: which weights are taken, where results lie, and that no data set is needed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval.predict
import mars
from config.load import load_config
from eval.results import read_results
from model import build_model

pytestmark = pytest.mark.usefixtures("narrow_networks")
NAMES = ("red", "blue")


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def make_run(root):
    """make_run("voc.nano.full-cats") -> its best.pth, of a nano with random weights for 64 x 64 pixels."""

    def make(name, cfgname="voc.nano.full", classes=NAMES, data="/gone/cats", **fields):
        overrides = {"inputShape": (64, 64), "regMax": 8, "classList": classes, **fields}
        mcfg = load_config(cfgname, root=root, data=data, overrides=overrides, name=name)
        path = root / name / "weights" / "best.pth"
        path.parent.mkdir(parents=True)
        content = {"model": build_model(mcfg).state_dict(), "class_list": classes}
        torch.save({**content, "config": json.dumps(mcfg.to_dict())}, path)
        return path

    return make


@pytest.fixture
def photos(tmp_path) -> Path:
    folder, draw = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for number in range(3):
        Image.fromarray(draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def predict(root, capsys):
    """`mars.main` in the mode predict; exit status, what went to stdout, what went to stderr."""

    def call(*arguments) -> tuple[int, str, str]:
        words = ["predict", *map(str, arguments), "--root", str(root), "--set", "dcore=0", "scoreThreshold=0"]
        status = mars.main(words)
        return status, *capsys.readouterr()

    return call


def test_results_of_each_call_lie_in_a_new_folder_of_the_run(make_run, photos, predict, root):
    make_run("voc.nano.full-cats")
    (photos / "broken.jpg").write_text("no image")
    for number in ("001", "002"):
        status, out, err = predict("voc.nano.full", photos, "--data", "nowhere/cats")
        folder = root / "voc.nano.full-cats/predict" / number
        assert (status, err) == (0, "")
        assert f"skipped: {photos / 'broken.jpg'}: the image cannot be read" in out
        assert f"3 images, 1 could not be read; 252 detections: {folder}" in out
        assert sorted(path.name for path in folder.iterdir()) == [
            "detections.json", "images.json", "mars.log", "painted",
        ]  # fmt: skip
        assert sorted(path.name for path in (folder / "painted").iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]
        assert "python mars.py predict voc.nano.full" in (folder / "mars.log").read_text()
    assert sorted(path.name for path in (root / "voc.nano.full-cats").iterdir()) == ["predict", "weights"]
    categories = json.loads((folder / "images.json").read_text())["categories"]
    assert categories == [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]


def test_the_only_run_that_can_be_meant_is_taken(make_run, photos, predict, root):
    status, _, err = predict("voc.nano.full", photos)
    assert (status, "voc.nano.full-*: no such run with weights; train first" in err) == (2, True)
    make_run("voc.nano.full-cats")
    make_run("voc.nano.full-cats.20260102-030405")  # an older one that --nobuf kept
    assert predict("voc.nano.full", photos)[0] == 0
    assert (root / "voc.nano.full-cats/predict/001").is_dir()
    make_run("voc.nano.full-dogs")
    status, _, err = predict("voc.nano.full", photos)
    assert (status, "voc.nano.full-cats, voc.nano.full-dogs; add --name NAME" in err) == (2, True)
    assert predict("voc.nano.full", photos, "--name", "voc.nano.full-dogs")[0] == 0
    assert (root / "voc.nano.full-dogs/predict/001/detections.json").is_file()


@pytest.mark.parametrize("cfgname", ["c1.nano.full", "demo.nano.full"])
def test_recipes_that_name_their_data_need_none(make_run, photos, predict, root, cfgname):
    make_run(cfgname, cfgname, data=None)
    status, _, err = predict(cfgname, photos)
    assert (status, err) == (0, "")
    assert sorted(path.name for path in root.iterdir()) == [cfgname]  # nothing was drawn


def test_weights_from_elsewhere(make_run, photos, predict, root, tmp_path):
    weights = make_run("voc.nano.full-cats").rename(tmp_path / "mine.pth")
    status, out, _ = predict("voc.nano.full", photos, "--weights", weights)
    assert (status, "inputShape=[64, 64], regMax=8" in out) == (0, True)
    assert (root / "voc.nano.full-cats/predict/001/images.json").is_file()
    assert predict("c1.nano.full", photos, "--weights", weights)[0] == 0  # the classes are the file's, not the recipe's
    content = json.loads((root / "c1.nano.full/predict/001/images.json").read_text())
    assert [category["name"] for category in content["categories"]] == list(NAMES)

    plain = tmp_path / "plain.pth"
    torch.save(torch.load(weights, weights_only=True)["model"], plain)
    status, _, err = predict("voc.nano.full", photos, "--weights", plain)
    assert (status, "does not name its run; --out PLACE" in err) == (2, True)
    out = ("--out", tmp_path / "out")
    status, _, err = predict("voc.nano.full", photos, "--weights", plain, *out)
    assert (status, "does not name its classes; --set classList=" in err) == (2, True)
    settings = ("--set", "classList=red,blue", "inputShape=64", "regMax=8")
    assert predict("voc.nano.full", photos, "--weights", plain, *out, *settings)[0] == 0
    assert json.loads((tmp_path / "out/detections.json").read_text())[0]["image_id"] == "0"


def test_out_may_be_named_twice_and_takes_no_painted_copy_for_an_image(make_run, photos, predict):
    make_run("voc.nano.full-cats")
    for _ in range(2):
        assert predict("voc.nano.full", photos, "--out", photos / "found", "--set", "paintConf=0")[0] == 0
    assert len(list((photos / "found/painted").iterdir())) == 3


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["images.json", "detections.json", "painted/1.jpg"])
@pytest.mark.parametrize("has_earlier_results", [False, True])
def test_files_of_the_user_are_named_and_not_replaced(
    make_run, photos, predict, tmp_path, monkeypatch, name, has_earlier_results
):
    make_run("voc.nano.full-cats")
    out = tmp_path / "out"
    if has_earlier_results:
        assert predict("voc.nano.full", photos, "--out", out)[0] == 0
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text('[{"mine": 1}]')
    before = contents(out)
    monkeypatch.setattr("commands.weights.trained_model", lambda *_: pytest.fail("worked before it looked"))
    status, _, err = predict("voc.nano.full", photos, "--out", out)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"mars: {out / name}: was not ") and "move it away, or name another folder with --out" in err
    assert contents(out) == before


def test_a_companion_to_which_objects_were_added_is_the_users(make_run, photos, predict, tmp_path):
    make_run("voc.nano.full-cats")
    out = tmp_path / "out"
    assert predict("voc.nano.full", photos, "--out", out)[0] == 0
    content = json.loads((out / "images.json").read_text())
    content["annotations"] = [{"id": 1, "image_id": "0", "category_id": 1, "bbox": [1, 2, 3, 4]}]
    (out / "images.json").write_text(json.dumps(content))
    assert predict("voc.nano.full", photos, "--out", out)[0] == 2
    assert json.loads((out / "images.json").read_text()) == content


def test_a_call_that_was_killed_between_its_pictures_does_not_stop_the_next(make_run, photos, predict, tmp_path):
    make_run("voc.nano.full-cats")
    out = tmp_path / "out"
    assert predict("voc.nano.full", photos, "--out", out)[0] == 0
    for name in ("images.json", "detections.json"):  # which are written last
        (out / name).unlink()
    (out / "notes.txt").write_text("mine")
    assert predict("voc.nano.full", photos, "--out", out)[0] == 0
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("is_first", [True, False])
def test_a_call_that_was_killed_between_its_files_does_not_stop_the_next(
    make_run, photos, predict, tmp_path, monkeypatch, is_first
):
    """The results are in place, and the companion with their checksum is not written."""
    make_run("voc.nano.full-cats")
    out, write_images = tmp_path / "out", eval.predict.write_images
    if not is_first:
        assert predict("voc.nano.full", photos / "1.png", "--out", out)[0] == 0

    def killed(*words, **options):
        if "results" in options:
            raise KeyboardInterrupt
        return write_images(*words, **options)

    with monkeypatch.context() as patch:
        patch.setattr("eval.predict.write_images", killed)
        assert predict("voc.nano.full", photos, "--out", out)[0] == 1
    assert {row["image_id"] for row in json.loads((out / "detections.json").read_text())} == {"0", "1", "2"}
    assert predict("voc.nano.full", photos, "--out", out)[0] == 0
    (out / "detections.json").write_text("[]")
    assert predict("voc.nano.full", photos, "--out", out)[0] == 2, "changed since"


@pytest.mark.parametrize(("content", "status"), [(None, 0), ("[]", 0), ('[{"mine": 1}]', 2), ("[1]", 2), ("{", 2)])
def test_results_of_an_older_version_have_no_checksum(make_run, photos, predict, tmp_path, content, status):
    make_run("voc.nano.full-cats")
    out = tmp_path / "out"
    assert predict("voc.nano.full", photos, "--out", out)[0] == 0
    companion = json.loads((out / "images.json").read_text())
    del companion["info"]["results_sha256"]
    (out / "images.json").write_text(json.dumps(companion))
    if content is not None:
        (out / "detections.json").write_text(content)
    assert predict("voc.nano.full", photos, "--out", out)[0] == status


def test_results_do_not_go_into_the_data(make_run, photos, predict, tmp_path, root):
    weights = make_run("voc.nano.full-cats", data=str(photos))
    (tmp_path / "link").symlink_to(photos)
    for out in (photos, photos / "found", tmp_path / "link/found"):
        status, _, err = predict("voc.nano.full", photos, "--out", out)
        assert (status, "lies in the data folder" in err and "--out" in err) == (2, True)
    status, _, err = predict("voc.nano.full", photos, "--data", root, "--weights", weights)
    assert (status, "--root" in err) == (2, True)
    assert len(list(photos.iterdir())) == 3


def test_results_do_not_go_among_images_that_the_weights_name(make_run, photos, predict, tmp_path, root):
    """The images of the training lay outside of its data folder; a folder beside them takes the results."""
    make_run(
        "voc.nano.full-cats", data=str(tmp_path / "data"), imageDir=str(tmp_path), subsetMap={"train": ["photos/a"]}
    )
    assert photos == tmp_path / "photos"
    status, _, err = predict("voc.nano.full", photos, "--out", photos / "found")
    assert (status, f"lies in the data folder {photos}" in err) == (2, True)
    assert predict("voc.nano.full", photos, "--out", tmp_path / "found")[0] == 0


def test_no_pictures_when_none_are_wanted(make_run, photos, predict, tmp_path):
    make_run("voc.nano.full-cats")
    assert predict("voc.nano.full", photos, "--out", tmp_path / "out", "--set", "paintImages=no")[0] == 0
    assert not (tmp_path / "out/painted").exists()


def test_quietly_only_what_came_of_it_is_said(make_run, photos, predict, tmp_path):
    make_run("voc.nano.full-cats")
    (photos / "broken.jpg").write_text("no image")
    _, out, _ = predict("voc.nano.full", photos, "--out", tmp_path / "out", "--quiet")
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "skipped",
        "3 images, 1 could not be read; 252 detections",
    ]


def test_other_classes_than_the_weights_have_are_refused(make_run, photos, predict, root):
    make_run("voc.nano.full-cats")
    for classes in ("red,blue,green", "blue,red"):
        status, _, err = predict("voc.nano.full", photos, "--set", f"classList={classes}")
        assert status == 2
        assert f"trained on red, blue, but classList is {', '.join(classes.split(','))}; " in err
    assert not (root / "voc.nano.full-cats/predict").exists()


def test_nothing_readable_leaves_no_folder(make_run, photos, predict, root):
    make_run("voc.nano.full-cats")
    (photos / "broken.jpg").write_text("no image")
    status, _, err = predict("voc.nano.full", photos / "broken.jpg")
    assert (status, err.count("\n"), "broken.jpg: the image cannot be read" in err) == (2, 1, True)
    assert list((root / "voc.nano.full-cats/predict").iterdir()) == []


def test_eval_and_predict_find_the_same(make_run, photos, predict, root, tmp_path, capsys):
    """The same pixels reach the same network; and eval's file holds exactly what was scored."""
    weights = make_run("voc.nano.full-cats")
    data = tmp_path / "cats"
    (data / "splits").mkdir(parents=True)
    (data / "annotations").mkdir()
    (data / "images").symlink_to(photos)
    (data / "splits/test.txt").write_text("0\n1\n2\n")
    for number in range(3):
        (data / f"annotations/{number}.xml").write_text(
            "<annotation><size><width>64</width><height>48</height></size><object><name>red</name><bndbox><xmin>4</xmin>"
            "<ymin>5</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"
        )
    words = ["eval", "voc.nano.full", "--root", str(root), "--data", str(data), "--weights", str(weights)]
    settings = ["dcore=0", "scoreThreshold=0", "trainSplitName=none", "epochValidation=no", "classList=red,blue"]
    assert mars.main([*words, "--set", *settings]) == 0, capsys.readouterr()
    assert predict("voc.nano.full", photos, "--out", tmp_path / "out")[0] == 0
    evaluated = read_results(root / "voc.nano.full-cats/eval/detections.json", ["0", "1", "2"])
    predicted = read_results(tmp_path / "out/detections.json", ["0", "1", "2"])
    assert sum(len(detections.scores) for detections in evaluated) == 252
    for expected, found in zip(evaluated, predicted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected[1:], found[1:], strict=True))
    truth = json.loads((root / "voc.nano.full-cats/eval/truth.json").read_text())
    assert [(row["image_id"], row["bbox"]) for row in truth["annotations"]] == [
        (str(number), [4, 5, 26, 35]) for number in range(3)
    ]


def test_a_value_that_the_weights_were_trained_with_refuses_only_where_it_is_used(make_run, photos, predict):
    """Bounds of this version do not hold for what another has written; the file is named, and what helps."""
    path = make_run("voc.nano.full-cats")
    content = torch.load(path, weights_only=True)
    config = {**json.loads(content["config"]), "validationInterval": 10**12, "maxEpoch": 10**6}
    torch.save({**content, "config": json.dumps(config)}, path)
    status, _, err = predict("voc.nano.full", photos)
    assert (status, err) == (0, "")
    torch.save({**content, "config": json.dumps({**config, "inputShape": [2**20, 64]})}, path)
    status, _, err = predict("voc.nano.full", photos)
    assert status == 2 and err.startswith(
        f"mars: {path}: the weights were trained with a value that is not allowed (inputShape=(1048576, 64): both"
    )
    assert err.endswith("set another one with --set inputShape=VALUE\n")
    assert predict("voc.nano.full", photos, "--set", "inputShape=64")[0] == 0
