"""FID: the Frechet distance in closed form and against scipy and torchmetrics, the contract of metrics of sets, and a suite's gallery."""

from __future__ import annotations

import copy
import logging
import math
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_weights as made
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_scenes import COUNT, SetExample, cast, named_sets, outside_fid, rubbish, uniform
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from mggtalk.evaluation.sets import Gallery
from mggtalk.metrics.fid import ENOUGH, FID, fid, frechet_distance, gaussian, moments
from mggtalk.metrics.per_image import Sums
from mggtalk.networks.inception import Inception

NAMED = named_sets()
every = pytest.mark.parametrize("example", NAMED.values(), ids=NAMED)
sizes = {"rel": 1e-5}


def value(metric: Sums) -> float:
    return float(metric.compute())


def covariance(seed: int, size: int, rank: int) -> Tensor:
    root = uniform(seed, size, rank).double() - 0.5
    return root @ root.mT


# ---- the distance -----------------------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 9), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_diagonal_covariances_in_closed_form(size: int, seed: int) -> None:
    """Then each feature counts alone: the difference of the means, and that of the standard deviations, squared."""
    means, deviations = uniform(seed, 2, size).double() * 5, uniform(seed + 1, 2, size).double() * 3
    found = frechet_distance(*(gaussian(mean, spread.square().diag()) for mean, spread in zip(means, deviations, strict=True)))
    wanted = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert float(found) == pytest.approx(float(wanted), rel=1e-9, abs=1e-9)


