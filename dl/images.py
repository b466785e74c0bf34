"""Read any image file as RGB uint8, rotated as its annotation expects.

Transparent images are drawn on white, as in browsers. 16-bit values are scaled to 8 bits by the range that is in use
(12-bit camera: 4095 -> 255). Of several frames the first is read. A truncated file is an error, never a half-grey
image.
"""

import hashlib
import io
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dl.files import MAX_IMAGE_BYTES, RAW_SUFFIXES, DataError, excerpt, read_bytes
from ops.text import counted, shown

try:  # HEIC images, if the user has installed pillow-heif
    from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
except ImportError:
    pass
else:
    register_heif_opener()

# Larger images are refused before they are decoded: a PNG of 110 KB can have 900 million pixels. A photo of a phone has
# up to 200 million pixels, a Sentinel-2 scene 120 million. Decoding 100 million pixels takes 0.96 GB, with transparency
# 1.3 GB, in 16-bit colour 1.9 GB; therefore the limit of 16-bit colour images is half as high.
MAX_PIXELS = 200_000_000
# Images with more pixels are decoded one at a time, not by several threads at once: they take 400 MB each.
_PIXELS_AT_ONCE = 2**25
_LARGE_IMAGE = threading.Lock()
_STRIP_ROWS = 256  # rows of a transparent image that are drawn on white at once
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS replaces Pillow's own limit of 89 million pixels

# Pillow's other formats are not used: PostScript is a program, and an icon can have images of any size after its
# header. The format is recognised by the content, so an image with a wrong suffix is read, too.
Image.init()
_ALLOWED_FORMATS = [
    "JPEG", "MPO", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA", "HEIF", "PSD",
]  # fmt: skip
_FORMATS = tuple(name for name in _ALLOWED_FORMATS if name in Image.OPEN)  # those that this Pillow was built with

Size = tuple[int, int]  # width, height

_ORIENTATION_TAG = 0x0112
_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RANGES = (255, 1023, 4095, 16383, 65535)  # largest values of 8, 10, 12, 14 and 16 bits
_PILLOW_WARNINGS = ("ignore", None, UserWarning, re.compile(r"PIL\."), 0)


class ImageInfo(NamedTuple):
    """Facts about a decodable image: the size as stored, the EXIF rotation, and the content of its file."""

    width: int
    height: int
    orientation: int  # EXIF, 1 (upright) to 8
    max_value: int = 0  # largest value of a 16-bit image; 0 for an 8-bit image
    has_more_frames: bool = False  # or pages: only the first is read
    digest: str = ""  # SHA-256 of the file's bytes; only `inspect_image` computes it

    @property
    def needs_note(self) -> bool:
        """Whether `image_notes` reports this image."""
        return self.max_value > 0 or self.has_more_frames


class OrientedSize(NamedTuple):
    """The size in which an image is returned, and whether it is rotated."""

    width: int
    height: int
    is_rotated: bool  # EXIF rotation applied
    is_ambiguous: bool  # the annotation's <size> does not say whether its boxes are in rotated or raw pixels


def choose_orientation(path: Path, info: ImageInfo, size_in_annotation: Size | None) -> OrientedSize:
    """Decide whether to apply the EXIF rotation. The annotation's size decides: it shows which pixels its author saw.

    If the size cannot decide (no size, a square, a rotation by 180 degrees, a mirrored image), the rotation is applied
    as in image viewers, and marked as ambiguous. Raises `DataError` if the size is neither the raw nor the rotated
    size, because the boxes may have another scale.
    """
    raw = (info.width, info.height)
    rotated = (info.height, info.width) if info.orientation >= 5 else raw
    has_rotation = info.orientation != 1
    if size_in_annotation in (None, rotated):
        is_ambiguous = has_rotation and (size_in_annotation is None or raw == rotated)
        return OrientedSize(*rotated, has_rotation, is_ambiguous)
    if size_in_annotation == raw:
        return OrientedSize(*raw, False, False)
    in_annotation, real = (f"{width} x {height}" for width, height in (size_in_annotation, rotated))
    raise DataError(
        f"{path}: the image is {real}, but its annotation says {in_annotation}; do the boxes have another scale?"
    )


