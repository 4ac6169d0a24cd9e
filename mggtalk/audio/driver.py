"""The audio driver: speech to the Motion that a video driver would have given.

>>> driver = AudioDriver.from_pretrained()
>>> motion = driver.motion("speech.wav", face=head.neutral(avatar))
>>> for frame in head.animate(avatar, motion): ...

In silence the lips are closed. What closes them depends on the face: a neutral face, about which expressions are, has them parted. Where no
``face`` (its neutral mesh in canonical space, cm) is given, the mean face's are closed.

Sound goes through in blocks: features, network and behaviour keep a state from one to the next, so memory does not depend on the length,
and a stream gives what the whole file gives.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.errors import UserError
from datasets_toolkit.faces.head_pose import FOCAL_SCALE
from mggtalk.audio.behaviour import Behaviour, Strengths
from mggtalk.audio.dub import dubbed
from mggtalk.audio.files import TINY, load_audio
from mggtalk.audio.sound import read_blocks, sound_start
from mggtalk.audio.stream import SpeechControl, SpeechStream, Spoken, resampled
from mggtalk.geometry.face_model import FaceModel
from mggtalk.geometry.neck import PIVOT
from mggtalk.metrics.speech import measured_style
from mggtalk.modules.audio import AudioNetwork
from mggtalk.modules.speech import FRAME_RATE, between
from mggtalk.motion_csv import head_poses
from mggtalk.types import Motion

log = logging.getLogger(__name__)


class AudioDriver:
    """Makes motions of speech.

    Args:
        network: speech to expression.
        behaviour: blinks, gaze and head motion.
        face_model: the basis of the expressions; by default that of the project.
    """

    def __init__(self, network: AudioNetwork, behaviour: Behaviour, face_model: FaceModel | None = None) -> None:
        self.network, self.behaviour, self.face_model = network.eval(), behaviour, face_model or FaceModel()

    @classmethod
    def from_pretrained(cls, source: str | Path = TINY, face_model: FaceModel | None = None) -> AudioDriver:
        """A driver with the model of a folder; by default the small one that ships with the project.

        Raises:
            UserError: there is no model that can be read.
        """
        return cls(*load_audio(source), face_model)

    @property
    def ahead(self) -> float:
        """Seconds that a stream waits for after a frame."""
        return self.network.ahead

    def rest(self, face: Float[Tensor, "v 3"] | None = None) -> Float[Tensor, " e"]:
        """The expression of a silent face."""
        return self.face_model.closing(self.face_model.mean if face is None else face.to(self.face_model.mean)).cpu()

    def spoken(
        self, blocks: Iterable[Float[Tensor, " _"]], control: SpeechControl | None = None, face: Float[Tensor, "v 3"] | None = None
    ) -> Iterator[Spoken]:
        """Frames of 20 ms for consecutive blocks of sound (mono, 16 kHz, in [-1, 1])."""
        stream = SpeechStream(self.network, self.behaviour, control or SpeechControl(), self.rest(face))
        for block in blocks:
            yield stream.push(block)
        yield stream.finish()

    def motion(
        self,
        sound: str | Path,
        control: SpeechControl | None = None,
        *,
        fps: Fraction = Fraction(25),
        face: Float[Tensor, "v 3"] | None = None,
    ) -> Motion:
        """The motion of a face that says what a file holds; its times are on the clock of the file, from the first sample on.

        Args:
            sound: any file with a sound track.
            control: how the face talks.
            fps: frames a second of the motion.
            face: neutral face of who is to say it.

        Raises:
            MediaError: the file is missing, unreadable, or has no sound.
        """
        begin = sound_start(Path(sound))
        motion = self.motion_of(read_blocks(Path(sound)), control, fps=fps, name=str(sound), face=face)
        return replace(motion, times=motion.times + begin)

    def motion_of(
        self,
        blocks: Iterable[Float[Tensor, " _"]],
        control: SpeechControl | None = None,
        *,
        fps: Fraction = Fraction(25),
        name: str = "sound",
        face: Float[Tensor, "v 3"] | None = None,
    ) -> Motion:
        """As :meth:`motion`, of blocks of samples.

        Raises:
            UserError: there are no samples.
        """
        if fps <= 0:
            raise ValueError(f"fps must be positive, got {fps}")
        parts = list(resampled(self.spoken(blocks, control, face), float(FRAME_RATE / fps)))
        if not parts:
            raise UserError(f"{name}: holds no sound at all; give a file with speech")
        expression, angles = (torch.cat([getattr(part, key) for part in parts]) for key in ("expression", "angles"))
        count = len(expression)
        return Motion(
            expression=expression,
            head_to_camera=self.poses(angles),
            times=torch.arange(count, dtype=torch.float64) / float(fps),
            found=torch.ones(count, dtype=torch.bool),
            focal=torch.tensor(FOCAL_SCALE),
        )

    def dub(
        self, motion: Motion, sound: str | Path, control: SpeechControl | None = None, *, face: Float[Tensor, "v 3"] | None = None
    ) -> Motion:
        """A tracked motion that says what a file holds: mouth and jaw are the speech's, all else stays.

        Times of both are on one clock. Where there is no sound the mouth is closed; what sounds longer than the motion is left out, with a
        word in the log.

        Raises:
            MediaError: as :meth:`motion`.
        """
        still = SpeechControl(**{**vars(control or SpeechControl()), "strengths": Strengths(blink=0.0, gaze=0.0, head=0.0)})
        said, rest = torch.cat([part.expression for part in self.spoken(read_blocks(Path(sound)), still, face)]), self.rest(face)
        places = (motion.times.double() - sound_start(Path(sound))) * FRAME_RATE
        if (longer := len(said) - 1 - float(places[-1])) > FRAME_RATE:
            log.warning("%s: goes on for %.1f s after the last frame of the motion; that is left out", sound, longer / FRAME_RATE)
        return dubbed(motion, rest + between(said - rest, places), self.face_model)

    def poses(self, angles: Float[Tensor, "t 3"]) -> Float[Tensor, "t 4 4"]:
        """Head poses (cm) that turn by yaw, pitch and roll (radians) about the pivot in the neck, ``behaviour.depth`` before the camera."""
        poses, pivot = head_poses(angles, self.behaviour.depth), torch.tensor(PIVOT)
        rest = head_poses(angles.new_zeros(1, 3), self.behaviour.depth)
        poses[:, :3, 3] += (rest[:, :3, :3] - poses[:, :3, :3]) @ pivot
        return poses


def style_of(motion: Motion, driver: AudioDriver) -> tuple[float, ...]:
    """How a tracked person speaks, as :class:`SpeechControl` takes it: measured on the mean face under their expressions."""
    mesh = driver.face_model.mean + driver.face_model.displacement(motion.expression)
    return tuple(driver.network.standard_style(measured_style(mesh, motion.expression, motion.times)).tolist())
