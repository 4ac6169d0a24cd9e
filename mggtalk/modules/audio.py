"""From speech to expression: features of speech, a temporal basis, and a small convolutional network beside it.

Letters: x features of a frame, 0 in silence; n(x) what the front makes of them; B_k windows over 25 frames (0.5 s); s the speaking style; g
how surely a phone is said for which the lips close, whose weights V and c are set once (:mod:`mggtalk.data.sealing`):
    e = (1 - g) (1 + S s) (sum_k W_k (B_k * n(x)) + network(n(x))),   g = min(max(c + sum_k V_k (B_k * n(x)), 0), 1).
Nothing else has a bias and every function maps 0 to 0, so the expression of silence is 0, the resting face with its lips closed, exactly.
The linear part is what little data can teach (ridge regression is its closed form); the network begins as 0 and corrects it. What is
expected of a mouth is hardly ever closed, for closures are short and seldom certain; hence g.

A frame's expression depends on the features of ``REACH`` frames before and after it, which is what streaming has to wait for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.fft import dct
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu

from datasets_toolkit.annotators.audio_features import BANDS, WINDOW, mel_filters
from datasets_toolkit.media.audio_reader import RATE
from mggtalk.modules.speech import FRAME_RATE, LogMel, SpeechEncoder

DILATIONS = (1, 2, 3, 6)
REACH = sum(DILATIONS)
"""Frames on both sides that an expression depends on."""
WINDOWS = 5
"""Of the temporal basis: a Hann window times cosines of 0 to 4 half turns."""
STYLES = ("opening", "width", "smile", "tempo")
"""What a speaking style says, in standard deviations from the mean of the speakers in training; see :mod:`mggtalk.data.speech_clips`."""
_GROUPS = ((150.0, 1100.0), (700.0, 3000.0), (2000.0, 7500.0))  # Hz: where the first formant lies, the second, and friction
_CEPSTRA = 5

Layer = TypeVar("Layer", nn.Conv1d, nn.Linear)


class Front(nn.Module, ABC):
    """What is made of features before a temporal model: values with deviation 1 over speech, and 0 in silence.

    Attributes:
        made: how many values.
    """

    made: int

    @abstractmethod
    def fit(self, features: Float[Tensor, "t c"]) -> None:
        """Set what standardises them, once, from the features of all training clips."""

    @abstractmethod
    def forward(self, features: Float[Tensor, "*b t c"]) -> Float[Tensor, "*b t n"]:
        """The values."""


class MelFront(Front):
    """What a temporal model makes much of with little data: coarse bands, centres of gravity where formants lie, products of cepstra.

    The centre of gravity of 150 to 1100 Hz follows the first formant, which rises as the jaw falls; products let a linear model tell a loud
    open vowel from a loud closed one. Values are standardised with the mean and standard deviation over speech, which are set once.
    """

    made = BANDS // 4 + 2 + len(_GROUPS) + 1 + _CEPSTRA * (_CEPSTRA + 1) // 2
    mean: Float[Tensor, " k"]
    deviation: Float[Tensor, " k"]
    pitch: Float[Tensor, " 80"]
    groups: Float[Tensor, "80 g"]
    cosines: Float[Tensor, "20 q"]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(BANDS // 4 + 2 + len(_GROUPS)))
        self.register_buffer("deviation", torch.ones(BANDS // 4 + 2 + len(_GROUPS)))
        filters = mel_filters()
        centres = (filters * np.arange(filters.shape[1])).sum(1) / filters.sum(1) * RATE / WINDOW
        inside = np.stack([(centres > low) & (centres < high) for low, high in _GROUPS], 1).astype(np.float32)
        cosines = dct(np.eye(BANDS // 4), norm="ortho", axis=1)[:, :_CEPSTRA] / 2
        for name, values in (("pitch", np.log(centres)), ("groups", inside), ("cosines", cosines)):
            self.register_buffer(name, torch.from_numpy(values).float(), persistent=False)

    def fit(self, features: Float[Tensor, "t c"]) -> None:
        """Set mean and deviation to those over the speech in ``features``."""
        values, speech = self._values(features), features[:, -1] > 0.5
        self.mean.copy_(values[speech].mean(0))
        self.deviation.copy_(values[speech].std(0).clamp_min(1e-3))

    def forward(self, features: Float[Tensor, "*b t c"]) -> Float[Tensor, "*b t n"]:
        """Standardised values, 0 in silence."""
        speech = features[..., -1:]
        values = (self._values(features) - speech * self.mean) / self.deviation
        cepstra = values[..., : BANDS // 4] @ self.cosines
        row, column = torch.triu_indices(_CEPSTRA, _CEPSTRA, device=features.device)
        return torch.cat([values, speech, cepstra[..., row] * cepstra[..., column]], -1)

    def _values(self, features: Tensor) -> Tensor:
        energies, rest, speech = features[..., :BANDS], features[..., BANDS:-1], features[..., -1:]
        power = 10**energies
        weight = power @ self.groups
        middle = (self.pitch @ self.groups) / self.groups.sum(0)
        gravity = ((power * self.pitch) @ self.groups / weight - middle) * speech
        return torch.cat([energies.unflatten(-1, (BANDS // 4, 4)).mean(-1), rest, gravity], -1)


class PlainFront(Front):
    """For features of a pretrained network: its most telling directions, standardised.

    Args:
        given: channels of the features.
        made: directions that are kept.
    """

    directions: Float[Tensor, "c n"]
    mean: Float[Tensor, " c"]

    def __init__(self, given: int = 768, made: int = 64) -> None:
        super().__init__()
        self.made = made
        self.register_buffer("directions", torch.eye(given, made))
        self.register_buffer("mean", torch.zeros(given))

    def fit(self, features: Float[Tensor, "t c"]) -> None:
        """Set the directions to the principal ones over the speech in ``features``, and scale them to deviation 1."""
        spoken = features[features.abs().sum(1) > 0]
        self.mean.copy_(spoken.mean(0))
        _, spread, axes = torch.linalg.svd(spoken - self.mean, full_matrices=False)
        kept = min(self.made, len(axes))
        deviation = (spread[:kept] / math.sqrt(len(spoken))).clamp_min(1e-6)
        self.directions.zero_()
        self.directions[:, :kept] = axes[:kept].T / deviation

    def forward(self, features: Float[Tensor, "*b t c"]) -> Float[Tensor, "*b t n"]:
        """Standardised directions; a frame of zeros, which is silence, stays 0."""
        there = (features.abs().sum(-1, keepdim=True) > 0).to(features)
        return ((features - self.mean) * there) @ self.directions


class AudioNetwork(nn.Module):
    """Expressions of a talking face from features of its speech.

    Args:
        encoder: what makes features of samples: :class:`mggtalk.modules.speech.LogMel`, or
            :class:`mggtalk.modules.speech_encoders.PretrainedSpeech`. Its weights are no part of this network's.
        front: what is made of them; by default that of the encoder.
        expression: length of an expression.
        hidden: channels of the network beside the linear part; 0 leaves it out.
        dropout: of the values that both are given.
        seal: whether lips are closed where p, b or m is heard; without it g is 0.
    """

    deviation: Float[Tensor, " e"]
    seal: Float[Tensor, " m"] | None
    seal_bias: Float[Tensor, ""]
    windows: Float[Tensor, "k 1 w"]
    style_mean: Float[Tensor, " s"]
    style_deviation: Float[Tensor, " s"]

    def __init__(
        self,
        encoder: SpeechEncoder | None = None,
        front: Front | None = None,
        expression: int = 84,
        hidden: int = 32,
        dropout: float = 0.5,
        seal: bool = False,
    ) -> None:
        super().__init__()
        self.encoder: SpeechEncoder = encoder or LogMel()
        self.front: Front = front or (MelFront() if isinstance(self.encoder, LogMel) else PlainFront(self.encoder.channels))
        values = self.front.made
        self.dropout = nn.Dropout(dropout)
        self.linear = _zero(nn.Conv1d(values * WINDOWS, expression, 1, bias=False))
        self.begin = nn.Conv1d(values, hidden, 1, bias=False) if hidden else None
        self.blocks = nn.ModuleList(_Block(hidden, dilation, dropout) for dilation in (DILATIONS if hidden else ()))
        self.end = _zero(nn.Conv1d(hidden, expression, 1, bias=False)) if hidden else None
        self.style = _zero(nn.Linear(len(STYLES), expression, bias=False))
        self.register_buffer("deviation", torch.ones(expression))
        self.register_buffer("seal", torch.zeros(values * WINDOWS) if seal else None)
        self.register_buffer("seal_bias", torch.zeros(()) if seal else None)
        self.register_buffer("windows", temporal_basis()[:, None], persistent=False)
        self.register_buffer("style_mean", torch.zeros(len(STYLES)))
        self.register_buffer("style_deviation", torch.ones(len(STYLES)))

    @property
    def ahead(self) -> float:
        """Seconds of sound after a frame that its expression waits for."""
        return REACH / FRAME_RATE + self.encoder.ahead

    def forward(self, features: Float[Tensor, "b u c"], style: Float[Tensor, "b s"]) -> Float[Tensor, "b t e"]:
        """Expressions of all but the first and the last ``REACH`` frames.

        Args:
            features: of the encoder.
            style: how the person speaks; 0 is the mean of the speakers in training.
        """
        values = self.front(features)
        design = self.design(values)
        found = self.linear(self.dropout(design.mT))
        if self.begin is not None and self.end is not None:
            hidden = self.dropout(gelu(self.begin(values.mT)))
            for block in self.blocks:
                hidden = block(hidden)
            found = found + self.end(hidden)
        strength = (1 + self.style(style).clamp(-0.8, 2.0))[:, :, None]
        found = (found * strength * self.deviation[:, None]).mT
        return found if self.seal is None else (1 - self.sealed(design)[..., None]) * found

    def sealed(self, design: Float[Tensor, "b t m"]) -> Float[Tensor, "b t"]:
        """How surely the lips are closed, g; 0 without a seal."""
        return design.new_zeros(design.shape[:2]) if self.seal is None else (design @ self.seal + self.seal_bias).clamp(0, 1)

    def design(self, values: Float[Tensor, "b u n"]) -> Float[Tensor, "b t m"]:
        """The linear part's regressors: the values of 25 frames in the temporal basis."""
        batch, length, channels = values.shape
        rows = values.mT.reshape(batch * channels, 1, length)
        return conv1d(rows, self.windows).reshape(batch, channels * WINDOWS, -1).mT

    def standard_style(self, measured: Float[Tensor, "*b s"]) -> Float[Tensor, "*b s"]:
        """A measured style in standard deviations of the speakers in training, at most 2.5 of them."""
        return ((measured - self.style_mean) / self.style_deviation).clamp(-2.5, 2.5)


class _Block(nn.Module):
    def __init__(self, channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.wide, self.narrow = (
            nn.Conv1d(channels, channels, 3, dilation=dilation, bias=False),
            nn.Conv1d(channels, channels, 1, bias=False),
        )
        self.dropout, self.dilation = nn.Dropout(dropout), dilation

    def forward(self, values: Tensor) -> Tensor:
        return values[..., self.dilation : -self.dilation] + self.dropout(self.narrow(gelu(self.wide(values))))


def temporal_basis(count: int = WINDOWS, reach: int = REACH) -> Float[Tensor, "k w"]:
    """Hann windows of ``2 reach + 1`` frames times cosines of 0 to ``count - 1`` half turns, of length 1."""
    times = torch.linspace(0, 1, 2 * reach + 1, dtype=torch.float64)
    window = torch.hann_window(2 * reach + 3, periodic=False, dtype=torch.float64)[1:-1]
    waves = torch.stack([window * torch.cos(math.pi * k * times) for k in range(count)])
    return (waves / waves.norm(dim=1, keepdim=True)).float()


def _zero(layer: Layer) -> Layer:
    nn.init.zeros_(layer.weight)
    return layer
