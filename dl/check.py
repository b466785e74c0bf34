"""Is this data set fit to train on? Every fault in one pass, every amendment counted."""

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
from dl.annotations import Annotation, Tally, Written, clean
from dl.copies import Copy, ImageFile, count_copies, count_shared, describe_copies, find_copies
from dl.discover import DataSource, locate
from dl.faults import DataFault
from dl.image_notes import choose_pixel_max, image_notes
from dl.images import ImageFacts, inspect_image, plan_delivery
from dl.remarks import BoxFaults, about_boxes, about_classes
from dl.report import DataReport, SplitReport, listed
from dl.splits import find_split
from dl.verified import VerifiedImages
from ops.device import usable_cores
from ops.text import shown

OnImage = Callable[[int, int], None]  # called with how many images are done, of how many


@dataclass(frozen=True)
class CheckedData:
    """Cleaned annotations by split name as asked for, and the report about them."""

    splits: dict[str, list[Annotation]]
    expected: dict[str, int]  # images that the split lists, each once, those that were skipped too
    report: DataReport
    source: DataSource
    pixel_max: int | None = None  # what the 16-bit images of all splits are scaled by; None: there are none


@dataclass
class _Examined:
    """One image with its annotation: fit (annotation and tally are set) or with faults."""

    annotation: Annotation | None = None
    tally: Tally = field(default_factory=Tally)
    is_ambiguous: bool = False
    has_size: bool = True
    outlines: int = 0
    is_unlabelled: bool = False
    facts: ImageFacts | None = None
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Read:
    """All that was read of some splits."""

    mcfg: ModelConfig
    source: DataSource
    ids: dict[str, tuple[str, ...]]  # of each split, every image once
    examined: dict[str, _Examined]

    def fit(self, key: str | None = None) -> list[_Examined]:
        """What can be used of a split, None: of all."""
        names = self.examined if key is None else self.ids[key]
        return [self.examined[name] for name in names if self.examined[name].annotation]

    @cached_property
    def box_faults(self) -> list[BoxFaults]:
        """Of each annotation with boxes that were dropped or written twice."""
        faults = []
        # a json is the annotation of all images, so there the image is named
        is_json = self.source.format == "coco"
        folder = self.source.image_dir if is_json else self.source.annotation_dir
        for image in self.fit():
            if image.annotation and (image.tally.dropped or image.tally.repeats):
                path = image.annotation.image_path if is_json else image.annotation.annotation_path
                name = str(path.relative_to(folder) if path.is_relative_to(folder) else path)
                faults.append(BoxFaults(name, image.tally.dropped, image.tally.repeats))
        return faults


