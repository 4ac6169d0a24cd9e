"""Synthetic clips as the samples of a data set: exact labels in the conventions of ``docs/conventions.md`` and ``docs/shards.md``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from datasets_toolkit.annotators.audio_features import AudioSlices
from datasets_toolkit.build.clip_frames import ClipFrames, ClipNames
from datasets_toolkit.sample import FrameSample
from datasets_toolkit.schema import HEAD_REGIONS, TrackedClip
from datasets_toolkit.synthetic.clip import FPS, SyntheticClip
from datasets_toolkit.synthetic.render import Picture, project

VERSION = 1
"""Changes whenever the same seed may give other pictures or labels."""


def clip_names(clip: SyntheticClip, seed: int) -> ClipNames:
    """Ids of a clip: what it is made from stands for the content of a file."""
    source = f"synthetic-{clip.name}-{content_hash(clip, seed)[:8]}"
    return ClipNames(clip=f"{source}_00", source=source, person=clip.person.name)


def content_hash(clip: SyntheticClip, seed: int) -> str:
    """SHA-256 of everything that a clip is made from, hexadecimal."""
    return hashlib.sha256(f"{VERSION} {seed} {clip.name} {len(clip.times)} {clip.size} {clip.intrinsics[0, 0]!r}".encode()).hexdigest()


def frame_samples(clip: SyntheticClip, names: ClipNames, *, samples: int = 1) -> Iterator[FrameSample]:
    """The frames of a clip, drawn one by one; the source is the picture itself, so the crop is all of it.

    As the annotators do, depth and normals are given for the parts of the head (neck included) and are 0 elsewhere.
    """
    whole = np.tile([0.0, 0.0, clip.size], (len(clip.times), 1))
    frames = ClipFrames(clip=tracked(clip), boxes=whole, size=clip.size)
    sound = AudioSlices()(clip.speech.samples, clip.times)
    for index, heard in enumerate(sound):
        picture = clip.frame(index, samples=samples)
        head = np.isin(picture.labels, HEAD_REGIONS)
        yield FrameSample(
            meta=frames.meta(index, names, FPS),
            image=picture.image,
            parsing=picture.labels,
            matte=np.rint(255 * picture.matte).astype(np.uint8),
            depth=np.where(head, picture.depth, 0).astype(np.float32),
            normals=np.where(head[..., None], picture.normals, 0).astype(np.float32),
            landmarks=picture.landmarks.astype(np.float32),
            audio=heard.pcm,
            mel=heard.mel,
        )


def middle_picture(clip: SyntheticClip) -> Picture:
    """The frame in the middle of a clip."""
    return clip.frame(len(clip.times) // 2)


def tracked(clip: SyntheticClip) -> TrackedClip:
    """What a tracker that makes no mistake would find."""
    meshes = np.array([clip.person.landmarks(scores) for scores in clip.scores])
    heads = np.array([pose.head for pose in clip.poses])
    return TrackedClip(
        landmarks=np.array([project(mesh, head, clip.intrinsics) for mesh, head in zip(meshes, heads, strict=True)]),
        blendshapes=clip.scores,
        head_to_camera=heads,
        mesh=meshes,
        found=np.ones(len(clip.times), bool),
        times=clip.times,
        indices=np.arange(len(clip.times)),
        intrinsics=clip.intrinsics,
        box=np.array([0.0, 0.0, clip.size]),
    )
