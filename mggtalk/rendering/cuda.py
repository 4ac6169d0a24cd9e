"""The renderer for NVIDIA GPUs: ``gsplat.rasterization`` (Ye et al., "gsplat", 2024), version 1.5.3. The only file that imports gsplat.

gsplat is imported, and its kernels are built, when the first image is rendered. What this file adds to gsplat: validity masks (an invalid
Gaussian gets opacity 0, so no shape depends on the mask), a background image (gsplat knows one colour for each image), depth beside the
features in one pass, and the two cases in which gsplat 1.5.3 goes wrong (see :func:`padding`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mggtalk.rendering.renderer import Renderer, RenderError, Settings
from mggtalk.types import Camera, Gaussians, Rendering

WARP = 32  # threads of a GPU that work in step
CHANNEL_CHUNK = 33  # channels that gsplat blends in one pass: 32 features and depth; it has kernels of 33, and more spill registers
ALPHA_TINY = 1e-10  # a pixel that is reached at all has an alpha of 1/255 or more

Rasterization = Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]


class CudaRenderer(Renderer):
    """Splatting by gsplat on a CUDA device, in float32; a whole batch at once.

    Gradients reach all but the intrinsics, for which gsplat has none. They are summed in no fixed order, so their last bits change from
    run to run. Lens skew (``intrinsics[0, 1]``) is ignored. The limits of alpha and of transmittance are compiled into gsplat.

    Args:
        eps2d: added to the diagonal of the projected covariance, pixels^2; not negative.
        near: Gaussians nearer than this are dropped, cm; positive.

    Raises:
        ValueError: a setting is outside its limits.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def __init__(self, *, eps2d: float = 0.3, near: float = 0.01) -> None:
        super().__init__(eps2d=eps2d, near=near)

    def rasterization(self) -> Rasterization:
        """``gsplat.rasterization``; tests put something else in its place.

        Raises:
            RenderError: gsplat cannot be used here; the message says what to do.
        """
        rasterize: Rasterization = load_gsplat().rasterization
        return rasterize

    def render(self, gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None) -> Rendering:
        """As :meth:`Renderer.__call__`, for checked inputs with exactly one batch dimension.

        Raises:
            ValueError: a gradient to the intrinsics is asked for.
            RenderError: gsplat cannot be used here.
        """
        if torch.is_grad_enabled() and camera.intrinsics.requires_grad:
            raise ValueError("intrinsics require a gradient, which gsplat does not give; detach them, or use the reference renderer")
        if len(gaussians.mask) == 0:
            return nothing(gaussians, size)
        colors, alphas, _ = self.rasterization()(**arguments(padded(gaussians), camera, size, self.settings))
        return rendering_of(colors, alphas, background)


def nothing(gaussians: Gaussians, size: tuple[int, int]) -> Rendering:
    """The rendering of a batch without images: gsplat would divide by zero."""
    image, alpha, depth = (gaussians.means.new_zeros(0, count, *size) for count in (gaussians.features.shape[-1], 1, 1))
    return Rendering(image=image, alpha=alpha, depth=depth)


def padding(images: int, points: int) -> int:
    """How many invalid Gaussians each image of a batch needs more, so that gsplat 1.5.3 handles it.

    Without Gaussians its projection divides by zero. And its backward pass sums the gradients of a camera over the 32 threads of a warp,
    for the image of the first thread alone (``ProjectionEWA3DGSFused.cu``, ``labeled_partition`` by camera, not by image): where a warp
    holds Gaussians of two images, one image's gradient goes to the other. With a multiple of 32 Gaussians no warp does.
    """
    wanted = max(points, 1)
    return (wanted if images == 1 else WARP * math.ceil(wanted / WARP)) - points


def padded(gaussians: Gaussians) -> Gaussians:
    """The same, with as many invalid Gaussians at the end as :func:`padding` says."""
    missing = padding(*gaussians.mask.shape)
    if missing == 0:
        return gaussians
    more = gaussians.map(lambda tensor: tensor.new_zeros(tensor.shape[0], missing, *tensor.shape[2:]))
    return Gaussians(**{name: torch.cat([own, getattr(more, name)], dim=1) for name, own in vars(gaussians).items()})


