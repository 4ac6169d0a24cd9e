"""What a rendering must cost at least on a CPU: the (Gaussian, pixel) pairs that are blended, times what one of them costs at best.

Both numbers are independent of the kernels of the renderer. Pairs are counted one pixel at a time from the projected splats of the
reference renderer. The cost of a pair is that of its arithmetic alone, some 35 floating point operations forward and 65 backward: three
features and depth, every lane of every vector at work, all data in registers and the first cache, four blocks of pixels in flight so that
no result is waited for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mggtalk.rendering.cpu_blend import exp2
from mggtalk.rendering.reference import ReferenceRenderer
from mggtalk.rendering.simd import Array, Mask, Vector, columns, compiled, fma, fnma, minimum, reciprocal, rows, select, splat
from mggtalk.rendering.simd_memory import load, peek, poke, store, total
from mggtalk.types import Camera, Gaussians

RECORD, BATCH = 16, 64  # floats of a splat, splats of a list: 4 KiB
LEAST = math.log2(1 / 255)


def count_pairs(gaussians: Gaussians, camera: Camera, size: tuple[int, int]) -> int:
    """Pairs that are blended in the one image of a batch."""
    renderer = ReferenceRenderer()
    splats = renderer.splat(gaussians, camera, size)
    first, last = renderer.reach(splats, size)
    covariances = splats.covariances.double()
    whole = covariances[:, 0] * covariances[:, 2] - covariances[:, 1] ** 2
    conics = covariances[:, [2, 1, 0]] / whole[:, None]
    shapes = [part.detach().double().numpy() for part in (splats.means, conics, splats.opacities)]
    return int(_count(*shapes, first.numpy(), last.numpy(), np.ones(size)))


@compiled()
def _count(means: Any, conics: Any, opacities: Any, first: Any, last: Any, left: Any) -> int:
    """Blend splats (front to back) without values; ``left`` is the transmittance, negative where blending has stopped."""
    pairs = 0
    for index in range(len(means)):
        for row in range(first[index, 1], last[index, 1] + 1):
            for column in range(first[index, 0], last[index, 0] + 1):
                x, y = column + 0.5 - means[index, 0], row + 0.5 - means[index, 1]
                sigma = 0.5 * (conics[index, 0] * x * x + conics[index, 2] * y * y) - conics[index, 1] * x * y
                alpha = min(opacities[index] * np.exp(-sigma), 0.999)
                if left[row, column] < 0 or alpha < 1 / 255:
                    continue
                behind = left[row, column] * (1 - alpha)
                if behind <= 1e-4:
                    left[row, column] = -1
                    continue
                left[row, column] = behind
                pairs += 1
    return pairs


def pair_costs() -> tuple[float, float]:
    """Seconds of one pair on one thread, forward and backward; the best of many runs."""
    work = records()
    forward = best(lambda: forward_loop(work, 300)) / (300 * BATCH * 64)
    return forward, best(lambda: backward_loop(work, 150)) / (150 * BATCH * 64)


def records() -> npt.NDArray[np.float32]:
    """64 faint, wide splats, so that all pixels blend all of them, and room for the state of four blocks and for gradients."""
    work = np.zeros(RECORD * BATCH + 16 * 64, np.float32)
    table = work[: RECORD * BATCH].reshape(BATCH, RECORD)
    table[:, :6] = 0.01, -0.02, 0.01, 0.01, -0.02, -7.0
    table[:, 6:10] = np.random.default_rng(0).random((BATCH, 4), np.float32)
    work[RECORD * BATCH :] = 0.5
    return work


def best(function: Callable[[], object]) -> float:
    """Seconds of the fastest of 40 runs, after one that does not count."""
    function()
    times = []
    for _ in range(40):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@compiled(inline=True)
def _alpha(work: Array, at: int, x: Vector, y: Vector, left: Vector) -> tuple[Vector, Vector, Vector, Vector, Vector, Mask]:
    u = fma(x, peek(work, at), peek(work, at + 1))
    v = fma(y, peek(work, at + 3), fma(x, peek(work, at + 2), peek(work, at + 4)))
    exponent = fnma(v, v, fnma(u, u, peek(work, at + 5)))
    full = exp2(exponent)
    alpha = minimum(full, 0.999)
    behind = fnma(left, alpha, left)
    return u, v, full, alpha, behind, (exponent >= np.float32(LEAST)) & (behind > np.float32(1e-4))


@compiled(inline=True)
def _forward(work: Array, at: int, x: Vector, y: Vector, state: Any) -> Any:
    left, red, green, blue, deep = state
    _, _, _, alpha, behind, counts = _alpha(work, at, x, y, left)
    weight = select(counts, alpha * left, 0.0)
    red, green = fma(weight, peek(work, at + 6), red), fma(weight, peek(work, at + 7), green)
    blue, deep = fma(weight, peek(work, at + 8), blue), fma(weight, peek(work, at + 9), deep)
    return select(counts, behind, left), red, green, blue, deep


@compiled()
def forward_loop(work: Array, repeats: int) -> None:
    """Blend the list on four blocks, again and again."""
    x, y, none = columns(), rows(), splat(0.0)
    for _ in range(repeats):
        one, two = (splat(1.0), none, none, none, none), (splat(1.0), none, none, none, none)
        three, four = (splat(1.0), none, none, none, none), (splat(1.0), none, none, none, none)
        for at in range(0, RECORD * BATCH, RECORD):
            one, two = _forward(work, at, x, y, one), _forward(work, at, x + 4.0, y, two)
            three, four = _forward(work, at, x, y + 4.0, three), _forward(work, at, x + 4.0, y + 4.0, four)
        for place in range(5):
            store(work, RECORD * BATCH + 16 * place, one[place] + two[place] + three[place] + four[place])


@compiled(inline=True)
def _backward(work: Array, at: int, x: Vector, y: Vector, state: int, gathered: Any) -> Any:
    """One pair's share of the gradients, added to what a splat gathers; the state is transmittance, a sum, and gradients of a pixel."""
    m, mu, mv, muu, muv, mvv, to_red, to_green, to_blue, to_deep = gathered
    left, so_far = load(work, state), load(work, state + 16)
    red, green, blue, deep = load(work, state + 32), load(work, state + 48), load(work, state + 64), load(work, state + 80)
    u, v, full, alpha, behind, counts = _alpha(work, at, x, y, left)
    weight = select(counts, alpha * left, 0.0)
    worth = fma(green, peek(work, at + 7), fma(red, peek(work, at + 6), load(work, state + 96)))
    worth = fma(deep, peek(work, at + 9), fma(blue, peek(work, at + 8), worth))
    gain = weight * worth
    gained = so_far + gain
    slope = select(counts & (full <= np.float32(0.999)), fma(gained, alpha * reciprocal(1.0 - alpha), gain), 0.0)
    store(work, state, select(counts, behind, left))
    store(work, state + 16, gained)
    along, aside = slope * u, slope * v
    m, mu, mv, muu, muv, mvv = m + slope, mu + along, mv + aside, fma(along, u, muu), fma(along, v, muv), fma(aside, v, mvv)
    to_red, to_green, to_blue, to_deep = (
        fma(weight, red, to_red),
        fma(weight, green, to_green),
        fma(weight, blue, to_blue),
        fma(weight, deep, to_deep),
    )
    return m, mu, mv, muu, muv, mvv, to_red, to_green, to_blue, to_deep


@compiled()
def backward_loop(work: Array, repeats: int) -> None:
    """Replay the list on four blocks, again and again."""
    x, y, none, states = columns(), rows(), splat(0.0), RECORD * BATCH
    for _ in range(repeats):
        for block in range(4):
            store(work, states + 128 * block, splat(1.0))
        answer = none
        for at in range(0, RECORD * BATCH, RECORD):
            found = (none, none, none, none, none, none, none, none, none, none)
            found = _backward(work, at, x, y, states, found)
            found = _backward(work, at, x + 4.0, y, states + 128, found)
            found = _backward(work, at, x, y + 4.0, states + 256, found)
            found = _backward(work, at, x + 4.0, y + 4.0, states + 384, found)
            for place in range(10):
                answer = answer + found[place]
        poke(work, states + 1000, total(answer))
