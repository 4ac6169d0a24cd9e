"""Where the seconds of a training step go, and whether the whole costs more than its parts.

    python benchmarks/train_step.py --root DATA [--config experiments/tiny.yaml ...] [--steps 20] [--device cpu] [--quick] [--json FILE]
                                    [overrides, as of mggtalk fit]

``--root`` is a data set of `mggdata build`; without it synthetic heads are made. A step is taken apart by hand: waiting for the loader,
bytes to frames, reconstruction, detail (the source from its own view, and what that misses moved along), Gaussians, splatting, losses,
backward pass, optimiser. Then parts run alone in the same process: the
loader without a model (its own rate), the renderer on the Gaussians of the last step, the optimiser on its gradients, and the whole in a
Trainer with all callbacks of the experiment, whose step is compared with the sum of the parts. Medians; on a GPU each part is waited for,
so that their sum is an upper bound of the Trainer's step.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loggers import Logger

from datasets_toolkit.errors import UserError
from mggtalk.callbacks.throughput import Throughput
from mggtalk.data.datamodule import PairDataModule
from mggtalk.losses import total
from mggtalk.model import Trace
from mggtalk.stages.base import Stage
from mggtalk.training import make_cli
from mggtalk.types import Gaussians, Reenactment

STEPS, QUICK, WARM = 20, 4, 2
LEARNED = ("means", "quaternions", "scales", "opacities", "features")
SYNTHETIC = ["--data", "mggtalk.data.synthetic.SyntheticPairs", "--data.init_args.size", "256", "--data.init_args.clips", "4"]


class Clock:
    """Adds up the seconds of named parts, step by step."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.steps = device, [defaultdict[str, float](float)]

    def now(self) -> float:
        """Seconds, when the GPU has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what happens inside."""
        start = self.now()
        yield
        self.steps[-1][name] += self.now() - start

    def medians(self) -> dict[str, float]:
        """Of all steps but the first, which compile and warm up."""
        measured = self.steps[WARM:]
        return {name: statistics.median(step[name] for step in measured) for name in measured[0]}


def take_apart(stage: Stage, data: PairDataModule, steps: int, clock: Clock) -> tuple[Trace, torch.optim.Optimizer, Any]:
    """Train ``steps`` steps by hand; returns what the last one left."""
    parameters = [value for value in stage.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-5)
    batches = iter(endless(data))
    for step in range(WARM + steps):
        if step:
            clock.steps.append(defaultdict(float))
        with clock.part("data wait"):
            packed = next(batches)
        with clock.part("unpack"):
            batch = data.on_after_batch_transfer(data.transfer_batch_to_device(packed, clock.device, 0), 0)
        pair, model = batch.pair, stage.model
        with clock.part("reconstruct"):
            identity = model.reconstruct(pair.source)
        with clock.part("detail"):
            known = model.prepare(identity)
        with clock.part("gaussians"):
            coarse, dense = model.gaussians(identity, pair.target.expression, pair.target.camera, known)
            backdrop = model.backdrop(identity, pair.target.camera, known)
        with clock.part("render"):
            size = (pair.target.image.shape[-2], pair.target.image.shape[-1])
            first, second = (model.renderer(gaussians, pair.target.camera, size, backdrop) for gaussians in (coarse, dense))
        with clock.part("detail"):
            second = replace(second, image=model.finished(second.image, identity, coarse, pair.target.camera, known))
        with clock.part("losses"):
            trace = Trace(identity, coarse, dense, Reenactment(coarse=first, dense=second))
            loss = total(stage.objective(pair, trace)).mean()
        with clock.part("backward"):
            loss.backward()
        with clock.part("optimiser"):
            optimiser.step()
        if step < WARM + steps - 1:
            optimiser.zero_grad()
    return trace, optimiser, batch


def endless(data: PairDataModule) -> Iterator[Any]:
    while True:
        yield from data.train_dataloader()


def fastest(function: Callable[[], object], repeats: int, clock: Clock) -> float:
    seconds = []
    for _ in range(repeats):
        start = clock.now()
        function()
        seconds.append(clock.now() - start)
    return statistics.median(seconds)


def renderer_alone(stage: Stage, trace: Trace, batch: Any, repeats: int, clock: Clock) -> dict[str, float]:
    """Median seconds of both renderings of a step, forward and backward, on detached Gaussians."""
    target = batch.pair.target
    size = (target.image.shape[-2], target.image.shape[-1])
    backdrop = stage.model.backdrop(trace.identity.detach(), target.camera).detach()
    times: dict[str, list[float]] = {"forward": [], "backward": []}
    for _ in range(repeats):
        start = clock.now()
        images = [stage.model.renderer(leaves(gaussians), target.camera, size, backdrop).image for gaussians in (trace.coarse, trace.dense)]
        middle = clock.now()
        torch.stack([image.sum() for image in images]).sum().backward()
        times["forward"].append(middle - start)
        times["backward"].append(clock.now() - middle)
    return {name: statistics.median(values) for name, values in times.items()}


