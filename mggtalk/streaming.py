"""Streams of frames on a CPU: when compiled loops stand in for PyTorch's operations, and how they are called.

PyTorch goes over memory once for each operation; a compiled loop does all of them in one pass, without gradients. Every such loop has a
twin in tensors, which training uses and tests compare it with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

POINTS = 1024
"""Fewer points are not worth a thread."""
ROWS = 32
"""Fewer rows of pixels are not worth a thread."""


def can_compile(*tensors: Tensor) -> bool:
    """Whether compiled loops take these: float32 on a CPU."""
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


def can_stream(*tensors: Tensor) -> bool:
    """Whether compiled loops without gradients take these: float32 on a CPU, and nobody asks for gradients."""
    return not torch.is_grad_enabled() and can_compile(*tensors)


def run(kernel: Callable[..., None], given: tuple[Tensor, ...], made: tuple[Tensor, ...], *others: Any) -> None:
    """Call a kernel for the points of every set of a batch: with what is given, what it writes (contiguous), and what it needs besides."""
    for arrays in _each(given, made):
        in_parts(kernel, made[0].shape[1], *arrays, *others)


def run_rows(kernel: Callable[..., None], given: tuple[Tensor, ...], made: Float[Tensor, "b c h w"]) -> None:
    """Call a kernel for the rows of every picture of a batch, likewise."""
    for arrays, (picture,) in _each(given, (made,)):
        in_parts(kernel, made.shape[-2], arrays, picture, least=ROWS)


def _each(*tensors: tuple[Tensor, ...]) -> Iterator[tuple[tuple[Any, ...], ...]]:
    """Of each member of a batch, arrays that are views of the tensors where those are contiguous."""
    for index in range(len(tensors[0][0])):
        yield tuple(tuple(tensor[index].contiguous().numpy() for tensor in some) for some in tensors)


def in_parts(kernel: Callable[..., None], count: int, *arguments: Any, least: int = POINTS) -> None:
    """Call a kernel, which lets go of Python's lock, for equal runs of ``count`` things on as many threads as PyTorch may use.

    Args:
        kernel: takes the first of its run, the one after its last, and the arguments.
        count: of all.
        arguments: of every call.
        least: fewer are not worth a thread.
    """
    parts = max(min(torch.get_num_threads(), count // least), 1)
    ends = [count * part // parts for part in range(parts + 1)]
    threads = [threading.Thread(target=kernel, args=(ends[part], ends[part + 1], *arguments)) for part in range(1, parts)]
    for thread in threads:
        thread.start()
    kernel(ends[0], ends[1], *arguments)
    for thread in threads:
        thread.join()
