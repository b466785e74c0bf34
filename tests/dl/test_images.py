import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from config.errors import UserError
from dl.images import decode_image, inspect_image, pixel_range, read_image

RED, WHITE = [255, 0, 0], [255, 255, 255]


@pytest.fixture
def save(tmp_path):
    def save(image, name, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def read(path):
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.flags.writeable
    return pixels


def test_rgb_is_read_as_written_and_in_rgb_order(save):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(read(save(Image.fromarray(pixels), "a.png")), pixels)


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 77, 77), ("1", 1, 255)])
def test_grey(save, mode, value, expected):
    assert (read(save(Image.new(mode, (4, 3), value), "a.png")) == expected).all()


def test_palette(save):
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, *RED])
    assert (read(save(image, "a.png")) == RED).all()


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"], ids=["index", "bytes"])
def test_transparent_palette_is_laid_on_white(save, transparency):
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((0, 0), 0)
    pixels = read(save(image, "a.png", transparency=transparency))
    assert pixels[0, 0].tolist() == WHITE
    assert pixels[1, 1].tolist() == RED


@pytest.mark.parametrize(("alpha", "expected"), [(0, [255, 255, 255]), (255, [200, 100, 0]), (128, [227, 177, 127])])
def test_rgba_is_laid_on_white(save, alpha, expected):
    pixels = read(save(Image.new("RGBA", (4, 3), (200, 100, 0, alpha)), "a.png"))
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_grey_with_alpha_and_colour_key(save):
    assert (read(save(Image.new("LA", (4, 3), (50, 0)), "a.png")) == 255).all()
    assert (read(save(Image.new("RGB", (4, 3), (9, 8, 7)), "b.png", transparency=(9, 8, 7))) == 255).all()


def test_cmyk_jpeg(save):
    pixels = read(save(Image.new("RGB", (16, 16), (250, 10, 20)).convert("CMYK"), "a.jpg", quality=95))
    assert np.abs(pixels.astype(int) - [250, 10, 20]).max() < 12


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 256, 32768], [40000, 65280, 65535]], dtype=np.uint16)
    cv2.imwrite(str(tmp_path / name), values)
    expected = np.round(values / 257).astype(int)
    assert np.array_equal(read(tmp_path / name)[..., 0], expected)


def test_16_bit_colour_is_scaled(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((3, 4, 3), (0, 32768, 65535), dtype=np.uint16))
    assert (read(tmp_path / "a.png") == [255, 128, 0]).all()


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 70000), ("I", -1)])
def test_values_of_unknown_range_are_a_fault(save, mode, value):
    path = save(Image.new(mode, (4, 3), value), "a.tif")
    with pytest.raises(UserError, match=f"{path}: .*unknown range; save it with 8 or 16 bits"):
        read_image(path)
    with pytest.raises(UserError, match="unknown range"):
        inspect_image(path)


def test_first_frame_of_a_gif(save):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    assert (read(save(frames[0], "a.gif", save_all=True, append_images=frames[1:])) == RED).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_exif_orientation_without_a_size_is_as_pillow_shows_it(write_image, tmp_path, name, orientation):
    path = write_image(tmp_path / name, (40, 30), orientation)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(read(path), expected)


@pytest.mark.parametrize("orientation", range(5, 9))
def test_the_size_in_the_annotation_decides_about_rotation(write_image, tmp_path, orientation):
    path = write_image(tmp_path / "a.png", (40, 30), orientation)
    with Image.open(path) as image:
        raw, turned = np.array(image), np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(read_image(path, (40, 30)), raw)
    assert np.array_equal(read_image(path, (30, 40)), turned)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_half_turns_and_mirrors_are_turned_as_viewers_show_them(write_image, tmp_path, orientation):
    path = write_image(tmp_path / "a.png", (40, 30), orientation)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(read_image(path, (40, 30)), expected)


def test_a_tiff_is_turned_once(save):
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    assert np.array_equal(read(save(image, "a.tif", exif=exif)), np.rot90(pixels, -1))


