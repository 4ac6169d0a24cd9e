"""Models as files: what is written is read back, and what cannot be read says so in one line and runs nothing."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from model_scenes import made_frame, perturb, pose, seen_from, with_expression
from safetensors.torch import load_file, save_file

from mggtalk import export
from mggtalk.export import (
    BASES,
    DEFAULT,
    NAMED,
    TINY,
    ModelError,
    load_model,
    locate_model,
    model_name,
    preferred,
    save_model,
    weights_file,
)
from mggtalk.types import Pair

CONFIG: dict[str, Any] = yaml.safe_load((BASES / "config.yaml").read_text())["model"]


def small_config() -> dict[str, Any]:
    """The shipped model with small networks: every constructor argument as a file gives it."""
    config = copy.deepcopy(CONFIG)
    parts = config["init_args"]
    parts["refiner"]["init_args"] = {"widths": [8, 16]}
    parts["encoder"]["init_args"] = {"channels": 8, "widths": [8, 16]}
    parts["inpainter"]["init_args"] = {"widths": [8, 16]}
    for name in ("visible_decoder", "mirrored_decoder", "densifier"):
        parts[name]["init_args"] |= {"channels": 8, "width": 16}
    parts["deformation"]["init_args"]["width"] = 16
    parts["voxel_size"] = 0.5
    return config


def written(folder: Path, seed: int = 0) -> torch.nn.Module:
    """A small model with random weights, saved."""
    (folder / "plain").mkdir(parents=True)
    document = {"format": "mggtalk-model", "version": 1, "weights": None, "model": small_config()}
    (folder / "plain" / "config.yaml").write_text(yaml.safe_dump(document))
    model = perturb(load_model(folder / "plain"), 0.05, seed)
    save_model(model, small_config(), folder / "model")
    return model


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.yaml"
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


@torch.no_grad()
def test_a_model_survives_the_round_trip(tmp_path: Path) -> None:
    model = written(tmp_path)
    again = load_model(tmp_path / "model")
    assert not again.training and again.voxel_size == 0.5
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == ["config.yaml", "model.safetensors"]
    source = made_frame(64, 35.0)
    pair = Pair(source=source, target=with_expression(seen_from(source, pose(10)), jawOpen=0.4))
    first, second = model(pair), again(pair)
    for name, value in first.dense.__dict__.items():
        assert torch.equal(value, getattr(second.dense, name)), name
    plain = load_model(tmp_path / "plain")(pair)
    assert (plain.dense.image - first.dense.image).abs().max() > 0.01


def test_saving_twice_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    written(tmp_path)
    other = perturb(load_model(tmp_path / "model"), 0.1, 7)
    save_model(other, small_config(), tmp_path / "model")
    for name, tensor in load_model(tmp_path / "model").state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert len(list((tmp_path / "model").iterdir())) == 2


def test_the_shipped_bases_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = load_model(BASES).state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = load_model(BASES).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert first["refiner.head.weight"].abs().max() == 0 and first["refiner.unet.stem.weight"].abs().max() > 0


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d.update(format="another"), "not the config of a model"),
        (lambda d: d.pop("model"), "not the config of a model"),
        (lambda d: d.update(version=2), "version 2"),
        (lambda d: d["model"].update(class_path="os.system"), "os.system is not part of mggtalk"),
        (lambda d: d["model"].update(class_path="builtins.eval"), "not part of mggtalk"),
        (lambda d: d["model"].update(class_path="mggtalkx.model.MGGTalk"), "not part of mggtalk"),
        (lambda d: d["model"].update(class_path="MGGTalk"), "not part of mggtalk"),
        (lambda d: d["model"].update(class_path="mggtalk.model.Nothing"), "there is no class"),
        (lambda d: d["model"].update(class_path="mggtalk.nowhere.MGGTalk"), "there is no class"),
        (lambda d: d["model"].update(class_path="mggtalk.model.\0.MGGTalk"), "there is no class"),
        (lambda d: d["model"].update(class_path="mggtalk.export.os.system"), "there is no class"),
        (lambda d: d["model"].update(class_path="mggtalk.export.Path", init_args={}), "not a part of a model"),
        (lambda d: d["model"].update(class_path="mggtalk.export.load_file", init_args={}), "not a part of a model"),
        (lambda d: d["model"].update(class_path="mggtalk.modules.layers.nn.Linear"), "there is no class"),
        (lambda d: d["model"].update(class_path="mggtalk.rendering.renderer.Renderer", init_args={}), "Renderer"),
        (lambda d: d["model"].update(class_path="mggtalk.geometry.face_model.FaceModel", init_args={}), "describes a FaceModel"),
        (lambda d: d["model"].update(init_args=[1, 2]), "init_args"),
        (lambda d: d["model"]["init_args"].update(unheard_of=1), "unheard_of"),
        (lambda d: d["model"]["init_args"].pop("renderer"), "renderer"),
        (lambda d: d["model"]["init_args"].update(refiner=d["model"]["init_args"]["inpainter"]), "refiner should be a GeometryRefiner"),
        (lambda d: d["model"]["init_args"].update(renderer="fast"), "renderer should be a Renderer"),
        (lambda d: d["model"]["init_args"]["encoder"].update(init_args={"channels": -8}), "IdentityEncoder"),
        (lambda d: d["model"]["init_args"]["encoder"].update(init_args={"channels": "many"}), "IdentityEncoder"),
        (lambda d: d.update(model=["nothing"]), "describes a tuple"),
    ],
)
def test_configs_that_describe_no_model_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    written(tmp_path)
    edit(tmp_path / "model", change)
    assert words in refused(tmp_path / "model")


def test_a_class_from_elsewhere_is_not_run_even_through_a_module_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither functions nor classes that our modules have imported can be named, and no arguments reach them."""
    import mggtalk.modules.layers as layers

    ran: list[object] = []

    class Foreign(torch.nn.Module):
        def __init__(self, **arguments: object) -> None:
            super().__init__()
            ran.append(arguments)

    monkeypatch.setattr(layers, "Foreign", Foreign, raising=False)
    monkeypatch.setattr(os, "system", ran.append)
    written(tmp_path)
    for path in ("mggtalk.modules.layers.Foreign", "os.system", "posix.system", "subprocess.Popen"):
        edit(tmp_path / "model", lambda d, path=path: d["model"].update(class_path=path, init_args={"command": "true"}))
        refused(tmp_path / "model")
    (tmp_path / "model" / "config.yaml").write_text("model: !!python/object/apply:os.system ['true']\n")
    assert "cannot be read" in refused(tmp_path / "model")
    assert ran == []


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path)
    written(tmp_path)
    folder = tmp_path / "model"
    weights = (folder / "model.safetensors").read_bytes()
    for damaged in (b"", weights[:100], weights[:-40], b"\x80\x04" + weights[2:]):
        (folder / "model.safetensors").write_bytes(damaged)
        assert "not a readable safetensors file" in refused(folder)
    (folder / "model.safetensors").unlink()
    assert "no such file" in refused(folder)
    for text in ("{", "- 1\n- 2\n", "", "\0", "[" * 5000):
        (folder / "config.yaml").write_text(text)
        assert "config.yaml" in refused(folder)
    (folder / "config.yaml").write_bytes(b"\xff\xfe\xff")
    assert "cannot be read" in refused(folder)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "model" / "model.safetensors"
    good = load_file(path)
    name = "densifier.body.4.weight"
    for bad in (
        {**good, name: good[name][:-1].clone()},
        {key: tensor for key, tensor in good.items() if key != name},
        {**good, "another": torch.zeros(1)},
    ):
        save_file(bad, path)
        assert "does not fit" in refused(tmp_path / "model")


