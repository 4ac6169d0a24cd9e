"""Signals and kills: what is saved is whole, and the resumed run is the one that was never stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import load_file
from training_jobs import callbacks
from training_scenes import Tinter, make_persons, make_trainer, pairs, quietly

from mggtalk.callbacks.checkpoint_io import WholeCheckpointIO
from mggtalk.callbacks.curve import LearningCurve, Point, read_curve
from mggtalk.callbacks.ema import Ema
from mggtalk.callbacks.stop import SaveOnSignal

HERE = Path(__file__).parent
STEPS = 10
EVERY_EPOCH: dict[str, Any] = {}
ACROSS_EPOCHS: dict[str, Any] = {"val_check_interval": 3, "check_val_every_n_epoch": None}


class Shoot(Callback):
    """Sends this process a signal at the begin of a step or of a batch of validation, counted from 1."""

    def __init__(self, hook: str, count: int, number: int = signal.SIGTERM) -> None:
        self.hook, self.count, self.number, self.seen = hook, count, number, {"train": 0, "val": 0}

    def _see(self, hook: str) -> None:
        self.seen[hook] += 1
        if (hook, self.seen[hook]) == (self.hook, self.count):
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, *_: Any) -> None:
        self._see("train")

    def on_validation_batch_start(self, *_: Any) -> None:
        self._see("val")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_persons(tmp_path_factory.mktemp("persons"))


def train(root: str, folder: Path, shoot: list[Callback], resume: Path | None = None, **options: Any) -> tuple[Tinter, Trainer, Any]:
    """The model, its trainer, and the status with which it left."""
    keep = ModelCheckpoint(dirpath=folder, filename="best", monitor="val/loss", enable_version_counter=False)
    model, trainer = Tinter(), make_trainer(folder, [SaveOnSignal(), *shoot, Ema(0.9), LearningCurve(), keep], max_steps=STEPS, **options)
    try:
        quietly(trainer.fit, model, pairs(root), ckpt_path=resume, weights_only=True)
    except SIGTERMException as stop:
        return model, trainer, stop.code
    return model, trainer, None


def points(folder: Path) -> list[Point]:
    return sorted(point for point in read_curve(folder / "curve.csv"))


@pytest.fixture(scope="module", params=["every epoch", "across epochs"])
def unbroken(request: Any, root: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Tinter, list[Point]]:
    folder = tmp_path_factory.mktemp("unbroken")
    options = EVERY_EPOCH if request.param == "every epoch" else ACROSS_EPOCHS
    model, _, status = train(root, folder, [], **options)
    assert status is None
    return options, model, points(folder)


# In the middle of an epoch, in its last step, in a step that validation follows, in the first and in the second loader of validation.
@pytest.mark.parametrize("place", [("train", 2), ("train", 4), ("train", 6), ("val", 1), ("val", 7)])
def test_stopped_anywhere_it_goes_on_exactly(unbroken: Any, root: str, tmp_path: Path, place: tuple[str, int]) -> None:
    options, whole, curve = unbroken
    before, _, status = train(root, tmp_path, [Shoot(*place)], **options)
    assert status == 143
    assert 0 < len(before.rows) < STEPS and set(points(tmp_path)) < set(curve)
    after, _, status = train(root, tmp_path, [], tmp_path / "last.ckpt", **options)
    assert status is None
    assert before.rows + after.rows == whole.rows
    assert torch.equal(after.colour, whole.colour), "these are the averaged weights"
    assert points(tmp_path) == curve


def test_before_the_first_step_there_is_nothing_to_save(root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, _, status = train(root, tmp_path, [Shoot("val", 1)], num_sanity_val_steps=2)
    assert status == 143 and not list(tmp_path.glob("*.ckpt"))
    assert "nothing to save" in caplog.text


def test_another_signal_has_its_own_status(root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, trainer, status = train(root, tmp_path, [Shoot("train", 3, signal.SIGUSR1)], limit_val_batches=0)
    assert status == 128 + signal.SIGUSR1
    assert f"SIGUSR1: stopped after step 3; go on with --ckpt_path {tmp_path / 'last.ckpt'}" in caplog.text
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL, "what was there before is back"
    keeper = trainer.checkpoint_callback
    assert isinstance(keeper, ModelCheckpoint) and keeper.last_model_path == str(tmp_path / "last.ckpt")


@pytest.fixture
def requeue() -> Iterator[list[int]]:
    """A handler for SIGUSR1 that was there first, as Lightning's for Slurm is."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    yield seen
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_is_handled_already_is_left_alone(root: str, tmp_path: Path, requeue: list[int]) -> None:
    model, _, status = train(root, tmp_path, [Shoot("train", 3, signal.SIGUSR1)], limit_val_batches=0)
    assert requeue == [signal.SIGUSR1] and status is None and len(model.rows) == STEPS


# Other processes ------------------------------------------------------------------------------------------------------------------------


