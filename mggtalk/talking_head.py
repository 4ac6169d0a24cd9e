"""The library's front door: a portrait becomes an avatar, a motion animates it.

>>> with TalkingHead.from_pretrained() as head:
...     avatar = head.reconstruct("portrait.jpg")
...     for frame in head.animate(avatar, head.track("driving.mp4")):
...         print(frame.shape)  # uint8, size x size x 3
"""

from __future__ import annotations

import copy
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import torch
from jaxtyping import Float

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.annotators.depth_normals import DepthNormals
from datasets_toolkit.annotators.landmark_parsing import LandmarkParsing
from datasets_toolkit.annotators.mesh_depth import MeshDepth
from datasets_toolkit.annotators.portrait import Annotations, Annotators, crop_face, find_portrait
from datasets_toolkit.faces.detection import FaceTracker
from datasets_toolkit.faces.smoothing import LandmarkFilter, NoFilter, ZeroPhaseOneEuro, smooth_clip
from datasets_toolkit.faces.tracking import track_clip
from datasets_toolkit.media.images import read_image
from datasets_toolkit.media.video import VideoFrame, read_frames
from datasets_toolkit.schema import ByteImage, FloatArray, TrackedClip
from mggtalk.data.frames import to_frame
from mggtalk.drivers import Control, motion_from_clip, retarget
from mggtalk.export import DEFAULT, load_model
from mggtalk.geometry.face_model import FaceModel
from mggtalk.model import MGGTalk, Prepared
from mggtalk.rendering.factory import RendererName, make_renderer
from mggtalk.types import Camera, Frame, Identity, Motion, stack

log = logging.getLogger(__name__)

Progress = Callable[[Iterable[VideoFrame]], Iterable[VideoFrame]]
FEATHER = 0.04
"""Width, in units of the crop's side, over which a crop fades into the full frame."""


@dataclass(frozen=True, kw_only=True)
class Avatar:
    """A portrait ready to be animated.

    Attributes:
        image: the whole portrait, h w 3.
        crop: what was cut out of it and tracked.
        annotations: parsing, depth and normals of the crop.
        frame: the crop as a record (batch of one).
        identity: what the model computed of it.
        prepared: what it computed once more for all frames.
    """

    image: ByteImage
    crop: FaceCrop
    annotations: Annotations
    frame: Frame
    identity: Identity
    prepared: Prepared


