"""Splits that do not leak: whole people and whole sources go to one side, and adding data never moves a person.

A group is a set of clips tied together by a common person, a common source or sources of the same content (a source's id ends in the
hash of its file). Its place u in [0, 1) is the least of the hashes of its people, and the split is the part of [0, 1) that u falls into:
test first, then val, then train.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.dataset_info import SPLITS

if TYPE_CHECKING:
    import pyarrow


SAME_PERSON = 0.5
"""Cosine of two identity embeddings from which on they are told as the same person; ArcFace pairs of two people rarely pass 0.4."""
SAME_PERSON_DLIB = 0.95
"""The same of dlib's descriptors, which have 128 numbers and lie close together: 4 of 4975 pairs of clips of two people pass it."""
_DLIB_NUMBERS = 128
_CHUNK = 2048
_CONTENT = re.compile("-([0-9a-f]{8})$")  # of a source's id: the same file under two names, or two stretches of one file


@dataclass(frozen=True, kw_only=True)
class NearPair:
    """Two clips of different splits that are suspiciously alike.

    Attributes:
        first: id of a clip.
        second: id of a clip in another split.
        splits: of the two.
        measure: ``content`` (the same file), ``identity`` (cosine of embeddings) or ``picture`` (share of equal bits of a hash).
        similarity: 1 is the same.
        leak: whether that is enough to call it a leak.
    """

    first: str
    second: str
    splits: tuple[str, str]
    measure: str
    similarity: float
    leak: bool


def assign(clips: pyarrow.Table, fractions: Mapping[str, float], seed: int = 0, given: Sequence[str | None] | None = None) -> list[str]:
    """The split of each clip.

    People are placed by a hash of their name and the seed alone, so a person stays where it is when others are added or removed; only
    a new source that ties two people together (or a file listed under two names) can move one of them. By hours the fractions are met
    on average, not exactly.

    Args:
        clips: rows with ``clip``, ``source`` and ``person``; an empty person counts as one of its own, named like the source.
        fractions: share of each of :data:`SPLITS`; they add up to 1.
        seed: another seed places people anew.
        given: of each clip the split that its data set came with, empty or None where there is none. It holds for all that the clip
            is tied to; where a person was given to several splits, test goes before val and val before train.

    Raises:
        UserError: fractions that do not add up to 1, or a split of another name.
    """
    _check(fractions, given or ())
    people, sources = _people(clips), clips.column("source").to_pylist()
    groups = _groups(people, sources)
    place: dict[int, float] = {}
    fixed: dict[int, str] = {}
    for row, group in enumerate(groups):
        place[group] = min(place.get(group, 1.0), _place(people[row], seed))
        wanted = (given[row] if given is not None else None) or ""
        if wanted and (group not in fixed or SPLITS.index(wanted) > SPLITS.index(fixed[group])):
            fixed[group] = wanted
    return [fixed.get(group) or _split_at(place[group], fractions) for group in groups]


def _people(clips: pyarrow.Table) -> list[str]:
    rows = zip(clips.column("person").to_pylist(), clips.column("source").to_pylist(), strict=True)
    return [person or source for person, source in rows]


