"""The contract of all stages: which parts train, which stay, how one stage takes over from another, and that each learns."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from model_scenes import made_model, perturb
from network_weights import arcface
from torch import Tensor
from torch_weights import ALEXNET, convolutions, write
from training_scenes import make_trainer, quietly

import mggtalk.stages
from datasets_toolkit.annotators.identity_dlib import INSTALL, installed
from datasets_toolkit.errors import UserError
from mggtalk.callbacks.ema import Ema
from mggtalk.checkpoints import CheckpointError, read_checkpoint
from mggtalk.data.packed import PairBatch
from mggtalk.data.pairs import PairRule
from mggtalk.data.synthetic import SyntheticPairs
from mggtalk.export import save_model
from mggtalk.losses import ImageLoss, ReadingLoss, total
from mggtalk.metrics.functional import csim
from mggtalk.metrics.identity import FaceEmbedder
from mggtalk.model import MGGTalk
from mggtalk.modules.identity import IdentityEncoder
from mggtalk.networks.lpips import Lpips
from mggtalk.rendering.auto import AutoRenderer
from mggtalk.stages.base import PARTS, Optimiser, Stage, parameter_groups
from mggtalk.stages.deformation import DeformationLoss, DeformationStage
from mggtalk.stages.gaussians import GaussianStage
from mggtalk.stages.geometry import GeometryLoss, GeometryStage, surface_weights
from mggtalk.stages.joint import JointStage
from mggtalk.types import Pair

for module in pkgutil.iter_modules(mggtalk.stages.__path__):
    importlib.import_module(f"mggtalk.stages.{module.name}")


def subclasses(kind: type[Stage]) -> Iterator[type[Stage]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("mggtalk."):
            yield child
        yield from subclasses(child)


STAGES = sorted(set(subclasses(Stage)), key=lambda stage: stage.__name__)  # type: ignore[type-abstract]
NAMES = [stage.__name__ for stage in STAGES]
every_stage = pytest.mark.parametrize("kind", STAGES, ids=NAMES)
STEPS = 30
LEARNT = {"GeometryStage": 0.98, "DeformationStage": 0.93, "GaussianStage": 0.8, "JointStage": 0.85}
"""What may be left of a stage's own loss on one pair after so many steps."""


@pytest.fixture(scope="session")
def batch(tmp_path_factory: pytest.TempPathFactory) -> PairBatch:
    """One pair of synthetic frames."""
    options = {"clips": 3, "frames": 6, "size": 64, "persons": 3, "pairs": 1, "val_pairs": 1}
    rule, labels = PairRule(measure="time", minimum=0.1), ("parsing", "matte", "depth")
    data = SyntheticPairs(str(tmp_path_factory.mktemp("heads")), 1, rule=rule, target_labels=labels, **options)
    data.prepare_data()
    data.setup("fit")
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


def fresh() -> MGGTalk:
    """As training begins: what is zero at the start is zero."""
    made = made_model()
    made.renderer = AutoRenderer()
    return made


def state(stage: Stage) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}


def loss(stage: Stage, batch: PairBatch) -> Tensor:
    return total(stage.objective(batch.pair, stage.model.trace(batch.pair))).mean()


class Again:
    """One batch, several times."""

    def __init__(self, batch: PairBatch, count: int = 1) -> None:
        self.batch, self.count = batch, count

    def __iter__(self) -> Iterator[PairBatch]:
        return iter([self.batch] * self.count)

    def __len__(self) -> int:
        return self.count


def fit(stage: Stage, batch: PairBatch, folder: Path, steps: int, **options: Any) -> Trainer:
    options = {"callbacks": [], "enable_checkpointing": False, **options}
    trainer = make_trainer(folder, max_steps=steps, **options)
    quietly(trainer.fit, stage, train_dataloaders=Again(batch, steps))
    return trainer


def test_there_are_the_stages_of_the_paper_and_the_joint_one() -> None:
    assert {"GeometryStage", "DeformationStage", "GaussianStage", "JointStage"} <= set(NAMES)
    assert all(set(stage.trains) <= set(PARTS) and stage.trains for stage in STAGES)
    trained = [part for stage in STAGES if stage.__name__ != "JointStage" for part in stage.trains]
    assert sorted(trained) == sorted(PARTS), "each part has one stage of its own"


def test_the_parts_are_all_that_the_model_can_learn() -> None:
    named = {name.split(".")[0] for name, _ in fresh().named_parameters()}
    assert named == set(PARTS)


