"""Measures how far a delta's values lie from the backbone's, by layer, part and kind.

A delta holds values, not differences: only a process with the backbone can tell the change. The
head has no values to compare with, so it is left out. `NormCache` keeps the results of the deltas
asked for last. Tested by tests/unit/deltas/publish/test_norms.py.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from threading import Lock
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from deltas.backbone.backbone import Backbone
from deltas.delta import Delta, DenseEntry
from deltas.store.store import Record

_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
_MAX_KEPT = 256


class ChangeNorm(BaseModel):
    """The change of all trained values of one part and kind in one layer."""

    model_config = ConfigDict(frozen=True)

    layer: Annotated[str, Field(description="`embeddings`, a layer's number from 0, or `pooler`.")]
    part: Annotated[
        str, Field(description="`attention`, `feed-forward`, `LayerNorm`, or `table`, `pooler`.")
    ]
    kind: Annotated[str, Field(description="`weight` or `bias`.")]
    values: Annotated[int, Field(description="Number of trained values.")]
    norm: Annotated[float, Field(description="Euclidean norm of trained minus frozen values.")]
    frozen_norm: Annotated[float, Field(description="Euclidean norm of the same frozen values.")]


class DeltaNorms(BaseModel):
    """The change of a delta, by layer, part and kind; its head has no frozen values."""

    model_config = ConfigDict(frozen=True)

    version: str
    norms: list[ChangeNorm]


def change_norms(delta: Delta, backbone: Backbone) -> list[ChangeNorm]:
    """Return the change by layer, part and kind, from the embeddings up to the pooler."""
    sums: dict[tuple[str, str, str], list[float]] = {}
    for name, entry in delta.entries.items():
        frozen = backbone.parameters[name].reshape(-1)
        if isinstance(entry, DenseEntry):
            trained = entry.values.reshape(-1)
        else:
            trained, frozen = entry.values, frozen[entry.indices]
        found = sums.setdefault(_group(name), [0, 0.0, 0.0])
        found[0] += trained.numel()
        found[1] += _square(trained - frozen)
        found[2] += _square(frozen)
    return [
        ChangeNorm(
            layer=layer,
            part=part,
            kind=kind,
            values=int(count),
            norm=round(change**0.5, 6),
            frozen_norm=round(before**0.5, 6),
        )
        for (layer, part, kind), (count, change, before) in sorted(sums.items(), key=_order)
    ]


class NormCache:
    """Computes the change of deltas, and keeps it for the deltas asked for last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, str], DeltaNorms] = OrderedDict()
        self._lock = Lock()  # one at a time: the file of full fine-tuning takes megabytes

    def of(self, record: Record, backbone: Backbone) -> DeltaNorms:
        """Return the change of a delta; reads its file the first time.

        Raises:
            DeltaFormatError: the file is damaged, or was replaced.
            OSError: the file can't be read.
        """
        with self._lock:
            if record.key not in self._kept:
                norms = change_norms(record.load(), backbone)
                self._kept[record.key] = DeltaNorms(version=record.version, norms=norms)
                if len(self._kept) > _MAX_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(record.key)
            return self._kept[record.key]


def _square(values: Tensor) -> float:
    return float(values.double().square().sum())


def _group(name: str) -> tuple[str, str, str]:
    """Return layer, part and kind of a parameter, by its Hugging Face name."""
    found = _LAYER.search(name)
    kind = "bias" if name.endswith("bias") else "weight"
    if found is None:
        is_pooler = ".pooler." in name
        layer, part = ("pooler", "pooler") if is_pooler else ("embeddings", "table")
    else:
        layer, part = found[1], "attention" if ".attention." in name else "feed-forward"
    return layer, "LayerNorm" if "LayerNorm" in name else part, kind


def _order(item: tuple[tuple[str, str, str], list[float]]) -> tuple[int, str, str]:
    layer, part, kind = item[0]
    place = {"embeddings": -1, "pooler": 10**6}
    return place[layer] if layer in place else int(layer), part, kind
