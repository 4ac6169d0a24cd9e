"""The renderer for wherever the Gaussians are: for experiments, which name their renderer before they know their device."""

from __future__ import annotations

from dataclasses import asdict
from typing import ClassVar

import torch
from torch import Tensor

from mggtalk.rendering.factory import make_renderer
from mggtalk.rendering.renderer import Renderer
from mggtalk.types import Camera, Gaussians, Rendering


class AutoRenderer(Renderer):
    """Renders with what :func:`mggtalk.rendering.factory.make_renderer` chooses for the device, float64 with the reference renderer."""

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps", "xpu")

    def render(self, gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None) -> Rendering:
        """As :meth:`Renderer.render`; the choice is made once for each device and kept."""
        device, exact = gaussians.means.device.type, gaussians.means.dtype == torch.float64
        chosen: dict[tuple[str, bool], Renderer] = self.__dict__.setdefault("_chosen", {})
        if (device, exact) not in chosen:
            kind = type(make_renderer("reference" if exact else "auto", device))
            chosen[device, exact] = kind(**asdict(self.settings))
        return chosen[device, exact].render(gaussians, camera, size, background)
