"""What the compiled renderer promises beyond the contract: exact gradients, one answer for any number of threads, no lock-up."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from render_scenes import random_scene
from torch import Tensor

from mggtalk.rendering import cpu_buffers, cpu_threads
from mggtalk.rendering.cpu import CpuRenderer
from mggtalk.rendering.cpu_blend import exp2
from mggtalk.rendering.cpu_project import log2
from mggtalk.rendering.factory import make_renderer
from mggtalk.rendering.reference import ReferenceRenderer
from mggtalk.rendering.renderer import Renderer
from mggtalk.rendering.simd import compiled
from mggtalk.rendering.simd_memory import load, load_rows, store, store_rows, sums, total
from mggtalk.types import Camera, Gaussians, Rendering

FIELDS = ("means", "quaternions", "scales", "opacities", "features")


@compiled()
def exponentials(numbers: Any, out: Any) -> None:
    for at in range(0, numbers.size, 16):
        store(out, at, exp2(load(numbers, at)))


@compiled()
def logarithms(numbers: Any, out: Any) -> None:
    for at in range(0, numbers.size, 16):
        store(out, at, log2(load(numbers, at)))


@compiled()
def lane_tricks(table: Any, copy: Any, added: Any) -> None:
    x, y, z = load_rows(table, 0, 3)
    store_rows(copy, 0, (x, y, z))
    store(added, 0, sums((x, y, z, x * y, x * 2.0 - z)))
    added[16] = total(y)


def test_exponentials_and_logarithms() -> None:
    numbers = np.linspace(-20, 0, 16 * 5000, dtype=np.float32)
    out = np.empty_like(numbers)
    exponentials(numbers, out)
    np.testing.assert_allclose(out, np.exp2(numbers.astype(np.float64)), rtol=4e-7)
    numbers = np.geomspace(1e-4, 1, 16 * 5000, dtype=np.float32)
    logarithms(numbers, out)
    np.testing.assert_allclose(out, np.log2(numbers.astype(np.float64)), rtol=0, atol=2e-6)


def test_rows_columns_and_sums() -> None:
    table = np.random.default_rng(0).integers(-50, 50, 48).astype(np.float32)
    copy, added = np.zeros(48, np.float32), np.ones(17, np.float32)
    lane_tricks(table, copy, added)
    x, y, z = table.reshape(16, 3).T
    np.testing.assert_array_equal(copy, table)
    np.testing.assert_array_equal(added[:5], [x.sum(), y.sum(), z.sum(), (x * y).sum(), (2 * x - z).sum()])
    assert (added[5:16] == 0).all() and added[16] == y.sum()


def gradients(kind: type[Renderer], scene: tuple[Gaussians, Camera, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """Of a fixed random projection of all outputs, to every input."""
    dtype = kind.dtypes[-1]
    gaussians, camera, background = scene[0].to(dtype), scene[1].to(dtype), scene[2].to(dtype)
    leaves = {name: getattr(gaussians, name).clone().requires_grad_() for name in FIELDS}
    view = {name: tensor.clone().requires_grad_() for name, tensor in vars(camera).items()}
    behind = background.clone().requires_grad_()
    rendering = kind()(replace(gaussians, **leaves), Camera(**view), size, behind)
    weigh(rendering).backward()
    return {name: leaf.grad.double() for name, leaf in {**leaves, **view, "background": behind}.items() if leaf.grad is not None}


def weigh(rendering: Rendering) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    parts = [part * torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part) for part in vars(rendering).values()]
    return torch.stack([part.sum() for part in parts]).sum()


@pytest.mark.parametrize(("points", "channels"), [(3, 3), (300, 1), (300, 16), (1030, 3)])
def test_gradients_are_those_of_float64(points: int, channels: int) -> None:
    """Each within 1e-4 of its length; 1030 points end a chunk with a vector that overlaps the one before."""
    size = (61, 83)
    scene = random_scene(points, points, size, channels)
    ours, wanted = gradients(CpuRenderer, scene, size), gradients(ReferenceRenderer, scene, size)
    assert ours.keys() == wanted.keys() == {*FIELDS, "intrinsics", "head_to_camera", "background"}
    for name, gradient in wanted.items():
        assert (ours[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_few_pixels_differ_from_float64() -> None:
    """Float32 moves an alpha over the threshold of 1/255 at few pixels; all others agree."""
    size = (128, 96)
    gaussians, camera, background = random_scene(3, 2000, size)
    ours = CpuRenderer()(gaussians.to(torch.float32), camera.to(torch.float32), size, background.float()).image
    wanted = ReferenceRenderer()(gaussians, camera, size, background).image
    error = (ours - wanted).abs().amax(dim=0)
    assert (error > 2e-5).double().mean() < 1e-3
    assert error.max() < 0.01


THREADS = """
import hashlib, os, sys, threading, torch
sys.path.insert(0, {tests!r})
from render_scenes import random_scene
from mggtalk.rendering.cpu import CpuRenderer
from mggtalk.rendering.cpu_threads import threads
from test_cpu_renderer import FIELDS, weigh
from dataclasses import replace
from mggtalk.types import Camera

