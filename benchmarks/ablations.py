"""The paper's ablations, and two of our own: trains the whole model and each of them alike, and measures all in one table.

    python benchmarks/ablations.py --shards DATA [--steps 1000] [--size 256] [--seeds 0 1 2] [--only no_filter ...] [--out FOLDER]
        [--quick] [--json FILE]

Every variant is `mggtalk fit` on experiments/tiny.yaml and one file of experiments/ablations, with the same seeds, steps and data; then
`mggtalk export`; then suite `self` of the benchmark on the validation people. With several seeds the values of a pair are their means,
intervals are still those over people, and what single seeds say stands beside them. A variant whose exported model lies in FOLDER is not
trained again. The table compares the order of what each part is worth with the paper's (MGGTalk, arXiv 2504.00665, ablation table): its
absolute PSNR cannot be compared (docs/benchmark.md).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.evaluation.markdown import markdown
from mggtalk.evaluation.methods import Model
from mggtalk.evaluation.protocol import load_suite
from mggtalk.evaluation.results import PairResult, SuiteResult
from mggtalk.evaluation.runner import Bench, run_suite
from mggtalk.evaluation.scoring import Scorer, Weights
from mggtalk.evaluation.summary import Estimate, Summary, summarise, summary_record
from mggtalk.export import load_model
from mggtalk.rendering.factory import make_renderer

ROOT = Path(__file__).parents[1]
WHOLE = "whole"
PAPER = {"no_refinement": 29.98, "no_symmetry": 31.24, "no_filter": 29.56, "one_decoder": 32.12, "no_densification": 30.32}
"""PSNR on HDTF without a part; with all of them 32.40."""
PAPER_WHOLE = 32.40
OURS = ("no_detail", "no_light")
"""Parts that the paper does not have."""


def run_name(name: str, seed: int) -> str:
    """Of a variant's run with a seed, in the folder of runs and among the methods."""
    return name if seed == 0 else f"{name}-{seed}"


