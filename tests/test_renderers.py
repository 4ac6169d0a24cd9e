"""One contract for every renderer: whoever subclasses ``Renderer`` in ``mggtalk.rendering`` is tested here, without a change."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from render_scenes import CudaRendererOverTheOracle, flat, front_camera, random_scene, slow_twin, slow_twin_and_thresholds
from torch import Tensor

import mggtalk.rendering
from mggtalk.rendering.reference import ReferenceRenderer
from mggtalk.rendering.renderer import Renderer
from mggtalk.types import Camera, Gaussians, Rendering, stack

FIELDS = ("means", "quaternions", "scales", "opacities", "features")


def subclasses(parent: type[Renderer]) -> Iterator[type[Renderer]]:
    for child in parent.__subclasses__():
        yield child
        yield from subclasses(child)


def members() -> tuple[list[object], list[object]]:
    """Every concrete renderer of the package: those that run here, and those whose dependency or device is missing, marked as skipped.

    Among the first is the wrapper around gsplat with the oracle in gsplat's place, which needs no GPU.
    """
    here: list[object] = [pytest.param(CudaRendererOverTheOracle, id=CudaRendererOverTheOracle.__name__)]
    missing: list[object] = []
    for module in pkgutil.iter_modules(mggtalk.rendering.__path__, "mggtalk.rendering."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            missing.append(pytest.param(None, id=module.name, marks=pytest.mark.skip(reason=str(error))))
    for kind in sorted(set(subclasses(Renderer)), key=lambda kind: kind.__name__):  # type: ignore[type-abstract]
        if not kind.__module__.startswith("mggtalk.") or inspect.isabstract(kind):
            continue
        if "cpu" in kind.devices or (torch.cuda.is_available() and "cuda" in kind.devices):
            here.append(pytest.param(kind, id=kind.__name__))
        else:
            skip = pytest.mark.skip(
                reason=f"{kind.__name__} needs a device of type {' or '.join(kind.devices)}: its contract is not tested"
            )
            missing.append(pytest.param(kind, id=kind.__name__, marks=skip))
    return here, missing


every_renderer = pytest.mark.parametrize("kind", members()[0])


@pytest.mark.parametrize("kind", members()[1])
def test_renderers_that_cannot_run_here(kind: type[Renderer]) -> None:
    raise AssertionError(f"{kind} is neither tested nor skipped")


def moved(kind: type[Renderer], dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The most exact dtype (or the given one) and the first device that a renderer takes here."""
    dtype = dtype or (torch.float64 if torch.float64 in kind.dtypes else torch.float32)
    return {"dtype": dtype, "device": "cpu" if "cpu" in kind.devices else "cuda"}


def exact(value: float | list[float]) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def tolerance(kind: type[Renderer]) -> float:
    return 1e-9 if torch.float64 in kind.dtypes else 2e-5