def leaves(gaussians: Gaussians) -> Gaussians:
    return replace(gaussians, **{name: getattr(gaussians, name).detach().requires_grad_() for name in LEARNED})


def loader_alone(data: PairDataModule, steps: int) -> float:
    """Seconds of a batch when nobody uses it."""
    batches = iter(endless(data))
    for _ in range(WARM):
        next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return (time.perf_counter() - start) / steps


class Memory(Logger):
    """Keeps the last value of everything that is logged."""

    name, version = "memory", 0

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.values: dict[str, float] = {}

    @property
    def save_dir(self) -> str:
        """For Lightning's copy of the configuration."""
        return self.folder

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep them."""
        self.values.update(metrics)

    def log_hyperparams(self, *arguments: Any, **settings: Any) -> None:
        """Not needed."""


def in_a_trainer(cli: Any, steps: int) -> dict[str, float]:
    """What the experiment's own Trainer reports of its steps, after the first window."""
    trainer: Trainer = cli.trainer
    seen = Memory(trainer.default_root_dir)
    trainer.loggers = [seen]
    others = [callback for callback in trainer.callbacks if not isinstance(callback, Throughput)]
    trainer.callbacks = [Throughput(max(steps // 2, 2)), *others]
    trainer.fit(cli.model, cli.datamodule)
    return {name: value for name, value in seen.values.items() if name.startswith("speed/")}


def arguments_of(line: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="data set; by default synthetic heads")
    parser.add_argument("--config", action="append", help="experiment, may be repeated (default experiments/tiny.yaml)")
    parser.add_argument("--steps", type=int, help=f"steps that are measured (default {STEPS}, {QUICK} with --quick)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="few steps")
    parser.add_argument("--json", type=Path, help="where all numbers go")
    return parser.parse_known_args(line)


def built(options: argparse.Namespace, overrides: list[str], folder: Path, steps: int) -> Any:
    """Stage, data and trainer of the experiment, on the data and the device that are asked for."""
    configs = [part for path in options.config or ["experiments/tiny.yaml"] for part in ("--config", path)]
    where = ["--data.init_args.root", options.root] if options.root else [*SYNTHETIC, "--data.init_args.root", str(folder / "data")]
    run = ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(10 * steps), "--trainer.limit_val_batches", "0"]
    run += ["--trainer.default_root_dir", str(folder / "run"), "--trainer.logger", "false", "--trainer.devices", "1"]
    run += ["--trainer.accelerator", "gpu" if options.device.startswith("cuda") else "cpu"]
    return make_cli([*configs, *where, *run, *overrides], run=False)


def measure(options: argparse.Namespace, overrides: list[str], folder: Path) -> dict[str, Any]:
    steps = options.steps or (QUICK if options.quick else STEPS)
    cli = built(options, overrides, folder, WARM + 2 * steps)
    stage, data, device = cli.model.to(options.device), cli.datamodule, torch.device(options.device)
    data.prepare_data()
    clock = Clock(device)
    trace, optimiser, batch = take_apart(stage, data, steps, clock)
    parts = clock.medians()
    alone = {f"renderer {name}": value for name, value in renderer_alone(stage, trace, batch, steps, clock).items()}
    alone["optimiser"] = fastest(optimiser.step, steps, clock)
    alone["loader"] = loader_alone(data, steps)
    pairs, pixels = len(batch.valid), batch.pair.target.image.shape[-1]
    del trace, optimiser, batch
    data.teardown("fit")
    speed = in_a_trainer(cli, steps)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "pairs": pairs,
        "pixels": pixels,
        "parts": parts,
        "alone": alone,
        "trainer": speed,
        "sum over trainer": sum(parts.values()) / speed["speed/step_seconds"],
        "share of data wait": parts["data wait"] / sum(parts.values()),
    }


def report(result: dict[str, Any]) -> str:
    whole = sum(result["parts"].values())
    lines = [f"{result['device']}: {result['pairs']} pairs of {result['pixels']} pixels a step", "", "part            ms a step  share"]
    lines += [f"{name:15s} {1e3 * value:9.1f} {value / whole:6.1%}" for name, value in result["parts"].items()]
    lines += [f"{'sum':15s} {1e3 * whole:9.1f}", "", "alone            ms a step"]
    lines += [f"{name:18s} {1e3 * value:8.1f}" for name, value in result["alone"].items()]
    speed = result["trainer"]
    lines += ["", f"in a Trainer: {1e3 * speed['speed/step_seconds']:.1f} ms a step, {speed['speed/samples_per_second']:.2f} pairs/s,"]
    lines += [f"waiting for data {speed['speed/data_share']:.1%}; sum of the parts over that: {result['sum over trainer']:.2f}"]
    return "\n".join(lines)


def main() -> None:
    options, overrides = arguments_of()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = measure(options, overrides, Path(folder))
        except UserError as error:
            raise SystemExit(f"error: {error}") from None
    print(report(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
