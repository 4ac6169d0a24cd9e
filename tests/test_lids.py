"""Lids that are drawn over an eye take the cheek's colour: where, how much, and what a made portrait shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_scenes import face_model, made_frame, made_model, with_expression

from datasets_toolkit.faces.face_regions import LEFT_EYE, RIGHT_EYE
from mggtalk.geometry import lids as module
from mggtalk.geometry.lids import DRAWN, MOST, SHADE, TAUT, Lids, drawn, upper_lids
from mggtalk.rendering.cpu import CpuRenderer
from mggtalk.types import Pair


@pytest.mark.parametrize("stretch", [0.5, 1.0, TAUT, 1.5, 2.0, DRAWN, 4.0])
def test_the_more_a_lid_is_drawn_out_the_more_it_is_the_cheek_s(stretch: float) -> None:
    """Linearly between the two stretches; by the longer side, wherever it points."""
    tangents = torch.randn(1, 9, 2, 3, generator=torch.Generator().manual_seed(0))
    turned = tangents.flip(-1) * torch.tensor([[0.9], [stretch]])
    lids = Lids(torch.linspace(0, 1, 9)[None], torch.zeros(1, 9, 3))
    expected = lids.share * min(max((stretch - TAUT) / (DRAWN - TAUT), 0), 1)
    torch.testing.assert_close(drawn(lids, tangents, turned)[..., 0], expected, rtol=0, atol=1e-5)


def test_upper_lids_of_a_portrait() -> None:
    """They lie between brow and upper lashes of both eyes; the lashes and the rest of the face are none."""
    with torch.no_grad():
        cloud = made_model().reconstruct(made_frame(128)).points.visible
    lids, mean = upper_lids(cloud, face_model().mean), face_model().mean
    shown = cloud.mask & (lids.share > 0)
    assert 20 < int(shown.sum()) < 0.1 * int(cloud.mask.sum()) and lids.share.max() <= MOST
    for ring in (LEFT_EYE, RIGHT_EYE):
        middle = mean[list(ring)].mean(0)
        near = shown & ((cloud.positions[..., :2] - middle[:2]).norm(dim=-1) < 2.5)
        assert near.any() and (cloud.positions[near][:, 1] > middle[1] - 0.2).all()
        shown = shown & ~near
    assert not shown.any()


def test_cheeks_give_their_colour_and_without_them_nothing_changes() -> None:
    with torch.no_grad():
        cloud = made_model().reconstruct(made_frame(128)).points.visible
    painted = replace(cloud, colour=torch.tensor([0.8, 0.5, 0.3]).expand_as(cloud.colour))
    lids = upper_lids(painted, face_model().mean)
    chosen = lids.share > 0
    torch.testing.assert_close(lids.colour[chosen], SHADE * painted.colour[chosen])
    bare = upper_lids(replace(cloud, mask=torch.zeros_like(cloud.mask)), face_model().mean)
    assert bare.share.max() == 0 and torch.isfinite(bare.colour).all()


def test_a_shut_eye_is_brighter_than_the_strip_it_was_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strip above the lashes is painted black; shut, that would be a black eye. Open, nothing differs."""
    model = made_model().eval().requires_grad_(False)
    model.renderer = CpuRenderer()
    frame = made_frame(192)
    strip = upper_lids(model.reconstruct(frame).points.visible, face_model().mean).share > 0
    places, image = model.reconstruct(frame).points.visible.pixels[strip].long(), frame.image.clone()
    image[0, :, places[:, 1], places[:, 0]] = 0
    source = replace(frame, image=image)
    shut = with_expression(source, eyeBlinkLeft=1.0, eyeBlinkRight=1.0)
    with_lids, opened = (model(Pair(source=source, target=target)).dense.image for target in (shut, source))
    monkeypatch.setattr(module, "MOST", 0.0)
    without, again = (model(Pair(source=source, target=target)).dense.image for target in (shut, source))
    black = without.mean(1) < 0.15
    gained = (with_lids - without).mean(1)[black]
    assert len(gained) > 30 and gained.mean() > 0.1 and gained.min() > -0.05, gained.mean()
    torch.testing.assert_close(opened, again, rtol=0, atol=1e-6)
