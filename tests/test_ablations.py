"""``benchmarks/ablations.py``: its table on worked numbers, and the whole way for one ablation on synthetic heads. Nothing is timed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import ablations
from ablations import OURS, PAPER, ROOT, WHOLE, main, over_seeds, single_seeds, table

from datasets_toolkit.synthetic import build_synthetic
from mggtalk.evaluation.results import Metric, PairResult, SuiteResult
from mggtalk.evaluation.summary import Estimate, Summary, summarise
from mggtalk.export import BASES


def estimate(mean: float) -> Estimate:
    return Estimate(mean=mean, low=mean - 0.01, high=mean + 0.02, people=3, pairs=3)


def test_each_ablation_is_an_experiment() -> None:
    assert {*PAPER, *OURS} == {file.stem for file in (ROOT / "experiments" / "ablations").glob("*.yaml")}


def test_the_table_orders_by_what_the_paper_lost_and_turns_errors_around() -> None:
    """Losses of PSNR and SSIM, gains of AED: what the whole model has more of, its error less."""
    names = [WHOLE, "one_decoder", "no_detail", "no_filter"]
    found = {"psnr_head": estimate(0.5), "ssim_head": estimate(0.02), "aed": estimate(-0.003)}
    summary = Summary(means={}, differences=dict.fromkeys(names[1:], found), people={}, resamples=1, seed=0)
    rows = table(summary, names, {name: [0.4, 0.6] for name in names[1:]}).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| no_filter", "| one_decoder", "| no_detail"]
    assert (
        rows[0]
        == "| no_filter | +0.50 (+0.49 to +0.52) | +0.40, +0.60 | +0.0200 (+0.0100 to +0.0400) | +0.00300 (-0.01700 to +0.01300) | 2.84 |"
    )
    assert rows[2].endswith("| not in it |")


def test_seeds_are_averaged_pair_by_pair_and_told_apart() -> None:
    """Worked by hand: two seeds, two people with a pair each."""

    def pair(person: str, whole: tuple[float, float], less: tuple[float, float]) -> PairResult:
        found = {WHOLE: whole[0], f"{WHOLE}-1": whole[1], "no_filter": less[0], "no_filter-1": less[1]}
        values = {run: {"psnr_head": value} for run, value in found.items()}
        return PairResult(name=person, source="", source_person=person, driver="", driver_person=person, frames=(), values=values)

    names, seeds = [WHOLE, "no_filter"], [0, 1]
    runs = (WHOLE, f"{WHOLE}-1", "no_filter", "no_filter-1")
    results = SuiteResult(
        suite="self", protocol="", settings={}, data={}, methods=runs, about=dict.fromkeys(runs, "a run"), missing=(),
        metrics=(Metric(name="psnr_head", title="PSNR head", better="higher", unit="dB", definition=""),),
        pairs=(pair("a", (20.0, 22.0), (19.0, 20.0)), pair("b", (30.0, 31.0), (30.0, 33.0))),
    )  # fmt: skip
    found = over_seeds(results, names, seeds)
    assert found.methods == (WHOLE, "no_filter") and [each.values[WHOLE]["psnr_head"] for each in found.pairs] == [21, 30.5]
    assert summarise(found).differences["no_filter"]["psnr_head"].mean == pytest.approx((1.5 - 1.0) / 2)
    assert single_seeds(results, names, seeds)["no_filter"] == pytest.approx([0.5, 0.0])


def test_an_ablation_is_trained_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole model lies there already and is not trained again; the other is, for two steps."""
    build_synthetic(tmp_path / "heads", clips=3, frames=6, size=64, persons=3)
    shutil.copytree(BASES, tmp_path / "out" / WHOLE / "model")
    words = ["--shards", str(tmp_path / "heads"), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "numbers.json")]
    settings = ["--steps", "2", "--size", "64", "--only", "no_detail"]
    monkeypatch.setattr(sys, "argv", ["ablations.py", *words, *settings])
    main()
    assert "| no_detail | " in capsys.readouterr().out
    assert not (tmp_path / "out" / WHOLE / "log.txt").exists() and (tmp_path / "out" / "no_detail" / "last.ckpt").is_file()
    assert "detailed: false" in (tmp_path / "out" / "no_detail" / "model" / "config.yaml").read_text(encoding="utf-8")
    assert "psnr_head" in json.dumps(json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8")))
    assert "no_detail" in (tmp_path / "out" / "self.md").read_text(encoding="utf-8")


def test_a_run_that_fails_says_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"export failed; the end of .*log\.txt:\n(.|\n)*no such file"):
        ablations.run(["export", tmp_path / "none.ckpt", "-o", tmp_path / "model"], tmp_path / "runs")
