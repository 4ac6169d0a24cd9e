"""What sound does not determine: blinks, gaze and head motion, from a seeded model with a few numbers measured on clips.

All of it goes forward frame by frame (50 a second) from a state, so a stream gives what the whole gives. Letters: a how much speech there
is (0 to 1, loudness smoothed over 0.3 s), x an angle, w its frequency (rad / s), n normal noise.
    blinks: no sooner than ``pause`` after one another, then at random with a constant rate, that times ``quiet`` where nobody speaks; a
        lid closes within a third of the duration and opens in the rest (raised cosines).
    gaze: fixations at normal angles, changed at random; the eyes also turn against the head.
    head: x'' = -w^2 x - 2 z w x' + m(a) n, damping z = 0.7, with the measured deviations of x and x' in the long run; m(a) goes from
        ``rest`` in silence to 1 in speech.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.signal import cont2discrete

from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import BLENDSHAPES, FloatArray
from mggtalk.modules.speech import FRAME_RATE

DAMPING = 0.7
_SMOOTH = 0.3  # seconds
_SACCADE = 0.04  # seconds in which two thirds of a change of gaze are done
_LOUD = 1.0  # of the loudness feature, from which it counts as speech


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """The numbers, as ``tools/fit_behaviour.py`` measures them.

    Attributes:
        blink_rate: a second, where nobody speaks or not: mean over all frames.
        blink_quiet: by how much more often, in silence.
        blink_pause: seconds from one blink to the next at least.
        blink_duration: seconds, of the whole movement.
        blink_amplitude: score of the closed lid above the open one.
        gaze_rate: changes a second.
        gaze_deviation: of the scores of looking aside, and up or down.
        gaze_counter: score of looking back for a degree that the head turns, yaw and pitch.
        head_deviation: degrees, of yaw, pitch and roll.
        head_speed: degrees a second, deviation of their speeds.
        head_rest: share of the movement in silence.
        depth: cm of the head before the camera.
    """

    blink_rate: float
    blink_quiet: float
    blink_pause: float
    blink_duration: float
    blink_amplitude: float
    gaze_rate: float
    gaze_deviation: tuple[float, float]
    gaze_counter: tuple[float, float]
    head_deviation: tuple[float, float, float]
    head_speed: tuple[float, float, float]
    head_rest: float
    depth: float

    def __post_init__(self) -> None:
        for field in fields(self):
            values = np.atleast_1d(getattr(self, field.name))
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise ValueError(f"{field.name} must be finite and not negative, got {getattr(self, field.name)}")
        if min(self.head_deviation) <= 0 or self.depth <= 0 or self.blink_duration <= 0:
            raise ValueError("head_deviation, blink_duration and depth must be positive")


def read_behaviour(path: Path) -> Behaviour:
    """The numbers of a YAML file.

    Raises:
        UserError: it cannot be read, or lacks a number, or holds what none can be.
    """
    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        numbers: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in dict(found).items()}
        return Behaviour(**numbers)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model of speech has one, made by tools/fit_behaviour.py") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not the numbers of a behaviour ({' '.join(str(error).split())}); make it with tools/fit_behaviour.py"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """How much of each there is: 1 as measured, 0 none. Attributes: blink (how often), gaze (how far), head (how far)."""

    blink: float = 1.0
    gaze: float = 1.0
    head: float = 1.0


class Behaver:
    """A state that goes forward with the speech.

    Args:
        behaviour: the numbers.
        strengths: how much of each.
        seed: of everything random.
    """

    def __init__(self, behaviour: Behaviour, strengths: Strengths, seed: int) -> None:
        self.behaviour, self.strengths = behaviour, strengths
        children = np.random.SeedSequence(seed).spawn(4)
        self._chance, self._gaze, self._turns, self._when = (np.random.Generator(np.random.Philox(child)) for child in children)
        self._since, self._closing, self._speech = 0.0, math.inf, 0.0  # seconds since the last blink, within one; smoothed activity
        self._aim, self._look = np.zeros(2), np.zeros(2)
        self._head = np.zeros((2, 3))  # angles and speeds
        self._steps = [
            _oscillator(speed / deviation) for speed, deviation in zip(behaviour.head_speed, behaviour.head_deviation, strict=True)
        ]

    def __call__(self, loudness: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What is added to the 52 blendshape scores (t x 52), and yaw, pitch and roll in radians (t x 3), for the next frames.

        Args:
            loudness: of each frame (t), the feature of :class:`mggtalk.modules.speech.LogMel`.
        """
        count = len(loudness)
        chance, changes = self._chance.random(count), self._when.random(count)
        aims, pushes = self._gaze.standard_normal((count, 2)), self._turns.standard_normal((count, 3, 2))
        lids, looks, turns = np.zeros(count), np.zeros((count, 2)), np.zeros((count, 3))
        for row in range(count):
            self._speech += (min(loudness[row] / _LOUD, 1.0) - self._speech) / (_SMOOTH * FRAME_RATE)
            turns[row] = self._turn(pushes[row])
            lids[row] = self._blink(chance[row])
            looks[row] = self._glance(changes[row], aims[row])
        back = np.degrees(turns[:, :2]) * self.behaviour.gaze_counter
        scores = _eyes(lids * self.behaviour.blink_amplitude, self.strengths.gaze * (looks - back))
        return scores, turns

    def _turn(self, push: FloatArray) -> FloatArray:
        strength = self.behaviour.head_rest + (1 - self.behaviour.head_rest) * self._speech
        for axis, (matrix, kick) in enumerate(self._steps):
            self._head[:, axis] = matrix @ self._head[:, axis] + strength * (kick @ push[axis])
        return np.radians(self.strengths.head * self._head[0] * self.behaviour.head_deviation)

    def _blink(self, chance: float) -> float:
        behaviour = self.behaviour
        self._since, self._closing = self._since + 1 / FRAME_RATE, self._closing + 1 / FRAME_RATE
        waited = 1 / max(1 / max(behaviour.blink_rate, 1e-9) - behaviour.blink_pause, 0.1)  # rate once the pause is over
        rate = self.strengths.blink * waited * (self._speech + behaviour.blink_quiet * (1 - self._speech))
        if behaviour.blink_rate > 0 and self._since > behaviour.blink_pause and chance < rate / FRAME_RATE:
            self._since = self._closing = 0.0
        return blink_shape(self._closing / behaviour.blink_duration)

    def _glance(self, chance: float, aim: FloatArray) -> FloatArray:
        if chance < self.behaviour.gaze_rate / FRAME_RATE:
            self._aim = np.clip(aim, -2, 2) * self.behaviour.gaze_deviation
        self._look = self._look + (self._aim - self._look) * (1 - math.exp(-1 / (_SACCADE * FRAME_RATE)))
        return self._look


