"""Frames as they leave the workers: bytes where the shards hold bytes, so that little is copied; unpacked to Frames on the device.

Letters as in :mod:`datasets_toolkit.faces.head_pose`: p a landmark lifted to unit head depth, [R t] the head pose, s the similarity's
scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import default_collate

from datasets_toolkit.faces.head_pose import canonical_face
from mggtalk.geometry.face_model import FaceModel
from mggtalk.types import Camera, Frame, Pair, Record, TensorRecord, stack


@dataclass(frozen=True, kw_only=True)
class PackedFrame(TensorRecord):
    """One frame of a data set, channels last; a label that was not read is None."""

    image: UInt8[Tensor, "*batch h w 3"]
    parsing: UInt8[Tensor, "*batch h w"] | None  # datasets_toolkit.schema.Region
    matte: UInt8[Tensor, "*batch h w"] | None  # person alpha x 255
    depth: Float[Tensor, "*batch h w"] | None  # cm along the optical axis; 0 where unknown
    normals: UInt8[Tensor, "*batch h w 3"] | None  # 127.5 (n + 1), camera frame; grey where unknown
    landmarks: Float[Tensor, "*batch 478 3"]  # pixels of the crop; z in the same scale
    blendshapes: Float[Tensor, "*batch 52"]
    camera: Camera
    source_to_crop: Float[Tensor, "*batch 3 3"]  # pixels of the source video to pixels of the crop


@dataclass(frozen=True, kw_only=True)
class PackedPair(TensorRecord):
    """Two frames before they are batched."""

    source: PackedFrame
    target: PackedFrame


@dataclass(frozen=True, kw_only=True)
class PackedBatch(TensorRecord):
    """A rank's share of a global batch."""

    source: PackedFrame
    target: PackedFrame
    valid: Bool[Tensor, "*batch"]  # False where a last batch is filled up
    rows: Int[Tensor, "*batch 2"]  # of index.parquet: source, target
    epoch: int
    number: int  # of the global batch in its epoch


@dataclass(frozen=True, kw_only=True)
class PairBatch(TensorRecord):
    """What a training or validation step is given."""

    pair: Pair
    valid: Bool[Tensor, "*batch"]  # False where a last batch is filled up: leave these pairs out of every mean
    rows: Int[Tensor, "*batch 2"]  # of index.parquet: source, target


def collate(records: Sequence[Record]) -> Record:
    """As :func:`mggtalk.types.stack`; in a loader's worker straight into shared memory, which saves a copy of every image."""
    first = records[0]
    if torch.utils.data.get_worker_info() is None:
        return stack(records)
    changed: dict[str, Any] = {}
    for field in fields(first):  # type: ignore[arg-type]
        values = [getattr(record, field.name) for record in records]
        if isinstance(values[0], Tensor):
            changed[field.name] = default_collate(values)
        elif isinstance(values[0], TensorRecord):
            changed[field.name] = collate(values)
    return replace(first, **changed)  # type: ignore[type-var]


def unpack(batch: PackedBatch, face_model: FaceModel, same: Bool[Tensor, " b"]) -> PairBatch:
    """Frames of a batch, on the device it lies on (``face_model`` on the same).

    One frame alone does not say what is the person and what the expression; two of one person say exactly how the expression changes. So
    where ``same`` the target's expression is the source's plus that change, as ``Control(expression="relative")`` drives.
    """
    source, target = unpack_frame(batch.source, face_model), unpack_frame(batch.target, face_model)
    change = face_model.change(source.mesh, target.mesh, batch.target.blendshapes - batch.source.blendshapes)
    expression = torch.where(same[:, None], source.expression + change, target.expression)
    return PairBatch(pair=Pair(source=source, target=replace(target, expression=expression)), valid=batch.valid, rows=batch.rows)


def unpack_frame(packed: PackedFrame, face_model: FaceModel) -> Frame:
    """A batch of frames; labels that were not read are 0 everywhere (nothing known, all background)."""
    mesh = head_mesh(packed.landmarks, packed.camera)
    depth = _label(packed.depth, packed, lambda values: values.float())
    return Frame(
        image=_planes(packed.image) / 255,
        parsing=_label(packed.parsing, packed, lambda labels: labels, torch.uint8),
        matte=_label(packed.matte, packed, lambda values: values.float() / 255)[:, None],
        depth=depth[:, None],
        normals=_normals(packed, depth),
        camera=packed.camera,
        mesh=mesh,
        expression=expressions(face_model, mesh, packed.blendshapes),
    )


def head_mesh(landmarks: Float[Tensor, "b 478 3"], camera: Camera) -> Float[Tensor, "b 478 3"]:
    """The face mesh in canonical head space (cm) that ``camera`` sees exactly at the landmarks: ``(p / s - t) R``.

    s is the scale of the similarity that takes the mean face to p with rotation R: with the best R this is Umeyama's
    (TPAMI 1991, equation 42), as :func:`datasets_toolkit.faces.head_pose.head_pose` computes it, without another singular value
    decomposition.
    """
    face = canonical_face()
    vertices, weights = (landmarks.new_tensor(values) for values in (face.vertices, face.pose_weights))
    focal, centre = camera.intrinsics[:, :1, :1], camera.intrinsics[:, None, :2, 2]
    depth = 1 + landmarks[..., 2:] / focal
    points = torch.cat([(landmarks[..., :2] - centre) / focal * depth, depth], -1)
    rotation, translation = camera.head_to_camera[:, :3, :3], camera.head_to_camera[:, None, :3, 3]
    weights = (weights / weights.sum())[:, None]
    turned = (vertices - (weights * vertices).sum(0)) @ rotation.mT
    centred = points - (weights * points).sum(-2, keepdim=True)
    scale = (weights * turned * centred).sum((-2, -1)) / (weights * turned.square()).sum((-2, -1))
    return (points / scale[:, None, None] - translation) @ rotation


def expressions(face_model: FaceModel, meshes: Float[Tensor, "b 478 3"], blendshapes: Float[Tensor, "b 52"]) -> Float[Tensor, "b e"]:
    """:meth:`FaceModel.split` of each face, without its neutral mesh."""
    return torch.vmap(lambda mesh, scores: face_model.split(mesh, scores)[1])(meshes, blendshapes)


def _planes(image: Tensor) -> Tensor:
    """Channels first, float; contiguous."""
    return image.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)


def _label(values: Tensor | None, packed: PackedFrame, convert: Callable[[Tensor], Tensor], kind: torch.dtype = torch.float32) -> Tensor:
    if values is not None:
        return convert(values)
    return torch.zeros((), dtype=kind, device=packed.image.device).expand(packed.image.shape[:-1])


def _normals(packed: PackedFrame, depth: Tensor) -> Tensor:
    """Unit normals; grey has length 0.01, and mixing with it only shortens."""
    if packed.normals is None:
        return torch.zeros((), device=depth.device).expand(len(depth), 3, *depth.shape[1:])
    normals = _planes(packed.normals) / 127.5 - 1
    known = normals.square().sum(1, keepdim=True) > 0.25
    if packed.depth is not None:
        known &= depth[:, None] > 0
    return normalize(normals, dim=1) * known
