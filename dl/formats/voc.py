"""Pascal VOC: read xml annotations, and find the images and xml files of a data set.

Layouts: the course's (`images annotations splits[/v5]/*.txt classes.txt`); VOCdevkit's names (`JPEGImages Annotations
ImageSets/Main`); the official MAR20 download (`Annotations/Horizontal Bounding Boxes`); images and xml files in one
folder. Folders of splits may be inside these (`images/train annotations/train ...`) or around them (Roboflow's export
`train valid test`, `train/images train/annotations ...`).
"""

import codecs
import glob
import os
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from defusedxml import DefusedXmlException, ElementTree

from config.checks import LONGEST_CLASS_NAME
from config.errors import UserError, reading
from dl.annotations import MAX_SIDE, RawAnnotation, RawObject, check_num_objects, number_hint, parse_number
from dl.files import (
    IMAGE_SUFFIXES,
    MAX_ANNOTATION_BYTES,
    XML_SUFFIXES,
    DataError,
    excerpt,
    find_file,
    has_file,
    image_id,
    index_by_stem,
    name_error,
    natural_key,
    read_bytes,
    read_lines,
    subfolders,
    walk_files,
)
from dl.formats.lists import (
    Splits,
    complete_splits,
    draw_splits,
    explicit_splits,
    folder_splits,
    has_known_split,
    listed_splits,
    split_files,
    tree_splits,
    unused_images_note,
)
from dl.formats.pairing import ANNOTATION_FOLDERS, IMAGE_FOLDERS, ImageTree, count_annotated, pair
from dl.formats.source import DataSource, PairedReader, Search, Size, check_class_list, unused_annotations_warning
from dl.splits import canonical_name
from ops.text import counted, shown

_HORIZONTAL = "horizontal bounding boxes"  # the official MAR20 has oriented boxes in the folder beside it
_NO_XML = "there is no such annotation (for an image without objects, write an xml without <object>)"
_YES, _NO = ("1", "true", "yes"), ("", "0", "false", "no", "unspecified")
# Python encodings that are refused: decoding punycode takes quadratic time, idna and undefined raise their own errors,
# and the others turn plain text into other characters. No annotation uses them.
_REFUSED_ENCODINGS = ("punycode", "idna", "undefined", "unicode-escape", "raw-unicode-escape", "utf-7")


def read_voc(path: Path) -> RawAnnotation:
    """Read one Pascal VOC file. Raises `DataError` that starts with the path.

    Missing fields that are not needed (`difficult`, `pose`, `depth`, `folder`) are no error. `filename` and `path` are
    not used, because they are often wrong: the file belongs to the image with the same stem.
    """
    root = _parse(path)
    if root.tag.lower() != "annotation":
        raise DataError(f"{path}: this is not a Pascal VOC annotation (the root element is <{excerpt(root.tag)}>)")
    nodes = root.findall("object")
    check_num_objects(len(nodes), path)
    objects = []
    for number, node in enumerate(nodes, start=1):
        try:
            objects.append(_read_object(node, number, path))
        except DataError as error:
            raise DataError(f"{error}{_line_of_object(path, number)}") from None
    return RawAnnotation(_read_size(root, path), tuple(objects))


def _parse(path: Path) -> Any:
    """The root element. Entities are refused: they can expand to gigabytes, or read other files."""
    try:
        raw = read_bytes(path, MAX_ANNOTATION_BYTES).lstrip(b" \t\r\n")
    except FileNotFoundError:
        raise DataError(f"{path}: the annotation file does not exist") from None
    except OSError as error:
        raise DataError(f"{path}: the annotation cannot be read ({error.strerror or error})") from None
    encoding = _declared_encoding(raw, path)
    with suppress(UserError), reading(path, "an xml"):
        return ElementTree.fromstring(raw)
    try:  # expat knows few encodings, and <path> often has the encoding of the machine without declaring it
        with reading(path, "an xml"):
            text = raw.decode(encoding, errors="replace")
            return ElementTree.fromstring(re.sub(r"^<\?xml[^>]*\?>", "", text))
    except UserError as error:
        cause = error.__cause__
        reason = excerpt(str(cause))
        if isinstance(cause, DefusedXmlException):
            reason = "it defines entities: replace them by their text, and remove the DOCTYPE"
        raise DataError(f"{path}: the xml is invalid ({reason})") from None