def render(
    kind: type[Renderer],
    gaussians: Gaussians,
    camera: Camera,
    size: tuple[int, int],
    background: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Rendering:
    """Render in the renderer's own dtype and device, answer in float64 on the CPU."""
    place = moved(kind, dtype)
    there = None if background is None else background.to(**place)
    return kind()(gaussians.to(**place), camera.to(**place), size, there).to(dtype=torch.float64, device="cpu")


def flips(dtype: torch.dtype, ours: Rendering, wanted: Rendering, close: Tensor) -> int:
    """How many pixels differ because rounding to float32 moved an alpha or a transmittance over its threshold.

    All others must agree, and those that lie ``close`` to a threshold may differ by no more than one faint splat; in float64 none may.
    """
    exactly, flipped = dtype == torch.float64, torch.zeros_like(close)
    for name in ("image", "alpha", "depth"):
        error = ((getattr(ours, name) - getattr(wanted, name)).abs() / (20 if name == "depth" else 1)).amax(dim=0, keepdim=True)[0]
        if name == "depth":  # a quotient: its error grows where little is seen
            error = error * wanted.alpha[0]
        assert torch.where(close & (not exactly), 0, error).max() < (1e-9 if exactly else 5e-5), name
        assert error.max() < 0.01, name
        flipped |= error >= 5e-5
    return int(flipped.sum())


@every_renderer
def test_one_round_gaussian_has_its_closed_form(kind: type[Renderer]) -> None:
    size, scale, opacity, distance = (11, 15), 0.5, 0.8, 20.0
    gaussians, camera = flat([[0, 0, 0]], scale, [opacity], [[0.2, 0.7]]), front_camera(size, distance)
    rendering = render(kind, gaussians, camera, size)
    variance = (camera.intrinsics[0, 0] * scale / distance) ** 2 + 0.3
    ys, xs = torch.meshgrid(torch.arange(11).double() - 5, torch.arange(15).double() - 7, indexing="ij")
    alpha = opacity * torch.exp(-(xs**2 + ys**2) / (2 * variance))
    alpha = torch.where(alpha < 1 / 255, 0, alpha)[None]
    assert (alpha == 0).any()
    torch.testing.assert_close(rendering.alpha, alpha, atol=tolerance(kind), rtol=0)
    torch.testing.assert_close(rendering.image, alpha * exact([0.2, 0.7])[:, None, None], atol=tolerance(kind), rtol=0)
    torch.testing.assert_close(rendering.depth, torch.where(alpha > 0, exact(distance), 0), atol=20 * tolerance(kind), rtol=0)


@every_renderer
def test_two_gaussians_blend_by_hand(kind: type[Renderer]) -> None:
    """At the centre pixel: 0.6 of the near one, then 0.5 of what passes; the list is given back to front."""
    gaussians = flat([[0, 0, -2], [0, 0, 3]], 1.0, [0.5, 0.6], [[1.0, 0.0], [0.0, 1.0]])
    rendering = render(kind, gaussians, front_camera((9, 9)), (9, 9), torch.full((2, 9, 9), 0.25, dtype=torch.float64))
    image, alpha, depth = rendering.image[:, 4, 4], rendering.alpha[0, 4, 4], rendering.depth[0, 4, 4]
    torch.testing.assert_close(image, exact([0.4 * 0.5 + 0.2 * 0.25, 0.6 + 0.2 * 0.25]), atol=tolerance(kind), rtol=0)
    torch.testing.assert_close(alpha, exact(0.8), atol=tolerance(kind), rtol=0)
    expected = (0.6 * 17 + 0.2 * 22) / 0.8
    torch.testing.assert_close(depth, exact(expected), atol=20 * tolerance(kind), rtol=0)


@every_renderer
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), height=st.integers(1, 37), width=st.integers(1, 37))
def test_agrees_with_the_slow_twin(kind: type[Renderer], seed: int, count: int, height: int, width: int) -> None:
    gaussians, camera, background = random_scene(seed, count, (height, width))
    with torch.no_grad():
        wanted, close = slow_twin_and_thresholds(gaussians, camera, (height, width), background)
        for dtype in kind.dtypes:
            flips(dtype, render(kind, gaussians, camera, (height, width), background, dtype), wanted, close)


@every_renderer
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (15, 64), (70, 9)])
def test_threshold_flips_are_rare_for_every_size_of_image(
    kind: type[Renderer], size: tuple[int, int], record_property: Callable[[str, object], None]
) -> None:
    gaussians, camera, background = random_scene(31, 60, size)
    with torch.no_grad():
        wanted, close = slow_twin_and_thresholds(gaussians, camera, size, background)
    for dtype in kind.dtypes:
        counted = flips(dtype, render(kind, gaussians, camera, size, background, dtype), wanted, close)
        record_property(f"pixels flipped in {dtype}", f"{counted} of {close.numel()}, {int(close.sum())} close to a threshold")
        assert counted <= 0.002 * close.numel()


@every_renderer
def test_huge_and_tiny_gaussians_agree_with_the_slow_twin(kind: type[Renderer]) -> None:
    """Standard deviations from a millionth of a pixel to a thousand images."""
    size = (20, 27)
    gaussians, camera, background = random_scene(21, 40, size)
    exponents = torch.linspace(-7, -3, 20, dtype=torch.float64), torch.linspace(1.5, 3.5, 20, dtype=torch.float64)
    round_, longer = torch.cat(exponents).pow_(1).mul(math.log(10)).exp()[:, None], torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64)
    gaussians = replace(gaussians, scales=round_ * longer, opacities=0.05 + 0.3 * gaussians.opacities)
    with torch.no_grad():
        wanted, close = slow_twin_and_thresholds(gaussians, camera, size, background)
    for dtype in kind.dtypes:
        flips(dtype, render(kind, gaussians, camera, size, background, dtype), wanted, close)
    assert wanted.alpha.min() > 0.5