def test_an_impossible_orientation_is_none(write_image, tmp_path):
    path = write_image(tmp_path / "a.png", (40, 30), 77)
    assert inspect_image(path)[:3] == (40, 30, 1)


def test_another_size_is_a_fault(write_image, tmp_path):
    path = write_image(tmp_path / "a.jpg", (40, 30))
    with pytest.raises(UserError, match=f"{path}: the image is 40 x 30, but its annotation says 80 x 60"):
        read_image(path, (80, 60))
    with pytest.raises(UserError, match="says 30 x 40"):  # swapped, but no EXIF turn that would explain it
        read_image(path, (30, 40))


@pytest.mark.parametrize(
    "options",
    [
        {"format": "JPEG"},
        {"format": "JPEG", "progressive": True},
        {"format": "PNG"},
        {"format": "BMP"},
        {"format": "WEBP"},
    ],
)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.02, 0])
def test_a_truncated_image_is_a_fault(tmp_path, encoded, options, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    options = dict(options)
    raw = encoded(Image.fromarray(noise), options.pop("format"), **options)
    path = tmp_path / "a.jpg"
    path.write_bytes(raw[: int(len(raw) * share)])
    for reader in (read_image, inspect_image):
        with pytest.raises(UserError, match=f"{path}: the image cannot be read"):
            reader(path)


def test_what_is_no_image_is_a_fault(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>not found</html>")
    with pytest.raises(UserError, match=r"a\.jpg: the image cannot be read \(unknown image format"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"b\.jpg: the image file does not exist"):
        read_image(tmp_path / "b.jpg")


def test_broken_metadata_around_sound_pixels_is_read(tmp_path, encoded):
    raw = encoded(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01")
    (tmp_path / "a.jpg").write_bytes(raw)
    assert read(tmp_path / "a.jpg").shape == (8, 8, 3)


def test_a_large_picture_is_no_bomb(save):
    path = save(Image.new("1", (20000, 5000)), "a.png")  # 100 megapixels: Pillow's own limit is 89
    with Image.open(path) as image:
        assert image.size == (20000, 5000)


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (0, 255), (1, 255), (255, 255), (256, 255), (257, 1023), (1023, 1023), (1024, 1023), (1025, 4095),
        (3800, 4095), (4095, 4095), (4096, 4095), (4097, 16383), (16384, 16383), (16385, 65535), (65535, 65535),
    ],
)  # fmt: skip
def test_the_range_in_use(largest, expected):
    assert pixel_range(largest) == expected


def twelve_bits(*shape, largest=3800):
    values = np.random.default_rng(0).integers(0, largest + 1, shape).astype(np.uint16)
    values.flat[0] = largest
    return values


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("pixel_max", [None, 4095, 1000, 65535])
def test_16_bits_are_scaled_by_the_range_in_use_or_by_the_one_given(tmp_path, name, channels, pixel_max):
    values = twelve_bits(20, 30, channels)
    cv2.imwrite(str(tmp_path / name), values)
    shares = np.minimum(values[..., ::-1] / (pixel_max or 4095), 1)  # OpenCV writes BGR
    expected = np.floor(255 * shares + 0.5).astype(int)
    pixels, facts = decode_image(tmp_path / name, pixel_max=pixel_max)
    assert np.array_equal(pixels, np.broadcast_to(expected, (20, 30, 3)))
    assert facts[:4] == (30, 20, 1, 3800)
    assert inspect_image(tmp_path / name).max_value == 3800


def test_16_bits_with_alpha_are_laid_on_white(tmp_path):
    values = np.full((4, 6, 4), (1000, 2000, 4000, 65535), dtype=np.uint16)  # BGR and alpha
    values[0] = (60000, 60000, 4000, 0)  # the colour of what cannot be seen counts, for nobody knows what it means
    cv2.imwrite(str(tmp_path / "a.png"), values)
    pixels = read_image(tmp_path / "a.png", pixel_max=4095)
    assert (pixels[0] == 255).all()
    assert np.abs(pixels[1].astype(int) - [249, 125, 62]).max() <= 1


def test_8_bits_that_are_stored_as_16(tmp_path):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    cv2.imwrite(str(tmp_path / "a.png"), values)
    assert np.array_equal(read(tmp_path / "a.png")[..., 0], values)


def test_an_image_of_8_bits_knows_no_range(save):
    path = save(Image.new("L", (4, 3), 77), "a.png")
    assert (read_image(path, pixel_max=100) == 77).all()
    assert inspect_image(path).max_value == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.gif", {}), ("a.webp", {"lossless": True}), ("a.tif", {}), ("a.png", {}), ("a.mpo", {"quality": 95})],
)
def test_the_first_of_several_frames_is_read_and_said(save, name, options):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    path = save(frames[0], name, save_all=True, append_images=frames[1:], **options)
    pixels, facts = decode_image(path)
    assert np.abs(pixels.astype(int) - RED).max() < 6
    assert facts.has_more_frames and inspect_image(path).has_more_frames
    still = save(frames[0], f"still{path.suffix}".replace("mpo", "jpg"))
    assert not inspect_image(still).has_more_frames


