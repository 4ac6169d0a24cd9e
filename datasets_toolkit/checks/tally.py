"""The outcome of checks: how much was tested, what was wrong, what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

EXAMPLES = 5
"""Faults of one check that are told in words; the others are counted."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One promise, tested.

    Attributes:
        name: in a word.
        promise: what must hold.
        tested: on how many things.
        faults: how many of them break the promise.
        examples: the first faults in words, each with its place.
        measured: numbers in words, '' where nothing is measured.
        skipped: why nothing could be tested, '' otherwise.
    """

    name: str
    promise: str
    tested: int
    faults: int
    examples: tuple[str, ...] = ()
    measured: str = ""
    skipped: str = ""

    @property
    def status(self) -> str:
        """``fail``, ``skipped``, ``counted`` (nothing was judged) or ``pass``."""
        if self.faults:
            return "fail"
        if self.skipped:
            return "skipped"
        return "pass" if self.tested else "counted"


@dataclass
class Tally:
    """A check while it runs."""

    name: str
    promise: str
    unit: str = ""
    tested: int = 0
    faults: int = 0
    examples: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def test(self, where: str, faults: Sequence[str] = (), value: float | None = None) -> None:
        """Count one thing that was tested at ``where``, what was wrong with it and what was measured of it."""
        self.tested += 1
        if faults:
            self.faults += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(f"{where}: {'; '.join(faults)}")
        if value is not None and np.isfinite(value):
            self.values.append(value)

    def done(self, measured: str = "", skipped: str = "") -> Check:
        """The outcome; what was measured is told as median and 95th percentile unless it is given in words."""
        if self.values and not measured:
            middle, most = np.percentile(self.values, [50, 95])
            measured = f"median {middle:.3g}, 95 % up to {most:.3g} {self.unit}".rstrip()
        return Check(
            name=self.name,
            promise=self.promise,
            tested=self.tested,
            faults=self.faults,
            examples=tuple(self.examples),
            measured=measured,
            skipped=skipped if not self.tested else "",
        )
