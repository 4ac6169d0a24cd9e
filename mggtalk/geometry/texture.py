"""A picture continued into a hole by patches of the rest of it: walls, blinds and flags go on behind a head instead of fading out."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from datasets_toolkit.compiling import compiled
from mggtalk.geometry.images import dilate

REACH = 3
"""Pixels from the middle of a patch to its edge."""
COARSEST = 24
"""Pixels of the shorter side below which no further level of the pyramid is made."""
SWEEPS = (8, 4, 1)
"""Rounds of search and vote at the coarsest level, at the others, and at those with more than :data:`FINE` pixels."""
FINE = 300**2
ENOUGH = 200
"""Patches that must be known for a level to be used."""


def continue_texture(
    image: Float[Tensor, "b 3 h w"], known: Float[Tensor, "b 1 h w"], first: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b 3 h w"]:
    """Fill what is not known so that all its patches look like known ones, from coarse to fine.

    Wexler et al., "Space-Time Completion of Video", 2007: every patch votes for its pixels with the colours of the known patch that is
    most like it. That patch is found as in Barnes et al., "PatchMatch", 2009: from neighbours and by chance. The same input gives the same
    output.

    Args:
        image: colours; those that are not known are never looked at.
        known: 1 where they are known, 0 elsewhere.
        first: a smooth guess, with which the coarsest level begins. Returned where the picture is known, and everywhere
            if too little of it is.
    """
    made = first.clone()
    with torch.no_grad():
        _fill(made, image, known, first)
    return made


def _fill(made: Tensor, image: Tensor, known: Tensor, first: Tensor) -> None:
    for index in range(len(image)):
        result = _complete(image[index], known[index], first[index])
        if result is not None:
            made[index] = torch.where(known[index] > 0, first[index], result.to(first))


def _complete(image: Tensor, known: Tensor, first: Tensor) -> Tensor | None:
    pyramid = [(image[None], (known[None] > 0).to(image), first[None])]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * COARSEST:
        pyramid.append(_halved(*pyramid[-1]))
    field: NDArray[np.int32] | None = None
    colours: NDArray[np.float32] | None = None
    for level in reversed(range(len(pyramid))):
        picture, sure, guess = pyramid[level]
        hole = sure[0, 0].cpu().numpy() == 0
        sources = _whole_patches(hole)
        if len(sources) < ENOUGH:
            continue
        mixed = torch.where(sure > 0, picture, guess)[0].permute(1, 2, 0).float().cpu().numpy()
        colours = np.ascontiguousarray(mixed)
        usable = np.zeros(hole.shape, np.bool_)
        usable[sources[:, 0], sources[:, 1]] = True
        begun = field is not None
        near = dilate(1 - sure, REACH)[0, 0].cpu().numpy() > 0
        field = _begin(near, usable, sources, field if field is not None else np.full((1, 1, 2), -1, np.int32))
        _sweep(colours, hole, usable, field, SWEEPS[begun + (hole.size > FINE)], begun)
    if colours is None or field is None or colours.shape[:2] != tuple(image.shape[-2:]):
        return None
    return torch.from_numpy(colours).permute(2, 0, 1)


def _halved(picture: Tensor, known: Tensor, guess: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    share = avg_pool2d(known, 2)
    return avg_pool2d(picture * known, 2) / share.clamp(min=0.25), (share == 1).to(known), avg_pool2d(guess, 2)


def _whole_patches(hole: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Middles (row, column) of patches that are known altogether."""
    if min(hole.shape) < 2 * REACH + 1:
        return np.empty((0, 2), np.int32)
    side = 2 * REACH + 1
    missing = np.pad(np.cumsum(np.cumsum(hole, 0, dtype=np.int64), 1), ((1, 0), (1, 0)))
    inside = missing[side:, side:] - missing[:-side, side:] - missing[side:, :-side] + missing[:-side, :-side]
    return np.argwhere(inside == 0).astype(np.int32) + REACH


