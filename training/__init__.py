"""Training writes deltas: data in, one `.safetensors` file out.

Where things are: `training.tasks` (the nine GLUE tasks as a table), `training.data` (where rows
come from), `training.own` (rows of the user's own, from `training.files` or
`training.dataset`), `training.sample` (generated rows, for when there are no others),
`training.metrics`, and `training.fit`, the command that puts them together. `deltas` says what is
written; `app` reads it and never imports this.
"""
