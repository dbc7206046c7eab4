"""Training writes deltas: data in, one `.safetensors` file out.

Where things are: `training.data.tasks` (the nine GLUE tasks as a table), `training.data.glue` (where rows
come from), `training.data.custom` (rows of the user's own, from `training.data.custom` or
`training.data.hub_dataset`), `training.data.sample` (generated rows, for when there are no others),
`training.run.evaluation`, and `training.fit`, the command that puts them together. `deltas` says what is
written; `app` reads it and never imports this.
"""
