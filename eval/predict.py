"""Detect on any images: find them, run the network, write COCO results and painted copies, one batch at a time.

Memory holds two batches at the network's size and one image at its own, however many images there are.
"""

import contextlib
import glob
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config.checks import printable
from config.errors import UserError
from config.load import absolute
from dl.augment import letterbox
from dl.files import IMAGE_SUFFIXES, DataError, check_file_name, natural_key
from dl.images import ImageInfo, decode_image, image_notes, read_image
from dl.loader import collate
from eval.painter import drawable_names, file_names, paint_detections, refuse_overwriting_pictures, write_jpeg
from eval.predictor import Detections, Predictor
from eval.results import ImageRecord, refuse_overwriting_results, write_images, write_results
from ops.batch import Sample

log = logging.getLogger("mars")

_VIDEO_SUFFIXES = frozenset(f".{ending}" for ending in "mp4 m4v mov avi mkv webm mpg mpeg wmv flv 3gp ogv".split())  # noqa: SIM905

RESULTS, COMPANION, PAINTED = "detections.json", "images.json", "painted"

OnImage = Callable[[int, int], None]  # hears how many images are done, of how many


class PredictJob(NamedTuple):
    """How the images of one call are read, and what is written about them."""

    input_shape: tuple[int, int]  # height and width of the network input
    class_names: tuple[str, ...]
    batch_size: int = 16
    num_threads: int = 1  # that decode images
    paint_conf: float | None = 0.2  # lowest score that is painted; None paints nothing
    pixel_max: int | None = None  # what 16-bit images are scaled by; None: each by the range that it uses


@dataclass
class PredictSummary:
    """What one call did."""

    folder: Path
    images: list[ImageRecord] = field(default_factory=list)
    num_detections: int = 0
    num_painted: int = 0
    broken: list[str] = field(default_factory=list)  # a sentence each, which starts with the file
    pixel_max: int | None = None
    peculiar: dict[str, ImageInfo] = field(default_factory=dict)  # of 16-bit images, and of those with more frames

    def lines(self) -> list[str]:
        """What a person reads at the end: broken files, notes on others, then what was found and where it lies."""
        lines = [f"left out: {fault}" for fault in self.broken] + image_notes(self.peculiar, self.pixel_max)
        lost = f", {len(self.broken)} could not be read" if self.broken else ""
        painted = f", {self.num_painted} of them painted" if self.num_painted else ""
        counts = f"{len(self.images)} images{lost}; {self.num_detections} detections{painted}"
        return [*lines, f"{counts}: {self.folder}"]


class _Read(NamedTuple):
    """An image at the network's size, and the facts of its file."""

    sample: Sample
    facts: ImageInfo


def find_images(words: Iterable[str | Path], leave_out: Path | None = None) -> list[Path]:
    """The images that files, folders and glob patterns name: absolute paths, each once, in the order of `words`.

    A folder stands for the images in it and below it (by suffix, in natural order; hidden ones and `leave_out` are
    passed over; so are links to folders, with a warning). A file is taken whatever its suffix. A pattern that the shell
    has not expanded stands for what it matches; `**` matches any folders. Raises `UserError` for a word that names
    nothing, for what is no image file (a video, a camera, an address, the standard input), and for an unfit name of a
    file; in a folder, files with unfit names are left out with a warning, unless there are no others.
    """
    found: dict[Path, None] = {}
    for word in map(str, words):
        absolute(word)  # refuses what is no path; its result is no pattern: the working directory may hold [ ] * ?
        matches = _matches(os.path.expanduser(word))
        if not matches:
            raise UserError(_names_nothing(word))
        if video := next((match for match in matches if _is_video(match)), None):
            raise UserError(
                f"{video}: is a video, and predict reads images: save its frames first "
                f"(ffmpeg -i {video} FOLDER/%06d.png) and name that folder"
            )
        files = [file for match in matches for file in _files_of(match)]
        if not files:
            endings = " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
            raise UserError(f"{', '.join(map(str, matches[:3]))}: holds no image; images end in {endings}")
        found.update(dict.fromkeys(_outside(leave_out, files) if leave_out else files))
    if not found:
        raise UserError("no image but painted copies of an earlier call; name the images themselves")
    return list(found)


