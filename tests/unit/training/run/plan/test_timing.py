"""The measurement of a run's speed: it changes nothing, and adds the stages up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltas import Delta, read_delta
from tests.unit.training.test_fit_options import values_of, write_rows
from training.fit import parse_arguments
from training.run.plan.timing import Duration, _at, _in_proportion, measure
from training.run.train_delta import PreparedRun, finish_run, prepare_run

Prepare = Callable[..., PreparedRun]
TOKENS = {"train": 500.0, "selection": 60.0, "validation": 600.0}


@pytest.fixture
def prepare(tiny_backbone_dir: Path, tmp_path: Path) -> Prepare:
    """A function that prepares a small run in a folder of its own."""
    rows = write_rows(tmp_path / "train.csv", 60, 1)

    def prepared(out: str = "out", **flags: object) -> PreparedRun:
        words = f"--train-file {rows} --text-columns text --label-column label --name mine"
        words += f" --backbone {tiny_backbone_dir} --batch-size 8 --max-length 24"
        words += f" --out {tmp_path / out}"
        for name, value in ({"epochs": 2} | flags).items():
            words += "" if value is None else f" --{name.replace('_', '-')} {value}"
        return prepare_run(parse_arguments(words.split()))

    return prepared


@pytest.mark.parametrize(
    ("freeze", "epochs"),
    [("bitfit", 2), ("head", 2), ("head", None), ("full", 2), ("top:1", 2), ("random:0.02", 2)],
)
def test_a_measured_run_is_the_same_bit_for_bit(
    prepare: Prepare, freeze: str, epochs: int | None
) -> None:
    made: list[Delta] = []
    for out in ("measured", "plain"):
        run = prepare(out, freeze=freeze, epochs=epochs, dropout=0.1)
        if out == "measured":
            before = {name: value.detach().clone() for name, value in run.model.parameters.items()}
            measure(run, TOKENS, 0.2)
            for name, value in run.model.parameters.items():
                assert torch.equal(value, before[name])
                assert value.grad is None
        finish_run(run, command="", report=lambda _: None)
        made.append(read_delta(run.path))
    assert made[0].version == made[1].version
    assert torch.equal(values_of(made[0]), values_of(made[1]))


def test_the_stages_are_positive_and_grow_with_the_work(prepare: Prepare) -> None:
    short = measure(prepare(epochs=1), TOKENS, 0.2).stages
    assert short["training"] > 0
    assert short["evaluation"] > 0
    assert short["validation"] > 0
    assert short["frozen layers"] == 0
    long = measure(prepare(epochs=500), TOKENS, 0.2).stages
    assert long["training"] > 20 * short["training"]


def test_frozen_layers_are_computed_once(prepare: Prepare) -> None:
    assert measure(prepare(freeze="head"), TOKENS, 0.2).stages["frozen layers"] > 0


def test_a_solved_head_takes_time_and_no_steps(prepare: Prepare) -> None:
    alone = measure(prepare(freeze="head", epochs=None), TOKENS, 0.2).stages
    assert alone["head"] > 0
    assert alone["training"] == 0
    assert measure(prepare(head_start="random"), TOKENS, 0.2).stages["head"] == 0


def test_a_limit_of_no_time_still_measures(prepare: Prepare) -> None:
    """One batch is always timed, in parts if a whole one takes too long."""
    assert measure(prepare(batch_size=64), TOKENS, 0.0).seconds > 0


def test_the_range_contains_the_estimate() -> None:
    duration = Duration({"training": 6.0, "evaluation": 4.0})
    low, high = duration.range
    assert low < duration.seconds == 10.0 < high


def test_seconds_of_a_step_follow_from_its_tokens() -> None:
    assert _in_proportion(300, [(100, 1.0), (200, 2.0), (200, 9.0)]) == pytest.approx(3.0)
    assert _at(300, [(100, 1.5), (200, 2.5)]) == pytest.approx(3.5)
    assert _at(300, [(100, 1.0), (100, 1.0)]) == pytest.approx(3.0)
    assert _at(300, [(100, 2.0), (200, 1.0)]) > 0  # noise: no line falls
