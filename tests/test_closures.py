"""Closures of the lips: where phones are heard, whether lips close there, what closes them, and pictures of both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from speech_scenes import random_network, voice, voice_clip
from torch import Tensor

from datasets_toolkit.annotators.phones import BILABIAL, LONGEST, SILENCE, UNDERSTOOD, Phone, PhoneAligner, closures, understood
from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.synthetic.dataset import build_synthetic
from mggtalk.data.agreement import design_of
from mggtalk.data.sealing import BEGIN, END, sealed, set_seal
from mggtalk.data.speech_clips import SpeechClip, bilabials, moved, read_clips
from mggtalk.evaluation import heard as suite
from mggtalk.evaluation.closures import closure_rows, phone_sheet
from mggtalk.evaluation.heard import closure_values, phones_of, spans
from mggtalk.evaluation.methods import Repeated
from mggtalk.evaluation.speech import Driven
from mggtalk.geometry.face_model import INNER_LIPS, TOUCH, FaceModel
from mggtalk.metrics.speech import AROUND, Closures, closed_level, closes, gap_of, lip_closures, opening_of
from mggtalk.modules.audio import AudioNetwork
from mggtalk.modules.speech import LogMel

RATE = 50.0


def phone(name: str, start: float, end: float, likelihood: float = -1.0) -> Phone:
    return Phone(name=name, start=start, end=end, likelihood=likelihood)


def samples(seconds: float, seed: int = 0) -> np.ndarray:
    return (32767 * voice(seconds, seed).numpy()).astype(np.int16)


def curve(seconds: float, shut: Sequence[tuple[float, float]]) -> Tensor:
    """Openings, 50 a second: 0.05 with a little ripple, and 0.002 within the given times (s)."""
    times = torch.arange(round(seconds * RATE), dtype=torch.float64) / RATE
    opening = 0.05 + 0.01 * torch.sin(9 * times)
    for start, end in shut:
        opening[(times >= start - 1e-9) & (times <= end + 1e-9)] = 0.002
    return opening.float()


def test_closures_are_counted_as_they_were_made() -> None:
    tracked = curve(10.0, [(1.0, 1.1), (3.0, 3.1), (5.0, 5.1), (7.0, 7.6)])
    heard = torch.tensor([[1.0, 1.1], [3.0, 3.1], [5.0, 5.1], [8.5, 8.6], [9.95, 10.2]])
    truth = lip_closures(tracked, tracked, heard, RATE)
    assert (truth.heard, truth.seen, truth.kept) == (4, 3, 3), "one is heard but not seen, one reaches beyond the clip"
    some = lip_closures(curve(10.0, [(1.14, 1.2), (3.16, 3.3)]), tracked, heard, RATE)
    assert (some.seen, some.kept) == (3, 1), f"{AROUND} s after a phone counts, more does not"
    never, always = (lip_closures(torch.full_like(tracked, value), tracked, heard, RATE) for value in (0.05, 0.0))
    assert (never.kept, never.chance) == (0, 0.0) and always.kept == 3 and always.chance == pytest.approx(3)


def test_chance_is_the_share_of_places_that_find_the_lips_closed() -> None:
    """A phone of 5 frames finds a closure of 6 frames from 15 of the 495 frames it may begin at, with 2 frames around it."""
    tracked = curve(10.0, [(3.0, 3.1), (7.0, 7.6)])
    driven = curve(10.0, [(5.0, 5.1)])
    found = lip_closures(driven, tracked, torch.tensor([[3.0, 3.1]]), RATE)
    starts = [start for start in range(500) if start + 5 <= 499]
    meets = [start for start in starts if start - 2 <= 255 and start + 5 + 2 >= 250]
    assert found == replace(Closures(heard=1, seen=1, kept=0, chance=0.0), chance=found.chance)
    assert found.chance == pytest.approx(len(meets) / len(starts))
    assert (len(meets), len(starts)) == (15, 495)


def test_closed_is_the_lowest_tenth_of_the_clips_own_range() -> None:
    ramp = torch.linspace(0, 1, 1001)
    assert closed_level(ramp) == pytest.approx(0.05 + 0.1 * 0.9)
    assert closed_level(3 * ramp + 2) == pytest.approx(3 * 0.14 + 2)
    inside = closes(ramp, torch.tensor([[0.0, 0.1], [3.0, 3.1], [2.84, 3.0]]), RATE, closed_level(ramp))
    assert inside.tolist() == [True, False, True], "0.14 is reached at 2.8 s"


def test_gaps_are_openings_that_know_which_lip_is_above() -> None:
    points = torch.tensor([[0.0, 1, 0], [0, 0.5, 0], [0, 10, 0], [0, -10, 0]])
    assert float(gap_of(points)) == pytest.approx(float(opening_of(points))) == pytest.approx(0.025)
    assert float(gap_of(points[[1, 0, 2, 3]])) == pytest.approx(-0.025)


@pytest.mark.parametrize("seed", range(3))
def test_lips_that_close_are_the_most_probable_ones(seed: int) -> None:
    """Least squares of the stacked system, by another solver; and the lips of every face touch."""
    model, generator = FaceModel(), torch.Generator().manual_seed(seed)
    neutral = model.mean + torch.einsum("a,avk->vk", torch.randn(len(model.identity), generator=generator), model.identity)
    found = model.closing(neutral)
    upper, lower = (list(side) for side in INNER_LIPS)
    gaps = (model.components[:, upper] - model.components[:, lower]).flatten(1).numpy().astype(np.float64)
    distance = (neutral[upper] - neutral[lower]).flatten().numpy().astype(np.float64)
    stacked = np.concatenate([gaps.T / TOUCH, np.eye(len(gaps))])
    wanted = np.linalg.lstsq(stacked, np.concatenate([-distance / TOUCH, np.zeros(len(gaps))]), rcond=None)[0]
    size = len(model.blendshapes)
    np.testing.assert_allclose(found[size:].numpy(), wanted, atol=1e-3)
    assert not found[:size].any()
    closed = neutral + model.displacement(found)
    before, after = (np.linalg.norm((face[upper] - face[lower]).numpy(), axis=-1).max() for face in (neutral, closed))
    assert before > 0.1 and after < 0.35 * before


def test_phones_are_believed_by_their_likelihood() -> None:
    heard = [phone(SILENCE, 0.0, 0.2, -9.0), phone("P", 0.2, 0.3), phone("AA", 0.3, 0.5), phone("M", 0.5, 0.5 + LONGEST + 0.01)]
    assert understood(heard) and [one.start for one in closures(heard)] == [0.2], "silence does not count, nor does what lasts too long"
    doubtful = [replace(one, likelihood=UNDERSTOOD - 0.01) for one in heard]
    assert not understood(doubtful) and closures(doubtful) == [] and not understood([]) and not understood(heard[:1])
    assert spans(heard).tolist() == [[0.2, 0.3]] and spans([]).shape == (0, 2)


def test_a_clip_knows_where_bilabials_are_heard() -> None:
    class Fixed(PhoneAligner):
        def __init__(self) -> None:
            """Loads nothing."""

        def __call__(self, samples: np.ndarray, words: Sequence[str] | None = None) -> list[Phone]:
            assert samples.dtype == np.int16 and samples.max() == 16384
            return [phone("B", 0.5, 0.6), phone("IY", 0.6, 0.7)]

    found, known = bilabials(Fixed(), np.full(32000, 0.5), 100)
    assert known and found.nonzero()[:, 0].tolist() == list(range(23, 33))
    assert bilabials(None, np.zeros(3200), 10)[1] is False
    clip = replace(voice_clip(2.0, 0), bilabial=found)
    assert moved(clip, 3).bilabial.nonzero()[:, 0].tolist() == list(range(26, 36))


def test_without_pocketsphinx_phones_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(UserError, match=r"pip install 'mggtalk\[phones\]'"):
        PhoneAligner()


@pytest.fixture(scope="module")
def aligner() -> PhoneAligner:
    pytest.importorskip("pocketsphinx")
    return PhoneAligner()


def test_phones_follow_each_other_and_do_not_depend_on_what_was_heard_before(aligner: PhoneAligner) -> None:
    sound, words = samples(3.0), ["bob", "may", "map"]
    first = aligner(sound, words)
    assert aligner(samples(1.0, 3)) is not None and aligner(sound, words) == first
    assert [one.name for one in first if one.name != SILENCE] == ["B", "AA", "B", "M", "EY", "M", "AE", "P"]
    assert all(one.end - one.start >= 0.03 - 1e-9 and one.likelihood <= 0 for one in first)
    assert all(one.end == pytest.approx(other.start) for one, other in pairwise(first))
    assert first[0].start == pytest.approx(-0.2) and {"P", "B", "M"} == set(BILABIAL)


def test_words_that_cannot_be_aligned_are_told(aligner: PhoneAligner) -> None:
    with pytest.raises(UserError, match="the dictionary has no 'blorbix'"):
        aligner(samples(1.0), ["blorbix"])
    with pytest.raises(UserError, match="do not fit the sound"):
        aligner(samples(0.3), ["constantinople"] * 8)
    assert aligner(samples(1.0), []) == []


def closing_clip(seed: int, closed: Callable[[SpeechClip], Tensor]) -> SpeechClip:
    """A clip that was understood, with closures where ``closed`` says: heard there, and seen."""
    clip = voice_clip(6.0, seed)
    heard = closed(clip)
    opening = torch.where(heard > 0, 0.001, clip.opening + 0.02)
    return replace(clip, opening=opening, bilabial=heard, understood=torch.tensor(True))


def soft(clip: SpeechClip) -> Tensor:
    """Where speech is softer than its median."""
    speech = clip.features[:, -1] > 0.5
    return ((clip.features[:, -2] < clip.features[speech, -2].median()) & speech).float()


def test_a_seal_closes_where_closures_were_learnt_and_as_often_as_it_says() -> None:
    clips = [closing_clip(seed, soft) for seed in range(6)]
    network = AudioNetwork(hidden=0, seal=True)
    network.front.fit(torch.cat([clip.features for clip in clips]))
    assert torch.equal(sealed(clips[0]), clips[0].bilabial)
    set_seal(clips, network)
    shut = [network.sealed(design_of(clip, network)[None].float())[0] for clip in clips]
    speech = torch.cat([clip.features[:, -1] for clip in clips]) > 0.5
    told = torch.cat(shut)[speech]
    assert float((told > 0).float().mean()) == pytest.approx(1 - BEGIN, abs=0.01)
    assert float((told >= 1).float().mean()) == pytest.approx(1 - END, abs=0.01)
    right = torch.cat([clip.bilabial for clip in clips])[speech]
    assert float(right[told > 0.5].mean()) > float(right.mean()) + 0.3, "it closes where a closure is, more than anywhere"


def test_nothing_understood_leaves_lips_as_they_are() -> None:
    clips = [replace(closing_clip(0, soft), understood=torch.tensor(False))]
    network = AudioNetwork(hidden=0, seal=True)
    set_seal(clips, network)
    assert network.seal is not None and not network.seal.any()
    assert not network.sealed(design_of(clips[0], network)[None].float()).any()


def test_a_sealed_mouth_is_the_resting_one() -> None:
    plain, features = random_network(), LogMel()(voice(1.5))[None]
    shut = AudioNetwork(hidden=8, seal=True).eval()
    missing = shut.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert set(missing) == {"seal", "seal_bias"} and set(plain.state_dict()) == set(shut.state_dict()) - set(missing)
    before, style = plain(features, torch.zeros(1, 4)), torch.zeros(1, 4)
    torch.testing.assert_close(shut(features, style), before)
    for bias, share in ((0.25, 0.75), (1.0, 0.0), (7.0, 0.0), (-1.0, 1.0)):
        shut.seal_bias.fill_(bias)
        torch.testing.assert_close(shut(features, style), share * before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("closures") / "data"
    build_synthetic(folder, clips=2, frames=32, size=64, persons=2)
    return folder


def tracked_of(reader: ShardReader, split: str, face_model: FaceModel) -> Driven:
    clip = read_clips(reader, split, LogMel(), face_model)[0]
    return Driven(method="truth", clip=clip, opening=clip.opening, expression=clip.expression)


def test_the_suite_gives_shares_of_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two closures of three, and what chance has of them; nothing seen has no share, and why nothing is measured is told."""
    tracked = curve(10.0, [(1.0, 1.1), (3.0, 3.1), (5.0, 5.1), (7.0, 7.6)])
    said = [phone("P", 1.0, 1.1), phone("B", 3.0, 3.1), phone("M", 5.0, 5.1)]
    some = curve(10.0, [(1.0, 1.1), (5.0, 5.1)])
    values, counted = closure_values(some, tracked, said), lip_closures(some, tracked, spans(said), RATE)
    assert values == {"closure": pytest.approx(2 / 3), "closure_chance": pytest.approx(counted.chance / 3)}
    assert all(np.isnan(value) for value in closure_values(some, tracked, [phone("P", 8.5, 8.6)]).values())
    assert suite.missing().reason == "in no clip are English words understood"
    monkeypatch.setattr(suite, "find_spec", lambda name: None)
    assert "mggtalk[phones]" in suite.missing().remedy and not suite.installed()


