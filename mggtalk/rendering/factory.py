"""Which renderer to use."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from datasets_toolkit.errors import UserError
from mggtalk.rendering.cpu import CpuRenderer
from mggtalk.rendering.cuda import CudaRenderer, obstacle
from mggtalk.rendering.reference import ReferenceRenderer
from mggtalk.rendering.renderer import Renderer, RenderError

RendererName = Literal["auto", "reference", "cpu", "cuda"]
KINDS: dict[str, type[Renderer]] = {"reference": ReferenceRenderer, "cpu": CpuRenderer, "cuda": CudaRenderer}

log = logging.getLogger(__name__)


def choose_device(name: str) -> str:
    """The device that a command line names: "auto" is CUDA where there is a GPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this PyTorch sees no CUDA device; use --device cpu, or install a CUDA build of PyTorch")
    try:
        return str(torch.device(name))
    except RuntimeError:
        raise UserError(f"--device {name}: unknown device; use auto, cpu or cuda") from None


def make_renderer(name: RendererName = "auto", device: torch.device | str = "cpu") -> Renderer:
    """A renderer with the default settings. Which one it is goes to the log.

    Args:
        name: "auto" takes gsplat ("cuda") on a CUDA device, the compiled renderer on a CPU, the reference renderer on other devices. Where
            gsplat cannot work it takes the reference renderer instead, and the log warns.
        device: where the Gaussians will be.

    Raises:
        ValueError: there is no renderer of that name, or it cannot render on the device.
        RenderError: "cuda" is asked for, and gsplat cannot work here; the message says what to do.
    """
    place = torch.device(device).type
    if name != "auto" and name not in KINDS:
        raise ValueError(f"there is no renderer {name!r}; known are auto, {', '.join(KINDS)}")
    if name != "auto" and place not in KINDS[name].devices:
        raise ValueError(f"the renderer {name!r} does not run on {place}, only on {', '.join(KINDS[name].devices)}")
    chosen = {"cpu": "cpu", "cuda": "cuda"}.get(place, "reference") if name == "auto" else name
    reason = obstacle() if chosen == "cuda" else None
    if reason is not None and name == "cuda":
        raise RenderError(f"the cuda renderer cannot be used: {reason}")
    if reason is not None:
        log.warning("renderer for cuda: the reference renderer, which is slow, for gsplat cannot be used: %s", reason)
        chosen = "reference"
    log.info("renderer for %s: %s", place, chosen)
    return KINDS[chosen]()
