"""Re-initialised backbones for `--reinit`: the study's InitBias+BitFit and Init+BitFit."""

from __future__ import annotations

import torch
from torch import Tensor

from deltas.backbone.backbone import Backbone, make_backbone
from deltas.delta import DenseEntry, Entry
from deltas.manifest import Reinit
from training.errors import ConfigError
from training.strategies.grammar import layer_of, parse_layers

_STANDARD_DEVIATION = 0.02  # BERT's initializer_range


def reinitialise(backbone: Backbone, mode: Reinit, seed: int) -> Backbone:
    """The backbone to train over: itself, with all biases 0, or with every parameter drawn anew.

    Raises:
        ConfigError: the mode names layers that the backbone has not.
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
    """Whether a mode such as "biases@0-3" draws this parameter anew."""
    what, at, layers = mode.partition("@")
    if what == "none" or (what == "biases" and not name.endswith(".bias")):
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
    """What to lay over the *original* backbone to give what a re-initialised one became.

    Every re-initialised parameter differs from the backbone, so all of it is held, trained or not.
    """
    entries: dict[str, Entry] = {}
    for name in original.parameters:
        frozen = started_from.parameters[name]
        if is_reinitialised(name, mode):
            entries[name] = DenseEntry(trained[name].resolve(frozen) if name in trained else frozen)
        elif name in trained:
            entries[name] = trained[name]
    return entries
