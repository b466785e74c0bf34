"""Data sets that were made to crash a reader, or to make it use gigabytes of memory or minutes of time.

`DATA_ATTACKS[name](folder)` makes a small data set with one hostile file in an empty folder and returns the folder.
`make attacks` gives the data sets to commands; the tests of `dl` give them to its functions.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.attacks_images import Builder, one_bit_png, write

_NAMES = ("a", "b", "c", "d", "e", "f")
_SIZE = (40, 30)
_OBJECT = "<object><name>cat</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>25</xmax><ymax>26</ymax></bndbox></object>"
_CONTROL = "cat\x1b[2K\rok data: every file was read"  # on a terminal this hides the text before it
_HUGE = "9" * 5000  # more digits than Python converts to a number
_DEPTH = 100_000
_ALIASES = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
_ALIAS_BOMB = f"a0: &a0 [{', '.join(['lol'] * 9)}]\n{_ALIASES}"  # 9 ** 10 words when the aliases are expanded


# --- small valid data sets ---


def _images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shade, name in enumerate(_NAMES):
        Image.new("RGB", _SIZE, (40 * shade, 90, 160)).save(folder / f"{name}.png")


def _voc(folder: Path, xml: "str | bytes | None" = None) -> Path:
    """A Pascal VOC data set; `xml` replaces the annotation of its first image."""
    _images(folder / "images")
    valid = f"<annotation><size><width>{_SIZE[0]}</width><height>{_SIZE[1]}</height></size>{_OBJECT}</annotation>"
    for name in _NAMES:
        write(folder / "annotations" / f"{name}.xml", valid)
    if xml is not None:
        write(folder / "annotations/a.xml", xml)
    write(folder / "classes.txt", "cat\ndog\n")
    for split, members in {"train": "abcd", "validation": "e", "test": "f"}.items():
        write(folder / "splits" / f"{split}.txt", "".join(f"{name}\n" for name in members))
    return folder


def _yolo(folder: Path, data_yaml: "str | bytes" = "", label: str = "0 .5 .5 .1 .2\n") -> Path:
    """A YOLO data set; `label` is the text of the label file of its first image."""
    _images(folder / "images/train")
    _images(folder / "images/val")
    for split in ("train", "val"):
        for shade, name in enumerate(_NAMES):
            image = Image.new("RGB", _SIZE, (40 * shade, 90, 200 if split == "val" else 20))
            image.save(folder / "images" / split / f"{name}.png")
            write(folder / "labels" / split / f"{name}.txt", "0 .5 .5 .1 .2\n")
    write(folder / "labels/train/a.txt", label)
    valid = "train: images/train\nval: images/val\ntest: images/val\nnames: [cat, dog]\n"
    write(folder / "data.yaml", data_yaml or valid)
    return folder


def _coco(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None, text: str = "") -> Path:
    """A COCO data set; `change` edits the content of the training json, or `text` replaces it."""
    for split in ("train", "val", "test"):
        image_folder = folder / f"{split}2017"
        image_folder.mkdir(parents=True)
        for shade, name in enumerate(_NAMES):
            image = Image.new("RGB", _SIZE, (40 * shade, 90, {"train": 10, "val": 120, "test": 240}[split]))
            image.save(image_folder / f"{name}.png")
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
        write(folder / f"annotations/instances_{split}2017.json", text if text and split == "train" else _json(content))
    return folder


def _json(content: Any) -> str:
    """JSON in which HUGE and OVERFLOW are replaced by numbers that Python refuses to write."""
    return json.dumps(content).replace('"HUGE"', _HUGE).replace('"OVERFLOW"', "1" + "0" * 400)


# --- Pascal VOC ---


def _with_encoding(encoding: str, size: int) -> Builder:
    """Text of `size` letters; in punycode each letter is an insertion, which takes quadratic time."""
    return partial(_voc, xml=f'<?xml version="1.0" encoding="{encoding}"?><annotation>-{"a" * size}')


def _entities(levels: int, width: int, length: int) -> str:
    first = f'<!ENTITY e0 "{"x" * length}">'
    rest = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * width}">' for i in range(1, levels))
    name = f"<name>{f'&e{levels - 1};' * width}</name>"
    return f"<!DOCTYPE annotation [{first}{rest}]><annotation>{_OBJECT.replace('<name>cat</name>', name)}</annotation>"


def _external_entity(folder: Path) -> Path:
    write(folder / "secret.txt", "secret")
    head = f'<!DOCTYPE annotation [<!ENTITY file SYSTEM "file://{folder}/secret.txt">]>'
    return _voc(folder, f"{head}<annotation>{_OBJECT.replace('cat', '&file;')}</annotation>")


def _comments(folder: Path) -> Path:
    """A wrong object after a million unclosed comment openings within CDATA."""
    comments = "<!--" * 1_000_000
    return _voc(
        folder, f"<annotation><folder><![CDATA[{comments}]]></folder>{_OBJECT.replace('5', 'x', 1)}</annotation>"
    )


def _pipe(folder: Path, name: str) -> Path:
    """A named pipe instead of a file: opening it blocks for ever."""
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
    """A sparse file: 100 GB of zeros that use no disk space."""
    _voc(folder)
    with open(folder / name, "wb") as file:
        file.truncate(100 * 2**30)
    return folder


def _listed(folder: Path, line: "str | bytes") -> Path:
    _voc(folder)
    write(folder / "splits/train.txt", b"a\nb\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    return folder


def _classes(folder: Path, content: str) -> Path:
    _voc(folder)
    write(folder / "classes.txt", content)
    return folder


def _image_named(folder: Path, name: bytes) -> Path:
    _voc(folder)
    for kind, suffix in ((b"images", b".png"), (b"annotations", b".xml")):
        prefix = os.fsencode(folder) + b"/" + kind + b"/"
        os.rename(prefix + b"a" + suffix, prefix + name + suffix)
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
    """`field` of the first entry of `key` gets this value."""
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
