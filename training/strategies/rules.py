"""The rules behind `--freeze`: small functions that select the backbone parameters to train.

A rule gets parameter names and shapes, the seed, and, if it asks for them, the parameters' values
and scores. How rules are written, combined and restricted to layers is
`training.strategies.grammar`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeAlias

from deltas.errors import did_you_mean
from training.errors import ConfigError

# numpy and torch are imported where they are used: `--help` must not wait for them.
if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
# None selects the whole parameter; int64 [K] selects these flat indices, increasing.
Selection: TypeAlias = "dict[str, Tensor | None]"
Scores: TypeAlias = "Mapping[str, Tensor]"

# The bias terms of Ben Zaken et al. 2021 (BitFit, arXiv:2106.10199), as endings of module names.
BIAS_TERMS = {
    "query": r"attention\.self\.query",
    "key": r"attention\.self\.key",
    "value": r"attention\.self\.value",
    "attention_output": r"attention\.output\.dense",
    "attention_layernorm": r"attention\.output\.LayerNorm",
    "intermediate": r"layer\.\d+\.intermediate\.dense",
    "output": r"layer\.\d+\.output\.dense",
    "output_layernorm": r"layer\.\d+\.output\.LayerNorm",
    "embeddings_layernorm": r"embeddings\.LayerNorm",
    "pooler": r"pooler\.dense",
}
_SMALL_SHARE = 0.001  # the share that the learning rates of rules with a share are for


@dataclass(frozen=True)
class RuleInput:
    """Everything that a rule can select from."""

    shapes: Shapes  # by Hugging Face name, in the network's order
    seed: int  # for rules that draw at random
    values: Scores  # the parameters themselves, in the same order
    # Returns a rule's score for each value, computed on first use.
    scores: Callable[[str], Scores]


@dataclass(frozen=True)
class Rule:
    """One strategy: its argument, its help, its learning rate and its selection."""

    argument: str  # the text after the colon as the help shows it; "" if none is allowed
    about: str  # one line for users
    default_lr: float
    select: Callable[[RuleInput, str], Selection]  # takes an input and the text after the colon
    takes_layers: bool = True  # `@0-3` may follow and restrict the rule to some layers
    tidy: Callable[[str], str] = str  # returns the canonical spelling of an argument

    def learning_rate(self, argument: str) -> float:
        """Return the default learning rate with an argument.

        That of a share falls from `default_lr` at 0.1 % of all values to that of `full` at 100 %,
        by the same factor for each factor of the share: many values that all move as far as a few
        would change the answers too much.
        """
        if self.argument != "SHARE":
            return self.default_lr
        place = math.log(max(1.0, float(argument) / _SMALL_SHARE)) / math.log(1 / _SMALL_SHARE)
        return float(f"{self.default_lr ** (1 - place) * RULES['full'].default_lr ** place:.3g}")


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a parameter is in, or None if it is in no layer."""
    match = re.search(r"\.layer\.(\d+)\.", name)
    return int(match[1]) if match else None


def _matching(shapes: Shapes, pattern: str) -> Selection:
    return {name: None for name in shapes if re.fullmatch(pattern, name)}


def _named(pattern: str) -> Callable[[RuleInput, str], Selection]:
    """Return a rule that selects the parameters whose whole name matches a pattern."""
    return lambda given, _: _matching(given.shapes, pattern)


def _terms(argument: str) -> list[str]:
    terms = [term.strip() for term in argument.split(",")] if argument else []
    for term in terms:
        if term not in BIAS_TERMS:
            hint = did_you_mean(term, BIAS_TERMS)
            raise ConfigError(
                f"bitfit: unknown bias term {term!r}.{hint} Allowed: {', '.join(BIAS_TERMS)}"
            )
    return terms


def _bitfit(given: RuleInput, argument: str) -> Selection:
    modules = [BIAS_TERMS[term] for term in _terms(argument)] or [r".+"]
    return _matching(given.shapes, rf"(?:.+\.)?(?:{'|'.join(modules)})\.bias")


