"""Images that were made to crash a reader, or to make it use gigabytes of memory or minutes of time.

`IMAGE_ATTACKS[name](folder)` makes one image and returns its file. `LARGE_IMAGES` are large but valid and must be read.
`make attacks` gives them to commands; the tests of `dl` give them to its functions.
"""

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

Builder = Callable[[Path], Path]


def write(path: Path, content: "str | bytes") -> None:
    """Write a file; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _zeros(num_bytes: int) -> bytes:
    """`num_bytes` zero bytes, compressed as in PNG and TIFF."""
    compressor = zlib.compressobj(9)
    parts = [compressor.compress(bytes(min(2**20, num_bytes - start))) for start in range(0, num_bytes, 2**20)]
    return b"".join([*parts, compressor.flush()])


def _png(width: int, height: int, bits: int, colour: int, more: bytes = b"") -> bytes:
    channels = {0: 1, 2: 3, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    content = _zeros(height * (1 + (width * bits * channels + 7) // 8))
    chunks = _chunk(b"IHDR", header) + more + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _write_png(folder: Path, width: int, height: int, bits: int, colour: int, more: bytes = b"") -> Path:
    path = folder / "image.png"
    write(path, _png(width, height, bits, colour, more))
    return path


def one_bit_png(folder: Path) -> Path:
    """30,000 x 30,000 pixels of one bit: 110 KB on disk, 4 GB as RGB."""
    return _write_png(folder, 30_000, 30_000, 1, 0)


def tiff(folder: Path, width: int = 30_000, height: int = 30_000) -> Path:
    """One bit per pixel, compressed."""
    content = _zeros(height * ((width + 7) // 8))
    tags = ((256, width), (257, height), (258, 1), (259, 8), (262, 1), (273, 8), (278, height), (279, len(content)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(content))
    write(folder / "image.tif", head + content + struct.pack("<H", len(tags)) + entries + bytes(4))
    return folder / "image.tif"


def bmp_rle(folder: Path) -> Path:
    """A run-length encoded image that ends after its first bytes."""
    header = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 8, 1, 4, 0, 0, 256, 0)
    content = header + bytes(1024) + b"\x05\x01\x00\x01"
    write(folder / "image.bmp", b"BM" + struct.pack("<IHHI", 14 + len(content), 0, 0, 14 + 40 + 1024) + content)
    return folder / "image.bmp"


def gif(folder: Path) -> Path:
    """A small frame on a screen of 65,535 x 65,535 pixels."""
    raw = _encoded(Image.new("P", (4, 4)), "GIF")
    write(folder / "image.gif", raw[:6] + struct.pack("<HH", 65_535, 65_535) + raw[10:])
    return folder / "image.gif"


def gif_many_frames(folder: Path) -> Path:
    frames = [Image.new("P", (2, 2), i % 2) for i in range(5000)]
    write(folder / "image.gif", _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], optimize=False))
    return folder / "image.gif"


def jpeg(folder: Path) -> Path:
    """A header of 65,500 x 65,500 pixels before the data of a small image."""
    raw = bytearray(_encoded(Image.new("RGB", (16, 16), "red"), "JPEG"))
    at = raw.index(b"\xff\xc0")
    raw[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    write(folder / "image.jpg", bytes(raw))
    return folder / "image.jpg"


def webp(folder: Path) -> Path:
    """Small frames on a canvas of 60,000 x 60,000 pixels."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    raw = bytearray(_encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    at = raw.index(b"VP8X") + 12
    raw[at : at + 6] = struct.pack("<I", 59_999)[:3] * 2
    write(folder / "image.webp", bytes(raw))
    return folder / "image.webp"


def jpeg_2000(folder: Path) -> Path:
    """A header of 60,000 x 60,000 pixels before the data of a small image."""
    raw = _encoded(Image.new("RGB", (16, 16), "red"), "JPEG2000", no_jp2=True)
    small, large = struct.pack(">II", 16, 16), struct.pack(">II", 60_000, 60_000)
    write(folder / "image.jp2", raw.replace(small, large, 1))
    return folder / "image.jp2"


def ppm(folder: Path) -> Path:
    write(folder / "image.ppm", b"P5 60000 60000 255\n" + bytes(1000))
    return folder / "image.ppm"


def icon(folder: Path) -> Path:
    """An icon of 16 x 16 pixels that contains a PNG of 20,000 x 20,000; the file is named *.png."""
    inner = _png(20_000, 20_000, 1, 0)
    head = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 1, len(inner), 22)
    write(folder / "image.png", head + inner)
    return folder / "image.png"


def postscript(folder: Path) -> Path:
    """A PostScript program in a file named *.jpg, which Pillow would pass to Ghostscript."""
    write(folder / "image.jpg", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    return folder / "image.jpg"


def _text_chunk(folder: Path) -> Path:
    return _write_png(folder, 8, 8, 8, 2, _chunk(b"zTXt", b"Comment\0\0" + _zeros(2**26)))


def _profile_chunk(folder: Path) -> Path:
    return _write_png(folder, 8, 8, 8, 2, _chunk(b"iCCP", b"p\0\0" + _zeros(2**26)))


def _short_png(folder: Path, bits: int, colour: int) -> Path:
    """A header of 14,000 x 14,000 pixels before the data of 8 x 8."""
    path = _write_png(folder, 8, 8, bits, colour)
    raw = path.read_bytes()
    header = struct.pack(">IIBBBBB", 14_000, 14_000, bits, colour, 0, 0, 0)
    path.write_bytes(raw[:8] + _chunk(b"IHDR", header) + raw[33:])
    return path


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


IMAGE_ATTACKS: dict[str, Builder] = {
    "one_bit_png": one_bit_png,
    "tiff": tiff,
    "bmp_rle": bmp_rle,
    "gif": gif,
    "gif_many_frames": gif_many_frames,
    "jpeg": jpeg,
    "webp": webp,
    "jpeg_2000": jpeg_2000,
    "ppm": ppm,
    "icon": icon,
    "postscript": postscript,
    "png_text": _text_chunk,
    "png_profile": _profile_chunk,
    "png_short": partial(_short_png, bits=8, colour=2),
    "png_16_bit_colour": partial(_short_png, bits=16, colour=6),
}

LARGE_IMAGES: dict[str, Builder] = {
    "one_bit": partial(_write_png, width=10_980, height=10_980, bits=1, colour=0),  # as large as a Sentinel-2 tile
    "colour": partial(_write_png, width=10_000, height=10_000, bits=8, colour=2),
    "transparent": partial(_write_png, width=10_000, height=10_000, bits=8, colour=6),
    "deep_colour": partial(_write_png, width=10_000, height=10_000, bits=16, colour=2),
}
