"""Any image file -> RGB uint8, upright in the way its annotation means it.

Decided here: transparency is laid on white, as browsers show it; values of 16 bits are scaled to 8 by the range that
is in use (of a 12-bit camera 4095 -> 255); of several frames the first is read; a truncated file is an error and never
a half-grey image.
"""

import hashlib
import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dl.faults import DataFault, excerpt
from dl.files import MOST_OF_IMAGE, read_bytes
from dl.signatures import describe_unreadable, is_camera_raw

try:  # HEIC, where the user has installed what reads it
    from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
except ImportError:
    pass
else:
    register_heif_opener()

# Pixels beyond which an image is refused before it is decoded: a PNG of 110 KB can hold 900 million. A phone's picture
# has up to 200 million, a Sentinel-2 scene 120 million. Decoding 100 million takes .96 GB, with transparency 1.3 GB, in
# 16-bit colour 1.9 GB, so that such an image may have half as many.
MOST_PIXELS = 200_000_000
# Larger images than this one are decoded one at a time, whatever the number of threads: 400 MB each.
_PIXELS_AT_ONCE = 2**25
_LARGE_IMAGE = threading.Lock()
_STRIP_ROWS = 256  # of a transparent image that are laid on white at once
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is 89 million, and of the header only

# Pillow reads other formats, too: PostScript is a program, an icon holds images of any size behind its header. The
# suffix of a file does not matter, so that a picture is read under a wrong one.
Image.init()
_WANTED = [
    "JPEG", "MPO", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA", "HEIF", "PSD",
]  # fmt: skip
_FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)  # those that this Pillow was built with

Size = tuple[int, int]  # width, height

_ORIENTATION_TAG = 0x0112
_TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RANGES = (255, 1023, 4095, 16383, 65535)  # largest values of 8, 10, 12, 14 and 16 bits
_PILLOW_MUTED = ("ignore", None, UserWarning, re.compile(r"PIL\."), 0)


class ImageFacts(NamedTuple):
    """A decodable image: its pixels as stored, how a viewer turns them, and what else its file says."""

    width: int
    height: int
    orientation: int  # EXIF, 1 (upright) to 8
    max_value: int = 0  # largest value of an image that is stored with 16 bits; 0 for one of 8 bits
    has_more_frames: bool = False  # or pages: only the first is read
    digest: str = ""  # SHA-256 of the file's bytes; only `inspect_image` computes it

    @property
    def is_peculiar(self) -> bool:
        """Is there anything that `dl.image_notes` reports?"""
        return self.max_value > 0 or self.has_more_frames


class Delivery(NamedTuple):
    """The size in which an image is handed out, and why."""

    width: int
    height: int
    is_turned: bool  # EXIF rotation applied
    is_ambiguous: bool  # the annotation's <size> does not tell whether its boxes are in turned or raw pixels


def plan_delivery(path: Path, facts: ImageFacts, size_in_annotation: Size | None) -> Delivery:
    """Turn the image or not? The annotation's size decides, for it tells which pixels its author saw.

    Where it cannot tell (no size, a square, a half turn, a mirror) the image is turned as viewers show it and called
    ambiguous. Raises `DataFault` when the size is neither the raw nor the turned one: boxes may be at another scale.
    """
    raw = (facts.width, facts.height)
    turned = (facts.height, facts.width) if facts.orientation >= 5 else raw
    has_turn = facts.orientation != 1
    if size_in_annotation in (None, turned):
        return Delivery(*turned, has_turn, has_turn and (size_in_annotation is None or raw == turned))
    if size_in_annotation == raw:
        return Delivery(*raw, False, False)
    said, real = (f"{width} x {height}" for width, height in (size_in_annotation, turned))
    raise DataFault(f"{path}: the image is {real}, its annotation says {said}; are the boxes at another scale?")


def pixel_range(max_value: int) -> int:
    """The largest value of 8, 10, 12, 14 or 16 bits, the fewest that hold `max_value` (0 to 65535): 3800 -> 4095.

    A value that is larger by one still counts, for some programs write 4096 for white.
    """
    return next(largest for largest in _RANGES if max_value <= largest + 1)


def inspect_image(path: Path) -> ImageFacts:
    """Decode the whole image, as training will, and say what it is. Raises `DataFault`."""
    raw = _read_bytes(path)
    with _decoded(path, raw) as (image, values, facts):
        _to_rgb(image, values, None)
        return facts._replace(has_more_frames=_has_more_frames(image), digest=hashlib.sha256(raw).hexdigest())


