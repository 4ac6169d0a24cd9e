"""``mggtalk animate`` and ``mggtalk track``: their arguments, and what they do."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets_toolkit.errors import MediaError, UserError
from datasets_toolkit.schema import ByteImage
from mggtalk.audio.command import add_arguments as add_speech
from mggtalk.audio.command import check_speech, speak

if TYPE_CHECKING:
    from mggtalk.drivers import Control
    from mggtalk.provenance import Provenance
    from mggtalk.talking_head import Avatar, TalkingHead
    from mggtalk.types import Motion

MOTION_SUFFIXES = (".safetensors", ".csv")


def add_track(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mggtalk track``."""
    parser.add_argument("video", type=Path, help="video of a face")
    parser.add_argument("-o", "--output", type=Path, required=True, help="motion file to write (.safetensors)")
    parser.add_argument("--face", type=int, default=0, help="which face of the first frame, 0 the largest (default %(default)s)")
    _add_common(parser)
    parser.set_defaults(function=_track)


def add_animate(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mggtalk animate``."""
    parser.add_argument("--source", type=Path, required=True, help="portrait (image file)")
    driver = parser.add_mutually_exclusive_group()
    driver.add_argument("--driving", type=Path, help="video whose face drives the portrait")
    driver.add_argument("--motion", type=Path, help="motion file of `mggtalk track`, or an ARKit blendshape CSV")
    parser.add_argument("--output", type=Path, required=True, help="video to write (.mp4, .mov or .mkv)")
    parser.add_argument(
        "--model",
        help="exported model: folder, .safetensors file, OWNER/NAME on the hub, or one that ships with it: mggtalk-tiny (trained) or "
        "bases (untrained) (default: mggtalk-tiny if this installation has it, else bases)",
    )
    parser.add_argument("--size", type=int, default=256, help="pixels a side of the rendered crop (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
    parser.add_argument(
        "--renderer",
        choices=("auto", "cpu", "cuda", "reference"),
        default="auto",
        help="auto: cpu (compiled) on a CPU, cuda (gsplat) on an NVIDIA GPU, reference (PyTorch) elsewhere",
    )
    view = parser.add_mutually_exclusive_group()
    view.add_argument("--crop", dest="full_frame", action="store_false", default=False, help="write the square around the head (default)")
    view.add_argument("--full-frame", dest="full_frame", action="store_true", default=False, help="write the whole portrait")
    parser.add_argument("--face", type=int, default=0, help="which face of the portrait, 0 the largest (default %(default)s)")
    parser.add_argument("--driving-face", type=int, default=0, help="which face of the driving video (default %(default)s)")
    parser.add_argument(
        "--pose",
        choices=("relative", "absolute", "still"),
        default="relative",
        help="head pose: changes since the driver's first frame, the driver's own, or none (default %(default)s)",
    )
    parser.add_argument(
        "--expression",
        choices=("absolute", "relative"),
        default="absolute",
        help="expression: the driver's own, or its changes since the first frame (default %(default)s)",
    )
    parser.add_argument("--pose-scale", type=float, default=1.0, help="0 still, 1 as the driver, more exaggerates")
    parser.add_argument("--expression-scale", type=float, default=1.0, help="0 none, 1 as the driver, more exaggerates")
    parser.add_argument("--no-audio", dest="sound", action="store_false", help="leave the driver's sound out")
    add_speech(parser)
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet (PNG)")
    parser.add_argument(
        "--mark", nargs="?", const="AI-generated", metavar="TEXT", help="draw a small mark in the lower corner (without TEXT: %(const)s)"
    )
    parser.add_argument("--mark-font", type=Path, help="font file for a mark that is not in English letters")
    _add_common(parser)
    parser.set_defaults(function=_animate)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-smooth", dest="smooth", action="store_false", help="do not filter tracking jitter")
    parser.add_argument("--assets", type=Path, help="folder with the face tracker's model files (default: found or fetched)")


def _track(parsed: argparse.Namespace) -> None:
    from datasets_toolkit.media.video import probe
    from mggtalk.motion_files import save_motion
    from mggtalk.talking_head import TalkingHead

    _check_folder(parsed.output)
    if parsed.output.suffix.lower() != ".safetensors":
        raise UserError(f"{parsed.output}: a motion file ends in .safetensors")
    info = probe(parsed.video)
    with TalkingHead.from_pretrained(assets=parsed.assets) as head:
        motion, rate = _timed_track(head, parsed.video, info.frames, parsed.face, parsed.smooth)
    save_motion(parsed.output, motion, fps=info.fps, source=parsed.video.name)
    print(f"{parsed.output}: {len(motion.times)} frames; tracking {rate:.1f} frames/s")


def _animate(parsed: argparse.Namespace) -> None:
    from mggtalk.audio.files import TINY
    from mggtalk.drivers import Control
    from mggtalk.export import DEFAULT, locate_model, model_name, weights_file
    from mggtalk.provenance import provenance_of, write_tagged_png
    from mggtalk.rendering.factory import choose_device
    from mggtalk.talking_head import TalkingHead

    _check_outputs(parsed)
    control = Control(
        pose=parsed.pose, expression=parsed.expression, pose_scale=parsed.pose_scale, expression_scale=parsed.expression_scale
    )
    device = choose_device(parsed.device)
    if parsed.renderer in ("cpu", "cuda") and not device.startswith(parsed.renderer):
        wanted = parsed.renderer
        raise UserError(f"--renderer {wanted}: does not run on --device {device}; use --renderer auto, or --device {wanted}")
    model = locate_model(parsed.model or DEFAULT)
    name = model_name(parsed.model or DEFAULT)
    record = provenance_of(f"{name} + {model_name(parsed.audio_model or TINY)}" if parsed.audio else name, weights_file(model))
    with TalkingHead.from_pretrained(model, size=parsed.size, device=device, renderer=parsed.renderer, assets=parsed.assets) as head:
        print(f"renderer: {type(head.model.renderer).__name__} on {device}")
        start = time.perf_counter()
        avatar = head.reconstruct(parsed.source, face=parsed.face)
        print(f"building the portrait: {time.perf_counter() - start:.1f} s")
        motion, fps, sound = _driver(parsed, head, avatar)
        rate, sheet = _write(parsed, head, avatar, motion, control, fps, sound, record)
    print(f"animating and encoding: {rate:.1f} frames/s at {parsed.size} x {parsed.size}")
    print(parsed.output)
    if parsed.sheet:
        from datasets_toolkit.annotators.pictures import contact_sheet

        write_tagged_png(parsed.sheet, contact_sheet([sheet]), record)
        print(parsed.sheet)


def _check_outputs(parsed: argparse.Namespace) -> None:
    """Refuse what would fail only after minutes of work."""
    from datasets_toolkit.media.video import VideoWriter

    VideoWriter(parsed.output, Fraction(25), (2, 2))
    for path in filter(None, (parsed.output, parsed.sheet)):
        _check_folder(path)
    if parsed.size < 64 or parsed.size % 8:
        raise UserError(f"--size {parsed.size}: must be a multiple of 8 and at least 64")
    _marked(parsed, np.zeros((parsed.size, parsed.size, 3), np.uint8))
    if not (parsed.driving or parsed.motion or parsed.audio):
        raise UserError("nothing drives the portrait; give a video (--driving), a motion file (--motion), or speech (--audio)")
    check_speech(parsed)
    for path in filter(None, (parsed.driving, parsed.motion, parsed.audio)):
        if path.exists() and parsed.output.exists() and path.samefile(parsed.output):
            raise UserError(f"{parsed.output}: is the driver itself; choose another output")


def _marked(parsed: argparse.Namespace, frame: ByteImage) -> ByteImage:
    from mggtalk.provenance import mark

    return frame if parsed.mark is None else mark(frame, parsed.mark, font=parsed.mark_font)


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise MediaError(f"{path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise MediaError(f"{path}: the folder {path.parent} cannot be written to; choose another output")


def _driver(parsed: argparse.Namespace, head: TalkingHead, avatar: Avatar) -> tuple[Motion, Fraction, Path | None]:
    """The motion, its frame rate, and the file with its sound."""
    if parsed.audio is None:
        return _seen_driver(parsed, head)
    seen = _seen_driver(argparse.Namespace(**{**vars(parsed), "sound": False}), head) if parsed.driving or parsed.motion else None
    motion, fps = speak(parsed, head.face_model, head.neutral(avatar), seen[0] if seen else None, seen[1] if seen else None)
    return motion, fps, parsed.audio if parsed.sound else None


def _seen_driver(parsed: argparse.Namespace, head: TalkingHead) -> tuple[Motion, Fraction, Path | None]:
    """As :func:`_driver`, of a video or a motion file."""
    from datasets_toolkit.media.video import probe
    from mggtalk.motion_csv import motion_from_csv
    from mggtalk.motion_files import load_motion

    if parsed.motion is None:
        info = probe(parsed.driving)
        motion, rate = _timed_track(head, parsed.driving, info.frames, parsed.driving_face, parsed.smooth)
        print(f"tracking: {rate:.1f} frames/s")
        if parsed.sound and not info.has_audio:
            print(f"{parsed.driving}: has no sound, so the output has none")
        return motion, info.fps, parsed.driving if parsed.sound and info.has_audio else None
    if parsed.motion.suffix.lower() not in MOTION_SUFFIXES:
        raise UserError(f"{parsed.motion}: not a motion file ({' or '.join(MOTION_SUFFIXES)}); a video goes to --driving")
    csv = parsed.motion.suffix.lower() == ".csv"
    motion, fps = motion_from_csv(parsed.motion, head.face_model) if csv else load_motion(parsed.motion)
    return motion, fps or _rate(motion), None


def _rate(motion: Motion) -> Fraction:
    """Mean frame rate of a motion that does not tell."""
    span = float(motion.times[-1] - motion.times[0])
    return Fraction((len(motion.times) - 1) / span).limit_denominator(1001) if span > 0 else Fraction(25)


def _timed_track(head: TalkingHead, video: Path, frames: int | None, face: int, smooth: bool) -> tuple[Motion, float]:
    start = time.perf_counter()
    with _bar("tracking", frames) as bar:
        motion = head.track(video, face=face, smooth=smooth, progress=lambda decoded: _counted(decoded, bar))
    return motion, len(motion.times) / (time.perf_counter() - start)


def _write(
    parsed: argparse.Namespace,
    head: TalkingHead,
    avatar: Avatar,
    motion: Motion,
    control: Control,
    fps: Fraction,
    sound: Path | None,
    record: Provenance,
) -> tuple[float, list[Any]]:
    """Render and encode, both at once; returns frames per second, and frames for a contact sheet."""
    from datasets_toolkit.annotators.pictures import spread
    from datasets_toolkit.media.video import VideoWriter
    from mggtalk.provenance import provenance_tags
    from mggtalk.talking_head import full_frame

    height, width = avatar.image.shape[:2] if parsed.full_frame else (parsed.size, parsed.size)
    shown, sheet, start = set(spread(len(motion.times), 8)), [avatar.crop.image], time.perf_counter()
    with (
        VideoWriter(parsed.output, fps, (width, height), audio_from=sound, metadata=provenance_tags(record)) as video,
        _bar("animating", len(motion.times)) as bar,
    ):
        frames = head.animate(avatar, motion, control)
        for row, (moment, frame) in enumerate(zip(motion.times.tolist(), frames, strict=True)):
            video.write(_marked(parsed, full_frame(avatar, frame) if parsed.full_frame else frame), moment)
            sheet += [_marked(parsed, frame)] if row in shown else []
            bar.update()
    return len(motion.times) / (time.perf_counter() - start), sheet


@contextmanager
def _bar(name: str, total: int | None) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=total, desc=name, unit="frame", file=sys.stderr, leave=False) as bar:
        yield bar


def _counted(frames: Any, bar: Any) -> Iterator[Any]:
    for frame in frames:
        yield frame
        bar.update()
