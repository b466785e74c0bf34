from decimal import ROUND_HALF_EVEN, Decimal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from config.errors import UserError
from dl.files import DataError
from dl.formats.yolo import find_data_yaml, read_data_yaml, read_yolo

NAMES = {0: "cat", 1: "dog", 7: "cow"}


@pytest.fixture
def labels(tmp_path):
    """Read this text as the labels of an image of 200 x 100."""

    def read(text, **options):
        path = tmp_path / "a.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_yolo(path, NAMES, (200, 100), **options)

    return read


def test_a_box(labels):
    written = labels("1 0.5 0.5 0.1 0.2\n")
    assert written.objects == (("dog", (90, 40, 110, 60), False),)
    assert (written.size, written.num_polygons, written.is_file_missing) == (None, 0, False)


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff\r\n"])
def test_an_empty_file_is_an_image_without_objects(labels, text):
    assert labels(text)[1:] == ((), 0, False)


def test_a_missing_file_is_an_image_without_objects(tmp_path):
    assert read_yolo(tmp_path / "none.txt", NAMES, (9, 9)) == (None, (), 0, True)


def test_many_lines_as_people_write_them(labels):
    written = labels(b"\xef\xbb\xbf0.0\t.5 0.5 1e-1 2E-1\r\n\r\n7   0.05 0.1 0.1 0.2  \r\n")
    assert written.objects == (("cat", (90, 40, 110, 60), False), ("cow", (0, 0, 20, 20), False))


def test_a_polygon_is_its_box(labels):
    written = labels("0 0.1 0.9 0.3 0.2 0.5 0.6\n1 0.5 0.5 0.1 0.2\n0 .1 .1 .2 .1 .2 .3 .1 .3\n")
    assert [entry.box for entry in written.objects] == [(20, 20, 100, 90), (90, 40, 110, 60), (20, 10, 40, 30)]
    assert written.num_polygons == 2


def test_of_keypoints_only_the_box_is_read(labels):
    assert labels("1 0.5 0.5 0.1 0.2 0.3 0.3 2\n", has_keypoints=True).objects == (("dog", (90, 40, 110, 60), False),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 x 0.1 0.1", "'x' is not a number"),
        ("0 0.5 nan 0.1 0.1", "'nan' is not a number"),
        ("cat 0.5 0.5 0.1 0.1", "'cat' is not a number"),
        ("2 0.5 0.5 0.1 0.1", r"class 2 is not in the class list, which has the classes 0 \(cat\) to 7 \(cow\)"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is not in"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not in"),
        ("0 120 40 30 30", "120 is outside the range 0 to 1; .* divide pixels"),
        ("0 0.5 0.5 0.1 -0.2", "-0.2 is outside the range 0 to 1"),
        ("0 0.5 0.5 0.1", "4 columns, expected 5"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 columns, expected 5 .* is the sixth a score"),
        ("0 0.5 0.5 0.1 0.1 0.9 0.9 0.9", "8 columns"),
    ],
)
def test_faults_name_file_and_line(labels, tmp_path, line, message):
    with pytest.raises(UserError, match=rf"^{tmp_path}/a\.txt: line 3: {message}"):
        labels(f"0 0.5 0.5 0.1 0.1\n\n{line}\n")


def test_a_little_over_the_border_is_left_to_clipping(labels):
    assert labels("0 0.5 0.5 1.005 1").objects[0].box == (-0.5, 0, 200.5, 100)


def test_a_file_that_is_no_text(labels):
    with pytest.raises(UserError, match=r"a\.txt: the file is not UTF-8 text"):
        labels(b"\xff\xd8\xff\xe0 0.5")


@given(st.integers(1, 60_000), st.data(), st.sampled_from([0, 1, 2, 3]), st.sampled_from([6, 8, 10, 16]), st.booleans())
def test_pixels_come_back_from_rounded_shares(tmp_path_factory, size, data, decimals, digits, is_stripped):
    """Written with exact decimal arithmetic: the promise of the module's docstring, and never a wider move."""
    unit = Decimal(1).scaleb(-decimals)
    x1 = data.draw(st.integers(0, int(size / unit) - 1)) * unit
    x2 = data.draw(st.integers(int(x1 / unit) + 1, int(size / unit))) * unit
    shares = [
        ((x1 + x2) / 2 / size).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN),
        ((x2 - x1) / size).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN),
    ]
    cx, width = (f"{float(share):.17g}" if is_stripped else str(share) for share in shares)
    path = tmp_path_factory.getbasetemp() / "shares.txt"
    path.write_text(f"0 {cx} {cx} {width} {width}\n")
    box = read_yolo(path, NAMES, (size, size)).objects[0].box
    error = 0.75 * 10.0**-digits * size
    if error < 0.5 * float(unit) and digits < 16 and not is_stripped:
        assert box == (float(x1), float(x1), float(x2), float(x2))
    assert box[0] == pytest.approx(float(x1), abs=2 * max(error, 0.75e-6 * size) + 1e-9)
    assert box[2] == pytest.approx(float(x2), abs=2 * max(error, 0.75e-6 * size) + 1e-9)


