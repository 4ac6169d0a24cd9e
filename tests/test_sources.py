"""What is told of the times, the sound and the headers of sources, and how sources are called."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from build_fuzz import mux
from build_scenes import blank, write_video
from hypothesis import given
from hypothesis import strategies as st

from datasets_toolkit.build import sources as module
from datasets_toolkit.build.source_files import content_of, known_content, local_copy
from datasets_toolkit.build.sources import check_header, check_sound, check_times, content_hash, source_id
from datasets_toolkit.build.work import UnitStore
from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.sound import RATE, SILENCE, SourceSound, level, read_sound
from datasets_toolkit.recipes.base import Source

RATES = [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60)]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("tick", [1e-3, 1 / 90000])
def test_a_constant_rate_is_believed_whatever_the_containers_clock(rate: Fraction, tick: float) -> None:
    times = np.round(np.arange(200) / float(rate) / tick) * tick
    timing = check_times(times, rate)
    assert (timing.fps, timing.variable, timing.problems) == (rate, False, [])


def test_a_rate_without_its_denominator_is_found_out() -> None:
    timing = check_times(np.arange(100) / 30 * 1.001, Fraction(30000))
    assert timing.fps == Fraction(30000, 1001)
    assert timing.problems == ["wrong rate in the header: 30000.000 frames a second, the frame times say 29.970; the times are kept"]


def test_variable_rates_and_single_missing_frames_are_told_apart() -> None:
    generator = np.random.default_rng(0)
    varying = check_times(np.cumsum(generator.choice([0.02, 0.04, 0.1], 200)), Fraction(25))
    assert varying.variable
    assert varying.problems == ["variable frame rate: from 20 to 100 ms between frames; the true times are kept"]
    dropped = check_times(np.delete(np.arange(200) / 25, [50, 120]), Fraction(25))
    assert (dropped.fps, dropped.variable) == (25, False)
    assert dropped.problems == ["uneven frame times: 2 frames are missing, late or early, by 80 ms at most"]


@given(st.lists(st.floats(0.001, 0.5), min_size=1, max_size=50), st.sampled_from(RATES))
def test_any_times_have_a_rate(steps: list[float], header: Fraction) -> None:
    timing = check_times(np.cumsum([0.0, *steps]), header)
    assert 1 < timing.fps < 1100
    assert all("\n" not in problem for problem in timing.problems)


def sound(start: float, seconds: float) -> SourceSound:
    return SourceSound(np.full(round(seconds * RATE), 1000, np.int16), start)


@pytest.mark.parametrize(
    ("heard", "declared", "told"),
    [
        (sound(0.0, 2.0), True, []),
        (sound(0.05, 1.95), True, []),
        (None, False, ["no sound"]),
        (None, True, ["no sound: the audio stream cannot be decoded"]),
        (sound(0.4, 1.6), True, ["shifted sound: begins 0.40 s after the pictures"]),
        (sound(-0.5, 2.5), True, ["shifted sound: begins 0.50 s before the pictures"]),
        (sound(0.0, 1.0), True, ["short sound: ends 0.96 s before the pictures"]),
        (SourceSound(np.zeros(2 * RATE, np.int16), 0.0), True, ["silent: all samples are zero"]),
    ],
)
def test_sound_is_compared_with_the_pictures(heard: SourceSound | None, declared: bool, told: list[str]) -> None:
    assert check_sound(heard, [0.0, 1.96], declared) == told


def test_the_loudness_of_known_signals() -> None:
    square = np.where(np.arange(1600) % 2 == 0, 16384, -16384).astype(np.int16)
    assert level(square) == pytest.approx(20 * np.log10(0.5))
    sine = (32767 * np.sin(2 * np.pi * np.arange(RATE) / 100)).astype(np.int16)
    assert level(sine) == pytest.approx(-3.01, abs=0.01)
    assert level(np.zeros(100, np.int16)) == SILENCE
    assert np.isnan(level(square[:0]))


def test_parts_of_a_sound() -> None:
    ramp = SourceSound(np.arange(RATE, dtype=np.int16), 0.5)
    part = ramp.between(0.75, 1.0)
    assert (part.start, part.end, part.samples[0], len(part.samples)) == (0.75, 1.0, RATE // 4, RATE // 4)
    assert len(ramp.between(0.0, 0.4).samples) == 0
    filled = ramp.filled(0.25, 1.0)
    assert len(filled) == round(0.75 * RATE)
    assert not filled[: RATE // 4].any()
    np.testing.assert_array_equal(filled[RATE // 4 :], ramp.samples[: RATE // 2])
    assert not ramp.filled(5.0, 6.0).any()


def test_the_sound_of_a_video_keeps_its_time(tmp_path: Path) -> None:
    mux(tmp_path / "late.mp4", [blank(number) for number in range(25)], sound=0.5, late=0.3)
    found = read_sound(tmp_path / "late.mp4")
    assert found is not None
    loud = np.flatnonzero(np.abs(found.samples) > 2000)
    assert found.start + loud[0] / RATE == pytest.approx(0.3, abs=0.05)
    write_video(tmp_path / "mute.mp4", [blank(0), blank(1)])
    assert read_sound(tmp_path / "mute.mp4") is None


def test_a_header_that_asks_for_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "large.mp4", [blank(0), blank(1)])
    check_header(path)
    monkeypatch.setattr(module, "MAX_PIXELS", 10_000)
    with pytest.raises(MediaError, match=r"large\.mp4: the header says 208 x 208 pixels, which no camera takes"):
        check_header(path)


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("talks/Señor X.mp4", "vox-se-or-x-0123abcd"),
        ("clip.0001.mp4", "vox-clip-0001-0123abcd"),
        ("x" * 300, f"vox-{'x' * 76}-0123abcd"),
        ("???", "vox-0123abcd"),
    ],
)
def test_ids_of_sources(hint: str, expected: str) -> None:
    assert source_id(Source(path="/a/b.mp4", source_hint=hint, dataset="Vox"), "0123abcd" * 8) == expected


def test_content_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = tmp_path / "a.mp4", UnitStore(tmp_path / "work")
    path.write_bytes(b"moving pictures")
    wanted = hashlib.sha256(b"moving pictures").hexdigest()
    assert content_hash(path) == wanted
    assert known_content(str(path), store) is None
    assert content_of(str(path), store) == wanted
    monkeypatch.setattr("datasets_toolkit.build.source_files.content_hash", None)
    assert content_of(str(path), store) == known_content(str(path), store) == wanted
    path.write_bytes(b"other pictures!")
    import os

    os.utime(path, ns=(0, 0))
    assert known_content(str(path), store) is None
    with pytest.raises(MediaError, match="no such video file"):
        content_of(str(tmp_path / "b.mp4"), store)


def test_a_remote_source_is_copied_for_as_long_as_it_is_read(tmp_path: Path) -> None:
    import fsspec

    fs, store = fsspec.filesystem("memory"), UnitStore(tmp_path)
    with fs.open("/talk.mp4", "wb") as file:
        file.write(b"far away")
    with local_copy("memory://talk.mp4", store) as copy:
        assert copy.read_bytes() == b"far away"
    assert not copy.exists()
    assert content_of("memory://talk.mp4", store) == hashlib.sha256(b"far away").hexdigest()
    with pytest.raises(MediaError, match=r"memory://gone\.mp4: cannot be found"):
        content_of("memory://gone.mp4", store)
    with pytest.raises(MediaError, match="nosuch://a: this address cannot be used"):
        content_of("nosuch://a", store)
