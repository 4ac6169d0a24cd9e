"""Stops training at the first loss or gradient that is not finite, before it reaches the weights, and keeps what led to it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import write_whole
from mggtalk.callbacks.runs import data_of, run_folder
from mggtalk.rendering.renderer import NonFiniteError


class NonFiniteGuard(Callback):
    """Ends the run on all processes when a batch, its loss, or the norm of all gradients after it, is NaN or infinite.

    The rows and keys of the batch (JSON) and its tensors (safetensors) are kept. With a gradient scaler (16-mixed) gradients may overflow,
    which the scaler mends; then only the loss is looked at.

    Each batch and each backward pass is waited for once: on a GPU that costs the time in which the next kernels would have been queued, in
    distributed training two exchanged numbers more. Every input and every gradient is read once.

    Args:
        folder: for the two files; by default ``nonfinite`` in the run's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._batch: Any = None
        self._loss: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hold the batch while it is trained on, and look at it: what cannot be rendered would end this process alone.

        Raises:
            UserError: on any process something of it is not finite.
        """
        self._batch = batch
        inputs = [tensor for _, tensor in named_tensors(batch) if tensor.is_floating_point()]
        own = not bool(torch.stack([tensor.isfinite().all() for tensor in inputs]).all())
        if trainer.strategy.reduce_boolean_decision(own, all=False):
            self._refuse(trainer, pl_module, own)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let it go."""
        self._batch = self._loss = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Hold the loss."""
        self._loss = loss.detach()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at loss and gradients, and agree with the other processes.

        Raises:
            UserError: on any process they are not finite.
        """
        assert self._loss is not None
        loss = self._loss.float()
        norm = torch.zeros_like(loss) if _scaled(trainer) else gradient_norm(pl_module)
        sound = bool(torch.isfinite(torch.stack([loss, norm.to(loss)])).all())
        if trainer.strategy.reduce_boolean_decision(not sound, all=False):
            self._stop(trainer, pl_module, float(loss), float(norm))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the batch also where a picture could not even be rendered: without a loss there is nothing to look at.

        Raises:
            UserError: names the batch.
        """
        if self._batch is not None and isinstance(exception, NonFiniteError):
            record, path = self._kept(trainer, pl_module, math.nan, math.nan)
            raise UserError(
                f"after {trainer.global_step} steps {exception}, of what is to be rendered; the weights are unchanged, the batch"
                f" ({_sources(record)}) is in {path} and {path.with_suffix('.safetensors').name}: check these samples"
            ) from exception

    def _refuse(self, trainer: Trainer, pl_module: LightningModule, own: bool) -> None:
        when = f"after {trainer.global_step} steps"
        if not own:
            raise UserError(f"{when} a sample of another process is not finite; its batch is in {self._place(trainer).parent}")
        record, path = self._kept(trainer, pl_module, math.nan, math.nan)
        raise UserError(
            f"{when} {', '.join(record['not_finite']['inputs'])} of the next batch ({_sources(record)}) is not finite; the weights are"
            f" unchanged, the batch is in {path} and {path.with_suffix('.safetensors').name}: build these samples again"
        )

    def _place(self, trainer: Trainer) -> Path:
        folder = run_folder(trainer, self.folder) / ("" if self.folder else "nonfinite")
        return folder / f"step_{trainer.global_step:08d}_rank_{trainer.global_rank}.json"

    def _stop(self, trainer: Trainer, pl_module: LightningModule, loss: float, norm: float) -> None:
        own = not math.isfinite(loss)
        someone = trainer.strategy.reduce_boolean_decision(own, all=False)
        when, what = f"after {trainer.global_step} steps", "the loss" if someone else "the gradient"
        if someone and not own:
            raise UserError(f"{when} {what} of another process is not finite; its batch is in {self._place(trainer).parent}")
        record, path = self._kept(trainer, pl_module, loss, norm)
        broken = [f"{name} {value}" for name, value in record["terms"].items() if not math.isfinite(float(value))]
        values = ", ".join(broken) or f"loss {loss}, norm of the gradient {norm}"
        raise UserError(
            f"{when} {what} is not finite ({values}); the weights are unchanged, the batch ({_sources(record)}) is in {path} and"
            f" {path.with_suffix('.safetensors').name}: check these samples, or lower the learning rate, and go on from the last checkpoint"
        )

    def _kept(self, trainer: Trainer, pl_module: LightningModule, loss: float, norm: float) -> tuple[dict[str, Any], Path]:
        """The record of the batch, and where it and the batch now lie."""
        record, path = self._record(trainer, pl_module, loss, norm), self._place(trainer)
        _keep(path, record, self._batch)
        return record, path

    def _record(self, trainer: Trainer, pl_module: LightningModule, loss: float, norm: float) -> dict[str, Any]:
        terms = {name: str(float(value)) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        return {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "rank": trainer.global_rank,
            "loss": str(loss),
            "gradient_norm": str(norm),
            "terms": terms,
            "pairs": named_pairs(self._batch, getattr(data_of(trainer), "reader", None)),
            "not_finite": {
                "inputs": _broken(named_tensors(self._batch)),
                "weights": _broken(pl_module.named_parameters()),
                "gradients": _broken((name, weight.grad) for name, weight in pl_module.named_parameters() if weight.grad is not None),
            },
        }


def _sources(record: dict[str, Any]) -> str:
    """The first samples of a batch, for a message."""
    return "sources " + ", ".join(pair.get("source_key", str(pair["source_row"])) for pair in record["pairs"][:3]) + "..."


def gradient_norm(module: nn.Module) -> Tensor:
    """The Euclidean norm of all gradients as one vector."""
    return get_total_norm([parameter.grad for parameter in module.parameters() if parameter.grad is not None])


def named_tensors(record: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested records with their paths, such as ``pair.source.image``."""
    if isinstance(record, Tensor):
        yield name, record
    elif is_dataclass(record):
        for field in fields(record):
            yield from named_tensors(getattr(record, field.name), f"{name}.{field.name}".lstrip("."))


def named_pairs(batch: Any, reader: Any) -> list[dict[str, Any]]:
    """The rows of a batch, and the keys of their samples where the data module has a reader."""
    pairs: list[dict[str, Any]] = []
    for source, target in batch.rows.tolist():
        pair: dict[str, Any] = {"source_row": source, "target_row": target}
        if reader is not None:
            pair |= {"source_key": reader.key(source), "target_key": reader.key(target)}
        pairs.append(pair)
    return pairs


def _scaled(trainer: Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _broken(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    return [name for name, tensor in tensors if not bool(torch.isfinite(tensor).all())]


def _keep(path: Path, record: dict[str, Any], batch: Any) -> None:
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named_tensors(batch)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.with_suffix(".safetensors"), save(tensors))
        write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"{path}: the batch whose loss is not finite cannot be kept ({error.strerror}); free some space") from error
