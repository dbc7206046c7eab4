"""Re-initialises a backbone for `--reinit`: the study's InitBias+BitFit and Init+BitFit.

A run then trains over the re-initialised backbone, and its delta holds every parameter that differs
from the original one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltas.backbone.backbone import Backbone, make_backbone
from deltas.delta import DenseEntry, Entry
from deltas.manifest import Reinit
from training.errors import ConfigError
from training.strategies.grammar import parse_layers
from training.strategies.rules import layer_of

_STANDARD_DEVIATION = 0.02  # BERT's initializer_range


def reinitialise(backbone: Backbone, mode: Reinit, seed: int) -> Backbone:
    """Return the backbone to train over; the given one stays unchanged.

    A mode is "none", "biases" (they become 0) or "all" (every parameter is drawn anew with the
    seed), the last two also for some layers: "biases@0-3".

    Raises:
        ConfigError: the mode names layers that the backbone does not have.
    """
    if mode == "none":
        return backbone
    layers = [number for name in backbone.parameters if (number := layer_of(name)) is not None]
    _, _, wanted = mode.partition("@")
    if wanted and parse_layers(wanted)[1] > max(layers):
        raise ConfigError(f"--reinit {mode}: the backbone has layers 0 to {max(layers)}")
    generator = torch.Generator().manual_seed(seed)
    fresh = {
        name: _initial(name, value, generator) if is_reinitialised(name, mode) else value
        for name, value in backbone.parameters.items()
    }
    return make_backbone(
        backbone.config, fresh, backbone.tokenizer, f"{backbone.ref.id} ({mode} re-initialised)"
    )


def is_reinitialised(name: str, mode: Reinit) -> bool:
    """Return True if a mode such as "biases@0-3" changes this parameter."""
    scope, at, layers = mode.partition("@")
    if scope == "none" or (scope == "biases" and not name.endswith(".bias")):
        return False
    if not at:
        return True
    first, last = parse_layers(layers)
    number = layer_of(name)
    return number is not None and first <= number <= last


def _initial(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    if name.endswith(".bias"):
        return torch.zeros_like(value)
    if name.endswith("LayerNorm.weight"):
        return torch.ones_like(value)
    return torch.randn(value.shape, generator=generator) * _STANDARD_DEVIATION


def entries_over(
    original: Backbone, started_from: Backbone, mode: Reinit, trained: dict[str, Entry]
) -> dict[str, Entry]:
    """Return entries that turn the original backbone into the trained re-initialised one.

    A re-initialised parameter differs from the original in every value, so it becomes a dense
    entry whether it was trained or not. `trained` are entries over `started_from`.
    """
    entries: dict[str, Entry] = {}
    for name in original.parameters:
        frozen = started_from.parameters[name]
        if is_reinitialised(name, mode):
            entries[name] = DenseEntry(trained[name].resolve(frozen) if name in trained else frozen)
        elif name in trained:
            entries[name] = trained[name]
    return entries