def _share(rule: str, argument: str) -> float:
    with suppress(ValueError):
        if 0 < (share := float(argument)) <= 1:
            return share
    raise ConfigError(
        f"{rule}:{argument}: the share of parameters must be a number above 0 and at most 1"
    )


def _num_wanted(given: RuleInput, rule: str, argument: str) -> int:
    """Return the number of values that a share is, at least one."""
    return max(1, round(_share(rule, argument) * sum(map(prod, given.shapes.values()))))


def _at(shapes: Shapes, positions: Tensor) -> Selection:
    """Return the selection of positions, increasing, in all parameters laid end to end."""
    import numpy as np
    import torch

    sizes = [prod(shape) for shape in shapes.values()]
    starts = np.cumsum([0, *sizes])
    cuts = torch.searchsorted(positions, torch.from_numpy(starts)).tolist()
    return {
        name: positions[low:high] - int(start)
        for name, start, low, high in zip(shapes, starts[:-1], cuts[:-1], cuts[1:], strict=True)
        if low < high
    }


def _random(given: RuleInput, argument: str) -> Selection:
    """Draw a share of all backbone values uniformly, without replacement."""
    import numpy as np
    import torch

    total, wanted = sum(map(prod, given.shapes.values())), _num_wanted(given, "random", argument)
    rng = np.random.default_rng(given.seed)
    drawn = np.sort(rng.choice(total, wanted, replace=False, shuffle=False))
    return _at(given.shapes, torch.from_numpy(drawn))


def _rows(given: RuleInput, argument: str) -> Selection:
    """Draw whole rows and columns of the layers' and the pooler's matrices until they suffice.

    This is the control `rand_row_col` of Ben Zaken et al. 2021. The share is of all backbone
    values, so that it compares with the share of `random`; the last row or column may exceed it.
    """
    import numpy as np
    import torch

    matrices = [
        name for name, shape in given.shapes.items() if len(shape) == 2 and "embeddings" not in name
    ]
    candidates = [
        (name, axis, index)
        for name in matrices
        for axis in (0, 1)
        for index in range(given.shapes[name][axis])
    ]
    left = _num_wanted(given, "rows", argument)
    total = sum(map(prod, given.shapes.values()))
    most = sum(prod(given.shapes[name]) for name in matrices)
    if left > most:
        # Never less than was asked for: the share is part of the strategy's name.
        raise ConfigError(
            f"rows:{argument}: the matrices of the layers and the pooler hold {most:,} of "
            f"{total:,} values; give at most {most * 1000 // total / 1000:g}"
        )
    masks: dict[str, Tensor] = {}
    for number in np.random.default_rng(given.seed).permutation(len(candidates)).tolist():
        if left <= 0:
            break
        name, axis, index = candidates[number]
        mask = masks.setdefault(name, torch.zeros(given.shapes[name], dtype=torch.bool))
        chosen = mask.select(axis, index)
        left -= int((~chosen).sum())
        chosen.fill_(value=True)
    return {name: masks[name].view(-1).nonzero().view(-1) for name in matrices if name in masks}


def _highest(given: RuleInput, scores: Scores, wanted: int) -> Selection:
    """Select the values with the highest scores; the first of equal ones."""
    import torch

    flat = torch.cat([scores[name].reshape(-1).float() for name in given.shapes])
    order = torch.argsort(flat, descending=True, stable=True)
    return _at(given.shapes, order[:wanted].sort().values)


def _magnitude(given: RuleInput, argument: str) -> Selection:
    wanted = _num_wanted(given, "magnitude", argument)
    if not given.values:
        raise ConfigError("magnitude: needs the parameters' values")
    return _highest(given, {name: given.values[name].abs() for name in given.shapes}, wanted)


def _fisher(given: RuleInput, argument: str) -> Selection:
    """Select by Fisher information, as the FISH mask of Sung et al. 2021 (arXiv:2111.09839)."""
    wanted = _num_wanted(given, "fisher", argument)
    return _highest(given, given.scores("fisher"), wanted)


