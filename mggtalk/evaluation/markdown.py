"""What a report of a suite says, and that as Markdown."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mggtalk.evaluation.results import Metric, PairResult, SuiteResult
from mggtalk.evaluation.summary import Estimate, Summary, better

FEW_PEOPLE = 10
"""Below this many, percentile intervals are told to be too narrow."""

_NAMES = {"name": "Name", "manifest": "Manifest, hash", "manifests": "Manifests, hashes", "split": "Split", "people": "People"}
# What Markdown takes for markup; an underscore inside a word is none.
_MARKUP = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report in plain text: paragraphs, then a table, then a list.

    Attributes:
        title: of the part.
        text: paragraphs.
        head: names of the table's columns; empty if there is no table.
        rows: of the table, each as long as ``head``.
        items: of the list: a name and what is said of it.
        numbers: whether the table's cells are short, and never broken into lines.
    """

    title: str
    text: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    items: tuple[tuple[str, str], ...] = ()
    numbers: bool = False


def markdown(results: SuiteResult, summary: Summary) -> str:
    """A report as Markdown (GitHub's tables); names may hold any characters."""
    lines = [f"# {escaped(report_title(results))}", "", escaped(results.protocol), ""]
    for section in sections(results, summary):
        lines += [f"## {escaped(section.title)}", ""]
        for text in section.text:
            lines += [escaped(text), ""]
        if section.head:
            lines += [_row(section.head), _row(["---"] * len(section.head), plain=True), *map(_row, section.rows), ""]
        if section.items:
            lines += [*(f"- **{escaped(name)}**: {escaped(text)}" for name, text in section.items), ""]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Any text as one line of Markdown that shows it as it is."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def report_title(results: SuiteResult) -> str:
    """What stands above a report."""
    return f"Benchmark, suite {results.suite}"


def sections(results: SuiteResult, summary: Summary) -> list[Section]:
    """All that a report says below its title and protocol."""
    parts = [_data(results, summary), _methods(results), _means(results, summary), *_sets(results), _differences(results, summary)]
    return [*parts, _people(results, summary), _metrics(results), _missing(results), _refused(results), _pairs(results)]


def metric_label(metric: Metric) -> str:
    """Title, unit, and an arrow to where it is better."""
    return f"{metric.title}{f' ({metric.unit})' if metric.unit else ''} {'↑' if metric.better == 'higher' else '↓'}"


def decimals(metric: Metric, summary: Summary) -> int:
    """After the point, so that the largest mean has four digits."""
    sizes = [abs(row[metric.name].mean) for row in summary.means.values() if row[metric.name].people]
    largest = max(sizes, default=0.0)
    return min(max(3 - math.floor(math.log10(largest)), 0), 9) if largest > 0 else 3


def estimate_text(estimate: Estimate, places: int, sign: str = "") -> str:
    """A mean and its interval, or a dash where nothing was measured; ``sign`` is ``+`` where positive numbers show theirs."""
    if not estimate.people:
        return "–"
    mean = f"{estimate.mean:{sign}.{places}f}"
    if math.isnan(estimate.low):
        return f"{mean} (no interval: {'one person' if estimate.people == 1 else 'too few resamples'})"
    return f"{mean} ({estimate.low:{sign}.{places}f} to {estimate.high:{sign}.{places}f})"


def difference_text(metric: Metric, estimate: Estimate, places: int) -> str:
    """A difference and what it says of the first method."""
    return f"{estimate_text(estimate, places, '+')}{f', {better(metric, estimate)}' if estimate.people else ''}"


def _data(results: SuiteResult, summary: Summary) -> Section:
    known = [(_NAMES.get(key, f"{key[:1].upper()}{key[1:]}"), _value(value)) for key, value in results.data.items()]
    measured = [("Pairs measured", f"{len(results.pairs)}, of {_number(len(summary.people), 'source person', 'source people')}")]
    settings = [(f"Setting {key}", _value(value)) for key, value in results.settings.items()]
    return Section(title="Data", items=tuple([*known, *measured, *settings]))


def _methods(results: SuiteResult) -> Section:
    rows = []
    for method in results.methods:
        times = [pair.milliseconds[method] for pair in results.pairs if method in pair.milliseconds]
        known = [time for time in times if time is not None and math.isfinite(time)]
        rows.append((method, results.about.get(method, ""), f"{statistics.median(known):.1f}" if known else "not measured"))
    text = "The first is under test. The time is the median over pairs."
    return Section(title="Methods", text=(text,), head=("method", "what it is", "ms a frame"), rows=tuple(rows))


