import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from config.errors import UserError
from dl.images import inspect_image, read_image

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
    with pytest.raises(UserError, match=f"{path}: the image is 40 x 30, its annotation says 80 x 60"):
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
    with pytest.raises(UserError, match=r"a\.jpg: the image cannot be read \(no known image format"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"b\.jpg: no such image file"):
        read_image(tmp_path / "b.jpg")


def test_broken_metadata_around_sound_pixels_is_read(tmp_path, encoded):
    raw = encoded(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01")
    (tmp_path / "a.jpg").write_bytes(raw)
    assert read(tmp_path / "a.jpg").shape == (8, 8, 3)


def test_a_large_picture_is_no_bomb(save):
    path = save(Image.new("1", (20000, 5000)), "a.png")  # 100 megapixels: Pillow's own limit is 89
    with Image.open(path) as image:
        assert image.size == (20000, 5000)
