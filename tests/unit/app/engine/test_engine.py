"""The engine: deltas that it serves or rejects, and answers independent of batch neighbours."""

from __future__ import annotations

import math
import random
import re
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engine import engine as engine_module
from app.engine.engine import Engine, EngineRow, Outcome
from app.process.lifetime import run_in_own_thread
from deltas import (
    Backbone,
    BackboneError,
    DeltaNotFoundError,
    DenseEntry,
    Manifest,
    Record,
    Store,
    TaskSpec,
    TokenizedRow,
    write_delta,
    zoo_path,
)
from deltas.backbone.backbone import weights_fingerprint
from deltas.hardware import multiplies_int8_exactly
from deltas.manifest import TaskKind
from tests import factories

INT8 = pytest.mark.skipif(
    not multiplies_int8_exactly(), reason="this CPU's int8 products are not exact"
)
VECTORS = ("head", "bitfit", "layernorm")  # strategies that train no matrices
WORDS = ["good", "bad", "film", "the", "not", "very", "and", "3"]


@pytest.fixture(scope="module")
def engine(tiny_backbone: Backbone, pooled_deltas: Path) -> Engine:
    """All toy tasks, poolings and strategies in float32."""
    store = Store([pooled_deltas], backbone=tiny_backbone.ref)
    return Engine(tiny_backbone, store, device="cpu", precision="fp32")