gaussians, camera, background = (part.to(torch.float32) for part in random_scene(1, 3000, (100, 90)))

def digest():
    leaves = {{name: getattr(gaussians, name).clone().requires_grad_() for name in FIELDS}}
    pose = camera.head_to_camera.clone().requires_grad_()
    rendering = CpuRenderer()(replace(gaussians, **leaves), replace(camera, head_to_camera=pose), (100, 90), background)
    weigh(rendering).backward()
    found = hashlib.sha256()
    for tensor in [*vars(rendering).values(), pose.grad, *(leaf.grad for leaf in leaves.values())]:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()

answers = []
for count in (1, 2, 3):
    torch.set_num_threads(count)
    answers.append(digest())
    assert torch.get_num_threads() == count
workers = [threading.Thread(target=lambda: answers.append(digest())) for _ in range(3)]
[worker.start() for worker in workers], [worker.join() for worker in workers]
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        with threads() as parts:
            alone = parts == 1
        torch.set_num_threads(1)
        os._exit(0 if alone and digest() == answers[0] else 1)
    answers.append(answers[0] if os.waitpid(child, 0)[1] == 0 else "the forked process failed")
print(len(answers), *set(answers))
"""


def test_threads_and_forks_give_the_same_bits() -> None:
    """One, two, three threads, three Python threads at once, and a child forked after Numba's threads have started.

    The child takes torch's threads down to one, for torch itself hangs there with more (its data loaders do the same).
    """
    here = Path(__file__).parent
    environment = {**os.environ, "NUMBA_NUM_THREADS": "3", "PYTHONPATH": str(here.parent)}
    code = THREADS.format(tests=str(here))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    count, *different = done.stdout.split()
    assert int(count) == 6 + hasattr(os, "fork")
    assert len(different) == 1 and len(different[0]) == 64


def scene32(seed: int, size: tuple[int, int]) -> tuple[Gaussians, Camera]:
    gaussians, camera, _ = random_scene(seed, 50, size)
    return gaussians.to(torch.float32), camera.to(torch.float32)


def test_workspaces_return_when_backward_never_runs() -> None:
    gaussians, camera = scene32(0, (20, 20))
    learned = replace(gaussians, opacities=gaussians.opacities.clone().requires_grad_())
    gc.collect()
    cpu_buffers._pool.spare.clear()
    rendering = CpuRenderer()(learned, camera, (20, 20))
    assert len(cpu_buffers._pool.spare) == 0  # its graph holds it
    del rendering
    gc.collect()
    assert len(cpu_buffers._pool.spare) == 1


def test_two_renderings_alive_do_not_share_their_lists() -> None:
    """And a graph that is kept can be run backward twice."""
    first, camera = scene32(1, (20, 20))
    second, other = scene32(2, (20, 20))
    leaf = first.means.clone().requires_grad_()
    rendering = CpuRenderer()(replace(first, means=leaf), camera, (20, 20))
    (alone,) = torch.autograd.grad(weigh(rendering), leaf, retain_graph=True)
    CpuRenderer()(replace(second, means=second.means.clone().requires_grad_()), other, (20, 20))
    (again,) = torch.autograd.grad(weigh(rendering), leaf)
    assert alone.abs().sum() > 0
    torch.testing.assert_close(again, alone, atol=0, rtol=0)


def test_second_derivatives_are_refused() -> None:
    gaussians, camera = scene32(3, (9, 9))
    leaf = gaussians.opacities.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(weigh(CpuRenderer()(replace(gaussians, opacities=leaf), camera, (9, 9))), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.sum().backward()


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"alpha_min": 0.0}, {"alpha_max": 1.0}, {"transmittance_min": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CpuRenderer(**wrong)


def test_other_settings_are_those_of_the_reference() -> None:
    size = (24, 31)
    gaussians, camera, _ = random_scene(5, 80, size)
    chosen: dict[str, Any] = {"eps2d": 0.1, "near": 15.0, "alpha_min": 0.02, "alpha_max": 0.7, "transmittance_min": 0.05}
    wanted = ReferenceRenderer(**chosen)(gaussians, camera, size).image
    ours = CpuRenderer(**chosen)(gaussians.to(torch.float32), camera.to(torch.float32), size).image
    assert ((ours - wanted).abs() > 2e-5).double().mean() < 5e-3
    assert (ours - CpuRenderer()(gaussians.to(torch.float32), camera.to(torch.float32), size).image).abs().max() > 0.01


def test_a_slow_first_call_is_announced_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cpu_threads, "PATIENCE", 0.0)
    monkeypatch.setattr(cpu_threads, "_process", cpu_threads._Process())
    for _ in range(2):
        with cpu_threads.announced("the test", 1):
            time.sleep(0.2)
    assert capsys.readouterr().err.count("compiling the test of the CPU renderer") == 1


def test_the_factory_picks_by_device() -> None:
    assert isinstance(make_renderer(), CpuRenderer)
    assert isinstance(make_renderer("auto", "cuda"), ReferenceRenderer)
    assert isinstance(make_renderer("reference"), ReferenceRenderer)
    with pytest.raises(ValueError, match="cuda"):
        make_renderer("cpu", "cuda")