def pixel_range(max_value: int) -> int:
    """The largest value of the fewest bits (8, 10, 12, 14 or 16) that hold `max_value` (0 to 65535): 3800 -> 4095.

    One more is accepted, because some programs write 4096 for white.
    """
    return next(largest for largest in _RANGES if max_value <= largest + 1)


def inspect_image(path: Path) -> ImageInfo:
    """Decode the whole image as training does, and return facts about it. Raises `DataError`."""
    raw = _read_bytes(path)
    with _decoded(path, raw) as (image, values, info):
        _to_rgb(image, values, None)
        return info._replace(has_more_frames=_has_more_frames(image), digest=hashlib.sha256(raw).hexdigest())


def read_image(
    path: Path | str, size_in_annotation: Size | None = None, pixel_max: int | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Read an image as writable RGB, rotated as `choose_orientation` decides; without a size as in image viewers.

    `pixel_max`: the value of a 16-bit image that becomes 255 (larger values, too); None: the `pixel_range` of this
    image alone. Raises `DataError` (a `UserError`) that starts with the path: no such file, truncated, unknown format,
    wrong size.
    """
    return decode_image(path, size_in_annotation, pixel_max)[0]


def decode_image(
    path: Path | str, size_in_annotation: Size | None = None, pixel_max: int | None = None
) -> tuple[UInt8[np.ndarray, "H W 3"], ImageInfo]:
    """Like `read_image`, and facts about the file (without its digest)."""
    path = Path(path)
    with _decoded(path, _read_bytes(path)) as (image, values, info):
        orientation = choose_orientation(path, info, size_in_annotation)
        rgb = _to_rgb(image, values, pixel_max)
        pixels = np.array(rgb.transpose(_ROTATIONS[info.orientation]) if orientation.is_rotated else rgb)
        return pixels, info._replace(has_more_frames=_has_more_frames(image))


def _read_bytes(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_IMAGE_BYTES)
    except FileNotFoundError:
        raise DataError(f"{path}: the image file does not exist") from None
    except OSError as error:
        raise DataError(f"{path}: the image cannot be read ({error.strerror or error})") from None


@contextmanager
def _decoded(path: Path, raw: bytes) -> Iterator[tuple[Image.Image, np.ndarray | None, ImageInfo]]:
    """The image, its values if they have more than 8 bits, and facts about it."""
    if _PILLOW_WARNINGS not in warnings.filters:  # Pillow warns about metadata; broken pixels raise an error
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    if _is_camera_raw(path):
        raise DataError(f"{path}: the image cannot be read ({describe_unreadable(path, raw)})")
    try:
        with Image.open(io.BytesIO(raw), formats=_FORMATS) as image:
            has_deep_colour = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
            num_pixels = _refuse_too_large(path, image, has_deep_colour)
            with _LARGE_IMAGE if num_pixels > _PIXELS_AT_ONCE else nullcontext():
                image.load()
                values = _values(path, image, raw, has_deep_colour)
                max_value = 0 if values is None else int(_without_alpha(values).max())
                # After load(): a TIFF has rotated itself and removed its tag; a PNG may have the tag at its end.
                yield image, values, ImageInfo(image.width, image.height, _orientation(image), max_value)
    except DataError:
        raise
    except Exception as error:  # for damaged files Pillow's decoders raise errors of many types
        reason = excerpt(str(error)) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):  # its text repeats the path
            kind = describe_unreadable(path, raw)
            reason = f"unknown image format: {kind}" if kind else "unknown image format"
        raise DataError(f"{path}: the image cannot be read ({reason})") from None


def _refuse_too_large(path: Path, image: Image.Image, has_deep_colour: bool) -> int:
    """The number of pixels of an image that is not decoded yet. Raises `DataError` for more than fit into memory."""
    num_pixels = image.width * image.height
    if num_pixels * (2 if has_deep_colour else 1) > MAX_PIXELS:
        most = MAX_PIXELS // (2 if has_deep_colour else 1)
        depth = " of 16 bits" if has_deep_colour else ""
        raise DataError(
            f"{path}: the image has {image.width} x {image.height} pixels, but at most {most // 10**6} million{depth} "
            "are allowed; cut it into tiles"
        )
    return num_pixels


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # invalid metadata, valid pixels: image viewers would not rotate this image either
        return 1
    return value if value in _ROTATIONS else 1


def _has_more_frames(image: Image.Image) -> bool:
    """Called after everything else, because a GIF then moves to its second frame."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # the second frame is damaged; the first frame, which is used, is valid
        return True


def _to_rgb(image: Image.Image, values: np.ndarray | None, pixel_max: int | None) -> Image.Image:
    if values is not None:
        image = _with_eight_bits(values, pixel_max)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Draw a transparent image on white, strip by strip: Pillow's copies of a whole image may not fit into memory."""
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, _STRIP_ROWS):
        strip = image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height))).convert("RGBA")
        rgb.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return rgb


