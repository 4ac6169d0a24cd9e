"""Sound for the driver, a few seconds at a time, whatever the file; and what is told of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.media.audio_reader import RATE, Samples, stream_audio

log = logging.getLogger(__name__)
BLOCK = 10.0
"""Seconds that are held at once."""
SILENT = 10 ** (-60 / 20)
"""Amplitude, full scale 1, that a file exceeds somewhere if it is not silent."""
_CLIPPED, _FULL = 1e-3, 32767


def read_blocks(path: Path, seconds: float = BLOCK) -> Iterator[Float[Tensor, " _"]]:
    """The first sound track of a file in [-1, 1], mono, 16 kHz, from its first sample on; silence and clipping are told in the log.

    Raises:
        MediaError: the file is missing, unreadable, or has no sound.
    """
    held: list[Samples] = []
    count = loudest = clipped = total = 0
    for samples, _ in stream_audio(path):
        size = np.abs(samples.astype(np.int32))
        loudest, clipped, total = max(loudest, int(size.max(initial=0))), clipped + int((size >= _FULL).sum()), total + len(samples)
        held.append(samples)
        count += len(samples)
        if count >= seconds * RATE:
            yield _floats(held)
            held, count = [], 0
    if count:
        yield _floats(held)
    if loudest < SILENT * _FULL:
        log.warning("%s: is silent, so the mouth stays closed; check that this is the right file", path)
    elif clipped > _CLIPPED * total:
        log.warning(
            "%s: %.1f %% of the samples are clipped; the mouth may follow worse, record it at a lower level", path, 100 * clipped / total
        )


def sound_start(path: Path) -> float:
    """When the first sample of a file sounds, seconds on its clock.

    Raises:
        MediaError: as :func:`read_blocks`.
    """
    return next(iter(stream_audio(path))).start


def _floats(held: list[Samples]) -> Float[Tensor, " n"]:
    return torch.from_numpy(np.concatenate(held).astype(np.float32) / 32768)
