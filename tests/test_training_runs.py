"""Whole trainings: killed, stopped, resumed, shared by processes, in half precision; and what becomes of their checkpoints."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_commands import curve_of, finished, joint, last_step, start, wait_until
from training_scenes import quietly

from mggtalk.callbacks.curve import Point
from mggtalk.cli import main as command_line
from mggtalk.export import ModelError, load_model
from mggtalk.talking_head import TalkingHead

STEPS = 8
SCRIPT = Path(__file__).parents[1] / "tools" / "slurm" / "train.sbatch"
FIT = ["-m", "mggtalk.cli", "fit"]


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """Runs change variables of the process and listen to signals."""
    before, handlers = dict(os.environ), {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    os.environ.clear()
    os.environ.update(before)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def fit(folder: Path, *words: str, **changes: object) -> int:
    """In this process; the status."""
    return quietly(command_line, ["fit", *joint(folder.parent, **{"trainer.default_root_dir": folder, **changes}), *words])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs lie, beside their data."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Path:
    """A run from begin to end."""
    assert fit(place / "undisturbed") == 0
    return place / "undisturbed"


@pytest.fixture(scope="module")
def killed(place: Path, undisturbed: Path) -> Path:
    """A run whose process was killed in its sixth step or later; its checkpoint is that of the fourth."""
    folder, log = place / "killed", place / "killed.log"
    process = start([*FIT, *joint(place, **{"trainer.default_root_dir": folder})], log)
    wait_until(lambda: last_step(folder) >= 5, process, log)
    process.kill()
    finished(process, log, -signal.SIGKILL)
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4
    return folder


def same_within(found: list[Point], expected: list[Point], start: int) -> None:
    """The same values in the same order, up to rounding, which training makes more of with every step after ``start``."""
    assert [(point.step, point.name) for point in found] == [(point.step, point.name) for point in expected]
    for one, other in zip(found, expected, strict=True):
        assert abs(one.value - other.value) < (1e-6 if one.step <= start else 1e-4) * (abs(other.value) + 0.01), (one, other)


def test_the_curve_has_every_step_and_every_term(undisturbed: Path) -> None:
    points = curve_of(undisturbed)
    steps = {name: [point.step for point in points if point.name == name] for name in {point.name for point in points}}
    assert steps["train/loss"] == list(range(STEPS)) and len(steps["val/loss"]) == len(steps["val/psnr_head"]) == 2
    assert {"train/depth/rough", "train/motion/landmarks", "train/gaussians/offsets", "train/dense/l1"} <= steps.keys()


def test_killed_then_told_to_stop_then_resumed_is_as_if_nothing_had_happened(undisturbed: Path, killed: Path, place: Path) -> None:
    """Every value of every step, to the last bit: through a kill, a SIGTERM in mid-epoch, and two resumed processes."""
    folder, log = place / "resumed", place / "resumed.log"
    shutil.copytree(killed, folder)
    with (folder / "curve.csv").open("a") as curve:
        curve.write("7,of the killed process,1.0\n")
    arguments = [*joint(place, **{"trainer.default_root_dir": folder}), "--ckpt_path", str(folder / "last.ckpt")]
    process = start([*FIT, *arguments], log)
    wait_until(lambda: last_step(folder) < 5, process, log)  # what the killed process wrote after its checkpoint is dropped
    wait_until(lambda: last_step(folder) >= 5, process, log)
    process.send_signal(signal.SIGTERM)
    said = finished(process, log, 128 + signal.SIGTERM)
    assert f"go on with --ckpt_path {folder / 'last.ckpt'}" in said and "Traceback" not in said
    stopped = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    assert 5 < stopped < STEPS
    assert quietly(command_line, ["fit", *arguments]) == 0
    assert curve_of(folder) == curve_of(undisturbed)
    records = json.loads((folder / "provenance.json").read_text())
    assert [record["from_step"] for record in records] == [0, 4, stopped]
    one, other = (torch.load(run / "last.ckpt", weights_only=True) for run in (folder, undisturbed))
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(tensor, other[part][name]) for name, tensor in one[part].items())


def test_resumed_on_two_processes_sees_the_same_samples(undisturbed: Path, killed: Path, place: Path) -> None:
    """Half a batch each; only the order of sums is another."""
    folder, log = place / "resumed_by_two", place / "resumed_by_two.log"
    shutil.copytree(killed, folder)
    changes = {"trainer.default_root_dir": folder, "trainer.devices": 2, "trainer.strategy": "ddp"}
    process = start([*FIT, *joint(place, **changes), "--ckpt_path", str(folder / "last.ckpt")], log)
    finished(process, log)
    same_within(curve_of(folder), curve_of(undisturbed), 4)
    assert torch.load(folder / "last.ckpt", weights_only=True)["SyntheticPairs"] == {
        **torch.load(undisturbed / "last.ckpt", weights_only=True)["SyntheticPairs"]
    }


SRUN = """#!/bin/bash
# What srun does on one node: a process for each task, and the highest status.
while [[ "$1" == --* ]]; do shift; done
for rank in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODEID=0 "$@" &
    tasks+=($!)
