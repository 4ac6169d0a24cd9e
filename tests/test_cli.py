"""The command line as users meet it: real second processes on a real photograph, and every kind of bad input."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut, coffee

from datasets_toolkit.cli import run
from datasets_toolkit.media.video import VideoWriter, probe, read_frames
from mggtalk.cli import main
from mggtalk.demo import MOTION
from mggtalk.motion_files import load_motion, save_motion

FRAMES = 4


def mggtalk(*arguments: object, module: str = "mggtalk.cli") -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same in this process, which spares the start for the many kinds of bad input."""
    with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(io.StringIO()) as stdout:
        status = main([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(arguments, status, stdout.getvalue(), stderr.getvalue())


def failed(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """The run stopped with one clear line that holds ``words``, and no traceback."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    assert all(word in lines[0] for word in words), lines[0]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portrait, a short motion, and a driving video with sound and a frame without a face."""
    folder = tmp_path_factory.mktemp("cli")
    Image.fromarray(astronaut()).save(folder / "portrait.png")
    Image.fromarray(coffee()).save(folder / "coffee.png")
    motion, _ = load_motion(MOTION)
    rows = slice(38, 38 + FRAMES)
    rows_of = {name: getattr(motion, name)[rows] for name in ("expression", "head_to_camera", "times", "found")}
    short = replace(motion, **rows_of)
    save_motion(folder / "motion.safetensors", short, fps=Fraction(25), source="test")
    write_sound(folder / "tone.wav")
    with VideoWriter(folder / "driver.mp4", Fraction(30000, 1001), (512, 512), audio_from=folder / "tone.wav") as video:
        for shift in (0, 8, None, 24):
            video.write(np.zeros((512, 512, 3), np.uint8) if shift is None else np.roll(astronaut(), shift, 1))
    return folder


def write_sound(path: Path) -> None:
    """A second of a tone as a WAV file."""
    import wave

    samples = (8000 * np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000)).astype("<i2")
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        sound.writeframes(samples.tobytes())


def test_a_portrait_follows_a_driving_video(folder: Path, tmp_path: Path) -> None:
    """Frame rate, length and sound are the driver's; the frame without a face is told and filled; the video says that it is synthetic."""
    output, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    result = mggtalk(
        "animate", "--source", folder / "portrait.png", "--driving", folder / "driver.mp4", "--output", output, "--sheet", sheet
    )
    assert result.returncode == 0, result.stderr
    info = probe(output)
    assert (info.width, info.height, info.fps, info.has_audio) == (256, 256, Fraction(30000, 1001), True)
    frames = [frame.image for frame in read_frames(output)]
    assert len(frames) == 4 and sheet.stat().st_size > 10_000
    assert "1 of 4" in result.stderr, result.stderr
    assert "tracking:" in result.stdout and "animating and encoding:" in result.stdout
    tail = (np.abs(frames[3].astype(float) - frames[0]).mean(), np.abs(frames[1].astype(float) - frames[0]).mean())
    assert tail[0] > tail[1] > 0.2, "the head moves with the driver's"
    import av

    with av.open(str(output)) as container:
        assert "synthetic" in container.metadata["comment"]


def test_tracking_a_video_and_replaying_the_motion_is_the_same_as_driving_with_it(folder: Path, tmp_path: Path) -> None:
    motion, direct, replayed = tmp_path / "motion.safetensors", tmp_path / "direct.mp4", tmp_path / "replayed.mp4"
    portrait = folder / "portrait.png"
    assert here("track", folder / "driver.mp4", "-o", motion).returncode == 0
    assert here("animate", "--source", portrait, "--driving", folder / "driver.mp4", "--output", direct, "--no-audio").returncode == 0
    assert mggtalk("animate", "--source", portrait, "--motion", motion, "--output", replayed).returncode == 0
    assert not probe(direct).has_audio
    for ours, theirs in zip(read_frames(direct), read_frames(replayed), strict=True):
        assert np.array_equal(ours.image, theirs.image) and ours.time == pytest.approx(theirs.time, abs=1e-4)


def test_full_frame_keeps_the_picture_around_the_head(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "full.mp4"
    result = here(
        "animate", "--source", folder / "portrait.png", "--motion", folder / "motion.safetensors", "--output", output, "--full-frame"
    )
    assert result.returncode == 0, result.stderr
    frames = list(read_frames(output))
    assert len(frames) == FRAMES and frames[0].image.shape == (512, 512, 3)
    corner = np.abs(frames[-1].image[-100:, -80:].astype(float) - astronaut()[-100:, -80:]).mean()
    assert corner < 4, "far from the head nothing changes but the encoding"


def test_still_pose_and_no_expression_give_the_portrait_back(folder: Path, tmp_path: Path) -> None:
    """Scales of zero in relative mode: every frame is the portrait itself, as it is rendered."""
    output = tmp_path / "still.mp4"
    result = here(
        "animate", "--source", folder / "portrait.png", "--motion", folder / "motion.safetensors", "--output", output,
        "--pose", "still", "--expression", "relative", "--expression-scale", 0, "--sheet", tmp_path / "sheet.png",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    frames = [frame.image.astype(float) for frame in read_frames(output)]
    assert max(np.abs(frame - frames[0]).max() for frame in frames) < 12
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(float)
    source, first = sheet[:, :192], sheet[:, 192:384]
    assert -10 * np.log10(((source - first) ** 2).mean() / 255**2) > 26


def test_wrong_sources(folder: Path, tmp_path: Path) -> None:
    """No face, a missing, an empty, a truncated and a text file, a cut-off face: one line each, and nothing is written."""
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((folder / "portrait.png").read_bytes()[:50_000])
    Image.fromarray(astronaut()[:, 225:]).save(tmp_path / "half.png")
    Image.fromarray(astronaut()).resize((170, 170)).save(tmp_path / "small.png")
    cases = {
        folder / "coffee.png": "no face",
        tmp_path / "missing.png": "missing.png",
        tmp_path / "empty.png": "empty.png",
        tmp_path / "text.png": "text.png",
        tmp_path / "cut.png": "cut.png",
        tmp_path / "half.png": "half.png",
        tmp_path / "small.png": "pixels",
    }
    output = tmp_path / "out.mp4"
    for source, word in cases.items():
        failed(here("animate", "--source", source, "--motion", folder / "motion.safetensors", "--output", output), source.name, word)
    failed(
        mggtalk("animate", "--source", folder / "portrait.png", "--face", 3, "--motion", folder / "motion.safetensors", "--output", output),
        "portrait.png",
        "face 3",
    )
    failed(mggtalk("animate", "--source", folder / "coffee.png", "--motion", folder / "motion.safetensors", "--output", output), "no face")
    assert not list(tmp_path.glob("*out*")), "nothing half written"


def test_wrong_drivers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with VideoWriter(tmp_path / "faceless.mp4", Fraction(25), (320, 240)) as video:
        for _ in range(3):
            video.write(np.full((240, 320, 3), 90, np.uint8))
    output = tmp_path / "out.mp4"
    base = ("animate", "--source", folder / "portrait.png", "--output", output)
    for name, word in {"text.mp4": "text.mp4", "empty.mp4": "empty.mp4", "missing.mp4": "missing.mp4", "faceless.mp4": "face"}.items():
        failed(here(*base, "--driving", tmp_path / name), name, word)
    failed(here(*base, "--motion", tmp_path / "broken.safetensors"), "broken.safetensors")
    failed(here(*base, "--motion", tmp_path / "faceless.mp4"), "faceless.mp4", "--driving")
    assert not list(tmp_path.glob("*out*"))


def test_wrong_outputs_are_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    base = ("animate", "--source", folder / "portrait.png", "--motion", folder / "motion.safetensors", "--output")
    failed(here(*base, tmp_path / "nowhere" / "out.mp4"), "nowhere")
    failed(here(*base, tmp_path / "out.gif"), "out.gif")
    failed(here(*base, tmp_path), str(tmp_path))
    failed(here(*base, tmp_path / "out.mp4", "--size", 100), "100")
    failed(here(*base, tmp_path / "out.mp4", "--model", tmp_path / "none"), "config.yaml")
    failed(here(*base, tmp_path / "out.mp4", "--assets", tmp_path / "none"), "none")
    failed(here("track", folder / "driver.mp4", "-o", tmp_path / "motion.txt"), "motion.txt")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(unbuffered: str) -> None:
    """As `... | head -0`: nobody reads what is printed, which is found out while printing or at the end."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stdout:
        process = subprocess.run(
            [sys.executable, "-m", "datasets_toolkit.cli", "assets"],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    assert (process.returncode, process.stderr) == (141, "")


def test_another_broken_pipe_is_not_hidden() -> None:
    def failing(_: argparse.Namespace) -> None:
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        run(failing, argparse.Namespace())


def test_the_demonstration_runs(tmp_path: Path) -> None:
    """`make demo` in small: its motion is real, its files appear, and both speeds are told."""
    motion, fps = load_motion(MOTION)
    assert fps == 25 and len(motion.times) == 125 and bool(motion.found.all())
    assert float(motion.head_to_camera[:, :3, 3].std(0).min()) > 0.01 and torch.isfinite(motion.expression).all()
    result = mggtalk("--output", tmp_path / "demo", "--size", 64, module="mggtalk.demo")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "demo").iterdir()} >= {"talking_head.mp4", "contact_sheet.png"}
    assert "animating and encoding:" in result.stdout and "tracking:" in result.stdout
