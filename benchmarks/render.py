"""Time the renderers on a head, against the reference renderer and against a bound that is measured in the same run.

    python benchmarks/render.py [--quick] [--threads 1 2] [--scenes 256/20 512/60] [--no-reference] [--json FILE]

A scene is pixels a side / thousands of Gaussians; by default 256 and 512 px with 20, 60 and 150 thousand. Per scene: milliseconds of a
forward pass, of a backward pass to all Gaussian fields, and of a forward pass without gradients, the fastest of several; how many times the
bound (see ``render_bound.py``) and the reference renderer's time that is; the peak of memory, in a process of its own. The reference
renderer runs once for each scene, on the first number of threads. Where there is a GPU, gsplat is timed too (``render_gpu.py``). Times on a
shared machine move together: read the ratios. ``--quick`` takes the smallest scene, without memory, in under a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from render_bound import count_pairs, pair_costs
from render_gpu import print_gpu_rows
from render_scene import head_scene
from torch import Tensor

from mggtalk.rendering.cpu import CpuRenderer
from mggtalk.rendering.reference import ReferenceRenderer
from mggtalk.rendering.renderer import Renderer
from mggtalk.types import Camera, Gaussians

SCENES = [f"{side}/{thousands}" for side in (256, 512) for thousands in (20, 60, 150)]
LEARNED = ("means", "quaternions", "scales", "opacities", "features")
PASSES = ("forward", "backward", "inference")
HEAD = "scene   threads  pairs   forward ms (x bound)  backward ms (x bound)  inference ms   reference ms (x ours), backward   peak MiB"

Row = dict[str, Any]
SceneOf = tuple[Gaussians, Camera, Tensor]


def scene_of(name: str) -> SceneOf:
    """The scene called ``side/thousands``."""
    side, thousands = (float(part) for part in name.split("/"))
    return head_scene(round(1000 * thousands), round(side))


def step(renderer: Renderer, scene: SceneOf) -> tuple[float, float]:
    """Seconds of one call and of its backward pass."""
    gaussians, camera, background = scene
    leaves = {name: getattr(gaussians, name).detach().requires_grad_() for name in LEARNED}
    start = time.perf_counter()
    rendering = renderer(replace(gaussians, **leaves), camera, (background.shape[-2], background.shape[-1]), background)
    middle = time.perf_counter()
    loss = rendering.image.square().sum() + rendering.alpha.sum()
    before = time.perf_counter()
    torch.autograd.grad(loss, list(leaves.values()))
    return middle - start, time.perf_counter() - before


@torch.no_grad()
def plain(renderer: Renderer, scene: SceneOf) -> float:
    """Seconds of one call without gradients."""
    gaussians, camera, background = scene
    start = time.perf_counter()
    renderer(gaussians, camera, (background.shape[-2], background.shape[-1]), background)
    return time.perf_counter() - start


def timed(renderer: Renderer, scene: SceneOf, seconds: float) -> dict[str, float]:
    """Least ms of each pass; one round that does not count, then rounds for so many seconds, at least one."""
    if seconds > 0:
        step(renderer, scene), plain(renderer, scene)
    least, end = dict.fromkeys(PASSES, math.inf), time.perf_counter() + seconds
    while True:
        for name, found in zip(PASSES, (*step(renderer, scene), plain(renderer, scene)), strict=True):
            least[name] = min(least[name], 1e3 * found)
        if time.perf_counter() > end:
            return least


def peak_memory(name: str) -> dict[str, float]:
    """MiB that one forward and one backward pass take beyond what the process held before; from a process of its own."""
    command = [sys.executable, __file__, "--measure-memory", name, "--threads", str(torch.get_num_threads())]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))


def resident(peak: bool = False) -> float:
    """MiB in memory now, or the most since the start (on Linux: since ``forget_peak``)."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource  # not on Windows, where this cannot be told

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return float(lines["VmHWM" if peak else "VmRSS"].split()[0]) / 2**10


