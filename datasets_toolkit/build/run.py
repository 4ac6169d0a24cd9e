"""From source videos to a data set: the steps of :mod:`datasets_toolkit.build.pipeline` in order, on any engine.

Whatever was made before is taken from the work folder; what a run leaves unfinished, the next one makes.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets_toolkit.build import track_stage, unfinished
from datasets_toolkit.build.config import BuildConfig
from datasets_toolkit.build.executors import Executor, Function, Outcome
from datasets_toolkit.build.labelling import annotate, fill_identity, fill_sync
from datasets_toolkit.build.manifest import ClipRow, SourceRow, clip_rows, clip_table, source_rows, source_table
from datasets_toolkit.build.packing import publish
from datasets_toolkit.build.pipeline import AnnotatorFacts, TrackJob, TrackResult, describe_annotators, release, unit_keys
from datasets_toolkit.build.progress import Progress
from datasets_toolkit.build.work import UnitStore, only_builder
from datasets_toolkit.curation.policy import Limits, Policy, judge, load_policy
from datasets_toolkit.curation.splits import assign
from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import is_part
from datasets_toolkit.recipes.base import Source
from datasets_toolkit.shards.dataset_info import FILE, ShardInfo
from datasets_toolkit.shards.storage import Storage
from datasets_toolkit.shards.writer import write_table

log = logging.getLogger(__name__)

FRAMES_OF = {
    "track": ("decode", "cuts", "landmarks", "scores"),
    "annotate": ("decode again", "smoothing", "crop", "parsing", "depth", "normals", "identity", "audio", "encode", "write"),
    "samples": ("pack",),
}
"""Which of :attr:`Summary.counts` each stage has seen."""
STEPS = ("scores", "shards")
"""Where a build may stop: when the manifest of clips is written, or at its end."""


@dataclass(eq=False)
class Summary:
    """What a build has come to.

    Attributes:
        counts: of sources, clips and samples, as in ``dataset.json``; frames of the source that a step has seen now under its name.
        rejected: path and first problem of each rejected source.
        seconds: spent on each stage, over all workers.
        shards: of the data set; none where the build stopped before.
    """

    counts: Counter[str] = field(default_factory=Counter)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    shards: list[ShardInfo] = field(default_factory=list)

    def frames(self) -> dict[str, int]:
        """Frames that each stage has seen."""
        return {stage: self.counts[step] for step, stages in FRAMES_OF.items() for stage in stages}


@dataclass(eq=False)
class Run:
    """What the steps of one build share."""

    config: BuildConfig
    storage: Storage
    store: UnitStore
    executor: Executor
    progress: Progress
    summary: Summary

    def jobs(self, step: str, function: Function, jobs: Sequence[Any], on_result: Callable[[Outcome], None]) -> None:
        """Run jobs with a bar; their seconds and frames are added up."""
        with self.progress.step(step, len(jobs)) as bar:

            def take(outcome: Outcome) -> None:
                frames = getattr(outcome.value, "frames", 0)
                self.summary.counts[step] += frames
                for stage, spent in getattr(outcome.value, "seconds", {}).items():
                    self.summary.seconds[stage] += spent
                if outcome.kind == "failed":
                    log.debug("%s", outcome.details)
                on_result(outcome)
                bar.advance(frames)

            if jobs:
                self.executor.run(function, jobs, on_result=take)


def build(
    sources: Sequence[Source],
    config: BuildConfig,
    out: str,
    *,
    executor: Executor,
    work: Path | None = None,
    until: str = STEPS[-1],
    progress: Progress | None = None,
    anew: str | None = None,
) -> Summary:
    """Build a data set, or go on with one.

    Args:
        sources: the videos.
        config: all settings.
        out: root of the data set: a folder or an fsspec address.
        executor: runs the jobs.
        work: the work folder; by default ``work`` below ``out``. It must be given where ``out`` is an address.
        until: one of :data:`STEPS`.
        progress: shows how far it is.
        anew: a family of annotators whose units are made again although they are there.

    Raises:
        UserError: a mistake that concerns the whole build; what was done is kept.
    """
    storage = Storage(out)
    if work is None and storage.local is None:
        raise UserError(f"{out}: a data set behind an address needs a folder of this machine for its work; give --work FOLDER")
    folder = (Path(work) if work is not None else Path(out) / "work").absolute()
    with only_builder(storage.local or folder) as before:
        if before is not None:
            log.warning("%s: process %d ended without finishing; going on from what it left", out, before)
        run = Run(config, storage, UnitStore(folder), executor, progress or Progress(shown=False), Summary())
        run.store.sweep()
        if storage.local is not None:
            _sweep(storage.local)
        try:
            _steps(run, sources, until, anew)
            if until == STEPS[-1]:
                unfinished.finished(run)
        finally:
            release()
        return run.summary


def _sweep(root: Path) -> None:
    """Remove files that a killed process was writing; who holds the lock knows that nobody writes them any more."""
    for folder in (root, root / "shards"):
        for path in folder.glob(".*") if folder.is_dir() else ():
            if is_part(path.name):
                path.unlink(missing_ok=True)


def _steps(run: Run, sources: Sequence[Source], until: str, anew: str | None) -> None:
    rows, clips, facts = _scored(run, sources, anew)
    run.summary.rejected = [(row.source.path, problem) for row in rows if row.track.rejected for problem in row.problems[:1]]
    if until == "scores":
        _publish_scores(run, rows, clips)
        return
    annotate(run, [clip for clip in clips if clip.kept], facts)
    fill_identity(run, clips)
    _split(run.config, clips)
    if not any(clip.kept for clip in clips):
        _publish_scores(run, rows, clips)  # the reasons are in the tables
        raise UserError(_nothing_kept(rows, clips))
    publish(run, rows, clips, facts)


def _scored(run: Run, sources: Sequence[Source], anew: str | None) -> tuple[list[SourceRow], list[ClipRow], list[AnnotatorFacts]]:
    """Candidate clips with their scores and the policy's verdict."""
    policy = load_policy(run.config.policy) if run.config.policy is not None else Policy()
    facts = _describe(run)
    left = unfinished.begin(run, sources, facts)
    rows = source_rows(*unfinished.without_purged(run, len(sources), left, _track(run, left)))
    clips = clip_rows(rows)
    by_family = {one.family: one for one in facts}
    for clip in clips:
        place = [clip.facts[name] for name in ("track", "first_row", "last_row")]
        clip.keys = unit_keys(clip.names, clip.owner.track.key, place, run.config.size, by_family)
        if anew in clip.keys:
            run.store.path(anew, clip.keys[anew]).unlink(missing_ok=True)
    if "sync" in by_family:  # it costs a pass over the pictures: only for clips that nothing else speaks against
        _judge(clips, _without_sync(policy))
        annotate(run, [clip for clip in clips if clip.kept], [by_family["sync"]], only=("sync",))
        fill_sync(run, clips)
    _judge(clips, policy)
    counts = {"sources": len(rows), "sources rejected": sum(row.track.rejected for row in rows), "clips": len(clips)}
    run.summary.counts.update(counts)
    return rows, clips, facts


