"""The wrapper around gsplat: on any machine all but gsplat's own kernels, on a GPU these too.

The contract of every renderer is in ``test_renderers.py``; there the wrapper takes part with the oracle in gsplat's place, and on a GPU
as it is.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from render_scenes import CudaRendererOverTheOracle, oracle_as_gsplat, random_scene
from torch import Tensor

from mggtalk.rendering import cuda, cuda_graph, factory
from mggtalk.rendering.cpu import CpuRenderer
from mggtalk.rendering.cuda import CudaRenderer, arguments, padded, padding
from mggtalk.rendering.cuda_graph import GraphRenderer, draw, tile_lists
from mggtalk.rendering.factory import make_renderer
from mggtalk.rendering.reference import ReferenceRenderer
from mggtalk.rendering.renderer import RenderError, Settings, start_finite_check
from mggtalk.types import Camera, Gaussians, stack

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, with gsplat and its compiler")


@pytest.fixture(autouse=True)
def fresh_loader() -> Iterator[None]:
    cuda.load_gsplat.cache_clear()
    yield
    cuda.load_gsplat.cache_clear()


def batch(count: int, points: int, size: tuple[int, int], channels: int = 3) -> tuple[Gaussians, Camera, Tensor]:
    scenes = [random_scene(seed, points, size, channels) for seed in range(count)]
    own, view = stack([scene[0] for scene in scenes]), stack([scene[1] for scene in scenes])
    return own.to(torch.float32), view.to(torch.float32), torch.stack([scene[2] for scene in scenes]).float()


def test_arguments_are_those_that_gsplat_knows() -> None:
    gsplat = pytest.importorskip("gsplat", reason="gsplat is not installed: its signature cannot be compared")
    own, view, _ = batch(2, 32, (10, 12))
    known = inspect.signature(gsplat.rasterization).parameters
    given = arguments(own, view, (10, 12), Settings())
    assert given.keys() <= known.keys()
    assert given.keys() == inspect.signature(oracle_as_gsplat).parameters.keys()
    assert {name for name, one in known.items() if one.default is inspect.Parameter.empty} <= given.keys()
    assert known["rasterize_mode"].default == "classic" and known["camera_model"].default == "pinhole"
    assert known["tile_size"].default == cuda_graph.TILE and known["radius_clip"].default == 0


def test_arguments_carry_masks_settings_and_size() -> None:
    own, view, _ = batch(2, 32, (10, 12))
    given = arguments(own, view, (10, 12), Settings(eps2d=0.1, near=3.0))
    assert (given["height"], given["width"], given["eps2d"], given["near_plane"]) == (10, 12, 0.1, 3.0)
    assert torch.equal(given["opacities"], own.opacities * own.mask) and not own.mask.all()
    assert torch.equal(given["viewmats"][:, 0], view.head_to_camera) and torch.equal(given["Ks"][:, 0], view.intrinsics)


@given(images=st.integers(1, 5), points=st.integers(0, 200))
def test_padding_gives_gsplat_what_it_can_handle(images: int, points: int) -> None:
    total = points + padding(images, points)
    assert 1 <= total < points + 33
    assert total % 32 == 0 if images > 1 else total == max(points, 1)


def test_padding_is_invalid_and_at_the_end() -> None:
    own, _, _ = batch(2, 40, (8, 8))
    more = padded(own)
    assert more.mask.shape == (2, 64) and not more.mask[:, 40:].any()
    for name, tensor in vars(more).items():
        assert torch.equal(tensor[:, :40], getattr(own, name))
    assert padded(more) is more


def test_a_gradient_to_the_intrinsics_is_refused() -> None:
    own, view, _ = batch(1, 5, (8, 8))
    learned = Camera(intrinsics=view.intrinsics.requires_grad_(), head_to_camera=view.head_to_camera)
    with pytest.raises(ValueError, match="intrinsics require a gradient"):
        CudaRendererOverTheOracle()(own, learned, (8, 8))
    with torch.no_grad():
        CudaRendererOverTheOracle()(own, learned, (8, 8))


def test_other_settings_reach_gsplat() -> None:
    own, view, _ = batch(1, 80, (24, 31))
    wanted = ReferenceRenderer(eps2d=0.1, near=19.0)(own, view, (24, 31)).image
    ours = CudaRendererOverTheOracle(eps2d=0.1, near=19.0)(own, view, (24, 31)).image
    assert (ours - wanted).abs().median() < 1e-6
    assert (ours - CudaRendererOverTheOracle()(own, view, (24, 31)).image).abs().max() > 0.01


def machine(
    monkeypatch: pytest.MonkeyPatch, *, device: bool = True, installed: bool = True, compiler: bool = True, kernels: Any = True
) -> None:
    """A machine with or without a CUDA device, gsplat, a CUDA compiler, and kernels (None: gsplat found no compiler; or an error)."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
    monkeypatch.setattr(cuda, "has_cuda_compiler", lambda: compiler)
    place = SimpleNamespace(submodule_search_locations=[])
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: place if installed else None)

    def load(name: str) -> Any:
        if name.endswith("_backend") and isinstance(kernels, Exception):
            raise kernels
        return SimpleNamespace(_C=kernels, rasterization=oracle_as_gsplat)

    monkeypatch.setattr(cuda.importlib, "import_module", load)


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no device": ({"device": False}, ["no CUDA device", "cpu renderer"]),
    "not installed": ({"installed": False}, ["not installed", 'pip install "mggtalk[cuda]"']),
    "no compiler": ({"compiler": False}, ["no CUDA compiler", "CUDA_HOME", "reference renderer"]),
    "no compiler that gsplat finds": ({"kernels": None}, ["found no CUDA compiler", "CUDA_HOME"]),
    "build fails": (
        {"kernels": RuntimeError("Error building extension\n[3/9] nvcc\nnvcc fatal: out of memory\n")},
        ["nvcc fatal", "MAX_JOBS"],
    ),
    "loading fails": ({"kernels": ImportError("libcudart.so.13: no such file")}, ["libcudart.so.13", "cannot build"]),
    "says nothing": ({"kernels": OSError("")}, ["unknown cause"]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    changes, words = CASES[case]
    machine(monkeypatch, **changes)
    with pytest.raises(RenderError) as caught:
        CudaRenderer().rasterization()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_gsplat_is_loaded_once_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    assert CudaRenderer().rasterization() is oracle_as_gsplat


def test_a_wheel_with_kernels_needs_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, compiler=False)
    place = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: place)
    assert cuda.obstacle() is not None
    (tmp_path / "csrc.cpython-311-x86_64-linux-gnu.so").touch()
    assert cuda.obstacle() is None


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_auto_picks_by_device_and_says_which(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: str) -> None:
    machine(monkeypatch)
    wanted = {"cpu": (CpuRenderer, "cpu"), "cuda": (CudaRenderer, "cuda"), "mps": (ReferenceRenderer, "reference")}[device]
    with caplog.at_level(logging.INFO, logger=factory.__name__):
        assert type(make_renderer("auto", device)) is wanted[0]
    assert f"renderer for {device}: {wanted[1]}" in caplog.text


