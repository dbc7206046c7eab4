"""Labels the rows of a table by several strategies, with requests that the server can answer.

A row counts once for each strategy, and all rows of a request share its deadline. So a request that
is refused, or not answered in time, is asked again in smaller ones, down to one row and one
strategy. Nothing is drawn here; `frontend.views.table` does.
Tested by `tests/browser/test_words_and_tables.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from frontend.client import Client, Row
from frontend.errors import ServerError
from frontend.models import Prediction
from frontend.views.rows import chunks

_REFUSED = {400, 413, 422}  # statuses of a request with a row that can't be used
_TOO_SLOW = 504
_OF_ONE_DELTA = {"delta_unavailable", "internal_error", "not_found"}  # codes


class Labelling:
    """The answers of strategies to the rows of a table, as far as they have come.

    Args:
        client: client of the server.
        task: name of the task.
        rows: rows of the table.
        strategies: strategies that label them.

    Attributes:
        found: the answers of each strategy, by row; None for a row without an answer.
        problem: the first error that left rows without an answer which the server could use.
    """

    def __init__(
        self, client: Client, task: str, rows: Sequence[Row], strategies: Sequence[str]
    ) -> None:
        self._client = client
        self._task = task
        self._rows = rows
        self._asked = list(strategies)  # those that are still asked
        self.found: dict[str, list[Prediction | None]] = {
            name: [None] * len(rows) for name in strategies
        }
        self.problem: ServerError | None = None

    def steps(self) -> Iterator[int]:
        """Label the rows; yields the number of rows that are done, until a problem ends it."""
        try:
            for places in chunks(len(self._rows), len(self._asked)):
                self._ask(places, self._asked)
                if not self._asked:
                    return
                yield places.stop
        except ServerError as error:
            self.problem = self.problem or error

    def _ask(self, places: range, strategies: Sequence[str]) -> None:
        """Keep the answers to some rows; rows that the server can't use have none."""
        strategies = [name for name in strategies if name in self._asked]
        if not strategies:
            return
        rows = self._rows[places.start : places.stop]
        try:
            answers = self._client.predict_rows(self._task, rows, strategies)
        except ServerError as error:
            self._ask_less(places, strategies, error)
            return
        for name, of_strategy in zip(strategies, answers, strict=True):
            self.found[name][places.start : places.stop] = of_strategy

    def _ask_less(self, places: range, strategies: Sequence[str], error: ServerError) -> None:
        """Ask again in smaller requests, if an error may not concern all rows and strategies.

        Raises:
            ServerError: it concerns all of them.
        """
        is_of_delta = error.code in _OF_ONE_DELTA
        if not (is_of_delta or error.status in (*_REFUSED, _TOO_SLOW)):
            raise error
        if len(strategies) > 1 and (is_of_delta or len(places) == 1):
            for name in strategies:
                self._ask(places, [name])
        elif len(places) > 1 and not is_of_delta:
            half = len(places) // 2
            self._ask(places[:half], strategies)
            self._ask(places[half:], strategies)
        elif error.status not in _REFUSED:
            self._give_up(strategies[0], error)

    def _give_up(self, strategy: str, error: ServerError) -> None:
        """Ask a strategy no more, so that the others go on."""
        self._asked.remove(strategy)
        hints = (*error.hints, f"The rest of the rows have no label of {strategy}.")
        self.problem = self.problem or replace(error, hints=hints)
