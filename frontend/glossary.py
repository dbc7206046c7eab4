"""The page's words for tasks, metrics, strategies and numbers, and example inputs.

The page shows everything that the server serves; a task that is unknown here gets its plain name
and no examples. The texts of the examples are in `examples.toml`; none comes from GLUE.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from frontend.models import Prediction


@dataclass(frozen=True)
class TaskWords:
    """The page's words for one task."""

    title: str  # the name as the authors of the task write it
    question: str  # the question that the task answers
    topic: str = ""  # the question in one word

    @property
    def heading(self) -> str:
        """The title, followed by the topic if there is one."""
        return f"{self.title} · {self.topic}" if self.topic else self.title


@dataclass(frozen=True)
class Scale:
    """The range of a regression task's values, with the meaning of both ends."""

    low: float
    high: float
    low_means: str
    high_means: str


_TASKS = {
    "cola": TaskWords("CoLA", "Is this an acceptable English sentence?", "Grammar"),
    "sst2": TaskWords("SST-2", "Does the writer like it?", "Sentiment"),
    "mrpc": TaskWords("MRPC", "Do the two sentences report the same thing?", "Paraphrase"),
    "stsb": TaskWords("STS-B", "How similar in meaning are the two sentences?", "Similarity"),
    "qqp": TaskWords("QQP", "Do the two questions ask the same thing?", "Duplicates"),
    "mnli": TaskWords("MNLI", "Does the premise entail or contradict the hypothesis?", "Inference"),
    "qnli": TaskWords("QNLI", "Does the sentence answer the question?", "Answering"),
    "rte": TaskWords("RTE", "Does the second sentence follow from the first?", "Entailment"),
    "wnli": TaskWords("WNLI", "Is the second sentence right about the pronoun?", "Coreference"),
}

_METRICS = {
    "matthews": "Matthews correlation",
    "accuracy": "Accuracy",
    "f1": "F1",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mse": "Mean squared error",
}

_SCALES = {"stsb": Scale(0.0, 5.0, "unrelated", "same meaning")}

# A strategy's text is a base name with optional arguments ("random:0.001"), or several with "+".
_STRATEGIES = {
    "full": "every parameter of the backbone and the head",
    "head": "the head alone, on the frozen backbone",
    "bitfit": "all biases and the head",
    "layernorm": "weights and biases of all LayerNorms and the head",
    "random": "a random share of all parameters and the head",
    "fisher": "the values with the largest Fisher information and the head",
    "gem": "the values with the largest gradient in proportion to their size, and the head",
    "top": "the uppermost layers and the head",
    "attention": "the attention blocks and the head",
    "ffn": "the feed-forward blocks and the head",
    "params": "parameters chosen by name and the head",
}

_BEGINNINGS = {
    "initbias+": "after all biases were set to 0",
    "init+": "after all parameters were drawn anew",
}


def task_words(name: str) -> TaskWords:
    """Return the words for a task; only its plain name if the task is unknown."""
    return _TASKS.get(name, TaskWords(name, ""))


def metric_words(name: str) -> str:
    """Return the full name of a metric."""
    return _METRICS.get(name, name.replace("_", " ").capitalize())


def label_words(label: str) -> str:
    """Return a label as people read it: `not_entailment` becomes "not entailment"."""
    return label.replace("_", " ")


def value_scale(task: str) -> Scale | None:
    """Return the range of a regression task; None if it is unknown."""
    return _SCALES.get(task)


def strategy_words(strategy: str) -> str:
    """Describe in a few words which parameters a strategy trains; empty if it is unknown."""
    for prefix, words in _BEGINNINGS.items():
        if strategy.startswith(prefix):
            rest = strategy_words(strategy.removeprefix(prefix))
            return f"{rest}, {words}" if rest else ""
    base, _, arguments = strategy.partition(":")
    if "+" in strategy or base not in _STRATEGIES:
        return ""
    if base == "random" and arguments:
        return _STRATEGIES[base].replace("a random share", f"a random {_percent(arguments)}")
    if base == "bitfit" and arguments:
        return f"the biases of {arguments.replace(',', ', ')} and the head"
    return _STRATEGIES[base]


