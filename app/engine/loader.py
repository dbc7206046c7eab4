"""Loading: from a delta's file to what goes into its slot; safe to call from several threads.

The first time everything about a file is checked. If it holds nothing but whole vectors and a head,
where they lie is then kept as a *recipe*, with the digest of the file's bytes: while the bytes stay
the same, loading it again is one read, one digest and one copy. A recipe is kept only if it gave,
bit for bit, what the full check of the same bytes gave.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from app.engine.bank import KINDS, Bank, StagedDelta
from deltas import Backbone, Delta, DenseEntry, Entry, Record, check_delta
from deltas.format import read_content

_HEAD = "classifier.weight", "classifier.bias"
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header
_VALUE_BYTES = 4


@dataclass(frozen=True)
class _Plan:
    """Where the values of a file lie that has one certain header, as positions in its data.

    Attributes:
        vectors: by kind, int64 [n] each: where they lie in the file's float32 data, and in the
            bank's vectors of that kind laid end to end; nothing for a mere head.
        head: start and shape of the head's weight and bias.
    """

    vectors: dict[str, tuple[Tensor, Tensor]]
    head: tuple[tuple[int, list[int]], ...]


@dataclass(frozen=True)
class _Recipe:
    """How one file is loaded again.

    Attributes:
        digest: SHA-256 of all its bytes.
        start: where its data begins.
        plan: shared by all files with the same tensors.
    """

    digest: bytes
    start: int
    plan: _Plan


class Loader:
    """Loads deltas for one bank.

    Args:
        backbone: what they must fit.
        bank: whose form they are brought into; it is not changed.
        again: whether files will be loaded more than once, so that recipes are worth having.
    """

    def __init__(self, backbone: Backbone, bank: Bank, *, again: bool) -> None:
        self._backbone = backbone
        self._bank = bank
        self._again = again
        self._recipes: dict[Path, _Recipe] = {}
        self._plans: dict[str, _Plan] = {}
        vectors = {name: w for name, w in backbone.parameters.items() if w.ndim == 1}
        self._frozen = {k: bank.lay_out(k, {}, vectors).to(bank.vector_dtype) for k in KINDS}
        self._nowhere = {name: torch.full(w.shape, -1) for name, w in vectors.items()}

    def load(self, record: Record) -> StagedDelta:
        """Read a delta.

        Raises:
            DeltaFormatError: the file is gone, damaged, or another one than the store saw.
            DeltaMismatchError: it doesn't fit the backbone.
        """
        content = read_content(record.path)
        recipe = self._recipes.get(record.path)
        if recipe is not None:
            if hashlib.sha256(content).digest() == recipe.digest:
                return self._follow(recipe, content)
            self._recipes.pop(record.path, None)
        delta = record.parse(content)
        check_delta(delta, self._backbone)
        if not self._again or not all(_is_vector(entry) for entry in delta.entries.values()):
            del content  # large files are those that have no recipe: not held twice
            return self._bank.stage(delta)
        staged = self._bank.stage(delta)
        self._remember(record.path, content, delta, staged)
        return staged

    def _follow(self, recipe: _Recipe, content: bytes) -> StagedDelta:
        plan = recipe.plan
        # A copy, since PyTorch warns of memory that can't be written to.
        data = torch.frombuffer(bytearray(content), dtype=torch.float32, offset=recipe.start)
        vectors = {}
        for kind, (sources, targets) in plan.vectors.items():
            own = data.index_select(0, sources).to(self._bank.vector_dtype)
            vectors[kind] = self._frozen[kind].clone().index_copy_(0, targets, own)
        weight, bias = (
            data[start : start + torch.Size(shape).numel()].view(shape).clone()
            for start, shape in plan.head
        )
        return StagedDelta(vectors, {}, {}, weight, bias)

    def _remember(self, path: Path, content: bytes, delta: Delta, checked: StagedDelta) -> None:
        start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
        header = json.loads(content[_LENGTH_BYTES:start])
        header.pop("__metadata__")
        text = repr(header)
        if text not in self._plans:
            self._plans[text] = self._plan(delta, header)
        recipe = _Recipe(hashlib.sha256(content).digest(), start, self._plans[text])
        if _same(self._follow(recipe, content), checked):
            self._recipes[path] = recipe

    def _plan(self, delta: Delta, header: dict[str, dict[str, list[int]]]) -> _Plan:
        places = {name: header[name]["data_offsets"][0] // _VALUE_BYTES for name in header}
        entries = {
            name: DenseEntry(torch.arange(entry.values.numel()) + places[name])
            for name, entry in delta.entries.items()
        }
        vectors = {}
        for kind in KINDS:
            # The bank lays out positions as it would the values.
            sources = self._bank.lay_out(kind, entries, self._nowhere)
            targets = (sources >= 0).nonzero().flatten()
            if len(targets):
                vectors[kind] = sources[targets], targets
        head = tuple((places[name], header[name]["shape"]) for name in _HEAD)
        return _Plan(vectors, head)


def _is_vector(entry: Entry) -> bool:
    return isinstance(entry, DenseEntry) and entry.values.ndim == 1


def _same(one: StagedDelta, other: StagedDelta) -> bool:
    pairs = [(one.head_weight, other.head_weight), (one.head_bias, other.head_bias)]
    if one.vectors.keys() != other.vectors.keys():
        return False
    pairs += [(vectors, other.vectors[kind]) for kind, vectors in one.vectors.items()]
    return all(torch.equal(a, b) for a, b in pairs)
