"""Weights from files that the user has: tensors only, nothing that could run code, and nothing fetched."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from datasets_toolkit.annotators.weights import fingerprint
from datasets_toolkit.errors import UserError

_SHOWN = 3  # names of a message


class WeightsError(UserError):
    """A file of weights is missing, damaged, unsafe, or of another network."""


def load_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors``, ``.pth`` or ``.pt`` file by their names, on the CPU.

    Pickled files are read with ``weights_only=True``: what is more than tensors and plain containers is refused, never run.

    Raises:
        WeightsError: no such file, another kind of file, damaged, or something other than a table of tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"{path}: {'is a folder, not a file of weights' if path.is_dir() else 'no such file'}; correct the path")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise WeightsError(f"{path}: not a kind of file that weights are read from; give a .safetensors, .pth or .pt file")
    found = _read(path)
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{path}: holds no plain table of tensors; save the network's state_dict() alone")
    return {str(name): value for name, value in found.items()}


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces changes of its own while it reads old files
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "Unsupported class" in str(error):
            raise WeightsError(f"{path}: holds Python objects, which could run code; give a file of tensors only") from error
        raise WeightsError(f"{path}: damaged, or no file of weights; fetch it again") from error
    except Exception as error:  # whatever a parser makes of foreign or damaged bytes
        raise WeightsError(f"{path}: damaged, or no file of weights ({type(error).__name__}); fetch it again") from error


def load_into(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a state dict in which every name and shape has to fit, and every number has to be finite.

    Args:
        module: takes the values in its own dtype.
        state: of :func:`load_state`, less what belongs to other parts of the network.
        path: named in messages.

    Raises:
        WeightsError: names are missing or unknown, shapes differ, or numbers are not finite.
    """
    wanted, reasons = module.state_dict(), []
    for what, names in (("it lacks", wanted.keys() - state.keys()), ("it has unknown", state.keys() - wanted.keys())):
        if names:
            reasons.append(f"{what} {_some(sorted(names))}")
    other = [name for name in sorted(wanted.keys() & state.keys()) if state[name].shape != wanted[name].shape]
    if other:
        reasons.append(f"other shapes: {_some([f'{name} {_by(state[name])} for {_by(wanted[name])}' for name in other])}")
    if not reasons:
        broken = [name for name in sorted(state) if not bool(torch.isfinite(state[name]).all())]
        reasons += [f"numbers that are not finite in {_some(broken)}"] if broken else []
    if reasons:
        raise WeightsError(f"{path}: does not fit {type(module).__name__} ({'; '.join(reasons)}); give the weights of that network")
    module.load_state_dict(dict(state))


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with ``prefix``, under their whole names."""
    return {name: value for name, value in state.items() if name.startswith(prefix)}


def file_hash(path: str | Path) -> str:
    """SHA-256 (hex) of a file; read once for each size and time of change.

    Raises:
        WeightsError: no such file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; correct the path")
    return fingerprint(path)


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _by(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
