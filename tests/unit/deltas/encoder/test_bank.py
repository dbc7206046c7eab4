"""The bank and both mixed overlays: each row sees its own slot's values at each site."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from deltas import Backbone, Delta, Overlay, TaskSpec, TrainableOverlay, encoder_layout, pack
from deltas.backbone.backbone import weights_fingerprint
from deltas.encoder.bank import Bank
from deltas.encoder.bank_overlay import BankOverlay, apply_heads
from deltas.encoder.cpu import CpuOverlay
from deltas.kernels.int8 import hadamard

CPU = torch.device("cpu")
STRATEGIES = [
    "head",
    "bitfit",
    "layernorm",
    "random:0.05",
    "random:0.001",
    "random:0.5",
    "top:1",
    "params:embeddings",
    "random:0.1+params:query.weight",
    "full",
]


@pytest.fixture(scope="module")
def deltas(tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any) -> list[Delta]:
    """One of each strategy; tasks of all widths in turn."""
    tasks = list(toy_tasks.values())
    return [
        make_delta(tiny_backbone, tasks[number % len(tasks)], strategy)
        for number, strategy in enumerate(STRATEGIES)
    ]


@pytest.fixture(scope="module")
def bank(tiny_backbone: Backbone, deltas: list[Delta]) -> Bank:
    """All of them; slot 0 is the backbone."""
    made = Bank(tiny_backbone, CPU, torch.float32)
    assert add(made, deltas) == list(range(1, 1 + len(deltas)))
    return made


@pytest.fixture(
    params=[(BankOverlay, False), (CpuOverlay, False), (CpuOverlay, True)],
    ids=["bank", "fused", "fused-loose"],
)
def layout(request: pytest.FixtureRequest) -> tuple[type[BankOverlay], bool]:
    """An overlay, and whether rows of sparse slots are scattered in the batch."""
    chosen: tuple[type[BankOverlay], bool] = request.param
    return chosen


@pytest.fixture
def overlay_type(layout: tuple[type[BankOverlay], bool]) -> type[BankOverlay]:
    return layout[0]


@pytest.fixture
def batch(layout: tuple[type[BankOverlay], bool], bank: Bank) -> tuple[Any, list[int]]:
    """Rows of several lengths in every slot, twice each, and the slots in packed order."""
    draw = random.Random(2)
    slots = [*range(len(STRATEGIES) + 1)] * 2
    draw.shuffle(slots)
    rows = []
    for _ in slots:
        length = draw.choice([2, 3, 7])
        rows.append(([draw.randrange(101) for _ in range(length)], [0, *[1] * (length - 1)]))
    keys = [slot if bank.has_whole_matrices(slot) else 0 for slot in slots]
    return pack(rows, keys=keys if layout[1] else slots), slots


def add(bank: Bank, deltas: list[Delta]) -> list[int]:
    """The slots of deltas that are added to a bank."""
    return bank.add([bank.stage(delta) for delta in deltas])


def sites(backbone: Backbone, kind: str) -> list[str]:
    """Site names of the encoder's matrices, norms or tables."""
    names = sorted({name.rpartition(".")[0] for name in encoder_layout(backbone.config)})
    tables = {"embeddings.word", "embeddings.position", "embeddings.token_type"}
    norms = {name for name in names if name.endswith("norm")}
    wanted = {"table": tables, "norm": norms, "matrix": set(names) - tables - norms}[kind]
    return sorted(wanted)