def check_data(
    mcfg: ModelConfig, split_names: Sequence[str], cache_file: Path | None = None, on_image: OnImage | None = None
) -> CheckedData:
    """Read and decode every image and annotation of these splits.

    Raises one `UserError` that lists all faults, each with its file: missing or unreadable image or xml, `<size>` that
    disagrees, empty or unknown split, an image in two splits (also in those not asked for; `small`, or the split that
    is trained on, may share with `train`), a class list that knows none of the objects. The same image under two
    names in such splits is only reported (`DataReport.copies`), for published data sets hold some. With badFiles=skip
    the images with a fault of their own are left out and counted instead. `cache_file` remembers decoded images, so
    that a second start is quick. `on_image` is called with how many images are done, of how many. Prints nothing.
    """
    source = locate(mcfg)
    asked = {name: find_split(name, source.splits) for name in dict.fromkeys(split_names)}
    ids = {key: tuple(dict.fromkeys(source.splits[key])) for key in asked.values() if key is not None}
    pairs = _apart(asked, mcfg, source)
    verified = VerifiedImages(cache_file)
    every_id = dict.fromkeys(image_id for names in ids.values() for image_id in names)
    left_over = source.reader.remarks()  # before the threads: it lists the folders
    read = _Read(mcfg, source, ids, _examine_all(source, list(every_id), verified, on_image))
    faults = [_unknown_split(name, mcfg, source) for name, key in asked.items() if key is None]
    faults += [f"split '{key}' is empty" for key, names in ids.items() if not names]
    faults += _overlaps(pairs, source)
    bad_files = source.reader.faults() + [fault for image in read.examined.values() for fault in image.faults]
    is_strict = mcfg.badFiles == "stop"
    faults += bad_files if is_strict else _emptied(read) if bad_files else []
    faults += _strange_classes(read) + _without_labels(read) + _without_boxes(read)
    if faults:
        raise UserError(_list_faults(faults, can_skip=is_strict and bool(bad_files)))
    pixel_max = mcfg.pixelMax or _pixel_max(read)
    copies = _without_same_splits(find_copies(source, pairs, _files(read.examined), verified), read)
    reports = {name: _count(read, key, copies) for name, key in asked.items() if key is not None}
    report = DataReport(
        source.class_list,
        reports,
        tuple(() if is_strict else bad_files),
        (*left_over, *_remarks(read, reports)),
        tuple(image_notes(_facts_by_file(read), pixel_max, mcfg.pixelMax is not None)),
        describe_copies(copies, source),
    )
    splits = {name: _annotations(read, key, pixel_max) for name, key in asked.items() if key is not None}
    expected = {name: len(ids[key]) for name, key in asked.items() if key is not None}
    return CheckedData(splits, expected, report, source, pixel_max)


def _examine_all(
    source: DataSource, ids: Sequence[str], verified: VerifiedImages, on_image: OnImage | None
) -> dict[str, _Examined]:
    examined: dict[str, _Examined] = {}
    with ThreadPoolExecutor(min(16, usable_cores())) as pool:  # decoders release the interpreter lock
        results = pool.map(lambda image_id: _examine(source, image_id, verified), ids)
        for image_id, result in zip(ids, results, strict=True):
            examined[image_id] = result
            if on_image is not None:
                on_image(len(examined), len(ids))
    verified.save()
    return examined


def _examine(source: DataSource, image_id: str, verified: VerifiedImages) -> _Examined:
    """Both files are looked at even when one has a fault: the user mends them in one go."""
    faults: list[str] = []
    image: tuple[Path, ImageFacts] | None = None
    annotation: tuple[Path, Written] | None = None
    try:
        path = source.reader.image(image_id)
        image = path, _facts(path, verified)
    except DataFault as fault:
        faults.append(str(fault))
    try:
        annotation = source.reader.written(image_id, _upright_size(*image) if image else None)
    except DataFault as fault:
        faults.append(str(fault))
    if image is None or annotation is None:
        return _Examined(faults=faults)
    written = annotation[1]
    try:
        delivery = plan_delivery(*image, written.size)
    except DataFault as fault:
        return _Examined(faults=[str(fault)])
    size = (delivery.width, delivery.height)
    cleaned, tally = clean(written, image_id, image[0], annotation[0], size, source.class_list)
    has_size = written.size is not None or source.format == "yolo"  # whose labels have no place for it
    return _Examined(cleaned, tally, delivery.is_ambiguous, has_size, written.outlines, written.is_missing, image[1])


def _upright_size(path: Path, facts: ImageFacts) -> tuple[int, int]:
    delivery = plan_delivery(path, facts, None)
    return delivery.width, delivery.height


def _facts(path: Path, verified: VerifiedImages) -> ImageFacts:
    facts = verified.get(path)
    if facts is None:
        facts = inspect_image(path)
        verified.add(path, facts)
    return facts


def _unknown_split(name: str, mcfg: ModelConfig, source: DataSource) -> str:
    ways_out = {
        mcfg.testSplitName: "--set testSplitName=NAME evaluates another, and the mode train needs none",
        mcfg.validationSplitName: "--set validationSplitName=NAME uses another, --set epochValidation=false needs none",
        mcfg.trainSplitName: "--set trainSplitName=NAME trains on another",
    }
    known = ", ".join(source.splits)
    return (
        f"split '{name}' does not exist for {source.image_dir}{nearest(name, source.splits)}; there are: {known}; "
        + ways_out.get(name, "name one of these")
    )


