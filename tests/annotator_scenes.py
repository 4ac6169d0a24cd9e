"""What the tests of annotators share: all that ship, tiny weights for them, and what they are shown."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from face_scenes import frontal_crop

from datasets_toolkit import annotators as package
from datasets_toolkit.annotators import (
    Annotator,
    AudioAnnotator,
    DepthAnnotator,
    FaceCrop,
    IdentityAnnotator,
    NormalAnnotator,
    Parsing,
    ParsingAnnotator,
    SyncAnnotator,
)
from datasets_toolkit.annotators.portrait import Annotations
from datasets_toolkit.annotators.weights import NetworkAnnotator
from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.faces.head_pose import canonical_face
from datasets_toolkit.schema import Region

SIZE, SMALL = 256, 128
FAMILIES = (ParsingAnnotator, DepthAnnotator, NormalAnnotator, IdentityAnnotator, SyncAnnotator, AudioAnnotator)


def shipped(family: type[Annotator]) -> list[type[Annotator]]:
    """Every class of the package that can be made of a family; a new file joins by being there."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    found, left = set(), [family]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind.__module__.startswith(package.__name__) and hasattr(kind, "family") and not inspect.isabstract(kind):
            found.add(kind)
    return sorted(found, key=lambda kind: kind.__name__)


ALL = shipped(Annotator)
NETWORKS = [kind for kind in ALL if issubclass(kind, NetworkAnnotator)]


def arguments(kind: type[Annotator], folder: Path) -> dict[str, Any]:
    """What ``kind`` is made of: nothing, or weights of its own (tiny ones in the format of the real ones, where it takes any)."""
    needed = [one for one in inspect.signature(kind).parameters.values() if one.default is one.empty]
    if not needed and not issubclass(kind, NetworkAnnotator):
        return {}
    for name in ("onnx", "onnxruntime", "transformers", "diffusers"):
        pytest.importorskip(name)
    from network_weights import MAKERS

    assert kind in MAKERS, f"{kind.__name__} needs weights or other arguments: add a maker of them to network_weights.py"
    return MAKERS[kind](folder / kind.__name__)


@dataclass(frozen=True)
class Scene:
    """What annotators are shown, and what the default ones make of it."""

    crop: FaceCrop
    parsing: Parsing
    depth: np.ndarray
    crops: list[FaceCrop]
    sound: np.ndarray
    times: np.ndarray


def make_scene(crop: FaceCrop, seen: Annotations) -> Scene:
    """Two and a half seconds of the astronaut, whose lower lip moves, and of noise; a quarter of a second of it has no frames."""
    generator = np.random.default_rng(0)
    crops = []
    for opening in generator.uniform(0, 8, 60):
        landmarks = crop.landmarks.copy()
        landmarks[regions.LOWER_INNER_LIP, 1] += opening
        crops.append(replace(crop, landmarks=landmarks))
    times = np.delete(np.arange(62) / 25, [20, 21, 22, 23, 24, 25])
    return Scene(crop, seen.parsing, seen.depth, crops, generator.normal(0, 3000, 40000).astype(np.int16), times)


def run(annotator: Annotator, scene: Scene) -> list[Any]:
    """The labels of one annotator; those of other families as the default annotators see them."""
    if isinstance(annotator, ParsingAnnotator):
        parsing = annotator(scene.crop)
        return [parsing.labels, parsing.matte]
    if isinstance(annotator, DepthAnnotator):
        return [annotator(scene.crop, scene.parsing)]
    if isinstance(annotator, NormalAnnotator):
        return [annotator(scene.crop, scene.parsing, scene.depth)]
    if isinstance(annotator, IdentityAnnotator):
        return [annotator(scene.crop)]
    if isinstance(annotator, SyncAnnotator):
        return [annotator(iter(scene.crops[:12] if isinstance(annotator, NetworkAnnotator) else scene.crops), scene.sound)]
    assert isinstance(annotator, AudioAnnotator), "a family of annotators without a contract"
    return annotator(scene.sound, scene.times, start=-0.1)


def small_crop() -> FaceCrop:
    """The mean face from the front, 110 cm away, on 128 x 128 grey pixels."""
    return frontal_crop(canonical_face().vertices[:, 2], SMALL)


def everywhere(region: Region) -> Parsing:
    """A parsing of 128 x 128 pixels with one region."""
    return Parsing(labels=np.full((SMALL, SMALL), region, np.uint8), matte=np.ones((SMALL, SMALL), np.float32))
