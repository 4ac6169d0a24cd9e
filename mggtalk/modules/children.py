"""The children of Gaussians by compiled loops, on a CPU: the fast twin of what ``Densifier`` says in tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mggtalk.modules.children_kernels import make_children, make_gradients
from mggtalk.types import Gaussians


def can_compile(*tensors: Tensor) -> bool:
    """Whether :func:`children` takes these: float32 on a CPU."""
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


def children(
    raw: Float[Tensor, "b n k 13"],
    parents: Gaussians,
    base: Gaussians,
    tangents: Float[Tensor, "b n 2 3"],
    colour: Float[Tensor, "b n k 3"],
    opacity: Float[Tensor, "b n k"],
    steps: Float[Tensor, "k 2"],
    limits: tuple[float, float, float],
) -> Gaussians:
    """All children, ``n k`` of them, differentiable once; arguments as ``Densifier.moved``.

    Args:
        raw: corrections: offset 3, colour 3, log scale 3, rotation 3, logit 1.
        parents: decoded Gaussians.
        base: before the decoder corrected them.
        tangents: of the parents.
        colour: that the source shows at the children's places.
        opacity: likewise.
        steps: of the children, in tangents.
        limits: largest offset in steps, largest opacity, scale of a child in units of its parent's.
    """
    given = (parents.means, parents.quaternions, parents.scales, parents.opacities, parents.features, base.opacities, base.features)
    means, quaternions, scales, opacities, features = _Children.apply(steps, limits, raw, *given, tangents, colour, opacity)
    shown = (opacity > 1 / 255) & parents.mask[..., None]
    return Gaussians(
        means=means.flatten(1, 2),
        quaternions=quaternions.flatten(1, 2),
        scales=scales.flatten(1, 2),
        opacities=opacities.flatten(1, 2),
        features=features.flatten(1, 2),
        mask=shown.flatten(1, 2),
    )


class _Children(torch.autograd.Function):
    """:func:`make_children` and :func:`make_gradients`."""

    @staticmethod
    def forward(ctx: Any, steps: Tensor, limits: tuple[float, float, float], *given: Tensor) -> tuple[Tensor, ...]:
        """Means, quaternions, scales, opacities and features (b n k ...)."""
        given = tuple(tensor.contiguous() for tensor in given)
        ctx.save_for_backward(steps, *given)
        ctx.limits = limits
        children = given[0].shape[:3]
        made = tuple(given[0].new_empty(*children, *size) for size in ((3,), (4,), (3,), (), (3,)))
        _in_parts(make_children, len(given[0].flatten(0, 1)), _numbers(steps, limits), _arrays(given), _arrays(made))
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_children: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all tensors but the steps."""
        steps, *given = ctx.saved_tensors
        gradients = tuple(torch.empty_like(tensor) for tensor in given)
        arrays = _arrays(tuple(given)), _arrays(tuple(tensor.contiguous() for tensor in of_children)), _arrays(gradients)
        _in_parts(make_gradients, len(given[0].flatten(0, 1)), _numbers(steps, ctx.limits), *arrays)
        return None, None, *gradients


def _numbers(steps: Tensor, limits: tuple[float, float, float]) -> tuple[Any, Any]:
    return steps.numpy(), np.array(limits, np.float32)


def _arrays(tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Views with one row for each parent."""
    return tuple(tensor.detach().flatten(0, 1).numpy() for tensor in tensors)


def _in_parts(kernel: Callable[..., None], count: int, *arguments: Any) -> None:
    """Call a kernel, which lets go of Python's lock, for equal runs of parents on as many threads as PyTorch may use."""
    parts = max(min(torch.get_num_threads(), count // 1024), 1)
    ends = [count * part // parts for part in range(parts + 1)]
    threads = [threading.Thread(target=kernel, args=(ends[part], ends[part + 1], *arguments)) for part in range(1, parts)]
    for thread in threads:
        thread.start()
    kernel(ends[0], ends[1], *arguments)
    for thread in threads:
        thread.join()
