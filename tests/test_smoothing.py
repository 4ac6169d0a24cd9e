"""Filters against closed forms and a scalar twin of the paper's algorithm; smoothed clips stay consistent."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from datasets_toolkit.faces.head_pose import canonical_face, clip_camera, euler_degrees, head_pose
from datasets_toolkit.faces.smoothing import SCORE_REACH, LandmarkFilter, NoFilter, OneEuro, ZeroPhaseOneEuro, smooth_clip
from datasets_toolkit.schema import BLENDSHAPES, FloatArray, TrackedClip

FILTERS = [NoFilter(), OneEuro(), ZeroPhaseOneEuro(), OneEuro(2.0, 0.0, 1.0), ZeroPhaseOneEuro(3.0, 40.0, 2.0)]
seeds = st.integers(0, 10**6)


def random_times(generator: np.random.Generator, count: int) -> FloatArray:
    return generator.uniform(-5, 5) + np.cumsum(generator.uniform(0.005, 0.2, count))


def scalar_one_euro(values: list[float], times: list[float], min_cutoff: float, beta: float, derivative_cutoff: float) -> list[float]:
    """Algorithms 1 and 2 of the paper, one number at a time."""

    def alpha(rate: float, cutoff: float) -> float:
        tau = 1.0 / (2.0 * math.pi * cutoff)
        return 1.0 / (1.0 + tau * rate)

    filtered, speed = [values[0]], 0.0
    for index in range(1, len(values)):
        rate = 1.0 / (times[index] - times[index - 1])
        derivative = (values[index] - filtered[-1]) * rate
        a = alpha(rate, derivative_cutoff)
        speed = a * derivative + (1.0 - a) * speed
        a = alpha(rate, min_cutoff + beta * abs(speed))
        filtered.append(a * values[index] + (1.0 - a) * filtered[-1])
    return filtered


@settings(deadline=None)
@given(seed=seeds, count=st.integers(1, 40), channels=st.integers(0, 4))
def test_one_euro_is_the_papers_algorithm_on_every_channel(seed: int, count: int, channels: int) -> None:
    generator = np.random.default_rng(seed)
    times, values = random_times(generator, count), generator.normal(size=(count, channels))
    parameters = (generator.uniform(0.1, 5), generator.uniform(0, 50), generator.uniform(0.1, 20))
    expected = [scalar_one_euro(list(values[:, channel]), list(times), *parameters) for channel in range(channels)]
    np.testing.assert_allclose(OneEuro(*parameters)(values, times), np.reshape(expected, (channels, count)).T, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(seed=seeds, count=st.integers(1, 30))
def test_zero_phase_knows_no_direction_of_time(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    times, values = random_times(generator, count), generator.normal(size=(count, 3))
    smoother = ZeroPhaseOneEuro(1.0, 10.0, 3.0)
    np.testing.assert_allclose(smoother(values[::-1], -times[::-1])[::-1], smoother(values, times), rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(seed=seeds, count=st.integers(1, 30), smoother=st.sampled_from(FILTERS))
def test_filters_average(seed: int, count: int, smoother: LandmarkFilter) -> None:
    """They never leave the range of the values, keep constants, move and turn over with the values, and leave their input alone."""
    generator = np.random.default_rng(seed)
    times, values = random_times(generator, count), generator.normal(size=(count, 3))
    before = values.copy()
    result = smoother(values, times)
    assert (result >= values.min(0) - 1e-12).all() and (result <= values.max(0) + 1e-12).all()
    np.testing.assert_allclose(smoother(7 - values, times), 7 - result, atol=1e-10)
    np.testing.assert_array_equal(smoother(np.full((count, 2), 3.25), times), 3.25)
    np.testing.assert_array_equal(values, before)


def test_a_step_decays_geometrically_at_a_fixed_cutoff() -> None:
    rate, cutoff = 25.0, 2.0
    values = np.ones((20, 1))
    values[0] = 0
    kept = 1 - 1 / (1 + rate / (2 * np.pi * cutoff))
    result = OneEuro(cutoff, 0.0, 1.0)(values, np.arange(20) / rate)
    np.testing.assert_allclose(result[:, 0], 1 - kept ** np.arange(20), rtol=1e-12)


def test_one_euro_is_causal_and_zero_phase_is_not_late() -> None:
    times = np.arange(101) / 25
    bump = 0.05 * np.exp(-0.5 * ((times - 2) / 0.12) ** 2)[:, None]
    changed = bump.copy()
    changed[60:] += 1
    np.testing.assert_array_equal(OneEuro()(bump, times)[:60], OneEuro()(changed, times)[:60])
    centre = {
        kind: float(np.average(times, weights=smoother(bump, times)[:, 0]))
        for kind, smoother in (("live", OneEuro(1.0, 20.0, 3.0)), ("offline", ZeroPhaseOneEuro(1.0, 20.0, 3.0)))
    }
    assert centre["offline"] == pytest.approx(2, abs=1e-9)
    assert centre["live"] > 2.02  # half a frame


@pytest.mark.parametrize("smoother", [OneEuro(), ZeroPhaseOneEuro()], ids=["live", "offline"])
def test_defaults_halve_jitter_and_keep_blinks(smoother: LandmarkFilter) -> None:
    """Noise of 0.04 % of the box, as the landmarker's; an eyelid that closes and opens within 0.25 s."""
    times = np.arange(250) / 25
    noise = np.random.default_rng(0).normal(0, 4e-4, (250, 200))
    still = smoother(noise, times)
    assert np.abs(np.diff(still, 2, axis=0)).mean() < 0.5 * np.abs(np.diff(noise, 2, axis=0)).mean()
    lid = 0.025 * np.exp(-0.5 * ((times[:, None] - 5) / 0.06) ** 2)
    moved = smoother(lid + noise, times).mean(1)
    assert moved.max() > 0.95 * 0.025
    assert abs(int(moved.argmax()) - 125) <= 0.5
    slope = np.gradient(lid[:, 0])
    late = -((moved - lid[:, 0]) * slope).sum() / (slope**2).sum()  # frames, to first order
    assert abs(late) < 0.5


