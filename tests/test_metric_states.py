"""Means of per-image metrics: one contract for all, each against another implementation, and what a LightningModule does with them."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_scenes import (
    COUNT,
    EXAMPLES,
    SETS,
    Example,
    Mixed,
    cast,
    masked_pictures,
    members,
    named_examples,
    named_sets,
    pictures,
    rank_part,
    spoil,
    uniform,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional import image as theirs

from mggtalk.metrics.per_image import Sums
from mggtalk.metrics.states import AED, AKD, CSIM, LPIPS, PSNR, SSIM, FoundShare, Jitter, Mean, PerImageMetric

NAMED, WHOLE = named_examples(), named_sets()
every = pytest.mark.parametrize("example", NAMED.values(), ids=NAMED)


def value(metric: PerImageMetric) -> float:
    return float(metric.compute())


def test_every_metric_has_joined() -> None:
    every = members(Sums)
    missing = [kind.__name__ for kind in every if kind not in EXAMPLES and kind not in SETS]
    assert not missing, f"add an example to metric_scenes.py for {missing}"
    assert len(every) == len(EXAMPLES) + len(SETS) >= 11
    assert {kind for kind in every if kind.higher_is_better} == {PSNR, SSIM, CSIM, FoundShare}
    assert [kind for kind in every if kind.higher_is_better is None] == [Mean]
    assert not any(kind.full_state_update for kind in every)


@every
def test_the_mean_is_that_of_another_implementation(example: Example) -> None:
    metric = example.make()
    example.feed(metric, range(COUNT))
    assert value(metric) == pytest.approx(example.values.mean(), rel=1e-6, abs=1e-7)
    assert np.ptp(example.values) > 1e-3, "rows of equal value prove nothing"
    assert (metric.dropped, int(metric.count)) == (0, COUNT)


@every
def test_nothing_depends_on_batches(example: Example) -> None:
    whole, parts, padded = example.make(), example.make(), example.make()
    example.feed(whole, range(COUNT))
    for rows in ([0], [1, 2], [3, 4, 5]):
        example.feed(parts, rows)
    for rows, padding in (([0, 1, 2, 3], 0), ([4, 5], 2)):
        example.feed(padded, rows, padding)
    assert value(parts) == pytest.approx(value(whole), rel=1e-9)
    assert value(padded) == pytest.approx(value(whole), rel=1e-9)
    assert padded.dropped == 0


@every
def test_reset_forgets_everything(example: Example) -> None:
    metric = example.make()
    example.feed(metric, [5, 5, 0])
    if example.spoilable:
        spoil(example, metric)
    metric.compute()
    metric.reset()
    assert metric.dropped == 0
    example.feed(metric, range(COUNT))
    assert value(metric) == pytest.approx(example.values.mean(), rel=1e-6, abs=1e-7)


@every
def test_states_of_two_processes_merge(example: Example) -> None:
    first, second = example.make(), example.make()
    example.feed(first, [0, 1, 2, 3])
    example.feed(second, [4, 5])
    first.merge_state(pickle.loads(pickle.dumps(second.metric_state)))
    assert value(first) == pytest.approx(example.values.mean(), rel=1e-6, abs=1e-7)


@every
def test_forward_gives_the_value_of_the_batch_and_adds_it(example: Example) -> None:
    metric = example.make()
    for row in range(COUNT):
        batch = {name: values[row] if example.clips else values[row : row + 1] for name, values in example.inputs.items()}
        assert float(metric(**batch)) == pytest.approx(example.values[row], rel=1e-6, abs=1e-7)
    assert value(metric) == pytest.approx(example.values.mean(), rel=1e-6, abs=1e-7)


@every
def test_what_is_not_finite_is_left_out_and_told(example: Example, caplog: pytest.LogCaptureFixture) -> None:
    if not example.spoilable:
        return
    metric = example.make()
    example.feed(metric, range(COUNT))
    spoil(example, metric)
    assert metric.dropped == 1
    with caplog.at_level(logging.WARNING):
        assert value(metric) == pytest.approx(example.values.mean(), rel=1e-6, abs=1e-7)
    assert metric.dropped == 1 and f"1 of {COUNT + 1} values are not finite" in caplog.text
    alone = example.make()
    spoil(example, alone)
    assert np.isnan(value(alone)), "a mean of nothing is no number"


@every
def test_only_fillers_add_nothing(example: Example) -> None:
    if example.clips:
        return
    metric = example.make()
    metric.update(**{name: values[:2] for name, values in example.inputs.items()}, valid=torch.zeros(2, dtype=torch.bool))
    assert (int(metric.count), metric.dropped) == (0, 0)
    example.feed(metric, range(COUNT))
    assert value(metric) == pytest.approx(example.values.mean(), rel=1e-6, abs=1e-7)


@every
@pytest.mark.parametrize("change", ["half", "to_bfloat16", "double", "set_dtype"])
def test_casting_a_module_leaves_the_sums_alone(example: Example, change: str) -> None:
    owner = nn.Module()
    owner.metric = example.make()
    example.feed(owner.metric, [0, 1, 2])
    cast(owner, change)
    assert owner.metric.total.dtype == torch.float64 and owner.metric.count.dtype == torch.int64
    owner.metric.reset()
    example.feed(owner.metric, range(COUNT))
    assert owner.metric.total.dtype == torch.float64
    assert value(owner.metric) == pytest.approx(example.values.mean(), rel=1e-6, abs=1e-7)


@every
def test_metrics_are_moved_copied_and_pickled(example: Example) -> None:
    metric = example.make()
    example.feed(metric, [0, 1])
    copied = copy.deepcopy(metric)
    example.feed(copied, [2, 3, 4, 5])
    assert int(metric.count) == 2
    assert value(copied) == pytest.approx(example.values.mean(), rel=1e-6, abs=1e-7)
    again = pickle.loads(pickle.dumps(copied))
    assert value(again) == value(copied)
    metric.to("meta")
    assert {state.device.type for state in (metric.total, metric.count, metric.missing)} == {"meta"}
    assert metric.total.dtype == torch.float64


@every
def test_inference_mode_and_training_may_alternate(example: Example) -> None:
    metric = example.make()
    with torch.inference_mode():
        example.feed(metric, [0, 1, 2])
    example.feed(metric, [3])
    with torch.inference_mode():
        metric.reset()
    example.feed(metric, [0, 1, 2, 3])
    with torch.inference_mode():
        example.feed(metric, [4, 5])
    assert value(metric) == pytest.approx(example.values.mean(), rel=1e-6, abs=1e-7)


@every
def test_autocast_changes_nothing(example: Example) -> None:
    plain, cast = example.make(), example.make()
    example.feed(plain, range(COUNT))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        example.feed(cast, range(COUNT))
    assert value(cast) == pytest.approx(value(plain), rel=1e-12)


@every
def test_nothing_of_a_metric_is_trained_or_saved(example: Example) -> None:
    metric = example.make()
    assert not list(metric.parameters()) and not metric.state_dict()
    inputs = {name: values.clone().requires_grad_() if values.is_floating_point() else values for name, values in example.inputs.items()}
    one = metric(**{name: values[0] if example.clips else values for name, values in inputs.items()})
    assert not one.requires_grad and not metric.total.requires_grad


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What two gloo processes make of all examples."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(rank_part, args=(str(folder / "meeting"), str(folder)), nprocs=2)
    yield [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", WHOLE)
def test_two_processes_join_their_sets(ranks: list[dict[str, Any]], name: str) -> None:
    assert ranks[0][name] == ranks[1][name] == [pytest.approx(WHOLE[name].value, rel=1e-6)]


@pytest.mark.parametrize("name", NAMED)
def test_two_processes_compute_what_one_does(ranks: list[dict[str, Any]], name: str) -> None:
    example, one = NAMED[name], NAMED[name].make()
    example.feed(one, range(COUNT))
    dropped = int(example.spoilable)
    (first, first_alone, first_all, first_count), (second, second_alone, second_all, second_count) = (told[name] for told in ranks)
    assert first == second == pytest.approx(value(one), rel=1e-12)
    assert (first_alone, second_alone) == (dropped, 0), "before compute() each process knows of its own"
    assert first_all == second_all == dropped
    assert (first_count, second_count) == (4, 2), "after compute() each process has its own sums again"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 40), max_size=5))
def test_any_split_gives_the_mean_of_numpy(seed: int, cuts: list[int]) -> None:
    """Values of very different sizes: single precision would lose the small ones."""
    a, b = uniform(seed, 41, 7, 2).double() * 1e6 ** uniform(seed + 1, 41, 1, 1), torch.zeros(41, 7, 2, dtype=torch.float64)
    metric = AKD()
    for rows in torch.tensor_split(torch.arange(41), sorted(cuts)):
        metric.update(a[rows], b[rows])
    assert value(metric) == pytest.approx(np.hypot(*np.moveaxis(a.numpy(), -1, 0)).mean(), rel=1e-12)


def test_sums_are_doubles() -> None:
    metric = AED()
    for _ in range(3):
        metric.update(torch.full((1, 4), 1e8), torch.zeros(1, 4))
        metric.update(torch.full((1, 4), 1.0), torch.zeros(1, 4))
    assert value(metric) == (3e8 + 3) / 6


def test_agrees_with_torchmetrics() -> None:
    given = pictures()
    rows = slice(1, None)  # theirs is infinite for the pair of equal pictures
    image, target = (values[rows].double() for values in given.values())
    ours = {}
    for metric in (PSNR(), SSIM()):
        metric.update(image, target)
        ours[type(metric)] = value(metric)
    per_image = theirs.peak_signal_noise_ratio(image, target, data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3))
    assert ours[PSNR] == pytest.approx(float(per_image), rel=1e-6)  # their logarithm of 10 is in single precision
    _, whole = theirs.structural_similarity_index_measure(image, target, data_range=1.0, return_full_image=True)
    assert ours[SSIM] == pytest.approx(float(whole[..., 5:-5, 5:-5].mean()), abs=1e-9)  # their own mean counts reflected borders too
    cosine, csim = torchmetrics.CosineSimilarity(reduction="mean"), CSIM()
    vectors = uniform(5, 6, 32) - 0.5, uniform(6, 6, 32) - 0.5
    cosine.update(*vectors)
    csim.update(*vectors)
    assert value(csim) == pytest.approx(cosine.compute().item(), abs=1e-6)


def test_equal_images_have_the_limit() -> None:
    image = pictures()["image"][:2]
    for metric, limit in ((PSNR(), 100.0), (PSNR(limit=60.0), 60.0)):
        metric.update(image, torch.stack([image[0], (image[1] + 0.1)]))
        assert value(metric) == pytest.approx((limit + 20) / 2, abs=1e-4) and metric.dropped == 0


@pytest.mark.parametrize("metric", [PSNR, SSIM])
def test_images_without_a_head_are_dropped(metric: type[PerImageMetric]) -> None:
    given, one, two = masked_pictures(), metric(), metric()
    one.update(**{name: values[2:4] for name, values in given.items()})
    mask = given["mask"][2:5].clone()
    mask[2] = 0
    mask[2, :, :5] = float(metric is SSIM)  # rows in which no window lies inside the image
    two.update(given["image"][2:5], given["target"][2:5], mask)
    assert value(two) == pytest.approx(value(one)) and two.dropped == 1


def test_infinite_values_are_dropped() -> None:
    metric = AKD()
    metric.update(torch.tensor([[[3.0, 4.0]], [[torch.inf, 0.0]]]), torch.zeros(2, 1, 2))
    assert value(metric) == 5 and metric.dropped == 1
    broken = PSNR()
    broken.update(torch.full((1, 3, 4, 4), torch.inf), torch.zeros(1, 3, 4, 4))
    assert np.isnan(value(broken)) and broken.dropped == 1


def test_bytes_are_refused() -> None:
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    for metric in (PSNR(), SSIM()):
        with pytest.raises((ValueError, TypeError)):
            metric.update(image, image)
        with pytest.raises((ValueError, TypeError)):
            metric.update(image.float(), image)


def test_batches_of_different_lengths_are_refused() -> None:
    image = uniform(0, 2, 3, 16, 16)
    with pytest.raises((ValueError, TypeError)):
        PSNR().update(image, image[:1])


def test_a_clip_with_gaps() -> None:
    """Second differences count where all three frames show the face; clips without any are dropped."""
    path = torch.cumsum(torch.cumsum(torch.full((9, 1, 2), 3.0), 0), 0)  # second difference (3, 3) everywhere
    path[4] = 1e6
    found = torch.arange(9) != 4
    metric = Jitter()
    metric.update(path, found)
    metric.update(path[:5], torch.tensor([True, True, False, True, True]))
    metric.update(path[:2])
    assert value(metric) == pytest.approx(3 * 2**0.5) and metric.dropped == 2


def test_pairs_without_a_direction_are_dropped() -> None:
    metric = CSIM()
    metric.update(torch.tensor([[1.0, 0], [0, 0], [1, 1]]), torch.tensor([[1.0, 1], [1, 0], [1, 1]]))
    assert value(metric) == pytest.approx((2**-0.5 + 1) / 2) and metric.dropped == 1


def test_networks_stay_out_of_the_model_and_are_shared_by_copies() -> None:
    network = Mixed()
    metric = LPIPS(network.train())
    assert not network.training and not network.mixing.requires_grad
    assert not list(metric.parameters()) and not list(metric.children())
    assert copy.deepcopy(metric).network.function is network
    with pytest.raises(ValueError, match="not a row for each"):
        LPIPS(lambda image, target: image.mean().reshape(1)).update(*(values[:3] for values in pictures().values()))


def test_a_collection_needs_its_compute_groups_off() -> None:
    same = {"image": torch.full((2, 4), 0.5), "target": torch.full((2, 4), 0.5)}
    collection = torchmetrics.MetricCollection({"a": CSIM(), "b": CSIM()}, compute_groups=False)
    collection.update(**same)
    collection["a"].update(torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1]]))
    assert {name: pytest.approx(float(one)) for name, one in collection.compute().items()} == {"a": 2 / 3, "b": 1}


class Watched(lightning.LightningModule):
    """Logs metric objects and values of computed ones, as a module that validates may."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.psnr, self.ssim = PSNR(), SSIM()
        self.lpips = LPIPS(Mixed())

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        image, target, valid = batch
        self.psnr.update(image, target, valid=valid)
        self.ssim.update(image, target, valid=valid)
        self.lpips.update(image, target, valid)
        self.log("val/psnr", self.psnr)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({"val/ssim": self.ssim.compute(), "val/lpips": self.lpips.compute(), "val/dropped": float(self.ssim.dropped)})
        self.ssim.reset()
        self.lpips.reset()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_logs_the_means(precision: Any, tmp_path: Path) -> None:
    given = pictures()
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 5, 5])
    valid = torch.arange(8) < 6
    loader: DataLoader[Any] = DataLoader(TensorDataset(given["image"][rows], given["target"][rows], valid), batch_size=4)
    module = Watched()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            default_root_dir=tmp_path, use_distributed_sampler=False,
        )  # fmt: skip
        for _ in range(2):  # the second time nothing of the first is left
            (logged,) = trainer.validate(module, loader, verbose=False)
    for name, kind in (("psnr", PSNR), ("ssim", SSIM), ("lpips", LPIPS)):
        assert logged[f"val/{name}"] == pytest.approx(NAMED[f"{kind.__name__}-0"].values.mean(), rel=1e-5)
    assert logged["val/dropped"] == 0
    assert list(module.state_dict()) == ["weight"] and [name for name, _ in module.named_parameters()] == ["weight"]
