"""Checks of the files of a data set: hashes, tar structure, and the index against the tars."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from datasets_toolkit.checks.tally import Check, Tally
from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.codecs import COLUMNS
from datasets_toolkit.shards.dataset_info import FILE, MANIFESTS, ShardInfo, file_sha256
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.shards.tars import SampleEntry, scan_tar

Advance = Callable[[int], object]


def check_manifest_hashes(reader: ShardReader) -> Check:
    """The tables are those that ``dataset.json`` was written for."""
    tally = Tally("manifest hashes", "the tables have the SHA-256 that dataset.json tells")
    for name in MANIFESTS:
        wanted = reader.info.manifests.get(name)
        found = file_sha256(reader.storage, name)
        tally.test(name, [] if found == wanted else [f"has SHA-256 {found[:12]}..., not {str(wanted)[:12]}..."])
    return tally.done()


def check_listing(reader: ShardReader) -> Check:
    """Every shard that ``dataset.json`` lists is there, and no other lies beside them, for stock readers take all they find."""
    tally = Tally("listing", f"the shards are those of {FILE}, and its counts are right")
    listed = [shard.name for shard in reader.info.shards]
    found = {name for name in reader.storage.list("shards/") if name.endswith(".tar")}
    for name in listed:
        tally.test(name, [] if name in found else ["is missing"])
    for name in sorted(found.difference(listed)):
        tally.test(name, [f"is not in {FILE}"])
    samples = sum(shard.samples for shard in reader.info.shards)
    counted = reader.info.counts.get("samples", samples)
    right = samples == counted == reader.index.num_rows
    faults = [] if right else [f"tells of {counted} samples, its shards of {samples}, index.parquet of {reader.index.num_rows}"]
    tally.test(FILE, faults)
    return tally.done()


def check_shard_hashes(reader: ShardReader, shards: Sequence[ShardInfo], advance: Advance) -> Check:
    """Each shard has the size and the SHA-256 of its entry."""
    tally = Tally("shard hashes", "the shards have the size and SHA-256 that dataset.json tells")
    for shard in shards:
        try:
            size, digest = reader.storage.size(shard.name), file_sha256(reader.storage, shard.name)
        except UserError as error:
            tally.test(shard.name, [str(error)])
        else:
            faults = [] if size == shard.bytes else [f"has {size} bytes, not {shard.bytes}"]
            tally.test(
                shard.name, faults or ([] if digest == shard.sha256 else [f"has SHA-256 {digest[:12]}..., not {shard.sha256[:12]}..."])
            )
        advance(shard.bytes)
    return tally.done(measured=_share(len(shards), len(reader.info.shards), "shards"))


def check_tars(reader: ShardReader, shards: Sequence[ShardInfo]) -> tuple[Check, Check]:
    """Each tar holds plain files named ``<key>.<member>``, the same members in one order for every sample; the index knows where."""
    structure = Tally("tar structure", "tars hold plain files, the same members in one order for every sample")
    places = Tally("index offsets", "the index tells where each member lies")
    members = [COLUMNS[name].member for name in reader.columns]
    where = np.array(reader.index.column("shard").to_pylist(), str)
    for shard in shards:
        try:
            entries = scan_tar(reader.storage, shard.name)
        except UserError as error:
            structure.test(shard.name, [str(error)])
            continue
        faults = [] if len(entries) == shard.samples else [f"holds {len(entries)} samples, not {shard.samples}"]
        odd = [entry.key for entry in entries if list(entry.members) != members]
        structure.test(
            shard.name, [*faults, *([f"{len(odd)} samples, such as {odd[0]!r}, have other members or another order"] if odd else [])]
        )
        _check_places(reader, shard, entries, np.flatnonzero(where == shard.name), places)
    known = {shard.name for shard in reader.info.shards}
    for name in sorted(set(where.tolist()) - known):
        places.test("index.parquet", [f"leads to {name}, which is not in {FILE}"])
    return structure.done(), places.done()


def _check_places(reader: ShardReader, shard: ShardInfo, entries: Sequence[SampleEntry], rows: np.ndarray, tally: Tally) -> None:
    index = reader.index.take(rows).to_pydict()
    stored = {entry.key: entry for entry in entries}
    for number, key in enumerate(index["key"]):
        entry, faults = stored.pop(key, None), []
        if entry is None:
            faults.append(f"is not in {shard.name}")
        else:
            wrong = [name for name in reader.columns if _span(index, name, number) != entry.members.get(COLUMNS[name].member)]
            faults += [f"{', '.join(wrong)} lie elsewhere in {shard.name} than the index says"] if wrong else []
        if index["split"][number] != shard.split:
            faults.append(f"its split is {index['split'][number]!r}, that of its shard {shard.split!r}")
        tally.test(f"sample {key!r}", faults)
    for key in stored:
        tally.test(f"sample {key!r}", [f"is in {shard.name}, but not in the index"])


def _span(index: dict[str, list[Any]], name: str, number: int) -> tuple[int, int]:
    return index[f"{name}.offset"][number], index[f"{name}.size"][number]


def _share(tested: int, count: int, what: str) -> str:
    return "" if tested == count else f"{tested} of {count} {what}"


def shards_of(reader: ShardReader, names: Collection[str] | None) -> list[ShardInfo]:
    """The shards of those names, all if None, in the order of ``dataset.json``."""
    return [shard for shard in reader.info.shards if names is None or shard.name in names]
