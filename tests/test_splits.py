"""Splits that do not leak, and the evidence against them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_toolkit.annotators.identity_dlib import DlibIdentity
from datasets_toolkit.curation.splits import SAME_PERSON, SPLITS, assign, evidence, shared
from datasets_toolkit.errors import UserError
from datasets_toolkit.media.picture_hash import SAME_PICTURE, picture_hash, signs

pa = pytest.importorskip("pyarrow")

EVEN = {"train": 0.4, "val": 0.3, "test": 0.3}


def clips(rows: list[tuple[str, str]], **columns: list) -> pa.Table:
    """Clips of (person, source)."""
    people, sources = zip(*rows, strict=True) if rows else ((), ())
    ids = [f"c{row}" for row in range(len(rows))]
    return pa.table(
        {"clip": pa.array(ids, pa.string()), "person": pa.array(people, pa.string()), "source": pa.array(sources, pa.string()), **columns}
    )


pairs = st.lists(st.tuples(st.sampled_from(["", *"abcdefgh"]), st.sampled_from([f"s{number}" for number in range(12)])), max_size=20)


@settings(max_examples=200, deadline=None)
@given(rows=pairs, seed=st.integers(0, 5))
def test_splits_share_nobody_and_nothing(rows: list, seed: int) -> None:
    table = clips(rows)
    splits = assign(table, EVEN, seed)
    assert set(splits) <= set(SPLITS)
    assert shared(table, splits) == []
    assert splits == assign(table, EVEN, seed)


@settings(max_examples=100, deadline=None)
@given(rows=pairs, order=st.randoms(use_true_random=False))
def test_the_order_of_clips_does_not_matter(rows: list, order: object) -> None:
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    splits = assign(clips(rows), EVEN)
    assert assign(clips([rows[row] for row in shuffled]), EVEN) == [splits[row] for row in shuffled]


@settings(max_examples=60, deadline=None)
@given(first=st.integers(1, 40), more=st.integers(0, 40))
def test_people_stay_where_they_are_when_others_come(first: int, more: int) -> None:
    rows = [(f"person {number}", f"s{number}-{take}") for number in range(first + more) for take in range(2)]
    before, after = assign(clips(rows[: 2 * first]), EVEN), assign(clips(rows), EVEN)
    assert after[: 2 * first] == before


def test_a_person_does_not_depend_on_the_source_it_is_seen_in() -> None:
    (first,), (second,) = assign(clips([("alice", "s0")]), EVEN), assign(clips([("alice", "another")]), EVEN)
    assert first == second


def test_hours_come_near_the_fractions() -> None:
    splits = assign(clips([(f"p{number}", f"s{number}") for number in range(4000)]), {"train": 0.8, "val": 0.15, "test": 0.05}, 3)
    shares = [splits.count(name) / 4000 for name in SPLITS]
    assert shares == pytest.approx([0.8, 0.15, 0.05], abs=0.03)  # more than 4 standard deviations
    assert splits != assign(clips([(f"p{number}", f"s{number}") for number in range(4000)]), {"train": 0.8, "val": 0.15, "test": 0.05}, 4)


def test_a_split_without_share_stays_empty() -> None:
    rows = [(f"p{number}", f"s{number}") for number in range(200)]
    assert set(assign(clips(rows), {"train": 1.0})) == {"train"}
    assert set(assign(clips(rows), {"train": 0.0, "val": 0.5, "test": 0.5})) == {"val", "test"}


def test_one_file_under_two_names_stays_together() -> None:
    rows = [(f"p{number}", f"set-{part}-{number:08x}") for number in range(40) for part in ("one", "two")]
    rows = [(f"{person} of {source[4:7]}", source) for person, source in rows]
    splits = assign(clips(rows), EVEN)
    assert splits[::2] == splits[1::2]
    assert set(splits) == set(SPLITS)


def test_splits_that_data_sets_came_with_hold_for_all_that_is_tied_to_them() -> None:
    rows = [("alice", "s0"), ("alice", "s1"), ("bob", "s2"), ("carol", "s3"), ("dave", "s3")]
    splits = assign(clips(rows), {"train": 1.0}, given=["test", "train", "", None, "val"])
    assert splits == ["test", "test", "train", "val", "val"]


@pytest.mark.parametrize(
    ("fractions", "given_", "reason"),
    [
        ({"train": 0.5}, None, "must add up to 1"),
        ({"train": 1.5, "val": -0.5}, None, "must lie in"),
        ({"training": 1.0}, None, "'training': must be one of train, val, test"),
        ({"train": 1.0}, ["dev"], "'dev': must be one of"),
    ],
)
def test_bad_fractions_and_names_are_refused(fractions: dict, given_: list | None, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        assign(clips([("a", "s")]), fractions, given=given_)


def test_what_is_shared_is_told() -> None:
    table = clips([("alice", "s0"), ("alice", "s1"), ("", "s2"), ("bob", "s2"), ("", "s3")])
    assert shared(table, ["train", "val", "train", "test", ""]) == [
        "person 'alice' is in train and val",
        "source 's2' is in test and train",
    ]
    assert shared(table, ["train", "train", "val", "", ""]) == []


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(2, 14))
def test_the_nearest_identities_are_those_of_a_full_search(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, 6)).astype(np.float32)
    splits = [str(name) for name in random.choice([*SPLITS, ""], count)]
    table = clips([(f"p{row}", f"s{row}") for row in range(count)], identity=vectors.tolist())
    found = evidence(table, splits, count=1000)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    best = [
        cosine[a, b]
        for a in range(count)
        for b in range(count)
        if splits[a] and splits[b] and SPLITS.index(splits[a]) < SPLITS.index(splits[b])
    ]
    assert len(found) <= len(best)
    assert bool(found) == bool(best)
    for pair in found:
        a, b = int(pair.first[1:]), int(pair.second[1:])
        assert pair.splits == (splits[a], splits[b])
        assert SPLITS.index(splits[a]) < SPLITS.index(splits[b])
        assert pair.similarity == pytest.approx(cosine[a, b], abs=1e-5)
        assert pair.leak == (pair.similarity >= SAME_PERSON)
    if best:
        assert found[0].similarity == pytest.approx(max(best), abs=1e-5)
        assert [pair.similarity for pair in found] == sorted((pair.similarity for pair in found), reverse=True)
    for b in range(count):  # every clip's best partner in each earlier split is among the pairs
        for name in SPLITS[: SPLITS.index(splits[b])] if splits[b] else ():
            rivals = [a for a in range(count) if splits[a] == name]
            if rivals:
                nearest = max(rivals, key=lambda a: cosine[a, b])
                assert (f"c{nearest}", f"c{b}") in {(pair.first, pair.second) for pair in found}


def test_the_same_person_under_two_names_is_a_leak() -> None:
    face = np.random.default_rng(0).normal(size=512)
    table = clips([("alice", "s0"), ("anna", "s1"), ("bob", "s2")], identity=[face.tolist(), (face * 1.01).tolist(), (-face).tolist()])
    first, *others = evidence(table, ["train", "test", "test"])
    assert (first.first, first.second, first.measure, first.leak) == ("c0", "c1", "identity", True)
    assert first.similarity == pytest.approx(1)
    assert not any(pair.leak for pair in others)


@pytest.mark.parametrize(("cosine", "leak"), [(0.94, False), (0.96, True)])
def test_descriptors_of_dlib_have_a_limit_of_their_own(cosine: float, leak: bool) -> None:
    vectors = np.zeros((2, DlibIdentity.numbers))
    vectors[0, 0], vectors[1, :2] = 1, (cosine, np.sqrt(1 - cosine**2))
    (pair,) = evidence(clips([("alice", "s0"), ("bob", "s1")], identity=vectors.tolist()), ["train", "val"])
    assert pair.similarity == pytest.approx(cosine)
    assert pair.leak == leak


def test_the_same_file_is_a_leak() -> None:
    table = clips([("alice", "s0"), ("alice", "s0"), ("anna", "s1"), ("bob", "s2")])
    contents = {"s0": "aa", "s1": "aa", "s2": "bb"}
    (pair,) = evidence(table, ["train", "train", "test", "val"], contents=contents)
    assert (pair.first, pair.second, pair.measure, pair.similarity, pair.leak) == ("c0", "c2", "content", 1.0, True)
    assert evidence(table, ["train", "train", "train", "val"], contents=contents) == []


def test_pictures_serve_where_there_are_no_identities() -> None:
    random = np.random.default_rng(1)
    hashes = {f"c{row}": random.integers(0, 256, (3, 32), np.uint8) for row in range(4)}
    hashes["c3"][1] = hashes["c0"][2]
    hashes["c3"][1, 0] ^= 1
    table = clips([(f"p{row}", f"s{row}") for row in range(4)], identity=pa.array([None] * 4, pa.list_(pa.float32())))
    first, *others = evidence(table, ["train", "train", "val", "val"], hashes=hashes)
    assert (first.first, first.second, first.measure, first.leak) == ("c0", "c3", "picture", True)
    assert first.similarity == pytest.approx(1 - 2 / 256)
    assert not any(pair.leak for pair in others)


def test_pictures_of_one_scene_have_like_hashes(astronaut: np.ndarray) -> None:
    import cv2
    from skimage.data import cat

    small = cv2.resize(astronaut, (200, 200), interpolation=cv2.INTER_AREA)
    brighter = np.clip(small * 0.8 + 30, 0, 255).astype(np.uint8)
    poor = cv2.imdecode(cv2.imencode(".jpg", brighter, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)
    rows = signs(picture_hash([astronaut, poor, astronaut[:, ::-1], cat()]))
    assert rows.shape == (4, 256)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1)
    similar = rows @ rows.T
    assert similar[0, 1] > 0.9
    assert abs(similar[0, 2:]).max() < SAME_PICTURE / 2
    assert abs(similar[2, 3]) < SAME_PICTURE / 2


def test_hashes_of_nothing() -> None:
    assert picture_hash([]).shape == (0, 32)
