"""Freezing strategies as users write them: rules, joined by `+`, each for some layers or all.

`bitfit:query@0-3+layernorm` is the union of two; `training.strategies.rules` holds the rules themselves. The
head always trains and is no part of a selection.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from deltas.errors import did_you_mean
from training.errors import ConfigError
from training.strategies.rules import RULES, Given, Scores, Selection, Shapes

_LONGEST = 240  # of a strategy's text, which is a name in manifests and addresses
_FROM_DATA = ("fisher",)


@dataclass(frozen=True)
class _Part:
    """One of the things that a `+` joins; `layers` is first and last layer, None is everything."""

    name: str
    argument: str
    layers: tuple[int, int] | None

    @property
    def text(self) -> str:
        """As the user may write it."""
        text = f"{self.name}:{self.argument}" if self.argument else self.name
        return text + layers_text(self.layers)


def select(
    freeze: str,
    shapes: Shapes,
    seed: int,
    values: Scores | None = None,
    scores: Callable[[], Scores] | None = None,
) -> Selection:
    """Apply a strategy.

    Args:
        freeze: the text after `--freeze`, such as "bitfit@0-3" or "random:0.001+layernorm".
        shapes: of every backbone parameter, by Hugging Face name, in the network's order.
        seed: for rules that draw at random.
        values: the parameters, by name; only `magnitude` needs them.
        scores: gives each value's score, by name; only `fisher` needs them.

    Raises:
        ConfigError: unknown rule, bad argument, or nothing selected by a rule.
    """
    score = cache(scores or _no_scores)
    selection: Selection = {}
    for part in _parse(freeze):
        some = _of_layers(shapes, part, freeze)
        given = Given(some, seed, values or {}, score)
        chosen = RULES[part.name].select(given, part.argument)
        if not chosen and part.name != "head":
            raise ConfigError(f"--freeze {freeze}: {part.text} selects no parameter")
        for parameter, indices in chosen.items():
            selection[parameter] = (
                _union(selection[parameter], indices) if parameter in selection else indices
            )
    return {name: selection[name] for name in shapes if name in selection}


def _no_scores() -> Scores:
    raise ConfigError("fisher: needs train rows to score the parameters on")


def canonical(freeze: str) -> str:
    """The one spelling of a strategy: numbers short, bias terms sorted, no repeats."""
    parts = [
        _Part(part.name, RULES[part.name].tidy(part.argument), part.layers).text
        for part in _parse(freeze)
    ]
    distinct = list(dict.fromkeys(parts))
    text = "+".join(part for part in distinct if part != "head" or len(distinct) == 1)
    if len(text) > _LONGEST:
        raise ConfigError(f"--freeze: {len(text)} characters; at most {_LONGEST} are allowed")
    return text


def default_learning_rate(freeze: str) -> float:
    """The most careful default among the strategy's rules."""
    return min(RULES[part.name].default_lr for part in _parse(canonical(freeze)))


def needs_rows(freeze: str) -> bool:
    """Whether the selection depends on the train rows."""
    return any(part.name in _FROM_DATA for part in _parse(freeze))


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
    lines += [f"  {'RULE@0-3':{width}}  a rule for these layers only, or for one: bitfit@2"]
    return "\n".join([*lines, f"  {'a+b':{width}}  everything that a or b selects"])


def parse_layers(text: str) -> tuple[int, int]:
    """First and last layer of "2" or "0-3".

    Raises:
        ConfigError: not of that form, or the last comes before the first.
    """
    match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if first > last:
        raise ConfigError(
            f"@{text}: layers are written as a number or as first-last, counted from 0: @2 or @0-3"
        )
    return first, last


def layers_text(layers: tuple[int, int] | None) -> str:
    """What stands behind a rule that is for some layers only."""
    if layers is None:
        return ""
    first, last = layers
    return f"@{first}" if first == last else f"@{first}-{last}"


def layer_of(name: str) -> int | None:
    """The number of the layer that a parameter is in, if it is in one."""
    match = re.search(r"\.layer\.(\d+)\.", name)
    return int(match[1]) if match else None


def _of_layers(shapes: Shapes, part: _Part, freeze: str) -> Shapes:
    if part.layers is None:
        return shapes
    first, last = part.layers
    there = {number for name in shapes if (number := layer_of(name)) is not None}
    if last not in there:
        raise ConfigError(f"--freeze {freeze}: the backbone has layers 0 to {max(there)}")
    return {
        name: shape
        for name, shape in shapes.items()
        if (number := layer_of(name)) is not None and first <= number <= last
    }


def _parse(freeze: str) -> list[_Part]:
    # A plus inside a regular expression is no union, so that comes last and takes the rest.
    before, params, pattern = freeze.strip().partition("params:")
    parts = f"{before}params".split("+") if params else before.split("+")
    parsed = [_parse_part(freeze, part) for part in (parts[:-1] if params else parts)]
    if params:
        if not pattern:
            raise ConfigError(f"--freeze {freeze}: write {_usage('params')}")
        if parts[-1] != "params":
            parsed.append(_parse_part(freeze, parts[-1]))
        parsed.append(_Part("params", pattern, None))
    return parsed


def _parse_part(freeze: str, text: str) -> _Part:
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
    return _Part(name, argument, parse_layers(layers) if at else None)


def _usage(name: str) -> str:
    argument = RULES[name].argument
    if argument.startswith("["):
        return f"{name}[:{argument[1:]}"
    return f"{name}:{argument}" if argument else name


def _union(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return None
    united: Tensor = torch.unique(torch.cat([first, second]))
    return united