def _describe(run: Run) -> list[AnnotatorFacts]:
    """Ask a worker for the annotators.

    Raises:
        UserError: one cannot be made, or two are of one family.
    """
    outcomes: list[Outcome] = []
    run.executor.run(describe_annotators, [run.config.annotators], on_result=outcomes.append)
    if outcomes[0].kind != "ok":
        raise UserError(f"the annotators cannot be made ({outcomes[0].message}); correct 'annotators' in the settings")
    facts: list[AnnotatorFacts] = outcomes[0].value
    families = Counter(one.family for one in facts)
    for family, count in families.items():
        if count > 1:
            raise UserError(f"annotators: {count} of the family {family!r}; name one of each family at most")
    for family, seen in (("depth", ("parsing",)), ("normals", ("parsing", "depth"))):
        missing = [other for other in seen if other not in families]
        if family in families and missing:
            raise UserError(f"annotators: {family} needs {' and '.join(missing)}; name one of that family too")
    return facts


def _track(run: Run, sources: Sequence[Source]) -> list[TrackResult]:
    jobs = [TrackJob(source=source, work=str(run.store.root), tracking=run.config.tracking) for source in sources]
    results = {row: known for row, job in enumerate(jobs) if (known := track_stage.known_track(job)) is not None}
    waiting = [row for row in range(len(jobs)) if row not in results]

    def keep(outcome: Outcome) -> None:
        row = waiting[outcome.index]
        problem = f"{sources[row].path}: {outcome.message}"
        results[row] = outcome.value if outcome.kind == "ok" else TrackResult(problems=[problem], rejected=True)

    run.jobs("track", track_stage.track_source, [jobs[row] for row in waiting], keep)
    return [results[row] for row in range(len(jobs))]


def _judge(clips: Sequence[ClipRow], policy: Policy) -> None:
    kept, reasons = judge(clip_table(clips), policy)
    for clip, keep, why in zip(clips, kept.tolist(), reasons, strict=True):
        clip.kept, clip.reasons = keep, list(why)


def _without_sync(policy: Policy) -> Policy:
    """The policy before lip sync is known."""

    def free(limits: Limits) -> Limits:
        return replace(limits, av_offset=None, av_confidence=None)

    return replace(policy, minimum=free(policy.minimum), maximum=free(policy.maximum))


def _split(config: BuildConfig, clips: Sequence[ClipRow]) -> None:
    kept = [clip for clip in clips if clip.kept]
    given = [clip.owner.source.split for clip in kept]
    fractions = {"train": config.splits.train, "val": config.splits.val, "test": config.splits.test}
    for clip, split in zip(kept, assign(clip_table(kept), fractions, config.seed, given), strict=True):
        clip.split = split


def _publish_scores(run: Run, rows: Sequence[SourceRow], clips: Sequence[ClipRow]) -> None:
    run.storage.remove(FILE)  # tables that no shard knows: the data set is not whole until a build goes to the end
    write_table(run.storage, "sources.parquet", source_table(rows, clips))
    write_table(run.storage, "clips.parquet", clip_table(clips))


def _nothing_kept(rows: Sequence[SourceRow], clips: Sequence[ClipRow]) -> str:
    if clips:
        reasons = sorted({reason for clip in clips for reason in clip.reasons})
        return f"none of the {len(clips)} clips is kept ({'; '.join(reasons[:3])}); choose another policy"
    problems = [problem for row in rows for problem in row.problems[:1] if row.track.rejected]
    return f"no clip was found in {len(rows)} sources ({'; '.join(problems[:3])}); give videos that show faces"
