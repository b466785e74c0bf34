"""Detection on any image files: find them, run the network, write COCO results and painted copies.

For any number of images, memory contains two batches of network inputs and one image of original size.
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
from eval.label_layout import drawable_names
from eval.painter import file_names, paint_detections, refuse_overwriting_pictures, write_jpeg
from eval.predictor import Detections, Predictor
from eval.results import ImageRecord, refuse_overwriting_results, write_images, write_results
from ops.batch import Sample

log = logging.getLogger("mars")

_VIDEO_SUFFIXES = frozenset(f".{ending}" for ending in "mp4 m4v mov avi mkv webm mpg mpeg wmv flv 3gp ogv".split())  # noqa: SIM905

RESULTS, IMAGE_FILE, PAINTED = "detections.json", "images.json", "painted"

OnImage = Callable[[int, int], None]  # called with the number of finished images and the total


class PredictJob(NamedTuple):
    """How the images of one call are read, and what is written."""

    input_shape: tuple[int, int]  # height and width of the network input
    class_names: tuple[str, ...]
    batch_size: int = 16
    num_threads: int = 1  # for decoding images
    paint_conf: float | None = 0.2  # lowest score that is painted; None: no painted images
    pixel_max: int | None = None  # 16-bit images are scaled by this value; None: each by its own range


@dataclass
class PredictSummary:
    """The results of one call."""

    folder: Path
    images: list[ImageRecord] = field(default_factory=list)
    num_detections: int = 0
    num_painted: int = 0
    broken: list[str] = field(default_factory=list)  # one error message for each, beginning with the file
    pixel_max: int | None = None
    peculiar: dict[str, ImageInfo] = field(default_factory=dict)  # of 16-bit images and of images with several frames

    def lines(self) -> list[str]:
        """The messages at the end: broken files, notes on special images, the numbers and the folder of the results."""
        lines = [f"skipped: {fault}" for fault in self.broken] + image_notes(self.peculiar, self.pixel_max)
        unreadable = f", {len(self.broken)} could not be read" if self.broken else ""
        painted = f", {self.num_painted} of them painted" if self.num_painted else ""
        counts = f"{len(self.images)} images{unreadable}; {self.num_detections} detections{painted}"
        return [*lines, f"{counts}: {self.folder}"]


def find_images(names: Iterable[str | Path], leave_out: Path | None = None) -> list[Path]:
    """The images that files, folders and glob patterns name: absolute paths, each once, in the order of `names`.

    A folder means all images in it and below it (by suffix, in natural order). Hidden files and `leave_out` are
    skipped; links to folders are skipped with a warning. A single file may have any suffix. A glob pattern that the
    shell did not expand means the files that it matches; `**` matches any folders. Raises `UserError` for a name that
    matches nothing, for anything but image files (a video, a camera, an address, the standard input), and for a file
    whose name contains unsuitable characters. In a folder such files are skipped with a warning, unless all are such.
    """
    found: dict[Path, None] = {}
    for name in map(str, names):
        absolute(name)  # raises for an invalid path; its result is not used, the working directory may contain [ ] * ?
        pattern = os.path.expanduser(name)
        paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True), key=natural_key)
        matches = [Path(os.path.abspath(path)) for path in paths]
        if not matches:
            raise UserError(_no_match_message(name))
        for match in matches:
            if match.suffix.lower() in _VIDEO_SUFFIXES and not match.is_dir():
                raise UserError(
                    f"{match}: is a video, but predict reads images; save its frames first "
                    f"(ffmpeg -i {match} FOLDER/%06d.png) and give that folder"
                )
        files = [file for match in matches for file in _files_of(match)]
        if not files:
            endings = " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
            raise UserError(f"{', '.join(map(str, matches[:3]))}: contains no image; image files end in {endings}")
        # Links may lead into the folder too; each parent is resolved once.
        is_inside = {
            parent: leave_out is not None and parent.resolve().is_relative_to(leave_out.resolve())
            for parent in {file.parent for file in files}
        }
        found.update(dict.fromkeys(file for file in files if not is_inside[file.parent]))
    if not found:
        raise UserError("there are only painted copies of an earlier call; give the images themselves")
    return list(found)


def image_ids_of(files: Sequence[Path]) -> list[str]:
    """The id of each file: its path below the common folder of all files, with / and without suffix.

    In one flat folder the id is the stem of the file, as in a data set. If two files would have the same id (a.jpg and
    a.png), all ids keep their suffix.
    """
    if not files:
        return []
    common = os.path.commonpath([file.parent for file in files])
    relative = [file.relative_to(common) for file in files]
    bare = [path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path for path in relative]
    return [path.as_posix() for path in (bare if len(set(bare)) == len(bare) else relative)]


def predict_files(
    predictor: Predictor, files: Sequence[Path], folder: Path, job: PredictJob, on_image: OnImage | None = None
) -> PredictSummary:
    """Detect on `files`; write `detections.json`, `images.json` and `painted/*.jpg` into `folder`.

    Images are read as for training (rotated upright, 16 bits scaled, only the first frame). Files that cannot be read
    are skipped and listed in the summary. Raises `UserError` when no file can be read (then nothing is written) or when
    the results cannot be written, and `FloatingPointError` for predictions that are not finite.
    """
    summary = PredictSummary(folder, pixel_max=job.pixel_max)
    ids = dict(zip(files, image_ids_of(files), strict=True))
    class_names = () if job.paint_conf is None else drawable_names(job.class_names)
    picture_names = file_names(ids.values())

    def results() -> Iterator[Detections]:
        for path, detections in _detect(predictor, ids, job, summary, on_image):
            if job.paint_conf is not None:
                try:
                    image = read_image(path, pixel_max=job.pixel_max)  # again, so that memory contains only one of them
                    painted = paint_detections(image, detections, class_names, job.paint_conf)
                    write_jpeg(folder / PAINTED / picture_names[ids[path]], painted)
                    summary.num_painted += int((detections.scores >= job.paint_conf).sum())
                except DataError as fault:  # it could be read a moment ago
                    summary.broken.append(str(fault))
            summary.num_detections += len(detections.scores)
            yield detections
        # The image file is written before the results are in place: if the call is killed between the two files, the
        # next call still recognises the results as written by Mars.
        write_images(folder / IMAGE_FILE, summary.images, job.class_names)

    write_results(folder / RESULTS, results())
    write_images(folder / IMAGE_FILE, summary.images, job.class_names, results=folder / RESULTS)
    return summary


def refuse_overwriting_files(folder: Path, files: Sequence[Path], paints: bool) -> None:
    """Raise `UserError` when the results of `predict_files` would overwrite files not written by an earlier call."""
    alternative = ", or name another folder with --out"
    refuse_overwriting_results(folder / RESULTS, folder / IMAGE_FILE, alternative)
    if paints:
        refuse_overwriting_pictures(folder / PAINTED, image_ids_of(files), alternative)


def next_numbered_folder(parent: Path) -> Path:
    """Create the next free folder of `parent` (001, 002, ...) and return it. Raises `UserError` when that fails."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in parent.iterdir()]
        number = max((int(name) for name in names if name.isascii() and name.isdigit()), default=0)
        while True:
            number += 1
            with contextlib.suppress(FileExistsError):  # another call created it at the same time
                folder = parent / f"{number:03d}"
                folder.mkdir()
                return folder
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{parent}: cannot create a folder there ({reason}); give another one with --out DIR") from None


