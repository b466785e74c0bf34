"""Where the results of a split are, and which folders are those of a run."""

import json

import pytest

from config.errors import UserError
from runs.folder import RunFolder


def test_a_folder_for_each_split_by_its_name(tmp_path):
    folder = RunFolder(tmp_path)
    for name in ("test", "validation", "val", "my split", "\u6d4b\u8bd5", "a.b"):
        assert folder.eval_folder(name) == tmp_path / "eval" / name


def test_names_that_are_no_folders_names_or_taken_get_one_of_their_own_inside_eval(tmp_path):
    names = (
        "a/b",
        "a:b",
        "a\\b",
        "..",
        ".",
        "",
        "../../x",
        "images",
        "Images",
        "metrics.json",
        "truth.json",
        "x" * 300,
    )
    folders = [RunFolder(tmp_path).eval_folder(name) for name in names]
    assert {folder.parent for folder in folders} == {tmp_path / "eval"}
    assert len({folder.name.lower() for folder in folders}) == len(names)
    assert not {folder.name for folder in folders} & {"..", ".", "images", "metrics.json", "truth.json"}


def test_results_of_an_earlier_version_are_found_for_their_split_alone(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/metrics.json").write_text(json.dumps({"split": "test"}))
    assert folder.results_folder("test") == tmp_path / "eval"
    assert folder.results_folder("validation") == tmp_path / "eval/validation"
    (tmp_path / "eval/test").mkdir()
    assert folder.results_folder("test") == tmp_path / "eval/test"
    (tmp_path / "eval/metrics.json").write_text("[]")
    assert folder.results_folder("small") == tmp_path / "eval/small"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {".DS_Store": "x"},
        {".lock": "", "notes.txt": "mine"},
        {"weights/best.pth": "put there by hand"},
        {"mars.log": "", "eval/metrics.json": "{}", "notes.txt": "mine"},
        {"config.json": '{"cfgname": "voc", "runName": "run"}', "notes.txt": "mine"},
    ],
)
def test_the_folder_of_a_run_or_of_nothing(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    RunFolder(tmp_path).check_is_run_folder()
    RunFolder(tmp_path / "not/there").check_is_run_folder()


@pytest.mark.parametrize(
    "files",
    [
        {"letter.txt": "x"},
        {"weights/best.pth": "of another program", "src/main.py": ""},
        {"config.json": '{"lr": 1}'},
        {"config.json": "no json", "weights/best.pth": ""},
        {"config.json": "[]"},
    ],
)
def test_the_folder_of_somebody_else(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"is not the folder of a run, it holds .*--name"):
        RunFolder(tmp_path).check_is_run_folder()


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"split": ["test"]}',
        b'{"split": "a\\nb"}',
        b'{"split": "\\ud800"}',
        b"9" * 5_000,
        b"",
    ],
)
def test_files_that_were_damaged_are_nobodys(tmp_path, content):
    """Deep nesting, other types, bytes that are no text: no figures of a split, and no folder of a run."""
    folder = RunFolder(tmp_path / "run")
    folder.eval.mkdir(parents=True)
    (folder.eval / "metrics.json").write_bytes(content)
    assert folder.results_folder("test") == folder.eval_folder("test")
    folder.move_old_results("test")
    folder.config.write_bytes(content)
    with pytest.raises(UserError, match=r"is not the folder of a run, it holds config\.json"):
        folder.check_is_run_folder()


def test_the_longest_names_of_splits_fit_into_a_file_system(tmp_path):
    names = ["\N{AIRPLANE}\N{VARIATION SELECTOR-16}" * 200, "\N{PILE OF POO}" * 80, "a" * 5_000]
    for name in names:
        RunFolder(tmp_path).eval_folder(name).mkdir(parents=True)
    assert len(list((tmp_path / "eval").iterdir())) == len(names)
