"""What every renderer of 3D Gaussians takes, refuses and returns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mggtalk.types import Camera, Gaussians, Rendering


class Renderer(ABC):
    """Renders 3D Gaussians with the conventions of ``gsplat.rasterization`` (classic mode, pinhole cameras).

    Constructor arguments of a renderer are its settings; it holds no other state. A member says in ``dtypes`` and ``devices`` (device
    types) what it can take, and implements :meth:`render` for checked inputs with exactly one batch dimension.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64)
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def __call__(
        self,
        gaussians: Gaussians,
        camera: Camera,
        size: tuple[int, int],
        background: Float[Tensor, "*batch c h w"] | None = None,
    ) -> Rendering:
        """Render ``gaussians`` (canonical head space, cm) as ``camera`` sees them.

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
        """
        check_inputs(gaussians, camera, size, background)
        if gaussians.means.dtype not in self.dtypes or gaussians.means.device.type not in self.devices:
            raise ValueError(f"{type(self).__name__} cannot render {gaussians.means.dtype} on {gaussians.means.device}")
        batch = gaussians.means.shape[:-2]
        count = math.prod(batch)

        def flatten(tensor: Tensor) -> Tensor:
            return tensor.reshape(count, *tensor.shape[len(batch) :])

        flat_background = None if background is None else flatten(background)
        rendering = self.render(gaussians.map(flatten), camera.map(flatten), size, flat_background)
        return rendering.map(lambda tensor: tensor.reshape(*batch, *tensor.shape[1:]))

    @abstractmethod
    def render(self, gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None) -> Rendering:
        """As :meth:`__call__`, for inputs already checked, with exactly one batch dimension (of any size, 0 included)."""


def check_inputs(gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None) -> None:
    """Refuse what no renderer could render.

    Raises:
        ValueError: sizes, dtypes or devices disagree, or a valid entry is NaN or infinite; the message names the field.
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
        if name == "mask":
            continue
        if tensor.dtype != means.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, means {means.dtype}")
        values = tensor.detach()
        if torch.isfinite(values.sum()):  # a sum is much cheaper than looking at each, and hides neither NaN nor infinity
            continue
        if name in Gaussians.__dataclass_fields__:
            values = values[gaussians.mask]
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinite values")
