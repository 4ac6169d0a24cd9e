"""A synthetic clip: one person in front of one camera, moving and speaking."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from datasets_toolkit.faces.head_pose import FOCAL_SCALE
from datasets_toolkit.schema import FloatArray
from datasets_toolkit.synthetic import motion
from datasets_toolkit.synthetic.geometry import Pose
from datasets_toolkit.synthetic.person import Person, make_person
from datasets_toolkit.synthetic.render import Picture, render
from datasets_toolkit.synthetic.speech import Speech, speak

FPS = Fraction(25)


@dataclass(frozen=True, kw_only=True)
class SyntheticClip:
    """Everything that is known of a clip before it is drawn.

    Attributes:
        name: identifies the clip: ``<person>-<shot>``.
        person: who is seen.
        shot: number of the clip among the person's.
        size: pixels a side.
        times: t, seconds.
        scores: t x 52, blendshapes.
        angles: t x 3, yaw, pitch and roll, degrees.
        poses: of head, neck and torso, t of them.
        intrinsics: 3 x 3: the clip camera, pixels.
        speech: the sound, from time 0 to the end of the last frame.
    """

    name: str
    person: Person
    shot: int
    size: int
    times: FloatArray
    scores: FloatArray
    angles: FloatArray
    poses: list[Pose]
    intrinsics: FloatArray
    speech: Speech

    def frame(self, index: int, *, samples: int = 1) -> Picture:
        """Draw a frame; ``samples`` as for :func:`datasets_toolkit.synthetic.render.render`."""
        return render(self.person, self.scores[index], self.poses[index], self.intrinsics, self.size, samples=samples, shot=self.shot)


def make_clip(person: Person, shot: int, frames: int, size: int, *, margin: float = 1.0) -> SyntheticClip:
    """Plan a clip of a person.

    Args:
        person: who.
        shot: number of the clip: another one moves, speaks and has a background of its own.
        frames: how many, at :data:`FPS`.
        size: pixels a side.
        margin: side of the picture in units of the first frame's reference box, in whose centre it is.
    """
    random = np.random.default_rng([person.seed, shot, 5])
    times = np.arange(frames) / float(FPS)
    speech = speak(frames / float(FPS), person.look.voice, random)
    scores = motion.scores(times, speech, random)
    angles, shifts = motion.head_path(times, random)
    place = motion.framed_shift(person, motion.rotation(*angles[0]), scores[0])
    focal = FOCAL_SCALE * size / margin
    return SyntheticClip(
        name=f"{person.name}-{shot:02d}",
        person=person,
        shot=shot,
        size=size,
        times=times,
        scores=scores,
        angles=angles,
        poses=motion.poses(angles, shifts, place),
        intrinsics=np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]]),
        speech=speech,
    )


def make_clips(clips: int, frames: int, size: int, seed: int, persons: int, *, margin: float = 1.0) -> list[SyntheticClip]:
    """Clips of ``persons`` people in turn, all that a seed tells.

    Raises:
        ValueError: a count or the size is not positive.
    """
    if min(clips, frames, size, persons) <= 0:
        raise ValueError(f"clips, frames, size and persons must be positive, got {clips}, {frames}, {size} and {persons}")
    people = [make_person(seed * 1000 + number) for number in range(min(persons, clips))]
    return [make_clip(people[k % len(people)], k // len(people), frames, size, margin=margin) for k in range(clips)]
