"""Error bodies of the server become sentences that say what to do."""

from __future__ import annotations

import pytest

from frontend.errors import ServerError, UnreachableError, explain_error


def body(message: str = "", details: object = None) -> dict[str, object]:
    error = {"code": "some_code", "message": message, "details": details, "request_id": "r-1"}
    return {"error": error}


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (400, "The server can't use this input. said"),
        (
            401,
            "The server needs an API key that it knows. Set FRONTEND_API_KEY where the page is "
            "started. said",
        ),
        (403, "The page's API key is not for this. said"),
        (404, "said"),
        (413, "The input is larger than the server accepts. said"),
        (422, "The server can't use this input. said"),
        (429, "The server has more requests than it can queue. Try again shortly."),
        (500, "The server failed on this request. Its log says why, under the request id below."),
        (503, "The server is up but not ready to predict yet. said"),
        (418, "said"),
    ],
)
def test_each_status_has_a_sentence(status: int, sentence: str) -> None:
    error = explain_error(status, body("said"), None)
    assert error.message == sentence
    assert (error.status, error.request_id) == (status, "r-1")


def test_an_overloaded_server_says_when_to_come_back() -> None:
    assert "Try again in 3 s." in explain_error(429, body(), "3").message
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    assert "Try again shortly." in explain_error(429, body(), date).message


def test_a_limit_of_the_key_is_not_the_servers() -> None:
    limited = body("said")
    limited["error"]["code"] = "rate_limited"  # type: ignore[index]
    assert (
        explain_error(429, limited, "3").message == "The page's API key has reached a limit. said"
    )


def test_problems_of_the_input_are_listed_by_field() -> None:
    problems = [
        {"row": 0, "field": "sentence1", "problem": "is missing"},
        {"row": None, "field": None, "problem": "is not JSON"},
    ]
    error = explain_error(422, body("row 0, field 'sentence1': is missing", problems), None)
    assert error.message == "The server can't use this input."
    assert error.hints == ("sentence1: is missing", "is not JSON")
    assert str(error) == "The server can't use this input. sentence1: is missing is not JSON"


def test_long_lists_are_shortened() -> None:
    problems = [{"row": n, "field": "text", "problem": f"problem {n}"} for n in range(20)]
    hints = explain_error(422, body("", problems), None).hints
    assert len(hints) == 7
    assert hints[-1] == "and 14 more"


def test_near_matches_are_named_once() -> None:
    details = {"suggestions": ["cola"], "available": ["cola", "rte"]}
    assert explain_error(404, body("unknown task 'coal'", details), None).hints == (
        "Did you mean: cola",
        "Available: cola, rte",
    )
    said = "unknown task 'coal'. Did you mean 'cola'? Available: cola, rte"
    assert explain_error(404, body(said, details), None).hints == ()


@pytest.mark.parametrize("payload", [None, [], "text", {}, {"error": "text"}, {"detail": "x"}])
def test_an_answer_of_another_program_is_recognised(payload: object) -> None:
    error = explain_error(502, payload, None)
    assert "HTTP 502" in error.message
    assert "FRONTEND_API_URL" in error.message


def test_unreachable_is_a_server_error_and_can_be_raised_from_another() -> None:
    def fail() -> None:
        try:
            raise OSError("refused")
        except OSError as error:
            raise UnreachableError("nothing answers") from error

    with pytest.raises(ServerError, match=r"^nothing answers$") as caught:
        fail()
    assert caught.value.status is None
    assert isinstance(caught.value.__cause__, OSError)
