"""Re-initialised backbones for `--reinit`: the study's InitBias+BitFit and Init+BitFit."""

from __future__ import annotations

import torch
from torch import Tensor

from deltas.backbone import Backbone, make_backbone
from deltas.delta import DenseEntry, Entry
from deltas.manifest import Reinit

_STANDARD_DEVIATION = 0.02  # BERT's initializer_range


def reinitialise(backbone: Backbone, mode: Reinit, seed: int) -> Backbone:
    """The backbone to train over: itself, with all biases 0, or with every parameter drawn anew."""
    if mode == "none":
        return backbone
    generator = torch.Generator().manual_seed(seed)
    fresh = {
        name: _initial(name, value, generator) if mode == "all" or name.endswith(".bias") else value
        for name, value in backbone.parameters.items()
    }
    return make_backbone(
        backbone.config, fresh, backbone.tokenizer, f"{backbone.ref.id} ({mode} re-initialised)"
    )


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
        if mode == "all" or (mode == "biases" and name.endswith(".bias")):
            entries[name] = DenseEntry(trained[name].resolve(frozen) if name in trained else frozen)
        elif name in trained:
            entries[name] = trained[name]
    return entries
