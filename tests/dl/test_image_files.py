"""One image under two names: within a split, in two that must be apart, as a copy and as a link."""

import shutil

import pytest

import dl.image_files
from commands.setup import log_report
from dl.check import check_data
from dl.formats.discover import locate
from dl.image_files import VerifiedImages, find_copies

ALL = ["train", "validation", "test"]


@pytest.fixture
def copied(make_folder):
    """Train a b c, validation d, test e f; e copies a, and c copies b, which are in one split."""
    folder = make_folder({"train": ["a", "b", "c"], "validation": ["d"], "test": ["e", "f"]})
    shutil.copy(folder / "images/a.jpg", folder / "images/e.jpg")
    shutil.copy(folder / "images/b.jpg", folder / "images/c.jpg")
    return folder


def counts(report):
    return {name: (split.copies, split.shared_with_other_split) for name, split in report.splits.items()}


def test_copies_are_counted_and_named(copied, config):
    report = check_data(config(copied), ALL).report
    assert counts(report) == {"train": (1, 1), "validation": (0, 0), "test": (0, 1)}
    (sentence,) = report.copies
    assert sentence == (
        "splits 'train' and 'test' contain 1 identical image under different names (byte for byte): a is e; "
        "delete one file of each pair, or list both in the same split"
    )
    table = report.table()
    assert "! images identical to another image of the split      1           0     0" in table
    assert "! images identical to an image of another split       1           0     1" in table


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_links_are_copies(three_splits, config, link):
    (three_splits / "images/d.jpg").unlink()
    getattr(three_splits / "images/d.jpg", link)(three_splits / "images/b.jpg")
    assert (
        "'train' and 'validation' contain 1 identical image under different names"
        in check_data(config(three_splits), ALL).report.copies[0]
    )


def test_no_copies(three_splits, config):
    report = check_data(config(three_splits), ALL).report
    assert (report.copies, counts(report)) == ((), dict.fromkeys(ALL, (0, 0)))


def test_equal_sizes_are_not_equal_bytes(three_splits, config):
    assert len({path.stat().st_size for path in (three_splits / "images").iterdir()}) == 1
    assert check_data(config(three_splits), ["test"]).report.copies == ()


def test_training_and_evaluation_warn_of_them(copied, config, caplog):
    report = check_data(config(copied), ALL).report
    log_report(report)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == list(report.copies)


def test_more_than_five_are_counted(make_folder, config):
    names = [f"n{number}" for number in range(7)]
    folder = make_folder({"train": names, "validation": ["v"], "test": [f"t{name}" for name in names]})
    for name in names:
        shutil.copy(folder / f"images/{name}.jpg", folder / f"images/t{name}.jpg")
    (sentence,) = check_data(config(folder), ALL).report.copies
    assert "contain 7 identical images" in sentence and "n4 is tn4 and 2 more;" in sentence


@pytest.fixture
def digested(monkeypatch):
    """Names of the files that were read only for their digest."""
    names, digest = [], dl.image_files.file_digest
    monkeypatch.setattr(dl.image_files, "file_digest", lambda path: (names.append(path.stem), digest(path))[1])
    return names


def test_a_split_alone_is_compared_with_those_it_must_be_apart_from(copied, config, tmp_path, digested):
    """An evaluation sees copies of training images; files are read where sizes agree, and never twice."""
    (copied / "images/d.jpg").write_bytes((copied / "images/d.jpg").read_bytes() + b" another size")
    cache = tmp_path / "data-check.json"
    report = check_data(config(copied), ["test"], cache).report
    assert (report.splits["test"].shared_with_other_split, len(report.copies)) == (1, 1)
    assert sorted(digested) == ["a", "b", "c"]
    check_data(config(copied), ["train"], cache)
    digested.clear()
    assert check_data(config(copied), ["test"], cache).report == report
    assert digested == []


def test_what_cannot_be_read_there_does_not_matter(copied, config):
    (copied / "images/a.jpg").unlink()
    (copied / "images/b.jpg").unlink()
    assert check_data(config(copied), ["test"]).report.copies == ()


def test_an_id_that_both_splits_list_is_no_copy(copied, config):
    """Such as where the test split is the validation split; c is a copy of b, but both splits list b."""
    (copied / "splits/small.txt").write_text("a\nb\n")
    assert counts(check_data(config(copied), ["train", "small"]).report) == {"train": (1, 1), "small": (0, 0)}
    source = locate(config(copied))
    files = {name: name.replace("c", "b") for name in "abc"}
    for pair in (("train", "small"), ("small", "train"), ("small", "small")):
        assert find_copies(source, [pair], files, VerifiedImages()) == []
