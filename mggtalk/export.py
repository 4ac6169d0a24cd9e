"""Models as files, without pickle and without code.

A model is a folder with ``config.yaml`` (classes and constructor arguments) and ``model.safetensors``, or one safetensors file that holds
its config as metadata.

A config whose ``weights`` is null is a model without training: its networks leave the bases as they are.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import write_whole
from mggtalk.model import MGGTalk
from mggtalk.rendering.renderer import Renderer

FORMAT, VERSION = "mggtalk-model", 1
BASES = Path(__file__).parent / "assets" / "mggtalk-bases"
"""The model without training."""
TINY = BASES.parent / "mggtalk-tiny"
"""Where the trained model lies in installations that have one."""


def preferred(trained: Path) -> Path:
    """A trained model if its folder holds config and weights, else the bases."""
    return trained if all((trained / name).is_file() for name in ("config.yaml", "model.safetensors")) else BASES


DEFAULT = preferred(TINY)
"""The model that is used where none is named."""
NAMED = {"mggtalk-tiny": TINY, "bases": BASES}
"""Models that ship with the project, by the names that :func:`load_model` takes."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")


class ModelError(UserError):
    """A model folder cannot be read."""


def load_model(source: str | Path = DEFAULT) -> MGGTalk:
    """Build a model, in evaluation mode, on the CPU.

    Args:
        source: as :func:`locate_model` takes it.

    Raises:
        ModelError: files are missing, damaged, of another format or version, or weights and config disagree; or the hub is not reached.
    """
    path = locate_model(source)
    config, described = _described(path)
    model = build_model(config["model"], described)
    if config["weights"] is not None:
        _load_weights(model, _weights(path))
    return model.eval()


def locate_model(source: str | Path) -> Path:
    """The folder or the file of a model; one on the hub is fetched.

    Args:
        source: folder of an exported model, a single ``.safetensors`` file, "mggtalk-tiny" or "bases" for a model that ships with the
            project, or ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` of a repository on the Hugging Face hub that holds such a folder. What
            exists on disk has precedence.

    Raises:
        ModelError: the model does not ship with this installation, or the hub is not reached.
    """
    name, path = str(source), Path(source)
    if path.exists():
        return path
    if name in NAMED:
        if not NAMED[name].is_dir():
            raise ModelError(f"{name}: this installation has no such model; use --model bases, or the folder of a model")
        return NAMED[name]
    return _from_hub(name) if HUB_NAME.fullmatch(name) else path


def model_name(source: str | Path) -> str:
    """What to call a model in records: its name on the hub, or the last part of its path; never the folders above it."""
    name, path = str(source), Path(source)
    if path.exists():
        return Path(os.path.abspath(path)).name
    return name if HUB_NAME.fullmatch(name) else NAMED.get(name, path).name


def weights_file(path: Path) -> Path | None:
    """The file with the weights of a model that :func:`locate_model` found; None for a model without training.

    Raises:
        ModelError: there is no config, or it cannot be read.
    """
    return None if _described(path)[0]["weights"] is None else _weights(path)


def _described(path: Path) -> tuple[dict[str, Any], Path]:
    """The config of a model, and the file that holds it."""
    if path.suffix == ".ckpt":
        raise ModelError(f"{path}: a checkpoint of training; export its model first: mggtalk export {path} -o FOLDER")
    if path.suffix == ".safetensors":
        return _checked(_metadata(path), path), path
    return _checked(_read_config(path / "config.yaml"), path / "config.yaml"), path / "config.yaml"


def _weights(path: Path) -> Path:
    return path if path.suffix == ".safetensors" else path / "model.safetensors"


def build_model(config: Any, path: Path) -> MGGTalk:
    """The model that ``class_path`` / ``init_args`` nodes describe, with its first weights.

    Args:
        config: the node of the model.
        path: of the file that holds it, for messages.

    Raises:
        ModelError: a node is none of the model's parts, or a part refuses its arguments.
    """
    with torch.random.fork_rng(devices=[]):  # what is not zero at the start is the same every time
        torch.manual_seed(0)
        model = _build(config, path)
    if not isinstance(model, MGGTalk):
        raise ModelError(f"{path}: describes a {type(model).__name__}, not a MGGTalk")
    return model