def rows_of(engine: Engine, seed: int, count: int) -> list[EngineRow]:
    """Rows of any tasks and strategies."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        record = draw.choice(engine.store.records)
        fields = record.manifest.task.text_fields
        texts = tuple(" ".join(draw.choices(WORDS, k=draw.randrange(1, 9))) for _ in fields)
        rows += engine.tokenize(record, [texts])
    return rows


def logits_of(outcomes: list[Outcome]) -> list[list[float]]:
    """The logits, if all rows have them."""
    logits = [outcome for outcome in outcomes if isinstance(outcome, list)]
    assert len(logits) == len(outcomes), outcomes
    return logits


def test_each_row_gets_its_tasks_number_of_logits(engine: Engine) -> None:
    rows = rows_of(engine, 1, 40)
    answers = logits_of(engine.predict(rows))
    assert len(answers) == len(rows)
    for row, logits in zip(rows, answers, strict=True):
        assert len(logits) == row.record.manifest.task.num_outputs
        assert all(isinstance(value, float) for value in logits)


def test_no_rows_give_no_answers(engine: Engine) -> None:
    assert engine.predict([]) == []


def test_repeated_calls_are_bit_equal(engine: Engine) -> None:
    rows = rows_of(engine, 2, 30)
    first = engine.predict(rows)
    engine.predict(rows_of(engine, 3, 50))
    assert engine.predict(rows) == first


def test_a_second_engine_answers_the_same(engine: Engine, tiny_backbone: Backbone) -> None:
    rows = rows_of(engine, 4, 30)
    other = Engine(tiny_backbone, engine.store, device="cpu", precision="fp32")
    assert other.predict(rows) == engine.predict(rows)


def test_order_of_deltas_does_not_matter(
    engine: Engine, tiny_backbone: Backbone, pooled_deltas: Path, tmp_path: Path
) -> None:
    """Slots are given in another order (peers have had bugs that depend on it)."""
    for number, path in enumerate(sorted(pooled_deltas.rglob("*.safetensors"), reverse=True)):
        shutil.copy(path, tmp_path / f"{number:03}.safetensors")
    store = Store([tmp_path], backbone=tiny_backbone.ref)
    other = Engine(tiny_backbone, store, device="cpu", precision="fp32")
    rows = rows_of(engine, 5, 40)
    for mine, theirs in zip(engine.predict(rows), other.predict(rows), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_thousands_of_rows_leave_the_backbone_unchanged(
    engine: Engine, tiny_backbone: Backbone
) -> None:
    for seed in range(10):
        rows = rows_of(engine, seed, 50)
        for _ in range(4):
            engine.predict(rows)
    assert weights_fingerprint(tiny_backbone.parameters) == tiny_backbone.ref.fingerprint


def test_tokenizing_in_threads_while_the_engine_runs(engine: Engine) -> None:
    """Rows come from many threads, one thread computes: every answer as if computed alone."""
    expected = {seed: engine.predict(rows_of(engine, seed, 10)) for seed in range(6)}
    made: dict[int, list[EngineRow]] = {}
    problems: list[BaseException] = []

    def tokenize(seed: int) -> None:
        try:
            for _ in range(10):
                made[seed] = rows_of(engine, seed, 10)
        except BaseException as error:  # noqa: BLE001
            problems.append(error)

    threads = [threading.Thread(target=tokenize, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        engine.predict(rows_of(engine, 99, 5))
    for thread in threads:
        thread.join()
    assert problems == []
    for seed, answers in expected.items():
        assert engine.predict(made[seed]) == answers


def test_multi_label_and_regression_and_68_classes_in_one_batch(engine: Engine) -> None:
    rows = []
    for task in engine.store.tasks:
        record = engine.store.resolve(task)
        texts = ("good film",) * len(record.manifest.task.text_fields)
        rows += engine.tokenize(record, [texts])
    found = [len(logits) for logits in logits_of(engine.predict(rows))]
    assert found == [engine.store.resolve(t).manifest.task.num_outputs for t in engine.store.tasks]
    assert {1, 4, 68} < set(found)
    alone = [engine.predict([row])[0] for row in rows]
    for together, single in zip(engine.predict(rows), alone, strict=True):
        assert together == pytest.approx(single, abs=1e-5)


@pytest.fixture
def folder(pooled_deltas: Path, tmp_path: Path) -> Path:
    """A copy of the toy deltas, to be spoilt."""
    return Path(shutil.copytree(pooled_deltas, tmp_path / "copy"))


def flip_last_byte(record: Record) -> None:
    content = bytearray(record.path.read_bytes())
    content[-1] ^= 1
    record.path.write_bytes(content)


def cut(record: Record) -> None:
    record.path.write_bytes(record.path.read_bytes()[:-3])


def spoil_values(record: Record) -> None:
    """The header stays as it was; a value becomes NaN."""
    content = bytearray(record.path.read_bytes())
    content[-4:] = b"\0\0\xc0\x7f"
    record.path.write_bytes(content)


def replace(record: Record) -> None:
    """A sound file, but another delta than the store saw."""
    tensors = load_file(record.path)
    save_file(tensors, record.path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (flip_last_byte, "damaged"),
        (cut, "not a readable safetensors file"),
        (spoil_values, "NaN|damaged"),
        (replace, "no delta"),
        (lambda record: record.path.unlink(), "no such file"),
    ],
    ids=["flipped", "cut", "NaN", "replaced", "gone"],
)
def test_bad_files_are_rejected_and_all_other_deltas_answer(
    engine: Engine, tiny_backbone: Backbone, folder: Path, spoil: Any, reason: str
) -> None:
    """Good headers with bad content are found at load; all other slots are right."""
    store = Store([folder], backbone=tiny_backbone.ref)
    bad = [store.resolve("toy2", "bitfit"), store.resolve("toy68", "layernorm")]
    for record in bad:
        spoil(record)
    spoilt = Engine(tiny_backbone, store, device="cpu", precision="fp32")
    assert {path for path, _ in store.rejected} == {record.path for record in bad}
    texts = [text for _, text in store.rejected]
    assert all(re.search(reason, text) and str(folder) not in text for text in texts), texts
    assert len(store.records) == len(engine.store.records) - 2
    with pytest.raises(DeltaNotFoundError):
        store.resolve("toy2", "bitfit")
    keys = {record.manifest.key for record in store.records}
    rows = [row for row in rows_of(engine, 7, 80) if row.record.manifest.key in keys]
    for mine, theirs in zip(spoilt.predict(rows), engine.predict(rows), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def let_overflow(record: Record) -> None:
    """Values that are finite, so the file is sound, but not what is computed with them."""
    delta = record.load()
    name = "bert.encoder.layer.0.output.LayerNorm.weight"
    huge = DenseEntry(torch.full_like(delta.entries[name].values, 3e38))
    spoilt = vars(delta) | {"entries": {**delta.entries, name: huge}}
    write_delta(type(delta)(**spoilt), record.path)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_delta_that_overflows_harms_no_other(
    engine: Engine, tiny_backbone: Backbone, folder: Path, precision: str
) -> None:
    """NaN passes a mask: rows that share a window must not get it, at the start or later."""
    store = Store([folder], backbone=tiny_backbone.ref)
    bad = store.resolve("toy68", "layernorm")
    let_overflow(bad)
    store = Store([folder], backbone=tiny_backbone.ref)
    Engine(tiny_backbone, store, device="cpu", precision=precision)
    assert [path for path, _ in store.rejected] == [bad.path]
    store = Store([folder], backbone=tiny_backbone.ref)
    good, bad = store.resolve("toy2", "bitfit"), store.resolve("toy68", "layernorm")
    few = Engine(tiny_backbone, store, device="cpu", precision=precision, max_slots=2)
    assert bad not in few.cache
    rows = few.tokenize(good, [("good film",)]) + few.tokenize(bad, [Engine.trial(bad)])
    (alone,) = logits_of(few.predict(rows[:1]))
    mine, theirs = logits_of(few.predict(rows))
    assert mine == pytest.approx(alone, abs=1e-5)
    assert not all(map(math.isfinite, theirs))


def test_a_delta_of_impossible_shapes_is_rejected(
    engine: Engine, tiny_backbone: Backbone, folder: Path
) -> None:
    """Sound by itself and with right fingerprints, but its entries don't fit this backbone."""
    record = engine.store.resolve("toy2", "bitfit")
    delta = record.load()
    task = delta.manifest.task.model_copy(update={"max_length": 10_000})
    manifest = delta.manifest.model_copy(update={"task": task})
    write_delta(type(delta)(**(vars(delta) | {"manifest": manifest})), folder / "long.safetensors")
    store = Store([folder / "none", folder], backbone=tiny_backbone.ref)
    before = len(store.records)
    Engine(tiny_backbone, store, device="cpu", precision="fp32")
    assert len(store.records) == before - 1
    assert "maximum length" in store.rejected[-1][1]


