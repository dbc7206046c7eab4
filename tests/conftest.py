"""Shared fixtures: a tiny real backbone with odd sizes, deltas for it, GLUE data when at hand.

No two sizes of the tiny backbone are equal, so that a swapped dimension can't go unnoticed. Nothing
needs a network.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
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

from deltas import Backbone, Delta, TaskSpec, delta_path, load_backbone, write_delta
from deltas.store.store import DEFAULT_STRATEGY
from tests import factories, laws, process_state

# A shell that runs the tests in the background has them ignore these, and all that they start too.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

hypothesis.settings.load_profile(laws.FAST)
torch.set_num_threads(1)  # tests run beside each other's servers

GLUE_CANDIDATES = ("../shared/glue",)
# Files with the longest slow tests, the longest first. One of them that begins last leaves all
# other processes idle until it ends; `make test-slow` prints how long its tests took.
LONG_FILES = (
    "integration/training/test_sweep.py",
    "golden/test_zoo.py",
    "meta/test_dockerfile.py",
    "http/test_guides.py",
    "integration/training/test_earlier_study.py",
    "integration/training/test_fit.py",
    "integration/training/data/test_hub_dataset.py",
    "integration/app/test_footprint.py",
    "http/test_remote_deltas.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin the slow tests of long files before all other tests, which keep their random order."""
    folder = Path(__file__).parent
    if gone := [name for name in LONG_FILES if not (folder / name).exists()]:
        raise pytest.UsageError(f"LONG_FILES names files that are gone: {gone}")
    ranks = {folder / name: rank for rank, name in enumerate(LONG_FILES)}

    def rank_of(item: pytest.Item) -> int:
        is_slow = item.get_closest_marker("slow") is not None
        return ranks.get(item.path, len(ranks)) if is_slow else len(ranks)

    items.sort(key=rank_of)


@pytest.fixture(autouse=True)
def _undo_changes_to_the_process() -> Iterator[None]:
    """Put back the environment, loggers, threads and limits, whether the test passes or fails."""
    put_back = process_state.remember()
    yield
    put_back()


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
    return factories.TOY_TASKS


@pytest.fixture(scope="session")
def make_delta() -> Callable[..., Delta]:
    """A function (backbone, task, strategy, seed=0, **manifest changes) -> Delta."""
    return factories.make_delta


@pytest.fixture(scope="session")
def tiny_deltas(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Backbone) -> Path:
    """A delta of every toy task and strategy for the tiny backbone. Copy it to change it."""
    return _write_deltas(
        tmp_path_factory.mktemp("deltas"), tiny_backbone, list(factories.TOY_TASKS.values())
    )


@pytest.fixture(scope="session")
def pooled_deltas(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Backbone) -> Path:
    """The same, with tasks of every pooling, whose pairs are read together or separately."""
    tasks = [*factories.TOY_TASKS.values(), *factories.POOLED_TASKS.values()]
    return _write_deltas(tmp_path_factory.mktemp("pooled"), tiny_backbone, tasks)


def _write_deltas(root: Path, backbone: Backbone, tasks: list[TaskSpec]) -> Path:
    for task in tasks:
        for strategy in factories.TOY_STRATEGIES:
            path = delta_path(root, backbone.ref.id, task.name, strategy)
            delta = write_delta(factories.make_delta(backbone, task, strategy), path)
            if strategy == DEFAULT_STRATEGY:  # the others are of runs before there were any
                factories.write_some_predictions(delta, path)
    return root


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """Folder with real GLUE rows; tests that need them skip, visibly, where there are none."""
    root = Path(__file__).parent.parent
    for candidate in (os.environ.get("GLUE_DIR"), *(str(root / path) for path in GLUE_CANDIDATES)):
        if candidate and (Path(candidate) / "cola").is_dir():
            return Path(candidate)
    pytest.skip("no real GLUE data: set GLUE_DIR to a folder with <task>/<split>.parquet")
