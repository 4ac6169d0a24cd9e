"""The commands of ``mggdata`` that make data sets: ``build``, ``recompute``, ``recipes`` and ``synthesize``."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.storage_options import HELP

if TYPE_CHECKING:
    from datasets_toolkit.build.executors import Executor
    from datasets_toolkit.build.run import Summary

_SETTING = re.compile(r"^[A-Za-z_][\w.]*=")


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of ``mggdata``."""
    _add_build(commands.add_parser("build", help="videos to a data set of annotated face crops", description=_BUILD))
    _add_recompute(commands.add_parser("recompute", help="make one column of a data set anew", description=_RECOMPUTE))
    _add_recipes(commands.add_parser("recipes", help="the layouts that --recipe reads, their options, and where to get the data"))
    _add_synthesize(commands.add_parser("synthesize", help="talking heads of which everything is known", description=_SYNTHESIZE))


_BUILD = "Make a data set from videos, or go on with one: what is there already is not made again."
_RECOMPUTE = "Make the labels of one annotator anew, and nothing else; other settings (key=value) replace those of the data set."
_SYNTHESIZE = "Make a finished data set of synthetic heads with exact labels, or with --videos the videos that the recipe synthetic reads."


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="SOURCE", help="videos, folders of videos, addresses, or settings (key=value)")
    parser.add_argument("--recipe", nargs=2, action="append", default=[], metavar=("NAME", "ROOT"), help="a data set in its own layout")
    parser.add_argument("--recipe-option", action="append", default=[], metavar="[NAME.]KEY=VALUE", help="see: mggdata recipes NAME")
    parser.add_argument("--out", required=True, help="folder or address of the data set")
    parser.add_argument("--config", type=Path, help="YAML with settings")
    parser.add_argument("--policy", help="which clips are kept: a YAML file, default, strict, or none for all")
    parser.add_argument("--until", choices=("scores", "shards"), default="shards", help="scores: stop before labels are made")
    parser.add_argument("--shard-samples", type=int, metavar="N", help="samples in a shard (by default shards of 1 GB)")
    _add_engine(parser)
    parser.set_defaults(function=_build)


def _add_recompute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="settings that change")
    parser.add_argument("--annotator", required=True, metavar="NAME", help="family (such as depth) or class of the annotator")
    parser.add_argument("--out", required=True, help="folder or address of the data set")
    _add_engine(parser)
    parser.set_defaults(function=_recompute)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", type=Path, help="work folder on a local or shared disk (default OUT/work)")
    parser.add_argument("--engine", choices=("local", "ray", "slurm"), default="local", help="what runs the jobs (default %(default)s)")
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="processes or tasks (default: one for each CPU)")
    parser.add_argument("--address", help="of a Ray cluster; by default one is started on this machine")
    parser.add_argument("--partition", help="of Slurm")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give a video up after this time (local engine)")
    parser.add_argument("--storage-option", action="append", default=[], metavar="KEY=VALUE", help=HELP)


def _build(parsed: argparse.Namespace) -> None:
    from datasets_toolkit.build.config import load_config
    from datasets_toolkit.build.given_sources import find_sources
    from datasets_toolkit.build.progress import Progress
    from datasets_toolkit.build.run import build

    words = [word for word in parsed.words if _SETTING.match(word) and not Path(word).exists()]
    if parsed.policy is not None:
        words.append(f"policy={'null' if parsed.policy == 'none' else parsed.policy}")
    if parsed.shard_samples is not None:
        words.append(f"shard_samples={parsed.shard_samples}")
    config = load_config(parsed.config, words)
    sources = find_sources([word for word in parsed.words if word not in words], parsed.recipe, parsed.recipe_option)
    with _stoppable(), _executor(parsed) as executor:
        summary = build(sources, config, parsed.out, executor=executor, work=parsed.work, until=parsed.until, progress=Progress())
    _report(parsed.out, summary)


