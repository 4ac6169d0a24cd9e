"""``verify``: every promise of a data set that can be tested, tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from datasets_toolkit.checks.files import check_listing, check_manifest_hashes, check_shard_hashes, check_tars, shards_of
from datasets_toolkit.checks.samples import HASHED, SampleChecks, choose_rows, picture_rows
from datasets_toolkit.checks.tables import TABLE_CHECKS, check_columns
from datasets_toolkit.checks.tally import Check, Tally
from datasets_toolkit.curation.splits import NearPair, evidence
from datasets_toolkit.errors import UserError
from datasets_toolkit.media.picture_hash import picture_hash
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.text_tables import text_table

Progress = Callable[[str, int, int], object]
"""Told what is done, how much of it, and of how much."""


def verify(
    reader: ShardReader, *, sample: int | None = None, seed: int = 0, progress: Progress = lambda what, done, total: None
) -> list[Check]:
    """Test a data set.

    Args:
        reader: of the data set.
        sample: how many samples are decoded (drawn with ``seed``), with only their shards read; None takes all. The tables are always
            tested whole.
        seed: of the draw.
        progress: called as the work goes on.

    Raises:
        UserError: there is no data set, or its tables cannot be read, so that nothing can be tested.
    """
    tables = {"sources": reader.sources, "clips": reader.clips, "index": reader.index}
    checks = [check_manifest_hashes(reader), columns := check_columns(tables)]
    if columns.faults:
        return checks  # every other check would fail for the same reason
    checks += [check_listing(reader), *(check(tables) for check in TABLE_CHECKS)]
    rows = choose_rows(reader, sample, seed)
    chosen = reader.index.column("shard").take(list(rows)).to_pylist() if sample is not None else None
    shards = shards_of(reader, None if chosen is None else set(chosen))
    total, done = sum(shard.bytes for shard in shards), 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress("reading shards", done, total)

    checks += [check_shard_hashes(reader, shards, advance), *check_tars(reader, shards)]
    samples = SampleChecks(reader)
    for number, row in enumerate(rows, 1):
        samples.test(row)
        progress("decoding samples", number, len(rows))
    return [*checks, *samples.done(), check_leaks(reader)]


def check_leaks(reader: ShardReader) -> Check:
    """The nearest pairs of clips across splits, by content, identity embeddings, or where there are none by pictures of the face."""
    tally = Tally("leaks", "no clip has a near twin in another split")
    pairs = nearest_pairs(reader)
    for pair in pairs:
        told = f"{pair.measure} {pair.similarity:.3f}, {pair.splits[0]} and {pair.splits[1]}"
        tally.test(f"clips {pair.first!r} and {pair.second!r}", [f"likely the same ({told})"] if pair.leak else [])
    nearest = [f"{measure} {max(pair.similarity for pair in pairs if pair.measure == measure):.3f}" for measure in _measures(pairs)]
    splits = {name for name in reader.clips.column("split").to_pylist() if name}
    skipped = "there is only one split" if len(splits) < 2 else "no clip has an identity embedding or a picture"
    return tally.done(measured=f"nearest pair: {', '.join(nearest)}" if nearest else "", skipped=skipped)


def nearest_pairs(reader: ShardReader, count: int = 20) -> list[NearPair]:
    """What speaks against the splits of a data set: see :func:`datasets_toolkit.curation.splits.evidence`."""
    clips, sources = reader.clips, reader.sources
    kept = clips.filter(clips.column("kept"))
    splits = kept.column("split").to_pylist()
    if len(set(splits)) < 2:
        return []
    contents = dict(zip(sources.column("source").to_pylist(), sources.column("sha256").to_pylist(), strict=True))
    hashes: dict[str, Any] = {}
    known = dict(zip(kept.column("clip").to_pylist(), kept.column("identity").to_pylist(), strict=True))
    for clip, row in picture_rows(reader, HASHED) if "image" in reader.columns else ():
        if known.get(clip, ()) is None:
            with suppress(UserError):  # a sample that cannot be decoded is told by another check
                image = reader.sample(row, ["image"]).image
                hashes.setdefault(clip, []).extend([] if image is None else picture_hash([image]))
    packed = {clip: np.array(rows, np.uint8) for clip, rows in hashes.items() if rows}
    return evidence(kept, splits, contents=contents, hashes=packed, count=count)


def _measures(pairs: Sequence[NearPair]) -> list[str]:
    return list(dict.fromkeys(pair.measure for pair in pairs))


def checks_text(checks: Sequence[Check]) -> str:
    """The outcome as plain text: a table, then the first faults of each check in words."""
    rows = [(check.status, check.name, check.tested, check.faults, check.measured or check.skipped) for check in checks]
    lines = [text_table(("", "check", "tested", "faults", ""), rows)]
    for check in checks:
        if check.faults:
            lines += ["", f"{check.name}, broken: {check.promise}", *(f"  {example}" for example in check.examples)]
            lines += [f"  and {check.faults - len(check.examples)} more"] if check.faults > len(check.examples) else []
    broken = sum(check.faults > 0 for check in checks)
    return "\n".join([*lines, "", "all promises that were tested hold" if not broken else f"{broken} of {len(checks)} checks failed"])


def checks_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """The outcome as plain JSON values."""
    return [{**asdict(check), "examples": list(check.examples), "status": check.status} for check in checks]
