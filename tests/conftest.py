"""Shared fixtures: a tiny real backbone with odd sizes, deltas for it, GLUE data when at hand.

No two sizes of the tiny backbone are equal, so that a swapped dimension can't go unnoticed. Nothing
needs a network.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from math import prod
from pathlib import Path

# Before torch is imported: tests run beside each other and beside their servers, and OpenMP threads
# that spin while they wait take the cores that the others need (measured: twice the CPU time).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from deltas import (
    Backbone,
    Delta,
    DenseEntry,
    Entry,
    Manifest,
    SparseEntry,
    SplitMetrics,
    StrategySpec,
    TaskSpec,
    TrainingFacts,
    delta_path,
    load_backbone,
    write_delta,
)
from tests import laws  # noqa: F401  (registers the profiles of hypothesis)
from training.strategies import grammar

# A shell that runs the tests in the background has them ignore these, and all that they start too.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

hypothesis.settings.load_profile("fast")

GLUE_CANDIDATES = ("../shared/glue",)
MakeDelta = Callable[..., Delta]

TOY_TASKS = {
    "toy2": TaskSpec(
        name="toy2",
        kind="single_label",
        labels=("bad", "good"),
        text_fields=("sentence",),
        max_length=32,
    ),
    "toy3": TaskSpec(
        name="toy3",
        kind="single_label",
        labels=("yes", "maybe", "no"),
        text_fields=("premise", "hypothesis"),
        max_length=40,
    ),
    "toyreg": TaskSpec(
        name="toyreg", kind="regression", labels=(), text_fields=("first", "second"), max_length=40
    ),
    "toymulti": TaskSpec(
        name="toymulti",
        kind="multi_label",
        labels=("a", "b", "c", "d"),
        text_fields=("text",),
        max_length=24,
    ),
    "toy68": TaskSpec(
        name="toy68",
        kind="single_label",
        labels=tuple(f"label {n}" for n in range(68)),
        text_fields=("utterance",),
        max_length=16,
    ),
}
TOY_STRATEGIES = ("bitfit", "layernorm", "random:0.05", "head", "top:1")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run beside each other's servers; more threads would only spin."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> object:
    """A real lower-casing WordPiece tokenizer with 101 pieces."""
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    pieces += [
        *"0123456789",
        *".,!?'-:;()",
        "the",
        "and",
        "good",
        "bad",
        "not",
        "very",
        "film",
        "##ing",
        "##ed",
        "##er",
    ]
    pieces += [f"[unused{number}]" for number in range(101 - len(pieces))]
    backend = Tokenizer(
        models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture(scope="session")
def tiny_backbone_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: object) -> Path:
    """The tiny backbone as a folder, as `--backbone` takes it."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("backbone") / "tiny-bert"
    torch.manual_seed(13)
    config = BertConfig(
        vocab_size=101,
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=52,
        max_position_embeddings=64,
        initializer_range=0.3,  # far from 0, so that every parameter matters to the answer
    )
    network = BertModel(config)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.ndim == 1:
                value.add_(torch.randn_like(value) * 0.2)
            del name
    network.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tiny_backbone_dir: Path) -> Backbone:
    """The tiny backbone, loaded as any other: 2 layers, width 36, 3 heads, vocabulary 101."""
    return load_backbone(str(tiny_backbone_dir))


@pytest.fixture(scope="session")
def packaged_backbone() -> Backbone:
    """The real default backbone."""
    return load_backbone()


@pytest.fixture(scope="session")
def toy_tasks() -> dict[str, TaskSpec]:
    """One task of each kind and head size, by name."""
    return TOY_TASKS


@pytest.fixture(scope="session")
def make_delta() -> MakeDelta:
    """A function (backbone, task, strategy, seed=0, **manifest changes) -> Delta."""
    return _make_delta


def _make_delta(
    backbone: Backbone, task: TaskSpec, strategy: str, seed: int = 0, **changes: object
) -> Delta:
    generator = torch.Generator().manual_seed(seed * 7919 + sum(map(ord, task.name + strategy)))
    shapes = {name: tuple(value.shape) for name, value in backbone.parameters.items()}
    entries: dict[str, Entry] = {}
    for name, indices in grammar.select(strategy, shapes, seed).items():
        value = backbone.parameters[name]
        if indices is None:
            entries[name] = DenseEntry(value + 0.1 * torch.randn(value.shape, generator=generator))
        else:
            values = value.reshape(-1)[indices] + 0.3 * torch.randn(
                len(indices), generator=generator
            )
            entries[name] = SparseEntry(indices, values, tuple(value.shape))
    weight = 0.3 * torch.randn(task.num_outputs, backbone.config.hidden_size, generator=generator)
    bias = torch.randn(task.num_outputs, generator=generator)
    described = tuple(entry.info(name) for name, entry in entries.items())
    metric = "pearson" if task.kind == "regression" else "accuracy"
    facts: dict[str, object] = {
        "backbone": backbone.ref,
        "task": task,
        "strategy": StrategySpec(name=grammar.canonical(strategy), seed=seed),
        "entries": described,
        "trainable_parameters": sum(info.count for info in described)
        + weight.numel()
        + bias.numel(),
        "total_parameters": sum(map(prod, shapes.values())) + weight.numel() + bias.numel(),
        "training": TrainingFacts(
            data="files",
            data_digest="0" * 64,
            train_rows=100,
            selection_rows=10,
            epochs=1.0,
            steps=4,
            batch_size=32,
            learning_rate=1e-3,
            precision="fp32",
            seed=seed,
            duration_s=1.0,
            device="cpu",
            versions={"torch": torch.__version__},
            command="python -m training.fit",
        ),
        "primary_metric": metric,
        "metrics": {
            "selection": SplitMetrics(rows=10, values={metric: 0.5}),
            "validation": SplitMetrics(rows=20, values={metric: 0.25}),
        },
    }
    manifest = Manifest.model_validate(facts | changes)
    return Delta(manifest, entries, weight, bias)


@pytest.fixture(scope="session")
def tiny_deltas(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Backbone) -> Path:
    """A delta of every toy task and strategy for the tiny backbone. Copy it to change it."""
    root = tmp_path_factory.mktemp("deltas")
    for task in TOY_TASKS.values():
        for strategy in TOY_STRATEGIES:
            delta = _make_delta(tiny_backbone, task, strategy)
            write_delta(delta, delta_path(root, tiny_backbone.ref.id, task.name, strategy))
    return root


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """Folder with real GLUE rows; tests that need them skip, visibly, where there are none."""
    root = Path(__file__).parent.parent
    for candidate in (os.environ.get("GLUE_DIR"), *(str(root / path) for path in GLUE_CANDIDATES)):
        if candidate and (Path(candidate) / "cola").is_dir():
            return Path(candidate)
    pytest.skip("no real GLUE data: set GLUE_DIR to a folder with <task>/<split>.parquet")
