"""Rules that draw rows and columns, use values or scores, or are restricted to some layers."""

from __future__ import annotations

from math import prod

import pytest
import torch

from deltas import Backbone
from training.errors import ConfigError
from training.strategies.grammar import canonical, count, select
from training.strategies.rules import RULES, Shapes, layer_of


@pytest.fixture
def shapes(tiny_backbone: Backbone) -> Shapes:
    return {name: tuple(value.shape) for name, value in tiny_backbone.parameters.items()}


def test_rows_selects_whole_rows_and_columns(shapes: Shapes) -> None:
    """Every selected value has its whole row or its whole column beside it."""
    selection = select("rows:0.05", shapes, 3)
    for name, indices in selection.items():
        assert indices is not None
        assert "embeddings" not in name
        mask = torch.zeros(prod(shapes[name]), dtype=torch.bool)
        mask[indices] = True
        mask = mask.view(shapes[name])
        rows, columns = mask.all(1), mask.all(0)
        assert torch.equal(mask, rows[:, None] | columns[None, :])
    wanted = 0.05 * sum(map(prod, shapes.values()))
    longest = max(max(shape) for shape in shapes.values())
    assert wanted <= count(selection, shapes) < wanted + longest
    assert list(select("rows:0.05", shapes, 4)) != list(selection) or any(
        not torch.equal(select("rows:0.05", shapes, 4)[name], indices)  # type: ignore[arg-type]
        for name, indices in selection.items()
        if indices is not None
    )


@pytest.mark.parametrize("layers", ["", "@1"])
def test_rows_can_not_select_more_than_the_matrices(shapes: Shapes, layers: str) -> None:
    """Embeddings and vectors have no rows to draw; a share is refused rather than cut."""
    there = {n: s for n, s in shapes.items() if not layers or layer_of(n) == 1}
    matrices = [prod(s) for n, s in there.items() if len(s) == 2 and "embeddings" not in n]
    total, most = sum(map(prod, there.values())), sum(matrices)
    share = f"{most / total + 0.001:.3f}"
    with pytest.raises(ConfigError) as caught:
        select(f"rows:{share}{layers}", shapes, 0)
    least = int(1000 * most / total) / 1000
    assert f"rows:{share}: the matrices of the layers and the pooler hold {most:,}" in str(
        caught.value
    )
    assert f"of {total:,} values; give at most {least:g}" in str(caught.value)
    assert count(select(f"rows:{least:g}{layers}", shapes, 0), shapes) <= most


def test_magnitude_takes_the_largest(tiny_backbone: Backbone, shapes: Shapes) -> None:
    selection = select("magnitude:0.02", shapes, 0, tiny_backbone.parameters)
    mask = {name: torch.zeros(prod(shape), dtype=torch.bool) for name, shape in shapes.items()}
    for name, indices in selection.items():
        assert indices is not None
        mask[name][indices] = True
    values = torch.cat([tiny_backbone.parameters[name].reshape(-1).abs() for name in shapes])
    chosen = torch.cat(list(mask.values()))
    assert int(chosen.sum()) == round(0.02 * len(values))
    assert values[chosen].min() >= values[~chosen].max()


@pytest.mark.parametrize("rule", ["fisher", "gem"])
def test_rules_by_score_take_the_highest_of_the_given_layers(shapes: Shapes, rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    asked: list[str] = []

    def scores_of(name: str) -> dict[str, torch.Tensor]:
        asked.append(name)
        return scores

    selection = select(f"{rule}:0.1@1+{rule}:0.05@1", shapes, 0, scores=scores_of)
    assert asked == [rule], "computed once, and of this rule"
    assert {layer_of(name) for name in selection} == {1}
    inside = torch.cat([scores[name].view(-1) for name in shapes if layer_of(name) == 1])
    limit = inside.sort(descending=True).values[round(0.1 * len(inside)) - 1]
    for name, indices in selection.items():
        expected = (scores[name].view(-1) >= limit).nonzero().view(-1)
        assert indices is not None
        assert torch.equal(indices, expected)


def test_missing_values_are_a_clear_error(shapes: Shapes) -> None:
    with pytest.raises(ConfigError, match="magnitude: needs the parameters' values"):
        select("magnitude:0.1", shapes, 0)
    for rule in ("fisher", "gem"):
        with pytest.raises(ConfigError, match=f"{rule}: needs train rows"):
            select(f"{rule}:0.1", shapes, 0)


@pytest.mark.parametrize("rule", ["random", "magnitude", "fisher", "gem"])
def test_the_share_1_selects_every_value(
    tiny_backbone: Backbone, shapes: Shapes, rule: str
) -> None:
    values = tiny_backbone.parameters
    selection = select(f"{rule}:1", shapes, 0, values, lambda _: values)
    assert count(selection, shapes) == sum(map(prod, shapes.values()))


@pytest.mark.parametrize(
    "freeze", ["bitfit", "layernorm", "random:0.1", "full", "attention", "ffn"]
)
def test_layers_restrict_a_rule(shapes: Shapes, freeze: str) -> None:
    selection = select(f"{freeze}@1", shapes, 0)
    assert {layer_of(name) for name in selection} == {1}
    both = select(f"{freeze}@0-1", shapes, 0)
    assert {layer_of(name) for name in both} == {0, 1}


def test_layers_have_one_spelling() -> None:
    assert canonical("bitfit:query@02-2+layernorm@0-3") == "bitfit:query@2+layernorm@0-3"
    assert canonical("random:1e-3@0-1") == "random:0.001@0-1"
    # An at sign in a regular expression is the expression's.
    assert canonical("params:a@b") == "params:a@b"


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("bitfit@", "layers are written as a number or as first-last"),
        ("bitfit@3-1", "@3-1: layers are written"),
        ("bitfit@-1", "layers are written"),
        ("bitfit@0-2", "the backbone has layers 0 to 1"),
        ("top:1@0", "top can't be restricted to layers with @"),
        ("head@0", "head can't be restricted"),
        ("rows:0@1", "rows:0: the share of parameters must be"),
        ("fisher", "write fisher:SHARE"),
        ("magnitude:2", "magnitude:2: the share"),
        ("random:1.5", "random:1.5: the share"),
        ("fisher:1.5", "fisher:1.5: the share"),
        ("gem", "write gem:SHARE"),
        ("gem:0", "gem:0: the share"),
        ("rows:1", "rows:1: the matrices of the layers and the pooler hold"),
    ],
)
def test_mistakes_are_explained(shapes: Shapes, freeze: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(freeze, shapes, 0)


def test_every_rule_has_a_rate_and_a_line_of_help() -> None:
    for rule in RULES.values():
        assert 0 < rule.default_lr < 1
        assert rule.about
        assert len(rule.about) < 250
