"""Checkpoints that appear under their names only when whole and on the disk.

Lightning writes a checkpoint to the system's temporary folder and moves it from there. Where that is another file system the move is a copy
onto the final name: a process killed meanwhile leaves a piece of a file instead of the last good checkpoint.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import is_part, move_into_place, part_name, sync
from mggtalk.checkpoints import read_checkpoint


class WholeCheckpointIO(TorchCheckpointIO):
    """As Lightning's own, but a local checkpoint is written beside its final name, brought to the disk, and renamed.

    It is written straight to the file, so saving needs no memory for a copy. What a killed process left is removed by the next one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: there is no room for it, or its folder cannot be written; an earlier checkpoint of that name stays.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        part = target.with_name(part_name(target.name))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_parts(target)
            _write(checkpoint, part)
            move_into_place(part, target)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(f"{target}: the checkpoint cannot be written ({reason}); free some space, then resume the run") from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; of a local one nothing is executed, whatever ``weights_only`` says.

        Raises:
            CheckpointError: it is missing, damaged, or holds objects.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only)
        return read_checkpoint(Path(path))


def _write(checkpoint: dict[str, Any], part: Path) -> None:
    with part.open("wb") as file:
        torch.save(checkpoint, file)
    sync(part)


def _remove_parts(target: Path) -> None:
    """Only one process writes checkpoints, so other unfinished files of that name are of dead ones."""
    for other in target.parent.glob(f".{glob_safe(target.name)}.*.part"):
        if is_part(other.name):
            other.unlink(missing_ok=True)


def glob_safe(name: str) -> str:
    """``name`` as a pattern that matches nothing but itself: checkpoints are called ``step=5.ckpt`` or ``[best].ckpt``."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
