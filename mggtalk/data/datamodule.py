"""The data of training as a LightningDataModule; its arguments are the schema of the configuration."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from lightning import LightningDataModule
from torch import Tensor

from datasets_toolkit.shards.reader import CachedStorage
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.shards.storage import Storage
from mggtalk.data.augment import PairTransform
from mggtalk.data.batches import EveryPair, Share, TrainBatches
from mggtalk.data.loader import SOURCE_LABELS, TARGET_LABELS, PairLoader, Workers
from mggtalk.data.packed import PackedBatch, PairBatch, unpack
from mggtalk.data.pairs import FrameTable, PairPlan, PairRule, cross_pairs, frame_table, narrowed, tails
from mggtalk.geometry.face_model import FaceModel

log = logging.getLogger(__name__)
JUDGES = 0
"""Seed of the pairs that validation and tests look at: the same for runs with other seeds, or they could not be compared."""


class PairDataModule(LightningDataModule):
    """Pairs of frames for training, validation and testing, as :class:`mggtalk.data.packed.PairBatch` on the device.

    Train with ``Trainer(use_distributed_sampler=False)`` (other samplers would be refused anyway: the loader is none of torch's).
    Checkpoints hold where training stands; a run resumed with them, at any world size that divides ``batch_size`` and with any
    number of workers, sees the batches that the unbroken run would have seen.

    Args:
        root: the data set, a folder or an fsspec address.
        batch_size: pairs in a global batch, over all processes.
        transform: of training pairs; validation keeps its size and window and nothing random.
        rule: which frames of a clip are a pair, in training and validation.
        pairs: in a training epoch; by default one for each frame that has a partner.
        exponent: of the persons' shares (:class:`mggtalk.data.pairs.PairPlan`).
        val_pairs: pairs of one clip for validation and testing; by default one for each frame that has a partner.
        cross_pairs: pairs across persons for validation and testing, in a second loader; 0 leaves it out.
        source_labels: which labels are read for sources.
        target_labels: which labels are read for targets.
        seed: of order and augmentation in training; a checkpoint's seed has precedence. Validation pairs do not depend on it.
        workers: the processes that read.
        cache: folder for local copies of remote shards.
        storage_options: for fsspec, such as ``endpoint_url``.
        clips: train on these clips only, by name.
        held_out: validate and test on the last share of the duration of every training clip, instead of on the people of the other splits:
            for experiments that ask whether something is learnt at all.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 8,
        transform: PairTransform | None = None,
        rule: PairRule | None = None,
        pairs: int | None = None,
        exponent: float = 0.0,
        val_pairs: int | None = None,
        cross_pairs: int = 0,
        source_labels: tuple[str, ...] = SOURCE_LABELS,
        target_labels: tuple[str, ...] = TARGET_LABELS,
        seed: int = 0,
        workers: Workers | None = None,
        cache: str | None = None,
        storage_options: dict[str, Any] | None = None,
        clips: tuple[str, ...] | None = None,
        held_out: float = 0.0,
    ) -> None:
        super().__init__()
        self.root, self.batch_size, self.seed = root, batch_size, seed
        self.transform, self.rule, self.workers = transform or PairTransform(), rule or PairRule(), workers or Workers()
        self.pairs, self.exponent, self.val_pairs, self.cross_pairs = pairs, exponent, val_pairs, cross_pairs
        self.source_labels, self.target_labels = source_labels, target_labels
        self.cache, self.storage_options = cache, storage_options or {}
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out is {held_out}, expected a share from 0 to below 1")
        self.clips, self.held_out = clips, held_out
        self.face_model = FaceModel()
        self.batches: TrainBatches | None = None
        self._reader: ShardReader | None = None
        self._clip_of: Int[Tensor, " n"] | None = None
        self._loaders: dict[str, Any] = {}

    @property
    def reader(self) -> ShardReader:
        """Of the data set."""
        if self._reader is None:
            options = self.storage_options
            self._reader = ShardReader(
                CachedStorage(self.root, Path(self.cache), **options) if self.cache else Storage(self.root, **options)
            )
        return self._reader

    def setup(self, stage: str) -> None:
        """Plan the training pairs, from the begin of the first epoch.

        Raises:
            UserError: the data set is missing, or does not hold the pairs that are asked for.
        """
        if stage == "fit":
            plan = PairPlan(self._table("train"), self.rule, self.pairs, self.exponent)
            log.info("%s: %d pairs in an epoch; %d of %d frames have a partner", self.root, plan.pairs, plan.usable.sum(), len(plan.usable))
            self.batches = TrainBatches(plan, self._share(), self.seed)
            self._loaders.pop("train", None)

    def train_dataloader(self) -> PairLoader:
        """Training pairs, from where the cursor stands."""
        if self.batches is None:
            self.setup("fit")
            assert self.batches is not None
        if "train" not in self._loaders:
            self._loaders["train"] = self._loader(self.batches, self.transform)
        return self._loaders["train"]

    def val_dataloader(self) -> list[PairLoader]:
        """Every validation pair once: pairs of one clip, then those across persons if there are any."""
        return self._evaluation("val")

    def test_dataloader(self) -> list[PairLoader]:
        """As validation, of the test split."""
        return self._evaluation("test")

    def state_dict(self) -> dict[str, Any]:
        """Where training stands; the same on every rank."""
        return dict(self.batches.state_dict()) if self.batches else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Stand where the checkpoint stood; without training there is nothing to stand in.

        Raises:
            UserError: the checkpoint stood in mid-epoch with another ``batch_size`` or number of pairs.
        """
        if self.batches and state_dict:
            self.batches.load_state_dict(state_dict)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Bytes go to the device without waiting for them."""
        return batch.to(device, non_blocking=True)

    def on_after_batch_transfer(self, batch: PackedBatch, dataloader_idx: int) -> PairBatch:
        """Frames from bytes, on the device."""
        self.face_model = self.face_model.to(batch.valid.device)
        return unpack(batch, self.face_model, self._same_clip(batch.rows))

    def _same_clip(self, rows: Int[Tensor, "b 2"]) -> Bool[Tensor, " b"]:
        """Which pairs (rows of the index) are of one clip."""
        if self._clip_of is None:
            codes = self.reader.index.column("clip").combine_chunks().dictionary_encode().indices
            self._clip_of = torch.from_numpy(codes.to_numpy().astype(np.int64))
        clips = self._clip_of.to(rows.device)[rows]
        return clips[:, 0] == clips[:, 1]

    def teardown(self, stage: str) -> None:
        """Let the workers go."""
        self._loaders.clear()

    def _evaluation(self, split: str) -> list[PairLoader]:
        if split not in self._loaders:
            table = self._table(split)
            lists = [PairPlan(table, self.rule, self.val_pairs, self.exponent).epoch(JUDGES, 0)]
            if self.cross_pairs:
                lists.append(cross_pairs(table, self.cross_pairs, JUDGES))
            self._loaders[split] = [self._loader(EveryPair(pairs, self._share(), JUDGES), self.transform.plain()) for pairs in lists]
        return self._loaders[split]

    def _table(self, split: str) -> FrameTable:
        if not self.held_out:
            return frame_table(self.reader.index, self.reader.clips, split, self.clips if split == "train" else None)
        table = frame_table(self.reader.index, self.reader.clips, "train", self.clips)
        late = tails(table, self.held_out)
        return narrowed(table, ~late if split == "train" else late)

    def _share(self) -> Share:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Share(self.batch_size, rank, world)

    def _loader(self, requests: TrainBatches | EveryPair, transform: PairTransform) -> PairLoader:
        return PairLoader(self.reader, requests, transform, self.workers, self.source_labels, self.target_labels)