@pytest.mark.parametrize("per_position", [False, True])
def test_each_row_of_x_is_computed_with_its_own_slot(
    tiny_backbone: Backbone,
    bank: Bank,
    deltas: list[Delta],
    batch: Any,
    per_position: bool,
    overlay_type: type[BankOverlay],
) -> None:
    """At every site, against one overlay a slot."""
    packed, slots = batch
    mixed_overlay = overlay_type(bank, packed, slots)
    alone = [TrainableOverlay(tiny_backbone, {})]
    alone += [TrainableOverlay(tiny_backbone, delta.entries) for delta in deltas]
    rows = packed.row_at_position if per_position else packed.row_of_token
    slot_of = torch.tensor(slots)[rows]
    generator = torch.Generator().manual_seed(1)
    for kind in ("matrix", "norm"):
        for site in sites(tiny_backbone, kind):
            width = bank.frozen[f"{site}.weight"].shape[-1]
            x = torch.randn(len(slot_of), width, generator=generator)
            call = "linear" if kind == "matrix" else "norm"
            found = getattr(mixed_overlay, call)(site, x.clone(), per_position=per_position)
            for slot, overlay in enumerate(alone):
                mine = slot_of == slot
                expected = getattr(overlay, call)(site, x[mine])
                torch.testing.assert_close(
                    found[mine], expected, atol=1e-5, rtol=1e-5, msg=f"{site} {slot}"
                )


@pytest.mark.parametrize("per_position", [False, True])
def test_fused_steps_equal_those_of_a_single_overlay(
    tiny_backbone: Backbone,
    bank: Bank,
    deltas: list[Delta],
    batch: Any,
    per_position: bool,
    overlay_type: type[BankOverlay],
) -> None:
    """Feed-forward of a layer: product, GELU, product, residual and LayerNorm."""
    packed, slots = batch
    mixed_overlay = overlay_type(bank, packed, slots)
    slot_of = torch.tensor(slots)[packed.row_at_position if per_position else packed.row_of_token]
    x = torch.randn(len(slot_of), 36, generator=torch.Generator().manual_seed(4))
    sites = "layer.0.output", "layer.0.output_norm"

    def feed_forward(overlay: Overlay, x: Tensor) -> Tensor:
        with torch.inference_mode():
            inner = overlay.activate("layer.0.intermediate", x, "gelu", per_position=per_position)
            return overlay.add_norm(sites, inner, x, 0.0, per_position=per_position)

    found = feed_forward(mixed_overlay, x)
    for slot in range(bank.num_slots):
        mine = slot_of == slot
        overlay = TrainableOverlay(tiny_backbone, deltas[slot - 1].entries if slot else {})
        expected = feed_forward(overlay, x[mine])
        torch.testing.assert_close(found[mine], expected, atol=1e-5, rtol=1e-5, msg=str(slot))


def test_serving_rejects_dropout(bank: Bank, batch: Any) -> None:
    packed, slots = batch
    x = torch.randn(len(packed.input_ids), 36)
    with pytest.raises(ValueError, match="cannot drop values"):
        CpuOverlay(bank, packed, slots).add_norm(
            ("layer.0.attention_output", "layer.0.attention_norm"), x, x, 0.1
        )


def test_each_token_is_looked_up_in_its_own_slots_table(
    tiny_backbone: Backbone,
    bank: Bank,
    deltas: list[Delta],
    batch: Any,
    overlay_type: type[BankOverlay],
) -> None:
    packed, slots = batch
    mixed_overlay = overlay_type(bank, packed, slots)
    slot_of = torch.tensor(slots)[packed.row_of_token]
    ids = {
        "embeddings.word": packed.input_ids,
        "embeddings.position": packed.position_ids,
        "embeddings.token_type": packed.token_type_ids,
    }
    for site in sites(tiny_backbone, "table"):
        found = mixed_overlay.embed(site, ids[site])
        for slot in range(bank.num_slots):
            entries = deltas[slot - 1].entries if slot else {}
            mine = slot_of == slot
            expected = TrainableOverlay(tiny_backbone, entries).embed(site, ids[site][mine])
            torch.testing.assert_close(found[mine], expected, atol=1e-6, rtol=1e-6)


def test_each_row_gets_its_own_tasks_head(bank: Bank, deltas: list[Delta], batch: Any) -> None:
    _, slots = batch
    used = [slot or 1 for slot in slots]  # the bare backbone has no head
    pooled = torch.randn(len(used), 36, generator=torch.Generator().manual_seed(2))
    logits = apply_heads(bank, used, pooled)
    assert len(logits) == len(used)
    for slot, row, found in zip(used, pooled, logits, strict=True):
        delta = deltas[slot - 1]
        expected = delta.head_weight @ row + delta.head_bias
        assert found == pytest.approx(expected.tolist(), abs=1e-5)


