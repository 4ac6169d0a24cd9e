"""What a policy would keep, before anything is packed: totals, reasons and distributions from the manifest alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from datasets_toolkit.curation.policy import SCORES, Policy, judge, score_values
from datasets_toolkit.schema import FloatArray

if TYPE_CHECKING:
    import pyarrow

Mask = npt.NDArray[np.bool_]
BINS = 24
MEASURES = {
    "mouth_p95": ("mouth opening", "of the face's size, 95th percentile"),
    "sharpness": ("sharpness", "variance of the Laplacian"),
    "face_size": ("face size", "px"),
    "fps": ("frame rate", "1/s"),
    "duration": ("duration", "s"),
}
"""Scores that are shown as histograms, in words, and their units."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """How much a set of clips holds; hours count the frames that show the face."""

    clips: int
    hours: float
    people: int
    sources: int


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why clips are rejected; ``alone`` counts those (and their hours) that nothing else speaks against."""

    text: str
    clips: int
    hours: float
    alone: int
    alone_hours: float


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Hours over a score; what lies beyond the edges counts in the outermost bins.

    Attributes:
        score: column of ``clips.parquet``, or ``yaw``.
        title: in words.
        unit: of the edges.
        edges: n + 1 of them.
        kept: n, hours that the policy keeps.
        rejected: n, hours that it rejects.
        unknown: hours of clips whose score was not measured.
        limits: that the policy sets.
    """

    score: str
    title: str
    unit: str
    edges: FloatArray
    kept: FloatArray
    rejected: FloatArray
    unknown: float
    limits: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a policy does with a manifest.

    Attributes:
        keep: whether each clip is kept.
        why: reasons of each clip.
        kept: totals of what stays.
        rejected: totals of what goes.
        datasets: both totals for each data set.
        reasons: most hours first.
        problems: of rejected source videos, with how many have each.
        sources: source videos in the manifest.
        unmeasured: scores that the policy lets pass unknown, with how many kept clips do so.
        histograms: of the main scores.
    """

    keep: Mask
    why: list[list[str]]
    kept: Totals
    rejected: Totals
    datasets: dict[str, tuple[Totals, Totals]]
    reasons: list[Reason]
    problems: list[tuple[str, int]]
    sources: int
    unmeasured: dict[str, int]
    histograms: list[Histogram]


def make_plan(clips: pyarrow.Table, sources: pyarrow.Table, policy: Policy) -> Plan:
    """Apply a policy to ``clips.parquet`` and ``sources.parquet``.

    Raises:
        UserError: as :func:`datasets_toolkit.curation.policy.judge`.
    """
    keep, why = judge(clips, policy)
    names = np.array(clips.column("dataset").to_pylist(), object)
    limited = policy.minimum.given().keys() | policy.maximum.given().keys()
    passed = {score: int((np.isnan(score_values(clips, score)) & keep).sum()) for score in SCORES if score in limited}
    return Plan(
        keep=keep,
        why=why,
        kept=totals(clips, keep),
        rejected=totals(clips, ~keep),
        datasets={str(one): (totals(clips, keep & (names == one)), totals(clips, ~keep & (names == one))) for one in sorted(set(names))},
        reasons=_reasons(why, hours(clips)),
        problems=source_problems(sources),
        sources=sources.num_rows,
        unmeasured={score: count for score, count in passed.items() if count},
        histograms=_histograms(clips, keep, policy),
    )


def hours(clips: pyarrow.Table) -> FloatArray:
    """Hours of frames with a face in each clip."""
    frames, rate, unit = (np.asarray(clips.column(name).to_numpy(), np.float64) for name in ("frames", "fps_num", "fps_den"))
    return np.where(rate > 0, frames * unit / np.where(rate > 0, rate, 1) / 3600, 0.0)


def people(clips: pyarrow.Table) -> list[str]:
    """Who each clip shows; an unnamed person counts as one for each source."""
    return [name or source for name, source in zip(clips.column("person").to_pylist(), clips.column("source").to_pylist(), strict=True)]


def totals(clips: pyarrow.Table, chosen: Mask) -> Totals:
    """Of the chosen clips."""
    names, sources = np.array(people(clips), object), np.array(clips.column("source").to_pylist(), object)
    return Totals(
        clips=int(chosen.sum()),
        hours=float(hours(clips)[chosen].sum()),
        people=len(set(names[chosen])),
        sources=len(set(sources[chosen])),
    )


