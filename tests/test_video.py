"""Reading: times, orientation, colours and damage. Every file is encoded in the test, and damaged there where damage is the point."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.video import MediaWarning, probe, read_frames

WIDTH, HEIGHT = 96, 64


def smooth(phase: float = 0.0, width: int = WIDTH, height: int = HEIGHT) -> npt.NDArray[np.uint8]:
    """A picture without symmetry and without edges, so that chroma subsampling and compression cost little."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x / width, y / height, 0.5 + 0.4 * np.sin(2 * x / width + y / height + phase)]
    return np.rint(np.stack(planes, axis=-1) * 220 + 10).astype(np.uint8)


def psnr(one: npt.NDArray[np.uint8], two: npt.NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255.0**2 / np.mean((one.astype(float) - two.astype(float)) ** 2)))


def encode(path: Path, ticks: list[int], base: Fraction, rate: Fraction, sizes: tuple[int, int] = (WIDTH, HEIGHT), **settings: str) -> Path:
    """A clip through PyAV alone: frame i shows ``smooth(i / 5)`` at ``ticks[i] * base`` seconds."""
    aspect = settings.pop("aspect", None)
    with av.open(str(path), "w", options=settings) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "8", "g": "8"})
        stream.width, stream.height, stream.pix_fmt = *sizes, "yuv420p"
        stream.codec_context.time_base = base
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for i, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(smooth(i / 5, *sizes), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = tick, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def clip(path: Path, count: int = 10, **settings: str) -> Path:
    return encode(path, list(range(count)), Fraction(1, 25), Fraction(25), **settings)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_constant_rate_gives_its_fraction_and_its_times(tmp_path: Path, rate: Fraction, suffix: str) -> None:
    path = encode(tmp_path / f"clip{suffix}", list(range(12)), 1 / rate, rate)
    info, frames = probe(path), list(read_frames(path))
    assert info.fps == rate
    assert (info.width, info.height, info.has_audio, info.codec) == (WIDTH, HEIGHT, False, "h264")
    assert info.frames == 12
    assert info.duration == pytest.approx(12 / rate, abs=0.002)
    assert [frame.index for frame in frames] == list(range(12))
    tolerance = 1e-9 if suffix == ".mp4" else 0.00051  # Matroska keeps milliseconds
    assert [frame.time for frame in frames] == pytest.approx([float(i / rate) for i in range(12)], abs=tolerance)


def test_variable_rate_keeps_true_times(tmp_path: Path) -> None:
    ticks = [0, 40, 73, 200, 213, 600, 601, 900]
    path = encode(tmp_path / "vfr.mp4", ticks, Fraction(1, 1000), Fraction(25))
    assert [frame.time for frame in read_frames(path)] == pytest.approx([tick / 1000 for tick in ticks], abs=1e-9)


def test_a_stream_that_starts_late_keeps_its_clock(tmp_path: Path) -> None:
    path = encode(tmp_path / "late.mkv", [1500, 1540, 1580], Fraction(1, 1000), Fraction(25))
    assert [frame.time for frame in read_frames(path)] == pytest.approx([1.5, 1.54, 1.58])


def test_frames_without_time_stamps_follow_the_nominal_rate(tmp_path: Path) -> None:
    with av.open(str(clip(tmp_path / "clip.mp4", movflags="faststart"))) as container:  # a bare stream of H.264 has no times at all
        raw = tmp_path / "raw.h264"
        with av.open(str(raw), "w", format="h264") as output:
            stream = output.add_stream_from_template(container.streams.video[0])
            for packet in container.demux(container.streams.video[0]):
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
    frames = list(read_frames(raw))
    steps = np.diff([frame.time for frame in frames])
    assert len(frames) == 10
    np.testing.assert_allclose(steps, 1 / float(probe(raw).fps), atol=1e-9)


def test_start_and_limit_select_by_time_and_keep_source_numbers(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4")
    whole = list(read_frames(path))
    part = list(read_frames(path, start=0.1, limit=4))
    assert [frame.index for frame in part] == [3, 4, 5, 6]
    for frame in part:
        assert frame.time == whole[frame.index].time
        np.testing.assert_array_equal(frame.image, whole[frame.index].image)
    assert list(read_frames(path, limit=0)) == []
    assert list(read_frames(path, start=99.0)) == []


MATRICES = {  # a, b, c, d of x' = a x + c y, y' = b x + d y, and the same as an operation on arrays
    "upright": ((1, 0, 0, 1), lambda a: a),
    "quarter": ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),
    "half": ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
    "three quarters": ((0, -1, 1, 0), lambda a: np.rot90(a, 1)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "flipped": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
    "transversed": ((0, -1, -1, 0), lambda a: np.rot90(a, 2).swapaxes(0, 1)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_display_matrix_is_applied(tmp_path: Path, name: str) -> None:
    (a, b, c, d), operation = MATRICES[name]
    path = clip(tmp_path / "clip.mp4", 3)
    upright = next(read_frames(path)).image
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix follows 40 bytes of version 0 fields
    data[at : at + 36] = struct.pack(">9i", *(value << 16 for value in (a, b)), 0, *(value << 16 for value in (c, d)), 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    shown = next(read_frames(path)).image
    np.testing.assert_array_equal(shown, operation(upright))
    assert shown.flags.c_contiguous
    info = probe(path)
    assert (info.height, info.width) == shown.shape[:2]


@pytest.mark.parametrize(("aspect", "size"), [("2", (192, 64)), ("1/2", (96, 128)), ("16/15", (102, 64)), ("1", (96, 64))])
def test_pixels_become_square(tmp_path: Path, aspect: str, size: tuple[int, int]) -> None:
    path = clip(tmp_path / "clip.mp4", 2, aspect=aspect)
    image = next(read_frames(path)).image
    assert (image.shape[1], image.shape[0]) == (probe(path).width, probe(path).height) == size
    assert psnr(image, smooth(0.0, *size)) > 33


def _tagged(path: Path, matrix: int, full: bool, height: int = HEIGHT) -> tuple[Path, tuple[int, int, int]]:
    """One grey-level triple of YUV as a lossless clip with the given tags."""
    y, u, v = 120, 100, 160
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, height, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        planes = np.concatenate([np.full(WIDTH * height, y), np.full(WIDTH * height // 4, u), np.full(WIDTH * height // 4, v)])
        frame = av.VideoFrame.from_ndarray(planes.astype(np.uint8).reshape(height * 3 // 2, WIDTH), format="yuv420p")
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path, (y, u, v)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("matrix", "height", "kr", "kb"), [(1, 64, 0.2126, 0.0722), (6, 64, 0.299, 0.114), (2, 64, 0.299, 0.114), (2, 720, 0.2126, 0.0722)]
)
def test_colours_follow_the_tags_of_the_stream(tmp_path: Path, matrix: int, height: int, kr: float, kb: float, full: bool) -> None:
    """Against the closed form of H.273: untagged small pictures are BT.601, untagged large ones BT.709."""
    path, (y, u, v) = _tagged(tmp_path / "clip.mp4", matrix, full, height)
    luma = y / 255 if full else (y - 16) / 219
    cb, cr = ((value - 128) / (255 if full else 224) for value in (u, v))
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    image = next(read_frames(path)).image
    np.testing.assert_allclose(image.reshape(-1, 3).mean(axis=0), 255 * np.array([red, green, blue]), atol=1.0)


@pytest.mark.parametrize(("suffix", "settings"), [(".mp4", {"movflags": "faststart"}), (".mkv", {})])
def test_a_truncated_file_yields_its_beginning_and_says_so(tmp_path: Path, suffix: str, settings: dict[str, str]) -> None:
    path = clip(tmp_path / f"clip{suffix}", 60, **settings)
    whole = list(read_frames(path))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.warns(MediaWarning, match=r"clip\.\w+: damaged or cut short: (\d+) frames were read") as caught:
        frames = list(read_frames(path))
    assert 20 <= len(frames) < 50
    assert f" {len(frames)} frames were read" in str(caught[0].message)
    for frame in frames[:16]:
        np.testing.assert_array_equal(frame.image, whole[frame.index].image)
        assert frame.time == whole[frame.index].time


def test_damage_in_the_middle_costs_some_frames_only(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.ts", 60)
    data = bytearray(path.read_bytes())
    del data[len(data) // 2 : len(data) // 2 + 188 * 4]  # four whole packets of the transport stream are lost
    path.write_bytes(data)
    with pytest.warns(MediaWarning, match="could not be decoded"):
        frames = list(read_frames(path))
    assert 40 <= len(frames) < 60
    assert frames[-1].time == pytest.approx(frames[0].time + 59 / 25, abs=1e-6)
    assert np.all(np.diff([frame.time for frame in frames]) > 0)


def _sound_only(path: Path) -> None:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))


def _still(path: Path) -> None:
    from PIL import Image

    Image.fromarray(smooth()).save(path, format="PNG")


def _headerless(path: Path) -> None:
    clip(path, 10)  # without "faststart" the index is the end of the file
    path.write_bytes(path.read_bytes()[:-400])


BROKEN = {
    "missing": (lambda path: None, "no such video file"),
    "folder": (Path.mkdir, "is a folder"),
    "empty": (Path.touch, "is empty"),
    "text": (lambda path: path.write_text("this is no video\n" * 40), "not a readable video"),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(4000)), "not a readable video"),
    "still image": (_still, "a still image"),
    "sound only": (_sound_only, "no video stream"),
    "without index": (_headerless, "not a readable video"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("reader", [probe, lambda path: next(read_frames(path))])
def test_unusable_files_give_one_line_that_names_the_file(tmp_path: Path, case: str, reader: object) -> None:
    make, reason = BROKEN[case]
    path = tmp_path / "some video.mp4"
    make(path)
    with pytest.raises(MediaError, match=reason) as caught:
        reader(path)  # type: ignore[operator]
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert ";" in message  # what to do


def test_a_video_without_any_frame_is_refused(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", 10, movflags="faststart")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 40])
    for reader in (probe, lambda path: next(read_frames(path))):
        with pytest.raises(MediaError, match="no frame"):
            reader(path)


def test_missing_pyav_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "clip.mp4", 2)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MediaError, match="pip install av"):
        probe(path)


@pytest.mark.parametrize("window", [(20, 11, 61, 40), (0, 0, 30, 64), (50, 30, 140, 90), (-20, -20, 200, 200), (5, 60, 9, 64)])
def test_windows_hold_the_pixels_of_the_whole_frame(tmp_path: Path, window: tuple[int, int, int, int]) -> None:
    path = encode(tmp_path / "clip.mp4", list(range(6)), Fraction(1, 25), Fraction(25), (200, 120))
    whole = [frame.image for frame in read_frames(path)]
    asked = list[int]()

    def part(index: int) -> tuple[int, int, int, int] | None:
        asked.append(index)
        return None if index == 2 else window

    for frame in read_frames(path, part=part):
        (x, y), (height, width) = frame.corner, frame.image.shape[:2]
        if frame.index == 2:
            assert frame.image.shape == (0, 0, 3)
            continue
        assert x <= max(window[0], 0) and x + width >= min(window[2], 200)
        assert y <= max(window[1], 0) and y + height >= min(window[3], 120)
        np.testing.assert_array_equal(frame.image, whole[frame.index][y : y + height, x : x + width])
    assert asked == list(range(6))


def test_stretched_frames_come_whole(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", 2, aspect="2/1")
    whole = [frame.image for frame in read_frames(path)]
    for frame in read_frames(path, part=lambda index: (20, 20, 40, 40)):
        assert frame.corner == (0, 0)
        np.testing.assert_array_equal(frame.image, whole[frame.index])
