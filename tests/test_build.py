"""A data set built from small videos: what it holds, what is made again and what is not, and what becomes of bad sources."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from build_scenes import SIDE, blank, digests, face_picture, small_build, source, states, talking, write_video

from datasets_toolkit.build.executors import LocalExecutor
from datasets_toolkit.build.executors_cluster import RayExecutor, SlurmExecutor
from datasets_toolkit.build.recompute import recompute
from datasets_toolkit.checks.verify import verify
from datasets_toolkit.errors import UserError
from datasets_toolkit.faces.detection import FaceTracker
from datasets_toolkit.faces.tracking import track_clip
from datasets_toolkit.media.video import read_frames
from datasets_toolkit.recipes.base import Source
from datasets_toolkit.schema import ByteImage
from datasets_toolkit.shards.dataset_info import read_info
from datasets_toolkit.shards.shard_reader import ShardReader, read_table
from datasets_toolkit.shards.storage import Storage

TESTS = Path(__file__).parent
FAMILIES = {"image", "frame", "parsing", "depth", "normals", "audio"}


@pytest.fixture(scope="module")
def face(astronaut: ByteImage) -> ByteImage:
    return face_picture(astronaut)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, face: ByteImage) -> list[Path]:
    """One of 8 frames, one of 6 whose frames 2 and 3 show no face, and one that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    frames = talking(face, 6)
    frames[2:4] = [blank(1), blank(8)]
    (folder / "notes.mp4").write_bytes(b"these are only notes\n" * 100)
    whole = write_video(folder / "whole.mp4", talking(face, 8))
    return [whole, write_video(folder / "with_gap.mp4", frames), folder / "notes.mp4"]


def sources(videos: list[Path]) -> list[Source]:
    """All show the same person."""
    return [source(path, "eileen") for path in videos]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, videos: list[Path]) -> Path:
    out = tmp_path_factory.mktemp("built")
    summary = small_build(sources(videos), out)
    assert summary.counts["samples"] == 12
    return out


def test_every_promise_that_can_be_tested_holds(built: Path) -> None:
    checks = verify(ShardReader(built))
    assert [(check.name, check.examples) for check in checks if check.faults] == []
    assert {check.name: check.tested for check in checks}["decoding"] == 12


def test_the_manifest_tells_of_every_source(built: Path, videos: list[Path]) -> None:
    rows = {Path(row["path"]).name: row for row in ShardReader(built).sources.to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {"whole.mp4": "ok", "with_gap.mp4": "ok", "notes.mp4": "rejected"}
    whole = rows["whole.mp4"]
    assert (whole["width"], whole["height"], whole["frames"], whole["fps_num"], whole["fps_den"]) == (SIDE, SIDE, 8, 25, 1)
    assert whole["duration"] == pytest.approx(8 / 25)
    assert whole["problems"] == ["no sound"]
    assert whole["person"] == "eileen"
    assert rows["notes.mp4"]["problems"][0].startswith(f"{videos[2]}: not a readable video")


def test_a_frame_without_a_face_leaves_a_gap(built: Path) -> None:
    reader = ShardReader(built)
    row = next(row for row in reader.clips.to_pylist() if "gap" in row["clip"])
    assert (row["first"], row["last"], row["frames"], row["gaps"]) == (0, 5, 4, 2)
    assert row["gap_share"] == pytest.approx(2 / 6)
    index = [one for one in reader.index.to_pylist() if one["clip"] == row["clip"]]
    assert [one["index"] for one in index] == [0, 1, 4, 5]
    np.testing.assert_allclose([one["time"] for one in index], np.array([0, 1, 4, 5]) / 25)
    assert [one["key"] for one in index] == [f"{row['clip']}_{number:06d}" for number in (0, 1, 4, 5)]


def test_a_sample_is_what_inference_sees(built: Path, videos: list[Path], tracker: FaceTracker) -> None:
    """The first frame of a clip has the reference box of inference; smoothing moves it by less than a pixel."""
    reader = ShardReader(built)
    tracked = track_clip(read_frames(videos[0]), tracker)
    rows = [row for row, clip in enumerate(reader.index.column("clip").to_pylist()) if "whole" in clip]
    for place, row in enumerate(sorted(rows, key=lambda row: reader.index.column("index")[row].as_py())):
        meta = reader.sample(row, []).meta
        camera = np.linalg.solve(meta.source_to_crop, meta.intrinsics)
        np.testing.assert_allclose(camera, tracked.intrinsics, atol=1e-3)
        turn = meta.head_to_camera[:3, :3] @ tracked.head_to_camera[place, :3, :3].T
        assert np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))) < 2
        sample = reader.sample(row, ["landmarks"])
        assert sample.landmarks is not None
        back = (sample.landmarks[:, :2] - meta.source_to_crop[:2, 2]) / meta.source_to_crop[0, 0]
        assert np.abs(back - tracked.landmarks[place, :, :2]).max() < 1.5


