"""Pairs of frames: the rules, the balance over persons, and the order of an epoch as a function of seed and epoch alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from datasets_toolkit.errors import UserError
from datasets_toolkit.faces.head_pose import euler_degrees
from mggtalk.data import pairs as pairs_module
from mggtalk.data.batches import Cursor, EveryPair, Share, TrainBatches
from mggtalk.data.pairs import FrameTable, PairError, PairPlan, PairRule, Pairs, cross_pairs, frame_table, narrowed, tails

MEASURES = ("time", "pose", "expression")
seeds = st.integers(0, 2**32 - 1)


def made_table(lengths: dict[str, list[int]], seed: int = 0) -> FrameTable:
    """Persons with clips of so many frames; frames of all clips are mixed in the index, and one sample is of another split."""
    random = np.random.default_rng(seed)
    clips = [(person, f"{person}-{number}", frames) for person, many in lengths.items() for number, frames in enumerate(many)]
    rows = [(clip, frame / 25) for _, clip, frames in clips for frame in range(frames)]
    rows = [rows[place] for place in random.permutation(len(rows))] + [("other", 0.0)]
    angles = random.uniform(-40, 40, (len(rows), 3))
    index = pa.table(
        {
            "clip": [clip for clip, _ in rows],
            "split": ["train"] * (len(rows) - 1) + ["val"],
            "time": [time for _, time in rows],
            **{name: angles[:, axis] for axis, name in enumerate(("yaw", "pitch", "roll"))},
            "expression": pa.array(random.uniform(0, 1, (len(rows), 52)).tolist(), pa.list_(pa.float32())),
        }
    )
    people = pa.table({"clip": ["other", *(clip for _, clip, _ in clips)], "person": ["who", *(person for person, _, _ in clips)]})
    return frame_table(index, people, "train")


def slow_distance(table: FrameTable, first: int, second: int, measure: str) -> float:
    if measure == "time":
        return float(abs(table.time[first] - table.time[second]))
    if measure == "expression":
        return float(np.linalg.norm(table.expression[first].astype(float) - table.expression[second]))
    rotations = [Rotation.from_euler("YXZ", table.angles[frame] * [1, -1, -1], degrees=True) for frame in (first, second)]
    return float(np.degrees((rotations[0].inv() * rotations[1]).magnitude()))


def places(table: FrameTable, rows: np.ndarray) -> np.ndarray:
    """Frames of the table from rows of the index."""
    return np.array([int(np.flatnonzero(table.rows == row)[0]) for row in rows])


def test_frames_are_sorted_by_clip_and_time() -> None:
    table = made_table({"a": [5, 3], "b": [4]})
    assert len(table) == 12 and len(list(table.spans())) == 3
    for span in table.spans():
        assert len(set(table.clip[span])) == len(set(table.person[span])) == 1
        np.testing.assert_allclose(table.time[span] * 25, np.arange(span.stop - span.start))
    assert sorted(table.rows) == list(range(12)), "the sample of the other split is left out"


def test_angles_are_those_of_the_tracker() -> None:
    """The distance of poses turns yaw, pitch and roll into the rotation that the tracker took them from."""
    random = np.random.default_rng(3)
    matrices = np.tile(np.eye(4), (50, 1, 1))
    turns = Rotation.from_rotvec(random.uniform(-0.6, 0.6, (50, 3))).as_matrix()
    matrices[:, :3, :3] = np.diag([1.0, -1, -1]) @ turns
    table = made_table({"a": [50]})
    moved = FrameTable(**{**table.__dict__, "angles": euler_degrees(matrices)})
    found = pairs_module._features(moved, "pose").reshape(-1, 3, 3)
    np.testing.assert_allclose(found, turns, atol=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_distances_equal_the_slow_ones(measure: str) -> None:
    table = made_table({"a": [7]})
    features = pairs_module._features(table, measure)
    found = pairs_module._distances(features, features, measure)
    expected = [[slow_distance(table, first, second, measure) for second in range(7)] for first in range(7)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, measure=st.sampled_from(MEASURES), low=st.floats(0, 1), span=st.floats(0.1, 1), block=st.sampled_from([1, 20, 1 << 20]))
def test_every_pair_keeps_the_rule(seed: int, measure: str, low: float, span: float, block: int) -> None:
    table = made_table({"a": [9, 2], "b": [6], "c": [1]}, seed)
    unit = {"time": 0.2, "pose": 60.0, "expression": 3.0}[measure]
    rule = PairRule(measure=measure, minimum=low * unit, maximum=(low + span) * unit)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_module, "BLOCK", block)
        partners = {
            first: {
                second
                for second in range(len(table))
                if table.clip[second] == table.clip[first]
                and second != first
                and rule.minimum <= slow_distance(table, first, second, measure) <= rule.maximum
            }
            for first in range(len(table))
        }
        if not any(partners.values()):
            with pytest.raises(PairError, match=measure):
                PairPlan(table, rule)
            return
        plan = PairPlan(table, rule, pairs=60)
        assert [bool(found) for found in partners.values()] == plan.usable.tolist()
        chosen = plan.epoch(seed, 1)
    for first, second in zip(places(table, chosen.source), places(table, chosen.target), strict=True):
        assert second in partners[first]


def test_targets_are_even_over_the_partners() -> None:
    table = made_table({"a": [6]})
    chosen = PairPlan(table, PairRule(minimum=0.06), pairs=6000).epoch(1, 0)
    first, second = places(table, chosen.source[:6000]), places(table, chosen.target[:6000])
    for frame in range(6):
        counts = np.bincount(second[first == frame], minlength=6)
        allowed = np.abs(np.arange(6) - frame) >= 2
        expected = 1000 / allowed.sum()
        assert not counts[~allowed].any() and np.abs(counts[allowed] - expected).max() < 5 * np.sqrt(expected)


def test_persons_have_equal_shares_however_long_their_clips() -> None:
    table = made_table({"short": [4], "long": [100, 60], "middle": [20]})
    for exponent, weights in ((0.0, [1, 1, 1]), (1.0, [160, 20, 4]), (0.5, [160**0.5, 20**0.5, 2.0])):
        plan = PairPlan(table, PairRule(), pairs=301, exponent=exponent)
        chosen = plan.epoch(5, 2)
        counts = Counter(table.person[places(table, chosen.source)].tolist())
        assert len(chosen) == 301 and sum(counts.values()) == 301
        for person, weight in enumerate(weights):  # numbered by name: long, middle, short
            assert abs(counts[person] - 301 * weight / sum(weights)) < 1, exponent


@settings(max_examples=25, deadline=None)
@given(seed=seeds, count=st.integers(1, 40), exponent=st.sampled_from([0.0, 0.5, 1.0]))
def test_within_a_person_every_frame_is_a_source_equally_often(seed: int, count: int, exponent: float) -> None:
    table = made_table({"a": [3, 5], "b": [4], "c": [2]}, 1)
    chosen = PairPlan(table, PairRule(), pairs=count, exponent=exponent).epoch(seed, 0)
    assert len(chosen) == count
    uses = np.bincount(places(table, chosen.source), minlength=len(table))
    for person in range(3):
        assert np.ptp(uses[table.person == person]) <= 1


def test_rounding_is_right_on_average() -> None:
    """Three persons and one pair: each is chosen in a third of the epochs."""
    plan = PairPlan(made_table({"a": [2], "b": [2], "c": [9]}), PairRule(), pairs=1)
    table = plan.table
    counts = Counter(int(table.person[places(table, plan.epoch(0, epoch).source)][0]) for epoch in range(900))
    assert all(abs(counts[person] - 300) < 5 * np.sqrt(200) for person in range(3))


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    table = made_table({"a": [30], "b": [20]})
    plans = {key: PairPlan(table, PairRule()).epoch(*key) for key in ((0, 0), (0, 1), (1, 0))}
    again = PairPlan(table, PairRule())
    again.epoch(7, 7)
    for key, chosen in plans.items():
        repeated = again.epoch(*key)
        np.testing.assert_array_equal(chosen.source, repeated.source)
        np.testing.assert_array_equal(chosen.target, repeated.target)
    keys = list(plans)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(plans[keys[first]].source, plans[keys[second]].source)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, count=st.integers(1, 50))
def test_cross_pairs_never_pair_a_person_with_himself(seed: int, count: int) -> None:
    table = made_table({"a": [3], "b": [40], "c": [1]})
    chosen = cross_pairs(table, count, seed)
    first, second = (table.person[places(table, rows)] for rows in (chosen.source, chosen.target))
    assert len(chosen) == count and (first != second).all()
    assert np.ptp(np.bincount(first, minlength=3)) <= 1
    again = cross_pairs(table, count, seed)
    np.testing.assert_array_equal(chosen.target, again.target)


def test_mistakes_are_told() -> None:
    table = made_table({"a": [3]})
    with pytest.raises(PairError, match="two persons"):
        cross_pairs(table, 3, 0)
    with pytest.raises(PairError, match=r"time distance between 9 and inf; widen"):
        PairPlan(table, PairRule(minimum=9.0))
    with pytest.raises(PairError, match="no sample in split 'test'"):
        frame_table(pa.table({"split": ["val"]}), pa.table({"clip": ["a"]}), "test")
    for wrong in ({"measure": "colour"}, {"minimum": -1.0}, {"minimum": 2.0, "maximum": 1.0}):
        with pytest.raises((ValueError, TypeError)):  # the shape hook of the tests sees the first one sooner
            PairRule(**wrong)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(seed=seeds, per_rank=st.integers(1, 4), count=st.integers(12, 70))
def test_global_batches_are_the_same_at_every_world_size(seed: int, per_rank: int, count: int) -> None:
    plan = PairPlan(made_table({"a": [30], "b": [20]}), PairRule(), pairs=count)
    order, size = plan.epoch(seed, 0), 6 * per_rank if 6 * per_rank <= count else 6
    for world in (1, 2, 3, 6):
        ranks = [list(TrainBatches(plan, Share(size, rank, world), seed)) for rank in range(world)]
        assert {len(requests) for requests in ranks} == {count // size}
        for number, shares in enumerate(zip(*ranks, strict=True)):
            expected = np.arange(number * size, (number + 1) * size)
            np.testing.assert_array_equal(np.concatenate([share.positions for share in shares]), expected)
            np.testing.assert_array_equal(np.concatenate([share.source for share in shares]), order.source[expected])
            np.testing.assert_array_equal(np.concatenate([share.target for share in shares]), order.target[expected])
            assert all(share.valid.all() and (share.seed, share.epoch, share.number) == (seed, 0, number) for share in shares)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), world=st.sampled_from([1, 2, 4]))
def test_validation_shows_every_pair_once(count: int, world: int) -> None:
    listed = Pairs(source=np.arange(count), target=np.arange(count) + 100)
    ranks = [list(EveryPair(listed, Share(8, rank, world))) for rank in range(world)]
    assert {len(requests) for requests in ranks} == {-(-count // 8)}, "equal steps, or ranks wait for each other"
    requests = [request for requests in ranks for request in requests]
    assert all(len(request.source) == len(request.valid) == 8 // world for request in requests)
    shown = np.concatenate([request.source[request.valid] for request in requests])
    assert sorted(shown) == list(range(count))
    assert all((request.target == request.source + 100).all() for request in requests)


def test_the_cursor_goes_on_where_it_stood() -> None:
    plan = PairPlan(made_table({"a": [30]}), PairRule(), pairs=25)
    whole = TrainBatches(plan, Share(4), 3)
    epochs = [list(whole), None, None]
    assert len(epochs[0]) == 6 and whole.cursor == Cursor(3, 0, 0), "asking for requests is not receiving batches"
    whole.received(0, 5)
    epochs[1] = list(whole)
    assert whole.cursor == Cursor(3, 1, 0)
    whole.received(1, 1)
    state = whole.state_dict()
    assert state == {"seed": 3, "epoch": 1, "global_batch": 2, "batch_size": 4, "pairs": 25}
    halves = [TrainBatches(plan, Share(4, rank, 2), 99) for rank in range(2)]
    for half in halves:
        half.load_state_dict(state)
        half.set_epoch(1)
        assert len(half) == 6
    for number, (left, right) in enumerate(zip(*halves, strict=True), start=2):
        np.testing.assert_array_equal(np.concatenate([left.source, right.source]), epochs[1][number].source)
        np.testing.assert_array_equal(np.concatenate([left.positions, right.positions]), epochs[1][number].positions)
    halves[0].set_epoch(4)
    assert halves[0].cursor == Cursor(3, 4, 0)


def test_batches_that_cannot_be_are_told() -> None:
    plan = PairPlan(made_table({"a": [30]}), PairRule(), pairs=25)
    with pytest.raises(UserError, match="cannot be shared by 4 processes; take 4"):
        Share(6, 0, 4)
    with pytest.raises(UserError, match="25 pairs has no batch of 26"):
        TrainBatches(plan, Share(26))
    batches = TrainBatches(plan, Share(5))
    state = {**batches.state_dict(), "global_batch": 2, "batch_size": 4}
    with pytest.raises(UserError, match="batch_size: the checkpoint was made in mid-epoch with 4, this run has 5"):
        batches.load_state_dict(state)  # type: ignore[arg-type]
    batches.load_state_dict({**state, "global_batch": 0, "epoch": 8})  # type: ignore[typeddict-item]
    assert batches.cursor == Cursor(0, 8, 0)


def test_tails_are_the_end_of_every_clip() -> None:
    table = made_table({"a": [5], "b": [3]})
    late = tails(table, 0.4)
    assert late.tolist() == [False, False, False, True, True, False, False, True]  # beyond 60 % of four steps and of two
    assert not tails(table, 0.0).any()
    early = narrowed(table, ~late)
    assert len(early) == 5 and early.clip.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(early.expression, table.expression[~late])


def test_clips_can_be_chosen_by_name() -> None:
    index = pa.table(
        {
            "clip": ["x", "y", "x", "z"],
            "split": ["train", "train", "train", "val"],
            "time": [0.0, 0.0, 0.04, 0.0],
            **{name: [0.0] * 4 for name in ("yaw", "pitch", "roll")},
            "expression": pa.array([[0.0] * 52] * 4, pa.list_(pa.float32())),
        }
    )
    clips = pa.table({"clip": ["x", "y", "z"], "person": ["p", "q", "r"]})
    assert frame_table(index, clips, "train", ["x"]).rows.tolist() == [0, 2]
    with pytest.raises(PairError, match="split 'train' has no clip 'z'"):
        frame_table(index, clips, "train", ["x", "z"])
