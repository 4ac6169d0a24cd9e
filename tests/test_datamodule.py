"""The data module with Lightning: shapes, checkpoints in mid-epoch, validation loaders, and what the command line can build."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from shard_scenes import make_dataset

from datasets_toolkit.errors import UserError
from mggtalk.data.augment import PairTransform, Photometric
from mggtalk.data.datamodule import PairDataModule
from mggtalk.data.loader import Workers
from mggtalk.data.packed import PairBatch, unpack_frame
from mggtalk.data.pairs import PairRule
from mggtalk.types import Pair

TRANSFORM = PairTransform(size=32, flip=0.5, scale=0.1, shift=0.05)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three persons to train on, two to validate on, one to test on."""
    folder = tmp_path_factory.mktemp("data")
    clips = [f"{name}-00000000_00" for name in ("anna", "bert", "cleo", "dora", "emil", "fred")]
    split = {"dora": "val", "emil": "val", "fred": "test"}
    make_dataset(folder, clips, 6, 48, split_of=lambda clip: split.get(clip.split("-")[0], "train"))
    return str(folder)


class Recorder(LightningModule):
    """Remembers every batch, and takes a training step whose result depends on all of them."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.fail_at = fail_at
        self.seen: list[tuple[int, list[list[int]], float]] = []
        self.validated: list[tuple[int, list[list[int]]]] = []

    def training_step(self, batch: PairBatch, index: int) -> torch.Tensor:
        if self.fail_at is not None and self.global_step == self.fail_at:
            raise KeyboardInterrupt
        assert batch.valid.all() and isinstance(batch.pair, Pair)
        self.seen.append((self.current_epoch, batch.rows.tolist(), float(batch.pair.target.image.sum())))
        colour = batch.pair.source.image.mean((0, 2, 3))
        return (self.weight - colour).square().sum()

    def validation_step(self, batch: PairBatch, index: int, dataloader_idx: int = 0) -> None:
        self.validated.append((dataloader_idx, batch.rows[batch.valid].tolist()))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches  # which makes Lightning build the loaders before training starts
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, **{"enable_checkpointing": False, "limit_val_batches": 0, **options},
    )  # fmt: skip


def quietly(function: Any, *arguments: Any, **named: Any) -> Any:
    """Lightning warns of few workers and of much else; of a loader that cannot resume it must not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", ".*not resumable.*")
        return function(*arguments, **named)


def module(root: str, **options: Any) -> PairDataModule:
    return PairDataModule(root, **{"batch_size": 4, "transform": TRANSFORM, "seed": 3, **options})


def test_batches_are_pairs_of_frames(root: str) -> None:
    data = module(root)
    loader = data.train_dataloader()
    batch = data.on_after_batch_transfer(data.transfer_batch_to_device(next(iter(loader)), torch.device("cpu"), 0), 0)
    assert len(loader) == 4  # 18 frames, all with partners
    for frame in (batch.pair.source, batch.pair.target):
        assert frame.image.shape == (4, 3, 32, 32) and frame.image.dtype == torch.float32
        assert 0 <= frame.image.min() < frame.image.max() <= 1
        assert frame.mesh.shape == (4, 478, 3) and frame.expression.shape == (4, data.face_model.expression_size)
        assert frame.parsing.any() and frame.matte.any()
    lengths = batch.pair.source.normals.norm(dim=1)
    assert batch.pair.source.depth.any() and torch.isclose(lengths, lengths.round(), atol=1e-5).all()
    assert not batch.pair.target.depth.any(), "not asked for"


def test_targets_of_the_source_s_clip_are_driven_by_the_change_since_the_source(root: str) -> None:
    """Those of another person have an expression of their own."""
    data = module(root, cross_pairs=6)
    for number, loader in enumerate(data.val_dataloader()):
        packed = next(iter(loader))
        pair = data.on_after_batch_transfer(packed, number).pair
        alone = unpack_frame(packed.target, data.face_model).expression
        change = data.face_model.change(pair.source.mesh, pair.target.mesh, packed.target.blendshapes - packed.source.blendshapes)
        expected = alone if number else pair.source.expression + change
        torch.testing.assert_close(pair.target.expression, expected)
        assert (alone - pair.source.expression - change).abs().max() > 1e-3, "both ways agree, so the test says nothing"


