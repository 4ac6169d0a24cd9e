"""Which clips a data set keeps: a policy of limits on the scores that every clip carries.

A filter never deletes. Clips keep all their scores, a policy selects among them, and whatever it rejects keeps its reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import FloatArray

if TYPE_CHECKING:
    import pyarrow

POLICIES = Path(__file__).with_name("policies")
"""Policies that come with the toolkit; they are named without folder and suffix."""


@dataclass
class Limits:
    """One limit for each score of a clip; None sets no limit. Units are those of ``clips.parquet`` (``docs/curation.md``)."""

    face_size: float | None = None
    sharpness: float | None = None
    yaw_min: float | None = None
    yaw_max: float | None = None
    yaw_abs_p95: float | None = None
    pitch_abs_p95: float | None = None
    roll_abs_p95: float | None = None
    mouth_p95: float | None = None
    motion: float | None = None
    faces: float | None = None
    cuts: float | None = None
    gap_share: float | None = None
    outside: float | None = None
    brightness: float | None = None
    jitter: float | None = None
    fps: float | None = None
    duration: float | None = None
    speech_level: float | None = None
    av_offset: float | None = None
    av_confidence: float | None = None

    def given(self) -> dict[str, float]:
        """The limits that are set, by score."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


SCORES = tuple(one.name for one in fields(Limits))
"""The scores that a policy can limit: float columns of ``clips.parquet``."""


@dataclass
class Policy:
    """What a clip must be to be kept.

    Attributes:
        minimum: least value of each score.
        maximum: greatest value of each score.
        may_be_unknown: scores that pass where they were not measured (NaN); any other limited score must be known.
        datasets: only these data sets; empty takes all.
        exclude_sources: ids of sources to leave out.
        exclude_people: names of people to leave out.
        exclude_clips: ids of clips to leave out.
    """

    minimum: Limits = field(default_factory=Limits)
    maximum: Limits = field(default_factory=Limits)
    may_be_unknown: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    exclude_sources: list[str] = field(default_factory=list)
    exclude_people: list[str] = field(default_factory=list)
    exclude_clips: list[str] = field(default_factory=list)


def load_policy(name: str | Path = "default") -> Policy:
    """The policy of a YAML file, or one that comes with the toolkit (``default``, ``strict``).

    Raises:
        UserError: the file is missing or no YAML, has a key or a value that a policy cannot have, or limits that no clip can meet.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
    from yaml import YAMLError

    path = policy_path(name)
    try:
        policy = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Policy), OmegaConf.load(path)))
    except ConfigKeyError as error:
        raise _unknown_key(path, str(error.full_key)) from error
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        reason = str(error.msg or error).partition("full_key")[0].strip()
        if reason.startswith("Merge error"):
            reason = "minimum and maximum are mappings such as {sharpness: 50}"
        raise UserError(f"{path}: {where}{reason}; see docs/curation.md for the form of a policy") from error
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read as a policy ({why}); give a YAML file, or one of default and strict") from error
    except (ValueError, TypeError, AttributeError):  # a list or a lone value where a mapping belongs
        policy = None
    if not isinstance(policy, Policy):
        raise UserError(f"{path}: not a policy; a mapping such as 'minimum: {{sharpness: 50}}' is needed")
    check_policy(policy, str(path))
    return policy


def policy_path(name: str | Path) -> Path:
    """Where a policy lies; ``default`` and ``strict`` come with the toolkit."""
    known = POLICIES / f"{name}.yaml"
    return known if str(name) == Path(name).name and known.is_file() else Path(name)


def check_policy(policy: Policy, name: str = "policy") -> None:
    """Refuse a policy that cannot be meant; ``name`` says where it stands.

    Raises:
        UserError: a limit is not finite, a minimum lies above its maximum, or ``may_be_unknown`` names no score.
    """
    low, high = policy.minimum.given(), policy.maximum.given()
    for bounds in (low, high):
        for score, value in bounds.items():
            if not np.isfinite(value):
                raise UserError(f"{name}: the limit of {score} is {value}; give a number, or leave the line away")
    for score in sorted(low.keys() & high.keys()):
        if low[score] > high[score]:
            raise UserError(f"{name}: {score} must be at least {low[score]:g} and at most {high[score]:g}; no clip can be both")
    for score in policy.may_be_unknown:
        if score not in SCORES:
            raise _unknown_key(Path(name), score, "may_be_unknown")


def judge(clips: pyarrow.Table, policy: Policy) -> tuple[npt.NDArray[np.bool_], list[list[str]]]:
    """Which clips a policy keeps, and why it rejects the others (``sharpness 31 < 50``).

    Args:
        clips: rows as in ``clips.parquet``; only ids and the scores that the policy limits are looked at.
        policy: the limits. A score of NaN was not measured: its clip is rejected unless ``may_be_unknown`` names the score.

    Returns:
        Whether each clip is kept (n), and the reasons of each, none where it is kept.

    Raises:
        UserError: the table lacks a score that the policy limits, or the policy is refused by :func:`check_policy`.
    """
    check_policy(policy)
    reasons: list[list[str]] = [[] for _ in range(clips.num_rows)]
    _judge_names(clips, policy, reasons)
    for score in SCORES:
        low, high = getattr(policy.minimum, score), getattr(policy.maximum, score)
        if low is None and high is None:
            continue
        values = score_values(clips, score)
        for row in np.flatnonzero(~np.isfinite(values)) if score not in policy.may_be_unknown else ():
            reasons[row].append(f"{score} was not measured")
        if low is not None:
            for row in np.flatnonzero(values < low):
                reasons[row].append(_compared(score, values[row], "<", low))
        if high is not None:
            for row in np.flatnonzero(values > high):
                reasons[row].append(_compared(score, values[row], ">", high))
    return np.array([not one for one in reasons], bool), reasons


def score_values(clips: pyarrow.Table, score: str) -> FloatArray:
    """A score of all clips (n), NaN where it was not measured; infinities count as not measured.

    Raises:
        UserError: the table has no such column.
    """
    if score not in clips.column_names:
        raise UserError(f"clips.parquet: has no score {score!r} that the policy limits; build it again with this version")
    values = np.array(clips.column(score).to_numpy(), np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def _judge_names(clips: pyarrow.Table, policy: Policy, reasons: Sequence[list[str]]) -> None:
    if policy.datasets:
        allowed = set(policy.datasets)
        for row, name in enumerate(clips.column("dataset").to_pylist()):
            if name not in allowed:
                reasons[row].append(f"data set {name!r} is not among those asked for")
    for column, names in (("source", policy.exclude_sources), ("person", policy.exclude_people), ("clip", policy.exclude_clips)):
        excluded = set(names)
        for row, name in enumerate(clips.column(column).to_pylist() if excluded else ()):
            if name in excluded:
                reasons[row].append(f"{column} {name!r} is excluded")


def _compared(score: str, value: float, sign: str, limit: float) -> str:
    """Both numbers with four digits, or with as many as it takes to see that they differ."""
    digits = next((digits for digits in range(4, 17) if f"{value:.{digits}g}" != f"{limit:.{digits}g}"), 17)
    return f"{score} {value:.{digits}g} {sign} {limit:.{digits}g}"


def _unknown_key(path: Path, key: str, inside: str = "") -> UserError:
    parent, _, last = key.rpartition(".")
    known = SCORES if parent or inside else tuple(one.name for one in fields(Policy))
    near = get_close_matches(last, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return UserError(f"{path}: {f'{inside}: ' if inside else ''}unknown key {key!r}; {hint}")
