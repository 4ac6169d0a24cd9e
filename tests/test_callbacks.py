"""Curves, pictures, guards and records of a training: what they write, and that they leave the training alone."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from safetensors.torch import load_file
from shard_scenes import make_dataset
from training_scenes import SIZE, Tinter, make_persons, make_trainer, pairs, quietly

from datasets_toolkit.errors import UserError
from datasets_toolkit.media.video import probe, read_frames
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.callbacks import throughput
from mggtalk.callbacks.checkpoint_io import WholeCheckpointIO
from mggtalk.callbacks.clips import consecutive_rows
from mggtalk.callbacks.curve import CurveLogger, LearningCurve, Point, encode_points, read_curve
from mggtalk.callbacks.ema import Ema
from mggtalk.callbacks.guard import NonFiniteGuard
from mggtalk.callbacks.loggers import WandbRun, wandb_mode
from mggtalk.callbacks.panels import Panels
from mggtalk.callbacks.provenance import Provenance, host_free
from mggtalk.callbacks.throughput import Throughput
from mggtalk.rendering.cpu import CpuRenderer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_persons(tmp_path_factory.mktemp("persons"))


def fit(root: str, folder: Path, callbacks: list[Any], model: Tinter | None = None, **options: Any) -> tuple[Tinter, Trainer]:
    model = model or Tinter()
    resume = options.pop("resume", None)
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = make_trainer(folder, callbacks, **{"max_steps": 4, "enable_checkpointing": saves, "limit_val_batches": 0, **options})
    quietly(trainer.fit, model, pairs(root), ckpt_path=resume, weights_only=True)
    return model, trainer


# The curve ------------------------------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**9), st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"])), st.floats(allow_nan=False)
        )
    )
)
def test_points_come_back_exactly(tmp_path_factory: pytest.TempPathFactory, values: list[tuple[int, str, float]]) -> None:
    points, path = [Point(*value) for value in values], tmp_path_factory.getbasetemp() / "points.csv"
    path.write_bytes(b"step,name,value\n" + encode_points(points))
    assert read_curve(path) == points


def test_a_torn_line_is_mended_and_later_steps_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_text("step,name,value\n1,a,0.5\n2,a,0.25\n3,a,0.125\n4,a,0.0")
    assert read_curve(path)[-1] == Point(3, "a", 0.125)
    curve = CurveLogger(path)
    curve.begin(resumed=True)
    curve.drop_from(3)
    curve.log_metrics({"a": 7.0, "b": 1.0}, 3)
    curve.log_metrics({"b": 1.0, "c": 2.0}, 3)
    assert path.read_text() == "step,name,value\n1,a,0.5\n2,a,0.25\n3,a,7.0\n3,b,1.0\n3,c,2.0\n", "at once, without finalize"
    curve.finalize("success")


def test_another_run_in_the_folder_keeps_its_curve(root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        fit(root, tmp_path, [LearningCurve()], max_steps=2)
    names = sorted(path.name for path in tmp_path.glob("curve*"))
    assert names == ["curve.1.csv", "curve.2.csv", "curve.csv"] and "is now curve.2.csv" in caplog.text
    assert len({(tmp_path / name).read_text() for name in names}) == 1


def test_a_file_that_is_no_curve_is_not_touched(root: str, tmp_path: Path) -> None:
    _, trainer = fit(root, tmp_path, [], max_steps=2)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "curve.csv").write_text("my notes\n")
    with pytest.raises(UserError, match=r"curve.csv: does not begin with 'step,name,value', so it is no curve; move it away"):
        fit(root, tmp_path, [LearningCurve()], resume=tmp_path / "a.ckpt")
    assert (tmp_path / "curve.csv").read_text() == "my notes\n"


# Averaged weights -----------------------------------------------------------------------------------------------------------------------


class Compiled(Tinter):
    """Has a member with threads and compiled functions."""

    def __init__(self) -> None:
        super().__init__()
        self.renderer = CpuRenderer()


class Watch(Callback):
    """The weights at each step and those that validation sees."""

    def __init__(self) -> None:
        self.trained: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.trained.append(pl_module.colour.detach().clone())

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.validated.append(pl_module.colour.detach().clone())
        assert torch.equal(pl_module.indices, torch.arange(1, 200)), "buffers are copied, not averaged"


def test_averages_are_validated_saved_and_resumed(root: str, tmp_path: Path) -> None:
    """Against a moving average by hand; decay as in Ema's docstring. Resumed in mid-epoch and after an epoch."""
    watch = Watch()
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    options: dict[str, Any] = {"max_steps": 9, "limit_val_batches": 1.0, "val_check_interval": 3}
    options |= {"check_val_every_n_epoch": None}
    fit(root, tmp_path, [Ema(0.5), keep, watch], Compiled(), **options)
    weights = [*watch.trained[1:], None]  # seen before the next step's gradients are cleared
    average, expected = weights[0], []
    for count, weight in enumerate(weights[1:8], start=1):
        average = average.lerp(weight, 1 - min(0.5, (1 + count) / (10 + count)))
        expected.append(average)
    for step, seen in ((3, watch.validated[0]), (6, watch.validated[4])):
        state = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        torch.testing.assert_close(seen, expected[step - 2])
        assert torch.equal(state["state_dict"]["colour"], seen)
        assert torch.equal(state["current_model_state"]["colour"], weights[step - 1])
        again, other = Watch(), tmp_path / str(step)
        fit(root, other, [Ema(0.5), again], Compiled(), **options, resume=tmp_path / f"step={step}.ckpt")
        assert [w.tolist() for w in again.validated] == [w.tolist() for w in watch.validated[4 * (step // 3) :]]


# The guard ------------------------------------------------------------------------------------------------------------------------------


class Poisoned(Tinter):
    """The loss or its gradient is not finite in step 2."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        if self.global_step != 2:
            return loss
        self.log("train/poison", torch.tensor(float("inf")) if self.what == "loss" else torch.tensor(0.0))
        return loss / 0 if self.what == "loss" else loss + (self.colour - self.colour.detach()).abs().sum().sqrt()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_guard_stops_before_the_weights_change(root: str, tmp_path: Path, what: str) -> None:
    sound, _ = fit(root, tmp_path, [NonFiniteGuard()], max_steps=2)
    assert not (tmp_path / "nonfinite").exists()
    model = Poisoned(what)
    term = "train/poison inf" if what == "loss" else "norm of the gradient (nan|inf)"
    with pytest.raises(UserError, match=f"after 2 steps the {what} is not finite .*{term}.*the weights are unchanged") as caught:
        fit(root, tmp_path, [NonFiniteGuard()], model)
    assert torch.equal(model.colour, sound.colour)
    path = tmp_path / "nonfinite" / "step_00000002_rank_0.json"
    record, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    reader = ShardReader(root)
    assert [[pair["source_row"], pair["target_row"]] for pair in record["pairs"]] == model.rows[2] == tensors["rows"].tolist()
    assert [pair["target_key"] for pair in record["pairs"]] == [reader.key(target) for _, target in model.rows[2]]
    assert record["pairs"][0]["source_key"] in str(caught.value)
    assert record["not_finite"] == {"inputs": [], "weights": [], "gradients": ["colour"]}
    assert tensors["pair.source.image"].shape == (4, 3, SIZE, SIZE) and {"pair.target.camera.intrinsics", "valid"} <= tensors.keys()


class Stepped(Callback):
    """How often the scaler let the optimiser step."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.scale = trainer.precision_plugin.scaler.get_scale()


def test_overflow_under_a_gradient_scaler_is_normal(root: str, tmp_path: Path) -> None:
    stepped = Stepped()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=1000)
    precision = MixedPrecision("16-mixed", "cpu", scaler)

    class Steep(Tinter):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return super().training_step(batch, index) + 1e4 * (self.colour - self.colour.detach()).sum()

    model, _ = fit(root, tmp_path, [NonFiniteGuard(), stepped], Steep(), plugins=[precision, WholeCheckpointIO()])
    assert stepped.scale < 2.0**120 and len(model.rows) == 4, "the first gradients overflowed"
    with pytest.raises(UserError, match="the loss is not finite"):
        fit(root, tmp_path, [NonFiniteGuard()], Poisoned("loss"), plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))])