class TalkingHead:
    """Portraits to avatars, avatars and motions to frames. Use as a context manager: it holds the tracker's native models.

    Args:
        model: in evaluation mode.
        size: pixels a side of the crop that is reconstructed and rendered; a multiple of 8.
        device: where the model runs.
        assets: folder with the tracker's model files; by default they are looked up as :mod:`datasets_toolkit.assets` says.

    Raises:
        ValueError: ``size`` is not a positive multiple of 8.
        AssetError: a model file cannot be had.
    """

    def __init__(self, model: MGGTalk, *, size: int = 256, device: str | torch.device = "cpu", assets: Path | None = None) -> None:
        if size < 64 or size % 8:
            raise ValueError(f"size must be a multiple of 8 and at least 64, got {size}")
        self.model, self.size, self.device = model.to(device), size, torch.device(device)
        self.tracker = FaceTracker(assets)
        self.face_model: FaceModel = copy.deepcopy(model.deformation.face_model).cpu()  # tracking stays on the CPU
        self.annotators = Annotators(parsing=LandmarkParsing(assets), depth=MeshDepth(), normals=DepthNormals())

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = DEFAULT,
        *,
        size: int = 256,
        device: str | torch.device = "cpu",
        renderer: RendererName = "auto",
        assets: Path | None = None,
    ) -> TalkingHead:
        """A talking head with an exported model; by default the one that ships with the project.

        Args:
            source: folder or .safetensors file of an exported model, or its name on the hub; see :func:`mggtalk.export.load_model`.
            size: pixels a side of the crop that is reconstructed and rendered; a multiple of 8.
            device: where the model runs.
            renderer: as :func:`mggtalk.rendering.factory.make_renderer` takes it; "auto" is the compiled renderer on a CPU.
            assets: folder with the tracker's model files.

        Raises:
            ModelError: there is no model that can be read.
            AssetError: a file of the face tracker cannot be had.
        """
        model = load_model(source)
        model.renderer = make_renderer(renderer, device)
        return cls(model, size=size, device=device, assets=assets)

    def __enter__(self) -> TalkingHead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release tracker and annotators."""
        self.tracker.close()
        self.annotators.close()

    @torch.inference_mode()
    def reconstruct(self, image: str | Path | ByteImage, *, face: int = 0) -> Avatar:
        """Build the avatar of a portrait: track, annotate, and the identity part of the model.

        Args:
            image: file, or RGB pixels (h w 3, uint8).
            face: which face, 0 the largest.

        Raises:
            MediaError: the file cannot be read.
            NoFaceError: no face that could be animated.
        """
        pixels = image if isinstance(image, np.ndarray) else read_image(Path(image))
        name = "image" if isinstance(image, np.ndarray) else str(image)
        crop = crop_face(pixels, find_portrait(pixels, self.tracker, face=face, name=name), self.size)
        annotations = self.annotators(crop)
        frame = stack([to_frame(crop, annotations, self.face_model)]).to(self.device)
        identity = self.model.reconstruct(frame)
        prepared = self.model.prepare(identity)
        return Avatar(image=pixels, crop=crop, annotations=annotations, frame=frame, identity=identity, prepared=prepared)

    def neutral(self, avatar: Avatar) -> Float[torch.Tensor, "v 3"]:
        """The neutral face that the avatar's expressions are about: its mesh in canonical space, cm."""
        mesh, expression = torch.from_numpy(np.asarray(avatar.crop.mesh)), avatar.frame.expression[0]
        return mesh.to(self.face_model.mean) - self.face_model.displacement(expression.to(self.face_model.mean))

    def track(self, video: str | Path, *, face: int = 0, smooth: bool = True, progress: Progress = iter) -> Motion:
        """The motion of a face in a video.

        Args:
            video: file.
            face: which face of the first frame that shows one, 0 the largest.
            smooth: whether tracking jitter is filtered.
            progress: wraps the frames as they are decoded, for a progress bar.

        Raises:
            MediaError: the file cannot be read.
            NoFaceError: no frame shows a face.
        """
        return motion_from_clip(self.track_clip(video, face=face, smooth=smooth, progress=progress), self.face_model)

    def track_clip(self, video: str | Path, *, face: int = 0, smooth: bool = True, progress: Progress = iter) -> TrackedClip:
        """As :meth:`track`: landmarks, poses and meshes of every frame instead of the motion."""
        filter_: LandmarkFilter = ZeroPhaseOneEuro() if smooth else NoFilter()
        clip = track_clip(progress(read_frames(Path(video))), self.tracker, face=face, name=str(video))
        return smooth_clip(clip, filter_)

    @torch.inference_mode()
    def animate(self, avatar: Avatar, motion: Motion, control: Control | None = None, *, workers: int | None = None) -> Iterator[ByteImage]:
        """Frames (uint8, size x size x 3) of the avatar, one for each row of the motion, in its order.

        Args:
            avatar: from :meth:`reconstruct`.
            motion: of the driver.
            control: how the motion is carried over; by default as :class:`Control` says.
            workers: frames in the making at once, on a share of PyTorch's threads each, and how many are made ahead of the one asked for;
                by default 2 on a CPU with several cores, else 1, which makes none ahead. The pictures do not depend on it.

        Raises:
            ValueError: ``workers`` is not positive.
            UserError: the control's reference frame lies outside the motion.
        """
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be positive, got {workers}")
        camera, expression = avatar.frame.camera[0], avatar.frame.expression[0]
        expressions, poses = retarget(motion.to(self.device), camera, expression, control or Control())
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = workers or (min(2, cores) if self.device.type == "cpu" else 1)
        yield from _in_order(lambda row: self.render(avatar, expressions[row], poses[row]), len(poses), count, self.device.type)

    @torch.inference_mode()
    def render(self, avatar: Avatar, expression: torch.Tensor, head_to_camera: torch.Tensor) -> ByteImage:
        """One frame (uint8, size x size x 3) under an expression (e) and a head pose (4 x 4)."""
        camera = Camera(intrinsics=avatar.frame.camera.intrinsics, head_to_camera=head_to_camera[None])
        image = self.model.render(avatar.identity, expression[None], camera, avatar.prepared)[0]
        planes = image.nan_to_num_(0.0).clamp_(0, 1).mul_(255).round_().to(torch.uint8).cpu()
        return np.asarray(cv2.merge(list(planes.numpy())))


def _in_order(make: Callable[[int], ByteImage], count: int, workers: int, kind: str) -> Iterator[ByteImage]:
    """``make(0)``, ``make(1)``, ...: as many as there are workers are begun before they are asked for, each in a thread.

    PyTorch's threads are shared out while this lasts. An error appears in the place of its frame; then, or when nobody asks for more, what
    is begun is finished and the threads end.
    """
    if workers == 1:
        yield from map(make, range(count))
        return
    threads, begun = torch.get_num_threads(), deque[Future[ByteImage]]()
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def start() -> None:  # these belong to a thread
        torch.set_num_threads(max(threads // workers, 1))
        torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_enabled(kind, enabled)

    pool = ThreadPoolExecutor(workers, "frame", start)
    try:
        for row in range(count):
            begun.append(pool.submit(make, row))
            if len(begun) > workers:
                yield begun.popleft().result()
        yield from (frame.result() for frame in begun)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def full_frame(avatar: Avatar, frame: ByteImage) -> ByteImage:
    """Put a rendered crop (s s 3) back into the whole portrait (h w 3), its edges faded into it."""
    height, width = avatar.image.shape[:2]
    half = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    matrix = (half @ np.linalg.inv(avatar.crop.source_to_crop) @ np.linalg.inv(half))[:2]
    size = len(frame)
    (scale, _, left), (_, _, top) = avatar.crop.source_to_crop[:2]
    alpha = (_feather(height, scale, top, size)[:, None] * _feather(width, scale, left, size))[..., None]
    pasted = cv2.warpAffine(frame, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray((alpha * pasted + (1 - alpha) * avatar.image).round(), np.uint8)


def _feather(length: int, scale: float, shift: float, size: int) -> FloatArray:
    """Weight of a crop for each of ``length`` portrait pixels along one axis, whose place in the crop is ``scale x + shift``.

    It falls to 0 towards the edges of the crop, but not where they are the portrait's own.
    """
    place = scale * (np.arange(length) + 0.5) + shift
    weight = np.asarray((place >= 0) & (place <= size), np.float64)
    if -shift / scale > 1:
        weight *= np.clip(place / (FEATHER * size), 0, 1)
    if (size - shift) / scale < length - 1:
        weight *= np.clip((size - place) / (FEATHER * size), 0, 1)
    return weight
