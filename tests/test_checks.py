"""``verify`` passes a sound data set and finds each planted fault by the check that is there for it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow")

from curated_scenes import CLIPS, Clip, head, make_curated, with_meta  # noqa: E402

from datasets_toolkit.checks.labels import LABEL_CHECKS, depth_normals  # noqa: E402
from datasets_toolkit.checks.tables import time_faults  # noqa: E402
from datasets_toolkit.checks.tally import Tally  # noqa: E402
from datasets_toolkit.checks.verify import checks_json, checks_text, verify  # noqa: E402
from datasets_toolkit.errors import UserError  # noqa: E402
from datasets_toolkit.sample import FrameSample  # noqa: E402
from datasets_toolkit.schema import Region  # noqa: E402
from datasets_toolkit.shards.dataset_info import read_info, write_info  # noqa: E402
from datasets_toolkit.shards.shard_reader import ShardReader  # noqa: E402
from datasets_toolkit.shards.storage import Storage  # noqa: E402
from datasets_toolkit.shards.writer import write_table  # noqa: E402

MIRROR = {Region.LEFT_EYE: Region.RIGHT_EYE, Region.RIGHT_EYE: Region.LEFT_EYE}


def failed(reader: ShardReader, **options: Any) -> dict[str, str]:
    """The first fault of each check that failed."""
    return {check.name: check.examples[0] for check in verify(ShardReader(reader.storage), **options) if check.faults}


def test_a_sound_data_set_passes_every_check(tmp_path: Path) -> None:
    checks = verify(make_curated(tmp_path))
    assert {check.name: check.examples for check in checks if check.faults} == {}
    assert {check.name for check in checks if check.status == "skipped"} == set()
    assert {check.name for check in checks if check.status == "counted"} == {"A/V offset"}
    assert {check.name: check.tested for check in checks if check.name in LABEL_CHECKS} == dict.fromkeys(LABEL_CHECKS, 15)
    text = checks_text(checks)
    assert text.endswith("all promises that were tested hold")
    assert "0 of 5 sources with sound" in text
    assert [row["status"] for row in json.loads(json.dumps(checks_json(checks)))] == [check.status for check in checks]


def flipped(sides: tuple[int, int, int]) -> Callable[[FrameSample], FrameSample]:
    return lambda sample: replace(sample, normals=(sample.normals * np.array(sides, np.float32)).astype(np.float32))


def swap_sides(sample: FrameSample) -> FrameSample:
    table = np.array([MIRROR.get(region, region) for region in Region], np.uint8)
    return replace(sample, parsing=table[sample.parsing])


def scaled_pose(sample: FrameSample) -> FrameSample:
    pose = sample.meta.head_to_camera.copy()
    pose[:3, :3] *= 1.01
    return with_meta(sample, head_to_camera=pose)


def too_wide(sample: FrameSample) -> FrameSample:
    scores = sample.meta.blendshapes.copy()
    scores[5] = 1.25
    return with_meta(sample, blendshapes=scores)


def another_focal_length(sample: FrameSample) -> FrameSample:
    camera = sample.meta.intrinsics.copy()
    if sample.meta.index == 1:
        camera[0, 0] *= 1.002
    return with_meta(sample, intrinsics=camera)


LABEL_FAULTS: dict[str, tuple[Callable[[FrameSample], FrameSample], set[str], str]] = {
    "depth in metres": (lambda s: replace(s, depth=s.depth / np.float32(100)), {"depth"}, "cm from the head's origin"),
    "depth of nothing": (lambda s: replace(s, depth=s.depth * 0), {"depth"}, "depth is unknown on the whole face"),
    "normals upside down": (flipped((1, -1, 1)), {"normals"}, "with y mirrored"),
    "normals mirrored": (flipped((-1, 1, 1)), {"normals"}, "with x mirrored"),
    "OpenGL normals": (flipped((1, -1, -1)), {"normals"}, "degrees off those of the depth"),
    "parsing elsewhere": (lambda s: replace(s, parsing=np.roll(s.parsing, 60, 1)), {"mask", "matte", "sides"}, "in head regions"),
    "sides swapped": (swap_sides, {"sides"}, "left and right eyes are swapped"),
    "transparent head": (lambda s: replace(s, matte=s.matte * 0), {"matte"}, "not opaque"),
    "landmarks elsewhere": (lambda s: replace(s, landmarks=s.landmarks + np.float32([15, 0, 0])), {"pose"}, "face sizes off"),
    "landmarks outside": (
        lambda s: replace(s, landmarks=s.landmarks - np.float32([500, 0, 0])),
        {"pose", "mask", "depth"},
        "no landmark lies",
    ),
    "no rigid pose": (scaled_pose, {"meta"}, "head_to_camera is not rigid"),
    "scores above one": (too_wide, {"meta", "index"}, "1 of 52 blendshapes are not in [0, 1]"),
    "two cameras": (another_focal_length, {"camera"}, "differs from that of other frames"),
    "short sound": (lambda s: replace(s, audio=s.audio[:600]), {"sound"}, "600 samples of sound for 640.0"),
    "mel of infinities": (lambda s: replace(s, mel=s.mel + np.float16(np.inf)), {"sizes"}, "mel is not 4 x 80 finite"),
}


@pytest.mark.parametrize("case", LABEL_FAULTS)
def test_wrong_labels_are_found(tmp_path: Path, case: str) -> None:
    change, expected, reason = LABEL_FAULTS[case]
    clips = (Clip("alice", frames=(0, 1, 2)), Clip("bob", "val", frames=(0, 1)))
    found = failed(make_curated(tmp_path, clips, change=change))
    assert set(found) == expected, found
    assert reason in " ".join(found.values())


def test_normals_of_depth_are_those_of_a_sphere() -> None:
    sample = head(Clip("alice"), 3, 192)
    assert sample.depth is not None
    assert sample.normals is not None
    derived, where = depth_normals(sample.depth, sample.meta.intrinsics)
    angles = np.degrees(np.arccos(np.clip((derived * sample.normals).sum(-1), -1, 1)))
    facing = where & (sample.normals[..., 2] < -0.5)
    assert facing.sum() > 3000
    assert angles[facing].max() < 2
    assert not where[sample.depth == 0].any()


def tamper(reader: ShardReader, name: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change the rows of a table, and let ``dataset.json`` know, as a faulty writer would."""
    table = {"clips": reader.clips, "sources": reader.sources, "index": reader.index}[name]
    rows = table.to_pylist()
    change(rows)
    digest = write_table(reader.storage, f"{name}.parquet", pa.Table.from_pylist(rows, schema=table.schema))
    info = read_info(reader.storage)
    write_info(reader.storage, replace(info, manifests={**info.manifests, f"{name}.parquet": digest}))


