"""How fast ``mggdata build`` is, against decoding and landmarks alone on the same clips in the same run, and what two workers bring.

    python benchmarks/build.py FOLDER_OF_CLIPS [--clips 8] [--size 512] [--workers 2] [--quick] [--json FILE]

Everything is held to one core first (where the system can do that): the floor decodes each frame and runs the face landmarker on it, the
build makes a whole data set. Then the build runs with one and with two workers on all cores. Models are loaded and loops compiled before.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datasets_toolkit.build.config import BuildConfig, load_config
from datasets_toolkit.build.executors import LocalExecutor, Outcome
from datasets_toolkit.build.pipeline import tracker
from datasets_toolkit.build.progress import time_table
from datasets_toolkit.build.run import Summary, build
from datasets_toolkit.errors import UserError
from datasets_toolkit.faces.tracking import near_face
from datasets_toolkit.media.opening import MediaWarning
from datasets_toolkit.media.video import read_frames
from datasets_toolkit.recipes.base import Source
from datasets_toolkit.recipes.folder import Folder
from datasets_toolkit.text_tables import text_table


@dataclass(frozen=True)
class Measured:
    """Attributes: frames of the sources, and seconds for all of them."""

    frames: int
    seconds: float

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds


def floor(path: str) -> Measured:
    """Decode a video and find the landmarks of one face in each frame: nothing that needs landmarks can be faster."""
    models, face, frames = tracker(), None, 0
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)
        for frame in read_frames(Path(path)):
            frames += 1
            found = models.follow(frame.image, face) if face is not None else None
            if found is None or (face is not None and not near_face(found, face)):
                found = next(iter(models.faces(frame.image)), None)
            face = found or face
    return Measured(frames, time.perf_counter() - begun)


@contextmanager
def one_core() -> Iterator[None]:
    """Hold this process and those it starts to one core; where the system cannot do that nothing happens."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure_floor(executor: LocalExecutor, paths: Sequence[str]) -> Measured:
    """The floor over all clips."""
    found: list[Measured] = []

    def keep(outcome: Outcome) -> None:
        if outcome.kind != "ok":
            raise RuntimeError(outcome.message)
        found.append(outcome.value)

    executor.run(floor, paths, on_result=keep)
    return Measured(sum(one.frames for one in found), sum(one.seconds for one in found))


def measure_build(executor: LocalExecutor, sources: Sequence[Source], config: BuildConfig) -> tuple[Measured, Summary]:
    """A whole build into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as out:
        begun = time.perf_counter()
        summary = build(sources, config, out, executor=executor)
        return Measured(summary.counts["track"], time.perf_counter() - begun), summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="clips")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the build")
    parser.add_argument("--clips", type=int, default=8, help="take so many, evenly spread (default %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="pixels a side of the crop (default %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="compare one worker with so many; 1 leaves that away (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one clip, one worker")
    parser.add_argument("--json", type=Path, help="where all numbers go")
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.clips = parsed.workers = 1
    logging.disable(logging.WARNING)
    try:
        every = Folder().discover(parsed.folder).sources
    except UserError as error:
        parser.error(str(error))
    sources = [every[len(every) * place // min(parsed.clips, len(every))] for place in range(min(parsed.clips, len(every)))]
    config = load_config(None, [f"size={parsed.size}", "policy=null", *parsed.settings])
    with one_core(), LocalExecutor(1) as executor:
        measure_build(executor, sources[:1], config)
        lowest = measure_floor(executor, [source.path for source in sources])
        whole, summary = measure_build(executor, sources, config)
    rows = [("floor: decode and landmarks", lowest.rate, 1000 / lowest.rate, "1 core", "")]
    rows.append(("build", whole.rate, 1000 / whole.rate, "1 core", f"{100 * whole.rate / lowest.rate:.0f} % of the floor"))
    if parsed.workers > 1:
        rates = []
        for workers in (1, parsed.workers):
            with LocalExecutor(workers) as executor:
                measure_build(executor, sources[: 2 * workers], config)
                rates.append(measure_build(executor, sources, config)[0].rate)
            rows.append(("build", rates[-1], 1000 / rates[-1], f"{workers} workers", f"{rates[-1] / rates[0]:.2f} times one worker"))
    print(f"{len(sources)} clips, {whole.frames} frames, {summary.counts['samples']} samples of {parsed.size} pixels")
    print(text_table(("", "frames/s", "ms/frame", "on", ""), rows))
    print(f"\nbuild on 1 core, stage by stage\n{time_table(summary.seconds, summary.frames())}")
    if parsed.json is not None:
        shown = {"rows": [dict(zip(("what", "frames_per_second", "ms_per_frame", "on", "ratio"), row, strict=True)) for row in rows]}
        parsed.json.write_text(json.dumps({**shown, "frames": whole.frames, "stage_seconds": summary.seconds}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
