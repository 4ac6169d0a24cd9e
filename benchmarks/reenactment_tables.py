"""Records, means, intervals, goals and tables of the reenactment benchmark; pure functions on numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

REPEATED, WARP = "source repeated", "2D warp"
BASELINES = (REPEATED, WARP)
QUALITIES = ("psnr", "ssim", "psnr_head", "ssim_head", "psnr_face", "ssim_face")
"""More is better; they are compared by differences, the errors by ratios."""
HEADINGS = ("PSNR", "SSIM", "PSNR head", "SSIM head", "PSNR face box", "SSIM face box", "AKD %", "AED", "APD °", "jitter", "no face")
AKD_GOAL, AED_GOAL = 1 / 8, 0.55
"""Largest share of the repeated frame's error that the project wants to leave."""
RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Score:
    """One method on one clip, means over frames; NaN where nothing can be measured.

    Attributes:
        psnr, ssim: full frame; ``_head`` over the head regions of the target's parsing, ``_face`` over its landmarks' bounding box.
        akd: per cent of the face's height.
        aed: mean L1 of the blendshape scores.
        apd: mean L1 of yaw, pitch and roll, degrees.
        jitter: of the output's landmarks over that of the ground truth's.
        missing: output frames in which no face is found; akd, aed and apd are means over the others.
    """

    psnr: float
    ssim: float
    psnr_head: float
    ssim_head: float
    psnr_face: float
    ssim_face: float
    akd: float
    aed: float
    apd: float
    jitter: float
    missing: int


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """One clip: what every method scored on the same frames, and what was spent.

    Attributes:
        clip: file name.
        frames: compared.
        untracked: frames left out for all methods, for the tracker finds no face in the ground truth's crop.
        scores: one for each method.
        source_psnr: full-frame PSNR of the method's own rendering of the source frame: what it cannot exceed by far on a still clip.
        tracking, animating: ms per frame, without decoding; building: ms of the portrait.
    """

    clip: str
    frames: int
    untracked: int
    scores: dict[str, Score]
    source_psnr: float
    tracking: float
    building: float
    animating: float


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Mean over clips of a paired difference and its 95 % bootstrap interval; the opponent is the better baseline on average."""

    metric: str
    opponent: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A line that the project wants to reach."""

    name: str
    value: float
    target: str
    reached: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Means over clips for each method, differences to the baselines and goals."""

    clips: int
    frames: int
    untracked: int
    means: dict[str, Score]
    intervals: list[Interval] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)


def summarise(results: Sequence[ClipResult], method: str) -> Summary:
    """All that is said of ``method`` over the clips.

    Raises:
        ValueError: there is no clip.
    """
    if not results:
        raise ValueError("no clip was measured")
    means = {name: mean_score([result.scores[name] for result in results]) for name in results[0].scores}
    intervals = [interval(results, means, method, metric) for metric in QUALITIES]
    return Summary(
        clips=len(results),
        frames=sum(result.frames for result in results),
        untracked=sum(result.untracked for result in results),
        means=means,
        intervals=intervals,
        goals=goals(means, method, intervals),
    )


def mean_score(scores: Sequence[Score]) -> Score:
    """Mean over clips, each of equal weight (clips where a value is not defined do not count in it); missing frames are added up."""
    values = {}
    for name in (item.name for item in fields(Score) if item.name != "missing"):
        known = [getattr(score, name) for score in scores if not np.isnan(getattr(score, name))]
        values[name] = float(np.mean(known)) if known else float("nan")
    return Score(**values, missing=sum(score.missing for score in scores))


def interval(results: Sequence[ClipResult], means: dict[str, Score], method: str, metric: str) -> Interval:
    """The method's lead over the better baseline in ``metric``, with a percentile bootstrap over clips (fixed seed)."""
    opponent = max(BASELINES, key=lambda name: getattr(means[name], metric))
    lead = np.array([getattr(result.scores[method], metric) - getattr(result.scores[opponent], metric) for result in results])
    lead = lead[np.isfinite(lead)]
    rows = np.random.default_rng(0).integers(0, len(lead), (RESAMPLES, len(lead)))
    low, high = np.percentile(lead[rows].mean(1), [2.5, 97.5])
    return Interval(metric=metric, opponent=opponent, mean=float(lead.mean()), low=float(low), high=float(high))


def goals(means: dict[str, Score], method: str, intervals: Sequence[Interval]) -> list[Goal]:
    """AKD and AED against the repeated frame's, PSNR and SSIM above both baselines'."""
    shares = [("AKD", "akd", AKD_GOAL), ("AED", "aed", AED_GOAL)]
    rows = []
    for name, metric, bound in shares:
        left, whole = getattr(means[method], metric), getattr(means[REPEATED], metric)
        share = left / whole if whole > 0 else float("nan")  # a still clip has nothing to follow
        rows.append(Goal(name=f"{name} / that of the repeated frame", value=share, target=f"<= {bound:.3f}", reached=bool(share <= bound)))
    for lead in intervals:
        name = f"{_heading(lead.metric)} - that of the better baseline ({lead.opponent})"
        rows.append(Goal(name=name, value=lead.mean, target="> 0", reached=lead.mean > 0))
    return rows


def _heading(metric: str) -> str:
    return HEADINGS[[item.name for item in fields(Score)].index(metric)]


def markdown(summary: Summary) -> str:
    """The tables: means, each method against the repeated frame (differences of PSNR and SSIM, ratios of errors), intervals, goals."""
    base = summary.means[REPEATED]
    absolute = [[name, *_cells(score)] for name, score in summary.means.items()]
    relative = [[name, *_against(score, base)] for name, score in summary.means.items() if name != REPEATED]
    leads = [[_heading(i.metric), i.opponent, f"{i.mean:+.3f}", f"{i.low:+.3f} to {i.high:+.3f}"] for i in summary.intervals]
    reached = [[g.name, f"{g.value:.3f}", g.target, "yes" if g.reached else "no"] for g in summary.goals]
    return "\n\n".join(
        [
            f"{summary.clips} clips, {summary.frames} frames ({summary.untracked} left out: no face found in the ground truth)",
            table(["mean over clips", *HEADINGS], absolute),
            table([f"against {REPEATED}", *HEADINGS[:-1]], relative),
            table(["lead over", "better baseline", "mean over clips", "95 % interval (bootstrap over clips)"], leads),
            table(["goal", "value", "wanted", "reached"], reached),
        ]
    )


def _cells(score: Score) -> list[str]:
    formats = ["{:.2f}", "{:.4f}"] * 3 + ["{:.2f}", "{:.4f}", "{:.2f}", "{:.2f}", "{:d}"]
    values = [getattr(score, item.name) for item in fields(Score)]
    return ["-" if np.isnan(value) else text.format(value) for text, value in zip(formats, values, strict=True)]


def _against(score: Score, base: Score) -> list[str]:
    cells = []
    for item in fields(Score)[:-1]:
        value, other = getattr(score, item.name), getattr(base, item.name)
        if item.name in QUALITIES:
            cells.append(f"{value - other:+.2f}" if item.name.startswith("psnr") else f"{value - other:+.4f}")
        else:
            cells.append(f"x {value / other:.3f}" if other > 0 and not np.isnan(value) else "-")
    return cells


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])
