"""Rules of docstrings: who must have one, how it may begin, and the one legend of shapes."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping

import pytest

from tests.meta.source import Function, Source, imported_names, report

LEGEND = "deltas/encoder/__init__.py"
LETTERS = frozenset("NPRHADOICKSWL")
BAD_STARTS = {"What", "Whether", "Who", "Whose", "Of", "Where", "When", "How", "As", "So"}
BAD_ARGUMENT_STARTS = {"of", "as", "what", "when", "where", "which", "how"}
# A function does something: its summary is no mere noun phrase or adverbial.
NOUN_STARTS = {"A", "An", "The", "On", "In", "By", "With", "From", "For", "At"}
AUXILIARIES = {"be", "been", "can", "cannot", "could", "did", "do", "does", "had", "has", "have"}
AUXILIARIES |= {"is", "are", "was", "were", "may", "might", "must", "should", "will", "would"}
VERB_ENDINGS = ("s", "ed", "n't", "ing")


def documented(source: Source) -> Iterator[tuple[ast.AST, str, str]]:
    """Yield each module, class and function that has a docstring, with its place and text."""
    for node in source.nodes:
        if isinstance(node, ast.Module | ast.ClassDef | Function):
            text = ast.get_docstring(node)
            if text is not None:
                yield node, f"{source.path}:{getattr(node, 'lineno', 1)}", text


def may_be_verb(word: str) -> bool:
    """Return True for an auxiliary and for any word that ends as verbs can."""
    return word in AUXILIARIES or word.endswith(VERB_ENDINGS)


def summary_violations(node: ast.AST, text: str) -> Iterator[str]:
    """Yield what is wrong about a docstring's first sentence."""
    summary = text.split("\n\n")[0]
    words = re.findall(r"[\w'`.-]+", summary)
    if not words or words[0] in BAD_STARTS:
        yield f"begins with {words[:1]}"
    if len(words) < 3:
        yield f"has fewer than three words: {summary!r}"
    decorators = [ast.unparse(each) for each in getattr(node, "decorator_list", [])]
    does = isinstance(node, Function) and not any("property" in text for text in decorators)
    later = [word.lower().rstrip(".") for word in words[1:]]
    if does and words and words[0] in NOUN_STARTS and not any(map(may_be_verb, later)):
        yield f"has no verb: {summary!r}"


def argument_violations(text: str) -> Iterator[str]:
    """Yield the entries of a docstring's `Args` that begin in the middle of a sentence."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
    entries = re.findall(r"^ {4}(\*{0,2}\w+): +(\w+)", section[1] if section else "", re.MULTILINE)
    for name, first in entries:
        if first.lower() in BAD_ARGUMENT_STARTS:
            yield f"Args: {name} begins with {first!r}"


def docstring_violations(source: Source) -> Iterator[str]:
    """Yield what is wrong in the docstrings that a file has."""
    for node, place, text in documented(source):
        for problem in (*summary_violations(node, text), *argument_violations(text)):
            yield f"{place}: {problem}"


def missing_docstrings(sources: Mapping[str, Source]) -> Iterator[str]:
    """Yield the files, and the classes and functions that other files import, if undocumented."""
    used = {pair for each in sources.values() for pair in imported_names(each, sources)}
    for source in sources.values():
        if ast.get_docstring(source.tree) is None:
            yield f"{source.path}: the module has no docstring"
        for node in source.tree.body:
            if not isinstance(node, ast.ClassDef | Function) or ast.get_docstring(node):
                continue
            if (source.module, node.name) in used:
                yield f"{source.path}:{node.lineno}: {node.name} has no docstring"


def prose(source: Source) -> Iterator[tuple[int, str]]:
    """Yield the comments and docstrings of a file with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT or (
            token.type == tokenize.STRING and token.string.startswith('"""')
        ):
            yield token.start[0], token.string


