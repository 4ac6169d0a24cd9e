"""Speech to expression: the closed forms of the network, what it may look at, pretrained encoders, and clips that do not agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from speech_scenes import random_network, voice, voice_clip

from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import BLENDSHAPES
from mggtalk.data.agreement import agreeing, agreement, dependence, ridge
from mggtalk.data.speech import NOISE, SpeechLoader
from mggtalk.data.speech_clips import moved, symmetric_part
from mggtalk.data.speech_pieces import SpeechAugment, noise_clips, piece, whole
from mggtalk.geometry.face_model import FaceModel
from mggtalk.modules.audio import REACH, AudioNetwork, PlainFront, temporal_basis
from mggtalk.modules.speech import CHANNELS, LogMel
from mggtalk.modules.speech_encoders import MARGIN, PIECE, PretrainedSpeech
from mggtalk.stages.audio import AudioLoss, AudioStage


def test_the_expression_of_silence_is_neutral_whatever_the_weights() -> None:
    network, style = random_network(), torch.randn(1, 4)
    assert not network(torch.zeros(1, 60, CHANNELS), style).any()


def test_the_linear_part_is_its_sum_written_out() -> None:
    network = AudioNetwork(hidden=0).eval()
    torch.nn.init.normal_(network.linear.weight)
    network.deviation.uniform_(0.5, 1.5)
    features = LogMel()(voice(1.5))
    values, basis = network.front(features), temporal_basis()
    found = network(features[None], torch.zeros(1, 4))[0]
    assert found.shape == (len(features) - 2 * REACH, 84)
    frame = 20
    regressors = torch.stack([sum(basis[k, j] * values[frame + j] for j in range(2 * REACH + 1)) for k in range(len(basis))], 1).reshape(-1)
    torch.testing.assert_close(found[frame], network.deviation * (network.linear.weight[:, :, 0] @ regressors), atol=1e-4, rtol=1e-4)


def test_an_expression_depends_on_the_frames_within_its_reach() -> None:
    network, features = random_network(), LogMel()(voice(2.0))[None].requires_grad_()
    found = network(features, torch.zeros(1, 4))
    (gradient,) = torch.autograd.grad(found[0, 30].square().sum(), features)
    seen = gradient[0].abs().sum(1).nonzero()[:, 0]
    assert (int(seen.min()), int(seen.max())) == (30, 30 + 2 * REACH)
    assert network.ahead == pytest.approx(0.26)


def test_a_style_scales_what_is_said() -> None:
    network = random_network()
    network.style.weight.zero_()
    network.style.weight[:, 0] = 0.25
    features = LogMel()(voice(1.0))[None]
    plain, strong = (network(features, torch.tensor([[value, 0.0, 0.0, 0.0]])) for value in (0.0, 2.0))
    torch.testing.assert_close(strong, 1.5 * plain)
    measured = network.style_mean + torch.tensor([9.0, 0.0, -9.0, 1.0]) * network.style_deviation
    torch.testing.assert_close(network.standard_style(measured), torch.tensor([2.5, 0.0, -2.5, 1.0]))


def test_the_plain_front_whitens_and_leaves_silence_alone() -> None:
    front, generator = PlainFront(6, 3), torch.Generator().manual_seed(0)
    features = torch.randn(400, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3
    features[:100] = 0
    front.fit(features)
    values = front(features)
    assert not values[:100].any()
    torch.testing.assert_close(torch.cov(values[100:].T), torch.eye(3), atol=0.02, rtol=0)


def test_ridge_is_least_squares_with_a_penalty() -> None:
    generator = torch.Generator().manual_seed(0)
    design, values = (torch.randn(200, n, generator=generator, dtype=torch.float64) for n in (5, 2))
    design = design * torch.tensor([1.0, 2.0, 0.1, 5.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(ridge(design, values, 0.0), torch.linalg.lstsq(design, values).solution)
    deviation = design.square().mean(0).sqrt()
    rows = torch.cat([design / deviation, np.sqrt(200 * 0.7) * torch.eye(5, dtype=torch.float64)])
    wanted = torch.linalg.lstsq(rows, torch.cat([values, torch.zeros(5, 2, dtype=torch.float64)])).solution / deviation[:, None]
    torch.testing.assert_close(ridge(design, values, 0.7), wanted)


def test_sound_that_is_late_is_moved_and_another_ones_is_left_out() -> None:
    clips = [voice_clip(6.0, seed) for seed in range(7)]
    clips[2] = moved(clips[2], 6)  # heard 0.12 s late: the mouth comes 0.12 s before what the sound foretells
    foreign = voice_clip(6.0, 30)
    clips[4] = type(foreign)(**{**vars(clips[4]), "features": foreign.features})
    network = AudioNetwork(hidden=0)
    network.front.fit(torch.cat([clip.features for clip in clips]))
    told = agreement(clips, network)
    assert told[2].lag == pytest.approx(-0.12, abs=0.02) and told[0].lag == pytest.approx(0, abs=0.02)
    kept = {clip.name: clip for clip in agreeing(clips, network, 0.5)}
    assert set(kept) == {clip.name for clip in clips} - {"clip4"}
    torch.testing.assert_close(kept["clip2"].features[10:-10], voice_clip(6.0, 2).features[10:-10], atol=1e-6, rtol=0)
    assert agreeing(clips, network, -1.0) == clips
    share = dependence(list(kept.values()), network)
    assert share[BLENDSHAPES.index("jawOpen")] > 0.5 and share[BLENDSHAPES.index("browInnerUp")] < 1e-6


def test_the_symmetric_part_is_a_projection_that_swaps_sides() -> None:
    face_model = FaceModel()
    matrix = symmetric_part(face_model)
    left, right = BLENDSHAPES.index("mouthSmileLeft"), BLENDSHAPES.index("mouthSmileRight")
    row = torch.eye(84)[left] @ matrix
    assert row[left] == row[right] == 0.5
    made = (torch.eye(84)[left] + torch.eye(84)[right]) @ matrix
    moved_there = face_model.displacement(made)
    mirrored = moved_there[face_model.mirror] * torch.tensor([-1.0, 1.0, 1.0])
    assert (moved_there - mirrored).norm() < 0.05 * moved_there.norm()


def test_a_piece_is_the_part_of_the_clip_it_says() -> None:
    clip, still = voice_clip(3.0, 0), SpeechAugment(tempo=0.0, tract=0.0, tilt=0.0)
    part = piece(clip, 50, still, np.random.default_rng(0))
    first = np.random.default_rng(0).uniform(-0.0, 0.0)  # the draw of the tempo
    assert first == 0 and part.features.shape == (50 + 2 * REACH, CHANNELS)
    errors = [(clip.expression[k : k + 50] - part.expression).abs().max() for k in range(len(clip.opening) - 50)]
    assert min(errors) < 0.05
    long = piece(clip, 400, still, np.random.default_rng(1))
    assert not long.expression[155:].any() and not long.features[160 + REACH :].any()
    torch.testing.assert_close(long.opening[155:], torch.full((245,), float(long.opening[-1])))
    alone = whole(clip)
    torch.testing.assert_close(alone.features[0, REACH:-REACH], clip.features)


def test_batches_are_functions_of_their_number() -> None:
    clips = [voice_clip(2.0, seed) for seed in range(3)]
    noise = noise_clips(clips[0], LogMel(), count=2, seconds=3.0)
    assert not noise[0].expression.any() and len(noise[0].opening.unique()) == 1

    def loader() -> SpeechLoader:
        return SpeechLoader(clips, 16, 40, 4, SpeechAugment(), 3, noise)

    first, again = loader(), loader()
    batches = list(first)
    assert first.done == 4 and sum(int(batch.still.sum()) for batch in batches) > 0.2 * NOISE * 64
    again.done = 2
    for one, other in zip(again, batches[2:], strict=True):
        torch.testing.assert_close(one.features, other.features)
        torch.testing.assert_close(one.expression, other.expression)


def test_the_loss_is_nothing_for_the_truth_and_grows_with_lips_that_do_not_close() -> None:
    stage = AudioStage(random_network(), loss=AudioLoss())
    batch = whole(voice_clip(2.0, 0))
    batch = replace(batch, opening=stage.opening(batch.expression, batch.points))
    stage.model.forward = lambda features, style: batch.expression  # type: ignore[method-assign]
    assert all(float(value) < 1e-9 for value in stage.terms(batch, torch.zeros(1, 4)).values())
    open_ = batch.expression.clone()
    open_[..., BLENDSHAPES.index("jawOpen")] += 0.3
    stage.closed = 1.0
    stage.model.forward = lambda features, style: open_  # type: ignore[method-assign]
    terms = stage.terms(batch, torch.zeros(1, 4))
    assert float(terms["closure"]) > 0 and float(terms["velocity"]) < 0.1 * float(terms["closure"])


def _speech_model(kind: str, folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "whisper":
        config = transformers.WhisperConfig(
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
            decoder_ffn_dim=32, vocab_size=60, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )  # fmt: skip
        transformers.WhisperModel(config).save_pretrained(folder)
        transformers.WhisperFeatureExtractor().save_pretrained(folder)
        return
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8,) * 7}
    sizes |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    config, model = (
        (transformers.HubertConfig, transformers.HubertModel)
        if kind == "hubert"
        else (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model)
    )
    model(config(**sizes)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2", "whisper"])
def test_pretrained_encoders_stream_what_they_make_of_the_whole(kind: str, tmp_path: Path) -> None:
    _speech_model(kind, tmp_path)
    encoder = PretrainedSpeech(str(tmp_path), channels=16)
    samples = torch.cat([voice(6.0), torch.zeros(PIECE + 2 * MARGIN)])
    whole_, memory, found = encoder(samples), encoder.new_memory(), []
    for begin in range(0, len(samples), 30000):
        found.append(encoder(samples[begin : begin + 30000], memory))
    torch.testing.assert_close(torch.cat(found), whole_, atol=1e-5, rtol=0)
    assert whole_.shape[0] == 8 * 50 and whole_[:250].any() and not whole_[310:].any()
    network = AudioNetwork(encoder, hidden=4)
    network.front.fit(whole_)
    assert network(whole_[None], torch.zeros(1, 4)).shape == (1, 400 - 2 * REACH, 84)
    assert not any("_loaded" in name or "wav2vec" in name or "conv_layers" in name for name in network.state_dict())
    with pytest.raises(UserError, match="set channels"):
        PretrainedSpeech(str(tmp_path), channels=8)(samples)


def test_what_is_no_speech_encoder_is_told(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for source, words in ((tmp_path, "is a bert"), (tmp_path / "none", "cannot be loaded")):
        with pytest.raises(UserError, match=words):
            PretrainedSpeech(str(source))(torch.zeros(PIECE + 2 * MARGIN))