def save_model(model: MGGTalk, config: dict[str, Any], output: Path) -> None:
    """Write a model that :func:`load_model` reads back.

    Args:
        model: whose weights are written.
        config: ``class_path`` and ``init_args`` of the model, nested, as :func:`load_model` builds them.
        output: a folder, created if missing, or a file that ends in .safetensors; each file appears whole.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    described = {"format": FORMAT, "version": VERSION, "weights": "model.safetensors", "model": config}
    if output.suffix == ".safetensors":
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, save(weights, metadata={FORMAT: json.dumps(described)}))
        return
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "model.safetensors", save(weights))
    write_whole(output / "config.yaml", yaml.safe_dump(described, sort_keys=False).encode())


def _from_hub(name: str) -> Path:
    """The folder of a model on the hub, fetched now or before."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    repository, _, revision = name.partition("@")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise ModelError(f"{name}: there is no such folder; for a model on the hub: pip install huggingface_hub") from None
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=["config.yaml", "model.safetensors"]))
    except Exception as error:  # whatever the network and the hub come up with
        raise ModelError(f"{name}: there is no such folder, and the hub does not give it: {' '.join(str(error).split())[:200]}") from error


def _metadata(path: Path) -> Any:
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get(FORMAT, "null"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not a safetensors file of a model ({error})") from error


def _read_config(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; give the folder of a model, with config.yaml and model.safetensors") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error


def _checked(config: Any, path: Path) -> dict[str, Any]:
    if not isinstance(config, dict) or config.get("format") != FORMAT or not {"version", "weights", "model"} <= config.keys():
        raise ModelError(f"{path}: not the config of a model (format, version, weights and model are needed)")
    if config["version"] != VERSION:
        raise ModelError(f"{path}: version {config['version']} of the model format; this release reads version {VERSION}")
    return config


def _build(node: Any, path: Path) -> Any:
    """Objects of ``class_path`` / ``init_args`` nodes, inside out; only classes of this package can be named."""
    if isinstance(node, list):
        return tuple(_build(item, path) for item in node)
    if not (isinstance(node, dict) and "class_path" in node):
        return node
    module, _, name = str(node["class_path"]).rpartition(".")
    if module.split(".")[0] != "mggtalk":
        raise ModelError(f"{path}: class {node['class_path']} is not part of mggtalk")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ModelError(f"{path}: there is no class {node['class_path']}; the model may come from another release") from None
    ours = inspect.isclass(kind) and issubclass(kind, (torch.nn.Module, Renderer)) and kind.__module__.startswith("mggtalk.")
    if not ours:
        raise ModelError(f"{path}: {node['class_path']} is not a part of a model")
    given = node.get("init_args") or {}
    if not isinstance(given, dict):
        raise ModelError(f"{path}: {node['class_path']}: init_args must name the arguments, got {given!r}")
    arguments = {key: _build(value, path) for key, value in given.items()}
    try:
        _check_parts(kind, arguments)
        return kind(**arguments)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, OSError) as error:
        raise ModelError(f"{path}: {node['class_path']}: {error}") from error


def _check_parts(kind: type, arguments: dict[str, Any]) -> None:
    """Refuse parts that are not what the constructor asks for: they would fail only when they are used.

    Raises:
        TypeError: an argument should be a part of the model of another class.
    """
    hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    for name, value in arguments.items():
        wanted = hints.get(name)
        if inspect.isclass(wanted) and issubclass(wanted, (torch.nn.Module, Renderer)) and not isinstance(value, wanted):
            raise TypeError(f"{name} should be a {wanted.__name__}, got {type(value).__name__}")


def _load_weights(model: MGGTalk, path: Path) -> None:
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file, though the model's config names it; copy it beside config.yaml") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error})") from error
    except RuntimeError as error:
        raise ModelError(f"{path}: does not fit the config beside it: {error}") from error
