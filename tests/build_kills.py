"""Builds that are killed at random moments; the data set must come out as if nothing had happened.

Run as a script for a long session: ``python tests/build_kills.py 50``.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from build_scenes import digests, face_picture, talking, write_video

ROOT = Path(__file__).resolve().parents[1]


def kill_builds(videos: Sequence[Path], folder: Path, kills: int, seed: int, workers: int = 1) -> dict[str, int]:
    """Kill builds (all processes at once, or a worker alone) until ``kills`` whole builds died, and compare each finished data set.

    Returns how many builds were killed, how many workers, and how many data sets were finished and compared.
    """
    generator, counts = random.Random(seed), {"builds killed": 0, "workers killed": 0, "finished": 0}
    began = time.monotonic()
    assert finish(start(videos, folder / "whole", workers)) == 0
    longest, wanted = time.monotonic() - began, digests(folder / "whole")
    while counts["builds killed"] < kills or counts["finished"] == 0:
        out = folder / f"out-{counts['finished']}"
        enough = counts["builds killed"] >= kills
        process = start(videos, out, workers)
        if not enough:
            try:
                process.wait(generator.uniform(0, 1.1) * longest)
            except subprocess.TimeoutExpired:
                if generator.random() < 0.25 and kill_worker(process.pid, generator):
                    counts["workers killed"] += 1
                else:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    counts["builds killed"] += 1
                    continue
        assert finish(process) == 0
        found = digests(out)
        assert found == wanted, f"{sorted(dict(found.items() ^ wanted.items()))} differ after {counts}"
        counts["finished"] += 1
    return counts


def start(videos: Sequence[Path], out: Path, workers: int, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "datasets_toolkit.cli", "build", *map(str, videos), "--out", str(out), "--workers", str(workers)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    words = ["--policy", "none", "--shard-samples", "4", "size=64"]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(
        [*command, *words],
        start_new_session=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever runs this in the background ignores it
    )


def finish(process: subprocess.Popen[bytes]) -> int:
    return process.wait(600)


def kill_worker(process: int, generator: random.Random) -> bool:
    """Kill one of the process's children (Linux), if it has any."""
    children = Path(f"/proc/{process}/task/{process}/children")
    found = children.read_text().split() if children.exists() else []
    workers = [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    if workers:
        os.kill(generator.choice(workers), signal.SIGKILL)
    return bool(workers)


def make_videos(folder: Path) -> list[Path]:
    from skimage.data import astronaut

    face = face_picture(astronaut())
    shapes = [(4, 2), (5, -1), (3, 3)]
    return [write_video(folder / f"{number}.mp4", talking(face, *shape)) for number, shape in enumerate(shapes)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(
            kill_builds(make_videos(Path(place) / "in"), Path(place), int(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
        )
