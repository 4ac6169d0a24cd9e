"""Writing: exact times, colours, sound in step with the pictures, and all or nothing."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.video import VideoWriter, probe, read_frames

SIZE = (96, 64)
RATE = 48_000
CLICK = 1.0  # seconds; when the picture turns white and the tone begins


def smooth(width: int = SIZE[0], height: int = SIZE[1], phase: float = 0.0) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    planes = [x / width, y / height, 0.5 + 0.4 * np.sin(2 * x / width + y / height + phase)]
    return np.rint(np.stack(planes, axis=-1) * 220 + 10).astype(np.uint8)


def psnr(one: npt.NDArray[np.uint8], two: npt.NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255.0**2 / np.mean((one.astype(float) - two.astype(float)) ** 2)))


def sound(path: Path, codec: str, seconds: float = 3.0, rate: int = RATE, layout: str = "stereo") -> Path:
    """Silence until ``CLICK``, then a tone of 1 kHz."""
    times = np.arange(int(seconds * rate)) / rate
    wave = np.where(times >= CLICK, 0.5 * np.sin(2 * np.pi * 1000 * times), 0.0).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        for start in range(0, len(wave), 1024):
            part = np.tile(wave[start : start + 1024], (1 if layout == "mono" else 2, 1))
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def heard(path: Path) -> tuple[float, float, float, str]:
    """Begin, end and time of the click of the sound in a file, in seconds from the start of the file, and its codec."""
    with av.open(str(path)) as container:
        stream, start = container.streams.audio[0], (container.start_time or 0) / 1e6
        name, times, levels = stream.codec_context.codec.canonical_name, [], []
        for frame in container.decode(stream):
            wave = frame.to_ndarray().astype(float)
            wave = wave[0] if frame.format.is_planar else wave[0, :: frame.layout.nb_channels]
            times.append(float(frame.pts * frame.time_base) + np.arange(wave.size) / frame.sample_rate)
            levels.append(np.abs(wave))
    when, level = np.concatenate(times), np.concatenate(levels)
    when -= start
    return float(when[0]), float(when[-1] + when[1] - when[0]), float(when[np.argmax(level > 0.5 * level.max())]), name


def write(
    path: Path, times: list[float | None], fps: Fraction = Fraction(25), audio: Path | None = None, size: tuple[int, int] = SIZE
) -> None:
    """Dark frames, white ones from ``CLICK`` on."""
    with VideoWriter(path, fps, size, audio_from=audio) as writer:
        for i, time in enumerate(times):
            now = i / float(fps) if time is None else time
            writer.write(np.full((size[1], size[0], 3), 230 if now >= CLICK - 1e-6 else 20, np.uint8), time)


def flash(path: Path) -> float:
    return next(frame.time for frame in read_frames(path) if frame.image.mean() > 128)


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001), Fraction(24), Fraction(1350, 61)])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_constant_rate(tmp_path: Path, fps: Fraction, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write(path, [None] * 20, fps)
    tolerance = 0.00051 if suffix == ".mkv" else 1e-9  # Matroska keeps milliseconds
    assert [frame.time for frame in read_frames(path)] == pytest.approx([float(i / fps) for i in range(20)], abs=tolerance)
    info = probe(path)
    assert float(info.fps) == pytest.approx(float(fps), rel=1e-3 if suffix == ".mkv" else 1e-9)
    assert info.duration == pytest.approx(float(20 / fps), abs=0.0011)
    assert os.listdir(tmp_path) == [path.name]


def test_given_times_are_kept_relative_to_the_first(tmp_path: Path) -> None:
    times = [7.5, 7.5334, 7.61, 7.65, 8.9, 8.94]
    write(tmp_path / "out.mp4", list(times))
    assert [frame.time for frame in read_frames(tmp_path / "out.mp4")] == pytest.approx([time - 7.5 for time in times], abs=1e-5)


def test_times_from_a_variable_source_survive_a_copy(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", [0.0, 0.021, 0.3, 0.31, 0.9])
    with VideoWriter(tmp_path / "b.mkv", probe(tmp_path / "a.mp4").fps, SIZE) as writer:
        for frame in read_frames(tmp_path / "a.mp4"):
            writer.write(frame.image, frame.time)
    assert [frame.time for frame in read_frames(tmp_path / "b.mkv")] == pytest.approx([0.0, 0.021, 0.3, 0.31, 0.9], abs=0.00051)


def test_colours_survive(tmp_path: Path) -> None:
    images = [smooth(192, 128, i / 3) for i in range(5)]
    with VideoWriter(tmp_path / "out.mp4", Fraction(25), (192, 128)) as writer:
        for image in images:
            writer.write(image)
    assert writer.frames == 5
    for frame, image in zip(read_frames(tmp_path / "out.mp4"), images, strict=True):
        assert psnr(frame.image, image) > 40
        assert np.abs(frame.image.mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() < 0.8  # no shift that PSNR would hide


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50)])
def test_stored_values_are_those_of_bt709(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    """Against the closed form of ITU-R BT.709 with limited range, and the tags say so."""
    with VideoWriter(tmp_path / "out.mp4", Fraction(25), SIZE, crf=1) as writer:
        writer.write(np.full((SIZE[1], SIZE[0], 3), colour, np.uint8))
    with av.open(str(tmp_path / "out.mp4")) as container:
        frame = next(container.decode(video=0))
    red, green, blue = (value / 255 for value in colour)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    expected = (16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748)
    planes = frame.to_ndarray()
    y, chroma = planes[: SIZE[1]], planes[SIZE[1] :].reshape(2, -1)
    np.testing.assert_allclose([y.mean(), chroma[0].mean(), chroma[1].mean()], expected, atol=1.0)
    assert (frame.format.name, frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == ("yuv420p", 1, 1, 1, 1)


def test_odd_sizes_are_padded_with_their_border(tmp_path: Path) -> None:
    image = smooth(95, 63)
    with VideoWriter(tmp_path / "out.mp4", Fraction(25), (95, 63)) as writer:
        writer.write(image)
    shown = next(read_frames(tmp_path / "out.mp4")).image
    assert shown.shape == (64, 96, 3)
    assert psnr(shown[:63, :95], image) > 38
    assert psnr(shown[63:, :95], image[-1:]) > 33


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_metadata_is_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    tags = {"title": "Grüße", "mggtalk_synthetic": "yes"}
    with VideoWriter(path, Fraction(25), SIZE, metadata=tags) as writer:
        writer.write(smooth())
    with av.open(str(path)) as container:
        found = {key.lower(): value for key, value in container.metadata.items()}
    assert tags.items() <= found.items()


@pytest.mark.parametrize(
    ("name", "codec", "suffix", "expected"),
    [
        ("a.m4a", "aac", ".mp4", "aac"),
        ("a.m4a", "aac", ".mkv", "aac"),
        ("a.ts", "aac", ".mp4", "aac"),
        ("a.mp3", "libmp3lame", ".mp4", "mp3"),
        ("a.wav", "pcm_s16le", ".mp4", "aac"),
        ("a.wav", "pcm_s16le", ".mkv", "pcm_s16le"),
        ("a.wav", "pcm_s16le", ".mov", "pcm_s16le"),
        ("a.flac", "flac", ".mov", "aac"),
        ("a.mkv", "libopus", ".mp4", "aac"),
        ("a.mkv", "libopus", ".mkv", "opus"),
    ],
)
def test_sound_is_kept_in_step_and_cut_to_the_pictures(tmp_path: Path, name: str, codec: str, suffix: str, expected: str) -> None:
    source, path = sound(tmp_path / name, codec), tmp_path / f"out{suffix}"
    write(path, [None] * 50, audio=source)  # two seconds of three
    begin, end, click, found = heard(path)
    assert found == expected
    assert click == pytest.approx(heard(source)[2], abs=0.002)
    assert click - flash(path) == pytest.approx(0.0, abs=0.004 if name != "a.ts" else 0.03)  # this format hides no encoder delay
    assert begin <= 0.045
    assert 1.94 <= end <= 2.03
    assert probe(path).has_audio


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_part_of_a_source_takes_its_sound_along(tmp_path: Path, codec: str, suffix: str) -> None:
    source, path = sound(tmp_path / ("a.m4a" if codec == "aac" else "a.wav"), codec), tmp_path / f"out{suffix}"
    write(path, [0.613 + i / 25 for i in range(30)], audio=source)
    _, end, click, _ = heard(path)
    assert click == pytest.approx(CLICK - 0.613, abs=0.004)
    assert abs(click - flash(path)) < 1 / 25
    assert 1.15 <= end <= 1.23


def test_encoded_sound_ends_with_the_last_frame_to_the_sample(tmp_path: Path) -> None:
    source = sound(tmp_path / "a.wav", "pcm_s16le", rate=22_050, layout="mono")
    write(tmp_path / "out.mp4", [None] * 33, audio=source)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.audio[0]
        assert stream.duration * stream.time_base == pytest.approx(33 / 25, abs=1.5 / 22_050)
        assert (stream.codec_context.sample_rate, stream.codec_context.layout.name) == (22_050, "mono")


def test_sound_of_unusual_rate_is_resampled(tmp_path: Path) -> None:
    source = sound(tmp_path / "a.wav", "pcm_s16le", rate=11_025)
    write(tmp_path / "out.mp4", [None] * 50, audio=source)
    _, end, click, _ = heard(tmp_path / "out.mp4")
    assert click == pytest.approx(CLICK, abs=0.004)
    assert end == pytest.approx(2.0, abs=0.03)


def test_short_sound_ends_where_it_ends(tmp_path: Path) -> None:
    source = sound(tmp_path / "a.wav", "pcm_s16le", seconds=1.2)
    write(tmp_path / "out.mp4", [None] * 50, audio=source)
    _, end, click, _ = heard(tmp_path / "out.mp4")
    assert click == pytest.approx(CLICK, abs=0.004)
    assert end == pytest.approx(1.2, abs=0.03)
    assert probe(tmp_path / "out.mp4").duration == pytest.approx(2.0)


def test_the_source_of_the_sound_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write(path, [None] * 50, audio=sound(tmp_path / "a.m4a", "aac"))
    frames = list(read_frames(path))
    with VideoWriter(path, probe(path).fps, SIZE, audio_from=path) as writer:
        for frame in frames:
            writer.write(frame.image, frame.time)
    assert heard(path)[2] == pytest.approx(CLICK, abs=0.004)
    assert flash(path) == pytest.approx(CLICK)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_and_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path, source = tmp_path / "out.mp4", sound(tmp_path / "a.wav", "pcm_s16le")
    path.write_bytes(b"older")
    with pytest.raises(error), VideoWriter(path, Fraction(25), SIZE, audio_from=source) as writer:
        for _ in range(30):
            writer.write(smooth())
        raise error
    assert path.read_bytes() == b"older"
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "out.mp4"]


def test_the_final_name_appears_only_at_the_end(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", Fraction(25), SIZE) as writer:
        writer.write(smooth())
        assert not (tmp_path / "out.mp4").exists()
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_no_frame_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no frame was written"), VideoWriter(tmp_path / "out.mp4", Fraction(25), SIZE):
        pass
    assert os.listdir(tmp_path) == []


def test_unusable_outputs_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    for name, reason in (("out.avi", "cannot write this kind"), ("folder.mp4", "is a folder"), ("missing/out.mp4", "create it first")):
        with pytest.raises(MediaError, match=reason) as caught:
            VideoWriter(tmp_path / name, Fraction(25), SIZE)
        assert str(tmp_path / name) in str(caught.value)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)  # permissions do not bind an administrator, so the refusal is played
    with (
        pytest.raises(MediaError, match=r"out\.mp4: writing failed \(Permission denied\)"),
        VideoWriter(tmp_path / "out.mp4", Fraction(25), SIZE),
    ):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "touch", lambda self, **_: self.symlink_to("/dev/full"))
    with (
        pytest.raises(MediaError, match="No space left on device"),
        VideoWriter(tmp_path / "out.mkv", Fraction(25), (512, 512), crf=0) as writer,
    ):
        noise = np.random.default_rng(0)
        for _ in range(60):
            writer.write(noise.integers(0, 256, (512, 512, 3), dtype=np.uint8))
    assert os.listdir(tmp_path) == []


def test_sound_that_cannot_be_used(tmp_path: Path) -> None:
    write(tmp_path / "silent.mp4", [None] * 3)
    (tmp_path / "text.wav").write_text("no sound\n" * 50)
    (tmp_path / "empty.wav").touch()
    for name, reason in (
        ("silent.mp4", "has no sound"),
        ("text.wav", "no sound can be read"),
        ("empty.wav", "is empty"),
        ("x.wav", "no such"),
    ):
        with (
            pytest.raises(MediaError, match=reason) as caught,
            VideoWriter(tmp_path / "out.mp4", Fraction(25), SIZE, audio_from=tmp_path / name),
        ):
            pass
        assert str(tmp_path / name) in str(caught.value)
        assert not (tmp_path / "out.mp4").exists()
    assert not list(tmp_path.glob(".*"))


def test_misuse_is_a_value_error(tmp_path: Path) -> None:
    for bad in (smooth(64, 64), smooth().astype(np.uint16)):
        with (
            pytest.raises(Exception, match=r"expected uint8|Type-check error"),
            VideoWriter(tmp_path / "out.mp4", Fraction(25), SIZE) as writer,
        ):
            writer.write(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must increase"), VideoWriter(tmp_path / "out.mp4", Fraction(25), SIZE) as writer:
        writer.write(smooth(), 1.0)
        writer.write(smooth(), 1.0)
    with pytest.raises(ValueError, match="positive"):
        VideoWriter(tmp_path / "out.mp4", Fraction(0), SIZE)
    assert os.listdir(tmp_path) == []