def test_training_resumes_exactly(root: str, tmp_path: Path) -> None:
    """Stopped after any step, also the last of an epoch, with another number of workers: same batches, same weights."""
    whole = Recorder()
    quietly(trainer(tmp_path, max_epochs=3).fit, whole, module(root))
    assert len(whole.seen) == 12 and [epoch for epoch, _, _ in whole.seen] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({str(rows) for _, rows, _ in whole.seen}) == 12
    for stop in (2, 4, 7):
        keep = ModelCheckpoint(dirpath=tmp_path / str(stop), every_n_train_steps=stop, save_top_k=-1, filename="at-{step}")
        first = Recorder()
        quietly(trainer(tmp_path, max_steps=stop, enable_checkpointing=True, callbacks=[keep]).fit, first, module(root))
        assert first.seen == whole.seen[:stop]
        second, resumed = Recorder(), module(root, workers=Workers(count=stop % 2, start="fork"), seed=99)
        path = tmp_path / str(stop) / f"at-step={stop}.ckpt"
        quietly(trainer(tmp_path, max_epochs=3).fit, second, resumed, ckpt_path=path, weights_only=True)
        assert [step[1:] for step in second.seen] == [step[1:] for step in whole.seen[stop:]], stop
        assert torch.equal(second.weight, whole.weight)


def test_short_epochs_begin_at_the_begin(root: str, tmp_path: Path) -> None:
    """With limited batches every epoch is the begin of its own plan; a second fit of the same module begins anew."""
    whole, short = Recorder(), Recorder()
    data = module(root)
    quietly(trainer(tmp_path, max_epochs=2).fit, whole, data)
    quietly(trainer(tmp_path, max_epochs=2, limit_train_batches=3).fit, short, data)
    assert short.seen == whole.seen[:3] + whole.seen[4:7]


def test_validation_and_test_show_every_pair_once(root: str, tmp_path: Path) -> None:
    recorder, data = Recorder(), module(root, cross_pairs=5, val_pairs=7)
    quietly(trainer(tmp_path, limit_val_batches=1.0).validate, recorder, data, verbose=False)
    person = [row.split("-")[0] for row in data.reader.index["clip"].to_pylist()]
    plain, cross = ([rows for which, part in recorder.validated if which == number for rows in part] for number in range(2))
    assert len(plain) == 7 and len(cross) == 5
    assert all(person[source] == person[target] in ("dora", "emil") and source != target for source, target in plain)
    assert all({person[source], person[target]} == {"dora", "emil"} for source, target in cross)
    again = Recorder()
    quietly(trainer(tmp_path, limit_val_batches=1.0).validate, again, module(root, cross_pairs=5, val_pairs=7, batch_size=3), verbose=False)
    assert [pair for _, part in again.validated for pair in part] == plain + cross
    tested = Recorder()
    quietly(trainer(tmp_path).test, tested, module(root), verbose=False)
    assert {person[row] for _, part in tested.validated for pair in part for row in pair} == {"fred"}


def test_mistakes_are_told(root: str, tmp_path: Path) -> None:
    for options, message in (
        ({"batch_size": 50}, "18 pairs has no batch of 50"),
        ({"rule": PairRule(minimum=5.0)}, "widen the pair rule"),
        ({"root": str(tmp_path)}, "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            PairDataModule(**{"root": root, **options}).train_dataloader()
    with pytest.raises(UserError, match="two persons"):
        module(root, cross_pairs=2).test_dataloader()
    data = module(root)
    data.setup("fit")
    with pytest.raises(UserError, match="mid-epoch with 8, this run has 4"):
        data.load_state_dict({**data.state_dict(), "global_batch": 1, "batch_size": 8})


def test_the_command_line_builds_it(root: str) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(PairDataModule, "data")
    line = [f"--data.root={root}", "--data.rule.measure=pose", "--data.rule.minimum=2", "--data.source_labels=[depth]"]
    line += ["--data.transform.photometric={class_path: mggtalk.data.augment.Photometric, init_args: {jpeg: 80}}"]
    line += ["--data.transform.flip=0.5", "--data.workers.count=0"]
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the name before version 4.49
    data = build(parser.parse_args(line)).data
    assert data.rule == PairRule(measure="pose", minimum=2.0)
    assert data.transform == PairTransform(flip=0.5, photometric=Photometric(jpeg=80))
    batch = next(iter(data.train_dataloader()))
    assert batch.source.depth is not None and batch.source.parsing is None and len(batch.valid) == 8
