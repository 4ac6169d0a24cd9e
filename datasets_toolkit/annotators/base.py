"""The interfaces of the annotator families. A pretrained network is another file with one of these classes in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from datasets_toolkit.schema import ByteImage, FloatArray

Map = npt.NDArray[np.float32]
Self_ = TypeVar("Self_", bound="Annotator")


@dataclass(frozen=True, kw_only=True)
class FaceCrop:
    """A square crop around a tracked face, and all that tracking knows of it.

    Attributes:
        image: s x s x 3, RGB.
        landmarks: 478 x 3, pixels of the crop.
        blendshapes: 52 scores.
        mesh: 478 x 3, canonical head space, cm.
        head_to_camera: 4 x 4 rigid.
        intrinsics: 3 x 3, pixels of the crop.
        source_to_crop: 3 x 3, pixels to pixels.
    """

    image: ByteImage
    landmarks: FloatArray
    blendshapes: FloatArray
    mesh: FloatArray
    head_to_camera: FloatArray
    intrinsics: FloatArray
    source_to_crop: FloatArray


@dataclass(frozen=True, kw_only=True)
class Parsing:
    """Attributes: labels (s x s, :class:`datasets_toolkit.schema.Region`) and matte (s x s, person alpha in [0, 1])."""

    labels: npt.NDArray[np.uint8]
    matte: Map


class Annotator(ABC):
    """What every annotator tells of itself; ``version`` changes whenever the same input may give another output."""

    family: ClassVar[str]
    version: ClassVar[int]

    def provenance(self) -> dict[str, str]:
        """Weights (name and SHA-256) and licences behind the labels; empty where no weights are used."""
        return {}

    def close(self) -> None:  # noqa: B027 (most annotators hold nothing open)
        """Release models held open."""

    def __enter__(self: Self_) -> Self_:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class ParsingAnnotator(Annotator):
    """Splits a crop into the regions of a person."""

    family = "parsing"

    @abstractmethod
    def __call__(self, crop: FaceCrop) -> Parsing:
        """Labels and matte of a crop."""


class DepthAnnotator(Annotator):
    """Depth of the head, in the scale of the head pose."""

    family = "depth"

    @abstractmethod
    def __call__(self, crop: FaceCrop, parsing: Parsing) -> Map:
        """Depth (s x s, cm along the optical axis) wherever ``parsing`` shows a part of the head; 0 elsewhere."""


class NormalAnnotator(Annotator):
    """Surface normals of the head."""

    family = "normals"

    @abstractmethod
    def __call__(self, crop: FaceCrop, parsing: Parsing, depth: Map) -> Map:
        """Unit normals (s x s x 3, camera frame, facing the camera) wherever ``depth`` is known; 0 elsewhere."""
