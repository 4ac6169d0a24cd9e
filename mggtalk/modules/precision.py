"""Which parts compute in what autocast asks for: networks do, geometry never does.

A matrix product of autocast keeps 8 (bfloat16) or 11 (float16) bits: a point half a metre away would be off by a millimetre or more. So
:class:`mggtalk.model.MGGTalk` works inside :func:`exact`, and only what was learned works inside :func:`learned`, in the type that autocast
had outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_asked: ContextVar[torch.dtype | None] = ContextVar("asked", default=None)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Without autocast; what it asked for is kept for :func:`learned`."""
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    token = _asked.set(torch.get_autocast_dtype(device.type))
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _asked.reset(token)


@contextmanager
def learned(device: torch.device) -> Iterator[None]:
    """With the autocast that :func:`exact` put off; results are for the caller to widen."""
    dtype = _asked.get()
    if dtype is None:
        yield
        return
    with torch.autocast(device.type, dtype=dtype):
        yield
