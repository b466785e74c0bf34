"""`mars.py augment`: a sheet of training images as the network gets them."""

import pytest
from PIL import Image
from training_fixtures import squares  # noqa: F401 (fixture)

import mars


def augment(squares, tmp_path, *words):  # noqa: F811
    return mars.main(["augment", "voc.nano.full", "--data", str(squares), "--root", str(tmp_path / "runs"), *words])


def test_the_sheet_has_a_cell_for_each_image(squares, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "sheet.jpg"
    transforms = "transforms=Erase(probability=1.0),MixUp(probability=1.0)"
    words = ["--count", "4", "--out", str(out), "--set", "inputShape=64", "rotate=10", transforms]
    assert augment(squares, tmp_path, *words) == 0
    assert "4 images of the first epoch with " in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.size == (2 * 640 + 8, 2 * 640 + 8)  # small images are enlarged
    assert augment(squares, tmp_path, "--count", "99", "--set", "inputShape=64") == 0  # more than there are
    assert (tmp_path / "runs/voc.nano.full-squares/augmented.jpg").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count", "0"], "--count 0: must be from 1 to 100"),
        (["--set", "transforms=Eraze()"], "did you mean 'Erase'"),
        (["--set", "transforms=Erase(3)"], "expected the name of a class and plain values"),
        (["--set", "augmentation=none", "rotate=10"], "rotate=10.0: only augmentation=modern uses it"),
    ],
)
def test_mistakes(squares, tmp_path, capsys, words, message):  # noqa: F811
    assert augment(squares, tmp_path, *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs/voc.nano.full-squares/augmented.jpg").exists()
