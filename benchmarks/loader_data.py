"""The same frames for every loader of the benchmark: a data set of ours, and copies of it in the formats of others."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from skimage.data import astronaut

from datasets_toolkit.sample import FrameMeta, FrameSample
from datasets_toolkit.schema import BLENDSHAPES
from datasets_toolkit.shards.codecs import COLUMNS, decode_depth, encode_sample
from datasets_toolkit.shards.dataset_info import DatasetInfo, write_info
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.shards.storage import Storage
from datasets_toolkit.shards.writer import index_row, pack, write_index, write_table

CLIPS, SHARD, FOCAL, DISTANCE = 4, 100, 3.0, 110.0
KEPT = ("image", "parsing", "matte", "depth", "normals", "landmarks", "meta")
PNG_STEPS = 100.0
"""Of depth as 16-bit PNG: steps in a centimetre, as in our own format."""


def make_frames(count: int, size: int) -> Iterator[FrameSample]:
    """A photograph that slides, with labels as smooth and as noisy as those of real frames."""
    picture = cv2.resize(astronaut(), (size + 64, size + 64), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:size, :size] + 0.5
    for number in range(count):
        random = np.random.default_rng(number)
        left, top = random.integers(0, 64, 2)
        nx, ny = (x - size * 0.5 + left - 32) / (0.38 * size), (y - size * 0.5 + top - 32) / (0.46 * size)
        inside = nx**2 + ny**2 < 1
        nz = -np.sqrt(np.where(inside, 1 - nx**2 - ny**2, 0))
        depth = np.where(inside, DISTANCE + 8 * nz + random.normal(0, 0.05, nz.shape), 0)
        normals = np.where(inside[..., None], np.stack([nx, ny, nz], -1), 0)
        yield FrameSample(
            meta=frame_meta(number, count, size),
            image=np.ascontiguousarray(picture[top : top + size, left : left + size]),
            parsing=(inside * (1 + ((5 * nx).astype(int) + (7 * ny).astype(int)) % 12)).astype(np.uint8),
            matte=np.rint(255 * np.clip((1.1 - np.hypot(nx, ny)) * 10, 0, 1)).astype(np.uint8),
            depth=depth.astype(np.float32),
            normals=normals.astype(np.float32),
            landmarks=(size * random.uniform(0.3, 0.7, (478, 3))).astype(np.float32),
        )


def frame_meta(number: int, count: int, size: int) -> FrameMeta:
    per_clip = -(-count // CLIPS)
    clip, index = f"made{number // per_clip}-00000000_00", number % per_clip
    pose = np.diag([1.0, -1, -1, 1])
    pose[2, 3] = DISTANCE
    return FrameMeta(
        key=f"{clip}_{index:06d}",
        clip=clip,
        source=clip[:-3],
        person=clip,
        index=index,
        time=index / 25,
        fps=Fraction(25),
        size=size,
        source_to_crop=np.eye(3),
        intrinsics=np.array([[FOCAL * size, 0, size / 2], [0, FOCAL * size, size / 2], [0, 0, 1]]),
        head_to_camera=pose,
        blendshapes=np.random.default_rng(number).uniform(0, 1, len(BLENDSHAPES)),
        scores={},
    )


def make_dataset(root: Path, count: int, size: int) -> ShardReader:
    """A data set of made frames, of one split."""
    storage, metas = Storage(root), {}

    def encoded() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
        for frame in make_frames(count, size):
            metas[frame.meta.key] = frame.meta
            yield frame.meta.key, encode_sample(frame)

    rows, shards = [], []
    for shard, entries in pack(storage, "train", encoded(), samples_per_shard=SHARD):
        shards.append(shard)
        rows += [index_row(metas[entry.key], entry, shard) for entry in entries]
    clips = sorted({meta.clip for meta in metas.values()})
    manifests = {"index.parquet": write_index(storage, rows, KEPT)}
    manifests["clips.parquet"] = write_table(storage, "clips.parquet", pa.table({"clip": clips, "person": clips}))
    manifests["sources.parquet"] = write_table(storage, "sources.parquet", pa.table({"source": clips}))
    columns = [COLUMNS[name].describe() for name in KEPT]
    counts = {"samples": count}
    write_info(storage, DatasetInfo(config={}, columns=columns, annotators=[], shards=shards, counts=counts, manifests=manifests))
    return ShardReader(storage)


def pairs_of(reader: ShardReader, split: str) -> list[tuple[int, int]]:
    """Each frame of the split with the next one: the loaders without random access read pairs that were written side by side."""
    rows = np.flatnonzero(reader.index["split"].to_numpy() == split)
    return list(zip(rows.tolist(), np.roll(rows, -1).tolist(), strict=True))


def pair_members(reader: ShardReader, pair: tuple[int, int]) -> dict[str, bytes]:
    """What each loader decodes for a pair: two pictures, parsing and depth of the source."""
    members = reader.members(pair[0], ("image", "parsing", "depth"))
    target = reader.members(pair[1], ("image",))["image"]
    return {"source": members["image"], "target": target, "parsing": members["parsing"], "depth": members["depth"]}


def png_depth(data: bytes) -> bytes:
    """Depth as a 16-bit PNG."""
    codes = np.rint(decode_depth(data) * PNG_STEPS).clip(0, 65535).astype(np.uint16)
    return bytes(cv2.imencode(".png", codes)[1].tobytes())


def write_webdataset(reader: ShardReader, folder: Path, split: str, png: bool) -> list[str]:
    """Tars of pairs, with depth in our format or as 16-bit PNG; their paths."""
    folder.mkdir(parents=True)
    pairs, paths = pairs_of(reader, split), []
    for first in range(0, len(pairs), SHARD // 2):
        paths.append(str(folder / f"{first:06d}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for number, pair in enumerate(pairs[first : first + SHARD // 2], first):
                members = pair_members(reader, pair)
                add(tar, f"{number:06d}.source.jpg", members["source"])
                add(tar, f"{number:06d}.target.jpg", members["target"])
                add(tar, f"{number:06d}.parsing.png", members["parsing"])
                add(tar, f"{number:06d}.depth.{'png' if png else 'dsz'}", png_depth(members["depth"]) if png else members["depth"])
    return paths


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


class Members:
    """What litdata's optimizer calls in its processes: the members of a pair."""

    def __init__(self, root: str) -> None:
        self.root = root

    def __call__(self, pair: tuple[int, int]) -> dict[str, Any]:
        """The members by name."""
        return dict(pair_members(ShardReader(self.root), pair))


def write_litdata(reader: ShardReader, folder: Path, split: str) -> str:
    """The same pairs in the chunks of litdata."""
    from litdata import optimize

    optimize(Members(reader.storage.root), pairs_of(reader, split), str(folder), chunk_bytes="32MB", num_workers=1, verbose=False)
    return str(folder)
