"""Pictures that people look at: contact sheets and annotation panels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.annotators.portrait import Annotations
from datasets_toolkit.errors import MediaError
from datasets_toolkit.local_files import write_whole
from datasets_toolkit.schema import ByteImage, Region

COLOURS: dict[Region, tuple[int, int, int]] = {
    Region.BACKGROUND: (0, 0, 0),
    Region.SKIN: (238, 190, 160),
    Region.LEFT_BROW: (120, 80, 40),
    Region.RIGHT_BROW: (150, 105, 60),
    Region.LEFT_EYE: (60, 120, 220),
    Region.RIGHT_EYE: (90, 160, 240),
    Region.NOSE: (250, 215, 110),
    Region.UPPER_LIP: (220, 60, 90),
    Region.LOWER_LIP: (245, 110, 130),
    Region.MOUTH: (120, 10, 40),
    Region.HAIR: (130, 90, 190),
    Region.LEFT_EAR: (80, 200, 120),
    Region.RIGHT_EAR: (40, 160, 90),
    Region.NECK: (250, 150, 70),
    Region.TORSO: (60, 150, 170),
}


def write_png(path: Path, image: ByteImage) -> None:
    """Write an RGB image (h w 3); the file appears whole or not at all.

    Raises:
        MediaError: the folder does not exist or cannot be written to.
    """
    encoded = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
    try:
        write_whole(path, encoded)
    except OSError as error:
        raise MediaError(f"{path}: cannot be written ({error.strerror})") from error


def contact_sheet(rows: Sequence[Sequence[ByteImage]], height: int = 192) -> ByteImage:
    """Images in rows, each scaled to ``height`` pixels, on white."""
    strips = [np.hstack([_scaled(image, height) for image in row]) for row in rows]
    width = max(strip.shape[1] for strip in strips)
    return np.vstack([np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=255) for strip in strips])


def spread(count: int, shown: int) -> list[int]:
    """Indices of at most ``shown`` of ``count`` frames, evenly spread, first and last included."""
    return sorted({int(index) for index in np.linspace(0, count - 1, min(shown, count)).round()})


def _scaled(image: ByteImage, height: int) -> ByteImage:
    width = max(round(image.shape[1] * height / image.shape[0]), 1)
    flags = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=flags), np.uint8)


def annotation_panel(crop: FaceCrop, annotations: Annotations) -> list[ByteImage]:
    """Pictures (s s 3) of a crop and its labels: landmarks, parsing, matte, depth and normals."""
    landmarks = crop.image.copy()
    for x, y in np.round(crop.landmarks[:, :2] * 16).astype(int):
        cv2.circle(landmarks, (int(x), int(y)), 16, (0, 255, 120), -1, cv2.LINE_AA, shift=4)
    palette = np.array([COLOURS[region] for region in Region], np.uint8)
    parsing = cv2.addWeighted(palette[annotations.parsing.labels], 0.6, crop.image, 0.4, 0)
    matte = (annotations.parsing.matte * 255).round().astype(np.uint8)
    head = annotations.depth > 0
    near = crop.head_to_camera[2, 3] - 10
    depth = (np.where(head, 1 - (annotations.depth - near) / 20, 0).clip(0, 1) * 255).astype(np.uint8)
    normals = ((annotations.normals * [1, -1, -1] * 0.5 + 0.5) * 255 * head[..., None]).astype(np.uint8)
    grey = [np.repeat(image[..., None], 3, 2) for image in (matte, depth)]
    return [crop.image, landmarks, np.asarray(parsing, np.uint8), grey[0], grey[1], normals]
