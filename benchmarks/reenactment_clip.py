"""One clip of the reenactment benchmark: the methods run on the same frames, and are measured against the clip itself."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from reenactment_tables import REPEATED, WARP, ClipResult, Score
from torch import Tensor

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.errors import NoFaceError
from datasets_toolkit.faces.detection import FaceTracker, crop_image, landmark_bounds
from datasets_toolkit.faces.head_pose import euler_degrees, head_pose
from datasets_toolkit.media.video import VideoFrame, read_frames
from datasets_toolkit.schema import HEAD_REGIONS, ByteImage, Face, FloatArray, TrackedClip
from mggtalk import metrics
from mggtalk.drivers import Control, motion_from_clip
from mggtalk.evaluation.warp import warp
from mggtalk.metrics.tracked import posed_crop, see
from mggtalk.talking_head import Avatar, TalkingHead
from mggtalk.types import Motion

RUN = 12
"""Consecutive frames over which jitter is measured."""
PSNR_LIMIT = 60.0
"""PSNR of a frame counts as this at most (eight bits alone cost 58.9 dB), or a frame equal to the source would decide the mean."""
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is measured of a clip: frames compared at most, consecutive frames for jitter (0: none), whether the track is filtered."""

    frames: int
    run: int = RUN
    smooth: bool = True


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A clip as the methods are given it: avatar of the first frame, track, and every frame in the avatar's crop (s s 3)."""

    avatar: Avatar
    clip: TrackedClip
    crops: list[ByteImage]
    building: float  # ms
    tracking: float  # ms per frame


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What the ground truth shows in some frames: images and masks (b 1 s s) of head and face box, and the faces tracked on it."""

    images: list[ByteImage]
    faces: list[Face]
    head: Tensor
    box: Tensor


def follow(head: TalkingHead, path: Path, smooth: bool) -> Followed:
    """Reconstruct the first frame of a clip and track all of it.

    Raises:
        UserError: the clip cannot be read, or its first frame shows no face that could be animated.
    """
    first = next(iter(read_frames(path, limit=1)))
    start = time.perf_counter()
    avatar = head.reconstruct(first.image)
    built, decoding = time.perf_counter(), 0.0
    scale, _, corner = avatar.crop.source_to_crop[0]
    box = np.array([-corner / scale, -avatar.crop.source_to_crop[1, 2] / scale, head.size / scale])
    crops: list[ByteImage] = []

    def tap(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        nonlocal decoding
        began = time.perf_counter()
        for frame in frames:
            crops.append(crop_image(frame.image, box, head.size))
            decoding += time.perf_counter() - began
            yield frame
            began = time.perf_counter()
        decoding += time.perf_counter() - began

    clip = head.track_clip(path, smooth=smooth, progress=tap)
    if not clip.found[0] or clip.found.sum() < 2:
        raise NoFaceError(f"{path.name}: the face cannot be followed from the first frame on; {int(clip.found.sum())} frames show it")
    tracking = (time.perf_counter() - built - decoding) / len(crops)
    return Followed(avatar=avatar, clip=clip, crops=crops, building=1e3 * (built - start), tracking=1e3 * tracking)


def in_crop(landmarks: FloatArray, crop: FaceCrop) -> FloatArray:
    """Landmarks (478 x 3) of the clip in pixels of the source's crop."""
    matrix = crop.source_to_crop
    return landmarks * matrix[0, 0] + [matrix[0, 2], matrix[1, 2], 0]


def spread(found: npt.NDArray[np.bool_], count: int) -> Rows:
    """At most ``count`` rows that show the face, evenly spread over the clip; not the first, which is the source."""
    rows = np.flatnonzero(found)[1:]
    return np.unique(rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)])


def middle_run(found: npt.NDArray[np.bool_], length: int) -> Rows:
    """``length`` consecutive rows that show the face, as near to the middle of the clip as there are; empty if there are none."""
    starts = [start for start in range(1, len(found) - length + 1) if found[start : start + length].all()]
    if not starts or not length:
        return np.zeros(0, np.int64)
    start = min(starts, key=lambda start: abs(2 * start + length - len(found)))
    return np.arange(start, start + length)


def observe(head: TalkingHead, followed: Followed, rows: Rows) -> tuple[Rows, Truth | None]:
    """The ground truth in ``rows``, without those (first result: the rest) in whose crop the tracker finds no face."""
    crop = followed.avatar.crop
    seen = [(row, see(head.tracker, followed.crops[row], in_crop(followed.clip.landmarks[row], crop))) for row in rows]
    kept = [(row, face) for row, face in seen if face is not None]
    if not kept:
        return np.zeros(0, np.int64), None
    images, faces = [followed.crops[row] for row, _ in kept], [face for _, face in kept]
    masks = [regions(head, crop, image, face) for image, face in zip(images, faces, strict=True)]
    truth = Truth(images=images, faces=faces, head=torch.stack([mask for mask, _ in masks]), box=torch.stack([box for _, box in masks]))
    return np.array([row for row, _ in kept]), truth


def regions(head: TalkingHead, source: FaceCrop, image: ByteImage, face: Face) -> tuple[Tensor, Tensor]:
    """Masks (1 s s) of the head, by the parsing of the target, and of its landmarks' bounding box."""
    labels = head.annotators.parsing(posed_crop(image, face, source.intrinsics)).labels
    low, high = (np.clip(edge, 0, len(image)) for edge in (face.landmarks[:, :2].min(0), face.landmarks[:, :2].max(0)))
    box = np.zeros_like(labels)
    box[int(low[1]) : math.ceil(high[1]), int(low[0]) : math.ceil(high[0])] = 1
    return torch.from_numpy(np.isin(labels, HEAD_REGIONS)).double()[None], torch.from_numpy(box).double()[None]


