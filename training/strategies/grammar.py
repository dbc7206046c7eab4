"""Parses `--freeze` and applies it: rules joined by `+`, each for some layers or for all.

`bitfit:query@0-3+layernorm` is the union of two rules; the rules themselves are
`training.strategies.rules`. The head always trains and is no part of a selection.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import TYPE_CHECKING

from deltas.errors import did_you_mean
from deltas.manifest import STRATEGY_PATTERN
from training.errors import ConfigError
from training.strategies.rules import RULES, RuleInput, Scores, Selection, Shapes, layer_of

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST = 240  # characters of a strategy's text, which is a name in manifests and URLs


@dataclass(frozen=True)
class _RuleUse:
    """One rule of a strategy; `layers` is its first and last layer, or None for everything."""

    name: str
    argument: str
    layers: tuple[int, int] | None

    @property
    def text(self) -> str:
        """The rule as users write it."""
        text = f"{self.name}:{self.argument}" if self.argument else self.name
        if self.layers is None:
            return text
        first, last = self.layers
        return f"{text}@{first}" if first == last else f"{text}@{first}-{last}"


def select(
    freeze: str,
    shapes: Shapes,
    seed: int,
    values: Scores | None = None,
    scores: Callable[[str], Scores] | None = None,
) -> Selection:
    """Apply a strategy.

    Args:
        freeze: the text after `--freeze`, such as "bitfit@0-3" or "random:0.001+layernorm".
        shapes: the shape of every backbone parameter, in the network's order.
        seed: seed of rules that draw at random.
        values: the parameters; only `magnitude` needs them.
        scores: takes a rule, returns its score for each value; only `fisher` and `gem` need it.

    Raises:
        ConfigError: unknown rule, bad argument, or nothing selected by a rule.
    """
    score = cache(scores or _no_scores)
    selection: Selection = {}
    for use in _parse(freeze):
        given = RuleInput(_of_layers(shapes, use, freeze), seed, values or {}, score)
        chosen = RULES[use.name].select(given, use.argument)
        if not chosen and use.name != "head":
            raise ConfigError(f"--freeze {freeze}: {use.text} selects no parameter")
        for name, indices in chosen.items():
            selection[name] = _union(selection[name], indices) if name in selection else indices
    return {name: selection[name] for name in shapes if name in selection}


def _no_scores(rule: str) -> Scores:
    raise ConfigError(f"{rule}: needs train rows to score the parameters on")


def canonical(freeze: str) -> str:
    """Return the one spelling of a strategy: numbers short, bias terms sorted, no repeats."""
    uses = [
        replace(use, argument=RULES[use.name].tidy(use.argument)).text for use in _parse(freeze)
    ]
    distinct = list(dict.fromkeys(uses))
    text = "+".join(use for use in distinct if use != "head" or len(distinct) == 1)
    if len(text) > _LONGEST:
        raise ConfigError(f"--freeze: {len(text)} characters; at most {_LONGEST} are allowed")
    if not re.fullmatch(STRATEGY_PATTERN, text):
        raise ConfigError(
            f"--freeze {text}: ASCII without spaces, quotes, backticks, < and > is allowed"
        )
    return text


def default_learning_rate(freeze: str) -> float:
    """Return the lowest default learning rate among the strategy's rules."""
    return min(RULES[use.name].learning_rate(use.argument) for use in _parse(canonical(freeze)))


def count(selection: Selection, shapes: Shapes) -> int:
    """Return the number of backbone values that a selection lets train."""
    return sum(
        prod(shapes[name]) if chosen is None else len(chosen) for name, chosen in selection.items()
    )


def describe_rules() -> str:
    """Return the help of `--freeze`, one line a rule."""
    names = {name: _usage(name) for name in RULES}
    width = max(map(len, names.values()))
    lines = [f"  {names[name]:{width}}  {rule.about}" for name, rule in RULES.items()]
    lines += [f"  {'RULE@0-3':{width}}  a rule for these layers only, or for one: bitfit@2"]
    return "\n".join([*lines, f"  {'a+b':{width}}  everything that a or b selects"])


def parse_layers(text: str) -> tuple[int, int]:
    """Return first and last layer of a text like "2" or "0-3".

    Raises:
        ConfigError: another form, or the last layer comes before the first.
    """
    match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if first > last:
        raise ConfigError(
            f"@{text}: layers are written as a number or as first-last, counted from 0: @2 or @0-3"
        )
    return first, last


def _of_layers(shapes: Shapes, use: _RuleUse, freeze: str) -> Shapes:
    if use.layers is None:
        return shapes
    first, last = use.layers
    layers = {name: number for name in shapes if (number := layer_of(name)) is not None}
    if last not in layers.values():
        highest = max(layers.values())
        raise ConfigError(f"--freeze {freeze}: the backbone has layers 0 to {highest}")
    return {name: shapes[name] for name, number in layers.items() if first <= number <= last}


def _parse(freeze: str) -> list[_RuleUse]:
    # A plus inside a regular expression joins no rules, so `params` comes last and takes the rest.
    before, params, pattern = freeze.strip().partition("params:")
    parts = f"{before}params".split("+") if params else before.split("+")
    uses = [_parse_use(freeze, part) for part in (parts[:-1] if params else parts)]
    if params:
        if not pattern:
            raise ConfigError(f"--freeze {freeze}: write {_usage('params')}")
        if parts[-1] != "params":
            uses.append(_parse_use(freeze, parts[-1]))
        uses.append(_RuleUse("params", pattern, None))
    return uses


def _parse_use(freeze: str, text: str) -> _RuleUse:
    rest, at, layers = text.partition("@")
    name, colon, argument = rest.partition(":")
    rule = RULES.get(name)
    if rule is None:
        hint = did_you_mean(name, RULES)
        raise ConfigError(
            f"--freeze {freeze}: unknown strategy {name!r}.{hint} Allowed:\n{describe_rules()}"
        )
    needed = rule.argument and not rule.argument.startswith("[")
    if (colon and not argument) or (colon and not rule.argument) or (needed and not argument):
        raise ConfigError(f"--freeze {freeze}: write {_usage(name)}")
    if at and not rule.takes_layers:
        raise ConfigError(f"--freeze {freeze}: {name} can't be restricted to layers with @")
    return _RuleUse(name, argument, parse_layers(layers) if at else None)


def _usage(name: str) -> str:
    argument = RULES[name].argument
    if argument.startswith("["):
        return f"{name}[:{argument[1:]}"
    return f"{name}:{argument}" if argument else name


def _union(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return None
    import torch

    united: Tensor = torch.unique(torch.cat([first, second]))
    return united
