"""Rows of text become the token ids that transformers gives, or a clear error."""

from __future__ import annotations

import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltas import Backbone, InvalidTextError, TaskSpec, TokenizedRow, tokenize_rows, tokenize_texts
from deltas.backbone.tokenizer import has_text
from tests.factories import POOLED_TASKS, TOY_TASKS
from tests.laws import law

LAW = law(60)

TEXTS = [
    "a good film",
    "",
    " ",
    "\t\n\r",
    "\0",
    "a\0b",
    "😀 good 👩‍👩‍👧‍👦",
    "[CLS] the [SEP] [PAD] [MASK]",
    "Ünïcödé Straße",
    "中文 film",
    "e\u0301",
    "\u202eright to left\u200b",
    "b" * 300,
    "the " * 200,
    "not-very_good...!?",
    "\ufffd\uffff",
]


@pytest.fixture(scope="module")
def stock_tokenizer(tiny_backbone_dir: Path) -> Any:
    """A fresh tokenizer, because calling it changes its state."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_backbone_dir)


def called(tokenizer: Any, texts: tuple[str, ...], max_length: int | None) -> tuple[Any, Any]:
    """Call a transformers tokenizer on a batch of one row.

    (Called on a bare pair it takes an empty second text for none; its batches don't.)
    """
    given = tokenizer(
        *([text] for text in texts),
        truncation=False if max_length is None else "longest_first",
        max_length=max_length,
        padding=False,
        return_token_type_ids=True,
    )
    return given["input_ids"][0], given["token_type_ids"][0]


def check(row: TokenizedRow, tokenizer: Any, texts: tuple[str, ...], max_length: int) -> None:
    """Assert that the row equals the tokenizer's, and that `truncated` is right."""
    assert (list(row.input_ids), list(row.token_type_ids)) == called(tokenizer, texts, max_length)
    assert row.num_tokens == len(row.input_ids) <= max_length
    assert row.truncated == (len(called(tokenizer, texts, None)[0]) > max_length)


@pytest.mark.parametrize("max_length", [8, 13, 64])
def test_texts_and_pairs_equal_transformers(
    tiny_backbone: Backbone, stock_tokenizer: Any, max_length: int
) -> None:
    texts: list[tuple[str, ...]] = [(text,) for text in TEXTS]
    texts += [(first, second) for first in TEXTS for second in TEXTS]
    rows = tokenize_texts(tiny_backbone.tokenizer, max_length, texts)
    for text, row in zip(texts, rows, strict=True):
        check(row, stock_tokenizer, text, max_length)


@LAW
@given(st.lists(st.text(max_size=40), min_size=1, max_size=2), st.integers(4, 30))
def test_any_text_equals_transformers(
    tiny_backbone: Backbone, stock_tokenizer: Any, texts: list[str], max_length: int
) -> None:
    (row,) = tokenize_texts(tiny_backbone.tokenizer, max_length, [tuple(texts)])
    check(row, stock_tokenizer, tuple(texts), max_length)


@LAW
@given(st.tuples(st.text(max_size=40), st.text(max_size=40)), st.integers(4, 30))
def test_pairs_that_are_read_separately_are_two_single_texts(
    tiny_backbone: Backbone, stock_tokenizer: Any, texts: tuple[str, str], max_length: int
) -> None:
    """Each may have the whole length; the row's tokens are counted together."""
    tokenizer = tiny_backbone.tokenizer
    (row,) = tokenize_texts(tokenizer, max_length, [texts], pairs="separate")
    alone = tokenize_texts(tokenizer, max_length, [(text,) for text in texts])
    assert row.sequences == [(one.input_ids, one.token_type_ids) for one in alone]
    assert row.num_tokens == sum(one.num_tokens for one in alone)
    assert row.truncated == any(one.truncated for one in alone)
    for text, (ids, types) in zip(texts, row.sequences, strict=True):
        assert (ids, types) == called(stock_tokenizer, (text,), max_length)
        assert not any(types)


def test_a_task_says_how_its_pairs_are_read(tiny_backbone: Backbone) -> None:
    row = {"premise": "a good film", "hypothesis": "not bad"}
    counts = {
        task.name: len(tokenize_rows(tiny_backbone.tokenizer, task, [row])[0].sequences)
        for task in (TOY_TASKS["toy3"], *POOLED_TASKS.values())
        if task.text_fields == ("premise", "hypothesis")
    }
    assert counts == {"toy3": 1, "toypairmean": 1, "toypairlayers": 1, "toysplit": 2}


def test_real_vocabulary_equals_transformers(packaged_backbone: Backbone) -> None:
    """The packaged tokenizer pads to 128 when called plainly; here nothing is ever padded."""
    from transformers import AutoTokenizer

    from deltas.backbone.packaged import packaged_folder

    tokenizer = AutoTokenizer.from_pretrained(packaged_folder())
    texts: list[tuple[str, ...]] = [(text,) for text in TEXTS]
    texts += [(text, "don't re-tokenise") for text in TEXTS]
    rows = tokenize_texts(packaged_backbone.tokenizer, 24, texts)
    for text, row in zip(texts, rows, strict=True):
        check(row, tokenizer, text, 24)


def test_a_hundred_thousand_characters(tiny_backbone: Backbone, toy_tasks: Any) -> None:
    """Tokenize a long text without spaces, and one with spaces."""
    for text in ("a" * 100_000, "good film " * 10_000):
        (row,) = tokenize_rows(tiny_backbone.tokenizer, toy_tasks["toy2"], [text])
        assert row.num_tokens <= 32
        assert row.truncated == (" " in text)  # one endless word is one unknown token


def test_two_long_texts_take_no_longer_than_one_by_one(packaged_backbone: Backbone) -> None:
    """The tokenizer's own truncation of this pair takes minutes and tens of gigabytes."""
    text = "a b " * 50_000
    (row,) = tokenize_texts(packaged_backbone.tokenizer, 128, [(text, text)])
    (alone,) = tokenize_texts(packaged_backbone.tokenizer, 128, [(text,)])
    assert row.truncated
    assert row.input_ids[:63] == alone.input_ids[:63]
    assert (row.num_tokens, sum(row.token_type_ids)) == (128, 64)


def test_an_exact_fit_is_not_truncated(tiny_backbone: Backbone) -> None:
    for words, truncated in ((6, False), (7, True)):
        (row,) = tokenize_texts(tiny_backbone.tokenizer, 8, [("the " * words,)])
        assert (row.num_tokens, row.truncated) == (8, truncated)


def test_lengths_do_not_mix_between_threads(tiny_backbone: Backbone) -> None:
    """Eight threads, each with its own maximum length, on one tokenizer."""
    texts = [("good film " * 40,), ("the " * 50, "a b c d " * 20)]
    sizes = [8, 9, 10, 12, 16, 20, 30, 60]

    def work(max_length: int) -> set[int]:
        seen = set()
        for _ in range(30):
            rows = tokenize_texts(tiny_backbone.tokenizer, max_length, texts)
            seen |= {row.num_tokens for row in rows}
        return seen

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, sizes)) == [{size} for size in sizes]


