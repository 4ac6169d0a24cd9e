"""Tables and small histograms for a terminal, in plain text."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from datasets_toolkit.schema import FloatArray

_BLOCKS, _PLAIN = " ▁▂▃▄▅▆▇█", " .:-=+*#%"


def text_table(head: Sequence[str], rows: Iterable[Sequence[str | int | float]]) -> str:
    """Columns padded to one width; numbers on the right, floats with three decimals."""
    cells = [[_text(value) for value in row] for row in rows]
    right = [bool(cells) and all(row[column][1] for row in cells) for column in range(len(head))]
    lines = [list(head), *([text for text, _ in row] for row in cells)]
    width = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = (
        "  ".join(f"{text:{'>' if number else '<'}{size}}" for text, number, size in zip(line, right, width, strict=True)) for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def sparkline(values: FloatArray, plain: bool = False) -> str:
    """One character for each value (n, at least 0), as high as its share of the largest; anything above 0 is visible."""
    marks = _PLAIN if plain else _BLOCKS
    top = max(float(values.max()), 1e-300) if len(values) else 1.0
    return "".join(marks[0] if value <= 0 else marks[1 + min(int(value / top * 7.999), 7)] for value in values)


def plain_output() -> bool:
    """Whether standard output cannot show the blocks of :func:`sparkline`."""
    try:
        _BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def _text(value: str | int | float) -> tuple[str, bool]:
    if isinstance(value, str):
        return value, False
    return (f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"), True
