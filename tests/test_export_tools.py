"""What is exported can be read by others, and says the same as the data set."""

from __future__ import annotations

import csv
import json
import wave
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")

from curated_scenes import CLIPS, Clip, head, make_curated
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_toolkit.errors import UserError
from datasets_toolkit.export.files import NEEDS, WRITERS, export, joined
from datasets_toolkit.faces.head_pose import euler_degrees
from datasets_toolkit.sample import FrameSample
from datasets_toolkit.schema import BLENDSHAPES, Region
from datasets_toolkit.shards.shard_reader import ShardReader

ALICE = CLIPS[0]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return make_curated(tmp_path_factory.mktemp("set"))


def rows_of(reader: ShardReader, clip: Clip) -> list[FrameSample]:
    keys = reader.index.column("clip").to_pylist()
    return [reader.sample(row) for row, name in enumerate(keys) if name == clip.id]


def names(frames: tuple[int, ...], suffix: str) -> list[str]:
    return [f"{index:06d}{suffix}" for index in frames]


def test_depth_is_a_16_bit_png_with_its_scale(reader: ShardReader, tmp_path: Path) -> None:
    (folder,) = export(reader, "depth", tmp_path, clips=[ALICE.id])
    assert folder == tmp_path / ALICE.id / "depth"
    facts = json.loads((folder / "depth.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == [*names(ALICE.frames, ".png"), "depth.json"]
    assert facts["unit"] == "cm"
    assert facts["unknown"] == 0
    for sample, name in zip(rows_of(reader, ALICE), names(ALICE.frames, ".png"), strict=True):
        levels = cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED)
        assert levels.dtype == np.uint16
        assert sample.depth is not None
        assert ((levels == 0) == (sample.depth == 0)).all()
        np.testing.assert_allclose(levels * facts["scale"][name], sample.depth, atol=0.0051)
        truth = head(ALICE, sample.meta.index).depth
        assert truth is not None
        np.testing.assert_allclose(levels * facts["scale"][name], truth, atol=0.0101)  # both roundings


def test_far_depth_gets_a_coarser_scale(tmp_path: Path) -> None:
    def far(sample: FrameSample) -> FrameSample:
        from dataclasses import replace

        return replace(sample, depth=sample.depth * np.float32(40))

    reader = make_curated(tmp_path / "set", CLIPS[:1], change=far)
    (folder,) = export(reader, "depth", tmp_path / "out")
    scale = json.loads((folder / "depth.json").read_text())["scale"]["000000.png"]
    levels = cv2.imread(str(folder / "000000.png"), cv2.IMREAD_UNCHANGED)
    sample = reader.sample(0)
    assert sample.depth is not None
    assert scale > 0.05
    assert levels.max() == 65535
    np.testing.assert_allclose(levels * scale, sample.depth, atol=scale)


def test_frames_are_copied_bit_by_bit_or_decoded(reader: ShardReader, tmp_path: Path) -> None:
    (copied,) = export(reader, "frames", tmp_path / "jpg", clips=[ALICE.id])
    (decoded,) = export(reader, "frames", tmp_path / "png", clips=[ALICE.id], png=True)
    assert sorted(path.name for path in copied.iterdir()) == names(ALICE.frames, ".jpg")
    for row, sample in enumerate(rows_of(reader, ALICE)):
        index = sample.meta.index
        assert (copied / f"{index:06d}.jpg").read_bytes() == reader.members(row, ["image"])["image"]
        picture = cv2.imread(str(decoded / f"{index:06d}.png"))[:, :, ::-1]
        assert np.array_equal(picture, sample.image)  # type: ignore[arg-type]


def test_parsing_keeps_its_values(reader: ShardReader, tmp_path: Path) -> None:
    from PIL import Image

    (folder,) = export(reader, "parsing", tmp_path, clips=[ALICE.id])
    values = json.loads((folder / "parsing.json").read_text())["values"]
    assert values == {str(int(region)): region.name.lower() for region in Region}
    with Image.open(folder / "000000.png") as image:
        assert np.array_equal(np.asarray(image), head(ALICE, 0).parsing)  # type: ignore[arg-type]


def test_normals_are_levels_of_the_unit_vector(reader: ShardReader, tmp_path: Path) -> None:
    (folder,) = export(reader, "normals", tmp_path, clips=[ALICE.id])
    levels = cv2.imread(str(folder / "000001.png"))[:, :, ::-1]
    truth = head(ALICE, 1)
    assert truth.depth is not None
    assert truth.normals is not None
    known = truth.depth > 0
    assert (levels[~known] == 128).all()
    vectors = levels[known] / 127.5 - 1
    angles = np.degrees(np.arccos(np.clip((vectors * truth.normals[known]).sum(-1) / np.linalg.norm(vectors, axis=-1), -1, 1)))
    assert np.percentile(angles, 90) < 2


def test_sound_keeps_its_times_across_a_gap(reader: ShardReader, tmp_path: Path) -> None:
    (folder,) = export(reader, "audio", tmp_path, clips=[ALICE.id])
    with wave.open(str(folder / "audio.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert json.loads((folder / "audio.json").read_text())["start"] == 0.0
    assert len(sound) == 5 * 640
    truth = np.rint(8000 * np.sin(2 * np.pi * 220 * np.arange(5 * 640) / 16000))
    spoken = np.r_[: 3 * 640, 4 * 640 : 5 * 640]
    assert np.array_equal(sound[spoken], truth[spoken])
    assert (sound[3 * 640 : 4 * 640] == 0).all()  # frame 3 has no face


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=8), gaps=st.lists(st.integers(0, 30), min_size=8, max_size=8))
def test_pieces_of_sound_lie_where_their_times_put_them(lengths: list[int], gaps: list[int]) -> None:
    random, place, pieces, truth = np.random.default_rng(0), 0, [], []
    for length, gap in zip(lengths, gaps, strict=False):
        piece = random.integers(-100, 100, length).astype(np.int16)
        pieces.append((3.25 + place / 16000, piece))
        truth.append((place, piece))
        place += length + gap
    sound = joined(pieces)
    wanted = np.zeros(max(start + len(piece) for start, piece in truth), np.int16)
    for start, piece in truth:
        wanted[start : start + len(piece)] = piece
    assert np.array_equal(sound, wanted)


def test_motion_as_a_table_and_as_arrays(reader: ShardReader, tmp_path: Path) -> None:
    (folder,) = export(reader, "motion", tmp_path, clips=[ALICE.id])
    with (folder / "motion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    arrays = np.load(folder / "motion.npz", allow_pickle=False)
    metas = [sample.meta for sample in rows_of(reader, ALICE)]
    assert list(rows[0])[:2] == ["time", "frame"]
    assert [int(row["frame"]) for row in rows] == list(ALICE.frames) == arrays["indices"].tolist()
    assert [float(row["time"]) for row in rows] == [meta.time for meta in metas] == arrays["times"].tolist()
    for row, meta, pose in zip(rows, metas, arrays["head_to_camera"], strict=True):
        assert [float(row[name]) for name in BLENDSHAPES] == pytest.approx(meta.blendshapes.tolist(), abs=1e-6)
        angles = np.degrees([float(row[f"Head{name}"]) for name in ("Yaw", "Pitch", "Roll")])
        np.testing.assert_allclose(angles, euler_degrees(meta.head_to_camera), atol=1e-4)
        assert [float(row[f"Head{axis}"]) for axis in "XYZ"] == pytest.approx(meta.head_to_camera[:3, 3].tolist(), rel=1e-6)
        assert np.array_equal(pose, meta.head_to_camera)
    assert Fraction(*arrays["fps"].tolist()) == 25
    assert arrays["names"].tolist() == list(BLENDSHAPES)


def test_the_renderer_reads_exported_motion(reader: ShardReader, tmp_path: Path) -> None:
    from mggtalk.geometry.face_model import FaceModel
    from mggtalk.motion_csv import motion_from_csv

    (folder,) = export(reader, "motion", tmp_path, clips=[ALICE.id])
    motion, rate = motion_from_csv(folder / "motion.csv", FaceModel())
    metas = [sample.meta for sample in rows_of(reader, ALICE)]
    np.testing.assert_allclose(motion.times.numpy(), [meta.time for meta in metas], atol=1e-9)
    np.testing.assert_allclose(motion.expression[:, : len(BLENDSHAPES)].numpy(), [meta.blendshapes for meta in metas], atol=1e-6)
    turns = np.stack([meta.head_to_camera[:3, :3] for meta in metas])
    np.testing.assert_allclose(motion.head_to_camera[:, :3, :3].numpy(), turns, atol=1e-5)
    assert bool(torch.all(motion.found))
    assert rate == 25


@pytest.mark.parametrize("what", NEEDS)
def test_folders_appear_whole_or_not_at_all(reader: ShardReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    whole = WRITERS[what]

    def interrupted(clip: object, folder: Path) -> None:
        whole(clip, folder)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setitem(WRITERS, what, interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(reader, what, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.setitem(WRITERS, what, whole)
    folders = export(reader, what, tmp_path)
    assert [folder.parent.name for folder in folders] == sorted(clip.id for clip in CLIPS if clip.kept)
    assert all(any(folder.iterdir()) for folder in folders)


def test_mistakes_are_told_before_anything_is_written(reader: ShardReader, tmp_path: Path) -> None:
    for what, clips, reason in (
        ("colours", None, "must be one of depth"),
        ("depth", [ALICE.id, "nobody_00"], "no samples of a clip 'nobody_00'"),
        ("depth", [CLIPS[4].id], "clips.parquet tells which were kept"),
    ):
        with pytest.raises(UserError, match=reason):
            export(reader, what, tmp_path / "out", clips=clips)
    assert not (tmp_path / "out").exists()
    export(reader, "depth", tmp_path / "out", clips=[ALICE.id])
    with pytest.raises(UserError, match="is there already"):
        export(reader, "depth", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [ALICE.id]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export(reader, "depth", tmp_path / "file", clips=[ALICE.id])


def test_a_data_set_without_the_label_is_told(tmp_path: Path) -> None:
    from dataclasses import replace

    reader = make_curated(tmp_path / "set", CLIPS[:1], change=lambda sample: replace(sample, depth=None))
    with pytest.raises(UserError, match="has no column 'depth'"):
        export(reader, "depth", tmp_path / "out")
