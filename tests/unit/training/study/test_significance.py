"""Comparisons with full fine-tuning: pairs of seeds, the tests, and the correction of Holm."""

from __future__ import annotations

import pytest
from scipy import stats

from tests.unit.training.study.test_aggregates import BITFIT, FULL, run_of, study_runs
from training.study import tables
from training.study.aggregates import make_cells
from training.study.results import Run
from training.study.significance import compare, compare_parts, holm, sign_flip


def test_a_variant_is_compared_with_the_reference_of_its_variant() -> None:
    runs = [
        run_of(strategy, score + epochs / 10, seed=seed, epochs=epochs)
        for seed, score in enumerate((0.1, 0.2, 0.4))
        for strategy, epochs in (("full", 1.0), ("full", 2.0), ("bitfit", 2.0), ("bitfit", 1.0))
    ]
    found = compare(make_cells(runs))
    assert [(one.method, one.difference) for one in found] == [
        ("bitfit, epochs=1.0", 0.0),
        ("bitfit, epochs=2.0", 0.0),
    ]


def test_significance_is_that_of_scipy() -> None:
    cells = make_cells(study_runs())
    (found,) = compare([cell for cell in cells if cell.part == "main"])
    reference = stats.ttest_rel(BITFIT, FULL)
    interval = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.difference == pytest.approx(0.02)
    exact = stats.permutation_test(
        ([b - f for b, f in zip(BITFIT, FULL, strict=True)],),
        lambda x: abs(x.sum()),
        permutation_type="samples",
        alternative="greater",
    )
    assert found.p_signs == pytest.approx(exact.pvalue)
    assert (found.method, found.seeds, found.p_holm) == ("bitfit", 5, found.p)


def test_seeds_are_paired_and_few_are_left_out() -> None:
    full = [run_of("full", score, seed=seed) for seed, score in enumerate(FULL)]
    shifted = [run_of("head", FULL[seed] - 0.1, seed=seed) for seed in (4, 2, 0)]  # all alike
    few = [run_of("layernorm", 0.9, seed=seed) for seed in (0, 1)]
    (found,) = compare(make_cells([*full, *shifted, *few]))
    assert (found.method, found.seeds) == ("head", 3)
    assert found.difference == pytest.approx(-0.1)
    assert found.p == found.p_signs == 0.25, "three equal differences are no certainty"
    assert (found.low, found.high) == (None, None)
    assert "| no spread | 0.250 |" in tables.significance_table([found])
    (same,) = compare(make_cells([*full, *(run_of("head", FULL[n], seed=n) for n in range(5))]))
    assert (same.difference, same.p) == (0.0, 1.0)


def test_a_part_is_compared_with_full_of_itself_or_of_the_main_part() -> None:
    def moved(part: str, runs: list[Run]) -> list[Run]:
        return [run.model_copy(update={"part": part}) for run in runs]

    full = [run_of("full", score, seed=seed) for seed, score in enumerate(FULL)]
    full_9 = [
        run_of("full", score - 0.3, seed=seed, train_rows=9) for seed, score in enumerate(FULL)
    ]
    small = [run_of("bitfit", score, seed=seed, train_rows=9) for seed, score in enumerate(BITFIT)]
    layers = [run_of("bitfit@1", score, seed=seed) for seed, score in enumerate(BITFIT[:3])]
    few = [run_of("head", 0.5, seed=seed) for seed in (0, 1)]
    cells = [
        *full,
        *moved("low-data", full_9 + small),
        *moved("layers", layers),
        *moved("few", few),
    ]
    found = compare_parts(make_cells(cells))
    assert list(found) == ["low-data", "layers"]
    (of_sizes,), (of_layers,) = found.values()
    assert (of_sizes.train_rows, of_sizes.seeds) == (9, 5)
    assert of_sizes.difference == pytest.approx(0.32)
    assert (of_layers.method, of_layers.seeds) == ("bitfit@1", 3)
    assert of_layers.difference == pytest.approx((0.01 - 0.02 + 0.05) / 3)
    assert "| rte | 9 | `bitfit` | 5 |" in tables.significance_table([of_sizes])


def test_many_comparisons_are_corrected() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    assert sign_flip([0.1] * 5) == 2 / 32
    assert sign_flip([0.1, -0.1]) == 1.0
