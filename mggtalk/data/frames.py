"""An annotated crop as a Frame: tensors, the expression, and the depth made consistent with the normals."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.annotators.portrait import Annotations
from mggtalk.geometry.face_model import FaceModel
from mggtalk.geometry.surface import integrate_normals
from mggtalk.types import Camera, Frame

PRIOR_WEIGHT = 5000.0
"""Of the annotated depth against its normals, in the bilateral integration."""


def to_frame(crop: FaceCrop, annotations: Annotations, face_model: FaceModel, *, integrate: bool = True) -> Frame:
    """A frame (no batch dimension) of a crop and its annotations.

    Args:
        crop: the crop and what tracking knows of it.
        annotations: its labels.
        face_model: splits the mesh into person and expression.
        integrate: whether the depth is rebuilt from the normals (DGSR's coarse cloud) or taken as it is.
    """
    depth, normals = tensor(annotations.depth)[None], tensor(annotations.normals).permute(2, 0, 1)
    camera = Camera(intrinsics=tensor(crop.intrinsics), head_to_camera=tensor(crop.head_to_camera))
    if integrate:
        depth = integrate_normals(normals, depth, depth > 0, camera.intrinsics, prior_weight=PRIOR_WEIGHT)
    mesh = tensor(crop.mesh)
    return Frame(
        image=tensor(crop.image).permute(2, 0, 1) / 255,
        parsing=torch.from_numpy(annotations.parsing.labels),
        matte=tensor(annotations.parsing.matte)[None],
        depth=depth,
        normals=normals,
        camera=camera,
        mesh=mesh,
        expression=face_model.split(mesh, tensor(crop.blendshapes))[1],
    )


def tensor(array: npt.NDArray[np.generic]) -> Tensor:
    """A float32 tensor with its own memory."""
    return torch.from_numpy(np.array(array, np.float32))
