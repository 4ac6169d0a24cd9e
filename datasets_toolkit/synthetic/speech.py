"""Sound that behaves like speech: voiced syllables of changing vowels, pauses, and an envelope that a mouth can follow.

A syllable is a raised cosine in time over the harmonics of a gliding voice, weighted by two resonances (the first two formants of a
vowel: Peterson & Barney, "Control methods used in a study of the vowels", 1952) and a fall of 6 dB an octave.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datasets_toolkit.schema import FloatArray

RATE = 16000
"""Samples a second."""
VOWELS = np.array([[270, 2290], [390, 1990], [530, 1840], [660, 1720], [730, 1090], [570, 840], [440, 1020], [300, 870]], float)
"""First and second formant, Hz."""
LOUDNESS = 9000.0
"""Peak of a full syllable, of 32767."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Sound and what the mouth does with it.

    Attributes:
        samples: n, mono, :data:`RATE` a second.
        envelope: n, loudness of the syllables in [0, 1].
        rounding: n, how rounded the lips are in [0, 1]: for vowels of a low second formant.
    """

    samples: npt.NDArray[np.int16]
    envelope: FloatArray
    rounding: FloatArray

    def at(self, times: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Envelope and rounding at times (t, seconds)."""
        clock = np.arange(len(self.envelope)) / RATE
        return np.interp(times, clock, self.envelope), np.interp(times, clock, self.rounding)


def speak(seconds: float, voice: float, random: np.random.Generator) -> Speech:
    """Speech of ``seconds`` with a fundamental frequency about ``voice`` (Hz)."""
    count = int(np.ceil(round(seconds * RATE, 6)))
    clock = np.arange(count) / RATE
    sound, envelope, rounding = (np.zeros(count) for _ in range(3))
    glide = voice * (1 + 0.06 * np.sin(2 * np.pi * 0.7 * clock + random.uniform(0, 6)) + 0.015 * np.sin(2 * np.pi * 5.1 * clock))
    turns = np.cumsum(glide) / RATE
    start = random.uniform(0.05, 0.25)
    while start < seconds:
        length, loud = random.uniform(0.16, 0.30), random.uniform(0.45, 1.0)
        vowel = VOWELS[random.integers(len(VOWELS))] * random.uniform(0.95, 1.05)
        here = slice(int(start * RATE), min(int((start + 1.25 * length) * RATE), count))
        bump = loud * np.sin(np.pi * (clock[here] - start) / (1.25 * length)).clip(0) ** 2
        sound[here] += bump * _voiced(turns[here], voice, vowel)
        envelope[here] = np.maximum(envelope[here], bump)
        rounding[here] = np.maximum(rounding[here], bump * np.clip((1300 - vowel[1]) / 500, 0, 1))
        start += length + (random.uniform(0.25, 0.6) if random.random() < 0.18 else 0)
    noise = random.normal(0, 12, count)
    samples = np.clip(LOUDNESS * sound + noise, -32768, 32767)
    return Speech(samples=np.rint(samples).astype(np.int16), envelope=envelope.clip(0, 1), rounding=rounding.clip(0, 1))


def _voiced(turns: FloatArray, voice: float, formants: FloatArray) -> FloatArray:
    """Harmonics of a voice whose phase is ``turns`` (n, turns), peak about 1."""
    number = np.arange(1, int(3800 / voice) + 1)
    pitch = number * voice
    gain = sum(1 / (1 + ((pitch - formant) / 90.0) ** 2) for formant in formants) / number + 0.02 / number
    wave = np.sin(2 * np.pi * np.outer(turns, number)) @ gain
    return np.asarray(wave / gain.sum())
