"""Speech for tests: synthetic voices whose mouths follow them, as sound, as clips and as files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets_toolkit.schema import BLENDSHAPES
from datasets_toolkit.synthetic.speech import speak
from mggtalk.data.speech_clips import SpeechClip, shifted
from mggtalk.geometry.face_model import FaceModel
from mggtalk.metrics.speech import OPENING_VERTICES, mouth_opening
from mggtalk.modules.audio import AudioNetwork
from mggtalk.modules.speech import LogMel, SpeechEncoder

JAW = BLENDSHAPES.index("jawOpen")


def voice(seconds: float, seed: int = 0) -> Tensor:
    """Samples in [-1, 1]."""
    return torch.from_numpy(speak(seconds, 120.0 + 15 * (seed % 5), np.random.default_rng(seed)).samples / np.float32(32768))


def voice_clip(seconds: float, seed: int, late: int = 0, person: str = "", encoder: SpeechEncoder | None = None) -> SpeechClip:
    """A jaw that follows the loudness of a voice, ``late`` frames after it."""
    said = speak(seconds, 120.0 + 15 * (seed % 5), np.random.default_rng(seed))
    times = np.arange(int(seconds * 50)) / 50
    face, jaw = FaceModel(), torch.from_numpy(said.at(times - late / 50)[0]).float()
    expression = torch.zeros(len(times), face.expression_size)
    expression[:, JAW] = 0.6 * jaw
    closing = face.closing(face.mean)
    features = (encoder or LogMel())(torch.from_numpy(np.pad(said.samples, (0, 16000)) / np.float32(32768)))[: len(times)]
    return SpeechClip(
        features=features,
        expression=expression,
        opening=mouth_opening(face.mean + face.displacement(closing + expression)),
        bilabial=torch.zeros(len(times)),
        understood=torch.tensor(False),
        points=(face.mean + face.displacement(closing))[list(OPENING_VERTICES)],
        style=torch.tensor([-3.5, -3.8, 0.1, 2.0]),
        rows=torch.tensor([seed, seed]),
        name=f"clip{seed}",
        person=person or f"person{seed}",
    )


def later(clip: SpeechClip, frames: int) -> Tensor:
    """The clip's features, moved."""
    return shifted(clip.features, frames)


def random_network(seed: int = 0, hidden: int = 8) -> AudioNetwork:
    """A network whose every weight is random."""
    torch.manual_seed(seed)
    network = AudioNetwork(hidden=hidden).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    network.front.fit(LogMel()(voice(4.0, seed)))
    return network.requires_grad_(False)


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    """Samples in [-1, 1] (n, or n x channels) as a WAV file."""
    data = np.atleast_2d((np.clip(samples, -1, 1) * 32767).astype("<i2").T).T
    with wave.open(str(path), "wb") as file:
        file.setnchannels(data.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.ascontiguousarray(data).tobytes())
    return path
