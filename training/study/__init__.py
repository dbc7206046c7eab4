"""Studies: plans many runs, runs them and reports the results."""
