"""One column of a data set made anew, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from datasets_toolkit.build.config import config_from
from datasets_toolkit.build.executors import Executor
from datasets_toolkit.build.progress import Progress
from datasets_toolkit.build.run import Summary, build
from datasets_toolkit.errors import UserError
from datasets_toolkit.recipes.base import Source
from datasets_toolkit.shards.dataset_info import DatasetInfo, read_info
from datasets_toolkit.shards.shard_reader import read_table
from datasets_toolkit.shards.storage import Storage


def recompute(
    out: str,
    annotator: str,
    settings: Sequence[str] = (),
    *,
    executor: Executor,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Make the labels of one annotator again and pack the data set anew; all other columns keep their bytes.

    Args:
        out: root of the data set.
        annotator: its family, class name or class path.
        settings: words (``key=value``) that change the settings of the data set; with them a label may come from another model.
        executor: runs the jobs.
        work: the work folder, as for :func:`datasets_toolkit.build.run.build`.
        progress: shows how far it is.

    Raises:
        UserError: there is no whole data set, or it has no such annotator.
    """
    storage = Storage(out)
    info = read_info(storage)
    family = _family(info, annotator)
    config, sources = config_from(info.config, settings), _sources(storage)
    return build(sources, config, out, executor=executor, work=work, progress=progress, anew=family)


def _family(info: DatasetInfo, name: str) -> str:
    for one in info.annotators:
        if name in (one["family"], one["name"], one["name"].rpartition(".")[2]):
            return str(one["family"])
    known = ", ".join(f"{one['family']} ({one['name'].rpartition('.')[2]})" for one in info.annotators)
    raise UserError(f"--annotator {name}: this data set has none of that name; it has {known or 'none'}")


def _sources(storage: Storage) -> list[Source]:
    """The sources that the data set was made from."""
    rows = read_table(storage, "sources.parquet").to_pylist()
    return [
        Source(
            path=row["path"],
            source_hint=row["hint"],
            dataset=row["dataset"],
            person="" if row["person"] == row["source"] else row["person"],
            start=row["from"],
            end=row["to"],
            split=row["given_split"],
            licence=row["licence"],
            meta=json.loads(row["meta"]),
        )
        for row in rows
    ]