def _apart(asked: Collection[str], mcfg: ModelConfig, source: DataSource) -> list[tuple[str, str]]:
    """Pairs of splits that must not share an image.

    Those asked for, but also the others that a run may use at another time: an evaluation by itself would not see
    that its images were trained on.
    """
    # Validation may be a part of what is trained on, as of `trainval`, when no epoch is validated; but not of small.
    small = ("small", "validation") if mcfg.trainSplitName == "small" else ()
    groups = (("train", "validation", "test"), (mcfg.trainSplitName, mcfg.testSplitName), small, asked)
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for names in groups:
        keys = dict.fromkeys(key for name in names if (key := find_split(name, source.splits)) is not None)
        for pair in combinations(keys, 2):
            pairs.setdefault(frozenset(pair), pair)
    if mcfg.trainSplitName not in (mcfg.validationSplitName, mcfg.testSplitName):
        pairs.pop(frozenset(("train", mcfg.trainSplitName)), None)  # a part of train is no other split
    pairs.pop(frozenset(("train", "small")), None)  # small is drawn from train by design
    same = {pair for pair in pairs.values() if set(source.splits[pair[0]]) == set(source.splits[pair[1]])}
    return [pair for pair in pairs.values() if pair not in same or not _is_held_out(pair, mcfg, source)]


def _is_held_out(pair: tuple[str, str], mcfg: ModelConfig, source: DataSource) -> bool:
    """Is neither split trained on? Then both may be the same images: many data sets name one folder as val and test."""
    return not set(pair) & {find_split(name, source.splits) for name in ("train", "small", mcfg.trainSplitName)}


def _without_same_splits(copies: Sequence[Copy], read: _Read) -> list[Copy]:
    """Copies, without those of two splits that are held out and hold the same images, e.g. by a link to a folder."""
    counts = Counter(copy.splits for copy in copies)
    sizes = {pair: {len(set(read.source.splits[key])) for key in pair} for pair in counts}
    same = {pair for pair in counts if sizes[pair] == {counts[pair]} and _is_held_out(pair, read.mcfg, read.source)}
    return [copy for copy in copies if copy.splits not in same]


def _overlaps(pairs: Sequence[tuple[str, str]], source: DataSource) -> list[str]:
    faults = []
    for first, second in pairs:
        shared = sorted(set(source.splits[first]) & set(source.splits[second]))
        if shared:
            fault = f"splits '{first}' and '{second}' share {len(shared)} images of {source.image_dir}: {shown(shared)}"
            faults.append(f"{fault}; leave each in one")
    return faults


def _emptied(read: _Read) -> list[str]:
    gone = [key for key, names in read.ids.items() if names and not any(read.examined[i].annotation for i in names)]
    return [f"split '{key}' is empty once its {len(read.ids[key])} bad images are skipped" for key in gone]


def _strange_classes(read: _Read) -> list[str]:
    ignored = sum((image.tally.ignored for image in read.examined.values()), start=Tally().ignored)
    num_known = sum(
        len(image.annotation.labels) + image.tally.dropped.total() for image in read.fit() if image.annotation
    )
    if not ignored or num_known:
        return []
    found = ", ".join(name for name, _ in ignored.most_common(10))
    known = ", ".join(read.source.class_list[:10])
    fault = f"{read.source.annotation_dir}: none of the {ignored.total()} objects has a class of the class list"
    return [f"{fault} ({known}); the annotations say {found}"]


def _without_labels(read: _Read) -> list[str]:
    """One image without a label file is a negative; a whole split without any is a folder that was not found."""
    faults = []
    for key in read.ids:
        fit = read.fit(key)
        if fit and all(image.is_unlabelled for image in fit):
            path = next(image.annotation.annotation_path for image in fit if image.annotation)
            faults.append(
                f"split '{key}': none of its {len(fit)} images has a label file; looked for {path} and so on; put the "
                "labels there, or leave the split out"
            )
    return faults