def _means(results: SuiteResult, summary: Summary) -> Section:
    text = [
        "The mean over source people of the mean of their pairs; ↑ higher is better, ↓ lower is better. In brackets the 95 % interval: "
        f"percentiles of {summary.resamples} bootstrap resamples of the people (seed {summary.seed}). A dash: not measured."
    ]
    people = len(summary.people)
    if people == 1:
        text.append("There is only one source person, so no interval can be given.")
    elif people < FEW_PEOPLE:
        text.append(f"There are only {people} source people: percentile intervals from so few are usually too narrow.")
    rows = [
        (metric_label(metric), *(_cell(row[metric.name], metric, results, summary) for row in summary.means.values()))
        for metric in results.metrics
    ]
    return Section(title="Means", text=tuple(text), head=("metric", *results.methods), rows=tuple(rows), numbers=True)


def _sets(results: SuiteResult) -> list[Section]:
    """For each metric of all pictures together a table of the methods; no section without one."""
    found = []
    for one in results.sets:
        rows = tuple(
            (method, "not measured" if math.isnan(value) else f"{value:.4g}", str(one.pictures[method]))
            for method, value in one.values.items()
        )
        head = ("method", metric_label(one.metric), "pictures")
        found.append(Section(title=one.metric.title, text=(f"Real pictures: {one.real}. {one.text}",), head=head, rows=rows, numbers=True))
    return found


def _differences(results: SuiteResult, summary: Summary) -> Section:
    title = "Differences"
    if not summary.differences:
        return Section(title=title, text=("There is no other method to compare with.",))
    text = (
        f"{results.methods[0]} minus the method of the column, over the pairs where both have a value. Better and worse say what an "
        f"interval without zero means for {results.methods[0]}; even: the interval holds zero; unknown: there is no interval.",
    )
    rows = []
    for metric in results.metrics:
        found = (row[metric.name] for row in summary.differences.values())
        rows.append((metric_label(metric), *(_cell(one, metric, results, summary, difference=True) for one in found)))
    head = ("metric", *(f"minus {method}" for method in summary.differences))
    return Section(title=title, text=text, head=head, rows=tuple(rows), numbers=True)


def _people(results: SuiteResult, summary: Summary) -> Section:
    first = results.methods[0] if results.methods else ""
    pairs = Counter(pair.source_person for pair in results.pairs)
    rows = []
    for person, by_method in summary.people.items():
        values = ((by_method[first][metric.name], decimals(metric, summary)) for metric in results.metrics)
        cells = ("not measured" if math.isnan(value) else f"{value:.{places}f}" for value, places in values)
        rows.append((person, str(pairs[person]), *cells))
    head = ("source person", "pairs", *map(metric_label, results.metrics))
    text = f"Means of {first} over the pairs of each source person."
    return Section(title="People", text=(text,), head=head, rows=tuple(rows), numbers=True)


def _metrics(results: SuiteResult) -> Section:
    items = []
    for metric in (*results.metrics, *(one.metric for one in results.sets)):
        model = "; ".join(f"{key} {value}" for key, value in metric.model.items())
        read = f"Model: {model}." if model else "No model reads the pictures."
        items.append((metric_label(metric), f"{metric.definition.rstrip('.')}. {metric.better.capitalize()} is better. {read}"))
    return Section(title="Metrics", items=tuple(items))


def _missing(results: SuiteResult) -> Section:
    rows = tuple((one.title, one.reason, one.remedy) for one in results.missing)
    return _listed("Metrics not measured", "Every metric of the suite was measured.", ("metric", "why", "how to get it"), rows)


def _refused(results: SuiteResult) -> Section:
    return _listed("Pairs refused", "No pair was refused.", ("pair", "why"), tuple(results.refused.items()))


def _pairs(results: SuiteResult) -> Section:
    rows = tuple(
        (one.name, f"{_who(one.source, one.source_person)} → {_who(one.driver, one.driver_person)}", _frames(one)) for one in results.pairs
    )
    return _listed("Pairs", "No pair was measured.", ("pair", "source → driver", "frames"), rows)


def _listed(title: str, none: str, head: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> Section:
    return Section(title=title, head=head, rows=rows) if rows else Section(title=title, text=(none,))


def _cell(estimate: Estimate, metric: Metric, results: SuiteResult, summary: Summary, difference: bool = False) -> str:
    places = decimals(metric, summary)
    text = difference_text(metric, estimate, places) if difference else estimate_text(estimate, places)
    partly = 0 < estimate.pairs < len(results.pairs)
    return f"{text}, {estimate.pairs} of {len(results.pairs)} pairs" if partly else text


def _who(key: str, person: str) -> str:
    return f"{key} ({person})" if person else key


def _frames(pair: PairResult) -> str:
    if len(pair.frames) < 2:
        return ", ".join((str(len(pair.frames)), *pair.frames))
    return f"{len(pair.frames)}, {pair.frames[0]} to {pair.frames[-1]}"


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
        return f"{len(value)}: {', '.join(value)}" if value else "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _row(cells: Sequence[str] | Iterable[str], plain: bool = False) -> str:
    return f"| {' | '.join(cell if plain else escaped(cell) for cell in cells)} |"