def test_a_sheet_shows_closures_and_one_of_each_other_phone(root: Path) -> None:
    reader, face_model = ShardReader(root), FaceModel()
    driven = tracked_of(reader, "train", face_model)
    heard = [phone("AA", 0.1, 0.2, -2.0), phone("B", 0.2, 0.3), phone("AA", 0.4, 0.5), phone("M", 0.5, 0.6), phone("T", 0.6, 0.7)]
    sheet = phone_sheet(reader, "train", Repeated(), driven, heard, face_model, size=64)
    assert sheet.dtype == np.uint8 and sheet.shape[1] == 3 * 64 + 2 * ((sheet.shape[1] - 3 * 64) // 2)
    rows = closure_rows([driven], {driven.clip.name: heard})
    assert rows[0].closures.heard == 2 and rows[0].closures.kept == rows[0].closures.seen
    assert closure_rows([driven], {}) == []
    with pytest.raises(UserError, match="none of the phones"):
        phone_sheet(reader, "train", Repeated(), driven, [phone("T", 0.1, 0.2)], face_model, size=64)


def test_training_and_evaluation_hear_the_same(root: Path, aligner: PhoneAligner) -> None:
    reader, face_model = ShardReader(root), FaceModel()
    for split in ("train", "val"):
        clips = read_clips(reader, split, LogMel(), face_model, aligner)
        phones = phones_of(reader, split, clips, face_model)
        assert {clip.name for clip in clips if bool(clip.understood)} == set(phones)
        for clip in clips:
            near = [one for one in closures(phones.get(clip.name, [])) if one.end > 0 and one.start < len(clip.opening) / RATE]
            assert bool(clip.bilabial.any()) == bool(near)
