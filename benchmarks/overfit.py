"""Whether the model can say what it should: one pair, trained on until it is known by heart.

    python benchmarks/overfit.py --root DATA [--config experiments/tiny.yaml ...] [--steps 600] [--quick] [--json FILE] [--out PNG]
                                 [overrides, as of mggtalk fit]

The pair is the first of the experiment's first epoch. Printed is the PSNR of the rendering after densification, head-masked and full;
that of step 0, of the untrained bases, is the baseline.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from train_step import built

from datasets_toolkit.annotators.pictures import write_png
from datasets_toolkit.errors import UserError
from mggtalk.losses import head_mask, total
from mggtalk.metrics.functional import psnr
from mggtalk.types import Pair, Reenactment

STEPS, QUICK = 600, 10


def measured(shown: Reenactment, pair: Pair) -> dict[str, float]:
    image, target = shown.dense.image.detach().clamp(0, 1), pair.target
    return {"psnr": float(psnr(image, target.image)), "psnr_head": float(psnr(image, target.image, head_mask(target)))}


def overfit(cli: Any, steps: int, rate: float, device: torch.device) -> tuple[list[dict[str, float]], torch.Tensor]:
    """Measures before training and at every tenth of it, and the pictures of the end: source, target, rendering."""
    stage, data = cli.model.to(device), cli.datamodule
    data.prepare_data()
    packed = next(iter(data.train_dataloader()))
    pair = data.on_after_batch_transfer(data.transfer_batch_to_device(packed, device, 0), 0).pair[:1]
    optimiser = torch.optim.Adam([value for value in stage.parameters() if value.requires_grad], lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    start, rows = time.perf_counter(), []
    for step in tqdm(range(steps + 1), unit="step"):
        trace = stage.model.trace(pair)
        if step % max(steps // 10, 1) == 0 or step == steps:
            rows.append({"step": step, "seconds": time.perf_counter() - start, **measured(trace.shown, pair)})
        if step < steps:
            optimiser.zero_grad()
            total(stage.objective(pair, trace)).mean().backward()
            optimiser.step()
            schedule.step()
    images = torch.cat([pair.source.image, pair.target.image, trace.shown.dense.image.detach().clamp(0, 1)], 3)
    return rows, images[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="data set")
    parser.add_argument("--config", action="append", help="experiment, may be repeated (default experiments/tiny.yaml)")
    parser.add_argument("--steps", type=int, help=f"of training (default {STEPS}, {QUICK} with --quick)")
    parser.add_argument("--rate", type=float, default=3e-3, help="largest learning rate (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="few steps: it runs, and learns nothing")
    parser.add_argument("--json", type=Path, help="where all numbers go")
    parser.add_argument("--out", type=Path, help="PNG of source, target and rendering")
    options, overrides = parser.parse_known_args()
    steps = options.steps or (QUICK if options.quick else STEPS)
    with tempfile.TemporaryDirectory() as folder:
        try:
            cli = built(
                options, [*overrides, "--data.init_args.batch_size", "1", "--data.init_args.workers.count", "0"], Path(folder), steps
            )
            rows, images = overfit(cli, steps, options.rate, torch.device(options.device))
        except UserError as error:
            raise SystemExit(f"error: {error}") from None
    print("step  seconds   PSNR   head-masked")
    for row in rows:
        print(f"{row['step']:4.0f} {row['seconds']:8.1f} {row['psnr']:6.2f} {row['psnr_head']:8.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.out is not None:
        write_png(options.out, (images * 255).round().byte().permute(1, 2, 0).cpu().numpy())


if __name__ == "__main__":
    main()
