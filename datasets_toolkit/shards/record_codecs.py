"""Small arrays as NumPy files and what is known of a frame as JSON. Nothing here can run code of the file it reads."""

from __future__ import annotations

import io
import json
import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from datasets_toolkit.sample import FrameMeta
from datasets_toolkit.schema import BLENDSHAPES
from datasets_toolkit.shards.codec_checks import Buffer, CodecError

Scalar = TypeVar("Scalar", bound=np.generic)

_NPY = b"\x93NUMPY\x01\x00"
_KINDS = rb"(<[iuf][248]|<f16|\|[iub]1)"
_SHAPE = rb"(|\d{1,9},|\d{1,9}(?:, \d{1,9}){1,7})"
_HEADER = re.compile(rb"\{'descr': '" + _KINDS + rb"', 'fortran_order': False, 'shape': \(" + _SHAPE + rb"\), \} *\n")
_MATRICES = {"source_to_crop": (3, 3), "intrinsics": (3, 3), "head_to_camera": (4, 4), "blendshapes": (len(BLENDSHAPES),)}
_PLAIN = {"key": str, "clip": str, "source": str, "person": str, "index": int, "time": float, "size": int}
_FIELDS = {*_PLAIN, *_MATRICES, "fps", "scores"}


def encode_array(array: npt.NDArray[Any]) -> bytes:
    """An array of numbers as a NumPy file, version 1.0."""
    if array.dtype.kind not in "iufb":
        raise ValueError(f"only arrays of numbers are stored, not {array.dtype}")
    file = io.BytesIO()
    plain = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    np.lib.format.write_array(file, plain, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def decode_array(data: Buffer) -> npt.NDArray[Any]:
    """The array of a NumPy file; pickled objects are refused.

    Raises:
        CodecError: not such a file, or its size is not what its header says.
    """
    start = 10 + int.from_bytes(data[8:10], "little")
    if data[:8] != _NPY or len(data) < start:
        raise CodecError("not a NumPy file of version 1.0; copy or build it again")
    dtype, shape = _header(bytes(data[10:start]))
    if len(data) - start != math.prod(shape) * dtype.itemsize:
        raise CodecError(f"{len(data) - start} bytes for {dtype} of shape {shape}; it is damaged, copy or build it again")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).copy()


@lru_cache(maxsize=256)  # all samples of a column share theirs
def _header(text: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    found = _HEADER.fullmatch(text)  # not evaluated, as NumPy does it: what NumPy writes has one form only
    if found is None:
        raise CodecError("a NumPy file that is not a plain array of numbers, or its header is damaged; copy or build it again")
    return np.dtype(found[1].decode()), tuple(int(length) for length in found[2].split(b",") if length.strip())


def encode_meta(meta: FrameMeta) -> bytes:
    """A frame's record as JSON with sorted keys; a score that is NaN becomes null.

    Raises:
        ValueError: a matrix of the wrong shape, or a number that is not finite.
    """
    record: dict[str, Any] = {name: kind(getattr(meta, name)) for name, kind in _PLAIN.items()}
    record["fps"] = f"{meta.fps.numerator}/{meta.fps.denominator}"
    record["scores"] = {name: None if math.isnan(score) else float(score) for name, score in meta.scores.items()}
    for name, shape in _MATRICES.items():
        array = np.asarray(getattr(meta, name), np.float64)
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, not {shape}")
        record[name] = array.tolist()
    return json.dumps(record, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def decode_meta(data: Buffer) -> FrameMeta:
    """A frame's record.

    Raises:
        CodecError: not such a record.
    """
    try:
        record = _JSON.decode(str(data, "utf-8"))
        if not isinstance(record, dict) or set(record) != _FIELDS:
            raise ValueError("its fields are not those of a frame")
        plain: dict[str, Any] = {name: _typed(record[name], kind) for name, kind in _PLAIN.items()}
        matrices: dict[str, Any] = {name: _matrix(name, record[name], shape) for name, shape in _MATRICES.items()}
        scores = {name: math.nan if score is None else _typed(score, float) for name, score in record["scores"].items()}
        return FrameMeta(fps=_rate(_typed(record["fps"], str)), scores=scores, **plain, **matrices)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, RecursionError) as error:
        raise CodecError(f"not the record of a frame ({error}); copy or build it again") from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")


_JSON = json.JSONDecoder(parse_constant=_refuse)  # json.loads would make one for each frame


def _typed(value: Any, kind: type[Any]) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{value!r} is not of type {kind.__name__}")
    return value


@lru_cache(maxsize=256)  # data sets know few rates
def _rate(text: str) -> Fraction:
    rate = Fraction(text)
    if rate <= 0:
        raise ValueError(f"a frame rate of {text}")
    return rate


def _matrix(name: str, values: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    array = np.array(values, np.float64)
    if array.shape != shape or not _finite(array):
        raise ValueError(f"{name} is not {' x '.join(map(str, shape))} finite numbers")
    return array


def _finite(array: npt.NDArray[np.float64]) -> bool:
    """Whether all values are finite; their squares' sum tells it at once unless it overflows."""
    flat = array.ravel()
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(flat).all())