def arguments(gaussians: Gaussians, camera: Camera, size: tuple[int, int], settings: Settings) -> dict[str, Any]:
    """Keyword arguments of ``gsplat.rasterization`` for a batch of sets, each seen by one camera of its own."""
    return {
        "means": gaussians.means,
        "quats": gaussians.quaternions,
        "scales": gaussians.scales,
        "opacities": torch.where(gaussians.mask, gaussians.opacities, 0),  # less than 1/255 is left out of everything, values and gradients
        "colors": gaussians.features,
        "viewmats": camera.head_to_camera[:, None],
        "Ks": camera.intrinsics[:, None],
        "width": size[1],
        "height": size[0],
        "near_plane": settings.near,
        "far_plane": math.inf,
        "eps2d": settings.eps2d,
        "packed": False,  # packed outputs have a size that depends on what is seen
        "render_mode": "RGB+D",  # "RGB+ED" divides as rendering_of does, and copies the whole image to do it
        "channel_chunk": CHANNEL_CHUNK,
    }


def rendering_of(
    colors: Float[Tensor, "b 1 h w d"], alphas: Float[Tensor, "b 1 h w 1"], background: Float[Tensor, "b c h w"] | None
) -> Rendering:
    """What gsplat returns (features and accumulated depth, channels last) as a rendering: views of it where nothing is to be computed."""
    blended, alpha = (part[:, 0].permute(0, 3, 1, 2) for part in (colors, alphas))
    image, depth = blended[:, :-1], blended[:, -1:]
    if background is not None:
        image = torch.addcmul(image, 1 - alpha, background)
    return Rendering(image=image, alpha=alpha, depth=depth / alpha.clamp(min=ALPHA_TINY))


@functools.cache
def load_gsplat() -> Any:
    """The module gsplat, its kernels built.

    Raises:
        RenderError: there is no CUDA device, gsplat is not installed, or it cannot build its kernels; the message says what to do.
    """
    reason = obstacle()
    if reason is not None:
        raise RenderError(f"the cuda renderer cannot be used: {reason}")
    try:
        gsplat = importlib.import_module("gsplat")
        kernels = importlib.import_module("gsplat.cuda._backend")._C  # builds them, for minutes at the first time
    except Exception as error:  # the compiler's, the linker's, the loader's: whatever it is, it has one cure
        raise RenderError(cannot_build(str(error))) from error
    if kernels is None:
        raise RenderError(cannot_build("it found no CUDA compiler"))
    return gsplat


def obstacle() -> str | None:
    """Why gsplat would not render here and what to do, as far as can be told without importing it; None if nothing is known against it."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device; use the cpu renderer, or install a CUDA build of PyTorch"
    place = importlib.util.find_spec("gsplat")
    if place is None:
        return 'gsplat is not installed; run pip install "mggtalk[cuda]", or use the reference renderer'
    files = [file for folder in place.submodule_search_locations or [] for file in Path(folder).glob("csrc.*")]
    prebuilt = any(file.suffix in (".so", ".pyd") for file in files)
    return None if prebuilt or has_cuda_compiler() else cannot_build("there is no CUDA compiler (nvcc)")


def has_cuda_compiler() -> bool:
    """Whether nvcc is where PyTorch builds its extensions with it."""
    from torch.utils.cpp_extension import CUDA_HOME

    return shutil.which("nvcc") is not None or (CUDA_HOME is not None and (Path(CUDA_HOME) / "bin" / "nvcc").is_file())


def cannot_build(cause: str) -> str:
    """The one thing to say when gsplat has no kernels: the last words of the cause, and what to do."""
    last = ([line.strip() for line in cause.splitlines() if line.strip()] or ["unknown cause"])[-1]
    return (
        f"gsplat cannot build its CUDA kernels: {last}; install the CUDA toolkit {torch.version.cuda or ''} (nvcc) and a C++ compiler, set "
        "CUDA_HOME, and MAX_JOBS=2 if memory is short; or use the reference renderer"
    )
