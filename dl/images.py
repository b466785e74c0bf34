"""Any image file -> RGB uint8, upright in the way its annotation means it.

Decided here: transparency is laid on white, as browsers show it; 16-bit grey is scaled to 8 bits (65535 -> 255), not
clipped; of several frames the first is read; a truncated file is an error and never a half-grey image.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dl.faults import DataFault

# The user's own aerial picture of 100 megapixels is no decompression bomb.
Image.MAX_IMAGE_PIXELS = None

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
_PILLOW_MUTED = ("ignore", None, UserWarning, re.compile(r"PIL\."), 0)


class ImageFacts(NamedTuple):
    """A decodable image: its pixels as stored, and how a viewer turns them."""

    width: int
    height: int
    orientation: int  # EXIF, 1 (upright) to 8


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


def inspect_image(path: Path) -> ImageFacts:
    """Decode the whole image, as training will, and say what it is. Raises `DataFault`."""
    with _decoded(path) as (image, facts):
        _to_rgb(image, path)
        return facts


def read_image(path: Path | str, size_in_annotation: Size | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """The image as RGB, writable, turned as `plan_delivery` says; without a size as viewers show it.

    Raises `DataFault` (a `UserError`) that starts with the path: no such file, truncated, unknown format, other size.
    """
    path = Path(path)
    with _decoded(path) as (image, facts):
        delivery = plan_delivery(path, facts, size_in_annotation)
        rgb = _to_rgb(image, path)
        return np.array(rgb.transpose(_TURN_UPRIGHT[facts.orientation]) if delivery.is_turned else rgb)


@contextmanager
def _decoded(path: Path) -> Iterator[tuple[Image.Image, ImageFacts]]:
    if _PILLOW_MUTED not in warnings.filters:  # odd metadata is not worth a line per image; broken pixels raise
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    try:
        with Image.open(path) as image:
            image.load()
            # After load(): a TIFF has turned itself by then and dropped its tag, a PNG may carry the tag at its end.
            yield image, ImageFacts(image.width, image.height, _orientation(image))
    except DataFault:
        raise
    except FileNotFoundError:
        raise DataFault(f"{path}: no such image file") from None
    except Exception as error:  # at broken bytes Pillow's decoders raise nearly anything
        raise DataFault(f"{path}: the image cannot be read ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "no known image format"  # Pillow's own words repeat the path
    return str(error) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # broken metadata around sound pixels: a viewer would not turn this image either
        return 1
    return value if value in _TURN_UPRIGHT else 1


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise DataFault(f"{path}: the image holds floating-point values of unknown range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _sixteen_bits_to_eight(np.asarray(image), path).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _sixteen_bits_to_eight(values: np.ndarray, path: Path) -> Image.Image:
    if values.min() < 0 or values.max() > 65535:
        raise DataFault(f"{path}: the image holds 32-bit values of unknown range; save it with 8 or 16 bits")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
