"""Textures that go on behind a head: against pictures whose hidden part is known."""

from __future__ import annotations

import torch
from torch import Tensor

from mggtalk.geometry.images import push_pull
from mggtalk.geometry.texture import continue_texture


def _hole(height: int, width: int) -> Tensor:
    known = torch.ones(1, 1, height, width)
    known[..., height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 0
    return known


def _stripes(height: int, width: int) -> Tensor:
    rows = torch.arange(height) // 4 % 2
    return torch.stack([0.2 + 0.6 * rows, 0.8 - 0.5 * rows, 0.1 + 0.2 * rows])[None, :, :, None].expand(1, 3, height, width).contiguous()


def test_stripes_go_on_where_a_smooth_fill_fades_out() -> None:
    truth, known = _stripes(96, 80), _hole(96, 80)
    first = push_pull(truth, known)
    made = continue_texture(truth, known, first)
    hidden = (1 - known).bool().expand_as(truth)
    assert (first - truth)[hidden].square().mean() > 0.03
    assert (made - truth)[hidden].square().mean() < 0.003


def test_an_edge_goes_straight_on() -> None:
    truth = torch.zeros(1, 3, 64, 64)
    truth[:, :, 30:] = torch.tensor([0.9, 0.5, 0.2])[:, None, None]
    known = _hole(64, 64)
    made = continue_texture(truth, known, push_pull(truth, known))
    assert (made - truth).abs().amax(1)[0, :, 24:40].gt(0.2).float().mean(1).gt(0.5).sum() <= 2  # rows in which it is misplaced


def test_what_is_hidden_is_never_looked_at_and_the_rest_stays() -> None:
    truth, known = _stripes(64, 72) + 0.1 * torch.rand(1, 3, 64, 72, generator=torch.Generator().manual_seed(0)), _hole(64, 72)
    first = push_pull(truth, known)
    made = continue_texture(truth, known, first)
    other = continue_texture(torch.where(known > 0, truth, torch.rand_like(truth)), known, first)
    torch.testing.assert_close(made, other, rtol=0, atol=0)
    torch.testing.assert_close(made * known, first * known, rtol=0, atol=0)
    low, high = truth.amin((-2, -1), keepdim=True), truth.amax((-2, -1), keepdim=True)
    assert ((made >= low - 1e-4) & (made <= high + 1e-4)).all()


def test_batches_and_other_sizes_are_filled_one_by_one() -> None:
    truth = torch.cat([_stripes(75, 101), 1 - _stripes(75, 101)])
    known = _hole(75, 101).expand(2, -1, -1, -1)
    first = push_pull(truth, known)
    both = continue_texture(truth, known, first)
    for index in range(2):
        one = slice(index, index + 1)
        torch.testing.assert_close(both[one], continue_texture(truth[one], known[one], first[one]), rtol=0, atol=0)


def test_too_little_known_keeps_the_smooth_fill() -> None:
    truth = _stripes(40, 40)
    for known in (torch.zeros(1, 1, 40, 40), torch.eye(40)[None, None]):
        first = torch.full_like(truth, 0.5)
        torch.testing.assert_close(continue_texture(truth, known, first), first, rtol=0, atol=0)
    small = torch.rand(1, 3, 5, 5)
    torch.testing.assert_close(continue_texture(small, torch.ones(1, 1, 5, 5), small), small, rtol=0, atol=0)