def blink_shape(share: float) -> float:
    """How far a lid is closed (0 to 1) when ``share`` of a blink is over: shut after a third of it."""
    if not 0 <= share < 1:
        return 0.0
    return 0.5 - 0.5 * math.cos(math.pi * (3 * share if share < 1 / 3 else 1 + 1.5 * (share - 1 / 3)))


def _oscillator(frequency: float) -> tuple[FloatArray, FloatArray]:
    """Of x'' = -w^2 x - 2 z w x' + noise with deviation 1 of x: the matrix of one frame, and what it adds to two normal numbers."""
    w, step = max(frequency, 1e-3), 1 / FRAME_RATE
    system = np.array([[0.0, 1.0], [-w * w, -2 * DAMPING * w]])
    matrix = cont2discrete((system, np.zeros((2, 1)), np.eye(2), np.zeros((2, 1))), step)[0]
    stationary = np.diag([1.0, w * w])
    added = stationary - matrix @ stationary @ matrix.T
    values, vectors = np.linalg.eigh(added)
    return matrix, vectors * np.sqrt(np.maximum(values, 0))


def _eyes(lids: FloatArray, looks: FloatArray) -> FloatArray:
    """Scores (t x 52) of lids (t) and of looking to the person's left and up (t x 2)."""
    left, up = looks.T
    parts: Mapping[str, FloatArray] = {
        "eyeBlinkLeft": lids, "eyeBlinkRight": lids,
        "eyeLookOutLeft": left, "eyeLookInRight": left, "eyeLookInLeft": -left, "eyeLookOutRight": -left,
        "eyeLookUpLeft": up, "eyeLookUpRight": up, "eyeLookDownLeft": -up, "eyeLookDownRight": -up,
    }  # fmt: skip
    scores = np.zeros((len(lids), len(BLENDSHAPES)))
    for name, values in parts.items():
        scores[:, BLENDSHAPES.index(name)] = np.clip(values, 0, 1)
    return scores
