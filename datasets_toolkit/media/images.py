"""Reading still images as a viewer shows them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.opening import check_input

MAX_PIXELS = 100_000_000  # larger images are refused before they are decoded: 300 MB as RGB
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # no format that starts another program or follows links


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Read an image file as uint8 RGB (h w 3).

    The EXIF orientation is applied, transparency is laid over white, 16-bit values are scaled to 8 bits, and of an animation the first
    picture is taken.

    Raises:
        MediaError: the file is missing, empty, damaged, not an image, or larger than :data:`MAX_PIXELS`.
    """
    path = Path(path)
    check_input(path, "image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            image = Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    except UnidentifiedImageError as error:
        raise MediaError(f"{path}: not an image that can be read; give one of {', '.join(_FORMATS)}") from error
    except Exception as error:  # Pillow's header parsers raise whatever a damaged file makes them meet
        raise MediaError(f"{path}: this image cannot be opened ({error}); it may be damaged, save it again") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise _too_large(path, f"{image.width} x {image.height} pixels")
        try:
            return _rgb8(ImageOps.exif_transpose(image))
        except Exception as error:  # as above, for the decoders
            raise MediaError(f"{path}: this image cannot be decoded ({error}); it may be damaged or cut short, save it again") from error


def _too_large(path: Path, size: str) -> MediaError:
    return MediaError(f"{path}: image too large ({size}, the limit is {MAX_PIXELS}); scale it down first")


def _rgb8(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed white; convert them to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow gives as I;16 or I
        grey = np.clip(np.asarray(image), 0, 65535).astype(np.float64) / 257.0
        return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))
