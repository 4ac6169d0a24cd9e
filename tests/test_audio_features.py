"""Features of sound against outside implementations and slow twins; slices."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from datasets_toolkit.annotators.audio_features import AudioSlices, log_mel, mel_filters, mfcc
from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import FloatArray


def test_mel_filters_are_those_of_speech_networks() -> None:
    mel_filter_bank = pytest.importorskip("transformers.audio_utils").mel_filter_bank
    wanted = mel_filter_bank(201, 80, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters(), wanted.T, atol=1e-12)


def slow_log_mel(samples: np.ndarray, centre: int) -> FloatArray:
    """The definition, sample by sample and bin by bin."""
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / 400) for n in range(400)]
    piece = [samples[centre - 200 + n] / 32768 * window[n] if 0 <= centre - 200 + n < len(samples) else 0.0 for n in range(400)]
    power = [abs(sum(x * cmath.exp(-2j * math.pi * k * n / 400) for n, x in enumerate(piece))) ** 2 for k in range(201)]
    return np.log10(np.maximum(mel_filters() @ np.array(power), 1e-10))


def test_log_mel_is_its_slow_twin_also_beyond_the_ends() -> None:
    samples = np.random.default_rng(1).normal(0, 3000, 1000).astype(np.int16)
    centres = np.array([[0, 500], [970, 5000]])
    found = log_mel(samples, centres, block=3)
    for index in np.ndindex(2, 2):
        np.testing.assert_allclose(found[index], slow_log_mel(samples, int(centres[index])), atol=1e-6)
    assert (found[1, 1] == -10).all()


def test_log_mel_agrees_with_a_speech_networks_front_end() -> None:
    extractor = pytest.importorskip("transformers").WhisperFeatureExtractor(feature_size=80)
    samples = np.random.default_rng(0).normal(0, 3000, 32000).astype(np.int16)
    wanted = extractor(samples / 32768, sampling_rate=16000, return_tensors="np", padding="longest")["input_features"][0]
    found = log_mel(samples, 160 * np.arange(wanted.shape[1])).T
    found = (np.maximum(found, found.max() - 8) + 4) / 4  # its clamping
    np.testing.assert_allclose(found[:, 2:-2], wanted[:, 2:-2], atol=1e-5)  # it mirrors the sound at both ends


def slow_mfcc(samples: np.ndarray) -> FloatArray:
    """An independent writing of the classical front end: a filter for pre-emphasis, loops, the cosine transform by its sum."""
    emphasised = lfilter([1, -0.97], [1], samples.astype(float))
    count = 1 + max(0, math.ceil((len(samples) - 400) / 160))
    padded = np.concatenate([emphasised, np.zeros(count * 160 + 400)])
    corners = [math.floor(513 * 700 * (10 ** (mel / 2595) - 1) / 16000) for mel in np.linspace(0, 2595 * math.log10(1 + 8000 / 700), 28)]
    rows = []
    for frame in range(count):
        power = np.abs(np.fft.rfft(padded[frame * 160 : frame * 160 + 400], 512)) ** 2 / 512
        bands = []
        for low, middle, high in zip(corners[:-2], corners[1:-1], corners[2:], strict=True):
            rise = sum(power[k] * (k - low) / (middle - low) for k in range(low, middle))
            bands.append(rise + sum(power[k] * (high - k) / (high - middle) for k in range(middle, high)))
        logs = np.log(np.maximum(bands, 2.220446049250313e-16))
        row = []
        for c in range(13):
            wave = sum(x * math.cos(math.pi * c * (2 * n + 1) / 52) for n, x in enumerate(logs))
            row.append(math.sqrt((1 if c == 0 else 2) / 26) * wave * (1 + 11 * math.sin(math.pi * c / 22)))
        row[0] = math.log(power.sum() or 2.220446049250313e-16)
        rows.append(row)
    return np.array(rows)


@given(seed=st.integers(0, 10**6), length=st.integers(1, 2500))
@settings(deadline=None, max_examples=10)
def test_mfcc_is_its_slow_twin(seed: int, length: int) -> None:
    samples = np.random.default_rng(seed).normal(0, 3000, length).astype(np.int16)
    np.testing.assert_allclose(mfcc(samples), slow_mfcc(samples), atol=1e-7)


def test_silence_has_finite_features() -> None:
    assert np.isfinite(mfcc(np.zeros(1000, np.int16))).all()
    assert (log_mel(np.zeros(1000, np.int16), np.array([500])) == -10).all()


@given(seed=st.integers(0, 10**6), count=st.integers(1, 30), start=st.floats(-1, 1))
@settings(deadline=None, max_examples=40)
def test_slices_hold_each_sample_once(seed: int, count: int, start: float) -> None:
    generator = np.random.default_rng(seed)
    times = np.cumsum(generator.uniform(0.01, 0.1, count))
    samples = generator.integers(-(2**15), 2**15, generator.integers(0, 30000)).astype(np.int16)
    frames = AudioSlices()(samples, times, start=start)
    assert len(frames) == count
    whole = np.concatenate([frame.pcm for frame in frames])
    first = int(np.clip(np.round((times[0] - start) * 16000), 0, len(samples)))
    np.testing.assert_array_equal(whole, samples[first : first + len(whole)])
    for index in range(count - 1):
        at = first + sum(len(frame.pcm) for frame in frames[:index])
        if len(frames[index].pcm) and times[index] >= start:
            assert abs(start + at / 16000 - times[index]) <= 0.5 / 16000 + 1e-9
            if start + len(samples) / 16000 > times[index + 1]:
                assert len(frames[index].pcm) == pytest.approx((times[index + 1] - times[index]) * 16000, abs=1)


def test_a_click_is_heard_in_its_frame_only() -> None:
    samples = np.zeros(16000, np.int16)
    samples[8000 + 100] = 30000
    times = 2.0 + np.arange(25) / 25
    frames = AudioSlices()(samples, times, start=2.0)
    assert [index for index, frame in enumerate(frames) if frame.pcm.any()] == [12]
    assert int(frames[12].pcm.argmax()) == 8100 - 12 * 640 - 0
    loud = np.array([frame.mel.astype(float).max(1) for frame in frames]).reshape(-1)  # hops of 10 ms from 2 s on
    assert (np.flatnonzero(loud > -9) == [50, 51]).all()  # windows of 25 ms: 100 samples before it and 60 after it


def test_times_that_do_not_increase_are_refused() -> None:
    for times in ([0.0, 0.0], [0.1, 0.0], [0.0, math.nan]):
        with pytest.raises(UserError, match="do not increase"):
            AudioSlices()(np.zeros(100, np.int16), np.array(times))
    assert AudioSlices()(np.zeros(100, np.int16), np.zeros(0)) == []
