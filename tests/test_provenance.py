"""What outputs say of themselves: real files written and read back, and a mark that can be read on any frame."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
from dataclasses import replace
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont
from test_cli import failed, here

from datasets_toolkit.annotators.pictures import write_png
from datasets_toolkit.errors import MediaError, UserError
from datasets_toolkit.media.video import VideoWriter, read_frames
from mggtalk import demo
from mggtalk.export import BASES, load_model, save_model
from mggtalk.motion_files import load_motion, save_motion
from mggtalk.provenance import MARK, Provenance, mark, provenance_of, provenance_tags, read_provenance, write_tagged_png

RECORD = Provenance(
    version="1.2.3",
    model="mggtalk-tiny",
    model_sha256=hashlib.sha256(b"weights").hexdigest(),
    digital_source_type="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    created="2026-01-02T03:04:05Z",
)
JSON = {
    "synthetic": True,
    "generator": "MGGTalk",
    "version": "1.2.3",
    "model": "mggtalk-tiny",
    "model_sha256": RECORD.model_sha256,
    "digitalSourceType": RECORD.digital_source_type,
    "created": "2026-01-02T03:04:05Z",
}
SUFFIXES = (".mp4", ".mov", ".mkv")
READABLE = 4.5
"""Contrast that WCAG 2.2 asks for small text."""


def video(path: Path, tags: dict[str, str] | None = None, image: npt.NDArray[np.uint8] | None = None, frames: int = 3) -> Path:
    image = np.full((48, 64, 3), 90, np.uint8) if image is None else image
    with VideoWriter(path, Fraction(25), (image.shape[1], image.shape[0]), metadata=tags) as writer:
        for _ in range(frames):
            writer.write(image)
    return path


def tags_of(path: Path) -> dict[str, str]:
    with av.open(str(path)) as container:
        return {key.lower(): value for key, value in container.metadata.items()}


def remuxed(source: Path, target: Path) -> Path:
    """A copy in another container, made as other programs make it: streams and tags as they are, no option set."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        after.metadata.update(before.metadata)
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.size:
                packet.stream, packet.dts = stream, packet.pts  # Matroska keeps no decoding times
                after.mux(packet)
    return target


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_video_carries_its_record(tmp_path: Path, suffix: str) -> None:
    path = video(tmp_path / f"out{suffix}", provenance_tags(RECORD))
    tags = tags_of(path)
    assert json.loads(tags["comment"]) == JSON
    assert "synthetic" in tags["title"].lower() and "MGGTalk" in tags["title"]
    assert read_provenance(path) == RECORD
    if suffix != ".mkv":  # where players look, not in FFmpeg's own list of keys
        data = path.read_bytes()
        assert b"\xa9cmt" in data and b"\xa9nam" in data and b"mdta" not in data


@pytest.mark.parametrize("after", SUFFIXES)
@pytest.mark.parametrize("before", SUFFIXES)
def test_the_record_survives_another_container(tmp_path: Path, before: str, after: str) -> None:
    path = video(tmp_path / f"a{before}", provenance_tags(RECORD), frames=1)
    assert read_provenance(remuxed(path, tmp_path / f"b{after}")) == RECORD


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="no ffprobe")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ffprobe_reads_the_record(tmp_path: Path, suffix: str) -> None:
    path = video(tmp_path / f"out{suffix}", provenance_tags(RECORD))
    words = ["ffprobe", "-v", "error", "-of", "json", "-show_entries", "format_tags", str(path)]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)["format"]["tags"]
    assert json.loads({key.lower(): value for key, value in found.items()}["comment"]) == JSON


def test_other_tags_and_long_ones_are_kept_whole(tmp_path: Path) -> None:
    """A box of .mov would cut a comment off at 64 KiB."""
    for suffix in SUFFIXES:
        for tags in ({"title": "a", "comment": "b" * 70_000}, {"comment": "é" * 40_000}, {"comment": "c", "of_our_own": "d"}):
            path = video(tmp_path / f"out{suffix}", tags)
            assert tags.items() <= tags_of(path).items()


