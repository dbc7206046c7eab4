"""The client of a DeltaBERT server for Python programs: typed answers, sync and async.

    from deltabert import Client

    with Client("http://127.0.0.1:8000") as client:
        answer = client.predict("sst2", ["A delight.", "A bore."])
        print(answer.version, [row.decision for row in answer.rows])

It speaks HTTP alone, and loads neither torch nor the other packages of this project. Read
`deltabert.protocol` next, which decides what is sent again.
"""

from deltabert.answers import DeltaAnswers as DeltaAnswers
from deltabert.answers import Health as Health
from deltabert.answers import LabelAnswer as LabelAnswer
from deltabert.answers import LabelsAnswer as LabelsAnswer
from deltabert.answers import RowAnswer as RowAnswer
from deltabert.answers import ServedDelta as ServedDelta
from deltabert.answers import ServedTask as ServedTask
from deltabert.answers import ValueAnswer as ValueAnswer
from deltabert.async_client import AsyncClient as AsyncClient
from deltabert.client import Client as Client
from deltabert.protocol import ClientError as ClientError
from deltabert.protocol import RefusedError as RefusedError
from deltabert.protocol import UnreachableError as UnreachableError

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "DeltaAnswers",
    "Health",
    "LabelAnswer",
    "LabelsAnswer",
    "RefusedError",
    "RowAnswer",
    "ServedDelta",
    "ServedTask",
    "UnreachableError",
    "ValueAnswer",
]
