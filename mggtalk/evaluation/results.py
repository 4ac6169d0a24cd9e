"""What a benchmark run found, as records that are written to JSON and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import write_whole

FORMAT = 1
"""Of the JSON file."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column of the tables.

    Attributes:
        name: key of the values, such as ``psnr_head``.
        title: as tables show it, such as ``PSNR head``.
        unit: dB, degrees, ...; empty if there is none.
        better: which way is better.
        definition: one sentence.
        model: what reads the pictures for it (name, SHA-256, licence); empty if nothing does.
    """

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    definition: str
    model: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A metric that was not measured: its title, why, and how to get it."""

    title: str
    reason: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class PairResult:
    """One source and one driver.

    Attributes:
        name: of the pair, part of file names.
        source: key of the source's sample.
        source_person: whom it shows.
        driver: name of the driving clip.
        driver_person: whom it shows.
        frames: keys of the driving samples that were compared.
        values: by method, then by metric: means over the frames; NaN where nothing could be measured.
        milliseconds: by method, a frame.
    """

    name: str
    source: str
    source_person: str
    driver: str
    driver_person: str
    frames: tuple[str, ...]
    values: Mapping[str, Mapping[str, float]]
    milliseconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SetDistance:
    """How far the pictures of each method are, as a whole, from real ones: a number for a method, none for a pair.

    Attributes:
        metric: which one.
        values: by method; NaN where there are too few pictures.
        pictures: by method, how many there are.
        real: how many real ones there are.
        text: which they are, and what to keep in mind.
    """

    metric: Metric
    values: Mapping[str, float]
    pictures: Mapping[str, int]
    real: int
    text: str


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """A suite of one run.

    Attributes:
        suite: its name.
        protocol: one paragraph: what is driven by what and compared with what.
        settings: of the suite.
        data: the data set: name, hash of its manifest, split, people in it.
        methods: names of the columns of values, the method under test first.
        about: by method, what it is and what it is given.
        metrics: what was measured.
        missing: what was not.
        pairs: in order.
        refused: pairs that could not be measured, with the reason.
        sets: metrics of all pictures of a method together.
    """

    suite: str
    protocol: str
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    methods: tuple[str, ...]
    about: Mapping[str, str]
    metrics: tuple[Metric, ...]
    missing: tuple[Missing, ...]
    pairs: tuple[PairResult, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    sets: tuple[SetDistance, ...] = ()


def write_results(path: Path, results: SuiteResult, extra: Mapping[str, Any]) -> None:
    """Write a suite as JSON, and beside it what was computed of it (``extra``); NaN becomes null.

    Raises:
        OSError: the file cannot be written.
    """
    values = {"format": FORMAT, **asdict(results), **extra}
    write_whole(path, (json.dumps(_plain(values), indent=1, allow_nan=False) + "\n").encode())


def read_results(path: Path) -> SuiteResult:
    """A suite from its JSON file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise KeyError("format")
        for name, kind in _KINDS.items():
            if not isinstance(values[name], kind):
                raise TypeError(f"{name} is a {type(values[name]).__name__}")
        return SuiteResult(
            **{name: values[name] for name in ("suite", "protocol", "settings", "data", "about", "refused")},
            methods=tuple(str(method) for method in values["methods"]),
            metrics=tuple(_metric(metric) for metric in values["metrics"]),
            missing=tuple(Missing(**missing) for missing in values["missing"]),
            pairs=tuple(_pair(pair) for pair in values["pairs"]),
            sets=tuple(_set(one) for one in values.get("sets", [])),  # files of older versions have none
        )
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a JSON file that `mggtalk benchmark` wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: no results of `mggtalk benchmark` ({error}); give one of its JSON files") from error


_KINDS: dict[str, type] = {
    **dict.fromkeys(("suite", "protocol"), str),
    **dict.fromkeys(("settings", "data", "about", "refused"), dict),
    **dict.fromkeys(("methods", "metrics", "missing", "pairs"), list),
}
"""What the fields of a file are; ``sets`` is younger than the format, and may be missing."""


def _metric(values: dict[str, Any]) -> Metric:
    if values["better"] not in ("higher", "lower"):
        raise ValueError(f"{values['better']!r} is neither higher nor lower")
    return Metric(**values)


def _set(values: dict[str, Any]) -> SetDistance:
    return SetDistance(
        metric=_metric(values["metric"]),
        values=_numbers(values["values"]),
        pictures={str(method): int(count) for method, count in values["pictures"].items()},
        real=int(values["real"]),
        text=str(values["text"]),
    )


def _pair(values: dict[str, Any]) -> PairResult:
    by_method = {method: _numbers(row) for method, row in values["values"].items()}
    times = _numbers(values.get("milliseconds", {}))
    return PairResult(**{**values, "frames": tuple(values["frames"]), "values": by_method, "milliseconds": times})


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
