"""Peers that answer the same rows without this project: transformers, PEFT, ONNX Runtime.

Each system takes the whole workload in the order of arrival and answers every row with its
task. All get token ids, since tokenizing costs them alike. A peer that cannot mix tasks in a batch
sorts a window of waiting rows by task, copies each task's values in and runs its rows.
On a GPU the network and all tasks' values stay on it; batches are copied there, answers back.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltas import Delta, TokenizedRow
from deltas.backbone.packaged import packaged_folder
from tests.bench.workload import Workload

WINDOW = 32


def stock_network(dtype: torch.dtype) -> Any:
    """Load `BertForSequenceClassification` with the packaged weights."""
    from transformers import AutoModelForSequenceClassification

    folder = packaged_folder()
    network = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=dtype)
    return network.eval()


def padded(rows: Sequence[TokenizedRow]) -> dict[str, Tensor]:
    """Pad rows to a batch for transformers."""
    width = max((row.num_tokens for row in rows), default=0)
    batch = {
        name: torch.zeros(len(rows), width, dtype=torch.int64)
        for name in ("input_ids", "token_type_ids", "attention_mask")
    }
    for line, row in enumerate(rows):
        batch["input_ids"][line, : row.num_tokens] = torch.tensor(row.input_ids)
        batch["token_type_ids"][line, : row.num_tokens] = torch.tensor(row.token_type_ids)
        batch["attention_mask"][line, : row.num_tokens] = 1
    return batch


def answers(network: Any, batch: dict[str, Tensor], device: str, **given: Any) -> Tensor:
    """Compute a batch's logits and copy them to the host.

    On a CPU nothing is copied.
    """
    there = {name: value.to(device) for name, value in batch.items()}
    logits: Tensor = network(**there, **given).logits
    return logits.cpu()


def windows(workload: Workload, size: int) -> Iterator[list[int]]:
    """Yield the positions of the rows that wait together."""
    for start in range(0, len(workload.rows), size):
        yield list(range(start, min(start + size, len(workload.rows))))


def by_task(workload: Workload, positions: Sequence[int]) -> dict[int, list[int]]:
    """Group positions by their row's task."""
    groups: dict[int, list[int]] = defaultdict(list)
    for position in positions:
        groups[workload.tasks[position]].append(position)
    return groups


class Transformers:
    """Stock transformers; a task's values are copied into the network before its rows run."""

    def __init__(
        self, workload: Workload, deltas: Sequence[Delta], dtype: torch.dtype, device: str
    ) -> None:
        self._workload = workload
        self._device = device
        self._network = stock_network(dtype).to(device)
        parameters = dict(self._network.named_parameters())
        self._values = []
        for delta in deltas:
            values = {name: entry.values for name, entry in delta.entries.items()}
            values |= {"classifier.weight": delta.head_weight, "classifier.bias": delta.head_bias}
            self._values.append(
                [(parameters[name], v.to(device, dtype)) for name, v in values.items()]
            )

    def one_by_one(self) -> None:
        """Run one row at a time, with its task copied in."""
        for positions in windows(self._workload, 1):
            self._run(positions)

    def in_windows(self) -> None:
        """Run windows of waiting rows, one batch for each task."""
        for positions in windows(self._workload, WINDOW):
            for group in by_task(self._workload, positions).values():
                self._run(group)

    def sorted_offline(self) -> None:
        """Run all rows sorted by task and length, which only an oracle could."""
        for group in by_task(self._workload, range(len(self._workload.rows))).values():
            group.sort(key=lambda position: self._workload.rows[position].num_tokens)
            for start in range(0, len(group), WINDOW):
                self._run(group[start : start + WINDOW])

    def _run(self, positions: Sequence[int]) -> None:
        for parameter, values in self._values[self._workload.tasks[positions[0]]]:
            parameter.copy_(values)
        batch = padded([self._workload.rows[position] for position in positions])
        answers(self._network, batch, self._device)


class Peft:
    """PEFT with a LoRA adapter of rank 8 for each task, on query and value; batches mix tasks."""

    def __init__(self, workload: Workload, num_tasks: int, dtype: torch.dtype, device: str) -> None:
        from peft import LoraConfig, get_peft_model

        self._workload = workload
        self._device = device
        config = LoraConfig(r=8, target_modules=["query", "value"])
        network = stock_network(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._network: Any = get_peft_model(network, config, adapter_name="task0")
            for number in range(1, num_tasks):
                self._network.add_adapter(f"task{number}", config)
        for name, parameter in self._network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.01)
        self._network.to(device, dtype).eval()

    def mixed(self) -> None:
        """Run windows of waiting rows, each row with its adapter's name."""
        for positions in windows(self._workload, WINDOW):
            names = [f"task{self._workload.tasks[position]}" for position in positions]
            batch = padded([self._workload.rows[position] for position in positions])
            answers(self._network, batch, self._device, adapter_names=names)


class OnnxRuntime:
    """One ONNX Runtime session; a server needs one for each task, since weights cannot change.

    Only float32, or int8 by ONNX Runtime's dynamic quantisation. The benchmark times one session
    for all tasks, which is at least as fast; nine would hold the backbone nine times.
    """

    def __init__(self, workload: Workload, *, int8: bool = False) -> None:
        import onnxruntime

        self._workload = workload
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            _export(path)
            if int8:
                path = _to_int8(path)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            # Threads that spin after a run would take the cores of the system that is next in turn.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self._session = onnxruntime.InferenceSession(
                path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )

    def in_windows(self) -> None:
        """Windows of waiting rows, each task's rows together."""
        for positions in windows(self._workload, WINDOW):
            for group in by_task(self._workload, positions).values():
                batch = padded([self._workload.rows[position] for position in group])
                self._session.run(None, {name: value.numpy() for name, value in batch.items()})


def _to_int8(path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    prepared, target = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(str(prepared), str(target), weight_type=QuantType.QInt8, per_channel=True)
    return target


def _export(path: Path) -> None:
    network = stock_network(torch.float32)
    network.config.return_dict = False
    example = {name: torch.ones(2, 16, dtype=torch.int64) for name in padded([])}
    names = list(example)
    axes = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (),
            str(path),
            kwargs=example,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=axes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
