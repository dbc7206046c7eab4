"""The server: answers many text-classification tasks from one frozen backbone and its deltas.

The way of a request: `app.http.middleware` (request id, log line) -> `app.http.routes` -> `app.pipeline`
(check, tokenize) -> `app.batching.batcher` (queue, batches, deadlines) -> `app.engine.engine` (one forward pass) ->
`app.http.predictions` (logits to labels). `app.main.create_app` wires them. Which tasks exist is known
from the manifests of the deltas only; nothing in this package names a task.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

# `python -m` looks in the current folder first, where a user's own `deltas.py` hides ours.
_deltas = find_spec("deltas")
if _deltas and _deltas.origin and Path(_deltas.origin).parents[1] != Path(__file__).parents[1]:
    _problem = f"{_deltas.origin} hides DeltaBERT's `deltas`; start with `deltabert serve` instead"
    # While `python -m` looks for the module to run, the program's name is "-m".
    raise SystemExit(f"error: {_problem}") if sys.argv[0] == "-m" else ImportError(_problem)
