"""Is this data set fit to train on? Every fault in one pass, every amendment counted."""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from config.errors import UserError
from config.fields import nearest
from config.mconfig import ModelConfig
from dl.annotations import Annotation, Tally, Written, clean
from dl.discover import DataSource, locate
from dl.faults import DataFault
from dl.images import ImageFacts, inspect_image, plan_delivery
from dl.report import DataReport, SplitReport, listed
from dl.splits import find_split
from dl.verified import VerifiedImages
from ops.device import usable_cores

OnImage = Callable[[int, int], None]  # hears how many images are done, of how many


@dataclass(frozen=True)
class CheckedData:
    """Cleaned annotations by split name as asked for, and the report about them."""

    splits: dict[str, list[Annotation]]
    expected: dict[str, int]  # images that the split lists, each once, those that were skipped too
    report: DataReport
    source: DataSource


@dataclass
class _Examined:
    """One image with its annotation: fit (annotation and tally are set) or with faults."""

    annotation: Annotation | None = None
    tally: Tally = field(default_factory=Tally)
    is_ambiguous: bool = False
    has_size: bool = True
    repeats: int = 0
    outlines: int = 0
    is_unlabelled: bool = False
    faults: list[str] = field(default_factory=list)


def check_data(
    mcfg: ModelConfig, split_names: Sequence[str], cache_file: Path | None = None, on_image: OnImage | None = None
) -> CheckedData:
    """Read and decode every image and annotation of these splits.

    Raises one `UserError` that lists all faults, each with its file: missing or unreadable image or xml, `<size>` that
    disagrees, empty or unknown split, an image in two splits (also in those not asked for; `small`, or the split that
    is trained on, may share with `train`), a class list that knows none of the objects. With badFiles=skip the images
    with a fault of their own are left out and counted instead. `cache_file` remembers decoded images, so that a second
    start is quick. `on_image` hears how many images are done, of how many. Prints nothing.
    """
    source = locate(mcfg)
    asked = {name: find_split(name, source.splits) for name in dict.fromkeys(split_names)}
    faults = [_unknown_split(name, mcfg, source) for name, key in asked.items() if key is None]
    ids = {key: tuple(dict.fromkeys(source.splits[key])) for key in asked.values() if key is not None}
    faults += [f"split '{key}' is empty" for key, names in ids.items() if not names]
    faults += _overlaps(_apart(asked, mcfg, source), source)
    every_id = dict.fromkeys(image_id for names in ids.values() for image_id in names)
    examined = _examine_all(source, list(every_id), cache_file, on_image)
    skipped = source.reader.faults() + [fault for one in examined.values() for fault in one.faults]
    if mcfg.badFiles == "stop":
        faults, skipped = faults + skipped, []
    faults += _emptied(ids, examined) if skipped else []
    faults += _strange_classes(examined.values(), source) + _without_labels(ids, examined)
    if faults:
        can_skip = mcfg.badFiles == "stop" and bool(
            source.reader.faults() or any(one.faults for one in examined.values())
        )
        raise UserError(_list_faults(faults, can_skip))
    splits = {name: _annotations(ids[key], examined) for name, key in asked.items() if key is not None}
    reports = {name: _count(source, source.splits[key], ids[key], examined) for name, key in asked.items() if key}
    expected = {name: len(ids[key]) for name, key in asked.items() if key is not None}
    return CheckedData(splits, expected, DataReport(source.class_list, reports, tuple(skipped)), source)


def _examine_all(
    source: DataSource, ids: Sequence[str], cache_file: Path | None, on_image: OnImage | None
) -> dict[str, _Examined]:
    verified, examined = VerifiedImages(cache_file), {}
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
    return _Examined(
        cleaned, tally, delivery.is_ambiguous, has_size, written.repeats, written.outlines, written.is_missing
    )


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
    return [pair for pair in pairs.values() if not _is_one_held_out_split(pair, mcfg, source)]