def test_a_picture_carries_its_record(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    write_tagged_png(tmp_path / "sheet.png", image, RECORD)
    with Image.open(tmp_path / "sheet.png") as opened:
        assert np.array_equal(np.asarray(opened), image)
        assert json.loads(opened.info["Comment"]) == JSON and opened.info["Software"] == "MGGTalk 1.2.3" and opened.info["Title"]
    assert read_provenance(tmp_path / "sheet.png") == RECORD
    with pytest.raises(MediaError, match="nowhere"):
        write_tagged_png(tmp_path / "nowhere" / "sheet.png", image, RECORD)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_record_behind_the_picture_is_found(tmp_path: Path) -> None:
    """PNG allows texts behind the pixels, and some programs move them there."""
    import zlib

    write_png(tmp_path / "plain.png", np.zeros((8, 8, 3), np.uint8))
    data, body = (tmp_path / "plain.png").read_bytes(), b"tEXtComment\0" + RECORD.as_json().encode()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "moved.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert read_provenance(tmp_path / "plain.png") is None
    assert read_provenance(tmp_path / "moved.png") == RECORD


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.lists(st.text(max_size=40), min_size=5, max_size=5))
def test_any_text_survives(tmp_path: Path, fields: list[str]) -> None:
    names = ("version", "model", "model_sha256", "digital_source_type", "created")
    record = replace(RECORD, **dict(zip(names, fields, strict=True)))
    assert record.as_json().isascii() and record.as_json().isprintable(), "nothing that a terminal would obey"
    write_tagged_png(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8), replace(record, version="1"))
    assert read_provenance(tmp_path / "a.png") == replace(record, version="1")


OTHERS = {
    "nothing": None,
    "a remark": "holiday 2019",
    "a number": "7",
    "a list": '["synthetic"]',
    "an empty record": "{}",
    "of another program": json.dumps({**JSON, "generator": "Another"}),
    "not synthetic": json.dumps({**JSON, "synthetic": "yes"}),
    "without a model": json.dumps({key: value for key, value in JSON.items() if key != "model"}),
    "a number for a model": json.dumps({**JSON, "model": 7}),
    "cut short": json.dumps(JSON)[:-5],
    "deep": "[" * 50_000,
}


@pytest.mark.parametrize("comment", OTHERS.values(), ids=OTHERS)
def test_other_comments_are_no_record(tmp_path: Path, comment: str | None) -> None:
    path = video(tmp_path / "out.mp4", {} if comment is None else {"comment": comment})
    assert comment is None or tags_of(path)["comment"] == comment
    assert read_provenance(path) is None


def test_a_later_release_may_say_more(tmp_path: Path) -> None:
    path = video(tmp_path / "out.mkv", {"comment": json.dumps({**JSON, "driver": "speech"})})
    assert read_provenance(path) == RECORD


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    write_tagged_png(tmp_path / "sheet.png", np.zeros((8, 8, 3), np.uint8), RECORD)
    (tmp_path / "head.png").write_bytes((tmp_path / "sheet.png").read_bytes()[:12])
    for name, words in {
        "empty.mp4": "is empty",
        "text.mp4": "not a readable media file",
        "head.png": "not a readable PNG",
        "none.mp4": "no such",
    }.items():
        with pytest.raises(MediaError, match=words) as caught:
            read_provenance(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(MediaError, match="is a folder"):
        read_provenance(tmp_path)


def test_damage_ends_in_a_record_in_none_or_in_one_line(tmp_path: Path) -> None:
    """Each file damaged in 40 places, or cut: never another exception."""
    write_tagged_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8), RECORD)
    video(tmp_path / "a.mp4", provenance_tags(RECORD))
    rng, seen = np.random.default_rng(0), set()
    for name in ("a.png", "a.mp4"):
        whole = (tmp_path / name).read_bytes()
        for place in rng.integers(8, len(whole), 40):
            flipped = whole[:place] + bytes([whole[place] ^ int(rng.integers(1, 256))]) + whole[place + 1 :]
            for data in (flipped, whole[:place]):
                (tmp_path / name).write_bytes(data)
                try:
                    seen.add(type(read_provenance(tmp_path / name)).__name__)
                except MediaError:
                    seen.add("error")
    assert seen >= {"Provenance", "error"}


def test_the_hash_is_that_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = datetime.now(timezone.utc).replace(microsecond=0)
    record = provenance_of("mine", tmp_path / "model.safetensors")
    made = datetime.fromisoformat(record.created.replace("Z", "+00:00"))
    assert before <= made <= datetime.now(timezone.utc)
    assert replace(record, created=RECORD.created, version="1.2.3", model="mggtalk-tiny") == RECORD
    assert provenance_of("bases", None).model_sha256 == "none"
    with pytest.raises(UserError, match=r"none\.safetensors"):
        provenance_of("mine", tmp_path / "none.safetensors")