def tables(bank: Bank) -> dict[str, Tensor]:
    """Vectors of all slots, by name."""
    return {
        name: table[: held.num_rows]
        for held in bank.vector_tables.values()
        for name, table in held.capacity.items()
    }


def state(bank: Bank) -> list[Tensor]:
    """Every tensor that the bank holds."""
    held = [*bank.frozen.values(), *tables(bank).values()]
    held += [matrix for slots in bank.matrices.values() for matrix in slots.values()]
    for by_slot in bank.sparse.values():
        for sparse in by_slot.values():
            held += [sparse.rows, sparse.columns, sparse.differences]
    held += [
        multiply(torch.eye(bank.frozen[name].shape[1])) for name, multiply in bank.products.items()
    ]
    return held + [tensor for head in bank.heads for tensor in head]


def test_a_pass_writes_nothing_to_the_bank(
    tiny_backbone: Backbone, bank: Bank, batch: Any, overlay_type: type[BankOverlay]
) -> None:
    """No in-place operation reaches the slots: the same bits after every call."""
    packed, slots = batch
    before = [value.clone() for value in state(bank)]
    mixed_overlay = overlay_type(bank, packed, slots)
    for site in sites(tiny_backbone, "table"):
        mixed_overlay.embed(site, packed.token_type_ids)
    counts = len(packed.row_of_token), len(packed.row_at_position)
    for per_position, count in zip((False, True), counts, strict=True):
        for site in sites(tiny_backbone, "matrix"):
            width = bank.frozen[f"{site}.weight"].shape[1]
            mixed_overlay.linear(site, torch.randn(count, width), per_position=per_position)
        for site in sites(tiny_backbone, "norm"):
            mixed_overlay.norm(site, torch.randn(count, 36), per_position=per_position)
    assert all(map(torch.equal, state(bank), before))
    assert weights_fingerprint(tiny_backbone.parameters) == tiny_backbone.ref.fingerprint


def test_a_pass_does_not_change_its_input(
    bank: Bank, batch: Any, overlay_type: type[BankOverlay]
) -> None:
    packed, slots = batch
    mixed_overlay = overlay_type(bank, packed, slots)
    x = torch.randn(len(packed.input_ids), 36)
    kept = x.clone()
    mixed_overlay.linear("layer.0.intermediate", x)
    mixed_overlay.norm("layer.0.output_norm", x)
    inner = torch.randn(len(x), bank.frozen["layer.0.output.weight"].shape[1])
    mixed_overlay.add_norm(("layer.0.output", "layer.0.output_norm"), inner, x, 0.0)
    assert torch.equal(x, kept)


def test_adding_deltas_one_by_one_equals_adding_them_together(
    tiny_backbone: Backbone, bank: Bank, deltas: list[Delta]
) -> None:
    """Slots in use keep their number and bits."""
    grown = Bank(tiny_backbone, CPU, torch.float32)
    slots = [slot for delta in deltas for slot in add(grown, [delta])]
    assert slots == list(range(1, 1 + len(deltas)))
    assert add(grown, []) == []
    assert all(map(torch.equal, state(grown), state(bank)))


def test_frozen_weights_are_held_once(tiny_backbone: Backbone, bank: Bank) -> None:
    for name, weight in tiny_backbone.weights.items():
        assert bank.frozen[name].data_ptr() == weight.data_ptr()


def test_small_deltas_take_little_memory(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any
) -> None:
    """A slot with biases or a few sparse values never costs a matrix."""
    smallest = 36 * 36
    for strategy in ("head", "bitfit", "layernorm", "random:0.001"):
        made = Bank(tiny_backbone, CPU, torch.float32)
        first, second = (
            make_delta(tiny_backbone, toy_tasks["toy2"], strategy, seed) for seed in (0, 1)
        )
        add(made, [first])
        before = sum(value.numel() for value in state(made))
        add(made, [second])
        grown = sum(value.numel() for value in state(made)) - before
        vectors = sum(v.numel() for v in tiny_backbone.weights.values() if v.ndim == 1)
        assert grown < vectors + smallest
        assert not any(made.matrices.values())


