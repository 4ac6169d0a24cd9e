"""The records that flow through MGGTalk: frozen, keyword-only, tensors with named shapes.

Units and frames are those of ``docs/conventions.md``: OpenCV cameras, pixels whose first centre is (0.5, 0.5), the canonical
head space in centimetres (x = 0 the facial plane, y up, z out of the face), quaternions w x y z, images RGB in [0, 1].
A leading ``*batch`` is any number of batch dimensions, the same for every field of a record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Record = TypeVar("Record", bound="TensorRecord")


class TensorRecord:
    """Mix-in for frozen dataclasses of tensors and nested records: move, index and stack them as one."""

    def map(self: Record, function: Callable[[Tensor], Tensor]) -> Record:
        """A copy with ``function`` applied to every tensor, nested records included; other fields are kept."""
        changed: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = function(value)
            elif isinstance(value, TensorRecord):
                changed[field.name] = value.map(function)
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self: Record, *args: Any, **kwargs: Any) -> Record:
        """As :meth:`torch.Tensor.to`, but only floating tensors change their dtype: indices and masks keep theirs, and their values."""

        def move(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point():
                return tensor.to(*args, **kwargs)

            def kept(argument: Any) -> Any:
                return tensor.dtype if isinstance(argument, torch.dtype) else argument

            split = [(value.device, tensor.dtype) if isinstance(value, Tensor) else (kept(value),) for value in args]
            places: list[Any] = [part for parts in split for part in parts]
            return tensor.to(*places, **{name: kept(value) for name, value in kwargs.items()})

        return self.map(move)

    def pin_memory(self: Record) -> Record:
        """A copy in page-locked memory, for asynchronous copies to a GPU."""
        return self.map(Tensor.pin_memory)

    def detach(self: Record) -> Record:
        """A copy cut from the autograd graph."""
        return self.map(Tensor.detach)

    def __getitem__(self: Record, index: Any) -> Record:
        """Index the leading (batch) dimensions of every tensor."""
        return self.map(lambda tensor: tensor[index])


def stack(records: Sequence[Record]) -> Record:
    """Stack equal-shaped records along a new leading dimension (this is the collate function of the records).

    Raises:
        ValueError: there is nothing to stack.
    """
    return _join(records, lambda tensors: torch.stack(list(tensors)))


def cat(records: Sequence[Record], dim: int = 0) -> Record:
    """Concatenate records along an existing dimension ``dim``, the same in every field (so only batch or point dimensions).

    Raises:
        ValueError: there is nothing to concatenate.
    """
    return _join(records, lambda tensors: torch.cat(list(tensors), dim=dim))


def _join(records: Sequence[Record], join: Callable[[Sequence[Tensor]], Tensor]) -> Record:
    if not records:
        raise ValueError("cannot join an empty sequence of records")
    first = records[0]
    changed: dict[str, Any] = {}
    for field in fields(first):  # type: ignore[arg-type]
        values = [getattr(record, field.name) for record in records]
        if isinstance(values[0], Tensor):
            changed[field.name] = join(values)
        elif isinstance(values[0], TensorRecord):
            changed[field.name] = _join(values, join)
    return replace(first, **changed)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class Camera(TensorRecord):
    """Pinhole camera in the OpenCV convention, looking at a head."""

    intrinsics: Float[Tensor, "*batch 3 3"]  # pixels
    head_to_camera: Float[Tensor, "*batch 4 4"]  # canonical head space (cm) -> camera space (cm), rigid


@dataclass(frozen=True, kw_only=True)
class Frame(TensorRecord):
    """One annotated crop of a talking head, what the annotators and the tracker say of an image."""

    image: Float[Tensor, "*batch 3 h w"]
    parsing: UInt8[Tensor, "*batch h w"]  # datasets_toolkit.schema.Region
    matte: Float[Tensor, "*batch 1 h w"]  # person alpha
    depth: Float[Tensor, "*batch 1 h w"]  # cm along the optical axis; 0 outside the head
    normals: Float[Tensor, "*batch 3 h w"]  # camera frame, unit, facing the camera; 0 outside the head
    camera: Camera
    mesh: Float[Tensor, "*batch v 3"]  # tracked face mesh, canonical head space, cm
    expression: Float[Tensor, "*batch e"]  # blendshapes, then motion components


@dataclass(frozen=True, kw_only=True)
class Surface(TensorRecord):
    """A head surface seen by one camera, a value for each pixel."""

    depth: Float[Tensor, "*batch 1 h w"]  # cm along the optical axis
    normals: Float[Tensor, "*batch 3 h w"]  # camera frame, unit, facing the camera
    mask: Bool[Tensor, "*batch 1 h w"]


@dataclass(frozen=True, kw_only=True)
class PointCloud(TensorRecord):
    """A fixed-size set of surface points of a head in canonical space; ``mask`` tells which are real."""

    positions: Float[Tensor, "*batch n 3"]
    tangents: Float[Tensor, "*batch n 2 3"]  # what one grid step right and one grid step down move, cm
    pixels: Float[Tensor, "*batch n 2"]  # where the source image shows the point (or its counterpart)
    anchors: Int[Tensor, "*batch n 3"]  # vertices of the face mesh that the point moves with
    weights: Float[Tensor, "*batch n 3"]  # of the anchors; the sum fades from 1 on the face to 0 away from it
    weight_steps: Float[Tensor, "*batch n 2 3"]  # what one grid step right and one grid step down change of the weights
    head_weight: Float[Tensor, "*batch n"]  # 1 moves with the head, 0 stays with the torso
    head_weight_steps: Float[Tensor, "*batch n 2"]  # what one grid step right and one grid step down change of it
    colour: Float[Tensor, "*batch n 3"]  # base values: what the source shows there
    opacity: Float[Tensor, "*batch n"]
    child_colour: Float[Tensor, "*batch n k 3"]  # the same at the places of the point's children
    child_opacity: Float[Tensor, "*batch n k"]
    mask: Bool[Tensor, "*batch n"]


@dataclass(frozen=True, kw_only=True)
class HeadPoints(TensorRecord):
    """P_f and P_f^s of the paper: what the source shows, and the thin mirrored set of what it does not."""

    visible: PointCloud
    mirrored: PointCloud
    counterpart: Int[Tensor, "*batch m"]  # which visible point each mirrored one is the reflection of


@dataclass(frozen=True, kw_only=True)
class Gaussians(TensorRecord):
    """3D Gaussians in canonical head space, activated (scales in cm, opacities in [0, 1]), with any number of features."""

    means: Float[Tensor, "*batch n 3"]
    quaternions: Float[Tensor, "*batch n 4"]
    scales: Float[Tensor, "*batch n 3"]
    opacities: Float[Tensor, "*batch n"]
    features: Float[Tensor, "*batch n c"]
    mask: Bool[Tensor, "*batch n"]


@dataclass(frozen=True, kw_only=True)
class Rendering(TensorRecord):
    """What a renderer returns."""

    image: Float[Tensor, "*batch c h w"]
    alpha: Float[Tensor, "*batch 1 h w"]
    depth: Float[Tensor, "*batch 1 h w"]  # expected depth, cm; 0 where alpha is 0


@dataclass(frozen=True, kw_only=True)
class Pair(TensorRecord):
    """A source and a target: two frames of one person for training, or of two people for reenactment."""

    source: Frame
    target: Frame


@dataclass(frozen=True, kw_only=True)
class Light(TensorRecord):
    """The light of a source, and the face mesh that it falls on."""

    direction: Float[Tensor, "*batch 3"]  # what a normal's change along each axis of the camera changes the logarithm of brightness by
    mesh: Float[Tensor, "*batch v 3"]  # canonical head space, cm
    normals: Float[Tensor, "*batch v 3"]  # camera frame, unit, out of the face; 0 at vertices without a surface
    folds: Float[Tensor, "*batch v"]  # logarithm of what folds of the source's expression make of the brightness


@dataclass(frozen=True, kw_only=True)
class Identity(TensorRecord):
    """What is computed once for a portrait."""

    surface: Surface  # the refined one
    points: HeadPoints
    visible_features: Float[Tensor, "*batch n c"]
    mirrored_features: Float[Tensor, "*batch m c"]
    image: Float[Tensor, "*batch 3 h w"]  # the source
    background: Float[Tensor, "*batch 3 h w"]  # inpainted behind the whole person
    torso: Float[Tensor, "*batch 3 h w"]  # the torso, inpainted behind the head, multiplied by its alpha
    torso_alpha: Float[Tensor, "*batch 1 h w"]  # of the torso alone
    backed: Float[Tensor, "*batch 1 h w"]  # how much of the neck has the torso's picture behind it
    light: Light
    camera: Camera  # of the source
    expression: Float[Tensor, "*batch e"]  # of the source


@dataclass(frozen=True, kw_only=True)
class Reenactment(TensorRecord):
    """What the model makes of a pair: renders before and after densification, composited over torso and background."""

    coarse: Rendering
    dense: Rendering


@dataclass(frozen=True, kw_only=True)
class Motion(TensorRecord):
    """What drives an avatar: one row for each frame."""

    expression: Float[Tensor, "t e"]
    head_to_camera: Float[Tensor, "t 4 4"]
    times: Float[Tensor, " t"]  # seconds
    found: Bool[Tensor, " t"]  # whether the frame showed the face; other rows are interpolated
    focal: Float[Tensor, ""]  # of the clip camera, in units of its reference box's side