def _recompute(parsed: argparse.Namespace) -> None:
    from datasets_toolkit.build.progress import Progress
    from datasets_toolkit.build.recompute import recompute

    with _stoppable(), _executor(parsed) as executor:
        summary = recompute(parsed.out, parsed.annotator, parsed.words, executor=executor, work=parsed.work, progress=Progress())
    _report(parsed.out, summary)


def _add_recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="tell all of one recipe")
    parser.set_defaults(function=_recipes)


def _recipes(parsed: argparse.Namespace) -> None:
    from datasets_toolkit.recipes import RECIPES, recipe_class
    from datasets_toolkit.recipes.options import describe_recipe, recipes_table

    if parsed.name is not None:
        print(describe_recipe(recipe_class(parsed.name)))
        return
    print(recipes_table([recipe_class(name) for name in RECIPES]))
    print("\nmggdata recipes NAME tells the layout, the options, known defects, and where to get the data")


def _add_synthesize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, help="empty or absent folder, or address of the data set")
    parser.add_argument("--videos", action="store_true", help="mp4 videos with sound instead of a data set")
    for name, text in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=text)
    parser.add_argument("--storage-option", action="append", default=[], metavar="KEY=VALUE", help=HELP)
    parser.set_defaults(function=_synthesize)


_NUMBERS = {
    "clips": "how many, of the people in turn (default 16; of videos 4)",
    "frames": "of each clip, 25 a second (default 24; of videos 100)",
    "size": "pixels a side (default 128; of videos 384)",
    "persons": "people at the most (default 8; of videos 4)",
    "seed": "of everything (default 0)",
}


def _synthesize(parsed: argparse.Namespace) -> None:
    from datasets_toolkit.build.source_files import is_address
    from datasets_toolkit.synthetic import build_synthetic, write_videos

    given = {name: getattr(parsed, name) for name in _NUMBERS if getattr(parsed, name) is not None}
    if not parsed.videos:
        info = build_synthetic(parsed.out, **given).info
        print(f"{parsed.out}: {info.counts['clips']} clips, {info.counts['samples']} samples in {len(info.shards)} shards")
        return
    if is_address(parsed.out):
        raise UserError(f"--out {parsed.out}: videos are written to a folder of this machine; give one")
    for path in write_videos(Path(parsed.out), **given):
        print(path)


def _executor(parsed: argparse.Namespace) -> Executor:
    from datasets_toolkit.build.executors import LocalExecutor

    if parsed.workers is not None and parsed.workers < 1:
        raise UserError(f"--workers {parsed.workers}: at least one is needed")
    workers = parsed.workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    if parsed.engine == "local":
        return LocalExecutor(workers, parsed.timeout)
    from datasets_toolkit.build.executors_cluster import RayExecutor, SlurmExecutor

    if parsed.engine == "ray":
        return RayExecutor(parsed.address, parsed.workers)
    return SlurmExecutor((parsed.work or Path(parsed.out) / "work") / "slurm", parsed.partition, workers)


class _stoppable:
    """Ctrl-C inside says how to go on."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is KeyboardInterrupt:
            raise KeyboardInterrupt("stopped; what is done is kept: run the same command again to go on") from None


def _report(out: str, summary: Summary) -> None:
    from datasets_toolkit.build.progress import time_table

    for path, problem in summary.rejected:
        print(f"rejected: {problem if problem.startswith(path) else f'{path}: {problem}'}", file=sys.stderr)
    counts = summary.counts
    if summary.seconds:
        print(time_table(summary.seconds, summary.frames()), file=sys.stderr)
    done = f"{counts['sources']} sources, {counts['sources rejected']} rejected; {counts['clips']} clips"
    if summary.shards:
        size = sum(shard.bytes for shard in summary.shards)
        done += f", {counts['clips kept']} kept; {counts['samples']} samples in {len(summary.shards)} shards, {size / 1e6:.1f} MB"
    print(f"{out}: {done}")
