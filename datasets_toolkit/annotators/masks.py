"""Parts of pictures that are worth working on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def around(mask: npt.NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """The rows and columns that hold a mask (h x w), with a margin of so many pixels inside the picture; all of them if it is empty."""
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return _widened(rows, margin, mask.shape[0]), _widened(columns, margin, mask.shape[1])


def _widened(places: npt.NDArray[np.intp], margin: int, size: int) -> slice:
    return slice(max(int(places[0]) - margin, 0), min(int(places[-1]) + margin + 1, size))
