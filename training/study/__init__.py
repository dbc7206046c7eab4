"""Studies: plans many runs, runs them and reports the results.

Read `training.study.plan` first, then `training.study.run_pool` and `training.study.aggregates`.
"""
