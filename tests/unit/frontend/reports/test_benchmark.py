"""Points of the benchmark: each with its source, fronts, references, and the earlier study."""

from __future__ import annotations

from typing import Any

from deltas.publish.measured import measured_path, read_measured
from deltas.publish.study import read_study, study_path
from frontend.models import Benchmark, read_answer
from frontend.reports.benchmark import (
    COSTS,
    QUALITY,
    SERVED,
    STUDY,
    Point,
    all_points,
    beside_earlier,
    front,
    low_data,
    main_points,
    reference,
    tasks_of,
    usual_sources,
)
from tests.factories import benchmark_row


def point(method: str, value: float, share: float | None = 0.1, **changes: Any) -> Point:
    given: dict[str, Any] = {
        "source": SERVED,
        "part": SERVED,
        "task": "cola",
        "metric": "matthews",
        "spread": None,
        "seeds": 1,
        "rows": 10,
        "train_rows": 100,
        "size_bytes": 10,
        "seconds": None,
        "machine": "",
        "origin": "",
        "command": "",
    }
    return Point(method=method, value=value, share=share, **(given | changes))


def shipped() -> Benchmark:
    """The shipped study and numbers as a server sends them, with one served delta."""
    backbone = {"id": "b", "fingerprint": "f", "parameters": 22_000_000, "size_bytes": 88_000_000}
    return read_answer(
        Benchmark,
        {
            "backbone": backbone,
            "rows": [vars(benchmark_row(task="cola", strategy="bitfit"))],
            "study": [row.model_dump(mode="json") for row in read_study(study_path())],
            "measured": read_measured(measured_path()).model_dump(mode="json"),
        },
    )


def test_every_point_says_where_it_comes_from() -> None:
    points = all_points(shipped())
    assert {each.source for each in points} == {SERVED, STUDY, QUALITY}
    for each in points:
        assert each.origin
        assert each.metric
        assert each.command or each.version
        assert each.rows > 0
    assert {each.version is None for each in points if each.source == SERVED} == {False}


def test_a_server_of_before_sends_fewer_numbers() -> None:
    benchmark = shipped()
    old = read_answer(
        Benchmark,
        {
            "backbone": vars(benchmark.backbone),
            "rows": [vars(benchmark.rows[0])],
            "study": [
                {
                    name: vars(row)[name]
                    for name in (
                        "part", "task", "strategy", "mean", "spread", "seeds", "trained_share"
                    )
                }
                for row in benchmark.study
            ],
        },
    )  # fmt: skip
    assert {each.source for each in all_points(old)} == {SERVED}
    assert beside_earlier(old, all_points(old)) == []


def test_the_main_points_leave_out_trials() -> None:
    points = all_points(shipped())
    parts = {each.part for each in main_points(points, [STUDY])}
    assert parts == {"main", "zoo", "recipe"}
    assert {each.source for each in main_points(points, [SERVED, QUALITY])} == {SERVED, QUALITY}


def test_a_task_that_the_study_lacks_is_shown_from_another_source() -> None:
    points = [point("a", 1, source=STUDY), point("b", 1), point("c", 1, task="own")]
    sources = (STUDY, QUALITY, SERVED)
    assert usual_sources(points, sources, "cola") == [STUDY]
    assert usual_sources(points, sources, "own") == [STUDY, SERVED]
    assert usual_sources(points, sources, "none") == [STUDY]
    assert usual_sources([], sources, "own") == []


def test_tasks_are_found_by_their_names() -> None:
    points = [point("a", 1, task="cola"), point("b", 1, task="mnli"), point("c", 1, task="mnli")]
    assert tasks_of(points) == ["mnli", "cola"]
    assert tasks_of(points, "OL") == ["cola"]
    assert tasks_of(points, "nothing") == []


def test_the_front_is_what_nothing_cheaper_beats() -> None:
    cheap, good = point("cheap", 0.5, 0.01), point("good", 0.8, 0.1)
    worse, dear, free = point("worse", 0.7, 0.2), point("dear", 0.9, 1.0), point("free", 1.0, None)
    assert front([dear, worse, free, good, cheap], "share") == [cheap, good, dear]
    assert front([free], "share") == []
    same = point("same", 0.6, 0.01)
    assert front([cheap, same], "share") == [same], "of equal cost the better one"


def test_costs_that_are_unknown_have_no_place() -> None:
    assert point("majority", 0.5, None, size_bytes=None).cost("share") is None
    assert point("a", 0.5, seconds=0.0).cost("seconds") is None, "0 has no place on a log axis"
    assert set(COSTS) == {"share", "size_bytes", "seconds"}


def test_references_are_means_by_method() -> None:
    points = [
        point("full", 0.4),
        point("full", 0.6),
        point("sklearn", 0.2),
        point("sklearn:apart", 0.3),
        point("majority", 0.0),
        point("full", 0.9, task="sst2"),
    ]
    known = reference(points, "cola", "matthews")
    assert (known.full, known.baseline, known.majority) == (0.5, 0.3, 0.0)
    assert reference(points, "cola", "accuracy").full is None


def test_curves_of_few_rows_are_in_order() -> None:
    curves = low_data(all_points(shipped()))
    assert set(curves) == {"cola", "rte"}
    for points in curves.values():
        for method in {each.method for each in points}:
            rows = [each.train_rows for each in points if each.method == method]
            assert rows == sorted(rows)
            assert len(rows) > 2


def test_the_earlier_study_stands_beside_ours() -> None:
    benchmark = shipped()
    found = beside_earlier(benchmark, all_points(benchmark))
    by_key = {(each.task, each.strategy): each for each in found}
    full = by_key["cola", "full"]
    assert full.earlier == 0.509
    assert full.ours is not None
    assert len(by_key) == len(found), "one line for each task and strategy"
    bitfit = [row.mean for row in benchmark.measured.earlier if row.strategy == "bitfit"
              and row.task == "cola" and row.train_rows is None]  # fmt: skip
    assert by_key["cola", "bitfit"].earlier == max(bitfit)
