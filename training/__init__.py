"""Training writes deltas: rows in, one `.safetensors` file out.

The commands are `training.fit` (one run), `training.sweep` (the runs of a study), `training.report`
(the study's tables and figures), `training.zoo` (the shipped deltas) and `training.submit` (GLUE's
leaderboard). Behind them: `training.data` (rows), `training.strategies` (parameters that train),
`training.run` (one run), `training.study` (many runs). Start reading at `training.fit`.

The package writes through `deltas`; `app`, which serves, never imports it.
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

# `python -m` looks in the current folder first, where a user's own `deltas.py` hides ours.
_deltas = find_spec("deltas")
if _deltas and _deltas.origin and Path(_deltas.origin).parents[1] != Path(__file__).parents[1]:
    # The name of the module to run is not in `sys.argv` yet.
    _command = re.match(r"training\.(\w+)", " ".join(sys.orig_argv).partition(" -m ")[2])
    _problem = (
        f"{_deltas.origin} hides DeltaBERT's `deltas`; start with "
        f"`deltabert {_command[1] if _command else 'fit'}` instead"
    )
    # While `python -m` looks for the module to run, the program's name is "-m".
    raise SystemExit(f"error: {_problem}") if sys.argv[0] == "-m" else ImportError(_problem)
