"""The offset between lips and sound without a network: the mouth opens when the voice grows louder.

The change of the mouth's opening from frame to frame is correlated with the change of the loudness of the speech band, for every offset.

What it can: find offsets of whole frames within its reach for a person who speaks, is seen from the front, and is the only one heard, from
about 3 s on (measured figures are in docs/annotators.md). What it cannot: tell which of two people speaks, hear speech under music, say
that a dubbed voice belongs to other lips, or resolve less than two frames, for lips lead the voice by an amount that depends on what is
said. Believe an offset only if its confidence is at least 0.1.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, sosfiltfilt

from datasets_toolkit.annotators.base import FaceCrop, SyncAnnotator, SyncScore
from datasets_toolkit.errors import UserError
from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.faces.detection import landmark_bounds
from datasets_toolkit.media.audio_reader import RATE
from datasets_toolkit.schema import FloatArray

FPS = 25
BAND = (300.0, 3400.0)  # Hz, that of telephony: voices, but little of hum and rumble
LOUDNESS = 1 / 3  # exponent of the energy, close to that of perceived loudness (Stevens 1957)
_WINDOW = 0.06  # seconds of sound that a frame's loudness is taken from
_AROUND = 3  # frames around the best offset that do not count as rivals: speech is that slow
_SHORTEST = 50  # frames; in less than two seconds chance fits anything
_QUIET = 1e-4  # root mean square, full scale 1, below which nothing is heard


class EnvelopeSync(SyncAnnotator):
    """The sync annotator without weights.

    ``confidence`` is the best correlation less that of its best rival, in units of the spread that chance gives correlations of so
    many frames (1 / sqrt(frames)); ``distance`` is 1 - the best one.

    Args:
        reach: largest offset that is tried, in frames of 1/25 s.

    Raises:
        UserError: the reach is not larger than 3.
    """

    version = 1

    def __init__(self, reach: int = 15) -> None:
        if reach <= _AROUND:
            raise UserError(f"reach {reach}: give a number of frames above {_AROUND}")
        self.reach = reach

    def __call__(self, crops: Iterable[FaceCrop], audio: npt.NDArray[np.int16]) -> SyncScore:
        """The offset of a clip of at least 50 frames; a shorter or silent one, or lips that never move, have confidence 0.

        Args:
            crops: of one face, 25 a second; only their landmarks are looked at.
            audio: mono, 16 kHz, from the time of the first crop on.
        """
        opening = np.array([mouth_opening(crop.landmarks) for crop in crops])
        voice = speech_band(audio)
        if len(opening) < _SHORTEST or np.ptp(opening) < 1e-6 or not np.sqrt(np.mean(np.square(voice)) if len(voice) else 0) > _QUIET:
            return SyncScore(offset_frames=0, confidence=0.0, distance=float("nan"))
        fits = correlations(opening, voice, self.reach)
        best = int(fits.argmax())
        rivals = np.abs(np.arange(len(fits)) - best) > _AROUND
        margin = float(fits[best] - fits[rivals].max()) * float(np.sqrt(len(opening)))
        return SyncScore(offset_frames=best - self.reach, confidence=margin, distance=float(1 - fits[best]))


def mouth_opening(landmarks: FloatArray) -> float:
    """Distance between the inner lips in units of the face's size, from landmarks (478 x 3)."""
    gap = landmarks[regions.UPPER_INNER_LIP, :2] - landmarks[regions.LOWER_INNER_LIP, :2]
    return float(np.linalg.norm(gap) / landmark_bounds(landmarks)[1])


def speech_band(audio: npt.NDArray[np.int16]) -> FloatArray:
    """The samples in [-1, 1] between 300 and 3400 Hz, without delay."""
    if len(audio) < 64:  # shorter than what the filter pads at both ends
        return np.zeros(len(audio))
    return np.asarray(sosfiltfilt(butter(4, BAND, "bandpass", fs=RATE, output="sos"), audio / 32768.0))


def loudness(voice: FloatArray, times: FloatArray) -> FloatArray:
    """The loudness of 60 ms around ``times`` (any shape, seconds from the first sample on)."""
    total = np.concatenate([[0.0], np.cumsum(np.square(voice))])
    first, last = (np.clip(np.round((times + half) * RATE), 0, len(voice)).astype(int) for half in (-_WINDOW / 2, _WINDOW / 2))
    return np.asarray(np.maximum((total[last] - total[first]) / (_WINDOW * RATE), 0) ** LOUDNESS)


def correlations(opening: FloatArray, voice: FloatArray, reach: int) -> FloatArray:
    """Pearson's correlation (2 reach + 1) of the changes of both, with the sound too early by -reach to reach frames."""
    lips, times = np.gradient(opening), np.arange(len(opening)) / FPS
    found = []
    for early in range(-reach, reach + 1):
        heard = times - early / FPS
        inside = (heard >= _WINDOW) & (heard <= len(voice) / RATE - _WINDOW)  # the ends of the sound are no changes of the voice
        louder = np.gradient(loudness(voice, heard))
        found.append(float(_standard(lips[inside]) @ _standard(louder[inside])) if inside.sum() > reach else 0.0)
    return np.array(found)


def _standard(values: FloatArray) -> FloatArray:
    """Mean 0 and length 1; 0 where nothing changes."""
    centred = values - values.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-12))