def _files_of(match: Path) -> list[Path]:
    """The file itself, or the images below a folder. Those with unsuitable names are skipped with a warning.

    Raises `UserError` for a file with an unsuitable name, and for a folder in which all images have such names.
    """
    if not match.is_dir():
        _refuse_unfit(match)
        return [match]
    files, faults = [], []
    for parent, subfolders, names in os.walk(match):
        subfolders[:] = sorted((name for name in subfolders if not name.startswith(".")), key=natural_key)
        for link in [path for name in subfolders if (path := Path(parent, name)).is_symlink()]:
            log.warning("%s: skipped, because it is a link to a folder; to use its images, give the link too", link)
        for name in sorted(names, key=natural_key):
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
                continue
            try:
                _refuse_unfit(Path(parent, name))
                files.append(Path(parent, name))
            except UserError as fault:
                faults.append(str(fault))
    if faults and not files:
        raise UserError(faults[0])
    for fault in dict.fromkeys(faults):  # one message if the name of a folder is unsuitable
        log.warning("skipped: %s", fault)
    return files


def _refuse_unfit(file: Path) -> None:
    """Raise `UserError` when the name of the file, or of a folder above it, cannot be written into a text file."""
    if printable(str(file)):
        for part in (*reversed(file.parents), file):
            check_file_name(part.parent, part.name)


