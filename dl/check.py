"""The data check: read every image and annotation, report all errors together, and count each change."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

from config.errors import UserError
from config.fields import nearest
from config.mconfig import ModelConfig
from dl.annotations import Annotation, CleaningCounts, RawAnnotation, clean_annotation
from dl.files import DataError
from dl.formats.discover import locate
from dl.formats.source import DataSource
from dl.image_files import ImageCopy, VerifiedImages, describe_copies, find_copies
from dl.images import ImageInfo, choose_orientation, choose_pixel_max, image_notes, inspect_image
from dl.report import BoxProblems, DataReport, SplitReport, box_warnings, class_warnings, listed
from dl.splits import find_split
from ops.device import usable_cores
from ops.text import shown

OnImage = Callable[[int, int], None]  # called with (number of finished images, number of all images)


@dataclass(frozen=True)
class CheckedData:
    """Cleaned annotations by split name as requested, and the report."""

    splits: dict[str, list[Annotation]]
    expected: dict[str, int]  # distinct images that the split lists, including skipped images
    report: DataReport
    source: DataSource
    pixel_max: int | None = None  # scale of the 16-bit images of all splits; None: there are none


@dataclass
class _ExaminedImage:
    """The result for one image and its annotation. It is valid (`annotation` is set), or has errors."""

    annotation: Annotation | None = None
    counts: CleaningCounts = field(default_factory=CleaningCounts)
    raw: RawAnnotation | None = None  # without its objects
    is_ambiguous: bool = False  # the annotation does not say whether the image is rotated
    info: ImageInfo | None = None
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Examination:
    """The results for all images of some splits."""

    mcfg: ModelConfig
    source: DataSource
    ids: dict[str, tuple[str, ...]]  # of each split, every image once
    images: dict[str, _ExaminedImage]

    def valid(self, key: str | None = None) -> list[tuple[_ExaminedImage, Annotation]]:
        """The valid images of a split; None: of all splits."""
        names = self.images if key is None else self.ids[key]
        images = (self.images[name] for name in names)
        return [(image, image.annotation) for image in images if image.annotation is not None]

    @cached_property
    def box_problems(self) -> list[BoxProblems]:
        """Of each annotation with dropped boxes or duplicate objects."""
        problems = []
        # One json has the annotations of all images, so there the image is named.
        is_json = self.source.format == "coco"
        folder = self.source.image_dir if is_json else self.source.annotation_dir
        for image, annotation in self.valid():
            if image.counts.dropped or image.counts.duplicates:
                path = annotation.image_path if is_json else annotation.annotation_path
                name = str(path.relative_to(folder) if path.is_relative_to(folder) else path)
                problems.append(BoxProblems(name, image.counts.dropped, image.counts.duplicates))
        return problems


def check_data(
    mcfg: ModelConfig, split_names: Sequence[str], cache_file: Path | None = None, on_image: OnImage | None = None
) -> CheckedData:
    """Read and decode every image and annotation of these splits. Prints nothing.

    Raises one `UserError` that lists all errors with their files: a missing or unreadable image or annotation, a
    `<size>` that disagrees, an empty or unknown split, an image in two splits (also in splits that are not requested;
    `small` and the training split may share images with `train`), a class list without any class of the annotations.
    The same image under two names is only reported (`DataReport.copies`), because published data sets have some. With
    badFiles=skip, images with errors are left out and counted instead. `cache_file` remembers decoded images, so that
    a second start is fast. `on_image` is called with the number of finished images and of all images.
    """
    source = locate(mcfg)
    keys = {name: find_split(name, source.splits) for name in dict.fromkeys(split_names)}
    ids = {key: tuple(dict.fromkeys(source.splits[key])) for key in keys.values() if key is not None}
    pairs = _separate_splits(keys, mcfg, source)
    verified = VerifiedImages(cache_file)
    every_id = list(dict.fromkeys(image_id for names in ids.values() for image_id in names))
    unused_files = source.reader.warnings()  # before the threads start, because it lists the folders
    images: dict[str, _ExaminedImage] = {}
    with ThreadPoolExecutor(min(16, usable_cores())) as pool:  # image decoders release the interpreter lock
        results = pool.map(lambda image_id: _examine(source, image_id, verified), every_id)
        for image_id, result in zip(every_id, results, strict=True):
            images[image_id] = result
            if on_image is not None:
                on_image(len(images), len(every_id))
    verified.save()
    data = _Examination(mcfg, source, ids, images)
    file_errors = [*source.reader.errors, *(error for image in images.values() for error in image.errors)]
    is_strict = mcfg.badFiles == "stop"
    errors = [*_split_errors(data, keys, pairs), *(file_errors if is_strict else ()), *_content_errors(data)]
    if errors:
        raise _error_of(errors, can_skip=is_strict and bool(file_errors))
    pixel_max = mcfg.pixelMax or _pixel_max(data)
    digests = {name: image.info.digest for name, image in images.items() if image.annotation and image.info}
    copies = _copies_to_report(find_copies(source, pairs, digests, verified), data)
    reports = {name: _count(data, key, copies) for name, key in keys.items() if key is not None}
    warnings = [*unused_files, *box_warnings(data.box_problems, sum(len(item.labels) for _, item in data.valid()))]
    if (train := mcfg.trainSplitName) in reports:
        warnings += class_warnings(source.class_list, reports[train], train, source.format != "voc")
    infos = {source.files.get(i, i): image.info for i, image in images.items() if image.annotation and image.info}
    report = DataReport(
        source.class_list,
        reports,
        tuple(() if is_strict else file_errors),
        tuple(warnings),
        tuple(image_notes(infos, pixel_max, mcfg.pixelMax is not None)),
        describe_copies(copies, source),
    )
    splits = {
        name: [
            annotation if pixel_max is None else replace(annotation, pixel_max=pixel_max)
            for _, annotation in data.valid(key)
        ]
        for name, key in keys.items()
        if key is not None
    }
    expected = {name: len(ids[key]) for name, key in keys.items() if key is not None}
    return CheckedData(splits, expected, report, source, pixel_max)


def _error_of(errors: Sequence[str], can_skip: bool) -> UserError:
    """One error message: a single error, or a list of them."""
    way_out = "; badFiles=skip leaves out and counts images with errors" if can_skip else ""
    if len(errors) == 1:
        return UserError(errors[0] + way_out)
    return UserError("\n".join([f"the data set has {len(errors)} errors{way_out}:", *listed(errors)]))


def _examine(source: DataSource, image_id: str, verified: VerifiedImages) -> _ExaminedImage:
    """Examine the image and its annotation. Both are read even if one has an error, so that all errors are known."""
    errors: list[str] = []
    image: tuple[Path, ImageInfo] | None = None
    annotation: tuple[Path, RawAnnotation] | None = None
    upright_size = None
    try:
        path = source.reader.find_image(image_id)
        info = verified.get(path)
        if info is None:
            info = inspect_image(path)
            verified.add(path, info)
        image = path, info
        upright = choose_orientation(path, info, None)
        upright_size = upright.width, upright.height
    except DataError as error:
        errors.append(str(error))
    try:
        annotation = source.reader.read_annotation(image_id, upright_size)
    except DataError as error:
        errors.append(str(error))
    if image is None or annotation is None:
        return _ExaminedImage(errors=errors)
    annotation_path, raw = annotation
    try:
        orientation = choose_orientation(*image, raw.size)
    except DataError as error:
        return _ExaminedImage(errors=[str(error)])
    size = (orientation.width, orientation.height)
    cleaned, counts = clean_annotation(raw, image_id, image[0], annotation_path, size, source.class_list)
    without_objects = raw._replace(objects=())  # the raw objects of all images would take too much memory
    return _ExaminedImage(cleaned, counts, without_objects, orientation.is_ambiguous, image[1])


def _split_errors(
    data: _Examination, keys: Mapping[str, str | None], pairs: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """Splits that do not exist, that are empty, that share images, or of which every image has an error."""
    mcfg, source = data.mcfg, data.source
    ways_out = {
        mcfg.testSplitName: "--set testSplitName=NAME evaluates another split; the command train needs no test split",
        mcfg.validationSplitName: (
            "--set validationSplitName=NAME uses another split; --set epochValidation=false needs none"
        ),
        mcfg.trainSplitName: "--set trainSplitName=NAME trains on another split",
    }
    for name in (name for name, key in keys.items() if key is None):
        yield (
            f"split '{name}' does not exist for {source.image_dir}{nearest(name, source.splits)}; the splits are: "
            f"{', '.join(source.splits)}; {ways_out.get(name, 'use one of them')}"
        )
    yield from (f"split '{key}' is empty" for key, names in data.ids.items() if not names)
    for first, second in pairs:
        if shared := sorted(set(source.splits[first]) & set(source.splits[second])):
            yield (
                f"splits '{first}' and '{second}' share {len(shared)} images of {source.image_dir}: {shown(shared)}; "
                "keep each image in one split only"
            )
    if mcfg.badFiles == "skip":
        for key, names in data.ids.items():
            if names and not data.valid(key):
                yield f"split '{key}': all of its {len(names)} images have errors and are skipped"


def _content_errors(data: _Examination) -> Iterator[str]:
    """No object of a known class, no label file for a whole split, no box that can be used."""
    source, valid = data.source, data.valid()
    ignored = sum((image.counts.ignored for image in data.images.values()), Counter())
    if ignored and not any(len(annotation.labels) or image.counts.dropped for image, annotation in valid):
        found, known = (name for name, _ in ignored.most_common(10)), source.class_list[:10]
        yield (
            f"{source.annotation_dir}: none of the {ignored.total()} objects has a class of the class list "
            f"({', '.join(known)}); the classes in the annotations are {', '.join(found)}"
        )
    for key in data.ids:
        # An image without a label file is a negative. A whole split without any means that the folder was not found.
        of_split = data.valid(key)
        if of_split and all(image.raw and image.raw.is_file_missing for image, _ in of_split):
            yield (
                f"split '{key}': none of its {len(of_split)} images has a label file; expected e.g. "
                f"{of_split[0][1].annotation_path}; put the labels there, or do not use this split"
            )
    train = find_split(data.mcfg.trainSplitName, data.ids)
    for what, images in {"the data set": valid, f"split '{train}'": data.valid(train) if train else []}.items():
        if any(image.counts.dropped for image, _ in images) and not any(len(item.labels) for _, item in images):
            reasons = "; ".join(box_warnings(data.box_problems, 0))
            yield f"{source.annotation_dir}: no box of {what} can be used: {reasons}"
            break


def _separate_splits(requested: Collection[str], mcfg: ModelConfig, source: DataSource) -> list[tuple[str, str]]:
    """Pairs of splits that must not share an image.

    These are the requested splits, and others that a run may use at another time: an evaluation alone could not see
    that its images were used for training.
    """
    # Validation may be a part of the training split, as of `trainval`, if no epoch is validated; but not of small.
    small = ("small", "validation") if mcfg.trainSplitName == "small" else ()
    groups = (("train", "validation", "test"), (mcfg.trainSplitName, mcfg.testSplitName), small, requested)
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for names in groups:
        keys = dict.fromkeys(key for name in names if (key := find_split(name, source.splits)) is not None)
        for pair in combinations(keys, 2):
            pairs.setdefault(frozenset(pair), pair)
    if mcfg.trainSplitName not in (mcfg.validationSplitName, mcfg.testSplitName):
        pairs.pop(frozenset(("train", mcfg.trainSplitName)), None)  # a part of train is allowed
    pairs.pop(frozenset(("train", "small")), None)  # small is a part of train by design
    same = {pair for pair in pairs.values() if set(source.splits[pair[0]]) == set(source.splits[pair[1]])}
    return [pair for pair in pairs.values() if pair not in same or not _is_held_out(pair, mcfg, source)]


def _is_held_out(pair: tuple[str, str], mcfg: ModelConfig, source: DataSource) -> bool:
    """Whether no split of the pair is trained on. Then they may be equal: often one folder is both val and test."""
    return not set(pair) & {find_split(name, source.splits) for name in ("train", "small", mcfg.trainSplitName)}


def _copies_to_report(copies: Sequence[ImageCopy], data: _Examination) -> list[ImageCopy]:
    """Copies, without those of two held-out splits with the same images, e.g. by a link to a folder."""
    counts = Counter(copy.splits for copy in copies)
    sizes = {pair: {len(set(data.source.splits[key])) for key in pair} for pair in counts}
    same = {pair for pair in counts if sizes[pair] == {counts[pair]} and _is_held_out(pair, data.mcfg, data.source)}
    return [copy for copy in copies if copy.splits not in same]


def _pixel_max(data: _Examination) -> int | None:
    """One scale for all 16-bit images. Test images must not affect training: they count only if there are no others."""
    test = find_split(data.mcfg.testSplitName, data.source.splits)
    without_test = [name for key, names in data.ids.items() if key != test for name in names]
    for names in (without_test, list(data.images)):
        infos = [info for name in names if (info := data.images[name].info) is not None]
        if (found := choose_pixel_max(infos)) is not None:
            return found
    return None


def _count(data: _Examination, key: str, copies: Sequence[ImageCopy]) -> SplitReport:
    valid, images = data.valid(key), data.ids[key]
    digests = [image.info.digest for image, _ in valid if image.info]
    report = SplitReport(
        images=len(valid),
        skipped=len(images) - len(valid),
        listed_twice=len(data.source.splits[key]) - len(images),
        copies=len(digests) - len(set(digests)),
        shared_with_other_split=len({copy.image_ids[copy.splits.index(key)] for copy in copies if key in copy.splits}),
    )
    for image, annotation in valid:
        assert image.raw is not None
        report.objects += len(annotation.labels)
        report.per_class.update(data.source.class_list[label] for label in annotation.labels)
        report.difficult += int(annotation.difficult.sum())
        report.without_objects += not len(annotation.labels)
        report.clipped += image.counts.clipped
        report.dropped.update(image.counts.dropped)
        report.ignored.update(image.counts.ignored)
        report.ambiguous_rotation += image.is_ambiguous
        report.without_size += image.raw.size is None and data.source.format != "yolo"  # YOLO labels have no size
        report.without_label_file += image.raw.is_file_missing
        report.duplicate_objects += image.counts.duplicates
        report.polygons += image.raw.num_polygons
        report.multi_frame += image.info is not None and image.info.has_more_frames
    return report
