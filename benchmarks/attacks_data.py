"""Data sets and images made to crash a reader, or to make it use gigabytes or minutes.

`DATA_ATTACKS[name](folder)` makes a small data set in an empty folder, one file of which is hostile, and returns the
folder. `IMAGE_ATTACKS[name](folder)` makes one image and returns its file. `LARGE_IMAGES` are large but legitimate:
they must be read. `make attacks` gives them to commands, and the tests of `dl` to its functions.
"""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

Builder = Callable[[Path], Path]

_NAMES = ("a", "b", "c", "d", "e", "f")
_SIZE = (40, 30)
_OBJECT = "<object><name>cat</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>25</xmax><ymax>26</ymax></bndbox></object>"
_CONTROL = "cat\x1b[2K\rok data: every file was read"  # hides what stands before it on a terminal
_HUGE = "9" * 5000  # more digits than Python turns into a number
_DEPTH = 100_000
_ALIASES = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
_ALIAS_BOMB = f"a0: &a0 [{', '.join(['lol'] * 9)}]\n{_ALIASES}"  # 9 ** 10 words once it is unfolded


# --- small data sets without a fault ---


def _images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shade, name in enumerate(_NAMES):
        Image.new("RGB", _SIZE, (40 * shade, 90, 160)).save(folder / f"{name}.png")


def _voc(folder: Path, xml: "str | bytes | None" = None) -> Path:
    """A Pascal VOC data set; `xml` is the annotation of its first image."""
    _images(folder / "images")
    sound = f"<annotation><size><width>{_SIZE[0]}</width><height>{_SIZE[1]}</height></size>{_OBJECT}</annotation>"
    for name in _NAMES:
        _write(folder / "annotations" / f"{name}.xml", sound)
    if xml is not None:
        _write(folder / "annotations/a.xml", xml)
    _write(folder / "classes.txt", "cat\ndog\n")
    for split, members in {"train": "abcd", "validation": "e", "test": "f"}.items():
        _write(folder / "splits" / f"{split}.txt", "".join(f"{name}\n" for name in members))
    return folder


def _yolo(folder: Path, data_yaml: "str | bytes" = "", label: str = "0 .5 .5 .1 .2\n") -> Path:
    """A YOLO data set; `label` is that of its first image."""
    _images(folder / "images/train")
    _images(folder / "images/val")
    for split in ("train", "val"):
        for shade, name in enumerate(_NAMES):
            image = Image.new("RGB", _SIZE, (40 * shade, 90, 200 if split == "val" else 20))
            image.save(folder / "images" / split / f"{name}.png")
            _write(folder / "labels" / split / f"{name}.txt", "0 .5 .5 .1 .2\n")
    _write(folder / "labels/train/a.txt", label)
    sound = "train: images/train\nval: images/val\ntest: images/val\nnames: [cat, dog]\n"
    _write(folder / "data.yaml", data_yaml or sound)
    return folder