def _values(path: Path, image: Image.Image, raw: bytes, has_deep_colour: bool) -> np.ndarray | None:
    """(H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA as stored, 0 to 65535; None for an 8-bit image."""
    if image.mode == "F":
        raise DataError(f"{path}: the image has floating-point values of unknown range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path}: the image has 32-bit values of unknown range; save it with 8 or 16 bits")
        return values
    return _deep_colour(image, raw) if has_deep_colour and image.mode in ("RGB", "RGBA") else None


def _deep_colour(image: Image.Image, raw: bytes) -> np.ndarray:
    """Pillow keeps only the upper 8 of 16 bits per colour. OpenCV reads all bits; it is used if the upper 8 agree."""
    upper = np.asarray(image)
    values = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is not None and values.dtype == np.uint16 and values.shape == upper.shape:
        values = cv2.cvtColor(values, cv2.COLOR_BGR2RGB if values.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
        if all(np.array_equal(row // 256, upper_row) for row, upper_row in zip(values, upper, strict=True)):
            return values
    return upper.astype(np.uint16) * 257


def _without_alpha(values: np.ndarray) -> np.ndarray:
    return values[..., :3] if values.ndim == 3 else values


def _with_eight_bits(values: np.ndarray, pixel_max: int | None) -> Image.Image:
    colour = _without_alpha(values)
    scaled = _scaled(colour, pixel_max or pixel_range(int(colour.max())))
    if values.shape[2:] == (4,):  # the alpha channel has its own range, independent of the camera's
        alpha = values[..., 3:]
        scaled = np.concatenate([scaled, _scaled(alpha, pixel_range(int(alpha.max())))], axis=-1)
    return Image.fromarray(scaled)


def _scaled(values: np.ndarray, largest: int) -> np.ndarray:
    """Scale values (0 to 65535) from 0..`largest` to 0..255, rounded; larger values become 255."""
    wide = np.minimum(np.arange(2**16, dtype=np.uint32), largest)
    return ((wide * 255 + largest // 2) // largest).astype(np.uint8)[values]


_HEAD_LENGTH = 1024  # bytes of a file that are compared with the patterns
_CAMERA_RAW = "a raw file of a camera, of which only the small preview could be read; convert it to JPEG"
# Pattern at the start of a file that is not a readable image -> what it is, and what to do. The first match counts.
_SIGNATURES = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), description)
    for pattern, description in (
        (rb"\Z", "an empty file; copy or download it again"),
        (rb".{4}ftyp(?:avif|avis)", "AVIF; install Pillow 11.3 or later, or convert it to JPEG"),
        (rb".{4}ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", "HEIC; install pillow-heif, or convert it to JPEG"),
        (rb".{4}ftypcrx|FUJIFILMCCD-RAW", _CAMERA_RAW),
        (
            rb".{4}(?:ftyp|moov|mdat)|RIFF.{4}AVI |\x1a\x45\xdf\xa3",
            "a video; extract its frames as images, e.g. with ffmpeg",
        ),
        (rb"\xff\x0a|\0{3}\x0cJXL ", "JPEG XL; convert it to JPEG or PNG"),
        (rb"%PDF", "a PDF; export its pages as PNG"),
        (rb"version https://git-lfs", "a Git LFS pointer instead of the image; run: git lfs pull"),
        (rb"\s*(?:<!doctype html|<html)", "an HTML page instead of the image; download it again"),
        (rb".*<svg\b", "SVG, a vector graphic; export it as PNG"),
        (rb".{128}DICM", "DICOM; convert it to PNG with 16 bits"),
        (rb"\x93NUMPY|\x89HDF|MATLAB", "an array, not an image; save it as PNG with 8 or 16 bits"),
        (rb"v/1\x01|#\?(?:RADIANCE|RGBE)", "an HDR image of floating-point values; save it with 8 or 16 bits"),
        (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "an archive; unpack it"),
    )
)


def _is_camera_raw(path: Path) -> bool:
    """By the suffix: most of these files are TIFF inside, and Pillow would read only the small preview."""
    return path.suffix.lower() in RAW_SUFFIXES


def describe_unreadable(path: Path, head: bytes) -> str | None:
    """What a file is and what to do, from its first bytes (and the suffix of raw files); None if unknown."""
    if _is_camera_raw(path):
        return _CAMERA_RAW
    return next((description for pattern, description in _SIGNATURES if pattern.match(head[:_HEAD_LENGTH])), None)


def choose_pixel_max(infos: Sequence[ImageInfo]) -> int | None:
    """One scale for all 16-bit images, from their largest value; None if every image has 8 bits."""
    largest = max((info.max_value for info in infos), default=0)
    return pixel_range(largest) if largest else None


def image_notes(infos: Mapping[str, ImageInfo], pixel_max: int | None, is_given: bool = True) -> list[str]:
    """Sentences about 16-bit images and images with several frames. `infos`: name -> facts.

    `pixel_max`: the scale of 16-bit images; None: each has its own. `is_given` False: it was chosen from these images.
    """
    values = {name: info.max_value for name, info in infos.items() if info.max_value}
    notes = [_range_note(values, pixel_max, is_given)] if values else []
    if multi_frame := [name for name, info in infos.items() if info.has_more_frames]:
        files = counted(len(multi_frame), "file")
        notes.append(f"{files} with several frames or pages, only the first is used: {shown(multi_frame, 3)}")
    return notes


def _range_note(values: Mapping[str, int], pixel_max: int | None, is_given: bool) -> str:
    largest = max(values.values())
    if pixel_max is None:
        images = counted(len(values), "16-bit image")
        return (
            f"{images}: each is scaled by its own range, because the weights were not trained on such images; "
            f"pixelMax=4095 would scale all equally ({shown(list(values), 3)})"
        )
    if is_given:
        note = f"16-bit images ({len(values)}, largest value {largest}): scaled by {pixel_max} (pixelMax)"
    else:
        bits = pixel_max.bit_length()
        note = f"16-bit images use {bits} bits ({len(values)}, largest value {largest}): scaled by {pixel_max}"
    brighter = [name for name, value in values.items() if pixel_range(value) > pixel_max]
    if brighter:
        note += f"; larger values become white in {len(brighter)} of them: {shown(brighter, 3)}"
    if is_given:
        return note
    # One defective pixel of 65535 would make all images of a 12-bit camera dark.
    at_max = [name for name, value in values.items() if pixel_range(value) >= pixel_max]
    smaller = [pixel_range(value) for value in values.values() if pixel_range(value) < pixel_max]
    if smaller and len(at_max) * 20 <= len(values):
        files = counted(len(at_max), "file")
        note += f"; only {files} use this range ({shown(at_max, 3)}); if they have defective pixels, "
        note += f"set pixelMax={max(smaller)}"
    return note
