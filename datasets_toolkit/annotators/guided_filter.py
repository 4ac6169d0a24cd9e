"""The guided filter: smooth an image along the edges of another (He et al., "Guided image filtering", TPAMI 2013).

Around each pixel the result is a line ``a g + b`` in the guide g. The lines vary slowly, so they may be found on a coarse grid and
applied at full resolution (He and Sun, "Fast guided filter", 2015).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from datasets_toolkit.annotators.base import Map


def guided_lines(guide: Map, images: Sequence[Map] | Map, radius: int, smoothness: float) -> list[Map]:
    """For each image (h x w) the slope a and the offset b (h x w each), one after the other, of its line in the guide (h x w).

    Args:
        guide: about [0, 1].
        images: of the guide's size, a list or one array.
        radius: of the square windows, pixels.
        smoothness: variance of the guide, in its units squared, below which a window counts as flat.
    """

    def mean(values: Map) -> Map:
        return np.asarray(cv2.blur(values, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT), np.float32)

    guide_mean = mean(guide)
    weight = 1 / (mean(guide * guide) - guide_mean * guide_mean + np.float32(smoothness))
    found = []
    for image in images:
        image_mean = mean(image)
        slope = (mean(guide * image) - guide_mean * image_mean) * weight
        found += [mean(slope), mean(image_mean - slope * guide_mean)]
    return found


def guided_filter(guide: Map, image: Map, radius: int, smoothness: float) -> Map:
    """The image (h x w) smoothed along the edges of the guide (h x w); arguments as :func:`guided_lines`."""
    slope, offset = guided_lines(guide, [image], radius, smoothness)
    return np.asarray(slope * guide + offset, np.float32)
