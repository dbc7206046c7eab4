"""CUDA's forward pass, run on a CPU: answers, encoded batches, attention, and recorded passes.

Tests marked `gpu` need a device. The others replace the recorder, or run on the meta device, where
reading a value would fail.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from app.engine.bank import Bank
from app.engine.cpu import CpuForward
from app.engine.cuda import (
    BatchShape,
    CudaForward,
    Graphs,
    NotRecordedError,
    VarlenAttention,
    _on_device,
    batch_shapes,
    cuda_recorder,
    decode_batch,
    encode_batch,
    first_fitting,
)
from deltas import Backbone, Delta, TaskSpec, TokenizedRow
from tests.unit.deltas.encoder.test_packing import Copies

row_sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), min_size=1, max_size=30)


def row_of(length: int, mark: int = 0) -> TokenizedRow:
    """A row whose ids tell its number and their places in it."""
    ids = [100 * mark + place + 1 for place in range(length)]
    return TokenizedRow(ids, [mark % 2] * length, truncated=False)


@given(sizes=row_sizes, more=st.tuples(st.integers(0, 40), st.integers(0, 9)), keyed=st.booleans())
def test_decoding_finds_every_row_again(
    sizes: list[tuple[int, int]], more: tuple[int, int], keyed: bool
) -> None:
    rows = [row_of(length, mark) for mark, (length, _) in enumerate(sizes)]
    keys = [key for _, key in sizes] if keyed else None
    tokens = sum(length for length, _ in sizes)
    longest = max(length for length, _ in sizes)
    shape = BatchShape(tokens + more[0], len(rows) + more[1], longest + more[1])
    encoded = encode_batch(rows, shape, keys, extra=[[7, 8], [9]])
    assert encoded.numbers.dtype == torch.int64
    assert encoded.numbers[shape.num_numbers :].tolist() == [7, 8, 9]
    batch = decode_batch(encoded.numbers, shape, encoded.spans)
    assert batch.longest == shape.longest
    cu_seqlens = batch.cu_seqlens.tolist()
    for mark, row in enumerate(rows):
        position = int(batch.pooled_of_row[mark])
        assert batch.row_at_position[position] == mark
        assert batch.token_at_position[position] == cu_seqlens[position]
        tokens_of_row = slice(cu_seqlens[position], cu_seqlens[position + 1])
        assert batch.input_ids[tokens_of_row].tolist() == row.input_ids
        assert batch.token_type_ids[tokens_of_row].tolist() == row.token_type_ids
        assert batch.position_ids[tokens_of_row].tolist() == list(range(row.num_tokens))
        assert batch.row_of_token[tokens_of_row].tolist() == [mark] * row.num_tokens
    assert cu_seqlens[len(rows) :] == [tokens] * (1 + more[1])
    for name in ("input_ids", "token_type_ids"):
        assert getattr(batch, name).shape == (shape.tokens,)
        assert not getattr(batch, name)[tokens:].any()
    # Tokens and rows that fill the batch up read valid indices.
    for name, end in (("position_ids", shape.longest), ("row_of_token", len(rows))):
        values = getattr(batch, name)
        assert values.shape == (shape.tokens,)
        assert bool(((values >= 0) & (values < end)).all())
    for name in ("token_at_position", "row_at_position", "pooled_of_row"):
        assert getattr(batch, name).shape == (shape.rows,)
        assert not getattr(batch, name)[len(rows) :].any()


@given(row_sizes)
def test_rows_of_a_key_are_neighbours(sizes: list[tuple[int, int]]) -> None:
    """Rows keep their order, the lowest key comes first, and there are no gaps."""
    keys = [key for _, key in sizes]
    encoded = encode_batch(
        [row_of(length, mark) for mark, (length, _) in enumerate(sizes)], keys=keys
    )
    batch = decode_batch(encoded.numbers, encoded.shape, encoded.spans)
    assert list(batch.key_spans) == sorted(set(keys))
    token = packed = 0
    for key, span in batch.key_spans.items():
        assert (span.tokens.start, span.positions.start) == (token, packed)
        marks = [mark for mark, other in enumerate(keys) if other == key]
        assert batch.row_at_position[span.positions].tolist() == marks
        assert sorted(set(batch.row_of_token[span.tokens].tolist())) == marks
        token, packed = span.tokens.stop, span.positions.stop
    assert (token, packed) == encoded.shape[:2]


def test_without_a_shape_nothing_is_filled_up() -> None:
    assert encode_batch([row_of(3, 0), row_of(4, 1)]).shape == BatchShape(7, 2, 4)


@pytest.mark.parametrize("shape", [BatchShape(6, 2, 4), BatchShape(7, 1, 4), BatchShape(7, 2, 3)])
def test_rows_that_do_not_fit_the_shape_are_an_error(shape: BatchShape) -> None:
    with pytest.raises(
        ValueError, match=r"BatchShape\(tokens=7, rows=2, longest=4\) does not fit BatchShape"
    ):
        encode_batch([row_of(3, 0), row_of(4, 1)], shape)


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
LENGTHS = [20, 1, 33, 128, 7, 64]
FILLED = BatchShape(sum(LENGTHS) + 40, len(LENGTHS) + 5, max(LENGTHS) + 3)


def attention_of(device: str, shape: BatchShape | None) -> tuple[VarlenAttention, Tensor]:
    """The attention of a batch of these lengths, and the first token of each row."""
    encoded = encode_batch([row_of(length) for length in LENGTHS], shape)
    batch = decode_batch(encoded.numbers.to(device), encoded.shape)
    return VarlenAttention(batch), batch.token_at_position


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("shape", [None, FILLED])
@pytest.mark.parametrize(("heads", "depth"), [(12, 32), (2, 64), (3, 12), (12, 26)])
def test_varlen_attention_equals_that_of_pytorch_for_each_row(
    device: str,
    dtype: torch.dtype,
    per_position: bool,
    shape: BatchShape | None,
    heads: int,
    depth: int,
) -> None:
    """Inputs are views, as in the encoder; NaN behind the rows reaches none of them."""
    is_bf16 = dtype == torch.bfloat16
    if device == "cuda" and is_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    attention, first = attention_of(device, shape)
    num_tokens, width = sum(LENGTHS), heads * depth
    mixed = torch.randn(num_tokens, 3 * width, generator=torch.Generator().manual_seed(0))
    filled = torch.full((FILLED.tokens if shape else num_tokens, 3 * width), float("nan"))
    filled[:num_tokens] = mixed
    query, key_value = filled.to(device, dtype).split([width, 2 * width], 1)
    if per_position:
        attended = attention.positions(query[first], key_value, heads)
    else:
        attended = attention.tokens(query, key_value, heads)
    out = attended.cpu().double()
    done = 0
    for number, row in enumerate(mixed.to(dtype).double().split(LENGTHS)):
        q, k, v = row.view(len(row), 3, heads, depth).permute(1, 2, 0, 3)
        wanted = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        mine = out[number : number + 1] if per_position else out[done : done + len(row)]
        torch.testing.assert_close(
            mine, wanted[:1] if per_position else wanted, atol=TOLERANCE[dtype], rtol=0
        )
        done += len(row)


@pytest.mark.parametrize("shape", [None, FILLED])
def test_kernels_are_given_upper_bounds_of_the_segments(shape: BatchShape | None) -> None:
    """A kernel skips tokens beyond the bound."""
    longest = shape.longest if shape else max(LENGTHS)
    attention, _ = attention_of("cpu", shape)
    tokens, rows = attention.of_tokens, attention.of_positions
    assert (tokens.max_queries, tokens.max_keys) == (longest, longest)
    assert (rows.max_queries, rows.max_keys) == (1, longest)
    for segments in (tokens, rows):
        assert int(segments.cu_queries.diff().max()) <= segments.max_queries
        assert int(segments.cu_keys.diff().max()) <= segments.max_keys


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("depth", [32, 26])
def test_attention_on_a_device_reads_no_value_on_the_host(dtype: torch.dtype, depth: int) -> None:
    """The meta device holds no values, so that reading one would fail."""
    attention, _ = attention_of("meta", FILLED)
    assert attention.of_tokens.cu_keys.dtype == torch.int32  # what the kernels take
    query, key_value = torch.empty(FILLED.tokens, 36 * depth, device="meta", dtype=dtype).split(
        [12 * depth, 24 * depth], 1
    )
    out = attention.tokens(query, key_value, 12)
    assert (out.shape, out.dtype, out.device.type) == (query.shape, dtype, "meta")


def test_varlen_attention_is_for_inference() -> None:
    attention, _ = attention_of("cpu", None)
    query = torch.randn(sum(LENGTHS), 24, requires_grad=True)
    with pytest.raises(ValueError, match="are for inference"):
        attention.tokens(query, torch.randn(sum(LENGTHS), 48), 2)


SMALL, LARGE = BatchShape(2, 1, 2), BatchShape(3, 1, 3)


class Recorder:
    """Replays in Python: like CUDA, a replay reads and writes the recorded memory."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.times += 1
        result = run()

        def replay() -> None:
            result.copy_(run())

        return replay, result


