"""What a file is that cannot be read as an image, and how to turn it into one."""

import re
from pathlib import Path

from dl.files import RAW_SUFFIXES

HEAD_LENGTH = 1024  # bytes of a file that are looked at

_CAMERA_RAW = "a camera's raw file, of which only the small preview could be read; develop it to JPEG"
_VIDEO = "a video; extract its frames as images, e.g. with ffmpeg"
_ARRAY = "an array, not an image; save it as PNG with 8 or 16 bits"
_ARCHIVE = "an archive; unpack it"

# Pattern at the start of the file -> what it is; the first that matches counts.
_SIGNATURES = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), what)
    for pattern, what in (
        (rb"\Z", "an empty file; copy or download it again"),
        (rb".{4}ftyp(?:avif|avis)", "AVIF; install Pillow 11.3 or later, or convert it to JPEG"),
        (rb".{4}ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", "HEIC; install pillow-heif, or convert it to JPEG"),
        (rb".{4}ftypcrx|FUJIFILMCCD-RAW", _CAMERA_RAW),
        (rb".{4}(?:ftyp|moov|mdat)|RIFF.{4}AVI |\x1a\x45\xdf\xa3", _VIDEO),
        (rb"\xff\x0a|\0{3}\x0cJXL ", "JPEG XL; convert it to JPEG or PNG"),
        (rb"%PDF", "a PDF; export its pages as PNG"),
        (rb"version https://git-lfs", "a Git LFS pointer in place of the image; run: git lfs pull"),
        (rb"\s*(?:<!doctype html|<html)", "an HTML page in place of the image; download it again"),
        (rb".*<svg\b", "SVG, a vector graphic; export it as PNG"),
        (rb".{128}DICM", "DICOM; convert it to PNG with 16 bits"),
        (rb"\x93NUMPY|\x89HDF|MATLAB", _ARRAY),
        (rb"v/1\x01|#\?(?:RADIANCE|RGBE)", "an HDR image of floating-point values; save it with 8 or 16 bits"),
        (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", _ARCHIVE),
    )
)


def is_camera_raw(path: Path) -> bool:
    """By its suffix, for most of these files are TIFF inside, of which Pillow would read the small preview."""
    return path.suffix.lower() in RAW_SUFFIXES


def describe_unreadable(path: Path, head: bytes) -> str | None:
    """What the file is, and what to do, from its first bytes (and the suffix of raw files); None when unknown."""
    if is_camera_raw(path):
        return _CAMERA_RAW
    return next((what for pattern, what in _SIGNATURES if pattern.match(head[:HEAD_LENGTH])), None)
