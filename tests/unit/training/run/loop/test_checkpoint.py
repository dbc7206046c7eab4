"""Resumable state: put back bit for bit, and refused when it is damaged or another run's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltas.format import content_digest
from training.errors import ConfigError
from training.run.loop.checkpoint import BestState, RunState, load_state, save_state
from training.run.loop.history import HistoryRecorder
from training.run.loop.schedule import LoopConfig

OPTIONS = LoopConfig(
    steps=6,
    batch_size=4,
    learning_rate=0.01,
    head_learning_rate=0.02,
    warmup=0.0,
    weight_decay=0.0,
    dropout=0.0,
    evals=2,
    seed=0,
)


def parameters(seed: int, device: str = "cpu") -> dict[str, Tensor]:
    """Two parameters to train."""
    generator = torch.Generator().manual_seed(seed)
    made = {"a": torch.randn(3, 4, generator=generator), "b": torch.randn(5, generator=generator)}
    return {name: value.to(device).requires_grad_() for name, value in made.items()}


def stepped(trained: dict[str, Tensor], optimizer: torch.optim.Optimizer, count: int) -> None:
    """Some steps on a loss that has no minimum nearby."""
    for _ in range(count):
        optimizer.zero_grad()
        loss = torch.stack([(value**3).sum() for value in trained.values()]).sum()
        loss.backward()
        optimizer.step()


def adam(trained: dict[str, Tensor]) -> torch.optim.Optimizer:
    """Like the loop's: two groups, fused."""
    first, *others = trained.values()
    groups: list[dict[str, object]] = [{"params": [first]}, {"params": others, "lr": 0.02}]
    return torch.optim.AdamW(groups, lr=0.01, fused=True)


def recorder() -> HistoryRecorder:
    """A history in which nothing is recorded."""
    return HistoryRecorder(OPTIONS, "accuracy")


def after_three_steps(trained: dict[str, Tensor]) -> RunState:
    """The state of a run whose best values are larger by one than its present ones."""
    best = {name: value.detach() + 1 for name, value in trained.items()}
    history = recorder()
    for step in (1, 2, 3):
        history.add(step, 1 / step, {"accuracy": 0.5, "loss": 1.25} if step == 3 else None)
    return RunState(3, BestState(best, {"accuracy": 0.5, "loss": 1.25}), 2, history)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state after three steps."""
    trained = parameters(1)
    optimizer = adam(trained)
    stepped(trained, optimizer, 3)
    path = tmp_path / "state.safetensors"
    save_state(path, after_three_steps(trained), trained, optimizer)
    return path


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_going_on_is_bit_equal_to_never_having_stopped(tmp_path: Path, device: str) -> None:
    path = tmp_path / "state.safetensors"
    whole = parameters(1, device)
    optimizer = adam(whole)
    stepped(whole, optimizer, 3)
    saved = after_three_steps(whole)
    save_state(path, saved, whole, optimizer)
    stepped(whole, optimizer, 4)

    resumed = parameters(2, device)
    second = adam(resumed)
    found = load_state(path, resumed, second, recorder())
    assert [group["lr"] for group in second.param_groups] == [0.01, 0.02]
    stepped(resumed, second, 4)
    assert (found.step, found.stale) == (3, 2)
    assert found.best.metrics == {"accuracy": 0.5, "loss": 1.25}
    assert found.history.finish(3) == saved.history.finish(3) is not None
    for name, value in whole.items():
        assert torch.equal(resumed[name], value)
        assert torch.equal(found.best.values[name], saved.best.values[name])
        assert resumed[name].requires_grad


@pytest.mark.parametrize(("fused", "device"), [(True, "meta"), (False, "cpu")])
def test_steps_are_counted_where_the_optimiser_looks(state: Path, fused: bool, device: str) -> None:
    """A fused one on the parameters' device, or a GPU's refuses the next step; else on the CPU."""
    trained = parameters(2, "meta")  # a device that is not the CPU, on every machine
    optimizer = torch.optim.AdamW(trained.values())
    optimizer.param_groups[0]["fused"] = fused
    load_state(state, trained, optimizer, recorder())
    for value in trained.values():
        moments = optimizer.state[value]
        assert moments["step"].device.type == device
        assert moments["exp_avg"].device.type == moments["exp_avg_sq"].device.type == "meta"


def test_a_state_without_a_history_is_continued_without_one(state: Path) -> None:
    """As earlier versions wrote it."""
    with safe_open(state, framework="pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != "digest"}
    del metadata["history"]
    tensors = load_file(state)
    metadata["digest"] = content_digest(json.dumps(metadata, sort_keys=True), tensors)
    save_file(tensors, state, metadata)
    for _ in range(2):  # what is saved after that has no beginning either
        trained = parameters(2)
        optimizer = adam(trained)
        found = load_state(state, trained, optimizer, recorder())
        assert (found.step, found.stale) == (3, 2)
        found.history.add(4, 0.25, None)
        assert found.history.finish(4) is None
        save_state(state, found, trained, optimizer)


def test_only_the_state_is_left_behind(state: Path) -> None:
    assert [path.name for path in state.parent.iterdir()] == ["state.safetensors"]


def damaged(state: Path, how: str) -> None:
    content = state.read_bytes()
    if how == "cut":
        state.write_bytes(content[:-9])
    elif how == "empty":
        state.write_bytes(b"")
    elif how == "pickle":
        state.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    elif how == "flipped":
        state.write_bytes(content[:-3] + bytes([content[-3] ^ 4]) + content[-2:])
    elif how == "no metadata":
        save_file(load_file(state), state)
    elif how == "a tensor missing":
        tensors = load_file(state)
        del tensors["best b"]
        save_file(tensors, state, {"step": "3", "metrics": "{}"})
    elif how == "no optimiser":
        tensors = {name: v for name, v in load_file(state).items() if not name.startswith("exp")}
        save_file(tensors, state, {"step": "3", "metrics": "{}"})
    elif how == "another shape":
        tensors = load_file(state) | {"value b": torch.ones(1)}
        save_file(tensors, state, {"step": "3", "metrics": "{}"})
    else:
        save_file(load_file(state), state, {"step": "three", "metrics": "{}"})


@pytest.mark.parametrize(
    "how",
    [
        "cut",
        "empty",
        "pickle",
        "flipped",
        "no metadata",
        "a tensor missing",
        "no optimiser",
        "another shape",
        "a step in words",
    ],
)
def test_damaged_state_is_refused(state: Path, how: str) -> None:
    """Never half of it, never with other values than were saved."""
    damaged(state, how)
    trained = parameters(2)
    with pytest.raises(
        ConfigError, match=r"can't resume from .* delete it to start anew"
    ) as caught:
        load_state(state, trained, adam(trained), recorder())
    assert str(state) in str(caught.value)


def test_state_of_other_parameters_is_refused(state: Path) -> None:
    trained = {"c": torch.ones(2, requires_grad=True)}
    with pytest.raises(ConfigError, match="can't resume"):
        load_state(state, trained, adam(trained), recorder())
