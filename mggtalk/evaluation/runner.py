"""Runs a suite: reads its pairs, lets every method make its pictures, and scores them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import ByteImage
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.data.pairs import people_of
from mggtalk.evaluation.cases import Case, Studio, Truth
from mggtalk.evaluation.methods import Method
from mggtalk.evaluation.protocol import PlannedPair, Suite, plan
from mggtalk.evaluation.results import PairResult, SuiteResult
from mggtalk.evaluation.scoring import Scorer, Seen, at
from mggtalk.evaluation.sets import Gallery

log = logging.getLogger(__name__)

OWN = "source's own frames"
"""Row of the real pictures where another person drives: what the source's own clip scores in measures of identity."""
PROTOCOLS = {
    "self": "The first frame of a clip is the source, the face tracked in its other frames drives, and the clip itself is the truth, in "
    "the crop of the source. Head and face move by their changes since the first frame. Identity too is compared frame by frame.",
    "cross": "The first frame of a person's first clip is the source; clips of other people drive. The head is put where the driver's "
    "is, with the driver's expressions about the mean face of their clip; expression and pose are compared with the driver's, identity "
    "with the source's.",
}
FILM = 50
"""Frames of a video of a pair at most."""
Progress = Callable[[Sequence[PlannedPair]], Iterable[PlannedPair]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a suite runs on: the data set, the methods (the one under test first), and what scores."""

    reader: ShardReader
    methods: tuple[Method, ...]
    scorer: Scorer


def run_suite(suite: Suite, bench: Bench, progress: Progress = iter) -> SuiteResult:
    """All numbers of a suite. Pairs that cannot be read or animated are told in ``refused``.

    Raises:
        UserError: the suite cannot be had from this data set, or no pair could be measured.
    """
    plans = plan(bench.reader.index, bench.reader.clips, suite)
    studio = Studio(bench.reader, suite.size, bench.scorer.face_model)
    gallery = Gallery(bench.scorer.inception)
    pairs: list[PairResult] = []
    refused: dict[str, str] = {}
    for planned in progress(plans):
        try:
            pairs.append(_measure(planned, studio, bench, gallery))
        except UserError as error:
            log.warning("%s: %s", planned.name, error)
            refused[planned.name] = str(error)
    if not pairs:
        raise UserError(f"suite {suite.name}: no pair could be measured; the first reason: {next(iter(refused.values()))}")
    measured, missing = bench.scorer.described(suite.kind, jitter=bool(suite.run))
    about = {method.name: method.about for method in bench.methods}
    if suite.kind == "cross":
        about[OWN] = "Real pictures of the source's clip, against the source."
    return SuiteResult(
        suite=suite.name,
        protocol=PROTOCOLS[suite.kind],
        settings=asdict(suite),
        data=described(bench.reader, suite.split, {person for one in plans for person in (one.source_person, one.driver_person)}),
        methods=tuple(about),
        about=about,
        metrics=measured,
        missing=missing,
        pairs=tuple(pairs),
        refused=refused,
        sets=gallery.distances(suite.kind),
    )


def _measure(planned: PlannedPair, studio: Studio, bench: Bench, gallery: Gallery) -> PairResult:
    """One pair: every method on the same frames, compared with the same truth; its pictures join the gallery if all went well."""
    scorer, case = bench.scorer, studio.case(planned)
    own = planned.drives_itself
    truth = studio.truth(planned.rows[planned.compared], planned.source if own else None)
    aims = scorer.see(truth.pictures, truth.intrinsics, truth.landmarks)
    near = truth.landmarks if own else studio.near(case, planned.compared)
    person = aims if own else scorer.see([case.picture], at(case, 1), _points(case))
    values: dict[str, dict[str, float]] = {}
    spent: dict[str, float] = {}
    made: dict[str, Sequence[ByteImage]] = {}
    shake = _truth_of_run(studio, scorer, planned) if own and len(planned.run) else None
    for method in bench.methods:
        start = time.perf_counter()
        output = method.pictures(case, [int(row) for row in (*planned.compared, *planned.run)])
        spent[method.name] = 1e3 * (time.perf_counter() - start) / len(output)
        compared, run = output[: len(planned.compared)], output[len(planned.compared) :]
        made[method.name] = compared
        seen = scorer.see(compared, at(case, len(compared)), near)
        row = {**scorer.motion(seen, aims, landmarks=own), **scorer.identity(seen, person)}
        if own:
            row |= scorer.pictures(compared, truth)
        if shake is not None:
            row |= scorer.jitter(scorer.see(run, at(case, len(run)), shake[1]), shake[0])
        values[method.name] = row
    real = truth if own else studio.truth(planned.own, planned.source)
    if not own:
        values[OWN] = scorer.identity(scorer.see(real.pictures, real.intrinsics, real.landmarks), person)
    gallery.add(made, _real(planned, real, truth))
    return PairResult(
        name=planned.name,
        source=studio.reader.key(planned.source),
        source_person=planned.source_person,
        driver=planned.driver,
        driver_person=planned.driver_person,
        frames=tuple(studio.reader.key(int(row)) for row in planned.rows[planned.compared]),
        values=values,
        milliseconds=spent,
    )


def _points(case: Case) -> Float[Tensor, "1 478 2"]:
    return torch.from_numpy(case.landmarks)[None]


def _truth_of_run(studio: Studio, scorer: Scorer, planned: PlannedPair) -> tuple[Seen, Float[Tensor, "k 478 2"]]:
    truth = studio.truth(planned.rows[planned.run], planned.source)
    return scorer.see(truth.pictures, truth.intrinsics, truth.landmarks), truth.landmarks


def _real(planned: PlannedPair, own: Truth, driver: Truth) -> dict[Hashable, ByteImage]:
    """Real pictures by row and crop: of the source's own clip, and of the driver if that is another one."""
    found: dict[Hashable, ByteImage] = {(int(row), planned.source): one for row, one in zip(planned.own, own.pictures, strict=True)}
    if not planned.drives_itself:
        rows = planned.rows[planned.compared]
        found |= {(int(row), None): one for row, one in zip(rows, driver.pictures, strict=True)}
    return found


def described(reader: ShardReader, split: str, people: AbstractSet[str]) -> dict[str, Any]:
    """The data set, the people measured, and who of them is in the split for training too."""
    return {
        "name": str(reader.storage.root).rstrip("/").rsplit("/", 1)[-1],
        "manifests": dict(reader.info.manifests),
        "split": split,
        "people": sorted(people),
        "people of the training split among them": sorted(people & set(people_of_splits(reader).get("train", ()))),
    }


def people_of_splits(reader: ShardReader) -> Mapping[str, list[str]]:
    """Names of the people of each split that has samples."""
    people = people_of(reader.clips)
    splits: dict[str, set[str]] = {}
    rows = np.unique(np.stack([reader.index["split"].to_numpy().astype(str), reader.index["clip"].to_numpy().astype(str)]), axis=1)
    for split, clip in rows.T:
        splits.setdefault(str(split), set()).add(people[str(clip)])
    return {split: sorted(found) for split, found in sorted(splits.items())}


def film(planned: PlannedPair, studio: Studio, methods: Sequence[Method]) -> dict[str, list[ByteImage]]:
    """Consecutive frames of a pair side by side: source and driver (or truth), then the methods."""
    case, own = studio.case(planned), planned.drives_itself
    rows = list(range(1 if own else 0, len(planned.rows)))[:FILM]
    truth = studio.truth(planned.rows[rows], planned.source if own else None)
    first = {"truth" if own else "driver": list(truth.pictures)}
    start = {} if own else {"source": [case.picture] * len(rows)}
    return {**start, **first, **{method.name: method.pictures(case, rows) for method in methods}}
