"""What is heard, fifty times a second: log-mel energies about the speaker's own level and spectrum, how voiced, how loud.

Letters: l the log-mel energies of a frame (decimal logarithms of power, 80 bands), a their mean over the bands, w how far the frame counts
as sound at all, g how far it counts as speech. Level and spectrum are running means over what was heard so far, the noise is the least a so
far, which may rise by ``RISE`` a second; so everything is causal:
    level = mean of a, shape = mean of l - a, feature = g max(l - level - shape + FLOOR, 0) / 2.
A feature of silence is exactly 0, whatever was heard before. Front end: Radford et al., "Robust speech recognition via large-scale weak
supervision" (2023), as in :mod:`datasets_toolkit.annotators.audio_features`; voicing: the peak of the normalised autocorrelation, Boersma,
"Accurate short-term analysis of the fundamental frequency", IFA Proceedings 17 (1993).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.signal import lfilter
from torch import Tensor, nn

from datasets_toolkit.annotators.audio_features import BANDS, WINDOW, mel_filters
from datasets_toolkit.media.audio_reader import RATE
from datasets_toolkit.schema import FloatArray

FRAME_RATE = 50
"""Frames of features a second."""
STEP = RATE // FRAME_RATE
SPAN = 2 * STEP
"""Samples that a frame is made of: those within 20 ms of its time."""
CHANNELS = BANDS + 3
"""Mel energies, voicing, loudness, and g itself."""
FLOOR = 3.0
"""Decades of power below the speaker's mean where nothing more is told apart."""
RISE = 0.2
"""Decades a second by which the noise is taken to grow if nothing shows it: a pause in speech shows it."""
_QUIET, _GATE, _ABOVE = (-8.3, -7.5), (-3.0, -2.0), (0.3, 0.8)  # a; a - level; a above the noise
_NOISE = -6.0  # before anything is heard, at most
_LEVEL = -3.0  # a mean level before anything is heard, and for how many frames it counts
_LEVEL_COUNT, _SHAPE_COUNT, _MEMORY = 5.0, 100.0, 1 - 1 / (20 * FRAME_RATE)
_PITCH = (70.0, 400.0)  # Hz
_VOICED_BELOW = 1500.0  # Hz: higher up, breath hides the harmonics
_EMPTY = 1e-5  # energy that a window is taken to have at least: silence is not voiced


@dataclass(eq=False)
class Memory:
    """What has been heard so far: sums of weights, levels and shapes (82), the noise, and samples that wait for the next frame."""

    sums: FloatArray = field(default_factory=lambda: np.zeros(BANDS + 2))
    noise: float = _NOISE
    samples: Float[Tensor, " n"] = field(default_factory=lambda: torch.zeros(STEP))


class SpeechEncoder(nn.Module, ABC):
    """Makes features of samples, 50 frames a second; frame i belongs to the time i / 50 s. Features of silence are 0.

    Attributes:
        channels: of the features.
        ahead: seconds of sound after a frame that its features need.
    """

    channels: int
    ahead: float

    @abstractmethod
    def new_memory(self) -> Any:
        """Of nothing heard yet, for :meth:`forward`."""

    @abstractmethod
    def forward(self, samples: Float[Tensor, " n"], memory: Any = None) -> Float[Tensor, "t c"]:
        """Features of all frames whose samples are there; what is left waits in the memory.

        Args:
            samples: mono, 16 kHz, in [-1, 1]; the next ones after those that the memory has seen.
            memory: of the sound so far; changed. By default the sound begins here, after silence.
        """