# Throughput -----------------------------------------------------------------------------------------------------------------------------


class Told(Logger):
    """Remembers what it is told."""

    name, version = "told", 0

    def __init__(self) -> None:
        self.metrics: list[tuple[int | None, dict[str, Any]]] = []
        self.images: list[tuple[str, list[Any], int]] = []
        self.parameters: list[Any] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.parameters.append(params)

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        self.images.append((key, images, step))

    def log_video(self, key: str, videos: list[Any], step: int) -> None:
        self.images.append((key, videos, step))


def test_speeds_are_those_of_a_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 s of waiting and 3 s of work for each of two batches, a validation of 100 s between them, three processes."""
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    told = Told()
    monkeypatch.setattr(Trainer, "world_size", 3)
    trainer, module = make_trainer(tmp_path, [], logger=[told], enable_checkpointing=False), Tinter()
    batch: Any = SimpleNamespace(rows=torch.zeros(4, 2))
    speed = Throughput(every=2)
    speed.on_train_start(trainer, module)
    for number in range(4):
        now[0] += 2
        speed.on_train_batch_start(trainer, module, batch, number)
        now[0] += 3
        speed.on_train_batch_end(trainer, module, None, batch, number)
        if number % 2 == 0:
            speed.on_validation_start(trainer, module)
            now[0] += 100
            speed.on_validation_end(trainer, module)
    expected = {"speed/samples_per_second": 24 / 10, "speed/step_seconds": 5.0, "speed/data_share": 0.4}
    assert told.metrics == [(0, pytest.approx(expected))] * 2
    with pytest.raises(ValueError, match="at least one batch"):
        Throughput(0)


def test_speeds_reach_the_curve(root: str, tmp_path: Path) -> None:
    fit(root, tmp_path, [LearningCurve(), Throughput(every=2)])
    speeds = [point for point in read_curve(tmp_path / "curve.csv") if point.name.startswith("speed/")]
    assert [point.step for point in speeds] == [1] * 3 + [3] * 3 and all(point.value > 0 for point in speeds)


# Panels ---------------------------------------------------------------------------------------------------------------------------------


def validating(root: str, folder: Path, callbacks: list[Any], **options: Any) -> tuple[Tinter, Trainer]:
    model = Tinter(noise=0.1, **options)
    torch.manual_seed(0)
    return fit(root, folder, callbacks, model, limit_val_batches=1.0, max_steps=8, num_sanity_val_steps=1, logger=[Told()])


def test_panels_show_fixed_pairs_under_the_averaged_weights(root: str, tmp_path: Path) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, save_on_train_epoch_end=False)
    _, trainer = validating(root, tmp_path, [Panels(count=3, height=SIZE), Ema(0.5), keep], returns=True)
    names = sorted(path.name for path in (tmp_path / "panels").iterdir())
    assert names == ["step_00000004.png", "step_00000008.png"]
    data = pairs(root)
    loaders = data.val_dataloader()
    batches = [data.on_after_batch_transfer(next(iter(loader)), 0) for loader in loaders]
    for name in names:
        sheet = cv2.imread(str(tmp_path / "panels" / name))[:, :, ::-1]
        assert sheet.shape == (6 * SIZE, 5 * SIZE, 3)
        state = torch.load(tmp_path / f"step={int(name[5:13])}.ckpt", weights_only=True)["state_dict"]
        for number in range(6):
            pair = batches[number // 3].pair[number % 3]
            dense = pair.source.image + state["colour"][:, None, None]
            shown = [pair.source.image, pair.target.image, None, dense, 4 * (dense - pair.target.image).abs()]
            for column, image in enumerate(shown):
                tile = sheet[number * SIZE : (number + 1) * SIZE, column * SIZE : (column + 1) * SIZE].astype(int)
                if column == 4 and number >= 3:
                    assert (tile == 255).all(), "nobody knows the truth across persons"
                elif image is not None:
                    assert np.abs(tile - 255 * image.clamp(0, 1).permute(1, 2, 0).numpy()).max() <= 1, (name, number, column)
    logged = trainer.loggers[0].images
    assert [(key, step) for key, _, step in logged] == [("panels", 3), ("panels", 7)]
    assert (logged[1][1][0] == cv2.imread(str(tmp_path / "panels" / names[1]))[:, :, ::-1]).all()


def test_panels_leave_the_training_as_it_is(root: str, tmp_path: Path) -> None:
    """A model that draws random numbers when it renders, a video on top: same weights, same batches."""
    plain, _ = validating(root, tmp_path / "a", [])
    watched, trainer = validating(root, tmp_path / "b", [Panels(clip_frames=5)], returns=False)
    assert watched.rows == plain.rows and torch.equal(watched.colour, plain.colour)
    assert not (tmp_path / "a" / "panels").exists()
    path = tmp_path / "b" / "panels" / "step_00000008.mp4"
    frames = [frame.image for frame in read_frames(path)]
    assert probe(path).fps == Fraction(25)
    assert len(frames) == 5 and frames[0].shape == (SIZE, 3 * SIZE, 3)
    first = ShardReader(root).sample(int(consecutive_rows(ShardReader(root), 5)[0]), ["image"]).image
    small = cv2.resize(first, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(frames[4][:, :SIZE] - small).mean() < 12 and np.abs(frames[4][:, SIZE : 2 * SIZE] - small).mean() > 1
    assert [key for key, _, _ in trainer.loggers[0].images] == ["clip", "panels"] * 2


def test_every_nth_validation_has_a_panel(root: str, tmp_path: Path) -> None:
    panels = Panels(every=2, count=1)
    validating(root, tmp_path, [panels])
    assert [path.name for path in (tmp_path / "panels").iterdir()] == ["step_00000004.png"]
    other = Panels(every=2)
    other.load_state_dict(panels.state_dict())
    assert other.state_dict() == {"validations": 2}


def test_the_clip_is_the_first_without_a_gap(tmp_path: Path) -> None:
    make_dataset(tmp_path, ["a-00000000_00", "b-00000000_00"], 9, 32, columns=("image",), gaps=(3,), split_of=lambda _: "val")
    index = ShardReader(tmp_path).index
    numbers = [index["index"][row].as_py() for row in consecutive_rows(ShardReader(tmp_path), 4).tolist()]
    assert numbers == [4, 5, 6, 7]
    assert len(consecutive_rows(ShardReader(tmp_path), 2)) == 2 and len(consecutive_rows(ShardReader(tmp_path), 20)) == 5
    with pytest.raises(UserError, match="no sample in split 'test'"):
        consecutive_rows(ShardReader(tmp_path), 4, "test")


# Provenance -----------------------------------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_was_made_from(root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    keep = ModelCheckpoint(dirpath=tmp_path, filename="last")
    words = ["fit", "--data.root", root, "--trainer.max_steps=2"]
    fit(root, tmp_path, [Provenance(arguments=words), keep], max_steps=2, logger=[told])
    (record,) = json.loads((tmp_path / "provenance.json").read_text())
    digest = hashlib.sha256((Path(root) / "dataset.json").read_bytes()).hexdigest()
    assert record["data"]["sha256"] == digest and record["data"]["root"] == Path(root).name
    assert record["data"]["samples"] == {"train": 18, "val": 12, "test": 0} and record["from_step"] == 0
    assert record["versions"]["torch"] == torch.__version__ and record["versions"]["mggtalk"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["provenance"]["data"]["sha256"] == digest
    assert {"provenance": {name: value for name, value in record.items() if name != "from_step"}} in told.parameters
    assert str(Path.home()) not in json.dumps(record)
    fit(root, tmp_path, [Provenance()], max_steps=3, resume=tmp_path / "last.ckpt")
    assert "not the data set of the checkpoint" not in caplog.text
    other = make_persons(tmp_path / "other")
    (Path(other) / "dataset.json").write_text((Path(other) / "dataset.json").read_text() + "\n")
    fit(other, tmp_path, [Provenance()], max_steps=3, resume=tmp_path / "last.ckpt")
    assert "data.root: other is not the data set of the checkpoint" in caplog.text and digest[:12] in caplog.text
    records = json.loads((tmp_path / "provenance.json").read_text())
    assert [one["from_step"] for one in records] == [0, 2, 2]


def test_arguments_name_no_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/people/ann")
    monkeypatch.setenv("LOGNAME", "ann")
    words = [
        "--root=/people/ann/data",
        "/scratch/ann",
        "--x=/scratch/anna",
        "--data.storage_options={secret: s}",
        "--wandb.key",
        "k",
        "--y",
        "1",
    ]
    expected = ["--root=~/data", "/scratch/~", "--x=/scratch/anna", "--data.storage_options=...", "--wandb.key", "...", "--y", "1"]
    assert host_free(words) == expected


# Checkpoints and Weights & Biases ---------------------------------------------------------------------------------------------------------


def test_a_failed_save_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"number": 1}, path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"last.ckpt: the checkpoint cannot be written \(No space left on device\); free some space"):
        WholeCheckpointIO().save_checkpoint({"number": 2}, path)
    assert torch.load(path, weights_only=True) == {"number": 1} and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("offline", "environment", "expected"),
    [
        (None, {}, "offline"),
        (None, {"WANDB_API_KEY": "k"}, "online"),
        (True, {"WANDB_API_KEY": "k"}, "offline"),
        (False, {"WANDB_MODE": "offline"}, "online"),
        (None, {"WANDB_MODE": "dryrun", "WANDB_API_KEY": "k"}, "offline"),
        (None, {"WANDB_MODE": "disabled"}, "disabled"),
        (None, {"NETRC": "netrc"}, "online"),
        (None, {"NETRC": "netrc", "WANDB_BASE_URL": "https://wandb.example.org"}, "offline"),
    ],
)
def test_wandb_is_offline_unless_the_user_is_logged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool | None, environment: dict[str, str], expected: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert wandb_mode(offline, environment)[0] == expected


def test_a_run_offline_is_written_and_says_so(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    caplog.set_level(logging.INFO, "mggtalk")
    run = WandbRun(save_dir=str(tmp_path / "runs"), name="a run")
    assert os.environ.get("WANDB_MODE") is None
    fit(root, tmp_path, [Panels(clip_frames=4), Provenance()], logger=[run], limit_val_batches=1.0)
    run.experiment.finish()
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    (folder,) = (tmp_path / "runs" / "wandb").glob("offline-run-*")
    assert f"wandb: offline (you are not logged in); upload it later with `wandb sync {folder}`" in caplog.text
    kinds = {path.suffix for path in folder.rglob("media/**/*") if path.is_file()}
    assert kinds == {".png", ".mp4"} and list(folder.glob("*.wandb"))


def test_stock_csv_logger_loses_steps(root: str, tmp_path: Path) -> None:
    """Why there is an own curve: should this fail one day, CSVLogger can take its place."""
    for resume in (None, tmp_path / "a.ckpt"):
        logger = CSVLogger(tmp_path, name=None, version="run")
        _, trainer = fit(root, tmp_path, [], logger=logger, max_steps=2 if resume is None else 4, resume=resume)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 2, "the rows of the first two steps are gone"


def test_nothing_heavy_is_imported_with_the_callbacks() -> None:
    source = Path(sys.modules[WandbRun.__module__].__file__ or "").read_text()
    assert "import wandb" not in source
