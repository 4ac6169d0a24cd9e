"""Pretrained networks: against numpy twins and torchmetrics, and one contract for all perceptual distances."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch_weights as made
from network_twins import TAPS, activations, inception_twin, iresnet_twin, lpips_twin, numbers, resized_twin
from torch import Tensor, nn

from mggtalk.networks import perceptual as module
from mggtalk.networks.inception import PUBLISHED, Inception
from mggtalk.networks.iresnet import IResNet, _Backbone
from mggtalk.networks.lpips import Lpips, published_heads
from mggtalk.networks.perceptual import FacePerceptual, Perceptual, PerceptualSum, PyramidPerceptual, VggPerceptual, make_perceptual
from mggtalk.networks.vgg import Vgg16Features
from mggtalk.networks.weights import WeightsError, file_hash, load_into, load_state


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def undressed(network: nn.Module, *images: Tensor) -> Tensor:
    """As users call it: without the shape checks of the test run."""
    forward = type(network).forward
    found: Tensor = getattr(forward, "__wrapped__", forward)(network, *images)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    states = {
        "vgg16.pth": made.convolutions(made.vgg_convolutions(16)) | {"classifier.0.bias": torch.zeros(3)},
        "vgg19.safetensors": made.convolutions(made.vgg_convolutions(19)),
        "alexnet.pth": made.convolutions(made.ALEXNET),
        "alex_heads.pth": made.heads("alex"),
        "vgg_heads.pth": made.heads("vgg"),
        "iresnet.safetensors": made.iresnet((1, 2, 1, 1)),
        "inception.pth": made.inception(),
    }
    return {name.split(".")[0]: made.write(folder / name, state) for name, state in states.items()}


# ---- the networks -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [16, 19])
def test_vgg_against_the_twin(files: dict[str, Path], depth: int) -> None:
    network = Vgg16Features(files[f"vgg{depth}"]).double()
    image = uniform(0, 1, 3, 33, 35)
    normal = (image[0].numpy() - np.array([0.485, 0.456, 0.406])[:, None, None]) / np.array([0.229, 0.224, 0.225])[:, None, None]
    wanted = activations(normal, numbers(load_state(files[f"vgg{depth}"])), depth)
    found = network(image)
    assert network.depth == depth
    assert [tuple(one.shape[1:]) for one in found] == [(64, 33, 35), (128, 16, 17), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    for one, tap in zip(found, TAPS[depth], strict=True):
        np.testing.assert_allclose(one[0].numpy(), wanted[tap], rtol=0, atol=1e-6)  # the constants are held as float32


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_against_the_twin_and_torchmetrics(
    files: dict[str, Path], net: Literal["alex", "vgg"], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchmetrics.functional.image.lpips as outside

    backbone, own = files["alexnet" if net == "alex" else "vgg16"], files[f"{net}_heads"]
    image, target = uniform(1, 2, 3, 50, 47), uniform(2, 2, 3, 50, 47)
    target[1] = (image[1] + 0.1 * target[1]) / 1.1
    found = Lpips(backbone, own, net=net).double()(image, target)
    state, weights = numbers(load_state(backbone)), numbers(load_state(own))
    wanted = [lpips_twin(one.numpy(), other.numpy(), state, weights, net) for one, other in zip(image, target, strict=True)]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)

    monkeypatch.setattr(outside, "_get_tv_model_features", lambda *_, **__: torchvision_layers(net, load_state(backbone)))
    theirs = outside._LPIPS(net=net).double()(image, target, normalize=True).reshape(-1)  # with the published heads, which it carries
    ours = Lpips(backbone, net=net).double()(image, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    assert (ours - found).abs().min() > 1e-3


def torchvision_layers(net: str, state: made.State) -> nn.Sequential:
    """``torchvision.models.alexnet().features`` and ``vgg16().features``, with weights."""
    kernels = made.ALEXNET if net == "alex" else made.vgg_convolutions(16)
    layers: list[nn.Module] = []
    last = 12 if net == "alex" else 30
    for index in range(last + 1):
        if index in kernels:
            outputs, inputs, size, _ = kernels[index]
            stride, padding = (4, 2) if size == 11 else (1, size // 2)
            layers.append(nn.Conv2d(inputs, outputs, size, stride, padding))
        elif index - 1 in kernels:
            layers.append(nn.ReLU())
        else:
            layers.append(nn.MaxPool2d(3 if net == "alex" else 2, 2))
    found = nn.Sequential(*layers)
    found.load_state_dict({name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")})
    return found


def test_lpips_contract(files: dict[str, Path]) -> None:
    network = Lpips(files["alexnet"], files["alex_heads"])
    image, target = uniform(3, 3, 3, 31, 40).float(), uniform(4, 3, 3, 31, 40).float()
    assert network(image, image).tolist() == [0, 0, 0]
    batch = network(image, target)
    torch.testing.assert_close(batch, torch.cat([network(image[i : i + 1], target[i : i + 1]) for i in range(3)]))
    torch.testing.assert_close(batch, network(target, image))
    black = torch.zeros(1, 3, 31, 40, requires_grad=True)
    network(black, target[:1]).sum().backward()
    assert black.grad is not None and black.grad.isfinite().all()
    assert network.name == f"LPIPS v0.1 alex {file_hash(files['alexnet'])[:8]} {file_hash(files['alex_heads'])[:8]}"
    with pytest.raises(ValueError, match="at least 31 x 31"):
        network(image[..., :30], target[..., :30])
    with pytest.raises(ValueError, match="expected one shape"):
        undressed(network, image, target[:2])
    with pytest.raises(WeightsError, match="VGG-19, LPIPS needs VGG-16"):
        Lpips(files["vgg19"], files["vgg_heads"], net="vgg")
    with pytest.raises(WeightsError, match=r"other shapes: lin1.model.1.weight 1 x 192 x 1 x 1 for 1 x 128 x 1 x 1"):
        Lpips(files["vgg16"], files["alex_heads"], net="vgg")


def test_published_heads_need_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(load_state(published_heads("vgg"))) == set(made.heads("vgg"))
    monkeypatch.setattr("mggtalk.networks.lpips.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install torchmetrics"):
        published_heads("alex")


def test_iresnet_against_the_twin(files: dict[str, Path]) -> None:
    network = IResNet(files["iresnet"]).double()
    assert network.depth == 12
    images = 2 * uniform(5, 2, 3, 112, 112) - 1
    wanted = np.stack([iresnet_twin(image.numpy(), numbers(load_state(files["iresnet"])), (1, 2, 1, 1)) for image in images])
    np.testing.assert_allclose(network(images).numpy(), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    np.testing.assert_allclose(network.embed(images).numpy(), wanted / np.linalg.norm(wanted, axis=1, keepdims=True), rtol=0, atol=1e-6)
    stages, embedding = network.features(images)
    assert [tuple(stage.shape[1:]) for stage in stages] == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    assert torch.equal(embedding, network.embed(images))


@pytest.mark.parametrize(("depth", "millions"), [(18, 24.02), (34, 34.14), (50, 43.59), (100, 65.15)])
def test_iresnets_have_the_published_names_and_sizes(depth: int, millions: float) -> None:
    with torch.device("meta"):
        backbone = _Backbone(made.UNITS[depth])
    assert {name: tuple(value.shape) for name, value in backbone.state_dict().items()} == made.iresnet_shapes(made.UNITS[depth])
    assert abs(sum(value.numel() for value in backbone.parameters()) / 1e6 - millions) < 0.02
    assert 2 * sum(made.UNITS[depth]) + 2 == depth


def test_inception_against_the_twin(files: dict[str, Path]) -> None:
    """At a size of its own, whose last maps are 2 x 3; then whole, with the resizing."""
    network = Inception(files["inception"]).double()
    state, image = numbers(load_state(files["inception"])), 2 * uniform(8, 1, 3, 107, 139) - 1
    wanted = inception_twin(image[0].numpy(), state)
    np.testing.assert_allclose(network.layers(image)[0].numpy(), wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())
    small = uniform(9, 1, 3, 40, 57)
    resized = torch.from_numpy(resized_twin(small[0].numpy(), 299))[None]
    torch.testing.assert_close(network(small), network.layers(2 * resized - 1), rtol=1e-9, atol=1e-9)


def test_inception_contract(files: dict[str, Path], tmp_path: Path) -> None:
    network, image = Inception(files["inception"]), uniform(10, 2, 3, 32, 24).float()
    batch = network(image)
    assert batch.shape == (2, 2048) and batch.dtype == torch.float32 and batch.std(0).mean() > 1e-4
    torch.testing.assert_close(batch, torch.cat([network(one[None]) for one in image]), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.train()(image), batch)
    assert not any(value.requires_grad for value in network.parameters()) and not network.state_dict()
    assert network.sha256 == file_hash(files["inception"]) != PUBLISHED and not network.published
    counted = {name: torch.tensor(7) for name in made.inception_shapes(counters=True) if name.endswith("num_batches_tracked")}
    state = load_state(files["inception"])
    again = Inception(made.write(tmp_path / "counted.safetensors", state | counted))
    assert torch.equal(again(image), batch)


def test_other_inceptions_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    """torchvision's has the same names and other numbers; what it makes is no FID."""
    state = load_state(files["inception"])
    trained = sum(value.numel() for name, value in state.items() if "running" not in name)
    assert trained == 23_834_568 + 8 * 2049  # torchvision's, and 8 classes more
    cases = {
        "torchvision.pth": (
            state | {"fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.bias": torch.zeros(1)},
            "1000 classes, FID's has 1008",
        ),
        "headless.pth": ({name: value for name, value in state.items() if not name.startswith("fc")}, "no entry fc.weight"),
        "short.pth": ({name: value for name, value in state.items() if "Mixed_7c.branch1x1" not in name}, "it lacks Mixed_7c.branch1x1"),
        "more.pth": (state | {"AuxLogits.fc.bias": torch.zeros(1)}, "unknown AuxLogits.fc.bias"),
    }
    for name, (wrong, reason) in cases.items():
        with pytest.raises(WeightsError, match=reason) as caught:
            Inception(made.write(tmp_path / name, wrong))
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)
        assert "pt_inception-2015-12-05" in str(caught.value) or "weights of that network" in str(caught.value)


