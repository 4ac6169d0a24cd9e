"""Pages of HTML that need nothing else: no network, no script; every text from outside is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

import cv2
import numpy as np

from datasets_toolkit import local_files
from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import ByteImage, FloatArray

ASSETS = Path(__file__).with_name("report_assets")
WIDTH, HEIGHT = 360, 170
_LEFT, _RIGHT, _BOTTOM, _TOP = 62, 20, 34, 10


def page(title: str, body: Iterable[str]) -> str:
    """A whole page; ``body`` is HTML already."""
    template = Template((ASSETS / "page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(body))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        UserError: the folder does not exist or cannot be written to.
    """
    try:
        local_files.write_whole(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); check that its folder exists and its permissions") from error


def table(head: Sequence[str], rows: Iterable[Sequence[str | int | float]]) -> str:
    """A table; numbers stand on the right (floats with three decimals), texts are escaped."""
    body = [[_cell(value) for value in row] for row in rows]
    right = [bool(body) and all(row[column][1] for row in body) for column in range(len(head))]
    names = "".join(f"<th{_class(number)}>{escape(name)}</th>" for name, number in zip(head, right, strict=True))
    lines = ["".join(f"<td{_class(number)}>{text}</td>" for text, number in row) for row in body]
    return f"<table><thead><tr>{names}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"


def figure(image: ByteImage, caption: str, kind: str = "") -> str:
    """A picture (h w 3, RGB) inside the page, with its caption."""
    text = escape(caption)
    return f'<figure class="{escape(kind)}"><img alt="{text}" src="{data_url(image)}"><figcaption>{text}</figcaption></figure>'


def data_url(image: ByteImage, quality: int = 80) -> str:
    """A picture (h w 3, RGB) as a JPEG inside an address."""
    data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def bars(title: str, unit: str, edges: FloatArray, kept: FloatArray, rejected: FloatArray, limits: Sequence[float] = ()) -> str:
    """A histogram as SVG: ``kept`` (n hours) below, ``rejected`` stacked on it, a dashed line at each limit.

    Args:
        title: above the plot.
        unit: below the axis.
        edges: n + 1, of the bins.
        kept: n.
        rejected: n.
        limits: where lines are drawn.
    """
    top = float((kept + rejected).max()) if len(kept) else 0.0
    wide, high = WIDTH - _LEFT - _RIGHT, HEIGHT - _BOTTOM - _TOP
    span = float(edges[-1] - edges[0]) or 1.0
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{_TOP + high}" y2="{_TOP + high}"/>']
    for index in range(len(kept)):
        x, width = _LEFT + wide * (edges[index] - edges[0]) / span, wide * (edges[index + 1] - edges[index]) / span
        tip = f"{edges[index]:.4g} to {edges[index + 1]:.4g}: {kept[index]:.3g} h kept, {rejected[index]:.3g} h rejected"
        parts.append(f"<g><title>{tip}</title>{_stack(x, max(width - 1, 0.5), kept[index], rejected[index], top, high)}</g>")
    for limit in limits:
        x = _LEFT + wide * (limit - float(edges[0])) / span
        parts.append(
            f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{_TOP + high}"><title>limit {limit:g}</title></line>'
        )
    for place in edges[:: max(round((len(edges) - 1) / 6), 1)]:
        x = _LEFT + wide * (place - float(edges[0])) / span
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 20}" text-anchor="middle">{place:.4g}</text>')
    parts.append(f'<text x="{_LEFT - 4}" y="{_TOP + 8}" text-anchor="end">{top:.3g} h</text>')
    parts.append(f'<text x="{_LEFT + wide / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(unit)}</text>')
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><strong>{escape(title)}</strong>{drawing}</figure>"


def curve(title: str, unit: str, times: FloatArray, values: FloatArray) -> str:
    """A value (n) over time (n, seconds) as SVG; values that are not finite, and gaps, break the line."""
    wide, high = WIDTH - _LEFT - _RIGHT, HEIGHT // 2 - _BOTTOM
    known = np.isfinite(values)
    low, top = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 1.0)
    span, length = (top - low) or 1.0, float(times[-1] - times[0]) or 1.0
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    points, parts = "", []
    for place, (time, value) in enumerate(zip(times, values, strict=True)):
        gap = place > 0 and time - times[place - 1] > 1.5 * usual
        if np.isfinite(value):
            command = "L" if points and not gap and known[place - 1] else "M"
            points += f"{command}{_LEFT + wide * (time - times[0]) / length:.1f} {_TOP + high * (1 - (value - low) / span):.1f}"
    parts.append(f'<path class="curve" d="{points}"/>')
    for text, y in ((f"{top:.3g}", _TOP + 8), (f"{low:.3g}", _TOP + high)):
        parts.append(f'<text x="{_LEFT - 4}" y="{y}" text-anchor="end">{text}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_TOP + high + 16}">{times[0]:.2f} s</text>')
    parts.append(f'<text x="{_LEFT + wide}" y="{_TOP + high + 16}" text-anchor="end">{times[-1]:.2f} s</text>')
    drawing = f'<svg viewBox="0 0 {WIDTH} {_TOP + high + 22}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f'<figure><strong>{escape(title)}</strong> <span class="soft">{escape(unit)}</span>{drawing}</figure>'


def _stack(x: float, width: float, kept: float, rejected: float, top: float, high: int) -> str:
    boxes, base = [], float(_TOP + high)
    for kind, value in (("kept", kept), ("rejected", rejected)):
        tall = high * float(value) / top if top > 0 else 0.0
        base -= tall
        if tall > 0:
            boxes.append(f'<rect class="{kind}" x="{x:.1f}" y="{base:.2f}" width="{width:.1f}" height="{tall:.2f}"/>')
    return "".join(boxes)


def _cell(value: str | int | float) -> tuple[str, bool]:
    if isinstance(value, str):
        return escape(value), False
    return (f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"), True


def _class(number: bool) -> str:
    return ' class="number"' if number else ""
