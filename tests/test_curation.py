"""Policies: what they say, what they refuse, and how they judge clips and plan a data set."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_toolkit.curation.plan import BINS, general, make_plan, round_step
from datasets_toolkit.curation.policy import POLICIES, SCORES, Limits, Policy, judge, load_policy
from datasets_toolkit.errors import UserError

pa = pytest.importorskip("pyarrow")
pytest.importorskip("omegaconf")


def clips(**columns: list) -> pa.Table:
    """Clips with the columns given; all others are harmless."""
    count = len(next(iter(columns.values())))
    table = {
        "clip": [f"c{row}" for row in range(count)],
        "source": [f"s{row}" for row in range(count)],
        "person": [""] * count,
        "dataset": ["one"] * count,
        "frames": [250] * count,
        "fps_num": [25] * count,
        "fps_den": [1] * count,
        **{score: [1.0] * count for score in SCORES},
    }
    return pa.table({**table, **columns})


def sources(problems: list[list[str]]) -> pa.Table:
    kind = pa.list_(pa.string())
    return pa.table({"path": [f"/videos/{row}.mp4" for row in range(len(problems))], "problems": pa.array(problems, kind)})


@pytest.mark.parametrize("name", [path.stem for path in POLICIES.glob("*.yaml")])
def test_policies_that_come_along_load_and_limit(name: str) -> None:
    policy = load_policy(name)
    assert policy.minimum.given()
    assert policy.maximum.given()
    assert load_policy(POLICIES / f"{name}.yaml") == policy


def test_strict_asks_for_no_less_than_default() -> None:
    default, strict = load_policy("default"), load_policy("strict")
    assert all(strict.minimum.given()[score] >= value for score, value in default.minimum.given().items())
    assert all(strict.maximum.given()[score] <= value for score, value in default.maximum.given().items())


def test_a_file_without_folder_is_not_taken_for_one_that_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("minimum: {fps: 12}\n")
    assert load_policy("own.yaml") == Policy(minimum=Limits(fps=12.0))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("minimum: {sharpnes: 3}", "unknown key 'minimum.sharpnes'; did you mean 'sharpness'?"),
        ("maximun: {}", "unknown key 'maximun'; did you mean 'maximum'?"),
        ("minimum: {sharpness: soft}", "minimum.sharpness: Value 'soft'"),
        ("minimum: {sharpness: .nan}", "the limit of sharpness is nan"),
        ("minimum: {fps: 30}\nmaximum: {fps: 25}", "fps must be at least 30 and at most 25; no clip can be both"),
        ("may_be_unknown: [sharp]", "may_be_unknown: unknown key 'sharp'; did you mean 'sharpness'?"),
        ("minimum: 3", "minimum and maximum are mappings"),
        ("- minimum", "not a policy; a mapping such as"),
        ("7", "cannot be read as a policy"),
        ("a: : b", "mapping values are not allowed"),
        ("minimum: {fps: 1}\nminimum: {fps: 2}", "found duplicate key minimum"),
        ("exclude_people: alice", "exclude_people"),
    ],
)
def test_bad_policies_are_refused_with_file_and_key(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_policy(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(UserError, match="cannot be read as a policy"):
            load_policy(path)


def test_reasons_say_score_value_and_limit() -> None:
    table = clips(sharpness=[31.0, 50.0, 49.999999, np.nan], fps=[25.0, 100.0, 25.0, 25.0])
    kept, reasons = judge(table, Policy(minimum=Limits(sharpness=50.0), maximum=Limits(fps=60.0)))
    assert kept.tolist() == [False, False, False, False]
    assert reasons == [["sharpness 31 < 50"], ["fps 100 > 60"], ["sharpness 49.999999 < 50"], ["sharpness was not measured"]]


def test_a_score_that_may_be_unknown_passes_only_where_it_is_unknown() -> None:
    policy = Policy(minimum=Limits(av_confidence=3.0), may_be_unknown=["av_confidence"])
    kept, reasons = judge(clips(av_confidence=[None, np.nan, np.inf, 2.9, 3.0]), policy)
    assert kept.tolist() == [True, True, True, False, True]
    assert reasons[3] == ["av_confidence 2.9 < 3"]


def test_names_are_excluded_and_data_sets_chosen() -> None:
    table = clips(dataset=["one", "two", "one", "one", "one"], person=["", "", "alice", "", ""])
    policy = Policy(datasets=["one"], exclude_people=["alice"], exclude_sources=["s3"], exclude_clips=["c4"])
    kept, reasons = judge(table, policy)
    assert kept.tolist() == [True, False, False, False, False]
    assert [one[0] for one in reasons[1:]] == [
        "data set 'two' is not among those asked for", "person 'alice' is excluded", "source 's3' is excluded", "clip 'c4' is excluded",
    ]  # fmt: skip


def test_a_table_without_the_score_is_refused() -> None:
    table = clips(fps=[25.0]).drop_columns(["sharpness"])
    assert judge(table, Policy(minimum=Limits(fps=10.0)))[0].tolist() == [True]
    with pytest.raises(UserError, match="has no score 'sharpness'"):
        judge(table, Policy(minimum=Limits(sharpness=1.0)))


values = st.one_of(st.none(), st.floats(-10, 10), st.just(float("nan")))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(values, values), min_size=1, max_size=8),
    low=st.none() | st.floats(-5, 5),
    high=st.none() | st.floats(5, 8),
    unknown=st.booleans(),
)
def test_judging_equals_comparing_clip_by_clip(rows: list, low: float | None, high: float | None, unknown: bool) -> None:
    table = clips(sharpness=pa.array([a for a, _ in rows], pa.float64()), motion=pa.array([b for _, b in rows], pa.float64()))
    policy = Policy(minimum=Limits(sharpness=low, motion=low), maximum=Limits(sharpness=high))
    policy.may_be_unknown = ["sharpness", "motion"] if unknown else []
    kept, reasons = judge(table, policy)

    def passes(value: float | None, least: float | None, most: float | None) -> bool:
        if value is None or value != value:
            return unknown or (least is None and most is None)
        return (least is None or value >= least) and (most is None or value <= most)

    assert kept.tolist() == [passes(a, low, high) and passes(b, low, None) for a, b in rows]
    assert [not one for one in reasons] == kept.tolist()
    for one in reasons:
        for text in one:
            words = text.split()
            assert words[0] in ("sharpness", "motion")
            assert "not measured" in text or (float(words[1]) < float(words[3])) == (words[2] == "<")


def test_a_plan_counts_hours_people_and_reasons() -> None:
    table = clips(
        dataset=["a", "a", "b", "b"],
        person=["alice", "alice", "", ""],
        frames=[90_000, 45_000, 90_000, 9_000],
        fps_num=[25, 25, 30_000, 25],
        fps_den=[1, 1, 1001, 1],
        sharpness=[10.0, 60.0, 70.0, 20.0],
        fps=[25.0, 25.0, 29.97, 25.0],
        faces=[1.0, 1.0, 1.0, 2.0],
        yaw_min=[-20.0] * 4,
        yaw_max=[5.0] * 4,
    )
    policy = Policy(minimum=Limits(sharpness=50.0), maximum=Limits(faces=1.0))
    plan = make_plan(table, sources([[], ["/videos/1.mp4: 12 frames are damaged"], ["7 frames are damaged"], []]), policy)
    ntsc = float(90_000 * Fraction(1001, 30_000) / 3600)
    assert (plan.kept.clips, plan.kept.people, plan.kept.sources) == (2, 2, 2)
    assert plan.kept.hours == pytest.approx(0.5 + ntsc)
    assert plan.rejected.hours == pytest.approx(1.1)
    assert plan.datasets["a"][0].hours == pytest.approx(0.5)
    assert [(one.text, one.clips, one.alone) for one in plan.reasons] == [("sharpness < 50", 2, 1), ("faces > 1", 1, 0)]
    assert plan.reasons[0].hours == pytest.approx(1.1)
    assert plan.reasons[0].alone_hours == pytest.approx(1.0)
    assert plan.problems == [("# frames are damaged", 2)]
    yaw = plan.histograms[0]
    inside = (yaw.edges[:-1] >= -20) & (yaw.edges[:-1] <= 5)
    assert yaw.kept[inside] == pytest.approx(plan.kept.hours)
    assert yaw.kept[~inside] == pytest.approx(0)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(values, st.integers(1, 1000)), min_size=1, max_size=12), low=st.floats(-3, 3))
def test_histograms_lose_no_hours(rows: list, low: float) -> None:
    table = clips(sharpness=pa.array([value for value, _ in rows], pa.float64()), frames=[frames for _, frames in rows])
    plan = make_plan(table, sources([]), Policy(minimum=Limits(sharpness=low), may_be_unknown=["sharpness"]))
    shown = next(one for one in plan.histograms if one.score == "sharpness")
    hours = np.array([frames for _, frames in rows]) / 25 / 3600
    known = np.array([value is not None and value == value for value, _ in rows])
    assert shown.kept.sum() + shown.rejected.sum() == pytest.approx(hours[known].sum())
    assert shown.unknown == pytest.approx(hours[~known].sum())
    assert len(shown.kept) == len(shown.rejected) == len(shown.edges) - 1 <= BINS + 1
    assert (np.diff(shown.edges) > 0).all()
    if known.any():
        assert shown.edges[0] - 1e-9 <= low <= shown.edges[-1] + 1e-9
    assert plan.unmeasured.get("sharpness", 0) == (~known).sum()


def test_steps_are_round() -> None:
    assert [round_step(least) for least in (1.0, 1.01, 3.0, 7.0, 0.03, 100.0)] == pytest.approx([1, 2, 5, 10, 0.05, 100])


def test_reasons_of_one_kind_fall_together() -> None:
    assert general("sharpness 31 < 50") == general("sharpness 49.99 < 50") == "sharpness < 50"
    assert general("clip 'c4' is excluded") == "clip 'c4' is excluded"
