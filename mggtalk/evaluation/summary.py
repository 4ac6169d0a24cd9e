"""Means of a suite over people, with intervals from a bootstrap that resamples people.

Pairs of one source person are alike, so they are kept together: a cluster bootstrap (Davison and Hinkley, Bootstrap Methods and
their Application, 1997, section 3.8, the first of its two schemes: groups are drawn, what is in them stays). A metric's mean is the
mean over people of the mean of their pairs; intervals are the 2.5 and 97.5 percentiles of the resampled means (section 5.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from datasets_toolkit.schema import FloatArray
from mggtalk.evaluation.results import Metric, SuiteResult

Verdict = Literal["better", "worse", "even", "unknown"]
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its 95 % interval.

    Attributes:
        mean: over people of the mean of their pairs; NaN where nothing was measured.
        low: end of the interval; NaN with fewer than two people.
        high: end of the interval; NaN with fewer than two people.
        people: who has a value.
        pairs: that have a value.
    """

    mean: float
    low: float
    high: float
    people: int
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A suite in a few numbers.

    Attributes:
        means: by method, then by metric.
        differences: by method other than the first, then by metric: the first method minus that one, over pairs where both have a value.
        people: by source person, method and metric: the mean of the person's pairs; NaN where none has a value.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    means: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Estimate]]
    people: Mapping[str, Mapping[str, Mapping[str, float]]]
    resamples: int
    seed: int


def summarise(results: SuiteResult, resamples: int = 2000, seed: int = 0) -> Summary:
    """Means, paired differences and their intervals; all of them see the same resamples of people.

    A value that is not finite counts as not measured, as it does in the JSON file.

    Raises:
        ValueError: ``resamples`` is not positive.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be positive, got {resamples}")
    names = [metric.name for metric in results.metrics]
    people = sorted({pair.source_person for pair in results.pairs})
    member = np.array([[pair.source_person == person for pair in results.pairs] for person in people], float)
    member = member.reshape(len(people), len(results.pairs))
    counts = _counts(len(people), resamples, seed)
    by_method = {method: _values(results, method, names) for method in results.methods}
    means = {method: _estimates(names, values, member, counts) for method, values in by_method.items()}
    first = by_method[results.methods[0]] if results.methods else None
    differences = {
        method: _estimates(names, first - values, member, counts) for method, values in list(by_method.items())[1:] if first is not None
    }
    own = {method: _person_means(values, member)[0] for method, values in by_method.items()}
    rows = {
        person: {method: dict(zip(names, map(float, table[index]), strict=True)) for method, table in own.items()}
        for index, person in enumerate(people)
    }
    return Summary(means=means, differences=differences, people=rows, resamples=resamples, seed=seed)


def better(metric: Metric, estimate: Estimate) -> Verdict:
    """What a difference says of the first method: ``even`` where its interval holds zero, ``unknown`` where there is no interval."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return "unknown"
    if estimate.low <= 0 <= estimate.high:
        return "even"
    return "better" if (estimate.low > 0) == (metric.better == "higher") else "worse"


def summary_record(summary: Summary) -> dict[str, Any]:
    """A summary as JSON values; NaN becomes None."""
    record: dict[str, Any] = _plain(asdict(summary))
    return record


def _values(results: SuiteResult, method: str, names: Sequence[str]) -> FloatArray:
    """Pairs x metrics, NaN where there is no finite value."""
    rows = [[pair.values.get(method, {}).get(name, math.nan) for name in names] for pair in results.pairs]
    values = np.array(rows, float).reshape(len(rows), len(names))
    return np.where(np.isfinite(values), values, np.nan)


def _counts(people: int, resamples: int, seed: int) -> FloatArray:
    """Resamples x people: how often each is drawn."""
    draws = np.random.default_rng(seed).integers(0, max(people, 1), (resamples, people))
    flat = draws + people * np.arange(resamples)[:, None]
    return np.bincount(flat.ravel(), minlength=resamples * people).reshape(resamples, people).astype(float)


def _person_means(values: FloatArray, member: FloatArray) -> tuple[FloatArray, FloatArray]:
    """People x metrics: the mean of each person's pairs (NaN without any), and the number of pairs in it."""
    pairs = member @ np.isfinite(values).astype(float)
    sums = member @ np.nan_to_num(values)
    return np.divide(sums, pairs, out=np.full(sums.shape, np.nan), where=pairs > 0), pairs


def _estimates(names: Sequence[str], values: FloatArray, member: FloatArray, counts: FloatArray) -> dict[str, Estimate]:
    """One for each column of ``values`` (pairs x metrics), given who is in which pair (people x pairs) and the draws."""
    means, pairs = _person_means(values, member)
    there = pairs > 0
    # A person without a value is drawn and adds nothing, so that all metrics can share their resamples.
    weight = counts @ there.astype(float)
    resampled = np.divide(counts @ np.nan_to_num(means), weight, out=np.full(weight.shape, np.nan), where=weight > 0)
    found = {}
    for column, name in enumerate(names):
        own = means[there[:, column], column]
        low, high = _interval(resampled[:, column]) if len(own) > 1 else (math.nan, math.nan)
        mean = float(own.mean()) if len(own) else math.nan
        found[name] = Estimate(mean=mean, low=low, high=high, people=len(own), pairs=round(pairs[:, column].sum()))
    return found


def _interval(resampled: FloatArray) -> tuple[float, float]:
    known = resampled[np.isfinite(resampled)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.percentile(known, _PERCENTILES)
    return float(low), float(high)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
