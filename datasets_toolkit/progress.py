"""How far a build is: a bar for each step with rate and estimate, and a table of where the time went."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from datasets_toolkit.text_tables import text_table


class Progress:
    """Bars on stderr.

    Args:
        shown: whether there are any; on a stream that is no terminal tqdm shows none either.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[Step]:
        """A bar over ``total`` jobs; left away where there is nothing to do."""
        from tqdm import tqdm

        with tqdm(total=total, desc=name, unit="job", disable=None if self.shown and total else True) as bar:
            yield Step(bar)


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
