"""Synthetic heads on disk: as a finished data set with exact labels, or as videos with sound that a build can take as its sources."""

from __future__ import annotations

import json
import tempfile
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets_toolkit.build.manifest import ClipRow, SourceRow, clip_table, source_table
from datasets_toolkit.build.pipeline import TrackResult
from datasets_toolkit.build.scores import clip_scores, look
from datasets_toolkit.curation.policy import SCORES
from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import write_whole
from datasets_toolkit.media.sound import level
from datasets_toolkit.media.video import VideoWriter
from datasets_toolkit.recipes.base import Source
from datasets_toolkit.recipes.synthetic import LICENCE, MANIFEST
from datasets_toolkit.sample import FrameMeta
from datasets_toolkit.shards.codecs import COLUMNS, encode_sample
from datasets_toolkit.shards.dataset_info import DatasetInfo, ShardInfo, write_info
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.shards.storage import Storage
from datasets_toolkit.shards.writer import index_row, pack, write_index, write_table
from datasets_toolkit.synthetic.clip import FPS, SyntheticClip, make_clips
from datasets_toolkit.synthetic.samples import VERSION, clip_names, content_hash, frame_samples, middle_picture, tracked
from datasets_toolkit.synthetic.speech import RATE

FAMILIES = ("parsing", "depth", "normals", "audio")


def build_synthetic(
    out: str | Path | Storage,
    clips: int = 16,
    frames: int = 24,
    size: int = 128,
    seed: int = 0,
    persons: int = 8,
    *,
    samples: int = 1,
    samples_per_shard: int = 256,
) -> ShardReader:
    """Write a finished data set of synthetic heads with exact labels; the same arguments give the same bytes.

    Of at least three people the last is in val and the one before in test; of two the last is in val.

    Args:
        out: an empty or absent folder, or an address.
        clips: how many, of the people in turn.
        frames: of each clip.
        size: pixels a side.
        seed: of everything.
        persons: how many people at the most.
        samples: of colour a pixel and direction; 1 is fast, 2 or more gives soft edges.
        samples_per_shard: the last shard of a split may hold fewer.

    Raises:
        UserError: ``out`` holds a data set already, cannot be written, or a number is not positive.
    """
    storage = out if isinstance(out, Storage) else Storage(out)
    if storage.exists("dataset.json"):
        raise UserError(f"{storage.address('dataset.json')}: a data set is there already; choose another folder or remove it")
    planned = _planned(clips, frames, size, seed, persons, 1.0)
    splits = _splits(planned)
    rows: list[dict[str, Any]] = []
    shards: list[ShardInfo] = []
    for split in ("train", "val", "test"):
        metas: dict[str, FrameMeta] = {}
        chosen = [clip for clip in planned if splits[clip.person.name] == split]
        for shard, entries in pack(storage, split, _encoded(chosen, seed, samples, metas), samples_per_shard=samples_per_shard):
            shards.append(shard)
            rows += [index_row(metas.pop(entry.key), entry, shard) for entry in entries]
    records = _records(planned, seed, splits)
    manifests = {
        "sources.parquet": write_table(storage, "sources.parquet", source_table([row.owner for row in records], records)),
        "clips.parquet": write_table(storage, "clips.parquet", clip_table(records)),
        "index.parquet": write_index(storage, rows, tuple(COLUMNS)),
    }
    settings = {"clips": clips, "frames": frames, "size": size, "seed": seed, "persons": persons, "samples": samples}
    counts = {"sources": len(planned), "sources_ok": len(planned), "clips": len(planned), "clips_kept": len(planned)}
    write_info(
        storage,
        DatasetInfo(
            config={"recipe": "synthetic", **settings},
            columns=[column.describe() for column in COLUMNS.values()],
            annotators=[_annotator(family) for family in FAMILIES],
            shards=shards,
            counts={**counts, "people": len(splits), "samples": len(rows)},
            manifests=manifests,
        ),
    )
    return ShardReader(storage)


