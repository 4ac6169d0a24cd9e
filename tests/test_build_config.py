"""The settings of a build: files, words, and what they may not say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_toolkit.build.config import BuildConfig, as_dict, config_from, load_config
from datasets_toolkit.errors import UserError


def test_words_go_before_the_file_and_the_file_before_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "build.yaml"
    path.write_text("size: 256\ntracking: {faces: largest, max_gap: 1}\nsplits: {train: 1, val: 0, test: 0}\n")
    config = load_config(path, ["tracking.faces=all", "shard_samples=7", "policy=null"])
    assert (config.size, config.tracking.faces, config.tracking.max_gap, config.shard_samples) == (256, "all", 1.0, 7)
    assert config.policy is None
    assert config.seed == BuildConfig().seed
    assert len(load_config(None).annotators) == 4


def test_annotators_are_changed_replaced_and_added() -> None:
    config = load_config(None, ["annotators.2.init_args.smoothing=2.5", "annotators.4.class_path=a.B", "annotators.4.init_args={c: [1]}"])
    assert config.annotators[2].init_args == {"smoothing": 2.5}
    assert (config.annotators[4].class_path, config.annotators[4].init_args) == ("a.B", {"c": [1]})
    assert [one.class_path for one in load_config(None, ["annotators=[{class_path: a.B}]"]).annotators] == ["a.B"]


@settings(max_examples=25, deadline=None)
@given(size=st.integers(64, 2048), seed=st.integers(0, 2**31), samples=st.none() | st.integers(1, 10**6), longest=st.floats(0.1, 600))
def test_settings_survive_their_json(size: int, seed: int, samples: int | None, longest: float) -> None:
    words = [
        f"size={size}",
        f"seed={seed}",
        f"shard_samples={'null' if samples is None else samples}",
        f"tracking.max_duration={longest!r}",
    ]
    config = load_config(None, words)
    assert config_from(as_dict(config)) == config
    assert config_from(as_dict(config), ["size=100"]).size == 100


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("siz=3", r"siz=3: siz: Key 'siz' not in 'BuildConfig'.*'size'"),
        ("tracking.face=all", r"tracking\.face: Key 'face' not in"),
        ("size=large", r"size=large: size: Value 'large' of type 'str' could not be converted to Integer"),
        ("size=8", r"size=8: must be from 64 to 2048"),
        ("size", "size: not a setting; write key=value"),
        ("tracking.faces=some", "tracking.faces=some: must be 'all' or 'largest'"),
        ("tracking.max_gap=.nan", "tracking.max_gap=nan: must be from 0 to 3600"),
        ("shard_samples=0", "shard_samples=0: must be from 1"),
        ("splits.train=0.7", "they must add up to 1"),
        ("splits={train: 2, val: -1, test: 0}", "they must add up to 1"),
        ("annotators.9.class_path=x", r"annotators\[9\]"),
        ("tracking.faces=[1", "cannot be read as a value"),
        ("annotators=3", "Invalid value"),
    ],
)
def test_words_that_cannot_be_meant(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        load_config(None, [word])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("traking: {faces: all}\n", "traking: Key 'traking' not in 'BuildConfig'.*'tracking'"),
        ("- size\n", "not the settings of a build"),
        ("size: [\n", "cannot be read as YAML"),
        ("annotators:\n- init_args: {}\n", "missing mandatory value: class_path"),
        ("\0", "cannot be read as YAML"),
    ],
)
def test_files_that_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "build.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as told:
        load_config(path)
    assert str(told.value).startswith(f"{path}: ")
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read as YAML \(No such file or directory\)"):
        load_config(tmp_path / "none.yaml")
