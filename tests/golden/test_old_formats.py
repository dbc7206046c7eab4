"""Delta files of every released format version are read and give the recorded answers.

`data/v1/` was made by `write_examples` below, with the code that introduced format version 1, and
is never made again: a change that breaks these tests breaks the files that users have. The
backbone is computed by whole-number arithmetic, so that no library's generator has a say in it.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from app.engine.engine import Engine
from deltas import (
    Backbone,
    BackboneRef,
    Delta,
    DenseEntry,
    EncoderConfig,
    Entry,
    Manifest,
    SparseEntry,
    SplitMetrics,
    Store,
    StrategySpec,
    TaskSpec,
    TrainingFacts,
    check_delta,
    encoder_layout,
    make_backbone,
    read_delta,
    read_manifest,
    write_delta,
)
from deltas.backbone.tokenizer import row_texts

DATA = Path(__file__).parent / "data"
CONFIG = EncoderConfig(2, 20, 2, 28, 70, 48)
TASKS = {
    "pairs": TaskSpec(
        name="pairs",
        kind="single_label",
        labels=("yes", "perhaps", "no"),
        text_fields=("premise", "hypothesis"),
        max_length=24,
    ),
    "topics": TaskSpec(
        name="topics",
        kind="multi_label",
        labels=("Wetter", "café", "猫", "a | b"),
        text_fields=("text",),
        max_length=16,
    ),
}
ROWS: dict[str, list[dict[str, str]]] = {
    "pairs": [
        {"premise": "the cat sat", "hypothesis": "a cat"},
        {"premise": "", "hypothesis": "Naïve 😀"},
        {"premise": "so long a text that it is cut in the middle", "hypothesis": "x" * 40},
    ],
    "topics": [{"text": "rain and sun"}, {"text": "THE CAT"}, {"text": "?"}],
}


def ramp(shape: tuple[int, ...], start: int) -> Tensor:
    """Numbers from -1 to 1 without order, the same everywhere."""
    count = prod(shape)
    steps = [(number * 2654435761 + start * 40503 + 12345) % 2**32 for number in range(count)]
    return torch.tensor([step / 2**31 - 1 for step in steps], dtype=torch.float32).reshape(shape)


def tokenizer() -> Any:
    """Letters as word pieces."""
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    pieces += ["the", "cat", "rain", "sun", "and", *".,!?'-:;"]
    numbered = {piece: number for number, piece in enumerate(pieces)}
    assert len(numbered) == CONFIG.vocab_size
    backend = Tokenizer(models.WordPiece(numbered, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {
        f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def shape_of(name: str) -> tuple[int, ...]:
    """Shapes of a BERT's parameters, from the sizes."""
    width = CONFIG.hidden_size
    if name.endswith(".bias"):
        return (CONFIG.intermediate_size if "intermediate" in name else width,)
    if "LayerNorm" in name:
        return (width,)
    tables = {
        "word_embeddings": CONFIG.vocab_size,
        "position_embeddings": CONFIG.max_positions,
        "token_type_embeddings": CONFIG.num_token_types,
    }
    for table, lines in tables.items():
        if table in name:
            return (lines, width)
    if "intermediate" in name:
        return (CONFIG.intermediate_size, width)
    if ".output.dense" in name and "attention" not in name:
        return (width, CONFIG.intermediate_size)
    return (width, width)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """The backbone of the stored files."""
    return computed_backbone()


def computed_backbone() -> Backbone:
    names = [part for parts in encoder_layout(CONFIG).values() for part in parts]
    parameters = {}
    for number, name in enumerate(sorted(names)):
        value = 0.4 * ramp(shape_of(name), number)
        parameters[name] = 1 + value if name.endswith("LayerNorm.weight") else value
    return make_backbone(CONFIG, parameters, tokenizer(), "computed")


