import pytest

from ops.text import align_columns, display_width


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


def test_ragged_rows_are_refused():
    with pytest.raises(ValueError, match="zip"):
        align_columns([("a", "b"), ("c",)])