def test_auto_without_gsplat_warns_and_cuda_without_gsplat_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine(monkeypatch, installed=False)
    assert type(make_renderer("auto", "cuda")) is ReferenceRenderer
    assert [record.levelname for record in caplog.records if "not installed" in record.message] == ["WARNING"]
    with pytest.raises(RenderError, match="not installed"):
        make_renderer("cuda", "cuda")


def test_a_renderer_on_the_wrong_device_is_refused() -> None:
    with pytest.raises(ValueError, match="'cuda' does not run on cpu"):
        make_renderer("cuda", "cpu")
    with pytest.raises((ValueError, TypeError), match="fast"):  # the type says so already when types are checked at run time
        make_renderer("fast")  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 3), points=st.integers(1, 20), height=st.integers(1, 50), width=st.integers(1, 50))
def test_tile_lists_of_fixed_size_are_those_of_gsplat(seed: int, images: int, points: int, height: int, width: int) -> None:
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed: no lists to compare with")
    generator = torch.Generator().manual_seed(seed)
    means = (torch.rand(images, points, 2, generator=generator) * 1.4 - 0.2) * torch.tensor([width, height])
    radii = torch.randint(-1, 30, (images, points, 2), generator=generator).clamp(min=0).int()
    depths = torch.randint(1, 6, (images, points), generator=generator) / 2
    columns, rows = math.ceil(width / 16), math.ceil(height / 16)
    _, keys, members = gsplat._isect_tiles(means, radii, depths, 16, columns, rows)
    wanted = gsplat._isect_offset_encode(keys, images, columns, rows)
    ours = tile_lists(means, radii, depths, (height, width), len(members) + 7)
    assert ours.total == len(members) and len(ours.members) == len(members) + 7
    ends = torch.cat([ours.offsets.flatten()[1:], torch.tensor([len(ours.members)])]).view_as(ours.offsets)
    their_ends = torch.cat([wanted.flatten()[1:], torch.tensor([len(members)])]).view_as(wanted)
    for image in range(images):
        assert (ours.offsets[image, -1, :-1] == ends[image, -1, :-1]).all()  # outside the image: empty, but for the very last
        for row in range(rows):
            for column in range(columns):
                mine = ours.members[ours.offsets[image, row, column] : ends[image, row, column]].tolist()
                theirs = members[wanted[image, row, column] : their_ends[image, row, column]].tolist()
                assert [depths.flatten()[g] for g in mine] == [depths.flatten()[g] for g in theirs]
                assert sorted(mine) == sorted(theirs) and mine == sorted(mine, key=lambda g: (float(depths.flatten()[g]), g))