def luminance(image: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Relative luminance of sRGB in [0, 255], as WCAG 2.2 defines it."""
    value = np.asarray(image, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))


def scenes(side: int) -> dict[str, npt.NDArray[np.uint8]]:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    flat = {name: np.full((side, side, 3), value, np.uint8) for name, value in (("black", 0), ("grey", 128), ("white", 255))}
    checks = np.where(np.indices((side, side)).sum(0)[..., None] % 2 > 0, 255, 0).repeat(3, 2)
    return {**flat, "noise": noise, "checks": checks.astype(np.uint8)}


def parts(side: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Where letters are, where the plate is bare, and how much letters cover, seen from what is drawn on black and on white."""
    black, white = (mark(scenes(side)[name])[..., 0].astype(float) for name in ("black", "white"))
    plate = white < 255
    rows, columns = np.flatnonzero(plate.any(1)), np.flatnonzero(plate.any(0))
    inside = np.zeros_like(plate)
    inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return inside & (black > 242), inside & (black == 0), np.where(inside, black / 255, np.nan)


@pytest.mark.parametrize("side", [64, 128, 256, 512])
def test_the_mark_contrasts_with_every_ground(side: int) -> None:
    letters, bare, _ = parts(side)
    assert letters.sum() > 20 and bare.sum() > 100
    for name, scene in scenes(side).items():
        light = luminance(mark(scene))
        contrast = (light[letters].min() + 0.05) / (light[bare].max() + 0.05)
        assert contrast > READABLE, (name, contrast)


@pytest.mark.parametrize("side", [128, 256, 512])
def test_the_mark_can_be_read_after_encoding(tmp_path: Path, side: int) -> None:
    """The default quality of the writer leaves the contrast of the strokes, and the shape of the letters, on any ground."""
    letters, bare, cover = parts(side)
    inside = ~np.isnan(cover)
    for name, scene in scenes(side).items():
        shown = next(read_frames(video(tmp_path / "out.mp4", None, mark(scene)))).image
        light = luminance(shown)
        contrast = (light[letters].mean() + 0.05) / (light[bare].mean() + 0.05)
        alike = np.corrcoef(cover[inside], shown[..., 1][inside])[0, 1]
        assert contrast > READABLE and alike > 0.9, (name, contrast, alike)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(64, 400), width=st.integers(64, 400), value=st.integers(0, 255))
@example(height=64, width=71, value=1)  # letters of 10 pixels would fit, but on more than a quarter of it
def test_the_mark_is_small_and_in_the_corner(height: int, width: int, value: int) -> None:
    frame = np.full((height, width, 3), value, np.uint8)
    frame[0, 0] = (1, 2, 3)
    before = frame.copy()
    marked = mark(frame)
    assert np.array_equal(frame, before) and np.array_equal(marked, mark(frame)), "a function of the frame alone"
    rows, columns = np.nonzero((marked != frame).any(2))
    assert rows.min() > height / 2 and height - rows.max() < 0.12 * height + 4
    assert width - columns.max() < 0.12 * width + 4
    assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) < 0.25 * height * width
    assert marked.dtype == np.uint8 and marked.shape == frame.shape


def test_another_text_and_another_font(tmp_path: Path) -> None:
    frame = scenes(256)["noise"]
    default = ImageFont.load_default(12)
    assert isinstance(default, ImageFont.FreeTypeFont)
    (tmp_path / "font.ttf").write_bytes(default.font_bytes)
    own, given, other = mark(frame, "Synthetic"), mark(frame, "Synthetic", font=tmp_path / "font.ttf"), mark(frame, MARK)
    widths = [np.ptp(np.flatnonzero((marked != frame).any(2).any(0))) for marked in (own, given, other)]
    assert abs(widths[0] - widths[1]) <= 3, "the same font; the spacing of letters is the layout engine's"
    assert widths[2] > widths[0] + 5


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "give another"), ("  ", "give another"), ("two\nlines", "give another"), ("AI生成", "has no 成, 生"), ("x" * 400, "too long")],
)
def test_marks_that_cannot_be_drawn(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        mark(scenes(256)["black"], text)


def test_fonts_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "text.ttf").write_text("no font")
    for name in ("text.ttf", "none.ttf"):
        with pytest.raises(UserError, match=name):
            mark(scenes(256)["black"], font=tmp_path / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, astronaut: npt.NDArray[np.uint8]) -> Path:
    """A portrait, two frames of motion, and a model with weights."""
    import yaml

    folder = tmp_path_factory.mktemp("provenance")
    write_png(folder / "portrait.png", astronaut)
    motion, _ = load_motion(demo.MOTION)
    short = {name: getattr(motion, name)[40:42] for name in ("expression", "head_to_camera", "times", "found")}
    save_motion(folder / "motion.safetensors", replace(motion, **short), fps=Fraction(25), source="test")
    save_model(load_model(BASES), yaml.safe_load((BASES / "config.yaml").read_text())["model"], folder / "somebody" / "mine")
    return folder


