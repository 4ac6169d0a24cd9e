"""The clips of a data set as speech and what the face does with it: features and expressions, 50 a second. No picture is read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from datasets_toolkit.annotators.phones import PhoneAligner, closures, understood
from datasets_toolkit.errors import UserError
from datasets_toolkit.media.sound import level
from datasets_toolkit.schema import BLENDSHAPES, FloatArray
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.data.packed import head_mesh
from mggtalk.data.pairs import frame_table, people_of
from mggtalk.geometry.face_model import FaceModel
from mggtalk.metrics.speech import AROUND, OPENING_VERTICES, measured_style, mouth_opening
from mggtalk.modules.speech import FRAME_RATE, RATE, STEP, SpeechEncoder
from mggtalk.types import Camera, TensorRecord

log = logging.getLogger(__name__)
SHORTEST = 1.0
"""Seconds; shorter clips are left out."""
SILENT = -45.0
"""dB below full scale; quieter clips count as silent and are left out."""
_SIDES = {name: name.replace(*pair) for name in BLENDSHAPES for pair in (("Left", "Right"), ("Right", "Left")) if name.endswith(pair[0])}
_SIDES |= {"jawLeft": "jawRight", "jawRight": "jawLeft", "mouthLeft": "mouthRight", "mouthRight": "mouthLeft"}


@dataclass(frozen=True, kw_only=True)
class SpeechClip(TensorRecord):
    """A clip, t frames of 20 ms from its first frame on."""

    features: Float[Tensor, "t c"]
    expression: Float[Tensor, "t e"]  # about the clip's neutral face with its lips closed; the same on both sides of it
    opening: Float[Tensor, " t"]  # of the tracked mesh; see mggtalk.metrics.speech
    bilabial: Float[Tensor, " t"]  # 1 where p, b or m is heard, and AROUND seconds before and after
    understood: Bool[Tensor, ""]  # whether that is known
    points: Float[Tensor, "4 3"]  # OPENING_VERTICES of the neutral face with its lips closed, cm
    style: Float[Tensor, " s"]  # as measured, not standardised
    rows: Int[Tensor, " 2"]  # of index.parquet: first and last
    name: str
    person: str


def read_clips(
    reader: ShardReader, split: str, encoder: SpeechEncoder, face_model: FaceModel, aligner: PhoneAligner | None = None
) -> list[SpeechClip]:
    """The clips of a split that can be heard; the others are told in the log.

    Where ``clips.parquet`` knows how far sound and lips are apart, with a confidence of at least 0.1, the sound is moved by that much. The
    aligner finds p, b and m in English clips; without it no clip is understood.

    Raises:
        UserError: the data set holds no sound at all.
    """
    if "audio" not in reader.columns:
        raise UserError(f"{reader.storage.root}: has no column 'audio', so there is no speech to learn from; build it with AudioSlices")
    offsets = {row["clip"]: _offset(row) for row in reader.clips.to_pylist()}
    found, silent, symmetry = [], 0, symmetric_part(face_model)
    for name, person, rows in clip_rows(reader, split):
        motion = read_motion(reader, rows, face_model)
        sound = np.concatenate([np.zeros(0, np.int16), *motion.sound])
        if motion.times[-1] - motion.times[0] < SHORTEST or not level(sound) > SILENT:
            silent += 1
            continue
        clip = _speech_clip(motion, encoder, face_model, aligner, name, person, rows, offsets[name])
        found.append(replace(clip, expression=clip.expression @ symmetry))
    log.info(
        "%s: %d clips of split %s can be heard; %d are silent, without sound, or too short", reader.storage.root, len(found), split, silent
    )
    if not found:
        raise UserError(f"{reader.storage.root}: no clip of split {split!r} can be heard; build the set from videos with speech")
    return found


def symmetric_part(face_model: FaceModel) -> Float[Tensor, "e e"]:
    """The matrix that expressions (rows) are multiplied with for the mean of each with its mirror image: no sound tells the sides apart."""
    size = len(face_model.blendshapes)
    swapped = [_SIDES.get(name, name) for name in BLENDSHAPES]
    order = torch.tensor([BLENDSHAPES.index(name) for name in swapped])
    every = torch.eye(face_model.expression_size)
    moved_there = face_model.displacement(every)[:, face_model.mirror] * torch.tensor([-1.0, 1.0, 1.0])
    blendshapes = every[:, :size][:, order]
    still = torch.zeros_like(moved_there[0])
    mirrored = face_model.expression(moved_there, blendshapes, still)
    return 0.5 * (every + mirrored)


@dataclass(frozen=True, eq=False)
class TrackedMotion:
    """Frames of a clip as they are stored: times (s), expressions, meshes (cm), poses, the clip's neutral face, and the sound of each."""

    times: FloatArray
    expression: Float[Tensor, "t e"]
    mesh: Float[Tensor, "t v 3"]
    head_to_camera: Float[Tensor, "t 4 4"]
    neutral: Float[Tensor, "v 3"]
    sound: list[Any]


def clip_rows(reader: ShardReader, split: str) -> Iterator[tuple[str, str, Any]]:
    """Name, person and rows of ``index.parquet`` (in time) of each clip of a split."""
    table, names = frame_table(reader.index, reader.clips, split), reader.index["clip"].to_pylist()
    people = people_of(reader.clips)
    for span in table.spans():
        name = names[int(table.rows[span.start])]
        yield name, people[name], table.rows[span]


