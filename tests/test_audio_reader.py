"""Reading sound in time, whatever the file."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_toolkit.annotators.audio_features import read_audio, stream_audio
from datasets_toolkit.errors import MediaError
from datasets_toolkit.media import audio_reader
from datasets_toolkit.media.opening import MediaWarning
from datasets_toolkit.media.video import VideoWriter
from datasets_toolkit.schema import FloatArray

av = pytest.importorskip("av")
TONE, AMPLITUDE = 440.0, 0.3


def write_sound(
    path: Path, *, rate: int = 16000, layout: str = "mono", codec: str = "pcm_s16le", seconds: float = 3.0,
    starts: tuple[float, ...] = (0.0,), signal: FloatArray | None = None,
) -> Path:  # fmt: skip
    """A tone that is sin(2 pi 440 t) at the time t of the file, in pieces of ``seconds`` that begin at ``starts``."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        channels = stream.codec_context.layout.nb_channels
        for start in starts:
            times = start + np.arange(round(rate * seconds)) / rate
            wave = AMPLITUDE * np.sin(2 * np.pi * TONE * times) if signal is None else signal
            for first in range(0, len(times), 1024):
                data = np.repeat((wave[first : first + 1024] * 32767).astype(np.int16)[None], channels, 0)
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data.T.reshape(1, -1)), format="s16", layout=layout)
                frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(start * rate) + first
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def phase_error(samples: np.ndarray, start: float) -> float:
    """By how many seconds the tone in the samples is late."""
    times = start + np.arange(len(samples)) / 16000
    middle = slice(len(samples) // 4, len(samples) * 3 // 4)
    turned = np.angle(np.sum(samples[middle] * np.exp(-2j * np.pi * TONE * times[middle]))) + np.pi / 2
    return float(-turned / (2 * np.pi * TONE))


FILES = [
    ("a.wav", 16000, "mono", "pcm_s16le"), ("a.wav", 48000, "5.1", "pcm_s16le"), ("a.wav", 8000, "mono", "pcm_s16le"),
    ("a.flac", 22050, "stereo", "flac"), ("a.m4a", 44100, "stereo", "aac"), ("a.mkv", 48000, "stereo", "libopus"),
    ("a.mp3", 44100, "mono", "mp3"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rate", "layout", "codec"), FILES, ids=lambda value: str(value))
def test_sound_is_read_in_time(tmp_path: Path, name: str, rate: int, layout: str, codec: str) -> None:
    samples, start = read_audio(write_sound(tmp_path / name, rate=rate, layout=layout, codec=codec))
    assert samples.dtype == np.int16
    assert samples.ndim == 1
    assert start + len(samples) / 16000 == pytest.approx(3, abs=0.06)
    assert abs(phase_error(samples, start)) < 1e-4  # of a sixteenth of a second; codecs themselves are off by a few millionths
    middle = samples[8000:40000].astype(float)
    assert math.sqrt(2 * np.mean(middle**2)) / 32767 == pytest.approx(AMPLITUDE, rel=0.08)
    if codec == "pcm_s16le" and rate == 16000:
        np.testing.assert_array_equal(samples, (AMPLITUDE * np.sin(2 * np.pi * TONE * np.arange(48000) / 16000) * 32767).astype(np.int16))


@given(start=st.floats(-1, 3.5), length=st.floats(0, 4))
@settings(deadline=None, max_examples=15)
def test_a_part_is_the_part_of_the_whole(tmp_path_factory: pytest.TempPathFactory, start: float, length: float) -> None:
    path = tmp_path_factory.getbasetemp() / "part.flac"
    if not path.exists():
        write_sound(path, rate=22050, codec="flac")
    whole, begin = read_audio(path)
    part, first = read_audio(path, start=start, end=start + length)
    low, high = (int(np.clip(round((time - begin) * 16000), 0, len(whole))) for time in (start, start + length))
    np.testing.assert_array_equal(part, whole[low:high])
    assert not len(part) or first == pytest.approx(begin + low / 16000, abs=1e-9)


def test_gaps_are_silent_and_overlaps_are_cut(tmp_path: Path) -> None:
    samples, start = read_audio(write_sound(tmp_path / "gap.mkv", rate=48000, seconds=1.0, starts=(0.5, 2.0)))
    assert start == pytest.approx(0.5, abs=0.002)
    assert len(samples) / 16000 == pytest.approx(2.5, abs=0.005)
    assert not samples[16200:23800].any()
    for part, begin in ((samples[:16000], start), (samples[24000:40000], start + 1.5)):
        assert abs(phase_error(part, begin)) < 5e-4  # Matroska counts milliseconds


def pieces(*parts: tuple[float, float, float | None, int, str]) -> list[object]:
    """Decoded frames: of the tone from a time on, for so many seconds, stamped with another time or none, of a rate and layout."""
    frames = []
    for begin, length, stamp, rate, layout in parts:
        for first in range(0, round(length * rate), 1000):
            times = begin + np.arange(first, min(first + 1000, round(length * rate))) / rate
            data = np.repeat((AMPLITUDE * np.sin(2 * np.pi * TONE * times) * 32767).astype(np.int16)[:, None], 1 + (layout == "stereo"), 1)
            frame = av.AudioFrame.from_ndarray(data.reshape(1, -1), format="s16", layout=layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = None if stamp is None else round(stamp * rate) + first
            frames.append(frame)
    return frames


PIECES = {  # what is decoded, when it starts and ends
    "overlap": ([(0.0, 1.0, 0.0, 48000, "mono"), (0.7, 1.0, 0.7, 48000, "mono")], 0.0, 1.7),
    "no stamps": ([(0.0, 1.0, None, 44100, "mono")], 0.0, 1.0),
    "stamps that end": ([(2.0, 0.5, 2.0, 44100, "mono"), (2.5, 0.5, None, 44100, "mono")], 2.0, 3.0),
    "another format": ([(1.0, 0.5, 1.0, 44100, "stereo"), (1.5, 0.5, 1.5, 32000, "mono")], 1.0, 2.0),
    "a clock that begins anew": ([(5.0, 2.0, 5.0, 16000, "mono"), (7.0, 1.0, 0.0, 16000, "mono")], 5.0, 8.0),
    "stamps that stray": ([(0.0, 0.5, 0.0, 16000, "mono"), (0.5, 0.5, 0.53, 16000, "mono")], 0.0, 1.0),
    "a broken stamp": ([(0.0, 1.0, 0.0, 16000, "mono"), (1.0, 1.0, 1e6, 16000, "mono")], 0.0, 2.0),
}


@pytest.mark.parametrize("case", PIECES)
def test_time_stamps_are_believed_as_far_as_they_make_sense(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, begin, end = PIECES[case]
    monkeypatch.setattr(audio_reader, "_decoded", lambda source, lost: iter(pieces(*parts)))
    samples, start = read_audio(write_sound(tmp_path / "a.wav", seconds=0.1))
    assert start == pytest.approx(begin, abs=1e-4)
    assert start + len(samples) / 16000 == pytest.approx(end, abs=2e-3)
    for part in np.array_split(np.arange(len(samples)), 4):
        assert abs(phase_error(samples[part], start + part[0] / 16000)) < 1e-4


def test_blocks_follow_each_other_and_are_small(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "long.flac", rate=44100, codec="flac", seconds=20)
    blocks = list(stream_audio(path))
    assert max(len(block.samples) for block in blocks) < 16000
    for one, following in pairwise(blocks):
        assert following.start == pytest.approx(one.start + len(one.samples) / 16000, abs=1e-9)
    np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks]), read_audio(path).samples)
    assert sum(1 for _ in stream_audio(path, until=1.0)) < len(blocks) / 10


def test_what_has_no_sound_is_told(tmp_path: Path) -> None:
    silent = tmp_path / "silent.mp4"
    with VideoWriter(silent, Fraction(25), (32, 32)) as writer:
        writer.write(np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "text.wav").write_text("no sound at all " * 100)
    (tmp_path / "empty.wav").touch()
    for path, told in (
        (silent, "has no sound"),
        (tmp_path / "text.wav", "no sound can be read"),
        (tmp_path / "empty.wav", "is empty"),
        (tmp_path / "none.wav", "no such sound file"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(MediaError, match=told) as caught:
            read_audio(path)
        assert str(path) in str(caught.value)


def test_damage_costs_what_is_damaged(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.flac", codec="flac", signal=np.random.default_rng(0).normal(0, 0.1, 48000).clip(-1, 1))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        samples, start = read_audio(path)
    assert start + len(samples) / 16000 == pytest.approx(3, abs=0.3)
    assert all(issubclass(one.category, MediaWarning) for one in told)
