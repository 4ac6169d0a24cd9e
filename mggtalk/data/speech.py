"""The data of training on speech: random pieces of clips in batches that can be gone on with; whole clips for validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from lightning import LightningDataModule

from datasets_toolkit.annotators.phones import PhoneAligner
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.shards.storage import Storage
from mggtalk.data.pairs import random_stream
from mggtalk.data.speech_clips import SpeechClip, read_clips
from mggtalk.data.speech_pieces import SpeechAugment, SpeechBatch, noise_clips, piece, whole
from mggtalk.geometry.face_model import FaceModel
from mggtalk.modules.speech import FRAME_RATE, LogMel, SpeechEncoder
from mggtalk.types import stack

NOISE = 0.1
"""Share of pieces that hold noise without speech."""


class SpeechLoader:
    """Batches of random pieces, each a function of seed, number and place alone; goes on where ``done`` says.

    Args:
        clips: what pieces are cut of; longer ones are chosen more often.
        size: pieces in a batch.
        frames: of a piece.
        batches: in an epoch.
        augment: what is done to the sound.
        seed: of everything random.
        noise: clips without speech, a share of :data:`NOISE` of all pieces.
    """

    batch_sampler = None  # Lightning asks for it, as torch's DataLoader has one

    def __init__(
        self,
        clips: Sequence[SpeechClip],
        size: int,
        frames: int,
        batches: int,
        augment: SpeechAugment,
        seed: int,
        noise: Sequence[SpeechClip] = (),
    ) -> None:
        self.size, self.frames, self.batches, self.augment, self.seed = size, frames, batches, augment, seed
        self.clips, self.done = [*clips, *noise], 0
        lengths = np.array([len(clip.opening) for clip in clips], np.float64)
        share = NOISE if noise else 0.0
        self._shares = np.concatenate([(1 - share) * lengths / lengths.sum(), np.full(len(noise), share / max(len(noise), 1))])

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[SpeechBatch]:
        for _ in range(self.done % self.batches, self.batches):
            generator = random_stream(self.seed, self.done)
            chosen = generator.choice(len(self.clips), self.size, p=self._shares)
            batch = stack([piece(self.clips[number], self.frames, self.augment, generator) for number in chosen])
            self.done += 1
            yield batch


class WholeClips:
    """Every clip once, in order, each a batch of one."""

    batch_sampler = None

    def __init__(self, clips: Sequence[SpeechClip]) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[SpeechBatch]:
        return map(whole, self.clips)


class SpeechDataModule(LightningDataModule):
    """Pieces of speech with what the face does, read from a built data set; no picture is read. All clips' features lie in memory.

    Args:
        root: the data set, a folder or an fsspec address.
        batch_size: pieces in a batch.
        seconds: of a piece.
        batches: in an epoch.
        agreement: clips are left out of training whose sound foretells their mouth with a smaller correlation
            (:func:`mggtalk.data.agreement.agreeing`); -1 takes all.
        augment: what is done to the sound in training.
        seed: of order and augmentation.
        phones: whether p, b and m are looked for in English clips, which a network's seal is learnt from; needs PocketSphinx
            (``pip install 'mggtalk[phones]'``).
        storage_options: for fsspec.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        seconds: float = 2.0,
        batches: int = 100,
        agreement: float = 0.3,
        augment: SpeechAugment | None = None,
        seed: int = 0,
        phones: bool = False,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if min(batch_size, batches) < 1 or seconds * FRAME_RATE < 2:
            raise ValueError(f"batch_size and batches are at least 1, seconds at least 0.04; not {batch_size}, {batches}, {seconds}")
        self.root, self.batch_size, self.batches, self.agreement, self.seed = root, batch_size, batches, agreement, seed
        self.frames, self.augment = round(seconds * FRAME_RATE), augment or SpeechAugment()
        self.reader = ShardReader(Storage(root, **(storage_options or {})))
        self.face_model = FaceModel()
        self.encoder: SpeechEncoder = LogMel()
        self.phones = phones
        self._clips: dict[str, list[SpeechClip]] = {}
        self._loader: SpeechLoader | None = None

    def clips(self, split: str) -> list[SpeechClip]:
        """The clips of a split that can be heard; read once.

        Raises:
            UserError: there are none, the data set cannot be read, or PocketSphinx is missing.
        """
        if split not in self._clips:
            aligner = PhoneAligner() if self.phones and split == "train" else None
            self._clips[split] = read_clips(self.reader, split, self.encoder, self.face_model, aligner)
        return self._clips[split]

    def use(self, split: str, clips: Sequence[SpeechClip]) -> None:
        """Take these clips for a split from here on."""
        self._clips[split] = list(clips)

    def train_dataloader(self) -> SpeechLoader:
        """Random pieces, from where the cursor stands."""
        if self._loader is None:
            clips = self.clips("train")
            noise = noise_clips(clips[0], self.encoder)
            self._loader = SpeechLoader(clips, self.batch_size, self.frames, self.batches, self.augment, self.seed, noise)
        return self._loader

    def val_dataloader(self) -> WholeClips:
        """Every clip once, whole."""
        return WholeClips(self.clips("val"))

    def test_dataloader(self) -> WholeClips:
        """As validation, of the test split."""
        return WholeClips(self.clips("test"))

    def state_dict(self) -> dict[str, Any]:
        """How many batches training has been given."""
        return {"done": self._loader.done if self._loader else 0, "seed": self.seed}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on after them, with the checkpoint's seed."""
        self.seed = int(state_dict["seed"])
        self._loader = None
        self.train_dataloader().done = int(state_dict["done"])