# ---- weights ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.pt", "old.pth"])
def test_states_come_back(tmp_path: Path, name: str) -> None:
    state = {"a.weight": uniform(6, 3, 4), "b": torch.arange(3)}
    if name == "old.pth":
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=False)
    else:
        made.write(tmp_path / name, state)
    found = load_state(tmp_path / name)
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    assert file_hash(tmp_path / name) == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_unsound_files_are_refused(tmp_path: Path) -> None:
    def refused(name: str, reason: str) -> None:
        with pytest.raises(WeightsError, match=reason) as caught:
            load_state(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)

    refused("none.pth", "no such file")
    (tmp_path / "folder.pth").mkdir()
    refused("folder.pth", "is a folder")
    (tmp_path / "net.onnx").write_bytes(b"x")
    refused("net.onnx", "give a .safetensors, .pth or .pt")
    for name, part in (("short.safetensors", 0.7), ("short.pth", 0.7), ("shorter.pt", 0.01), ("empty.pth", 0), ("empty.safetensors", 0)):
        whole = made.write(tmp_path / name, {"a": uniform(7, 40, 40)}).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(part * len(whole))])
        refused(name, "damaged")
    (tmp_path / "text.pth").write_text("not weights")
    refused("text.pth", "damaged")
    for name, old in (("code.pth", False), ("code.pt", True)):
        torch.save({"a": Attack(tmp_path / "ran")}, tmp_path / name, _use_new_zipfile_serialization=not old)
        refused(name, "could run code")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Attack(tmp_path / "ran")))
    refused("bare.pt", "could run code|damaged")
    assert not (tmp_path / "ran").exists()
    torch.save({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "nested.pth")
    refused("nested.pth", "no plain table of tensors")
    torch.save({}, tmp_path / "nothing.pth")
    refused("nothing.pth", "no plain table of tensors")


def test_states_fit_or_are_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    layer = nn.Linear(2, 3)
    good = {name: value.clone() for name, value in layer.state_dict().items()}
    cases = [
        ({"weight": good["weight"]}, "it lacks bias"),
        (good | {f"extra{i}": good["bias"] for i in range(5)}, "it has unknown extra0, extra1, extra2 and 2 more"),
        (good | {"weight": torch.zeros(2, 2)}, "other shapes: weight 2 x 2 for 3 x 2"),
        ({"weight": torch.zeros(1), "other": good["bias"]}, r"it lacks bias; it has unknown other; other shapes: weight 1 for 3 x 2"),
        (good | {"bias": good["bias"] / 0}, "not finite in bias"),
    ]
    for state, reason in cases:
        with pytest.raises(WeightsError, match=reason):
            load_into(layer, state, "a.pth")
        assert all(torch.equal(value, good[name]) for name, value in layer.state_dict().items())
    load_into(layer, {name: value.double() + 1 for name, value in good.items()}, "a.pth")
    torch.testing.assert_close(layer.weight.detach(), good["weight"] + 1)
    for network, file, reason in (
        (Vgg16Features, "alexnet", "has 5 convolutions"),
        (Vgg16Features, "iresnet", "has 0 convolutions"),
        (IResNet, "vgg19", "layer1.0"),
        (Lpips, "alex_heads", r"has no entries 'features.\*'"),
        (Lpips, "iresnet", "it lacks features.0.bias, features.0.weight, features.10.bias and 7 more; it has unknown features.bias"),
        (Lpips, "vgg16", "it has unknown features.12.bias"),
    ):
        with pytest.raises(WeightsError, match=reason):
            network(files[file])


# ---- the contract of perceptual distances -----------------------------------------------------------------------------------------

MEMBERS: dict[str, Callable[[dict[str, Path]], Perceptual]] = {
    "vgg16": lambda files: VggPerceptual(files["vgg16"]),
    "vgg19": lambda files: VggPerceptual(files["vgg19"]),
    "face": lambda files: FacePerceptual(files["iresnet"]),
    "pyramid": lambda files: PyramidPerceptual(),
    "sum": lambda files: PerceptualSum([PyramidPerceptual(), VggPerceptual(files["vgg16"])], [1.0, 0.5]),
}


@pytest.fixture(params=MEMBERS, scope="module")
def member(request: pytest.FixtureRequest, files: dict[str, Path]) -> Iterator[Perceptual]:
    yield MEMBERS[request.param](files)


def test_every_distance_is_a_member(files: dict[str, Path]) -> None:
    classes = {value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Perceptual)} - {Perceptual}
    assert {type(make(files)) for make in MEMBERS.values()} == classes