def test_sparse_values_take_no_more_memory_than_the_matrix(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any
) -> None:
    """If lists of indices and values would take more, the slot holds whole matrices."""
    for dtype, few, many in ((torch.float32, 0.3, 0.4), (torch.bfloat16, 0.15, 0.2)):
        made = Bank(tiny_backbone, CPU, dtype)
        deltas = [
            make_delta(tiny_backbone, toy_tasks["toy2"], f"random:{share}") for share in (few, many)
        ]
        sparse, whole = add(made, deltas)
        table = "embeddings.word.weight"
        assert (made.has_whole_matrices(sparse), made.has_whole_matrices(whole)) == (False, True)
        assert (set(made.sparse[table]), set(made.matrices[table])) == ({sparse}, {whole})


def test_a_failing_product_leaves_the_matrices_as_they_were(bank: Bank) -> None:
    """Otherwise every row would be answered with values of the sparse slot."""
    sparse = 1 + STRATEGIES.index("random:0.05")
    before = [value.clone() for value in state(bank)]
    mixed_overlay = CpuOverlay(bank, pack([([1, 2], [0, 0])], keys=[sparse]), [sparse])
    with pytest.raises(RuntimeError):
        mixed_overlay.linear("layer.0.intermediate", torch.randn(2, 35))
    assert all(map(torch.equal, state(bank), before))


def test_rows_of_a_slot_with_matrices_must_be_neighbours(bank: Bank) -> None:
    packed = pack([([1, 2], [0, 0])] * 3)
    sparse = 1 + STRATEGIES.index("random:0.05")
    BankOverlay(bank, packed, [1, 2, 1])
    with pytest.raises(ValueError, match="are not neighbours"):
        BankOverlay(bank, packed, [sparse, 1, sparse])
    whole = 1 + STRATEGIES.index("top:1")
    CpuOverlay(bank, packed, [sparse, 1, sparse])
    with pytest.raises(ValueError, match="are not neighbours"):
        CpuOverlay(bank, packed, [whole, 1, sparse])


def test_many_sparse_values_or_tokens_demand_neighbours(bank: Bank) -> None:
    """Then merging a slot's values into a copy of the matrix takes less time."""
    sparse, whole = (1 + STRATEGIES.index(name) for name in ("random:0.05", "top:1"))
    assert not bank.needs_span(0, 10**6)
    assert not bank.needs_span(1, 10**6)
    assert bank.needs_span(whole, 1)
    assert not bank.needs_span(sparse, 15)
    assert bank.needs_span(sparse, 25)  # 25 tokens with a twentieth of a matrix


def test_deltas_without_vectors_share_the_backbones(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any
) -> None:
    """Thousands of head-only deltas cost only their heads."""
    made = Bank(tiny_backbone, CPU, torch.float32)
    add(made, [make_delta(tiny_backbone, toy_tasks["toy2"], "head", seed) for seed in range(5)])
    add(made, [make_delta(tiny_backbone, toy_tasks["toy2"], "bitfit")])
    assert made.row_of_slot == {"bias": [0, 0, 0, 0, 0, 0, 1], "weight": [0] * 7}
    assert made.vector_tables["bias"].num_rows == 2
    assert made.vector_tables["weight"].num_rows == 1


def test_many_slots_keep_their_values_while_the_bank_grows(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any
) -> None:
    made = Bank(tiny_backbone, CPU, torch.float32)
    deltas = [
        make_delta(tiny_backbone, toy_tasks["toy2"], "layernorm", seed) for seed in range(150)
    ]
    for delta in deltas:
        add(made, [delta])
    for slot, delta in enumerate(deltas, start=1):
        expected = delta.entries["bert.embeddings.LayerNorm.bias"].values
        assert torch.equal(
            made.vectors("embeddings.norm.bias")[made.row_of_slot["bias"][slot]], expected
        )