def test_a_second_frame_that_is_broken_leaves_the_first(save):
    noise = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (40, 40), dtype=np.uint8)) for n in range(2)]
    path = save(noise[0], "a.gif", save_all=True, append_images=noise[1:])
    whole = read_image(path)
    path.write_bytes(path.read_bytes()[:-600])
    assert np.array_equal(read_image(path), whole)


def test_the_digest_is_that_of_the_bytes(write_image, tmp_path):
    path = write_image(tmp_path / "a.jpg")
    assert inspect_image(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jpg", b"", "an empty file"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "HEIC; install pillow-heif, or convert"),
        ("a.jpg", b"\0\0\0\x18ftypheix\0\0\0\0mif1heix" + bytes(64), "HEIC"),
        ("a.mp4", b"\0\0\0\x18ftypisom" + bytes(64), "a video"),
        ("a.jpg", b"%PDF-1.7", "a PDF"),
        ("a.png", b'<?xml version="1.0"?>\n<svg xmlns="x">', "SVG"),
        ("a.jpg", b"\n<!DOCTYPE html><html><svg></svg>", "an HTML page"),
        ("a.jpg", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("a.npy", b"\x93NUMPY\x01\0", "an array"),
        ("a.dcm", bytes(128) + b"DICM" + bytes(64), "DICOM"),
        ("a.exr", b"v/1\x01" + bytes(64), "floating-point"),
        ("a.jxl", b"\0\0\0\x0cJXL \r\n", "JPEG XL"),
        ("a.jpg", b"PK\x03\x04" + bytes(64), "an archive"),
    ],
)
def test_what_it_is_that_cannot_be_read(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_image(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: the image cannot be read (unknown image format: ")
    assert reason in str(caught.value)


def test_the_preview_of_a_raw_file_is_not_the_photograph(save):
    path = save(Image.new("RGB", (160, 120)), "a.tif").rename(save(Image.new("L", (1, 1)), "b.png").with_name("a.NEF"))
    with pytest.raises(UserError, match="raw file of a camera, of which only the small preview"):
        read_image(path)


PLUGIN = """
from PIL import Image, ImageFile

class Opened(ImageFile.ImageFile):
    format = "HEIF"
    def _open(self):
        self._mode, self._size = "RGB", (2, 1)
        self.tile = [("raw", (0, 0, 2, 1), 12, ("RGB", 0, 1))]

def register_heif_opener():
    Image.register_open("HEIF", Opened, lambda head: head[4:12] == b"ftypheic")
"""


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    (tmp_path / "pillow_heif.py").write_text(PLUGIN)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes([1, 2, 3, 4, 5, 6]))
    code = f"import sys; sys.path[:0] = ['.', {str(tmp_path)!r}]; from dl.images import read_image; "
    code += f"print(read_image({str(tmp_path / 'a.heic')!r}).tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[[[1, 2, 3], [4, 5, 6]]]"