done
status=0
for task in "${tasks[@]}"; do wait "$task"; code=$?; (( code > status )) && status=$code; done
exit "$status"
"""


def slurm(folder: Path, srun: str) -> dict[str, str]:
    """Variables of a job of one node and two tasks, with stand-ins for the programs that a cluster has."""
    folder.mkdir()
    programs = {
        "srun": srun,
        "scontrol": '#!/bin/bash\necho "$@" >> "$0.log"\n',
        "mggtalk": f'#!/bin/bash\nexec {sys.executable} -m mggtalk.cli "$@"\n',
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"JOB_ID": "4242", "JOB_NAME": "mggtalk", "NTASKS": "2", "NTASKS_PER_NODE": "2", "JOB_NUM_NODES": "1", "NODELIST": "127.0.0.1"}
    return {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "MASTER_PORT": str(port),
        **{f"SLURM_{name}": value for name, value in job.items()},
    }


def test_two_tasks_of_a_slurm_job_learn_what_one_process_learns(undisturbed: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script for clusters, with a stand-in for srun; the order of sums is another."""
    folder, log = place / "slurm", place / "slurm.log"
    for name, value in slurm(place / "programs", SRUN).items():
        monkeypatch.setenv(name, value)
    own = ("--trainer.default_root_dir", "--trainer.devices", "--trainer.strategy")
    words = joint(place)
    words = [word for pair in zip(words[::2], words[1::2], strict=True) if pair[0] not in own for word in pair]
    finished(start([str(SCRIPT), str(folder), *words], log, program="bash"), log)
    same_within(curve_of(folder), curve_of(undisturbed), 0)
    assert not (place / "programs" / "scontrol.log").exists()


@pytest.mark.parametrize("status", [0, 1, 138, 143])
def test_a_slurm_job_is_queued_again_when_its_time_was_over(status: int, tmp_path: Path) -> None:
    programs, run = tmp_path / "programs", tmp_path / "run of mine"
    variables = {**os.environ, **slurm(programs, f'#!/bin/bash\nprintf "%s\\n" "$@" > "$0.log"\nexit {status}\n')}
    for saved in (False, True):
        run.mkdir(exist_ok=True)
        if saved:
            (run / "last.ckpt").touch()
        found = subprocess.run(["bash", str(SCRIPT), str(run), "--config", "a b.yaml"], env=variables, timeout=60)
        words = (programs / "srun.log").read_text().splitlines()
        assert found.returncode == status and words[words.index("--config") + 1] == "a b.yaml"
        assert words[words.index("--trainer.default_root_dir") + 1] == str(run)
        assert (words[-2:] == ["--ckpt_path", f"{run}/last.ckpt"]) == saved
    again = (programs / "scontrol.log").read_text() if (programs / "scontrol.log").exists() else ""
    assert again == ("requeue 4242\n" * 2 if status == 138 else "")


def test_a_batch_that_is_not_finite_stops_the_run_and_is_kept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "poisoned"
    assert fit(folder, "--trainer.callbacks+=training_commands.Poison") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    record = json.loads((folder / "nonfinite" / "step_00000002_rank_0.json").read_text())
    assert record["not_finite"]["inputs"] == ["pair.target.image"] and len(record["pairs"]) == 2
    assert record["pairs"][0]["source_key"] in line and "loss is not finite" in line
    tensors = load_file(folder / "nonfinite" / "step_00000002_rank_0.safetensors")
    assert tensors["pair.target.image"].isnan().sum() == 16 and tensors["rows"].shape == (2, 2)
    assert "train/loss" in {point.name for point in curve_of(folder) if point.step == 1}


def test_a_source_that_is_not_finite_cannot_be_rendered_and_is_kept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "poisoned_source"
    assert fit(folder, "--trainer.callbacks+=training_commands.Poison", "--trainer.callbacks.side=source") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    record = json.loads((folder / "nonfinite" / "step_00000002_rank_0.json").read_text())
    assert record["not_finite"]["inputs"] == ["pair.source.image"] and "NaN or infinite values, of what is to be rendered" in line
    assert record["pairs"][0]["source_key"] in line and (folder / "nonfinite" / "step_00000002_rank_0.safetensors").exists()


def test_mixed_precision_begins_where_single_precision_begins(undisturbed: Path, place: Path) -> None:
    folder = place / "mixed"
    assert fit(folder, **{"trainer.precision": "bf16-mixed", "trainer.max_steps": 2, "trainer.val_check_interval": 2}) == 0
    expected, found = ([point.value for point in curve_of(run) if point.name == "train/loss"][:2] for run in (undisturbed, folder))
    assert found == pytest.approx(expected, rel=1e-2)
    assert found[1] != expected[1], "the first step is that of zero-initialised networks, the same in any precision"
    weights = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"].values()
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights if tensor.is_floating_point())


