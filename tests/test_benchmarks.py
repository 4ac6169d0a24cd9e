"""The reenactment benchmark: its 2D warp against known motions, its tables on worked numbers. Nothing here is timed."""

from __future__ import annotations

import math
import sys
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from skimage.data import astronaut

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from reenactment import _without_nan, arguments_of, sheet
from reenactment_clip import Choice, distances, measure, middle_run, pick, shake, spread
from reenactment_tables import REPEATED, WARP, ClipResult, Score, goals, markdown, mean_score, summarise, table

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.faces.detection import FaceTracker, landmark_bounds
from datasets_toolkit.faces.head_pose import canonical_face
from datasets_toolkit.media.video import VideoWriter
from datasets_toolkit.schema import ByteImage, Face, FloatArray
from mggtalk.evaluation.warp import border, sampling_map, warp
from mggtalk.geometry.face_model import ASSET, FaceModel
from mggtalk.talking_head import TalkingHead
from mggtalk.types import Motion

SIZE = 64
STEP = np.array([3.0, -2.0])
seeds = st.integers(0, 10**6)
METHOD = "ours"


def landmarks(seed: int, count: int = 40) -> FloatArray:
    """Points inside the middle half of the crop, and its outline so densely that every triangulation follows it."""
    inner = np.random.default_rng(seed).uniform(0.3 * SIZE, 0.7 * SIZE, (count, 2))
    along, low, high = np.arange(0.25 * SIZE, 0.75 * SIZE, 2), np.full(16, 0.25 * SIZE), np.full(16, 0.75 * SIZE)
    ring = [(along, low), (high, along), (SIZE - along, high), (low, SIZE - along)]
    return np.concatenate([inner, *(np.stack(side, 1) for side in ring)])


