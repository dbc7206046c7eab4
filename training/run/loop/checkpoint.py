"""Saves and restores the state of a run: trained values, Adam's moments, best state, history.

A checkpoint is stored as safetensors, so nothing is ever unpickled; it is never served. Together
with the run's options it determines the rest of the run bit for bit, because all random draws come
from the seed and the step. Written and read by `training.run.loop.loop`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from deltas.format import content_digest, write_atomically
from training.errors import ConfigError
from training.run.loop.history import HistoryRecorder

_ENDING = ".state.safetensors"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # Adam's state of a parameter


@dataclass(frozen=True)
class BestState:
    """The best state so far: values by parameter name, metrics ({} before the first evaluation)."""

    values: dict[str, Tensor]
    metrics: dict[str, float]


@dataclass
class RunState:
    """The state of a run, besides the values and the optimiser's moments."""

    step: int  # the last finished one
    best: BestState
    stale: int  # evaluations since the best one
    history: HistoryRecorder


def save_state(
    path: Path,
    state: RunState,
    parameters: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write a checkpoint atomically."""
    tensors: dict[str, Tensor] = {}
    for name, value in parameters.items():
        tensors[f"value {name}"] = value.detach().cpu()
        tensors[f"best {name}"] = state.best.values[name].cpu()
        for moment, tensor in optimizer.state.get(value, {}).items():
            tensors[f"{moment} {name}"] = torch.as_tensor(tensor).cpu()
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    metadata = {
        "step": str(state.step),
        "metrics": json.dumps(state.best.metrics),
        "stale": str(state.stale),
        "history": state.history.state(),
    }
    metadata["digest"] = content_digest(json.dumps(metadata, sort_keys=True), tensors)
    write_atomically(path, save(tensors, metadata))


def load_state(
    path: Path,
    parameters: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    history: HistoryRecorder,
) -> RunState:
    """Restore parameters, optimiser and history from a checkpoint; returns the run's state.

    A checkpoint of an earlier version, without a history, is continued without one.

    Raises:
        ConfigError: the file is damaged or belongs to a run with other shapes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
        digest = metadata.pop("digest")
        if digest != content_digest(json.dumps(metadata, sort_keys=True), tensors):
            raise ValueError("its content does not match its digest")
        best: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(tensors[f"value {name}"])
                best[name] = tensors[f"best {name}"].to(value.device)
        _restore_optimizer(optimizer, parameters, tensors)
        history.restore(metadata.get("history", ""))
        kept = BestState(best, json.loads(metadata["metrics"]))
        return RunState(int(metadata["step"]), kept, int(metadata.get("stale", 0)), history)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(f"can't resume from {path} ({error}); delete it to start anew") from error


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor], tensors: dict[str, Tensor]
) -> None:
    # `load_state_dict` picks the device of each moment: a fused Adam keeps even the number of steps
    # on the GPU, other optimisers do not.
    names = {value: name for name, value in parameters.items()}
    in_order = [value for group in optimizer.param_groups for value in group["params"]]
    state = {
        number: {moment: tensors[f"{moment} {names[value]}"] for moment in _MOMENTS}
        for number, value in enumerate(in_order)
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def state_path(delta: Path, key: str) -> Path:
    """Return the hidden file beside a delta in which the run with this key keeps its state."""
    return delta.with_name(f".{delta.stem}.{key}{_ENDING}")


def state_notes(state: Path, *, resume: bool) -> list[str]:
    """Return notes for the user: nothing to resume from, and states that other runs left behind."""
    notes = []
    if resume and not state.exists():
        notes.append(
            f"--resume: no state of this run in {state.parent} (same options, rows, backbone, "
            "torch and number of processes); the run starts anew"
        )
    return notes + [
        f"{path} ({path.stat().st_size / 1e6:,.1f} MB) is the state of another run of this delta "
        "(other options, rows or software); delete it unless you want to resume that run"
        for path in sorted(state.parent.glob(f".*{_ENDING}"))
        if path != state and _delta_name(path) == _delta_name(state)
    ]


def _delta_name(state: Path) -> str:
    return state.name.removesuffix(_ENDING).rpartition(".")[0]