def doubled(numbers: Tensor, shape: BatchShape) -> Tensor:
    assert len(numbers) == shape.tokens
    return 2.0 * numbers


def check(graphs: Graphs, *in_turn: BatchShape, start: int = 0) -> None:
    """Check the results of passes of these shapes."""
    for size in in_turn:
        numbers = torch.arange(start, start + size.tokens)
        assert graphs.replay(numbers, size).tolist() == (2.0 * numbers).tolist()


def test_token_counts_grow_by_a_half_at_most() -> None:
    found = sorted({size.tokens for size in batch_shapes(512)})
    assert found[:6] == [64, 96, 128, 192, 256, 384]
    assert found[-1] == 16384
    assert all(size < after <= 1.5 * size for size, after in pairwise(found))


def test_long_rows_have_larger_shapes() -> None:
    """Attention kernels are launched for the longest row of the shape."""
    assert [size.longest for size in batch_shapes(512) if size.tokens == 64] == [64]
    assert [size.longest for size in batch_shapes(512) if size.tokens == 256] == [128, 256]
    assert [size.longest for size in batch_shapes(512) if size.tokens == 4096] == [128, 512]
    assert {size.longest for size in batch_shapes(100)} == {64, 96, 100}  # the encoder's limit


@pytest.mark.parametrize(
    ("needed", "expected"),
    [
        (BatchShape(1, 1, 1), BatchShape(64, 4, 64)),
        (BatchShape(64, 4, 64), BatchShape(64, 4, 64)),
        (BatchShape(65, 2, 40), BatchShape(96, 6, 96)),
        (BatchShape(64, 5, 20), BatchShape(96, 6, 96)),  # many short rows
        (BatchShape(300, 10, 128), BatchShape(384, 24, 128)),
        (BatchShape(300, 10, 129), BatchShape(384, 24, 384)),
        (BatchShape(4000, 100, 77), BatchShape(4096, 256, 128)),
        (BatchShape(4000, 100, 512), BatchShape(4096, 256, 512)),
        (BatchShape(16384, 1024, 512), BatchShape(16384, 1024, 512)),
        (BatchShape(16385, 1, 1), None),
        (BatchShape(3000, 1025, 9), None),
        (BatchShape(1000, 1, 513), None),
    ],
)
def test_the_smallest_fitting_shape_is_chosen(
    needed: BatchShape, expected: BatchShape | None
) -> None:
    assert first_fitting(batch_shapes(512), needed) == expected


