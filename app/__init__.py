"""Serves many text-classification tasks from one frozen backbone and its deltas.

To follow a row, read five files, each of which names the next: `app.http.routes.predictions`,
`app.pipeline.pipeline`, `app.batching.batcher`, `app.engine.engine`, `deltas.encoder.encoder`.
`app.main` wires the parts. The tasks are known from the manifests of the deltas only; no module of
this package names a task.
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