def _check(fractions: Mapping[str, float], given: Sequence[str | None]) -> None:
    for name in [*fractions, *(name for name in given if name)]:
        if name not in SPLITS:
            raise UserError(f"split {name!r}: must be one of {', '.join(SPLITS)}")
    if any(not 0 <= share <= 1 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        shares = ", ".join(f"{name} {share:g}" for name, share in fractions.items())
        raise UserError(f"fractions of the splits ({shares}): each must lie in [0, 1], and they must add up to 1")


def _place(person: str, seed: int) -> float:
    """A number in [0, 1) that depends on the name and the seed only."""
    digest = hashlib.sha256(f"{seed}\0{person}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _split_at(place: float, fractions: Mapping[str, float]) -> str:
    end = 0.0
    for name in ("test", "val"):
        end += fractions.get(name, 0.0)
        if place < end:
            return name
    return "train" if fractions.get("train", 0.0) > 0 else next(name for name in ("val", "test") if fractions.get(name, 0.0) > 0)


def _groups(people: Sequence[str], sources: Sequence[str]) -> list[int]:
    """A number for each clip, the same for clips that a chain of common people, sources and contents ties together."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for person, source in zip(people, sources, strict=True):
        parent[root(("person", person))] = root(("source", source))
        if content := _CONTENT.search(source):
            parent[root(("content", content[1]))] = root(("source", source))
    numbers: dict[tuple[str, str], int] = {}
    return [numbers.setdefault(root(("source", source)), len(numbers)) for source in sources]


def shared(clips: pyarrow.Table, splits: Sequence[str]) -> list[str]:
    """People and sources that lie in more than one split, in words; none if the splits are disjoint. Clips without a split do not count."""
    told = []
    for kind, names in (("person", _people(clips)), ("source", clips.column("source").to_pylist())):
        places: dict[str, set[str]] = {}
        for name, split in zip(names, splits, strict=True):
            if split:
                places.setdefault(name, set()).add(split)
        told += [f"{kind} {name!r} is in {' and '.join(sorted(where))}" for name, where in sorted(places.items()) if len(where) > 1]
    return told


def evidence(
    clips: pyarrow.Table,
    splits: Sequence[str],
    *,
    contents: Mapping[str, str] | None = None,
    hashes: Mapping[str, npt.NDArray[np.uint8]] | None = None,
    count: int = 20,
) -> list[NearPair]:
    """The nearest pairs of clips across splits, most alike first: what there is to say against the splits.

    Args:
        clips: rows of ``clips.parquet``; ``identity`` is used where clips have it.
        splits: of each clip; clips without one are left out.
        contents: SHA-256 of each source's file; equal ones are a leak.
        hashes: perceptual hashes of pictures of a clip (p x bytes, :func:`datasets_toolkit.media.picture_hash.picture_hash`), for clips
            that have no identity embedding.
        count: pairs to return for each measure.
    """
    rows = [row for row, split in enumerate(splits) if split]
    pairs = _same_content(clips, splits, rows, contents or {})[:count]
    identities = clips.column("identity").to_pylist() if "identity" in clips.column_names else [None] * clips.num_rows
    known = [row for row in rows if identities[row] is not None]
    if known:
        vectors = np.array([identities[row] for row in known], np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        limit = SAME_PERSON_DLIB if vectors.shape[1] == _DLIB_NUMBERS else SAME_PERSON
        pairs += _nearest(clips, splits, known, vectors, "identity", limit, count)
    if hashes:
        from datasets_toolkit.media.picture_hash import SAME_PICTURE, signs

        ids = clips.column("clip").to_pylist()
        owners = [row for row in rows if identities[row] is None for _ in hashes.get(ids[row], ())]
        if owners:
            packed = np.concatenate([hashes[ids[row]] for row in dict.fromkeys(owners)])
            pairs += _nearest(clips, splits, owners, signs(packed), "picture", SAME_PICTURE, count)
    return pairs


def _same_content(clips: pyarrow.Table, splits: Sequence[str], rows: Sequence[int], contents: Mapping[str, str]) -> list[NearPair]:
    ids, sources = clips.column("clip").to_pylist(), clips.column("source").to_pylist()
    first: dict[tuple[str, str], int] = {}
    for row in rows:
        if content := contents.get(sources[row]):
            first.setdefault((content, splits[row]), row)
    pairs = []
    for (content, split), row in first.items():
        for other in SPLITS[SPLITS.index(split) + 1 :]:
            if (content, other) in first:
                second = first[content, other]
                names = (split, other)
                pairs.append(NearPair(first=ids[row], second=ids[second], splits=names, measure="content", similarity=1.0, leak=True))
    return pairs


def _nearest(
    clips: pyarrow.Table,
    splits: Sequence[str],
    rows: Sequence[int],
    vectors: npt.NDArray[np.float32],
    measure: str,
    limit: float,
    count: int,
) -> list[NearPair]:
    """The best partner of each clip in every later split, by the product of unit vectors (n x d, one for each of ``rows``)."""
    ids = clips.column("clip").to_pylist()
    where = np.array([SPLITS.index(splits[row]) for row in rows])
    best: dict[tuple[int, int], float] = {}
    for later in (1, 2):
        others = np.flatnonzero(where == later)
        for start in range(0, len(others), _CHUNK):
            chosen = others[start : start + _CHUNK]
            for earlier in range(later):
                candidates = np.flatnonzero(where == earlier)
                for one, partner, value in _best_partners(vectors, chosen, candidates):
                    pair = (rows[partner], rows[one])
                    best[pair] = max(best.get(pair, -1.0), value)
    ranked = sorted(best.items(), key=lambda item: (-item[1], ids[item[0][0]], ids[item[0][1]]))[:count]
    return [
        NearPair(first=ids[a], second=ids[b], splits=(splits[a], splits[b]), measure=measure, similarity=value, leak=value >= limit)
        for (a, b), value in ranked
    ]


def _best_partners(
    vectors: npt.NDArray[np.float32], chosen: npt.NDArray[np.intp], candidates: npt.NDArray[np.intp]
) -> list[tuple[int, int, float]]:
    """For each of ``chosen`` the nearest of ``candidates`` and the product of the two vectors; in blocks, so that memory stays small."""
    value, partner = np.full(len(chosen), -np.inf), np.zeros(len(chosen), np.intp)
    for start in range(0, len(candidates), _CHUNK):
        block = candidates[start : start + _CHUNK]
        products = vectors[chosen] @ vectors[block].T
        nearest = products.argmax(1)
        score = products[np.arange(len(chosen)), nearest]
        better = score > value
        value[better], partner[better] = score[better], block[nearest[better]]
    return [(int(one), int(other), float(score)) for one, other, score in zip(chosen, partner, value, strict=True) if np.isfinite(score)]