@compiled()
def _begin(near, usable, sources, coarser):  # type: ignore[no-untyped-def]
    """For each pixel near the hole, whose patch meets it, a known patch, from the coarser level or by chance; (-1, -1) elsewhere."""
    np.random.seed(0)
    height, width = near.shape
    field = np.full((height, width, 2), -1, np.int32)
    for y in range(height):
        for x in range(width):
            if not near[y, x]:
                continue
            a, b = min(y // 2, coarser.shape[0] - 1), min(x // 2, coarser.shape[1] - 1)
            v, u = coarser[a, b, 0], coarser[a, b, 1]
            v, u = (2 * v + y % 2, 2 * u + x % 2) if v >= 0 else (-1, -1)
            if not (0 <= v < height and 0 <= u < width and usable[v, u]):
                pick = np.random.randint(len(sources))
                v, u = sources[pick, 0], sources[pick, 1]
            field[y, x, 0], field[y, x, 1] = v, u
    return field


@compiled(fastmath=True)
def _apart(colours, y, x, v, u, limit):  # type: ignore[no-untyped-def]
    """Mean squared difference of two patches, over what of the first is in the picture; infinite if more than ``limit``."""
    height, width, _ = colours.shape
    top, bottom, left, right = max(y - REACH, 0), min(y + REACH, height - 1), max(x - REACH, 0), min(x + REACH, width - 1)
    most = limit * ((bottom - top + 1) * (right - left + 1))
    total = np.float32(0)
    for row in range(top, bottom + 1):
        for column in range(left, right + 1):
            for channel in range(3):
                step = colours[row, column, channel] - colours[row - y + v, column - x + u, channel]
                total += step * step
        if total > most:
            return np.inf
    return total / ((bottom - top + 1) * (right - left + 1))


@compiled()
def _sweep(colours, hole, usable, field, rounds, begun):  # type: ignore[no-untyped-def]
    """Search and vote in turn; ``begun``: the field is worth a vote before the first search."""
    np.random.seed(1)
    height, width = hole.shape
    apart = np.zeros((height, width), np.float32)
    if begun:
        _vote(colours, hole, field, apart)
    for turn in range(rounds):
        for y in range(height):
            for x in range(width):
                if field[y, x, 0] >= 0:
                    apart[y, x] = _apart(colours, y, x, field[y, x, 0], field[y, x, 1], np.inf)
        step = 1 if turn % 2 == 0 else -1
        for row in range(height):
            y = row if step == 1 else height - 1 - row
            for column in range(width):
                x = column if step == 1 else width - 1 - column
                if field[y, x, 0] < 0:
                    continue
                for side in range(2):
                    a, b = (y - step, x) if side == 0 else (y, x - step)
                    if 0 <= a < height and 0 <= b < width and field[a, b, 0] >= 0:
                        _offer(colours, usable, field, apart, y, x, field[a, b, 0] + y - a, field[a, b, 1] + x - b)
                radius = max(height, width)
                while radius >= 1:
                    v = field[y, x, 0] + np.random.randint(-radius, radius + 1)
                    u = field[y, x, 1] + np.random.randint(-radius, radius + 1)
                    _offer(colours, usable, field, apart, y, x, v, u)
                    radius //= 2
        _vote(colours, hole, field, apart)


@compiled()
def _offer(colours, usable, field, apart, y, x, v, u):  # type: ignore[no-untyped-def]
    """Take a known patch instead of the present one if it is more alike."""
    if 0 <= v < usable.shape[0] and 0 <= u < usable.shape[1] and usable[v, u]:
        found = _apart(colours, y, x, v, u, apart[y, x])
        if found < apart[y, x]:
            apart[y, x], field[y, x, 0], field[y, x, 1] = found, v, u


@compiled()
def _vote(colours, hole, field, apart):  # type: ignore[no-untyped-def]
    """Colours of the hole: what the patches around each pixel say of it, those that fit well more."""
    height, width = hole.shape
    total, count = 0.0, 1
    for y in range(height):
        for x in range(width):
            if field[y, x, 0] >= 0:
                total, count = total + apart[y, x], count + 1
    spread = np.float32(max(total / count, 1e-6))
    for y in range(height):
        for x in range(width):
            if not hole[y, x]:
                continue
            weight = np.float32(0)
            red, green, blue = np.float32(0), np.float32(0), np.float32(0)
            for a in range(max(y - REACH, 0), min(y + REACH, height - 1) + 1):
                for b in range(max(x - REACH, 0), min(x + REACH, width - 1) + 1):
                    v, u = field[a, b, 0] + y - a, field[a, b, 1] + x - b
                    share = np.exp(-apart[a, b] / (2 * spread))
                    weight += share
                    red += share * colours[v, u, 0]
                    green += share * colours[v, u, 1]
                    blue += share * colours[v, u, 2]
            colours[y, x, 0], colours[y, x, 1], colours[y, x, 2] = red / weight, green / weight, blue / weight