def _percent(share: str) -> str:
    try:
        return f"{float(share) * 100:g} %"
    except ValueError:
        return "share"


_NOTABLE_SHARE_OF_SCALE = 0.1  # regression values further apart count as a disagreement


def literal(text: str) -> str:
    """Escape the special characters of Markdown."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>()#+!|~$:" else char for char in text)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which gets an "s" unless the number is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def human_bytes(count: int) -> str:
    """Format a size in decimal units with at least two digits: "102 KB", "4.2 KB", "91 MB"."""
    size, unit = float(count), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    if unit == "B":
        return f"{count} B"
    return f"{size:.0f} {unit}" if size >= 9.95 else f"{size:.1f} {unit}"


def percent(share: float) -> str:
    """Format a share with two significant digits below ten percent: "0.11 %", "3.4 %", "42 %"."""
    value = share * 100
    if value == 0 or value >= 9.95:
        return f"{value:.0f} %"
    return f"{value:.2g} %" if value >= 0.001 else "<0.001 %"


def probability(value: float) -> str:
    """Format a probability in whole percents; 0 % and 100 % only if it is exactly that."""
    if value > 0.995:
        return ">99 %" if value < 1 else "100 %"
    if value < 0.005:
        return "<1 %" if value > 0 else "0 %"
    return f"{value:.0%}".replace("%", " %")


def milliseconds(value: float) -> str:
    """Format a duration in milliseconds, or in seconds from one second up."""
    return f"{value / 1000:.1f} s" if value >= 1000 else f"{value:.0f} ms"


def disagreement(predictions: Sequence[Prediction], scale: Scale | None) -> str:
    """Describe how the strategies of one task differ on one row; empty if they agree.

    Args:
        predictions: the predictions of all strategies of one task.
        scale: the range of a regression task; without it no two values count as far apart.
    """
    values = [item.value for item in predictions if item.value is not None]
    if values:
        spread = max(values) - min(values)
        if scale is None or spread <= _NOTABLE_SHARE_OF_SCALE * (scale.high - scale.low):
            return ""
        return f"Strategies differ by {spread:.2f}"
    verdicts = [frozenset(item.labels) for item in predictions]
    counts = sorted((verdicts.count(verdict) for verdict in set(verdicts)), reverse=True)
    if len(counts) <= 1:
        return ""
    return f"Strategies disagree {' : '.join(map(str, counts))}"


_MAX_TITLE_LENGTH = 76

# For "All tasks on one text", by number of text fields: a text that makes sense to every task.
_SHARED = {
    1: (
        "The soup was cold, the waiter was colder, "
        "and I would go back tomorrow for the bread alone.",
    ),
    2: (
        "The library stays open until midnight during the exam weeks.",
        "During exams you can study in the library at eleven in the evening.",
    ),
}


@dataclass(frozen=True)
class Example:
    """An example input with the answer of its author."""

    texts: tuple[str, ...]  # one for each text field of the task, in its order
    answer: str  # the author's answer, a label or words for a value; a delta may differ
    hard: str = ""  # the reason why the example is hard; empty for plain ones

    @property
    def title(self) -> str:
        """The reason why the example is hard, and the beginning of each text."""
        length = _MAX_TITLE_LENGTH // len(self.texts)
        text = " / ".join(_shorten(text, length) for text in self.texts)
        return f"{self.hard.capitalize()}: {text}" if self.hard else text


def examples_of(task: str, num_fields: int) -> tuple[Example, ...]:
    """Return the examples of a task that have the given number of text fields."""
    return tuple(item for item in _all_examples().get(task, ()) if len(item.texts) == num_fields)


def shared_example(num_fields: int) -> tuple[str, ...]:
    """Return texts for every task with the given number of text fields; empty texts if unknown."""
    return _SHARED.get(num_fields, ("",) * num_fields)


@cache
def _all_examples() -> dict[str, tuple[Example, ...]]:
    tables = tomllib.loads(Path(__file__).with_name("examples.toml").read_text(encoding="utf-8"))
    return {
        task: tuple(
            Example(tuple(item["texts"]), item["answer"], item.get("hard", "")) for item in items
        )
        for task, items in tables.items()
    }


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length].rstrip(" ,.") + "..."
