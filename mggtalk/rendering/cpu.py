"""A renderer for CPUs: compiled by Numba to the vector instructions of the machine, no C compiler needed.

It does what :mod:`mggtalk.rendering.reference` does, in float32: project the Gaussians, sort them by depth, list the splats of each tile of
16 x 16 pixels, blend front to back. Gradients are analytic. Values and gradients are the same bits for any number of threads.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mggtalk.rendering.cpu_layout import Scene
from mggtalk.rendering.cpu_splat import Trace, flat, images_of, plan_of, splat, splat_back
from mggtalk.rendering.renderer import Renderer, Settings
from mggtalk.types import Camera, Gaussians, Rendering

LEAST = 16  # Gaussians: as many as a vector holds


class CpuRenderer(Renderer):
    """Splatting on the CPU, on as many threads as torch uses (``torch.set_num_threads``); one in forked processes.

    The first rendering on a machine compiles for some 20 s and says so on stderr; the result is kept on disk, beside the source if that
    can be written, else in the user's cache, or where ``NUMBA_CACHE_DIR`` says.

    Its settings are those of :class:`Renderer`.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def render(self, gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None) -> Rendering:
        """As :meth:`Renderer.__call__`, for checked inputs with exactly one batch dimension."""
        missing = LEAST - gaussians.means.shape[1]
        if missing > 0:
            padding = gaussians.map(lambda tensor: tensor.new_zeros(tensor.shape[0], missing, *tensor.shape[2:]))
            gaussians = Gaussians(**{name: torch.cat([own, getattr(padding, name)], dim=1) for name, own in vars(gaussians).items()})
        inputs = [gaussians.means, gaussians.quaternions, gaussians.scales, gaussians.opacities, gaussians.features]
        inputs.append(pack_camera(camera, size))
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in [*inputs, background]):
            image, alpha, depth = _Splat.apply(self.settings, size, gaussians.mask, background, *inputs)
        else:
            image, alpha, depth = splat_batch(self.settings, size, gaussians.mask, background, inputs, None)
        return Rendering(image=image, alpha=alpha, depth=depth)


def pack_camera(camera: Camera, size: tuple[int, int]) -> Float[Tensor, "b 22"]:
    """The numbers of a camera that the kernels use (see ``cpu_layout.CAMERA``), differentiable."""
    intrinsics, pose = camera.intrinsics, camera.head_to_camera
    focal, centre = intrinsics.diagonal(dim1=-2, dim2=-1)[:, :2], intrinsics[:, :2, 2]
    sides = intrinsics.new_tensor([size[1], size[0]])
    limits = [-(centre + 0.15 * sides) / focal, (1.15 * sides - centre) / focal]
    return torch.cat([pose[:, :3, :3].flatten(1), pose[:, :3, 3], intrinsics[:, :2].flatten(1), *limits], dim=1)


class _Splat(torch.autograd.Function):
    """The rendering of a batch and its gradients."""

    @staticmethod
    def forward(ctx: Any, settings: Settings, size: tuple[int, int], mask: Tensor, background: Tensor | None, *inputs: Tensor) -> Any:
        ctx.traces = []
        outputs = splat_batch(settings, size, mask, background, list(inputs), ctx.traces, ctx.needs_input_grad[9])
        ctx.save_for_backward(mask, *inputs, *outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *to_outputs: Tensor) -> Any:
        mask, *rest = ctx.saved_tensors
        inputs, outputs = rest[:6], rest[6:]
        outcome = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs]
        to_outputs = tuple(tensor.contiguous() for tensor in to_outputs)
        for image, trace in enumerate(ctx.traces):
            scene, images, gradients = (
                Scene(*(flat(tensor[image]) for tensor in (*inputs[:5], mask, inputs[5]))),
                images_of([tensor[image] for tensor in outputs], None),
                images_of([tensor[image] for tensor in to_outputs], None),
            )
            cameras = splat_back(trace, scene, images, gradients, [flat(tensor[image]) for tensor in outcome[:5]])
            outcome[5][image] = torch.from_numpy(cameras)
        to_background = (1 - outputs[1]) * to_outputs[0] if ctx.needs_input_grad[3] else None
        return None, None, None, to_background, *outcome


def splat_batch(
    settings: Settings,
    size: tuple[int, int],
    mask: Tensor,
    background: Tensor | None,
    inputs: list[Tensor],
    traces: list[Trace] | None,
    for_camera: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Image, alpha and depth of every image of a batch; what its backward pass needs is added to ``traces`` if given."""
    batch, channels = len(mask), inputs[4].shape[-1]
    outputs = [inputs[0].new_empty(batch, count, *size) for count in (channels, 1, 1)]
    for image in range(batch):
        scene = Scene(*(flat(tensor[image]) for tensor in (*inputs[:5], mask, inputs[5])))
        plan = plan_of(settings, size, mask.shape[1], channels, (traces is not None, for_camera, background is not None))
        images = images_of([output[image] for output in outputs], None if background is None else background[image])
        trace = splat(plan, scene, images)
        if traces is not None:
            traces.append(trace)
    return outputs[0], outputs[1], outputs[2]