def read_image(
    path: Path | str, size_in_annotation: Size | None = None, pixel_max: int | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """The image as RGB, writable, turned as `plan_delivery` says; without a size as viewers show it.

    `pixel_max`: the value of a 16-bit image that becomes 255, larger ones too; None: what `pixel_range` says of this
    image alone. Raises `DataFault` (a `UserError`) that starts with the path: no such file, truncated, unknown format,
    other size.
    """
    return decode_image(path, size_in_annotation, pixel_max)[0]


def decode_image(
    path: Path | str, size_in_annotation: Size | None = None, pixel_max: int | None = None
) -> tuple[UInt8[np.ndarray, "H W 3"], ImageFacts]:
    """What `read_image` gives, with the facts of the file."""
    path = Path(path)
    with _decoded(path, _read_bytes(path)) as (image, values, facts):
        delivery = plan_delivery(path, facts, size_in_annotation)
        rgb = _to_rgb(image, values, pixel_max)
        pixels = np.array(rgb.transpose(_TURN_UPRIGHT[facts.orientation]) if delivery.is_turned else rgb)
        return pixels, facts._replace(has_more_frames=_has_more_frames(image))


def _read_bytes(path: Path) -> bytes:
    try:
        return read_bytes(path, MOST_OF_IMAGE)
    except FileNotFoundError:
        raise DataFault(f"{path}: no such image file") from None
    except OSError as error:
        raise DataFault(f"{path}: the image cannot be read ({error.strerror or error})") from None


@contextmanager
def _decoded(path: Path, raw: bytes) -> Iterator[tuple[Image.Image, np.ndarray | None, ImageFacts]]:
    """The image, its values where they have more than 8 bits, and its facts."""
    if _PILLOW_MUTED not in warnings.filters:  # odd metadata is not worth a line per image; broken pixels raise
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    if is_camera_raw(path):
        raise DataFault(f"{path}: the image cannot be read ({describe_unreadable(path, raw)})")
    try:
        with Image.open(io.BytesIO(raw), formats=_FORMATS) as image:
            has_deep_colour = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
            num_pixels = _refuse_too_large(path, image, has_deep_colour)
            with _LARGE_IMAGE if num_pixels > _PIXELS_AT_ONCE else nullcontext():
                image.load()
                values = _values(path, image, raw, has_deep_colour)
                max_value = 0 if values is None else int(_without_alpha(values).max())
                # After load(): a TIFF has turned itself and dropped its tag, a PNG may carry the tag at its end.
                yield image, values, ImageFacts(image.width, image.height, _orientation(image), max_value)
    except DataFault:
        raise
    except Exception as error:  # at broken bytes Pillow's decoders raise nearly anything
        raise DataFault(f"{path}: the image cannot be read ({_reason(error, path, raw)})") from None


def _refuse_too_large(path: Path, image: Image.Image, has_deep_colour: bool) -> int:
    """How many pixels an image has that is not decoded yet. Raises `DataFault` for more than fit into memory."""
    num_pixels = image.width * image.height
    if num_pixels * (2 if has_deep_colour else 1) > MOST_PIXELS:
        most = MOST_PIXELS // (2 if has_deep_colour else 1)
        depth = " of 16 bits" if has_deep_colour else ""
        raise DataFault(
            f"{path}: the image has {image.width} x {image.height} pixels, and at most {most // 10**6} million{depth} "
            "are decoded; cut it into tiles"
        )
    return num_pixels


def _reason(error: Exception, path: Path, raw: bytes) -> str:
    if isinstance(error, Image.UnidentifiedImageError):  # Pillow's own words repeat the path
        kind = describe_unreadable(path, raw)
        return f"no known image format: {kind}" if kind else "no known image format"
    return excerpt(str(error)) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # broken metadata around sound pixels: a viewer would not turn this image either
        return 1
    return value if value in _TURN_UPRIGHT else 1


def _has_more_frames(image: Image.Image) -> bool:
    """Asked last, for a GIF moves to its second frame to tell."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # the second frame is broken: the first, which is read, is not
        return True


def _to_rgb(image: Image.Image, values: np.ndarray | None, pixel_max: int | None) -> Image.Image:
    if values is not None:
        image = _with_eight_bits(values, pixel_max)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """A transparent image laid on white, a strip at a time: the copies that Pillow makes would not fit into memory."""
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, _STRIP_ROWS):
        strip = image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height))).convert("RGBA")
        rgb.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return rgb


def _values(path: Path, image: Image.Image, raw: bytes, has_deep_colour: bool) -> np.ndarray | None:
    """(H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA as stored, 0 to 65535; None for an image of 8 bits."""
    if image.mode == "F":
        raise DataFault(f"{path}: the image holds floating-point values of unknown range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataFault(f"{path}: the image holds 32-bit values of unknown range; save it with 8 or 16 bits")
        return values
    return _deep_colour(image, raw) if has_deep_colour and image.mode in ("RGB", "RGBA") else None


def _deep_colour(image: Image.Image, raw: bytes) -> np.ndarray:
    """Pillow keeps only the upper 8 of 16 bits of colour; OpenCV has all, and is believed where both agree on those."""
    upper = np.asarray(image)
    values = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is not None and values.dtype == np.uint16 and values.shape == upper.shape:
        values = cv2.cvtColor(values, cv2.COLOR_BGR2RGB if values.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
        if all(np.array_equal(row // 256, kept) for row, kept in zip(values, upper, strict=True)):
            return values
    return upper.astype(np.uint16) * 257


def _without_alpha(values: np.ndarray) -> np.ndarray:
    return values[..., :3] if values.ndim == 3 else values


def _with_eight_bits(values: np.ndarray, pixel_max: int | None) -> Image.Image:
    colour = _without_alpha(values)
    scaled = _scaled(colour, pixel_max or pixel_range(int(colour.max())))
    if values.shape[2:] == (4,):  # how opaque a pixel is has nothing to do with how bright the camera sees
        alpha = values[..., 3:]
        scaled = np.concatenate([scaled, _scaled(alpha, pixel_range(int(alpha.max())))], axis=-1)
    return Image.fromarray(scaled)


def _scaled(values: np.ndarray, largest: int) -> np.ndarray:
    """Values from 0 to 65535: 0 to `largest` -> 0 to 255, rounded; larger values become 255."""
    wide = np.minimum(np.arange(2**16, dtype=np.uint32), largest)
    return ((wide * 255 + largest // 2) // largest).astype(np.uint8)[values]
