"""The weights behind a network: a file or a model folder that the user gives, its hash, its licence. Nothing is ever fetched."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from datasets_toolkit.annotators.base import Annotator
from datasets_toolkit.errors import AssetError, UserError

_COUNTED = {".json", ".safetensors", ".bin", ".pt", ".pth", ".model", ".onnx", ".txt", ".data"}
"""Kinds of files in a model folder that what a model says depends on; its pictures and its readme are not among them."""


@dataclass(frozen=True)
class Source:
    """Where the weights of a kind of network come from.

    Attributes:
        what: is to be given: "a Depth Anything folder (config.json, model.safetensors)".
        address: where it is published.
        licence: the terms of its publisher.
    """

    what: str
    address: str
    licence: str


class NetworkAnnotator(Annotator):
    """An annotator with weights: they are looked at on construction, loaded on first use, and told in the provenance.

    Args:
        weights: the file or folder.
        device: where torch or onnxruntime compute: "cpu", "cuda", "cuda:1".
        licence: of these weights; by default what their folder's README.md declares, else the terms of the usual source.

    Raises:
        AssetError: nothing is there, or something that cannot be such weights.
    """

    source: ClassVar[Source]
    locations = frozenset({"weights"})

    def __init__(self, weights: str | Path, *, device: str = "cpu", licence: str = "") -> None:
        self.weights = Path(weights).expanduser()
        self.device = device
        self.licence = licence
        self._network: Any = None
        if not self.weights.exists():
            raise AssetError(f"{self.weights}: no such weights; {_advice(self.source)}")
        self._look()

    @abstractmethod
    def _look(self) -> None:
        """Raise :meth:`refusal` if the weights are plainly of another kind; cheap."""

    @abstractmethod
    def _load(self) -> Any:
        """The network, ready to be used; may raise anything if the weights are unsound."""

    def network(self) -> Any:
        """The loaded network.

        Raises:
            AssetError: the weights are damaged or of another network, or a package that runs them is missing.
        """
        if self._network is None:
            try:
                self._network = self._load()
            except (UserError, MemoryError):
                raise
            except ImportError as error:
                package = (error.name or str(error)).split(".")[0]
                raise AssetError(
                    f"{type(self).__name__}: {package} is missing ({error}); install it with: pip install {package}"
                ) from error
            except Exception as error:  # whatever a parser makes of foreign or damaged files
                raise self.refusal(f"cannot be loaded ({type(error).__name__}: {str(error)[:300]})") from error
        return self._network

    def refusal(self, reason: str, path: Path | None = None) -> AssetError:
        """The error that says why the weights are refused and what to give instead."""
        return AssetError(f"{path or self.weights}: {reason}; {_advice(self.source)}")

    def provenance(self) -> dict[str, str]:
        """Name, SHA-256 and licence of the weights; a folder's hash is that of :func:`fingerprint`."""
        licence = self.licence or declared_licence(self.weights) or self.source.licence
        return {"weights": self.weights.resolve().name, "sha256": fingerprint(self.weights), "licence": licence}

    def close(self) -> None:
        """Release the network; the next use loads it again."""
        self._network = None

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object of the weights' folder.

        Raises:
            AssetError: no such file, or no JSON object in it.
        """
        path = self.weights / name
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise self.refusal(f"has no {name}") from error
        except ValueError as error:
            raise self.refusal("is not JSON", path) from error
        if not isinstance(found, dict):
            raise self.refusal("holds no JSON object", path)
        return found


def _advice(source: Source) -> str:
    return f"give {source.what}, from {source.address} (licence: {source.licence})"


def fingerprint(path: Path) -> str:
    """SHA-256 (hex) of a file, or of a model folder: of the sorted lines ``relative/name sha256`` of its configurations and weights.

    Hidden files, pictures and texts for readers do not count. Files are read once for each size and time of change.

    Raises:
        AssetError: nothing is there, or it cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return _hash_file(path)
        lines = [f"{file.relative_to(path).as_posix()} {_hash_file(file)}" for file in _counted(path)]
    except OSError as error:
        raise AssetError(f"{error.filename or path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _counted(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.suffix in _COUNTED and file.is_file())
    visible = (file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))
    return sorted(visible, key=lambda file: file.relative_to(folder).as_posix())


def _hash_file(path: Path) -> str:
    facts = path.stat()
    return _hash(str(path.resolve()), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash(path: str, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def declared_licence(weights: Path) -> str:
    """The ``license`` in the head of the README.md of a model folder; empty where none is declared."""
    try:
        lines = (weights / "README.md").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    if not lines or lines[0].strip() != "---":
        return ""
    head = lines[1 : next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), 1)]
    found = {key.strip(): value.strip().strip("\"'") for key, _, value in (line.partition(":") for line in head) if not key.startswith(" ")}
    return found.get("license_name") or found.get("license", "")