def _declared_encoding(raw: bytes, path: Path) -> str:
    """The encoding that the first line declares, else UTF-8. Raises `DataError` if it is not a text encoding."""
    head = re.match(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]{1,40})[\"']", raw)
    name = head.group(1).decode("ascii") if head else "utf-8"
    with suppress(LookupError):
        codec = codecs.lookup(name).name
        if codec not in _REFUSED_ENCODINGS:
            b" ".decode(codec, errors="replace")  # LookupError for codecs that are not text, such as zlib
            return codec
    raise DataError(f"{path}: the xml declares the encoding '{name}', which is not supported; save the file as UTF-8")


def _line_of_object(path: Path, number: int) -> str:
    """The line in which object `number` (counted from 1) begins, for a message; "" if it is not known."""
    raw = path.read_bytes().replace(b"\0", b"")  # UTF-16 then reads like encodings that begin with ASCII
    # Comments are removed only before `rest`: an unclosed comment (as in CDATA) would make the search quadratic.
    head, end, rest = raw.rpartition(b"-->")
    head = re.sub(rb"<!--.*?-->", lambda comment: b"\n" * comment.group().count(b"\n"), head + end, flags=re.DOTALL)
    raw = head + rest
    starts = [match.start() for match in re.finditer(rb"<object[\s/>]", raw)]
    if number > len(starts):
        return ""
    line = raw.count(b"\n", 0, starts[number - 1]) + 1
    return f" (the object begins in line {line})"


