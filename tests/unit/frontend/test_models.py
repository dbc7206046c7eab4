"""The server's answers as the page shows them."""

from __future__ import annotations

from frontend.models import visible


def test_no_text_of_a_manifest_turns_the_page() -> None:
    bad = "a\x1b[2J\u202eb\u200f"
    shown = "a\\x1b[2J\\u202eb\\u200f"
    answer = {"labels": [bad], "scores": {bad: 0.5}, "note": bad, "rows": [{"value": 1}, None]}
    assert visible(answer) == {
        "labels": [shown],
        "scores": {shown: 0.5},
        "note": shown,
        "rows": [{"value": 1}, None],
    }


def test_other_scripts_and_names_of_fields_stay() -> None:
    """Requests repeat the names of fields."""
    answer = {"labels": ["caf\u00e9 \u732b"], "text_fields": ["a\u202eb"]}
    assert visible(answer) == answer
