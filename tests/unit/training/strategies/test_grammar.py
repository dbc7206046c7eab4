"""Freezing strategies select the right parameters of real backbones; mistakes are explained."""

from __future__ import annotations

import re
from itertools import pairwise
from math import prod, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from tests.laws import law
from training.errors import ConfigError
from training.strategies.grammar import (
    canonical,
    count,
    default_learning_rate,
    describe_rules,
    select,
)
from training.strategies.rules import BIAS_TERMS, RULES, Shapes

LAW = law(60)


def shapes_of(config: BertConfig) -> Shapes:
    """Names and shapes of a real network that was never given memory."""
    with torch.device("meta"):
        network = BertModel(config)
    return {f"bert.{name}": tuple(value.shape) for name, value in network.named_parameters()}


@pytest.fixture(scope="module")
def base() -> Shapes:
    """BERT-base."""
    return shapes_of(BertConfig())


@pytest.fixture(scope="module")
def minilm() -> Shapes:
    """The default backbone."""
    return shapes_of(
        BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
    )


@pytest.fixture(scope="module")
def tiny() -> Shapes:
    """Two layers, all sizes different."""
    return shapes_of(
        BertConfig(
            vocab_size=101,
            hidden_size=36,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=52,
            max_position_embeddings=64,
        )
    )


@pytest.mark.parametrize(
    ("freeze", "of_base", "of_minilm"),
    [
        ("full", 109_482_240, 22_713_216),
        ("head", 0, 0),
        ("bitfit", 102_912, 26_112),
        ("layernorm", 38_400, 9_984),
        ("random:0.001", 109_482, 22_713),
        ("bitfit:query,intermediate", 12 * (768 + 3072), 6 * (384 + 1536)),
        ("top:2", 14_766_336, 3_696_768),
        ("attention", 12 * 4 * (768 * 768 + 768), 6 * 4 * (384 * 384 + 384)),
        ("ffn", 12 * (2 * 768 * 3072 + 768 + 3072), 6 * (2 * 384 * 1536 + 384 + 1536)),
        ("bitfit+layernorm", 102_912 + 25 * 768, 26_112 + 13 * 384),
    ],
)
def test_strategies_select_the_known_counts_of_real_backbones(
    base: Shapes, minilm: Shapes, freeze: str, of_base: int, of_minilm: int
) -> None:
    assert count(select(freeze, base, 0), base) == of_base
    assert count(select(freeze, minilm, 0), minilm) == of_minilm


@pytest.mark.parametrize(
    ("term", "names"),
    [
        ("query", ["encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.query"]),
        ("key", ["encoder.layer.0.attention.self.key", "encoder.layer.1.attention.self.key"]),
        ("value", ["encoder.layer.0.attention.self.value", "encoder.layer.1.attention.self.value"]),
        ("attention_output", [f"encoder.layer.{n}.attention.output.dense" for n in (0, 1)]),
        ("attention_layernorm", [f"encoder.layer.{n}.attention.output.LayerNorm" for n in (0, 1)]),
        ("intermediate", [f"encoder.layer.{n}.intermediate.dense" for n in (0, 1)]),
        ("output", ["encoder.layer.0.output.dense", "encoder.layer.1.output.dense"]),
        ("output_layernorm", [f"encoder.layer.{n}.output.LayerNorm" for n in (0, 1)]),
        ("embeddings_layernorm", ["embeddings.LayerNorm"]),
        ("pooler", ["pooler.dense"]),
    ],
)  # fmt: skip
def test_each_bias_term_means_exactly_its_modules(
    tiny: Shapes, term: str, names: list[str]
) -> None:
    """ "output" above all must not take the attention's output along."""
    assert select(f"bitfit:{term}", tiny, 0) == {f"bert.{name}.bias": None for name in names}


def test_all_bias_terms_together_are_bitfit(base: Shapes) -> None:
    together = select(f"bitfit:{','.join(BIAS_TERMS)}", base, 0)
    assert together == select("bitfit", base, 0)
    assert set(together) == {name for name in base if name.endswith(".bias")}


def test_top_takes_last_layers_and_pooler(tiny: Shapes) -> None:
    one = select("top:1", tiny, 0)
    assert set(one) == {name for name in tiny if ".layer.1." in name or ".pooler." in name}
    assert set(select("top:2", tiny, 0)) == {name for name in tiny if ".embeddings." not in name}


def test_top_counts_layers_as_numbers(base: Shapes) -> None:
    """Select layers 9, 10 and 11 as the last three of 12, not the ones that sort last as text."""
    found = [re.search(r"layer\.(\d+)", name) for name in select("top:3", base, 0)]
    layers = {match[1] for match in found if match}
    assert layers == {"9", "10", "11"}


