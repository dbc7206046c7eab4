"""Writes errors as the clients of other protocols read them, whatever has raised them.

The first part of a path tells the protocol. The status stays that of `app.errors.STATUSES`, except
for text-embeddings-inference (TEI), whose clients tell causes apart by statuses of its own. Tested
by tests/unit/app/http/routes/clients/test_error_forms.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Scope

from app.errors import WriteError
from app.keys.paths import first_part, route_path

_ONLY_CLASSIFICATION = (
    "; this address answers text classification (`text_classification` of InferenceClient), and no "
    "other task of the Hugging Face hub"
)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)


class HuggingFaceError(_Body):
    """An error for `huggingface_hub`."""

    error: Annotated[str, Field(description="A sentence for people.")]
    error_type: Annotated[str, Field(description="Code of the error, as in our own form.")]
    request_id: Annotated[str, Field(description="Also in the header X-Request-ID and in the log.")]


TeiErrorType = Literal["unhealthy", "backend", "overloaded", "validation", "tokenizer"]


class TeiError(_Body):
    """An error of text-embeddings-inference."""

    error: Annotated[str, Field(description="A sentence for people.")]
    error_type: TeiErrorType


class OpenInferenceError(_Body):
    """An error of the Open Inference Protocol."""

    error: Annotated[str, Field(description="A sentence for people.")]


class OpenAiErrorContent(_Body):
    """The content of an error of vLLM, which has OpenAI's form."""

    message: Annotated[str, Field(description="A sentence for people.")]
    type: Annotated[str, Field(description="Code of the error, as in our own form.")]
    param: Annotated[str | None, Field(description="Field of the first problem, if it has one.")]
    code: Annotated[int, Field(description="Status of the answer.")]


class OpenAiError(_Body):
    """An error of vLLM."""

    error: OpenAiErrorContent


class MlflowError(_Body):
    """An error of MLflow."""

    error_code: Annotated[str, Field(description="One of MLflow's codes.")]
    message: Annotated[str, Field(description="A sentence for people.")]


class ErrorForm(NamedTuple):
    """The form of a protocol's errors.

    Attributes:
        model: model of the body, for the documentation.
        write: returns status and body from our status and the content of our own form.
    """

    model: type[BaseModel]
    write: WriteError


def _hugging_face(status: int, content: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    other_kind = status in (HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    return status, {
        "error": content["message"].rstrip(".") + (_ONLY_CLASSIFICATION if other_kind else ""),
        "error_type": content["code"],
        "request_id": content["request_id"],
    }


# Our statuses that are other ones there.
_TEI_STATUSES = {500: 424, 504: 424}
_TEI_TYPES: dict[int, TeiErrorType] = {
    413: "validation",
    422: "tokenizer",
    424: "backend",
    429: "overloaded",
    503: "unhealthy",
}


def _tei(status: int, content: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    status = _TEI_STATUSES.get(status, status)
    return status, {
        "error": content["message"],
        "error_type": _TEI_TYPES.get(status, "validation"),
    }


def _open_inference(status: int, content: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    return status, {"error": content["message"]}


def _open_ai(status: int, content: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    problems = content["details"] if content["code"] == "invalid_input" else None
    return status, {
        "error": {
            "message": content["message"],
            "type": content["code"],
            "param": problems[0]["field"] if problems else None,
            "code": status,
        }
    }


_MLFLOW_CODES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    422: "INVALID_PARAMETER_VALUE",
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def _mlflow(status: int, content: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    code = _MLFLOW_CODES.get(status, "BAD_REQUEST")
    return status, {"error_code": code, "message": content["message"]}


_FORMS = {
    "hf": ErrorForm(HuggingFaceError, _hugging_face),
    "tei": ErrorForm(TeiError, _tei),
    "v2": ErrorForm(OpenInferenceError, _open_inference),
    "classify": ErrorForm(OpenAiError, _open_ai),
    "invocations": ErrorForm(MlflowError, _mlflow),
}


def error_form_of(path: str) -> ErrorForm | None:
    """Return the form of errors below a path; None is our own."""
    return _FORMS.get(first_part(path))


def write_error_of(scope: Scope) -> WriteError | None:
    """Return the function that writes errors for the client of a request; None is our own form."""
    form = error_form_of(route_path(scope))
    return None if form is None else form.write
