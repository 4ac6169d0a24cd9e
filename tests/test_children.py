"""Children by compiled loops against what the densifier says in tensors: values, and gradients of everything they are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mggtalk.modules.children import children
from mggtalk.modules.gaussians import OPAQUE, SPREAD, Densifier
from mggtalk.streaming import can_compile
from mggtalk.types import Gaussians

GIVEN = (
    "raw",
    "means",
    "quaternions",
    "scales",
    "opacities",
    "features",
    "base_opacities",
    "base_features",
    "tangents",
    "colour",
    "opacity",
)
MADE = ("means", "quaternions", "scales", "opacities", "features")
DENSIFIER = Densifier(6, 16, limit=0.7)
Make = Callable[..., Gaussians]


def compiled(raw: Tensor, parents: Gaussians, base: Gaussians, tangents: Tensor, colour: Tensor, opacity: Tensor) -> Gaussians:
    limits = (DENSIFIER.limit, OPAQUE, 0.5 * DENSIFIER.spread / SPREAD)
    return children(raw, parents, base, tangents, colour, opacity, DENSIFIER.steps, limits)


def scene(seed: int, count: int = 40) -> list[Tensor]:
    """Inputs in the order of ``GIVEN``, with opacities and corrections beyond every clamp, and a tangent without length."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(2, count, *size, generator=generator)

    opacities, base_opacities, shown = (0.01 + 0.97 * torch.sigmoid(2 * normal(*size)) for size in ((), (), (4,)))
    opacities[:, ::7], opacities[:, 1::7], base_opacities[:, ::5] = 0, 1, 1e-5
    shown[:, ::3, 1], shown[:, ::4, 2] = 0, 0.999
    tangents = normal(2, 3)
    tangents[:, ::11, 0] = 0
    quaternions = torch.nn.functional.normalize(normal(4), dim=-1)
    features = (normal(3), opacities, normal(3), base_opacities, normal(3))
    scales, own, colours, base, base_colours = features
    return [1.5 * normal(4, 13), normal(3), quaternions, scales.exp(), own, colours, base, base_colours, tangents, normal(4, 3), shown]


def made(make: Make, tensors: list[Tensor]) -> Gaussians:
    raw, means, quaternions, scales, opacities, features, base_opacities, base_features, tangents, colour, shown = tensors
    mask = torch.arange(means.shape[1]).expand(2, -1) % 6 > 0
    parents = Gaussians(means=means, quaternions=quaternions, scales=scales, opacities=opacities, features=features, mask=mask)
    return make(raw, parents, replace(parents, opacities=base_opacities, features=base_features), tangents, colour, shown)


def gradients(make: Make, tensors: list[Tensor], wanted: set[str]) -> list[Tensor | None]:
    leaves = [tensor.clone().requires_grad_(name in wanted) for name, tensor in zip(GIVEN, tensors, strict=True)]
    result = made(make, leaves)
    generator = torch.Generator().manual_seed(1)
    outputs = [getattr(result, name) for name in MADE]
    given = [(output, torch.randn(output.shape, generator=generator).to(output.dtype)) for output in outputs]
    chosen, towards = zip(*(pair for pair in given if pair[0].requires_grad), strict=True)
    torch.autograd.backward(chosen, towards)
    return [leaf.grad for leaf in leaves]


