"""Numbers about a built data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from datasets_toolkit.curation.plan import Totals, totals
from datasets_toolkit.shards.dataset_info import SPLITS
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.text_tables import text_table

QUANTILES = (5, 50, 95)


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What a data set holds.

    Attributes:
        splits: totals of the packed clips of each split, with samples and bytes.
        columns: mean bytes of a member in each column.
        measures: 5th, 50th and 95th percentile over the packed frames.
        annotators: name, version and licence of each family.
        clips: candidate clips, and how many of them were kept.
        sources: source videos, how many were rejected.
        counts: as ``dataset.json`` has them.
    """

    splits: dict[str, tuple[Totals, int, int]]
    columns: dict[str, float]
    measures: dict[str, tuple[float, ...]]
    annotators: list[dict[str, Any]]
    clips: tuple[int, int]
    sources: tuple[int, int]
    counts: dict[str, int]


def dataset_stats(reader: ShardReader) -> Stats:
    """Count a data set from its tables and its record; no tar is read.

    Raises:
        UserError: they cannot be read.
    """
    index, clips, info = reader.index, reader.clips, reader.info
    packed = set(index.column("clip").to_pylist())
    names = zip(clips.column("clip").to_pylist(), clips.column("split").to_pylist(), strict=True)
    of_clip = np.array([split if clip in packed else "" for clip, split in names], str)
    of_sample = np.array(index.column("split").to_pylist(), str)
    size = {name: sum(shard.bytes for shard in info.shards if shard.split == name) for name in SPLITS}
    splits = {name: (totals(clips, of_clip == name), int((of_sample == name).sum()), size[name]) for name in SPLITS}
    sizes = {name: float(np.mean(index.column(f"{name}.size").to_numpy())) if len(reader) else 0.0 for name in reader.columns}
    kept = int(np.asarray(clips.column("kept").to_pylist(), bool).sum())
    rejected = sum(status == "rejected" for status in reader.sources.column("status").to_pylist())
    return Stats(
        splits=splits,
        columns=sizes,
        measures={name: _quantiles(np.asarray(index.column(name).to_numpy(), np.float64)) for name in ("yaw", "pitch", "roll", "mouth")},
        annotators=info.annotators,
        clips=(clips.num_rows, kept),
        sources=(reader.sources.num_rows, rejected),
        counts=info.counts,
    )


def _quantiles(values: np.ndarray) -> tuple[float, ...]:
    known = values[np.isfinite(values)]
    return tuple(float(value) for value in np.percentile(known, QUANTILES)) if len(known) else (float("nan"),) * len(QUANTILES)


def stats_text(stats: Stats) -> str:
    """As tables of plain text."""
    rows = [
        (name, one.clips, one.hours, one.people, one.sources, samples, size / 2**20) for name, (one, samples, size) in stats.splits.items()
    ]
    parts = [text_table(("split", "clips", "hours", "people", "sources", "samples", "MiB"), rows)]
    parts.append(text_table(("column", "KiB a sample"), [(name, size / 1024) for name, size in stats.columns.items()]))
    parts.append(
        text_table(("over frames", *(f"{one} %" for one in QUANTILES)), [(name, *values) for name, values in stats.measures.items()])
    )
    if stats.annotators:
        parts.append(text_table(("family", "annotator", "version", "licence"), [_annotator(one) for one in stats.annotators]))
    parts.append(f"{stats.clips[1]:,} of {stats.clips[0]:,} clips kept; {stats.sources[1]:,} of {stats.sources[0]:,} sources rejected")
    purged = {name: stats.counts.get(f"purged_{name}", 0) for name in ("sources", "clips", "samples")}
    if any(purged.values()):
        parts.append("purged: " + ", ".join(f"{count:,} {name}" for name, count in purged.items()))
    return "\n\n".join(parts)


def stats_json(stats: Stats) -> dict[str, Any]:
    """As plain JSON values; what is unknown is null."""
    plain = asdict(stats)
    plain["splits"] = {name: {**asdict(one), "samples": samples, "bytes": size} for name, (one, samples, size) in stats.splits.items()}
    plain["measures"] = {
        name: {f"p{one}": value if np.isfinite(value) else None for one, value in zip(QUANTILES, values, strict=True)}
        for name, values in stats.measures.items()
    }
    plain["clips"] = {"all": stats.clips[0], "kept": stats.clips[1]}
    plain["sources"] = {"all": stats.sources[0], "rejected": stats.sources[1]}
    return plain


def _annotator(facts: dict[str, Any]) -> tuple[str, str, str, str]:
    provenance = facts.get("provenance") or {}
    return str(facts.get("family", "")), str(facts.get("name", "")), str(facts.get("version", "")), str(provenance.get("licence", ""))