@pytest.mark.parametrize("parameters", [(0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, -1.0, 1.0)])
def test_impossible_parameters_are_refused(parameters: tuple[float, float, float]) -> None:
    for kind in (OneEuro, ZeroPhaseOneEuro):
        with pytest.raises(ValueError, match="cutoffs must be positive"):
            kind(*parameters)


def posed_clip(yaw: FloatArray, noise: float = 0.0, missing: tuple[int, ...] = (), side: float = 200.0) -> TrackedClip:
    """The mean face turned by ``yaw`` degrees for each frame, projected, with noise (sides of the box) on every landmark."""
    generator = np.random.default_rng(1)
    count, box = len(yaw), np.array([30.0, 20.0, side])
    intrinsics = clip_camera(box)
    focal, centre = intrinsics[0, 0], intrinsics[:2, 2]
    turns = np.diag([1.0, -1, -1]) @ Rotation.from_euler("y", yaw[:, None], degrees=True).as_matrix()
    points = canonical_face().vertices @ turns.swapaxes(1, 2) + [2, -1, 120]
    landmarks = np.concatenate([focal * points[..., :2] / points[..., 2:] + centre, focal * (points[..., 2:] / 120 - 1)], -1)
    landmarks += generator.normal(size=landmarks.shape) * noise * side
    poses = [head_pose(frame, intrinsics) for frame in landmarks]
    found = np.ones(count, bool)
    found[list(missing)] = False
    gap = partial(np.where, found)
    return TrackedClip(
        landmarks=gap(landmarks.T, np.nan).T,
        blendshapes=gap(generator.uniform(size=(count, len(BLENDSHAPES))).T, np.nan).T,
        head_to_camera=gap(np.stack([pose.head_to_camera for pose in poses]).T, np.nan).T,
        mesh=gap(np.stack([pose.mesh for pose in poses]).T, np.nan).T,
        found=found,
        times=np.arange(count) / 25,
        indices=np.arange(count),
        intrinsics=intrinsics,
        box=box,
    )


def test_the_synthetic_clip_is_what_it_says() -> None:
    yaw = np.linspace(-30, 30, 5)
    clip = posed_clip(yaw)
    np.testing.assert_allclose(euler_degrees(clip.head_to_camera), np.stack([yaw, 0 * yaw, 0 * yaw], 1), atol=1e-8)
    np.testing.assert_allclose(clip.mesh, np.broadcast_to(canonical_face().vertices, clip.mesh.shape), atol=1e-8)


def test_no_filter_changes_nothing_and_a_still_head_stays() -> None:
    noisy = posed_clip(np.linspace(0, 10, 8), noise=1e-3, missing=(3,))
    still = posed_clip(np.full(8, 12.0))
    still = replace(still, blendshapes=np.full_like(still.blendshapes, 0.25))
    for clip, smooth in ((noisy, smooth_clip(noisy, NoFilter())), (still, smooth_clip(still, ZeroPhaseOneEuro()))):
        for name in ("landmarks", "blendshapes", "head_to_camera", "mesh"):
            np.testing.assert_allclose(getattr(smooth, name), getattr(clip, name), atol=1e-9)


def test_smoothed_mesh_and_pose_still_give_the_landmarks_and_are_steadier() -> None:
    clip = posed_clip(np.full(60, 10.0), noise=4e-4)
    smooth = smooth_clip(clip, ZeroPhaseOneEuro())
    points = np.einsum("tij,tvj->tvi", smooth.head_to_camera[:, :3, :3], smooth.mesh) + smooth.head_to_camera[:, None, :3, 3]
    pixels = points @ clip.intrinsics.T
    np.testing.assert_allclose(pixels[..., :2] / pixels[..., 2:], smooth.landmarks[..., :2], atol=1e-8)
    for name in ("landmarks", "head_to_camera", "mesh"):
        jitter, before = (np.abs(np.diff(getattr(one, name), 2, axis=0)).mean() for one in (smooth, clip))
        assert jitter < 0.5 * before


def test_each_run_is_filtered_by_itself_in_units_of_the_box() -> None:
    clip = posed_clip(np.linspace(0, 20, 20), noise=1e-3, missing=(0, 7, 8, 15, 19))
    smooth = smooth_clip(clip, OneEuro())
    for rows in (slice(1, 7), slice(9, 15), slice(16, 19)):
        alone = OneEuro()(clip.landmarks[rows].reshape(-1, 478 * 3) / 200, clip.times[rows]) * 200
        np.testing.assert_allclose(smooth.landmarks[rows].reshape(-1, 478 * 3), alone, rtol=1e-12)
        scores = OneEuro()(clip.blendshapes[rows] * SCORE_REACH, clip.times[rows]) / SCORE_REACH
        np.testing.assert_allclose(smooth.blendshapes[rows], scores, rtol=1e-12)
    for name in ("landmarks", "blendshapes", "head_to_camera", "mesh"):
        np.testing.assert_array_equal(np.isnan(getattr(smooth, name)), np.isnan(getattr(clip, name)))


def test_the_size_of_the_picture_does_not_matter() -> None:
    small, large = (smooth_clip(posed_clip(np.linspace(0, 20, 12), noise=1e-3, side=side), OneEuro()) for side in (100.0, 800.0))
    np.testing.assert_allclose(small.head_to_camera, large.head_to_camera, atol=1e-8)
    np.testing.assert_allclose(small.mesh, large.mesh, atol=1e-8)