def read_motion(reader: ShardReader, rows: Any, face_model: FaceModel) -> TrackedMotion:
    """The tracked motion of the frames of one clip, and their sound where the data set has any."""
    columns = ["landmarks", "audio"] if "audio" in reader.columns else ["landmarks"]
    samples = [reader.sample(int(row), columns) for row in rows]
    stacked = {
        name: torch.from_numpy(np.stack([getattr(sample.meta, name) for sample in samples]))
        for name in ("intrinsics", "head_to_camera", "blendshapes")
    }
    landmarks = torch.from_numpy(np.stack([np.asarray(sample.landmarks, np.float64) for sample in samples]))
    camera = Camera(intrinsics=stacked["intrinsics"], head_to_camera=stacked["head_to_camera"])
    mesh, blendshapes = head_mesh(landmarks, camera).float(), stacked["blendshapes"].float()
    neutral = face_model.neutral(mesh, blendshapes)
    return TrackedMotion(
        times=np.array([sample.meta.time for sample in samples]),
        expression=face_model.expression(mesh, blendshapes, neutral),
        mesh=mesh,
        head_to_camera=stacked["head_to_camera"].float(),
        neutral=neutral,
        sound=[sample.audio if sample.audio is not None else np.zeros(0, np.int16) for sample in samples],
    )


def _speech_clip(
    motion: TrackedMotion,
    encoder: SpeechEncoder,
    face_model: FaceModel,
    aligner: PhoneAligner | None,
    name: str,
    person: str,
    rows: Any,
    offset: float,
) -> SpeechClip:
    times = motion.times - motion.times[0]
    samples = placed(times, motion.sound) / np.float32(32768)
    count, late = int(times[-1] * FRAME_RATE) + 1, round(offset * FRAME_RATE)
    grid = np.arange(count) / FRAME_RATE
    sound = torch.from_numpy(np.pad(samples, (0, STEP + int(encoder.ahead * RATE))))
    heard, known = bilabials(aligner, samples, count)
    closing = face_model.closing(motion.neutral)
    return SpeechClip(
        features=shifted(encoder(sound)[:count], late),
        expression=_at(grid, times, motion.expression) - closing,
        opening=_at(grid, times, mouth_opening(motion.mesh)[:, None])[:, 0],
        bilabial=shifted(heard[:, None], late)[:, 0],
        understood=torch.tensor(known),
        points=(motion.neutral + face_model.displacement(closing))[list(OPENING_VERTICES)],
        style=measured_style(motion.mesh, motion.expression, torch.from_numpy(times)),
        rows=torch.tensor([int(rows[0]), int(rows[-1])]),
        name=name,
        person=person,
    )


def bilabials(aligner: PhoneAligner | None, samples: npt.NDArray[np.floating], count: int) -> tuple[Float[Tensor, " t"], bool]:
    """Where p, b or m is heard (``bilabial`` of a clip), and whether the words were understood; ``samples`` in [-1, 1]."""
    found = torch.zeros(count)
    phones = [] if aligner is None else aligner((32768 * samples).astype(np.int16))
    for phone in closures(phones):
        first, last = int(np.floor((phone.start - AROUND) * FRAME_RATE)), int(np.ceil((phone.end + AROUND) * FRAME_RATE))
        found[max(first, 0) : max(last + 1, 0)] = 1
    return found, understood(phones)


def shifted(features: Float[Tensor, "t c"], frames: int) -> Float[Tensor, "t c"]:
    """The features ``frames`` later (earlier if negative), silence where there are none."""
    result = torch.zeros_like(features)
    count = max(len(features) - abs(frames), 0)
    result[max(frames, 0) :][:count] = features[max(-frames, 0) :][:count]
    return result


def moved(clip: SpeechClip, frames: int) -> SpeechClip:
    """A clip whose sound is heard ``frames`` later."""
    heard = shifted(clip.bilabial[:, None], frames)[:, 0]
    return replace(clip, features=shifted(clip.features, frames), bilabial=heard)


def _offset(row: dict[str, Any]) -> float:
    """Seconds that the sound comes too early by, where that is known."""
    offset, confidence = (row.get(name) for name in ("av_offset", "av_confidence"))
    if offset is None or confidence is None or not (np.isfinite(offset) and confidence >= 0.1):
        return 0.0
    return float(offset)


def placed(times: FloatArray, sound: list[Any]) -> Any:
    """Pieces of sound where their times put them; silence where a frame is missing."""
    places = [round(float(time) * RATE) for time in times]
    samples = np.zeros(max(place + len(piece) for place, piece in zip(places, sound, strict=True)), np.float32)
    for place, piece in zip(places, sound, strict=True):
        samples[place : place + len(piece)] = piece
    return samples


def _at(grid: FloatArray, times: FloatArray, values: Float[Tensor, "t k"]) -> Float[Tensor, "u k"]:
    """Values interpolated in time."""
    after = np.clip(np.searchsorted(times, grid), 1, len(times) - 1)
    share = torch.from_numpy(np.clip((grid - times[after - 1]) / (times[after] - times[after - 1]), 0, 1)).to(values)
    return torch.lerp(values[after - 1], values[after], share[:, None])
