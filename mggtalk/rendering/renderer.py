"""What every renderer of 3D Gaussians takes, refuses and returns."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils import get_total_norm

from datasets_toolkit.errors import UserError
from mggtalk.types import Camera, Gaussians, Rendering

HALVES = (torch.float16, torch.bfloat16)

if hasattr(os, "register_at_fork"):
    # A forked child inherits PyTorch's pool of threads as dead memory: its first parallel operation, be it a sum, would wait for ever in
    # GNU OpenMP (gomp_team_barrier_wait_end). PyTorch's own data loaders go down to one thread for that reason.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class RenderError(UserError):
    """A renderer cannot be used on this machine."""


class NonFiniteError(ValueError):
    """What is to be rendered holds NaN or infinite values."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a renderer can be told, by default what ``gsplat.rasterization`` 1.5.3 does.

    Raises:
        ValueError: a setting is outside its limits.
    """

    eps2d: float = 0.3  # added to the diagonal of the projected covariance, pixels^2; not negative
    near: float = 0.01  # Gaussians nearer than this are dropped, cm; positive
    alpha_min: float = 1 / 255  # a smaller alpha is skipped; at least 1e-6
    alpha_max: float = 0.999  # alpha is clamped to this; less than 1
    transmittance_min: float = 1e-4  # blending stops before the Gaussian that would bring the transmittance to this; not negative

    def __post_init__(self) -> None:
        """Refuse what would divide by zero or blend what lies behind the camera."""
        fine = {
            "eps2d": self.eps2d >= 0,
            "near": self.near > 0,
            "alpha_min": self.alpha_min >= 1e-6,
            "alpha_max": self.alpha_max < 1,
            "transmittance_min": self.transmittance_min >= 0,
        }
        for name, within in fine.items():
            if not within:  # a NaN is never within
                raise ValueError(f"{name} {getattr(self, name)} is out of range")


class Renderer(ABC):
    """Renders 3D Gaussians with the conventions of ``gsplat.rasterization`` (classic mode, pinhole cameras).

    Constructor arguments of a renderer are its settings; it holds no other state. A member says in ``dtypes`` and ``devices`` (device
    types) what it can take, and implements :meth:`render` for checked inputs with exactly one batch dimension.

    Args:
        eps2d: added to the diagonal of the projected covariance, pixels^2; not negative.
        near: Gaussians nearer than this are dropped, cm; positive.
        alpha_min: a smaller alpha is skipped; at least 1e-6.
        alpha_max: alpha is clamped to this; less than 1.
        transmittance_min: blending stops before the Gaussian that would bring the transmittance to this or below; not negative.

    Raises:
        ValueError: a setting is outside its limits.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64)
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def __init__(
        self,
        *,
        eps2d: float = 0.3,
        near: float = 0.01,
        alpha_min: float = 1 / 255,
        alpha_max: float = 0.999,
        transmittance_min: float = 1e-4,
    ) -> None:
        self.settings = Settings(eps2d=eps2d, near=near, alpha_min=alpha_min, alpha_max=alpha_max, transmittance_min=transmittance_min)

    def __call__(
        self,
        gaussians: Gaussians,
        camera: Camera,
        size: tuple[int, int],
        background: Float[Tensor, "*batch c h w"] | None = None,
    ) -> Rendering:
        """Render ``gaussians`` (canonical head space, cm) as ``camera`` sees them.

        Half precision inputs are widened to float32, and autocast is off inside.

        Args:
            gaussians: any batch dimensions, or none; any number of features. Entries outside ``mask`` contribute nothing.
            camera: the same batch dimensions.
            size: height and width of the image, pixels.
            background: what shows through, the same batch dimensions and as many channels as there are features; 0 if not given.

        Returns:
            Features blended front to back (over the background), alpha, and expected depth (cm; 0 where alpha is 0).

        Raises:
            ValueError: sizes, dtypes or devices disagree or are not supported, or a valid entry is NaN or infinite; the message names
                the field.
            RenderError: the renderer cannot be used on this machine.
        """
        named = check_inputs(gaussians, camera, size, background)
        dtype, place = widened(gaussians.means.dtype), gaussians.means.device.type
        if dtype not in self.dtypes or place not in self.devices:
            raise ValueError(f"{type(self).__name__} cannot render {dtype} on {gaussians.means.device}")
        refuse_not_finite = start_finite_check(named, gaussians.mask)
        batch = gaussians.means.shape[:-2]
        count = math.prod(batch)

        def flatten(tensor: Tensor) -> Tensor:
            wide = tensor.float() if tensor.dtype in HALVES else tensor
            return wide if len(batch) == 1 else wide.reshape(count, *tensor.shape[len(batch) :])

        flat_background = None if background is None else flatten(background)
        with torch.autocast(place, enabled=False):
            rendering = self.render(gaussians.map(flatten), camera.map(flatten), size, flat_background)
        refuse_not_finite()
        return rendering if len(batch) == 1 else rendering.map(lambda tensor: tensor.reshape(*batch, *tensor.shape[1:]))

    @abstractmethod
    def render(self, gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None) -> Rendering:
        """As :meth:`__call__`, for inputs already checked, with exactly one batch dimension (of any size, 0 included)."""


