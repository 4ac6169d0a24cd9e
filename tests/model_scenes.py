"""A made head before a made background, annotated as a tracker would: what the tests of the model and its bases reenact."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from datasets_toolkit.annotators import FaceCrop, Parsing
from datasets_toolkit.annotators.depth_normals import DepthNormals
from datasets_toolkit.annotators.landmark_parsing import POLYGONS, polygon
from datasets_toolkit.annotators.mesh_depth import head_prior, rasterise_depth
from datasets_toolkit.annotators.portrait import Annotations
from datasets_toolkit.faces import face_regions
from datasets_toolkit.schema import BLENDSHAPES, HEAD_REGIONS, ByteImage, FloatArray, Region
from mggtalk.data.frames import to_frame
from mggtalk.geometry.face_model import FaceModel
from mggtalk.geometry.images import push_pull
from mggtalk.model import MGGTalk
from mggtalk.modules.deformation import DeformationNetwork
from mggtalk.modules.gaussians import Densifier, GaussianDecoder
from mggtalk.modules.identity import IdentityEncoder
from mggtalk.modules.inpainter import Inpainter
from mggtalk.modules.refiner import GeometryRefiner
from mggtalk.rendering.reference import ReferenceRenderer
from mggtalk.types import Frame, stack

DISTANCE, HEIGHT = 110.0, 1.3
"""Centimetres to the head; canonical height in the middle of the picture."""
JAW_OPEN = BLENDSHAPES.index("jawOpen")
COLOURS = {Region.SKIN: (200, 150, 120), Region.HAIR: (70, 50, 40), Region.NECK: (180, 130, 110), Region.TORSO: (60, 80, 150)}
COLOURS |= {Region.UPPER_LIP: (180, 70, 80), Region.LOWER_LIP: (190, 80, 90), Region.BACKGROUND: (110, 140, 110)}


@lru_cache(maxsize=1)
def face_model() -> FaceModel:
    return FaceModel()


def pose(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> FloatArray:
    """Head to camera: degrees, positive yaw to the image's right, as ``euler_degrees`` says; shift in cm, camera frame."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag([1.0, -1, -1]) @ Rotation.from_euler("yxz", [yaw, -pitch, -roll], degrees=True).as_matrix()
    matrix[:3, 3] = np.array([0, HEIGHT, DISTANCE]) + shift
    return matrix


def project_head(points: FloatArray, matrix: FloatArray, size: int) -> tuple[FloatArray, FloatArray]:
    """Pixels and depth of points of canonical head space."""
    in_camera = points @ matrix[:3, :3].T + matrix[:3, 3]
    return 3 * size * in_camera[:, :2] / in_camera[:, 2:] + size / 2, in_camera[:, 2]


def made_crop(size: int, matrix: FloatArray, jaw: float = 0.0, seed: int = 0) -> tuple[FaceCrop, Parsing]:
    """A crop of a person, number ``seed``, and the regions that it shows."""
    scores = np.zeros(52)
    scores[JAW_OPEN] = jaw
    person = 0.5 * np.random.default_rng(seed).normal(size=len(face_model().identity))
    mesh = face_model().mean.double().numpy() + np.tensordot(person, face_model().identity.double().numpy(), 1)
    mesh = mesh + np.tensordot(scores, face_model().blendshapes.double().numpy(), 1)
    pixels, depth = project_head(mesh, matrix, size)
    landmarks = np.concatenate([pixels, depth[:, None] - DISTANCE], 1)
    parsing = made_parsing(landmarks, matrix, size)
    crop = FaceCrop(
        image=made_image(parsing, seed),
        landmarks=landmarks,
        blendshapes=scores,
        mesh=mesh,
        head_to_camera=matrix,
        intrinsics=np.array([[3.0 * size, 0, size / 2], [0, 3.0 * size, size / 2], [0, 0, 1]]),
        source_to_crop=np.eye(3),
    )
    return crop, parsing