def image_ids_of(files: Sequence[Path]) -> list[str]:
    """The id of each file: its path below the folder that all have in common, with / and without suffix.

    So the id of an image in one flat folder is the file's stem, as in a data set. Where two files would share an id
    (a.jpg and a.png), all ids keep their suffix.
    """
    if not files:
        return []
    common = os.path.commonpath([file.parent for file in files])
    relative = [file.relative_to(common) for file in files]
    has_suffix = [path.suffix.lower() in IMAGE_SUFFIXES for path in relative]
    bare = [path.with_suffix("") if is_cut else path for path, is_cut in zip(relative, has_suffix, strict=True)]
    return [path.as_posix() for path in (bare if len(set(bare)) == len(bare) else relative)]


def predict_files(
    predictor: Predictor, files: Sequence[Path], folder: Path, job: PredictJob, on_image: OnImage | None = None
) -> PredictSummary:
    """Detect on `files`; write `detections.json`, `images.json` and `painted/*.jpg` into `folder`.

    Images are read as for training (turned upright, 16 bits scaled, the first frame). A file that cannot be read is
    left out, and named in the summary. Raises `UserError` when no file could be read (nothing is written then) or when
    the folder does not take the results, and `FloatingPointError` on predictions that are not finite.
    """
    summary = PredictSummary(folder, pixel_max=job.pixel_max)
    ids = dict(zip(files, image_ids_of(files), strict=True))
    found = _detect(predictor, ids, job, summary, on_image)
    if job.paint_conf is not None:
        found = _painting(found, ids, job, summary)
    write_results(folder / RESULTS, _with_companion(_counting(found, summary), job, summary))
    write_images(folder / COMPANION, summary.images, job.class_names, results=folder / RESULTS)
    return summary


def refuse_overwriting_files(folder: Path, files: Sequence[Path], paints: bool) -> None:
    """Raise `UserError` when the results of `predict_files` would replace files that an earlier call did not write."""
    way_out = ", or name another folder with --out"
    refuse_overwriting_results(folder / RESULTS, folder / COMPANION, way_out)
    if paints:
        refuse_overwriting_pictures(folder / PAINTED, image_ids_of(files), way_out)


def next_numbered_folder(parent: Path) -> Path:
    """Make the next free folder of `parent`: 001, 002, ...; where it is. Raises `UserError` when it cannot be made."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in parent.iterdir()]
        number = max((int(name) for name in names if name.isascii() and name.isdigit()), default=0)
        while True:
            number += 1
            with contextlib.suppress(FileExistsError):  # a call at the same time was faster
                folder = parent / f"{number:03d}"
                folder.mkdir()
                return folder
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{parent}: no folder can be made there ({reason}); --out DIR names another place") from None


def _matches(word: str) -> list[Path]:
    """The file or folder of this name, else what the pattern matches, in natural order."""
    names = [word] if os.path.exists(word) else sorted(glob.glob(word, recursive=True), key=natural_key)
    return [Path(os.path.abspath(name)) for name in names]


def _files_of(match: Path) -> list[Path]:
    """The file itself, or the images below a folder but for those with unfit names, which are named in a warning.

    Raises `UserError` for the unfit name of a file, and for a folder where all images have unfit names.
    """
    if not match.is_dir():
        _refuse_unfit(match)
        return [match]
    files, faults = [], []
    for file in _images_below(match):
        try:
            _refuse_unfit(file)
            files.append(file)
        except UserError as fault:
            faults.append(str(fault))
    if faults and not files:
        raise UserError(faults[0])
    for fault in dict.fromkeys(faults):  # one for all files of a folder with an unfit name
        log.warning("left out: %s", fault)
    return files


def _refuse_unfit(file: Path) -> None:
    """Raise `UserError` when the name of the file or of a folder above it can be written into no file."""
    if printable(str(file)):
        for part in (*reversed(file.parents), file):
            check_file_name(part.parent, part.name)


def _outside(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Those that do not lie in the folder, whatever links lead there."""
    parents = {file.parent for file in files}
    inside = {parent for parent in parents if parent.resolve().is_relative_to(folder.resolve())}
    return [file for file in files if file.parent not in inside]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in _VIDEO_SUFFIXES and not path.is_dir()


def _names_nothing(word: str) -> str:
    """What is wrong with a word that names no file, and what to write instead."""
    if word == "-":
        return "-: images are not read from the standard input; save them as files and name these"
    if re.match(r"[a-zA-Z][\w+.-]*://", word):
        return (
            f"{word}: is an address; predict reads files: download the image first (curl -O {word}) and name the file"
        )
    if word.isdigit():
        return (
            f"{word}: no such file or folder; predict reads no camera: save images of it first "
            f"(ffmpeg -i /dev/video{word} FOLDER/%06d.png) and name that folder"
        )
    complaint = "no file matches this pattern" if glob.has_magic(word) else "no such file or folder"
    return f"{absolute(word)}: {complaint}"


