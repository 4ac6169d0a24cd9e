"""Experiments as files and command lines: what they say is what is built, every one of them runs, and mistakes are told in a line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from training_commands import EXPERIMENTS, small
from training_scenes import quietly

from datasets_toolkit.errors import UserError
from mggtalk.cli import main as command_line
from mggtalk.training import main, make_cli, with_bases

ELSEWHERE = {"audio.yaml": "tests/test_audio_training.py"}  # what has no pictures
FILES = sorted(
    (path for path in EXPERIMENTS.rglob("*.yaml") if path.name not in ELSEWHERE), key=lambda path: path.relative_to(EXPERIMENTS).parts
)
STAGES = ("geometry", "deformation", "gaussians", "joint")
every_file = pytest.mark.parametrize("file", FILES, ids=[str(path.relative_to(EXPERIMENTS)) for path in FILES])


def configs(file: Path) -> list[str]:
    """As the command line names an experiment; what lies in a folder is put after another one."""
    before = {"sizes": "gaussians.yaml", "ablations": "tiny.yaml"}.get(file.parent.name)
    return [word for path in ([EXPERIMENTS / before] if before else []) + [file] for word in ("--config", str(path))]


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """Runs change variables of the process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What ``--print_config`` writes."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        quietly(main, ["fit", *arguments, "--print_config"])
    assert left.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@every_file
def test_every_experiment_is_understood_whole(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(configs(file), capsys)
    root = found["trainer"]["default_root_dir"]
    savers = [callback["init_args"] for callback in found["trainer"]["callbacks"] if callback["class_path"].endswith(".ModelCheckpoint")]
    assert [(saver["filename"], saver["dirpath"]) for saver in savers] == [("best", root)]
    assert found["trainer"]["use_distributed_sampler"] is False, "the loader shares out batches itself"
    assert "${" not in yaml.safe_dump(found) and not found["extends"]
    own = yaml.safe_load(file.read_text()).get("trainer", {})
    assert {name: found["trainer"][name] for name in own if not isinstance(own[name], list | dict)} == {
        name: value for name, value in own.items() if not isinstance(value, list | dict)
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all experiments run."""
    return tmp_path_factory.mktemp("runs")


@every_file
def test_every_experiment_runs(file: Path, runs: Path) -> None:
    """Two steps; the checkpoint holds what was trained. Stages that begin with another's weights begin with these."""
    folder = runs / file.stem
    arguments = [*configs(file), *small(runs, **{"trainer.default_root_dir": folder})]
    quietly(main, ["fit", *arguments, "--model.init_args.start", "null"])
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2 and (folder / "best.ckpt").exists()
    (optimiser,) = checkpoint["optimizer_states"]
    given = {number for group in optimiser["param_groups"] for number in group["params"]}
    assert given == optimiser["state"].keys(), "distributed training waits for the gradient of each parameter"
    lines = (folder / "curve.csv").read_text().splitlines()
    assert {"0", "1"} <= {line.split(",")[0] for line in lines[1:]}
    assert {"train/loss", "val/loss", "val/psnr"} <= {line.split(",")[1] for line in lines}
    again = yaml.safe_load((folder / "config.yaml").read_text())
    assert again["model"]["class_path"] == checkpoint["hyper_parameters"]["_class_path"]


def test_each_stage_takes_over_from_the_one_before(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files name each other's checkpoints; a run of the whole chain needs nothing but its four commands."""
    starts = [printed(["--config", str(EXPERIMENTS / f"{stage}.yaml")], capsys)["model"]["init_args"]["start"] for stage in STAGES]
    assert starts == [None, *(f"outputs/{stage}/last.ckpt" for stage in STAGES[:-1])]
    before = runs / "gaussians" / "last.ckpt"
    if not before.exists():
        pytest.skip("needs the runs of the experiments")
    arguments = ["--config", str(EXPERIMENTS / "joint.yaml"), *small(runs, **{"model.init_args.start": before})]
    built = quietly(make_cli, arguments, run=False)
    weights = torch.load(before, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, weights[f"model.{name}"]) for name, tensor in built.model.model.state_dict().items())


def test_a_config_that_a_run_has_written_is_whole(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It can be run again from anywhere, without the files that it came from."""
    written = runs / "debug" / "config.yaml"
    if not written.exists():
        pytest.skip("needs the run of the experiment")
    assert printed(["--config", str(written)], capsys) == {**yaml.safe_load(written.read_text())}


def test_overrides_reach_what_other_values_refer_to(tmp_path: Path) -> None:
    """Also when the experiment is built: model, data and trainer see the merged values, not those of a file alone."""
    folder = tmp_path / "elsewhere"
    arguments = ["--config", str(EXPERIMENTS / "debug.yaml"), *small(tmp_path)]
    arguments = [word for pair in zip(arguments[::2], arguments[1::2], strict=True) if pair[0] != "--trainer.logger" for word in pair]
    trainer = quietly(make_cli, [*arguments, "--trainer.default_root_dir", str(folder)], run=False).trainer
    (saver,) = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint))
    assert saver.dirpath == trainer.default_root_dir == str(folder)
    assert [logger.save_dir for logger in trainer.loggers] == [str(folder)]


def test_an_overlay_of_the_same_base_leaves_what_it_does_not_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--config STAGE --config debug``: both extend base, which is read once, first."""
    found = printed(["--config", str(EXPERIMENTS / "geometry.yaml"), "--config", str(EXPERIMENTS / "debug.yaml")], capsys)
    assert found["model"]["class_path"].endswith(".GeometryStage") and found["data"]["class_path"].endswith(".SyntheticPairs")


def test_files_are_read_in_the_order_of_what_they_extend(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, extends in (("a", None), ("b", "a.yaml"), ("c", "a.yaml"), ("deep/d", ["../b.yaml", "../c.yaml"])):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"extends": extends, "seed_everything": 1}))

    def order(*words: str) -> str:
        expanded = with_bases(words)
        return "".join(Path(word).stem if word.endswith(".yaml") else "" for word in expanded)

    assert order("--config", f"{tmp_path}/deep/d.yaml", "--x", "1") == "abcd"
    assert order(f"--config={tmp_path}/b.yaml", "-c", f"{tmp_path}/c.yaml") == "abc"
    assert order("--config", f"{tmp_path}/b.yaml", "--config", f"{tmp_path}/a.yaml") == "aba", "what is named is read where it is named"
    assert with_bases(["--trainer.max_steps", "3"]) == ["--trainer.max_steps", "3"]


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "no such experiment"),
        ("extends: own.yaml", "extends itself"),
        ("extends: other.yaml", "extends itself"),
        ("extends: nowhere.yaml", "no such experiment"),
        ("{", "not a YAML file that can be read"),
        ("- 1", "not an experiment"),
        ("\0", "not a YAML file that can be read"),
        ("a: !!python/object/apply:os.getcwd []", "not a YAML file that can be read"),
    ],
)
def test_experiments_that_cannot_be_read_are_told(tmp_path: Path, text: str | None, words: str) -> None:
    (tmp_path / "other.yaml").write_text("extends: own.yaml")
    own = tmp_path / "own.yaml"
    if text is not None:
        own.write_text(text)
    with pytest.raises(UserError, match=words):
        with_bases(["--config", str(own)])


