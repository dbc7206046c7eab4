"""Training writes deltas: rows in, one `.safetensors` file out.

The commands are `training.fit` (one run), `training.sweep` (the runs of a study), `training.report`
(the study's tables and figures), `training.zoo` (the shipped deltas) and `training.submit` (GLUE's
leaderboard). Behind them: `training.data` (rows), `training.strategies` (parameters that train),
`training.run` (one run), `training.study` (many runs). Start reading at `training.fit`.

The package writes through `deltas`; `app`, which serves, never imports it.
"""
