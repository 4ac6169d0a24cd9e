"""What a build may be told: the settings as dataclasses, read from YAML and ``key=value`` words.

Annotators are named as ``class_path`` and ``init_args`` and come into being in the worker processes only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from datasets_toolkit.errors import UserError
from datasets_toolkit.faces.detection import MIN_FACE

_OURS = "datasets_toolkit.annotators."


@dataclass
class AnnotatorConfig:
    """An annotator by the path of its class and the arguments of its constructor."""

    class_path: str = "???"
    init_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrackingConfig:
    """Which faces are followed, and how shots become clips.

    Attributes:
        faces: "all", or "largest": the largest face at the start of each shot.
        max_faces: faces followed at once.
        min_face: smallest face, larger side of the landmarks' bounding box, source pixels.
        newcomers: seconds between two searches for faces that are not followed yet.
        max_gap: seconds for which a face may be out of sight and still be the same track.
        max_duration: seconds; longer tracks are cut into equal clips.
    """

    faces: str = "all"
    max_faces: int = 4
    min_face: float = float(MIN_FACE)
    newcomers: float = 1.0
    max_gap: float = 0.5
    max_duration: float = 10.0


@dataclass
class Fractions:
    """Share of the people that each split gets."""

    train: float = 0.9
    val: float = 0.05
    test: float = 0.05


def _default_annotators() -> list[AnnotatorConfig]:
    names = ("landmark_parsing.LandmarkParsing", "mesh_depth.MeshDepth", "depth_normals.DepthNormals", "audio_features.AudioSlices")
    return [AnnotatorConfig(_OURS + name) for name in names]


@dataclass
class BuildConfig:
    """All settings of a build.

    Attributes:
        size: pixels a side of the crop.
        tracking: faces and clips.
        annotators: at most one of each family; parsing, depth and normals see what the families before them found.
        policy: which clips stay: a YAML file, or a name that :func:`datasets_toolkit.curation.policy.load_policy` knows; null keeps all.
        splits: fractions of the people.
        seed: of the splits and of the order of clips in the shards.
        shard_bytes: size of a shard that is aimed at.
        shard_samples: samples in a shard; goes before ``shard_bytes`` where given.
    """

    size: int = 512
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    annotators: list[AnnotatorConfig] = field(default_factory=_default_annotators)
    policy: str | None = "default"
    splits: Fractions = field(default_factory=Fractions)
    seed: int = 0
    shard_bytes: int = 1_000_000_000
    shard_samples: int | None = None


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> BuildConfig:
    """The settings of a YAML file, changed by words such as ``tracking.faces=largest`` or ``annotators.2.init_args.smoothing=2.0``.

    The number behind the last annotator adds one.

    Raises:
        UserError: the file cannot be read, or a key or value cannot be meant; the message names it.
    """
    values: Any = {}
    if path is not None:
        from yaml import YAMLError, safe_load

        try:
            values = safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path}: cannot be read as YAML ({reason}); correct the file") from error
    return _resolved(str(path), {} if values is None else values, overrides)


def config_from(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> BuildConfig:
    """The settings that :func:`as_dict` gave, changed by words.

    Raises:
        UserError: as :func:`load_config`.
    """
    return _resolved("settings of the data set", values, overrides)


def check_config(config: BuildConfig) -> None:
    """Refuse values that no build can have.

    Raises:
        UserError: names the key, the value and the range.
    """
    tracking = config.tracking
    if tracking.faces not in ("all", "largest"):
        raise UserError(f"tracking.faces={tracking.faces}: must be 'all' or 'largest'")
    _within("size", config.size, 64, 2048)
    _within("tracking.max_faces", tracking.max_faces, 1, 64)
    _within("tracking.min_face", tracking.min_face, 16, 4096)
    _within("tracking.newcomers", tracking.newcomers, 0.01, 3600)
    _within("tracking.max_gap", tracking.max_gap, 0, 3600)
    _within("tracking.max_duration", tracking.max_duration, 0.1, 600)
    _within("shard_bytes", config.shard_bytes, 1, 2**40)
    if config.shard_samples is not None:
        _within("shard_samples", config.shard_samples, 1, 10**9)
    shares = asdict(config.splits)
    if any(not 0 <= share <= 1 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"splits={shares}: each share must lie in [0, 1], and they must add up to 1")


def _resolved(name: str, values: Any, overrides: Sequence[str]) -> BuildConfig:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    where = name
    try:
        config = OmegaConf.merge(OmegaConf.structured(BuildConfig), OmegaConf.create(values))
        for where in overrides:
            _override(config, where)
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise _bad_key(where, str(error.full_key or ""), str(error.msg or error).partition("\n")[0]) from error
    except (ValueError, TypeError, AttributeError) as error:  # a list or a lone value where a mapping belongs
        raise UserError(f"{where}: not the settings of a build ({error}); a mapping such as 'size: 512' is needed") from error
    assert isinstance(result, BuildConfig)
    check_config(result)
    return result


def as_dict(config: BuildConfig) -> dict[str, Any]:
    """The settings as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _override(config: Any, word: str) -> None:
    from omegaconf import OmegaConf
    from yaml import YAMLError, safe_load

    key, equals, value = word.partition("=")
    if not equals or not key:
        raise UserError(f"{word}: not a setting; write key=value, such as size=256")
    try:
        parsed = safe_load(value) if value else None
    except YAMLError as error:
        raise UserError(f"{word}: {value!r} cannot be read as a value ({error}); quote it") from error
    place = re.match(r"annotators\.(\d+)\.", key)
    if place is not None and int(place[1]) == len(config.annotators):
        config.annotators.append(OmegaConf.structured(AnnotatorConfig))  # one more than there were
    OmegaConf.update(config, key, parsed, merge=True, force_add=".init_args." in key)


def _bad_key(where: str, key: str, reason: str) -> UserError:
    last = key.rpartition(".")[2]
    known = sorted({one.name for kind in (BuildConfig, TrackingConfig, AnnotatorConfig, Fractions) for one in fields(kind)})
    near = [name for name in get_close_matches(last, known, 1, 0.6) if name != last]
    hint = f"; did you mean {near[0]!r}?" if near and "not in" in reason and "Did you mean" not in reason else ""
    return UserError(f"{where}: {key or 'value'}: {reason}{hint}")


def _within(name: str, value: float | int, low: float | int, high: float | int) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise UserError(f"{name}={value:g}: must be from {low:g} to {high:g}")