class Job:
    """``training_jobs.py`` as a process, killed with its children after two minutes."""

    def __init__(self, root: str, folder: Path, *options: str) -> None:
        command = [sys.executable, str(HERE / "training_jobs.py"), root, str(folder), *options]
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=paths, start_new_session=True
        )
        self.watch = threading.Timer(120, self.kill)
        self.watch.start()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def shoot(self, line: str, number: int) -> None:
        """Wait for the job to say ``line``, and send the signal to the process that said it."""
        assert self.process.stdout is not None
        for told in self.process.stdout:
            if told.startswith(line):
                os.kill(int(told.split()[-1]), number)
                return
        raise AssertionError(f"the job never said {line!r}: {self.finish()[1]}")

    def finish(self) -> tuple[int, str]:
        """Its status and what it said on standard error."""
        try:
            errors = self.process.communicate()[1]
            return self.process.returncode, errors
        finally:
            self.watch.cancel()
            self.kill()


def resumed(root: str, folder: Path) -> tuple[Tinter, list[Point]]:
    """What the job becomes when it is begun again; without a checkpoint from the begin."""
    model, found = Tinter(), folder / "last.ckpt"
    trainer = make_trainer(folder, callbacks(folder), max_steps=13, val_check_interval=4)
    quietly(trainer.fit, model, pairs(root), ckpt_path=found if found.exists() else None, weights_only=True)
    return model, points(folder)


@pytest.fixture(scope="module")
def never_stopped(root: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tinter, list[Point]]:
    return resumed(root, tmp_path_factory.mktemp("never_stopped"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_process_is_resumed_exactly(root: str, tmp_path: Path, never_stopped: Any, number: int) -> None:
    """After a kill the curve has steps that the last checkpoint has not: each is there once in the end."""
    job = Job(root, tmp_path, "--pause", "0.1")
    job.shoot("step 9", number)
    status, told = job.finish()
    assert status == (143 if number == signal.SIGTERM else -9), told
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == (9 if number == signal.SIGTERM else 6)
    model, curve = resumed(root, tmp_path)
    whole, expected = never_stopped
    assert model.rows == whole.rows[state["global_step"] :]
    assert torch.equal(model.colour, whole.colour)
    assert curve == expected and len({(point.step, point.name) for point in curve}) == len(curve)


@pytest.fixture(scope="module")
def two_ranks(root: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """Two processes of a gloo group: rank 1 has a loss of NaN before gradients are exchanged, or a source; then it gets a signal."""
    folder = tmp_path_factory.mktemp("ranks")
    job = Job(root, folder, "--devices", "2", "--pause", "0.1", "--break-at", "3")
    job.shoot("step 2 rank 1", signal.SIGTERM)
    return folder, *job.finish()


def test_a_signal_to_one_rank_stops_all(root: str, two_ranks: tuple[Path, int, str], never_stopped: Any) -> None:
    """Rank 1 alone hears it; both finish the same step, and one process goes on."""
    folder, status, told = two_ranks
    assert status == 143 and "SIGTERM: stopped after step" in told and "Traceback" not in told, told
    done = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    assert done in (2, 3)
    model, _ = resumed(root, folder)
    assert model.rows == never_stopped[0].rows[done:]


@pytest.mark.parametrize("what, message", [("loss", "the loss"), ("source", "a sample")])
def test_what_is_not_finite_on_one_rank_stops_all(two_ranks: tuple[Path, int, str], what: str, message: str) -> None:
    folder, _, told = two_ranks
    assert f"after 3 steps {message} of another process is not finite" in told
    assert {"loss": "after 3 steps the loss is not finite", "source": "after 3 steps pair.source.image of the next batch"}[what] in told
    (path,) = (folder / f"broken_{what}" / "nonfinite").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["rank"], record["step"], record["loss"]) == (1, 3, "nan") and len(record["pairs"]) == 2
    assert record["not_finite"]["inputs"] == ([] if what == "loss" else ["pair.source.image"])
    assert load_file(path.with_suffix(".safetensors"))["rows"].tolist() == [[p["source_row"], p["target_row"]] for p in record["pairs"]]
    assert all(pair["source_key"] in told for pair in record["pairs"])


def save_for_ever(path: Path, told: Any) -> None:
    keep = WholeCheckpointIO()
    for number in range(100_000):
        keep.save_checkpoint({"number": number, "weights": torch.full((500_000,), float(number))}, path)
        told.value = number


def test_a_killed_save_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    path, context = tmp_path / "last.ckpt", multiprocessing.get_context("fork")
    told = context.Value("q", -1)
    process = context.Process(target=save_for_ever, args=(path, told))
    process.start()
    while told.value < 5 or not list(tmp_path.glob(".last.ckpt.*.part")):  # then it is in the middle of the next one
        assert process.is_alive()
    process.kill()
    process.join(20)
    found = torch.load(path, weights_only=True)
    assert found["number"] in (told.value, told.value + 1)
    assert torch.equal(found["weights"], torch.full((500_000,), float(found["number"])))
    WholeCheckpointIO().save_checkpoint({"number": -1}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"], "the next save cleans up"