def train(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    """The exported model of a variant, trained now unless it is there."""
    folder = arguments.out / run_name(name, seed)
    exported = folder / "model"
    if (exported / "config.yaml").is_file():
        return exported
    ablation = [] if name == WHOLE else ["--config", ROOT / "experiments" / "ablations" / f"{name}.yaml"]
    settings = {
        "seed_everything": seed,
        "data.init_args.seed": seed,
        "data.init_args.root": arguments.shards,
        "data.init_args.transform.init_args.size": arguments.size,
        "trainer.max_steps": arguments.steps,
        "trainer.val_check_interval": arguments.steps,
        "trainer.default_root_dir": folder,
        "trainer.logger": "false",
    }
    words = ["fit", "--config", ROOT / "experiments" / "tiny.yaml", *ablation]
    run([*words, *(word for key, value in settings.items() for word in (f"--{key}", value))], folder)
    run(["export", folder / "last.ckpt", "-o", exported], folder)
    return exported


def run(words: Sequence[object], folder: Path) -> None:
    """A command of the project; what it says goes to a file, and is shown if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        done = subprocess.run([sys.executable, "-m", "mggtalk.cli", *map(str, words)], stdout=log, stderr=log, cwd=ROOT)
    if done.returncode:
        tail = (folder / "log.txt").read_text(encoding="utf-8")[-2000:]
        raise SystemExit(f"{words[0]} failed; the end of {folder / 'log.txt'}:\n{tail}")


def measure(models: Mapping[tuple[str, int], Path], arguments: argparse.Namespace) -> SuiteResult:
    """Suite self with all runs, of a variant with a seed, as methods."""
    methods = []
    for (name, seed), path in models.items():
        model = load_model(path)
        model.renderer = make_renderer("auto", "cpu")
        about = "All parts." if name == WHOLE else f"experiments/ablations/{name}.yaml"
        methods.append(Model(run_name(name, seed), model, about))
    suite = load_suite("self")
    changes = {"size": arguments.size, "run": 0, "films": 0, **({"frames": 2} if arguments.quick else {})}
    with Scorer(Weights()) as scorer:
        bench = Bench(reader=ShardReader(arguments.shards), methods=tuple(methods), scorer=scorer)
        return run_suite(replace(suite, **changes), bench, tqdm)


def over_seeds(results: SuiteResult, names: Sequence[str], seeds: Sequence[int]) -> SuiteResult:
    """Variants instead of runs: each value of a pair, and its time, is the mean over seeds; NaN if one of them is."""
    runs = {name: [run_name(name, seed) for seed in seeds] for name in names}

    def mean(pair: PairResult) -> PairResult:
        values = {
            name: {metric: fmean(pair.values[run].get(metric, math.nan) for run in of) for metric in pair.values[of[0]]}
            for name, of in runs.items()
        }
        times = {name: fmean(pair.milliseconds[run] for run in of) for name, of in runs.items() if pair.milliseconds.keys() >= set(of)}
        return replace(pair, values=values, milliseconds=times)

    about = {name: results.about[of[0]] for name, of in runs.items()}
    return replace(results, methods=tuple(names), about=about, pairs=tuple(mean(pair) for pair in results.pairs))


def single_seeds(results: SuiteResult, names: Sequence[str], seeds: Sequence[int]) -> dict[str, list[float]]:
    """PSNR head lost without a part, of each seed by itself."""
    each = [summarise(over_seeds(results, names, [seed]), resamples=1).differences for seed in seeds]
    return {name: [found[name]["psnr_head"].mean for found in each] for name in names[1:]}


def table(summary: Summary, names: Sequence[str], singles: Mapping[str, Sequence[float]]) -> str:
    """What each part is worth: here, and in the paper."""
    lines = [
        "| without | PSNR head, lost (dB) | by seed | SSIM head, lost | AED, gained | the paper's PSNR, lost (dB) |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted((name for name in names if name != WHOLE), key=lambda name: PAPER.get(name, PAPER_WHOLE)):
        found = summary.differences[name]
        by_seed = ", ".join(f"{value:+.2f}" for value in singles[name])
        cells = [shown(found["psnr_head"], 2), by_seed, shown(found["ssim_head"], 4), shown(found["aed"], 5, -1)]
        theirs = f"{PAPER_WHOLE - PAPER[name]:.2f}" if name in PAPER else "not in it"
        lines.append(f"| {name} | {' | '.join(cells)} | {theirs} |")
    return "\n".join(lines)


def shown(estimate: Estimate, digits: int, sign: int = 1) -> str:
    """A difference with its interval."""
    ends = sorted((sign * estimate.low, sign * estimate.high))
    return f"{sign * estimate.mean:+.{digits}f} ({ends[0]:+.{digits}f} to {ends[1]:+.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="data set of `mggdata build` with a train and a val split")
    parser.add_argument("--steps", type=int, default=1000, help="of training, for each variant")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument(
        "--only", nargs="*", choices=[*sorted(PAPER), *OURS], default=[*sorted(PAPER), *OURS], help="ablations (default: all)"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/ablations"), help="folder of runs and models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="every variant is trained with each of them")
    parser.add_argument("--quick", action="store_true", help="30 steps and two frames of each clip: shows that it works, and nothing else")
    parser.add_argument("--json", type=Path, help="where all numbers go")
    arguments = parser.parse_args()
    arguments.steps = 30 if arguments.quick else arguments.steps
    arguments.out = arguments.out.resolve()
    names = [WHOLE, *arguments.only]
    runs = [(name, seed) for seed in arguments.seeds for name in names]
    models = {run: train(*run, arguments) for run in tqdm(runs, unit="run")}
    measured = measure(models, arguments)
    results = over_seeds(measured, names, arguments.seeds)
    summary = summarise(results)
    print(table(summary, names, single_seeds(measured, names, arguments.seeds)))
    (arguments.out / "self.md").write_text(markdown(results, summary), encoding="utf-8")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(summary_record(summary), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
