"""The benchmark of the renderers: its count of pairs, its bound, its table. It measures nothing here that a test could hold it to."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from render_scenes import footprint, random_scene

from mggtalk.types import Camera, Gaussians, stack

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import render
import render_bound
import render_gpu


def pairs_one_by_one(gaussians: Gaussians, camera: Camera, size: tuple[int, int]) -> int:
    """Gaussian by Gaussian, with the projection of the slow twin."""
    ys, xs = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    left, stopped, pairs = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.bool), 0
    points = gaussians.means @ camera.head_to_camera[:3, :3].mT + camera.head_to_camera[:3, 3]
    for index in points[:, 2].argsort().tolist():
        if not gaussians.mask[index] or points[index, 2] <= 0.01:
            continue
        mean, covariance = footprint(gaussians.quaternions[index], gaussians.scales[index], camera, points[index], size)
        offset = torch.stack([xs, ys], dim=-1).double() - mean
        sigma = 0.5 * torch.einsum("hwi,ij,hwj->hw", offset, covariance.inverse(), offset)
        alpha = (gaussians.opacities[index] * torch.exp(-sigma)).clamp(max=0.999)
        stops = (alpha >= 1 / 255) & (left * (1 - alpha) <= 1e-4)
        stopped |= stops
        counts = (alpha >= 1 / 255) & ~stopped
        left = torch.where(counts, left * (1 - alpha), left)
        pairs += int(counts.sum())
    return pairs


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairs_are_counted(seed: int) -> None:
    gaussians, camera, _ = random_scene(seed, 150, (30, 41))
    gaussians = Gaussians(**{**vars(gaussians), "opacities": 0.5 + 0.5 * gaussians.opacities})
    with torch.no_grad():
        wanted = pairs_one_by_one(gaussians, camera, (30, 41))
        assert render_bound.count_pairs(stack([gaussians]), stack([camera]), (30, 41)) == wanted > 1000


def test_a_pair_costs_time_and_backward_costs_more() -> None:
    forward, backward = render_bound.pair_costs()
    assert 1e-12 < forward < backward < 1e-6


def test_growth_is_the_power_of_size() -> None:
    def row(side: float, thousands: float) -> dict[str, float | str]:
        times = {"cpu_forward": thousands * side**2, "cpu_backward": thousands**0.5 * side}
        return {"side": side, "thousands": thousands, "threads": 1, "scene": f"{side:.0f}/{thousands:.0f}", **times}

    lines = render.growth([row(64, 8), row(32, 2), row(64, 2), row(32, 8)])
    assert [line.split("as ")[1] for line in lines] == [
        "Gaussians^1.00 forward, Gaussians^0.50 backward",
        "Gaussians^1.00 forward, Gaussians^0.50 backward",
        "pixels^1.00 forward, pixels^0.50 backward",
        "pixels^1.00 forward, pixels^0.50 backward",
    ]


def test_the_table_and_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(
        sys, "argv", ["render.py", "--quick", "--threads", "1", "--scenes", "32/0.5", "--json", str(tmp_path / "numbers.json")]
    )
    try:
        render.main()
    finally:
        torch.set_num_threads(threads)
    found = json.loads((tmp_path / "numbers.json").read_text())
    (row,) = found["rows"]
    assert row["pairs"] > 1000 and row["cpu_forward"] > row["bound_forward"] > 0 and row["reference_forward"] > 0
    assert "32/0.5k" in capsys.readouterr().out
    assert bool(found["gpu"]) == (render_gpu.obstacle() is None)


def test_memory_is_that_of_one_scene(capsys: pytest.CaptureFixture[str]) -> None:
    render.measure_memory("48/1")
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"inference", "training"} and all(
        0 <= mebibytes < 500 and math.isfinite(mebibytes) for mebibytes in found.values()
    )
