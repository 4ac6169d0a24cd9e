"""Pretrained speech encoders as features: HuBERT, wav2vec 2.0, and the encoder of Whisper, through transformers.

Hsu et al., "HuBERT", TASLP 29 (2021); Baevski et al., "wav2vec 2.0", NeurIPS 2020; Radford et al., "Robust speech recognition via
large-scale weak supervision" (2023). Their attention looks at everything it is given, so sound is given in pieces that lie on a fixed grid:
4 s, with 1 s on both sides. So streaming gives what reading the whole file gives, and waits for 5 s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.errors import UserError
from datasets_toolkit.media.audio_reader import RATE
from mggtalk.modules.speech import FRAME_RATE, STEP, SpeechEncoder, ramp

PIECE, MARGIN = 4 * RATE, RATE
"""Samples of a piece, and of what is heard before and after it."""
KINDS = ("hubert", "wav2vec2", "whisper")
_SILENT = (-70.0, -60.0)  # dB below full scale, of a frame


@dataclass(eq=False)
class PieceMemory:
    """Samples that are not yet used up; the first ``MARGIN`` of them lie before the next piece."""

    samples: Float[Tensor, " n"] = field(default_factory=lambda: torch.zeros(MARGIN))


class PretrainedSpeech(SpeechEncoder):
    """Hidden states of a pretrained encoder, 50 a second; 0 where nothing is heard.

    Args:
        source: local folder of the model, or its name on the Hugging Face hub; fetched when it is first used.
        layer: whose states are taken, -1 the last.
        channels: of its states.

    Raises:
        UserError: transformers is not installed, or the model cannot be loaded, or is none of the three kinds (when it is first used).
    """

    ahead = (PIECE + MARGIN) / RATE

    def __init__(self, source: str, layer: int = -1, channels: int = 768) -> None:
        super().__init__()
        self.source, self.layer, self.channels = source, layer, channels
        self._loaded: list[Any] = []  # in a list, so that its weights are no part of a checkpoint

    def new_memory(self) -> PieceMemory:
        """Of nothing heard yet."""
        return PieceMemory()

    def forward(self, samples: Float[Tensor, " n"], memory: PieceMemory | None = None) -> Float[Tensor, "t c"]:
        """As every encoder; the sound is done when 5 s of silence have followed it."""
        memory = memory or self.new_memory()
        whole, found = torch.cat([memory.samples.to(samples), samples]), []
        while len(whole) >= PIECE + 2 * MARGIN:
            found.append(self._piece(whole[: PIECE + 2 * MARGIN]))
            whole = whole[PIECE:]
        memory.samples = whole.clone()
        return torch.cat(found) if found else samples.new_zeros(0, self.channels)

    @torch.no_grad()
    def _piece(self, samples: Float[Tensor, " n"]) -> Float[Tensor, "t c"]:
        network, extractor, kind = self._network(samples.device)
        given = extractor(samples.cpu().numpy(), sampling_rate=RATE, return_tensors="pt")
        states = network(next(iter(given.values())).to(samples.device), output_hidden_states=True).hidden_states[self.layer][0]
        count = (PIECE + 2 * MARGIN) // STEP
        # Whisper always fills 30 s; the others lose a frame at the end, and theirs are centred 12.5 ms after the beginning
        states = states[:count] if kind == "whisper" else torch.cat([states, states[-1:].expand(max(count - len(states), 0), -1)])
        if states.shape[1] != self.channels:
            raise UserError(f"{self.source}: its states have {states.shape[1]} channels; set channels to that")
        first = MARGIN // STEP
        inner = samples[MARGIN:-MARGIN].reshape(-1, STEP)
        loud = 20 * inner.square().mean(1).sqrt().clamp_min(1e-6).log10()
        return states[first : first + len(inner)].float() * ramp(loud, *_SILENT)[:, None]

    def _network(self, device: torch.device) -> tuple[Any, Any, str]:
        if not self._loaded:
            self._loaded += _load(self.source)
        self._loaded[0].to(device)
        return self._loaded[0], self._loaded[1], self._loaded[2]


def _load(source: str) -> list[Any]:
    try:
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
    except ModuleNotFoundError:
        raise UserError(f"{source}: pretrained speech encoders need transformers: pip install 'mggtalk[networks]'") from None
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type not in KINDS:
            raise UserError(f"{source}: is a {config.model_type}, not one of {', '.join(KINDS)}")
        network = AutoModel.from_pretrained(source, use_safetensors=True if Path(source).is_dir() else None)
        extractor = AutoFeatureExtractor.from_pretrained(source)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{source}: cannot be loaded ({first}); give a local folder of a speech encoder, or its name on the hub") from error
    network = network.get_encoder() if config.model_type == "whisper" else network
    return [network.eval().requires_grad_(False), extractor, config.model_type]


assert PIECE % STEP == MARGIN % STEP == 0 and RATE // STEP == FRAME_RATE
