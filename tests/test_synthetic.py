"""Synthetic heads against closed forms: surfaces, depth, normals, labels, landmarks, pose, sound, and the data sets made of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_toolkit.checks.verify import verify
from datasets_toolkit.errors import UserError
from datasets_toolkit.faces.detection import FaceTracker, reference_box
from datasets_toolkit.faces.head_pose import canonical_face, clip_camera, euler_degrees, head_pose
from datasets_toolkit.media.audio_reader import read_audio
from datasets_toolkit.media.video import probe, read_frames
from datasets_toolkit.recipes import coverage, recipe_for
from datasets_toolkit.schema import BLENDSHAPES, HEAD_REGIONS, FloatArray, Region
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.synthetic import Person, Picture, Pose, SyntheticClip, build_synthetic, make_clip, make_person, render, write_videos
from datasets_toolkit.synthetic.clip import make_clips
from datasets_toolkit.synthetic.geometry import NECK_CENTRE, NECK_HEIGHT, Part, camera_rays, trace
from datasets_toolkit.synthetic.motion import rotation
from datasets_toolkit.synthetic.radial import COLUMNS, ROWS, RadialField, Shell, angles, directions, fit_radius
from datasets_toolkit.synthetic.rays import intersect
from datasets_toolkit.synthetic.regions import inside
from datasets_toolkit.synthetic.speech import RATE, speak

SWAP = {Region.LEFT_BROW: Region.RIGHT_BROW, Region.LEFT_EYE: Region.RIGHT_EYE, Region.LEFT_EAR: Region.RIGHT_EAR}
SWAP |= {right: left for left, right in SWAP.items()}


def scores(**values: float) -> FloatArray:
    result = np.zeros(len(BLENDSHAPES))
    for name, value in values.items():
        result[BLENDSHAPES.index(name)] = value
    return result


def standing(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0, x: float = 0.4) -> Pose:
    head = np.eye(4)
    head[:3, :3], head[:3, 3] = rotation(yaw, pitch, roll), [x, 1.0, 118.0]
    trunk = np.eye(4)
    trunk[:3, :3], trunk[:3, 3] = rotation(0.0, 0.0, 0.0), head[:3, 3]
    return Pose(head=head, neck=trunk, torso=trunk)


def camera(size: int) -> FloatArray:
    return np.array([[3.6 * size, 0, size / 2], [0, 3.6 * size, size / 2], [0, 0, 1.0]])


@pytest.fixture(scope="module")
def person() -> Person:
    return make_person(2)


@pytest.fixture(scope="module")
def picture(person: Person) -> Picture:
    return render(person, scores(jawOpen=0.5), standing(18.0, -5.0, 4.0), camera(160), 160)


@pytest.fixture(scope="module")
def clip() -> SyntheticClip:
    return make_clip(make_person(4), 1, 50, 96)


# --------------------------------------------------------------------------------------------------------------- surfaces


def test_a_field_is_smooth_and_its_derivatives_are_true() -> None:
    random = np.random.default_rng(0)
    field = RadialField(random.normal(size=(ROWS, COLUMNS, 2)))
    longitude, elevation = random.uniform(-np.pi, np.pi, 200), random.uniform(-1.45, 1.45, 200)
    _, by_longitude, by_elevation = field(longitude, elevation)
    h = 1e-6
    np.testing.assert_allclose(by_longitude, (field(longitude + h, elevation)[0] - field(longitude - h, elevation)[0]) / (2 * h), atol=1e-6)
    np.testing.assert_allclose(by_elevation, (field(longitude, elevation + h)[0] - field(longitude, elevation - h)[0]) / (2 * h), atol=1e-6)
    edge = np.full(200, np.pi)
    np.testing.assert_allclose(field(edge - 1e-9, elevation)[0], field(1e-9 - edge, elevation)[0], atol=1e-6)
    pole = np.full(200, np.pi / 2 - 1e-9)  # over the pole and down the other side
    np.testing.assert_allclose(
        field(longitude, pole)[0], field(np.where(longitude > 0, longitude - np.pi, longitude + np.pi), pole)[0], atol=1e-6
    )


def test_a_fitted_field_passes_through_an_ellipsoid() -> None:
    random = np.random.default_rng(1)
    radii = np.array([7.0, 10.0, 8.5])
    unit = random.normal(size=(4000, 3))
    places = unit / np.linalg.norm(unit / radii, axis=-1, keepdims=True)
    values = fit_radius(places, np.ones(len(places)))
    rays = directions(random.uniform(-3, 3, 300), random.uniform(-1.4, 1.4, 300))
    shell = Shell(centre=np.zeros(3), skull=values, hair=np.full((ROWS, COLUMNS), -1.0))
    np.testing.assert_allclose(shell.radius(*angles(rays)), 1 / np.linalg.norm(rays / radii, axis=-1), atol=0.01)


def test_rays_meet_a_sphere_where_they_must() -> None:
    centre, radius = np.array([0.5, -1.0, 0.3]), 8.0
    shell = Shell(centre=centre, skull=np.full((ROWS, COLUMNS), radius), hair=np.full((ROWS, COLUMNS), -1.0))
    origin = np.array([3.0, 2.0, 90.0])
    rays = np.random.default_rng(2).normal(size=(500, 3)) * [0.09, 0.09, 0] + [0, 0, -1]
    met = intersect(shell, origin, rays)
    a, b, c = (rays**2).sum(-1), rays @ (origin - centre), ((origin - centre) ** 2).sum() - radius**2
    root = b**2 - a * c
    assert set(met.ray) == set(np.flatnonzero(root > 0))
    np.testing.assert_allclose(met.t, (-b - np.sqrt(root.clip(0)))[met.ray] / a[met.ray], atol=1e-8)
    np.testing.assert_allclose(met.gradient, (met.place - centre) / radius, atol=1e-9)


def test_rays_meet_a_head_first_where_a_slow_march_finds_it(person: Person) -> None:
    shell, pose, size = person.shell(scores(jawOpen=0.6)), standing(50.0, 10.0, 5.0), 32
    y, x = np.mgrid[:size, :size] + 0.5
    rays = camera_rays(camera(size), np.stack([x.ravel(), y.ravel()], -1)) @ pose.head[:3, :3]
    origin = -pose.head[:3, :3].T @ pose.head[:3, 3]
    met = intersect(shell, origin, rays)
    t = np.full(len(rays), np.inf)
    t[met.ray] = met.t
    steps = np.arange(96.0, 140.0, 0.02)
    for number, ray in enumerate(rays):
        level = shell.level(origin + steps[:, None] * ray)[0]
        crossings = np.flatnonzero((level[:-1] > 0) & (level[1:] <= 0))
        if len(crossings):
            assert steps[crossings[0]] - 1e-6 <= t[number] <= steps[crossings[0] + 1] + 1e-6
        else:
            assert np.isinf(t[number]) or abs(level.min()) < 1e-3  # a chord shorter than the march's step


# ---------------------------------------------------------------------------------------------------------------- pictures


def test_depth_lies_on_the_surfaces(person: Person, picture: Picture) -> None:
    pose, rays = standing(18.0, -5.0, 4.0), camera_rays(camera(160), _centres(160))
    hits = trace(person, person.shell(scores(jawOpen=0.5)), pose, rays)
    np.testing.assert_array_equal(np.where(np.isfinite(hits.depth), hits.depth, 0).reshape(160, 160), picture.depth)
    points = hits.depth[:, None] * rays
    on_shell = hits.part == Part.SHELL
    in_head = (points[on_shell] - pose.head[:3, 3]) @ pose.head[:3, :3]
    assert np.abs(person.shell(scores(jawOpen=0.5)).level(in_head)[0]).max() < 1e-7
    on_neck = hits.part == Part.NECK
    radii = np.array([person.look.neck_radius, NECK_HEIGHT, person.look.neck_radius])
    in_neck = (points[on_neck] - pose.neck[:3, 3]) @ pose.neck[:3, :3]
    np.testing.assert_allclose((((in_neck - NECK_CENTRE) / radii) ** 2).sum(-1), 1, atol=1e-9)
    assert on_neck.sum() > 100


def test_normals_are_the_derivative_of_depth(person: Person) -> None:
    pixels = _centres(64)
    scene = (person, person.shell(scores(mouthSmileLeft=0.5)), standing(-25.0, 8.0))
    rays = {step: camera_rays(camera(64), pixels + np.array(step)) for step in ((0, 0), (1e-4, 0), (0, 1e-4), (-1e-4, 0), (0, -1e-4))}
    hits = {step: trace(*scene, ray) for step, ray in rays.items()}
    points = {step: np.where(np.isfinite(hit.depth), hit.depth, 0)[:, None] * rays[step] for step, hit in hits.items()}
    right, down = points[1e-4, 0] - points[-1e-4, 0], points[0, 1e-4] - points[0, -1e-4]
    expected = np.cross(down, right)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True).clip(1e-30)
    middle = hits[0, 0]
    smooth = middle.part > 0
    for hit in hits.values():  # not across an outline or the edge of the hair, where depth has no derivative
        smooth &= (hit.part == middle.part) & ((hit.hair > 0) == (middle.hair > 0))
        smooth[smooth] = np.abs(hit.depth[smooth] - middle.depth[smooth]) < 0.01
    smooth &= (middle.normal * rays[0, 0]).sum(-1) < -0.05
    assert smooth.sum() > 900
    np.testing.assert_allclose(middle.normal[smooth], expected[smooth], atol=2e-4)


def test_normals_are_unit_and_face_the_camera(picture: Picture) -> None:
    known = picture.depth > 0
    length = np.linalg.norm(picture.normals, axis=-1)
    np.testing.assert_allclose(length[known], 1, atol=1e-12)
    assert (length[~known] == 0).all()
    rays = camera_rays(camera(160), _centres(160)).reshape(160, 160, 3)
    assert ((picture.normals * rays).sum(-1)[known] < 0).all()
    assert (known == (picture.labels != Region.BACKGROUND)).all()


def test_no_pixel_of_a_person_is_lost() -> None:
    for number, clip in enumerate(make_clips(5, 4, 160, 11, 5)):
        background = (clip.frame(number % 4).labels == Region.BACKGROUND).astype(np.uint8)
        _, parts = cv2.connectedComponents(background, connectivity=4)
        assert set(np.unique(parts)) - set(np.unique(parts[0])) <= {0} or np.bincount(parts.ravel())[1:].min() > 50


def test_landmarks_lie_on_the_surface_and_show_where_they_project(person: Person) -> None:
    now, pose, matrix = scores(jawOpen=0.3, mouthSmileRight=0.4), standing(), camera(200)
    points = person.landmarks(now)
    shell = person.shell(now)
    level, _, hair = shell.level(points)
    bare = hair < 0
    assert np.abs(level[bare]).max() < 1e-9
    assert bare.sum() > 440  # some lie under the hair
    drawn = render(person, now, pose, matrix, 200).landmarks
    z = points @ pose.head[2, :3] + pose.head[2, 3]
    np.testing.assert_allclose(drawn[:, 2], matrix[0, 0] * (z / pose.head[2, 3] - 1), atol=1e-9)
    hits = trace(person, shell, pose, camera_rays(matrix, drawn[:, :2]))
    front = bare & ((np.abs(points[:, 0]) < 5) & (points[:, 1] > -7))
    seen = front & (hits.depth > z - 0.02)
    assert seen.sum() > 0.9 * front.sum()
    np.testing.assert_allclose(hits.depth[seen], z[seen], atol=1e-6)


def test_features_lie_where_the_landmarks_say(person: Person) -> None:
    drawn = render(person, scores(jawOpen=0.8), standing(), camera(256), 256)
    labels, marks = drawn.labels, drawn.landmarks[:, :2]

    def at(*indices: int) -> int:
        x, y = marks[list(indices)].mean(0)
        return int(labels[int(y), int(x)])

    assert (at(468), at(473)) == (Region.RIGHT_EYE, Region.LEFT_EYE)
    assert marks[473, 0] > marks[468, 0]  # the person's left is on the right of the picture
    assert (at(13, 14), at(0, 13), at(14, 17), at(4)) == (Region.MOUTH, Region.UPPER_LIP, Region.LOWER_LIP, Region.NOSE)
    assert (at(105, 66), at(334, 296)) == (Region.RIGHT_BROW, Region.LEFT_BROW)
    assert at(50) == at(280) == at(152, 200) == Region.SKIN
    assert {int(label) for label in np.unique(labels)} >= {Region.HAIR, Region.NECK, Region.TORSO, Region.LEFT_EAR, Region.RIGHT_EAR}
    assert labels[30:, :].max() == Region.TORSO
    columns = {region: np.argwhere(labels == region)[:, 1].mean() for region in (Region.LEFT_EAR, Region.RIGHT_EAR)}
    assert columns[Region.LEFT_EAR] > columns[Region.RIGHT_EAR]


def test_mouths_open_and_eyes_close(person: Person) -> None:
    def count(region: Region, **values: float) -> int:
        return int((render(person, scores(**values), standing(), camera(160), 160).labels == region).sum())

    gaps = [count(Region.MOUTH, jawOpen=value) for value in (0.0, 0.3, 0.6, 1.0)]
    assert gaps[0] < 0.35 * gaps[1]  # a line between closed lips
    assert gaps == sorted(gaps)
    assert gaps[-1] > 60
    assert count(Region.LEFT_EYE, eyeBlinkLeft=1.0) < 0.2 * count(Region.LEFT_EYE)
    assert count(Region.RIGHT_EYE, eyeBlinkLeft=1.0) == count(Region.RIGHT_EYE)


@settings(max_examples=8)
@given(st.floats(-35, 35), st.floats(-15, 15), st.floats(-12, 12), st.floats(0, 1), st.floats(0, 1))
def test_a_mirrored_pose_gives_the_mirrored_picture(yaw: float, pitch: float, roll: float, jaw: float, smile: float) -> None:
    person, size = _PERSON, 40
    matrix = camera(size)
    poses = [standing(sign * yaw, pitch, sign * roll, x=0.0) for sign in (1, -1)]
    one = render(person, scores(jawOpen=jaw, mouthSmileLeft=smile, eyeBlinkRight=smile), poses[0], matrix, size)
    other = render(person, scores(jawOpen=jaw, mouthSmileRight=smile, eyeBlinkLeft=smile), poses[1], matrix, size)
    depth, normals = other.depth[:, ::-1], other.normals[:, ::-1] * [-1, 1, 1]
    swapped = np.array([SWAP.get(region, region) for region in Region], np.uint8)[other.labels[:, ::-1]]
    same = np.abs(one.depth - depth) < 1e-5
    assert same.mean() > 0.998  # an outline may fall on the other side of a pixel's centre
    assert (one.labels == swapped)[same].mean() > 0.998
    smooth = same & (one.labels == swapped)
    assert (np.abs(one.normals - normals).max(-1)[smooth] < 1e-4).mean() > 0.998
    mirrored = other.landmarks[canonical_face().mirror] * [-1, 1, 1] + [size, 0, 0]
    np.testing.assert_allclose(one.landmarks, mirrored, atol=1e-6)


_PERSON = make_person(6)


def test_the_tracker_recovers_the_pose_from_the_landmarks() -> None:
    matrix = camera(256)
    for seed, angles_ in enumerate([(0.0, 0.0, 0.0), (25.0, -10.0, 5.0), (-35.0, 12.0, -9.0)]):
        person, pose = make_person(seed), standing(*angles_)
        still = head_pose(render(person, scores(), pose, matrix, 16).landmarks, matrix)
        np.testing.assert_allclose(euler_degrees(still.head_to_camera), angles_, atol=0.02)
        np.testing.assert_allclose(still.head_to_camera[:3, 3], pose.head[:3, 3], atol=0.02)
        np.testing.assert_allclose(still.mesh, person.landmarks(scores()), atol=0.02)
        speaking = render(person, scores(jawOpen=0.8, mouthSmileLeft=0.6, browInnerUp=0.7), pose, matrix, 16)
        found = head_pose(speaking.landmarks, matrix).head_to_camera
        np.testing.assert_allclose(euler_degrees(found), angles_, atol=1.5)  # an expression moves the face a little
        np.testing.assert_allclose(found[:3, 3], pose.head[:3, 3], atol=1.5)


@given(st.floats(-80, 80), st.floats(-80, 80), st.floats(-80, 80))
def test_rotations_have_the_angles_they_were_made_from(yaw: float, pitch: float, roll: float) -> None:
    pose = np.eye(4)
    pose[:3, :3] = rotation(yaw, pitch, roll)
    np.testing.assert_allclose(euler_degrees(pose), [yaw, pitch, roll], atol=1e-6)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(3, 12))
def test_inside_agrees_with_another_implementation(seed: int, corners: int) -> None:
    random = np.random.default_rng(seed)
    polygon = np.stack([np.cos(turn := np.sort(random.uniform(0, 2 * np.pi, corners))), np.sin(turn)], -1) * random.uniform(
        0.3, 1, (corners, 1)
    )
    points = random.uniform(-1.1, 1.1, (60, 2))
    ring = polygon.astype(np.float32)[:, None]
    signed = np.array([cv2.pointPolygonTest(ring, (float(x), float(y)), True) for x, y in points])
    clear = np.abs(signed) > 1e-4
    np.testing.assert_array_equal(inside(points, polygon)[clear], signed[clear] > 0)


def test_soft_edges_average_to_the_hard_ones(person: Person) -> None:
    hard, soft = (render(person, scores(), standing(), camera(48), 48, samples=samples) for samples in (1, 3))
    np.testing.assert_array_equal(hard.labels, soft.labels)
    np.testing.assert_array_equal(hard.depth, soft.depth)
    assert set(np.unique(hard.matte)) == {0.0, 1.0}
    assert ((soft.matte > 0) & (soft.matte < 1)).sum() > 40
    assert np.abs(soft.matte - hard.matte).mean() < 0.02
    assert np.abs(soft.image.astype(float) - hard.image).mean() < 8


# ------------------------------------------------------------------------------------------------------- motion and sound


def test_the_clip_camera_is_the_camera(clip: SyntheticClip) -> None:
    first = clip.frame(0)
    np.testing.assert_allclose(clip_camera(reference_box(first.landmarks)), clip.intrinsics, rtol=1e-6)
    np.testing.assert_allclose([euler_degrees(pose.head) for pose in clip.poses], clip.angles, atol=1e-9)
    assert 95 < clip.poses[0].head[2, 3] < 145  # "a head at about 1.2 m"


def test_the_mouth_follows_the_sound() -> None:
    clip = make_clip(make_person(4), 3, 250, 64)
    loud = np.array([np.sqrt(np.mean(part.astype(float) ** 2)) for part in np.array_split(clip.speech.samples, 250)])
    jaw = clip.scores[:, BLENDSHAPES.index("jawOpen")]
    middle = clip.speech.at(clip.times + 0.02)[0]
    assert np.corrcoef(loud, middle)[0, 1] > 0.85
    assert np.corrcoef(loud, jaw)[0, 1] > 0.75  # half a frame apart
    lips = np.array([np.linalg.norm(np.diff(clip.person.landmarks(row)[[13, 14]], axis=0)) for row in clip.scores])
    assert np.corrcoef(lips, jaw)[0, 1] > 0.9
    quiet = loud < 0.02 * loud.max()
    assert quiet.sum() > 5
    assert jaw[quiet].max() < 0.35


def test_speech_is_speech_like() -> None:
    speech = speak(4.0, 150.0, np.random.default_rng(0))
    assert speech.samples.dtype == np.int16
    assert len(speech.samples) == 4 * RATE
    assert 3000 < np.abs(speech.samples).max() < 32767
    power = np.abs(np.fft.rfft(speech.samples)) ** 2
    hertz = np.fft.rfftfreq(len(speech.samples), 1 / RATE)
    assert power[(hertz > 120) & (hertz < 4200)].sum() > 0.95 * power.sum()
    peaks = (np.diff(np.sign(np.diff(speech.envelope))) < 0).sum()
    assert 2 <= peaks / 4 <= 6  # syllables a second
    assert (speech.envelope == 0).mean() > 0.05  # and pauses
    assert (speech.envelope >= 0).all() and (speech.envelope <= 1).all()


def test_everything_follows_from_the_seed() -> None:
    one, other, third = (make_clip(make_person(seed), 0, 3, 32) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.frame(2).image, other.frame(2).image)
    np.testing.assert_array_equal(one.speech.samples, other.speech.samples)
    assert (one.frame(2).image != third.frame(2).image).any()
    assert (one.speech.samples != third.speech.samples).any()
    again = make_clip(one.person, 1, 3, 32)
    assert (again.scores != one.scores).any()


# --------------------------------------------------------------------------------------------------------------- data sets


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return build_synthetic(tmp_path_factory.mktemp("synthetic") / "set", clips=4, frames=5, size=64, seed=9, persons=3)


def _hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_a_built_set_keeps_every_promise(dataset: ShardReader) -> None:
    checks = verify(dataset)
    assert [check.name for check in checks if check.faults] == []
    assert sum(check.tested for check in checks if check.name in ("decoding", "normals", "pose")) == 60


def test_a_built_set_holds_the_exact_labels(dataset: ShardReader) -> None:
    planned = {clip.name: clip for clip in make_clips(4, 5, 64, 9, 3)}
    people: dict[str, set[str]] = {}
    for row in range(20):
        sample = dataset.sample(row)
        meta = sample.meta
        clip = planned[meta.source.removeprefix("synthetic-").rsplit("-", 1)[0]]
        truth = clip.frame(meta.index)
        head = np.isin(truth.labels, HEAD_REGIONS)
        np.testing.assert_array_equal(sample.parsing, truth.labels)
        assert sample.depth is not None and sample.normals is not None and sample.audio is not None and sample.landmarks is not None
        np.testing.assert_allclose(sample.depth[head], truth.depth[head], atol=0.01)
        assert (sample.depth[~head] == 0).all()
        np.testing.assert_allclose(sample.landmarks, truth.landmarks, atol=1e-3)
        assert np.median((sample.normals * truth.normals).sum(-1)[head]) > 0.999
        np.testing.assert_array_equal(meta.head_to_camera, clip.poses[meta.index].head)
        np.testing.assert_array_equal(meta.blendshapes, clip.scores[meta.index])
        np.testing.assert_array_equal(sample.audio, clip.speech.samples[640 * meta.index : 640 * (meta.index + 1)])
        people.setdefault(dataset.index.column("split")[row].as_py(), set()).add(meta.person)
    assert {split: len(names) for split, names in people.items()} == {"train": 1, "test": 1, "val": 1}
    assert len(set().union(*people.values())) == 3


def test_a_set_is_made_of_the_same_bytes_each_time(dataset: ShardReader, tmp_path: Path) -> None:
    assert dataset.storage.local is not None
    build_synthetic(tmp_path / "again", clips=4, frames=5, size=64, seed=9, persons=3)
    assert _hashes(tmp_path / "again") == _hashes(dataset.storage.local)
    build_synthetic(tmp_path / "other", clips=1, frames=2, size=64, seed=10, persons=1)
    assert not set(_hashes(tmp_path / "other").values()) & set(_hashes(dataset.storage.local).values())


def test_mistakes_are_told(dataset: ShardReader, tmp_path: Path) -> None:
    assert dataset.storage.local is not None
    with pytest.raises(UserError, match=r"dataset\.json: a data set is there already; choose"):
        build_synthetic(dataset.storage.local, clips=1)
    for numbers in ({"clips": 0}, {"frames": 0}, {"size": -1}, {"persons": 0}):
        with pytest.raises(UserError, match="must be positive"):
            build_synthetic(tmp_path / "never", **numbers)
        with pytest.raises(UserError, match="must be positive"):
            write_videos(tmp_path / "never", **numbers)
    assert not list(tmp_path.iterdir())


def test_videos_carry_the_pictures_and_the_sound(tmp_path: Path, tracker: FaceTracker) -> None:
    folder = tmp_path / "videos"
    paths = write_videos(folder, clips=2, frames=10, size=224, seed=1, persons=1, samples=1)
    found = recipe_for("synthetic").discover(folder)
    assert (found.expected, [source.path for source in found.sources]) == (2, [str(path) for path in paths])
    assert {source.person for source in found.sources} == {"head-1000"}
    assert "100.0 %" in coverage(found)
    info = probe(paths[0])
    assert (info.width, info.height, float(info.fps), info.has_audio) == (224, 224, 25.0, True)
    clip = make_clips(2, 10, 224, 1, 1, margin=1.35)[0]
    frames = list(read_frames(paths[0]))
    assert [frame.time for frame in frames] == pytest.approx([index / 25 for index in range(10)])
    assert np.abs(frames[7].image.astype(float) - clip.frame(7).image).mean() < 4
    heard = read_audio(paths[0]).samples.astype(float)
    size = min(len(heard), len(clip.speech.samples))
    assert np.corrcoef(heard[:size], clip.speech.samples[:size])[0, 1] > 0.9
    (face,) = tracker.faces(frames[7].image)  # the heads are face-like enough for the landmarker
    apart = np.linalg.norm(face.landmarks[:, :2] - clip.frame(7).landmarks[:, :2], axis=-1)
    assert apart.mean() < 0.06 * np.ptp(clip.frame(7).landmarks[:, 1])
    paths[1].write_bytes(b"")
    assert recipe_for("synthetic").discover(folder).broken == [(paths[1].name, f"empty: {paths[1].name} has no bytes")]


@pytest.mark.parametrize("content", ["{", "[]", '{"clips": [{"file": "../a.mp4", "person": "p"}]}'])
def test_the_list_of_videos_is_not_trusted(tmp_path: Path, content: str) -> None:
    (tmp_path / "synthetic.json").write_text(content)
    with pytest.raises(UserError, match=r"synthetic\.json.*make .* again"):
        recipe_for("synthetic").discover(tmp_path)


def _centres(size: int) -> FloatArray:
    y, x = np.mgrid[:size, :size] + 0.5
    return np.stack([x.ravel(), y.ravel()], -1)