def forget_peak() -> None:
    """Let the peak begin anew, where the system can."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def measure_memory(name: str) -> None:
    """Print what :func:`peak_memory` reads."""
    scene, renderer, found = scene_of(name), CpuRenderer(), {}
    step(renderer, head_scene(200, 32)), plain(renderer, head_scene(200, 32))  # code is loaded
    for way, function in (("inference", plain), ("training", step)):
        forget_peak()
        before = resident()
        function(renderer, scene)
        found[way] = resident(peak=True) - before
    print(json.dumps(found))


def measure(name: str, threads: int, seconds: float) -> Row:
    """One scene on so many threads."""
    torch.set_num_threads(threads)
    scene = scene_of(name)
    side, thousands = (float(part) for part in name.split("/"))
    row: Row = {"scene": name, "side": side, "thousands": thousands, "threads": threads}
    row |= {"pairs": count_pairs(scene[0], scene[1], (scene[2].shape[-2], scene[2].shape[-1]))}
    row |= {"pair_ns": [1e9 * cost for cost in pair_costs()]}
    row |= {f"bound_{way}": row["pairs"] * cost / threads / 1e6 for way, cost in zip(PASSES, row["pair_ns"], strict=False)}
    return row | {f"cpu_{way}": found for way, found in timed(CpuRenderer(), scene, seconds).items()}


def line(row: Row) -> str:
    """A row of the table."""
    ours = [f"{row[f'cpu_{way}']:8.2f} ({row[f'cpu_{way}'] / row[f'bound_{way}']:4.1f}x)" for way in PASSES[:2]]
    slow = [
        f"{row[f'reference_{way}']:8.0f} ({row[f'reference_{way}'] / row[f'cpu_{way}']:4.0f}x)"
        for way in PASSES[:2]
        if "reference_forward" in row
    ]
    memory = [f"{row['memory'][way]:6.0f} {way}" for way in ("inference", "training") if "memory" in row]
    parts = [
        f"{row['scene'] + 'k':10s} {row['threads']:2d}  {row['pairs'] / 1e6:6.2f} M",
        *ours,
        f"{row['cpu_inference']:8.2f}",
        *slow,
        *memory,
    ]
    return "    ".join(parts)


def growth(rows: list[Row]) -> list[str]:
    """How time grows from the smallest scene to the largest, of one number of threads: as Gaussians or as pixels to the power p."""
    lines = []
    for what, same in (("Gaussians", ("threads", "side")), ("pixels", ("threads", "thousands"))):
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in sorted(rows, key=lambda row: (row["side"], row["thousands"])):
            groups.setdefault(tuple(row[name] for name in same), []).append(row)
        for first, *_, last in (group for group in groups.values() if len(group) > 1):
            factor = last["thousands"] / first["thousands"] if what == "Gaussians" else (last["side"] / first["side"]) ** 2
            powers = [math.log(last[f"cpu_{way}"] / first[f"cpu_{way}"]) / math.log(factor) for way in PASSES[:2]]
            start = f"{first['threads']} threads, {first['scene']}k to {last['scene']}k: time grows as "
            lines.append(start + f"{what}^{powers[0]:.2f} forward, {what}^{powers[1]:.2f} backward")
    return lines


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = {text.split(":")[1].strip() for text in cpu.splitlines() if text.startswith("model name")}
    return {
        "cpu": sorted(names) or platform.processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest scene only, few runs, no memory")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, min(2, os.cpu_count() or 1)}))
    parser.add_argument("--scenes", nargs="+", default=SCENES, metavar="SIDE/THOUSANDS")
    parser.add_argument("--no-reference", dest="reference", action="store_false", help="leave the reference renderer out: it takes seconds")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    parser.add_argument("--measure-memory", metavar="SCENE", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure_memory:
        torch.set_num_threads(asked.threads[0])
        return measure_memory(asked.measure_memory)
    rows, scenes = [], asked.scenes[:1] if asked.quick else asked.scenes
    print(HEAD)
    for name in scenes:
        for threads in asked.threads:
            row = measure(name, threads, 0.5 if asked.quick else 4)
            if asked.reference and threads == asked.threads[0]:
                row |= {f"reference_{way}": found for way, found in timed(ReferenceRenderer(), scene_of(name), 0).items()}
            if not asked.quick and threads == asked.threads[-1]:
                row["memory"] = peak_memory(name)
            rows.append(row)
            print(line(row), flush=True)
    print(*growth(rows), sep="\n")
    gpu = print_gpu_rows([(name, scene_of(name)) for name in scenes], 0.5 if asked.quick else 4)
    if asked.json:
        asked.json.write_text(json.dumps({"machine": machine(), "rows": rows, "gpu": gpu}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
