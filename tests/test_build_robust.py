"""Kills and damaged videos, in small numbers; ``MGGTALK_KILLS`` and ``MGGTALK_FUZZ`` ask for more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from build_fuzz import fuzz
from build_kills import finish, kill_builds, start
from build_scenes import digests, face_picture, talking, write_video

from datasets_toolkit.schema import ByteImage

KILLS = int(os.environ.get("MGGTALK_KILLS", "2"))
FUZZ = int(os.environ.get("MGGTALK_FUZZ", "40"))
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="process groups are those of POSIX")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, astronaut: ByteImage) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"{frames}.mp4", talking(face_picture(astronaut), frames)) for frames in (4, 5)]


@POSIX
def test_a_killed_build_goes_on_to_the_same_bytes(videos: list[Path], tmp_path: Path) -> None:
    counts = kill_builds(videos, tmp_path, KILLS, seed=int(time.time()))
    assert counts["builds killed"] >= KILLS
    assert counts["finished"] >= 1


@POSIX
def test_ctrl_c_stops_cleanly_and_the_build_can_go_on(videos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(videos, out, 1, stderr=subprocess.PIPE)
    while not (out / "work" / "track").exists():
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.decode().strip().splitlines()[-1] == "stopped; what is done is kept: run the same command again to go on"
    assert "Traceback" not in told.decode()
    assert finish(start(videos, out, 1)) == 0
    assert "dataset.json" in digests(out)


def test_no_video_brings_a_build_down(astronaut: ByteImage, tmp_path: Path) -> None:
    tally = fuzz(face_picture(astronaut), tmp_path, FUZZ, seed=FUZZ)
    assert tally["internal error"] == 0, tally
    assert sum(count for what, count in tally.items() if what != "internal error") == FUZZ
