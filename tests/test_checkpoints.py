"""Checkpoints as weights and as models: what is in them is taken over exactly, nothing in them is run, and faults are one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from model_scenes import made_model, perturb
from safetensors.torch import save_file
from test_export import small_config

from mggtalk.checkpoints import PREFIX, CheckpointError, export_checkpoint, load_weights, read_checkpoint
from mggtalk.cli import main as command_line
from mggtalk.export import ModelError, build_model, load_model, save_model
from mggtalk.modules.identity import IdentityEncoder


def written(path: Path, **changes: Any) -> Path:
    """A checkpoint as ``mggtalk fit`` writes it, of a small model; entries that are None are left out."""
    model = perturb(build_model(small_config(), path), 0.05)
    entries = {
        "state_dict": {**{PREFIX + name: tensor for name, tensor in model.state_dict().items()}, "perceptual.scale": torch.ones(1)},
        "hyper_parameters": {"model": small_config(), "start": None, "_class_path": "mggtalk.stages.joint.JointStage"},
        "global_step": 3,
        "optimizer_states": [{"state": {}}],
        **changes,
    }
    torch.save({name: value for name, value in entries.items() if value is not None}, path)
    return path


def refused(path: Path) -> str:
    """What both readers say of a file."""
    messages = []
    for read in (lambda: read_checkpoint(path), lambda: load_weights(made_model(), path)):
        with pytest.raises(CheckpointError) as caught:
            read()
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "\n" not in messages[0] and str(path) in messages[0] and "\x1b" not in messages[0]
    return messages[0]


def test_weights_are_taken_over_exactly_and_nothing_else_is(tmp_path: Path) -> None:
    path = written(tmp_path / "last.ckpt")
    model = build_model(small_config(), path)
    load_weights(model, path)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, saved[PREFIX + name]) for name, tensor in model.state_dict().items())
    save_model(model, small_config(), tmp_path / "folder")
    save_model(model, small_config(), tmp_path / "one.safetensors")
    for source in ("folder", "one.safetensors"):
        other = build_model(small_config(), path)
        load_weights(other, tmp_path / source)
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("output", ["model", "model.safetensors", "deeper/model"])
def test_an_exported_checkpoint_is_its_model(tmp_path: Path, output: str) -> None:
    path = written(tmp_path / "last.ckpt")
    export_checkpoint(path, tmp_path / output)
    found, saved = load_model(tmp_path / output), torch.load(path, weights_only=True)["state_dict"]
    assert found.voxel_size == 0.5 and not found.training
    assert all(torch.equal(tensor, saved[PREFIX + name]) for name, tensor in found.state_dict().items())
    read = {file.name for file in (tmp_path / output).iterdir()} if (tmp_path / output).is_dir() else set()
    assert read in (set(), {"config.yaml", "model.safetensors"})


def test_a_tempered_part_corrects_in_proportion_and_others_as_before(tmp_path: Path) -> None:
    path = written(tmp_path / "last.ckpt")
    export_checkpoint(path, tmp_path / "whole")
    export_checkpoint(path, tmp_path / "half", {"densifier": 0.5, "inpainter": 0.0})
    whole, half = load_model(tmp_path / "whole"), load_model(tmp_path / "half")
    for part, factor in (("densifier", 0.5), ("visible_decoder", 1.0)):
        first, second = getattr(whole, part).body, getattr(half, part).body
        lasting = torch.randn(1, 5, second[2].in_features)
        changing = torch.randn(1, 5, 11) if part == "densifier" else torch.randn(1, 5, sum(second.inputs) - second.inputs[0])
        torch.testing.assert_close(second(lasting, changing), factor * first(lasting, changing))
        assert first(lasting, changing).abs().max() > 1e-3, "nothing was corrected, so the test says nothing"
    assert not half.inpainter.head.weight.any() and torch.equal(half.encoder.head.weight, whole.encoder.head.weight)
    for wrong in ("encoder", "renderer", "nose"):
        with pytest.raises(CheckpointError, match=f"no part '{wrong}'"):
            export_checkpoint(path, tmp_path / "wrong", {wrong: 0.5})
        assert not (tmp_path / "wrong").exists()


def test_of_a_parts_change_since_a_model_some_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part between the two weights, one as it was; the other parts are the later ones."""
    path, changed = written(tmp_path / "last.ckpt"), ("visible_decoder", "densifier")
    export_checkpoint(path, tmp_path / "late")
    late = load_model(tmp_path / "late").state_dict()
    early = build_model(small_config(), path)
    early.load_state_dict({name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in late.items()})
    save_model(early, small_config(), tmp_path / "early")
    export_checkpoint(path, tmp_path / "part", {"visible_decoder": 0.25, "densifier": 0.0}, tmp_path / "early")
    found = load_model(tmp_path / "part")
    trained = dict(found.named_parameters())
    for name, tensor in found.state_dict().items():
        part = name.split(".")[0]
        shift = {"visible_decoder": 0.75, "densifier": 1.0}[part] if part in changed and name in trained else 0.0
        torch.testing.assert_close(tensor, late[name] + shift if shift else late[name], rtol=1e-6, atol=1e-6)
    with pytest.raises(CheckpointError, match="no part 'renderer' with weights"):
        export_checkpoint(path, tmp_path / "wrong", {"renderer": 0.5}, tmp_path / "early")
    assert command_line(["export", str(path), "-o", str(tmp_path / "wrong"), "--since", str(tmp_path / "early")]) != 0
    assert "--since: says what --strength counts from" in capsys.readouterr().err and not (tmp_path / "wrong").exists()


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    path = written(tmp_path / "bad.ckpt", extra=Harmful(tmp_path / "ran"))
    assert "mkdir" in refused(path) and not (tmp_path / "ran").exists()
    with pytest.raises(CheckpointError, match="beside weights and settings"):
        export_checkpoint(path, tmp_path / "model")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "model").exists()


