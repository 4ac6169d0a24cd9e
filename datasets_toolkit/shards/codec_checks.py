"""What every decoder checks before it believes its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

from datasets_toolkit.errors import UserError

Buffer = Union[bytes, memoryview]  # noqa: UP007 (evaluated by Python 3.10's typing)
"""Bytes to decode, which may be a part of a larger piece that was read."""
MAX_SIDE = 4096
"""Pixels a side of the largest map that is decoded; a header that says more is refused before memory is asked for."""


class CodecError(UserError):
    """Bytes of a data set that are not what their column holds."""


def check_size(height: int, width: int) -> None:
    """Raise unless a map of that size may be decoded.

    Raises:
        CodecError: empty, or larger than :data:`MAX_SIDE` pixels a side.
    """
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise CodecError(f"its header says {width} x {height} pixels, and 1 to {MAX_SIDE} a side are allowed; it is damaged or not ours")


def require(array: Any, dtype: str, shape: Sequence[int | None]) -> None:
    """Raise unless an array to encode has that dtype and shape (None: any length).

    Raises:
        ValueError: a mistake of the calling code.
    """
    fits = len(array.shape) == len(shape) and all(want in (None, have) for have, want in zip(array.shape, shape, strict=False))
    if array.dtype != dtype or not fits:
        raise ValueError(f"expected {dtype} of shape {tuple(shape)}, got {array.dtype} of shape {array.shape}")
