import pytest

from config.errors import UserError
from dl.files import (
    IMAGE_SUFFIXES,
    find_file,
    image_id,
    index_by_stem,
    linked_folders,
    natural_key,
    read_lines,
    walk_files,
)


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
    with pytest.raises(UserError, match=r"latin\.txt: the file is not UTF-8"):
        read_lines(tmp_path / "latin.txt")
    (tmp_path / "table.txt").write_text("a 1\nb\t-1\n")
    with pytest.raises(
        UserError, match=r"table\.txt: line 2: 'b -1' contains a tab; write one name per line, without columns"
    ):
        read_lines(tmp_path / "table.txt")


def test_index_by_stem_takes_any_case_and_leaves_hidden_files(tmp_path):
    for name in ("a.JPG", "a.png", "b.c.jpg", "._a.jpg", "notes.txt", "plain"):
        (tmp_path / name).touch()
    index = index_by_stem(tmp_path, {".jpg", ".png"})
    assert {stem: [path.name for path in paths] for stem, paths in index.items()} == {
        "a": ["a.JPG", "a.png"],
        "b.c": ["b.c.jpg"],
    }


@pytest.fixture
def linked(tmp_path):
    """data/{a.jpg, train/b.jpg} and elsewhere/{c.jpg, deep/d.jpg}."""
    for path in ("data/a.jpg", "data/train/b.jpg", "elsewhere/c.jpg", "elsewhere/deep/d.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path / "data"


@pytest.mark.parametrize("links", [{"latest": "."}, {"latest": ".", "again": "."}, {"train/up": ".."}, {"up": "../.."}])
def test_a_link_to_a_folder_that_is_listed_gives_no_second_name(linked, links):
    for link, target in links.items():
        (linked / link).symlink_to(target)
    assert walk_files(linked, {".jpg"}) == ["a.jpg", "train/b.jpg"]
    assert sorted(linked_folders(linked)) == sorted(links)


def test_the_folder_itself_keeps_its_name_beside_a_link_that_comes_first(linked):
    (linked / "another").symlink_to("train")
    assert walk_files(linked, {".jpg"}) == ["a.jpg", "train/b.jpg"]


def test_folders_elsewhere_are_reached_by_links_each_once(linked):
    (linked / "outside").symlink_to("../elsewhere/deep")
    (linked / "train/whole").symlink_to("../../elsewhere")
    (linked / "twice").symlink_to("../elsewhere")
    assert walk_files(linked, {".jpg"}) == ["a.jpg", "outside/d.jpg", "train/b.jpg", "twice/c.jpg"]
    assert linked_folders(linked) == {"train/whole": ""}


def test_links_to_files_and_a_folder_that_is_itself_a_link(linked, tmp_path):
    (linked / "train/pooled.jpg").symlink_to("../../elsewhere/c.jpg")
    (tmp_path / "link").symlink_to("data")
    assert walk_files(tmp_path / "link", {".jpg"}) == ["a.jpg", "train/b.jpg", "train/pooled.jpg"]


def test_an_image_that_needs_a_plugin_is_listed_unless_its_copy_lies_beside_it(tmp_path):
    for name in ("a.HEIC", "b.heic", "b.jpg", "c.jpg"):
        (tmp_path / name).touch()
    assert walk_files(tmp_path, IMAGE_SUFFIXES) == ["a.HEIC", "b.jpg", "c.jpg"]
    assert [path.name for paths in index_by_stem(tmp_path, IMAGE_SUFFIXES).values() for path in paths] == [
        "a.HEIC", "b.jpg", "c.jpg",
    ]  # fmt: skip


def test_a_file_by_its_name_in_any_case(tmp_path):
    assert find_file(tmp_path, "classes.txt") is None
    (tmp_path / "Classes.TXT").touch()
    assert find_file(tmp_path, "classes.txt") == tmp_path / "Classes.TXT"
    (tmp_path / "classes.txt").touch()
    assert find_file(tmp_path, "classes.txt") == tmp_path / "classes.txt"
