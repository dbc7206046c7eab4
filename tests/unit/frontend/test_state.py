"""The order of the tasks on the page: the best learnt one comes first."""

from __future__ import annotations

from frontend.models import Backbone, Benchmark, BenchmarkRow, TaskInfo
from frontend.panels.chooser import ordered_tasks
from frontend.state import Catalogue
from tests.factories import benchmark_row

TWO = ("no", "yes")


def task(
    name: str,
    kind: str = "single_label",
    labels: tuple[str, ...] = TWO,
    changed_at: float | None = None,
) -> TaskInfo:
    facts: dict[str, object] = {
        "task": name,
        "kind": kind,
        "labels": labels,
        "text_fields": ("text",),
    }
    facts |= {"max_length": 128, "strategies": ("bitfit",), "changed_at": changed_at}
    return TaskInfo(**facts)  # type: ignore[arg-type]


def catalogue(tasks: list[TaskInfo], *rows: BenchmarkRow) -> Catalogue:
    backbone = Backbone(id="tiny", fingerprint="0" * 64, parameters=1, size_bytes=4)
    return Catalogue(tuple(tasks), Benchmark(backbone, rows))


def row(
    name: str, value: float, metric: str = "accuracy", strategy: str = "bitfit"
) -> BenchmarkRow:
    return benchmark_row(task=name, value=value, metric=metric, strategy=strategy)


def test_the_best_learnt_task_comes_first() -> None:
    tasks = [task("coin"), task("new"), task("many", labels=tuple("abcdefghij")), task("film")]
    found = catalogue(tasks, row("coin", 0.52), row("many", 0.6), row("film", 0.9))
    assert [item.name for item in found.ranked] == ["film", "many", "coin", "new"]


def test_own_tasks_come_with_the_newest_first() -> None:
    tasks = [task("a", changed_at=5.0), task("b", changed_at=9.0), task("old")]
    rows = [benchmark_row(task=name, data="files") for name in ("a", "b", "old")]
    found = catalogue([*tasks, task("glue")], *rows, benchmark_row(task="glue", data="hub"))
    assert found.own_tasks == ["b", "a", "old"]
    assert [item.name for item in ordered_tasks(found, ["glue"])] == ["glue", "b", "a", "old"]


def test_guessing_has_no_skill_and_the_best_score_all() -> None:
    half, ten = task("half"), task("ten", labels=tuple("abcdefghij"))
    score = task("score", "regression", ())
    found = catalogue(
        [half, ten, score], row("half", 0.5), row("ten", 1.0), row("score", 0.8, "pearson")
    )
    assert found.skill(half) == 0.0
    assert found.skill(ten) == 1.0
    assert found.skill(score) == 0.8


def test_the_best_strategy_counts() -> None:
    film = task("film")
    found = catalogue([film], row("film", 0.6), row("film", 0.8, strategy="head"))
    assert found.skill(film) is not None
    assert abs(found.skill(film) - 0.6) < 1e-9  # type: ignore[operator]


def test_a_task_without_a_score_that_is_a_share_has_no_skill() -> None:
    none, error = task("none"), task("error", "regression", ())
    found = catalogue([none, error], row("error", 4.0, "mse"))
    assert found.skill(none) is None
    assert found.skill(error) is None
