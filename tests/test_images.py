"""Still images are read as a viewer shows them, and refused in one line otherwise."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from datasets_toolkit.errors import MediaError
from datasets_toolkit.media import images
from datasets_toolkit.media.images import read_image


def picture(height: int = 20, width: int = 30) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


ORIENTATIONS = {  # how a viewer turns the stored picture for each value of the EXIF tag
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(tmp_path / "p.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), ORIENTATIONS[orientation](picture()))


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    alpha = np.random.default_rng(2).integers(0, 256, (20, 30, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([picture(), alpha], axis=-1)).save(tmp_path / "p.png")
    expected = picture() * (alpha / 255) + 255 * (1 - alpha / 255)
    np.testing.assert_allclose(read_image(tmp_path / "p.png"), expected, atol=1.0)


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([255, 0, 0, 0, 0, 200])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "p.png", transparency=0)
    read = read_image(tmp_path / "p.png")
    assert read[0, 0].tolist() == [255, 255, 255]
    assert read[1, 3].tolist() == [0, 0, 200]


def test_grey_and_two_level_images_become_rgb(tmp_path: Path) -> None:
    grey = picture()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=-1))
    Image.fromarray(grey > 128).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png")[..., 1], (grey > 128) * 255)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"p.{suffix}")
    read = read_image(tmp_path / f"p.{suffix}")
    np.testing.assert_array_equal(read[0, :, 0], np.rint(values[0] / 257))
    assert read.dtype == np.uint8
    assert read.shape == (1, 5, 3)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "gif", "ppm"])
def test_common_formats(tmp_path: Path, suffix: str) -> None:
    flat = np.full((16, 16, 3), (180, 60, 20), np.uint8)
    Image.fromarray(flat).save(tmp_path / f"p.{suffix}")
    np.testing.assert_allclose(read_image(tmp_path / f"p.{suffix}"), flat, atol=4)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "p.jpg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "p.jpg").reshape(-1, 3).mean(0), [255, 0, 0], atol=4)


def _giant(path: Path, width: int, height: int) -> None:
    """A PNG whose header announces more than any memory holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (12_000, 14_000), (60_000, 60_000)])
def test_images_over_the_limit_are_refused_before_decoding(tmp_path: Path, width: int, height: int) -> None:
    _giant(tmp_path / "p.png", width, height)
    with pytest.raises(MediaError, match=r"p\.png: image too large .*; scale it down"):
        read_image(tmp_path / "p.png")


def test_the_limit_itself_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture(20, 30)).save(tmp_path / "p.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 600)
    assert read_image(tmp_path / "p.png").shape == (20, 30, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    with pytest.raises(MediaError, match="30 x 20 pixels, the limit is 599"):
        read_image(tmp_path / "p.png")


def test_large_images_within_the_limit_bring_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    Image.new("L", (10_000, 9_900)).save(tmp_path / "p.png")  # above Pillow's own warning level
    assert read_image(tmp_path / "p.png").shape == (9_900, 10_000, 3)
    assert not recwarn.list


def _cut(path: Path) -> None:
    Image.fromarray(picture(200, 200)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:3000])


def _floats(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path, format="TIFF")


BROKEN = {
    "missing": (lambda path: None, "no such image file"),
    "folder": (Path.mkdir, "is a folder"),
    "empty": (Path.touch, "is empty"),
    "text": (lambda path: path.write_text("no image\n" * 30), "not an image"),
    "cut": (_cut, "cannot be decoded"),
    "cut header": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "not an image|cannot be opened"),
    "floats": (_floats, "floating-point"),
    "postscript": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not an image"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_unusable_files_give_one_line_that_names_the_file(tmp_path: Path, case: str) -> None:
    make, reason = BROKEN[case]
    path = tmp_path / "a portrait.png"
    make(path)
    with pytest.raises(MediaError, match=reason) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
