"""Images, parsing maps, mattes and normals as JPEG and PNG. Why these formats: the table in ``docs/shards.md``."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from datasets_toolkit.schema import ByteImage, Region
from datasets_toolkit.shards.codec_checks import Buffer, CodecError, check_size, require
from datasets_toolkit.shards.png_codec import decode_png, encode_png

QUALITY = 95
"""Of JPEG images and normals."""
UNKNOWN_LENGTH = 0.5
"""A decoded normal shorter than this is unknown: unknown pixels are stored as length 0, known ones as length 1."""

_ROWS = 64  # normals are scaled in blocks that stay in the processor's cache
_COMPONENT = np.arange(256, dtype=np.float32) / np.float32(127.5) - 1


def encode_image(image: ByteImage) -> bytes:
    """RGB (h x w x 3) as a JPEG of quality 95, 4:2:0."""
    return _encode_jpeg(image, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)


def decode_image(data: Buffer) -> ByteImage:
    """An RGB image (h x w x 3), by simplejpeg: the same pixels as from OpenCV and Pillow, sooner, and it reports more damage.

    Raises:
        CodecError: not a JPEG, damaged, cut short, or larger than is allowed.
    """
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        check_size(height, width)
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))
    except ValueError as error:  # what simplejpeg raises, also for damage that libjpeg would only warn of
        raise CodecError(f"not a sound JPEG ({error}); copy or build it again") from error


def encode_parsing(labels: npt.NDArray[np.uint8]) -> bytes:
    """Labels (h x w, :class:`Region`) as an 8-bit palette PNG, so that any viewer shows the regions in colours."""
    require(labels, "uint8", (None, None))
    if labels.size and labels.max() > max(Region):
        raise ValueError(f"label {labels.max()} is no region; the last one is {max(Region)}")
    return encode_png(labels, _palette())


def decode_parsing(data: Buffer, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
    """Labels (h x w), in ``out`` if that has this size.

    Raises:
        CodecError: not an 8-bit PNG, damaged, larger than is allowed, or with a value that is no :class:`Region`.
    """
    labels = decode_png(data, out)
    if labels.max() > max(Region):
        raise CodecError(f"label {labels.max()} is no region, the last one is {max(Region)}; build it again")
    return labels


def encode_matte(matte: npt.NDArray[np.uint8]) -> bytes:
    """Alpha x 255 (h x w) as an 8-bit grey PNG."""
    return encode_png(matte)


def decode_matte(data: Buffer, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
    """Alpha x 255 (h x w), in ``out`` if that has this size.

    Raises:
        CodecError: not an 8-bit PNG, damaged, or larger than is allowed.
    """
    return decode_png(data, out)


def encode_normals(normals: npt.NDArray[np.float32]) -> bytes:
    """Unit normals (h x w x 3, OpenCV camera frame; zero where unknown) as a JPEG of 127.5 (n + 1), quality 95, 4:4:4."""
    require(normals, "float32", (None, None, 3))
    stored = cv2.convertScaleAbs(normals, alpha=127.5, beta=127.5)  # rounds, and stays within 0 and 255
    return _encode_jpeg(np.asarray(stored, np.uint8), cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)


def decode_normals(data: Buffer, known: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.float32]:
    """Unit normals (h x w x 3), zero where unknown.

    Args:
        data: of :func:`encode_normals`.
        known: h x w, such as ``depth > 0``. Without it a normal is unknown where the decoded vector is shorter than
            :data:`UNKNOWN_LENGTH`, which can err by a pixel at the outline.

    Raises:
        CodecError: as :func:`decode_image`, or ``known`` has another size.
    """
    stored = decode_image(data)
    if known is not None and known.shape != stored.shape[:2]:
        raise CodecError(f"normals of {stored.shape[1]} x {stored.shape[0]} pixels beside labels of another size; build them again")
    normals = np.empty(stored.shape, np.float32)
    for row in range(0, len(stored), _ROWS):
        rows = slice(row, row + _ROWS)
        _unit(stored[rows], None if known is None else known[rows], normals[rows])
    return normals


def _unit(stored: ByteImage, known: npt.NDArray[np.bool_] | None, normals: npt.NDArray[np.float32]) -> None:
    vectors = cv2.LUT(stored, _COMPONENT)
    length = np.asarray(cv2.transform(vectors * vectors, np.ones((1, 3), np.float32)))  # the sum over the channels
    np.sqrt(np.maximum(length, 1e-6, out=length), out=length)
    np.divide(length > UNKNOWN_LENGTH if known is None else known, length, out=length)
    np.multiply(vectors, cv2.merge([length, length, length]), out=normals)


def _encode_jpeg(image: ByteImage, sampling: int) -> bytes:
    """By OpenCV, whose encoder keeps to the exact cosine transform: 0.7 dB better than simplejpeg's at the same quality."""
    require(image, "uint8", (None, None, 3))
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes())


@lru_cache(maxsize=1)
def _palette() -> bytes:
    from datasets_toolkit.annotators.pictures import COLOURS  # needed by writers only, and it brings the annotators along

    return bytes(value for region in Region for value in COLOURS[region])