def gradients(
    function: Callable[..., Rendering],
    gaussians: Gaussians,
    camera: Camera,
    background: Tensor,
    size: tuple[int, int],
    left_out: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gradients of a fixed random projection of all outputs, to every input a renderer is differentiable to; without some pixels."""
    leaves = {name: getattr(gaussians, name).clone().requires_grad_() for name in FIELDS}
    leaves |= {"head_to_camera": camera.head_to_camera.clone().requires_grad_(), "background": background.clone().requires_grad_()}
    own = replace(gaussians, **{name: leaves[name] for name in FIELDS})
    rendering = function(own, replace(camera, head_to_camera=leaves["head_to_camera"]), size, leaves["background"])
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in vars(rendering).values()]
    weights = weights if left_out is None else [weight * ~left_out for weight in weights]
    parts = [part * weight.to(part) for part, weight in zip(vars(rendering).values(), weights, strict=True)]
    torch.stack([part.sum() for part in parts]).sum().backward()
    return {name: leaf.grad.double().cpu() for name, leaf in leaves.items() if leaf.grad is not None}


@every_renderer
@pytest.mark.parametrize(("seed", "channels"), [(0, 3), (1, 1), (2, 16)])
def test_gradients_agree_with_the_slow_twin(kind: type[Renderer], seed: int, channels: int) -> None:
    """Each within 1e-4 of its length; in float32 without the pixels at which rounding may flip a threshold."""
    size = (19, 23)
    gaussians, camera, background = random_scene(seed, 24, size, channels)
    _, close = slow_twin_and_thresholds(gaussians, camera, size, background)
    left_out = None if torch.float64 in kind.dtypes else close
    place = moved(kind)
    ours = gradients(kind(), gaussians.to(**place), camera.to(**place), background.to(**place), size, left_out)
    wanted = gradients(slow_twin, gaussians, camera, background, size, left_out)
    assert close.double().mean() < 0.2
    for name in wanted:
        error = (ours[name] - wanted[name]).norm() / wanted[name].norm()
        assert wanted[name].norm() > 0
        assert error < (1e-8 if torch.float64 in kind.dtypes else 1e-4), name


@every_renderer
@pytest.mark.parametrize("points", [7, 33])
def test_gradients_of_a_batch_are_those_of_its_images(kind: type[Renderer], points: int) -> None:
    """Above all those of the cameras: a GPU adds them up in groups of threads that may reach from image to image."""
    size, place = (13, 18), moved(kind)
    scenes = [random_scene(seed, points, size) for seed in range(3)]
    moved_scenes = [(own.to(**place), camera.to(**place), background.to(**place)) for own, camera, background in scenes]
    batch, cameras = stack([scene[0] for scene in moved_scenes]), stack([scene[1] for scene in moved_scenes])
    weights = torch.randn(3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(**place)

    def found(own: Gaussians, camera: Camera, weight: Tensor) -> list[Tensor]:
        leaves = [getattr(own, name).clone().requires_grad_() for name in FIELDS] + [camera.head_to_camera.clone().requires_grad_()]
        own = replace(own, **dict(zip(FIELDS, leaves, strict=False)))
        rendering = kind()(own, replace(camera, head_to_camera=leaves[-1]), size)
        return list(torch.autograd.grad(((rendering.image.sum(dim=-3) + rendering.alpha[..., 0, :, :]) * weight).sum(), leaves))

    together = found(batch, cameras, weights)
    for index, (own, camera, _) in enumerate(moved_scenes):
        for name, ours, alone in zip([*FIELDS, "head_to_camera"], together, found(own, camera, weights[index]), strict=True):
            assert (ours[index] - alone).norm() <= 1e-5 * alone.norm(), name


@every_renderer
def test_gradients_agree_with_finite_differences(kind: type[Renderer]) -> None:
    if torch.float64 not in kind.dtypes:
        pytest.skip("finite differences need float64; the slow twin's gradients are the proof for this renderer")
    size = (6, 7)
    gaussians, camera, background = random_scene(3, 6, size, channels=2)
    gaussians = replace(gaussians, mask=torch.ones_like(gaussians.mask), opacities=0.3 + 0.6 * gaussians.opacities)
    device = moved(kind)["device"]

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        own = replace(gaussians, **dict(zip(FIELDS, inputs, strict=False))).to(device=device)
        rendering = kind()(own, Camera(intrinsics=inputs[5], head_to_camera=inputs[6]).to(device=device), size, inputs[7].to(device=device))
        return rendering.image.cpu(), rendering.alpha.cpu(), rendering.depth.cpu()

    inputs = [getattr(gaussians, name) for name in FIELDS] + [camera.intrinsics, camera.head_to_camera, background]
    assert torch.autograd.gradcheck(function, [tensor.clone().requires_grad_() for tensor in inputs], atol=1e-5, rtol=1e-4)


@every_renderer
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_the_gaussians_does_not_matter(kind: type[Renderer], seed: int) -> None:
    gaussians, camera, background = random_scene(seed, 30, (17, 9))
    shuffled = gaussians[torch.randperm(30, generator=torch.Generator().manual_seed(seed))]
    ours, theirs = (render(kind, each, camera, (17, 9), background) for each in (gaussians, shuffled))
    torch.testing.assert_close(ours.image, theirs.image, atol=tolerance(kind), rtol=0)


@every_renderer
def test_the_background_shows_through_linearly(kind: type[Renderer]) -> None:
    gaussians, camera, background = random_scene(5, 20, (12, 20))
    bare, with_it, twice = (render(kind, gaussians, camera, (12, 20), each) for each in (None, background, 2 * background))
    torch.testing.assert_close(with_it.image - bare.image, (1 - bare.alpha) * background, atol=tolerance(kind), rtol=0)
    torch.testing.assert_close(twice.image - with_it.image, with_it.image - bare.image, atol=tolerance(kind), rtol=0)
    torch.testing.assert_close(with_it.alpha, bare.alpha, atol=0, rtol=0)


@every_renderer
@pytest.mark.parametrize("case", ["no points", "all masked", "behind the camera", "before the near plane", "beside the image", "faint"])
def test_nothing_to_see_gives_the_background_and_zero_gradients(kind: type[Renderer], case: str) -> None:
    size = (10, 13)
    gaussians, camera, background = random_scene(7, 8, size)
    gaussians = replace(gaussians, mask=torch.ones_like(gaussians.mask))
    changes: dict[str, dict[str, Tensor]] = {
        "no points": {},
        "all masked": {"mask": torch.zeros_like(gaussians.mask)},
        "behind the camera": {"means": gaussians.means + torch.tensor([0, 0, 200.0])},
        "before the near plane": {"means": torch.zeros_like(gaussians.means)},
        "beside the image": {"means": gaussians.means + torch.tensor([4e3, 0, 0])},
        "faint": {"opacities": torch.full_like(gaussians.opacities, 0.0039)},
    }
    gaussians = replace(gaussians, **changes[case])
    if case == "before the near plane":
        pose = camera.head_to_camera.clone()
        pose[:3, 3] = torch.tensor([0, 0, 0.005])
        camera = replace(camera, head_to_camera=pose)
    place = moved(kind)
    own = gaussians[:0] if case == "no points" else gaussians
    rendering = render(kind, own, camera, size, background)
    torch.testing.assert_close(rendering.image, background, atol=tolerance(kind), rtol=0)
    assert (rendering.alpha == 0).all() and (rendering.depth == 0).all()
    found = gradients(kind(), own.to(**place), camera.to(**place), background.to(**place), size)
    assert found.keys() == {*FIELDS, "head_to_camera", "background"}
    for name, gradient in found.items():
        assert torch.isfinite(gradient).all()
        assert name == "background" or (gradient == 0).all(), name


@every_renderer
def test_unseen_gaussians_get_zero_gradients_beside_seen_ones(kind: type[Renderer]) -> None:
    """One at the camera's very centre, one masked that holds infinities of no consequence, among ordinary ones."""
    size = (12, 12)
    gaussians, camera, background = random_scene(9, 12, size)
    means, mask, scales = gaussians.means.clone(), torch.ones(12, dtype=torch.bool), gaussians.scales.clone()
    means[0] = -camera.head_to_camera[:3, :3].mT @ camera.head_to_camera[:3, 3]
    mask[1], scales[1] = False, 0
    place = moved(kind)
    own = replace(gaussians, means=means, mask=mask, scales=scales)
    found = gradients(kind(), own.to(**place), camera.to(**place), background.to(**place), size)
    for name, gradient in found.items():
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0, name
    assert all((found[name][:2] == 0).all() for name in FIELDS)


@every_renderer
@pytest.mark.parametrize("name", [*FIELDS, "intrinsics", "head_to_camera", "background"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_by_name(kind: type[Renderer], name: str, value: float) -> None:
    gaussians, camera, background = random_scene(1, 5, (8, 8))
    gaussians = replace(gaussians, mask=torch.tensor([False, True, True, True, True]))
    records = {**gaussians.__dict__, **camera.__dict__, "background": background}
    broken = records[name].clone()
    broken[-1] = value
    records[name] = broken
    own = Gaussians(**{key: records[key] for key in gaussians.__dict__})
    with pytest.raises(ValueError, match=name):
        render(kind, own, Camera(intrinsics=records["intrinsics"], head_to_camera=records["head_to_camera"]), (8, 8), records["background"])


@every_renderer
def test_disagreeing_sizes_are_refused(kind: type[Renderer]) -> None:
    gaussians, camera, background = random_scene(1, 5, (8, 8))
    with pytest.raises(ValueError, match="background"):
        render(kind, gaussians, camera, (8, 9), background)
    with pytest.raises(ValueError, match="background"):
        render(kind, gaussians, camera, (8, 8), background[:2])
    with pytest.raises(ValueError, match="intrinsics"):
        render(kind, gaussians, stack([camera, camera]), (8, 8))
    with pytest.raises((ValueError, TypeError), match="opacities"):  # the record itself refuses when shapes are checked at run time
        render(kind, replace(gaussians, opacities=gaussians.opacities[:4]), camera, (8, 8))
    with pytest.raises(ValueError, match="size"):
        render(kind, gaussians, camera, (0, 8))


@every_renderer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_autocast_is_off_inside(kind: type[Renderer], dtype: torch.dtype) -> None:
    """Rounded inputs, as autocast leaves them, are rendered as float32 renders the same numbers."""
    size, place = (14, 10), moved(kind, torch.float32)
    gaussians, camera, background = random_scene(15, 30, size)
    rounded = gaussians.to(dtype).to(**place)
    wanted = kind()(rounded, camera.to(**place), size, background.to(**place))
    mixed = replace(rounded, features=rounded.features.to(dtype), opacities=rounded.opacities.to(dtype))
    with torch.autocast(place["device"], dtype=torch.bfloat16):
        ours = kind()(mixed, camera.to(**place), size, background.to(**place))
    for name, part in vars(ours).items():
        assert part.dtype == torch.float32
        torch.testing.assert_close(part, getattr(wanted, name), atol=0, rtol=0)


@every_renderer
@pytest.mark.parametrize(
    "wrong", [{"eps2d": -0.1}, {"near": 0.0}, {"alpha_min": 0.0}, {"alpha_max": 1.0}, {"transmittance_min": -1.0}, {"near": math.nan}]
)
def test_settings_out_of_range_are_refused_by_name(kind: type[Renderer], wrong: dict[str, float]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):  # gsplat's thresholds are no settings
        kind(**wrong)


@every_renderer
@pytest.mark.parametrize("channels", [0, 1, 3, 5, 16, 32, 40])
def test_batches_equal_singles_for_any_number_of_features(kind: type[Renderer], channels: int) -> None:
    size = (11, 18)
    scenes = [random_scene(seed, 15, size, channels) for seed in range(4)]
    singles = stack([render(kind, own, camera, size, background) for own, camera, background in scenes])
    batch = stack([scene[0] for scene in scenes]).map(lambda tensor: tensor.reshape(2, 2, *tensor.shape[1:]))
    cameras = stack([scene[1] for scene in scenes]).map(lambda tensor: tensor.reshape(2, 2, *tensor.shape[1:]))
    together = render(kind, batch, cameras, size, torch.stack([scene[2] for scene in scenes]).reshape(2, 2, channels, *size))
    assert together.image.shape == (2, 2, channels, *size)
    assert render(kind, batch[:0], cameras[:0], size).depth.shape == (0, 2, 1, *size)
    for name in ("image", "alpha", "depth"):
        torch.testing.assert_close(getattr(together, name).flatten(0, 1), getattr(singles, name), atol=20 * tolerance(kind), rtol=0)


@every_renderer
def test_blending_stops_before_the_transmittance_would_fall_to_the_limit(kind: type[Renderer]) -> None:
    """Three of alpha 0.95 leave 1.25e-4. A fourth of 0.5 would leave less than 1e-4: it is left out, and a faint fifth too."""
    opacities = [0.95, 0.95, 0.95, 0.5, 0.01]
    gaussians = flat([[0, 0, -float(i)] for i in range(5)], 1.0, opacities, [[0.0], [0.0], [0.0], [1e4], [1e6]])
    rendering = render(kind, gaussians, front_camera((5, 5)), (5, 5))
    assert rendering.image[0, 2, 2] == 0
    torch.testing.assert_close(1 - rendering.alpha[0, 2, 2], exact(0.05**3), atol=tolerance(kind) / 10, rtol=0)
    faint = replace(gaussians, opacities=gaussians.opacities.index_fill(0, torch.tensor(3), 0.1))
    blended = render(kind, faint, front_camera((5, 5)), (5, 5)).image[0, 2, 2]
    torch.testing.assert_close(blended, exact(0.05**3 * (0.1 * 1e4 + 0.9 * 0.01 * 1e6)), atol=0, rtol=1e-4)


@every_renderer
def test_alpha_is_clamped(kind: type[Renderer]) -> None:
    gaussians = flat([[0, 0, 0]], 2.0, [1.0], [[1.0]])
    rendering = render(kind, gaussians, front_camera((5, 5)), (5, 5))
    torch.testing.assert_close(rendering.alpha[0, 2, 2], exact(0.999), atol=tolerance(kind), rtol=0)


def test_long_lists_and_the_settings_that_only_change_speed() -> None:
    """Hundreds of faint layers need many runs; tiles, runs and budgets of any size give the same image."""
    gaussians, camera, background = random_scene(11, 400, (21, 34))
    gaussians = replace(gaussians, opacities=0.05 * gaussians.opacities)
    wanted = slow_twin(gaussians, camera, (21, 34), background)
    for tile, run, budget in ((8, 32, 2**18), (16, 7, 1), (5, 1, 1000), (64, 500, 2**20)):
        ours = ReferenceRenderer(tile=tile, run=run, budget=budget)(gaussians, camera, (21, 34), background)
        torch.testing.assert_close(ours.image, wanted.image, atol=1e-9, rtol=0)


def test_gradients_pass_from_run_to_run() -> None:
    gaussians, camera, background = random_scene(12, 60, (13, 18))
    wanted = gradients(slow_twin, gaussians, camera, background, (13, 18))
    ours = gradients(ReferenceRenderer(tile=5, run=3, budget=200), gaussians, camera, background, (13, 18))
    for name, gradient in wanted.items():
        assert (ours[name] - gradient).norm() < 1e-8 * gradient.norm(), name


def test_float32_is_accurate_for_long_thin_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    gaussians, camera, _ = random_scene(13, 20, (96, 96))
    scales = torch.tensor([6.0, 0.01, 0.01]).double() * (0.5 + torch.rand(20, 1, generator=generator))
    gaussians = replace(gaussians, scales=scales, means=gaussians.means / 2)
    exact = ReferenceRenderer()(gaussians, camera, (96, 96)).image
    single = ReferenceRenderer()(gaussians.to(torch.float32), camera.to(torch.float32), (96, 96)).image
    assert (exact - single).abs().mean() < 1e-5