def test_two_damaged_versions_of_one_name_are_both_rejected(
    tiny_backbone: Backbone, engine: Engine, folder: Path
) -> None:
    first = Store([folder]).resolve("toy2", "bitfit")
    delta = first.load()
    other = type(delta)(**(vars(delta) | {"head_bias": delta.head_bias + 1}))
    write_delta(other, folder / "other.safetensors")
    store = Store([folder], backbone=tiny_backbone.ref)
    both = [record for record in store.records if record.manifest.key == ("toy2", "bitfit")]
    assert len(both) == 2
    for record in both:
        flip_last_byte(record)
    Engine(tiny_backbone, store, device="cpu", precision="fp32")
    assert len(store.rejected) == 2
    assert "bitfit" not in store.strategies("toy2")


def test_a_sound_copy_is_served_in_place_of_a_damaged_file(
    tiny_backbone: Backbone, engine: Engine, folder: Path, tiny_deltas: Path
) -> None:
    store = Store([folder, tiny_deltas], backbone=tiny_backbone.ref)
    flip_last_byte(store.resolve("toy2", "bitfit"))
    mended = Engine(tiny_backbone, store, device="cpu", precision="fp32")
    assert [path.is_relative_to(folder) for path, _ in store.rejected] == [True]
    rows = rows_of(engine, 11, 40)
    assert mended.predict(rows) == engine.predict(rows)


def test_finite_values_with_infinite_answers_are_rejected(
    tiny_backbone: Backbone, folder: Path
) -> None:
    """Otherwise the readiness check, which uses the smallest delta, would fail."""
    delta = Store([folder]).resolve("toyreg", "head").load()
    huge = type(delta)(**(vars(delta) | {"head_weight": torch.full_like(delta.head_weight, 3e38)}))
    write_delta(huge, folder / "huge.safetensors")
    write_delta(huge, folder / "copy.safetensors")
    store = Store([folder], backbone=tiny_backbone.ref)
    Engine(tiny_backbone, store, device="cpu", precision="fp32")
    assert {path.name for path, _ in store.rejected} == {"huge.safetensors", "copy.safetensors"}
    assert all("NaN or infinite" in reason for _, reason in store.rejected)