def test_a_shape_is_recorded_once_and_reads_new_numbers() -> None:
    recorder = Recorder()
    graphs = Graphs(doubled, lambda: recorder)
    for start in range(3):
        check(graphs, SMALL, LARGE, start=start)
    assert recorder.times == graphs.num_recorded == 2


def test_recording_does_not_keep_the_callers_numbers() -> None:
    graphs = Graphs(doubled, Recorder)
    first, second = torch.tensor([1, 2]), torch.tensor([5, 6])
    graphs.replay(first, SMALL)
    graphs.replay(second, SMALL)
    assert first.tolist() == [1, 2]


def test_cleared_records_are_made_again_in_new_memory() -> None:
    """The memory of all dropped records is freed together."""
    recorders: list[Recorder] = []

    def new() -> Recorder:
        recorders.append(Recorder())
        return recorders[-1]

    graphs = Graphs(doubled, new)
    graphs.replay(torch.tensor([1, 2]), SMALL)
    graphs.clear()
    assert graphs.num_recorded == 0
    graphs.replay(torch.tensor([1, 2]), SMALL)
    assert [recorder.times for recorder in recorders] == [1, 1]


class Failing(Recorder):
    """Records small sizes, but no large one."""

    def __init__(self, error: RuntimeError) -> None:
        super().__init__()
        self._error = error

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if len(run()) > SMALL.tokens:
            self.times += 1
            raise self._error
        return super().__call__(run)