def centres() -> FloatArray:
    """Pixel centres, size x size x 2."""
    return np.asarray(np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1) + 0.5)


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_warp_to_the_same_landmarks_is_the_source(seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    points = landmarks(seed)
    np.testing.assert_allclose(sampling_map(points, points, SIZE), centres(), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(warp(image, points, points), image)


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_an_affine_motion_is_inverted_exactly(seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix, shift = np.eye(2) + random.uniform(-0.08, 0.08, (2, 2)), random.uniform(-3, 3, 2)
    source, middle = landmarks(seed), np.full(2, SIZE / 2)
    target = (source - middle) @ matrix.T + middle + shift
    expected = (centres() - middle - shift) @ np.linalg.inv(matrix).T + middle
    inside = ((expected > 0.25 * SIZE) & (expected < 0.75 * SIZE)).all(-1)  # pixels of the moved landmarks' hull
    assert inside.sum() > 400
    np.testing.assert_allclose(sampling_map(source, target, SIZE)[inside], expected[inside], rtol=0, atol=1e-8)


def test_a_shift_by_whole_pixels_copies_pixels_and_leaves_the_border() -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    source = landmarks(1)
    moved = warp(image, source, source + STEP)
    np.testing.assert_array_equal(moved[16 - 2 : 48 - 2, 16 + 3 : 48 + 3], image[16:48, 16:48])
    places = sampling_map(source, source + STEP, SIZE)
    assert np.abs(places - centres())[[0, -1]].max() < 0.2 and np.abs(places - centres())[:, [0, -1]].max() < 0.2


def test_only_the_first_two_coordinates_of_landmarks_count() -> None:
    source, target = landmarks(2), landmarks(3)
    depth = np.random.default_rng(3).normal(size=(len(source), 1))
    deep_source, deep_target = np.concatenate([source, depth], 1), np.concatenate([target, -depth], 1)
    np.testing.assert_array_equal(sampling_map(deep_source, deep_target, SIZE), sampling_map(source, target, SIZE))


def test_border_points_are_distinct_and_on_the_border() -> None:
    points = border(SIZE)
    assert len(np.unique(points, axis=0)) == len(points) == 32
    assert np.isin(points, [0, SIZE]).any(1).all() and {(0, 0), (SIZE, 0), (0, SIZE), (SIZE, SIZE)} <= set(map(tuple, points))


def test_rows_are_spread_over_frames_with_a_face() -> None:
    found = np.ones(11, bool)
    np.testing.assert_array_equal(spread(found, 4), [1, 4, 7, 10])
    np.testing.assert_array_equal(spread(found, 99), np.arange(1, 11))
    found[[1, 10]] = False
    np.testing.assert_array_equal(spread(found, 2), [2, 9])


def test_the_run_is_the_middle_one_without_gaps() -> None:
    found = np.ones(21, bool)
    np.testing.assert_array_equal(middle_run(found, 5), [8, 9, 10, 11, 12])
    found[10] = False
    assert list(middle_run(found, 5)) in ([5, 6, 7, 8, 9], [11, 12, 13, 14, 15])
    assert len(middle_run(found, 11)) == 0 and len(middle_run(found, 0)) == 0


def uniform_score(value: float, **changes: float) -> Score:
    values = {item.name: value for item in fields(Score)} | {"missing": 0} | changes
    return Score(**values)  # type: ignore[arg-type]


def clip_result(name: str, **scores: Score) -> ClipResult:
    named = {REPEATED: scores["repeated"], WARP: scores["warp"], METHOD: scores["ours"]}
    return ClipResult(clip=name, frames=8, untracked=1, scores=named, source_psnr=30.0, tracking=10.0, building=100.0, animating=50.0)


def two_clips() -> list[ClipResult]:
    """Lead over the warp, the better baseline: 1 and 3 in every quality; AKD a tenth, AED six tenths of the repeated frame's."""
    repeated, warped = uniform_score(10, akd=20, aed=0.1), uniform_score(12)
    return [
        clip_result("a", repeated=repeated, warp=warped, ours=uniform_score(13, akd=1, aed=0.05)),
        clip_result("b", repeated=repeated, warp=warped, ours=uniform_score(15, akd=3, aed=0.07, missing=2)),
    ]


def test_means_are_over_clips_and_skip_what_is_not_defined() -> None:
    mean = mean_score([uniform_score(1, akd=math.nan, missing=3), uniform_score(4, akd=6, missing=2)])
    assert (mean.psnr, mean.akd, mean.missing) == (2.5, 6.0, 5)
    assert math.isnan(mean_score([uniform_score(1, apd=math.nan)]).apd)


def test_summary_of_worked_numbers() -> None:
    summary = summarise(two_clips(), METHOD)
    assert (summary.clips, summary.frames, summary.untracked) == (2, 16, 2)
    assert (summary.means[METHOD].psnr, summary.means[METHOD].akd, summary.means[METHOD].missing) == (14.0, 2.0, 2)
    for lead in summary.intervals:
        assert (lead.opponent, lead.mean, lead.low, lead.high) == (WARP, 2.0, 1.0, 3.0)  # a quarter of the resamples hold one clip only
    assert [goal.reached for goal in summary.goals] == [True, False, *[True] * 6]
    assert summary.goals[0].value == pytest.approx(0.1) and summary.goals[1].value == pytest.approx(0.6)
    with pytest.raises(ValueError, match="no clip"):
        summarise([], METHOD)


def test_the_better_baseline_is_chosen_for_each_metric() -> None:
    results = [replace(r, scores={**r.scores, REPEATED: replace(r.scores[REPEATED], ssim_head=14.5)}) for r in two_clips()]
    leads = {lead.metric: lead for lead in summarise(results, METHOD).intervals}
    assert (leads["ssim_head"].opponent, leads["ssim_head"].mean) == (REPEATED, -0.5)
    assert leads["psnr_head"].opponent == WARP


def test_bootstrap_interval_of_many_clips_is_that_of_the_normal_law() -> None:
    leads = np.random.default_rng(5).normal(1.0, 2.0, 400)
    base = uniform_score(0)
    results = [clip_result(str(i), repeated=base, warp=base, ours=uniform_score(float(lead))) for i, lead in enumerate(leads)]
    lead = summarise(results, METHOD).intervals[0]
    half = 1.96 * leads.std() / math.sqrt(len(leads))
    assert lead.mean == pytest.approx(leads.mean())
    assert lead.low == pytest.approx(leads.mean() - half, abs=0.02) and lead.high == pytest.approx(leads.mean() + half, abs=0.02)


def test_a_still_clip_reaches_no_share() -> None:
    means = {REPEATED: uniform_score(0), WARP: uniform_score(0), METHOD: uniform_score(0)}
    assert not any(goal.reached for goal in goals(means, METHOD, []))


def test_a_goal_on_the_line_is_reached_but_an_equal_score_is_no_lead() -> None:
    means = {REPEATED: uniform_score(16, aed=20), WARP: uniform_score(16), METHOD: uniform_score(16, akd=2, aed=11)}
    assert [goal.reached for goal in goals(means, METHOD, [])] == [True, True]
    equal = [clip_result("a", repeated=uniform_score(3), warp=uniform_score(3), ours=uniform_score(3))]
    assert not any(goal.reached for goal in summarise(equal, METHOD).goals)


def test_tables() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
    text = markdown(summarise(two_clips(), METHOD))
    assert "| ours | 14.00 | 14.0000 | 14.00 | 14.0000 | 14.00 | 14.0000 | 2.00 | 0.0600 | 14.00 | 14.00 | 2 |" in text
    assert "| ours | +4.00 | +4.0000 | +4.00 | +4.0000 | +4.00 | +4.0000 | x 0.100 | x 0.600 | x 1.400 | x 1.400 |" in text
    assert "| PSNR | 2D warp | +2.000 | +1.000 to +3.000 |" in text
    assert "| AED / that of the repeated frame | 0.600 | <= 0.550 | no |" in text
    nothing = [clip_result("a", **dict.fromkeys(("repeated", "warp", "ours"), uniform_score(5, jitter=math.nan)))]
    assert "| 5.00 | - | 0 |" in markdown(summarise(nothing, METHOD))


def crop() -> FaceCrop:
    intrinsics = np.array([[3.0 * SIZE, 0, SIZE / 2], [0, 3.0 * SIZE, SIZE / 2], [0, 0, 1]])
    pose = np.diag([1.0, -1, -1, 1])
    pose[2, 3] = 100
    points = _project(canonical_face().vertices, pose, intrinsics)
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    mesh = canonical_face().vertices
    return FaceCrop(
        image=image,
        landmarks=points,
        blendshapes=np.zeros(52),
        mesh=mesh,
        head_to_camera=pose,
        intrinsics=intrinsics,
        source_to_crop=np.eye(3),
    )


def _project(vertices: FloatArray, pose: FloatArray, intrinsics: FloatArray) -> FloatArray:
    """Landmarks as the landmarker gives them: z in the scale of x, relative to the head's origin."""
    points = vertices @ pose[:3, :3].T + pose[:3, 3]
    pixels = points @ intrinsics.T
    depth = (points[:, 2:] / pose[2, 3] - 1) * intrinsics[0, 0]
    return np.concatenate([pixels[:, :2] / pixels[:, 2:], depth], 1)


def test_distances_of_known_faces() -> None:
    source = crop()
    angle = math.radians(9)
    turned = source.head_to_camera.copy()
    turned[:3, :3] = turned[:3, :3] @ [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    face = Face(landmarks=_project(source.mesh, turned, source.intrinsics), blendshapes=np.full(52, 0.25))
    truth = Face(landmarks=source.landmarks, blendshapes=np.zeros(52))
    akd, aed, apd = distances(face, truth, source)
    height = np.ptp(truth.landmarks[:, :2], axis=0).max()
    assert akd == pytest.approx(100 * np.linalg.norm((face.landmarks - truth.landmarks)[:, :2], axis=1).mean() / height)
    assert aed == pytest.approx(0.25)
    assert apd == pytest.approx(3.0, abs=1e-6)  # 9 degrees of yaw, none of pitch and roll
    assert distances(truth, truth, source) == (0, 0, 0)


class Fake(FaceTracker):
    """A tracker that reads the face's place from the first pixel's colour; 255 hides the face."""

    def __init__(self) -> None:
        """No model is needed."""

    def follow(self, image: ByteImage, previous: Face) -> Face | None:
        hidden = image[0, 0, 0] == 255
        return None if hidden else Face(landmarks=previous.landmarks + float(image[0, 0, 0]), blendshapes=np.zeros(52))

    def faces(self, image: ByteImage) -> list[Face]:
        return []


def _pictures(values: list[int]) -> list[npt.NDArray[np.uint8]]:
    return [np.full((4, 4, 3), value, np.uint8) for value in values]


def test_shake_is_the_jitter_of_what_the_tracker_sees() -> None:
    near = [np.zeros((478, 3))] * 4
    assert shake(Fake(), _pictures([0, 2, 0, 2]), near) == pytest.approx(4 * math.sqrt(2))
    assert shake(Fake(), _pictures([1, 2, 3, 4]), near) == pytest.approx(0)
    assert math.isnan(shake(Fake(), _pictures([1, 255, 3, 4]), near))
    assert math.isnan(shake(Fake(), [], []))


def test_pick_keeps_the_focal_length() -> None:
    expression = torch.arange(10.0).reshape(5, 2)
    motion = Motion(
        expression=expression,
        head_to_camera=torch.eye(4).expand(5, 4, 4),
        times=torch.arange(5.0),
        found=torch.ones(5, dtype=torch.bool),
        focal=torch.tensor(3.0),
    )
    picked = pick(motion, np.array([0, 3]))
    assert torch.equal(picked.expression, expression[[0, 3]]) and torch.equal(picked.times, torch.tensor([0.0, 3.0]))
    assert picked.focal == 3.0


def test_contact_sheet_has_a_row_for_each_method() -> None:
    rows = [_pictures([10 * row + column for column in range(12)]) for row in range(3)]
    image = sheet(rows)
    assert image.shape == (12, 32, 3)
    np.testing.assert_array_equal(image[::4, ::4, 0] - [[0], [10], [20]], [[0, 2, 3, 5, 6, 8, 9, 11]] * 3)


def test_json_has_no_nan() -> None:
    assert _without_nan({"a": [math.nan, 1.0], "b": {"c": math.nan}, "d": "x"}) == {"a": [None, 1.0], "b": {"c": None}, "d": "x"}


def test_another_basis_moves_the_face_by_its_own_components(tmp_path: Path) -> None:
    tensors = load_file(ASSET)
    save_file({**tensors, "components": 2 * tensors["components"]}, tmp_path / "basis.safetensors")
    shipped, other = FaceModel(), FaceModel(basis=tmp_path / "basis.safetensors")
    expression = torch.linspace(-1, 1, shipped.expression_size)
    part = torch.einsum("c,cvk->vk", expression[52:], shipped.components)
    torch.testing.assert_close(other.displacement(expression), shipped.displacement(expression) + part)


STRIDE = 6
"""Pixels that the portrait slides from frame to frame."""


def test_one_clip_from_end_to_end(tmp_path: Path) -> None:
    """A portrait that slides: the repeated frame is wrong by the way gone, the others follow it."""
    pictures = [np.ascontiguousarray(astronaut()[:352, 24 + STRIDE * step : 376 + STRIDE * step]) for step in range(6)]
    with VideoWriter(tmp_path / "slide.mp4", Fraction(25), (352, 352)) as writer:
        for picture in pictures:
            writer.write(picture)
    with TalkingHead.from_pretrained(size=96) as head:
        result, rows = measure(head, tmp_path / "slide.mp4", METHOD, Choice(frames=2, run=3))
        height = landmark_bounds(head.tracker.faces(pictures[0])[0].landmarks)[1]
    assert (result.clip, result.frames, result.untracked) == ("slide.mp4", 2, 0)
    assert list(result.scores) == [REPEATED, WARP, METHOD] and [len(row) for row in rows] == [2] * 4
    assert 20 < result.source_psnr < 60
    repeated, warped, ours = result.scores.values()
    assert repeated.akd == pytest.approx(100 * STRIDE * (1 + 5) / 2 / height, rel=0.1)
    for score in (warped, ours):
        assert score.akd < 0.25 * repeated.akd and score.psnr_face > repeated.psnr_face + 3 and score.ssim_face > repeated.ssim_face + 0.1
    for score in (repeated, warped, ours):
        assert score.missing == 0 and score.apd < 5 and score.aed < 0.1 and score.jitter > 0


def test_command_line_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line, what in (
        (["--clips", str(tmp_path / "no")], "no such folder"),
        (["--clips", str(tmp_path), "--basis", "no"], "no such file"),
    ):
        with pytest.raises(SystemExit) as stop:
            arguments_of(line)
        assert stop.value.code == 2 and what in capsys.readouterr().err
