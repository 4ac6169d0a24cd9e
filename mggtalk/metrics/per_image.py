"""The mean of a per-image metric over a data set, whatever its batches and processes: the base of :mod:`mggtalk.metrics.states`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.prints import rank_zero_only

log = logging.getLogger(__name__)


class Sums(Metric):
    """A metric whose states are sums, added up over processes; they move with the module, and keep their types when a module is cast."""

    full_state_update = False
    is_differentiable = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Follow the module to another device, but never to another type: bfloat16 would stop counting at 256."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), exclude_state)


class PerImageMetric(Sums):
    """The mean of one value for each image; a subclass brings ``update``, which gives the values to :meth:`_add`.

    ``valid`` of every update leaves out what fills up a last batch, whatever lies there. A value that is not finite (a rendering that is
    NaN) or not defined (a mask without pixels) does not enter the mean: it is counted in :attr:`dropped`, and ``compute`` tells it in the
    log. Without any value the mean is NaN.

    States are a double and two integers, added up over processes by ``compute``. In a ``MetricCollection`` give ``compute_groups=False``:
    it takes two metrics for one if their first values are equal.
    """

    total: Tensor
    count: Tensor
    missing: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._everywhere = 0
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("missing", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def compute(self) -> Float[Tensor, ""]:
        """The mean over all images of all processes, a double."""
        self._everywhere, counted = int(self.missing), int(self.count)
        if self._everywhere:
            tell_dropped(type(self).__name__, self._everywhere, self._everywhere + counted, "the mean")
        return self.total / self.count

    @property
    def dropped(self) -> int:
        """How many values are not finite or not defined and left out: of all processes after ``compute()``, of this one before."""
        return int(self.missing) if self._computed is None else self._everywhere

    def _add(self, values: Float[Tensor, " b"]) -> None:
        values = values.detach().to(self.total)
        known = values.isfinite()
        # Not in place: a state made under inference_mode could not be changed outside of it.
        self.total = self.total + torch.where(known, values, 0).sum()
        self.count = self.count + known.sum()
        self.missing = self.missing + (~known).sum()


@rank_zero_only
def tell_dropped(name: str, dropped: int, all_: int, result: str) -> None:
    """Say in the log what is left out of a result."""
    log.warning("%s: %d of %d values are not finite or not defined and left out of %s", name, dropped, all_, result)
