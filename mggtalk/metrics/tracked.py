"""What tracked metrics compare: the faces that the tracker of the toolkit and of inference sees in rendered pictures.

Landmarks give AKD and jitter, expressions AED, head poses APD. Rendering and ground truth are read in the same way, under the same camera.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.faces.detection import FaceTracker, reference_box
from datasets_toolkit.faces.head_pose import clip_camera, euler_degrees, head_pose
from datasets_toolkit.schema import BLENDSHAPES, LANDMARKS, ByteImage, Face, FloatArray
from mggtalk.geometry.cameras import project
from mggtalk.geometry.face_model import FaceModel
from mggtalk.geometry.images import byte_images
from mggtalk.types import Frame, TensorRecord

Pictures = Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]

FRAME = 512.0
"""Side of the frame in whose pixels landmarks are given, whatever size the pictures have: AKD is stated so."""


@dataclass(frozen=True, kw_only=True)
class ReadFaces(TensorRecord):
    """The faces read in a batch of pictures; rows without a face hold zeros."""

    found: Bool[Tensor, "*batch"]
    landmarks: Float[Tensor, "*batch n 2"]  # pixels of a 512 frame
    expression: Float[Tensor, "*batch e"]  # blendshapes, then motion components: FaceModel.split of this picture alone
    pose: Float[Tensor, "*batch 3"]  # yaw, pitch and roll, degrees; see datasets_toolkit.faces.head_pose.euler_degrees

    @property
    def blendshapes(self) -> Float[Tensor, "*batch 52"]:
        """The first part of the expression, scores in [0, 1]; the components beside them are larger and less sure."""
        return self.expression[..., : len(BLENDSHAPES)]


class FaceReader:
    """Reads faces in pictures, on the CPU (some 20 ms for each); use as a context manager or close it, one for each process.

    The tracker is made when the first picture is read. Copies (also pickled ones, for spawned processes) make one of their own.

    Args:
        tracker: an open one to be shared; it stays the caller's to close. By default the reader has its own.
        assets: folder with the tracker's model files; by default they are looked up as :mod:`datasets_toolkit.assets` says.
        face_model: splits meshes into person and expression; by default the basis that ships with the project.
    """

    def __init__(
        self, tracker: FaceTracker | None = None, *, assets: str | Path | None = None, face_model: FaceModel | None = None
    ) -> None:
        self.assets = None if assets is None else Path(assets)
        self.face_model = FaceModel() if face_model is None else face_model
        self._tracker, self._owned, self._process = tracker, tracker is None, os.getpid()

    def __enter__(self) -> FaceReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the tracker, unless it was given; the next picture makes it anew."""
        if self._owned and self._tracker is not None:
            self._tracker.close()
            self._tracker = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tracker": None, "_owned": True}

    @property
    def tracker(self) -> FaceTracker:
        """The tracker, made now if there is none.

        Raises:
            AssetError: one of its model files cannot be had.
            RuntimeError: it was made in a process from which this one was forked: its threads are not here, and it would wait for ever.
        """
        if self._tracker is None:
            self._tracker, self._process = FaceTracker(self.assets), os.getpid()
        elif self._process != os.getpid():
            raise RuntimeError("the face tracker was made before this process was forked; start processes with spawn")
        return self._tracker

    def read_pair(self, images: Pictures, target: Frame) -> tuple[ReadFaces, ReadFaces]:
        """The faces of renderings of ``target`` and those of its own pictures, both searched where it shows its face.

        The tracker's answer depends a little on where it looks (by about a pixel of 512). Here both are looked at in the same place and
        under the same camera: a rendering that equals its target is at distance 0. Arguments and errors as :meth:`crops`.
        """
        camera = target.camera.to("cpu", torch.float64)  # double precision is out of autocast's reach
        intrinsics, near = camera.intrinsics, project(target.mesh.to(camera.intrinsics), camera)[0]
        return self.read(images, intrinsics, near), self.read(target.image, intrinsics, near)

    def read(
        self, images: Pictures, intrinsics: Float[Tensor, "b 3 3"] | None = None, near: Float[Tensor, "b n 2"] | None = None
    ) -> ReadFaces:
        """The largest face of each picture, or the one near the place given, on the CPU; arguments and errors as :meth:`crops`."""
        return self.describe(self.crops(images, intrinsics, near))

    def crops(
        self, images: Pictures, intrinsics: Float[Tensor, "b 3 3"] | None = None, near: Float[Tensor, "b n 2"] | None = None
    ) -> list[FaceCrop | None]:
        """Each picture with the face that is found in it, or None.

        Args:
            images: floats in [0, 1] (what lies outside is clamped, NaN is black) or bytes, on any device.
            intrinsics: of their cameras, pixels, under which poses are computed. By default that of a clip that begins with the picture:
                then a pose is relative to the line of sight onto the face.
            near: landmarks, pixels, in whose place each face is searched first, and everywhere if it is not there. By default everywhere.

        Raises:
            AssetError: a model file of the tracker cannot be had.
        """
        cameras, places = (([None] * len(images) if values is None else list(_array(values))) for values in (intrinsics, near))
        return [self._crop(*row) for row in zip(byte_images(images), cameras, places, strict=True)]

    def describe(self, crops: Sequence[FaceCrop | None]) -> ReadFaces:
        """What tracked metrics need of :meth:`crops`."""
        size, count = self.face_model.expression_size, len(crops)
        landmarks, pose, expression = torch.zeros(count, LANDMARKS, 2), torch.zeros(count, 3), torch.zeros(count, size)
        for row, crop in enumerate(crops):
            if crop is not None:
                landmarks[row] = torch.from_numpy(crop.landmarks[:, :2] * (FRAME / max(crop.image.shape)))
                pose[row] = torch.from_numpy(euler_degrees(crop.head_to_camera))
                expression[row] = self._expression(crop)
        found = torch.tensor([crop is not None for crop in crops], dtype=torch.bool)
        return ReadFaces(found=found, landmarks=landmarks, expression=expression, pose=pose)

    def _crop(self, image: ByteImage, intrinsics: FloatArray | None, near: FloatArray | None) -> FaceCrop | None:
        face = see(self.tracker, image, near)
        return None if face is None else posed_crop(image, face, intrinsics)

    def _expression(self, crop: FaceCrop) -> Float[Tensor, " e"]:
        mesh, blendshapes = (torch.from_numpy(values).to(self.face_model.mean) for values in (crop.mesh, crop.blendshapes))
        with torch.autocast(mesh.device.type, enabled=False):
            return self.face_model.split(mesh, blendshapes)[1].cpu()


def see(tracker: FaceTracker, image: ByteImage, near: FloatArray | None = None) -> Face | None:
    """The face of an image (h w 3), searched around landmarks (n x 2 or more, pixels) first, and everywhere if it is not there."""
    found = None if near is None else tracker.follow(image, Face(landmarks=near, blendshapes=np.zeros(0)))
    return found or next(iter(tracker.faces(image)), None)


def posed_crop(image: ByteImage, face: Face, intrinsics: FloatArray | None = None) -> FaceCrop:
    """A picture with the face that was found in it, its pose and its mesh; the picture is its own source.

    Args:
        image: h w 3.
        face: found in it.
        intrinsics: 3 x 3, pixels; by default those of a clip that begins with the picture.
    """
    intrinsics = clip_camera(reference_box(face.landmarks)) if intrinsics is None else intrinsics
    pose = head_pose(face.landmarks, intrinsics)
    return FaceCrop(
        image=image, mesh=pose.mesh, head_to_camera=pose.head_to_camera, intrinsics=intrinsics, source_to_crop=np.eye(3), **asdict(face)
    )


def _array(values: Tensor) -> FloatArray:
    return values.detach().double().cpu().numpy()
