"""The step of a build that makes labels: which units are missing, the jobs that make them, and what clips learn from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datasets_toolkit.build.annotate_stage import annotate_source
from datasets_toolkit.build.executors import Outcome
from datasets_toolkit.build.pipeline import AnnotateJob, AnnotatorFacts, ClipTask
from datasets_toolkit.shards.codecs import decode_array

if TYPE_CHECKING:
    from datasets_toolkit.build.manifest import ClipRow
    from datasets_toolkit.build.run import Run


def annotate(run: Run, clips: Sequence[ClipRow], facts: Sequence[AnnotatorFacts], only: Sequence[str] | None = None) -> None:
    """Make the missing units of clips; those that cannot be made reject their clips with a reason.

    Args:
        run: the build.
        clips: kept ones.
        facts: of the annotators.
        only: families to make; None makes all.
    """
    jobs = _jobs(run, clips, facts, only)
    problems: dict[str, str] = {}

    def keep(outcome: Outcome) -> None:
        problem = outcome.message if outcome.kind != "ok" else outcome.value.problem
        if problem:
            problems[jobs[outcome.index].track_key] = problem

    run.jobs("annotate" if only is None else " ".join(only), annotate_source, jobs, keep)
    for clip in clips:
        if _missing(run, clip, only):
            clip.kept = False
            clip.reasons.append(f"could not be annotated: {problems.get(clip.owner.track.key, 'its units have vanished')}")


def _jobs(run: Run, clips: Sequence[ClipRow], facts: Sequence[AnnotatorFacts], only: Sequence[str] | None) -> list[AnnotateJob]:
    """One job for each source that lacks something, with its clips in the order of their first rows."""
    by_source: dict[str, list[ClipTask]] = {}
    owners = {}
    for clip in clips:
        missing = _missing(run, clip, only)
        if missing:
            track, first, last = (clip.facts[name] for name in ("track", "first_row", "last_row"))
            task = ClipTask(names=clip.names, track=track, first=first, last=last, keys=missing)
            by_source.setdefault(clip.names.source, []).append(task)
            owners[clip.names.source] = clip.owner
    annotators = {one.family: one.config for one in facts}
    return [
        AnnotateJob(
            source=owners[name].source,
            work=str(run.store.root),
            track_key=owners[name].track.key,
            size=run.config.size,
            annotators=annotators,
            clips=sorted(tasks, key=lambda task: (task.first, task.track)),
        )
        for name, tasks in by_source.items()
    ]


def _missing(run: Run, clip: ClipRow, only: Sequence[str] | None) -> dict[str, str]:
    wanted = {family: key for family, key in clip.keys.items() if only is None or family in only}
    return {family: key for family, key in wanted.items() if not run.store.has(family, key)}


def fill_sync(run: Run, clips: Sequence[ClipRow]) -> None:
    """Give clips their A/V offset (s, positive where the sound comes too early) and its confidence, where they were measured."""
    for clip in clips:
        if run.store.has("sync", clip.keys["sync"]):
            score = json.loads(run.store.first("sync", clip.keys["sync"]))
            clip.scores["av_offset"], clip.scores["av_confidence"] = score["offset"], score["confidence"]


def fill_identity(run: Run, clips: Sequence[ClipRow]) -> None:
    """Give clips their identity embedding, where there is one."""
    for clip in clips:
        if "identity" in clip.keys and run.store.has("identity", clip.keys["identity"]):
            clip.identity = [float(value) for value in decode_array(run.store.first("identity", clip.keys["identity"]))]
