"""Private APIs of other packages stand in `deltas.kernels` only, and each one is in its list."""

from __future__ import annotations

import ast

import pytest

from deltas.kernels.private_apis import PRIVATE_APIS
from tests.meta.source import Source

OTHERS = {"torch", "numba", "llvmlite", "datasets", "transformers", "tokenizers", "huggingface_hub"}
MAY_HAVE_OTHERS = {"app.engine.cuda.attention"}
# Without an underscore, yet of no promise to others.
INTERNAL_MODULES = ("numba.core", "torch.ops")


def private_names(source: Source) -> set[str]:
    """Find dotted names of private APIs in a source, with `import ... as` resolved."""
    aliases: dict[str, str] = {}
    found: set[str] = set()
    for node in source.nodes:
        if isinstance(node, ast.Import):
            for name in node.names:
                top = name.name.split(".")[0]
                aliases[name.asname or top] = name.name if name.asname else top
                found.add(name.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"
    for node in source.nodes:
        if isinstance(node, ast.Attribute):
            found.add(dotted(node, aliases))
    found |= set(aliases.values())
    longest = {name for name in found if not any(other.startswith(f"{name}.") for other in found)}
    return {name for name in longest if is_private(name)} | {
        "GOMP_parallel" for name in found if name.endswith("GOMP_parallel")
    }


def dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    """Spell an attribute in full: `F.gelu` is `torch.nn.functional.gelu`."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, aliases)}.{node.attr}"
    return aliases.get(node.id, "?") if isinstance(node, ast.Name) else "?"


def is_private(name: str) -> bool:
    first, *rest = name.split(".")
    hidden = any(part.startswith("_") and not part.startswith("__") for part in rest)
    return first in OTHERS and (hidden or name.startswith(INTERNAL_MODULES))


def listed(name: str) -> bool:
    return any(name == api.name or name.startswith(f"{api.name}.") for api in PRIVATE_APIS)


def test_private_apis_stand_in_the_kernels_and_in_the_list(sources: dict[str, Source]) -> None:
    astray, unlisted, used = {}, {}, set()
    for module, source in sources.items():
        found = private_names(source)
        if module.startswith("deltas.kernels"):
            used |= found
            if missing := {name for name in found if not listed(name)}:
                unlisted[module] = sorted(missing)
        elif found and module not in MAY_HAVE_OTHERS:
            astray[module] = sorted(found)
    assert not astray, f"private APIs outside deltas.kernels: {astray}"
    assert not unlisted, f"not in deltas.kernels.private_apis.PRIVATE_APIS: {unlisted}"
    unused = [
        api.name
        for api in PRIVATE_APIS
        if not any(name == api.name or name.startswith(f"{api.name}.") for name in used)
    ]
    assert not unused, f"listed, but not used: {unused}"


def test_every_private_api_says_its_release_and_its_guard() -> None:
    assert len({api.name for api in PRIVATE_APIS}) == len(PRIVATE_APIS)
    assert all(api.seen_in and api.guard for api in PRIVATE_APIS)


@pytest.mark.parametrize(
    ("planted", "name"),
    [
        ("import torch\ntorch._int_mm(x, y)", "torch._int_mm"),
        ("import torch.nn.functional as F\nF._pad(x)", "torch.nn.functional._pad"),
        ("from torch._C import Graph", "torch._C.Graph"),
        ("import torch._C", "torch._C"),
        ("import torch\ntorch.ops.aten.gelu_(x)", "torch.ops.aten.gelu_"),
        ("from numba.core import cgutils", "numba.core.cgutils"),
        ("import ctypes\nctypes.CDLL(path).GOMP_parallel", "GOMP_parallel"),
    ],
)
def test_a_planted_private_api_is_found(planted: str, name: str) -> None:
    assert private_names(Source.parse("app/a.py", planted)) == {name}


def test_public_names_are_left_alone() -> None:
    public = "import torch\ntorch.__version__\nself._x.y\ntorch.nn.Linear._x = 1"
    assert private_names(Source.parse("app/a.py", public)) == {"torch.nn.Linear._x"}
