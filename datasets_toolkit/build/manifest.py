"""The tables of a data set: sources and candidate clips, rejected ones too, and the record that it is whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets_toolkit.build.clip_frames import ClipNames
from datasets_toolkit.build.config import BuildConfig, as_dict
from datasets_toolkit.build.pipeline import AnnotatorFacts, TrackResult
from datasets_toolkit.build.sources import source_id
from datasets_toolkit.build.work import key_of
from datasets_toolkit.curation.policy import SCORES
from datasets_toolkit.recipes.base import Source
from datasets_toolkit.shards.codecs import COLUMNS
from datasets_toolkit.shards.dataset_info import DatasetInfo, ShardInfo

if TYPE_CHECKING:
    import pyarrow


@dataclass(eq=False)
class SourceRow:
    """A source and what became of it."""

    id: str
    source: Source
    track: TrackResult
    problems: list[str]

    @property
    def person(self) -> str:
        """Who is seen; a source of nobody known is one of its own."""
        return self.source.person or self.id


@dataclass(eq=False)
class ClipRow:
    """A candidate clip and what became of it."""

    names: ClipNames
    owner: SourceRow
    facts: dict[str, Any]
    scores: dict[str, float]
    kept: bool = True
    reasons: list[str] = field(default_factory=list)
    split: str = ""
    identity: list[float] | None = None
    keys: dict[str, str] = field(default_factory=dict)


def source_rows(sources: Sequence[Source], tracks: Sequence[TrackResult]) -> list[SourceRow]:
    """Name the sources; a copy of another source is rejected, for it could lie in another split."""
    first: dict[str, SourceRow] = {}
    used: Counter[str] = Counter()
    rows = []
    for source, track in zip(sources, tracks, strict=True):
        name = source_id(source, track.content or key_of(source.path))
        used[name] += 1
        row = SourceRow(name if used[name] == 1 else f"{name}-{used[name]}", source, track, list(track.problems))
        if track.key:
            original = first.setdefault(track.key, row)
            if original is not row:
                row.problems = [f"{source.path}: has the same content as {original.source.path}; one of them is enough"]
                row.track = TrackResult(content=track.content, info=track.info, rejected=True)
        rows.append(row)
    return rows


def clip_rows(sources: Sequence[SourceRow]) -> list[ClipRow]:
    """All candidate clips, those of a source in the order in which they begin."""
    rows = []
    for owner in sources:
        for number, facts in enumerate(owner.track.clips):
            names = ClipNames(clip=f"{owner.id}_{number:02d}", source=owner.id, person=owner.person)
            rows.append(ClipRow(names, owner, facts, {score: float(facts["scores"].get(score, np.nan)) for score in SCORES}))
    return rows


def source_table(sources: Sequence[SourceRow], clips: Sequence[ClipRow]) -> pyarrow.Table:
    """``sources.parquet``; the A/V offset is the median over the clips, its confidence too.

    The last columns keep what the recipe said (:class:`datasets_toolkit.recipes.base.Source`), so that the data set can be made again.
    """
    import pyarrow as pa

    kinds: list[tuple[str, Any]] = [(name, pa.string()) for name in ("source", "path", "dataset", "person", "sha256")]
    kinds += [(name, pa.int64()) for name in ("width", "height", "fps_num", "fps_den")]
    kinds += [("vfr", pa.bool_()), ("duration", pa.float64()), ("frames", pa.int64()), ("has_audio", pa.bool_())]
    kinds += [("av_offset", pa.float64()), ("av_confidence", pa.float64()), ("status", pa.string()), ("problems", pa.list_(pa.string()))]
    kinds += [("hint", pa.string()), ("from", pa.float64()), ("to", pa.float64()), ("given_split", pa.string())]
    kinds += [("licence", pa.string()), ("meta", pa.string())]
    owned: dict[str, list[ClipRow]] = {row.id: [] for row in sources}
    for clip in clips:
        owned[clip.names.source].append(clip)
    records = [_source_record(row, owned[row.id]) for row in sources]
    return pa.Table.from_pylist(records, schema=pa.schema(kinds))


def _source_record(row: SourceRow, clips: Sequence[ClipRow]) -> dict[str, Any]:
    info = row.track.info
    rate = Fraction(info.get("fps", "0"))
    known = [clip.scores for clip in clips if np.isfinite(clip.scores["av_offset"])]
    return {
        "source": row.id,
        "path": row.source.path,
        "dataset": row.source.dataset,
        "person": row.person,
        "sha256": row.track.content,
        "width": info.get("width", 0),
        "height": info.get("height", 0),
        "fps_num": rate.numerator,
        "fps_den": rate.denominator,
        "vfr": info.get("variable", False),
        "duration": info.get("duration", 0.0),
        "frames": info.get("frames", 0),
        "has_audio": info.get("has_audio", False),
        "av_offset": float(np.median([one["av_offset"] for one in known])) if known else float("nan"),
        "av_confidence": float(np.median([one["av_confidence"] for one in known])) if known else float("nan"),
        "status": "rejected" if row.track.rejected else "ok",
        "problems": row.problems,
        "hint": row.source.source_hint,
        "from": row.source.start,
        "to": row.source.end,
        "given_split": row.source.split,
        "licence": row.source.licence,
        "meta": json.dumps(row.source.meta, sort_keys=True),
    }


def clip_table(clips: Sequence[ClipRow]) -> pyarrow.Table:
    """``clips.parquet``."""
    import pyarrow as pa

    kinds: list[tuple[str, Any]] = [(name, pa.string()) for name in ("clip", "source", "dataset", "person")]
    kinds += [("face", pa.int64()), ("start", pa.float64()), ("end", pa.float64())]
    kinds += [(name, pa.int64()) for name in ("first", "last", "frames", "gaps", "fps_num", "fps_den")]
    kinds += [(score, pa.float64()) for score in SCORES]
    kinds += [("split", pa.string()), ("kept", pa.bool_()), ("reasons", pa.list_(pa.string())), ("identity", pa.list_(pa.float32()))]
    return pa.Table.from_pylist([_clip_record(row) for row in clips], schema=pa.schema(kinds))


def _clip_record(row: ClipRow) -> dict[str, Any]:
    rate = Fraction(row.owner.track.info["fps"])
    facts = {name: row.facts[name] for name in ("start", "end", "first", "last", "frames", "gaps")}
    record: dict[str, Any] = {
        "clip": row.names.clip,
        "source": row.names.source,
        "dataset": row.owner.source.dataset,
        "person": row.names.person,
    }
    record |= {"face": row.facts["track"], **facts, "fps_num": rate.numerator, "fps_den": rate.denominator, **row.scores}
    return record | {"split": row.split, "kept": row.kept, "reasons": row.reasons, "identity": row.identity}


def dataset_info(
    config: BuildConfig,
    facts: Sequence[AnnotatorFacts],
    columns: Sequence[str],
    shards: Sequence[ShardInfo],
    sources: Sequence[SourceRow],
    clips: Sequence[ClipRow],
    manifests: dict[str, str],
) -> DatasetInfo:
    """The content of ``dataset.json``."""
    annotators = [
        {"family": one.family, "name": one.recipe["class_path"], "version": one.recipe["version"]}
        | {"parameters": one.recipe["settings"], "provenance": one.provenance}
        for one in facts
    ]
    kept = [clip for clip in clips if clip.kept]
    counts = {
        "sources": len(sources),
        "sources_ok": sum(not row.track.rejected for row in sources),
        "clips": len(clips),
        "clips_kept": len(kept),
        "people": len({clip.names.person for clip in kept}),
        "samples": sum(shard.samples for shard in shards),
    }
    return DatasetInfo(
        config=as_dict(config),
        columns=[COLUMNS[name].describe() for name in columns],
        annotators=json.loads(json.dumps(annotators)),
        shards=list(shards),
        counts=counts,
        manifests=manifests,
    )