def pair(count: int = 2) -> tuple[Tensor, Tensor]:
    target = uniform(15, count, 3, 24, 24)
    return (target + 0.2 * (uniform(16, count, 3, 24, 24) - 0.5)).clamp(0, 1), target


def test_equal_images_are_at_0_and_each_image_counts_alone(member: Perceptual) -> None:
    image, target = (one.float() for one in pair())
    assert member(target, target.clone()).tolist() == [0, 0]
    batch = member(image, target)
    assert batch.shape == (2,) and batch.dtype == torch.float32 and (batch > 1e-4).all()
    torch.testing.assert_close(batch, torch.cat([member(image[i : i + 1], target[i : i + 1]) for i in range(2)]), rtol=1e-4, atol=1e-6)
    further = member(target + 3 * (image - target), target)
    assert (further > batch).all()


def test_gradients_are_those_of_differences_and_reach_the_image_alone(member: Perceptual) -> None:
    double = copy.deepcopy(member).double()
    image, target = pair(1)
    image.requires_grad_(), target.requires_grad_()
    value = double(image, target)
    assert value.dtype == torch.float64
    value.sum().backward()
    assert target.grad is None and all(parameter.grad is None for parameter in double.parameters())
    assert image.grad is not None
    direction, step = uniform(17, *image.shape) - 0.5, 1e-6
    with torch.no_grad():
        difference = (double(image + step * direction, target) - double(image - step * direction, target)) / (2 * step)
    torch.testing.assert_close((image.grad * direction).sum(), difference[0], rtol=1e-4, atol=1e-7)
    assert next((parameter.dtype for parameter in member.parameters()), torch.float32) == torch.float32  # the copy moved alone


