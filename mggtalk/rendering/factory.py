"""Which renderer to use."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from mggtalk.rendering.cpu import CpuRenderer
from mggtalk.rendering.reference import ReferenceRenderer
from mggtalk.rendering.renderer import Renderer

RendererName = Literal["auto", "reference", "cpu"]


def make_renderer(name: RendererName = "auto", device: torch.device | str = "cpu") -> Renderer:
    """A renderer with the default settings.

    Args:
        name: "auto" takes the compiled renderer on the CPU and the reference renderer on other devices.
        device: where the Gaussians will be.

    Raises:
        ValueError: there is no renderer of that name, or it cannot render on the device.
    """
    kinds: dict[str, type[Renderer]] = {"reference": ReferenceRenderer, "cpu": CpuRenderer}
    place = torch.device(device).type
    chosen = ("cpu" if place == "cpu" else "reference") if name == "auto" else name
    if chosen not in kinds:
        raise ValueError(f"there is no renderer {chosen!r}; known are auto, {', '.join(kinds)}")
    if place not in kinds[chosen].devices:
        raise ValueError(f"the renderer {chosen!r} does not run on {place}, only on {', '.join(kinds[chosen].devices)}")
    logging.getLogger(__name__).info("renderer for %s: %s", place, chosen)
    return kinds[chosen]()