def animated(folder: Path, output: Path, *more: object) -> list[npt.NDArray[np.uint8]]:
    words = ("--source", folder / "portrait.png", "--motion", folder / "motion.safetensors", "--output", output, "--size", 128)
    result = here("animate", *words, *more)
    assert result.returncode == 0, result.stderr
    return [frame.image for frame in read_frames(output)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_animate_leaves_a_record(folder: Path, tmp_path: Path, suffix: str) -> None:
    output, model = tmp_path / f"out{suffix}", folder / "somebody" / "mine"
    animated(folder, output, "--model", model, "--sheet", tmp_path / "sheet.png")
    records = [read_provenance(path) for path in (output, tmp_path / "sheet.png")]
    assert records[0] is not None and records[0] == records[1]
    assert (records[0].model, records[0].digital_source_type) == ("mine", RECORD.digital_source_type)
    assert records[0].model_sha256 == hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    assert b"somebody" not in output.read_bytes(), "names of folders tell who somebody is"


def test_animate_names_the_bases_and_marks_on_demand(folder: Path, tmp_path: Path) -> None:
    plain = animated(folder, tmp_path / "plain.mp4", "--model", "bases")
    marked = animated(folder, tmp_path / "marked.mp4", "--model", "bases", "--mark", "--sheet", tmp_path / "sheet.png")
    record = read_provenance(tmp_path / "plain.mp4")
    assert record is not None and (record.model, record.model_sha256) == ("mggtalk-bases", "none")
    for one, other in zip(plain, marked, strict=True):
        difference = np.abs(mark(one).astype(float) - other).mean(2)
        assert difference.mean() < 2 and np.abs(one.astype(float) - other)[100:, 50:].max() > 100
    sheet, strokes = np.asarray(Image.open(tmp_path / "sheet.png")), np.s_[170:, 70:]  # 192 pixels a picture, the portrait first
    source, first = sheet[:, :192][strokes].astype(float), sheet[:, 192:384][strokes].astype(float)
    assert np.abs(source - first).max() > 100, "the portrait is not synthetic, what follows is"


def test_full_frames_are_marked_in_the_corner_of_the_portrait(folder: Path, tmp_path: Path, astronaut: npt.NDArray[np.uint8]) -> None:
    frames = animated(folder, tmp_path / "full.mp4", "--full-frame", "--mark", "Synthetic")
    expected = mark(astronaut, "Synthetic").astype(float)[-60:, -160:]
    assert np.abs(frames[0][-60:, -160:] - expected).mean() < 6


def test_a_mark_that_cannot_be_drawn_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    words = ("--source", folder / "none.png", "--motion", folder / "none.csv", "--output", tmp_path / "out.mp4")
    failed(here("animate", *words, "--mark", "AI生成"), "font")
    failed(here("animate", *words, "--mark", "x", "--mark-font", tmp_path / "none.ttf"), "none.ttf")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_record_or_says_that_there_is_none(folder: Path, tmp_path: Path) -> None:
    result = here("provenance", video(tmp_path / "with.mov", provenance_tags(RECORD)))
    assert result.returncode == 0 and json.loads(result.stdout) == JSON
    result = here("provenance", video(tmp_path / "without.mov"))
    assert result.returncode == 1 and "without.mov: carries no record" in result.stdout and not result.stderr
    failed(here("provenance", tmp_path / "none.mp4"), "none.mp4")


def test_the_demonstration_leaves_a_record(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MOTION", folder / "motion.safetensors")
    assert demo.main(["--output", str(tmp_path), "--size", "128"]) == 0
    for name in ("talking_head.mp4", "contact_sheet.png"):
        record = read_provenance(tmp_path / name)
        assert record is not None and record.model in ("mggtalk-tiny", "mggtalk-bases")
    assert read_provenance(tmp_path / "astronaut.png") is None, "the photograph is none of ours"
