"""Checks of the manifest tables against themselves and each other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from datasets_toolkit.checks.tally import Check, Tally
from datasets_toolkit.curation.policy import SCORES
from datasets_toolkit.curation.splits import SPLITS, shared
from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import BLENDSHAPES

if TYPE_CHECKING:
    import pyarrow

SOURCE_COLUMNS = (
    "source", "path", "dataset", "person", "sha256", "width", "height", "fps_num", "fps_den", "vfr", "duration", "frames", "has_audio",
    "av_offset", "av_confidence", "status", "problems",
)  # fmt: skip
CLIP_COLUMNS = (
    "clip", "source", "dataset", "person", "face", "start", "end", "first", "last", "frames", "gaps", "fps_num", "fps_den", *SCORES,
    "split", "kept", "reasons", "identity",
)  # fmt: skip
INDEX_COLUMNS = ("key", "clip", "split", "shard", "index", "time", "yaw", "pitch", "roll", "mouth", "expression")
_KEY = re.compile(r"[A-Za-z0-9_-]+_\d{6,}")
_CLIP = re.compile(r"[A-Za-z0-9_-]+")
_TIMING = 0.5  # frames by which a step in time may differ from the step in the frame number
UNEVEN, OFF_RATE = 0.02, 0.02
"""Share of steps that may be uneven, and relative difference of the pace, before a rate that is called constant is not believed."""


def check_columns(tables: dict[str, pyarrow.Table]) -> Check:
    """Each of ``sources``, ``clips`` and ``index`` has its columns."""
    tally = Tally("columns", "the tables have the columns of the schema")
    for name, wanted in (("sources", SOURCE_COLUMNS), ("clips", CLIP_COLUMNS), ("index", INDEX_COLUMNS)):
        missing = [column for column in wanted if column not in tables[name].column_names]
        tally.test(f"{name}.parquet", [f"has no column {', '.join(missing)}"] if missing else [])
    return tally.done()


def check_ids(tables: dict[str, pyarrow.Table]) -> Check:
    """Ids are unique, a key is its clip and frame number, and whatever is named elsewhere exists."""
    tally = Tally("ids", "ids are unique and lead to each other")
    clips, index = tables["clips"], tables["index"]
    for table, column in (("sources", "source"), ("clips", "clip"), ("index", "key")):
        for name, count in Counter(tables[table].column(column).to_pylist()).items():
            tally.test(f"{table}.parquet", [f"{column} {name!r} stands there {count} times"] if count > 1 else [])
    known = set(tables["sources"].column("source").to_pylist())
    for clip, source in zip(clips.column("clip").to_pylist(), clips.column("source").to_pylist(), strict=True):
        tally.test(f"clip {clip!r}", [] if source in known else [f"its source {source!r} is not in sources.parquet"])
    for key, clip, number in _rows(index, "key", "clip", "index"):
        right = key == f"{clip}_{number:06d}" and _KEY.fullmatch(key)
        tally.test(f"sample {key!r}", [] if right else [f"its key is not that of frame {number} of clip {clip!r}"])
    return tally.done()


def check_manifest(tables: dict[str, pyarrow.Table]) -> Check:
    """Packed samples belong to kept clips, with their split; every kept clip is packed; rejected ones have reasons."""
    tally = Tally("manifest", "what is packed is what was kept")
    packed: dict[str, Counter[str]] = {}
    for clip, split in _rows(tables["index"], "clip", "split"):
        packed.setdefault(clip, Counter())[split] += 1
    for clip, kept, split, reasons, frames in _rows(tables["clips"], "clip", "kept", "split", "reasons", "frames"):
        found, faults = packed.pop(clip, Counter()), []
        if kept:
            if split not in SPLITS:
                faults.append(f"kept, but its split is {split!r}")
            if set(found) != {split} or found.total() != frames:
                faults.append(f"{frames} frames kept in {split!r}, packed are {dict(found) or 'none'}")
        else:
            faults += ["rejected without a reason"] if not reasons else []
            faults += ["rejected, but packed"] if found else []
        tally.test(f"clip {clip!r}", faults)
    for clip in packed:
        tally.test(f"clip {clip!r}", ["packed, but not in clips.parquet"])
    return tally.done()


def check_times(tables: dict[str, pyarrow.Table]) -> Check:
    """In each clip indices and times grow strictly, and where the rate is constant a time is its index over the rate."""
    tally = Tally("times", "times grow strictly and fit indices and frame rate")
    rates = {clip: (num / den, source) for clip, source, num, den in _rows(tables["clips"], "clip", "source", "fps_num", "fps_den") if den}
    varying = {source for source, vfr in _rows(tables["sources"], "source", "vfr") if vfr}
    index = tables["index"]
    numbers, times = (index.column(name).to_numpy() for name in ("index", "time"))
    for clip, rows in clip_rows(index).items():
        rate, source = rates.get(clip, (0.0, ""))
        tally.test(f"clip {clip!r}", time_faults(numbers[rows], times[rows], 0.0 if source in varying else rate))
    return tally.done()


def clip_rows(index: pyarrow.Table) -> dict[str, npt.NDArray[np.intp]]:
    """The rows of each clip of ``index.parquet``, in stored order."""
    names, codes = np.unique(np.array(index.column("clip").to_pylist(), str), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(names) + 1))
    return {str(name): order[starts[code] : starts[code + 1]] for code, name in enumerate(names)}


def safe_clip(clip: str) -> str:
    """The clip's id, if it can be the name of a file: a foreign data set may call its clips anything.

    Raises:
        UserError: it cannot.
    """
    if not _CLIP.fullmatch(clip):
        raise UserError(f"clip {clip!r}: not a name for a file, it may only hold letters, digits, - and _; build the data set again")
    return clip


def time_faults(indices: np.ndarray, times: np.ndarray, rate: float) -> list[str]:
    """What is wrong with the frame numbers and times (s) of a clip in stored order; a rate of 0 says that it varies."""
    faults = []
    if not np.isfinite(times).all():
        return ["a time is not finite"]
    if (np.diff(indices) <= 0).any():
        faults.append(f"frame {int(indices[1:][np.diff(indices) <= 0][0])} does not follow the one before")
    if (np.diff(times) <= 0).any():
        faults.append(f"time {float(times[1:][np.diff(times) <= 0][0]):.6g} s does not exceed the one before")
    if rate > 0 and len(times) > 1 and not faults:
        passed, frames = np.diff(times) * rate, np.diff(indices)
        uneven = np.abs(passed - frames) > _TIMING
        if uneven.mean() > UNEVEN and uneven.sum() > 2:  # a source may lack a few frames; its rate is constant all the same
            worst = int(np.abs(passed - frames).argmax())
            told = f"{passed[worst]:.2f} frame times pass between frames {int(indices[worst])} and {int(indices[worst + 1])}"
            faults.append(f"{100 * uneven.mean():.0f} % of the times do not fit the frame rate {rate:.6g}: {told}")
        elif (~uneven).sum() > 5 and abs(pace := passed[~uneven].sum() / frames[~uneven].sum() - 1) > OFF_RATE:
            faults.append(f"its frames are {100 * pace:+.1f} % off the frame rate {rate:.6g}")
    return faults


def check_splits(tables: dict[str, pyarrow.Table]) -> Check:
    """No person and no source lies in two splits."""
    clips = tables["clips"]
    tally = Tally("splits", "splits share no person and no source")
    kept = clips.filter(clips.column("kept"))
    people = Counter(kept.column("person").to_pylist())
    told = shared(kept, kept.column("split").to_pylist())
    for fault in told:
        tally.test("clips.parquet", [fault])
    tally.tested += max(len(people) - len(told), 0)
    return tally.done()


def check_scores(tables: dict[str, pyarrow.Table]) -> Check:
    """Expressions in the index have 52 scores in [0, 1], angles are finite."""
    tally = Tally("index", "expressions lie in [0, 1], angles are finite")
    index = tables["index"]
    keys, column = index.column("key"), index.column("expression").combine_chunks()
    full: npt.NDArray[np.bool_] = np.array(column.value_lengths().to_numpy(zero_copy_only=False)) == len(BLENDSHAPES)
    owner = np.asarray(column.value_parent_indices())
    values = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float64)
    outside = ~((values >= 0) & (values <= 1))
    full[owner[outside]] = False
    angles = np.stack([np.asarray(index.column(name).to_numpy(), np.float64) for name in ("yaw", "pitch", "roll", "mouth")])
    finite = np.asarray(np.isfinite(angles).all(axis=0))
    for row in np.flatnonzero(~(full & finite)):
        faults = [] if full[row] else ["expression is not 52 scores in [0, 1]"]
        tally.test(f"sample {keys[row].as_py()!r}", faults if finite[row] else [*faults, "an angle or the mouth opening is not finite"])
    tally.tested += int((full & finite).sum())
    return tally.done()


def count_offsets(tables: dict[str, pyarrow.Table]) -> Check:
    """How many sources with sound have a measured A/V offset, and how large it is."""
    tally = Tally("A/V offset", "the offset between sound and picture is recorded where it was measured")
    rows = [(source, offset) for source, sound, offset in _rows(tables["sources"], "source", "has_audio", "av_offset") if sound]
    known = [abs(offset) for _, offset in rows if offset is not None and np.isfinite(offset)]
    middle = f", median of their size {np.median(known):.3g} s" if known else ""
    return tally.done(measured=f"{len(known)} of {len(rows)} sources with sound{middle}")


TABLE_CHECKS = (check_ids, check_manifest, check_times, check_splits, check_scores, count_offsets)


def _rows(table: pyarrow.Table, *columns: str) -> Iterable[Sequence[Any]]:
    return zip(*(table.column(column).to_pylist() for column in columns), strict=True)