def exactly(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_values_agree(seed: int, recorded: bool) -> None:
    """Also where nobody asks for gradients, which is another loop."""
    tensors = scene(seed)
    with torch.set_grad_enabled(recorded):
        fast, slow = made(compiled, tensors), made(DENSIFIER.moved, exactly(tensors))
    for name in MADE:
        torch.testing.assert_close(
            getattr(fast, name).double(), getattr(slow, name), rtol=1e-5, atol=1e-4 if name == "opacities" else 3e-6, msg=name
        )
    assert torch.equal(fast.mask, slow.mask)


@pytest.mark.parametrize("seed", range(6))
def test_gradients_agree(seed: int) -> None:
    tensors, every = scene(seed), {*GIVEN}
    pairs = zip(gradients(compiled, tensors, every), gradients(DENSIFIER.moved, exactly(tensors), every), strict=True)
    for name, (fast, slow) in zip(GIVEN, pairs, strict=True):
        assert fast is not None and slow is not None and slow.abs().max() > 0.01
        torch.testing.assert_close(fast.double(), slow, rtol=1e-4, atol=2e-4 * slow.abs().max().item(), msg=name)


@pytest.mark.parametrize("wanted", [{"raw"}, {"tangents", "means"}, {"opacities"}])
def test_only_what_is_wanted_gets_gradients(wanted: set[str]) -> None:
    tensors = scene(0)
    for name, fast, slow in zip(GIVEN, gradients(compiled, tensors, wanted), gradients(DENSIFIER.moved, tensors, wanted), strict=True):
        assert (fast is not None) == (name in wanted)
        if fast is not None and slow is not None:
            torch.testing.assert_close(fast, slow, rtol=1e-4, atol=3e-5 * slow.abs().max().item())


def test_nothing_is_recorded_of_what_is_frozen() -> None:
    assert made(compiled, scene(0)).means.grad_fn is None


def test_a_correction_of_zero_is_the_split() -> None:
    tensors = scene(3)
    tensors[0] = torch.zeros_like(tensors[0])
    fast = made(compiled, tensors)
    split = made(lambda raw, *given: DENSIFIER.split(*given), tensors)
    opaque = split.opacities > 1e-4
    for name in MADE:
        bound = 2e-5 if name == "opacities" else 1e-6
        actual, expected = getattr(fast, name), getattr(split, name)
        chosen = opaque & (split.opacities < 1 - 1e-4) if name == "opacities" else torch.ones_like(opaque)
        torch.testing.assert_close(actual[chosen], expected[chosen], rtol=1e-6, atol=bound, msg=name)


def test_what_is_not_a_number_stays_that() -> None:
    """In every correction, without gradients: the renderer is to refuse it."""
    for number in range(13):
        tensors = scene(0)
        tensors[0][0, 5, 1, number] = torch.nan
        with torch.no_grad():
            fast, slow = made(compiled, tensors), made(DENSIFIER.moved, tensors)
        counts = [[int(getattr(way, name).isnan().sum()) for name in MADE] for way in (fast, slow)]
        assert counts[0] == counts[1] and sum(counts[0]) > 0


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_matter(threads: int) -> None:
    tensors = scene(5, 4000)
    before = torch.get_num_threads()

    def results() -> tuple[list[Tensor], list[Tensor | None]]:
        with torch.no_grad():
            streamed = made(compiled, tensors)
        recorded = made(compiled, tensors)
        return [getattr(way, name) for way in (recorded, streamed) for name in MADE], gradients(compiled, tensors, {"raw", "tangents"})

    alone, grads = results()
    torch.set_num_threads(threads)
    try:
        several, others = results()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(several, alone, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(others, grads, strict=True) if a is not None and b is not None)


def test_only_float32_on_a_cpu_is_compiled() -> None:
    assert can_compile(torch.zeros(1)) and not can_compile(torch.zeros(1).double()) and not can_compile(torch.zeros(1, device="meta"))
    tensors = [tensor.double() for tensor in scene(0)]
    assert made(DENSIFIER.moved, tensors).means.dtype == torch.float64


def test_large_corrections_stay_finite() -> None:
    tensors = scene(7)
    tensors[0] = tensors[0] * 1e3
    fast, slow = made(compiled, tensors), made(DENSIFIER.moved, tensors)
    for name in MADE:
        values = getattr(fast, name)
        assert torch.isfinite(values).all()
        np.testing.assert_allclose(values.numpy(), getattr(slow, name).numpy(), rtol=1e-4, atol=1e-4, err_msg=name)
    for gradient in gradients(compiled, tensors, {*GIVEN}):
        assert gradient is not None and torch.isfinite(gradient).all()
