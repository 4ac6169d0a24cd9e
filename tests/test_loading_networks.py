"""Weights are loaded whole, in silence, and run no code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import network_weights as made
import pytest

from datasets_toolkit.annotators.depth_diffusers import MarigoldDepth
from datasets_toolkit.annotators.depth_transformers import TransformersDepth
from datasets_toolkit.annotators.geowizard import GeoWizardDepth, GeoWizardNormals
from datasets_toolkit.annotators.parsing_onnx import OnnxParsing
from datasets_toolkit.annotators.parsing_segformer import SegformerParsing
from datasets_toolkit.annotators.syncnet import SyncNet
from datasets_toolkit.errors import AssetError

for package in ("onnx", "onnxruntime", "transformers", "diffusers"):
    pytest.importorskip(package)


class Fire:
    """What an evil file does when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (Path(self.path),)

    def __init__(self, path: str) -> None:
        self.path = path


@pytest.mark.parametrize("kind", [GeoWizardDepth, SyncNet, TransformersDepth, SegformerParsing])
def test_no_weights_run_code(kind: type, tmp_path: Path) -> None:
    weights = Path(made.MAKERS[kind](tmp_path / "weights")["weights"])
    evil = pickle.dumps({"layer.weight": Fire(str(tmp_path / "burnt"))}, protocol=2)
    if weights.is_file():
        weights.write_bytes(evil)
    else:
        for file in [*weights.rglob("*.safetensors"), *weights.rglob("*.bin")]:
            file.unlink()
            name = "pytorch_model.bin" if file.name.startswith(("model", "pytorch")) else "diffusion_pytorch_model.bin"
            (file.parent / name).write_bytes(evil)
    with pytest.raises(AssetError, match="cannot be loaded"):
        kind(weights).network()
    assert not (tmp_path / "burnt").exists()


@pytest.mark.parametrize("kind", [TransformersDepth, SegformerParsing, MarigoldDepth, GeoWizardNormals])
def test_tensors_that_are_missing_are_not_made_up(kind: type, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    arguments = made.MAKERS[kind](tmp_path / "weights")
    (path,) = [*(tmp_path / "weights").glob("model.safetensors"), *(tmp_path / "weights" / "unet").glob("*.safetensors")]
    tensors = load_file(path)
    gone = sorted(tensors)[0]
    save_file({name: values for name, values in tensors.items() if name != gone}, path, metadata={"format": "pt"})
    with pytest.raises(AssetError, match="lacks 1 tensors"):
        kind(**arguments).network()


def test_loading_is_silent_and_leaves_the_logs_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    arguments = made.marigold(tmp_path / "weights", "MarigoldDepthPipeline")
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in (diffusers_log, transformers_log)]
    capfd.readouterr()
    MarigoldDepth(**arguments).network()
    assert capfd.readouterr().err == ""
    assert [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in (diffusers_log, transformers_log)] == before


def test_the_licence_is_that_of_the_weights(tmp_path: Path) -> None:
    arguments = made.depth_anything(tmp_path / "weights")
    assert TransformersDepth(**arguments).provenance()["licence"] == "apache-2.0"
    assert TransformersDepth(**arguments, licence="bought").provenance()["licence"] == "bought"
    (tmp_path / "weights" / "README.md").unlink()
    assert TransformersDepth(**arguments).provenance()["licence"] == TransformersDepth.source.licence


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotator = OnnxParsing(**made.bisenet(tmp_path / "weights"))

    def fail() -> None:
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    monkeypatch.setattr(annotator, "_load", fail)
    with pytest.raises(AssetError, match="pip install onnxruntime"):
        annotator.network()
