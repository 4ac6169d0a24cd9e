"""The commands of ``mggdata`` that judge, test and look at a data set, or take something out of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.storage_options import HELP

if TYPE_CHECKING:
    from datasets_toolkit.shards.shard_reader import ShardReader

FAULTS = 1
"""Exit status of ``verify`` when a promise is broken."""
WHAT = ("depth", "frames", "parsing", "normals", "motion", "audio")


def add_commands(commands: Any) -> None:
    """Add ``plan``, ``verify``, ``stats``, ``preview``, ``purge`` and ``export`` to the subparsers of a command line.

    Each sets ``function``, which takes the parsed arguments and returns an exit status or None for success.
    """
    _add_plan(commands.add_parser("plan", help="what a policy would keep of a data set: hours, people, reasons, histograms"))
    _add_verify(commands.add_parser("verify", help="test every promise of a data set; exit status 1 if one is broken"))
    _add_stats(commands.add_parser("stats", help="hours, people, samples and bytes of a data set"))
    _add_preview(commands.add_parser("preview", help="contact sheets of all labels, and a page to look through them"))
    _add_purge(commands.add_parser("purge", help="take a source or a person out of a data set or unfinished build, and its work folder"))
    _add_export(commands.add_parser("export", help="labels as files that other programs read"))


def _add_plan(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    parser.add_argument("--policy", default="default", help="YAML file, or one of default and strict (default %(default)s)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots and pictures")
    parser.add_argument("--examples", type=int, default=3, help="clips shown on each side of a limit (default %(default)s)")
    parser.set_defaults(function=_plan)


def _plan(parsed: argparse.Namespace) -> None:
    from datasets_toolkit.curation.pages import write_whole
    from datasets_toolkit.curation.plan import make_plan
    from datasets_toolkit.curation.policy import load_policy
    from datasets_toolkit.curation.report import plan_html, plan_text
    from datasets_toolkit.export.examples import ClipPictures, near_limits
    from datasets_toolkit.shards.dataset_info import FILE
    from datasets_toolkit.shards.shard_reader import ShardReader, read_table
    from datasets_toolkit.shards.storage import Storage
    from datasets_toolkit.text_tables import plain_output

    _at_least(1, examples=parsed.examples)
    policy, storage = load_policy(parsed.policy), Storage(parsed.root)
    clips, sources = read_table(storage, "clips.parquet"), read_table(storage, "sources.parquet")  # all there is before anything is packed
    plan = make_plan(clips, sources, policy)
    print(plan_text(plan, plain=plain_output()))
    if parsed.html is not None:
        pictures = ClipPictures(clips, sources, ShardReader(storage) if storage.exists(FILE) else None)
        examples = near_limits(clips, plan.keep, policy, pictures, parsed.examples)
        write_whole(parsed.html, plan_html(plan, name=parsed.root, policy=str(parsed.policy), examples=examples).encode())
        print(parsed.html)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    parser.add_argument("--sample", type=int, metavar="N", help="decode only N samples, drawn at random, and read only their shards")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome as JSON too")
    parser.set_defaults(function=_verify)


def _verify(parsed: argparse.Namespace) -> int:
    from datasets_toolkit.checks.verify import checks_json, checks_text, verify
    from datasets_toolkit.curation.pages import write_whole

    _at_least(1, sample=parsed.sample)
    _at_least(0, seed=parsed.seed)
    with _bars() as progress:
        checks = verify(_reader(parsed.root), sample=parsed.sample, seed=parsed.seed, progress=progress)
    print(checks_text(checks))
    if parsed.json is not None:
        write_whole(parsed.json, (json.dumps(checks_json(checks), indent=1) + "\n").encode())
    return FAULTS if any(check.faults for check in checks) else 0


def _add_stats(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(function=_stats)


def _stats(parsed: argparse.Namespace) -> None:
    from datasets_toolkit.curation.stats import dataset_stats, stats_json, stats_text

    stats = dataset_stats(_reader(parsed.root))
    print(json.dumps(stats_json(stats), indent=1, allow_nan=False) if parsed.json else stats_text(stats))


def _add_preview(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--frames", type=int, default=4, help="of each clip (default %(default)s)")
    parser.add_argument("--clips", type=int, metavar="N", help="show N clips, evenly spread; without it all")
    parser.set_defaults(function=_preview)


def _preview(parsed: argparse.Namespace) -> None:
    from datasets_toolkit.export.preview import preview

    _at_least(1, frames=parsed.frames, clips=parsed.clips)
    with _bars() as progress:
        print(preview(_reader(parsed.root), parsed.out, frames=parsed.frames, clips=parsed.clips, progress=progress))


def _add_purge(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    parser.add_argument("--source", action="append", default=[], metavar="ID", help="id of a source in sources.parquet; may be repeated")
    parser.add_argument("--person", action="append", default=[], metavar="NAME", help="all sources of a person; may be repeated")
    parser.add_argument("--video", action="append", default=[], metavar="PATH", help="a source video, by its place or its content")
    parser.add_argument("--work", type=Path, metavar="DIR", help="the work folder, if it is not OUT/work")
    parser.set_defaults(function=_purge)


def _purge(parsed: argparse.Namespace) -> None:
    from datasets_toolkit.build.purge_everywhere import purge_everywhere
    from datasets_toolkit.shards.storage import Storage

    if not parsed.source and not parsed.person and not parsed.video:
        raise UserError("purge: give --source ID, --person NAME or --video PATH")
    storage = Storage(parsed.root)
    work = parsed.work if parsed.work is not None or storage.local is None else storage.local / "work"
    if parsed.work is not None and not parsed.work.is_dir():
        raise UserError(f"--work {parsed.work}: no such folder; give the one that the build was given")
    names = {"sources": parsed.source, "people": parsed.person, "videos": parsed.video}
    with _bars() as progress:
        done = purge_everywhere(storage, **names, work=work.absolute() if work is not None else None, progress=progress)
    print(f"purged {done.sources} sources, {done.clips} clips, {done.samples} samples")
    print(f"{done.rewritten} shards written anew, {done.removed} removed; {done.units} units of work removed")
    if work is None:
        print("the work folder was left alone; clear it with --work DIR")


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    parser.add_argument("--what", required=True, choices=WHAT, help="the label")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="writes DIR/<clip>/<what>/")
    parser.add_argument("--clip", action="append", metavar="ID", help="of a packed clip; may be repeated; without it all")
    parser.add_argument("--png", action="store_true", help="frames as PNG instead of the JPEG that the data set holds")
    parser.set_defaults(function=_export)


def _export(parsed: argparse.Namespace) -> None:
    from datasets_toolkit.export.files import export

    if parsed.png and parsed.what != "frames":
        raise UserError(f"--png: says how frames are written, not {parsed.what}; leave it away")
    with _bars() as progress:
        folders = export(_reader(parsed.root), parsed.what, parsed.to, clips=parsed.clip, png=parsed.png, progress=progress)
    for folder in folders:
        print(folder)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="OUT", help="the data set: a folder or an fsspec address")
    parser.add_argument("--storage-option", action="append", default=[], metavar="KEY=VALUE", help=HELP)


def _reader(root: str) -> ShardReader:
    from datasets_toolkit.shards.shard_reader import ShardReader

    return ShardReader(root)


def _at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")


@contextmanager
def _bars() -> Iterator[Any]:
    """A bar on stderr for each stage that is told of; none where stderr is no terminal."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = tqdm(total=total, desc=what, disable=None, unit_scale=True)
        bars[what].update(done - bars[what].n)

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()