def status(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """How the command leaves, and what it says."""
    capsys.readouterr()
    try:
        code = quietly(command_line, ["fit", *arguments])
    except SystemExit as left:
        code = left.code
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    "override, words",
    [
        (["--trainer.max_stepps", "1"], "max_stepps"),
        (["--trainer.max_steps", "many"], "max_steps"),
        (["--model.init_args.optimiser.rat", "1"], "rat"),
        (["--model.init_args.optimiser.rate", "fast"], "rate"),
        (["--model.init_args.image.focus", "mouth"], "focus"),
        (["--data.init_args.batchsize", "3"], "batchsize"),
        (["--data.init_args.batch_size", "[1]"], "batch_size"),
        (["--model.class_path", "mggtalk.stages.joint.NoStage"], "NoStage"),
        (["--model.class_path", "mggtalk.model.MGGTalk"], "MGGTalk"),
        (["--unheard", "1"], "unheard"),
    ],
)
def test_misspelt_and_mistyped_settings_stop_before_anything_is_built(
    override: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = status(["--config", str(EXPERIMENTS / "debug.yaml"), *small(tmp_path), *override], capsys)
    assert code == 2 and "Traceback" not in message
    assert words in message and not (tmp_path / "run").exists()


MISTAKES = ["trainer: {max_step: 1}", "model: {init_args: {imagee: null}}", "dat: {root: x}", "data: {init_args: {root: [1]}}"]


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_in_a_file_stop_too(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: {EXPERIMENTS / 'debug.yaml'}\n{text}\n")
    code, message = status(["--config", str(own), *small(tmp_path)], capsys)
    assert code == 2 and "Traceback" not in message
    assert re.search(r"max_step|imagee|dat\b|root", message) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "override, words",
    [
        ({"model.init_args.start": "nowhere/last.ckpt"}, r"nowhere/last\.ckpt: no such file; give a \.ckpt"),
        ({"model.init_args.vgg": "nowhere.pth"}, r"nowhere\.pth"),
        ({"model.init_args.optimiser.rates": "{decoder: 0.1}"}, r"no part 'decoder'; its parts are"),
        (
            {"data.class_path": "mggtalk.data.datamodule.PairDataModule", "data.init_args.root": "nowhere"},
            r"nowhere/dataset\.json: no such file",
        ),
        ({"data.init_args.rule.minimum": 100}, r"pair"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_one_line(
    override: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small(tmp_path, **override)
    if "data.class_path" in override:
        drop = {f"--data.init_args.{name}" for name in ("clips", "frames", "persons", "size")}
        settings = [word for pair in zip(settings[::2], settings[1::2], strict=True) if pair[0] not in drop for word in pair]
    code, message = status(["--config", str(EXPERIMENTS / "debug.yaml"), *settings], capsys)
    (line,) = [line for line in message.splitlines() if line.startswith("error: ")]
    assert code == 2 and re.search(words, line) and "Traceback" not in message


def test_a_missing_checkpoint_is_told_before_anything_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(EXPERIMENTS / "debug.yaml"), *small(tmp_path)]
    code, message = status([*arguments, "--ckpt_path", "nowhere/last.ckpt"], capsys)
    assert code == 2 and "error: nowhere/last.ckpt: no such file; give the last.ckpt" in message
    assert "Traceback" not in message and not (tmp_path / "data").exists()


def test_a_damaged_checkpoint_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "torn.ckpt").write_bytes(b"PK\x03\x04 torn")
    code, message = status(
        ["--config", str(EXPERIMENTS / "debug.yaml"), *small(tmp_path), "--ckpt_path", str(tmp_path / "torn.ckpt")], capsys
    )
    assert code == 2 and "torn.ckpt: not a readable checkpoint" in message and "Traceback" not in message


def test_a_missing_experiment_and_a_missing_command_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = status(["--config", "experiments/nowhere.yaml"], capsys)
    assert code == 2 and message.startswith("error: experiments/nowhere.yaml: no such experiment; those that come")
    assert message.count("\n") == 1