def test_checkpoints_hold_nothing_of_it(member: Perceptual) -> None:
    owner = nn.ModuleDict({"model": nn.Linear(2, 2), "distance": member})
    assert set(owner.state_dict()) == {"model.weight", "model.bias"}
    assert not member.state_dict()
    image, target = (one.float() for one in pair())
    before = member(image, target)
    owner.load_state_dict(owner.state_dict(), strict=True)
    member.load_state_dict({}, strict=True)
    stale = {f"distance.{name}": torch.zeros_like(value) for name, value in member.named_parameters()}
    owner.load_state_dict({**owner.state_dict(), **stale}, strict=True)  # the file decides, not an old checkpoint
    assert torch.equal(member(image, target), before)
    with pytest.raises(RuntimeError, match="Missing key"):
        owner.load_state_dict({}, strict=True)
    assert [name for name, value in owner.named_parameters() if value.requires_grad] == ["model.weight", "model.bias"]


def test_it_moves_copies_and_pickles_whole_and_stays_in_evaluation(member: Perceptual) -> None:
    image, target = (one.float() for one in pair())
    wanted = member(image, target)
    moved = nn.ModuleList([copy.deepcopy(member)]).to(torch.bfloat16).train()
    assert all(value.dtype == torch.bfloat16 for value in moved.parameters())
    assert not any(part.training for part in moved[0].modules())
    assert moved.to("meta") is moved and all(value.device.type == "meta" for value in [*moved.parameters(), *moved.buffers()])
    for again in (copy.deepcopy(member), pickle.loads(pickle.dumps(member))):
        assert torch.equal(again(image, target), wanted) and again.name == member.name