def _no_match_message(name: str) -> str:
    """The error message for a name without a file, and what to write instead."""
    if name == "-":
        return "-: predict does not read the standard input; save the images as files and give these"
    if re.match(r"[a-zA-Z][\w+.-]*://", name):
        return f"{name}: is an address; predict reads files: download it first (curl -O {name}) and give the file"
    if name.isdigit():
        return (
            f"{name}: no such file or folder; predict does not read cameras: save images of it first "
            f"(ffmpeg -i /dev/video{name} FOLDER/%06d.png) and give that folder"
        )
    reason = "no file matches this pattern" if glob.has_magic(name) else "no such file or folder"
    return f"{absolute(name)}: {reason}"


def _images_below(folder: Path) -> Iterator[Path]:
    for parent, subfolders, names in os.walk(folder):
        for link in [Path(parent, name) for name in subfolders if not name.startswith(".")]:
            if link.is_symlink():
                log.warning("%s: skipped, because it is a link to a folder; to use its images, give the link too", link)
        subfolders[:] = sorted((name for name in subfolders if not name.startswith(".")), key=natural_key)
        for name in sorted(names, key=natural_key):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield Path(parent, name)


def _detect(
    predictor: Predictor, ids: Mapping[Path, str], job: PredictJob, summary: PredictSummary, on_image: OnImage | None
) -> Iterator[tuple[Path, Detections]]:
    """The detections of every file that can be read, in order."""
    done = 0
    for batch in _read_ahead(ids, job):
        done += len(batch)
        samples: dict[Path, Sample] = {}
        for path, image in batch.items():
            if isinstance(image, DataError):
                summary.broken.append(str(image))
                continue
            samples[path], facts = image
            if facts.needs_note:
                summary.peculiar[ids[path]] = facts
        if samples:
            yield from zip(samples, predictor(collate(list(samples.values()))), strict=True)
        for path, sample in samples.items():
            assert sample.letterbox is not None
            size = sample.letterbox.width, sample.letterbox.height
            summary.images.append(ImageRecord(sample.image_id, str(path), *size))
        if on_image is not None:
            on_image(done, len(ids))
    if not summary.images:
        faults = summary.broken
        number = f"none of the {len(faults)} files can be read; the first error: " if len(faults) > 1 else ""
        raise UserError(f"{number}{faults[0]}")


def _read_ahead(ids: Mapping[Path, str], job: PredictJob) -> Iterator[dict[Path, tuple[Sample, ImageInfo] | DataError]]:
    """Batches of images resized for the network. The next batch is read while the network computes."""

    def read(path: Path) -> tuple[Sample, ImageInfo] | DataError:
        try:
            pixels, facts = decode_image(path, pixel_max=job.pixel_max)
        except DataError as fault:
            return fault
        canvas, placed = letterbox(pixels, job.input_shape)
        return Sample(canvas, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), ids[path], placed), facts

    files, waiting = list(ids), deque()
    with ThreadPoolExecutor(job.num_threads) as pool:  # image decoders release the interpreter lock
        for start in range(0, len(files), job.batch_size):
            batch = files[start : start + job.batch_size]
            waiting.append((batch, pool.map(read, batch)))
            if len(waiting) > 1:
                yield dict(zip(*waiting.popleft(), strict=True))
        while waiting:
            yield dict(zip(*waiting.popleft(), strict=True))