def test_a_delta_replaced_after_the_start_does_not_matter(
    tiny_backbone: Backbone, folder: Path
) -> None:
    """Files may be overwritten, even in place: the engine serves the loaded values."""
    store = Store([folder], backbone=tiny_backbone.ref)
    mine = Engine(tiny_backbone, store, device="cpu", precision="fp32")
    rows = rows_of(mine, 8, 60)
    before = mine.predict(rows)
    for path in folder.rglob("*.safetensors"):
        with path.open("r+b") as file:
            size = path.stat().st_size
            file.seek(size // 2)
            file.write(b"\1" * (size - size // 2))
    assert mine.predict(rows) == before


def test_an_empty_store_is_served_as_empty(tiny_backbone: Backbone, tmp_path: Path) -> None:
    empty = Engine(tiny_backbone, Store([tmp_path], backbone=tiny_backbone.ref), device="cpu")
    assert empty.store.tasks == []
    assert empty.predict([]) == []


@pytest.mark.parametrize("precision", ["bf16", pytest.param("int8", marks=INT8)])
def test_lower_precision_gives_close_logits(
    engine: Engine, tiny_backbone: Backbone, precision: str
) -> None:
    rough = Engine(tiny_backbone, engine.store, device="cpu", precision=precision)
    assert rough.precision == precision
    rows = rows_of(engine, 9, 60)
    pairs = list(zip(logits_of(engine.predict(rows)), logits_of(rough.predict(rows)), strict=True))
    worst = max(abs(a - b) for exact, close in pairs for a, b in zip(exact, close, strict=True))
    assert 0 < worst < 0.5
    equal = sum(torch.tensor(a).argmax() == torch.tensor(b).argmax() for a, b in pairs)
    assert equal > 0.9 * len(rows)


@INT8
def test_int8_excludes_deltas_with_trained_matrices(
    engine: Engine, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only frozen matrices are converted, so trained ones are multiplied as they are."""
    monkeypatch.setattr(engine_module, "LOW_MARGIN", 0.0)
    whole = Engine(tiny_backbone, engine.store, device="cpu", precision="int8")
    plain = Engine(tiny_backbone, engine.store, device="cpu", precision="auto")
    rows = rows_of(engine, 10, 60)
    exact = {"random:0.05", "top:1"}
    seen = set()
    for row, mine, theirs in zip(
        rows, logits_of(whole.predict(rows)), logits_of(plain.predict(rows)), strict=True
    ):
        strategy = row.record.key[1]
        if strategy in exact:
            assert mine == pytest.approx(theirs, abs=1e-5)
            seen.add(strategy)
        else:
            assert mine != theirs
    assert seen == exact


@INT8
def test_int8_rows_with_a_low_margin_are_recomputed_without_it(
    engine: Engine, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is judged by its own margin, and recomputed as "auto" computes it."""
    monkeypatch.setattr(engine_module, "LOW_MARGIN", math.inf)  # of the trials at the start, too
    whole = Engine(tiny_backbone, engine.store, device="cpu", precision="int8")
    assert whole.int8_counts == engine_module.Int8Counts(), "trials are not counted"
    plain = Engine(tiny_backbone, engine.store, device="cpu", precision="auto")
    rows = [row for row in rows_of(engine, 14, 200) if row.record.key[1] in {"bitfit", "head"}]
    monkeypatch.setattr(engine_module, "LOW_MARGIN", 0.0)
    rough = logits_of(whole.predict(rows))
    whole.reset_counts()
    monkeypatch.setattr(engine_module, "LOW_MARGIN", 0.2)
    seen, counts = set(), Counter[tuple[str, str]]()
    for row, mine, before, exact in zip(
        rows, logits_of(whole.predict(rows)), rough, logits_of(plain.predict(rows)), strict=True
    ):
        kind = row.record.manifest.task.kind
        close = engine_module.has_low_margin(row.record.manifest, before)
        assert mine == (pytest.approx(exact, abs=0.02) if close else before)
        seen.add((kind, close))
        counts[row.record.manifest.key] += close
    assert whole.int8_counts.low_margin == counts
    assert whole.int8_counts.rows == Counter(row.record.manifest.key for row in rows)
    assert seen == {
        ("single_label", True),
        ("single_label", False),
        ("multi_label", True),
        ("multi_label", False),
        ("regression", False),
    }


@INT8
def test_int8_on_the_packaged_backbone(
    packaged_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are long enough for the Hadamard transform; without it the error is 0.14."""
    monkeypatch.setattr(engine_module, "LOW_MARGIN", 0.0)
    store = Store([zoo_path()], backbone=packaged_backbone.ref)
    exact = Engine(packaged_backbone, store, device="cpu", precision="fp32")
    whole = Engine(packaged_backbone, store, device="cpu", precision="int8")
    apart = {"random:0.001"}
    rows = [row for row in rows_of(exact, 3, 80) if row.record.key[1] not in apart]
    pairs = zip(logits_of(exact.predict(rows)), logits_of(whole.predict(rows)), strict=True)
    squares = [(a - b) ** 2 for one, other in pairs for a, b in zip(one, other, strict=True)]
    error = math.sqrt(sum(squares) / len(squares))
    assert 0 < error < 0.06


@pytest.mark.parametrize(
    ("kind", "logits", "close"),
    [
        ("single_label", [1.0, 1.04], True),
        ("single_label", [1.0, 1.06], False),
        ("single_label", [-3.0, 2.0, 2.01], True),
        ("single_label", [2.0, 1.0, 1.0], False),
        ("single_label", [math.nan, 1.0], False),
        ("single_label", [math.inf, math.inf], False),
        ("single_label", [1.0, 1.01, math.nan], False),
        ("multi_label", [0.01, math.nan], False),
        ("multi_label", [0.04], True),
        ("multi_label", [-0.04, 7.0], True),
        ("multi_label", [0.06, -7.0], False),
        ("regression", [0.0], False),
    ],
)
def test_low_margins_are_found(
    tiny_backbone: Backbone, kind: TaskKind, logits: list[float], close: bool
) -> None:
    assert engine_module.has_low_margin(manifest_of(tiny_backbone, kind, logits), logits) == close


def manifest_of(
    backbone: Backbone, kind: TaskKind, logits: list[float], **changes: Any
) -> Manifest:
    labels = () if kind == "regression" else tuple(f"l{n}" for n in range(len(logits)))
    task = TaskSpec(name="t", kind=kind, labels=labels, text_fields=("x",), max_length=8)
    return factories.make_delta(backbone, task, "head", **changes).manifest


@pytest.mark.parametrize(
    ("kind", "logits", "rule", "scale", "close"),
    [
        ("single_label", [1.0, 1.04], {}, (0.5,), False),
        ("single_label", [1.0, 1.02], {}, (0.5,), True),
        ("single_label", [3.0, 0.0], {"confidence": "max_logit", "limit": 3.04}, (1.0,), True),
        ("single_label", [3.0, 0.0], {"confidence": "max_logit", "limit": 3.06}, (1.0,), False),
        ("single_label", [3.0, 0.0], {"limit": 0.9540}, (1.0,), True),
        ("single_label", [3.0, 0.0], {"limit": 0.99}, (1.0,), False),
        ("single_label", [900.0, 0.0], {"limit": 1.0}, (1.0,), False),
        ("multi_label", [0.0, 5.0], {"thresholds": (0.9, 0.5)}, (1.0, 1.0), False),
        ("multi_label", [2.18, 5.0], {"thresholds": (0.9, 0.5)}, (1.0, 1.0), True),
        ("multi_label", [2.24, 5.0], {"thresholds": (0.9, 0.5)}, (2.0, 1.0), True),
        ("multi_label", [9.0, 5.0], {"thresholds": (1.0, 0.0)}, (1.0, 1.0), False),
    ],
)
def test_low_margins_follow_the_rule_and_the_calibration(
    tiny_backbone: Backbone,
    kind: TaskKind,
    logits: list[float],
    rule: dict[str, Any],
    scale: tuple[float, ...],
    close: bool,
) -> None:
    shift = (0.0,) * len(scale) if kind == "multi_label" else ()
    calibration = {"scale": scale, "shift": shift}
    made = manifest_of(tiny_backbone, kind, logits, decision=rule, calibration=calibration)
    assert engine_module.has_low_margin(made, logits) == close


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("int8", marks=INT8)])
@pytest.mark.parametrize("max_slots", [0, 5])
def test_parallel_batches_answer_as_single_ones(
    tiny_backbone: Backbone, pooled_deltas: Path, precision: str, max_slots: int
) -> None:
    """Bit for bit: a batch's logits depend on its rows only, not on other batches."""
    store = Store([pooled_deltas], backbone=tiny_backbone.ref)
    engine = Engine(tiny_backbone, store, device="cpu", precision=precision, max_slots=max_slots)
    assert engine.cache.set_concurrency(4) == 4
    batches = [rows_of(engine, seed, 1 + 5 * (seed % 5)) for seed in range(12)]
    alone = [run_in_own_thread(partial(engine.predict, rows, 1)) for rows in batches]
    engine.reset_counts()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda rows: engine.predict(rows, 1), batches * 3))
    assert together == alone * 3
    if precision == "int8" and not max_slots:
        assert sum(engine.int8_counts.rows.values()) > 0
    assert engine.cache.num_used == (max_slots or len(store.records))


def test_slots_for_all_deltas_are_never_split(tiny_backbone: Backbone, tiny_deltas: Path) -> None:
    """A batch of all deltas is one pass at any concurrency."""
    store = Store([tiny_deltas], backbone=tiny_backbone.ref)
    engine = Engine(tiny_backbone, store, device="cpu", max_slots=len(store.records))
    engine.cache.set_concurrency(4)
    assert len(engine.cache.split(store.records)) == 1


def test_the_engine_describes_its_device_and_deltas(
    engine: Engine, tiny_backbone: Backbone
) -> None:
    told = engine.describe()
    assert told["device"] == "cpu"
    assert told["precision"] == "fp32"
    assert told["deltas"] == 55
    assert told["fingerprint"] == tiny_backbone.ref.fingerprint


def test_a_missing_cuda_device_is_an_error_at_the_start(
    tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackboneError, match="'cuda' was asked for"):
        Engine(tiny_backbone, Store([tmp_path]), device="cuda")


def test_budget_counts_special_tokens(engine: Engine) -> None:
    (row,) = engine.tokenize(engine.store.resolve("toy2"), [("good film",)])
    assert row.num_tokens == 4
    assert isinstance(row.tokens, TokenizedRow)


def on_cuda(precision: str) -> Any:
    """A test's parameter, for machines with a GPU that computes in this precision."""
    there = torch.cuda.is_available()
    missing = not there or (
        precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False)
    )
    skip = pytest.mark.skipif(missing, reason=f"no CUDA device with {precision}")
    return pytest.param(precision, marks=[pytest.mark.gpu, skip])


@pytest.mark.parametrize("precision", [on_cuda("fp32"), on_cuda("bf16")])
@pytest.mark.parametrize("max_slots", [0, 4])
def test_cuda_answers_any_mix_of_deltas_as_the_cpu_does(
    engine: Engine,
    tiny_backbone: Backbone,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    max_slots: int,
) -> None:
    """All strategies, all resident or through a few slots, in recorded passes and others."""
    here = Engine(tiny_backbone, engine.store, device="cpu", precision=precision)
    there = Engine(
        tiny_backbone, engine.store, device="cuda", precision=precision, max_slots=max_slots
    )
    # Of 64 to 512 tokens: 64, 96, 128 and so on.
    assert there.prepare(512, 1, max_rows=30) == 7
    tolerance = 1e-4 if precision == "fp32" else 0.1
    for seed, count in enumerate([80, 1, 5, 300, 20, 80, 1]):
        rows = rows_of(engine, seed, count)
        vectors_only = [row for row in rows if row.record.manifest.strategy.name in VECTORS]
        for part in (rows, vectors_only):
            for mine, theirs in zip(here.predict(part), there.predict(part), strict=True):
                assert theirs == pytest.approx(mine, abs=tolerance)
    assert "record" not in caplog.text