@pytest.mark.parametrize("share", ["0.0001", "0.05", "1"])
def test_random_draws_exactly_its_share(tiny: Shapes, share: str) -> None:
    total = sum(map(prod, tiny.values()))
    selection = select(f"random:{share}", tiny, 3)
    assert count(selection, tiny) == max(1, round(float(share) * total))
    for name, indices in selection.items():
        assert indices is not None
        assert indices.dtype == torch.int64
        assert int(indices[0]) >= 0
        assert int(indices[-1]) < prod(tiny[name])
        assert bool((indices.diff() > 0).all())


def test_random_never_draws_nothing(tiny: Shapes) -> None:
    assert count(select("random:1e-9", tiny, 0), tiny) == 1


def test_random_depends_on_its_seed_only(tiny: Shapes) -> None:
    first, again, other = (select("random:0.01", tiny, seed) for seed in (4, 4, 5))
    assert list(first) == list(again)
    assert all(torch.equal(first[name], again[name]) for name in first)  # type: ignore[arg-type]
    flat = [{(name, int(i)) for name, part in one.items() for i in part} for one in (first, other)]  # type: ignore[union-attr]
    share = len(flat[0] & flat[1]) / len(flat[0])
    assert share < 0.1  # 1 % of each is expected in the other


def test_random_is_uniform_over_all_values(minilm: Shapes) -> None:
    """Each parameter gets its share, and each half of it half: within six standard deviations."""
    total = sum(map(prod, minilm.values()))
    selection = select("random:0.01", minilm, 7)
    assert len(selection) > 90
    for name, shape in minilm.items():
        size = prod(shape)
        drawn = selection.get(name)
        indices = torch.empty(0) if drawn is None else drawn
        for number, share in ((len(indices), 1.0), (int((indices < size // 2).sum()), 0.5)):
            expected = 0.01 * size * share
            assert abs(number - expected) < 6 * sqrt(expected) + 6, (name, share)
    assert count(selection, minilm) == round(0.01 * total)


def test_union_of_sparse_and_dense_is_dense(tiny: Shapes) -> None:
    """In either order, and the rest of the sparse one stays sparse."""
    for freeze in ("random:0.05+attention", "attention+random:0.05"):
        selection = select(freeze, tiny, 0)
        dense = {name for name, indices in selection.items() if indices is None}
        assert dense == set(select("attention", tiny, 0))
        alone = select("random:0.05", tiny, 0)
        for name in set(alone) - dense:
            assert torch.equal(selection[name], alone[name])  # type: ignore[arg-type]


def test_union_of_two_random_selections_is_in_order(tiny: Shapes) -> None:
    """The larger share need not hold the smaller one; order must survive."""
    selection = select("random:0.05+random:0.02", tiny, 0)
    parts = [select(f"random:{share}", tiny, 0) for share in ("0.05", "0.02")]
    for name, indices in selection.items():
        assert indices is not None
        wanted = {int(i) for part in parts for i in part.get(name, torch.empty(0))}  # type: ignore[union-attr]
        assert indices.tolist() == sorted(wanted)


def test_selection_is_in_the_networks_order(tiny: Shapes) -> None:
    selection = list(select("bitfit+random:0.3+top:1", tiny, 0))
    positions = [list(tiny).index(name) for name in selection]
    assert all(low < high for low, high in pairwise(positions))


def test_plus_inside_a_regular_expression_joins_no_rules(tiny: Shapes) -> None:
    output = select("params:layer.*[01].output.dense", tiny, 0)
    assert select(r"params:layer\.\d+\.output+\.dense", tiny, 0) == output
    both = select(r"layernorm+params:quer+y\.bias", tiny, 0)
    assert set(both) == set(select("bitfit:query", tiny, 0)) | set(select("layernorm", tiny, 0))
    # The names of other strategies mean nothing inside.
    attention = {name for name in tiny if re.search(".+attention", name)}
    assert set(select("params:.+attention", tiny, 0)) == attention
    assert select(r"params:[a-z]+\.query", tiny, 0) == select("params:query", tiny, 0)
    assert canonical("params:[a-z]+query+head") == "params:[a-z]+query+head"


def test_params_searches_anywhere(tiny: Shapes) -> None:
    assert set(select("params:key", tiny, 0)) == {name for name in tiny if "key" in name}
    assert select("params:(?i)LAYERNORM", tiny, 0) == select("layernorm", tiny, 0)


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("bitfit", "bitfit"),
        (" bitfit ", "bitfit"),
        ("bitfit:query,intermediate", "bitfit:intermediate,query"),
        ("bitfit:query, query", "bitfit:query"),
        ("random:0.0010", "random:0.001"),
        ("random:1e-3", "random:0.001"),
        ("random:1", "random:1"),
        ("top:02", "top:2"),
        ("bitfit+bitfit", "bitfit"),
        ("head", "head"),
        ("head+head", "head"),
        ("head+bitfit", "bitfit"),
        ("bitfit+top:1", "bitfit+top:1"),
        ("params:a+b", "params:a+b"),
        ("params:a+bitfit", "params:a+bitfit"),
    ],
)
def test_a_strategy_has_one_spelling(given: str, known: str) -> None:
    assert canonical(given) == known
    assert canonical(known) == known


@pytest.mark.parametrize(
    ("freeze", "sentence"),
    [
        ("bitfitt", "unknown strategy 'bitfitt'. Did you mean 'bitfit'? Allowed:"),
        ("", "unknown strategy ''"),
        ("Bitfit", "Did you mean 'bitfit'?"),
        ("bitfit+", "unknown strategy ''"),
        ("layernorm++head", "unknown strategy"),
        ("+head", "unknown strategy ''"),
        ("full:1", "write full"),
        ("bitfit:", "write bitfit[:TERM,...]"),
        ("head:x", "write head"),
        ("random", "write random:SHARE"),
        ("random:", "write random:SHARE"),
        ("top", "write top:N"),
        ("params:", "write params:REGEX"),
        ("bitfit:qury", "unknown bias term 'qury'. Did you mean 'query'? Allowed: query, key"),
        ("bitfit:query,", "unknown bias term ''"),
        ("random:0", "random:0: the share of parameters must be a number above 0 and at most 1"),
        ("random:1.5", "random:1.5"),
        ("random:-0.1", "random:-0.1"),
        ("random:nan", "random:nan"),
        ("random:inf", "random:inf"),
        ("random:a lot", "random:a lot"),
        ("top:0", "top:0: the number of layers must be a whole number, 1 or more"),
        ("top:-1", "top:-1"),
        ("top:1.5", "top:1.5"),
        ("top:3", "top:3: the backbone has 2 layers"),
        ("params:[", "params:[: not a regular expression"),
        ("params:no such name", "params:no such name selects no parameter"),
        ("bitfit+params:nothing", "params:nothing selects no parameter"),
    ],
)
def test_mistakes_are_named(tiny: Shapes, freeze: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        select(freeze, tiny, 0)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "freeze",
    [
        "params:a{99999999999999999999}",
        "params:" + "(" * 5000,
        "top:" + "9" * 5000,
        "random:" + "9" * 5000,
        "random:1e-400",
    ],
    ids=["repetition", "parentheses", "layers", "share", "underflow"],
)
def test_absurd_arguments_are_refused(tiny: Shapes, freeze: str) -> None:
    with pytest.raises(ConfigError):
        select(freeze, tiny, 0)


@LAW
@given(
    st.one_of(
        st.text(max_size=30),
        st.tuples(st.sampled_from([*RULES, ""]), st.text(max_size=12)).map(":".join),
        st.lists(st.sampled_from([*RULES, ":", "+", "0.5", "1", "query", ","])).map("".join),
    ).filter(lambda text: "[[" not in text)
)
def test_any_text_selects_or_is_a_clear_error(tiny: Shapes, freeze: str) -> None:
    """No text raises another exception than that for mistakes."""
    try:
        selection = select(freeze, tiny, 0)
        spelled = canonical(freeze)
    except ConfigError:
        return
    assert canonical(spelled) == spelled
    assert list(select(spelled, tiny, 0)) == list(selection)


def test_help_names_every_rule() -> None:
    lines = describe_rules().splitlines()
    assert len(lines) == len(RULES) + 2
    assert all(any(line.split()[0].startswith(name) for line in lines) for name in RULES)
    assert any("a+b" in line for line in lines)


def test_learning_rates_are_per_strategy() -> None:
    """The rate of one strategy is never used for another; a union takes the most careful one."""
    assert default_learning_rate("random:0.001") > default_learning_rate("bitfit")
    assert default_learning_rate("bitfit") > default_learning_rate("full")
    assert default_learning_rate("random:0.1+top:1") == default_learning_rate("top:1")
    assert default_learning_rate("head+bitfit") == default_learning_rate("bitfit")


@pytest.mark.parametrize("rule", ["random", "rows", "fisher", "gem", "magnitude"])
def test_the_learning_rate_falls_with_the_share(rule: str) -> None:
    """A hundredth of all values at the rate of a thousandth lost four points on MR."""
    few, some, many, every = (
        default_learning_rate(f"{rule}:{share}") for share in ("0.001", "0.01", "0.1", "1")
    )
    assert few == default_learning_rate(f"{rule}:1e-5") == RULES[rule].default_lr
    assert few > some > many > every == default_learning_rate("full")
    assert some / few == pytest.approx(many / some, rel=0.01)
    assert default_learning_rate(f"{rule}:0.01@0-2") == some


@pytest.mark.parametrize(
    "freeze", ["params:a b", "params:caf\u00e9", "params:(?<name>x)", "params:'x'"]
)
def test_names_that_no_manifest_takes_are_refused_before_training(freeze: str) -> None:
    with pytest.raises(ConfigError, match="ASCII without spaces, quotes"):
        canonical(freeze)