def _gem(given: RuleInput, argument: str) -> Selection:
    """Select by the ratio of gradient to weight, after GEM (Kang et al. 2025, arXiv:2508.16191).

    GEM ranks values by how large their update would be in proportion to the pretrained value. It
    also gives each layer a number of its own, by the entropy of the layer's values. Here the share
    is one for all values, as in `fisher` and `random`, so that the rules compare.
    """
    wanted = _num_wanted(given, "gem", argument)
    return _highest(given, given.scores("gem"), wanted)


def _num_layers(argument: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", argument):
        raise ConfigError(f"top:{argument}: the number of layers must be a whole number, 1 or more")
    return int(argument)


def _top(given: RuleInput, argument: str) -> Selection:
    layers = {number for name in given.shapes if (number := layer_of(name)) is not None}
    wanted = _num_layers(argument)
    if wanted > len(layers):
        raise ConfigError(f"top:{argument}: the backbone has {len(layers)} layers")
    numbers = "|".join(map(str, sorted(layers)[-wanted:]))
    return _matching(given.shapes, rf"bert\.encoder\.layer\.(?:{numbers})\..+|bert\.pooler\..+")


def _params(given: RuleInput, argument: str) -> Selection:
    try:
        pattern = re.compile(argument)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"params:{argument}: not a regular expression ({error})") from error
    return {name: None for name in given.shapes if pattern.search(name)}


def _tidy_share(rule: str) -> Callable[[str], str]:
    return lambda argument: f"{_share(rule, argument):g}"


RULES: dict[str, Rule] = {
    "full": Rule("", "every parameter", 1e-4, _named(".+")),
    "head": Rule(
        "",
        "the classifier alone; the backbone stays as it is",
        3e-2,
        lambda _given, _argument: {},
        takes_layers=False,
    ),
    "bitfit": Rule(
        "[TERM,...]",
        f"all biases, or the biases of: {', '.join(BIAS_TERMS)}",
        3e-3,
        _bitfit,
        tidy=lambda argument: ",".join(sorted(set(_terms(argument)))),
    ),
    "layernorm": Rule(
        "", "LayerNorm weights and biases", 6e-3, _named(r".+\.LayerNorm\.(?:weight|bias)")
    ),
    "random": Rule(
        "SHARE",
        "this share of all values, drawn uniformly with the seed (0.001 = 0.1 %)",
        3e-2,
        _random,
        tidy=_tidy_share("random"),
    ),
    "rows": Rule(
        "SHARE",
        "random rows and columns of the matrices, this share of all values together",
        1e-2,
        _rows,
        tidy=_tidy_share("rows"),
    ),
    "fisher": Rule(
        "SHARE",
        "the share of all values with the largest Fisher information on train rows",
        2e-3,
        _fisher,
        tidy=_tidy_share("fisher"),
    ),
    "gem": Rule(
        "SHARE",
        "the share of all values whose gradient on train rows is largest beside their size",
        2e-3,
        _gem,
        tidy=_tidy_share("gem"),
    ),
    "magnitude": Rule(
        "SHARE",
        "the share of all values that are farthest from 0",
        2e-3,
        _magnitude,
        tidy=_tidy_share("magnitude"),
    ),
    "top": Rule(
        "N",
        "the last N layers and the pooler",
        1e-4,
        _top,
        takes_layers=False,
        tidy=lambda argument: str(_num_layers(argument)),
    ),
    "attention": Rule(
        "",
        "attention matrices and their biases",
        1e-4,
        _named(r".+\.attention\.(?:self\.(?:query|key|value)|output\.dense)\.(?:weight|bias)"),
    ),
    "ffn": Rule(
        "",
        "feed-forward matrices and their biases",
        1e-4,
        _named(r".+\.layer\.\d+\.(?:intermediate|output)\.dense\.(?:weight|bias)"),
    ),
    "params": Rule(
        "REGEX",
        "parameters with a match of the regular expression in their names; last in a union",
        1e-4,
        _params,
        takes_layers=False,
    ),
}
