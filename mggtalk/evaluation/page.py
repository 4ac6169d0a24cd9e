"""A report of a suite as one page of HTML that needs nothing else: no network, no script."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from datasets_toolkit.curation.pages import WIDTH, page, table
from mggtalk.evaluation.markdown import Section, decimals, estimate_text, metric_label, report_title, sections
from mggtalk.evaluation.results import Metric, SuiteResult
from mggtalk.evaluation.summary import Estimate, Summary, better

_EDGE, _ROW, _TOP, _AXIS = 10.0, 38.0, 4.0, 20.0  # pixels: beside the plot, of a method, above the first, below the last
_LETTERS = 26  # of a name above its row, beside the numbers
_GRID = 'class="grid" style="margin-top:1rem;grid-template-columns:repeat(auto-fill,minmax(min(22rem,100%),1fr))"'  # one column on a phone
_FIRST, _OTHER = "kept", "rejected"  # colours of the page


def page_of(results: SuiteResult, summary: Summary, videos: Mapping[str, bytes]) -> str:
    """A report with plots and videos; every text from outside is escaped.

    Args:
        results: of the suite.
        summary: of the results.
        videos: MP4 files by caption, such as a pair's name and ``best`` or ``worst``.
    """
    title = report_title(results)
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(results.protocol)}</p>"]
    for section in sections(results, summary):
        body.append(_section(section))
        if section.title == "Means":
            body.append(f"<div {_GRID}>{''.join(means_plot(metric, summary) for metric in results.metrics)}</div>")
        if section.title == "Differences":
            body += [_differences(results, summary), *_videos(videos)]
    return page(title, body)


def means_plot(metric: Metric, summary: Summary) -> str:
    """The means of a metric as SVG: a dot with its interval for each method."""
    places = decimals(metric, summary)
    estimates = {method: row[metric.name] for method, row in summary.means.items()}
    scale = _Scale(value for one in estimates.values() for value in (one.mean, one.low, one.high))
    parts = scale.axis(len(estimates))
    for row, (method, one) in enumerate(estimates.items()):
        parts += [_label(row, method, estimate_text(one, places)), _estimate(scale, row, method, one, _OTHER if row else _FIRST)]
    return _figure(f"{metric_label(metric)}, mean", scale, parts, len(estimates))


def differences_plot(metric: Metric, results: SuiteResult, summary: Summary) -> str:
    """The first method minus each other one as SVG: a dot for each pair, below them the mean with its interval."""
    places = decimals(metric, summary)
    dots = {method: _pair_differences(results, method, metric.name) for method in summary.differences}
    estimates = {method: row[metric.name] for method, row in summary.differences.items()}
    ends = (value for one in estimates.values() for value in (one.low, one.high))
    scale = _Scale([0.0, *ends, *(value for row in dots.values() for value in row.values())])
    parts = scale.axis(len(dots))
    parts.append(_line("limit", scale.x(0.0), _TOP, scale.x(0.0), _TOP + _ROW * len(dots), "no difference"))
    for row, (method, values) in enumerate(dots.items()):
        parts.append(_label(row, method, _short(metric, estimates[method], places)))
        for place, (pair, value) in enumerate(values.items()):
            y = _TOP + _ROW * row + 19 + 2 * (place % 3)  # at three heights, so that fewer hide each other
            parts.append(_dot(_OTHER, scale.x(value), y, 2.5, f"{pair}: {value:+.{places}f}", 0.6))
        parts.append(_estimate(scale, row, f"mean, minus {method}", estimates[method], _FIRST))
    return _figure(f"{metric_label(metric)}, {results.methods[0]} minus", scale, parts, len(dots))


class _Scale:
    """Values to places on the axis of a plot; values that are not finite are left out."""

    def __init__(self, values: Iterable[float]) -> None:
        known = [value for value in values if math.isfinite(value)]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        apart = high - low > 1e-4 * max(abs(low), abs(high))  # or the numbers at the axis would be all the same
        margin = 0.05 * (high - low) if apart else 0.05 * abs(high) or 0.5
        self.known = bool(known)
        self._low, self._span = low - margin, high - low + 2 * margin

    def x(self, value: float) -> float:
        return _EDGE + (WIDTH - 2 * _EDGE) * (value - self._low) / self._span

    def axis(self, rows: int) -> list[str]:
        """A line below ``rows`` rows with round numbers below it, and faint lines above them."""
        y = _TOP + _ROW * rows
        step = 10.0 ** math.floor(math.log10(self._span / 2))
        step *= next((factor for factor in (5, 2) if self._span / (step * factor) >= 2), 1)
        parts = [_line("axis", _EDGE, y, WIDTH - _EDGE, y)]
        for index in range(math.ceil(self._low / step), math.floor((self._low + self._span) / step) + 1):
            x = self.x(index * step)
            anchor = "start" if x < 3 * _EDGE else "end" if x > WIDTH - 3 * _EDGE else "middle"
            parts.append(_line("axis", x, _TOP, x, y))
            parts.append(f'<text x="{x:.1f}" y="{y + 14:g}" text-anchor="{anchor}">{index * step:.6g}</text>')
        return parts


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", *(f"<p>{escape(text)}</p>" for text in section.text)]
    if section.head:
        style = f"overflow-x:auto;white-space:{'nowrap' if section.numbers else 'normal'}"
        parts.append(f'<div style="{style}">{table(section.head, section.rows)}</div>')
    if section.items:
        items = (f"<li><strong>{escape(name)}</strong>: {escape(text)}</li>" for name, text in section.items)
        parts.append(f'<ul style="padding-left:1.2rem;overflow-wrap:anywhere">{"".join(items)}</ul>')
    return f"<section>{''.join(parts)}</section>"


def _differences(results: SuiteResult, summary: Summary) -> str:
    if not summary.differences:
        return ""
    key = (
        f'<p class="soft">Each <span class="key {_OTHER}"></span>dot is a pair (its name shows on pointing at it); '
        f'<span class="key {_FIRST}"></span>the mean over people and its interval; the dashed line is no difference.</p>'
    )
    return f"{key}<div {_GRID}>{''.join(differences_plot(metric, results, summary) for metric in results.metrics)}</div>"


def _videos(videos: Mapping[str, bytes]) -> list[str]:
    if not videos:
        return ["<h2>Videos</h2>", "<p>No videos were made.</p>"]
    figures = []
    for caption, data in videos.items():
        source = f'aria-label="{escape(caption)}" src="data:video/mp4;base64,{base64.b64encode(data).decode()}"'
        # Pictures side by side are too small on a phone: there they scroll.
        video = f'<video controls loop muted playsinline style="width:100%;min-width:40rem" {source}></video>'
        text = f"<figcaption>{escape(caption)}</figcaption>"
        figures.append(f'<figure style="margin:0 0 1rem;max-width:80rem;overflow-x:auto">{text}{video}</figure>')
    return ["<h2>Videos</h2>", *figures]


def _pair_differences(results: SuiteResult, method: str, metric: str) -> dict[str, float]:
    """By pair, the first method minus ``method`` where both have a value."""
    found = {}
    for pair in results.pairs:
        own, other = (pair.values.get(name, {}).get(metric, math.nan) for name in (results.methods[0], method))
        if math.isfinite(own) and math.isfinite(other):
            found[pair.name] = own - other
    return found


def _short(metric: Metric, one: Estimate, places: int) -> str:
    return f"{one.mean:+.{places}f}, {better(metric, one)}" if one.people else "not measured"


def _figure(title: str, scale: _Scale, parts: Sequence[str], rows: int) -> str:
    if not scale.known:
        return f"<figure><strong>{escape(title)}</strong><figcaption>not measured</figcaption></figure>"
    box = f'viewBox="0 0 {WIDTH} {_TOP + _ROW * rows + _AXIS:g}" role="img" aria-label="{escape(title)}"'
    return f"<figure><strong>{escape(title)}</strong><svg {box}>{''.join(parts)}</svg></figure>"


def _label(row: int, name: str, numbers: str) -> str:
    y = _TOP + _ROW * row + 11
    short = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
    right = f'<text x="{WIDTH - _EDGE:g}" y="{y:g}" text-anchor="end">{escape(numbers)}</text>'
    return f'<text x="{_EDGE:g}" y="{y:g}"><title>{escape(name)}</title>{escape(short)}</text>{right}'


def _estimate(scale: _Scale, row: int, name: str, one: Estimate, colour: str) -> str:
    if not one.people:
        return ""
    y = _TOP + _ROW * row + 30
    line = ""
    if math.isfinite(one.low):
        left, right = scale.x(one.low), scale.x(one.high)
        line = f'<line x1="{left:.1f}" y1="{y:g}" x2="{right:.1f}" y2="{y:g}" style="stroke:var(--{colour});stroke-width:2"/>'
    return line + _dot(colour, scale.x(one.mean), y, 4.0, f"{name}: {one.mean:.6g} ({one.people} people, {one.pairs} pairs)")


def _dot(colour: str, x: float, y: float, radius: float, tip: str, opacity: float = 1.0) -> str:
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"'
    return f'<circle class="{colour}" {place} opacity="{opacity:g}"><title>{escape(tip)}</title></circle>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float, tip: str = "") -> str:
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}">{title}</line>'
