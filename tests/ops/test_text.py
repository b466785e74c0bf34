from types import SimpleNamespace

import pytest

from ops.text import align_columns, counted, display_width, shown


@pytest.mark.parametrize(
    ("text", "width"), [("", 0), ("cat", 3), ("飞机", 4), ("Ａ", 2), ("é", 1), ("e\u0301", 1), ("ก\u0e34", 1)]
)
def test_display_width(text, width):
    assert display_width(text) == width


def test_columns_are_aligned_by_what_is_seen():
    assert align_columns([("", "训练", "test"), ("飞机", "7", "10"), ("cat", "12", "3")]) == [
        "      训练  test",
        "飞机     7    10",
        "cat     12     3",
    ]


def test_no_rows_and_one_column():
    assert align_columns([]) == []
    assert align_columns([("a",), ("bcd",)]) == ["a  ", "bcd"]


def test_columns_do_not_depend_on_the_console(monkeypatch):
    for encoding in ("ascii", "no such encoding", None):
        monkeypatch.setattr("sys.stdout", SimpleNamespace(encoding=encoding))
        assert align_columns([("飞机\x1b", "7")]) == ["飞机\\x1b  7"]


def test_ragged_rows_are_refused():
    with pytest.raises(ValueError, match="zip"):
        align_columns([("a", "b"), ("c",)])


def test_numbers_with_their_noun():
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(number, "box", "boxes") for number in (1, 2)] == ["1 box", "2 boxes"]


def test_the_first_names_and_how_many_more():
    assert [shown(list(names), 3) for names in ("", "a", "abc", "abcde")] == ["", "a", "a, b, c", "a, b, c and 2 more"]
