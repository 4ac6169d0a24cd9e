"""Command lines of small trainings, and processes that run them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from mggtalk.callbacks.curve import Point, read_curve

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def small(folder: Path, **changes: Any) -> list[str]:
    """An experiment on synthetic heads of 64 pixels, on one CPU, without a logger beside the curve."""
    settings = {
        "data.class_path": "mggtalk.data.synthetic.SyntheticPairs",
        "data.init_args.root": folder / "data",
        "data.init_args.batch_size": 1,
        "data.init_args.clips": 3,
        "data.init_args.frames": 6,
        "data.init_args.persons": 3,
        "data.init_args.size": 64,
        "data.init_args.transform.size": 64,
        "data.init_args.rule.minimum": 0.1,
        "data.init_args.pairs": 2,
        "data.init_args.val_pairs": 1,
        "data.init_args.cross_pairs": 0,
        "data.init_args.workers.count": 0,
        "data.init_args.workers.pin": "false",
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.strategy": "auto",
        "trainer.precision": "32-true",
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.logger": "false",
        "trainer.default_root_dir": folder / "run",
        **changes,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def joint(folder: Path, **changes: Any) -> list[str]:
    """All parts on all terms: eight steps of two pairs, five of which are an epoch; validation and a checkpoint after four and eight."""
    settings = {
        "data.init_args.batch_size": 2,
        "data.init_args.pairs": 10,
        "data.init_args.val_pairs": 2,
        "trainer.max_steps": 8,
        "trainer.val_check_interval": 4,
        "model.init_args.start": "null",
        **changes,
    }
    return ["--config", str(EXPERIMENTS / "joint.yaml"), "--config", str(EXPERIMENTS / "debug.yaml"), *small(folder, **settings)]


class Poison(Callback):
    """Makes pixels of a picture NaN, in one step."""

    def __init__(self, step: int = 2, side: str = "target") -> None:
        self.step, self.side = step, side

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            getattr(batch.pair, self.side).image[0, 0, 30:34, 30:34] = float("nan")


def start(command: list[str], log: Path, program: str = sys.executable) -> subprocess.Popen[bytes]:
    """A process of its own, in a group of its own, that writes to a log."""
    here = os.pathsep.join([str(EXPERIMENTS.parent), str(Path(__file__).parent)])
    variables = {**os.environ, "PYTHONPATH": here, "MASTER_ADDR": "127.0.0.1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as file:
        return subprocess.Popen([program, *command], stdout=file, stderr=file, env=variables, start_new_session=True)


def finished(process: subprocess.Popen[bytes], log: Path, code: int = 0, timeout: float = 240) -> str:
    """What the process said, when it has left with the status that is expected."""
    try:
        left = process.wait(timeout)
    finally:
        stop_group(process)
    said = log.read_text(errors="replace")
    assert left == code, f"status {left}: {said[-3000:]}"
    return said


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """Also what the process has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_until(happens: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout: float = 240) -> None:
    """Until something is so that the process brings about."""
    end = time.monotonic() + timeout
    while not happens():
        assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-3000:]
        time.sleep(0.02)


def last_step(folder: Path) -> int:
    """The last step in the curve of a run; -1 before the first."""
    curve = folder / "curve.csv"
    return max((point.step for point in read_curve(curve)), default=-1) if curve.exists() else -1


def curve_of(folder: Path) -> list[Point]:
    """The points of a run that say what was computed, not how fast."""
    return [point for point in read_curve(folder / "curve.csv") if not point.name.startswith("speed/")]