def _coco(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None, text: str = "") -> Path:
    """A COCO data set; `change` works on the content of its json for training, or `text` takes the place of it."""
    for split in ("train", "val", "test"):
        place = folder / f"{split}2017"
        place.mkdir(parents=True)
        for shade, name in enumerate(_NAMES):
            image = Image.new("RGB", _SIZE, (40 * shade, 90, {"train": 10, "val": 120, "test": 240}[split]))
            image.save(place / f"{name}.png")
        content: dict[str, Any] = {
            "images": [
                {"id": number, "file_name": f"{name}.png", "width": 40, "height": 30}
                for number, name in enumerate(_NAMES)
            ],
            "annotations": [
                {"id": number, "image_id": number, "category_id": 1, "bbox": [5, 6, 20, 20]}
                for number in range(len(_NAMES))
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        if split == "train":
            change(content)
        _write(
            folder / f"annotations/instances_{split}2017.json", text if text and split == "train" else _json(content)
        )
    return folder


def _json(content: Any) -> str:
    """JSON in which the word HUGE stands for a number that Python refuses to write."""
    return json.dumps(content).replace('"HUGE"', _HUGE).replace('"OVERFLOW"', "1" + "0" * 400)


def _write(path: Path, content: "str | bytes") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


# --- Pascal VOC ---


def _with_encoding(encoding: str, size: int) -> Builder:
    """Letters that mean nothing in most encodings, and an insertion each in punycode."""
    return partial(_voc, xml=f'<?xml version="1.0" encoding="{encoding}"?><annotation>-{"a" * size}')


def _entities(levels: int, width: int, length: int) -> str:
    first = f'<!ENTITY e0 "{"x" * length}">'
    rest = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * width}">' for i in range(1, levels))
    name = f"<name>{f'&e{levels - 1};' * width}</name>"
    return f"<!DOCTYPE annotation [{first}{rest}]><annotation>{_OBJECT.replace('<name>cat</name>', name)}</annotation>"


def _external_entity(folder: Path) -> Path:
    _write(folder / "secret.txt", "secret")
    head = f'<!DOCTYPE annotation [<!ENTITY file SYSTEM "file://{folder}/secret.txt">]>'
    return _voc(folder, f"{head}<annotation>{_OBJECT.replace('cat', '&file;')}</annotation>")


def _comments(folder: Path) -> Path:
    """An object with a fault behind a million comments that begin and never end, within CDATA."""
    comments = "<!--" * 1_000_000
    return _voc(
        folder, f"<annotation><folder><![CDATA[{comments}]]></folder>{_OBJECT.replace('5', 'x', 1)}</annotation>"
    )


def _pipe(folder: Path, name: str) -> Path:
    """A named pipe in the place of a file: who opens it waits for ever."""
    _voc(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    return folder


def _link(folder: Path, name: str, target: str) -> Path:
    _voc(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    return folder


def _sparse(folder: Path, name: str) -> Path:
    """A file of 100 GB of zeros that take no room on the disk."""
    _voc(folder)
    with open(folder / name, "wb") as file:
        file.truncate(100 * 2**30)
    return folder


def _listed(folder: Path, line: "str | bytes") -> Path:
    _voc(folder)
    _write(folder / "splits/train.txt", b"a\nb\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    return folder


def _classes(folder: Path, content: str) -> Path:
    _voc(folder)
    _write(folder / "classes.txt", content)
    return folder


def _image_named(folder: Path, name: bytes) -> Path:
    _voc(folder)
    for kind, suffix in ((b"images", b".png"), (b"annotations", b".xml")):
        place = os.fsencode(folder) + b"/" + kind + b"/"
        os.rename(place + b"a" + suffix, place + name + suffix)
    (folder / "splits/train.txt").write_text("b\nc\nd\n")
    return folder


def _bomb_in_data_set(folder: Path) -> Path:
    _voc(folder)
    one_bit_png(folder / "images").rename(folder / "images/a.png")
    return folder


# --- YOLO ---


def _with_yaml(text: str) -> Builder:
    return partial(_yolo, data_yaml=text)


_SPLITS = "train: images/train\nval: images/val\n"


# --- COCO ---


def _setting(key: str, field: str, value: Any) -> Builder:
    """`field` of the first entry of `key` has this value."""
    return partial(_coco, change=lambda content: content[key][0].update({field: value}))


def _replacing(key: str, value: Any) -> Builder:
    return partial(_coco, change=lambda content: content.update({key: value}))


def _sparse_json(folder: Path) -> Path:
    _coco(folder)
    with open(folder / "annotations/instances_train2017.json", "ab") as file:
        file.truncate(100 * 2**30)
    return folder


DATA_ATTACKS: dict[str, Builder] = {
    "xml_punycode": _with_encoding("punycode", 300_000),
    "xml_idna": _with_encoding("idna", 300_000),
    "xml_zlib": _with_encoding("zlib", 1000),
    "xml_utf7": _with_encoding("utf-7", 1000),
    "xml_unicode_escape": partial(
        _voc, xml=b'<?xml version="1.0" encoding="unicode_escape"?><annotation>' + b"\\d\xff</annotation>"
    ),
    "xml_billion_laughs": partial(_voc, xml=_entities(10, 10, 3)),
    "xml_quadratic_entity": partial(_voc, xml=_entities(1, 20_000, 200_000)),
    "xml_external_entity": _external_entity,
    "xml_deep": partial(_voc, xml="<annotation>" + "<a>" * _DEPTH),
    "xml_deep_whole": partial(_voc, xml="<annotation>" + "<a>" * _DEPTH + "</a>" * _DEPTH + "</annotation>"),
    "xml_comments": _comments,
    "xml_huge_number": partial(_voc, xml=f"<annotation>{_OBJECT.replace('>5<', f'>{_HUGE}<')}</annotation>"),
    "xml_huge_size": partial(
        _voc, xml=f"<annotation><size><width>1e300</width><height>1e300</height></size>{_OBJECT}</annotation>"
    ),
    "xml_many_objects": partial(_voc, xml=f"<annotation>{'<object/>' * 60_000}</annotation>"),
    "xml_c1_control_name": partial(_voc, xml=f"<annotation>{_OBJECT.replace('cat', 'cat&#x9b;2K')}</annotation>"),
    "xml_line_break_name": partial(_voc, xml=f"<annotation>{_OBJECT.replace('cat', f'cat{chr(10)}ok')}</annotation>"),
    "xml_long_name": partial(_voc, xml=f"<annotation>{_OBJECT.replace('cat', 'c' * 100_000)}</annotation>"),
    "xml_pipe": partial(_pipe, name="annotations/a.xml"),
    "xml_sparse": partial(_sparse, name="annotations/a.xml"),
    "image_bomb": _bomb_in_data_set,
    "image_pipe": partial(_pipe, name="images/a.png"),
    "image_device": partial(_link, name="images/a.png", target="/dev/zero"),
    "image_sparse": partial(_sparse, name="images/a.png"),
    "file_name_control": partial(_image_named, name=_CONTROL.replace("\r", "\n").encode()),
    "file_name_not_utf8": partial(_image_named, name=b"caf\xe9"),
    "list_long_line": partial(_listed, line="x" * 100_000),
    "list_long_name": partial(_listed, line="x" * 300),
    "list_zero_byte": partial(_listed, line="a\0b"),
    "list_control": partial(_listed, line="a\x1b[2Kb"),
    "list_not_utf8": partial(_listed, line=b"caf\xe9"),
    "list_upwards": partial(_listed, line="../../../../../etc/passwd"),
    "list_home": partial(_listed, line="~nosuchuser/a.png"),
    "list_pipe": partial(_pipe, name="splits/train.txt"),
    "list_device": partial(_link, name="splits/train.txt", target="/dev/zero"),
    "list_sparse": partial(_sparse, name="splits/train.txt"),
    "classes_control": partial(_classes, content=f"{_CONTROL}\ndog\n".replace("\r", "")),
    "classes_long": partial(_classes, content=f"cat\n{'d' * 100_000}\n"),
    "classes_many": partial(_classes, content="cat\n" + "".join(f"c{i}\n" for i in range(200_000))),
    "classes_zero_byte": partial(_classes, content="cat\nd\0g\n"),
    "yaml_alias_bomb": _with_yaml(f"{_ALIAS_BOMB}{_SPLITS}names: [cat, *a9]\n"),
    "yaml_alias_bomb_split": _with_yaml(f"{_ALIAS_BOMB}train: [x, *a9]\nval: images/val\nnames: [cat, dog]\n"),
    "yaml_alias_bomb_count": _with_yaml(f"{_ALIAS_BOMB}{_SPLITS}nc: *a9\nnames: [cat, dog]\n"),
    "yaml_alias_bomb_path": _with_yaml(f"{_ALIAS_BOMB}path: *a9\n{_SPLITS}names: [cat, dog]\n"),
    "yaml_merge": _with_yaml(f"x: &x {{0: cat}}\n{_SPLITS}names: {{<<: *x, 1: dog}}\n"),
    "yaml_deep": _with_yaml("names: " + "[" * _DEPTH),
    "yaml_recursive": _with_yaml(f"{_SPLITS}names: &n [cat, *n]\n"),
    "yaml_huge_number": _with_yaml(f"{_SPLITS}names: {{{_HUGE}: cat}}\n"),
    "yaml_tag": _with_yaml(f"{_SPLITS}names: !!python/object/apply:os.system ['true']\n"),
    "yaml_two_names": _with_yaml(f"{_SPLITS}names: [cat, dog]\nnames: [dog, cat]\n"),
    "yaml_home": _with_yaml(f"path: ~nosuchuser/data\n{_SPLITS}names: [cat, dog]\n"),
    "yaml_home_split": _with_yaml("train: ~nosuchuser/images\nval: images/val\nnames: [cat, dog]\n"),
    "yaml_long_path": _with_yaml(f"train: {'x' * 5000}\nval: images/val\nnames: [cat, dog]\n"),
    "yaml_zero_byte": _with_yaml(f'path: "a\\0b"\n{_SPLITS}names: [cat, dog]\n'),
    "yaml_control": _with_yaml(f'{_SPLITS}names: ["cat\\e[2K", dog]\n'),
    "yaml_surrogate": _with_yaml(f'{_SPLITS}names: ["cat\\ud800", dog]\n'),
    "yaml_long_name": _with_yaml(f"{_SPLITS}names: [cat, {'d' * 100_000}]\n"),
    "yaml_not_utf8": partial(_yolo, data_yaml=_SPLITS.encode() + b"names: [caf\xe9, dog]\n"),
    "yaml_device": _with_yaml("train: /dev/zero\nval: images/val\nnames: [cat, dog]\n"),
    "yaml_list_as_path": _with_yaml(f"path: [a, b]\n{_SPLITS}names: [cat, dog]\n"),
    "yaml_names_of_lists": _with_yaml(f"{_SPLITS}names: [[cat], {{a: b}}]\n"),
    "label_huge_exponent": partial(_yolo, label=f"0 .5 .5 .1 0e{_HUGE}\n"),
    "label_huge_class": partial(_yolo, label=f"{_HUGE} .5 .5 .1 .1\n"),
    "label_long_word": partial(_yolo, label=f"0 .5 .5 .1 .{_HUGE * 200}\n"),
    "label_many_lines": partial(_yolo, label="0 .5 .5 .1 .2\n" * 200_000),
    "coco_deep": partial(_coco, text='{"images": [], "categories": [], "annotations": ' + "[" * _DEPTH),
    "coco_huge_number": _setting("annotations", "id", "HUGE"),
    "coco_overflow": _setting("annotations", "bbox", [5, 6, "OVERFLOW", 20]),
    "coco_overflow_size": _setting("images", "width", "OVERFLOW"),
    "coco_int64": partial(
        _coco,
        change=lambda content: (
            content["categories"][0].update(id=2**70),
            [entry.update(category_id=2**70) for entry in content["annotations"]],
        ),
    ),
    "coco_long_file_name": _setting("images", "file_name", "x" * 100_000),
    "coco_zero_byte": _setting("images", "file_name", "a\0.png"),
    "coco_surrogate": _setting("images", "file_name", "\ud800.png"),
    "coco_control_file_name": _setting("images", "file_name", f"{_CONTROL}.png"),
    "coco_control_name": _setting("categories", "name", _CONTROL),
    "coco_surrogate_name": _setting("categories", "name", "cat\ud800"),
    "coco_long_name": _setting("categories", "name", "c" * 100_000),
    "coco_outside": _setting("images", "file_name", "../../../../../../etc/passwd"),
    "coco_absolute": _setting("images", "file_name", "/dev/zero"),
    "coco_wrong_types": _replacing("annotations", [None, 1, "x", [], {}, {"image_id": []}, {"image_id": 0}]),
    "coco_strange_images": _replacing("images", [None, 1, "x", [], {"id": {}, "file_name": []}]),
    "coco_strange_categories": _replacing("categories", [{"id": 1, "name": ["cat"]}]),
    "coco_sparse": _sparse_json,
}  # fmt: skip


# --- images ---


def _zeros(num_bytes: int) -> bytes:
    """So many zero bytes, compressed as PNG and TIFF do."""
    compressor = zlib.compressobj(9)
    parts = [compressor.compress(bytes(min(2**20, num_bytes - start))) for start in range(0, num_bytes, 2**20)]
    return b"".join([*parts, compressor.flush()])


def _png(width: int, height: int, bits: int, colour: int, more: bytes = b"") -> bytes:
    channels = {0: 1, 2: 3, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    content = _zeros(height * (1 + (width * bits * channels + 7) // 8))
    chunks = _chunk(b"IHDR", header) + more + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _write_png(folder: Path, width: int, height: int, bits: int, colour: int, more: bytes = b"") -> Path:
    path = folder / "image.png"
    _write(path, _png(width, height, bits, colour, more))
    return path


def one_bit_png(folder: Path) -> Path:
    """30,000 x 30,000 pixels of one bit: 110 KB on the disk, 4 GB as RGB."""
    return _write_png(folder, 30_000, 30_000, 1, 0)


def tiff(folder: Path, width: int = 30_000, height: int = 30_000) -> Path:
    """One bit a pixel, compressed."""
    content = _zeros(height * ((width + 7) // 8))
    tags = ((256, width), (257, height), (258, 1), (259, 8), (262, 1), (273, 8), (278, height), (279, len(content)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(content))
    _write(folder / "image.tif", head + content + struct.pack("<H", len(tags)) + entries + bytes(4))
    return folder / "image.tif"


def bmp_rle(folder: Path) -> Path:
    """A run-length encoded picture that ends after its first bytes."""
    header = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 8, 1, 4, 0, 0, 256, 0)
    content = header + bytes(1024) + b"\x05\x01\x00\x01"
    _write(folder / "image.bmp", b"BM" + struct.pack("<IHHI", 14 + len(content), 0, 0, 14 + 40 + 1024) + content)
    return folder / "image.bmp"


def gif(folder: Path) -> Path:
    """A small frame on a screen of 65,535 x 65,535 pixels."""
    raw = _encoded(Image.new("P", (4, 4)), "GIF")
    _write(folder / "image.gif", raw[:6] + struct.pack("<HH", 65_535, 65_535) + raw[10:])
    return folder / "image.gif"


def gif_many_frames(folder: Path) -> Path:
    frames = [Image.new("P", (2, 2), i % 2) for i in range(5000)]
    _write(folder / "image.gif", _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], optimize=False))
    return folder / "image.gif"


def jpeg(folder: Path) -> Path:
    """A header that says 65,500 x 65,500 over the pixels of a small picture."""
    raw = bytearray(_encoded(Image.new("RGB", (16, 16), "red"), "JPEG"))
    at = raw.index(b"\xff\xc0")
    raw[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    _write(folder / "image.jpg", bytes(raw))
    return folder / "image.jpg"


def webp(folder: Path) -> Path:
    """Small frames on a canvas of 60,000 x 60,000 pixels."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    raw = bytearray(_encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    at = raw.index(b"VP8X") + 12
    raw[at : at + 6] = struct.pack("<I", 59_999)[:3] * 2
    _write(folder / "image.webp", bytes(raw))
    return folder / "image.webp"


def jpeg_2000(folder: Path) -> Path:
    """A header that says 60,000 x 60,000 over the pixels of a small picture."""
    raw = _encoded(Image.new("RGB", (16, 16), "red"), "JPEG2000", no_jp2=True)
    small, large = struct.pack(">II", 16, 16), struct.pack(">II", 60_000, 60_000)
    _write(folder / "image.jp2", raw.replace(small, large, 1))
    return folder / "image.jp2"


def ppm(folder: Path) -> Path:
    _write(folder / "image.ppm", b"P5 60000 60000 255\n" + bytes(1000))
    return folder / "image.ppm"


def icon(folder: Path) -> Path:
    """An icon of 16 x 16 pixels that holds a PNG of 20,000 x 20,000, under the name of a PNG."""
    inner = _png(20_000, 20_000, 1, 0)
    head = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 1, len(inner), 22)
    _write(folder / "image.png", head + inner)
    return folder / "image.png"


def postscript(folder: Path) -> Path:
    """A program under the name of an image, which Pillow would give to Ghostscript."""
    _write(folder / "image.jpg", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    return folder / "image.jpg"


def _text_chunk(folder: Path) -> Path:
    return _write_png(folder, 8, 8, 8, 2, _chunk(b"zTXt", b"Comment\0\0" + _zeros(2**26)))


def _profile_chunk(folder: Path) -> Path:
    return _write_png(folder, 8, 8, 8, 2, _chunk(b"iCCP", b"p\0\0" + _zeros(2**26)))


def _short_png(folder: Path, bits: int, colour: int) -> Path:
    """A header of 14,000 x 14,000 pixels over the data of 8 x 8."""
    path = _write_png(folder, 8, 8, bits, colour)
    raw = path.read_bytes()
    header = struct.pack(">IIBBBBB", 14_000, 14_000, bits, colour, 0, 0, 0)
    path.write_bytes(raw[:8] + _chunk(b"IHDR", header) + raw[33:])
    return path


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


IMAGE_ATTACKS: dict[str, Builder] = {
    "one_bit_png": one_bit_png,
    "tiff": tiff,
    "bmp_rle": bmp_rle,
    "gif": gif,
    "gif_many_frames": gif_many_frames,
    "jpeg": jpeg,
    "webp": webp,
    "jpeg_2000": jpeg_2000,
    "ppm": ppm,
    "icon": icon,
    "postscript": postscript,
    "png_text": _text_chunk,
    "png_profile": _profile_chunk,
    "png_short": partial(_short_png, bits=8, colour=2),
    "png_16_bit_colour": partial(_short_png, bits=16, colour=6),
}

LARGE_IMAGES: dict[str, Builder] = {
    "one_bit": partial(_write_png, width=10_980, height=10_980, bits=1, colour=0),  # as large as a Sentinel-2 tile
    "colour": partial(_write_png, width=10_000, height=10_000, bits=8, colour=2),
    "transparent": partial(_write_png, width=10_000, height=10_000, bits=8, colour=6),
    "deep_colour": partial(_write_png, width=10_000, height=10_000, bits=16, colour=2),
}
