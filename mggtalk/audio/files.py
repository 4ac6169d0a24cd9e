"""Models of speech as files, without pickle and without code: ``config.yaml``, ``model.safetensors`` and ``behaviour.yaml`` in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import write_whole
from mggtalk.audio.behaviour import Behaviour, read_behaviour
from mggtalk.checkpoints import CheckpointError, model_weights, read_checkpoint
from mggtalk.modules.audio import AudioNetwork, MelFront, PlainFront
from mggtalk.modules.speech import LogMel
from mggtalk.modules.speech_encoders import PretrainedSpeech

FORMAT, VERSION = "mggtalk-audio", 1
TINY = Path(__file__).parents[1] / "assets" / "mggtalk-tiny-audio"
"""The model that ships with the project."""
PARTS: dict[str, type[nn.Module]] = {
    f"{kind.__module__}.{kind.__name__}": kind for kind in (AudioNetwork, MelFront, PlainFront, LogMel, PretrainedSpeech)
}
"""The classes that a config may name."""


def load_audio(source: str | Path = TINY) -> tuple[AudioNetwork, Behaviour]:
    """A network in evaluation mode, and the numbers of what sound does not determine.

    Args:
        source: folder that :func:`save_audio` wrote; where it has no ``behaviour.yaml``, that of the project's own model is taken.

    Raises:
        UserError: files are missing, damaged, or do not fit together.
    """
    folder = Path(source)
    network = build_audio(_config(folder / "config.yaml"), folder)
    try:
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except FileNotFoundError:
        raise UserError(f"{folder}: has no model.safetensors; copy it beside config.yaml") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / 'model.safetensors'}: not a readable safetensors file ({error})") from error
    except RuntimeError as error:
        raise UserError(
            f"{folder / 'model.safetensors'}: does not fit the config beside it: {str(error).splitlines()[-1].strip()}"
        ) from error
    own = folder / "behaviour.yaml"
    return network.eval().requires_grad_(False), read_behaviour(own if own.exists() else TINY / "behaviour.yaml")


def save_audio(network: AudioNetwork, config: dict[str, Any], folder: Path) -> None:
    """Write what :func:`load_audio` reads; ``config`` holds ``class_path`` and ``init_args`` of the network."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    described = {"format": FORMAT, "version": VERSION, "model": config}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "model.safetensors", save(weights))
    write_whole(folder / "config.yaml", yaml.safe_dump(described, sort_keys=False).encode())


def export_audio(checkpoint: Path, folder: Path) -> None:
    """Write the network of a checkpoint of ``mggtalk fit --config experiments/audio.yaml``.

    Raises:
        CheckpointError: it cannot be read, or is one of another kind.
    """
    found = read_checkpoint(checkpoint)
    if not is_audio(found):
        raise CheckpointError(f"{checkpoint}: not a checkpoint of a network of speech")
    config: dict[str, Any] = found["hyper_parameters"]["model"]
    network = build_audio(config, checkpoint)
    try:
        network.load_state_dict(model_weights(found, checkpoint))
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint}: holds another architecture than it says") from error
    save_audio(network, config, folder)


def is_audio(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint holds a network of speech."""
    config = (checkpoint.get("hyper_parameters") or {}).get("model")
    return isinstance(config, dict) and str(config.get("class_path")) == f"{AudioNetwork.__module__}.{AudioNetwork.__name__}"


def build_audio(config: Any, path: Path) -> AudioNetwork:
    """The network of ``class_path`` / ``init_args`` nodes, with its first weights.

    Raises:
        UserError: a node is none of its parts, or a part refuses its arguments.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _build(config, path)
    if not isinstance(network, AudioNetwork):
        raise UserError(f"{path}: describes a {type(network).__name__}, not an AudioNetwork")
    return network


def _build(node: Any, path: Path) -> Any:
    if not (isinstance(node, dict) and "class_path" in node):
        return node
    kind = PARTS.get(str(node["class_path"]))
    if kind is None:
        raise UserError(f"{path}: {node['class_path']} is not a part of a network of speech")
    try:
        return kind(**{name: _build(value, path) for name, value in (node.get("init_args") or {}).items()})
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path}: {node['class_path']}: {error}") from error


def _config(path: Path) -> Any:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the folder of a model of speech (mggtalk export CHECKPOINT -o FOLDER)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT or config.get("version") != VERSION:
        raise UserError(f"{path}: not the config of a model of speech of version {VERSION}")
    return config.get("model")
