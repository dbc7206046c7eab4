"""Takes rows from their texts to predictions; read `app.pipeline.pipeline`, a request's way, first.

The names are loaded on first use, so that a command's `--help` waits for no large library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.pipeline.pipeline import STAGES as STAGES
    from app.pipeline.pipeline import Pipeline as Pipeline
    from app.pipeline.pipeline import RowLogits as RowLogits
    from app.pipeline.pipeline import Stage as Stage
    from app.pipeline.pipeline import Trace as Trace
    from app.pipeline.pipeline import list_rows as list_rows
    from app.pipeline.pipeline import read_texts as read_texts

__all__ = ["STAGES", "Pipeline", "RowLogits", "Stage", "Trace", "list_rows", "read_texts"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module("app.pipeline.pipeline"), name)
    return value