def test_lists_without_room_say_so() -> None:
    means, radii, depths = torch.full((1, 3, 2), 8.0), torch.full((1, 3, 2), 4, dtype=torch.int32), torch.tensor([[3.0, 1.0, 2.0]])
    lists = tile_lists(means, radii, depths, (16, 16), 2)
    assert lists.total == 3 and lists.members.shape == (2,)


def test_lists_ignore_what_unseen_splats_hold() -> None:
    """Gsplat leaves the memory of splats that it drops as it found it."""
    means, depths = torch.tensor([[[8.0, 8], [math.nan, math.inf]]]), torch.tensor([[1.0, -math.inf]])
    radii = torch.tensor([[[3, 3], [0, 5]]], dtype=torch.int32)
    lists = tile_lists(means, radii, depths, (20, 20), 4)
    assert lists.total == 1 and lists.offsets.flatten().tolist() == [0, 1, 1, 1, 1, 1] and lists.members[0] == 0


def torch_gsplat() -> Any:
    """The functions of gsplat that the graph is made of: its own torch projection, and a blending that follows its kernel."""
    outside = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed: no projection to borrow")

    def fully_fused_projection(means: Tensor, covars: None, quats: Tensor, scales: Tensor, opacities: Tensor, **given: Any) -> Any:
        covariances, _ = outside._quat_scale_to_covar_preci(quats, scales, True, False)
        radii, *rest = outside._fully_fused_projection(means, covariances, **given)
        return radii * (opacities >= 1 / 255)[:, None, :, None], *rest

    return SimpleNamespace(fully_fused_projection=fully_fused_projection, rasterize_to_pixels=blend_lists)


def blend_lists(
    *,
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Tensor,
    flatten_ids: Tensor,
) -> tuple[Tensor, Tensor]:
    """As ``gsplat.rasterize_to_pixels``: blocks of threads walk their tile's list; those outside the image do nothing."""
    images, _, rows, columns = isect_offsets.shape
    assert rows * tile_size >= image_height and columns * tile_size >= image_width
    ends = [*isect_offsets.flatten().tolist()[1:], len(flatten_ids)]
    means, inverse, values, peaks = (part.flatten(0, 2) for part in (means2d, conics, colors, opacities[..., None]))
    out, alphas = (
        colors.new_zeros(images, 1, image_height, image_width, colors.shape[-1]),
        colors.new_zeros(images, 1, image_height, image_width, 1),
    )
    for block, (start, end) in enumerate(zip(isect_offsets.flatten().tolist(), ends, strict=True)):
        image, row, column = block // (rows * columns), block // columns % rows, block % columns
        ys = torch.arange(image_height)[row * tile_size : (row + 1) * tile_size]
        xs = torch.arange(image_width)[column * tile_size : (column + 1) * tile_size]
        left = torch.ones(len(ys), len(xs))
        going = torch.ones_like(left, dtype=torch.bool)
        for member in flatten_ids[start:end].tolist() if len(ys) and len(xs) else []:
            x, y = xs + 0.5 - means[member, 0], (ys + 0.5 - means[member, 1])[:, None]
            sigma = 0.5 * (inverse[member, 0] * x * x + inverse[member, 2] * y * y) + inverse[member, 1] * x * y
            alpha = (peaks[member] * torch.exp(-sigma)).clamp(max=0.999)
            alpha = torch.where((sigma < 0) | (alpha < 1 / 255), 0, alpha)
            going &= left * (1 - alpha) > 1e-4
            weight = torch.where(going, alpha * left, 0)
            out[image, 0, ys[:, None], xs] += weight[..., None] * values[member]
            left = left - weight
        alphas[image, 0, ys[:, None], xs] = 1 - left[..., None]
    return out, alphas