def test_autocast_changes_nothing(member: Perceptual) -> None:
    image, target = (one.bfloat16() for one in pair())
    wanted = member(image.float(), target.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = member(image, target)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_shapes_have_to_agree(member: Perceptual) -> None:
    image, target = (one.float() for one in pair())
    with pytest.raises(ValueError, match="expected one shape"):
        undressed(member, image, target[:1])


def test_vgg_distance_against_the_twin(files: dict[str, Path]) -> None:
    image, target = pair(1)
    state, both = numbers(load_state(files["vgg19"])), []
    for one in (image, target):
        normal = (one[0].numpy() - np.array([0.485, 0.456, 0.406])[:, None, None]) / np.array([0.229, 0.224, 0.225])[:, None, None]
        both.append(activations(normal, state, 19))
    wanted = sum(
        weight * np.abs(both[0][tap] - both[1][tap]).mean() for weight, tap in zip((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), TAPS[19], strict=True)
    )
    np.testing.assert_allclose(VggPerceptual(files["vgg19"]).double()(image, target).numpy(), [wanted], rtol=1e-5)


def test_face_distance_against_the_twin_and_outside_the_face(files: dict[str, Path]) -> None:
    image, target = uniform(18, 1, 3, 112, 112), uniform(19, 1, 3, 112, 112)
    network = IResNet(files["iresnet"]).double()
    (stages, one), (others, other) = network.features(2 * image - 1), network.features(2 * target - 1)
    cosines = [torch.cosine_similarity(a, b, dim=1).mean() for a, b in zip(stages, others, strict=True)]
    wanted = 1 - one @ other.mT + 1 - torch.stack(cosines).mean()
    whole = FacePerceptual(files["iresnet"], face=(0.0, 0.0, 1.0)).double()
    torch.testing.assert_close(whole(image, target), wanted[0], rtol=1e-6, atol=0)

    cut = FacePerceptual(files["iresnet"], face=(0.25, 0.5, 0.5)).double()
    changed = target.clone()
    changed[..., :56, :], changed[..., :28], changed[..., 84:] = 0, 1, 0
    assert cut(target, changed).tolist() == [0]
    changed[..., 56, 28] += 0.5
    assert cut(target, changed) > 0
    for wrong in ((-0.1, 0.0, 0.5), (0.6, 0.0, 0.5), (0.0, 0.6, 0.5), (0.0, 0.0, 0.0)):
        with pytest.raises(ValueError, match="square within the image"):
            FacePerceptual(files["iresnet"], face=wrong)


def test_sums_add_up(files: dict[str, Path]) -> None:
    image, target = (one.float() for one in pair())
    parts = [PyramidPerceptual(), FacePerceptual(files["iresnet"])]
    torch.testing.assert_close(PerceptualSum(parts, [2.0, 0.5])(image, target), 2 * parts[0](image, target) + 0.5 * parts[1](image, target))
    for members, weights in (([], []), (parts, [1.0])):
        with pytest.raises(ValueError, match="expected as many"):
            PerceptualSum(members, weights)


def test_what_is_made_of_the_files_there_are(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    module._say.cache_clear()
    digest = file_hash(files["iresnet"])[:8]
    with caplog.at_level(logging.WARNING, logger="mggtalk"):
        assert make_perceptual(str(files["vgg16"])).name == f"VGG-16 {file_hash(files['vgg16'])[:8]}"
        assert not caplog.records
        assert isinstance(make_perceptual(), PyramidPerceptual) and isinstance(make_perceptual(""), PyramidPerceptual)
        assert [record.message for record in caplog.records] == [
            "no perceptual network was given (vgg): a Laplacian pyramid loss stands in; it knows edges and texture, but no faces"
        ]
    assert make_perceptual(face=files["iresnet"], face_weight=0.25).name == f"1 Laplacian pyramid (no network) + 0.25 IResNet-12 {digest}"
    assert make_perceptual(files["vgg19"], files["iresnet"]).name == f"1 VGG-19 {file_hash(files['vgg19'])[:8]} + 1 IResNet-12 {digest}"
    with pytest.raises(WeightsError, match="no such file"):
        make_perceptual("none.pth")