def computed_delta(backbone: Backbone, task: TaskSpec) -> Delta:
    """LayerNorms and every 17th value of each matrix for pairs; all biases for topics."""
    entries: dict[str, Entry] = {}
    for number, (name, value) in enumerate(sorted(backbone.parameters.items())):
        moved = value + 0.5 * ramp(tuple(value.shape), number + 1000)
        if ("LayerNorm" in name) if task.name == "pairs" else name.endswith(".bias"):
            entries[name] = DenseEntry(moved)
        elif task.name == "pairs" and value.ndim == 2:
            indices = torch.arange(number % 17, value.numel(), 17)
            entries[name] = SparseEntry(indices, moved.reshape(-1)[indices], tuple(value.shape))
    head = ramp((task.num_outputs, CONFIG.hidden_size), 5), ramp((task.num_outputs,), 6)
    infos = tuple(entry.info(name) for name, entry in entries.items())
    counts = sum(info.count for info in infos), head[0].numel() + head[1].numel()
    facts = TrainingFacts(
        data="files",
        data_digest="0" * 64,
        data_note="made up",
        train_rows=1,
        selection_rows=1,
        epochs=1.5,
        steps=1,
        batch_size=1,
        learning_rate=0.001,
        precision="fp32",
        seed=3,
        duration_s=0.5,
        device="cpu",
        versions={"python": "3"},
        command="python -m training.fit",
    )
    manifest = Manifest(
        backbone=backbone.ref,
        task=task,
        strategy=StrategySpec(name="bitfit" if task.name == "topics" else "mixed", seed=3),
        entries=infos,
        trainable_parameters=sum(counts),
        total_parameters=backbone.num_parameters + counts[1],
        training=facts,
        primary_metric="accuracy",
        metrics={"selection": SplitMetrics(rows=1, values={"accuracy": 0.5}, note="héllo")},
    )
    return Delta(manifest, entries, *head)


def answers(backbone: Backbone, folder: Path, task: str) -> list[list[float]]:
    """Logits of the rows, by the engine that serves."""
    store = Store([folder], backbone=backbone.ref)
    engine = Engine(backbone, store, device="cpu", precision="fp32")
    record = store.resolve(task)
    texts = [row_texts(record.manifest.task, row, 0) for row in ROWS[task]]
    outcomes = engine.predict(engine.tokenize(record, texts))
    return [logits for logits in outcomes if isinstance(logits, list)]


def write_examples(folder: Path) -> None:
    """Write deltas and their answers; once for each format version, never over those of old."""
    folder.mkdir(parents=True)
    backbone = computed_backbone()
    recorded: dict[str, Any] = {"backbone": backbone.ref.model_dump()}
    for task in TASKS.values():
        written = write_delta(computed_delta(backbone, task), folder / f"{task.name}.safetensors")
        logits = answers(backbone, folder, task.name)
        recorded[task.name] = {"version": written.version, "logits": logits}
    (folder / "recorded.json").write_text(json.dumps(recorded, indent=1) + "\n")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """The recorded backbone and answers of the files."""
    facts: dict[str, Any] = json.loads((DATA / "v1/recorded.json").read_text())
    return facts


def test_the_backbone_has_its_recorded_fingerprint(
    backbone: Backbone, recorded: dict[str, Any]
) -> None:
    """The computation of fingerprints is part of the format, since old files name them."""
    later = {"config": None, "tokenizer_settings": None}
    assert backbone.ref.model_copy(update=later) == BackboneRef.model_validate(recorded["backbone"])


@pytest.mark.parametrize("task", TASKS)
def test_version_1_gives_the_recorded_answers(
    backbone: Backbone, recorded: dict[str, Any], task: str
) -> None:
    path = DATA / f"v1/{task}.safetensors"
    delta = read_delta(path)
    check_delta(delta, backbone)
    assert delta.version == recorded[task]["version"]
    assert read_manifest(path) == (delta.manifest, delta.version)
    assert delta.manifest.format_version == 1
    assert delta.manifest.task == TASKS[task]
    for found, expected in zip(
        answers(backbone, path.parent, task), recorded[task]["logits"], strict=True
    ):
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_values_equal_the_recorded_ones(backbone: Backbone, task: str) -> None:
    """Dense and sparse values are equal bit for bit."""
    read = read_delta(DATA / f"v1/{task}.safetensors")
    made = computed_delta(backbone, TASKS[task])
    assert list(read.entries) == list(made.entries)
    assert {type(entry) for entry in read.entries.values()} <= {DenseEntry, SparseEntry}
    for name, entry in made.entries.items():
        assert torch.equal(read.entries[name].values, entry.values)
        if isinstance(entry, SparseEntry):
            again = read.entries[name]
            assert isinstance(again, SparseEntry)
            assert torch.equal(again.indices, entry.indices)
    assert torch.equal(read.head_weight, made.head_weight)


def test_writing_them_today_gives_the_same_versions(
    backbone: Backbone, recorded: dict[str, Any], tmp_path: Path
) -> None:
    """A version must name the same content forever."""
    for name, task in TASKS.items():
        written = write_delta(computed_delta(backbone, task), tmp_path / f"{name}.safetensors")
        assert written.version == recorded[name]["version"]


def test_the_files_stay_small() -> None:
    assert all(path.stat().st_size < 60_000 for path in DATA.rglob("*") if path.is_file())


if __name__ == "__main__":
    write_examples(DATA / "v1")
