"""Measure blinks, gaze and head motion on the training clips of a data set, for the driver that is given speech alone.

    python tools/fit_behaviour.py --shards FOLDER --output mggtalk/assets/mggtalk-tiny-audio/behaviour.yaml

Only numbers are kept, medians over people where a person can tell them. What counts as what: a blink is a peak of the mean lid score that
stands out by 0.25; a change of gaze a speed of the score above 3 a second; silence a frame whose loudness feature is below 0.3. Numbers
that speech modulates come from the clips with sound, all others from all clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from scipy.signal import find_peaks

from datasets_toolkit.errors import UserError
from datasets_toolkit.faces.head_pose import euler_degrees
from datasets_toolkit.local_files import write_whole
from datasets_toolkit.media.sound import level
from datasets_toolkit.schema import BLENDSHAPES, FloatArray
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.audio.behaviour import Behaviour
from mggtalk.data.speech_clips import SILENT, clip_rows, read_motion
from mggtalk.geometry.face_model import FaceModel
from mggtalk.modules.speech import FRAME_RATE, LogMel

CLOSED, FAST, QUIET = 0.25, 3.0, 0.3


@dataclass(frozen=True, eq=False)
class Seen:
    """A clip, 50 frames a second: lids (t), gaze (t x 2, left and up), angles (t x 3, degrees), speech (t, or None), depth (cm)."""

    person: str
    lids: FloatArray
    gaze: FloatArray
    angles: FloatArray
    speech: FloatArray | None
    depth: float


def score(motion: FloatArray, *names: str) -> FloatArray:
    """The mean of some blendshape scores."""
    return motion[:, [BLENDSHAPES.index(name) for name in names]].mean(1)


def see(reader: ShardReader, person: str, rows: Sequence[int], face_model: FaceModel) -> Seen | None:
    """What a clip shows; None if it is shorter than 2 s."""
    motion = read_motion(reader, rows, face_model)
    times = motion.times - motion.times[0]
    if times[-1] < 2:
        return None
    grid = np.arange(int(times[-1] * FRAME_RATE) + 1) / FRAME_RATE
    scores = np.stack([np.interp(grid, times, values) for values in motion.expression[:, : len(BLENDSHAPES)].double().numpy().T], 1)
    angles = np.stack([np.interp(grid, times, values) for values in euler_degrees(motion.head_to_camera.double().numpy()).T], 1)
    left = 0.5 * (score(scores, "eyeLookOutLeft", "eyeLookInRight") - score(scores, "eyeLookInLeft", "eyeLookOutRight"))
    up = 0.5 * (score(scores, "eyeLookUpLeft", "eyeLookUpRight") - score(scores, "eyeLookDownLeft", "eyeLookDownRight"))
    sound = np.concatenate([np.zeros(0, np.int16), *motion.sound])
    speech = None
    if level(sound) > SILENT:
        loudness = LogMel()(torch.from_numpy(np.pad(sound, (0, 16000)) / np.float32(32768)))[: len(grid), -2]
        speech = (loudness.numpy() > QUIET).astype(np.float64)
    lids = score(scores, "eyeBlinkLeft", "eyeBlinkRight")
    return Seen(person, lids, np.stack([left, up], 1), angles, speech, float(motion.head_to_camera[:, 2, 3].median()))


def blinks(lids: FloatArray) -> tuple[list[int], list[float], list[float]]:
    """Frames of the blinks of a clip, their durations (s, twice the width at half height) and heights."""
    base = float(np.percentile(lids, 30))
    peaks, facts = find_peaks(lids, prominence=CLOSED, width=1, rel_height=0.5)
    short = facts["widths"] < 0.4 * FRAME_RATE
    durations = 2 * facts["widths"][short] / FRAME_RATE
    return peaks[short].tolist(), durations.tolist(), (lids[peaks[short]] - base).tolist()


def by_person(seen: Sequence[Seen], values: Sequence[float]) -> float:
    """The median over people of their means."""
    people = sorted({one.person for one in seen})
    return float(
        np.median([np.mean([value for one, value in zip(seen, values, strict=True) if one.person == person]) for person in people])
    )


def fit(seen: Sequence[Seen]) -> Behaviour:
    """The numbers of all clips."""
    every = [blinks(one.lids) for one in seen]
    frames = sum(len(one.lids) for one in seen)
    gaps = np.concatenate([np.diff(found[0]) / FRAME_RATE for found in every])
    loud = [one for one in seen if one.speech is not None]
    changes = [gaze_changes(one) for one in seen]
    slopes = [counter(one) for one in seen]
    return Behaviour(
        blink_rate=round(sum(len(found[0]) for found in every) * FRAME_RATE / frames, 3),
        blink_quiet=round(quiet_ratio(loud), 2),
        blink_pause=round(float(np.percentile(gaps, 5)), 2),
        blink_duration=round(float(np.median(np.concatenate([found[1] for found in every]))), 3),
        blink_amplitude=round(float(np.median(np.concatenate([found[2] for found in every]))), 2),
        gaze_rate=round(by_person(seen, changes), 2),
        gaze_deviation=(
            round(by_person(seen, [one.gaze[:, 0].std() for one in seen]), 3),
            round(by_person(seen, [one.gaze[:, 1].std() for one in seen]), 3),
        ),
        gaze_counter=(
            round(max(float(np.median([slope[0] for slope in slopes])), 0), 4),
            round(max(float(np.median([slope[1] for slope in slopes])), 0), 4),
        ),
        head_deviation=tuple(round(by_person(seen, [one.angles[:, axis].std() for one in seen]), 2) for axis in range(3)),  # type: ignore[arg-type]
        head_speed=tuple(round(by_person(seen, [speeds(one)[:, axis].std() for one in seen]), 2) for axis in range(3)),  # type: ignore[arg-type]
        head_rest=round(min(rest_share(loud), 1.0), 2),
        depth=round(float(np.median([one.depth for one in seen])), 1),
    )


def speeds(one: Seen) -> FloatArray:
    """Degrees a second, over 0.1 s."""
    return (one.angles[5:] - one.angles[:-5]) * FRAME_RATE / 5


def gaze_changes(one: Seen) -> float:
    """Changes of gaze a second, outside of blinks."""
    fast = np.linalg.norm(np.gradient(one.gaze, axis=0), axis=1) * FRAME_RATE > FAST
    fast &= one.lids < np.percentile(one.lids, 30) + CLOSED / 2
    return float((np.diff(fast.astype(int)) == 1).sum() * FRAME_RATE / len(fast))


def counter(one: Seen) -> tuple[float, float]:
    """Scores of looking back for a degree of yaw (to the image's right, the person's left) and of pitch; 0 for a head that is still."""
    found = []
    for axis in range(2):
        turn = one.angles[:, axis] - one.angles[:, axis].mean()
        found.append(float(-(turn @ one.gaze[:, axis]) / (turn @ turn)) if turn.std() > 1 else 0.0)
    return found[0], found[1]


def quiet_ratio(seen: Sequence[Seen]) -> float:
    """How much more often people blink where they do not speak."""
    counts = np.ones((2, 2)) * np.array(
        [[0.5], [0.5 * 4 * FRAME_RATE]]
    )  # blinks and frames, half a blink in 4 s beforehand; loud and quiet
    for one in seen:
        assert one.speech is not None
        places = blinks(one.lids)[0]
        counts += np.array([[one.speech[places].sum(), (1 - one.speech[places]).sum()], [one.speech.sum(), (1 - one.speech).sum()]])
    return float((counts[0, 1] / counts[1, 1]) / (counts[0, 0] / counts[1, 0]))


def rest_share(seen: Sequence[Seen]) -> float:
    """Speed of the head where nobody has spoken for 0.4 s, against that in speech; the median over clips that have both."""
    found = []
    for one in seen:
        assert one.speech is not None
        smooth = np.convolve(one.speech, np.ones(20) / 20, "same")[5:]
        speed = np.linalg.norm(speeds(one), axis=1)
        if (smooth < 0.05).sum() > 25 and (smooth > 0.8).sum() > 25:
            found.append(speed[smooth < 0.05].mean() / speed[smooth > 0.8].mean())
    return float(np.median(found)) if found else 0.5


def main(words: Sequence[str] | None = None) -> None:
    """Read, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="a built data set")
    parser.add_argument("--output", type=Path, required=True, help="YAML file to write")
    arguments = parser.parse_args(words)
    reader, face_model = ShardReader(arguments.shards), FaceModel()
    seen = [one for _, person, rows in clip_rows(reader, "train") if (one := see(reader, person, rows, face_model)) is not None]
    if not seen:
        raise SystemExit(f"error: {UserError(f'{arguments.shards}: no training clip of 2 s; build more')}")
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(fit(seen)).items()}
    people = len({one.person for one in seen})
    head = f"# Measured on {len(seen)} clips of {people} people by tools/fit_behaviour.py; see mggtalk/audio/behaviour.py.\n"
    write_whole(arguments.output, (head + yaml.safe_dump(values, sort_keys=False)).encode())
    print(head + yaml.safe_dump(values, sort_keys=False))


if __name__ == "__main__":
    main()