def _images_below(folder: Path) -> Iterator[Path]:
    for place, subfolders, names in os.walk(folder):
        for link in [Path(place, name) for name in subfolders if not name.startswith(".")]:
            if link.is_symlink():
                log.warning("%s: is a link to a folder and is passed over; to predict on its images, name it too", link)
        subfolders[:] = sorted((name for name in subfolders if not name.startswith(".")), key=natural_key)
        for name in sorted(names, key=natural_key):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield Path(place, name)


def _detect(
    predictor: Predictor, ids: Mapping[Path, str], job: PredictJob, summary: PredictSummary, on_image: OnImage | None
) -> Iterator[tuple[Path, Detections]]:
    """The detections of every file that can be read, in order."""
    done = 0
    for read in _read_ahead(ids, job):
        done += len(read)
        good = {path: image for path, image in read.items() if isinstance(image, _Read)}
        samples = {path: image.sample for path, image in good.items()}
        summary.peculiar |= {ids[path]: image.facts for path, image in good.items() if image.facts.needs_note}
        summary.broken += [str(fault) for fault in read.values() if isinstance(fault, DataError)]
        if samples:
            yield from zip(samples, predictor(collate(list(samples.values()))), strict=True)
            for path, sample in samples.items():
                assert sample.letterbox is not None
                summary.images.append(
                    ImageRecord(sample.image_id, str(path), sample.letterbox.width, sample.letterbox.height)
                )
        if on_image is not None:
            on_image(done, len(ids))
    if not summary.images:
        raise UserError(_none_readable(summary.broken))


def _read_ahead(ids: Mapping[Path, str], job: PredictJob) -> Iterator[dict[Path, _Read | DataError]]:
    """Batches of images at the network's size; the next one is read while the network computes."""

    def read(path: Path) -> _Read | DataError:
        try:
            pixels, facts = decode_image(path, pixel_max=job.pixel_max)
        except DataError as fault:
            return fault
        canvas, placed = letterbox(pixels, job.input_shape)
        return _Read(Sample(canvas, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), ids[path], placed), facts)

    files, waiting = list(ids), deque()
    with ThreadPoolExecutor(job.num_threads) as pool:  # decoders release the interpreter lock
        for start in range(0, len(files), job.batch_size):
            batch = files[start : start + job.batch_size]
            waiting.append((batch, pool.map(read, batch)))
            if len(waiting) > 1:
                yield dict(zip(*waiting.popleft(), strict=True))
        while waiting:
            yield dict(zip(*waiting.popleft(), strict=True))


def _painting(
    found: Iterator[tuple[Path, Detections]], ids: Mapping[Path, str], job: PredictJob, summary: PredictSummary
) -> Iterator[tuple[Path, Detections]]:
    """The same detections, each image painted as it passes: read again, so that one at a time is held."""
    assert job.paint_conf is not None
    class_names, names = drawable_names(job.class_names), file_names(ids.values())
    for path, detections in found:
        try:
            painted = paint_detections(
                read_image(path, pixel_max=job.pixel_max), detections, class_names, job.paint_conf
            )
            write_jpeg(summary.folder / PAINTED / names[ids[path]], painted)
            summary.num_painted += int((detections.scores >= job.paint_conf).sum())
        except DataError as fault:  # it could be read a moment ago
            summary.broken.append(str(fault))
        yield path, detections


def _counting(found: Iterator[tuple[Path, Detections]], summary: PredictSummary) -> Iterator[Detections]:
    for _, detections in found:
        summary.num_detections += len(detections.scores)
        yield detections


def _with_companion(found: Iterator[Detections], job: PredictJob, summary: PredictSummary) -> Iterator[Detections]:
    """The same detections; behind the last one a companion is written, before the results are in place.

    By it the results of a call that is killed between both files are known as ours.
    """
    yield from found
    write_images(summary.folder / COMPANION, summary.images, job.class_names)


def _none_readable(faults: Sequence[str]) -> str:
    if len(faults) == 1:
        return faults[0]
    return f"none of the {len(faults)} files could be read; the first: {faults[0]}"
