"""The arguments of ``mggtalk animate`` that let a portrait speak."""

from __future__ import annotations

import argparse
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from datasets_toolkit.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from mggtalk.audio.driver import AudioDriver
    from mggtalk.audio.stream import SpeechControl
    from mggtalk.geometry.face_model import FaceModel
    from mggtalk.types import Motion

FPS = Fraction(25)
"""Of a video that speech alone drives."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of ``mggtalk animate``."""
    speech = parser.add_argument_group("speech")
    speech.add_argument(
        "--audio", type=Path, help="file with speech that drives the mouth; alone, or with --driving or --motion for the rest"
    )
    speech.add_argument("--audio-model", type=Path, help="folder of a model of speech (default: the small one of the project)")
    speech.add_argument("--mouth-gain", type=float, default=1.8, help="strength of the mouth's movement, 0 none (default %(default)s)")
    speech.add_argument(
        "--style",
        default="",
        help="speaking style: up to 4 numbers (--style=opening,width,smile,tempo; 0 is the mean), or a motion file of who speaks so",
    )
    speech.add_argument("--blink", type=float, default=1.0, help="how often the eyes blink, 0 never (default %(default)s)")
    speech.add_argument("--gaze", type=float, default=1.0, help="how far the eyes wander, 0 not at all (default %(default)s)")
    speech.add_argument("--head-motion", type=float, default=1.0, help="how far the head moves, 0 not at all (default %(default)s)")
    speech.add_argument("--seed", type=int, default=0, help="of blinks, gaze and head motion (default %(default)s)")


def check_speech(parsed: argparse.Namespace) -> None:
    """Refuse a file without sound before anything is tracked.

    Raises:
        UserError: it is missing, unreadable, or has no sound.
    """
    from mggtalk.audio.sound import sound_start

    if parsed.audio is not None:
        sound_start(parsed.audio)


def speak(
    parsed: argparse.Namespace, face_model: FaceModel, face: Float[Tensor, "v 3"], motion: Motion | None, fps: Fraction | None
) -> tuple[Motion, Fraction]:
    """The motion of the speech that ``--audio`` names, and its frame rate; with a tracked motion, that motion with the speech's mouth.

    Args:
        parsed: the arguments.
        face_model: of the expressions.
        face: neutral face of the portrait, cm.
        motion: tracked, if there is one.
        fps: its frame rate.

    Raises:
        UserError: a file cannot be read, or a number makes no sense.
    """
    from mggtalk.audio.driver import AudioDriver
    from mggtalk.audio.files import TINY

    start = time.perf_counter()
    driver = AudioDriver.from_pretrained(parsed.audio_model or TINY, face_model)
    control = control_of(parsed, driver)
    if motion is None:
        spoken = driver.motion(parsed.audio, control, fps=FPS, face=face)
    else:
        spoken = driver.dub(motion, parsed.audio, control, face=face)
    seconds = float(spoken.times[-1] - spoken.times[0])
    print(f"listening: {seconds / max(time.perf_counter() - start, 1e-9):.0f} times real time")
    return spoken, fps or FPS


def control_of(parsed: argparse.Namespace, driver: AudioDriver) -> SpeechControl:
    """What the arguments say.

    Raises:
        UserError: a number makes no sense, or the style's motion file cannot be read.
    """
    from mggtalk.audio.behaviour import Strengths
    from mggtalk.audio.stream import SpeechControl

    strengths = Strengths(blink=parsed.blink, gaze=parsed.gaze, head=parsed.head_motion)
    try:
        return SpeechControl(mouth_gain=parsed.mouth_gain, style=_style(parsed.style, driver), strengths=strengths, seed=parsed.seed)
    except ValueError as error:
        raise UserError(f"speech: {error}") from None


def _style(text: str, driver: AudioDriver) -> tuple[float, ...]:
    from mggtalk.audio.driver import style_of
    from mggtalk.motion_files import load_motion

    if text.endswith(".safetensors"):
        return style_of(load_motion(Path(text))[0], driver)
    try:
        return tuple(float(number) for number in text.split(",") if number.strip())
    except ValueError:
        raise UserError(f"--style {text}: neither numbers with commas between them, nor a motion file of `mggtalk track`") from None