def test_a_pass_that_cannot_be_recorded_is_computed_without_a_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Recording is not tried again; one warning is logged; no record is kept."""
    recorder = Failing(NotRecordedError("operation not permitted when stream is capturing"))
    graphs = Graphs(doubled, lambda: recorder)
    check(graphs, SMALL, LARGE, SMALL, LARGE)
    assert recorder.times == 2
    assert graphs.num_recorded == 0
    assert len(caplog.records) == 1
    assert "not permitted when stream is capturing" in caplog.text


def test_a_shape_without_memory_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Failing(torch.OutOfMemoryError("tried to allocate 2 GiB"))
    graphs = Graphs(doubled, lambda: recorder)
    check(graphs, LARGE, SMALL, LARGE, SMALL)
    assert recorder.times == 2
    assert graphs.num_recorded == 1
    assert "no memory to record passes of 3 tokens: tried to allocate 2 GiB" in caplog.text


def test_an_error_of_the_pass_itself_is_raised() -> None:
    def broken(numbers: Tensor, shape: BatchShape) -> Tensor:
        raise RuntimeError("index out of range")

    with pytest.raises(RuntimeError, match="index out of range"):
        Graphs(broken, Recorder).replay(torch.tensor([1, 2]), SMALL)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_replays_what_was_recorded() -> None:
    """Shapes share memory; all are recorded again after they were cleared."""
    weight = torch.randn(64, 64, device="cuda")

    def multiplied(numbers: Tensor, shape: BatchShape) -> Tensor:
        return numbers.float().view(-1, 64) @ weight

    graphs = Graphs(multiplied, cuda_recorder)
    with torch.inference_mode():
        for again in range(2):
            for start in range(3):
                for tokens in (640, 64, 6400):
                    numbers = torch.arange(start, start + tokens, device="cuda")
                    found = graphs.replay(numbers, BatchShape(tokens, 1, 1)).clone()
                    torch.testing.assert_close(found, multiplied(numbers, SMALL))
            assert graphs.num_recorded == 3, again
            graphs.clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_goes_on_after_a_pass_that_cannot_be_recorded() -> None:
    """The pass waits for the device, which a capture forbids."""

    def waits(numbers: Tensor, shape: BatchShape) -> Tensor:
        return numbers * float(numbers.sum().item())

    stream = torch.cuda.current_stream()
    graphs = Graphs(waits, cuda_recorder)
    numbers = torch.arange(3, device="cuda")
    with torch.inference_mode():
        for _ in range(2):
            assert graphs.replay(numbers, LARGE).tolist() == [0.0, 3.0, 6.0]
    assert graphs.num_recorded == 0
    assert torch.cuda.current_stream() == stream


STRATEGIES = ("head", "bitfit", "layernorm", "random:0.05", "top:1", "params:embeddings")
PLAIN = 3  # the first three train only vectors
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def deltas(tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any) -> list[Delta]:
    """Every task with every strategy, those that train only vectors first."""
    return [
        make_delta(tiny_backbone, task, strategy)
        for strategy in STRATEGIES
        for task in toy_tasks.values()
    ]


class Fixed(Recorder):
    """A recorder whose records, like CUDA's, depend on the addresses of the bank's tables."""

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self._bank = bank

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        replay, result = super().__call__(run)
        pointers = self._pointers()

        def replay_there() -> None:
            assert pointers == self._pointers(), "the bank's tables have moved"
            replay()

        return replay_there, result

    def _pointers(self) -> list[int]:
        return [
            t.data_ptr()
            for held in self._bank.vector_tables.values()
            for t in held.capacity.values()
        ]


def add(bank: Bank, deltas: list[Delta]) -> list[int]:
    """The slots of deltas that are added to a bank."""
    return bank.add([bank.stage(delta) for delta in deltas])


def bank_of(backbone: Backbone, deltas: list[Delta], device: torch.device = CPU) -> Bank:
    bank = Bank(backbone, device, torch.float32)
    add(bank, deltas)
    return bank


def some_rows(bank: Bank, seed: int, count: int, slots: range) -> tuple[Any, list[int]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        length = draw.randrange(1, 20)
        rows.append(
            TokenizedRow(
                [draw.randrange(101) for _ in range(length)],
                [0, *[1] * (length - 1)],
                truncated=False,
            )
        )
    return rows, [draw.choice(slots) for _ in range(count)]


def plain(bank: Bank) -> range:
    """Slots that train only vectors."""
    slots = range(1, 1 + bank.num_slots // len(STRATEGIES) * PLAIN)
    assert bank.matrix_slots.isdisjoint(slots)
    return slots


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("which", ["plain", "all"])
@pytest.mark.parametrize("count", [1, 7, 60])
def test_answers_equal_those_of_the_cpu_pass(
    tiny_backbone: Backbone, deltas: list[Delta], records: bool, which: str, count: int
) -> None:
    """Also when replayed; the first batch of a shape is recorded."""
    bank = bank_of(tiny_backbone, deltas)
    slots = plain(bank) if which == "plain" else range(1, bank.num_slots)
    recorder = Fixed(bank)
    device = CudaForward(tiny_backbone.config, bank, (lambda: recorder) if records else None)
    host = CpuForward(tiny_backbone.config, bank)
    with torch.inference_mode():
        for seed in range(3):
            rows, chosen = some_rows(bank, seed, count, slots)
            found, wanted = device.logits(rows, chosen), host.logits(rows, chosen)
            for mine, theirs in zip(found, wanted, strict=True):
                assert mine == pytest.approx(theirs, abs=1e-5)
    if which == "plain":
        assert bool(recorder.times) == records


def test_a_record_serves_other_deltas_too(tiny_backbone: Backbone, deltas: list[Delta]) -> None:
    """Also a delta that takes over a slot's rows; passes are recorded again only if tables move."""
    bank = bank_of(tiny_backbone, deltas[: 2 * PLAIN])
    recorder = Fixed(bank)
    device = CudaForward(tiny_backbone.config, bank, lambda: recorder)
    host = CpuForward(tiny_backbone.config, bank)
    rows, _ = some_rows(bank, 0, 2, range(1))

    def agree(slots: list[int]) -> bool:
        with torch.inference_mode():
            pairs = zip(device.logits(rows, slots), host.logits(rows, slots), strict=True)
            return all(mine == pytest.approx(theirs, abs=1e-5) for mine, theirs in pairs)

    assert agree([1, 2])
    bank.remove(1)
    (slot,) = add(bank, deltas[6:7])
    assert slot == 1
    assert agree([1, 2])
    assert recorder.times == 1
    generation = bank.generation
    while bank.generation == generation:
        add(bank, deltas[5:9])
    assert agree([bank.num_slots - 1, 1])
    assert recorder.times == 2


