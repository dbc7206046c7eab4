"""The printed plan, line by line, and the same plan as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.unit.training.run.plan.test_facts import facts_of, rows_of, task_of
from tests.unit.training.run.plan.test_oddities import texts_of
from training.fit import parse_arguments, print_plan
from training.run.plan.plan import Actions, RunPlan
from training.run.plan.render import plan_json, plan_lines, time_line
from training.run.plan.timing import Duration
from training.run.plan.wording import format_duration, format_range, percent

Capture = pytest.CaptureFixture[str]
ACTIONS = Actions(
    backbone="tiny-bert",
    strategy="bitfit",
    pooling="mean",
    pairs=None,
    trained_parameters=1234,
    total_parameters=56789,
    head_start="solved",
    epochs=2.5,
    steps=1000,
    step_rows=32,
    learning_rate=0.002,
    head_learning_rate=0.01,
    evaluations=4,
    patience=None,
    precision="bf16",
    device="cpu",
    threads=2,
    processes=1,
    file="runs/deltas/tiny-bert/mine/bitfit.safetensors",
    exists=False,
    overwrites=False,
    resumes=False,
)


def plan_of(num_labels: int = 2, **changes: object) -> RunPlan:
    """Return a plan of 60 train rows."""
    task = task_of("single_label", *(f"class {n}" for n in range(num_labels)))
    train = rows_of(texts_of(60), [n % num_labels for n in range(60)])
    others = rows_of(texts_of(10, 1), [n % num_labels for n in range(10)])
    plan = RunPlan(
        source="files",
        notes=("rows.csv: 80 rows", "10 rows held out of rows.csv (seed 0)"),
        warnings=("a warning of the reading",),
        is_kind_inferred=False,
        facts=facts_of(task, train=train, selection=others, validation=others),
        actions=ACTIONS,
        oddities=("something is odd",),
        duration=Duration({"training": 100.0, "evaluation": 20.0}),
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


PRINTED = """\
read      rows.csv: 80 rows; 10 rows held out of rows.csv (seed 0)
task      mine (single_label), text: text
labels    2 in the train rows: class 0 30 (50 %), class 1 30 (50 %)
split     60 rows to train on, 10 to select the best state by, 10 to report on (validation)
repeats   no text occurs twice
lengths   median 12 tokens, 90 % at most 12, 99 % at most 12, longest 12; no rows cut at 128
baseline  always answering 'class 0': accuracy 0.5000 on selection, accuracy 0.5000 on validation
strategy  bitfit over tiny-bert: trains 1,234 of 56,789 parameters, mean pooling
training  from a solved head: 2.5 epochs, 1,000 steps of 32 rows, learning rate 0.002 (head 0.01), \
4 evaluations
device    cpu in bf16, 2 threads
writes    runs/deltas/tiny-bert/mine/bitfit.safetensors
"""


def printed(plan: RunPlan, capsys: Capture, *words: str) -> str:
    """Return a plan as a dry run prints it."""
    source = ["--task", "rte", "--dry-run"]
    print_plan(plan, parse_arguments([*source, *words]))
    return capsys.readouterr().out


def test_the_plan_as_it_is_printed(capsys: Capture) -> None:
    found = printed(plan_of(), capsys)
    assert found.startswith(PRINTED)
    rest = found.removeprefix(PRINTED).splitlines()
    assert rest[0].startswith("time      60 rows x 2.5 epochs in 1,000 steps: about 2 min (")
    assert rest[1:] == ["odd: a warning of the reading", "odd: something is odd"]
    assert printed(plan_of(), capsys, "--json") == plan_json(plan_of())


def test_warnings_that_were_logged_are_not_printed_again_before_a_run(capsys: Capture) -> None:
    print_plan(plan_of(), parse_arguments(["--task", "rte"]))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(PRINTED)
    assert "a warning" not in err
    assert err.endswith("odd: something is odd\n")


def test_the_time_says_how_to_stop_and_go_on() -> None:
    line = time_line(plan_of())
    assert "Ctrl-C stops the run" in line
    assert "--resume continues it" in line
    low, high = plan_of().duration.range
    assert low < 120.0 < high
    patient = plan_of(actions=replace(ACTIONS, patience=3))
    assert "in at most 1,000 steps" in time_line(patient)


def test_many_labels_are_bounded_and_the_rarest_is_named() -> None:
    line = plan_lines(plan_of(50))["labels"]
    assert line.startswith("50 in the train rows: ")
    assert line.count("class") == 9
    assert line.endswith("and 42 more, the rarest class 49 1")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overwrites": True}, "bitfit.safetensors, replacing the delta there"),
        ({"resumes": True}, "bitfit.safetensors, continuing a stopped run"),
        ({"patience": 3}, "4 evaluations (stops after 3 without gain)"),
        ({"pairs": "joint"}, "pairs read together"),
        ({"pairs": "separate"}, "pairs read apart"),
        ({"head_start": "random"}, "from a random head: 2.5 epochs"),
        ({"steps": 0}, "the head is solved on frozen features; nothing else trains"),
        ({"steps": 0}, "60 rows, no steps: about 2 min ("),
        ({"steps": 1, "evaluations": 1}, "2.5 epochs, 1 step of 32 rows, learning rate 0.002"),
        ({"steps": 1, "evaluations": 1}, ", 1 evaluation"),
        ({"epochs": 22.069}, "60 rows x 22.1 epochs in 1,000 steps"),
        ({"epochs": 1.0}, "from a solved head: 1 epoch, 1,000 steps"),
        ({"threads": 1}, "cpu in bf16, 1 thread"),
        ({"device": "cuda", "processes": 2}, "cuda in bf16, 2 processes"),
    ],
)
def test_what_is_done_is_said(changes: dict[str, object], words: str) -> None:
    plan = plan_of(actions=replace(ACTIONS, **changes))  # type: ignore[arg-type]
    assert any(words in line for line in plan_lines(plan).values())


def test_an_inferred_kind_says_how_to_overrule_it() -> None:
    line = plan_lines(plan_of(is_kind_inferred=True))["task"]
    assert line == "mine (single_label by the labels, --kind overrules), text: text"


def test_repeats_are_counted_in_words() -> None:
    facts = plan_of().facts
    repeats = replace(facts.repeats, repeated=1, contradicting=2, shared={"validation": 1})
    line = plan_lines(plan_of(facts=replace(facts, repeats=repeats)))["repeats"]
    assert line == (
        "1 row with the text of an earlier row to learn from, 2 rows to learn from with a text "
        "that has another label elsewhere, 1 row of validation with the text of a train row"
    )


def test_json_has_the_same_facts_on_one_line() -> None:
    written = plan_json(plan_of())
    assert written.count("\n") == 1
    content = json.loads(written)
    assert content["rows"] == {"train": 60, "selection": 10, "validation": 10}
    assert content["labels"] == {"class 0": 30, "class 1": 30}
    assert content["baseline"]["metrics"]["validation"]["accuracy"] == 0.5
    assert content["actions"]["steps"] == 1000
    assert content["odd"] == ["a warning of the reading", "something is odd"]
    assert content["seconds"]["about"] == 120.0
    assert content["seconds"]["by_stage"] == {"training": 100.0, "evaluation": 20.0}
    assert content["seconds"]["low"] < 120.0 < content["seconds"]["high"]


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "0 %"),
        (0.004, "0.4 %"),
        (0.05, "5 %"),
        (0.0994, "9.9 %"),
        (0.0996, "10 %"),
        (1.0, "100 %"),
    ],
)
def test_shares_are_short(share: float, words: str) -> None:
    assert percent(share) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "under 1 s"), (59.6, "60 s"), (5400, "1 h 30 min"), (5_000_000, "1,389 h")],
)
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_signs_that_cannot_be_printed_are_escaped_and_long_names_shortened() -> None:
    task = task_of("single_label", "a\nb\x1b[31m", "é" * 200)
    rows = rows_of(texts_of(20), [n % 2 for n in range(20)])
    lines = plan_lines(plan_of(facts=facts_of(task, train=rows, selection=rows)))
    assert "a\\nb\\x1b[31m 10 (50 %)" in lines["labels"]
    assert len(lines["labels"]) < 100
    assert all(line.isprintable() for line in lines.values())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ((0.1, 0.07, 0.15), "under 1 s"),
        ((0.4, 0.28, 0.6), "at most 1 s"),
        ((0.9, 0.63, 1.35), "about 1 s"),
        ((10, 7, 15), "about 10 s (7 s to 15 s)"),
    ],
)
def test_ranges_are_for_people(seconds: tuple[float, float, float], words: str) -> None:
    assert format_range(*seconds) == words