def with_wrong_depth(batch: PairBatch, error: float = 0.6) -> PairBatch:
    """Synthetic depth is exact, so that there is nothing to correct: here the source is ``error`` cm too far away."""
    source = batch.pair.source
    depth = torch.where(source.depth > 0, source.depth + error, 0)
    return replace(batch, pair=replace(batch.pair, source=replace(source, depth=depth)))


@every_stage
def test_every_trained_parameter_has_a_gradient_from_the_first_step_on(kind: type[Stage], batch: PairBatch) -> None:
    """Distributed training waits for each of them. Exactly zero is a gradient; none is not."""
    stage = kind(fresh())
    loss(stage, batch).backward()
    for name, parameter in stage.model.named_parameters():
        trained = name.split(".")[0] in kind.trains
        assert parameter.requires_grad == trained and (parameter.grad is not None) == trained, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@every_stage
def test_each_stage_lowers_its_own_loss_and_leaves_the_others_alone(kind: type[Stage], batch: PairBatch, tmp_path: Path) -> None:
    stage, batch = kind(fresh(), optimiser=Optimiser(rate=3e-3, warmup=3, weight_decay=0.0)), with_wrong_depth(batch)
    with torch.no_grad():
        stage.eval()
        before, first = state(stage), loss(stage, batch).item()
        stage.train()
    fit(stage, batch, tmp_path, STEPS)
    with torch.no_grad():
        last = loss(stage.eval(), batch).item()
    changed = {name.split(".")[0] for name, tensor in stage.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(kind.trains)
    assert last < LEARNT.get(kind.__name__, 0.97) * first, (first, last)


@torch.no_grad()
def test_depths_agree_on_the_surface_and_what_lies_behind_it_does_not_count(batch: PairBatch) -> None:
    """Generic eyes and the inside of the mouth are most points of a small picture, and lie up to 3 cm behind its depth."""
    stage = GeometryStage(fresh(), geometry=GeometryLoss(agreement=0.3)).eval()
    own = replace(batch.pair, target=batch.pair.source)

    def agreement(pair: Pair) -> float:
        return stage.objective(pair, stage.model.trace(pair))["depth/agreement"].value.item()

    farther = with_wrong_depth(replace(batch, pair=own), 0.4).pair
    assert agreement(own) < 0.2, "points lie between pixels of 0.6 cm"
    assert agreement(farther) == pytest.approx(0.4, abs=0.08)
    weights, points = surface_weights(stage.model.trace(own).identity), stage.model.trace(own).identity.points.visible
    assert 0 < (weights > 0).sum() < 0.5 * points.mask.sum()


def test_agreement_needs_the_depth_of_targets(tmp_path: Path) -> None:
    data = SyntheticPairs(str(tmp_path), 1, target_labels=("parsing", "matte"), clips=3, frames=4, persons=3, val_pairs=1)
    for kind in (GeometryStage, JointStage):
        with pytest.raises(UserError, match="target_labels: depth is missing"):
            quietly(make_trainer(tmp_path, [], max_steps=1).fit, kind(fresh(), geometry=GeometryLoss(agreement=0.3)), datamodule=data)


def test_what_is_trained_later_is_not_moved_by_weight_decay(batch: PairBatch, tmp_path: Path) -> None:
    """Not even by a large one, and not through buffers."""
    stage = STAGES[NAMES.index("DeformationStage")](fresh(), optimiser=Optimiser(weight_decay=10.0, warmup=0))
    before = state(stage)
    fit(stage, batch, tmp_path, 1)
    for name, tensor in stage.model.state_dict().items():
        assert name.startswith("deformation.") or torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("warmup, final, steps", [(0, 0.05, 10), (4, 0.0, 20), (10, 0.5, 10), (100, 0.1, 50)])
def test_the_rate_rises_linearly_and_falls_as_a_cosine(warmup: int, final: float, steps: int) -> None:
    optimiser = Optimiser(warmup=warmup, final=final)
    found = [optimiser.factor(step, steps) for step in range(steps + 5)]
    for step, factor in enumerate(found):
        if step < warmup:
            expected = (step + 1) / warmup
        else:
            angle = math.pi * min((step - warmup) / max(steps - warmup, 1), 1)
            expected = final + (1 - final) * math.cos(angle / 2) ** 2
        assert factor == pytest.approx(expected, abs=1e-12)
    if warmup < steps:
        assert found[warmup] == 1 and found[steps] == pytest.approx(final)


def test_the_optimiser_steps_with_the_rates_of_the_schedule(batch: PairBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimiser = Optimiser(rate=2e-3, rates={"encoder": 0.1}, warmup=2)
    stage = STAGES[NAMES.index("GaussianStage")](fresh(), optimiser=optimiser)
    rates: list[dict[str, float]] = []

    def watch(*_: object) -> None:
        rates.append({group["name"]: group["lr"] for group in stage.trainer.optimizers[0].param_groups})

    monkeypatch.setattr(stage, "on_before_optimizer_step", watch)
    fit(stage, batch, tmp_path, 3)
    for step, found in enumerate(rates):
        for name, rate in found.items():
            part = 0.1 if name.startswith("encoder/") else 1.0
            assert rate == pytest.approx(2e-3 * part * optimiser.factor(step, 3)), (step, name)
    assert len(rates) == 3


@every_stage
def test_groups_hold_every_trained_parameter_once(kind: type[Stage]) -> None:
    stage, optimiser = kind(fresh()), Optimiser(rates={kind.trains[0]: 0.5}, weight_decay=0.25)
    groups = parameter_groups(stage.model, kind.trains, optimiser)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(parameter) for parameter in stage.model.parameters() if parameter.requires_grad}
    for group in groups:
        part, shape = group["name"].split("/")
        matrices = shape == "matrices"
        assert group["weight_decay"] == (0.25 if matrices else 0)
        assert all((parameter.ndim > 1) == matrices for parameter in group["params"])
        assert group["lr"] == optimiser.rate * (0.5 if part == kind.trains[0] else 1.0)


def test_a_part_with_rate_zero_is_not_trained(batch: PairBatch) -> None:
    stage = STAGES[NAMES.index("JointStage")](fresh(), optimiser=Optimiser(rates={"densifier": 0.0, "encoder": 0.0, "refiner": 2.0}))
    loss(stage, batch).backward()
    trained = {name.split(".")[0] for name, parameter in stage.model.named_parameters() if parameter.grad is not None}
    assert trained == set(PARTS) - {"densifier", "encoder"}
    groups = parameter_groups(stage.model, stage.trains, stage.optimiser)
    assert {group["name"].split("/")[0] for group in groups} == trained


def test_rates_of_parts_that_there_are_not_are_refused() -> None:
    with pytest.raises(ValueError, match="no part 'decoder'; its parts are refiner, encoder"):
        Optimiser(rates={"decoder": 0.1})


@pytest.fixture(scope="module")
def finished(batch: PairBatch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint of a stage with an average of its weights; the average, and the weights that training would go on with."""
    folder = tmp_path_factory.mktemp("finished")
    stage = STAGES[NAMES.index("GaussianStage")](perturb(fresh(), 0.02), optimiser=Optimiser(rate=3e-3, warmup=0))
    keeper = ModelCheckpoint(folder, "last", every_n_train_steps=4)
    fit(stage, batch, folder, 4, callbacks=[Ema(0.9), keeper], enable_checkpointing=True)
    current = read_checkpoint(folder / "last.ckpt")["current_model_state"]
    return folder / "last.ckpt", state(stage), {name.removeprefix("model."): tensor for name, tensor in current.items()}


@every_stage
def test_a_stage_begins_with_the_averaged_weights_of_another(
    kind: type[Stage], finished: tuple[Path, dict[str, Tensor], dict[str, Tensor]]
) -> None:
    path, averaged, last = finished
    stage = kind(fresh(), start=str(path))
    found = stage.model.state_dict()
    assert found.keys() == averaged.keys() and all(torch.equal(tensor, averaged[name]) for name, tensor in found.items())
    assert any(not torch.equal(averaged[name], tensor) for name, tensor in last.items()), "the average is not the last step"


def test_a_stage_begins_with_an_exported_model(tmp_path: Path) -> None:
    trained = perturb(fresh(), 0.05)
    save_model(trained, {}, tmp_path / "model")
    save_model(trained, {}, tmp_path / "model.safetensors")
    for start in ("model", "model.safetensors"):
        found = STAGES[0](fresh(), start=str(tmp_path / start)).model.state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in trained.state_dict().items())


def test_a_stage_refuses_the_weights_of_another_architecture(finished: tuple[Path, object, object]) -> None:
    other = fresh()
    other.encoder = IdentityEncoder(8, (8, 24))
    with pytest.raises(CheckpointError, match=r"last\.ckpt: holds another architecture.*encoder") as caught:
        STAGES[0](other, start=str(finished[0]))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_holds_no_metrics_and_no_perceptual_network(finished: tuple[Path, object, object]) -> None:
    assert all(name.startswith("model.") for name in read_checkpoint(finished[0])["state_dict"])


def test_a_tracker_may_read_along(batch: PairBatch, tmp_path: Path) -> None:
    """Training on nothing but what it reads lowers that, and no checkpoint holds the network it reads with."""
    silent = DeformationLoss(landmarks=0.0, correction=0.0, unrest=0.0)
    reading = ReadingLoss(landmarks=1.0, blendshapes=1.0)
    stage = DeformationStage(
        fresh(),
        image=ImageLoss(l1=0.0, ssim=0.0, perceptual=0.0),
        coarse=0.0,
        reading=reading,
        deformation=silent,
        optimiser=Optimiser(rate=0.01, warmup=1),
    )
    with torch.no_grad():
        terms = stage.objective(batch.pair, stage.model.trace(batch.pair))
        before = loss(stage, batch)
        assert before == sum(terms[f"reading/{name}"].value.mean() for name in ("landmarks", "blendshapes")) > 0
    fit(stage, batch, tmp_path, 20)
    assert loss(stage, batch) < 0.9 * before
    assert all(name.startswith("model.") for name in stage.state_dict())
    assert DeformationStage(fresh()).reader is None


@pytest.mark.skipif(not installed(), reason=f"dlib's recogniser is not installed: {INSTALL}")
def test_a_recogniser_may_read_along(batch: PairBatch, tmp_path: Path) -> None:
    """As the tracker, with or without it."""
    stage = GaussianStage(
        fresh(),
        image=ImageLoss(l1=0.0, ssim=0.0, perceptual=0.0),
        reading=ReadingLoss(identity=1.0),
        optimiser=Optimiser(rate=0.003, warmup=1),
    )
    assert stage.reader is None
    with torch.no_grad():
        before = stage.objective(batch.pair, stage.model.trace(batch.pair))["reading/identity"].value.mean()
    fit(stage, batch, tmp_path, 10)
    with torch.no_grad():
        after = stage.objective(batch.pair, stage.model.trace(batch.pair))["reading/identity"].value.mean()
    assert 0 < after < 0.95 * before
    assert all(name.startswith("model.") for name in stage.state_dict())
    assert GaussianStage(fresh()).recogniser is None


def test_the_user_s_networks_measure_in_validation(batch: PairBatch, tmp_path: Path) -> None:
    """LPIPS and CSIM as the functions compute them of the same pictures."""
    files = [str(write(tmp_path / "alexnet.pth", convolutions(ALEXNET))), str(arcface(tmp_path)["weights"])]
    stage = GaussianStage(fresh(), alexnet=files[0], arcface=files[1], tracked="always")
    (values,) = quietly(make_trainer(tmp_path, [], enable_checkpointing=False).validate, stage, Again(batch), verbose=False)
    stage.eval()  # as in validation: in training no textures go on behind the head
    with torch.inference_mode():
        output = stage.model(batch.pair).dense.image.clamp(0, 1)
        expected = Lpips(files[0])(output, batch.pair.target.image).mean()
    assert values["val/lpips"] == pytest.approx(float(expected), rel=1e-4)
    with FaceEmbedder(files[1]) as embedder:
        first, second = (embedder(images) for images in (output, batch.pair.source.image))
    known = (first.norm(dim=1) > 0) & (second.norm(dim=1) > 0)
    if known.any():
        assert values["val/csim"] == pytest.approx(float(csim(first[known].double(), second[known].double()).mean()), abs=1e-5)
    else:
        assert math.isnan(values["val/csim"])


@every_stage
def test_validation_measures_the_same_whatever_the_step(kind: type[Stage], batch: PairBatch, tmp_path: Path) -> None:
    """Or curves of validation would show the noise of a loss, and a checkpoint would not be worth what its run said."""
    stage = kind(fresh(), optimiser=Optimiser(rate=0.0, weight_decay=0.0))
    values = []
    for steps in (1, 3):
        trainer = make_trainer(tmp_path, [], max_steps=steps, enable_checkpointing=False, val_check_interval=steps)
        quietly(trainer.fit, stage, train_dataloaders=Again(batch, steps), val_dataloaders=Again(batch))
        values.append({name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")})
    trainer = make_trainer(tmp_path, [], enable_checkpointing=False)
    (alone,) = quietly(trainer.validate, stage, Again(batch), verbose=False)
    assert values[0] == values[1] == alone and {"val/loss", "val/psnr", "val/ssim_head"} <= alone.keys()