def test_missing_and_damaged_files_are_told(tmp_path: Path) -> None:
    assert "no such file; give a .ckpt" in refused(tmp_path / "none.ckpt")
    whole = written(tmp_path / "last.ckpt").read_bytes()
    path = tmp_path / "damaged.ckpt"
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"not a checkpoint", b"\x80\x05."):
        path.write_bytes(damaged)
        refused(path)
    torch.save([1, 2], path)
    assert "no state_dict" in refused(path)
    torch.save({"state_dict": 3}, path)
    assert "no state_dict" in refused(path)


def test_files_of_other_things_are_told(tmp_path: Path) -> None:
    model = made_model()
    with pytest.raises(CheckpointError, match="no weights of a model"):
        load_weights(model, written(tmp_path / "other.ckpt", state_dict={"colour": torch.ones(3)}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty/model\.safetensors: no such file"):
        load_weights(model, tmp_path / "empty")
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: not a readable safetensors file"):
        load_weights(model, tmp_path / "bad.safetensors")


def test_another_architecture_is_told_and_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "last.ckpt")
    other = build_model(small_config(), path)
    other.encoder = IdentityEncoder(8, (8, 24))
    with pytest.raises(CheckpointError, match=r"last\.ckpt: holds another architecture than the experiment asks for.*encoder") as caught:
        load_weights(other, path)
    assert "\n" not in str(caught.value)
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="another architecture"):
        load_weights(other, tmp_path / "a.safetensors")


@pytest.mark.parametrize("hyper", [None, {}, {"model": None}, {"model": {"init_args": {}}}, {"start": "x"}])
def test_a_checkpoint_of_another_program_cannot_be_exported(tmp_path: Path, hyper: dict[str, Any] | None) -> None:
    path = written(tmp_path / "last.ckpt", hyper_parameters=hyper)
    with pytest.raises(CheckpointError, match="does not say how its model is built"):
        export_checkpoint(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_names_only_parts_of_the_model(tmp_path: Path) -> None:
    for node in (
        {"class_path": "os.mkdir", "init_args": {"path": str(tmp_path / "ran")}},
        {"class_path": "mggtalk.geometry.face_model.FaceModel"},
    ):
        path = written(tmp_path / "last.ckpt", hyper_parameters={"model": node})
        with pytest.raises(ModelError, match=r"last\.ckpt"):
            export_checkpoint(path, tmp_path / "model")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt"]
