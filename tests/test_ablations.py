"""``benchmarks/ablations.py``: its table on worked numbers, and the whole way for one ablation on synthetic heads. Nothing is timed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import ablations
from ablations import OURS, PAPER, ROOT, WHOLE, main, table

from datasets_toolkit.synthetic import build_synthetic
from mggtalk.evaluation.summary import Estimate, Summary
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
    rows = table(summary, names).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| no_filter", "| one_decoder", "| no_detail"]
    assert rows[0] == "| no_filter | +0.50 (+0.49 to +0.52) | +0.0200 (+0.0100 to +0.0400) | +0.00300 (-0.01700 to +0.01300) | 2.84 |"
    assert rows[2].endswith("| not in it |")


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