def score(head: TalkingHead, crop: FaceCrop, images: Sequence[ByteImage], truth: Truth, jitter: float) -> Score:
    """All metrics of one method's images against the ground truth."""
    output, target = _floats(images), _floats(truth.images)
    faces = [see(head.tracker, image, face.landmarks) for image, face in zip(images, truth.faces, strict=True)]
    pairs = [(face, other) for face, other in zip(faces, truth.faces, strict=True) if face is not None]
    values = [distances(face, other, crop) for face, other in pairs]
    akd, aed, apd = np.mean(values, 0) if values else (math.nan,) * 3
    return Score(
        psnr=_mean(metrics.psnr(output, target).clamp(max=PSNR_LIMIT)),
        ssim=_mean(metrics.ssim(output, target)),
        psnr_head=_mean(metrics.psnr(output, target, truth.head).clamp(max=PSNR_LIMIT)),
        ssim_head=_mean(metrics.ssim(output, target, truth.head)),
        psnr_face=_mean(metrics.psnr(output, target, truth.box).clamp(max=PSNR_LIMIT)),
        ssim_face=_mean(metrics.ssim(output, target, truth.box)),
        akd=float(akd),
        aed=float(aed),
        apd=float(apd),
        jitter=jitter,
        missing=len(faces) - len(pairs),
    )


def distances(face: Face, truth: Face, crop: FaceCrop) -> tuple[float, float, float]:
    """AKD (per cent of the face's height), AED and APD (degrees) of two tracked faces of one crop."""
    pairs = [(face.landmarks[:, :2], truth.landmarks[:, :2]), (face.blendshapes, truth.blendshapes)]
    pairs.append((_angles(face, crop), _angles(truth, crop)))
    keypoints, expression, pose = ((torch.from_numpy(a)[None], torch.from_numpy(b)[None]) for a, b in pairs)
    height = landmark_bounds(truth.landmarks)[1]
    return 100 / height * _mean(metrics.akd(*keypoints)), _mean(metrics.aed(*expression)), _mean(metrics.apd(*pose))


def _angles(face: Face, crop: FaceCrop) -> FloatArray:
    return euler_degrees(head_pose(face.landmarks, crop.intrinsics).head_to_camera)


def shake(tracker: FaceTracker, images: Sequence[ByteImage], near: Sequence[FloatArray]) -> float:
    """Jitter of the landmarks tracked on consecutive images; NaN if one shows no face or there are too few."""
    faces = [see(tracker, image, landmarks) for image, landmarks in zip(images, near, strict=True)]
    known = [torch.from_numpy(face.landmarks[:, :2]) for face in faces if face is not None]
    return float(metrics.jitter(torch.stack(known))) if len(known) == len(faces) >= 3 else math.nan


def _floats(images: Sequence[ByteImage]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).double() / 255


def _mean(values: Tensor) -> float:
    return float(values.mean())


def pick(motion: Motion, rows: Rows) -> Motion:
    """The rows of a motion (its focal length has none)."""
    index = torch.from_numpy(rows)
    return motion.map(lambda tensor: tensor[index] if tensor.ndim else tensor)


def measure(head: TalkingHead, path: Path, name: str, choice: Choice) -> tuple[ClipResult, list[list[ByteImage]]]:
    """One clip: the result, and the rows of its contact sheet (ground truth, then the methods).

    Raises:
        UserError: as :func:`follow`, or no chosen frame shows a face in the source's crop.
    """
    followed = follow(head, path, choice.smooth)
    avatar, clip = followed.avatar, followed.clip
    chosen = spread(clip.found, choice.frames)
    rows, truth = observe(head, followed, chosen)
    if truth is None:
        raise NoFaceError(f"{path.name}: no face found in the source's crop of any of the {len(chosen)} frames compared")
    run = middle_run(clip.found, choice.run)
    points = [in_crop(landmarks, avatar.crop) for landmarks in clip.landmarks]
    every = np.concatenate([rows, run])
    # Expressions are relative to the first row: the source's frame.
    motion = pick(motion_from_clip(clip, head.face_model), np.concatenate([[0], every]))
    start = time.perf_counter()
    animated = list(head.animate(avatar, motion, Control(pose="absolute", expression="relative")))
    animating = 1e3 * (time.perf_counter() - start) / len(animated)
    outputs = {
        REPEATED: [avatar.crop.image] * len(every),
        WARP: [warp(avatar.crop.image, points[0], points[row]) for row in every],
        name: animated[1:],
    }
    near = [points[row] for row in run]
    steady = shake(head.tracker, [followed.crops[row] for row in run], near)
    scores = {
        method: score(head, avatar.crop, images[: len(rows)], truth, shake(head.tracker, images[len(rows) :], near) / steady)
        for method, images in outputs.items()
    }
    result = ClipResult(
        clip=path.name,
        frames=len(rows),
        untracked=len(chosen) - len(rows),
        scores=scores,
        source_psnr=_mean(metrics.psnr(_floats(animated[:1]), _floats([avatar.crop.image])).clamp(max=PSNR_LIMIT)),
        tracking=followed.tracking,
        building=followed.building,
        animating=animating,
    )
    return result, [truth.images, *(images[: len(rows)] for images in outputs.values())]