def _without_boxes(read: _Read) -> list[str]:
    """A data set, or its training split, whose boxes are all unusable: nothing could be learned from it."""
    train = find_split(read.mcfg.trainSplitName, read.ids)
    for what, fit in {"the data set": read.fit(), f"split '{train}'": read.fit(train) if train else []}.items():
        lost = sum(image.tally.dropped.total() for image in fit)
        if lost and not any(len(image.annotation.labels) for image in fit if image.annotation):
            reasons = "; ".join(about_boxes(read.box_faults, 0))
            return [f"{read.source.annotation_dir}: no box of {what} can be used: {reasons}"]
    return []


def _remarks(read: _Read, reports: Mapping[str, SplitReport]) -> Iterator[str]:
    source, split = read.source, read.mcfg.trainSplitName
    yield from about_boxes(
        read.box_faults, sum(len(image.annotation.labels) for image in read.fit() if image.annotation)
    )
    if split in reports:
        yield from about_classes(source.class_list, reports[split], split, source.format != "voc")


def _list_faults(faults: Sequence[str], can_skip: bool) -> str:
    way_out = "; badFiles=skip leaves out and counts images that cannot be used" if can_skip else ""
    if len(faults) == 1:
        return faults[0] + way_out
    return "\n".join([f"the data set has {len(faults)} faults{way_out}:", *listed(faults)])


def _pixel_max(read: _Read) -> int | None:
    """One range for all images. Test images have no say: they must not change what is trained."""
    test = find_split(read.mcfg.testSplitName, read.source.splits)
    asked = [name for key, names in read.ids.items() if key != test for name in names]
    for names in (asked, list(read.examined)):
        facts = [facts for name in names if (facts := read.examined[name].facts) is not None]
        if (found := choose_pixel_max(facts)) is not None:
            return found
    return None


def _files(examined: Mapping[str, _Examined]) -> dict[str, ImageFile]:
    """The files of the images that are fit."""
    return {
        name: ImageFile(image.annotation.image_path, image.facts.digest)
        for name, image in examined.items()
        if image.annotation and image.facts
    }


def _facts_by_file(read: _Read) -> dict[str, ImageFacts]:
    files = read.source.files
    return {files.get(i, i): image.facts for i, image in read.examined.items() if image.annotation and image.facts}


def _annotations(read: _Read, key: str, pixel_max: int | None) -> list[Annotation]:
    found = [annotation for name in read.ids[key] if (annotation := read.examined[name].annotation) is not None]
    return found if pixel_max is None else [replace(annotation, pixel_max=pixel_max) for annotation in found]


def _count(read: _Read, key: str, copies: Sequence[Copy]) -> SplitReport:
    examined = {name: read.examined[name] for name in read.ids[key]}
    report = SplitReport(
        duplicates=len(read.source.splits[key]) - len(examined),
        copies=count_copies(_files(examined)),
        shared=count_shared(copies, key),
    )
    for image in examined.values():
        if image.annotation is None:
            report.skipped += 1
            continue
        report.images += 1
        report.objects += len(image.annotation.labels)
        report.per_class.update(read.source.class_list[label] for label in image.annotation.labels)
        report.difficult += int(image.annotation.difficult.sum())
        report.without_objects += not len(image.annotation.labels)
        report.clipped += image.tally.clipped
        report.dropped.update(image.tally.dropped)
        report.ignored.update(image.tally.ignored)
        report.ambiguous_turn += image.is_ambiguous
        report.without_size += not image.has_size
        report.unlabelled += image.is_unlabelled
        report.repeats += image.tally.repeats
        report.outlines += image.outlines
        report.framed += image.facts is not None and image.facts.has_more_frames
    return report
