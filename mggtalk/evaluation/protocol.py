"""Suites as data: which frames are sources, what drives them, and with what they are compared.

A suite is a YAML file; those of the project lie in ``benchmarks/suites``. Which pairs it means for a data set depends on the data set's
tables and the suite's seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import yaml

from datasets_toolkit.errors import UserError
from mggtalk.data.pairs import people_of

if TYPE_CHECKING:
    import pyarrow

SUITES = Path(__file__).parents[2] / "benchmarks" / "suites"
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What a suite's file says.

    Attributes:
        name: of the suite; by default that of its file.
        kind: whether a clip drives its own first frame ("self"), clips of other people drive it ("cross"), or its sound does ("audio").
        split: of the data set.
        frames: of each driving clip that are compared, evenly spread.
        run: consecutive frames, from the middle of the clip, for jitter; 0 leaves it out.
        drivers: driving clips for each source, where people are crossed.
        size: pixels a side of what is rendered and compared.
        seed: of the draw of drivers.
        people: only these, by name; None takes all of the split.
        skip: clips that are left out, by name, such as one whose tracked face is none; results name them.
        films: pairs at either end that are shown as videos, best and worst.
    """

    name: str
    kind: Literal["self", "cross", "audio"]
    split: str = "val"
    frames: int = 8
    run: int = 0
    drivers: int = 1
    size: int = 256
    seed: int = 0
    people: tuple[str, ...] | None = None
    skip: tuple[str, ...] = ()
    films: int = 2


@dataclass(frozen=True, kw_only=True)
class PlannedPair:
    """A source and its driver, as rows of ``index.parquet``.

    Attributes:
        name: of the pair.
        source: row.
        source_person: whom it shows.
        driver: the driving clip.
        driver_person: whom that shows.
        rows: all frames of the driving clip, in order of time; of the source's own clip the first is the source.
        compared: which of ``rows`` are compared.
        run: which of ``rows`` jitter is measured on.
        own: frames of the source's own clip, for what the source's own pictures score.
    """

    name: str
    source: int
    source_person: str
    driver: str
    driver_person: str
    rows: Rows
    compared: Rows
    run: Rows
    own: Rows

    @property
    def drives_itself(self) -> bool:
        """Whether the source is the first frame of the clip that drives it: then the clip is the truth."""
        return self.source == int(self.rows[0])