def made_parsing(landmarks: FloatArray, matrix: FloatArray, size: int) -> Parsing:
    """Torso, neck and hair from coarse outlines in head space, the face from its landmarks."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    outlines = {
        Region.TORSO: np.array([[-20.0, -40, -2], [-19, -14, -2], [-5, -11.5, -2], [5, -11.5, -2], [19, -14, -2], [20, -40, -2]]),
        Region.NECK: np.array([[-5.0, -4, -1], [5, -4, -1], [4.8, -13, -1], [-4.8, -13, -1]]),
        Region.HAIR: np.stack([8.7 * np.cos(angles), 2 + 10.5 * np.sin(angles), 0 * angles], 1),
    }
    level = matrix.copy()
    level[:3, :3] = np.diag([1.0, -1, -1])  # the torso does not turn
    labels, matte = np.zeros((size, size), np.uint8), np.zeros((size, size), np.float32)
    for region, outline in outlines.items():
        corners = project_head(outline, level if region == Region.TORSO else matrix, size)[0]
        covered = polygon(corners, tuple(range(len(corners))), size)
        labels[covered > 0.5], matte = region, np.maximum(matte, covered)
    face = polygon(landmarks, face_regions.FACE_OVAL, size)
    labels[face > 0.5], matte = Region.SKIN, np.maximum(matte, face)
    for region, ring in POLYGONS:
        labels[polygon(landmarks, ring, size) > 0.5] = region
    return Parsing(labels=labels, matte=matte)


def made_image(parsing: Parsing, seed: int) -> ByteImage:
    """A colour for each region under a smooth random pattern; soft where the matte is."""
    size = len(parsing.matte)
    pattern = cv2.resize(np.random.default_rng(seed).uniform(-40, 40, (8, 8, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
    person = np.zeros((size, size, 3))
    for region in Region:
        person[parsing.labels == region] = COLOURS.get(region, COLOURS[Region.SKIN])
    image = cv2.GaussianBlur(person, (0, 0), size / 128) + pattern
    return np.asarray(image.clip(0, 255).round(), np.uint8)


def annotate(crop: FaceCrop, parsing: Parsing) -> Annotations:
    """Depth of the mesh on the face, and of a coarse skull, continued from the face, around it."""
    mesh = rasterise_depth(crop, len(crop.image))
    head = np.isin(parsing.labels, HEAD_REGIONS)
    prior = head_prior(crop, head)
    gap = push_pull(torch.from_numpy(np.where(mesh > 0, mesh - prior, 0))[None], torch.from_numpy(mesh > 0)[None].double())[0].numpy()
    depth = np.where(head, prior + gap, 0).astype(np.float32)
    return Annotations(parsing=parsing, depth=depth, normals=DepthNormals()(crop, parsing, depth))


@lru_cache(maxsize=16)
def made_frame(size: int = 64, yaw: float = 0.0, jaw: float = 0.0, seed: int = 0, nearer: float = 0.0) -> Frame:
    """A frame (batch of one)."""
    crop, parsing = made_crop(size, pose(yaw, shift=(0.0, 0.0, -nearer)), jaw, seed)
    return stack([to_frame(crop, annotate(crop, parsing), face_model(), integrate=False)])


def made_model(seed: int = 0, capacity: int | None = None) -> MGGTalk:
    """The untrained model with small networks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MGGTalk(
            refiner=GeometryRefiner((8, 16), seen=64),
            encoder=IdentityEncoder(8, (8, 16)),
            deformation=DeformationNetwork(face_model(), 16),
            visible_decoder=GaussianDecoder(8, width=16),
            mirrored_decoder=GaussianDecoder(8, 11, 16),
            densifier=Densifier(8, 16),
            inpainter=Inpainter((8, 16)),
            renderer=ReferenceRenderer(),
            capacity=capacity,
        )


def perturb(model: MGGTalk, amount: float, seed: int = 0) -> MGGTalk:
    """Every trainable parameter, zero layers included, moved a little at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return model


def seen_from(frame: Frame, matrix: FloatArray) -> Frame:
    """The frame as a target with another head pose."""
    moved = torch.from_numpy(matrix).to(frame.image).expand_as(frame.camera.head_to_camera)
    return replace(frame, camera=replace(frame.camera, head_to_camera=moved))


def with_expression(frame: Frame, **changes: float) -> Frame:
    """The frame as a target whose named blendshape scores are raised."""
    expression = frame.expression.clone()
    for name, change in changes.items():
        expression[..., BLENDSHAPES.index(name)] += change
    return replace(frame, expression=expression)


def labelled(frame: Frame, *regions: Region) -> Tensor:
    """Where the frame shows any of the regions (b 1 h w)."""
    return torch.isin(frame.parsing, torch.tensor([int(region) for region in regions], dtype=torch.uint8))[:, None]