@pytest.mark.parametrize(("images", "channels"), [(1, 3), (3, 2), (1, 40), (2, 0)])
def test_what_a_graph_holds_is_the_rendering(monkeypatch: pytest.MonkeyPatch, images: int, channels: int) -> None:
    size = (37, 50)
    monkeypatch.setattr(cuda_graph, "load_gsplat", torch_gsplat)
    own, view, background = batch(images, 25, size, channels)
    wanted = ReferenceRenderer()(own, view, size, background)
    ours, total = draw(own, view, size, background, Settings(), 2000)
    assert 20 * images < total < 2000
    for name in ("image", "alpha", "depth"):
        error = ((getattr(ours, name) - getattr(wanted, name)) * (wanted.alpha if name == "depth" else 1)).abs()
        assert (error > 1e-3).double().mean() < 2e-3 if error.numel() else channels == 0, name


def test_a_graph_renderer_copies_without_its_graphs() -> None:
    renderer = GraphRenderer(near=1.0)
    renderer.graphs["shape"] = object()  # type: ignore[assignment]
    for twin in (copy.deepcopy(renderer), pickle.loads(pickle.dumps(renderer))):
        assert twin.graphs == {} and twin.settings == renderer.settings
    assert renderer.graphs


@needs_gpu
def test_gsplat_on_a_gpu_is_the_oracle_there() -> None:
    """The reference renderer on the GPU, where it must give what it gives on a CPU, and gsplat beside it."""
    own, view, background = batch(3, 70, (45, 61))
    wanted = ReferenceRenderer()(own.to(torch.float64), view.to(torch.float64), (45, 61), background.double())
    there: dict[str, Any] = {"device": "cuda", "dtype": torch.float64}
    oracle = ReferenceRenderer()(own.to(**there), view.to(**there), (45, 61), background.to(**there))
    torch.testing.assert_close(oracle.image.cpu(), wanted.image, atol=1e-9, rtol=0)
    ours = CudaRenderer()(own.to("cuda"), view.to("cuda"), (45, 61), background.cuda()).image.cpu()
    assert ((ours - wanted.image).abs() > 1e-4).double().mean() < 2e-3


@needs_gpu
def test_a_graph_follows_its_inputs() -> None:
    """Other numbers of the same shape; then so many more pairs that the room no longer does."""
    renderer, size = GraphRenderer(), (96, 120)
    for seed, scale in ((0, 0.3), (1, 0.3), (2, 6.0)):
        own, view, background = (part.to(torch.float32).to("cuda") for part in random_scene(seed, 500, size))
        own = Gaussians(**{**vars(own), "scales": own.scales * scale})
        with torch.no_grad():
            torch.testing.assert_close(renderer(own, view, size, background).image, CudaRenderer()(own, view, size, background).image)
    assert len(renderer.graphs) == 1


@needs_gpu
def test_numbers_that_are_not_finite_are_found_while_the_gpu_works() -> None:
    named = {"means": torch.randn(100, 3, device="cuda"), "features": torch.randn(100, 0, device="cuda")}
    mask = torch.ones(100, dtype=torch.bool, device="cuda")
    start_finite_check(named, mask)()
    named["means"][7, 1] = -math.inf
    finish: Callable[[], None] = start_finite_check(named, mask)
    with pytest.raises(ValueError, match="means"):
        finish()
    mask[7] = False
    start_finite_check(named, mask)()
