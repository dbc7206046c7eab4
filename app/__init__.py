"""The server: answers many text-classification tasks from one frozen backbone and its deltas.

The way of a request: `app.edge` (request id, log line) -> `app.routes.predict` -> `app.pipeline`
(check, tokenize) -> `app.batcher` (queue, batches, deadlines) -> `app.engine` (one forward pass) ->
`app.predictions` (logits to labels). `app.main.create_app` wires them. Which tasks exist is known
from the manifests of the deltas only; nothing in this package names a task.
"""