@pytest.mark.parametrize(
    "most", [BatchShape(300, 10, 32), BatchShape(300, 100, 32), BatchShape(90, 90, 8)]
)
def test_all_shapes_are_recorded_before_rows_come(
    tiny_backbone: Backbone, deltas: list[Delta], most: BatchShape
) -> None:
    bank = bank_of(tiny_backbone, deltas)
    recorder = Fixed(bank)
    device = CudaForward(tiny_backbone.config, bank, lambda: recorder)
    made = device.prepare(*most)
    assert made == recorder.times > 0
    for tokens in (1, most.tokens // 3, most.tokens):
        for rows in (1, most.rows // 2, most.rows):
            rows = max(min(rows, tokens), -(-tokens // most.longest))  # no row is empty
            lengths = [tokens // rows + (row < tokens % rows) for row in range(rows)]
            device.logits([row_of(length) for length in lengths], [1] * rows)
    assert recorder.times == made
    assert CudaForward(tiny_backbone.config, bank).prepare(*most) == 0


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("which", ["plain", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_copies_once_and_never_waits(
    tiny_backbone: Backbone,
    deltas: list[Delta],
    monkeypatch: pytest.MonkeyPatch,
    records: bool,
    which: str,
    dtype: torch.dtype,
) -> None:
    """The meta device holds no values, so that waiting for one would fail."""
    bank = Bank(tiny_backbone, torch.device("meta"), dtype)
    add(bank, deltas)
    slots = plain(bank) if which == "plain" else range(1, bank.num_slots)
    device = CudaForward(tiny_backbone.config, bank, Recorder if records else None)
    rows, chosen = some_rows(bank, 1, 60, slots)
    make = torch.tensor

    def only_here(*args: Any, device: object = "cpu", **kwargs: Any) -> torch.Tensor:
        assert str(device) == "cpu", "another copy"
        return make(*args, **kwargs)

    monkeypatch.setattr(torch, "tensor", only_here)
    with Copies() as copies:
        logits = device.start(rows, chosen)
    assert copies.count == 1
    assert logits.shape == (sum(len(bank.heads[slot][1]) for slot in chosen),)
    assert (logits.dtype, logits.device.type) == (torch.float32, "meta")


def test_a_gpu_copies_from_pinned_memory_without_blocking() -> None:
    """Only pinned memory can be copied asynchronously."""
    done: list[Any] = []

    class Numbers:
        def pin_memory(self) -> Numbers:
            done.append("pinned")
            return self

        def to(self, device: Any, *, non_blocking: bool) -> str:
            done.append((device.type, non_blocking))
            return "there"

    found: Any = _on_device(Numbers(), SimpleNamespace(type="cuda"))  # type: ignore[arg-type]
    assert found == "there"
    assert done == ["pinned", ("cuda", True)]


def test_a_task_of_many_labels_mixes_with_one_of_two(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any
) -> None:
    labels = tuple(f"label{number}" for number in range(300))
    many = toy_tasks["toy2"].model_copy(update={"labels": labels})
    bank = bank_of(
        tiny_backbone,
        [make_delta(tiny_backbone, task, "head") for task in (many, toy_tasks["toy2"])],
    )
    rows, slots = some_rows(bank, 0, 9, range(1, 3))
    found = CudaForward(tiny_backbone.config, bank).logits(rows, slots)
    with torch.inference_mode():
        wanted = CpuForward(tiny_backbone.config, bank).logits(rows, slots)
    assert [len(logits) for logits in found] == [{1: 300, 2: 2}[slot] for slot in slots]
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_int8_is_for_cpus(tiny_backbone: Backbone, deltas: list[Delta]) -> None:
    device = CudaForward(tiny_backbone.config, bank_of(tiny_backbone, deltas))
    with pytest.raises(ValueError, match="int8 is for CPUs"):
        device.logits([row_of(1)], [1], int8=True)
