"""Decode time, encode time, size and error of the codecs of ``docs/shards.md`` beside others, on maps of real faces.

    python benchmarks/codecs.py [--quick] [--size 512] [--frames 2] [--json FILE] VIDEO...

The default annotators label a few frames of each video. Each codec then takes the same maps; all codecs of a label are timed in turn,
over and over, and the time of a map is the least of its times. Everything runs on one thread. "ours" marks what shards are made of.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from codec_candidates import Codec, candidates, vectors_of

from datasets_toolkit.annotators.depth_normals import DepthNormals
from datasets_toolkit.annotators.landmark_parsing import LandmarkParsing
from datasets_toolkit.annotators.mesh_depth import MeshDepth
from datasets_toolkit.annotators.pictures import spread
from datasets_toolkit.annotators.portrait import Annotators, crop_face
from datasets_toolkit.errors import MediaError
from datasets_toolkit.faces.detection import FaceTracker
from datasets_toolkit.media.video import probe, read_frames

NOISE = 0.05  # cm: the depth of a network is rougher than that of a fitted mesh
Maps = dict[str, list[Any]]


@dataclass(frozen=True)
class Row:
    """What was measured of a codec: means over the maps."""

    label: str
    codec: str
    decode_ms: float
    encode_ms: float
    kib: float
    error: str


def maps_of(videos: Sequence[Path], size: int, frames: int, limit: int) -> Maps:
    """Image, parsing, matte, depth and normals of up to ``limit`` frames, spread over each video."""
    maps: Maps = {name: [] for name in ("image", "parsing", "matte", "depth", "noisy depth", "normals")}
    random = np.random.default_rng(0)
    with FaceTracker() as tracker, LandmarkParsing() as parsing:
        annotators = Annotators(parsing=parsing, depth=MeshDepth(), normals=DepthNormals())
        for path in videos:
            wanted = set(spread(min(probe(path).frames or 1, 200), frames))
            images = [frame.image for frame in read_frames(path, limit=max(wanted) + 1) if frame.index in wanted]
            for image in images[: limit - len(maps["image"])]:
                for face in tracker.faces(image)[:1]:
                    crop = crop_face(image, face, size)
                    found = annotators(crop)
                    rough = found.depth + random.normal(0, NOISE, found.depth.shape).astype(np.float32)
                    noisy = np.where(found.depth > 0, rough, 0).astype(np.float32)
                    matte = np.rint(255 * found.parsing.matte).astype(np.uint8)
                    values = (crop.image, found.parsing.labels, matte, found.depth, noisy, found.normals)
                    for name, value in zip(maps, values, strict=True):
                        maps[name].append(value)
    if not maps["image"]:
        raise MediaError("no face was found in these videos; give others")
    return maps


def measure(found: Sequence[Codec], maps: Maps, repeats: int) -> list[Row]:
    encoded = [[codec.encode(value) for value in maps[codec.label]] for codec in found]
    decoding = least_ms([[(codec.decode, data) for data in all_data] for codec, all_data in zip(found, encoded, strict=True)], repeats)
    encoding = least_ms([[(codec.encode, value) for value in maps[codec.label]] for codec in found], max(repeats // 3, 2))
    rows = []
    for codec, all_data, decode_ms, encode_ms in zip(found, encoded, decoding, encoding, strict=True):
        error = error_of(codec.label, [codec.decode(data) for data in all_data], maps[codec.label])
        rows.append(Row(codec.label, codec.name, decode_ms, encode_ms, float(np.mean([len(data) for data in all_data])) / 1024, error))
    return rows


def least_ms(calls: list[list[tuple[Callable[[Any], Any], Any]]], repeats: int) -> list[float]:
    """For each list the mean over its calls of the least time, milliseconds; all calls take turns."""
    least = [np.full(len(some), np.inf) for some in calls]
    for _ in range(repeats):
        for some, times in zip(calls, least, strict=True):
            for number, (function, argument) in enumerate(some):
                start = time.perf_counter()
                function(argument)
                times[number] = min(times[number], time.perf_counter() - start)
    return [1e3 * float(times.mean()) for times in least]


def error_of(label: str, decoded: list[Any], maps: list[Any]) -> str:
    """What the codec changed, in words."""
    pairs = list(zip(decoded, maps, strict=True))
    if label == "image":
        return f"{np.mean([10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)) for a, b in pairs]):.1f} dB"
    if label == "normals":
        return normals_error([(vectors_of(a) if a.dtype == np.uint8 else a, b) for a, b in pairs])
    largest = max(float(np.abs(a.astype(float) - b).max()) for a, b in pairs)
    if label.endswith("depth"):
        return f"at most {largest:.4f} cm"
    return "none" if largest == 0 else f"at most {largest:.0f} / 255"


def normals_error(pairs: list[tuple[Any, Any]]) -> str:
    angles = []
    for decoded, normals in pairs:
        known = (np.linalg.norm(normals, axis=-1) > 0.5) & (np.linalg.norm(decoded, axis=-1) > 0.5)
        first, second = decoded[known].astype(float), normals[known].astype(float)  # arcsine of the cross product: exact near 0
        angles.append(np.degrees(np.arcsin(np.clip(np.linalg.norm(np.cross(first, second), axis=-1), 0, 1))))
    everything = np.concatenate(angles)
    return f"{everything.mean():.2f} degrees, 99 % below {np.percentile(everything, 99):.1f}"


def table(rows: Sequence[Row]) -> str:
    lines = ["| label | codec | decode ms | encode ms | KiB | error |", "|---|---|---|---|---|---|"]
    lines += [f"| {r.label} | {r.codec} | {r.decode_ms:.2f} | {r.encode_ms:.2f} | {r.kib:.1f} | {r.error} |" for r in rows]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    parser.add_argument("--quick", action="store_true", help="four frames at most, few repeats")
    parser.add_argument("--size", type=int, default=512, help="pixels a side (default %(default)s)")
    parser.add_argument("--frames", type=int, default=2, help="frames of each video (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    parsed = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    maps = maps_of(parsed.videos, parsed.size, parsed.frames, 4 if parsed.quick else 48)
    rows = measure(candidates(parsed.size), maps, 3 if parsed.quick else 15)
    print(f"{len(maps['image'])} frames, {parsed.size} x {parsed.size}; OpenCV {cv2.__version__}, simplejpeg {simplejpeg.__version__}")
    print(table(rows))
    if parsed.json:
        parsed.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
