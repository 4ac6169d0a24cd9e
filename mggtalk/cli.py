"""``mggtalk``: make a portrait talk, track the motion of a video, train and measure models."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets_toolkit import __version__
from datasets_toolkit.cli import run
from datasets_toolkit.errors import MediaError, UserError
from datasets_toolkit.schema import ByteImage
from mggtalk.audio.command import add_arguments as add_speech
from mggtalk.audio.command import check_speech, speak

if TYPE_CHECKING:
    from mggtalk.drivers import Control
    from mggtalk.provenance import Provenance
    from mggtalk.talking_head import Avatar, TalkingHead
    from mggtalk.types import Motion

log = logging.getLogger("mggtalk")
MOTION_SUFFIXES = (".safetensors", ".csv")
TRAINING = {
    "fit": "train a stage of an experiment (--config experiments/NAME.yaml; see docs/training.md)",
    "validate": "measure a checkpoint on the validation pairs of an experiment",
    "test": "measure a checkpoint on the test pairs of an experiment",
}

BENCHMARK = "measure a model against baselines and other systems on a data set (see docs/benchmark.md)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="mggtalk", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_animate(commands.add_parser("animate", help="animate a portrait with a video, a motion file, or speech"))
    _add_track(commands.add_parser("track", help="write the motion of a video to a file"))
    _add_export(commands.add_parser("export", help="write the model of a checkpoint as a folder that animates portraits"))
    _add_provenance(commands.add_parser("provenance", help="print what a video or a contact sheet says of its making"))
    for name, text in {**TRAINING, "benchmark": BENCHMARK}.items():
        commands.add_parser(name, help=text, add_help=False)
    words = list(sys.argv[1:] if arguments is None else arguments)
    _show_notes()
    if words[:1] and words[0] in TRAINING:  # its arguments are those of the classes it builds
        return run(_train, argparse.Namespace(words=words))
    if words[:1] == ["benchmark"]:  # its parser needs what it runs
        return run(_benchmark, argparse.Namespace(words=words[1:]))
    parsed = parser.parse_args(words)
    return run(parsed.function, parsed)


def _train(parsed: argparse.Namespace) -> None:
    try:
        from mggtalk.training import main as train
    except ModuleNotFoundError as error:
        raise UserError(f"training needs the package {error.name}; install it with: pip install 'mggtalk[train]'") from error
    train(parsed.words)


def _benchmark(parsed: argparse.Namespace) -> None:
    try:
        from mggtalk.evaluation.command import main as benchmark
    except ModuleNotFoundError as error:
        raise UserError(f"the benchmark needs the package {error.name}; install it with: pip install 'mggtalk[train]'") from error
    benchmark(parsed.words)


def _show_notes() -> None:
    """Warnings of our own as one line each."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    log.setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: print(f"WARNING: {message}", file=sys.stderr)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-smooth", dest="smooth", action="store_false", help="do not filter tracking jitter")
    parser.add_argument("--assets", type=Path, help="folder with the face tracker's model files (default: found or fetched)")


def _add_track(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", type=Path, help="video of a face")
    parser.add_argument("-o", "--output", type=Path, required=True, help="motion file to write (.safetensors)")
    parser.add_argument("--face", type=int, default=0, help="which face of the first frame, 0 the largest (default %(default)s)")
    _add_common(parser)
    parser.set_defaults(function=_track)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint of `mggtalk fit` (.ckpt)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write, or a single .safetensors file")
    parser.add_argument(
        "--strength",
        action="append",
        default=[],
        metavar="PART=FACTOR",
        help="multiply what a part of the model corrects, such as densifier=0.5; 0 leaves the base (may be repeated)",
    )
    parser.set_defaults(function=_export)


def _export(parsed: argparse.Namespace) -> None:
    from mggtalk.audio.files import export_audio, is_audio
    from mggtalk.checkpoints import export_checkpoint, read_checkpoint

    strengths = dict(_strength(word) for word in parsed.strength)
    if is_audio(read_checkpoint(parsed.checkpoint)):
        if strengths:
            raise UserError("--strength: a model of speech has no parts that correct a base")
        export_audio(parsed.checkpoint, parsed.output)
    else:
        export_checkpoint(parsed.checkpoint, parsed.output, strengths)
    print(parsed.output)


def _strength(word: str) -> tuple[str, float]:
    part, _, factor = word.partition("=")
    try:
        return part, float(factor)
    except ValueError:
        raise UserError(f"--strength {word}: expected PART=FACTOR, such as densifier=0.5") from None


def _add_provenance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="video, or PNG of --sheet")
    parser.set_defaults(function=_provenance)


def _provenance(parsed: argparse.Namespace) -> int:
    from mggtalk.provenance import GENERATOR, read_provenance

    record = read_provenance(parsed.file)
    print(record.as_json(indent=1) if record else f"{parsed.file}: carries no record of {GENERATOR}; that is no proof that it is genuine")
    return 0 if record else 1


def _add_animate(parser: argparse.ArgumentParser) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