class LogMel(SpeechEncoder):
    """The features by default: 80 normalised log-mel energies, voicing and loudness, 50 frames a second, from 20 ms around each.

    Nothing is trained; ``shape`` is the mean spectrum of speech, which the running mean begins with.
    """

    channels, ahead = CHANNELS, STEP / RATE
    shape: Float[Tensor, " 80"]
    filters: Float[Tensor, "201 80"]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.from_numpy(mel_filters().T.copy()).float(), persistent=False)
        self.register_buffer("shape", torch.from_numpy(_speech_shape()).float(), persistent=False)

    def new_memory(self) -> Memory:
        """Of nothing heard yet."""
        return Memory()

    def forward(self, samples: Float[Tensor, " n"], memory: Memory | None = None) -> Float[Tensor, "t 83"]:
        """As every encoder."""
        memory = memory or self.new_memory()
        whole = torch.cat([memory.samples.to(samples), samples])
        count = max((len(whole) - SPAN) // STEP + 1, 0)
        memory.samples = whole[count * STEP :].clone()
        if not count:
            return samples.new_zeros(0, CHANNELS)
        frames = whole[: (count - 1) * STEP + SPAN].unfold(0, SPAN, STEP)
        return self._normalised(self.energies(frames), voicing(frames), memory)

    def energies(self, frames: Float[Tensor, "t 640"]) -> Float[Tensor, "t 80"]:
        """Log-mel energies, the mean of two windows of 25 ms, 10 ms apart."""
        window = torch.hann_window(WINDOW, device=frames.device)
        first = (SPAN - WINDOW) // 2 - STEP // 4
        both = [torch.fft.rfft(frames[:, k : k + WINDOW] * window).abs().square() @ self.filters for k in (first, first + STEP // 2)]
        return torch.stack(both).clamp_min(1e-10).log10().mean(0)

    def _normalised(self, energies: Float[Tensor, "t 80"], voiced: Float[Tensor, " t"], memory: Memory) -> Float[Tensor, "t 83"]:
        level = energies.mean(1, keepdim=True)
        sound = ramp(level, *_QUIET) * ramp(level - _noise(level, memory), *_ABOVE)
        parts = torch.cat([sound, sound * level, sound * (energies - level)], 1).double().cpu().numpy()
        sums, last = lfilter([1.0], [1.0, -_MEMORY], parts, axis=0, zi=_MEMORY * memory.sums[None])
        memory.sums = last[0] / _MEMORY
        weight, total, shapes = (torch.from_numpy(part.copy()).to(energies) for part in np.split(sums, [1, 2], axis=1))
        mean = (total + _LEVEL_COUNT * _LEVEL) / (weight + _LEVEL_COUNT)
        shape = (shapes + _SHAPE_COUNT * self.shape) / (weight + _SHAPE_COUNT)
        speech = sound * ramp(level - mean, *_GATE)
        features = (energies - mean - shape + FLOOR).clamp_min(0) / 2
        loudness = (level - mean + FLOOR).clamp_min(0) / 2
        return speech * torch.cat([features, voiced[:, None], loudness, torch.ones_like(loudness)], 1)


def _noise(level: Float[Tensor, "t 1"], memory: Memory) -> Float[Tensor, "t 1"]:
    """The least level so far, each raised by what it may have risen since; goes on from the memory."""
    rises = RISE / FRAME_RATE * torch.arange(1, len(level) + 1, dtype=torch.float64)[:, None]
    noise = (torch.cummin(level.double().cpu() - rises, 0).values.clamp(max=memory.noise) + rises).to(level)
    memory.noise = float(noise[-1])
    return noise


def voicing(frames: Float[Tensor, "t 640"]) -> Float[Tensor, " t"]:
    """How periodic 40 ms are at the pitch of a voice: the largest autocorrelation for periods of 2.5 to 14 ms, in [0, 1]."""
    window = torch.hann_window(frames.shape[1], device=frames.device)
    points = 2 * frames.shape[1]
    power = torch.fft.rfft(frames * window, points).abs().square()
    power[:, int(_VOICED_BELOW * points / RATE) :] = 0
    taper = torch.fft.irfft(torch.fft.rfft(window, points).abs().square())
    first, last = (int(RATE / pitch) for pitch in reversed(_PITCH))
    found = torch.fft.irfft(power)[:, : last + 1] / (taper / taper[0])[: last + 1]
    return (found[:, first:].amax(1) / (found[:, 0] + _EMPTY)).clamp(0, 1)


def ramp(values: Tensor, low: float, high: float) -> Tensor:
    """0 up to ``low``, 1 from ``high`` on, linear between."""
    return ((values - low) / (high - low)).clamp(0, 1)


def _speech_shape() -> FloatArray:
    """The long-term mean spectrum of speech in the mel bands, about its mean: level up to 500 Hz, then 10 dB less for each octave.

    After Byrne et al., "An international comparison of long-term average speech spectra", JASA 96 (1994), whose curve is close to it.
    """
    filters = mel_filters()
    centres = (filters * np.arange(filters.shape[1])).sum(1) / filters.sum(1) * RATE / WINDOW
    shape = -np.maximum(np.log2(centres / 500), 0.0) * 0.9
    return np.asarray(shape - shape.mean())


def between(values: Float[Tensor, "t c"], places: Float[Tensor, " u"]) -> Float[Tensor, "u c"]:
    """Rows at broken places, linearly; zeros beyond both ends."""
    padded = torch.nn.functional.pad(values, (0, 0, 1, 1))
    places = (places + 1).clamp(0, len(padded) - 1)
    before = places.floor().long().clamp(max=len(padded) - 2)
    return torch.lerp(padded[before], padded[before + 1], (places - before)[:, None].to(values))