def test_rows_may_be_given_in_several_ways(tiny_backbone: Backbone, toy_tasks: Any) -> None:
    single, pair = toy_tasks["toy2"], toy_tasks["toy3"]
    one = tokenize_rows(
        tiny_backbone.tokenizer,
        single,
        ["a good film", {"sentence": "a good film"}, {"text": "a good film"}],
    )
    assert one[0] == one[1] == one[2]
    two = tokenize_rows(
        tiny_backbone.tokenizer,
        pair,
        [
            {"premise": "a", "hypothesis": "b"},
            {"hypothesis": "b", "premise": "a"},
            {"text": "a", "text_pair": "b"},
            {"text_pair": "b", "text": "a"},
        ],
    )
    assert two[0] == two[1] == two[2] == two[3]
    assert tokenize_rows(tiny_backbone.tokenizer, pair, []) == []


@pytest.mark.parametrize("fields", [("text_pair", "text"), ("text", "text_pair"), ("text", "b")])
def test_the_field_names_of_a_task_come_first(
    tiny_backbone: Backbone, fields: tuple[str, str]
) -> None:
    """A user's columns may be called like the generic fields, and stand in another order."""
    task = TaskSpec(
        name="mine", kind="single_label", labels=("a", "b"), text_fields=fields, max_length=16
    )
    row = dict(zip(fields, ("good", "bad film"), strict=True))
    expected = tokenize_texts(tiny_backbone.tokenizer, 16, [("good", "bad film")])
    assert tokenize_rows(tiny_backbone.tokenizer, task, [row]) == expected