def letters_of(text: str) -> Iterator[tuple[str, str]]:
    """Yield (letter, shape) for each capital letter in the shapes like [N, 3H] of a text."""
    for shape in re.findall(r"(?<![\w\])])\[([^\[\]]+)\]", text):
        if re.fullmatch(r"[\w\s,+*/.=<>x-]+", shape):
            yield from ((letter, shape) for letter in re.findall(r"\b\d*([A-Z])\b", shape))


def legend_violations(source: Source) -> Iterator[str]:
    """Yield other legends, and letters of shapes that the legend does not explain."""
    if source.path == LEGEND:
        unexplained = LETTERS - set(re.findall(r"`([A-Z])`", source.text))
        yield from (f"{source.path}: `{letter}` is not explained" for letter in unexplained)
    for line, text in prose(source):
        if "Legend" in text and source.path != LEGEND:
            yield f"{source.path}:{line}: the legend of shapes stands in {LEGEND} alone"
        for letter, shape in letters_of(text):
            if letter not in LETTERS:
                yield f"{source.path}:{line}: {letter} of [{shape}] is not in the legend"


def test_docstrings_are_sentences(sources: dict[str, Source]) -> None:
    files = sources.values()
    report("docstrings", (line for source in files for line in docstring_violations(source)))


def test_what_others_import_is_documented(sources: dict[str, Source]) -> None:
    report("missing", missing_docstrings(sources))


def test_shapes_use_the_letters_of_the_one_legend(sources: dict[str, Source]) -> None:
    report("legend", (line for source in sources.values() for line in legend_violations(source)))


@pytest.mark.parametrize(
    "text",
    [
        "What the file holds.",
        "As `run`.",
        "The kernel.",
        "The same.",
        "On a CPU alone.",
        "Run it.\n\n    Args:\n        rows: of the batch.\n    ",
        "Run it now.\n\n    Args:\n        now: when.\n        rows: of the batch.\n    ",
    ],
)
def test_a_planted_docstring_is_found(text: str) -> None:
    source = Source.parse("app/a.py", f'''def f(rows, now):\n    """{text}"""\n''')
    assert list(docstring_violations(source))


@pytest.mark.parametrize(
    "text",
    [
        "Return the logits of each row.",
        "The caller must free it.",
        "In a new process, run it.\n\n    Args:\n        rows: the rows, of one task.\n    ",
        "Rejects requests whose estimated wait exceeds the limit.",
    ],
)
def test_a_plain_docstring_is_no_violation(text: str) -> None:
    source = Source.parse("app/a.py", f'''def f(rows):\n    """{text}"""\n''')
    assert not list(docstring_violations(source))


def test_a_planted_silence_is_found_where_others_import_it() -> None:
    silent = Source.parse("app/a.py", "def f(): ...\ndef g(): ...\nclass A: ...\n")
    other = Source.parse("app/b.py", '"""B."""\nfrom app.a import A, f\n')
    sources = {source.module: source for source in (silent, other)}
    assert [line.split(": ")[1] for line in missing_docstrings(sources)] == [
        "the module has no docstring",
        "f has no docstring",
        "A has no docstring",
    ]


def test_planted_letters_are_found() -> None:
    for text, found in (
        ("x = 1  # [N, H]", 0),
        ("x = 1  # [2H + 1, W, 1, L] and [CLS], y[Z]", 0),
        ("x = 1  # [T, H]", 1),
        ('"""Lay rows out as [Z + 1].\n\nLegend: Z rows.\n"""', 2),
        ("x: dict[T, Q] = {}", 0),
    ):
        assert len(list(legend_violations(Source.parse("app/a.py", text)))) == found, text
    explained = " ".join(f"`{letter}`" for letter in LETTERS - {"W"})
    legend = Source.parse(LEGEND, f'"""{explained}"""')
    assert list(legend_violations(legend)) == [f"{LEGEND}: `W` is not explained"]
