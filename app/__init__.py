"""The server: answers many text-classification tasks from one frozen backbone and its deltas.

The way of a request: `app.http.middleware` (request id, log line) -> `app.http.routes` -> `app.pipeline`
(check, tokenize) -> `app.batching.batcher` (queue, batches, deadlines) -> `app.engine.engine` (one forward pass) ->
`app.http.predictions` (logits to labels). `app.main.create_app` wires them. Which tasks exist is known
from the manifests of the deltas only; nothing in this package names a task.
"""
