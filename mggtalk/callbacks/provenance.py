"""What a run was made from: data, versions, arguments. Kept beside the run, in its checkpoints, and with its loggers."""

from __future__ import annotations

import getpass
import json
import logging
import platform
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from datasets_toolkit import __version__
from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import write_whole
from datasets_toolkit.shards.dataset_info import FILE, SPLITS, file_sha256
from mggtalk.callbacks.runs import data_of, run_folder
from mggtalk.data.datamodule import PairDataModule
from mggtalk.data.speech import SpeechDataModule

log = logging.getLogger(__name__)
KEY = "provenance"
"""Of the record in checkpoints and hyperparameters."""
PACKAGES = ("torch", "lightning", "gsplat", "numpy")
_SECRET = re.compile(r"key|secret|token|password|credential|storage_options", re.IGNORECASE)


class Provenance(Callback):
    """Writes ``provenance.json``, one record for each start of the run; warns when a run goes on with other data.

    Records name neither machine, user nor home folder. Of a local data set the folder's name is kept, of arguments that look like secrets
    the name alone. The data set itself is told by the SHA-256 of its ``dataset.json``, which holds those of all its shards and tables.

    Args:
        folder: for the file; by default that of the run.
        arguments: what the command line said; by default that of this process.
    """

    def __init__(self, folder: str | None = None, arguments: list[str] | None = None) -> None:
        self.folder, self.arguments = folder, arguments
        self._record: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Collect the record."""
        if stage == "fit":
            arguments = sys.argv[1:] if self.arguments is None else self.arguments
            data = data_of(trainer)
            record = data_record(data) if isinstance(data, PairDataModule | SpeechDataModule) else None
            self._record = {"data": record, "versions": versions(), "arguments": host_free(arguments)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the data."""
        before, now = ((record or {}).get("data") or {} for record in (checkpoint.get(KEY), self._record))
        if before and now and before["sha256"] != now["sha256"]:
            log.warning(
                "data.root: %s is not the data set of the checkpoint (%s: dataset.json has SHA-256 %s..., the checkpoint's had %s...);"
                " the run goes on, but is no longer that of one data set",
                *(now["root"], before["root"], now["sha256"][:12], before["sha256"][:12]),
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the record with the weights."""
        if self._record is not None:
            checkpoint[KEY] = self._record

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file and tell the loggers."""
        if trainer.is_global_zero and self._record is not None:
            add_record(run_folder(trainer, self.folder) / "provenance.json", {"from_step": trainer.global_step, **self._record})
            for logger in trainer.loggers:
                logger.log_hyperparams({KEY: self._record})


def data_record(data: PairDataModule | SpeechDataModule) -> dict[str, Any]:
    """The data set: its root, the SHA-256 of its ``dataset.json``, and the samples of each split."""
    info, storage = data.reader.info, data.reader.storage
    samples = {split: sum(shard.samples for shard in info.shards if shard.split == split) for split in SPLITS}
    root = Path(data.root).resolve().name if storage.local is not None else re.sub(r"//[^/@]*@", "//", data.root)
    return {"root": root, "sha256": file_sha256(storage, FILE), "samples": samples, "manifests": dict(info.manifests)}


def versions() -> dict[str, str | None]:
    """Of the packages that results depend on; None where one is not installed."""
    found: dict[str, str | None] = {"mggtalk": __version__, "python": platform.python_version(), "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def host_free(arguments: Sequence[str]) -> list[str]:
    """Arguments without the home folder, the user's name in paths, and the values of secrets."""
    home, user, told = str(Path.home()), re.compile(rf"/{re.escape(_user())}(?=/|$)"), []
    secret = False  # whether this word is the value of a secret
    for word in arguments:
        name, equals, _ = word.partition("=")
        named = name.startswith("-") and bool(_SECRET.search(name))
        told.append("..." if secret else f"{name}=..." if named and equals else user.sub("/~", word.replace(home, "~")))
        secret = named and not equals
    return told


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # containers may run under a number without a name
        return PurePosixPath(str(Path.home())).name or "~"


def add_record(path: Path, record: dict[str, Any]) -> None:
    """Add a record to the list in a file.

    Raises:
        UserError: the file is no such list, or cannot be written.
    """
    try:
        records: Sequence[Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        if not isinstance(records, list):
            raise ValueError("no list")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps([*records, record], indent=1) + "\n").encode())
    except ValueError as error:
        raise UserError(f"{path}: not a record of runs ({error}); move it away") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free some space or choose another folder") from error
