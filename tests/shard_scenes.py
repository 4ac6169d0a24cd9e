"""Small data sets with known content: synthetic frames, packed as a build packs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datasets_toolkit.sample import FrameMeta, FrameSample
from datasets_toolkit.schema import BLENDSHAPES, Region
from datasets_toolkit.shards.codecs import COLUMNS, encode_sample
from datasets_toolkit.shards.dataset_info import DatasetInfo, write_info
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.shards.storage import Storage
from datasets_toolkit.shards.writer import index_row, pack, write_index, write_table

ALL = tuple(COLUMNS)


def frame_meta(clip: str, index: int, size: int, *, person: str = "p0", fps: Fraction = Fraction(25)) -> FrameMeta:
    """A frontal head 110 cm away that turns by a degree a frame, its mouth opening over ten frames."""
    angle, focal = np.radians(index % 40 - 20), 110 * size / 24
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    pose = np.eye(4)
    pose[:3, :3], pose[2, 3] = np.diag([1.0, -1.0, -1.0]) @ turn, 110.0
    blendshapes = np.zeros(len(BLENDSHAPES))
    blendshapes[BLENDSHAPES.index("jawOpen")] = index % 10 / 10
    return FrameMeta(
        key=f"{clip}_{index:06d}", clip=clip, source=clip.rsplit("_", 1)[0], person=person, index=index, time=float(index / fps), fps=fps,
        size=size, source_to_crop=np.array([[0.5, 0, -8], [0, 0.5, -4], [0, 0, 1]]),
        intrinsics=np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]), head_to_camera=pose, blendshapes=blendshapes,
        scores={"sharpness": 100.0 + index, "mouth": index % 10 / 10},
    )  # fmt: skip


def frame_sample(clip: str, index: int, size: int, **options: Any) -> FrameSample:
    """A ball on a smooth background, shifted and coloured by clip and frame; every label follows from its circle."""
    meta = frame_meta(clip, index, size, **options)
    seed = sum(map(ord, clip)) % 7
    y, x = np.mgrid[:size, :size] + 0.5
    radius, cx, cy = 0.35 * size, size * (0.45 + 0.01 * (index % 10)), size * 0.5
    nx, ny = (x - cx) / radius, (y - cy) / radius
    inside = nx**2 + ny**2 < 1
    nz = -np.sqrt(np.where(inside, 1 - nx**2 - ny**2, 0))
    image = np.stack([x / size, y / size, np.full_like(x, (seed + 1) / 8)], -1) * 0.5 + 0.5 * inside[..., None] * -nz[..., None]
    normals = np.where(inside[..., None], np.stack([nx, ny, nz], -1), 0)
    random = np.random.default_rng([seed, index])
    landmarks = np.column_stack(
        [random.uniform(cx - radius, cx + radius, 478), random.uniform(cy - radius, cy + radius, 478), np.zeros(478)]
    )
    return FrameSample(
        meta=meta,
        image=np.rint(255 * image).astype(np.uint8),
        parsing=np.where(inside, np.where(y < cy, Region.HAIR, Region.SKIN), Region.BACKGROUND).astype(np.uint8),
        matte=np.rint(255 * np.clip((radius - np.hypot(x - cx, y - cy)) / 3 + 0.5, 0, 1)).astype(np.uint8),
        depth=np.where(inside, 110 + 8 * nz, 0).astype(np.float32),
        normals=normals.astype(np.float32),
        landmarks=landmarks.astype(np.float32),
        audio=np.rint(8000 * np.sin(2 * np.pi * 220 * (meta.time + np.arange(640) / 16000))).astype(np.int16),
        mel=random.normal(size=(4, 80)).astype(np.float16),
    )


def make_dataset(
    root: str | Path | Storage,
    clips: Sequence[str] | int = 2,
    frames: int = 4,
    size: int = 64,
    *,
    columns: Sequence[str] = ALL,
    samples_per_shard: int = 3,
    split_of: Callable[[str], str] = lambda clip: "train",
    person_of: Callable[[str], str] = lambda clip: clip.split("-", 1)[0],
    gaps: Sequence[int] = (),
) -> ShardReader:
    """Build a data set of synthetic frames and return its reader.

    Args:
        root: folder, address or storage to write to.
        clips: ids of the clips, or how many (``ball0-00000000_00``, ``ball1-00000000_00``, ...).
        frames: of each clip, numbered from 0.
        size: pixels a side.
        columns: which members the samples have; ``meta`` always is one.
        samples_per_shard: the last shard of a split may hold fewer.
        split_of: the split of a clip.
        person_of: who is seen in a clip; by default the id up to the first ``-``.
        gaps: frame numbers that have no sample.
    """
    storage = root if isinstance(root, Storage) else Storage(root)
    names = [f"ball{number}-00000000_00" for number in range(clips)] if isinstance(clips, int) else list(clips)
    kept = [name for name in COLUMNS if name in columns or name == "meta"]
    members = [COLUMNS[name].member for name in kept]
    rows, shards = [], []
    for split in sorted({split_of(clip) for clip in names}):
        samples = [
            frame_sample(clip, index, size, person=person_of(clip))
            for clip in names if split_of(clip) == split for index in range(frames) if index not in gaps
        ]  # fmt: skip
        metas = {sample.meta.key: sample.meta for sample in samples}
        encoded = ((sample.meta.key, [one for one in encode_sample(sample) if one[0] in members]) for sample in samples)
        for shard, entries in pack(storage, split, encoded, samples_per_shard=samples_per_shard):
            shards.append(shard)
            rows += [index_row(metas[entry.key], entry, shard) for entry in entries]
    manifests = {"index.parquet": write_index(storage, rows, kept)}
    for name, table in (
        ("clips.parquet", _clips(names, frames, gaps, split_of, person_of)),
        ("sources.parquet", _sources(names, frames, person_of)),
    ):
        manifests[name] = write_table(storage, name, table)
    described = [COLUMNS[name].describe() for name in kept]
    counts = {"sources": len(names), "clips": len(names), "samples": len(rows)}
    write_info(storage, DatasetInfo(config={}, columns=described, annotators=[], shards=shards, counts=counts, manifests=manifests))
    return ShardReader(storage)


def _clips(names: list[str], frames: int, gaps: Sequence[int], split_of: Callable[[str], str], person_of: Callable[[str], str]) -> pa.Table:
    rows = [
        {
            "clip": name, "source": name.rsplit("_", 1)[0], "dataset": "balls", "person": person_of(name), "face": 0, "start": 0.0,
            "end": frames / 25, "first": 0, "last": frames - 1, "frames": frames - len(gaps), "gaps": len(gaps),
            "fps_num": 25, "fps_den": 1, "split": split_of(name), "kept": True, "reasons": [], "identity": None,
        }
        for name in names
    ]  # fmt: skip
    lists = {"reasons": pa.list_(pa.string()), "identity": pa.list_(pa.float32())}
    return _typed(rows, lists)


def _sources(names: list[str], frames: int, person_of: Callable[[str], str]) -> pa.Table:
    rows = [
        {
            "source": name.rsplit("_", 1)[0], "path": f"{name}.mp4", "dataset": "balls", "person": person_of(name), "sha256": "0" * 64,
            "width": 256, "height": 256, "fps_num": 25, "fps_den": 1, "vfr": False, "duration": frames / 25, "frames": frames,
            "has_audio": True, "av_offset": 0.0, "av_confidence": 0.0, "status": "ok", "problems": [],
        }
        for name in names
    ]  # fmt: skip
    return _typed(rows, {"problems": pa.list_(pa.string())})


def _typed(rows: list[dict[str, Any]], lists: dict[str, pa.DataType]) -> pa.Table:
    plain = pa.Table.from_pylist([{name: value for name, value in row.items() if name not in lists} for row in rows])
    for name, kind in lists.items():
        plain = plain.append_column(name, pa.array([row[name] for row in rows], kind))
    return plain
