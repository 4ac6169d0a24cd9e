"""One validation clip, frame after frame: its first frame is driven by all that follow."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.data.batches import EveryPair, Share
from mggtalk.data.datamodule import PairDataModule
from mggtalk.data.loader import PairLoader
from mggtalk.data.packed import PairBatch
from mggtalk.data.pairs import Pairs


def consecutive_rows(reader: ShardReader, frames: int, split: str = "val") -> npt.NDArray[np.int64]:
    """Rows of ``index.parquet``: the first ``frames`` frames without a gap that a clip of the split has, or the longest run there is.

    Raises:
        UserError: the split has no frames.
    """
    table = reader.index
    rows = np.flatnonzero(table["split"].to_numpy() == split)
    if not len(rows):
        raise UserError(f"{reader.storage.root}: no sample in split {split!r}, so there is no clip to show; set clip_frames to 0")
    clip = table["clip"].combine_chunks().dictionary_encode().indices.to_numpy()[rows]
    number = table["index"].to_numpy()[rows]
    order = np.lexsort((number, clip))
    breaks = np.flatnonzero((np.diff(clip[order]) != 0) | (np.diff(number[order]) != 1)) + 1
    runs = np.split(rows[order], breaks)
    chosen = next((run for run in runs if len(run) >= frames), max(runs, key=len))
    return chosen[:frames].astype(np.int64)


def frame_rate(reader: ShardReader, row: int) -> Fraction:
    """Frames per second of the clip that a row belongs to."""
    clips = reader.clips
    place = clips["clip"].to_pylist().index(reader.index["clip"][row].as_py())
    return Fraction(clips["fps_num"][place].as_py(), clips["fps_den"][place].as_py())


def driven_batches(data: PairDataModule, rows: npt.NDArray[np.int64], size: int, device: torch.device) -> Iterator[PairBatch]:
    """The first of the rows as the source of all of them, ``size`` pairs at a time; read here, beside the loaders of training."""
    pairs = Pairs(source=np.full_like(rows, rows[0]), target=rows)
    requests = EveryPair(pairs, Share(size))
    loader = PairLoader(data.reader, requests, data.transform.plain(), None, data.source_labels, data.target_labels)
    for packed in loader:
        yield data.on_after_batch_transfer(data.transfer_batch_to_device(packed, device, 0), 0)
