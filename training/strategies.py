"""Freezing strategies: rules from parameter names and shapes to a selection.

Each rule is one small function in `RULES`; `a+b` is the union of two. Rules match whole names at
module boundaries: "output" is the feed-forward output and never the attention's. The head always
trains and is no part of a selection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from deltas.errors import near_matches
from training.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]
# None selects the whole parameter; int64 [K] selects those flat positions, increasing.
Selection = dict[str, Tensor | None]

_LONGEST = 240  # of a strategy's text, which is a name in manifests and addresses

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
class Rule:
    """One strategy: what it is called, what may follow the colon, and how it selects.

    Attributes:
        argument: how the help shows what follows the colon; "" when nothing may.
        about: one line for users.
        default_lr: learning rate that a run uses when none is given.
        select: from shapes, the text after the colon, and the seed.
    """

    argument: str
    about: str
    default_lr: float
    select: Callable[[Shapes, str, int], Selection]


def select(freeze: str, shapes: Shapes, seed: int) -> Selection:
    """Apply a strategy.

    Args:
        freeze: the text after `--freeze`, such as "bitfit" or "random:0.001+layernorm".
        shapes: of every backbone parameter, by Hugging Face name, in the network's order.
        seed: for rules that draw at random.

    Raises:
        ConfigError: unknown rule, bad argument, or nothing selected by a rule.
    """
    selection: Selection = {}
    for name, argument in _parse(freeze):
        chosen = RULES[name].select(shapes, argument, seed)
        if not chosen and name != "head":
            raise ConfigError(f"--freeze {freeze}: {_text(name, argument)} selects no parameter")
        for parameter, indices in chosen.items():
            selection[parameter] = (
                _union(selection[parameter], indices) if parameter in selection else indices
            )
    return {name: selection[name] for name in shapes if name in selection}


def canonical(freeze: str) -> str:
    """The one spelling of a strategy: numbers short, bias terms sorted, no repeats."""
    parts = [_text(name, _tidy(name, argument)) for name, argument in _parse(freeze)]
    distinct = list(dict.fromkeys(parts))
    text = "+".join(part for part in distinct if part != "head" or len(distinct) == 1)
    if len(text) > _LONGEST:
        raise ConfigError(f"--freeze: {len(text)} characters; at most {_LONGEST} are allowed")
    return text


def default_learning_rate(freeze: str) -> float:
    """The most careful default among the strategy's rules."""
    parts = [name for name, _ in _parse(canonical(freeze))]
    return min(RULES[name].default_lr for name in parts)


def count(selection: Selection, shapes: Shapes) -> int:
    """How many backbone values a selection lets train."""
    return sum(
        prod(shapes[name]) if chosen is None else len(chosen) for name, chosen in selection.items()
    )


def describe_rules() -> str:
    """One line a rule, for `--freeze help`."""
    names = {name: _usage(name) for name in RULES}
    width = max(map(len, names.values()))
    lines = [f"  {names[name]:{width}}  {rule.about}" for name, rule in RULES.items()]
    return "\n".join([*lines, f"  {'a+b':{width}}  everything that a or b selects"])


def _parse(freeze: str) -> list[tuple[str, str]]:
    # A plus inside a regular expression is no union, so that comes last and takes the rest.
    before, params, pattern = freeze.strip().partition("params:")
    parts = f"{before}params".split("+") if params else before.split("+")
    if params:
        parts[-1] += f":{pattern}"
    parsed = []
    for part in parts:
        name, colon, argument = part.partition(":")
        rule = RULES.get(name)
        if rule is None:
            close = near_matches(name, RULES)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"--freeze {freeze}: unknown strategy {name!r}.{hint} Allowed:\n{describe_rules()}"
            )
        needed = rule.argument and not rule.argument.startswith("[")
        if (colon and not argument) or (colon and not rule.argument) or (needed and not argument):
            raise ConfigError(f"--freeze {freeze}: write {_usage(name)}")
        parsed.append((name, argument))
    return parsed


def _text(name: str, argument: str) -> str:
    return f"{name}:{argument}" if argument else name


def _usage(name: str) -> str:
    argument = RULES[name].argument
    return f"{name}[:{argument[1:]}" if argument.startswith("[") else _text(name, argument)


def _tidy(name: str, argument: str) -> str:
    if name == "random":
        return f"{_share(argument):g}"
    if name == "top":
        return str(_layers(argument))
    if name == "bitfit":
        return ",".join(sorted(set(_terms(argument))))
    return argument


