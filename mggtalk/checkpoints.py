"""Checkpoints of training as weights of a model, and as the folder that :meth:`mggtalk.talking_head.TalkingHead.from_pretrained` reads."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from datasets_toolkit.errors import UserError
from mggtalk.export import build_model, save_model
from mggtalk.model import MGGTalk
from mggtalk.modules.layers import ZeroConv, ZeroLinear

PREFIX = "model."
"""Of the model's weights in a stage's."""


class CheckpointError(UserError):
    """A checkpoint cannot be read, or is not what it should be."""


def load_weights(model: MGGTalk, path: Path) -> None:
    """Give a model the weights of a checkpoint of training, of an exported model's folder, or of a safetensors file.

    Of a checkpoint with an exponential moving average these are the averaged weights.

    Raises:
        CheckpointError: there is no such file, it is damaged, or its weights are those of another architecture.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    weights = _safetensors(file) if file.suffix == ".safetensors" else model_weights(read_checkpoint(file), file)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1:3]
        raise CheckpointError(f"{file}: holds another architecture than the experiment asks for: {' '.join(first).strip()}") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint; nothing in it is executed.

    Raises:
        CheckpointError: it cannot be read, is no checkpoint, or holds objects.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give a .ckpt file of training, or the folder of an exported model") from None
    except Exception as error:  # whatever damaged bytes do to the reader
        found = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if found:
            raise CheckpointError(f"{path}: holds an object ({found[1]}) beside weights and settings, so it is not read") from error
        reason = f" ({error})" if isinstance(error, OSError) else ""
        raise CheckpointError(f"{path}: not a readable checkpoint{reason}; if it was copied, copy it again") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise CheckpointError(f"{path}: not a checkpoint of training (it has no state_dict)")
    return checkpoint


def export_checkpoint(path: Path, output: Path, strengths: Mapping[str, float] | None = None, since: Path | None = None) -> None:
    """Write the model of a checkpoint as :func:`mggtalk.export.save_model` does, without anything of training.

    Args:
        path: of the checkpoint.
        output: as :func:`mggtalk.export.save_model` takes it.
        strengths: by part, the factor of its correction of the base; see :func:`temper`.
        since: a model of the same architecture, as :func:`load_weights` takes it: factors are of the change
            since that; see :func:`moderate`.

    Raises:
        CheckpointError: a file cannot be read, the checkpoint was not made by ``mggtalk fit``, or its model has no such part.
    """
    checkpoint = read_checkpoint(path)
    config = (checkpoint.get("hyper_parameters") or {}).get("model")
    if not isinstance(config, dict) or "class_path" not in config:
        raise CheckpointError(f"{path}: does not say how its model is built; only checkpoints of `mggtalk fit` do")
    model = build_model(config, path)
    load_weights(model, path)
    if since is not None:
        earlier = build_model(config, path)
        load_weights(earlier, since)
        for part, factor in (strengths or {}).items():
            moderate(model, earlier, part, factor)
    else:
        for part, factor in (strengths or {}).items():
            temper(model, part, factor)
    save_model(model, config, output)


@torch.no_grad()
def temper(model: MGGTalk, part: str, factor: float) -> None:
    """Multiply what a part corrects of its base: 0 leaves the base, 1 changes nothing.

    Raises:
        CheckpointError: the model has no such part, or the part corrects nothing.
    """
    modules = list(getattr(model, part).modules()) if isinstance(getattr(model, part, None), nn.Module) else []
    outputs = [module for module in modules if isinstance(module, (ZeroLinear, ZeroConv))]
    if not outputs:
        raise CheckpointError(f"the model has no part {part!r} that corrects a base; densifier, deformation, refiner and inpainter do")
    for module in outputs:
        for parameter in module.parameters():
            parameter.mul_(factor)


@torch.no_grad()
def moderate(model: MGGTalk, earlier: MGGTalk, part: str, factor: float) -> None:
    """Take only some of a part's change: its weights become w + factor (w' - w), those of ``earlier`` being w.

    The two should be of one line of training: between weights that have nothing to do with each other lies nothing of use.

    Raises:
        CheckpointError: the model has no such part, or nothing in it can be trained.
    """
    parts = [getattr(which, part, None) for which in (earlier, model)]
    before, after = (list(module.parameters()) if isinstance(module, nn.Module) else [] for module in parts)
    if not after:
        raise CheckpointError(f"the model has no part {part!r} with weights")
    for old, new in zip(before, after, strict=True):
        new.copy_(torch.lerp(old, new, factor))


def model_weights(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Those of the model that a stage trained.

    Raises:
        CheckpointError: there are none.
    """
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith(PREFIX)}
    if not weights:
        raise CheckpointError(f"{path}: not a checkpoint of a stage (no weights of a model)")
    return weights


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give a .ckpt file of training, or the folder of an exported model") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