def widened(dtype: torch.dtype) -> torch.dtype:
    """What a renderer computes in, given what it gets."""
    return torch.float32 if dtype in HALVES else dtype


def check_inputs(gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None) -> dict[str, Tensor]:
    """Refuse shapes, dtypes and devices that no renderer could render; the inputs by their names, without the mask.

    Raises:
        ValueError: they disagree; the message names the field.
    """
    means, channels = gaussians.means, gaussians.features.shape[-1]
    batch, points = means.shape[:-2], means.shape[-2]
    if min(size) < 1:
        raise ValueError(f"size must be positive, got {size}")
    shapes = {"means": (points, 3), "quaternions": (points, 4), "scales": (points, 3), "opacities": (points,)}
    shapes |= {"features": (points, channels), "mask": (points,), "intrinsics": (3, 3), "head_to_camera": (4, 4)}
    named = {field.name: getattr(record, field.name) for record in (gaussians, camera) for field in fields(record)}
    if background is not None:
        named["background"], shapes["background"] = background, (channels, *size)
    for name, tensor in named.items():
        if tensor.shape != (*batch, *shapes[name]):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {(*batch, *shapes[name])}")
        if tensor.device != means.device:
            raise ValueError(f"{name} is on {tensor.device}, means on {means.device}")
        if name != "mask" and widened(tensor.dtype) != widened(means.dtype):
            raise ValueError(f"{name} is {tensor.dtype}, means {means.dtype}")
    del named["mask"]
    return named


def check_finite(named: dict[str, Tensor], mask: Bool[Tensor, "*batch n"]) -> None:
    """Refuse numbers that are not finite, but for those of Gaussians outside ``mask``.

    Raises:
        ValueError: a number is NaN or infinite; the message names the field.
    """
    for name, tensor in named.items():
        values = tensor.detach()
        if math.isfinite(values.sum().item()):  # a sum is much cheaper than looking at each, and hides neither NaN nor infinity
            continue
        if name in Gaussians.__dataclass_fields__:
            values = values[mask]
        if not torch.isfinite(values).all():
            raise NonFiniteError(f"{name} holds NaN or infinite values")


def start_finite_check(named: dict[str, Tensor], mask: Bool[Tensor, "*batch n"]) -> Callable[[], None]:
    """Begin :func:`check_finite`, and return what ends it: that raises.

    On a CPU all is done at once. A GPU is asked for one number, the largest of all, that travels to the host while the GPU renders: to ask
    for each field in turn would stop the host nine times. Numbers that are not finite do a GPU renderer no harm but a wrong image.

    Raises:
        ValueError: as :func:`check_finite`, on a CPU.
    """
    if not mask.is_cuda:
        check_finite(named, mask)
        return lambda: None
    filled = [tensor.detach() for tensor in named.values() if tensor.numel()]
    if not filled:
        return lambda: None
    largest = get_total_norm(filled, math.inf).to("cpu", non_blocking=True)  # NaN if any is NaN
    arrived = torch.cuda.Event()
    arrived.record()

    def finish() -> None:
        arrived.synchronize()
        if not math.isfinite(largest.item()):
            check_finite(named, mask)

    return finish