def test_a_model_in_one_file_is_that_of_the_folder(tmp_path: Path) -> None:
    model, path = written(tmp_path), tmp_path / "deep" / "model.safetensors"
    save_model(model, small_config(), path)
    found = load_model(path)
    assert not found.training and found.voxel_size == 0.5
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_one_file_without_a_sound_description_is_refused(tmp_path: Path) -> None:
    model = written(tmp_path)
    path = tmp_path / "one.safetensors"
    described = {"format": "mggtalk-model", "version": 1, "weights": "model.safetensors", "model": small_config()}
    for metadata, words in (
        (None, "not the config of a model"),
        ({"mggtalk-model": "{"}, "not a safetensors file of a model"),
        ({"mggtalk-model": "[" * 10**5}, "not a safetensors file of a model"),
        ({"mggtalk-model": json.dumps({**described, "version": 7})}, "version 7"),
        ({"mggtalk-model": json.dumps({**described, "model": {"class_path": "os.system"}})}, "not part of mggtalk"),
    ):
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path, metadata=metadata)
        assert words in refused(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:200], b"\x80\x04" + whole[2:]):
        path.write_bytes(damaged)
        assert "not a safetensors file of a model" in refused(path)
    path.unlink()
    assert "no such file" in refused(path)


def test_a_hub_that_is_not_reached_is_told_and_folders_have_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def offline(*_: object, **__: object) -> str:
        raise OSError("there is\nno network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="someone/model: there is no such folder, and the hub does not give it: there is no network"):
        load_model("someone/model")
    written(tmp_path / "someone")
    assert load_model("someone/model").voxel_size == 0.5
    for name in ("../model", "someone/", "a/b/c", "/someone/none"):
        with pytest.raises(ModelError, match="no such file"):
            load_model(name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match="pip install huggingface_hub"):
        load_model("someone/other")


def test_the_default_is_the_trained_model_where_its_folder_is_whole(tmp_path: Path) -> None:
    assert preferred(TINY) == DEFAULT and preferred(tmp_path / "none") == BASES
    written(tmp_path)
    model = tmp_path / "model"
    assert preferred(model) == model
    for name in ("config.yaml", "model.safetensors"):
        away = tmp_path / name
        (model / name).rename(away)
        assert preferred(model) == BASES
        away.rename(model / name)
    assert preferred(model) == model


def test_models_that_ship_are_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = written(tmp_path)
    monkeypatch.setitem(NAMED, "mggtalk-tiny", tmp_path / "model")
    monkeypatch.chdir(tmp_path / "plain")
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_model("mggtalk-tiny").state_dict().items())
    assert load_model("bases").state_dict()["refiner.head.weight"].abs().max() == 0
    monkeypatch.setitem(NAMED, "mggtalk-tiny", tmp_path / "none")
    with pytest.raises(ModelError, match="mggtalk-tiny: this installation has no such model; use --model bases"):
        load_model("mggtalk-tiny")
    (tmp_path / "plain" / "bases").mkdir()
    assert locate_model("bases") == Path("bases"), "what exists on disk has precedence"


def test_names_and_weights_for_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = written(tmp_path)
    save_model(model, small_config(), tmp_path / "one.safetensors")
    assert weights_file(tmp_path / "model") == tmp_path / "model" / "model.safetensors"
    assert weights_file(tmp_path / "one.safetensors") == tmp_path / "one.safetensors"
    assert weights_file(tmp_path / "plain") is None and weights_file(BASES) is None
    with pytest.raises(ModelError, match=r"config\.yaml"):
        weights_file(tmp_path)
    monkeypatch.chdir(tmp_path / "model")
    names = {".": "model", tmp_path / "one.safetensors": "one.safetensors", "bases": "mggtalk-bases", "mggtalk-tiny": "mggtalk-tiny"}
    assert {source: model_name(source) for source in names} == names
    assert model_name("somebody/heads@v2") == "somebody/heads@v2" and model_name("/home/somebody/mine") == "mine"


def test_a_model_of_the_hub_is_fetched_once_and_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(export, "_from_hub", lambda name: asked.append(name) or tmp_path)
    assert locate_model("somebody/heads") == tmp_path and locate_model(tmp_path) == tmp_path and asked == ["somebody/heads"]
