"""Trainers that `tests.bench.training` compares, each in a process of its own.

    python -m tests.bench.trainers SYSTEM TASK ROWS THREADS PRECISION

The process loads, prints `ready`, and then answers each line on standard input with one JSON line:
`epoch` trains one pass over the rows, `run N` a whole run of N epochs from the start (the caching
before it included), `end` returns the memory and stops. Rows, batch size, optimiser and precision
are the same for all trainers; none of them uses dropout.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from deltas import Backbone, load_backbone, tokenize_texts
from deltas.hardware import DTYPES, keep_freed_memory
from tests.bench.peers import padded
from training.data.glue import load_task
from training.run.loop.loop import make_optimizer, train_batch
from training.run.loop.schedule import LoopConfig, batches
from training.run.task_model import Split, TaskModel, initial_entries, initial_head, task_loss
from training.strategies import grammar

BATCH_SIZE = 32
MAX_LENGTH = 128
_CLIP_NORM = 1.0


class Trainer(Protocol):
    """A system that trains on the rows given to its constructor."""

    def epoch(self) -> None:
        """Train one pass over the rows, in batches of `BATCH_SIZE`."""

    def run(self, epochs: int) -> None:
        """Train a whole run, its preparation included."""

    def optimizer_bytes(self) -> int:
        """Return the bytes of gradients and optimiser state, the head left out."""

    def loss(self) -> float:
        """Return the mean loss of the first rows."""


def load_rows(task: str, count: int, backbone: Backbone) -> Split:
    """Return the first rows of a shuffled train set."""
    data = load_task(task)
    positions = list(range(len(data.train)))
    random.Random(0).shuffle(positions)
    rows = data.train.take(positions[:count])
    return Split(
        tokenize_texts(backbone.tokenizer, MAX_LENGTH, rows.texts), torch.tensor(rows.labels)
    )


def _held_bytes(parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> int:
    tensors = [p.grad for p in parameters if p.grad is not None]
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        tensors += [part for part in state.values() if isinstance(part, Tensor) and part.ndim]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Ours:
    """The training loop of this project."""

    def __init__(self, freeze: str, split: Split, backbone: Backbone, precision: str) -> None:
        self._task = load_task("rte").task  # two classes; only its kind is read
        self._freeze, self._split, self._backbone = freeze, split, backbone
        self._dtype = DTYPES[precision]
        self._start()

    def _start(self) -> None:
        backbone, device = self._backbone, torch.device("cpu")
        shapes = {name: tuple(value.shape) for name, value in backbone.parameters.items()}
        entries = initial_entries(backbone, grammar.select(self._freeze, shapes, 0), device)
        head = initial_head(2, backbone.config.hidden_size, 0)
        self.model = TaskModel(backbone, entries, head, device, self._dtype)
        self._config = LoopConfig(
            steps=1 << 30,
            batch_size=BATCH_SIZE,
            learning_rate=1e-4,
            head_learning_rate=1e-3,
            warmup=0.0,
            weight_decay=0.0,
            dropout=0.0,
            evals=1,
            seed=0,
        )
        self._optimizer = make_optimizer(self.model, self._config)
        self._order = batches(self._split.rows, self._config)

    def epoch(self) -> None:
        for _ in range(0, len(self._split.rows), BATCH_SIZE):
            positions = next(self._order)
            train_batch(
                self.model, self._task, self._split, positions, self._optimizer, self._config
            )

    def run(self, epochs: int) -> None:
        self._start()
        self.model.cache.fill(self._split.rows)
        for _ in range(epochs):
            self.epoch()

    @torch.no_grad()
    def loss(self) -> float:
        part = Split(self._split.rows[:BATCH_SIZE], self._split.labels[:BATCH_SIZE])
        return float(task_loss("single_label", self.model.logits(part.rows), part.labels))

    def optimizer_bytes(self) -> int:
        values = [entry.values for entry in self.model.entries.values()]
        return _held_bytes(values, self._optimizer)


class Plain:
    """Stock transformers, AdamW, batches padded to their longest row.

    The kinds full, bitfit, head and top:2 set `requires_grad`; random:0.001 masks gradients with
    dense 0/1 masks, as in the study.
    """

    def __init__(self, kind: str, split: Split, precision: str, attention: str = "sdpa") -> None:
        self._split = split
        self._draw = random.Random(0)
        self._network = stock_trainable(DTYPES[precision], attention)
        self._masks: dict[str, Tensor] = {}
        if kind == "random:0.001":
            generator = torch.Generator().manual_seed(0)
            self._masks = {
                name: (torch.rand(p.shape, generator=generator) < 1e-3).to(p.dtype)
                for name, p in self._network.bert.named_parameters()
            }
        elif kind != "full":
            pattern = {
                "bitfit": r"\.bias$",
                "head": r"^$",
                "top:2": r"\.layer\.[45]\.|pooler",
            }[kind]
            for name, parameter in self._network.bert.named_parameters():
                parameter.requires_grad = re.search(pattern, name) is not None
        self._finish()

    def _finish(self) -> None:
        self._trained = [p for p in self._network.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=1e-4, weight_decay=0.0)

    def epoch(self) -> None:
        order = list(range(len(self._split.rows)))
        self._draw.shuffle(order)
        for start in range(0, len(order), BATCH_SIZE):
            self._step(order[start : start + BATCH_SIZE])

    def run(self, epochs: int) -> None:
        for _ in range(epochs):
            self.epoch()

    def _step(self, positions: Sequence[int]) -> None:
        batch = padded([self._split.rows[position] for position in positions])
        loss = self._network(**batch, labels=self._split.labels[list(positions)]).loss
        self._optimizer.zero_grad()
        loss.backward()
        if self._masks:
            for name, parameter in self._network.bert.named_parameters():
                parameter.grad.mul_(self._masks[name])
        torch.nn.utils.clip_grad_norm_(self._trained, _CLIP_NORM)
        self._optimizer.step()

    @torch.no_grad()
    def loss(self) -> float:
        batch = padded(self._split.rows[:BATCH_SIZE])
        return float(self._network(**batch, labels=self._split.labels[:BATCH_SIZE]).loss)

    def optimizer_bytes(self) -> int:
        head = {id(p) for name, p in self._network.named_parameters() if "classifier" in name}
        return _held_bytes([p for p in self._trained if id(p) not in head], self._optimizer)


class Peft(Plain):
    """The loop of `Plain` around a PEFT network; `kind` is layernorm or random:0.001 (SHiRA)."""

    def __init__(self, kind: str, split: Split, precision: str) -> None:
        from peft import LNTuningConfig, ShiraConfig, TaskType, get_peft_model

        self._split, self._masks = split, {}
        self._draw = random.Random(0)
        network = stock_trainable(DTYPES[precision], "sdpa")
        common: dict[str, Any] = {"task_type": TaskType.SEQ_CLS}
        config: Any
        if kind == "layernorm":
            config = LNTuningConfig(target_modules=["LayerNorm"], **common)
        else:  # rank 1: about one in 190 values of each matrix; PEFT has nothing sparser
            config = ShiraConfig(
                r=1, target_modules=["query", "key", "value", "dense"], random_seed=0, **common
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._network = get_peft_model(network, config)
        self._finish()


def stock_trainable(dtype: torch.dtype, attention: str) -> Any:
    """Return `BertForSequenceClassification` with the packaged weights, without dropout."""
    from transformers import AutoModelForSequenceClassification

    from deltas.backbone.packaged import packaged_folder

    network = AutoModelForSequenceClassification.from_pretrained(
        packaged_folder(),
        num_labels=2,
        dtype=dtype,
        attn_implementation=attention,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return network.train()


def make(system: str, split: Split, backbone: Backbone, precision: str) -> Trainer:
    """Make a trainer by its name: `ours bitfit`, `plain-eager bitfit`, `peft layernorm`."""
    maker, _, kind = system.partition(" ")
    if maker == "ours":
        return Ours(kind, split, backbone, precision)
    if maker == "peft":
        return Peft(kind, split, precision)
    return Plain(kind, split, precision, "eager" if maker == "plain-eager" else "sdpa")


def _memory(field: str) -> int:
    """Return VmRSS or VmHWM of this process, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def main() -> int:
    """Serve one trainer on standard input and output."""
    system, task, rows, threads, precision = sys.argv[1:]
    torch.set_num_threads(int(threads))
    keep_freed_memory()
    import transformers

    transformers.logging.set_verbosity_error()
    backbone = load_backbone()
    split = load_rows(task, int(rows), backbone)
    before = _memory("VmRSS")
    trainer = make(system, split, backbone, precision)
    trainer.epoch()  # warm: kernels are chosen, memory is taken
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        verb, _, argument = line.strip().partition(" ")
        if verb == "end":
            facts = {
                "peak_mb": round((_memory("VmHWM") - before) / 1e6),
                "process_mb": round(_memory("VmHWM") / 1e6),
                "optimizer_bytes": trainer.optimizer_bytes(),
            }
            sys.stdout.write(json.dumps(facts) + "\n")
            break
        started = time.perf_counter()
        trainer.run(int(argument)) if verb == "run" else trainer.epoch()
        sys.stdout.write(json.dumps({"seconds": time.perf_counter() - started}) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
