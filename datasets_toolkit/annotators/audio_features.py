"""What is heard at each frame: its samples and log-mel energies; and the cepstra that SyncNet listens to. Plain numpy."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import dct, rfft
from scipy.signal import get_window

from datasets_toolkit.annotators.base import AudioAnnotator, FrameSound
from datasets_toolkit.errors import UserError
from datasets_toolkit.media.audio_reader import RATE, Samples, Sound, read_audio, stream_audio
from datasets_toolkit.schema import FloatArray

__all__ = ["RATE", "AudioSlices", "Sound", "log_mel", "mel_filters", "mfcc", "read_audio", "stream_audio"]

WINDOW, HOP, BANDS, HOPS = 400, 160, 80, 4
"""Samples of the window (25 ms) and of the hop (10 ms), mel bands from 0 to 8 kHz, and hops kept for a frame."""
FLOOR = 1e-10
"""Energies are not taken to be smaller, with samples in [-1, 1]: silence has a log-mel of -10."""


class AudioSlices(AudioAnnotator):
    """The default audio annotator: int16 samples up to the next frame, and four log-mel columns, 10 ms apart, from the frame's time on.

    Frame i holds the samples that sound in [time_i, time_{i+1}), each exactly once; the last one lasts as long as the median frame. Where
    the sound begins later or ends earlier than the pictures, a slice is shorter or empty. A mel column is centred on its time; beyond
    both ends of the sound is silence.
    """

    version = 1

    def __call__(self, samples: Samples, times: FloatArray, *, start: float = 0.0) -> list[FrameSound]:
        """One entry for each of ``times`` (t, seconds, increasing), from ``samples`` (mono, 16 kHz) that begin at the time ``start``.

        Raises:
            UserError: times that do not increase or are not finite.
        """
        times = np.asarray(times, np.float64)
        if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            raise UserError("the times of the frames do not increase; probe the source again")
        last = times[-1:] + (np.median(np.diff(times)) if len(times) > 1 else HOPS * HOP / RATE)
        edges = np.round((np.concatenate([times, last]) - start) * RATE).astype(np.int64)
        cuts = np.clip(edges, 0, len(samples))
        mel = log_mel(samples, edges[:-1, None] + HOP * np.arange(HOPS)) if len(times) else np.zeros((0, HOPS, BANDS))
        return [FrameSound(pcm=samples[a:b].copy(), mel=m.astype(np.float16)) for a, b, m in zip(cuts[:-1], cuts[1:], mel, strict=True)]


def log_mel(samples: Samples, centres: npt.NDArray[np.int64], block: int = 4096) -> npt.NDArray[np.float64]:
    """Decimal logarithms of mel energies (... x 80) of Hann windows around the samples numbered ``centres`` (any shape).

    The front end of Radford et al., "Robust speech recognition via large-scale weak supervision" (2023), before its clamping: samples in
    [-1, 1], periodic Hann window of 400, power spectrum, 80 triangles of unit area; beyond both ends of the samples is silence.
    """
    flat = centres.reshape(-1)
    bands = np.empty((len(flat), BANDS))
    window, filters = get_window("hann", WINDOW), mel_filters()
    for first in range(0, len(flat), block):
        pieces = _windows(samples, flat[first : first + block] - WINDOW // 2, WINDOW) / 32768 * window
        bands[first : first + block] = np.square(np.abs(rfft(pieces, axis=-1))) @ filters.T
    return np.log10(np.maximum(bands, FLOOR)).reshape(*centres.shape, BANDS)


def _windows(samples: npt.NDArray[Any], starts: npt.NDArray[np.int64], length: int) -> FloatArray:
    """The samples from each of ``starts`` on (n x length); 0 where there are none."""
    index = starts[:, None] + np.arange(length)
    inside = (index >= 0) & (index < len(samples))
    found = np.zeros(index.shape)
    found[inside] = samples[index[inside]]
    return found


@lru_cache(maxsize=1)
def mel_filters() -> FloatArray:
    """Triangles of unit area (80 x 201) on Slaney's mel scale: linear to 1 kHz, then 27 bands for a factor of 6.4.

    Slaney, "Auditory toolbox" (1998), in the form that speech networks use.
    """
    step, knee, growth = 200 / 3, 1000.0, np.log(6.4) / 27

    def to_hertz(mel: FloatArray) -> FloatArray:
        return np.where(mel < knee / step, mel * step, knee * np.exp(growth * (mel - knee / step)))

    top = knee / step + np.log(RATE / 2 / knee) / growth
    corners = to_hertz(np.linspace(0, top, BANDS + 2))
    bins = np.arange(WINDOW // 2 + 1) * RATE / WINDOW
    rise = (bins - corners[:-2, None]) / np.diff(corners)[:-1, None]
    fall = (corners[2:, None] - bins) / np.diff(corners)[1:, None]
    return np.asarray(np.maximum(np.minimum(rise, fall), 0) * (2 / (corners[2:] - corners[:-2]))[:, None])


def mfcc(samples: Samples) -> FloatArray:
    """13 cepstra a hop (t x 13, 100 a second) as SyncNet listens to them.

    The classical front end (Davis and Mermelstein 1980) as the network was trained with: samples as integers, pre-emphasis 0.97, windows of
    25 ms every 10 ms without tapering, the last one filled with zeros, power spectra of 512 points, 26 triangles on the mel scale from 0
    to 8 kHz with their corners on whole bins, cosine transform, lifter of 22, and the log energy of the window in place of the first.
    """
    points, bands, cepstra, lifter = 512, 26, 13, 22
    emphasised = np.append(samples[:1].astype(np.float64), samples[1:] - 0.97 * samples[:-1].astype(np.float64))
    count = 1 + max(0, -(-(len(samples) - WINDOW) // HOP))
    tiny = np.finfo(np.float64).eps
    power = np.square(np.abs(rfft(_windows(emphasised, HOP * np.arange(count), WINDOW), points))) / points
    energy = power.sum(1)
    logs = np.log(np.maximum(power @ _bin_triangles(bands, points).T, tiny))
    found = dct(logs, type=2, axis=1, norm="ortho")[:, :cepstra] * (1 + lifter / 2 * np.sin(np.pi * np.arange(cepstra) / lifter))
    found[:, 0] = np.log(np.where(energy > 0, energy, tiny))
    return np.asarray(found)


def _bin_triangles(bands: int, points: int) -> FloatArray:
    """Triangles of height 1 (bands x points / 2 + 1) between whole bins, evenly spaced on the mel scale 2595 log10(1 + f / 700)."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    corners = np.floor((points + 1) * hertz / RATE)
    bins = np.arange(points // 2 + 1)
    low, middle, high = (corners[k : k + bands, None] for k in range(3))
    rise, fall = (bins - low) / np.maximum(middle - low, 1), (high - bins) / np.maximum(high - middle, 1)
    return np.where((bins >= low) & (bins < middle), rise, np.where((bins >= middle) & (bins < high), fall, 0.0))