def _read_size(root: Any, path: Path) -> Size | None:
    texts = [(root.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
    if not all(texts):
        return None
    width, height = (
        _number(text, f"<{side}> in <size>", path) for text, side in zip(texts, ("width", "height"), strict=True)
    )
    for side in (width, height):
        if side > MAX_SIDE:
            raise DataError(f"{path}: <size> has {side:g} pixels, but no image has more than {MAX_SIDE}")
    return (int(width), int(height)) if width and height else None


def _read_object(node: Any, number: int, path: Path) -> RawObject:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{path}: object {number} has no <name>")
    if error := name_error(name, LONGEST_CLASS_NAME):
        raise DataError(f"{path}: the class of object {number}: {error}")
    where = f"object {number} ({name})"
    box = node.find("bndbox")
    if box is None:
        if node.find("robndbox") is not None:
            raise DataError(
                f"{path}: {where} has only an oriented box (<robndbox>); use the horizontal annotations (<bndbox>), "
                "for MAR20 those in 'Annotations/Horizontal Bounding Boxes'"
            )
        raise DataError(f"{path}: {where} has no <bndbox>")
    xmin, ymin, xmax, ymax = (
        _number((box.findtext(side) or "").strip(), f"<{side}> of {where}", path)
        for side in ("xmin", "ymin", "xmax", "ymax")
    )
    difficult = (node.findtext("difficult") or "").strip().lower()
    if difficult not in _YES + _NO:
        raise DataError(f"{path}: <difficult> of {where} is '{excerpt(difficult)}'; write 0 or 1")
    return RawObject(name, (xmin, ymin, xmax, ymax), difficult in _YES)


def _number(text: str, what: str, path: Path) -> float:
    value = parse_number(text)
    if value is None:
        raise DataError(f"{path}: {what} is '{excerpt(text)}', which is not a number{number_hint(text)}")
    return value


class VocFolder:
    """Images in one folder, xml files of the same stems in another; both folders are listed once."""

    errors: Sequence[str] = ()

    def __init__(self, image_dir: Path, annotation_dir: Path, suffix: str) -> None:
        self.image_dir, self.annotation_dir = image_dir, annotation_dir
        self.images = index_by_stem(image_dir, IMAGE_SUFFIXES)
        self.annotations = index_by_stem(annotation_dir, XML_SUFFIXES)
        unpaired = {stem.lower(): stem for stem in self.images if stem not in self.annotations}
        for stem in [stem for stem in self.annotations if stem not in self.images and stem.lower() in unpaired]:
            self.annotations[unpaired[stem.lower()]] = self.annotations.pop(stem)  # img_1.xml belongs to IMG_1.JPG
        self.suffix = suffix  # selects the image if several have the same stem

    @property
    def ids(self) -> Collection[str]:
        """Stems of images and of xml files."""
        return self.images.keys() | self.annotations.keys()

    def find_image(self, image_id: str) -> Path:
        paths = self.images.get(image_id, [])
        if not paths:
            similar = sorted(path.name for path in self.image_dir.glob(f"{glob.escape(image_id)}.*"))
            hint = f"; {', '.join(similar)} is not a readable image" if similar else ", also not with another suffix"
            raise DataError(f"{self.image_dir / image_id}{self.suffix}: the image does not exist{hint}")
        if len(paths) > 1:
            paths = [path for path in paths if path.suffix.lower() == self.suffix.lower()] or paths
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataError(f"{self.image_dir / image_id}: several images have this name ({names}); set suffix")
        return paths[0]

    def read_annotation(self, image_id: str, size: Size | None) -> tuple[Path, RawAnnotation]:
        paths = self.annotations.get(image_id)
        if not paths:
            raise DataError(f"{self.annotation_dir / image_id}.xml: {_NO_XML}")
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataError(f"{self.annotation_dir / image_id}: several annotations have this name ({names})")
        return paths[0], read_voc(paths[0])

    def warnings(self) -> list[str]:
        unused = [path.name for stem, paths in self.annotations.items() if stem not in self.images for path in paths]
        return unused_annotations_warning(unused, "xml file", self.annotation_dir)


class VocTree(PairedReader):
    """An xml file for each image, beside it or at the same place in another folder."""

    suffixes, kind = XML_SUFFIXES, "xml file"

    def read_annotation(self, image_id: str, size: Size | None) -> tuple[Path, RawAnnotation]:
        path = self.find_annotation(image_id)
        if path is None:
            path = (self.annotation_dir / self.files[image_id]).with_suffix(".xml")
            raise DataError(f"{path}: {_NO_XML}")
        return path, read_voc(path)


def is_voc(folder: Path) -> bool:
    """Whether the folder has images and xml files in one of the layouts above."""
    return _has_pairs(folder) or "train" in _split_folders(folder)


def has_voc_names(folder: Path) -> bool:
    """Whether the subfolders have the names of a VOC layout, even without xml files in them."""
    return None not in (_find_image_dir(folder), _find_annotation_dir(folder))


def count_voc_images(folder: Path) -> int:
    """Count the xml files of the folder that have an image."""
    return count_annotated(_find_image_dir(folder) or folder, _find_annotation_dir(folder) or folder, XML_SUFFIXES)


def find_voc(search: Search) -> DataSource:
    """Find the data set in the folders of `search`. Raises `UserError` with the absolute paths that were tried."""
    base, notes = search.base, search.notes
    is_explicit = search.image_dir is not None and search.annotation_dir is not None
    around = _split_folders(base) if base and not (search.image_dir or search.annotation_dir) else {}
    if base and around and not has_voc_names(base):
        notes.append(f"images and annotations in {', '.join(map(str, around.values()))}")
        return _find_in_tree(search, base, base)
    image_dir, annotation_dir = _folders(search)
    if not is_explicit:
        notes.append(f"images in {image_dir}, annotations in {annotation_dir}")
    reader = VocFolder(image_dir, annotation_dir, search.suffix)
    images, xml_files = walk_files(image_dir, IMAGE_SUFFIXES), walk_files(annotation_dir, XML_SUFFIXES)
    if not images and not xml_files:
        raise UserError(f"{image_dir} has no images, and {annotation_dir} has no xml files")
    annotation_of = pair(images, xml_files).annotation_of
    in_folders = {image: xml for image, xml in annotation_of.items() if "/" in image or "/" in xml}
    if reader.images.keys() & reader.annotations.keys():
        is_tree = bool(folder_splits(in_folders) or folder_splits(in_folders.values()))
    else:  # no pair is outside of folders, so folders of any name may be meant
        is_tree = bool(annotation_of) or not reader.images
    if is_tree:
        return _find_in_tree(search, image_dir, annotation_dir)
    below = [path for path in images if "/" in path]
    if below and not is_explicit:
        notes.append(f"{counted(len(below), 'image')} in folders below {image_dir} not used: {shown(below)}")
    splits = _stem_splits(search, reader)
    classes = _classes(search, annotation_dir, (path for paths in reader.annotations.values() for path in paths))
    return DataSource(image_dir, annotation_dir, classes, splits, reader, notes)


def _find_in_tree(search: Search, image_dir: Path, annotation_dir: Path) -> DataSource:
    xml_files = walk_files(annotation_dir, XML_SUFFIXES)
    all_images = walk_files(image_dir, IMAGE_SUFFIXES)
    annotation_of = pair(all_images, xml_files).annotation_of
    # A folder without any annotated image has something else: painted copies, small copies, unlabelled images.
    homes = {os.path.dirname(image) for image in annotation_of}
    tree = ImageTree(image_dir, [image for image in all_images if not homes or os.path.dirname(image) in homes])
    splits, files = tree_splits(search, tree, {}, lambda: annotation_of)
    if not search.split_request.subset_map:
        search.notes.extend(unused_images_note(image_dir, all_images, {"": tree.paths}))
    classes = _classes(search, annotation_dir, (annotation_dir / path for path in xml_files))
    reader = VocTree(tree, annotation_dir, files)
    return DataSource(image_dir, annotation_dir, classes, splits, reader, search.notes, files=files)


def _stem_splits(search: Search, reader: VocFolder) -> Splits:
    """Splits whose image ids are the stems of files."""
    ids = reader.ids

    def to_id(line: str, _list_folder: Path | None) -> str:
        return image_id(line, ids)

    if search.split_request.subset_map:
        return explicit_splits(search, to_id)
    files = split_files(search.base) if search.base else []
    splits = listed_splits(files, to_id, search.notes)
    if not has_known_split(splits, search):
        return draw_splits(search, files, ids)
    search.notes.extend(unused_images_note(reader.image_dir, reader.images, splits))
    return complete_splits(splits, search, files)


def _split_folders(folder: Path) -> dict[str, Path]:
    """Split name -> folder with images and xml files, in one folder or in two folders with the usual names."""
    children = {canonical_name(name): path for name, path in subfolders(folder).items()}
    found = {name: children[name] for name in ("train", "validation", "test") if name in children}
    return {name: path for name, path in found.items() if _has_pairs(path)}


def _has_pairs(folder: Path) -> bool:
    annotation_dir = _find_annotation_dir(folder)
    if annotation_dir is None or _find_image_dir(folder) is None:
        return False
    return has_file(annotation_dir, XML_SUFFIXES) or bool(walk_files(annotation_dir, XML_SUFFIXES))


def _find_image_dir(folder: Path) -> Path | None:
    """The folder of images; the folder itself if images are beside their xml files, or in folders of splits."""
    children = subfolders(folder)
    named = next((children[name] for name in IMAGE_FOLDERS if name in children), None)
    if named or _is_flat(folder):
        return named or folder
    has_annotations = any(name in children for name in ANNOTATION_FOLDERS)
    splits = [path for name, path in children.items() if canonical_name(name) in ("train", "trainval")]
    return folder if has_annotations and any(has_file(path, IMAGE_SUFFIXES) for path in splits) else None


def _find_annotation_dir(folder: Path) -> Path | None:
    children = subfolders(folder)
    named = next((children[name] for name in ANNOTATION_FOLDERS if name in children), None)
    if named:
        return subfolders(named).get(_HORIZONTAL, named)
    return children.get(_HORIZONTAL) or (folder if _is_flat(folder) else None)


def _is_flat(folder: Path) -> bool:
    """Whether images and xml files are in one folder, as some annotation tools save them."""
    if not has_file(folder, XML_SUFFIXES):
        return False
    return bool(index_by_stem(folder, IMAGE_SUFFIXES).keys() & index_by_stem(folder, XML_SUFFIXES).keys())


def _folders(search: Search) -> tuple[Path, Path]:
    """imageDir and annotationDir; the usual folders of the data folder if they are not set. Raises `UserError`."""
    image_dir, annotation_dir, base = search.image_dir, search.annotation_dir, search.base
    if base is None and image_dir is None:
        raise UserError("no data set is given: use --data DIR, or set imageDir and annotationDir")
    if base is None and annotation_dir is None:
        raise UserError("imageDir is set, but annotationDir is not: set it, too, or use --data DIR")
    image_dir = image_dir or (base and _find_image_dir(base))
    annotation_dir = annotation_dir or (base and _find_annotation_dir(base))
    for folder, field, names in (
        (image_dir, "imageDir", ("images", "JPEGImages")),
        (annotation_dir, "annotationDir", ("annotations", "Annotations")),
    ):
        if base and folder is None:
            raise UserError(f"{base}: neither {' nor '.join(str(base / name) for name in names)} exists; set {field}")
    assert image_dir is not None
    assert annotation_dir is not None
    return image_dir, annotation_dir


def _classes(search: Search, annotation_dir: Path, xml_files: Iterable[Path]) -> tuple[str, ...]:
    """classList, else the lines of classes.txt, else the names in the xml files. Raises `UserError`."""
    path = find_file(search.base, "classes.txt") if search.base else None
    if search.class_list:
        return search.class_list
    if path:
        return check_class_list(read_lines(path), str(path))
    found: set[str] = set()
    for xml_file in xml_files:
        with suppress(DataError):  # dl.check reads the same file, and reports the error with all others
            found.update(item.name for item in read_voc(xml_file).objects)
    names = sorted(found, key=natural_key)
    if not names:
        raise UserError(
            f"{annotation_dir}: no xml file has an object, and there is no classes.txt, so there are no classes"
        )
    search.notes.append(f"no classes.txt: {len(names)} classes found in the xml files: {', '.join(names)}")
    return tuple(names)
