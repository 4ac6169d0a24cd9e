"""Self-reenactment on real clips, against a repeated source frame and a 2D warp.

    python benchmarks/reenactment.py --clips FOLDER [--frames 24] [--size 256] [--quick] [--json FILE] [--out FOLDER]

The first frame of a clip is the source, its other frames drive, the clip itself is the ground truth, in the crop of the source. All methods
are given the same track and compared on the same frames. Landmarks of outputs and of the ground truth come from the same tracker, which
searches both in the same window. What is measured is said by ``reenactment_tables.Score``. PSNR of a frame counts as 60 dB at most (eight
bits alone cost 58.9), so that a frame that equals the source does not decide a mean.

The basis that ships with the project was fitted on clips too: for numbers on unseen people fit one without them
(``tools/fit_face_model.py --hold-out ... --out FOLDER``) and give it with ``--basis``. The mean face behind the head poses stays.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from reenactment_clip import RUN, Choice, measure
from reenactment_tables import ClipResult, markdown, summarise
from tqdm import tqdm

from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import ByteImage
from mggtalk.export import BASES, load_model
from mggtalk.geometry.face_model import FaceModel
from mggtalk.talking_head import TalkingHead

SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".mpg", ".webm"}
COLUMNS = 8
"""Of a contact sheet."""
FRAMES, QUICK = 24, 6
"""Frames of a clip, and with ``--quick``."""


def sheet(rows: Sequence[Sequence[ByteImage]]) -> ByteImage:
    """One image of all rows, at most :data:`COLUMNS` frames evenly spread."""
    columns = np.unique(np.linspace(0, len(rows[0]) - 1, COLUMNS).round().astype(int))
    return np.concatenate([np.concatenate([row[column] for column in columns], 1) for row in rows], 0)


def arguments_of(line: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of videos, one face each")
    parser.add_argument("--model", type=Path, default=BASES, help="folder of the model; by default the untrained bases")
    parser.add_argument("--basis", type=Path, help="another face_basis.safetensors, fitted without the people of these clips")
    parser.add_argument(
        "--frames", type=int, help=f"frames of each clip that are compared, evenly spread (default {FRAMES}, {QUICK} with --quick)"
    )
    parser.add_argument("--size", type=int, default=256, help="pixels a side of the crop")
    parser.add_argument("--quick", action="store_true", help="few frames and no jitter")
    parser.add_argument("--raw", action="store_true", help="drive with the unfiltered track")
    parser.add_argument("--json", type=Path, help="where all numbers go, clip by clip")
    parser.add_argument("--out", type=Path, help="folder of contact sheets: ground truth, source repeated, 2D warp, MGGTalk")
    arguments = parser.parse_args(line)
    if not arguments.clips.is_dir():
        parser.error(f"{arguments.clips}: no such folder; give one with videos")
    if arguments.basis is not None and not arguments.basis.is_file():
        parser.error(f"{arguments.basis}: no such file; give one that tools/fit_face_model.py wrote")
    return arguments


def main() -> None:
    arguments = arguments_of()
    model = load_model(arguments.model)
    if arguments.basis is not None:
        model.deformation.face_model = FaceModel(basis=arguments.basis)
    choice = Choice(
        frames=arguments.frames or (QUICK if arguments.quick else FRAMES), run=0 if arguments.quick else RUN, smooth=not arguments.raw
    )
    name = "mggtalk (untrained bases)" if arguments.model == BASES else f"mggtalk ({arguments.model.name})"
    results: list[ClipResult] = []
    refused: dict[str, str] = {}
    with TalkingHead(model, size=arguments.size) as head:
        for path in tqdm([path for path in sorted(arguments.clips.iterdir()) if path.suffix in SUFFIXES], unit="clip"):
            try:
                result, rows = measure(head, path, name, choice)
            except UserError as error:
                refused[path.name] = str(error)
                continue
            results.append(result)
            if arguments.out is not None:
                arguments.out.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(arguments.out / f"{path.stem}.png"), sheet(rows)[..., ::-1])
            if arguments.json is not None:  # after each clip: a long run that is cut short leaves what it has
                write(results, refused, name, arguments)
    report(results, refused, name)


def report(results: Sequence[ClipResult], refused: dict[str, str], name: str) -> None:
    """Print the tables."""
    for clip, reason in refused.items():
        print(f"refused {clip}: {reason}")
    print(markdown(summarise(results, name)))
    print(f"\nPSNR of the source frame itself as {name} renders it: {np.mean([result.source_psnr for result in results]):.2f}")
    times = ", ".join(f"{what} {value:.0f}" for what, value in spent(results).items())
    print(f"ms, median over clips (tracking, animating: a frame): {times}")


def write(results: Sequence[ClipResult], refused: dict[str, str], name: str, arguments: argparse.Namespace) -> None:
    """Put all numbers into the JSON file."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    whole = {
        "settings": settings,
        "summary": asdict(summarise(results, name)),
        "ms": spent(results),
        "refused": refused,
        "clips": [asdict(result) for result in results],
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(_without_nan(whole), indent=1) + "\n", encoding="utf-8")


def spent(results: Sequence[ClipResult]) -> dict[str, float]:
    """Times, ms: medians over clips."""
    return {what: float(np.median([getattr(result, what) for result in results])) for what in ("tracking", "building", "animating")}


def _without_nan(value: object) -> object:
    """The value with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    main()
