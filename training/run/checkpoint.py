"""Resumable training state (a checkpoint; never served): values, moments, best state so far.

Stored as safetensors, so nothing is ever unpickled. Together with the run's options it determines
the rest of the run bit for bit, because all random draws come from the seed and the step.
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

_ENDING = ".state.safetensors"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # Adam's state of a parameter


@dataclass(frozen=True)
class BestState:
    """The best state so far: its values by parameter name, its metrics ({} before the first)."""

    values: dict[str, Tensor]
    metrics: dict[str, float]


def save_state(
    path: Path,
    step: int,
    parameters: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    best: BestState,
    stale: int = 0,
) -> None:
    """Write the state after `step`, atomically; `stale` judgements were not better than `best`."""
    tensors: dict[str, Tensor] = {}
    for name, value in parameters.items():
        tensors[f"value {name}"] = value.detach().cpu()
        tensors[f"best {name}"] = best.values[name].cpu()
        for moment, tensor in optimizer.state.get(value, {}).items():
            tensors[f"{moment} {name}"] = torch.as_tensor(tensor).cpu()
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"step": str(step), "metrics": json.dumps(best.metrics), "stale": str(stale)}
    metadata["digest"] = content_digest(json.dumps(metadata, sort_keys=True), tensors)
    write_atomically(path, save(tensors, metadata))


def load_state(
    path: Path, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[int, BestState, int]:
    """Put a saved state back into parameters and optimiser.

    Returns:
        The last finished step, the best state, and judgements since then.

    Raises:
        ConfigError: the file is damaged or belongs to a run of other shapes.
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
        _put_back(optimizer, parameters, tensors)
        metrics = json.loads(metadata["metrics"])
        return int(metadata["step"]), BestState(best, metrics), int(metadata.get("stale", 0))
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(f"can't resume from {path} ({error}); delete it to start anew") from error


def _put_back(
    optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor], tensors: dict[str, Tensor]
) -> None:
    """Give the optimiser its moments, each on the device where it looks for it.

    PyTorch decides that: a fused Adam wants even the number of steps on the GPU, others do not.
    """
    names = {value: name for name, value in parameters.items()}
    ordered = [value for group in optimizer.param_groups for value in group["params"]]
    state = {
        number: {moment: tensors[f"{moment} {names[value]}"] for moment in _MOMENTS}
        for number, value in enumerate(ordered)
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def state_path(delta: Path, key: str) -> Path:
    """The hidden file beside a delta in which the run of this key keeps its state."""
    return delta.with_name(f".{delta.stem}.{key}{_ENDING}")


def state_notes(state: Path, *, resume: bool) -> list[str]:
    """What a user should know before a run starts: that it does so anew, and what others left."""
    lines = []
    if resume and not state.exists():
        lines.append(
            f"--resume: no state of this run in {state.parent} (the same options, rows, backbone, "
            "torch and number of processes); it starts anew"
        )
    found = sorted(state.parent.glob(f".*{_ENDING}"))
    return lines + [
        f"{path} ({path.stat().st_size / 1e6:,.1f} MB) is the state of another run of this delta "
        "(other options, rows or software); delete it, unless that one is to go on"
        for path in found
        if path != state and _delta_of(path) == _delta_of(state)
    ]


def _delta_of(state: Path) -> str:
    return state.name.removesuffix(_ENDING).rpartition(".")[0]