def _is_one_held_out_split(pair: tuple[str, str], mcfg: ModelConfig, source: DataSource) -> bool:
    """Do both names list the same images, and is neither trained on? Many data sets name one folder as val and test."""
    trained = {find_split(name, source.splits) for name in ("train", "small", mcfg.trainSplitName)}
    return not trained & set(pair) and set(source.splits[pair[0]]) == set(source.splits[pair[1]])


def _overlaps(pairs: Sequence[tuple[str, str]], source: DataSource) -> list[str]:
    faults = []
    for one, other in pairs:
        shared = sorted(set(source.splits[one]) & set(source.splits[other]))
        if shared:
            names = ", ".join(shared[:5]) + (f" and {len(shared) - 5} more" if len(shared) > 5 else "")
            fault = f"splits '{one}' and '{other}' share {len(shared)} images of {source.image_dir}: {names}"
            faults.append(f"{fault}; leave each in one")
    return faults


def _emptied(ids: Mapping[str, tuple[str, ...]], examined: Mapping[str, _Examined]) -> list[str]:
    gone = [key for key, names in ids.items() if names and not any(examined[i].annotation for i in names)]
    return [f"split '{key}' is empty once its {len(ids[key])} bad images are skipped" for key in gone]


def _strange_classes(examined: Collection[_Examined], source: DataSource) -> list[str]:
    ignored = sum((one.tally.ignored for one in examined), start=Tally().ignored)
    num_known = sum(len(one.annotation.labels) + one.tally.degenerate for one in examined if one.annotation)
    if not ignored or num_known:
        return []
    found = ", ".join(name for name, _ in ignored.most_common(10))
    known = ", ".join(source.class_list[:10])
    fault = f"{source.annotation_dir}: none of the {ignored.total()} objects has a class of the class list ({known})"
    return [f"{fault}; the annotations say {found}"]


def _without_labels(ids: Mapping[str, tuple[str, ...]], examined: Mapping[str, _Examined]) -> list[str]:
    """One image without a label file is a negative; a whole split without any is a folder that was not found."""
    faults = []
    for key, names in ids.items():
        fit = [examined[name] for name in names if examined[name].annotation]
        if fit and all(one.is_unlabelled for one in fit):
            path = next(one.annotation.annotation_path for one in fit if one.annotation)
            faults.append(
                f"split '{key}': none of its {len(fit)} images has a label file; looked for {path} and so on; put the "
                "labels there, or leave the split out"
            )
    return faults


def _list_faults(faults: Sequence[str], can_skip: bool) -> str:
    way_out = "; badFiles=skip leaves out and counts images that cannot be used" if can_skip else ""
    if len(faults) == 1:
        return faults[0] + way_out
    return "\n".join([f"the data set has {len(faults)} faults{way_out}:", *listed(faults)])


def _annotations(names: Sequence[str], examined: Mapping[str, _Examined]) -> list[Annotation]:
    return [annotation for name in names if (annotation := examined[name].annotation) is not None]


def _count(
    source: DataSource, listed: Sequence[str], names: Sequence[str], examined: Mapping[str, _Examined]
) -> SplitReport:
    report = SplitReport(duplicates=len(listed) - len(names))
    for one in (examined[name] for name in names):
        if one.annotation is None:
            report.skipped += 1
            continue
        report.images += 1
        report.objects += len(one.annotation.labels)
        report.per_class.update(source.class_list[label] for label in one.annotation.labels)
        report.difficult += int(one.annotation.difficult.sum())
        report.without_objects += not len(one.annotation.labels)
        report.clipped += one.tally.clipped
        report.degenerate += one.tally.degenerate
        report.ignored.update(one.tally.ignored)
        report.ambiguous_turn += one.is_ambiguous
        report.without_size += not one.has_size
        report.unlabelled += one.is_unlabelled
        report.repeats += one.repeats
        report.outlines += one.outlines
    return report
