"""The last step of a build: which samples go into which shard, the shards, the tables, and the record that all is whole."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from datasets_toolkit.build import pack_stage
from datasets_toolkit.build.executors import Outcome
from datasets_toolkit.build.manifest import ClipRow, SourceRow, clip_table, dataset_info, source_table
from datasets_toolkit.build.pipeline import BUILT_IN, COLUMNS_OF, AnnotatorFacts, PackJob, PackResult, ShardPart
from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.dataset_info import FILE, SPLITS, ShardInfo, read_info, write_info
from datasets_toolkit.shards.storage import StorageError
from datasets_toolkit.shards.writer import index_schema, shard_name, write_table

if TYPE_CHECKING:
    import pyarrow

    from datasets_toolkit.build.run import Run

log = logging.getLogger(__name__)


def publish(run: Run, rows: Sequence[SourceRow], clips: Sequence[ClipRow], facts: Sequence[AnnotatorFacts]) -> None:
    """Write what is new of shards and tables, then ``dataset.json``; shards that no longer belong to the data set are removed.

    While shards are being replaced there is no ``dataset.json``, so that nobody takes a mixture for a data set.

    Raises:
        UserError: a shard cannot be written.
    """
    kept = [clip for clip in clips if clip.kept]
    families = tuple(name for name in COLUMNS_OF if name in {*BUILT_IN, *(one.family for one in facts)} and COLUMNS_OF[name])
    columns = pack_stage.columns_of(families)
    jobs = plan_shards(run, kept, families)
    results = _packed(run, jobs)
    shards = [ShardInfo(**result.info) for result in results]
    index = _joined([result.index for result in results], columns)
    tables = {"sources.parquet": source_table(rows, clips), "clips.parquet": clip_table(clips), "index.parquet": index}
    manifests = {name: write_table(run.storage, name, table) for name, table in tables.items()}
    info = dataset_info(run.config, facts, columns, shards, rows, clips, manifests)
    names = {shard.name for shard in shards}
    for name in run.storage.list("shards/"):
        if name not in names:
            run.storage.remove(name)
    write_info(run.storage, info)
    run.summary.shards = shards
    run.summary.counts.update({"clips kept": len(kept), "samples": info.counts["samples"]})


def plan_shards(run: Run, clips: Sequence[ClipRow], families: tuple[str, ...]) -> list[PackJob]:
    """The shards of all splits: clips in an order drawn from the seed, the frames of a clip in order of time."""
    jobs = []
    for split in SPLITS:
        mine = sorted((clip for clip in clips if clip.split == split), key=lambda clip: _place(clip, run.config.seed))
        for number, parts in enumerate(_filled(run, mine, families)):
            name = shard_name(split, number)
            where = str(run.storage.local.absolute()) if run.storage.local is not None else run.storage.root
            jobs.append(PackJob(name=name, split=split, work=str(run.store.root), out=where, families=families, parts=parts))
    return jobs


def _place(clip: ClipRow, seed: int) -> str:
    return hashlib.sha256(f"{seed}\0{clip.names.clip}".encode()).hexdigest()


def _filled(run: Run, clips: Sequence[ClipRow], families: tuple[str, ...]) -> Iterator[list[ShardPart]]:
    """Parts of clips, shard by shard, none more than full by a sample."""
    parts: list[ShardPart] = []
    filled = 0.0
    for clip in clips:
        keys = {family: clip.keys[family] for family in families}
        indices = _indices(run, clip)
        size = sum(run.store.path(family, key).stat().st_size for family, key in keys.items()) / len(indices)
        cost, room = (
            (1.0, float(run.config.shard_samples)) if run.config.shard_samples is not None else (size, float(run.config.shard_bytes))
        )
        while indices:
            count = min(max(int((room - filled) / cost), 0 if filled else 1), len(indices))
            if count:
                parts.append(ShardPart(clip=clip.names.clip, indices=indices[:count], keys=keys))
            filled, indices = filled + count * cost, indices[count:]
            if indices:
                yield parts
                parts, filled = [], 0.0
    if parts:
        yield parts


def _indices(run: Run, clip: ClipRow) -> list[int]:
    """Frame numbers of a clip's samples."""
    spans = run.store.index("frame", clip.keys["frame"])
    return sorted({int(name.split(".")[0]) for name in spans})


def _packed(run: Run, jobs: Sequence[PackJob]) -> list[PackResult]:
    listed = _listed(run)
    known = {row: result for row, job in enumerate(jobs) if (result := pack_stage.known_shard(job)) is not None}
    results = {row: one for row, one in known.items() if listed is None or listed.get(jobs[row].name) == one.info["sha256"]}
    waiting = [row for row in range(len(jobs)) if row not in results]
    failed: list[str] = []

    def keep(outcome: Outcome) -> None:
        row = waiting[outcome.index]
        if outcome.kind == "ok":
            results[row] = outcome.value
        else:
            failed.append(f"{jobs[row].name}: {outcome.message}")

    if waiting:
        run.storage.remove(FILE)
        run.jobs("pack", pack_stage.pack_shard, [jobs[row] for row in waiting], keep)
    if failed:
        raise UserError(f"{len(failed)} shards could not be written, such as {failed[0]}; run the same command again")
    return [results[row] for row in range(len(jobs))]


def _listed(run: Run) -> dict[str, str] | None:
    """The hashes of the shards that a whole data set has now; None where there is none."""
    try:
        return {shard.name: shard.sha256 for shard in read_info(run.storage).shards}
    except StorageError:
        return None


def _joined(streams: Sequence[bytes], columns: Sequence[str]) -> pyarrow.Table:
    import pyarrow as pa

    tables = [pa.ipc.open_stream(stream).read_all() for stream in streams]
    return pa.concat_tables([index_schema(columns).empty_table(), *tables]).combine_chunks()
