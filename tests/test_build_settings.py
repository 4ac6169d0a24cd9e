"""Builds with other annotators and settings, mistakes of users, and the command line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from build_fuzz import mux
from build_scenes import digests, face_picture, small_build, source, talking, write_video

from datasets_toolkit.build.executors import Executor, LocalExecutor
from datasets_toolkit.build.work import only_builder
from datasets_toolkit.errors import UserError
from datasets_toolkit.recipes.base import BOX, Source
from datasets_toolkit.schema import ByteImage
from datasets_toolkit.shards.shard_reader import ShardReader


@pytest.fixture(scope="module")
def face(astronaut: ByteImage) -> ByteImage:
    return face_picture(astronaut)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, face: ByteImage) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "whole.mp4", talking(face, 8))


def test_identity_is_the_mean_over_looks_at_a_clip(video: Path, tmp_path: Path) -> None:
    small_build([source(video)], tmp_path, "annotators=[{class_path: build_annotators.Brightness}]")
    reader = ShardReader(tmp_path)
    (clip,) = reader.clips.to_pylist()
    angles = [float(reader.sample(row, ["image"]).image.mean()) / 255 for row in range(len(reader))]  # type: ignore[union-attr]
    wanted = np.array([np.mean(np.cos(angles)), np.mean(np.sin(angles))])
    np.testing.assert_allclose(clip["identity"][:2], wanted / np.linalg.norm(wanted), atol=1e-3)
    assert np.linalg.norm(clip["identity"]) == pytest.approx(1)
    assert reader.columns == ("image", "landmarks", "meta")


def test_lip_sync_is_measured_before_the_policy_decides(face: ByteImage, tmp_path: Path) -> None:
    loud, mute = tmp_path / "loud.mp4", tmp_path / "mute.mp4"
    mux(loud, talking(face, 6), sound=0.5)
    mux(mute, talking(face, 5))
    policy = tmp_path / "policy.yaml"
    policy.write_text("minimum: {av_confidence: 1.0}\n")
    words = ["annotators=[{class_path: build_annotators.Loudness}]", f"policy={policy}"]
    small_build([source(loud), source(mute)], tmp_path / "out", *words)
    reader = ShardReader(tmp_path / "out")
    clips = {clip["clip"].split("-")[1]: clip for clip in reader.clips.to_pylist()}
    assert clips["loud"]["kept"]
    assert clips["loud"]["av_confidence"] > 1
    assert clips["loud"]["av_offset"] == 0  # six crops and sound for six frames
    assert clips["mute"]["reasons"] == ["av_confidence was not measured"]
    rows = {Path(row["path"]).name: row for row in reader.sources.to_pylist()}
    assert rows["loud.mp4"]["av_confidence"] == clips["loud"]["av_confidence"]
    assert np.isnan(rows["mute.mp4"]["av_offset"])


def test_each_frame_has_its_sound(face: ByteImage, tmp_path: Path) -> None:
    mux(tmp_path / "loud.mp4", talking(face, 6), sound=0.5)
    small_build([source(tmp_path / "loud.mp4")], tmp_path / "out")
    reader = ShardReader(tmp_path / "out")
    sounds = [reader.sample(row, ["audio", "mel"]) for row in np.argsort(reader.index.column("index").to_numpy()).tolist()]
    lengths = [len(one.audio) for one in sounds if one.audio is not None]
    assert lengths == [640] * 6
    assert all(np.abs(one.audio).max() > 5000 for one in sounds[2:] if one.audio is not None)
    (row,) = reader.sources.to_pylist()
    assert row["has_audio"]
    (clip,) = reader.clips.to_pylist()
    assert -20 < clip["speech_level"] < 0


def test_an_annotated_box_chooses_the_face(face: ByteImage, tmp_path: Path) -> None:
    side = len(face)
    path = write_video(tmp_path / "two.mp4", [np.concatenate([frame, frame[:, ::-1]], 1) for frame in talking(face, 3)])
    chosen = Source(path=str(path), source_hint="two", dataset="tiny", meta={BOX: f"{side} 0 {2 * side} {side}"})
    small_build([chosen], tmp_path / "out")
    reader = ShardReader(tmp_path / "out")
    (clip,) = reader.clips.to_pylist()
    assert clip["faces"] == 2
    meta = reader.sample(0, []).meta
    assert -meta.source_to_crop[0, 2] / meta.source_to_crop[0, 0] > side / 2


def test_a_stretch_of_a_video_keeps_its_times(video: Path, tmp_path: Path) -> None:
    part = Source(path=str(video), source_hint="part", dataset="tiny", start=0.08, end=0.24)
    small_build([part], tmp_path)
    index = ShardReader(tmp_path).index
    assert sorted(index.column("index").to_pylist()) == [2, 3, 4, 5]
    np.testing.assert_allclose(np.sort(index.column("time").to_numpy()), np.arange(2, 6) / 25)


def test_a_clip_that_cannot_be_annotated_is_rejected_with_the_reason(face: ByteImage, tmp_path: Path) -> None:
    bright = write_video(tmp_path / "bright.mp4", talking(face, 3))
    dark = write_video(tmp_path / "dark.mp4", [frame // 3 for frame in talking(face, 3)])
    words = "annotators=[{class_path: build_annotators.Picky, init_args: {limit: 60}}]"
    small_build([source(bright), source(dark)], tmp_path / "out", words)
    reader = ShardReader(tmp_path / "out")
    clips = {clip["clip"].split("-")[1]: clip for clip in reader.clips.to_pylist()}
    assert clips["bright"]["kept"]
    assert clips["dark"]["reasons"] == ["could not be annotated: RuntimeError: too dark for me"]
    assert reader.columns == ("image", "parsing", "matte", "landmarks", "meta")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["annotators.0.class_path=datasets_toolkit.annotators.nothing.Here"], "there is no such annotator"),
        (["annotators=[{class_path: datasets_toolkit.annotators.mesh_depth.MeshDepth}]"], "depth needs parsing"),
        (["annotators.1={class_path: datasets_toolkit.annotators.landmark_parsing.LandmarkParsing}"], "2 of the family 'parsing'"),
        (["annotators.0.init_args={colour: red}"], "unexpected keyword argument 'colour'|got an unexpected"),
        (["policy=nowhere.yaml"], "nowhere.yaml"),
        (["siz=3"], "Key 'siz' not in"),
    ],
)
def test_settings_that_cannot_be_meant_end_the_build_before_it_begins(video: Path, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_build([source(video)], tmp_path, *words)
    assert not (tmp_path / "sources.parquet").exists()


def test_one_builder_at_a_time(video: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with only_builder(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} is building here; wait until it is done"):
        small_build([source(video)], tmp_path)
    (tmp_path / ".building").write_text("4194305")
    small_build([source(video)], tmp_path, until="scores")
    assert "process 4194305 ended without finishing; going on from what it left" in caplog.text
    assert (tmp_path / ".building").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "--out", "out"), "no source videos; name videos or folders"),
        (("build", "nowhere.mp4", "--out", "out"), "nowhere.mp4: no such video or folder"),
        (("build", "{video}", "--out", "out", "siz=3"), "siz=3: siz: Key 'siz' not in"),
        (("build", "{video}", "--out", "out", "--config", "nothing.yaml"), "nothing.yaml: cannot be read"),
        (("build", "{video}", "--out", "out", "--workers", "0"), "--workers 0: at least one"),
        (("build", "--recipe", "nothing", ".", "--out", "out"), "nothing: no such recipe"),
        (("recompute", "--annotator", "depth", "--out", "out"), "dataset.json"),
    ],
)
def test_mistakes_end_in_one_line(
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    from datasets_toolkit import cli

    monkeypatch.chdir(tmp_path)
    assert cli.main([word.format(video=video) for word in arguments]) == 2
    printed = capfd.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert list(tmp_path.iterdir()) == []


def test_an_executor_is_given_back(video: Path, tmp_path: Path) -> None:
    executor: Executor = LocalExecutor(0)
    small_build([source(video)], tmp_path / "one", executor=executor)
    small_build([source(video)], tmp_path / "two", executor=executor)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
