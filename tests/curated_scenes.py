"""A small data set whose labels fit together, as a build would leave it: heads that are spheres, seen through one camera a clip."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from datasets_toolkit.curation.policy import SCORES
from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.faces.head_pose import canonical_face, euler_degrees
from datasets_toolkit.sample import FrameMeta, FrameSample
from datasets_toolkit.schema import BLENDSHAPES, LANDMARKS, Region
from datasets_toolkit.shards.codecs import COLUMNS, encode_sample
from datasets_toolkit.shards.dataset_info import DatasetInfo, write_info
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.shards.storage import Storage
from datasets_toolkit.shards.writer import index_row, pack, write_index, write_table

RADIUS = 12.0
"""Of the sphere, cm."""
RATE = Fraction(25)


@dataclass(frozen=True)
class Clip:
    """A clip to be made."""

    person: str
    split: str = "train"
    frames: tuple[int, ...] = (0, 1, 2, 4)
    kept: bool = True
    reasons: tuple[str, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    identity: tuple[float, ...] | None = None
    name: str = ""

    @property
    def source(self) -> str:
        """The source's id; its end stands for the content."""
        return self.name or f"set-{self.person}-{sum(map(ord, self.person)) * 2654435761 % 2**32:08x}"

    @property
    def id(self) -> str:
        return f"{self.source}_00"


CLIPS = (
    Clip("alice"),
    Clip("bob"),
    Clip("carol", "val"),
    Clip("dave", "test", frames=(10, 11, 12)),
    Clip("eve", "", kept=False, reasons=("sharpness 3 < 30",), scores={"sharpness": 3.0}),
)


