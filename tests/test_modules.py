"""Every network is a zero correction of its base, and what a correction does once it is not zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_scenes import face_model, made_frame, made_model, perturb, pose, seen_from, with_expression
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from mggtalk.geometry.cameras import multiply_quaternions, quaternion_to_matrix
from mggtalk.geometry.head_points import CHILD_STEPS
from mggtalk.geometry.layers import take_apart
from mggtalk.modules.deformation import DeformationNetwork, Deformed, skin
from mggtalk.modules.gaussians import (
    CORRECTIONS,
    OPAQUE,
    SPREAD,
    THICKNESS,
    Densifier,
    GaussianDecoder,
    base_gaussians,
    corrected,
    parameters,
)  # fmt: skip
from mggtalk.modules.inpainter import Inpainter, classical_fill
from mggtalk.modules.layers import UNet, ZeroConv, ZeroLinear, fourier, fourier_size
from mggtalk.modules.refiner import GeometryRefiner
from mggtalk.types import Frame, Gaussians, Pair, PointCloud

seeds = st.integers(0, 10**6)


def randoms(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    return normal


def random_base(seed: int, count: int = 12) -> tuple[Gaussians, Deformed]:
    """Base Gaussians of points whose tangents are as they come (batch of 2), float64."""
    normal = randoms(seed)
    deformed = Deformed(normal(2, count, 3), normal(2, count, 2, 3))
    opacity = torch.sigmoid(normal(2, count)).clamp(0.05, 0.95)
    return base_gaussians(deformed, normal(2, count, 3), opacity, normal(2, count) > -1), deformed


def same(actual: Gaussians, expected: Gaussians, atol: float = 1e-9) -> None:
    for name, value in expected.__dict__.items():
        torch.testing.assert_close(getattr(actual, name), value, rtol=0, atol=atol, msg=name)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def zero_layers(module: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, (ZeroLinear, ZeroConv))}


def wake(module: nn.Module) -> nn.Module:
    """Give the zero layers weights."""
    for layer in zero_layers(module).values():
        nn.init.normal_(layer.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return module


def points_of(frame: Frame) -> PointCloud:
    with torch.no_grad():
        return made_model().reconstruct(frame).points.visible


def test_the_refiner_starts_at_the_depth_it_is_given() -> None:
    frame = made_frame()
    head = take_apart(frame).head
    refiner = seeded(lambda: GeometryRefiner((8, 16), limit=2.0))
    assert torch.equal(refiner(frame, head), frame.depth)
    moved = wake(refiner)(frame, head) - frame.depth
    assert moved[frame.depth > 0].abs().max() > 0.01 and moved.abs().max() <= 2.0 + 1e-4
    assert (moved[frame.depth == 0] == 0).all()


@torch.no_grad()
def test_the_refiner_gives_a_head_the_same_shape_at_every_size() -> None:
    """What it corrects is in centimetres, not in pixels; the frame enlarged four times is moved as the frame is."""
    frame = made_frame()
    refiner = wake(seeded(lambda: GeometryRefiner((8, 16), seen=frame.image.shape[-1])))
    head = take_apart(frame).head

    def enlarged(image: Tensor) -> Tensor:
        return image.repeat_interleave(4, -1).repeat_interleave(4, -2)

    names = ("image", "parsing", "matte", "depth", "normals")
    large = replace(frame, **{name: enlarged(getattr(frame, name)) for name in names})
    small = refiner(frame, head) - frame.depth
    found = avg_pool2d(refiner(large, enlarged(head)) - large.depth, 4)
    off = (found - small)[frame.depth > 0].abs()
    assert small.std() > 0.1 and off.median() < 0.03 * small.std(), "but for interpolation of the offsets"


def test_the_inpainter_starts_at_the_fill_and_changes_nothing_elsewhere() -> None:
    frame = made_frame()
    layers = take_apart(frame)
    _, filled, _ = classical_fill(frame.image, layers)
    inpainter = seeded(lambda: Inpainter((8, 16), margin=2))
    torch.testing.assert_close(inpainter(filled, layers.hidden), filled, rtol=0, atol=1e-6)
    moved = wake(inpainter)(filled, layers.hidden)
    near = torch.nn.functional.max_pool2d(layers.hidden, 5, 1, 2) > 0
    torch.testing.assert_close(torch.where(near, 0, moved), torch.where(near, 0, filled), rtol=0, atol=1e-6)
    assert (moved - filled).abs().max() > 0.01 and moved.min() >= 0 and moved.max() <= 1


def test_the_classical_fill_keeps_clothes_skin_and_background_apart() -> None:
    """A red wall behind a blue torso with a green neck: no mixture anywhere behind the head but where edges are soft."""
    frame = made_frame(16)
    none = torch.zeros(1, 1, 16, 16)
    layers = replace(take_apart(frame), background=none, torso=none, torso_extent=none, neck=none, neck_extent=none)
    background, torso, extent, neck, behind_chin = (none.clone() for _ in range(5))
    background[..., :8, :3], torso[..., 13:, :], extent[..., 10:, :] = 1, 1, 1
    neck[..., 9:11, 7:9], behind_chin[..., 6:11, 6:10] = 1, 1
    image = torch.zeros(1, 3, 16, 16)
    image[:, 0] = 1
    image[:, :, 10:] = torch.tensor([0.0, 0, 1])[None, :, None, None]
    image[..., 9:11, 7:9] = torch.tensor([0.0, 1, 0])[None, :, None, None]
    red, green, blue = (torch.eye(3)[row].view(1, 3, 1, 1) for row in range(3))
    clothed = torch.where(extent > 0, blue, red)
    layers = replace(layers, background=background, torso=torso, torso_extent=extent)
    behind, filled, alpha = classical_fill(image, layers)
    torch.testing.assert_close(behind, red.expand_as(behind))
    torch.testing.assert_close(filled, clothed)
    assert torch.equal(alpha, extent)
    behind, filled, alpha = classical_fill(image, replace(layers, neck=neck, neck_extent=behind_chin))
    torch.testing.assert_close(behind, red.expand_as(behind))
    torch.testing.assert_close(filled, torch.where(behind_chin > 0, green, clothed))
    assert torch.equal(alpha, torch.maximum(extent, behind_chin))
    bare = classical_fill(image, replace(layers, torso=none, neck=none, neck_extent=behind_chin))
    torch.testing.assert_close(bare[1], red.expand_as(behind))
    assert bare[2].max() == 0


@pytest.mark.parametrize("trained", [False, True])
def test_the_same_expression_moves_nothing_trained_or_not(trained: bool) -> None:
    frame = made_frame(64, jaw=0.3)
    cloud = points_of(frame)
    network = seeded(lambda: DeformationNetwork(face_model(), 16))
    moved = (wake(network) if trained else network)(cloud, frame.expression, frame.expression)
    assert torch.equal(moved.positions, cloud.positions) and torch.equal(moved.tangents, cloud.tangents)


def test_the_deformation_starts_at_its_skin() -> None:
    frame = made_frame()
    cloud, target = points_of(frame), with_expression(frame, jawOpen=0.6, mouthSmileLeft=0.8).expression
    network = seeded(lambda: DeformationNetwork(face_model(), 16))
    base = skin(cloud, face_model().displacement(target - frame.expression))
    moved = network(cloud, target, frame.expression)
    assert torch.equal(moved.positions, base.positions) and torch.equal(moved.tangents, base.tangents)
    assert (base.positions - cloud.positions).norm(dim=-1).max() > 1
    change = wake(network)(cloud, target, frame.expression).positions - base.positions
    share = cloud.weights.sum(-1, keepdim=True)
    assert (change.abs() <= 2 * share + 1e-5).all() and change.abs().max() > 1e-3


def test_skin_is_a_sum_over_anchors() -> None:
    """A slow twin: point by point, anchor by anchor; no footprint changes by more than the limit says."""
    frame = made_frame()
    cloud = points_of(frame)[:, ::97]
    displacement = face_model().displacement(with_expression(frame, jawOpen=0.3).expression - frame.expression)
    moved = skin(cloud, displacement)
    for point in range(cloud.positions.shape[1]):
        place, change = cloud.positions[0, point].clone(), torch.zeros(2, 3)
        for anchor in range(3):
            vertex = displacement[0, cloud.anchors[0, point, anchor]]
            place += cloud.weights[0, point, anchor] * vertex
            change += cloud.weight_steps[0, point, :, anchor, None] * vertex
        torch.testing.assert_close(moved.positions[0, point], place, rtol=0, atol=1e-5)
        actual = moved.tangents[0, point] - cloud.tangents[0, point]
        scale = (actual.norm(dim=-1) / change.norm(dim=-1).clamp(min=1e-12)).clamp(max=1)[:, None]
        torch.testing.assert_close(actual, scale * change, rtol=1e-4, atol=1e-5)
        if change.norm() < 0.5 * cloud.tangents[0, point].norm():
            torch.testing.assert_close(actual, change, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_base_gaussians_lie_in_their_footprints(seed: int) -> None:
    base, deformed = random_base(seed)
    right, down = deformed.tangents.unbind(-2)
    axes = quaternion_to_matrix(base.quaternions)
    torch.testing.assert_close(axes.mT @ axes, torch.eye(3).double().expand_as(axes))
    torch.testing.assert_close(torch.linalg.det(axes), torch.ones(2, 12).double())
    normal = normalize(torch.linalg.cross(right, down), dim=-1)
    torch.testing.assert_close(axes[..., 2], normal, rtol=0, atol=1e-6)
    torch.testing.assert_close(axes[..., 0], normalize(right, dim=-1), rtol=0, atol=1e-6)
    area = torch.linalg.cross(right, down).norm(dim=-1)
    torch.testing.assert_close(base.scales[..., 0], SPREAD * right.norm(dim=-1))
    torch.testing.assert_close(base.scales[..., :2].prod(-1), SPREAD**2 * area)
    torch.testing.assert_close(base.scales[..., 2], THICKNESS * base.scales[..., :2].amin(-1))
    assert torch.equal(base.means, deformed.positions)


def test_no_base_is_so_opaque_that_blending_stops_before_it() -> None:
    """Of two such Gaussians, however the first covers a pixel, at most a hundredth shows through: transmittance may fall to 1e-4."""
    deformed = Deformed(torch.zeros(1, 3, 3), torch.eye(3)[None, None, :2].expand(1, 3, 2, 3))
    base = base_gaussians(deformed, torch.zeros(1, 3, 3), torch.tensor([[0.2, 0.995, 1.0]]), torch.ones(1, 3) > 0)
    torch.testing.assert_close(base.opacities, torch.tensor([[0.2, OPAQUE, OPAQUE]]))
    for first in torch.linspace(0, OPAQUE, 100).tolist():
        left = 1 - first
        shown = left if left * (1 - OPAQUE) <= 1e-4 else left * (1 - OPAQUE)
        assert shown <= 0.0101


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_a_zero_correction_changes_nothing(seed: int) -> None:
    base, _ = random_base(seed)
    same(corrected(base, torch.zeros(2, 12, CORRECTIONS, dtype=torch.float64)), base)


def test_corrections_multiply_add_and_compose() -> None:
    base, _ = random_base(0)
    correction = 0.3 * randoms(1)(2, 12, CORRECTIONS)
    colour, log_scale, rotation, logit = correction.split([3, 3, 3, 1], -1)
    result = corrected(base, correction)
    torch.testing.assert_close(result.features, base.features + colour)
    torch.testing.assert_close(result.scales, base.scales * log_scale.exp())
    odds = base.opacities / (1 - base.opacities) * logit[..., 0].exp()
    torch.testing.assert_close(result.opacities, odds / (1 + odds))
    small = torch.cat([torch.ones(2, 12, 1).double(), rotation / 2], -1)
    torch.testing.assert_close(result.quaternions, multiply_quaternions(base.quaternions, normalize(small, dim=-1)))
    assert torch.equal(result.means, base.means) and torch.equal(result.mask, base.mask)


def test_rotations_turn_about_the_gaussians_own_axes() -> None:
    """A rotation about the first axis leaves it; by the size of the correction, while that is small."""
    base, _ = random_base(2)
    correction = torch.zeros(2, 12, CORRECTIONS, dtype=torch.float64)
    correction[..., 6] = 0.01
    before, after = (quaternion_to_matrix(each.quaternions) for each in (base, corrected(base, correction)))
    torch.testing.assert_close(after[..., 0], before[..., 0])
    angle = torch.atan2((after[..., 1] * before[..., 2]).sum(-1), (after[..., 1] * before[..., 1]).sum(-1))
    torch.testing.assert_close(angle, torch.full_like(angle, 0.01), rtol=1e-3, atol=0)


def test_what_is_transparent_stays_so() -> None:
    base, _ = random_base(3)
    clear = replace(base, opacities=torch.zeros_like(base.opacities))
    assert corrected(clear, torch.ones(2, 12, CORRECTIONS, dtype=torch.float64)).opacities.max() == 0


@pytest.mark.parametrize("extra", [0, 11])
def test_decoders_start_at_the_base(extra: int) -> None:
    base, _ = random_base(4)
    base = base.to(torch.float32)
    decoder = seeded(lambda: GaussianDecoder(6, extra, 16))
    features = torch.randn(2, 12, 6)
    counterpart = parameters(base) if extra else None
    same(decoder(base, features, counterpart), base, 1e-6)
    woken = wake(decoder)(base, features, counterpart)
    assert not torch.allclose(woken.features, base.features) and torch.equal(woken.means, base.means)


def densified(woken: bool = False, seed: int = 5) -> tuple[Gaussians, Gaussians, Deformed, Tensor, Tensor]:
    base, deformed = random_base(seed)
    base, deformed = base.to(torch.float32), Deformed(*(values.float() for values in deformed))
    colour, opacity = torch.rand(2, 12, 4, 3), 0.05 + 0.9 * torch.rand(2, 12, 4)
    densifier = seeded(lambda: Densifier(6, 16))
    children = (wake(densifier) if woken else densifier)(base, base, deformed.tangents, colour, opacity, torch.randn(2, 12, 6))
    return children, base, deformed, colour, opacity


def test_children_start_at_the_quarter_points_with_what_the_source_shows_there() -> None:
    children, base, deformed, colour, opacity = densified()
    means = children.means.unflatten(1, (12, 4))
    torch.testing.assert_close(means.mean(2), base.means, rtol=0, atol=1e-6)
    for child, (right, down) in enumerate(CHILD_STEPS):
        place = base.means + right * deformed.tangents[:, :, 0] + down * deformed.tangents[:, :, 1]
        torch.testing.assert_close(means[:, :, child], place, rtol=0, atol=1e-6)
    torch.testing.assert_close(children.features.unflatten(1, (12, 4)), colour)
    torch.testing.assert_close(children.opacities.unflatten(1, (12, 4)), opacity, rtol=0, atol=1e-5)
    halves = 0.5 * Densifier().spread / SPREAD * base.scales[:, :, None].expand(-1, -1, 4, -1)
    torch.testing.assert_close(children.scales.unflatten(1, (12, 4)), halves)
    assert torch.equal(children.mask.unflatten(1, (12, 4)), base.mask[..., None].expand(-1, -1, 4))
    woken = densified(woken=True)[0]
    assert not torch.allclose(woken.means, children.means)


def test_children_inherit_their_parents_correction() -> None:
    """Colour differences add and opacities shift as logits; a child that the source does not show is not drawn."""
    base, deformed = random_base(6)
    base, tangents = base.to(torch.float32), deformed.tangents.float()
    parents = corrected(base, 0.4 * torch.randn(2, 12, CORRECTIONS))
    colour, opacity = torch.rand(2, 12, 4, 3), 0.1 + 0.8 * torch.rand(2, 12, 4)
    opacity[:, :, 3] = 0
    children = seeded(lambda: Densifier(6, 16))(parents, base, tangents, colour, opacity, torch.zeros(2, 12, 6))
    features, opacities = children.features.unflatten(1, (12, 4)), children.opacities.unflatten(1, (12, 4))
    torch.testing.assert_close(features, colour + (parents.features - base.features)[:, :, None], rtol=0, atol=1e-5)
    ratio = parents.opacities / (1 - parents.opacities) / (base.opacities / (1 - base.opacities))
    odds = opacity / (1 - opacity) * ratio[..., None]
    torch.testing.assert_close(opacities, odds / (1 + odds), rtol=0, atol=1e-5)
    assert not children.mask.unflatten(1, (12, 4))[..., 3].any()


def test_a_zero_network_is_made_of_zeros_where_it_must_be() -> None:
    model = made_model()
    names = zero_layers(model)
    assert set(names) == {
        "refiner.head", "inpainter.head", "deformation.body.4", "visible_decoder.body.4", "mirrored_decoder.body.4", "densifier.body.4",
    }  # fmt: skip
    for layer in names.values():
        assert layer.weight.abs().max() == 0 and layer.bias.abs().max() == 0


def test_fourier_features_against_their_formula() -> None:
    points = torch.tensor([[1.5, -3.0, 7.0]], dtype=torch.float64)
    features = fourier(points, 2, extent=15.0)
    assert features.shape == (1, fourier_size(2))
    scaled = points[0] / 15
    angles = torch.stack([torch.pi * scaled, 2 * torch.pi * scaled], -1).flatten()
    torch.testing.assert_close(features[0], torch.cat([scaled, angles.sin(), angles.cos()]))


def test_a_unet_keeps_the_size_of_its_image_and_sees_all_of_it() -> None:
    unet = seeded(lambda: UNet(2, (8, 16, 24)))
    image = torch.zeros(1, 2, 16, 24, requires_grad=True)
    features = unet(image)
    assert features.shape == (1, 8, 16, 24)
    features[0, 0, 8, 12].backward()
    assert (image.grad.abs().sum(1) > 0).float().mean() > 0.5


def dense_loss(trained: bool) -> dict[str, Tensor | None]:
    """Gradients of every parameter from a loss on the dense rendering of a turned, talking target."""
    frame = made_frame(64, 35.0)
    target = with_expression(seen_from(frame, pose(15)), jawOpen=0.5, mouthSmileLeft=0.5)
    model = perturb(made_model(), 0.02) if trained else made_model()
    image = model(Pair(source=frame, target=target)).dense.image
    (image - torch.rand(image.shape, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_gradients_reach_every_parameter_of_a_perturbed_model() -> None:
    gradients = dense_loss(trained=True)
    without = [name for name, gradient in gradients.items() if gradient is None or gradient.abs().max() == 0]
    assert without == [] and all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_gradients_reach_the_zero_layers_at_the_start() -> None:
    """So that training starts; what lies before a zero layer gets its first gradient a step later.

    The deformation's bias cancels between driver and source while the limiting tanh is still linear.
    """
    gradients = dense_loss(trained=False)
    assert gradients["deformation.body.4.bias"].abs().max() < 1e-3 * gradients["deformation.body.4.weight"].abs().max()
    for name in zero_layers(made_model()):
        for kind in ("weight",) if name.startswith("deformation") else ("weight", "bias"):
            gradient = gradients[f"{name}.{kind}"]
            assert gradient is not None and torch.isfinite(gradient).all() and gradient.abs().max() > 0, f"{name}.{kind}"
