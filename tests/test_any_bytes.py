"""Random and mutated files: every reader gives a value, or one error of the user with the file's name."""

import io
import json
import warnings

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from config.errors import UserError
from config.load import read_class_list
from dl.annotations import RawAnnotation
from dl.files import read_lines, read_text
from dl.formats.coco import looks_like_coco, read_coco
from dl.formats.voc import read_voc
from dl.formats.yolo import looks_like_labels, read_data_yaml, read_yolo
from dl.image_cache import DiskImages
from dl.image_files import VerifiedImages
from dl.images import inspect_image, read_image
from eval.results import read_results, refuse_overwriting_results

XML = (
    b'<?xml version="1.0" encoding="utf-8"?><annotation><size><width>40</width><height>30</height></size><object>'
    b"<name>cat</name><difficult>0</difficult><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>25</xmax><ymax>26</ymax>"
    b"</bndbox></object></annotation>"
)
YAML = b"path: .\ntrain: images/train\nval: [a, b]\nnc: 2\nnames:\n  0: cat\n  1: &d dog\nx: *d\n"
LABELS = b"0 .5 .5 .1 .2\n1 0.1 0.9 0.3 0.2 0.5 0.6\n"
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0}],
    "categories": [{"id": 1, "name": "cat", "supercategory": "none"}],
}
RESULTS = [{"image_id": "a", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]
NAMES = {0: "cat", 1: "dog"}

few = settings(max_examples=60)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([2**63, -(2**63) - 1, 10**400, 10**18]), st.floats(),
    st.text(max_size=5), st.sampled_from(["\ud800", "\0", "9" * 30, "x" * 5000, "~nosuchuser", "\x1b[2K"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated(draw, raw):
    """Bytes of a sound file after a few changes: overwritten, removed, repeated, cut short."""
    content = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(("write", "remove", "repeat", "cut")))
        if kind == "write":
            content[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "remove":
            del content[at : at + draw(st.integers(1, 8))]
        elif kind == "repeat":
            content[at:at] = content[at : at + draw(st.integers(1, 40))] * draw(st.integers(1, 5))
        elif draw(st.booleans()):
            del content[at:]
    return bytes(content)


@st.composite
def changed(draw, content):
    """A JSON value in which one place holds something else."""
    copy = json.loads(json.dumps(content))
    place = copy
    for _ in range(draw(st.integers(1, 4))):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    else:
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
    place[key] = draw(values)
    return json.dumps(copy).encode()


def json_like(content):
    return st.one_of(st.binary(max_size=60), mutated(json.dumps(content).encode()), changed(content))


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """read(reader, name, content): what the reader gives, None for an error of the user that names the file."""
    folder = tmp_path_factory.mktemp("any")

    def read(reader, name, content):
        path = folder / name
        path.write_bytes(content)
        try:
            return reader(path)
        except UserError as error:
            message = str(error)
        assert str(path) in message
        return None

    return read


@few
@given(st.binary(max_size=80) | mutated(XML) | mutated(XML.replace(b"utf-8", b"gbk")))
def test_voc(read, content):
    found = read(read_voc, "a.xml", content)
    assert found is None or isinstance(found, RawAnnotation)


@few
@given(st.text(alphabet="punycodezlib_-0123utfx", min_size=1, max_size=12))
def test_declared_encodings(read, name):
    read(read_voc, "a.xml", XML.replace(b'"utf-8"', f'"{name}"'.encode()))


@few
@given(st.binary(max_size=80) | mutated(LABELS) | st.text(alphabet="0123456789.eE+-_ \n", max_size=80).map(str.encode))
def test_yolo_labels(read, content):
    found = read(lambda path: read_yolo(path, NAMES, (40, 30)), "a.txt", content)
    assert found is None or isinstance(found, RawAnnotation)
    looks = read(looks_like_labels, "a.txt", content)
    assert looks in (True, False)


@settings(max_examples=30)
@given(
    st.one_of(
        st.binary(max_size=80),
        mutated(YAML),
        st.fixed_dictionaries({"names": values}, optional={"nc": values, "train": values, "path": values}).map(
            lambda content: json.dumps(content).encode()
        ),
    )
)
def test_data_yaml(read, content):
    found = read(read_data_yaml, "data.yaml", content)
    assert found is None or all(isinstance(name, str) and name for name in found.names.values())


@few
@given(json_like(COCO))
def test_coco(read, content):
    def whole(path):
        looks_like_coco(path)
        read_coco_anew = read_coco.__globals__["_read"].__wrapped__  # the reader remembers files by their time
        file = read_coco_anew(path, (0, 0))
        return [file.annotation_of(name) for name in file.file_names]

    read(whole, "c.json", content)


@few
@given(st.binary(max_size=80) | mutated("a.jpg\nb.jpg\nünï.png\n".encode()) | mutated("猫\n狗\n".encode("utf-16")))
def test_lists_and_class_lists(read, content):
    for reader in (read_lines, read_text, lambda path: read_class_list(str(path))):
        read(reader, "train.txt", content)


def _encoded(kind, mode="RGB", **options):
    stream = io.BytesIO()
    Image.new(mode, (9, 7), 1 if mode in ("P", "I;16") else None or 0).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"), ("PNG", "RGBA"), ("PNG", "I;16"), ("PNG", "P"), ("BMP", "P"), ("TIFF", "RGB"),
        ("TIFF", "I;16"), ("GIF", "P"), ("WEBP", "RGB"), ("PPM", "RGB"), ("JPEG2000", "RGB"), ("TGA", "RGB"),
    ],
)  # fmt: skip
@settings(max_examples=25)
@given(data=st.data())
def test_images(read, kind, mode, data):
    content = data.draw(mutated(_encoded(kind, mode)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reader in (read_image, inspect_image):
            read(reader, "a.png", content)


@few
@given(json_like(RESULTS))
def test_results(read, content):
    found = read(lambda path: read_results(path, ["a"]), "d.json", content)
    assert found is None or [one.image_id for one in found] == ["a"]
    read(lambda path: refuse_overwriting_results(path, path, ""), "d.json", content)


@few
@given(json_like({"version": 2, "images": {"a": [1, 2, 40, 30, 1, 0, False, "x"]}}))
def test_checked_images(read, content):
    kept = read(VerifiedImages, "data-check.json", content)
    assert kept is not None  # a damaged file only costs the time to decode again
    assert all(len(entry) == 8 for entry in kept._entries.values())


@few
@given(json_like([["a", 2, 1, None, 5, 6, 7]]))
def test_kept_images(read, content):
    raw = bytes(6) + content + len(content).to_bytes(8, "little") + b"MARSPIX1"
    assert read(lambda path: DiskImages.open(path, []), "a.pixels", raw) is None or content == b"[]"


def test_a_yaml_as_people_write_it_stays_text(read):
    words = ["no", "on", "1_000", "2024-01-01", "007", "0o17", "null", "~"]
    found = read(read_data_yaml, "data.yaml", yaml.dump({"names": dict(enumerate(words))}).replace("'", "").encode())
    assert list(found.names.values()) == words
