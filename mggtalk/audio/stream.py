"""Speech as it comes, block by block, to expressions and head angles; a stream gives what the whole gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.media.audio_reader import RATE
from datasets_toolkit.schema import BLENDSHAPES, FloatArray
from mggtalk.audio.behaviour import Behaver, Behaviour, Strengths
from mggtalk.modules.audio import REACH, STYLES, AudioNetwork
from mggtalk.modules.speech import FRAME_RATE, LogMel
from mggtalk.types import TensorRecord, cat

LOUDNESS = -2
"""Channel of the log-mel features."""


@dataclass(frozen=True, kw_only=True)
class SpeechControl:
    """How a face talks.

    Attributes:
        mouth_gain: strength of the mouth's movement; 1 is what the network expects on average, which is less than people do, 0 none.
        style: speaking style in standard deviations from the mean speaker, in the order of :data:`mggtalk.modules.audio.STYLES`; missing
            ones are 0.
        strengths: of blinks, gaze and head motion.
        seed: of all that is random.

    Raises:
        ValueError: a strength is negative or not finite, or a style has too many numbers.
    """

    mouth_gain: float = 1.8
    style: tuple[float, ...] = ()
    strengths: Strengths = field(default_factory=Strengths)
    seed: int = 0

    def __post_init__(self) -> None:
        given = {"mouth_gain": self.mouth_gain, **vars(self.strengths)}
        for name, value in given.items():
            if not 0 <= value < np.inf:
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if len(self.style) > len(STYLES) or not np.isfinite(self.style).all():
            raise ValueError(f"a style has at most {len(STYLES)} numbers ({', '.join(STYLES)}), got {self.style}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class Spoken(TensorRecord):
    """Frames of 20 ms: expressions, and yaw, pitch and roll of the head in radians."""

    expression: Float[Tensor, "t e"]
    angles: Float[Tensor, "t 3"]


class SpeechStream:
    """Speech as it comes. A frame can be told once ``network.ahead`` seconds have been heard after it.

    Args:
        network: speech to expression.
        behaviour: blinks, gaze and head motion.
        control: how the face talks.
        rest: expression of the silent face, which the network's are added to; see :meth:`FaceModel.closing`.
    """

    def __init__(self, network: AudioNetwork, behaviour: Behaviour, control: SpeechControl, rest: Float[Tensor, " e"]) -> None:
        self._network, self._gain, self._rest = network, control.mouth_gain, rest
        self._style = torch.zeros(1, len(STYLES))
        self._style[0, : len(control.style)] = torch.tensor(control.style)
        self._behaver = Behaver(behaviour, control.strengths, control.seed)
        self._memory: Any = network.encoder.new_memory()
        self._listener = None if isinstance(network.encoder, LogMel) else LogMel()  # tells the loudness where the encoder does not
        self._hearing = LogMel().new_memory()
        self._features = torch.zeros(REACH, network.encoder.channels)
        self._loud: Float[Tensor, " n"] = torch.zeros(0)
        self._given = self._heard = 0  # frames that left, samples that came

    @torch.inference_mode()
    def push(self, samples: Float[Tensor, " n"]) -> Spoken:
        """The next samples (mono, 16 kHz, in [-1, 1]); the frames that can be told by now, often none."""
        self._heard += len(samples)
        return self._told(samples)

    @torch.inference_mode()
    def finish(self) -> Spoken:
        """The rest of the frames, up to the end of the sound; silence follows it."""
        left = -(-self._heard * FRAME_RATE // RATE) - self._given
        rest = self._told(torch.zeros(int((self._network.ahead + 2) * RATE)))
        return rest[:left]

    def _told(self, samples: Float[Tensor, " n"]) -> Spoken:
        network = self._network
        features = network.encoder(samples, self._memory)
        loud = features if self._listener is None else self._listener(samples, self._hearing)
        self._loud = torch.cat([self._loud, loud[:, LOUDNESS]])
        self._features = torch.cat([self._features, features])
        count = len(self._features) - 2 * REACH
        if count <= 0:
            return Spoken(expression=torch.zeros(0, network.deviation.numel()), angles=torch.zeros(0, 3))
        expression = self._rest + self._gain * network(self._features[None], self._style)[0]
        now, self._loud = self._loud[:count], self._loud[count:]
        self._features = self._features[count:].clone()
        scores, turns = self._behaver(now.double().numpy())
        size = len(BLENDSHAPES)
        shown = (expression[:, :size] + torch.from_numpy(scores).to(expression)).clamp(0, 1)
        self._given += count
        return Spoken(expression=torch.cat([shown, expression[:, size:]], 1), angles=torch.from_numpy(turns).float())


def resampled(parts: Iterable[Spoken], step: float) -> Iterator[Spoken]:
    """Frames at ``step`` frames from each other, from the first one on, linearly between; the last ones hold for what no frame follows."""
    held: Spoken | None = None
    begin, row, total = 0, 0, 0  # frame that ``held`` begins with, next row, frames that came
    for part in parts:
        held = part if held is None else cat([held, part])
        total = begin + len(held.angles)
        last = int(np.ceil((total - 1) / step)) if total else 0  # rows before it lie between frames
        if last > row:
            yield _row_values(held, step * np.arange(row, last, dtype=np.float64) - begin)
            row = last
        keep = max(int(step * row) - begin, 0)
        held, begin = held[keep:], begin + min(keep, len(held.angles))
    last = int(np.ceil(total / step - 1e-9))
    if held is not None and total and last > row:
        yield _row_values(held, step * np.arange(row, last, dtype=np.float64) - begin)


def _row_values(held: Spoken, places: FloatArray) -> Spoken:
    before = np.clip(np.floor(places), 0, len(held.angles) - 1).astype(np.int64)
    after = np.minimum(before + 1, len(held.angles) - 1)
    share = torch.from_numpy(np.clip(places - before, 0, 1)).float()[:, None]
    return Spoken(**{name: torch.lerp(getattr(held, name)[before], getattr(held, name)[after], share) for name in ("expression", "angles")})
