"""Takes the steps of a run: their order and rates, the loop itself, and the state it can resume.

Read `training.run.loop.loop` first.
"""