@given(size=st.integers(1, 8), seed=st.integers(0, 10**6), factor=st.floats(0.1, 10))
@settings(deadline=None, max_examples=30)
def test_turned_scaled_and_swapped(size: int, seed: int, factor: float) -> None:
    """A turn of both changes nothing, a scale counts squared, and neither set is the first; a set is at 0 from itself, however flat."""
    first, second = covariance(seed, size, size), covariance(seed + 1, size, max(size // 2, 1))
    means = uniform(seed + 2, 2, size).double()
    turn = torch.linalg.qr(uniform(seed + 3, size, size).double())[0]
    here = float(frechet_distance(gaussian(means[0], first), gaussian(means[1], second)))
    swapped = frechet_distance(gaussian(means[1], second), gaussian(means[0], first))
    turned = frechet_distance(gaussian(turn @ means[0], turn @ first @ turn.mT), gaussian(turn @ means[1], turn @ second @ turn.mT))
    scaled = frechet_distance(gaussian(factor * means[0], factor**2 * first), gaussian(factor * means[1], factor**2 * second))
    assert [float(swapped), float(turned), float(scaled) / factor**2] == pytest.approx([here] * 3, rel=1e-6, abs=1e-7)
    for one in (first, second, torch.zeros_like(first)):
        assert float(frechet_distance(gaussian(means[0], one), gaussian(means[0], one))) == pytest.approx(0, abs=1e-9)


def test_against_the_root_of_scipy() -> None:
    for seed, size in ((0, 3), (1, 40)):
        covariances, means = [covariance(seed + step, size, size + 5).numpy() for step in (0, 1)], uniform(seed, 2, size).double().numpy()
        root = sqrtm(covariances[0] @ covariances[1]).real
        wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
        sets = [gaussian(torch.from_numpy(mean), torch.from_numpy(one)) for mean, one in zip(means, covariances, strict=True)]
        assert float(frechet_distance(*sets)) == pytest.approx(wanted, rel=1e-8)


def test_against_torchmetrics() -> None:
    """With a network of nothing: its features are its input."""

    class Flat(nn.Module):
        num_features = 12

        def forward(self, image: Tensor) -> Tensor:
            return image.flatten(1).double()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    ours = FID(features=12)
    for real in (True, False):
        images = (255 * uniform(3 + real, 50, 3, 2, 2).pow(1 + real)).byte()
        theirs.update(images, real=real)
        ours.update(images.flatten(1).float(), real=real)
    assert value(ours) == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_few_pictures_make_it_larger() -> None:
    """Chong and Forsyth: the same two distributions, apart by 1, in fewer and fewer pictures."""
    found = [float(fid(*(moments(torch.randn(count, 20, generator=torch.Generator().manual_seed(s)) + s / 20**0.5) for s in (0, 1))))
             for count in (20_000, 500, 30)]  # fmt: skip
    assert 0.9 < found[0] < 1.1 and found[0] + 0.2 < found[1] < found[2] - 2


# ---- the contract of metrics of sets ----------------------------------------------------------------------------------------------


@every
def test_it_is_what_another_implementation_says(example: SetExample) -> None:
    metric = example.make()
    example.feed(metric, range(COUNT))
    assert value(metric) == pytest.approx(example.value, **sizes) and example.value > 1e-2
    assert metric.compute().dtype == torch.float64


@every
def test_nothing_depends_on_batches(example: SetExample) -> None:
    parts = example.make()
    for rows, padding in (([0], 0), ([1, 2], 3), ([], 2), ([3, 4, 5], 1)):
        example.feed(parts, rows, padding)
    assert value(parts) == pytest.approx(example.value, **sizes)


@every
def test_reset_forgets_and_states_merge(example: SetExample) -> None:
    first, second = example.make(), example.make()
    example.feed(first, [5, 5, 0])
    first.compute()
    first.reset()
    example.feed(first, [0, 1, 2, 3])
    example.feed(second, [4, 5])
    first.merge_state(pickle.loads(pickle.dumps(second.metric_state)))
    assert value(first) == pytest.approx(example.value, **sizes)


@every
def test_what_is_not_finite_is_left_out_and_told(example: SetExample, caplog: pytest.LogCaptureFixture) -> None:
    metric = example.make()
    example.feed(metric, range(COUNT))
    metric.update(rubbish(example.made[:1]), real=False)
    with caplog.at_level(logging.WARNING):
        assert value(metric) == pytest.approx(example.value, **sizes)
    assert f"1 of {2 * COUNT + 1} values are not finite" in caplog.text


@every
def test_too_few_pictures_are_refused(example: SetExample) -> None:
    for rows in ([], [0]):
        metric = example.make()
        example.feed(metric, rows)
        with warnings.catch_warnings(), pytest.raises(ValueError, match=f"at least 2 pictures in each set, got {len(rows)}"):
            warnings.simplefilter("ignore")
            metric.compute()


@every
@pytest.mark.parametrize("change", ["half", "to_bfloat16", "double", "set_dtype"])
def test_casting_a_module_leaves_the_sums_alone(example: SetExample, change: str) -> None:
    owner = nn.Module()
    owner.metric = example.make()
    example.feed(owner.metric, [0, 1, 2])
    cast(owner, change)
    example.feed(owner.metric, [3, 4, 5])
    assert value(owner.metric) == pytest.approx(example.value, **sizes)


@every
def test_metrics_are_moved_copied_and_pickled(example: SetExample) -> None:
    metric = example.make()
    example.feed(metric, [0, 1])
    copied = copy.deepcopy(metric)
    example.feed(copied, [2, 3, 4, 5])
    assert value(copied) == pytest.approx(example.value, **sizes)
    assert value(pickle.loads(pickle.dumps(copied))) == value(copied)
    example.feed(metric, [2, 3, 4, 5])
    assert value(metric) == value(copied)
    assert {state.device.type for state in metric.to("meta").metric_state.values()} == {"meta"}


@every
def test_modes_and_autocast_change_nothing(example: SetExample) -> None:
    metric = example.make()
    with torch.inference_mode():
        example.feed(metric, [0, 1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        example.feed(metric, [3, 4])
    example.feed(metric, [5])
    assert value(metric) == pytest.approx(example.value, **sizes)


@every
def test_nothing_of_a_metric_is_trained_or_saved(example: SetExample) -> None:
    metric, tracked = example.make(), replace(example, made=example.made.clone().requires_grad_())
    tracked.feed(metric, range(COUNT))
    assert not list(metric.parameters()) and not metric.state_dict() and not metric.compute().requires_grad


# ---- a suite's pictures -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inception]:
    yield Inception(made.write(tmp_path_factory.mktemp("inception") / "inception.pth", made.inception()))


def test_a_gallery_counts_each_real_picture_once(network: Inception) -> None:
    """Against features of all pictures at once, and numpy; one method has too few."""
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 20, 3), np.uint8)
    images[5:] //= 2
    gallery = Gallery(network)
    gallery.add({"ours": list(images[5:7]), "theirs": list(images[:1])}, {"a": images[0], "b": images[1]})
    gallery.add({"ours": list(images[7:])}, {"b": images[1], "c": images[2], "d": images[3]})
    (found,) = gallery.distances("cross")
    features = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).double().numpy()
    assert found.real == 4 and found.pictures == {"ours": 4, "theirs": 1}
    assert found.values["ours"] == pytest.approx(outside_fid(features[:4], features[5:]), rel=1e-3)
    assert math.isnan(found.values["theirs"])
    assert f"fewer than {ENOUGH:,} pictures" in found.text and "not the published ones" in found.text and "drivers" in found.text
    assert found.metric.model == {"name": "Inception-v3 of FID", "sha256": network.sha256, "licence": "not known"}


def test_a_gallery_without_network_or_pictures_says_nothing(network: Inception, monkeypatch: pytest.MonkeyPatch) -> None:
    images = list(np.zeros((2, 8, 8, 3), np.uint8))
    empty, unused = Gallery(network), Gallery(None)
    unused.add({"ours": images}, {"a": images[0]})
    assert empty.distances("self") == unused.distances("self") == ()
    monkeypatch.setattr(network, "published", True)
    empty.add({"ours": images}, {"a": images[0], "b": images[1]})
    (found,) = empty.distances("self")
    assert found.values == {"ours": pytest.approx(0, abs=1e-6)}
    assert "published" not in found.text and found.metric.model["licence"] == "Apache-2.0"