def test_doing_it_again_does_nothing(built: Path, videos: list[Path]) -> None:
    before = states(built)
    summary = small_build(sources(videos), built)
    after = states(built)
    tables = {"sources.parquet", "clips.parquet", "index.parquet", "dataset.json"}  # written again, with the same bytes
    assert {name: state for name, state in after.items() if name not in tables} == {
        name: state for name, state in before.items() if name not in tables
    }
    assert summary.counts["track"] == summary.counts["annotate"] == 0


ENGINES = {
    "two workers": lambda folder: LocalExecutor(2),
    "ray": lambda folder: RayExecutor(workers=1),
    "slurm": lambda folder: SlurmExecutor(folder, workers=2, local=True),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_builds_the_same_bytes(
    built: Path, videos: list[Path], tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine != "two workers":
        pytest.importorskip("ray" if engine == "ray" else "submitit")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")]))
    with ENGINES[engine](tmp_path / "engine") as executor:
        small_build(sources(videos), tmp_path / "out", executor=executor)
    assert digests(tmp_path / "out") == digests(built)


def test_one_annotator_changes_its_own_column_only(videos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    small_build([source(videos[0])], out)
    units, members = states(out / "work"), column_bytes(out)
    recompute(str(out), "DepthNormals", ["annotators.2.init_args.smoothing=3.0"], executor=LocalExecutor(0))
    changed = {name.split("/")[0] for name in states(out / "work").keys() - units.keys()}
    assert changed == {"normals", "packed"}
    after = column_bytes(out)
    assert {name for name in after if after[name] != members[name]} == {"normals"}
    told = {one["family"]: one["parameters"] for one in read_info(Storage(out)).annotators}
    assert told["normals"] == {"smoothing": 3.0}
    assert not [check for check in verify(ShardReader(out)) if check.faults]


def test_recompute_makes_one_column_again(videos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    small_build([source(videos[0])], out)
    units, before = states(out / "work"), digests(out)
    recompute(str(out), "depth", executor=LocalExecutor(0))
    after = states(out / "work")
    assert {name.split("/")[0] for name in units if units[name] != after[name]} == {"depth"}
    assert digests(out) == before
    with pytest.raises(UserError, match=r"--annotator sharpness: this data set has none of that name; it has parsing \(LandmarkParsing\)"):
        recompute(str(out), "sharpness", executor=LocalExecutor(0))


def column_bytes(out: Path) -> dict[str, list[bytes]]:
    reader = ShardReader(out)
    rows = [reader.members(row) for row in range(len(reader))]
    return {name: [row[name] for row in rows] for name in reader.columns}


def test_scores_come_before_labels(videos: list[Path], tmp_path: Path) -> None:
    summary = small_build([source(path) for path in videos], tmp_path, until="scores")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file() and path.name != ".building") == [
        "clips.parquet",
        "sources.parquet",
    ]
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["content", "tmp", "track", "unfinished"]
    assert summary.shards == []
    clips = read_table(Storage(tmp_path), "clips.parquet").to_pylist()
    assert len(clips) == 2
    assert all(clip["person"] == clip["source"] for clip in clips)  # nobody is known
    assert all(60 < clip["face_size"] < SIDE for clip in clips)
    assert all(np.isnan(clip["speech_level"]) for clip in clips)


def test_a_policy_rejects_with_reasons(videos: list[Path], tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("maximum: {gap_share: 0.1}\n")
    small_build([source(path) for path in videos], tmp_path / "out", f"policy={policy}")
    clips = {clip["clip"].split("-")[1]: clip for clip in ShardReader(tmp_path / "out").clips.to_pylist()}
    assert clips["whole"]["kept"]
    assert not clips["with"]["kept"]
    assert clips["with"]["reasons"] == ["gap_share 0.3333 > 0.1"]
    assert clips["with"]["split"] == ""


def test_nothing_to_keep_is_told_and_stands_in_the_tables(videos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no clip was found in 1 sources \(.*notes\.mp4: not a readable video"):
        small_build([source(videos[2])], tmp_path)
    (row,) = read_table(Storage(tmp_path), "sources.parquet").to_pylist()
    assert row["status"] == "rejected"
    assert not (tmp_path / "dataset.json").exists()


def test_a_copy_is_rejected(videos: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(videos[0].read_bytes())
    small_build([source(videos[0]), source(copy)], tmp_path / "out")
    rows = ShardReader(tmp_path / "out").sources.to_pylist()
    assert [row["status"] for row in rows] == ["ok", "rejected"]
    assert rows[1]["problems"] == [f"{copy}: has the same content as {videos[0]}; one of them is enough"]
    assert rows[0]["source"] != rows[1]["source"]


def test_people_stay_in_one_split_and_given_splits_hold(face: ByteImage, tmp_path: Path) -> None:
    sources = []
    for number, person in enumerate(["anna", "anna", "ben", "cleo"]):
        path = write_video(tmp_path / f"{number}.mp4", talking(face, 3 + number))
        sources.append(source(path, person, "test" if person == "ben" else None))
    small_build(sources, tmp_path / "out", "splits={train: 0.5, val: 0.5, test: 0.0}")
    splits = {(clip["person"], clip["split"]) for clip in ShardReader(tmp_path / "out").clips.to_pylist()}
    assert len(splits) == 3
    assert ("ben", "test") in splits


def test_a_cut_and_two_people_make_clips_of_their_own(face: ByteImage, tmp_path: Path) -> None:
    wall = np.full((SIDE, SIDE, 3), 60, np.uint8)
    alone = [np.concatenate([frame, wall], 1) for frame in talking(face, 6, 1)]
    both = [np.concatenate([frame, frame[:, ::-1]], 1) // 2 + 90 for frame in talking(face, 6, 1)]
    path = write_video(tmp_path / "two.mp4", [*alone, *both])
    small_build([source(path)], tmp_path / "out")
    clips = ShardReader(tmp_path / "out").clips.to_pylist()
    assert [(clip["first"], clip["last"], clip["faces"], clip["cuts"]) for clip in clips] == [(0, 5, 1, 1), (6, 11, 2, 1), (6, 11, 2, 1)]
    assert len({clip["face"] for clip in clips}) == 3


def test_long_tracks_are_cut_into_equal_clips(videos: list[Path], tmp_path: Path) -> None:
    small_build([source(videos[0])], tmp_path, "tracking.max_duration=0.15")
    clips = ShardReader(tmp_path).clips.to_pylist()
    assert [(clip["first"], clip["last"]) for clip in clips] == [(0, 3), (4, 7)]
    assert [clip["clip"][-3:] for clip in clips] == ["_00", "_01"]


def test_a_variable_rate_is_told_and_its_times_are_kept(face: ByteImage, tmp_path: Path) -> None:
    import av

    path, stamps = tmp_path / "vfr.mkv", [0, 40, 140, 160, 300, 310]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for stamp, image in zip(stamps, talking(face, 6), strict=True):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    small_build([source(path)], tmp_path / "out")
    reader = ShardReader(tmp_path / "out")
    (row,) = reader.sources.to_pylist()
    assert row["vfr"]
    assert row["problems"][0].startswith("variable frame rate: from ")
    np.testing.assert_allclose(reader.index.column("time").to_numpy(), np.array(stamps) / 1000, atol=1e-6)


def test_a_data_set_behind_an_address(videos: list[Path], tmp_path: Path, built: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    with fs.open("/in/whole.mp4", "wb") as file:
        file.write(videos[0].read_bytes())
    with pytest.raises(UserError, match="give --work FOLDER"):
        small_build([source(videos[0])], "memory://out")
    remote = Source(path="memory://in/whole.mp4", source_hint="whole.mp4", dataset="tiny", person="eileen")
    small_build([remote], "memory://out", work=tmp_path)
    reader = ShardReader("memory://out")
    assert len(reader) == 8
    first = ShardReader(built)
    row = first.index.column("key").to_pylist().index(reader.key(0))
    assert reader.members(0) == first.members(row)
    assert not list((tmp_path / "tmp").iterdir())
    fs.rm("/out", recursive=True)


def mggdata(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "datasets_toolkit.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path})


def test_the_command_line_builds_the_same(videos: list[Path], built: Path, tmp_path: Path) -> None:
    done = mggdata(
        "build", videos[0].parent, "--out", tmp_path / "out", "--workers", 1, "--policy", "none", "--shard-samples", 5, "size=64"
    )
    assert done.returncode == 0, done.stderr
    assert "3 sources, 1 rejected; 2 clips, 2 kept; 12 samples in 3 shards" in done.stdout
    assert "rejected: " in done.stderr
    assert "ms/frame" in done.stderr
    images = {tuple(row["image"]) for row in map(ShardReader(tmp_path / "out").members, range(12))}
    assert images == {tuple(row["image"]) for row in map(ShardReader(built).members, range(12))}