def test_accumulated_batches_are_one_batch(place: Path) -> None:
    """The loader cuts one order of pairs: two batches of two are one of four."""
    found = []
    for name, size, count in (("whole", 4, 1), ("halves", 2, 2)):
        changes = {"data.init_args.batch_size": size, "data.init_args.pairs": 8, "trainer.accumulate_grad_batches": count}
        changes |= {"trainer.max_steps": 1, "trainer.val_check_interval": 1}
        assert fit(place / name, **changes) == 0
        found.append(torch.load(place / name / "last.ckpt", weights_only=True))
    one, other = (checkpoint["optimizer_states"][0]["state"] for checkpoint in found)
    assert found[0]["global_step"] == found[1]["global_step"] == 1 and one.keys() == other.keys()
    scale = max(state["exp_avg"].abs().max().item() for state in one.values())
    assert max((one[key]["exp_avg"] - other[key]["exp_avg"]).abs().max().item() for key in one) < 1e-4 * scale


def test_a_checkpoint_is_measured_as_its_run_measured_it(undisturbed: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*joint(place, **{"trainer.default_root_dir": place / "measured"}), "--ckpt_path", str(undisturbed / "last.ckpt")]
    logged = {point.name: point.value for point in curve_of(undisturbed) if point.name.startswith("val/")}
    for command, split in (("validate", "val"), ("test", "test")):
        capsys.readouterr()
        assert quietly(command_line, [command, *arguments]) == 0
        table = capsys.readouterr().out
        assert f"{split}/psnr_head" in table and f"{split}/loss" in table
        if split == "val":
            (shown,) = map(float, re.findall(r"val/psnr\s*[│|]\s*([\d.]+)", table))
            assert shown == pytest.approx(logged["val/psnr"], rel=1e-6)
    assert not {"curve.csv", "config.yaml", "last.ckpt"} & {path.name for path in (place / "measured").glob("*")}, "those of the run stay"


@pytest.fixture(scope="module")
def exported(undisturbed: Path, place: Path) -> tuple[Path, Path]:
    """Both forms of the model of a checkpoint."""
    forms = place / "model", place / "model.safetensors"
    for form in forms:
        assert command_line(["export", str(undisturbed / "last.ckpt"), "-o", str(form)]) == 0
    return forms


WITHOUT_LIGHTNING = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lightning", "pytorch_lightning", "lightning_fabric", "jsonargparse", "wandb", "torchmetrics"):
            raise ImportError(name + " is for training")
sys.meta_path.insert(0, Refuse())
from safetensors.torch import save_file
from mggtalk.talking_head import TalkingHead
for source, output in zip(sys.argv[1::2], sys.argv[2::2]):
    with TalkingHead.from_pretrained(source, size=64) as head:
        save_file(head.model.state_dict(), output)
"""


def test_an_exported_model_needs_nothing_of_training(exported: tuple[Path, Path], undisturbed: Path, place: Path) -> None:
    outputs = place / "folder.out", place / "file.out"
    words = [str(path) for pair in zip(exported, outputs, strict=True) for path in pair]
    subprocess.run([sys.executable, "-c", WITHOUT_LIGHTNING, *words], check=True, timeout=200)
    weights = torch.load(undisturbed / "last.ckpt", weights_only=True)["state_dict"]
    for output in outputs:
        loaded = load_file(output)
        assert loaded and all(torch.equal(tensor, weights[f"model.{name}"]) for name, tensor in loaded.items())
    described = yaml.safe_load((exported[0] / "config.yaml").read_text())["model"]
    assert described["class_path"] == "mggtalk.model.MGGTalk"


def test_a_model_of_the_hub_is_the_folder_that_the_hub_gives(exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[tuple[str, str | None, list[str]]] = []

    def download(repository: str, revision: str | None = None, allow_patterns: list[str] | None = None) -> str:
        asked.append((repository, revision, allow_patterns or []))
        return str(exported[0])

    monkeypatch.setattr(hub, "snapshot_download", download)
    own = load_model(exported[0]).state_dict()
    for name in ("someone/talking-head", "someone/talking-head@v1"):
        with TalkingHead.from_pretrained(name, size=64) as head:
            found = head.model.state_dict()
        assert all(torch.equal(tensor, own[key]) for key, tensor in found.items())
    files = ["config.yaml", "model.safetensors"]
    assert asked == [("someone/talking-head", None, files), ("someone/talking-head", "v1", files)]


def test_a_checkpoint_is_no_model_and_the_message_says_how_to_make_one(undisturbed: Path) -> None:
    with pytest.raises(ModelError, match=r"last\.ckpt: a checkpoint of training; export its model first: mggtalk export"):
        TalkingHead.from_pretrained(undisturbed / "last.ckpt")
