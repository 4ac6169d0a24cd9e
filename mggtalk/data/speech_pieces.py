"""Pieces of speech for training: cut, stretched and tilted at random; noise without speech; whole clips for validation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from datasets_toolkit.annotators.audio_features import BANDS
from mggtalk.data.pairs import random_stream
from mggtalk.data.speech_clips import SpeechClip
from mggtalk.metrics.speech import opening_of
from mggtalk.modules.audio import REACH
from mggtalk.modules.speech import CHANNELS, RATE, SpeechEncoder, between
from mggtalk.types import TensorRecord


@dataclass(frozen=True, kw_only=True)
class SpeechBatch(TensorRecord):
    """Pieces of clips; features reach ``REACH`` frames beyond both ends of the expressions."""

    features: Float[Tensor, "*b u c"]
    expression: Float[Tensor, "*b t e"]
    opening: Float[Tensor, "*b t"]
    points: Float[Tensor, "*b 4 3"]
    style: Float[Tensor, "*b s"]  # as measured
    still: Bool[Tensor, "*b"]  # noise without speech, in which a face is at rest
    rows: Int[Tensor, "*b 2"]  # of index.parquet: first and last of the clip


@dataclass(frozen=True, kw_only=True)
class SpeechAugment:
    """What may be heard otherwise without anything said otherwise. For log-mel features; others are only stretched.

    Attributes:
        tempo: largest change, a share.
        tract: largest change of the vocal tract's length, a share: it moves the spectrum along the bands (Jaitly and Hinton, 2013).
        tilt: deviation of random level, slope and curvature of the spectrum, in half decades: microphones and rooms.
    """

    tempo: float = 0.15
    tract: float = 0.12
    tilt: float = 0.15

    def __call__(self, features: Float[Tensor, "t c"], generator: np.random.Generator) -> Float[Tensor, "t c"]:
        """Features as another person in another room would have made them."""
        if features.shape[1] != CHANNELS:
            return features
        energies, speech = features[:, :BANDS], features[:, -1:]
        place = np.arange(BANDS) * (1 + generator.uniform(-self.tract, self.tract))
        energies = between(energies.T, torch.from_numpy(place.clip(0, BANDS - 1))).T
        x = torch.linspace(-1, 1, BANDS)
        level, slope, bend, wave, phase = generator.normal(size=5).tolist()
        curve = level + slope * x + bend * (x * x - 1 / 3) + 0.6 * wave * torch.cos(2 * torch.pi * x + 6 * phase)
        return torch.cat([(energies + self.tilt * curve * speech).clamp_min(0), features[:, BANDS:]], 1)


def piece(clip: SpeechClip, frames: int, augment: SpeechAugment, generator: np.random.Generator) -> SpeechBatch:
    """``frames`` frames of a clip, from anywhere in it; what lies beyond its ends is silence before it and after it.

    A clip that is shorter than that is followed by silence, in which the face is at rest.
    """
    step = 1 + generator.uniform(-augment.tempo, augment.tempo)
    first = generator.uniform(0, max(len(clip.opening) - frames * step, 0))
    inner = torch.from_numpy(first + step * np.arange(frames))
    outer = torch.from_numpy(first + step * np.arange(-REACH, frames + REACH))
    rest = opening_of(clip.points)
    return SpeechBatch(
        features=augment(between(clip.features, outer), generator),
        expression=between(clip.expression, inner),
        opening=between(clip.opening[:, None] - rest, inner)[:, 0] + rest,
        points=clip.points,
        style=clip.style,
        still=torch.tensor(not clip.name),
        rows=clip.rows,
    )


def noise_clips(clip: SpeechClip, encoder: SpeechEncoder, count: int = 64, seconds: float = 2.5) -> list[SpeechClip]:
    """Steady noise of rooms, fans and hum, from 65 to 30 dB below full scale: sound without speech, in which the face stays at rest.

    Args:
        clip: whose face it is.
        encoder: of the features.
        count: of clips, all short: only while noise is new may it be speech.
        seconds: of each.
    """
    found = []
    for number in range(count):
        generator = random_stream(number)
        spectrum = np.fft.rfft(generator.normal(size=round(seconds * RATE)))
        hertz = np.fft.rfftfreq(round(seconds * RATE), 1 / RATE)
        noise = np.fft.irfft(spectrum * (hertz + 50) ** -generator.uniform(0, 1))
        noise += (
            generator.uniform(0, 1) * noise.std() * np.sin(2 * np.pi * generator.choice([50, 60, 100, 120]) * np.arange(len(noise)) / RATE)
        )
        noise *= 10 ** (generator.uniform(-65, -30) / 20) / noise.std()
        features = encoder(torch.from_numpy(noise).float())
        zeros = torch.zeros(len(features), clip.expression.shape[1])
        rest, unheard = opening_of(clip.points).expand(len(features)).clone(), torch.zeros(len(features))
        found.append(replace(clip, features=features, expression=zeros, opening=rest, bilabial=unheard, name="", person=""))
    return found


def whole(clip: SpeechClip) -> SpeechBatch:
    """A clip as a batch of one."""
    features = torch.nn.functional.pad(clip.features, (0, 0, REACH, REACH))
    names = ("expression", "opening", "points", "style", "rows")
    return SpeechBatch(
        features=features[None], still=torch.zeros(1, dtype=torch.bool), **{name: getattr(clip, name)[None] for name in names}
    )
