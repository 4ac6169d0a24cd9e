"""The sound of a source beside its pictures: there or not, how loud, and the part of it that a clip needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.audio_reader import RATE, Samples, read_audio

__all__ = ["RATE", "Samples", "SourceSound", "level", "read_sound"]

SILENCE = -100.0
"""Level that stands for silence, dB."""


@dataclass(frozen=True, eq=False)
class SourceSound:
    """Attributes: samples (n, 16 kHz mono) and the time of the first one, seconds on the clock of the source."""

    samples: Samples
    start: float

    @property
    def end(self) -> float:
        """When it is over, seconds."""
        return self.start + len(self.samples) / RATE

    def between(self, start: float, end: float) -> SourceSound:
        """What is heard from one time (seconds) to another; nothing is made up where there is no sound."""
        first, last = (int(np.clip(round((time - self.start) * RATE), 0, len(self.samples))) for time in (start, end))
        return SourceSound(self.samples[first : max(first, last)], self.start + first / RATE)

    def filled(self, start: float, end: float) -> Samples:
        """The samples from one time (seconds) to another, silence where there is no sound."""
        part = self.between(start, end)
        result = np.zeros(max(round((end - start) * RATE), 0), np.int16)
        first = min(max(round((part.start - start) * RATE), 0), len(result))
        count = min(len(part.samples), len(result) - first)
        result[first : first + count] = part.samples[:count]
        return result


def read_sound(path: Path) -> SourceSound | None:
    """All sound of a video, None where it has none that can be decoded; damage is told by a warning, as ``read_audio`` does."""
    try:
        sound = read_audio(path)
    except MediaError:
        return None
    return SourceSound(sound.samples, sound.start) if len(sound.samples) else None


def level(samples: Samples) -> float:
    """Loudness of samples, dB below full scale (RMS); :data:`SILENCE` at the least, NaN where there are none."""
    if not len(samples):
        return float("nan")
    power = float(np.mean(np.square(samples.astype(np.float64) / 32768)))
    return max(10 * float(np.log10(power)), SILENCE) if power > 0 else SILENCE
