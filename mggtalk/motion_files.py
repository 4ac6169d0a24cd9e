"""Motion files: a tracked driver kept for later. Safetensors with the fields of a Motion and, as metadata, what they are worth with.

Coefficients mean nothing without the basis they belong to, so a file names its basis by SHA-256 and is refused with another.
"""

from __future__ import annotations

import hashlib
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import write_whole
from mggtalk.drivers import check_motion
from mggtalk.geometry.face_model import ASSET
from mggtalk.types import Motion

FORMAT, VERSION = "mggtalk-motion", "1"
UNITS = "head_to_camera: cm; times: s; focal: sides of the reference box"

_TYPES = {
    "expression": torch.float32,
    "head_to_camera": torch.float32,
    "times": torch.float64,
    "found": torch.bool,
    "focal": torch.float32,
}


@lru_cache(maxsize=1)
def basis_hash() -> str:
    """SHA-256 of the basis that expressions are written in."""
    return hashlib.sha256(ASSET.read_bytes()).hexdigest()


def save_motion(path: Path, motion: Motion, *, fps: Fraction | None, source: str) -> None:
    """Write a motion: under a temporary name in the same folder first, so that a killed run leaves no half file.

    Args:
        path: of the file; an existing one is replaced.
        motion: what to keep.
        fps: rate of the driver, if it has one.
        source: what the motion was made from, for people to read.

    Raises:
        UserError: the file cannot be written.
        ValueError: the motion is not one, as :func:`mggtalk.drivers.check_motion` says.
    """
    check_motion(motion)
    tensors = {name: getattr(motion, name).detach().to("cpu", dtype).contiguous() for name, dtype in _TYPES.items()}
    metadata = {"format": FORMAT, "version": VERSION, "basis": basis_hash(), "units": UNITS, "source": _printable(source)}
    if fps is not None:
        metadata["fps"] = f"{fps.numerator}/{fps.denominator}"
    try:
        write_whole(path, save(tensors, metadata))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); check the folder, its rights and the free space") from error


def load_motion(path: Path) -> tuple[Motion, Fraction | None]:
    """A motion that :func:`save_motion` wrote, and the rate of its driver.

    Raises:
        UserError: the file is missing, damaged, no motion file, of another version, or made with another basis.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_metadata(path, metadata)
            present = _TYPES.keys() & set(file.keys())
            tensors = {name: file.get_tensor(name).clone() for name in present}  # copies: the file may change while they are in use
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error
    return _motion(path, tensors), _rate(path, metadata.get("fps"))


def _check_metadata(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not a motion file; make one by tracking a driving video")
    if metadata.get("version") != VERSION:
        version = metadata.get("version")
        raise UserError(f"{path}: a motion file of version {version}, this program reads version {VERSION}; track the driver again")
    if metadata.get("basis") != basis_hash():
        raise UserError(f"{path}: made with another face basis, so its expressions mean something else here; track the driver again")


def _motion(path: Path, tensors: dict[str, Tensor]) -> Motion:
    dimensions = {"expression": 2, "head_to_camera": 3, "times": 1, "found": 1, "focal": 0}
    for name, dtype in _TYPES.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != dtype or tensor.ndim != dimensions[name]:
            raise _damaged(path, f"{name} is {'missing' if tensor is None else f'{tensor.dtype} {tuple(tensor.shape)}'}")
    lengths = {name: len(tensors[name]) for name in _TYPES if name != "focal"}
    if len(set(lengths.values())) > 1 or tensors["head_to_camera"].shape[1:] != (4, 4):
        shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in lengths)
        raise _damaged(path, f"its shapes do not fit together: {shapes}")
    motion = Motion(**{name: tensors[name] for name in _TYPES})
    try:
        check_motion(motion, _expression_size())
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    return motion


@lru_cache(maxsize=1)
def _expression_size() -> int:
    with safe_open(ASSET, framework="pt") as basis:
        return sum(basis.get_slice(name).get_shape()[0] for name in ("blendshapes", "components"))


def _rate(path: Path, text: str | None) -> Fraction | None:
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise _damaged(path, f"its frame rate is {text!r}")
    return rate


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path}: damaged motion file ({why}); track the driver again")


def _printable(text: str) -> str:
    """File names may hold bytes that are no text; metadata may not."""
    return text.encode("utf-8", "replace").decode()