def write_videos(
    folder: Path,
    clips: int = 4,
    frames: int = 100,
    size: int = 384,
    seed: int = 0,
    persons: int = 4,
    *,
    margin: float = 1.35,
    samples: int = 2,
) -> list[Path]:
    """Write clips as mp4 videos with sound into a folder, and ``synthetic.json`` that the recipe ``synthetic`` reads.

    Args:
        folder: is made where it does not exist.
        clips: how many, of the people in turn.
        frames: of each clip, 25 a second.
        size: pixels a side.
        seed: of everything.
        persons: how many people at the most.
        margin: side of the picture in units of the first frame's reference box.
        samples: of colour a pixel and direction.

    Raises:
        UserError: the folder or a video cannot be written, or a number is not positive.
    """
    planned = _planned(clips, frames, size, seed, persons, margin)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [_write_video(folder, clip, samples) for clip in planned]
        listed = [{"file": path.name, "person": clip.person.name} for path, clip in zip(paths, planned, strict=True)]
        write_whole(folder / MANIFEST, (json.dumps({"seed": seed, "clips": listed}, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    return paths


def _planned(clips: int, frames: int, size: int, seed: int, persons: int, margin: float) -> list[SyntheticClip]:
    try:
        return make_clips(clips, frames, size, seed, persons, margin=margin)
    except ValueError as error:
        raise UserError(f"synthetic heads: {error}; correct the numbers") from error


def _write_video(folder: Path, clip: SyntheticClip, samples: int) -> Path:
    path = folder / f"{clip.name}.mp4"
    with tempfile.TemporaryDirectory() as scratch:
        sound = Path(scratch) / "sound.wav"
        with wave.open(str(sound), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(clip.speech.samples.astype("<i2").tobytes())
        with VideoWriter(path, FPS, (clip.size, clip.size), audio_from=sound) as writer:
            for index, time in enumerate(clip.times):
                writer.write(clip.frame(index, samples=samples).image, float(time))
    return path


def _splits(clips: Sequence[SyntheticClip]) -> dict[str, str]:
    people = sorted({clip.person.name for clip in clips})
    last = {1: ["train"], 2: ["train", "val"]}.get(len(people), [*["train"] * (len(people) - 2), "test", "val"])
    return dict(zip(people, last, strict=True))


def _encoded(
    clips: Sequence[SyntheticClip], seed: int, samples: int, metas: dict[str, FrameMeta]
) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Key and members of every sample; the records go into ``metas`` as they come."""
    for clip in clips:
        for sample in frame_samples(clip, clip_names(clip, seed), samples=samples):
            metas[sample.meta.key] = sample.meta
            yield sample.meta.key, encode_sample(sample)


def _records(clips: Sequence[SyntheticClip], seed: int, splits: dict[str, str]) -> list[ClipRow]:
    """The row of ``clips.parquet`` of each clip, with that of its source."""
    rows = []
    for clip in clips:
        names, end = clip_names(clip, seed), len(clip.times) / float(FPS)
        info = {"width": clip.size, "height": clip.size, "fps": str(FPS), "duration": end, "frames": len(clip.times), "has_audio": True}
        track = TrackResult(content=content_hash(clip, seed), info=info)
        source = Source(path=names.source, source_hint=clip.name, dataset="synthetic", person=names.person, licence=LICENCE)
        facts = {"track": 0, "start": 0.0, "end": end, "first": 0, "last": len(clip.times) - 1, "frames": len(clip.times), "gaps": 0}
        owner = SourceRow(names.source, source, track, [])
        rows.append(ClipRow(names, owner, facts, _scores(clip), split=splits[clip.person.name]))
    return rows


def _scores(clip: SyntheticClip) -> dict[str, float]:
    path, picture = tracked(clip), middle_picture(clip)
    sharpness, brightness = look(picture.image, picture.landmarks)
    scores = clip_scores(path, path, (clip.size, clip.size)) | {"sharpness": sharpness, "brightness": brightness}
    scores |= {"faces": 1.0, "cuts": 0.0, "fps": float(FPS), "duration": len(clip.times) / float(FPS)}
    scores |= {"speech_level": level(clip.speech.samples), "av_offset": 0.0}
    return {name: float(scores.get(name, np.nan)) for name in SCORES}


def _annotator(family: str) -> dict[str, Any]:
    return {
        "family": family,
        "name": "datasets_toolkit.synthetic",
        "version": VERSION,
        "parameters": {},
        "provenance": {"licence": LICENCE},
    }
