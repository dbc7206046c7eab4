"""Laws of overlays: a row's answer depends only on the row and its delta."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from app.engine import engine as engine_module
from app.engine.engine import Engine, EngineRow
from deltas import Backbone, Record, Store, TokenizedRow, TrainableOverlay, encode, pack
from deltas.backbone.backbone import weights_fingerprint
from deltas.encoder.window_attention import WindowAttention
from deltas.hardware import dtype_of, multiplies_int8_exactly
from tests.factories import POOLED_TASKS, TOY_STRATEGIES, TOY_TASKS
from tests.laws import law

pytestmark = pytest.mark.law

LAW = law(40)

TOLERANCE = 1e-5
# The last bit of the pooler's product may depend on its number of rows. In bfloat16, which has
# eight bits, a pooled value moves by at most 0.004 then, and a logit by a hundredth.
POOLER_TOLERANCE = 0.02
# Deltas with trained matrices run in bfloat16, where this applies to every product.
APART = {"random:0.05", "top:1"}
HALF_TOLERANCE = 0.1

record_numbers = st.integers(0, (len(TOY_TASKS) + len(POOLED_TASKS)) * len(TOY_STRATEGIES) - 1)
token_rows = st.lists(
    st.lists(st.integers(5, 100), min_size=1, max_size=12).map(
        lambda ids: ([2, *ids, 3], [0] * (len(ids) // 2) + [1] * (len(ids) - len(ids) // 2 + 2))
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def engine(tiny_backbone: Backbone, pooled_deltas: Path) -> Engine:
    """All toy tasks and strategies."""
    store = Store([pooled_deltas], backbone=tiny_backbone.ref)
    return Engine(tiny_backbone, store, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def overlays(tiny_backbone: Backbone, toy_tasks: Any, make_delta: Any) -> list[TrainableOverlay]:
    """The bare backbone, and one overlay of each kind of entry."""
    names = ("layernorm", "random:0.05", "full")
    made = [make_delta(tiny_backbone, toy_tasks["toy2"], name) for name in names]
    return [TrainableOverlay(tiny_backbone, {})] + [
        TrainableOverlay(tiny_backbone, delta.entries) for delta in made
    ]


def pooled(backbone: Backbone, overlay: TrainableOverlay, rows: Any) -> torch.Tensor:
    """Pooled outputs in input order; the mean for rows with an even number of tokens."""
    batch = pack(rows, mean=[len(ids) % 2 == 0 for ids, _ in rows])
    with torch.inference_mode():
        return encode(backbone.config, overlay, batch, WindowAttention(batch))


def engine_row(record: Record, ids: list[int]) -> EngineRow:
    """A row of these tokens, with a second sequence if the task reads pairs separately."""
    tokens = TokenizedRow([2, *ids, 3], [0] * (len(ids) + 2), truncated=False)
    if record.manifest.task.pairs == "separate":
        both = [*tokens.input_ids, 2, *ids[1:], 3]
        tokens = TokenizedRow(both, [0] * len(both), False, tokens.num_tokens)
    return EngineRow(tokens, record, tokens.num_tokens)


@LAW
@given(rows=token_rows, kind=st.integers(0, 3), data=st.data())
def test_order_and_batch_neighbours_do_not_matter(
    tiny_backbone: Backbone, overlays: Any, rows: Any, kind: int, data: st.DataObject
) -> None:
    """Any order, any half of the batch, any row alone."""
    overlay = overlays[kind]
    together = pooled(tiny_backbone, overlay, rows)
    order = data.draw(st.permutations(range(len(rows))))
    kept = order[: data.draw(st.integers(1, len(rows)))]
    some = pooled(tiny_backbone, overlay, [rows[index] for index in kept])
    torch.testing.assert_close(some, together[kept], atol=TOLERANCE, rtol=0)


@LAW
@given(rows=token_rows)
def test_the_same_shape_gives_the_same_bits(
    tiny_backbone: Backbone, overlays: Any, rows: Any
) -> None:
    """A row keeps its answer bit for bit if the packed shape and its place are the same."""
    for overlay in overlays:
        first = pooled(tiny_backbone, overlay, rows)
        assert torch.equal(first, pooled(tiny_backbone, overlay, rows))
        other = [rows[0]] + [([2, *[9] * (len(ids) - 2), 3], types) for ids, types in rows[1:]]
        torch.testing.assert_close(
            pooled(tiny_backbone, overlay, other)[0], first[0], atol=0, rtol=0
        )


@pytest.fixture(scope="module")
def whole_engine(tiny_backbone: Backbone, pooled_deltas: Path) -> Iterator[Engine]:
    """The same in int8, without recomputing rows with a low margin."""
    if not multiplies_int8_exactly():
        pytest.skip("this CPU's int8 products are not exact")
    store = Store([pooled_deltas], backbone=tiny_backbone.ref)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "LOW_MARGIN", 0.0)
        yield Engine(tiny_backbone, store, device="cpu", precision="int8")


@LAW
@given(
    rows=st.lists(
        st.tuples(record_numbers, st.lists(st.integers(5, 100), min_size=1, max_size=9)),
        min_size=1,
        max_size=12,
    )
)
@example(rows=[(0, [5]), (50, [5])])  # one row with cls pooling, one with mean pooling
def test_int8_answers_do_not_depend_on_batch_neighbours(whole_engine: Engine, rows: Any) -> None:
    """In int8 each row of activations has its own scale, and a product is exact.

    Low margins are not recomputed here: whether one is below the limit may depend on bfloat16's
    rounding in the pooler, which depends on batch neighbours.
    """
    made = [engine_row(whole_engine.store.records[number], ids) for number, ids in rows]
    together = whole_engine.predict(made)
    for row, logits in zip(made, together, strict=True):
        (alone,) = whole_engine.predict([row])
        assert isinstance(alone, list)
        is_half = dtype_of("int8", whole_engine.device) == torch.bfloat16
        is_apart = is_half and row.record.key[1] in APART
        has_pooler = is_half and row.record.manifest.task.pooling == "cls"
        tolerance = POOLER_TOLERANCE if has_pooler else TOLERANCE
        assert logits == pytest.approx(alone, abs=HALF_TOLERANCE if is_apart else tolerance)


@LAW
@given(
    wanted=st.lists(
        st.tuples(record_numbers, st.lists(st.integers(5, 100), min_size=1, max_size=9)),
        min_size=1,
        max_size=12,
    ),
    data=st.data(),
)
def test_tasks_in_one_batch_do_not_affect_each_other(
    engine: Engine, wanted: Any, data: st.DataObject
) -> None:
    """Rows of any deltas together equal each row alone, in any order; labels too."""
    rows = [engine_row(engine.store.records[number], ids) for number, ids in wanted]
    order = data.draw(st.permutations(range(len(rows))))
    together = engine.predict([rows[index] for index in order])
    for index, logits in zip(order, together, strict=True):
        (alone,) = engine.predict([rows[index]])
        assert isinstance(alone, list)
        assert isinstance(logits, list)
        assert logits == pytest.approx(alone, abs=TOLERANCE)
        if max(alone) - sorted(alone)[-2 if len(alone) > 1 else -1] > 10 * TOLERANCE:
            assert logits.index(max(logits)) == alone.index(max(alone))
    assert weights_fingerprint(engine.backbone.parameters) == engine.backbone.ref.fingerprint
