"""The rules behind `--freeze`: each is one small function from what is given to a selection.

What is given are parameter names and shapes, the seed, and, for rules that ask for them, the values
and scores of the backbone's parameters. How rules are written and combined: `training.strategies.grammar`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from deltas.errors import did_you_mean
from training.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]
# None selects the whole parameter; int64 [K] selects those flat positions, increasing.
Selection = dict[str, Tensor | None]
Scores = Mapping[str, Tensor]

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


@dataclass(frozen=True)
class Given:
    """What a rule selects from.

    Attributes:
        shapes: of the backbone's parameters, by Hugging Face name, in the network's order.
        seed: for rules that draw at random.
        values: the parameters themselves, in the same order.
        scores: gives a score for each value, computed when first asked for.
    """

    shapes: Shapes
    seed: int
    values: Scores
    scores: Callable[[], Scores]


@dataclass(frozen=True)
class Rule:
    """One strategy: what it is called, what may follow the colon, and how it selects.

    Attributes:
        argument: how the help shows what follows the colon; "" when nothing may.
        about: one line for users.
        default_lr: learning rate that a run uses when none is given.
        select: from what is given and the text after the colon.
        takes_layers: whether `@0-3` may follow and restrict it to some layers.
        tidy: the one spelling of its argument.
    """

    argument: str
    about: str
    default_lr: float
    select: Callable[[Given, str], Selection]
    takes_layers: bool = True
    tidy: Callable[[str], str] = str


def _matching(shapes: Shapes, pattern: str) -> Selection:
    return {name: None for name in shapes if re.fullmatch(pattern, name)}


def _full(given: Given, argument: str) -> Selection:
    del argument
    return dict.fromkeys(given.shapes)


def _head(given: Given, argument: str) -> Selection:
    del given, argument
    return {}


def _terms(argument: str) -> list[str]:
    terms = [term.strip() for term in argument.split(",")] if argument else []
    for term in terms:
        if term not in BIAS_TERMS:
            hint = did_you_mean(term, BIAS_TERMS)
            raise ConfigError(
                f"bitfit: unknown bias term {term!r}.{hint} Allowed: {', '.join(BIAS_TERMS)}"
            )
    return terms


def _bitfit(given: Given, argument: str) -> Selection:
    modules = [BIAS_TERMS[term] for term in _terms(argument)] or [r".+"]
    return _matching(given.shapes, rf"(?:.+\.)?(?:{'|'.join(modules)})\.bias")


def _layernorm(given: Given, argument: str) -> Selection:
    del argument
    return _matching(given.shapes, r".+\.LayerNorm\.(?:weight|bias)")


def _share(rule: str, argument: str) -> float:
    try:
        share = float(argument)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ConfigError(
            f"{rule}:{argument}: the share of parameters must be a number above 0 and at most 1"
        )
    return share


def _wanted(given: Given, rule: str, argument: str) -> int:
    """How many values a share is, at least one."""
    return max(1, round(_share(rule, argument) * sum(map(prod, given.shapes.values()))))


def _at(shapes: Shapes, positions: Tensor) -> Selection:
    """The values at these increasing positions of all parameters laid end to end."""
    sizes = [prod(shape) for shape in shapes.values()]
    starts = np.cumsum([0, *sizes])
    cuts = torch.searchsorted(positions, torch.from_numpy(starts)).tolist()
    return {
        name: positions[low:high] - int(start)
        for name, start, low, high in zip(shapes, starts[:-1], cuts[:-1], cuts[1:], strict=True)
        if low < high
    }


def _random(given: Given, argument: str) -> Selection:
    """Draw a share of all backbone values uniformly, without replacement."""
    total, wanted = sum(map(prod, given.shapes.values())), _wanted(given, "random", argument)
    rng = np.random.default_rng(given.seed)
    drawn = np.sort(rng.choice(total, wanted, replace=False, shuffle=False))
    return _at(given.shapes, torch.from_numpy(drawn))


def _rows(given: Given, argument: str) -> Selection:
    """Draw whole rows and columns of the layers' and the pooler's matrices until it is enough.

    A control of Ben Zaken et al. 2021, there for as many values as BitFit has. The share is of all
    values, so that it compares with that of `random`; the last line may take it a little beyond.
    """
    matrices = [
        name for name, shape in given.shapes.items() if len(shape) == 2 and "embeddings" not in name
    ]
    lines = [
        (name, axis, line)
        for name in matrices
        for axis in (0, 1)
        for line in range(given.shapes[name][axis])
    ]
    left = _wanted(given, "rows", argument)
    total = sum(map(prod, given.shapes.values()))
    most = sum(prod(given.shapes[name]) for name in matrices)
    if left > most:
        # Never less than was asked for: the share is part of the name that is served.
        raise ConfigError(
            f"rows:{argument}: the matrices of the layers and the pooler hold {most:,} of "
            f"{total:,} values; give at most {most * 1000 // total / 1000:g}"
        )
    picked: dict[str, Tensor] = {}
    for number in np.random.default_rng(given.seed).permutation(len(lines)).tolist():
        if left <= 0:
            break
        name, axis, line = lines[number]
        mask = picked.setdefault(name, torch.zeros(given.shapes[name], dtype=torch.bool))
        chosen = mask.select(axis, line)
        left -= int((~chosen).sum())
        chosen.fill_(value=True)
    return {name: picked[name].view(-1).nonzero().view(-1) for name in matrices if name in picked}


def _highest(given: Given, scores: Scores, wanted: int) -> Selection:
    """The values that score highest; of equal ones those that come first."""
    flat = torch.cat([scores[name].reshape(-1).float() for name in given.shapes])
    order = torch.argsort(flat, descending=True, stable=True)
    return _at(given.shapes, order[:wanted].sort().values)


def _magnitude(given: Given, argument: str) -> Selection:
    wanted = _wanted(given, "magnitude", argument)
    if not given.values:
        raise ConfigError("magnitude: needs the parameters' values")
    return _highest(given, {name: given.values[name].abs() for name in given.shapes}, wanted)


def _fisher(given: Given, argument: str) -> Selection:
    """The mask of Sung et al. 2021 (FISH, arXiv:2111.09839): where the loss feels a change most."""
    wanted = _wanted(given, "fisher", argument)
    return _highest(given, given.scores(), wanted)


def _layers(argument: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", argument):
        raise ConfigError(f"top:{argument}: the number of layers must be a whole number, 1 or more")
    return int(argument)


def _top(given: Given, argument: str) -> Selection:
    found = {
        int(match[1]) for name in given.shapes if (match := re.search(r"\.layer\.(\d+)\.", name))
    }
    wanted = _layers(argument)
    if wanted > len(found):
        raise ConfigError(f"top:{argument}: the backbone has {len(found)} layers")
    numbers = "|".join(str(number) for number in sorted(found)[-wanted:])
    return _matching(given.shapes, rf"bert\.encoder\.layer\.(?:{numbers})\..+|bert\.pooler\..+")


def _attention(given: Given, argument: str) -> Selection:
    del argument
    return _matching(
        given.shapes, r".+\.attention\.(?:self\.(?:query|key|value)|output\.dense)\.(?:weight|bias)"
    )


def _ffn(given: Given, argument: str) -> Selection:
    del argument
    return _matching(
        given.shapes, r".+\.layer\.\d+\.(?:intermediate|output)\.dense\.(?:weight|bias)"
    )


def _params(given: Given, argument: str) -> Selection:
    try:
        pattern = re.compile(argument)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"params:{argument}: not a regular expression ({error})") from error
    return {name: None for name in given.shapes if pattern.search(name)}


def _tidy_share(rule: str) -> Callable[[str], str]:
    return lambda argument: f"{_share(rule, argument):g}"


RULES: dict[str, Rule] = {
    "full": Rule("", "every parameter", 5e-5, _full),
    "head": Rule(
        "", "the classifier alone; the backbone stays as it is", 3e-2, _head, takes_layers=False
    ),
    "bitfit": Rule(
        "[TERM,...]",
        f"all biases, or those of: {', '.join(BIAS_TERMS)}",
        2e-3,
        _bitfit,
        tidy=lambda argument: ",".join(sorted(set(_terms(argument)))),
    ),
    "layernorm": Rule("", "LayerNorm weights and biases", 6e-3, _layernorm),
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
        tidy=lambda argument: str(_layers(argument)),
    ),
    "attention": Rule("", "attention matrices and their biases", 1e-4, _attention),
    "ffn": Rule("", "feed-forward matrices and their biases", 1e-4, _ffn),
    "params": Rule(
        "REGEX",
        "parameters in whose name the regular expression is found; last in a union",
        1e-4,
        _params,
        takes_layers=False,
    ),
}
