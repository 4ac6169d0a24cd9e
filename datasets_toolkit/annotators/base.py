"""The interfaces of the annotator families. A pretrained network is another file with one of these classes in it."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from datasets_toolkit.errors import UserError
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


@dataclass(frozen=True, kw_only=True)
class FrameSound:
    """What is heard during one frame.

    Attributes:
        pcm: n, mono, 16 kHz, from this frame's time to the next one's.
        mel: 4 x 80, log-mel energies of four 10 ms hops from this frame's time.
    """

    pcm: npt.NDArray[np.int16]
    mel: npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class SyncScore:
    """How well lips and sound belong together.

    Attributes:
        offset_frames: by how many frames of 1/25 s the sound comes too early (negative: too late).
        confidence: how much better that offset fits than others; its scale is the annotator's own. 0 where nothing can be said.
        distance: how badly the best offset fits, in the annotator's own scale; NaN where nothing can be said.
    """

    offset_frames: int
    confidence: float
    distance: float


class Annotator(ABC):
    """What every annotator tells of itself; ``version`` changes whenever the same input may give another output.

    ``locations`` names the constructor's arguments that only say where files lie: moving them changes no label.
    """

    family: ClassVar[str]
    version: ClassVar[int]
    locations: ClassVar[frozenset[str]] = frozenset()

    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values: ``type(self)(**self.parameters())`` makes the same annotator again.

        Every argument is kept as an attribute of its name; an annotator among them becomes its :meth:`spec`.
        """
        return {name: _plain(getattr(self, name)) for name in inspect.signature(type(self)).parameters}

    def settings(self) -> dict[str, Any]:
        """The :meth:`parameters` that labels depend on, for keys: without the places of files, which :meth:`provenance` stands for."""
        values = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if name not in self.locations}
        return {name: value.recipe() if isinstance(value, Annotator) else _plain(value) for name, value in values.items()}

    def recipe(self) -> dict[str, Any]:
        """Class, version and :meth:`settings`: together with :meth:`provenance` all that a label depends on besides the crop."""
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"class_path": name, "version": type(self).version, "settings": self.settings()}

    def spec(self) -> dict[str, Any]:
        """``class_path`` and ``init_args``, from which :func:`make_annotator` makes the same annotator again."""
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": self.parameters()}

    def provenance(self) -> dict[str, str]:
        """``weights`` (a name), their ``sha256`` and ``licence``; empty where no weights are used."""
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


class IdentityAnnotator(Annotator):
    """Tells people apart, by vectors of ``numbers`` entries."""

    family = "identity"
    numbers: ClassVar[int] = 512

    @abstractmethod
    def __call__(self, crop: FaceCrop) -> Map:
        """A unit vector (``numbers``) that is much the same in all pictures of a person."""

    def descriptor(self, crop: FaceCrop) -> Map:
        """A vector (``numbers``) of that direction, with the length that the network gives it if that means something."""
        return self(crop)


class SyncAnnotator(Annotator):
    """Tells whether lips and sound belong together."""

    family = "sync"

    @abstractmethod
    def __call__(self, crops: Iterable[FaceCrop], audio: npt.NDArray[np.int16]) -> SyncScore:
        """The offset of a clip.

        Args:
            crops: of one face, 25 a second, read once; only a few are held at a time.
            audio: mono, 16 kHz, from the time of the first crop on.
        """


class AudioAnnotator(Annotator):
    """What is heard at each frame."""

    family = "audio"

    @abstractmethod
    def __call__(self, samples: npt.NDArray[np.int16], times: FloatArray, *, start: float = 0.0) -> list[FrameSound]:
        """One entry for each of ``times`` (t, seconds, increasing), from ``samples`` (mono, 16 kHz) that begin at the time ``start``."""


def make_annotator(spec: Annotator | Mapping[str, Any], family: type[Annotator] = Annotator) -> Any:
    """The annotator that ``class_path`` and ``init_args`` describe; an annotator is returned as it is.

    Raises:
        UserError: no such class, not one of ``family``, or arguments that it does not take.
    """
    if isinstance(spec, Mapping):
        path, arguments = str(spec.get("class_path", "")), spec.get("init_args") or {}
        kind = _class(path)
        if not issubclass(kind, family) or inspect.isabstract(kind):
            raise UserError(f"{path}: no annotator of the {getattr(family, 'family', 'wanted')} family; see docs/annotators.md for a list")
        try:
            inspect.signature(kind).bind(**arguments)
        except TypeError as error:
            raise UserError(f"{path}: {error}; it takes {', '.join(inspect.signature(kind).parameters) or 'no arguments'}") from error
        return kind(**arguments)
    if not isinstance(spec, family):
        raise UserError(f"{type(spec).__name__}: no annotator of the {getattr(family, 'family', 'wanted')} family")
    return spec


def _class(path: str) -> type:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{path or 'class_path'}: there is no such annotator ({error}); see docs/annotators.md for a list") from error
    return found if isinstance(found, type) else object


def _plain(value: Any) -> Any:
    """A JSON value for a constructor's argument."""
    if isinstance(value, Annotator):
        return value.spec()
    if isinstance(value, PathLike):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
