"""Which phone is said when, in English speech without a transcript: its words are recognised, then aligned.

For development and evaluation: whether lips close when p, b or m is heard. PocketSphinx (Huggins-Daines et al., "PocketSphinx: a free,
real-time continuous speech recognition system for hand-held devices", ICASSP 2006) recognises words with the acoustic and the language
model for US English that its package holds, aligns them to the sound, and then their phones within the words.

Words are often wrong, phones less often: what is taken for another word mostly sounds like it. Of other languages it makes English; how far
a clip is to be believed says :func:`understood`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from datasets_toolkit.errors import UserError
from datasets_toolkit.media.audio_reader import RATE

BILABIAL = ("P", "B", "M")
"""Phones for which the lips close."""
SILENCE = "SIL"
"""The phone of pauses."""
UNDERSTOOD = -2.5
"""Mean likelihood of the phones of a clip from which its words are believed."""
LONGEST = 0.3
"""Seconds; a consonant that lasts longer was not heard right."""
_HOPS = 100  # frames of the recogniser a second
_MARGIN = RATE // 5  # silence before and after, where words may begin and end
_BEAM = 1e-64  # of the alignment: nothing that fits the words is given up


@dataclass(frozen=True, kw_only=True)
class Phone:
    """A phone.

    Attributes:
        name: in ARPAbet, without stress, as in CMUdict; :data:`SILENCE` in pauses.
        start: seconds from the first sample on.
        end: as ``start``.
        likelihood: mean logarithm, over its frames, of its likelihood against that of the sound that fits the frame best; at most 0.
    """

    name: str
    start: float
    end: float
    likelihood: float


class PhoneAligner:
    """Words and phones of speech; the models are loaded once.

    Raises:
        UserError: PocketSphinx is not installed.
    """

    def __init__(self) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise UserError(f"phones: the package pocketsphinx cannot be imported ({error}); pip install 'mggtalk[phones]'") from error
        self._recogniser = Decoder(loglevel="FATAL")
        # without the best path through the lattice, which may end in words that are too short for their phones
        self._aligner = Decoder(loglevel="FATAL", lm=None, bestpath=False, beam=_BEAM, pbeam=_BEAM, wbeam=_BEAM)
        # scores are logarithms to a base close to 1, in steps of 1024 of them
        self._unit = math.log(self._aligner.config["logbase"]) * 1024

    def words(self, samples: npt.NDArray[np.int16]) -> list[str]:
        """What is said, as CMUdict spells it; empty where nothing is heard.

        Args:
            samples: mono, 16 kHz.
        """
        _decode(self._recogniser, samples)
        spoken = [segment.word.split("(")[0] for segment in self._recogniser.seg() or ()]
        return [word for word in spoken if not word.startswith(("<", "["))]

    def __call__(self, samples: npt.NDArray[np.int16], words: Sequence[str] | None = None) -> list[Phone]:
        """The phones, in time, one after the other; none where nothing is said.

        Args:
            samples: mono, 16 kHz.
            words: what is said, if it is known: in lower case, without punctuation.

        Raises:
            UserError: a word is not in the dictionary, or the words do not fit the sound.
        """
        words = self.words(samples) if words is None else words
        if not words:
            return []
        unknown = [word for word in words if self._aligner.lookup_word(word) is None]
        if unknown:
            raise UserError(f"phones: the dictionary has no {unknown[0]!r}; spell it as CMUdict does, or leave it out")
        try:
            self._aligner.set_align_text(" ".join(words))
            _decode(self._aligner, samples)
            self._aligner.set_alignment()
            _decode(self._aligner, samples)
        except RuntimeError as error:
            raise UserError(f"phones: the words do not fit the sound ({error}); give those that are said, or none") from error
        return list(self._phones())

    def _phones(self) -> Iterator[Phone]:
        before = _MARGIN / RATE
        for word in self._aligner.get_alignment():
            for phone in word:
                start, end = (frame / _HOPS - before for frame in (phone.start, phone.start + phone.duration))
                yield Phone(name=phone.name, start=start, end=end, likelihood=self._unit * phone.score / phone.duration)


def understood(phones: Sequence[Phone]) -> bool:
    """Whether the phones fit the sound so well that they may be believed: English, not too noisy, a single voice."""
    heard = [phone.likelihood for phone in phones if phone.name != SILENCE]
    return bool(heard) and float(np.mean(heard)) >= UNDERSTOOD


def closures(phones: Sequence[Phone]) -> list[Phone]:
    """Those for which lips close, if the phones are to be believed; else none."""
    if not understood(phones):
        return []
    return [phone for phone in phones if phone.name in BILABIAL and phone.end - phone.start <= LONGEST]


def _decode(decoder: Any, samples: npt.NDArray[np.int16]) -> None:
    padded = np.pad(samples.astype("<i2", copy=False), _MARGIN)
    decoder.reinit_feat()  # what was heard before leaves no trace
    decoder.start_utt()
    decoder.process_raw(padded.tobytes(), full_utt=True)
    decoder.end_utt()
