"""Weights & Biases without surprises: nothing leaves the machine unless the user is logged in, or asks for it."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from datasets_toolkit.errors import UserError

log = logging.getLogger(__name__)


class WandbRun(WandbLogger):
    """Lightning's logger for Weights & Biases, offline unless the user is logged in; it says once which it is, and how to change that.

    The first of these decides: ``offline``, the variable ``WANDB_MODE``, and whether there is a key for the server (``WANDB_API_KEY``, or
    ``~/.netrc`` as ``wandb login`` writes it). Reports of wandb's own errors to its makers are off unless ``WANDB_ERROR_REPORTING`` is set.

    Args:
        save_dir: folder for its files.
        project: name of the project.
        name: of the run; by default wandb makes one up.
        id: of the run; runs that go on with another should have the same.
        offline: True writes to ``save_dir`` only, False needs a login.
        tags: of the run.
    """

    def __init__(
        self,
        save_dir: str = "runs",
        project: str = "mggtalk",
        name: str | None = None,
        id: str | None = None,
        offline: bool | None = None,
        tags: tuple[str, ...] = (),
    ) -> None:
        self.mode, self.reason = wandb_mode(offline, os.environ)
        super().__init__(name=name, save_dir=save_dir, id=id, project=project, mode=self.mode, tags=list(tags))
        self._wandb_init.pop("anonymous", None)  # wandb warns of it, even of None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun when it is first asked for."""
        if self._experiment is None:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
            Path(self._save_dir or ".").mkdir(parents=True, exist_ok=True)  # or wandb would write to the system's temporary folder
            run = self._begin()
            log.info("wandb: %s (%s)%s", self.mode, self.reason, _advice(self.mode, run))
        return super().experiment

    def _begin(self) -> Any:
        from wandb.errors import Error

        try:
            return super().experiment
        except Error as error:
            raise UserError(f"wandb: {error} Or train offline: --trainer.logger.init_args.offline true") from error


def wandb_mode(offline: bool | None, environment: Mapping[str, str]) -> tuple[str, str]:
    """The mode of a run, and why it is that."""
    if offline is not None:
        return ("offline" if offline else "online"), f"offline: {str(offline).lower()}"
    if mode := environment.get("WANDB_MODE"):
        return {"dryrun": "offline", "run": "online"}.get(mode, mode), f"WANDB_MODE={mode}"
    if environment.get("WANDB_API_KEY"):
        return "online", "WANDB_API_KEY is set"
    if known_host(environment):
        return "online", "you are logged in"
    return "offline", "you are not logged in"


def known_host(environment: Mapping[str, str]) -> bool:
    """Whether the user's netrc file has a key for the server."""
    server = environment.get("WANDB_BASE_URL", "https://api.wandb.ai")
    files = [Path(environment["NETRC"])] if environment.get("NETRC") else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        try:
            if urlsplit(server).hostname in netrc.netrc(file).hosts:
                return True
        except (OSError, netrc.NetrcParseError):  # not there, or not ours to judge
            continue
    return False


def _advice(mode: str, run: Any) -> str:
    if mode != "offline":
        return ""
    return f"; upload it later with `wandb sync {Path(run.dir).parent}`, or run `wandb login` before the next run"
