"""The command line of `training.fit`: flags, help, and one clear line for each mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from deltas import Backbone, Delta, SplitMetrics, TaskSpec
from deltas.manifest import LabelMetrics
from training.fit import parse_arguments, print_summary
from training.options import FitConfig
from training.run.plan.facts import Baseline
from training.strategies.rules import RULES

Capture = pytest.CaptureFixture[str]


def exit_code(words: list[str]) -> object:
    with pytest.raises(SystemExit) as stop:
        parse_arguments(words)
    return stop.value.code


def test_flags_become_options(capsys: Capture) -> None:
    words = "--task rte --freeze random:0.001 --lr 1e-2 --train-rows 100 --json --overwrite"
    config = parse_arguments(words.split())
    assert isinstance(config, FitConfig)
    assert (config.task, config.freeze, config.lr) == ("rte", "random:0.001", 0.01)
    assert (config.train_rows, config.json_, config.overwrite) == (100, True, True)
    assert (config.resume, config.epochs) == (False, None)
    assert capsys.readouterr() == ("", "")


def test_every_option_is_a_flag_in_the_help(capsys: Capture) -> None:
    assert exit_code(["--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for name, field in FitConfig.model_fields.items():
        assert f"--{(field.alias or name).replace('_', '-')}" in told
        default = field.default
        stated = not isinstance(default, bool) and default not in (None, "")
        assert f"{field.description}{f' (default: {default})' if stated else ''}" in told
    assert "--json-" not in told
    assert "(default: 0.0)" in told
    assert "False" not in told


def test_help_states_the_optimiser_and_the_clipping(capsys: Capture) -> None:
    """A person who repeats a run with another program needs them, too."""
    assert exit_code(["--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "AdamW" in told
    assert "largest norm of a step's gradient, of overlay and head together" in told


@pytest.mark.parametrize("words", [["--freeze", "help"], ["--task", "rte", "--freeze", "help"]])
def test_freeze_help_lists_strategies(capsys: Capture, words: list[str]) -> None:
    assert exit_code(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(f"  {name}" in out for name in RULES)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "error: give either --task"),
        ("--task rte --batch-size many", "error: --batch-size: .*integer.* \\(given: 'many'\\)"),
        ("--task rte --lr -1", "error: --lr: .*greater than 0 \\(given: '-1'\\)"),
        ("--task rte --dropout 1.5", "error: --dropout: .*less than 1 \\(given: '1.5'\\)"),
        ("--task rte --reinit some", "error: --reinit: .*'none', 'biases' or 'all'.*'some'"),
        ("--task rte --precision fp16", "error: --precision: .*'fp16'"),
        ("--task rte --epochs inf", "error: --epochs: .*finite.*'inf'"),
        ("--task rte --lr nan", "error: --lr: .*'nan'"),
        ("--task rte --learning-rate 1", "unrecognized arguments: --learning-rate 1"),
        ("--task rte --batch 8", "unrecognized arguments: --batch 8"),
        ("--task rte extra", "unrecognized arguments: extra"),
        ("--task", "expected one argument"),
        ("--task rte --json=1", "ignored explicit argument"),
        ("--task rte --seed 1.5", "error: --seed: .*'1.5'"),
    ],
)
def test_mistakes_are_named_with_their_value(capsys: Capture, words: str, sentence: str) -> None:
    assert exit_code(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(sentence, err), err
    assert "Traceback" not in err


def test_all_mistakes_are_reported_at_once(capsys: Capture) -> None:
    words = ["--task", "rte", "--lr", "-1", "--seed", "x", "--max-length", "2"]
    assert exit_code(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["--lr", "--seed", "--max-length"]


def test_a_long_label_keeps_the_numbers_in_view(
    tiny_backbone: Backbone, make_delta: Callable[..., Delta], capsys: Capture
) -> None:
    long = "very " * 40 + "long"
    scores = {name: LabelMetrics(rows=5, precision=1, recall=0.5, f1=0.6) for name in (long, "b")}
    metrics = {"validation": SplitMetrics(rows=10, values={"accuracy": 0.5}, by_label=scores)}
    task = TaskSpec(
        name="t", kind="single_label", labels=(long, "b"), text_fields=("text",), max_length=32
    )
    delta = make_delta(tiny_backbone, task, "bitfit", metrics=metrics)
    baseline = Baseline(long, {"validation": {"accuracy": 0.5}})
    print_summary(Path("t.safetensors"), delta, baseline, as_json=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if "precision" in line]
    assert [line.index("precision") for line in lines] == [44, 44]
    assert lines[1].startswith("  very very very very very very very ve...")
