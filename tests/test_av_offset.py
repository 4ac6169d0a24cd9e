"""The offset between lips and sound without a network."""

from __future__ import annotations

import math

import numpy as np
import pytest
from face_scenes import frontal_crop

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.annotators.av_offset import EnvelopeSync, loudness, mouth_opening
from datasets_toolkit.errors import UserError
from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.faces.detection import landmark_bounds
from datasets_toolkit.faces.head_pose import canonical_face


def speaker(seed: int, frames: int = 150) -> tuple[list[FaceCrop], np.ndarray]:
    """A mouth that opens at random and a voice that is as loud as it is open, both for ``frames`` / 25 s."""
    generator = np.random.default_rng(seed)
    opening = np.convolve(generator.uniform(0, 1, frames + 6) ** 2, np.hanning(7) / 3, "valid")[:frames]
    face = frontal_crop(canonical_face().vertices[:, 2], 64)
    crops = []
    for value in opening:
        landmarks = face.landmarks.copy()
        landmarks[regions.LOWER_INNER_LIP] = landmarks[regions.UPPER_INNER_LIP] + np.array([0, 6 * value, 0])
        crops.append(FaceCrop(**{**vars(face), "landmarks": landmarks}))
    envelope = np.interp(np.arange(frames * 640) / 640, np.arange(frames), opening)
    return crops, (envelope * generator.normal(0, 4000, frames * 640)).astype(np.int16)


def shifted(crops: list[FaceCrop], sound: np.ndarray, early: int) -> tuple[list[FaceCrop], np.ndarray]:
    """Both from a later time on, so that the sound comes ``early`` frames too early."""
    return (crops, sound[640 * early :]) if early >= 0 else (crops[-early:], sound)


@pytest.mark.parametrize("early", [-11, -4, 0, 3, 10])
def test_the_envelope_finds_the_offset(early: int) -> None:
    crops, sound = speaker(0)
    found = EnvelopeSync()(*shifted(crops, sound, early))
    assert abs(found.offset_frames - early) <= 1
    assert found.confidence > 3
    assert 0 <= found.distance < 0.5


def test_the_envelope_does_not_believe_another_voice() -> None:
    doubts = [EnvelopeSync()(speaker(seed)[0], speaker(seed + 100)[1]).confidence for seed in range(8)]
    assert max(doubts) < 3
    assert np.median(doubts) < 1.5


def test_where_nothing_can_be_said_confidence_is_0() -> None:
    crops, sound = speaker(0)
    for lips, voice in ((crops[:40], sound), (crops, np.zeros_like(sound)), (crops, sound[:0]), (crops[:1] * 100, sound), ([], sound)):
        found = EnvelopeSync()(lips, voice)
        assert (found.offset_frames, found.confidence) == (0, 0.0)
        assert math.isnan(found.distance)
    with pytest.raises(UserError, match="reach 2"):
        EnvelopeSync(2)


def test_openings_and_loudness_have_their_units() -> None:
    crops, _ = speaker(0)
    landmarks = crops[0].landmarks.copy()
    landmarks[regions.LOWER_INNER_LIP] = landmarks[regions.UPPER_INNER_LIP] + np.array([3, 4, 0])
    assert mouth_opening(landmarks) == pytest.approx(5 / landmark_bounds(landmarks)[1])
    steady = 0.2 * np.ones(16000)
    np.testing.assert_allclose(loudness(steady, np.array([0.5])), 0.04 ** (1 / 3), rtol=1e-9)
    np.testing.assert_allclose(loudness(steady, np.array([2.0, 0.0])), [0, 0.02 ** (1 / 3)], rtol=1e-9)
