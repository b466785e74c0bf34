import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import UserError
from dl.formats.pairing import ImageTree, name_images

PATHS = ("images/train/a.jpg", "images/train/b.v1.png", "images/val/a.jpg", "images/val/c.jpg")


@pytest.fixture(params=["on disk", "as annotations say"])
def tree(request, tmp_path):
    for path in PATHS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "images/.hidden.jpg").touch()
    (tmp_path / "images/notes.txt").touch()
    return ImageTree(tmp_path, None if request.param == "on disk" else PATHS)


def test_paths(tree):
    assert tree.paths == PATHS
    assert ImageTree(tree.folder, ()).paths == ()


def test_lines_as_people_write_them(tree):
    base = tree.folder
    with_folder = ("images/val/c.jpg", "./images/val/c.jpg", r"images\val\c.jpg", f"{base}/images/val/c.jpg")
    for line in (*with_folder, "/content/ds/images/val/c.jpg", "c.jpg", " c.jpg ", "c"):
        assert tree.find(line) == "images/val/c.jpg"
    assert tree.find("b.v1") == "images/train/b.v1.png"
    assert tree.find("../val/a.jpg", base / "images/train") == "images/val/a.jpg"
    assert tree.find("val/a.jpg") == "images/val/a.jpg"


def test_a_name_that_fits_several_or_none(tree):
    with pytest.raises(UserError, match=r"a: several images below .* \(images/train/a.jpg, images/val/a.jpg\)"):
        tree.find("a")
    assert tree.find("x.jpg") == "x.jpg"


def test_ids_are_stems_where_they_can_be():
    paths = ["train/images/a.jpg", "valid/images/a.jpg", "train/images/b.jpg", "train/images/a.png", "c.rf.0.jpg"]
    assert list(name_images(paths).items()) == [
        ("train/images/a.jpg", "train/images/a.jpg"),
        ("valid/images/a.jpg", "valid/a"),
        ("train/images/b.jpg", "b"),
        ("train/images/a.png", "train/images/a.png"),
        ("c.rf.0.jpg", "c.rf.0"),
    ]
    assert name_images([]) == {}


@given(st.lists(st.from_regex(r"\A([ab]|images)(/([ab]|images))?/[ab]\.(jpg|png)\Z")))
def test_ids_are_all_different(paths):
    assert len(set(name_images(paths).values())) == len(set(paths))
