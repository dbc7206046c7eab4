"""Fine-tunes all parameters with stock transformers: the yardstick of full fine-tuning.

    python -m tests.bench.quality.stock RATE STEPS OPTIONS

RATE is the peak learning rate. STEPS is the number of steps, or `epochs:3`. The options are those
of `training.fit`, which decide the rows: the train rows without the selection rows of our own runs.
All else is the default of `transformers.Trainer`: AdamW without weight decay, linear decay
without a warm-up, gradients clipped to 1, the backbone's own dropout, float32, the last state. The
run ends with a line of JSON on standard output.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tests.bench.quality.baselines import Numbers, backbone_folder, described, score
from tests.bench.quality.sets import load_rows
from training.data.rows import Rows, TaskData
from training.fit import parse_arguments
from training.options import FitConfig
from training.run.evaluation import compute_metrics, decisions
from training.run.train_delta import _cut

_CLIP_NORM = 1.0
_EVAL_BATCH = 64
_PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


class StockNetwork:
    """`AutoModelForSequenceClassification` with its tokenizer, for one task."""

    def __init__(self, data: TaskData, config: FitConfig) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.manual_seed(config.seed)  # the head's weights, the order of rows, dropout
        folder = backbone_folder(config.backbone)
        self._kind, self._max_length = data.task.kind, config.max_length
        self.network = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(data.task.labels) or 1,
            problem_type=_PROBLEMS[data.task.kind],
            # The same products as sdpa, which takes twice the time to train with padding on a CPU.
            attn_implementation="eager",
        )
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def train(self, rows: Rows, rate: float, steps: int, batch_size: int) -> None:
        """Train all parameters."""
        from transformers import get_linear_schedule_with_warmup

        parameters = list(self.network.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
        schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
        self.network.train()
        for positions in _batches(len(rows), batch_size, steps):
            labels = torch.tensor([rows.labels[position] for position in positions])
            if self._kind != "single_label":
                labels = labels.float()
            batch = self._tokenized([rows.texts[position] for position in positions])
            self.network(**batch, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, _CLIP_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        self.network.eval()

    @torch.inference_mode()
    def predict(self, rows: Rows) -> Numbers:
        """Return the answers to rows, as `compute_metrics` takes them."""
        order = sorted(range(len(rows)), key=lambda row: sum(map(len, rows.texts[row])))
        parts = []
        for start in range(0, len(order), _EVAL_BATCH):
            batch = self._tokenized([rows.texts[row] for row in order[start : start + _EVAL_BATCH]])
            parts.append(self.network(**batch).logits)
        logits = np.empty((len(rows), parts[0].shape[1]), np.float32)
        logits[order] = torch.cat(parts).numpy()
        return decisions(self._kind, logits)

    def _tokenized(self, texts: Sequence[tuple[str, ...]]) -> dict[str, Any]:
        return dict(
            self._tokenizer(
                *map(list, zip(*texts, strict=True)),
                padding=True,
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
        )


def _batches(num_rows: int, size: int, steps: int) -> Iterator[list[int]]:
    """Yield the positions of each step's rows, in a new random order each epoch."""
    made = 0
    while True:
        order = torch.randperm(num_rows).tolist()
        for start in range(0, num_rows, size):
            if made == steps:
                return
            yield order[start : start + size]
            made += 1


def num_steps(given: str, num_rows: int, batch_size: int) -> int:
    """Return the number of steps of `1500` or `epochs:3`."""
    kind, _, epochs = given.partition(":")
    if kind == "epochs":
        return math.ceil(float(epochs) * math.ceil(num_rows / batch_size))
    return int(given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune, score and describe one run."""
    rate, given, *words = sys.argv[1:] if arguments is None else arguments
    config = parse_arguments(words)
    data = load_rows(config)
    train, selection = _cut(config, data)
    steps = num_steps(given, len(train), config.batch_size)
    network = StockNetwork(data, config)
    started = time.perf_counter()
    network.train(train, float(rate), steps, config.batch_size)
    scores, counts = score(data, data.task.metrics, network.predict)
    seconds = time.perf_counter() - started
    selected = compute_metrics(
        data.task.metrics, network.predict(selection), np.array(selection.labels)
    )
    found = {
        **described(data),
        "train_rows": len(train),
        "selection_rows": len(selection),
        "scores": {"selection": selected, **scores},
        "rows": {"selection": len(selection), **counts},
        "seconds": round(seconds, 1),
        "cpu_s": round(time.process_time(), 1),
        "facts": {
            "steps": steps,
            "epochs": round(steps * config.batch_size / len(train), 3),
            "learning_rate": float(rate),
            "batch_size": config.batch_size,
        },
    }
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