def test_a_delta_has_table_rows_only_for_the_kinds_it_trains(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any
) -> None:
    """Ten thousand tasks that train biases need no copies of LayerNorm weights."""
    made = Bank(tiny_backbone, CPU, torch.float32)
    wanted = ("bitfit", "layernorm", "head", "params:LayerNorm.weight", "bitfit")
    add(made, [make_delta(tiny_backbone, toy_tasks["toy2"], strategy) for strategy in wanted])
    assert made.row_of_slot == {"bias": [0, 1, 2, 0, 0, 3], "weight": [0, 0, 1, 0, 2, 0]}
    made.remove(1)
    made.remove(4)
    add(made, [make_delta(tiny_backbone, toy_tasks["toy2"], "layernorm", 1)])
    assert sorted(made.row_of_slot["bias"]) == [0, 0, 0, 1, 2, 3]
    assert made.vector_tables["bias"].num_rows == 4
    assert made.vector_tables["weight"].num_rows == 3


def test_the_bank_copies_the_deltas_values(tiny_backbone: Backbone, deltas: list[Delta]) -> None:
    """The delta's tensors may be changed or freed afterwards."""
    copies = [
        Delta(
            delta.manifest,
            {
                name: type(entry)(**vars(entry) | {"values": entry.values.clone()})
                for name, entry in delta.entries.items()
            },
            delta.head_weight.clone(),
            delta.head_bias.clone(),
        )
        for delta in deltas
    ]
    made = Bank(tiny_backbone, CPU, torch.float32)
    add(made, copies)
    before = [value.clone() for value in state(made)]
    for delta in copies:
        for value in (
            delta.head_weight,
            delta.head_bias,
            *(e.values for e in delta.entries.values()),
        ):
            value.fill_(9.0)
    assert all(map(torch.equal, state(made), before))


def test_int8_matrices_are_within_half_a_step_of_the_float_ones(tiny_backbone: Backbone) -> None:
    """Only the layers' matrices are converted; each output row has its own scale."""
    made = Bank(tiny_backbone, CPU, torch.float32, int8=True)
    matrices = {n for n, w in tiny_backbone.weights.items() if w.ndim == 2}
    layers = {name for name in matrices if name.startswith("layer.")}
    assert set(made.int8_matrices) == layers
    for name, matrix in made.int8_matrices.items():
        weight = hadamard(tiny_backbone.weights[name])
        assert matrix.values.dtype == torch.int8
        assert matrix.values.abs().amax(1).eq(127).all()
        away = (matrix.values * matrix.scales[:, None] - weight).abs()
        assert (away <= 0.501 * matrix.scales[:, None]).all(), name


def test_gathered_rows_keep_their_int8_form(tiny_backbone: Backbone) -> None:
    """A product of gathered rows has the bits of the product of all rows, in bfloat16 as well.

    LayerNorm quantises from float32. Rows that were quantised again from its bfloat16 result
    differed in the last layer's query if the batch had a row with cls pooling.
    """
    made = Bank(tiny_backbone, CPU, torch.bfloat16, int8=True)
    packed = pack([([2, 17, 3], [0, 0, 0]), ([2, 44, 99, 3], [0, 0, 1, 1])], windows=False)
    overlay = CpuOverlay(made, packed, [0, 0], int8=True)
    count = len(packed.input_ids)
    x = torch.randn(count, 36, generator=torch.Generator().manual_seed(3)).bfloat16()
    chosen = torch.tensor([0, 3])
    hidden = overlay.norm("layer.0.output_norm", x)
    expected = overlay.linear("layer.1.query", hidden)[chosen]
    gathered = overlay.gather(hidden, chosen)
    found = overlay.linear("layer.1.query", gathered, per_position=True)
    assert torch.equal(gathered, hidden[chosen])
    assert torch.equal(found, expected)


def test_a_table_that_grows_is_never_seen_without_its_values(tiny_backbone: Backbone) -> None:
    """Another thread may read the table of a name at any moment."""
    (table, *_) = Bank(tiny_backbone, CPU, torch.float32).vector_tables.values()

    class Watched(dict[str, Tensor]):
        def __setitem__(self, name: str, grown: Tensor) -> None:
            assert torch.equal(grown[: table.num_rows], self[name][: table.num_rows])
            super().__setitem__(name, grown)

    table.capacity = Watched(table.capacity)
    table.reserve(200)
    assert all(len(grown) == 201 for grown in table.capacity.values())
