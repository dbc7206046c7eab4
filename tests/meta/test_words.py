"""Rules of names: retired words stay retired, and one name stands for one thing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

import pytest

from tests.meta.source import Source, report

# Names of earlier versions, by the name that replaced them. `docs/architecture.md` has the terms.
RETIRED_NAMES = {
    "Admission": "LoadSheddingMiddleware",
    "Coming": "PendingLoad",
    "Corrections": "SparseCorrection",
    "DaemonThreads": "IoThreads",
    "DeviceForward": "CudaForward",
    "Edge": "RequestContextMiddleware",
    "FrozenPart": "FeatureCache",
    "FusedOverlay": "CpuOverlay",
    "HostForward": "CpuForward",
    "Job": "PendingRequest",
    "Lines": "VectorTable",
    "OwnTask": "CustomTask",
    "PackedMatrix": "prepack",
    "PerLine": "PerRowVector",
    "PlainMatrix": "prepack",
    "Runners": "Parallelism",
    "Segments": "RowSegments",
    "SingleOverlay": "TrainableOverlay",
    "Slots": "DeltaCache",
    "SparseSlot": "SparseWeights",
    "Staged": "StagedDelta",
    "announce": "reserve",
    "close_calls": "low_margin",
    "flatten": "encode_batch",
    "is_close": "has_low_margin",
    "is_telling": "under_load",
    "judge": "needs_recompute",
    "kind_and_place": "dtype_and_pointer",
    "matrix_of": "prepack",
    "ordered": "sortable_bits",
    "packed_row": "pooled_of_row",
    "place_of": "data_pointer",
    "row_of_packed": "row_at_position",
    "selected_products": "sddmm",
    "short_budget": "small_batch_tokens",
    "unflatten": "decode_batch",
}
# Words that no name may contain, however it is put together: `_crew`, `CrewError`, `run_crews`.
RETIRED_WORDS = {
    "crew": "worker pool",
    "crews": "worker pools",
    "pace": "throughput estimate",
    "quantised": "int8",
    "room": "capacity",
    "rooms": "capacities",
    "sight": "attention",
    "stretch": "segment",
    "stretches": "segments",
    "ticket": "queued request",
    "tickets": "queued requests",
    "trainee": "task model",
}


def defined(source: Source) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, name, is local) for everything that a file defines, assigns or imports."""
    for node in source.nodes:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name, False
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg, False
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id, True
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr, False
        elif isinstance(node, ast.alias):
            yield node.lineno, (node.asname or node.name).split(".")[-1], False


def words_of(name: str) -> list[str]:
    """Return the lower-case words of a name in snake_case or CamelCase."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def name_violations(source: Source) -> Iterator[str]:
    """Yield the retired names and words that a file uses.

    A local variable may bear a retired name, but no retired word.
    """
    for line, name, is_local in sorted(set(defined(source))):
        better = None if is_local else RETIRED_NAMES.get(name.lstrip("_"))
        for word in words_of(name):
            better = better or RETIRED_WORDS.get(word)
        if name == "own" and "training/" in source.path:
            better = "custom"
        if better:
            yield f"{source.path}:{line}: {name}: say {better}"


def class_violations(sources: Iterable[Source]) -> Iterator[str]:
    """Yield public classes that share a name, and public methods beside each other called `run`.

    The page repeats the names of the HTTP API in models of its own, so it counts for itself.
    """
    classes, runs = defaultdict(list), []
    for source in sources:
        side = "frontend" if source.path.startswith("frontend/") else "rest"
        for node in source.nodes:
            if isinstance(node, ast.ClassDef):
                if not node.name.startswith("_"):
                    classes[side, node.name].append(f"{source.path}:{node.lineno}")
                methods = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
                runs += [f"{source.path}: {node.name}.run"] * ("run" in methods)
    for (_, name), places in classes.items():
        if len(places) > 1:
            yield from (f"{place}: another class is called {name}, too" for place in places)
    if len(runs) > 1:
        yield from (f"{place}: another public method is called run, too" for place in runs)


def test_retired_names_stay_retired(
    sources: dict[str, Source], test_sources: dict[str, Source]
) -> None:
    files = [*sources.values(), *test_sources.values()]
    report("words", (line for source in files for line in name_violations(source)))


def test_a_name_stands_for_one_class(sources: dict[str, Source]) -> None:
    report("classes", class_violations(sources.values()))


@pytest.mark.parametrize(
    "text",
    [
        "class Crew: ...",
        "def run_crew(): ...",
        "self._pace = 1",
        "from app.engine import close_calls",
        "import app.close_calls",
        "def f(announce): ...",
        "for ticket in (): ...",
        "class QuantisedRows: ...",
        "def test_a_room_has_a_door(): ...",
    ],
)
def test_a_planted_name_is_found(text: str) -> None:
    assert len(list(name_violations(Source.parse("app/a.py", text)))) == 1


def test_own_stands_for_nothing_of_the_user_s() -> None:
    assert list(name_violations(Source.parse("training/a.py", "own = 1")))


def test_similar_names_are_no_violation() -> None:
    text = "space = own = ordered = own_tokens = 1\nx.flatten()\nf(flatten=1)\nclass Jobs: ..."
    assert not list(name_violations(Source.parse("app/a.py", text)))


def test_planted_classes_with_one_name_are_found() -> None:
    made = [
        Source.parse("app/a.py", "class Answer:\n    def run(self): ..."),
        Source.parse("deltas/b.py", "class Answer: ...\nclass B:\n    def run(self): ..."),
        Source.parse("frontend/c.py", "class B: ..."),
    ]
    found = list(class_violations(made))
    assert len([line for line in found if "called Answer" in line]) == 2
    assert len([line for line in found if "called run" in line]) == 2
    assert len(found) == 4
