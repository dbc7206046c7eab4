"""`make bench-quality`: kept results, compared runs, goals, tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bench.quality.goals import compare, cpu_ratio, judge_goals, with_best
from tests.bench.quality.report import difference_rows, draw, page, score_rows, write
from tests.bench.quality.results import TODAY, QualityRun, Variant, append_run, read_runs, run_key
from training.errors import DataError


def a_run(
    name: str, method: str, score: float, seed: int = 0, selected: float = 0.5, **changes: Any
) -> QualityRun:
    """A made-up result on 1,000 dev rows."""
    fields: dict[str, Any] = {
        "key": f"{name} {method} {seed}",
        "set": name,
        "method": method,
        "seed": seed,
        "variant": TODAY,
        "command": f"program --seed {seed}",
        "kind": "single_label",
        "labels": 2,
        "is_pair": False,
        "metric": "accuracy",
        "digest": f"rows of {name}",
        "train_rows": 90,
        "rows": {"selection": 10, "validation": 1000},
        "scores": {"selection": {"accuracy": selected}, "validation": {"accuracy": score}},
        "seconds": 10.0,
        "cpu_s": 8.0,
        "threads": 1,
        "cpu": "a processor",
    }
    return QualityRun(**fields | changes)


def test_a_line_that_was_cut_off_is_no_result_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    assert read_runs(path) == {}
    first, second = a_run("a", "head", 0.5), a_run("a", "full", 0.6)
    append_run(path, first)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(whole[:40])
    assert list(read_runs(path).values()) == [first]
    append_run(path, second)
    assert path.read_bytes().startswith(whole)
    assert list(read_runs(path).values()) == [first, second]


def test_the_last_line_of_a_key_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for run in (a_run("a", "head", 0.5), a_run("b", "head", 0.6), a_run("a", "head", 0.7)):
        append_run(path, run)
    assert [(run.set, run.score) for run in read_runs(path).values()] == [("b", 0.6), ("a", 0.7)]


def test_a_foreign_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_run(path, a_run("a", "head", 0.5))
    with path.open("a") as file:
        file.write('{"key": "x"}\n')
    with pytest.raises(DataError, match=r"row 2: not a result of bench-quality \(set: Field"):
        read_runs(path)


def test_a_baseline_is_repeated_for_other_rows_and_a_training_for_another_seed_too() -> None:
    default, other = TODAY, Variant(recipe="1", fit_args="--epochs 1")
    for method, is_fixed in (("sklearn", True), ("stock:5e-5", False), ("bitfit", False)):
        key = run_key(method, 0, "rows", default)
        assert key != run_key(method, 0, "other rows", default)
        assert (key == run_key(method, 1, "rows", default)) is is_fixed
        assert (key == run_key(method, 0, "rows", other)) is (method != "bitfit")
        longer = default.model_copy(update={"max_length": 64})
        assert key != run_key(method, 0, "rows", longer)


def test_variants_are_kept_apart_and_share_the_baselines() -> None:
    ours = a_run("a", "bitfit", 0.9, variant=Variant(recipe="1"))
    runs = [ours, a_run("a", "sklearn", 0.5), a_run("a", "bitfit", 0.7)]
    assert "0.700" in page(runs, TODAY)
    assert "0.900" not in page(runs, TODAY)
    earlier = page(runs, Variant(recipe="1"))
    assert "0.900" in earlier
    assert "+40.00" in earlier
    assert page(runs, Variant(asked_rows=5)) == "No run of this kind has been made yet.\n"


def test_a_recipe_keeps_the_runs_of_strategies_that_it_did_not_change() -> None:
    """The third one changed what a head reads, and nothing else."""
    second = Variant(recipe="2")
    assert run_key("bitfit", 0, "rows", second) == run_key("bitfit", 0, "rows", TODAY)
    assert run_key("head", 0, "rows", second) != run_key("head", 0, "rows", TODAY)
    runs = [a_run("a", "bitfit", 0.8, variant=second), a_run("a", "head", 0.6, variant=second)]
    assert "0.800" in page(runs, TODAY)
    assert "0.600" not in page(runs, TODAY)
    assert "0.600" in page(runs, second)
    assert "0.800" not in page(runs, Variant(recipe="1"))


def test_runs_are_compared_on_equal_rows_and_seeds_only() -> None:
    runs = [
        a_run("a", "bitfit", 0.80, 0),
        a_run("a", "bitfit", 0.84, 1),
        a_run("a", "bitfit", 0.99, 2, digest="rows read in another way"),
        a_run("a", "full", 0.81, 1),
        a_run("a", "sklearn", 0.72),
        a_run("b", "bitfit", 0.5),
    ]
    (found,) = compare(runs, "bitfit", "full").values()
    assert (found.set, round(found.value, 6), found.spread, found.seeds) == ("a", 3.0, None, 1)
    (found,) = compare(runs, "bitfit", "sklearn").values()  # one run stands for all seeds
    assert (round(found.value, 6), found.seeds) == (10.0, 2)
    assert found.spread == pytest.approx(4 / 2**0.5)


def test_the_best_reading_and_the_best_rate_stand_for_the_baseline() -> None:
    """The rate is selected by the selection rows: the better dev score is not looked at."""
    runs = [
        a_run("a", "sklearn", 0.7),
        a_run("a", "sklearn:apart", 0.8),
        a_run("a", "stock:2e-5", 0.95, selected=0.5),
        a_run("a", "stock:5e-5", 0.85, selected=0.6),
        a_run("a", "stock:5e-5", 0.65, seed=1, selected=0.6),
    ]
    derived = {(run.method, run.seed): run.score for run in with_best(runs)[len(runs) :]}
    assert derived == {("best sklearn", 0): 0.8, ("stock", 0): 0.85, ("stock", 1): 0.65}


def states(runs: Sequence[QualityRun]) -> dict[str, tuple[str, str]]:
    """The measurement and state of each goal, by the beginning of its text and target."""
    return {
        f"{goal.text.split(', points')[0]}: {goal.target}": (goal.measured, goal.state)
        for goal in judge_goals(runs)
    }


def test_goals_are_met_missed_or_open() -> None:
    better = [("sklearn", 0.7), ("head", 0.7), ("bitfit", 0.805), ("full", 0.81)]
    runs = [a_run("a", method, score) for method, score in better]
    runs += [a_run("a", "stock:5e-5", 0.80), a_run("a", "random:0.001", 0.79)]
    found = states(runs)
    sklearn = "`bitfit` against scikit-learn on frozen embeddings: above 0 on every set"
    ours = "`bitfit` against our full fine-tuning"
    assert found[sklearn] == ("1 of 1 sets; least: a +10.50", "met")
    assert found[f"{ours}: at least -0.5, mean of all sets"] == ("-0.50 over 1 sets", "met")
    unmeasured = {text for text, (_, state) in found.items() if state == "open: no runs"}
    assert unmeasured == {  # no set of pairs
        "`bitfit` against the cosine of the frozen embeddings: above 0 on every set of pairs"
    }
    assert {state for text, (_, state) in found.items() if text not in unmeasured} == {"met"}
    worse = [("sklearn", 0.7), ("head", 0.699), ("bitfit", 0.7), ("full", 0.73)]
    runs += [a_run("b", method, score) for method, score in worse]
    found = states(runs)
    assert found[sklearn] == ("1 of 2 sets; least: b +0.00", "not met")
    assert found["`head` against scikit-learn: at least 0 on every set"][1] == "not met"
    assert found[f"{ours}: at least -0.5, mean of all sets"] == ("-1.75 over 2 sets", "not met")
    assert found[f"{ours}: at least -2 on every set"][1] == "not met"
    random_goal = "`random:0.001` against `bitfit`: at least -1.5 on every set"
    assert found[random_goal] == ("1 of 1 sets; least: a -1.50", "open: no runs on b")


def test_missed_sets_are_all_named() -> None:
    runs = [a_run(name, "sklearn", 0.7) for name in "abc"]
    runs += [
        a_run(name, "bitfit", score) for name, score in zip("abc", (0.8, 0.6, 0.5), strict=True)
    ]
    measured, state = next(iter(states(runs).values()))
    assert state == "not met"
    assert measured == "1 of 3 sets; least: c -20.00; missed by c -20.00, b -10.00"


def test_our_head_is_timed_by_the_cpu_of_whole_processes() -> None:
    runs = [a_run("a", "sklearn", 0.7, cpu_s=10.0), a_run("a", "head", 0.7, cpu_s=15.0)]
    assert compare(runs, "head", "sklearn", cpu_ratio)["a"].value == 1.5
    (found,) = [each for text, each in states(runs).items() if "CPU time" in text]
    assert found == ("0 of 1 sets; most: a 1.50 times", "not met")


def test_calibration_is_a_goal_once_it_is_measured_on_enough_rows() -> None:
    def with_error(name: str, error: float, rows: int) -> QualityRun:
        scores = {"validation": {"accuracy": 0.7, "ece": error}}
        return a_run(name, "bitfit", 0.7, scores=scores, rows={"validation": rows})

    assert not any("calibration" in text for text in states([with_error("a", 0.5, 999)]))
    runs = [with_error("a", 0.031, 1000), with_error("b", 0.03, 1000), with_error("c", 0.9, 10)]
    (found,) = [each for text, each in states(runs).items() if "calibration" in text]
    assert found == ("1 of 2 sets; a 0.031", "not met")


def test_tables_have_mean_deviation_rows_and_missing_runs() -> None:
    runs = [a_run("a", "bitfit", 0.80), a_run("a", "bitfit", 0.84, 1), a_run("b", "sklearn", 0.5)]
    assert score_rows(runs) == [
        ["set", "metric", "train rows", "dev rows", "scikit-learn", "`bitfit`"],
        ["a", "accuracy", "90", "1,000", "", "0.820 ± 0.028"],
        ["b", "accuracy", "90", "1,000", "0.500", ""],
    ]
    assert difference_rows(runs)[1:] == [["a", *[""] * 7], ["b", *[""] * 7]]
    text = page(runs, TODAY, "quality.svg")
    assert "| a | `bitfit` | 90 | 1,000 | 2 | accuracy 0.820 ± 0.028 |  | 10 | 8 |" in text
    assert "(quality.svg)" in text


def test_a_page_keeps_its_prose_and_equal_runs_give_equal_files(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "quality.md"
    runs = [a_run("a", "sklearn", 0.7), a_run("a", "bitfit", 0.8), a_run("a", "bitfit", 0.9, 1)]
    write(runs, TODAY, target)
    target.write_text(f"Our prose.\n{target.read_text()}More prose.\n")
    files = [target, target.with_suffix(".svg")]
    before = [path.read_bytes() for path in files]
    write(runs, TODAY, target)
    assert [path.read_bytes() for path in files] == before
    assert target.read_text().startswith("Our prose.\n# Quality\n")
    assert "+15.00" in target.read_text()
    assert not draw([a_run("a", "majority", 0.7)], TODAY, tmp_path / "none.svg")
