import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import UserError
from dl.annotations import RawAnnotation, RawObject, clean_annotation
from dl.files import DataError
from dl.formats.voc import read_voc


@pytest.fixture
def voc(tmp_path):
    """Read these bytes or this text as an xml file."""

    def read(content):
        path = tmp_path / "a.xml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_voc(path)

    return read


def with_object(inner, size="<size><width>40</width><height>30</height><depth/></size>"):
    return f"<annotation>{size}<object>{inner}</object></annotation>"


BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3.5</xmax><ymax>1e1</ymax></bndbox>"


def test_the_least_that_is_needed(voc):
    assert voc(with_object(f"<name>cat</name>{BOX}"))[:2] == ((40, 30), (("cat", (1, 2, 3.5, 10), False),))


def test_no_object_is_a_negative(voc):
    assert voc("<annotation><size><width>4</width><height>3</height></size></annotation>")[:2] == ((4, 3), ())


def test_real_mar20_files(shared):
    one = read_voc(shared / "data/mar20_xml_samples/1.xml")
    assert one.size == (859, 831)
    assert [entry.name for entry in one.objects] == ["A2", "A2", "A10"]
    assert one.objects[2].box == (58, 205, 134, 285)
    assert not any(entry.is_difficult for entry in one.objects)
    assert len(read_voc(shared / "data/mar20_xml_samples/100.xml").objects) == 6


def test_coordinates_in_any_order_and_whitespace(voc):
    box = "<bndbox><ymax> 9 </ymax>\n<xmax>\n8</xmax><ymin>2</ymin><xmin>1</xmin></bndbox>"
    assert voc(with_object(f"<name>\n F-16 \n</name>{box}")).objects == (("F-16", (1, 2, 8, 9), False),)


def test_bndbox_wins_over_an_oriented_box_beside_it(voc):
    oriented = "<robndbox><cx>9</cx></robndbox>"
    assert voc(with_object(f"<name>cat</name>{oriented}{BOX}")).objects[0].box == (1, 2, 3.5, 10)


def test_boxes_of_parts_are_not_the_objects(voc):
    part = "<part><name>head</name><bndbox><xmin>7</xmin><ymin>7</ymin><xmax>8</xmax><ymax>8</ymax></bndbox></part>"
    assert voc(with_object(f"{part}<name>cat</name>{BOX}")).objects == (("cat", (1, 2, 3.5, 10), False),)


@pytest.mark.parametrize(("text", "expected"), [("0", False), ("1", True), (" 1\n", True), ("", False), ("True", True)])
def test_difficult(voc, text, expected):
    content = with_object(f"<name>cat</name><difficult>{text}</difficult>{BOX}")
    assert voc(content).objects[0].is_difficult is expected


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size/>",
        "<size><width>0</width><height>0</height></size>",
        "<size><width>5</width></size>",
        "<size><width/><height/></size>",
    ],
)
def test_missing_or_zero_size(voc, size):
    assert voc(with_object(f"<name>cat</name>{BOX}", size)).size is None


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (BOX, "object 1 has no <name>"),
        (f"<name> </name>{BOX}", "object 1 has no <name>"),
        ("<name>cat</name>", r"object 1 \(cat\) has no <bndbox>"),
        ("<name>cat</name><robndbox/>", "only an oriented box .* use the horizontal annotations"),
        ("<name>cat</name><bndbox><xmin>1</xmin></bndbox>", r"<ymin> of object 1 \(cat\) is '', which is not a number"),
        (f"<name>cat</name>{BOX}".replace("3.5", "nan"), "<xmax> .* is 'nan', which is not a number"),
        (f"<name>cat</name>{BOX}".replace("3.5", "-inf"), "<xmax> .* is '-inf', which is not a number"),
        (f"<name>cat</name>{BOX}".replace("3.5", "3,5"), "<xmax> .* is '3,5', which is not a number"),
        (f"<name>a\tb\nc</name>{BOX}", r"the class of object 1: 'a\\tb\\nc' holds a control character"),
        (f"<name>cat</name><difficult>maybe</difficult>{BOX}", "<difficult> .* 'maybe'; write 0 or 1"),
    ],
)
def test_every_fault_names_its_file(voc, tmp_path, inner, message):
    with pytest.raises(UserError, match=f"{tmp_path / 'a.xml'}: .*{message}"):
        voc(with_object(inner))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is invalid"),
        ("<annotation><object></annotation>", "is invalid"),
        ("<annotation>", "is invalid"),
        (
            '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>',
            "entities: replace them by their text, and remove the DOCT",
        ),
        ("<html/>", "is not a Pascal VOC annotation .the root element is <html>"),
        ("<annotation><size><width>wide</width><height>1</height></size></annotation>", "<width> in <size> is 'wide'"),
    ],
)
def test_files_that_are_no_annotation(voc, tmp_path, content, message):
    with pytest.raises(UserError, match=f"{tmp_path / 'a.xml'}: .*{message}"):
        voc(content)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path / 'b.xml'}: the annotation file does not exist"):
        read_voc(tmp_path / "b.xml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "gb18030", "shift_jis"])
def test_encodings(voc, encoding):
    name = "größe" if encoding == "latin-1" else "飞机" if encoding == "gb18030" else "zebra"
    declared = {"utf-8-sig": "utf-8"}.get(encoding, encoding)
    text = f'<?xml version="1.0" encoding="{declared}"?>' + with_object(f"<name>{name}</name>{BOX}")
    assert voc(text.encode(encoding)).objects[0].name == name


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("hp-roman8", "größe"), ("kz1048", "ұшақ"), ("ptcp154", "ұшақ"), ("macintosh", "größe"), ("cp866", "самолёт")],
)
def test_encodings_of_single_bytes(voc, encoding, name):
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + with_object(f"<name>{name}</name>{BOX}")
    assert voc(text.encode(encoding)).objects[0].name == name


