import pytest

from config.errors import UserError
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
