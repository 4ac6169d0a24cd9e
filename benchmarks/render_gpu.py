"""Time the renderers on a GPU: gsplat bare, our wrapper around it, the same in a CUDA graph, and the reference renderer there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mggtalk.rendering.cuda import CudaRenderer, arguments, load_gsplat, obstacle
from mggtalk.rendering.cuda_graph import GraphRenderer
from mggtalk.rendering.reference import ReferenceRenderer
from mggtalk.rendering.renderer import Settings
from mggtalk.types import Camera, Gaussians

LEARNED = ("means", "quaternions", "scales", "opacities", "features")

SceneOf = tuple[Gaussians, Camera, Tensor]
Render = Callable[[Gaussians, Camera, tuple[int, int]], Any]


def bare_gsplat(gaussians: Gaussians, camera: Camera, size: tuple[int, int]) -> Any:
    """``gsplat.rasterization`` with the arguments that the wrapper gives, and nothing around it."""
    return load_gsplat().rasterization(**arguments(gaussians, camera, size, Settings()))


def milliseconds(function: Callable[[], object], seconds: float) -> float:
    """Of one call, many in a row as a stream of frames makes them: the best of five such rows, after one that does not count."""
    function()
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    runs = max(3, int(seconds / 5 / (time.perf_counter() - start)))
    rows = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(runs):
            function()
        torch.cuda.synchronize()
        rows.append(1e3 * (time.perf_counter() - start) / runs)
    return min(rows)


def forward(renderer: Render, scene: SceneOf) -> Callable[[], object]:
    """A call without gradients, without background, as gsplat has none."""
    gaussians, camera, background = scene
    size = (background.shape[-2], background.shape[-1])
    return torch.no_grad()(lambda: renderer(gaussians, camera, size))


def both(renderer: Render, scene: SceneOf) -> Callable[[], object]:
    """A forward and a backward pass."""
    gaussians, camera, background = scene
    size = (background.shape[-2], background.shape[-1])
    leaves = {name: getattr(gaussians, name).detach().requires_grad_() for name in LEARNED}

    def run() -> object:
        rendering = renderer(replace(gaussians, **leaves), camera, size)
        image = rendering[0] if isinstance(rendering, tuple) else rendering.image
        return torch.autograd.grad(image.square().sum(), list(leaves.values()))

    return run


def measure(name: str, scene: SceneOf, seconds: float) -> dict[str, Any]:
    """Milliseconds of one scene on the GPU, and the peak of its memory."""
    there: SceneOf = (scene[0].to("cuda"), scene[1].to("cuda"), scene[2].to("cuda"))
    row: dict[str, Any] = {"scene": name, "device": torch.cuda.get_device_name()}
    for kind, renderer in (("gsplat", bare_gsplat), ("wrapper", CudaRenderer()), ("graph", GraphRenderer())):
        row[f"{kind}_forward"] = milliseconds(forward(renderer, there), seconds)
    for kind, renderer in (("gsplat", bare_gsplat), ("wrapper", CudaRenderer())):
        row[f"{kind}_both"] = milliseconds(both(renderer, there), seconds)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    both(CudaRenderer(), there)()
    row["peak_mib"] = (torch.cuda.max_memory_allocated() - held) / 2**20
    row["reference_forward"] = milliseconds(forward(ReferenceRenderer(), there), 0)
    return row


def print_gpu_rows(scenes: list[tuple[str, SceneOf]], seconds: float) -> list[dict[str, Any]]:
    """Measure and print all scenes; nothing but the reason where gsplat cannot be used."""
    reason = obstacle()
    if reason is not None:
        print(f"no rows for a GPU: {reason}")
        return []
    rows = []
    print(
        "scene       gsplat ms   wrapper ms (x gsplat)   graph ms (per second)   both passes: gsplat, wrapper ms (x)   reference ms   MiB"
    )
    for name, scene in scenes:
        row = measure(name, scene, seconds)
        rows.append(row)
        wrapped = [f"{row[f'wrapper_{way}']:8.3f} ({row[f'wrapper_{way}'] / row[f'gsplat_{way}']:4.2f}x)" for way in ("forward", "both")]
        graph = f"{row['graph_forward']:8.3f} ({1e3 / row['graph_forward']:6.0f}/s)"
        slow = f"{row['reference_forward']:8.0f}   {row['peak_mib']:7.0f}"
        print(
            f"{name + 'k':10s} {row['gsplat_forward']:8.3f}   {wrapped[0]}   {graph}   {row['gsplat_both']:8.3f} {wrapped[1]}   {slow}",
            flush=True,
        )
    return rows
