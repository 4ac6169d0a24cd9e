"""Features of speech: against the toolkit's front end, in pieces, at other levels, and in silence and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_scenes import voice, voice_clip

from datasets_toolkit.annotators.audio_features import log_mel
from mggtalk.metrics.speech import correlation, lag, mouth_opening, opening_error, opening_of
from mggtalk.modules.speech import CHANNELS, SPAN, STEP, LogMel, voicing


def test_energies_are_the_toolkits() -> None:
    samples = (voice(1.0) * 32768).round()
    frames = torch.cat([torch.zeros(STEP), samples / 32768]).unfold(0, SPAN, STEP)
    centres = STEP * np.arange(len(frames))[:, None] + np.array([-80, 80])
    wanted = log_mel(samples.numpy().astype(np.int16), centres).mean(1)
    np.testing.assert_allclose(LogMel().energies(frames).numpy(), wanted, atol=2e-4)


@given(cuts=st.lists(st.integers(1, 5000), min_size=1, max_size=30))
@settings(deadline=None, max_examples=15)
def test_pieces_give_what_the_whole_gives(cuts: list[int]) -> None:
    samples, encoder = voice(2.0), LogMel()
    whole, memory, found, begin = encoder(samples), encoder.new_memory(), [], 0
    for size in [*cuts, len(samples)]:
        found.append(encoder(samples[begin : begin + size], memory))
        begin += size
    assert whole.shape == (len(samples) // STEP, CHANNELS)
    torch.testing.assert_close(torch.cat(found), whole, atol=1e-5, rtol=0)


def test_nothing_later_is_known() -> None:
    samples, encoder = voice(2.0), LogMel()
    changed = samples.clone()
    changed[16000:] = 0.3
    torch.testing.assert_close(encoder(samples)[:49], encoder(changed)[:49], atol=0, rtol=0)


@pytest.mark.parametrize(("gain", "most"), [(0.1, 0.15), (0.3, 0.05), (3.0, 0.08)])
def test_the_level_of_a_recording_hardly_matters(gain: float, most: float) -> None:
    samples = voice(6.0)
    one, other = LogMel()(samples)[100:], LogMel()(gain * samples)[100:]
    spoken = one[:, -2] > 1
    assert (one - other)[spoken].abs().mean() < most * one[spoken].abs().mean()


def test_silence_is_exactly_nothing_whatever_was_heard() -> None:
    encoder = LogMel()
    assert not encoder(torch.zeros(16000)).any()
    after = encoder(torch.cat([voice(2.0), torch.zeros(16000)]))
    assert after[:95].any(1).float().mean() > 0.5 and not after[102:].any()


def test_noise_stops_being_heard() -> None:
    noise = 0.003 * torch.randn(16000 * 12, generator=torch.Generator().manual_seed(0))
    features = LogMel()(noise)
    assert not features[400:].any()
    spoken = LogMel()(torch.cat([noise, 0.3 * voice(3.0) + noise[:48000]]))
    assert spoken[600:, -1].mean() > 0.3


def test_voicing_tells_a_tone_from_noise() -> None:
    clock = torch.arange(SPAN * 8) / 16000
    buzz = sum(torch.sin(2 * torch.pi * 130 * k * clock) / k for k in range(1, 8))
    noise = torch.randn(SPAN * 8, generator=torch.Generator().manual_seed(0))
    assert voicing(torch.as_tensor(buzz).reshape(-1, SPAN)).min() > 0.9
    assert voicing(noise.reshape(-1, SPAN)).max() < 0.6
    assert voicing(torch.zeros(1, SPAN)) == 0


def test_openings_lags_and_errors_are_those_of_known_signals() -> None:
    mesh = torch.zeros(2, 478, 3)
    mesh[:, 13, 1], mesh[:, 14, 1], mesh[:, 10, 1], mesh[:, 152, 1] = 1.0, torch.tensor([0.5, 0.2]), 10.0, -10.0
    torch.testing.assert_close(mouth_opening(mesh), torch.tensor([0.025, 0.04]))
    torch.testing.assert_close(opening_of(mesh[:, [13, 14, 10, 152]]), mouth_opening(mesh))
    clock = torch.arange(300) / 50
    wave = torch.sin(7 * clock) + torch.sin(3.1 * clock)
    late = torch.sin(7 * (clock - 0.087)) + torch.sin(3.1 * (clock - 0.087))
    delay, best = lag(late, wave, 50.0)
    assert delay == pytest.approx(0.087, abs=0.003) and best > 0.99
    assert lag(wave, late, 50.0)[0] == pytest.approx(-0.087, abs=0.003)
    assert correlation(wave, -2 * wave + 1) == pytest.approx(-1) and correlation(wave, torch.ones(300)) == 0
    assert opening_error(wave, wave + 0.02) == pytest.approx(2.0, abs=1e-4)


def test_a_clip_of_the_tests_has_a_mouth_that_follows_its_voice() -> None:
    clip = voice_clip(4.0, 1, late=5)
    delay, best = lag(clip.opening, clip.features[:, -2], 50.0)
    assert delay == pytest.approx(0.1, abs=0.03) and best > 0.7