@pytest.mark.parametrize(
    "encoding",
    [
        "punycode",
        "idna",
        "undefined",
        "unicode_escape",
        "raw_unicode_escape",
        "utf-7",
        "U7",
        "zlib",
        "rot13",
        "utf8mb4",
    ],
)
def test_encodings_that_are_not_read(voc, encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + with_object(f"<name>cat</name>{BOX}")
    with pytest.raises(
        DataError, match=f"the xml declares the encoding '{encoding}', which is not supported; save the file as UTF"
    ):
        voc(text)


def test_an_undeclared_encoding_in_a_path_does_no_harm(voc):
    text = "<annotation><path>C:\\用户\\1.jpg</path>" + with_object(f"<name>A1</name>{BOX}")[len("<annotation>") :]
    assert voc(text.encode("gbk")).objects[0].name == "A1"


def test_a_blank_line_before_the_declaration(voc):
    assert voc('\n <?xml version="1.0"?>' + with_object(f"<name>A1</name>{BOX}")).objects[0].name == "A1"


def cleaned(tmp_path, objects, size=(40, 30), class_list=("cat", "dog")):
    voc = RawAnnotation(size, tuple(RawObject(*entry) for entry in objects))
    return clean_annotation(voc, "i", tmp_path / "i.jpg", tmp_path / "i.xml", size, class_list)


def test_clean_without_objects(tmp_path):
    annotation, tally = cleaned(tmp_path, [])
    assert annotation.boxes.shape == (0, 4)
    assert annotation.labels.shape == annotation.difficult.shape == (0,)
    assert (tally.clipped, tally.dropped.total(), tally.ignored.total()) == (0, 0, 0)
    assert annotation.image_id == "i"


def test_clean_keeps_coordinates_as_written(tmp_path):
    objects = [("dog", (1, 1, 40, 30), True), ("cat", (0, 0, 0.25, 7.5), False)]
    annotation, tally = cleaned(tmp_path, objects)
    assert annotation.boxes.tolist() == [[1, 1, 40, 30], [0, 0, 0.25, 7.5]]
    assert annotation.labels.tolist() == [1, 0]
    assert annotation.difficult.tolist() == [True, False]
    assert (annotation.boxes.dtype, annotation.labels.dtype) == (np.float32, np.int64)
    assert (tally.clipped, tally.dropped.total()) == (0, 0)


def test_clean_clips_drops_and_ignores_and_counts_each(tmp_path):
    objects = [
        ("cat", (-3, 5, 50, 20), False),  # clipped
        ("cat", (10, 10, 10, 20), False),  # no width
        ("cat", (20, 10, 10, 20), False),  # inverted
        ("cat", (50, 5, 60, 9), False),  # wholly outside
        ("cow", (1, 2, 3, 4), False),  # not in the list
        ("cow", (9, 9, 1, 1), False),
        ("dog", (2, 3, 4, 5), False),
    ]
    annotation, tally = cleaned(tmp_path, objects)
    assert annotation.boxes.tolist() == [[0, 5, 40, 20], [2, 3, 4, 5]]
    assert annotation.labels.tolist() == [0, 1]
    assert (tally.clipped, dict(tally.ignored)) == (1, {"cow": 2})
    assert tally.dropped == {"without area": 1, "with swapped corners": 1, "outside the image": 1}


@pytest.mark.parametrize(
    ("box", "why"),
    [
        ((30, 5, 10, 20), "with swapped corners"),
        ((10, 20, 30, 5), "with swapped corners"),
        ((60, 20, 50, 5), "with swapped corners"),
        ((10, 5, 10, 20), "without area"),
        ((10, 5, 10, 5), "without area"),
        ((10, 5, 10 + 1e-9, 20), "without area"),
        ((41, 5, 60, 20), "outside the image"),
        ((-9, -9, -1, -1), "outside the image"),
        ((5, 30, 20, 40), "outside the image"),
        ((0.25, 0.25, 0.75, 0.5), "within the first pixel"),
        ((0, 0, 1, 1), "within the first pixel"),
        ((0, 0, 1, 1.5), None),
        ((39, 29, 40, 30), None),
    ],
)
def test_why_a_box_is_dropped(tmp_path, box, why):
    annotation, tally = cleaned(tmp_path, [("cat", box, False), ("dog", (2, 3, 4, 5), False)])
    assert tally.dropped == ({why: 1} if why else {})
    assert annotation.labels.tolist() == ([1] if why else [0, 1])


def test_a_picture_of_one_pixel_may_have_an_object(tmp_path):
    assert len(cleaned(tmp_path, [("cat", (0, 0, 1, 1), False)], size=(1, 1))[0].boxes) == 1


def test_an_object_that_is_written_twice_counts_once(tmp_path):
    box, other = (2, 3, 4, 5), (2, 3, 4, 6)
    objects = [("cat", box, True), ("dog", box, True), ("cat", other, False), ("cat", box, False), ("dog", box, True)]
    annotation, tally = cleaned(tmp_path, objects)
    assert annotation.boxes.tolist() == [[2, 3, 4, 5], [2, 3, 4, 5], [2, 3, 4, 6]]
    assert annotation.labels.tolist() == [0, 1, 0]
    assert annotation.difficult.tolist() == [False, True, False], "difficult when all of them are"
    assert tally.duplicates == 2


COORDINATE = st.floats(-100, 100) | st.integers(-10, 50).map(float)


@given(boxes=st.lists(st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE), max_size=8))
def test_cleaned_boxes_always_have_area_inside_the_image(tmp_path_factory, boxes):
    annotation, tally = cleaned(tmp_path_factory.getbasetemp(), [("cat", box, False) for box in boxes])
    assert len(annotation.boxes) + tally.dropped.total() + tally.duplicates == len(boxes)
    assert (annotation.boxes[:, 2:] > annotation.boxes[:, :2]).all()
    assert (annotation.boxes >= 0).all()
    assert (annotation.boxes <= [40, 30, 40, 30]).all()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    ("value", "hint"),
    [("12,5", "use a decimal point, not a comma"), ("", "the value is missing"), ("x", "not a number")],
)
def test_a_malformed_number_names_line_and_usual_cause(tmp_path, encoding, value, hint):
    lines = [
        "<annotation>",
        "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>3</ymax></bndbox></object>",
    ]
    lines += ["", "<object>", f"<name>dog</name><bndbox><xmin>{value}</xmin></bndbox></object></annotation>"]
    (tmp_path / "a.xml").write_bytes("\n".join(lines).encode(encoding))
    with pytest.raises(DataError, match=rf"a\.xml: <xmin> of object 2 \(dog\) is .*{hint}.*begins in line 4"):
        read_voc(tmp_path / "a.xml")
