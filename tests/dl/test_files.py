import pytest

from config.errors import UserError
from dl.files import image_id, index_by_stem, natural_key, read_lines


def test_natural_order_puts_a2_before_a10():
    assert sorted(["A10", "A2", "A1", "b", "B1"], key=natural_key) == ["A1", "A2", "A10", "b", "B1"]
    assert sorted(["10", "a", "9", ""], key=natural_key) == ["", "9", "10", "a"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a", "a"),
        ("a.jpg", "a"),
        (" a.JPG ", "a"),
        ("./images/a.png", "a"),
        (r"C:\data\a.jpeg", "a"),
        ("a.xml", "a"),
        ("IMG_2274.rf.0c1", "IMG_2274.rf.0c1"),
        ("my image 1.jpg", "my image 1"),
        ("v1.2", "v1.2"),
    ],
)
def test_image_id(line, expected):
    assert image_id(line) == expected


def test_a_known_id_keeps_its_suffix_so_that_ids_survive_a_second_reading():
    assert image_id("x.jpg.jpg", {"x.jpg"}) == "x.jpg"
    assert image_id("x.jpg", {"x.jpg"}) == "x.jpg"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_read_lines_of_any_editor(tmp_path, encoding):
    path = tmp_path / "list.txt"
    path.write_bytes("größe 1\r\n\r\n  b \r\n\n".encode(encoding))
    assert read_lines(path) == ("größe 1", "b")


def test_read_lines_of_an_empty_file(tmp_path):
    (tmp_path / "list.txt").write_text("")
    assert read_lines(tmp_path / "list.txt") == ()


def test_read_lines_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/absent.txt: No such file"):
        read_lines(tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"gr\xf6\xdfe")
    with pytest.raises(UserError, match=r"latin\.txt: is not UTF-8"):
        read_lines(tmp_path / "latin.txt")


def test_index_by_stem_takes_any_case_and_leaves_hidden_files(tmp_path):
    for name in ("a.JPG", "a.png", "b.c.jpg", "._a.jpg", "notes.txt", "plain"):
        (tmp_path / name).touch()
    index = index_by_stem(tmp_path, {".jpg", ".png"})
    assert {stem: [path.name for path in paths] for stem, paths in index.items()} == {
        "a": ["a.JPG", "a.png"],
        "b.c": ["b.c.jpg"],
    }