def head(clip: Clip, index: int, size: int = 96) -> FrameSample:
    """A frame: the sphere's depth and normals are exact, its landmarks those of the mean face."""
    meta = _meta(clip, index, size)
    y, x = np.mgrid[:size, :size] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(meta.intrinsics).T
    centre = meta.head_to_camera[:3, 3]
    a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - RADIUS**2
    root = b**2 - a * c
    inside = root > 0
    depth = np.where(inside, (b - np.sqrt(root.clip(0))) / a, 0)
    normals = np.where(inside[..., None], (rays * depth[..., None] - centre) / RADIUS, 0)
    landmarks = _landmarks(meta)
    random = np.random.default_rng([ord(letter) for letter in clip.person])
    texture = cv2.resize(random.uniform(0, 255, (6, 6, 3)).astype(np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)
    sound = np.rint(8000 * np.sin(2 * np.pi * 220 * (meta.time + np.arange(640) / 16000))).astype(np.int16)
    return FrameSample(
        meta=meta,
        image=np.rint(texture * np.where(inside, -normals[..., 2], 0.8)[..., None]).astype(np.uint8),
        parsing=_parsing(inside, landmarks, x, y),
        matte=np.where(inside, 255, 0).astype(np.uint8),
        depth=depth.astype(np.float32),
        normals=normals.astype(np.float32),
        landmarks=landmarks.astype(np.float32),
        audio=sound,
        mel=random.normal(size=(4, 80)).astype(np.float16),
    )


def _meta(clip: Clip, index: int, size: int) -> FrameMeta:
    yaw, pitch = np.radians(3.0 * (index % 7) - 9), np.radians(2.0 * (index % 3) - 2)
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.diag([1.0, -1.0, -1.0]) @ turn @ nod, [0.3 * (index % 5), 0.5, 110.0]
    camera = np.array([[900.0, 0, 320], [0, 900.0, 240], [0, 0, 1]])  # of the source, 640 x 480
    scale = size / 260 * (1 + 0.01 * (index % 3))  # the crop follows the face
    crop = np.array([[scale, 0, size / 2 - scale * 322], [0, scale, size / 2 - scale * 243], [0, 0, 1]])
    blendshapes = np.zeros(len(BLENDSHAPES))
    blendshapes[BLENDSHAPES.index("jawOpen")] = index % 10 / 10
    return FrameMeta(
        key=f"{clip.id}_{index:06d}", clip=clip.id, source=clip.source, person=clip.person, index=index, time=float(index / RATE),
        fps=RATE, size=size, source_to_crop=crop, intrinsics=crop @ camera, head_to_camera=pose, blendshapes=blendshapes,
        scores={"mouth": index % 10 / 10},
    )  # fmt: skip


def _landmarks(meta: FrameMeta) -> np.ndarray:
    points = canonical_face().vertices @ meta.head_to_camera[:3, :3].T + meta.head_to_camera[:3, 3]
    pixels = points @ meta.intrinsics.T
    marks = np.column_stack([pixels[:, :2] / pixels[:, 2:], points[:, 2] - meta.head_to_camera[2, 3]])
    return np.concatenate([marks, np.repeat(marks[:1], LANDMARKS - len(marks), 0)])


def _parsing(inside: np.ndarray, landmarks: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    labels = np.where(inside, Region.SKIN, Region.BACKGROUND).astype(np.uint8)
    for region, ring in ((Region.LEFT_EYE, regions.LEFT_EYE), (Region.RIGHT_EYE, regions.RIGHT_EYE)):
        centre = landmarks[list(ring), :2].mean(0)
        labels[np.hypot(x - centre[0], y - centre[1]) < 3] = region
    return labels


def make_curated(
    root: str | Path | Storage, clips: tuple[Clip, ...] = CLIPS, *, size: int = 96, per_shard: int = 3, change: Any = None
) -> ShardReader:
    """Pack clips and write all tables; ``change(sample)`` may alter each sample before it is packed."""
    storage = root if isinstance(root, Storage) else Storage(root)
    rows, shards = [], []
    for split in ("train", "val", "test"):
        made = [head(clip, index, size) for clip in clips if clip.split == split and clip.kept for index in clip.frames]
        made = [change(sample) for sample in made] if change is not None else made
        metas = {sample.meta.key: sample.meta for sample in made}
        for shard, entries in pack(storage, split, [(one.meta.key, encode_sample(one)) for one in made], samples_per_shard=per_shard):
            shards.append(shard)
            rows += [index_row(metas[entry.key], entry, shard) for entry in entries]
    names = [name for name in COLUMNS if rows and f"{name}.offset" in rows[0]]
    manifests = {"index.parquet": write_index(storage, rows, names)}
    tables = {"clips.parquet": clip_table(clips), "sources.parquet": source_table(clips, storage.root)}
    manifests |= {name: write_table(storage, name, table) for name, table in tables.items()}
    annotator = {"name": "tests.Sphere", "version": 1, "parameters": {}, "provenance": {"licence": "CC0"}}
    annotators = [{**annotator, "family": family} for family in ("parsing", "depth", "normals")]
    kept = [clip for clip in clips if clip.kept]
    counts = {
        "sources": tables["sources.parquet"].num_rows, "sources_ok": tables["sources.parquet"].num_rows, "clips": len(clips),
        "clips_kept": len(kept), "people": len({clip.person for clip in kept}), "samples": len(rows),
    }  # fmt: skip
    described = [COLUMNS[name].describe() for name in names]
    info = DatasetInfo(config={"size": size}, columns=described, annotators=annotators, shards=shards, counts=counts, manifests=manifests)
    write_info(storage, info)
    return ShardReader(storage)


def clip_table(clips: tuple[Clip, ...]) -> pa.Table:
    kinds = [*((name, pa.string()) for name in ("clip", "source", "dataset", "person")), ("face", pa.int64())]
    kinds += [("start", pa.float64()), ("end", pa.float64())]
    kinds += [(name, pa.int64()) for name in ("first", "last", "frames", "gaps", "fps_num", "fps_den")]
    kinds += [*((score, pa.float64()) for score in SCORES), ("split", pa.string()), ("kept", pa.bool_())]
    kinds += [("reasons", pa.list_(pa.string())), ("identity", pa.list_(pa.float32()))]
    return pa.Table.from_pylist([_clip_row(clip) for clip in clips], schema=pa.schema(kinds))


def _clip_row(clip: Clip) -> dict[str, Any]:
    first, last = clip.frames[0], clip.frames[-1]
    angles = np.array([euler_degrees(_meta(clip, index, 96).head_to_camera) for index in clip.frames])
    scores = {
        "face_size": 150.0, "sharpness": 80.0 + ord(clip.person[0]), "yaw_min": float(angles[:, 0].min()),
        "yaw_max": float(angles[:, 0].max()),
        "yaw_abs_p95": float(np.abs(angles[:, 0]).max()), "pitch_abs_p95": 2.0, "roll_abs_p95": 1.0, "mouth_p95": 0.1, "motion": 0.2,
        "faces": 1.0, "cuts": 0.0, "gap_share": 0.1, "outside": 0.0, "brightness": 120.0, "jitter": 0.001, "fps": 25.0, "duration": 5.0,
        "speech_level": -20.0, "av_offset": float("nan"), "av_confidence": float("nan"), **clip.scores,
    }  # fmt: skip
    return {
        "clip": clip.id, "source": clip.source, "dataset": "set", "person": clip.person, "face": 0, "start": first / 25,
        "end": (last + 1) / 25, "first": first, "last": last,
        "frames": len(clip.frames), "gaps": last - first + 1 - len(clip.frames), "fps_num": 25, "fps_den": 1,
        **scores, "split": clip.split, "kept": clip.kept, "reasons": list(clip.reasons), "identity": clip.identity,
    }  # fmt: skip


def source_table(clips: tuple[Clip, ...], root: str) -> pa.Table:
    rows = [
        {
            "source": clip.source, "path": f"{root}/{clip.person}.mp4", "dataset": "set", "person": clip.person,
            "sha256": clip.source[-8:] * 8, "width": 640, "height": 480, "fps_num": 25, "fps_den": 1, "vfr": False,
            "duration": float(clip.frames[-1] + 1) / 25, "frames": clip.frames[-1] + 1, "has_audio": True, "av_offset": float("nan"),
            "av_confidence": float("nan"), "status": "ok", "problems": [],
        }
        for clip in {clip.source: clip for clip in clips}.values()
    ]  # fmt: skip
    kinds = [*((name, pa.string()) for name in ("source", "path", "dataset", "person", "sha256"))]
    kinds += [(name, pa.int64()) for name in ("width", "height", "fps_num", "fps_den")]
    kinds += [
        ("vfr", pa.bool_()),
        ("duration", pa.float64()),
        ("frames", pa.int64()),
        ("has_audio", pa.bool_()),
        ("av_offset", pa.float64()),
    ]
    kinds += [("av_confidence", pa.float64()), ("status", pa.string()), ("problems", pa.list_(pa.string()))]
    return pa.Table.from_pylist(rows, schema=pa.schema(kinds))


def with_meta(sample: FrameSample, **changes: Any) -> FrameSample:
    """The sample with other facts in its record."""
    return replace(sample, meta=replace(sample.meta, **changes))


def traces(root: Path, words: list[str]) -> list[str]:
    """Files in which a word can be read: their bytes, and the cells of tables."""
    found = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        text = path.read_bytes()
        if path.suffix == ".parquet":
            text += repr(pa.parquet.read_table(path).to_pylist()).encode()
        found += [f"{path}: {word}" for word in words if word.encode() in text]
    return found