@pytest.fixture
def data_yaml(tmp_path):
    def read(text):
        path = tmp_path / "data.yaml"
        path.write_text(text, encoding="utf-8")
        return read_data_yaml(path)

    return read


def test_data_yaml_as_tools_write_it(data_yaml):
    found = data_yaml("path: ../ds\ntrain: images/train\nval: [a, b]\ntest:\nnc: 3\nnames: [no, 007, ' x y ']\n")
    assert found.names == {0: "no", 1: "007", 2: "x y"}
    assert (found.root, found.splits, found.has_keypoints) == (
        "../ds",
        {"train": ("images/train",), "val": ("a", "b")},
        False,
    )
    found = data_yaml("names:\n  1: b\n  0: a\nkpt_shape: [17, 3]\n")
    assert list(found.names.items()) == [(0, "a"), (1, "b")]
    assert (found.root, found.splits, found.has_keypoints) == ("", {}, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a, b]\nnc: 3\n", "nc is 3, but names has 2 classes"),
        ("nc: 3\n", "there are no class names"),
        ("- a\n", "there are no class names"),
        ("", "there are no class names"),
        ("names: []\n", "names has no class"),
        ("names: [a, '']\n", "names has an empty class name or a wrong number"),
        ("names: {x: a}\n", "names must be a list, or numbers with names"),
        ("names: [a\nval: b: c\n", "the yaml is invalid at line 2, column"),
        (
            "train: a\nnames: [a]\ntrain: b\n",
            r"the yaml is invalid at line 3, column 1 \(the key train occurs twice",
        ),
        ("names: {0: a, 1: b, 0: c}\n", r"the yaml is invalid at line 1, column 21 \(the key 0 occurs twice"),
        ("names: {0: a, 00: b}\n", "names has an empty class name or a wrong number"),
        ("names:\n  0: |\n    a\n    b\n", r"names: 'a\\nb' holds a control character or a line break"),
        ('names: ["a\\tb"]\n', r"names: 'a\\tb' holds a control character"),
    ],
)
def test_faults_of_a_data_yaml(data_yaml, tmp_path, text, message):
    with pytest.raises(UserError, match=rf"^{tmp_path}/data\.yaml: {message}"):
        data_yaml(text)


def test_what_is_not_used_may_stand_twice(data_yaml):
    merged = "x: &x {a: 1}\ny: &y {b: 2}\nz:\n  <<: *x\n  <<: *y\n<<: *x\n<<: *y\n"
    assert data_yaml("names: [a, b]\nroboflow:\n  version: 1\n  version: 2\n" + merged).names == {0: "a", 1: "b"}


def test_block_scalars(data_yaml):
    found = data_yaml("path: >\n  /a/b\ntrain: |\n  c\nnc: >\n  2\nnames:\n  0: |\n    a\n  1: >\n    long\n    name\n")
    assert (found.names, found.root, found.splits) == ({0: "a", 1: "long name"}, "/a/b", {"train": ("c",)})


def test_a_data_yaml_of_another_name(tmp_path):
    assert find_data_yaml(tmp_path) is None
    (tmp_path / "conda.yaml").write_text("names: [a]\n")
    (tmp_path / "broken.yaml").write_text("{")
    assert find_data_yaml(tmp_path) is None
    (tmp_path / "birds.yml").write_text(yaml.safe_dump({"names": ["a"], "train": "x"}))
    assert find_data_yaml(tmp_path) == tmp_path / "birds.yml"
    (tmp_path / "data.yaml").write_text("names: [a]\n")
    assert find_data_yaml(tmp_path) == tmp_path / "data.yaml"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("0 0,5 0,5 0,1 0,1", "line 1: '0,5' is not a number; use a decimal point, not a comma"),
        ("0,0.5,0.5,0.1,0.1", "is not a number; separate the numbers with spaces"),
        ("8 .5 .5 .1 .1", "class 8 is not in the class list, .*; do the labels count classes from 1"),
        (
            "1.5 .5 .5 .1 .1",
            "class 1.5 is not in the class list, .*; the first number of a line is the class, a whole number",
        ),
    ],
)
def test_the_usual_cause_of_a_malformed_line(labels, line, hint):
    with pytest.raises(DataError, match=hint):
        labels(line)