def _union(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return None
    united: Tensor = torch.unique(torch.cat([first, second]))
    return united


def _matching(shapes: Shapes, pattern: str) -> Selection:
    return {name: None for name in shapes if re.fullmatch(pattern, name)}


def _full(shapes: Shapes, argument: str, seed: int) -> Selection:
    del argument, seed
    return dict.fromkeys(shapes)


def _head(shapes: Shapes, argument: str, seed: int) -> Selection:
    del shapes, argument, seed
    return {}


def _terms(argument: str) -> list[str]:
    terms = [term.strip() for term in argument.split(",")] if argument else []
    for term in terms:
        if term not in BIAS_TERMS:
            close = near_matches(term, BIAS_TERMS)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"bitfit: unknown bias term {term!r}.{hint} Allowed: {', '.join(BIAS_TERMS)}"
            )
    return terms


def _bitfit(shapes: Shapes, argument: str, seed: int) -> Selection:
    del seed
    modules = [BIAS_TERMS[term] for term in _terms(argument)] or [r".+"]
    return _matching(shapes, rf"(?:.+\.)?(?:{'|'.join(modules)})\.bias")


def _layernorm(shapes: Shapes, argument: str, seed: int) -> Selection:
    del argument, seed
    return _matching(shapes, r".+\.LayerNorm\.(?:weight|bias)")


def _share(argument: str) -> float:
    try:
        share = float(argument)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ConfigError(
            f"random:{argument}: the share of parameters must be a number above 0 and at most 1"
        )
    return share


def _random(shapes: Shapes, argument: str, seed: int) -> Selection:
    """Draw a share of all backbone values uniformly, without replacement."""
    sizes = [prod(shape) for shape in shapes.values()]
    total = sum(sizes)
    wanted = max(1, round(_share(argument) * total))
    drawn = np.sort(np.random.default_rng(seed).choice(total, wanted, replace=False, shuffle=False))
    starts = np.cumsum([0, *sizes])
    cuts = np.searchsorted(drawn, starts)
    return {
        name: torch.from_numpy(drawn[low:high] - start)
        for name, start, low, high in zip(shapes, starts[:-1], cuts[:-1], cuts[1:], strict=True)
        if low < high
    }


def _layers(argument: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", argument):
        raise ConfigError(f"top:{argument}: the number of layers must be a whole number, 1 or more")
    return int(argument)


def _top(shapes: Shapes, argument: str, seed: int) -> Selection:
    del seed
    found = {int(match[1]) for name in shapes if (match := re.search(r"\.layer\.(\d+)\.", name))}
    wanted = _layers(argument)
    if wanted > len(found):
        raise ConfigError(f"top:{argument}: the backbone has {len(found)} layers")
    numbers = "|".join(str(number) for number in sorted(found)[-wanted:])
    return _matching(shapes, rf"bert\.encoder\.layer\.(?:{numbers})\..+|bert\.pooler\..+")


def _attention(shapes: Shapes, argument: str, seed: int) -> Selection:
    del argument, seed
    return _matching(
        shapes, r".+\.attention\.(?:self\.(?:query|key|value)|output\.dense)\.(?:weight|bias)"
    )


def _ffn(shapes: Shapes, argument: str, seed: int) -> Selection:
    del argument, seed
    return _matching(shapes, r".+\.layer\.\d+\.(?:intermediate|output)\.dense\.(?:weight|bias)")


def _params(shapes: Shapes, argument: str, seed: int) -> Selection:
    del seed
    try:
        pattern = re.compile(argument)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"params:{argument}: not a regular expression ({error})") from error
    return {name: None for name in shapes if pattern.search(name)}


RULES: dict[str, Rule] = {
    "full": Rule("", "every parameter", 5e-5, _full),
    "head": Rule("", "the classifier alone; the backbone stays as it is", 1e-2, _head),
    "bitfit": Rule(
        "[TERM,...]", f"all biases, or those of: {', '.join(BIAS_TERMS)}", 2e-3, _bitfit
    ),
    "layernorm": Rule("", "LayerNorm weights and biases", 2e-3, _layernorm),
    "random": Rule(
        "SHARE",
        "this share of all values, drawn uniformly with the seed (0.001 = 0.1 %)",
        1e-2,
        _random,
    ),
    "top": Rule("N", "the last N layers and the pooler", 1e-4, _top),
    "attention": Rule("", "attention matrices and their biases", 1e-4, _attention),
    "ffn": Rule("", "feed-forward matrices and their biases", 1e-4, _ffn),
    "params": Rule(
        "REGEX",
        "parameters in whose name the regular expression is found; last in a union",
        1e-4,
        _params,
    ),
}