@pytest.mark.parametrize(
    ("task", "row", "field", "sentence"),
    [
        ("toy3", "text", None, "'toy3' takes two texts: give an object with 'premise' and 'hypo"),
        ("toy2", 5, None, "must be a string or an object with 'sentence', not a number"),
        ("toy2", None, None, "not null"),
        ("toy2", ["a"], None, "not an array"),
        (
            "toy3",
            ["a", "b"],
            None,
            "must be an object with 'premise' and 'hypothesis', not an array",
        ),
        ("toy2", {}, "sentence", "is missing"),
        ("toy3", {"premise": "a"}, "hypothesis", "is missing; 'toy3' takes 'premise' and 'hypoth"),
        ("toy3", {"text": "a"}, "text", "is not a field of 'toy3'"),
        ("toy3", {"premise": "a", "hypotesis": "b"}, "hypotesis", "Did you mean 'hypothesis'"),
        ("toy3", {"premise": "a", "hypothesis": "b", "x": "c"}, "x", "is not a field"),
        ("toy2", {"text": "a", "text_pair": "b"}, "text", "is not a field"),
        ("toy2", {"sentence": "a", "text": "b"}, "text", "is not a field"),
        ("toy2", {"sentence": 5}, "sentence", "must be a string, not a number"),
        ("toy2", {"sentence": None}, "sentence", "must be a string, not null"),
        (
            "toy3",
            {"premise": "a", "hypothesis": ["b"]},
            "hypothesis",
            "must be a string, not an array",
        ),
        ("toy2", "a\ud800b", None, "a lone surrogate at character 1"),
        ("toy3", {"premise": "a", "hypothesis": "\udc00"}, "hypothesis", "a lone surrogate"),
        ("toy2", {5: "a"}, "5", "is not a field"),
        ("toy2", {"x" * 10_000: "a"}, "x" * 64, "is not a field"),
    ],
)
def test_wrong_rows_are_named(
    tiny_backbone: Backbone, toy_tasks: Any, task: str, row: Any, field: str, sentence: str
) -> None:
    """The third of four rows is wrong, and the error names only that row."""
    good = dict.fromkeys(toy_tasks[task].text_fields, "good")
    with pytest.raises(InvalidTextError) as caught:
        tokenize_rows(tiny_backbone.tokenizer, toy_tasks[task], [good, good, row, good])
    assert (caught.value.row, caught.value.field) == (2, field)
    assert sentence in caught.value.problem
    str(caught.value).encode()
    assert len(str(caught.value)) < 500


def test_a_text_has_a_visible_character_unless_no_character_makes_a_token(
    packaged_backbone: Backbone,
) -> None:
    """Else the answer would be that of an empty text. Marks above letters are visible."""
    characters = [chr(number) for number in (*range(0xD800), *range(0xE000, 0x110000))]
    rows = tokenize_texts(packaged_backbone.tokenizer, 8, [(each,) for each in characters])
    for character, row in zip(characters, rows, strict=True):
        is_empty = row.num_tokens == 2
        if unicodedata.category(character) in ("Mn", "Mc"):
            assert has_text(character)
        elif unicodedata.category(character) != "Cn":  # depends on the version of Unicode
            assert has_text(character) is not is_empty, hex(ord(character))