def load_suite(name: str | Path) -> Suite:
    """A suite by its name in ``benchmarks/suites``, or from a YAML file.

    Raises:
        UserError: there is no such file, or it says something that no suite can mean.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = SUITES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SUITES.glob("*.yaml"))) or "none here"
        raise UserError(f"{path}: there is no such suite; suites of the project: {known}, others are YAML files")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}); correct the file") from error
    return checked({"name": path.stem, **values} if isinstance(values, dict) else values, path)


def checked(values: Any, path: Path | str) -> Suite:
    """The suite that these values mean; ``path`` is named in errors.

    Raises:
        UserError: they mean none.
    """
    known = {field.name for field in fields(Suite)}
    if not isinstance(values, Mapping) or not set(values) <= known:
        wrong = sorted(set(values) - known) if isinstance(values, Mapping) else [repr(values)]
        raise UserError(f"{path}: {wrong[0]} is nothing that a suite says; it may say {', '.join(sorted(known))}")
    if values.get("kind") not in ("self", "cross", "audio"):
        raise UserError(f"{path}: kind is {values.get('kind')!r}, expected self, cross or audio")
    for name, least in (("frames", 1), ("run", 0), ("drivers", 1), ("size", 64), ("seed", 0), ("films", 0)):
        value = values.get(name, least)
        if not isinstance(value, int) or value < least or (name == "size" and value % 8):
            raise UserError(f"{path}: {name} is {value!r}, expected a whole number from {least}{' in steps of 8' * (name == 'size')}")
    lists = {name: values[name] for name in ("people", "skip") if values.get(name) is not None}
    for name, value in lists.items():
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise UserError(f"{path}: {name} is {value!r}, expected a list of names")
    return Suite(**{**values, "skip": (), **{name: tuple(str(entry) for entry in value) for name, value in lists.items()}})


def plan(index: pyarrow.Table, clips: pyarrow.Table, suite: Suite) -> list[PlannedPair]:
    """The pairs of a suite.

    Args:
        index: of the data set.
        clips: of the data set.
        suite: what is asked for.

    Raises:
        UserError: the split has no clip of at least two frames, a person or a skipped clip is not in it, or there is nobody to cross.
    """
    people, found = people_of(clips), chosen(index, clips, suite)
    if suite.kind == "self":
        return [_pair(clip, clip, clip, found, people, suite) for clip in sorted(found)]
    return _crossed(found, people, suite)


def chosen(index: pyarrow.Table, clips: pyarrow.Table, suite: Suite) -> dict[str, Rows]:
    """Rows, in order of time, of each clip of the suite's split and people that is not skipped.

    Raises:
        UserError: as :func:`plan`.
    """
    people = people_of(clips)
    found = _clips_of(index, suite.split, people, suite.people)
    for clip in suite.skip:
        if found.pop(clip, None) is None:
            raise UserError(f"skip: split {suite.split!r} has no clip {clip!r} of these people; `mggdata stats` lists the clips")
    absent = sorted(set(suite.people or ()) - {people[clip] for clip in found})
    if absent:
        raise UserError(f"split {suite.split!r} has no person {absent[0]!r}; `mggdata stats` lists the people")
    if not found:
        raise UserError(f"index.parquet: split {suite.split!r} has no clip of two frames or more; choose another split")
    return found


def _clips_of(index: pyarrow.Table, split: str, people: Mapping[str, str], only: Sequence[str] | None) -> dict[str, Rows]:
    """Rows of each clip of a split in order of time."""
    here = np.flatnonzero(index["split"].to_numpy() == split)
    names, times = index["clip"].to_numpy()[here], index["time"].to_numpy()[here]
    found = {}
    for clip in np.unique(names):
        rows = here[names == clip][np.argsort(times[names == clip], kind="stable")]
        if len(rows) > 1 and (only is None or people[clip] in only):
            found[str(clip)] = rows.astype(np.int64)
    return found


def _pair(name: str, source: str, driver: str, found: Mapping[str, Rows], people: Mapping[str, str], suite: Suite) -> PlannedPair:
    rows = found[driver]
    start, first = (len(rows) - suite.run) // 2, int(suite.kind == "self")
    return PlannedPair(
        name=name,
        source=int(found[source][0]),
        source_person=people[source],
        driver=driver,
        driver_person=people[driver],
        rows=rows,
        compared=_spread(len(rows), suite.frames, first),
        run=np.arange(start, start + suite.run) if suite.run >= 3 and start >= 1 else np.zeros(0, np.int64),
        own=found[source][_spread(len(found[source]), suite.frames, 1)],
    )


def _spread(count: int, wanted: int, first: int) -> Rows:
    """At most ``wanted`` of ``count`` frames from ``first`` on, evenly spread."""
    return np.unique(np.linspace(first, count - 1, min(wanted, count - first)).round().astype(np.int64))


def _crossed(found: Mapping[str, Rows], people: Mapping[str, str], suite: Suite) -> list[PlannedPair]:
    """The first clip of each person driven by clips of others, one each of as many people as there are drivers."""
    by_person: dict[str, list[str]] = {}
    for clip in sorted(found):
        by_person.setdefault(people[clip], []).append(clip)
    if len(by_person) < 2:
        raise UserError(f"split {suite.split!r} shows {len(by_person)} person; people can be crossed from two on")
    generator, pairs = np.random.default_rng(suite.seed), []
    for person in sorted(by_person):
        others = [other for other in sorted(by_person) if other != person]
        for chosen in generator.permutation(len(others))[: suite.drivers]:
            candidates = by_person[others[chosen]]
            driver, source = candidates[generator.integers(len(candidates))], by_person[person][0]
            pairs.append(_pair(f"{source}__{driver}", source, driver, found, people, suite))
    return pairs