def set_(row: int, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[row].update(values)


TABLE_FAULTS: dict[str, tuple[str, Callable[[list[dict[str, Any]]], Any], set[str], str]] = {
    "a key twice": ("index", lambda rows: rows[1].update(key=rows[0]["key"]), {"ids", "index offsets", "decoding"}, "stands there 2 times"),
    "a clip without source": ("sources", lambda rows: rows.pop(0), {"ids"}, "is not in sources.parquet"),
    "a time that jumps back": ("index", set_(2, time=0.03), {"times", "record", "sound"}, "does not exceed the one before"),
    "a renumbered gap": ("index", set_(3, index=3), {"ids", "record", "sound"}, "is not that of frame 3"),
    "another rate": ("clips", lambda rows: [row.update(fps_num=50) for row in rows], {"times"}, "do not fit the frame rate 50"),
    "a person in two splits": ("clips", lambda rows: rows[2].update(person="alice"), {"splits", "record"}, "'alice' is in train and val"),
    "a rejected clip that is packed": ("clips", set_(0, kept=False, reasons=["x < 3"]), {"manifest"}, "rejected, but packed"),
    "rejected without a reason": ("clips", set_(4, reasons=[]), {"manifest"}, "rejected without a reason"),
    "a kept clip that is not packed": ("clips", set_(4, kept=True, split="val"), {"manifest"}, "packed are none"),
    "another split": ("index", set_(0, split="test"), {"manifest", "index offsets"}, "that of its shard 'train'"),
    "an offset": (
        "index",
        lambda rows: rows[0].update({"depth.offset": rows[0]["depth.offset"] + 1}),
        {"index offsets", "decoding"},
        "depth",
    ),
    "another expression": ("index", lambda rows: rows[0].update(expression=rows[1]["expression"]), {"record"}, "expression of the index"),
    "a short expression": ("index", lambda rows: rows[0].update(expression=[0.5]), {"index", "record"}, "not 52 scores in [0, 1]"),
    "an angle": ("index", lambda rows: rows[0].update(yaw=rows[0]["yaw"] + 1), {"record"}, "are not those of its pose"),
    "a shard that is nowhere": ("index", set_(0, shard="shards/x.tar"), {"index offsets", "decoding"}, "x.tar"),
    "one file under two names": ("sources", lambda rows: rows[2].update(sha256=rows[0]["sha256"]), {"leaks"}, "content 1.000"),
}


@pytest.mark.parametrize("case", TABLE_FAULTS)
def test_wrong_tables_are_found(tmp_path: Path, case: str) -> None:
    name, change, expected, reason = TABLE_FAULTS[case]
    reader = make_curated(tmp_path)
    tamper(reader, name, change)
    found = failed(reader)
    assert set(found) == expected, found
    assert reason in " ".join(found.values())


def flip_byte(path: Path) -> None:
    """Damage the first depth map of a shard."""
    data = bytearray(path.read_bytes())
    data[data.index(b"DSZ1") + 100] ^= 4
    path.write_bytes(data)


def append_link(path: Path) -> None:
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("evil_000000.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)


def append_sample(path: Path) -> None:
    with tarfile.open(path, "a") as tar:
        tar.addfile(member := tarfile.TarInfo("more_000000.jpg"), io.BytesIO(b"1234"))
        assert member.size == 0


FILE_FAULTS: dict[str, tuple[Callable[[Path], Any], set[str], str]] = {
    "a flipped byte": (lambda root: flip_byte(root / "shards/train-000000.tar"), {"shard hashes", "decoding"}, "has SHA-256"),
    "a shard cut short": (
        lambda root: (root / "shards/train-000001.tar").write_bytes((root / "shards/train-000001.tar").read_bytes()[:20_000]),
        {"shard hashes", "tar structure", "decoding"},
        "has 20000 bytes",
    ),
    "a lost shard": (
        lambda root: (root / "shards/test-000000.tar").unlink(), {"listing", "shard hashes", "tar structure", "decoding"}, "is missing",
    ),
    "a shard too many": (lambda root: (root / "shards/train-000009.tar").write_bytes(bytes(10240)), {"listing"}, "is not in dataset.json"),
    "a link in a tar": (lambda root: append_link(root / "shards/val-000000.tar"), {"shard hashes", "tar structure"}, "is a link"),
    "a sample too many": (
        lambda root: append_sample(root / "shards/val-000000.tar"), {"shard hashes", "tar structure", "index offsets"}, "not in the index",
    ),
    "another table": (
        lambda root: (root / "sources.parquet").write_bytes((root / "clips.parquet").read_bytes()),
        {"manifest hashes", "columns"},
        "has no column",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILE_FAULTS)
def test_damaged_files_are_found(tmp_path: Path, case: str) -> None:
    damage, expected, reason = FILE_FAULTS[case]
    reader = make_curated(tmp_path)
    damage(tmp_path)
    found = failed(reader)
    assert set(found) == expected, found
    assert reason in " ".join(found.values())


def test_a_part_is_drawn_with_its_seed_and_reads_only_its_shards(tmp_path: Path) -> None:
    reader = make_curated(tmp_path)
    drawn = {seed: {check.name: check for check in verify(reader, sample=2, seed=seed)} for seed in (1, 1, 2)}
    assert all(one["decoding"].tested == 2 for one in drawn.values())
    assert drawn[1]["shard hashes"].measured.endswith("of 6 shards")
    assert drawn[1]["shard hashes"].tested <= 2
    flip_byte(tmp_path / "shards/val-000000.tar")
    verdicts = {seed: "shard hashes" in failed(reader, sample=1, seed=seed) for seed in range(12)}
    assert verdicts == {seed: "shard hashes" in failed(reader, sample=1, seed=seed) for seed in range(12)}
    assert set(verdicts.values()) == {True, False}


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    told: dict[str, tuple[int, int]] = {}
    verify(make_curated(tmp_path), progress=lambda what, done, total: told.update({what: (done, total)}))
    assert set(told) == {"reading shards", "decoding samples"}
    assert all(done == total > 0 for done, total in told.values())


def test_the_same_face_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    face = np.random.default_rng(0).normal(size=32)
    other = np.random.default_rng(1).normal(size=32)
    clips = tuple(
        replace(clip, identity=tuple((face if clip.person in ("alice", "carol") else other + 5 * place).tolist()))
        for place, clip in enumerate(CLIPS)
    )
    found = failed(make_curated(tmp_path, clips))
    assert set(found) == {"leaks"}
    assert "alice" in found["leaks"]
    assert "carol" in found["leaks"]
    assert "identity 1.000" in found["leaks"]


def test_the_same_picture_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    def poor_copy(sample: FrameSample) -> FrameSample:
        if sample.meta.person != "dave":
            return sample
        image = head(CLIPS[0], sample.meta.index - 10).image
        assert image is not None
        small = cv2.resize(image, (60, 60), interpolation=cv2.INTER_AREA)
        return replace(sample, image=np.clip(cv2.resize(small, (96, 96)) * 0.9 + 10, 0, 255).astype(np.uint8))

    found = failed(make_curated(tmp_path, change=poor_copy))
    assert set(found) == {"leaks"}
    assert "alice" in found["leaks"]
    assert "picture" in found["leaks"]


def test_nothing_to_verify_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        verify(ShardReader(tmp_path))


def test_a_data_set_behind_an_address_is_verified_too() -> None:
    pytest.importorskip("fsspec")
    reader = make_curated(Storage("memory://verify-me"), CLIPS[:3])
    assert failed(reader) == {}


@settings(max_examples=60, deadline=None)
@given(rate=st.sampled_from([24.0, 25.0, 30000 / 1001, 60.0]), count=st.integers(3, 200), start=st.floats(0, 1000), seed=st.integers(0, 9))
def test_true_times_pass_and_wrong_rates_fail(rate: float, count: int, start: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    indices = np.cumsum(random.choice([1, 1, 1, 2, 5], count))
    times = np.round((start + indices / rate) * 1000) / 1000  # containers that count milliseconds
    assert time_faults(indices, times, rate) == []
    assert time_faults(indices, times, 0.0) == []
    if count > 20:
        assert time_faults(indices, times, rate * 1.3)
        assert time_faults(np.arange(count), times, rate)  # as a tool counts that drops frames without a face
    assert time_faults(indices, times[::-1], rate)


def test_a_few_missing_frames_are_no_fault_of_the_rate() -> None:
    indices = np.arange(250)
    times = indices / 25 + (indices > 100) / 25
    assert time_faults(indices, times, 25.0) == []


def test_a_tally_counts_and_tells_the_first_faults() -> None:
    tally = Tally("a", "b", "cm")
    for number in range(20):
        tally.test(f"place {number}", ["wrong"] if number % 2 else [], float(number))
    check = tally.done()
    assert (check.tested, check.faults, len(check.examples), check.status) == (20, 10, 5, "fail")
    assert check.examples[0] == "place 1: wrong"
    assert check.measured == "median 9.5, 95 % up to 18.1 cm"
    assert Tally("a", "b").done(skipped="why").status == "skipped"
