"""The planned runs of a study, and the choice of learning rates."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.study.test_results import make_run, outcome
from training.errors import ConfigError, TaskError
from training.study.plan import PlannedRun, Study, choose_rate, make_study, plan, read_study
from training.study.results import Run, run_key

STUDY: dict[str, Any] = {
    "options": {"batch_size": 8, "epochs": 1},
    "tasks": {"cola": {"epochs": 3}},
    "strategies": {"head": {"epochs": 9}},
    "rates": {"bitfit": [1e-3, 2e-3]},
    "part": [
        {"name": "main", "tasks": ["rte", "cola"], "freeze": ["bitfit", "head"], "seeds": 3},
        {
            "name": "small",
            "tasks": ["cola"],
            "freeze": ["bitfit:query"],
            "train_rows": [100, 200],
            "rates_from": "main",
            "rates_of": "bitfit",
            "seeds": 2,
            "options": {"epochs": 5},
        },
    ],
}


def study(**changes: Any) -> Study:
    return make_study(STUDY | changes, "here")


def with_part(**changes: Any) -> Study:
    return study(part=[STUDY["part"][0] | changes])


def failed(run: Run, error: str = "training diverged: the loss of step 1 is nan") -> Run:
    return Run(**run.model_dump() | {"outcome": None, "error": error})


def test_every_run_is_planned_once() -> None:
    planned = plan(study())
    # Each task: bitfit 2 rates x 1 seed + 2 seeds, head 3 seeds; and 2 sizes x 2 seeds.
    assert len(planned) == 2 * (2 + 2 + 3) + 4
    assert Counter(run.part for run in planned) == {"main": 14, "small": 4}
    tasks = [run.options["task"] for run in planned]
    assert tasks == ["rte"] * 7 + ["cola"] * 11


def test_options_of_a_part_win_over_strategy_task_and_study() -> None:
    epochs = {
        (run.part, run.options["task"], run.options["freeze"]): run.options["epochs"]
        for run in plan(study())
    }
    assert epochs == {
        ("main", "rte", "bitfit"): 1.0,
        ("main", "cola", "bitfit"): 3.0,
        ("main", "rte", "head"): 9.0,
        ("main", "cola", "head"): 9.0,
        ("small", "cola", "bitfit:query"): 5.0,
    }
    assert {run.options["batch_size"] for run in plan(study())} == {8}


def test_parts_can_be_left_out_and_still_lend_their_rates() -> None:
    planned = plan(study(), ["small"])
    assert [(run.options["train_rows"], run.options["seed"]) for run in planned] == [
        (100, 0), (200, 0), (100, 1), (200, 1)
    ]  # fmt: skip
    assert all(len(run.rates) == 2 for run in planned)
    with pytest.raises(ConfigError, match="no part is called 'big'; there are: main, small"):
        plan(study(), ["big"])


def test_the_rate_is_that_of_the_best_selection_rows_not_of_the_dev_set() -> None:
    planned = plan(with_part(tasks=["rte"], freeze=["bitfit"]))
    first, second, *rest = planned
    finished: dict[str, Run] = {}
    for run, score, selection in ((first, 0.9, 0.5), (second, 0.1, 0.6)):
        rate = run.resolve_rate({})
        assert rate is not None
        assert [later.resolve_rate(finished) for later in rest] == [None, None]
        options = run.with_rate(rate)
        finished[run_key(options)] = make_run(score, selection, **options)
    assert [run.resolve_rate(finished) for run in rest] == [2e-3, 2e-3]
    keys = {run_key(run.with_rate(2e-3)) for run in rest}
    assert len(keys) == 2
    assert not keys & set(finished)


def test_the_loss_breaks_ties_of_metrics_and_the_lower_rate_ties_of_losses() -> None:
    def run(loss: float) -> Run:
        return Run(**make_run().model_dump() | {"outcome": outcome(0.5, 0.5, loss)})

    assert choose_rate({0.1: [run(0.4)], 0.2: [run(0.3)]}) == 0.2
    assert choose_rate({0.2: [run(0.4)], 0.1: [run(0.4)]}) == 0.1
    wide = [make_run(selection=0.4), make_run(selection=0.8)]
    narrow = [make_run(selection=0.5), make_run(selection=0.5)]
    assert choose_rate({0.1: wide, 0.2: narrow}) == 0.1


def test_a_rate_that_diverged_is_out() -> None:
    low, high = make_run(lr=0.1), make_run(lr=0.2)
    choice = PlannedRun("main", {}, {0.1: (low.key,), 0.2: (high.key,)})
    assert choice.resolve_rate({low.key: low, high.key: failed(high)}) == 0.1
    with pytest.raises(ConfigError, match="every learning rate diverged"):
        choice.resolve_rate({run.key: failed(run) for run in (low, high)})


def test_a_killed_run_does_not_choose_the_other_rate() -> None:
    """The other seeds would silently run with a rate that was not the best."""
    low, high = make_run(lr=0.1), make_run(lr=0.2)
    choice = PlannedRun("main", {}, {0.1: (low.key,), 0.2: (high.key,)})
    killed = failed(high, "its process ended with exit code -9 (killed)")
    assert choice.resolve_rate({low.key: low, high.key: killed}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ["bitfitt"]}, "did you mean 'bitfit'"),
        ({"freeze": []}, "freeze: Tuple should have at least 1 item"),
        ({"options": {"epoch": 3}}, "part 'main', rte: epoch: Extra inputs are not permitted"),
        ({"tasks_options": {"rte": {"epochs": -1}}}, "rte: epochs: Input should be greater"),
        ({"rates_from": "other"}, "no part 'other' before it has bitfit on rte"),
        ({"rates": [1.0], "rates_from": "main"}, "give either rates or rates_from"),
        ({"rates_of": "bitfit"}, "rates_of goes with rates_from"),
        ({"rate_seeds": 4}, "rate_seeds is more than seeds"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?i){message}"):
        plan(with_part(**changes))


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(TaskError, match="Did you mean 'cola'"):
        plan(with_part(tasks=["colla"]))


def test_a_file_that_is_no_study(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    with pytest.raises(ConfigError, match=r"study.toml: can't be read as a study \(.*No such"):
        read_study(path)
    path.write_text("part = ")
    with pytest.raises(ConfigError, match="can't be read as a study"):
        read_study(path)


def test_the_committed_study_can_be_planned() -> None:
    from training.sweep import STUDY as COMMITTED

    planned = plan(read_study(Path(__file__).parents[4] / COMMITTED))
    main = [run for run in planned if run.part == "main"]
    seeds = Counter(
        (run.options["task"], run.options["freeze"], run.options["seed"]) for run in main
    )
    for task, count in (("rte", 5), ("cola", 5), ("mrpc", 5), ("stsb", 5), ("sst2", 3)):
        for freeze in ("full", "bitfit", "layernorm", "random:0.001", "head"):
            assert {seed for *cell, seed in seeds if cell == [task, freeze]} == set(range(count))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"ret": {}}}, "tasks: no task 'ret'. Did you mean 'rte'"),
        ({"rates": {"Bitfit": [1e-3]}}, "rates: .*bitfit"),
        ({"rates": {"head+attention": [1e-3]}}, "'head\\+attention' is written 'attention'"),
        ({"strategies": {"bitfot": {}}}, "strategies: .*bitfit"),
        ({"options": {"lr": 0.1}}, "^options: lr has no effect here; give rates$"),
        ({"tasks": {"rte": {"seed": 3}}}, "tasks.rte: seed has no effect"),
        ({"strategies": {"head": {"out": "x"}}}, "strategies.head: out has no effect"),
    ],
)
def test_a_value_without_effect_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(study(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": {"Bitfit": [1e-3]}}, "part 'main', rates: "),
        ({"options": {"task": "rte"}}, "part 'main', options: task has no effect"),
        ({"tasks_options": {"ret": {}}}, "part 'main', tasks_options: no task 'ret'"),
        ({"tasks_options": {"rte": {"lr": 1}}}, "tasks_options.rte: lr has no effect"),
    ],
)
def test_a_value_without_effect_in_a_part_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(with_part(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": [0.0]}, "greater than 0"),
        ({"rates": {"head": [-1.0]}}, "greater than 0"),
        ({"seeds": 10**8}, "less than or equal to 10000"),
    ],
)
def test_numbers_of_a_part_have_bounds(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_part(**changes)


def test_a_study_has_a_largest_number_of_epochs() -> None:
    with pytest.raises(ConfigError, match="epochs: Input should be less than or equal to 1000000"):
        plan(with_part(options={"epochs": 1e308}))
