"""Summaries and reports of the benchmark."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from datasets_toolkit.errors import UserError
from datasets_toolkit.media.video import read_frames
from datasets_toolkit.media.video_writer import VideoWriter
from mggtalk.evaluation.grids import grid, worst_and_best
from mggtalk.evaluation.markdown import decimals, escaped, markdown
from mggtalk.evaluation.page import page_of
from mggtalk.evaluation.results import Metric, Missing, PairResult, SetDistance, SuiteResult, read_results, write_results
from mggtalk.evaluation.summary import Estimate, better, summarise, summary_record

METHODS = ("ours", "source repeated", "2D warp")
NAN = math.nan
Table = dict[str, Sequence[Sequence[float]]]  # by person, for each pair the value of each method


def metric(name: str, way: str = "higher") -> Metric:
    model = {"name": "Reader", "sha256": "ab12", "licence": "MIT"} if way == "lower" else {}
    return Metric(
        name=name, title=name.upper(), unit="dB", better="higher" if way == "higher" else "lower", definition="What.", model=model
    )


def suite(table: Table, **changes: Any) -> SuiteResult:
    """A suite of one metric, ``psnr``, with these values."""
    pairs = [
        PairResult(
            name=f"{person}-{number}",
            source=f"{person}_000000",
            source_person=person,
            driver=f"clip {number}",
            driver_person="someone",
            frames=("clip_000001", "clip_000002", "clip_000003"),
            values={method: {"psnr": float(value)} for method, value in zip(METHODS, row, strict=False)},
            milliseconds={"ours": 12.5},
        )
        for person, rows in table.items()
        for number, row in enumerate(rows)
    ]
    methods = METHODS[: len(next(iter(table.values()))[0])] if table else METHODS
    whole = SuiteResult(
        suite="self",
        protocol="Clips drive their first frame.",
        settings={"frames": 3, "people": None},
        data={"name": "set", "manifest": "c0ffee", "split": "val", "people": sorted(table)},
        methods=methods,
        about={method: f"This is {method}." for method in methods},
        metrics=(metric("psnr"),),
        missing=(Missing(title="CSIM", reason="no weights", remedy="--arcface FILE"),),
        pairs=tuple(pairs),
        refused={"broken": "no face in it"},
    )
    return replace(whole, **changes)


def sets() -> tuple[SetDistance, ...]:
    return (
        SetDistance(
            metric=metric("fid", "lower"), values={"ours": 123.456, "2D | warp": NAN}, pictures={"ours": 40, "2D | warp": 1}, real=77,
            text="Of <too> few.",
        ),
    )  # fmt: skip


def random_table(people: int, seed: int, sizes: Callable[[int], int] = lambda index: 1 + index % 3, missing: float = 0.0) -> Table:
    generator = np.random.default_rng(seed)
    values = {f"p{index:03d}": generator.normal(20 + generator.normal(), 1, (sizes(index), 3)) for index in range(people)}
    return {person: np.where(generator.random(rows.shape) < missing, np.nan, rows).tolist() for person, rows in values.items()}


def slow_twin(table: Table, pick: Callable[[Sequence[float]], float], resamples: int, seed: int) -> tuple[float, float, float, int, int]:
    """Mean, interval, people and pairs by loops."""
    people = sorted(table)
    pairs = {person: [pick(row) for row in table[person] if math.isfinite(pick(row))] for person in people}
    own = {person: float(np.mean(values)) for person, values in pairs.items() if values}
    generator, found = np.random.default_rng(seed), []
    for draw in generator.integers(0, len(people), (resamples, len(people))):
        drawn = [own[people[index]] for index in draw if people[index] in own]
        if drawn:
            found.append(np.mean(drawn))
    low, high = np.percentile(found, (2.5, 97.5)) if len(own) > 1 else (NAN, NAN)
    return float(np.mean(list(own.values()))), low, high, len(own), sum(map(len, pairs.values()))


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_bootstrap_is_its_slow_twin(missing: float) -> None:
    table = random_table(9, 3, missing=missing)
    found = summarise(suite(table), resamples=300, seed=5)
    cases: list[tuple[Estimate, Callable[[Sequence[float]], float]]] = [
        (found.means["2D warp"]["psnr"], lambda row: row[2]),
        (found.differences["2D warp"]["psnr"], lambda row: row[0] - row[2]),
    ]
    for one, pick in cases:
        mean, low, high, people, pairs = slow_twin(table, pick, 300, 5)
        assert (one.people, one.pairs) == (people, pairs)
        assert (one.mean, one.low, one.high) == pytest.approx((mean, low, high), abs=1e-9)
    assert (found.means["2D warp"]["psnr"].pairs < len(suite(table).pairs)) == bool(missing)
    person = found.people["p002"]["ours"]["psnr"]
    assert person == pytest.approx(np.nanmean([row[0] for row in table["p002"]]))
    assert (found.resamples, found.seed) == (300, 5)


def test_the_bootstrap_agrees_with_scipy() -> None:
    table = random_table(25, 1, lambda index: 4)
    one = summarise(suite(table), resamples=20_000).means["ours"]["psnr"]
    means = np.array([np.mean([row[0] for row in table[person]]) for person in sorted(table)])
    generator = np.random.default_rng(7)
    reference = stats.bootstrap((means,), np.mean, n_resamples=20_000, method="percentile", random_state=generator)
    error = 0.15 * float(reference.standard_error)  # five standard errors of the percentiles of 20,000 resamples
    assert one.mean == pytest.approx(means.mean())
    assert one.low == pytest.approx(reference.confidence_interval.low, abs=error)
    assert one.high == pytest.approx(reference.confidence_interval.high, abs=error)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator, held = np.random.default_rng(0), 0
    for seed in range(200):
        rows = generator.normal(size=(30, 1, 1)) + 0.1 * generator.normal(size=(30, 8, 1))  # pairs of a person are alike
        one = summarise(suite({f"p{index}": row.tolist() for index, row in enumerate(rows)}), 400, seed).means["ours"]["psnr"]
        held += one.low <= 0 <= one.high
    assert 0.88 <= held / 200 <= 0.99  # resampling pairs instead of people holds it in about half of the runs


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**20), st.floats(-50, 50), st.sampled_from([0.0, 0.3]))
def test_shifts_and_mirrors(people: int, seed: int, shift: float, missing: float) -> None:
    table = random_table(people, seed, missing=missing)
    first = summarise(suite(table), 100)
    moved = summarise(suite({person: [[row[0] + shift, *row[1:]] for row in rows] for person, rows in table.items()}), 100)
    swapped = summarise(suite({person: [[row[1], row[0], row[2]] for row in rows] for person, rows in table.items()}), 100)
    for before, after in ((first.means["ours"], moved.means["ours"]), (first.differences["2D warp"], moved.differences["2D warp"])):
        numbers = np.array([before["psnr"].mean, before["psnr"].low, before["psnr"].high]) + shift
        assert [after["psnr"].mean, after["psnr"].low, after["psnr"].high] == pytest.approx(numbers, abs=1e-9, nan_ok=True)
    assert repr(first.means["2D warp"]) == repr(moved.means["2D warp"])
    there, back = first.differences["source repeated"]["psnr"], swapped.differences["source repeated"]["psnr"]
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low), abs=1e-9, nan_ok=True)


def test_people_count_equally_and_the_order_of_pairs_does_not_matter() -> None:
    results = suite({"a": [[1.0]] * 9, "b": [[3.0]]})
    found = summarise(results, 50)
    assert found.means["ours"]["psnr"] == Estimate(mean=2.0, low=1.0, high=3.0, people=2, pairs=10)
    assert summarise(replace(results, pairs=results.pairs[::-1]), 50) == found


def test_what_is_not_measured_stays_unknown() -> None:
    found = summarise(suite({"a": [[1.0, NAN], [2.0, math.inf]], "b": [[5.0, NAN]]}), 50)
    nothing = found.differences["source repeated"]["psnr"]
    assert repr(nothing) == repr(Estimate(mean=NAN, low=NAN, high=NAN, people=0, pairs=0))
    assert math.isnan(found.people["a"]["source repeated"]["psnr"])
    assert better(metric("psnr"), nothing) == "unknown"
    endless = summarise(suite({"a": [[1.0, 3.0], [2.0, math.inf]], "b": [[5.0, 4.0]]}), 50).means["source repeated"]["psnr"]
    assert (endless.mean, endless.pairs) == (3.5, 2)  # as after reading it from JSON, where infinity is null
    record = summary_record(found)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["differences"]["source repeated"]["psnr"] == {"mean": None, "low": None, "high": None, "people": 0, "pairs": 0}
    empty = suite({})
    assert summarise(empty, 50).means["ours"]["psnr"].people == 0
    assert "No pair was measured" in markdown(empty, summarise(empty, 50))
    with pytest.raises(ValueError, match="resamples"):
        summarise(empty, 0)


def test_one_person_gives_no_interval() -> None:
    results = suite({"a": [[30.0, 20.0], [32.0, 20.0]]})
    found = summarise(results)
    one = found.differences["source repeated"]["psnr"]
    assert (one.mean, one.people, one.pairs) == (11.0, 1, 2)
    assert math.isnan(one.low) and math.isnan(one.high) and better(metric("psnr"), one) == "unknown"
    for text in (markdown(results, found), page_of(results, found, {})):
        assert "31.00 (no interval: one person)" in text and "+11.00 (no interval: one person), unknown" in text
        assert "only one source person, so no interval can be given" in text


@pytest.mark.parametrize(
    ("low", "high", "higher", "lower"),
    [(0.1, 0.3, "better", "worse"), (-0.3, -0.1, "worse", "better"), (-0.1, 0.1, "even", "even"), (0.0, 0.2, "even", "even")],
)
def test_better_and_worse(low: float, high: float, higher: str, lower: str) -> None:
    one = Estimate(mean=(low + high) / 2, low=low, high=high, people=5, pairs=5)
    assert better(metric("a", "higher"), one) == higher
    assert better(metric("a", "lower"), one) == lower


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    results = suite(
        {"a": [[1.25, NAN, 0.1 + 0.2]], "b|ü": [[-3.0, 1e-12, 7.0]]}, metrics=(metric("psnr"), metric("akd", "lower")), sets=sets()
    )
    write_results(tmp_path / "a.json", results, {"summary": summary_record(summarise(results, 20))})
    back = read_results(tmp_path / "a.json")
    assert repr(back) == repr(results)  # NaN differs from itself, but not in words
    write_results(tmp_path / "b.json", back, {"summary": summary_record(summarise(back, 20))})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    older = {name: value for name, value in json.loads((tmp_path / "a.json").read_text()).items() if name != "sets"}
    (tmp_path / "c.json").write_text(json.dumps(older))
    assert read_results(tmp_path / "c.json").sets == ()


def test_metrics_of_all_pictures_have_a_table_of_their_own() -> None:
    results = suite({"a": [[1.0]]}, sets=sets())
    text, found = markdown(results, summarise(results, 5)), Balanced()
    assert "| method | FID (dB) ↓ | pictures |" in text and r"| 2D \| warp | not measured | 1 |" in text
    assert "| ours | 123.5 | 40 |" in text and r"Real pictures: 77. Of \<too\> few." in text
    assert text.index("## Means") < text.index("## FID") < text.index("## Differences") and "- **FID (dB) ↓**: What. Lower" in text
    found.feed(page_of(results, summarise(results, 5), {}))
    assert {"123.5", "40", "not measured", "Real pictures: 77. Of <too> few."} <= set(found.text)


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda values: [values],
    "another format": lambda values: {**values, "format": 99},
    "no pairs": lambda values: {name: value for name, value in values.items() if name != "pairs"},
    "pairs without names": lambda values: {**values, "pairs": [{"values": {}, "frames": []}]},
    "a text for a number": lambda values: {**values, "pairs": [{**values["pairs"][0], "values": {"ours": {"psnr": "high"}}}]},
    "an unknown field": lambda values: {**values, "metrics": [{**values["metrics"][0], "weight": 3}]},
    "sets without a metric": lambda values: {**values, "sets": [{"values": {}, "pictures": {}, "real": 1, "text": ""}]},
    "methods that are nothing": lambda values: {**values, "methods": None},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.json"
    write_results(path, suite({"a": [[1.0]]}), {})
    assert read_results(path).suite == "self"
    path.write_text(json.dumps(DAMAGES[damage](json.loads(path.read_text()))))
    with pytest.raises(UserError, match=r"a\.json: no results"):
        read_results(path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe\x00", b"null"])
def test_files_of_another_kind_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    for path in (tmp_path / "a.json", tmp_path, tmp_path / "none.json"):
        with pytest.raises(UserError, match=re.escape(path.name)):
            read_results(path)


class Balanced(HTMLParser):
    """Reads a page; tags must close in order. Keeps what is shown, the tags, and every address."""

    VOID = ("meta", "br", "img", "link", "hr", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "poster", "srcset", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}>"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


EVIL = """<script>alert("1")</script>|`'&amp; $title"""


def test_the_page_holds_everything_and_escapes_it() -> None:
    table = {EVIL: [[20.0, 19.0, NAN], [21.0, 19.5, 20.0]], "b": [[25.0, 22.0, 26.0]]}
    results = suite(table, refused={EVIL: EVIL}, protocol=EVIL, about={"ours": EVIL}, data={"name": EVIL})
    found = Balanced()
    found.feed(page_of(results, summarise(results, 50), {f"best: {EVIL}": b"film one", "worst: b-0": b"film two"}))
    found.close()
    assert found.open == [] and "script" not in found.tags and "link" not in found.tags
    assert found.tags.count("video") == 2 and found.addresses[0] == "data:video/mp4;base64,ZmlsbSBvbmU="
    assert all(address.startswith("data:") for address in found.addresses)
    for text in (*(pair.name for pair in results.pairs), EVIL, f"best: {EVIL}", "worst: b-0", "CSIM", "--arcface FILE"):
        assert text in found.text
    dots = [text for text in found.text if re.fullmatch(r".*-\d: [+-]\d+\.\d+", text)]
    assert len(dots) == 5 and "b-0: -1.00" in dots  # three pairs against one method, two against the other
    assert found.tags.count("svg") == 2 and not [text for text in found.text if "nan" in text]


def test_plots_without_values_say_so() -> None:
    results = suite({"a": [[NAN, 1.0]], "b": [[NAN, 2.0]]}, metrics=(metric("psnr"), metric("akd")))
    page = page_of(results, summarise(results, 20), {})
    assert page.count("<figcaption>not measured</figcaption>") == 1 and "No videos were made" in page
    alone = suite({"a": [[1.0]], "b": [[2.0]]})
    assert "no other method" in page_of(alone, summarise(alone, 20), {})


def test_markdown_tables_are_even_and_complete() -> None:
    table = {"a|b": [[20.0, 19.0, NAN], [21.0, 19.5, 20.0]], "_c_ <i>": [[25.0, 22.0, 26.0]], "two\nlines": [[30.0, 29.0, 33.0]]}
    results = suite(table, metrics=(metric("psnr"), metric("akd", "lower")))
    text = markdown(results, summarise(results, 50))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 7
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1 and len(lines) > 2
        assert re.fullmatch(r"\|( --- \|)+", lines[1])
    for pair in results.pairs:
        assert text.count(f"| {escaped(pair.name)} | {escaped(pair.source)} ({escaped(pair.source_person)}) → ") == 1
    assert r"a\|b" in text and r"\_c\_ \<i\>" in text and "two lines" in text
    for words in ("sha256 ab12; licence MIT", "c0ffee", "| broken | no face in it |", "| CSIM | no weights | --arcface FILE |", "12.5"):
        assert words in text
    assert "4, of 3 source people" in text and "3, clip_000001 to clip_000003" in text


def test_differences_are_marked_in_words() -> None:
    results = suite({"a": [[20.0, 10.0, 30.0]], "b": [[22.0, 11.0, 31.0]]})
    text = markdown(results, summarise(results))
    assert "| +10.50 (+10.00 to +11.00), better | -9.50 (-10.00 to -9.00), worse |" in text
    assert "only 2 source people" in text


@pytest.mark.parametrize(("value", "places"), [(24.0, 2), (0.85, 4), (150.0, 1), (20_000.0, 0), (0.0, 3), (1e-30, 9)])
def test_means_have_four_digits(value: float, places: int) -> None:
    results = suite({"a": [[value, value / 2]], "b": [[-value, 0.0]]})
    results = replace(results, pairs=results.pairs[:1])
    assert decimals(results.metrics[0], summarise(results, 5)) == places


def test_worst_and_best() -> None:
    results = suite({"a": [[5.0], [NAN], [1.0]], "b": [[3.0], [4.0], [2.0]]})
    assert worst_and_best(results, "psnr", 2) == (["a-2", "b-2"], ["a-0", "b-1"])
    assert worst_and_best(results, "psnr", 9) == (["a-2", "b-2", "b-0"], ["a-0", "b-1"])
    lower = replace(results, metrics=(metric("psnr", "lower"),))
    assert worst_and_best(lower, "psnr", 1) == (["a-0"], ["a-2"])
    assert worst_and_best(results, "psnr", 0) == ([], [])
    for name, count in (("akd", 1), ("psnr", -1)):
        with pytest.raises(ValueError, match="expected one of"):
            worst_and_best(results, name, count)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(16, 90), st.integers(16, 90), st.integers(0, 2**20))
def test_grids_keep_the_pictures(methods: int, height: int, width: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (methods, 2, height, width, 3), np.uint8)
    frames = grid({f"method {index}": list(images[index]) for index in range(methods)})
    assert len(frames) == 2 and frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    top = frames[0].shape[0] - height - height % 2
    for time, frame in enumerate(frames):
        assert frame[:top].min() < 120  # a label stands above
        for index in range(methods):
            left = index * (width + 4)
            assert (frame[top : top + height, left : left + width] == images[index, time]).all()


def test_labels_stay_above_their_pictures() -> None:
    blank = np.full((64, 64, 3), 245, np.uint8)
    frame = grid({"a method with a long name": [blank], "é": [blank]})[0]
    ink = np.flatnonzero((frame < 200).any((0, 2)))
    assert len(ink) > 20 and ink[ink < 66].max() < 64 and ink.max() < 100
    assert not (frame[-64:] < 245).any()


def test_grids_make_videos(tmp_path: Path) -> None:
    images = [np.full((63, 65, 3), 40 * step, np.uint8) for step in range(3)]
    frames = grid({"ours": images, "2D warp": images, "truth": images})
    height, width = frames[0].shape[:2]
    with VideoWriter(tmp_path / "a.mp4", Fraction(25), (width, height)) as writer:
        for frame in frames:
            writer.write(frame)
    back = [np.asarray(frame.image) for frame in read_frames(tmp_path / "a.mp4")]
    assert [image.shape for image in back] == [frames[0].shape] * 3
    assert np.abs(back[2].astype(int) - frames[2]).mean() < 3
    for rows in ({"a": images}, {"a": images, "b": images[:2]}, {"a": images, "b": [image[1:] for image in images]}, {}):
        with pytest.raises(ValueError, match="2 to 6"):
            grid(rows)
