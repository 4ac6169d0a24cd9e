"""What an output says of itself: a record in its metadata that it is synthetic, and a visible mark for those who want one.

The record is JSON in the comment of the file, beside a title for people. Both are tags that every container has a place of its own for:
``©nam`` and ``©cmt`` in .mp4 and .mov, the segment's title and ``COMMENT`` in .mkv, ``tEXt`` chunks in PNG. So players show them, and a
copy into another container takes them along. Whoever wants to can remove them: the record informs, it protects from nothing.

``digitalSourceType`` is the property and the term of the IPTC, https://cv.iptc.org/newscodes/digitalsourcetype/
"""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from datasets_toolkit import __version__
from datasets_toolkit.annotators.weights import fingerprint
from datasets_toolkit.errors import MediaError, UserError
from datasets_toolkit.local_files import write_whole
from datasets_toolkit.media.opening import check_input, import_av
from datasets_toolkit.schema import ByteImage, FloatArray

GENERATOR = "MGGTalk"
TITLE = "Synthetic talking head, made with MGGTalk"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The IPTC's term for media that an algorithm made after learning from sampled content."""
MARK = "AI-generated"
PLATE = 0.75
"""Opacity of the black plate behind the mark: white letters have a contrast of 10 to 1 on a white frame; WCAG 2.2 (1.4.3) asks for 4.5."""
_PNG = b"\x89PNG\r\n\x1a\n"
_SMALLEST = 6  # pixels of the font's em, below which nobody reads it
_GAIN = 1.5  # strokes of small letters are thinner than a pixel and would be grey
_KEYS = {
    "version": "version",
    "model": "model",
    "model_sha256": "model_sha256",
    "digital_source_type": "digitalSourceType",
    "created": "created",
}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The record of an output; ``synthetic`` and ``generator`` are the same in all of them.

    Attributes:
        version: of MGGTalk.
        model: its name; never a path.
        model_sha256: of the file with the weights, hexadecimal; "none" for a model without training.
        digital_source_type: a term of the IPTC.
        created: UTC, ISO 8601.
    """

    version: str
    model: str
    model_sha256: str
    digital_source_type: str
    created: str

    def as_json(self, indent: int | None = None) -> str:
        """The record as JSON in ASCII: no container has trouble with that, and no terminal."""
        fields = {key: getattr(self, name) for name, key in _KEYS.items()}
        return json.dumps({"synthetic": True, "generator": GENERATOR, **fields}, indent=indent)


def provenance_of(model: str, weights: Path | None) -> Provenance:
    """The record of an output that is made now.

    Args:
        model: name of the model.
        weights: the file with its weights, None for a model without training.

    Raises:
        AssetError: the file cannot be read.
    """
    return Provenance(
        version=__version__,
        model=model,
        model_sha256="none" if weights is None else fingerprint(weights),
        digital_source_type=SOURCE_TYPE,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def provenance_tags(record: Provenance) -> dict[str, str]:
    """Tags for :class:`datasets_toolkit.media.video.VideoWriter`."""
    return {"title": TITLE, "comment": record.as_json()}


def write_tagged_png(path: Path, image: ByteImage, record: Provenance) -> None:
    """Write an RGB image (h w 3) with its record; the file appears whole or not at all.

    Raises:
        MediaError: the folder does not exist or cannot be written to.
    """
    chunks, encoded = PngImagePlugin.PngInfo(), io.BytesIO()
    for keyword, text in (("Title", TITLE), ("Software", f"{GENERATOR} {record.version}"), ("Comment", record.as_json())):
        chunks.add_text(keyword, text)
    Image.fromarray(image).save(encoded, "PNG", pnginfo=chunks)
    try:
        write_whole(path, encoded.getvalue())
    except OSError as error:
        raise MediaError(f"{path}: cannot be written ({error.strerror})") from error


def read_provenance(path: Path) -> Provenance | None:
    """The record in a video, a sound file or a PNG, or None where it carries none that can be read.

    None tells nothing about where a file comes from: metadata are lost in most conversions and uploads. Nor is a record signed.

    Raises:
        MediaError: the file is missing, empty, or no media file.
    """
    path = Path(path)
    check_input(path, "media")
    try:
        with path.open("rb") as file:
            png = file.read(len(_PNG)) == _PNG
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror})") from error
    comment = _png_comment(path) if png else _container_comment(path)
    return None if comment is None else _parsed(comment)


def _png_comment(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            found = image.info.get("Comment")
            if found is None and isinstance(image, PngImagePlugin.PngImageFile):
                found = image.text.get("Comment")  # decodes the picture: some programs write texts behind it
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path}: not a readable PNG ({error}); copy or download it again") from error
    return None if found is None else str(found)


def _container_comment(path: Path) -> str | None:
    av = import_av()
    try:
        with av.open(os.path.abspath(path), metadata_errors="replace") as container:
            tags = {key.lower(): str(value) for key, value in container.metadata.items()}  # Matroska's are in capitals
    except av.FFmpegError as error:
        raise MediaError(f"{path}: not a readable media file ({error.strerror}); give a video or a PNG") from error
    return tags.get("comment")


def _parsed(comment: str) -> Provenance | None:
    """The record in a comment; whatever else a comment may be is none."""
    try:
        found = json.loads(comment)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("synthetic") is not True or found.get("generator") != GENERATOR:
        return None
    fields: dict[str, Any] = {name: found.get(key) for name, key in _KEYS.items()}
    return Provenance(**fields) if all(isinstance(value, str) for value in fields.values()) else None


def mark(frame: ByteImage, text: str = MARK, *, font: Path | None = None) -> ByteImage:
    """A copy of a frame with a visible mark: white letters on a dark, half transparent plate in the lower right corner.

    Letters are a twentieth of the shorter side high, at least 11 pixels, smaller where the text would not fit into a quarter of the frame.

    Args:
        frame: RGB (h w 3).
        text: one line.
        font: TrueType or OpenType file; by default Pillow's own, which has the letters of English only.

    Raises:
        UserError: there is nothing to draw, the font lacks a character or cannot be read, or the text is too long for the frame.
    """
    height, width = frame.shape[:2]
    letters = _letters(text, height, width, font)
    margin = min(height, width) // 40
    corner = np.s_[height - margin - letters.shape[0] : height - margin, width - margin - letters.shape[1] : width - margin]
    marked = frame.copy()
    plate = (1 - PLATE) * marked[corner]
    marked[corner] = np.rint(plate + letters[..., None] * (255 - plate))
    return marked


@lru_cache(maxsize=16)
def _letters(text: str, height: int, width: int, font: Path | None) -> FloatArray:
    """How much of each pixel of the plate letters cover, in [0, 1], for a frame of this size."""
    if not text.strip() or not text.isprintable():
        raise UserError(f"mark {text!r}: not one line of letters; give another text")
    side = min(height, width)
    margins = 2 * (side // 40)
    for size in range(max(11, side // 20), _SMALLEST - 1, -1):
        drawn = _drawn(text, _font(size, font))
        if drawn.shape[0] <= height - margins and drawn.shape[1] <= width - margins and 4 * drawn.size < height * width:
            drawn.setflags(write=False)
            return drawn
    raise UserError(f"mark {text!r}: too long for a frame of {width} x {height} pixels; shorten it, or make larger frames")


def _font(size: int, font: Path | None) -> ImageFont.FreeTypeFont:
    try:
        found = ImageFont.load_default(size) if font is None else ImageFont.truetype(str(font), size)
    except (OSError, ImportError) as error:
        raise UserError(f"{font or 'the font of the mark'}: cannot be used ({error}); give a TrueType or OpenType file") from error
    return cast(ImageFont.FreeTypeFont, found)  # what both give where Pillow has FreeType; without it they raise


def _drawn(text: str, font: ImageFont.FreeTypeFont) -> FloatArray:
    unknown = bytes(font.getmask("\uffff"))  # a code point that is no character: it looks as every missing one does
    missing = sorted({letter for letter in text if not letter.isspace() and bytes(font.getmask(letter)) == unknown})
    if missing:
        raise UserError(f"mark {text!r}: the font {font.getname()[0]} has no {', '.join(missing)}; give a font that has")
    left, top, right, bottom = font.getbbox(text)
    pad = math.ceil(font.size / 3)
    image = Image.new("L", (math.ceil(right - left) + 2 * pad, math.ceil(bottom - top) + 2 * pad))
    ImageDraw.Draw(image).text((pad - left, pad - top), text, fill=255, font=font)
    return np.minimum(np.asarray(image, np.float64) * (_GAIN / 255), 1)