def general(reason: str) -> str:
    """A reason without the value of the one clip: ``sharpness 31 < 50`` becomes ``sharpness < 50``."""
    return re.sub(r"^(\w+) \S+ ([<>]) (\S+)$", r"\1 \2 \3", reason)


def source_problems(sources: pyarrow.Table) -> list[tuple[str, int]]:
    """Problems of sources with how many have each, most first; numbers and file names are left out, or each would be its own."""
    counts: Counter[str] = Counter()
    for path, problems in zip(sources.column("path").to_pylist(), sources.column("problems").to_pylist(), strict=True):
        texts = {re.sub(r"\d+(\.\d+)?", "#", problem.replace(str(path), "").lstrip(": ")) for problem in problems or ()}
        counts.update(sorted(texts))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _reasons(why: Sequence[Sequence[str]], length: FloatArray) -> list[Reason]:
    rows: dict[str, list[int]] = {}
    for row, texts in enumerate(why):
        for text in dict.fromkeys(map(general, texts)):
            rows.setdefault(text, []).append(row)
    found = []
    for text, where in rows.items():
        alone = [row for row in where if len(set(map(general, why[row]))) == 1]
        lengths = float(length[where].sum()), float(length[alone].sum())
        found.append(Reason(text=text, clips=len(where), hours=lengths[0], alone=len(alone), alone_hours=lengths[1]))
    return sorted(found, key=lambda reason: (-reason.hours, -reason.clips, reason.text))


def _histograms(clips: pyarrow.Table, keep: Mask, policy: Policy) -> list[Histogram]:
    found = [_yaw_reached(clips, keep, policy)]
    for score, (title, unit) in MEASURES.items():
        limits = tuple(value for value in (getattr(policy.minimum, score), getattr(policy.maximum, score)) if value is not None)
        values, length = score_values(clips, score), hours(clips)
        known = np.isfinite(values)
        edges = _edges(values[known], limits)
        inside = np.clip(values, edges[0], edges[-1])
        kept, rejected = (np.histogram(inside[known & chosen], edges, weights=length[known & chosen])[0] for chosen in (keep, ~keep))
        unknown = float(length[~known].sum())
        found.append(
            Histogram(score=score, title=title, unit=unit, edges=edges, kept=kept, rejected=rejected, unknown=unknown, limits=limits)
        )
    return found


def _edges(values: FloatArray, limits: Sequence[float]) -> FloatArray:
    """Bins of one round width over nearly all values and the limits; outliers would leave all others in one bin."""
    if not len(values):
        return np.linspace(0.0, 1.0, BINS + 1)
    low, high = np.percentile(values, [0.5, 99.5])
    low, high = min(low, *limits, high), max(high, *limits, low)
    step = round_step(max(high - low, abs(high) * 0.01, 1e-6) / BINS)
    start = np.floor(low / step)
    count = max(int(np.ceil(high / step + 1e-9) - start), 1)
    return np.asarray((start + np.arange(count + 1)) * step)


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``least`` (> 0)."""
    power = 10.0 ** np.floor(np.log10(least))
    return float(next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= least * (1 - 1e-9)))


def _yaw_reached(clips: pyarrow.Table, keep: Mask, policy: Policy) -> Histogram:
    """For each yaw the hours of the clips whose range reaches it; a clip counts in several bins."""
    low, high, length = score_values(clips, "yaw_min"), score_values(clips, "yaw_max"), hours(clips)
    edges = np.arange(-90.0, 91.0, 10.0)
    reached = (low[:, None] < edges[None, 1:]) & (high[:, None] >= edges[None, :-1])  # NaN compares false
    kept, rejected = (np.asarray((reached[chosen] * length[chosen, None]).sum(0)) for chosen in (keep, ~keep))
    widest = policy.maximum.yaw_abs_p95
    return Histogram(
        score="yaw",
        title="yaw reached",
        unit="degrees; a clip counts wherever its range goes",
        edges=edges,
        kept=kept,
        rejected=rejected,
        unknown=float(length[np.isnan(low) | np.isnan(high)].sum()),
        limits=() if widest is None else (-widest, widest),
    )
