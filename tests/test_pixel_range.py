"""16-bit images, end to end: one range is chosen when training starts, and every later command keeps it."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mars
from dl.check import check_data
from eval.evaluator import Evaluator
from runs.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("narrow_networks")
NAME = "run"
BOX = "<object><name>bone</name><bndbox><xmin>8</xmin><ymin>8</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object>"
XML = f"<annotation><size><width>64</width><height>64</height></size>{BOX}</annotation>"


def write(folder: Path, name: str, largest: int) -> None:
    values = np.random.default_rng(sum(name.encode())).integers(0, largest // 2, (64, 64)).astype(np.uint16)
    values[8:40, 8:40] = largest
    Image.fromarray(values).save(folder / f"images/{name}.png")
    (folder / f"annotations/{name}.xml").write_text(XML)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `data`, of a 12-bit camera but for one test image, and a run of one epoch that read them."""
    base = tmp_path_factory.mktemp("pixels")
    for name in ("images", "annotations", "splits"):
        (base / "data" / name).mkdir(parents=True)
    for split, largest in {"train": 3800, "validation": 900, "test": 60000}.items():
        names = [f"{split}{number}" for number in range(2)]
        for name in names:
            write(base / "data", name, largest)
        (base / f"data/splits/{split}.txt").write_text("\n".join(names))
    (base / "data/classes.txt").write_text("bone\n")
    assert call(base, "train") == 0
    return base


@pytest.fixture
def base(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "own")
    return tmp_path / "own"


def call(base: Path, mode: str, *settings: str) -> int:
    fixed = [
        "precision=float32",
        "device=cpu",
        "dcore=0",
        "maxEpoch=1",
        "batchSize=2",
        "inputShape=64",
        "cacheImages=none",
    ]
    words = [mode, "voc.nano.full", "--root", str(base), "--name", NAME, "--data", str(base / "data")]
    return mars.main([*words, "--set", *(word for word in fixed if word.split("=")[0] not in str(settings)), *settings])


def stored(base: Path) -> int | None:
    return json.loads(load_checkpoint(base / NAME / "weights/last.pth")["config"])["pixelMax"]


@pytest.fixture
def evaluated(monkeypatch):
    """What the images of every evaluation are scaled by."""
    seen, evaluate = [], Evaluator.evaluate

    def watched(self, model, split, annotations=None, *rest, **named):
        seen.append({annotation.pixel_max for annotation in annotations})
        return evaluate(self, model, split, annotations, *rest, **named)

    monkeypatch.setattr(Evaluator, "evaluate", watched)
    return seen


def test_the_range_is_in_checkpoint_config_and_log(trained):
    assert stored(trained) == 4095
    assert json.loads((trained / NAME / "config.json").read_text())["pixelMax"] == 4095
    log = (trained / NAME / "mars.log").read_text()
    assert "16-bit images use 12 bits (4, largest value 3800): scaled by 4095" in log


def test_test_images_have_no_say_unless_they_are_alone(trained, config):
    mcfg = config(trained / "data")
    for splits in (["train"], ["train", "validation", "test"], ["test", "train"]):
        checked = check_data(mcfg, splits)
        assert {annotation.pixel_max for annotations in checked.splits.values() for annotation in annotations} == {4095}
    assert check_data(mcfg, ["test"]).pixel_max == 65535
    assert check_data(mcfg, ["validation"]).pixel_max == 1023
    given = check_data(config(trained / "data", pixelMax=2000), ["train"])
    assert (given.pixel_max, given.splits["train"][0].pixel_max) == (2000, 2000)


def test_evaluation_takes_it_from_the_checkpoint_and_says_what_is_brighter(base, capsys, evaluated):
    assert call(base, "eval") == 0
    assert evaluated == [{4095}]
    out = capsys.readouterr().out
    assert "pixelMax=4095" in out
    assert "scaled by 4095 (pixelMax); larger values become white in 2 of them: test0, test1" in out


def test_a_resumed_run_keeps_it_whatever_the_images_have_become(base, capsys, evaluated):
    for number in range(2):
        write(base / "data", f"train{number}", 700)
    assert call(base, "train", "maxEpoch=2") == 0
    assert (stored(base), evaluated) == (4095, [{4095}])
    capsys.readouterr()
    assert call(base, "train", "maxEpoch=3", "pixelMax=1023") == 2
    assert "pixelMax: 4095 then, 1023 now" in capsys.readouterr().err


def test_the_doctor_takes_the_range_of_the_run(base, capsys):
    """The images have become darker, and the run goes on: so its folder is not wrong."""
    for number in range(2):
        write(base / "data", f"train{number}", 700)
    call(base, "doctor", "maxEpoch=2")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " folder: " in line]
    assert line.startswith("ok") and "maxEpoch 1 -> 2" in line


def test_checkpoints_of_older_versions_scaled_by_16_bits(base, evaluated):
    for path in (base / NAME / "weights").glob("*.pth"):
        checkpoint = load_checkpoint(path)
        content = json.loads(checkpoint["config"])
        del content["pixelMax"], checkpoint["data"]["pixelMax"]
        save_checkpoint(path, {**checkpoint, "config": json.dumps(content)})
    assert call(base, "eval") == 0
    assert call(base, "train", "maxEpoch=2") == 0
    assert evaluated == [{65535}, {65535}]


def test_predict_and_explain_scale_alike(base, capsys, monkeypatch):
    seen = []
    for module in ("eval.predict.decode_image", "eval.predict.read_image", "dl.image_cache.read_image"):
        name = module.rpartition(".")[2]
        original = getattr(__import__("dl.images").images, name)
        monkeypatch.setattr(module, lambda path, size=None, pixel_max=None, read=original: (
            seen.append(pixel_max), read(path, size, pixel_max)
        )[1])  # fmt: skip
    words = ["--root", str(base), "--name", NAME, "--data", str(base / "data"), "--set", "dcore=0", "device=cpu"]
    photo = Image.fromarray(np.full((64, 64), 9, np.uint8))
    photo.save(base / "moves.gif", save_all=True, append_images=[photo.point(lambda value: 200 - value)])
    files = [str(base / "data/images/test0.png"), str(base / "data/images/train0.png"), str(base / "moves.gif")]
    assert mars.main(["predict", "voc.nano.full", *files, *words]) == 0
    out = capsys.readouterr().out
    assert "16-bit images (2, largest value 60000): scaled by 4095 (pixelMax)" in out
    assert "become white in 1 of them: data/images/test0" in out
    assert "1 file with several frames or pages, only the first is used: moves" in out
    assert mars.main(["explain", "voc.nano.full", "validation0", *words]) == 0
    assert len(seen) >= 8 and set(seen) == {4095}


@pytest.fixture
def config(tmp_path):
    from config.load import load_config

    def make(data, **fields):
        return load_config("voc.nano.full", tmp_path, str(data), {"inputShape": (64, 64), **fields})

    return make


@pytest.fixture(autouse=True)
def _quiet_log():
    yield
    logging.getLogger("mars").handlers.clear()
