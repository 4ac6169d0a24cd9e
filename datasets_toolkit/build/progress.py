"""How far a build is: a bar for each step with rate and estimate, and a table of where the time went."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from datasets_toolkit.text_tables import text_table

EVERY = 30.0
"""Seconds between two lines where stderr is no terminal; work that is done in a third of that leaves none."""


class Progress:
    """Bars on stderr; in a log file, a line now and then.

    Args:
        shown: whether there are any.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[Step]:
        """A bar over ``total`` jobs; left away where there is nothing to do."""
        from tqdm import tqdm

        live = sys.stderr.isatty()
        settings: dict[str, Any] = (
            {} if live else {"file": Lines(sys.stderr), "mininterval": EVERY, "delay": EVERY / 3, "ncols": 100, "ascii": True}
        )
        with tqdm(total=total, desc=name, unit="job", disable=not (self.shown and total), **settings) as bar:
            yield Step(bar)


class Lines:
    """A stream that turns each drawing of a bar into a line."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Write what is not blank."""
        if text.strip():
            self.stream.write(text.strip() + "\n")

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()


class Step:
    """A bar that counts jobs and shows frames a second."""

    def __init__(self, bar: Any) -> None:
        self._bar, self._begun, self._frames = bar, time.monotonic(), 0

    def advance(self, frames: int) -> None:
        """One more job is done; it had so many frames."""
        self._frames += frames
        rate = self._frames / max(time.monotonic() - self._begun, 1e-9)
        self._bar.set_postfix_str(f"{rate:.1f} frames/s" if self._frames else "", refresh=False)
        self._bar.update(1)


def time_table(seconds: Mapping[str, float], frames: Mapping[str, int]) -> str:
    """Seconds of each stage over all workers, their share, and milliseconds a frame.

    Args:
        seconds: by stage.
        frames: how many frames each stage has seen; stages without an entry show none.
    """
    total = sum(seconds.values()) or 1.0
    rows = []
    for stage, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        each = f"{1000 * spent / frames[stage]:.1f}" if frames.get(stage) else ""
        rows.append((stage, f"{spent:.1f}", f"{100 * spent / total:.0f} %", each))
    return str(text_table(("stage", "seconds", "share", "ms/frame"), rows))
