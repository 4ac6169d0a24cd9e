"""How a synthetic person moves: slow turns of the head, a mouth that follows the sound, blinks, glances, smiles."""

from __future__ import annotations

import numpy as np

from datasets_toolkit.faces.detection import reference_box
from datasets_toolkit.faces.head_pose import FOCAL_SCALE
from datasets_toolkit.schema import BLENDSHAPES, FloatArray
from datasets_toolkit.synthetic.geometry import Pose
from datasets_toolkit.synthetic.person import Person
from datasets_toolkit.synthetic.render import project
from datasets_toolkit.synthetic.speech import Speech

JAW = 0.85
"""jawOpen of the loudest syllables."""
BLINK = 0.26
"""Seconds of a blink."""
_UPRIGHT = np.array([1.0, 0.0, 0.3])  # how much of yaw, pitch and roll reaches the torso
_FRONTAL = np.diag([1.0, -1.0, -1.0])


def rotation(yaw: float, pitch: float, roll: float) -> FloatArray:
    """Head rotation (3 x 3) with these angles, degrees, in the sense of :func:`datasets_toolkit.faces.head_pose.euler_degrees`."""
    a, b, c = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    about_z = np.array([[np.cos(c), np.sin(c), 0], [-np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return np.asarray(_FRONTAL @ about_y @ about_x @ about_z)


def head_path(times: FloatArray, random: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Yaw, pitch and roll (t x 3, degrees) and shifts (t x 3, camera frame, cm, 0 at the first time)."""
    turns = random.normal(0, [7, 3, 2]) + _waves(
        times, random, np.array([random.uniform(4, 20), random.uniform(2, 8), random.uniform(1, 5)])
    )
    shifts = _waves(times, random, np.array([1.2, 0.8, 2.0]))
    return turns.clip([-38, -20, -15], [38, 20, 15]), shifts - shifts[:1]


def scores(times: FloatArray, speech: Speech, random: np.random.Generator) -> FloatArray:
    """52 blendshape scores at each time (t x 52)."""
    envelope, rounding = speech.at(times)
    mood, brows = _waves(times, random, np.array([0.35, 0.5])).T
    smile = np.clip(random.uniform(-0.2, 0.5) + mood, 0, 0.9) * (1 - 0.5 * rounding)
    raised = np.clip(brows + 0.35 * envelope - 0.1, 0, 1)
    blink, gaze = _blinks(times, random), _glances(times, random)
    values = {"jawOpen": JAW * envelope, "mouthPucker": 0.6 * rounding, "browInnerUp": raised}
    values |= {"cheekPuff": np.zeros_like(envelope)}
    for side, sign in (("Left", 1.0), ("Right", -1.0)):
        values |= {
            f"mouthSmile{side}": smile,
            f"eyeBlink{side}": blink,
            f"browOuterUp{side}": 0.7 * raised,
            f"browDown{side}": np.clip(-brows, 0, 0.6),
            f"eyeLookUp{side}": gaze[:, 1].clip(0),
            f"eyeLookDown{side}": (-gaze[:, 1]).clip(0),
            f"eyeLookOut{side}": (sign * gaze[:, 0]).clip(0),
            f"eyeLookIn{side}": (-sign * gaze[:, 0]).clip(0),
        }
    result = np.zeros((len(times), len(BLENDSHAPES)))
    for name, value in values.items():
        result[:, BLENDSHAPES.index(name)] = value
    return result


def framed_shift(person: Person, turned: FloatArray, first_scores: FloatArray) -> FloatArray:
    """The head's place (3, camera frame, cm) at which its reference box is centred on the optical axis and subtends 1 / FOCAL_SCALE.

    So the clip camera of the first frame (``docs/conventions.md``) is the camera it was drawn with.
    """
    landmarks, unit = person.landmarks(first_scores), np.eye(3)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turned, [0, 0, 110]
    for _ in range(60):
        box = reference_box(project(landmarks, pose, unit))
        if np.abs([*(box[:2] + box[2] / 2), box[2] * FOCAL_SCALE - 1]).max() < 1e-12:
            break
        pose[:2, 3] -= (box[:2] + box[2] / 2) * pose[2, 3]
        pose[2, 3] *= box[2] * FOCAL_SCALE
    return pose[:3, 3]


def poses(turns: FloatArray, shifts: FloatArray, place: FloatArray) -> list[Pose]:
    """Head, neck and torso of each frame: the torso follows a third of the way, the neck is between."""
    result = []
    base = turns.mean(0)
    for angles, shift in zip(turns, shifts, strict=True):
        torso = (0.15 * base + 0.15 * (angles - base)) * _UPRIGHT
        head = _rigid(rotation(*angles), place + shift)
        trunk = _rigid(rotation(*torso), place + 0.4 * shift)
        neck = _rigid(rotation(*(0.5 * (angles + torso))), place + 0.7 * shift)
        result.append(Pose(head=head, neck=neck, torso=trunk))
    return result


def _rigid(turned: FloatArray, shift: FloatArray) -> FloatArray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turned, shift
    return matrix


def _waves(times: FloatArray, random: np.random.Generator, sizes: FloatArray) -> FloatArray:
    """Smooth random curves (t x k) of given amplitudes (k): two slow oscillations each."""
    count = len(sizes)
    rates, phases = random.uniform([0.12, 0.35], [0.35, 0.9], (count, 2)), random.uniform(0, 2 * np.pi, (count, 2))
    curves = np.sin(2 * np.pi * times[:, None, None] * rates + phases) @ np.array([0.7, 0.3])
    return np.asarray(sizes * curves)


def _blinks(times: FloatArray, random: np.random.Generator) -> FloatArray:
    closed, moment = np.zeros(len(times)), random.uniform(0.1, 1.8)
    while moment < times[-1] + BLINK:
        closed = np.maximum(closed, np.cos(np.pi * np.clip((times - moment) / BLINK, -0.5, 0.5)) ** 2)
        moment += random.uniform(1.5, 4.0)
    return closed


def _glances(times: FloatArray, random: np.random.Generator) -> FloatArray:
    """Gaze (t x 2: to the person's left, up; in [-1, 1]): at rest between quick moves."""
    gaze, moment, target = np.zeros((len(times), 2)), 0.0, random.normal(0, 0.15, 2)
    while moment < times[-1] + 1:
        gaze[times >= moment] = target.clip(-0.6, 0.6)
        moment += random.uniform(0.4, 1.5)
        target = random.normal(0, [0.3, 0.15])
    return gaze
