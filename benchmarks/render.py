"""Time the CPU renderer on a head, against the reference renderer and against a bound measured in the same run.

    python benchmarks/render.py [--quick] [--threads 2] [--json results.json]

The bound is the number of (Gaussian, pixel) pairs that are blended, times what one such pair costs when sixteen of them fill every vector
and everything is in the first cache. Times on a shared machine move together: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from render_scene import head_scene
from torch import Tensor

from mggtalk.rendering.cpu import CpuRenderer, pack_camera
from mggtalk.rendering.cpu_blend import blend_block, block_x, block_y, inside, make_ready, weigh
from mggtalk.rendering.cpu_blend_back import blend_back_splat
from mggtalk.rendering.cpu_layout import TILE, VALUES, Lists, Pairs, Plan, Scene
from mggtalk.rendering.cpu_splat import flat, images_of, plan_of, splat
from mggtalk.rendering.reference import ReferenceRenderer
from mggtalk.rendering.renderer import Renderer
from mggtalk.rendering.simd import compiled, mask_bits, select
from mggtalk.rendering.simd import splat as fill
from mggtalk.rendering.simd_memory import load, lowest_bit, store
from mggtalk.types import Camera, Gaussians

SCENES = ((256, 20_000), (256, 60_000), (512, 60_000), (512, 150_000))
LEARNED = ("means", "quaternions", "scales", "opacities", "features")


@compiled()
def count_blended(plan: Plan, lists: Lists, pairs: Pairs, work: Any) -> int:
    """(Gaussian, pixel) pairs that are blended, by blending without values."""
    blended = 0
    ready = 256
    for tile in range(plan.columns * plan.rows):
        left, top = TILE * (tile % plan.columns), TILE * (tile // plan.columns)
        for block in range(16):
            store(work, 16 * block, select(inside(plan, left, top, block), fill(1.0), -1.0))
        for place in range(lists.starts[tile], lists.starts[tile + 1]):
            touched = np.uint64(make_ready(plan, lists.records, pairs.members[place], left, top, np.float32(0), work, ready))
            while touched != np.uint64(0):
                block = lowest_bit(touched)
                touched &= touched - np.uint64(1)
                blended += count_block(plan, work, ready, block)
    return blended


@compiled(inline=True)
def count_block(plan: Plan, work: Any, ready: int, block: int) -> int:
    """Blend one splat on one block; how many pixels take it."""
    transmittance = load(work, 16 * block)
    alive = transmittance > 0.0
    _, _, _, _, behind, counts, alive = weigh(plan, work, ready, block_x(block), block_y(block), transmittance, alive)
    left = select(counts, behind, transmittance)
    store(work, 16 * block, select(alive, left, select(left > 0.0, 0.0 - left, left)))
    bits, count = mask_bits(counts), 0
    while bits != np.uint32(0):
        bits = np.uint32(bits & (bits - np.uint32(1)))
        count += 1
    return count


@compiled()
def hot_forward(plan: Plan, work: Any, repeats: int) -> None:
    """Blend 64 faint splats on one block, again and again."""
    for _ in range(repeats):
        store(work, 0, fill(1.0))
        blend_block(plan, work, 1024, np.uint64(0xFFFFFFFFFFFFFFFF), 0, 0)


@compiled()
def hot_backward(plan: Plan, work: Any, repeats: int, out: Any) -> None:
    """Replay 64 faint splats on 16 blocks, again and again."""
    every = np.uint64(0xFFFF)
    for _ in range(repeats):
        for block in range(16):
            store(work, block * 16 * (3 + plan.values), fill(1.0))
        for place in range(64):
            blend_back_splat(plan, work, 2048 + place * plan.stride, 8000, every, every, out, 0)


def blend_costs(plan: Plan) -> tuple[float, float]:
    """Seconds that one (Gaussian, pixel) pair costs at best, forward and backward, on one thread."""
    work, out = np.zeros(12_000, np.float32), np.zeros(64, np.float32)
    for start in (1024, 2048):
        for place in range(64):
            at = start + place * plan.stride
            work[at : at + 6] = 0.01, -0.02, 0.01, 0.01, -0.02, -7.0
            work[at + VALUES : at + VALUES + plan.values] = 0.5
    forward = best(lambda: hot_forward(plan, work, 200)) / (200 * 64 * 16)
    return forward, best(lambda: hot_backward(plan, work, 20, out)) / (20 * 64 * 256)


def best(function: Callable[[], object]) -> float:
    """Seconds of the fastest of 20 runs, after one that does not count."""
    function()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def count_pairs(gaussians: Gaussians, camera: Camera, background: Tensor) -> tuple[Plan, int]:
    """The plan of a scene and its blended pairs."""
    size = (background.shape[-2], background.shape[-1])
    plan = plan_of(CpuRenderer().settings, size, gaussians.means.shape[1], 3, (True, False, True))
    inputs = [getattr(gaussians, name)[0] for name in (*LEARNED, "mask")] + [pack_camera(camera, size)[0]]
    outputs = [torch.empty(count, *size) for count in (3, 1, 1)]
    trace = splat(plan, Scene(*(flat(tensor) for tensor in inputs)), images_of(outputs, background[0]))
    return plan, count_blended(plan, trace.lists, trace.pairs, np.empty(4096, np.float32))


def step(renderer: Renderer, gaussians: Gaussians, camera: Camera, background: Tensor) -> tuple[float, float]:
    """Seconds of one call and of its backward pass."""
    leaves = {name: getattr(gaussians, name).detach().requires_grad_() for name in LEARNED}
    start = time.perf_counter()
    rendering = renderer(replace(gaussians, **leaves), camera, (background.shape[-2], background.shape[-1]), background)
    middle = time.perf_counter()
    loss = rendering.image.square().sum() + rendering.alpha.sum()
    before = time.perf_counter()
    torch.autograd.grad(loss, list(leaves.values()))
    return middle - start, time.perf_counter() - before


def timed(renderer: Renderer, scene: tuple[Gaussians, Camera, Tensor], runs: int) -> tuple[float, float, float]:
    """Median ms of forward, backward, and forward without gradients."""
    step(renderer, *scene)
    times = [step(renderer, *scene) for _ in range(runs)]
    plain = []
    with torch.no_grad():
        for _ in range(runs):
            start = time.perf_counter()
            renderer(scene[0], scene[1], (scene[2].shape[-2], scene[2].shape[-1]), scene[2])
            plain.append(time.perf_counter() - start)
    return (*(1e3 * statistics.median(column) for column in zip(*times, strict=True)), 1e3 * statistics.median(plain))


def measure(side: int, count: int, threads: int, quick: bool) -> dict[str, float]:
    """One scene: ms of both renderers, ms of the bound, pairs blended."""
    scene = head_scene(count, side)
    plan, pairs = count_pairs(*scene)
    forward, backward = blend_costs(plan)
    ours = timed(CpuRenderer(), scene, 5 if quick else 25)
    row: dict[str, float] = {"side": side, "gaussians": count, "threads": threads, "pairs": pairs}
    row |= dict(zip(("cpu_forward", "cpu_backward", "cpu_inference"), ours, strict=True))
    row |= {"bound_forward": 1e3 * pairs * forward / threads, "bound_backward": 1e3 * pairs * backward / threads}
    row |= {"pair_forward_ns": 1e9 * forward, "pair_backward_ns": 1e9 * backward}
    reference = timed(ReferenceRenderer(), scene, 1)
    return row | dict(zip(("reference_forward", "reference_backward", "reference_inference"), reference, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest scene only, few runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    print("px/Gaussians   pairs   forward ms (x bound)  backward ms (x bound)  inference ms   reference forward, backward ms (x ours)")
    for side, count in SCENES[: 1 if arguments.quick else None]:
        row = measure(side, count, arguments.threads, arguments.quick)
        rows.append(row)
        ratios = [f"{row[f'cpu_{way}']:8.2f} ({row[f'cpu_{way}'] / row[f'bound_{way}']:4.1f}x)" for way in ("forward", "backward")]
        slow = [f"{row[f'reference_{way}']:8.0f} ({row[f'reference_{way}'] / row[f'cpu_{way}']:4.0f}x)" for way in ("forward", "backward")]
        name = f"{side}/{count // 1000}k"
        pairs, inference = f"{row['pairs'] / 1e6:5.2f} M", f"{row['cpu_inference']:8.2f}"
        print(f"{name:12s} {pairs}   {ratios[0]}       {ratios[1]}        {inference}       {slow[0]} {slow[1]}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
